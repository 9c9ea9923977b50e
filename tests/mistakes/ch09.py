"""Solutions of chapter 09, wrong and right."""

import torch
from torch import nn
from torch.nn import functional as F

from paligemma import modeling_gemma as package

from . import right, wrong

# --- 09.1 --------------------------------------------------------------------------------------------------------


def cleared(mlp):
    for matrix in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        nn.init.zeros_(matrix.weight)
    return mlp.gate_proj.weight.data, mlp.up_proj.weight.data, mlp.down_proj.weight.data


@right("09.1")
def _(mlp, a, b, out):
    gate, up, down = cleared(mlp)
    gate[0, a], up[0, b], down[out, 0] = 1, 1, 1
    gate[1, a], up[1, b], down[out, 1] = -1, 1, -1


@right("09.1")
def _(mlp, a, b, out):
    """The other factor at the gate, sharper, in the last rows."""
    gate, up, down = cleared(mlp)
    gate[-1, b], up[-1, a], down[out, -1] = 20, 1, 0.05
    gate[-2, b], up[-2, a], down[out, -2] = -20, -1, 0.05


@right("09.1")
@torch.no_grad()
def _(mlp, a, b, out):
    gate = torch.zeros_like(mlp.gate_proj.weight)
    gate[:2, a] = torch.tensor([1.0, -1.0])
    up, down = torch.zeros_like(gate), torch.zeros_like(mlp.down_proj.weight)
    up[:2, b] = gate[:2, a]
    down[out, :2] = 1
    mlp.gate_proj.weight.copy_(gate)
    mlp.up_proj.weight.copy_(up)
    mlp.down_proj.weight.copy_(down)


@wrong("09.1", "one side only")
def _(mlp, a, b, out):
    gate, up, down = cleared(mlp)
    gate[0, a], up[0, b], down[out, 0] = 1, 1, 1


@wrong("09.1", "one side only")
def _(mlp, a, b, out):
    gate, up, down = cleared(mlp)
    gate[3 % len(gate), a], up[3 % len(gate), b], down[out, 3 % len(gate)] = 10, 1, 0.1


@wrong("09.1", "a sign is not turned")
def _(mlp, a, b, out):
    gate, up, down = cleared(mlp)
    gate[0, a], gate[1, a] = 1, -1
    up[:2, b] = 1
    down[out, :2] = 1


@wrong("09.1", "a sign is not turned")
def _(mlp, a, b, out):
    gate, up, down = cleared(mlp)
    gate[0, a], up[0, b], down[out, 0] = 1, 1, 1
    gate[1, a], up[1, b], down[out, 1] = -1, -1, -1


@wrong("09.1", "the same row twice")
def _(mlp, a, b, out):
    gate, up, down = cleared(mlp)
    gate[:2, a] = up[:2, b] = down[out, :2] = 1


@wrong("09.1", "old weights left")
@torch.no_grad()
def _(mlp, a, b, out):
    mlp.gate_proj.weight[:2, a] = torch.tensor([1.0, -1.0])
    mlp.up_proj.weight[:2, b] = torch.tensor([1.0, -1.0])
    mlp.down_proj.weight[out, :2] = 1


@wrong("09.1", "nothing set")
def _(mlp, a, b, out):
    mlp.gate_proj.weight.clone()[0, a] = 1


@wrong("09.1", "raised")
def _(mlp, a, b, out):
    mlp.gate_proj.weight = torch.zeros(2, 2)


@wrong("09.1", "all zeros")
def _(mlp, a, b, out):
    gate, up, down = cleared(mlp)
    gate[0, a], up[1, b], down[out, 0] = 1, 1, 1


# --- 09.2 --------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.strength = 1.0
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
        x = residual + self.strength * x
        residual = x
        x = self.post_attention_layernorm(x)
        x = self.mlp(x)
        return residual + self.strength * x


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
        out = hidden_states.add(out, alpha=self.strength)
        return out.add(self.mlp(self.post_attention_layernorm(out)), alpha=self.strength)


@right("09.2")
class _(Layer):
    def run(self, x):
        out = torch.zeros_like(x)
        out += x
        out += self.attend(self.input_layernorm(x)) * self.strength
        return out + self.mlp(self.post_attention_layernorm(out.clone())) * self.strength


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


@wrong("09.2", "no dial")
class _(Layer):
    """As the chapter has it."""

    def run(self, x):
        x = x + self.attend(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


@wrong("09.2", "no dial")
class _(Layer):
    """Read once, when the layer is made."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.factor = self.strength

    def run(self, x):
        x = x + self.factor * self.attend(self.input_layernorm(x))
        return x + self.factor * self.mlp(self.post_attention_layernorm(x))


@wrong("09.2", "residual turned down, too")
class _(Layer):
    def run(self, x):
        x = self.strength * (x + self.attend(self.input_layernorm(x)))
        return self.strength * (x + self.mlp(self.post_attention_layernorm(x)))


@wrong("09.2", "dial in one half only")
class _(Layer):
    def run(self, x):
        x = x + self.attend(self.input_layernorm(x))
        return x + self.strength * self.mlp(self.post_attention_layernorm(x))


@wrong("09.2", "dial at another place")
class _(Layer):
    """On what the parts read: a norm takes it out again, but for strength 0."""

    def run(self, x):
        x = x + self.attend(self.strength * self.input_layernorm(x))
        return x + self.mlp(self.strength * self.post_attention_layernorm(x))


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


@right("09.6")
def tuned(states, last):
    return [torch.linalg.pinv(state) @ last for state in states]


@right("09.6")
def _(states, last):
    """The normal equations, all layers at once."""
    x = torch.stack(list(states)).double()
    return list(torch.linalg.solve(x.mT @ x, x.mT @ last.double()).float())


@right("09.6")
def _(states, last):
    return torch.linalg.lstsq(torch.stack(states), last.expand(len(states), -1, -1)).solution.unbind()


def fitted(name):
    return lambda fit: wrong("09.6", name)(lambda states, last: [fit(state, last) for state in states])


@fitted("mapped the wrong way")
def _(state, last):
    return torch.linalg.pinv(last) @ state


@fitted("transposed")
def _(state, last):
    return last.T @ torch.linalg.pinv(state).T


@fitted("difference fitted")
def _(state, last):
    return torch.linalg.pinv(state) @ (last - state)


@fitted("a number for each feature")
def _(state, last):
    return torch.diag_embed((state * last).sum(dim=0) / (state**2).sum(dim=0))


@fitted("product instead of a fit")
def _(state, last):
    return torch.einsum("md,me->de", state, last)


@fitted("means taken off")
def _(state, last):
    return torch.linalg.pinv(state - state.mean(0, keepdim=True)) @ (last - last.mean(0, keepdim=True))


@fitted("results instead of maps")
def _(state, last):
    return state @ torch.linalg.pinv(state) @ last


@fitted("type")
def _(state, last):
    return torch.linalg.lstsq(state, last)


@wrong("09.6", "fitted to the next layer")
def _(states, last):
    return [torch.linalg.pinv(a) @ b for a, b in zip(states, states[1:] + [last])]


@wrong("09.6", "one map for all")
def _(states, last):
    return [torch.linalg.pinv(states[0]) @ last for _ in states]


@wrong("09.6", "a map left out")
def _(states, last):
    return [torch.linalg.pinv(state) @ last for state in states[:-1]]


@wrong("09.6", "all of what lstsq returns")
def _(states, last):
    return torch.stack(tuned(states, last))
