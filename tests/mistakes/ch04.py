"""The image encoder and its training, as learners write it."""

import torch
from torch import nn
from torch.nn import functional as F

from paligemma.modeling_siglip import SiglipAttention, SiglipEncoder, SiglipVisionEmbeddings
from paligemma.modeling_siglip import SiglipMLP as PackageMLP

from . import right, swap_bank, wrong

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


class Mlp(nn.Module):
    act = nn.GELU(approximate="tanh")

    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states):
        hidden_states = self.fc1(hidden_states)
        hidden_states = self.act(hidden_states)
        return self.fc2(hidden_states)


right("04.2")(Mlp)


@right("04.2")
class _(Mlp):
    def act(self, x):
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


@wrong("04.2", "exact GELU")
class _(Mlp):
    act = nn.GELU()


@wrong("04.2", "other GELU")
class _(Mlp):
    def act(self, x):
        return x * torch.sigmoid(1.702 * x)


@wrong("04.2", "other bend")
class _(Mlp):
    act = nn.ReLU()


@wrong("04.2", "other bend")
class _(Mlp):
    act = nn.SiLU()


@wrong("04.2", "no bend")
class _(Mlp):
    act = nn.Identity()


@wrong("04.2", "bend in the wrong place")
class _(Mlp):
    def forward(self, x):
        return self.act(self.fc2(self.fc1(x)))


@wrong("04.2", "residual inside")
class _(Mlp):
    def forward(self, x):
        return super().forward(x) + x


@wrong("04.2", "weights do not fit")
class _(Mlp):
    def __init__(self, config):
        super().__init__(config)
        self.fc1 = nn.Linear(config.hidden_size, 4 * config.hidden_size)


@wrong("04.2", "weights do not fit")
class _(Mlp):
    def __init__(self, config):
        nn.Module.__init__(self)
        self.net = nn.Sequential(nn.Linear(config.hidden_size, config.intermediate_size), nn.GELU("tanh"),
                                 nn.Linear(config.intermediate_size, config.hidden_size))  # fmt: skip


@wrong("04.2", "no return")
class _(Mlp):
    def forward(self, x):
        self.fc2(self.act(self.fc1(x)))


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
def _(logits):
    n = logits.shape[0]
    labels = 2 * torch.eye(n) - torch.ones(n, n)
    return torch.sum(F.softplus(-labels * logits)) / n


@right("04.4")
def _(logits):
    target = torch.eye(len(logits))
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)


@right("04.4")
def _(logits):
    total = 0.0
    for i in range(len(logits)):
        for j in range(len(logits)):
            total = total - F.logsigmoid(logits[i, j] if i == j else -logits[i, j])
    return total / len(logits)


@wrong("04.4", "softmax loss")
def _(logits):
    labels = torch.arange(logits.shape[0])
    return 0.5 * F.cross_entropy(logits, labels) + 0.5 * F.cross_entropy(logits.t(), labels)


@wrong("04.4", "softmax loss")
def _(logits):
    return -logits.log_softmax(dim=1).diagonal().mean()


@wrong("04.4", "matching pairs only")
def _(logits):
    return -F.logsigmoid(torch.diag(logits)).mean()


@wrong("04.4", "mean over all pairs")
def _(logits):
    return F.binary_cross_entropy_with_logits(logits, torch.eye(len(logits)))


@wrong("04.4", "sum over all pairs")
def _(logits):
    return F.binary_cross_entropy_with_logits(logits, torch.eye(len(logits)), reduction="sum")


@wrong("04.4", "labels upside down")
def _(logits):
    labels = 1 - 2 * torch.eye(len(logits))
    return -F.logsigmoid(labels * logits).sum(dim=1).mean()


@wrong("04.4", "sign")
def _(logits):
    labels = 2 * torch.eye(len(logits)) - 1
    return F.logsigmoid(labels * logits).sum(dim=1).mean()


@wrong("04.4", "wrong pairs count nothing")
def _(logits):
    return -F.logsigmoid(torch.eye(len(logits)) * logits).sum(dim=-1).mean()


@wrong("04.4", "logarithm of zero")
def _(logits):
    labels = 2 * torch.eye(len(logits)) - 1
    return -torch.log(torch.sigmoid(labels * logits)).sum(dim=1).mean()


@wrong("04.4", "shape")
def _(logits):
    labels = 2 * torch.eye(len(logits)) - 1
    return -F.logsigmoid(labels * logits).sum(dim=-1)


# --- 04.5 --------------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    shared = restarts = no_norm = False

    def __init__(self, config):
        super().__init__()
        self.embeddings = SiglipVisionEmbeddings(config)
        self.encoder = SiglipEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values):
        x = self.embeddings(pixel_values)
        start = x
        for i in range(len(self.encoder.layers)):
            x = self.encoder.layers[0 if self.shared else i](start if self.restarts else x)
        return x if self.no_norm else self.post_layernorm(x)


right("04.5")(Encoder)


@right("04.5")
class _(Encoder):
    def forward(self, pixel_values):
        return self.post_layernorm(self.encoder(self.embeddings(pixel_values)))


@wrong("04.5", "3 left")
class _(Encoder):
    shared = restarts = no_norm = True


@wrong("04.5", "2 left")
class _(Encoder):
    shared = restarts = True


@wrong("04.5", "2 left")
class _(Encoder):
    restarts = no_norm = True


@wrong("04.5", "left: the layers")
class _(Encoder):
    shared = True


@wrong("04.5", "left: the loop")
class _(Encoder):
    restarts = True


@wrong("04.5", "left: a part")
class _(Encoder):
    no_norm = True


@wrong("04.5", "last norm too early")
class _(Encoder):
    def forward(self, pixel_values):
        return self.encoder(self.post_layernorm(self.embeddings(pixel_values)))


@wrong("04.5", "last norm in the loop")
class _(Encoder):
    def forward(self, x):
        x = self.embeddings(x)
        for layer in self.encoder.layers:
            x = self.post_layernorm(layer(x))
        return x


# --- 04.6 --------------------------------------------------------------------------------------------------------


class OwnLayer(OwnNorms):
    """With the learner's MLP inside."""

    def __init__(self, config):
        super().__init__(config)
        self.mlp = Mlp(config)


class NoBend(Mlp):
    act = nn.Identity()


swap_bank(
    "04.6",
    {"SiglipEncoderLayer": Layer, "SiglipMLP": Mlp},
    other={"SiglipEncoderLayer": OwnLayer, "SiglipMLP": Mlp},
    broken={"SiglipEncoderLayer": Layer, "SiglipMLP": NoBend},
)
