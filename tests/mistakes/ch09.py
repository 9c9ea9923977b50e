"""Solutions of chapter 09, wrong and right."""

import torch
from torch import nn
from torch.nn import functional as F

from paligemma import modeling_gemma as package

from . import right, swap_bank, wrong

# --- 09.1 --------------------------------------------------------------------------------------------------------


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(D, inner, bias=False)
        self.up_proj = nn.Linear(D, inner, bias=False)
        self.down_proj = nn.Linear(inner, D, bias=False)

    def act(self, x):
        return F.gelu(x, approximate="tanh")

    def forward(self, x):
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


right("09.1")(MLP)


@right("09.1")
class _(MLP):
    """The formula of the approximation."""

    def act(self, x):
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


@right("09.1")
class _(MLP):
    def __init__(self, config):
        super().__init__(config)
        self.activation = nn.GELU(approximate="tanh")

    def forward(self, x):
        both = F.linear(x, torch.cat([self.gate_proj.weight, self.up_proj.weight]))
        gate, up = both.chunk(2, dim=-1)
        return torch.einsum("bli,di->bld", self.activation(gate) * up, self.down_proj.weight)


@wrong("09.1", "GELU on the wrong branch")
class WrongBranch(MLP):
    def forward(self, x):
        return self.down_proj(self.gate_proj(x) * self.act(self.up_proj(x)))


@wrong("09.1", "exact GELU")
class _(MLP):
    def act(self, x):
        return F.gelu(x)


@wrong("09.1", "exact GELU")
class _(MLP):
    def act(self, x):
        return 0.5 * x * (1 + torch.erf(x / 2**0.5))


@wrong("09.1", "SiLU instead of GELU")
class _(MLP):
    def act(self, x):
        return x * torch.sigmoid(x)


@wrong("09.1", "ReLU instead of GELU")
class _(MLP):
    def act(self, x):
        return torch.clamp(x, min=0)


@wrong("09.1", "sigmoid instead of GELU")
class _(MLP):
    def act(self, x):
        return torch.sigmoid(x)


@wrong("09.1", "GELU forgotten")
class _(MLP):
    def act(self, x):
        return x


@wrong("09.1", "GELU on both branches")
class _(MLP):
    def forward(self, x):
        return self.down_proj(self.act(self.gate_proj(x)) * self.act(self.up_proj(x)))


@wrong("09.1", "GELU after the product")
class _(MLP):
    def forward(self, x):
        return self.down_proj(self.act(self.gate_proj(x) * self.up_proj(x)))


@wrong("09.1", "GELU at the end")
class _(MLP):
    def forward(self, x):
        return self.act(self.down_proj(self.gate_proj(x) * self.up_proj(x)))


@wrong("09.1", "no gate")
class _(MLP):
    def forward(self, x):
        return self.down_proj(self.act(self.up_proj(x)))


@wrong("09.1", "no gate")
class _(MLP):
    def forward(self, x):
        return self.down_proj(self.act(self.gate_proj(x)))


@wrong("09.1", "added instead of multiplied")
class _(MLP):
    def forward(self, x):
        return self.down_proj(self.act(self.gate_proj(x)) + self.up_proj(x))


@wrong("09.1", "one after the other")
class _(MLP):
    def forward(self, x):
        return self.down_proj(self.up_proj(self.act(self.gate_proj(x))))


@wrong("09.1", "weights do not fit")
class _(MLP):
    def __init__(self, config):
        super().__init__(config)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)


@wrong("09.1", "weights do not fit")
class _(MLP):
    def __init__(self, config):
        super().__init__(config)
        self.up_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)


# --- 09.2 --------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.self_attn = package.GemmaAttention(config, layer_idx)
        self.mlp = package.GemmaMLP(config)
        self.input_layernorm = package.GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = package.GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        self.rest = (position_embeddings, attention_mask, kv_cache)
        return self.run(hidden_states)

    def attend(self, x):
        return self.self_attn(x, *self.rest)[0]

    def run(self, x):
        residual = x
        x = self.input_layernorm(x)
        x = self.attend(x)
        x = residual + x
        residual = x
        x = self.post_attention_layernorm(x)
        x = self.mlp(x)
        return residual + x


right("09.2")(Layer)


@right("09.2")
class _(Layer):
    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        out, weights = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            kv_cache=kv_cache,
        )
        out = out + hidden_states
        return self.mlp(self.post_attention_layernorm(out)).add(out)


@right("09.2")
class _(Layer):
    def run(self, x):
        out = torch.zeros_like(x)
        out += x
        out += self.attend(self.input_layernorm(x))
        return out + self.mlp(self.post_attention_layernorm(out.clone()))


def variant(name):
    return lambda run: wrong("09.2", name)(type("Mine", (Layer,), {"run": run}))


@variant("residual from the normalised input")
def _(self, x):
    x = self.input_layernorm(x)
    x = x + self.attend(x)
    return x + self.mlp(self.post_attention_layernorm(x))


@variant("residual from the normalised input")
def _(self, x):
    x = x + self.attend(self.input_layernorm(x))
    x = self.post_attention_layernorm(x)
    return x + self.mlp(x)


@variant("residual from the normalised input")
def _(self, x):
    x = self.input_layernorm(x)
    x = x + self.attend(x)
    x = self.post_attention_layernorm(x)
    return x + self.mlp(x)


@variant("norm after instead of before")
def _(self, x):
    x = x + self.input_layernorm(self.attend(x))
    return x + self.post_attention_layernorm(self.mlp(x))


@variant("norm after instead of before")
def _(self, x):
    x = x + self.attend(self.input_layernorm(x))
    return x + self.post_attention_layernorm(self.mlp(x))


@variant("norm after the sum")
def _(self, x):
    x = self.input_layernorm(x + self.attend(x))
    return self.post_attention_layernorm(x + self.mlp(x))


@variant("norms of Gemma 2")
def _(self, x):
    x = x + self.post_attention_layernorm(self.attend(self.input_layernorm(x)))
    return x + self.mlp(x)


@variant("norm forgotten")
def _(self, x):
    x = x + self.attend(self.input_layernorm(x))
    return x + self.mlp(x)


@variant("norm forgotten")
def _(self, x):
    x = x + self.attend(x)
    return x + self.mlp(x)


@variant("norms swapped")
def _(self, x):
    x = x + self.attend(self.post_attention_layernorm(x))
    return x + self.mlp(self.input_layernorm(x))


@variant("one norm twice")
def _(self, x):
    x = x + self.attend(self.input_layernorm(x))
    return x + self.mlp(self.input_layernorm(x))


@variant("residual forgotten")
def _(self, x):
    x = self.attend(self.input_layernorm(x))
    return x + self.mlp(self.post_attention_layernorm(x))


@variant("residual forgotten")
def _(self, x):
    x = x + self.attend(self.input_layernorm(x))
    return self.mlp(self.post_attention_layernorm(x))


@variant("in parallel")
def _(self, x):
    return x + self.attend(self.input_layernorm(x)) + self.mlp(self.post_attention_layernorm(x))


@variant("attention lost")
def _(self, x):
    residual = x
    x = residual + self.attend(self.input_layernorm(x))
    x = self.mlp(self.post_attention_layernorm(x))
    return residual + x


@variant("MLP first")
def _(self, x):
    x = x + self.mlp(self.post_attention_layernorm(x))
    return x + self.attend(self.input_layernorm(x))


@variant("input changed")
def _(self, x):
    x += self.attend(self.input_layernorm(x))
    return x + self.mlp(self.post_attention_layernorm(x))


@variant("type")
def _(self, x):
    x = x + self.attend(self.input_layernorm(x))
    return (x + self.mlp(self.post_attention_layernorm(x)),)


@wrong("09.2", "raised")
class _(Layer):
    """The attention's two results are added as they are."""

    def attend(self, x):
        return self.self_attn(x, *self.rest)


@wrong("09.2", "mask forgotten")
class _(Layer):
    def attend(self, x):
        return self.self_attn(x, self.rest[0])[0]


@wrong("09.2", "cache not passed on")
class _(Layer):
    def attend(self, x):
        return self.self_attn(x, self.rest[0], self.rest[1])[0]


@wrong("09.2", "layer_idx not passed on")
class _(Layer):
    def __init__(self, config, layer_idx):
        super().__init__(config, 0)


@wrong("09.2", "eps not passed on")
class _(Layer):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.input_layernorm = package.GemmaRMSNorm(config.hidden_size)
        self.post_attention_layernorm = package.GemmaRMSNorm(config.hidden_size)


@wrong("09.2", "weights do not fit")
class _(Layer):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.feed_forward = self.mlp
        self.norm_2 = package.GemmaRMSNorm(config.hidden_size)


# --- 09.3 --------------------------------------------------------------------------------------------------------


@right("09.3")
def _(x, attend, think, norm_1, norm_2):
    x = x + attend(norm_1(x))
    return x + think(norm_2(x))


@right("09.3")
def _(x, attend, think, norm_1, norm_2):
    stream = x.clone()
    for work, norm in ((attend, norm_1), (think, norm_2)):
        stream = torch.add(stream, work(norm(stream)))
    return stream


def listing(stream=False, normed=False, before=False):
    """The code in the notebook, with some of its faults mended."""

    def layer(x, attend, think, norm_1, norm_2):
        residual = x if stream else norm_1(x)
        x = residual + attend(norm_1(x) if normed else x)
        return x + (think(norm_2(x)) if before else norm_2(think(x)))

    return layer


wrong("09.3", "3 left")(listing())
wrong("09.3", "2 left")(listing(stream=True))
wrong("09.3", "2 left")(listing(normed=True))
wrong("09.3", "2 left")(listing(before=True))
wrong("09.3", "residual from the normalised input")(listing(normed=True, before=True))
wrong("09.3", "attention without a norm")(listing(stream=True, before=True))
wrong("09.3", "norm after instead of before")(listing(stream=True, normed=True))


@wrong("09.3", "residual from the normalised input")
def _(x, attend, think, norm_1, norm_2):
    x = x + attend(norm_1(x))
    x = norm_2(x)
    x = x + think(x)
    return x


@wrong("09.3", "attention lost")
def _(x, attend, think, norm_1, norm_2):
    h = x + attend(norm_1(x))
    return x + think(norm_2(h))


@wrong("09.3", "in parallel")
def _(x, attend, think, norm_1, norm_2):
    return x + think(norm_2(x)) + attend(norm_1(x))


@wrong("09.3", "norm after the sum")
def _(x, attend, think, norm_1, norm_2):
    x = norm_1(x + attend(x))
    return norm_2(x + think(x))


@wrong("09.3", "norm forgotten")
def _(x, attend, think, norm_1, norm_2):
    x = x + attend(norm_1(x))
    return x + think(x)


@wrong("09.3", "one norm twice")
def _(x, attend, think, norm_1, norm_2):
    x = x + attend(norm_1(x))
    return x + think(norm_1(x))


@wrong("09.3", "normalised twice")
def _(x, attend, think, norm_1, norm_2):
    x = x + attend(norm_1(x))
    return x + norm_2(think(norm_2(x)))


@wrong("09.3", "no gradient")
def _(x, attend, think, norm_1, norm_2):
    with torch.no_grad():
        x = x + attend(norm_1(x))
        return x + think(norm_2(x))


# --- 09.4 --------------------------------------------------------------------------------------------------------


class Words(nn.Module):
    def __init__(self, vocab_size, hidden_size):
        super().__init__()
        self.D = hidden_size
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)

    def embed(self, input_ids):
        return self.embed_tokens(input_ids) * self.D**0.5

    def lm_head(self, hidden_states):
        return hidden_states @ self.embed_tokens.weight.T


right("09.4")(Words)


@right("09.4")
class _(Words):
    """A head as a module that holds the same parameter."""

    def __init__(self, vocab_size, hidden_size):
        super().__init__(vocab_size, hidden_size)
        self.output = nn.Linear(hidden_size, vocab_size, bias=False)
        self.output.weight = self.embed_tokens.weight

    def lm_head(self, hidden_states):
        return self.output(hidden_states)


@right("09.4")
class _(Words):
    def embed(self, input_ids):
        return (self.embed_tokens.weight * self.D**0.5)[input_ids]

    def lm_head(self, hidden_states):
        return torch.einsum("bld,vd->blv", hidden_states, self.embed_tokens.weight)


def words(name, **methods):
    wrong("09.4", name)(type("Mine", (Words,), methods))


words("scale forgotten", embed=lambda self, ids: self.embed_tokens(ids))
words("scale doubled", embed=lambda self, ids: self.embed_tokens(ids) * self.D)
words("divided instead of multiplied", embed=lambda self, ids: self.embed_tokens(ids) / self.D**0.5)
words("scale of the vocabulary", embed=lambda self, ids: self.embed_tokens(ids) * self.embed_tokens.num_embeddings**0.5)
words("head scaled too", lm_head=lambda self, x: F.linear(x, self.embed_tokens.weight) * self.D**0.5)
words("head scaled too", lm_head=lambda self, x: F.linear(x, self.embed_tokens.weight * self.D**0.5))
words("head divided", lm_head=lambda self, x: F.linear(x, self.embed_tokens.weight) / self.D**0.5)
words("cut off from the table", lm_head=lambda self, x: F.linear(x, self.embed_tokens.weight.data))
words("softmax in the head", lm_head=lambda self, x: F.softmax(F.linear(x, self.embed_tokens.weight), dim=-1))
words("no return", lm_head=lambda self, x: None)
words("raised", lm_head=lambda self, x: x @ self.embed_tokens.weight)
words("shape", lm_head=lambda self, x: F.linear(x[:, -1], self.embed_tokens.weight))


@wrong("09.4", "head not tied")
class _(Words):
    def __init__(self, vocab_size, hidden_size):
        super().__init__(vocab_size, hidden_size)
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False)


@wrong("09.4", "head not tied")
class _(Words):
    """Made before the table, and with a bias: no imitation draws the same numbers."""

    def __init__(self, vocab_size, hidden_size):
        super().__init__(vocab_size, hidden_size)
        self.lm_head = nn.Linear(hidden_size, vocab_size)
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)


@wrong("09.4", "head not tied")
class _(Words):
    def __init__(self, vocab_size, hidden_size):
        super().__init__(vocab_size, hidden_size)
        self.register_buffer("table", self.embed_tokens.weight.data.clone())

    def lm_head(self, hidden_states):
        return hidden_states @ self.table.T


# --- 09.5 --------------------------------------------------------------------------------------------------------


@right("09.5")
def lens(states, norm, table):
    p = F.softmax(F.linear(norm(torch.stack(states)), table), dim=-1)
    best = p.max(dim=-1)
    return best.indices, best.values


@right("09.5")
def _(states, norm, table):
    tokens, sure = [], []
    for state in states:
        logits = torch.einsum("bld,vd->blv", norm(state), table)
        top = logits.argmax(-1)
        tokens.append(top)
        sure.append(torch.exp(logits.gather(-1, top[..., None])[..., 0] - logits.logsumexp(-1)))
    return [torch.stack(tokens), torch.stack(sure)]


def read(states, norm, table, axis=-1):
    p = torch.stack([F.linear(norm(s), table).softmax(axis) for s in states])
    return p.argmax(-1), p.amax(-1)


@wrong("09.5", "norm forgotten")
def _(states, norm, table):
    return read(states, lambda x: x, table)


@wrong("09.5", "norm twice")
def _(states, norm, table):
    return read([norm(s) for s in states], norm, table)


@wrong("09.5", "softmax over the wrong axis")
def _(states, norm, table):
    return read(states, norm, table, axis=1)


@wrong("09.5", "softmax over the wrong axis")
def _(states, norm, table):
    p = torch.stack([norm(s) @ table.T for s in states]).softmax(0)
    return p.argmax(-1), p.amax(-1)


@wrong("09.5", "logits instead of probabilities")
def _(states, norm, table):
    values, tokens = torch.stack([norm(s) @ table.T for s in states]).max(-1)
    return tokens, values


@wrong("09.5", "embedding left out")
def _(states, norm, table):
    return lens(states[1:], norm, table)


@wrong("09.5", "last layer left out")
def _(states, norm, table):
    return lens(states[:-1], norm, table)


@wrong("09.5", "states added up")
def _(states, norm, table):
    stream, sums = 0, []
    for state in states:
        stream = stream + state
        sums.append(stream)
    return lens(sums, norm, table)


@wrong("09.5", "what each layer adds")
def _(states, norm, table):
    return lens([states[0]] + [states[i] - states[i - 1] for i in range(1, len(states))], norm, table)


@wrong("09.5", "last layer only")
def _(states, norm, table):
    tokens, values = lens(states[-1:], norm, table)
    return tokens.repeat(len(states), 1, 1), values.repeat(len(states), 1, 1)


@wrong("09.5", "least likely")
def _(states, norm, table):
    p = torch.stack([(norm(s) @ table.T).softmax(-1) for s in states])
    return p.argmin(-1), p.amin(-1)


@wrong("09.5", "order of the results")
def _(states, norm, table):
    tokens, values = lens(states, norm, table)
    return values, tokens


@wrong("09.5", "type")
def _(states, norm, table):
    return torch.stack([(norm(s) @ table.T).softmax(-1) for s in states])


@wrong("09.5", "type")
def _(states, norm, table):
    rows = [(norm(s) @ table.T).softmax(-1).max(-1) for s in states]
    return [row.indices for row in rows], [row.values for row in rows]


# --- 09.6 --------------------------------------------------------------------------------------------------------


class Whole(Layer):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.mlp = MLP(config)


class Upside(MLP):
    def forward(self, x):
        return -3 * super().forward(x)


swap_bank(
    "09.6",
    {"GemmaMLP": MLP, "GemmaDecoderLayer": Layer},
    other={"GemmaDecoderLayer": Whole},
    broken={"GemmaMLP": Upside, "GemmaDecoderLayer": Layer},
)
