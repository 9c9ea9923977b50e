"""The image encoder and its training, as learners write it."""

import torch
from torch import nn
from torch.nn import functional as F

from paligemma.modeling_siglip import SiglipAttention
from paligemma.modeling_siglip import SiglipMLP as PackageMLP

from . import right, wrong

# --- 04.1 --------------------------------------------------------------------------------------------------------


@wrong("04.1", "left to torch")
def _(x, weight, bias, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


@right("04.1")
def _(x, weight, bias, eps=1e-6):
    mu = torch.mean(x, dim=-1, keepdim=True)
    xc = x - mu
    sigma = torch.mean(xc * xc, dim=-1, keepdim=True).add(eps).sqrt()
    return weight * (xc / sigma) + bias


@right("04.1")
def _(x, weight, bias, eps=1e-6):
    var, mean = torch.var_mean(x, dim=-1, keepdim=True, unbiased=False)
    return torch.addcmul(bias, (x - mean) * torch.rsqrt(var + eps), weight)


@wrong("04.1", "one less in the variance")
def _(x, weight, bias, eps=1e-6):
    return weight * (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + eps) + bias


@wrong("04.1", "eps outside the root")
def _(x, weight, bias, eps=1e-6):
    return weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, unbiased=False) + eps) + bias


@wrong("04.1", "mean not subtracted")
def _(x, weight, bias, eps=1e-6):
    return F.rms_norm(x, x.shape[-1:], weight, eps) + bias


@wrong("04.1", "root forgotten")
def _(x, weight, bias, eps=1e-6):
    c = x - x.mean(-1, keepdim=True)
    return c / (c.pow(2).mean(-1, keepdim=True) + eps) * weight + bias


@wrong("04.1", "eps not passed on")
def _(x, weight, bias, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], weight, bias)


@wrong("04.1", "wrong axis")
def _(x, weight, bias, eps=1e-6):
    y = F.layer_norm(x.transpose(1, 2), (x.shape[1],), eps=eps).transpose(1, 2)
    return y * weight + bias


@wrong("04.1", "over the whole picture")
def _(x, weight, bias, eps=1e-6):
    return F.layer_norm(x, x.shape[1:], eps=eps) * weight + bias


@wrong("04.1", "weight and bias unused")
def _(x, weight, bias, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], eps=eps)


@wrong("04.1", "bias unused")
def _(x, weight, bias, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], weight, None, eps)


@wrong("04.1", "1 + weight")
def _(x, weight, bias, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], weight + 1, bias, eps)


@wrong("04.1", "bias before weight")
def _(x, weight, bias, eps=1e-6):
    return (F.layer_norm(x, x.shape[-1:], eps=eps) + bias) * weight


@wrong("04.1", "raised")
def _(x, weight, bias, eps=1e-6):
    return (x - x.mean(-1)) / torch.sqrt(x.var(-1, unbiased=False) + eps) * weight + bias


@wrong("04.1", "input changed")
def _(x, weight, bias, eps=1e-6):
    x -= x.mean(-1, keepdim=True)
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight + bias


# --- 04.2 --------------------------------------------------------------------------------------------------------


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)


ONES, ZEROS, EYE = torch.ones(2), torch.zeros(2), torch.eye(2)
ONE_TOKEN = rows([3.0, -3.0])
GOOD = {
    "bias_first": (rows([5.0, 5.0]), ZEROS, 5 * ONES, 10 * EYE, EYE),
    "large_eps": (ONE_TOKEN / 20, 0.15 * ONES, ZEROS, 300 * EYE, EYE),
    "relu": (10 * ONE_TOKEN, 30 * ONES, ZEROS, EYE / 20, EYE),
    "residual_from_norm": (rows([2.0, 2.0]), ONES, ZEROS, EYE, 0 * EYE),
    "mean_of_all": (rows([-500.0, 100.0], [500.0, -100.0]), rows(500.0, 100.0), ZEROS, EYE, EYE),
}


def good(**changes):
    return lambda: GOOD | changes


right("04.2")(good())
right("04.2")(good(residual_from_norm=(rows([1.0, 2.0, 3.0]), torch.ones(3), torch.zeros(3), torch.zeros(3, 1),
                                       torch.zeros(1, 3))))  # fmt: skip


def random_half(tokens=3, scale=1.0):
    draw = torch.Generator().manual_seed(0)
    x, weight, bias, w1, w2 = (
        torch.randn(shape, generator=draw) for shape in ((tokens, 4), (4,), (4,), (4, 6), (6, 4))
    )
    return scale * x, weight, bias, w1, w2


wrong("04.2", "exposes others")(lambda: dict.fromkeys(GOOD, random_half()))
wrong("04.2", "exposes others")(good(relu=random_half(1)))
wrong("04.2", "not exposed")(lambda: dict.fromkeys(GOOD, (ONE_TOKEN, ONES, ZEROS, 0 * EYE, 0 * EYE)))
wrong("04.2", "not exposed")(good(large_eps=(100 * ONE_TOKEN, ONES, ZEROS, 30 * EYE, EYE)))
wrong("04.2", "not exposed")(good(mean_of_all=(ONE_TOKEN * 10, ONES, ZEROS, 30 * EYE, EYE)))
wrong("04.2", "not an input")(good(relu=(ONE_TOKEN, ONES, ZEROS, EYE)))
wrong("04.2", "not an input")(good(relu=(ONE_TOKEN[0], ONES, ZEROS, EYE, EYE)))
wrong("04.2", "not an input")(good(relu=(ONE_TOKEN, torch.ones(3), ZEROS, EYE, EYE)))
wrong("04.2", "structure")(lambda: {"relu": GOOD["relu"]})
wrong("04.2", "type")(lambda: GOOD["relu"])


# --- 04.3 --------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = SiglipAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = PackageMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states):
        residual = hidden_states
        hidden_states = self.layer_norm1(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.layer_norm2(hidden_states)
        hidden_states = self.mlp(hidden_states)
        return residual + hidden_states


right("04.3")(Layer)


@right("04.3")
class OwnNorms(Layer):
    def norm(self, part, x):
        var, mean = torch.var_mean(x, -1, keepdim=True, correction=0)
        return (x - mean) / (var + part.eps).sqrt() * part.weight + part.bias

    def forward(self, x):
        x = x + self.self_attn(self.norm(self.layer_norm1, x))[0]
        x = self.mlp(self.norm(self.layer_norm2, x)).add_(x)
        return x


@wrong("04.3", "residual from the normalised input")
class _(Layer):
    def forward(self, hidden_states):
        hidden_states = self.layer_norm1(hidden_states)
        residual = hidden_states
        hidden_states, _ = self.self_attn(hidden_states)
        hidden_states = residual + hidden_states
        hidden_states = self.layer_norm2(hidden_states)
        residual = hidden_states
        return residual + self.mlp(hidden_states)


@wrong("04.3", "residual from the normalised input")
class _(Layer):
    def forward(self, x):
        x = self.layer_norm1(x)
        x = x + self.self_attn(x)[0]
        return x + self.mlp(self.layer_norm2(x))


@wrong("04.3", "norm after the sum")
class _(Layer):
    def forward(self, x):
        x = self.layer_norm1(x + self.self_attn(x)[0])
        return self.layer_norm2(x + self.mlp(x))


@wrong("04.3", "residual forgotten")
class _(Layer):
    def forward(self, x):
        x, _ = self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


@wrong("04.3", "residual forgotten")
class _(Layer):
    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))[0]
        return self.mlp(self.layer_norm2(x))


@wrong("04.3", "first sum lost")
class _(Layer):
    def forward(self, hidden_states):
        residual = hidden_states
        hidden_states, _ = self.self_attn(self.layer_norm1(hidden_states))
        hidden_states = residual + hidden_states
        hidden_states = self.mlp(self.layer_norm2(hidden_states))
        return residual + hidden_states


@wrong("04.3", "side by side")
class _(Layer):
    def forward(self, x):
        a, _ = self.self_attn(self.layer_norm1(x))
        b = self.mlp(self.layer_norm2(x))
        return x + a + b


@wrong("04.3", "norms swapped")
class _(Layer):
    def forward(self, x):
        x = x + self.self_attn(self.layer_norm2(x))[0]
        return x + self.mlp(self.layer_norm1(x))


@wrong("04.3", "one norm used twice")
class _(Layer):
    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))[0]
        return x + self.mlp(self.layer_norm1(x))


@wrong("04.3", "tuple added")
class _(Layer):
    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


@wrong("04.3", "MLP first")
class _(Layer):
    def forward(self, x):
        x = x + self.mlp(self.layer_norm2(x))
        return x + self.self_attn(self.layer_norm1(x))[0]


@wrong("04.3", "weights do not fit")
class _(Layer):
    def __init__(self, config):
        super().__init__(config)
        self.norm1, self.norm2 = self.layer_norm1, self.layer_norm2
        del self.layer_norm1, self.layer_norm2


@wrong("04.3", "input changed")
class _(Layer):
    def forward(self, x):
        x += self.self_attn(self.layer_norm1(x))[0]
        x += self.mlp(self.layer_norm2(x))
        return x


# --- 04.4 --------------------------------------------------------------------------------------------------------


@right("04.4")
def _(logits, fits):
    n = logits.shape[0]
    labels = torch.where(fits, 1.0, -1.0)
    return torch.sum(F.softplus(-labels * logits)) / n


@right("04.4")
def _(logits, fits):
    return F.binary_cross_entropy_with_logits(logits, fits.float(), reduction="sum") / len(logits)


@right("04.4")
def _(logits, fits):
    total = 0.0
    for i in range(len(logits)):
        for j in range(logits.shape[1]):
            total = total - F.logsigmoid(logits[i, j] if fits[i, j] else -logits[i, j])
    return total / len(logits)


@wrong("04.4", "softmax loss")
def _(logits, fits):
    labels = torch.arange(logits.shape[0])
    return 0.5 * F.cross_entropy(logits, labels) + 0.5 * F.cross_entropy(logits.t(), labels)


@wrong("04.4", "softmax loss")
def _(logits, fits):
    return -logits.log_softmax(dim=1).diagonal().mean()


@wrong("04.4", "matching pairs only")
def _(logits, fits):
    return -F.logsigmoid(logits[fits]).sum() / len(logits)


@wrong("04.4", "mean over all pairs")
def _(logits, fits):
    return F.binary_cross_entropy_with_logits(logits, fits.float())


@wrong("04.4", "sum over all pairs")
def _(logits, fits):
    return F.binary_cross_entropy_with_logits(logits, fits.float(), reduction="sum")


@wrong("04.4", "labels upside down")
def _(logits, fits):
    labels = 1 - 2 * fits.int()
    return -F.logsigmoid(labels * logits).sum(dim=1).mean()


@wrong("04.4", "sign")
def _(logits, fits):
    labels = 2 * fits.float() - 1
    return F.logsigmoid(labels * logits).sum(dim=1).mean()


@wrong("04.4", "wrong pairs count nothing")
def _(logits, fits):
    return -F.logsigmoid(fits * logits).sum(dim=-1).mean()


@wrong("04.4", "logarithm of zero")
def _(logits, fits):
    labels = 2 * fits.float() - 1
    return -torch.log(torch.sigmoid(labels * logits)).sum(dim=1).mean()


@wrong("04.4", "shape")
def _(logits, fits):
    labels = 2 * fits.float() - 1
    return -F.logsigmoid(labels * logits).sum(dim=-1)


@wrong("04.4", "only the diagonal")
def _(logits, fits):
    labels = -torch.ones_like(logits)
    for i in range(len(logits)):
        labels[i, i] = 1
    return F.softplus(-labels * logits).sum(1).mean()


@wrong("04.4", "mean over the texts")
def _(logits, fits):
    return F.softplus(-(2 * fits.float() - 1) * logits).sum(0).mean()


@wrong("04.4", "mean over the matching pairs")
def _(logits, fits):
    return F.softplus(-(2 * fits.float() - 1) * logits).sum() / fits.sum()


# --- 04.5 --------------------------------------------------------------------------------------------------------

PANELS = {
    "A": "every text the same",
    "B": "untrained image encoder",
    "C": "texts moved on by one",
    "D": "as it was trained",
    "E": "colours left out of the texts",
}


def exchanged(one, other):
    return lambda: PANELS | {one: PANELS[other], other: PANELS[one]}


right("04.5")(lambda: PANELS)
right("04.5")(lambda: {panel: PANELS[panel] for panel in "EDCBA"})
for pair in ("BE", "DE", "CD"):
    wrong("04.5", "taken for another")(exchanged(*pair))
wrong("04.5", "not matched")(exchanged("A", "B"))
wrong("04.5", "a name twice")(lambda: PANELS | {"E": "untrained image encoder"})
wrong("04.5", "unknown name")(lambda: PANELS | {"E": "no colours"})
wrong("04.5", "structure")(lambda: PANELS | {"F": "as it was trained"})

# --- 04.6 --------------------------------------------------------------------------------------------------------


@right("04.6")
class _(Layer):
    def forward(self, x):
        x = self.layer_norm1(x)
        x = x + self.self_attn(x)[0]
        x = self.layer_norm2(x)
        return x + self.mlp(x)


@right("04.6")
class _(OwnNorms):
    def forward(self, x):
        for part, norm in ((lambda y: self.self_attn(y)[0], self.layer_norm1), (self.mlp, self.layer_norm2)):
            residual = self.norm(norm, x)
            x = residual + part(residual)
        return x


wrong("04.6", "not broken")(OwnNorms)


@wrong("04.6", "one residual")
class _(Layer):
    def forward(self, x):
        x = self.layer_norm1(x)
        x = x + self.self_attn(x)[0]
        return x + self.mlp(self.layer_norm2(x))


@wrong("04.6", "one residual")
class _(Layer):
    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))[0]
        x = self.layer_norm2(x)
        return x + self.mlp(x)


@wrong("04.6", "values")
class _(Layer):
    def forward(self, x):
        x = self.self_attn(self.layer_norm1(x))[0]
        return x + self.mlp(self.layer_norm2(x))


@wrong("04.6", "weights do not fit")
class _(Layer):
    def __init__(self, config):
        super().__init__(config)
        self.norm1 = self.layer_norm1
        del self.layer_norm1


@wrong("04.6", "no return")
class _(Layer):
    def forward(self, x):
        self.layer_norm1(x)
