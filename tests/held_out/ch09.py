"""Held-out solutions of chapter 09."""

# ruff: noqa: E501
# fmt: off

from . import change, right, wrong

# --- 09.1 -------------------------------------------------------------------------------------------------------------

MULT = """
@torch.no_grad()
def set_weights(mlp, a, b, out):
    for p in mlp.parameters():
        p.zero_()
    mlp.gate_proj.weight[0, a] = 1
    mlp.gate_proj.weight[1, a] = -1
    mlp.up_proj.weight[0, b] = 1
    mlp.up_proj.weight[1, b] = -1
    mlp.down_proj.weight[out, 0] = 1
    mlp.down_proj.weight[out, 1] = 1
"""
wrong("09.1", "one inner feature only", """
@torch.no_grad()
def set_weights(mlp, a, b, out):
    for p in mlp.parameters():
        p.zero_()
    mlp.gate_proj.weight[0, a] = 1
    mlp.up_proj.weight[0, b] = 1
    mlp.down_proj.weight[out, 0] = 1
""", truth="only one sign of a is served: the second inner feature, with a gate of -a, is missing")
change("09.1", "second product not turned back", MULT, ("up_proj.weight[1, b] = -1", "up_proj.weight[1, b] = 1"), truth="the second inner feature adds GELU(-a) b with a plus; its sign must be turned")
change("09.1", "sign turned twice", MULT, ("down_proj.weight[out, 1] = 1", "down_proj.weight[out, 1] = -1"), truth="the sign of the second product is turned twice, in up and in down, so it is wrong again")
change("09.1", "old weights left", MULT, ("    for p in mlp.parameters():\n        p.zero_()\n", ""), truth="the old weights are not set to 0 first")
change("09.1", "only the gate zeroed", MULT, ("    for p in mlp.parameters():\n        p.zero_()\n", "    mlp.gate_proj.weight.zero_()\n"), truth="up_proj and down_proj keep their old weights elsewhere")
change("09.1", "only the rows of its own zeroed", MULT, ("    for p in mlp.parameters():\n        p.zero_()\n", "    mlp.gate_proj.weight[:2] = 0\n    mlp.up_proj.weight[:2] = 0\n"), truth="the other weights are not set to 0: down_proj's other rows keep their old ones", says="rows of `down_proj` besides `out` still hold weights")
change("09.1", "row out zeroed alone", MULT, ("    for p in mlp.parameters():\n        p.zero_()\n", "    mlp.gate_proj.weight.zero_()\n    mlp.up_proj.weight.zero_()\n    mlp.down_proj.weight[out] = 0\n"), truth="down_proj's other rows keep their old weights", says="a part of the old weights is left beside yours")
change("09.1", "down the wrong way round", MULT, ("down_proj.weight[out, 0]", "down_proj.weight[0, out]"), ("down_proj.weight[out, 1]", "down_proj.weight[1, out]"), truth="down_proj.weight is [to, from]: row out, not column out")
change("09.1", "squares a", MULT, ("weight[0, b]", "weight[0, a]"), ("weight[1, b]", "weight[1, a]"), truth="up_proj reads a, not b: the result is a times a")
change("09.1", "out fixed at 0", MULT, ("[out, ", "[0, "), truth="the product goes to feature 0 instead of out")
right("09.1", "sign turned in down_proj, last inner features", """
@torch.no_grad()
def set_weights(mlp, a, b, out):
    gate = torch.zeros_like(mlp.gate_proj.weight)
    up = torch.zeros_like(mlp.up_proj.weight)
    down = torch.zeros_like(mlp.down_proj.weight)
    for row, sign in ((-1, 1.0), (-2, -1.0)):
        gate[row, a] = sign
        up[row, b] = 1.0
        down[out, row] = sign
    mlp.gate_proj.weight.copy_(gate)
    mlp.up_proj.weight.copy_(up)
    mlp.down_proj.weight.copy_(down)
""")
right("09.1", "b gates a, through .data", """
def set_weights(mlp, a, b, out):
    mlp.gate_proj.weight.data.fill_(0)
    mlp.up_proj.weight.data.fill_(0)
    mlp.down_proj.weight.data.fill_(0)
    mlp.gate_proj.weight.data[:2, b] = torch.tensor([1.0, -1.0])
    mlp.up_proj.weight.data[:2, a] = torch.tensor([0.5, -0.5])
    mlp.down_proj.weight.data[out, :2] = 2.0
""")

# --- 09.2 -------------------------------------------------------------------------------------------------------------

LAYER = """
class GemmaDecoderLayer(nn.Module):
    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.strength = 1.0
        self.self_attn = package.GemmaAttention(config, layer_idx)
        self.mlp = package.GemmaMLP(config)
        self.input_layernorm = package.GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = package.GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        residual = hidden_states
        x = self.input_layernorm(hidden_states)
        x, _ = self.self_attn(x, position_embeddings, attention_mask, kv_cache)
        hidden_states = residual + self.strength * x
        residual = hidden_states
        x = self.post_attention_layernorm(hidden_states)
        x = self.mlp(x)
        return residual + self.strength * x
"""
change("09.2", "second residual from the input", LAYER, ("        residual = hidden_states\n        x = self.post", "        x = self.post"), truth="the second sum starts from the layer's input, so the attention's output is lost from the stream")
change("09.2", "norm overwrites the stream", LAYER, ("        residual = hidden_states\n        x = self.post_attention_layernorm(hidden_states)", "        x = self.post_attention_layernorm(hidden_states)\n        residual = x"), truth="the residual of the MLP is the normalised copy")
change("09.2", "dial on the attention only", LAYER, ("return residual + self.strength * x", "return residual + x"), truth="the MLP's output is not multiplied by strength")
change("09.2", "dial read once", LAYER, ("        self.self_attn =", "        self.scale = self.strength\n        self.self_attn ="), ("self.strength * x", "self.scale * x"), truth="strength is copied in __init__; changing it later has no effect")
change("09.2", "dial on the sum", LAYER, ("hidden_states = residual + self.strength * x", "hidden_states = self.strength * (residual + x)"), ("return residual + self.strength * x", "return self.strength * (residual + x)"), truth="strength multiplies the whole sum, the stream too")
change("09.2", "dial before the branch", LAYER, ("x, _ = self.self_attn(x,", "x, _ = self.self_attn(self.strength * x,"), ("x = self.mlp(x)", "x = self.mlp(self.strength * x)"), ("self.strength * x\n        residual", "x\n        residual"), ("return residual + self.strength * x", "return residual + x"), truth="strength multiplies what the part reads, not what it returns")
change("09.2", "one norm for both", LAYER, ("x = self.post_attention_layernorm(hidden_states)", "x = self.input_layernorm(hidden_states)"), truth="the MLP's norm is input_layernorm again instead of post_attention_layernorm")
change("09.2", "norm behind the attention", LAYER, ("hidden_states = residual + self.strength * x", "hidden_states = residual + self.strength * self.post_attention_layernorm(x)"), ("x = self.post_attention_layernorm(hidden_states)", "x = hidden_states"), truth="post_attention_layernorm is applied to the attention's output and the MLP reads an unnormalised stream")
change("09.2", "no eps", LAYER, ("config.hidden_size, eps=config.rms_norm_eps", "config.hidden_size"), truth="eps of the norms is not taken from config.rms_norm_eps")
change("09.2", "cache not passed on", LAYER, ("attention_mask, kv_cache)\n", "attention_mask)\n"), truth="kv_cache is not given to the attention")
change("09.2", "mask not passed on", LAYER, ("position_embeddings, attention_mask, kv_cache)\n        hidden", "position_embeddings, None, kv_cache)\n        hidden"), truth="attention_mask is not given to the attention")
change("09.2", "layer index fixed", LAYER, ("GemmaAttention(config, layer_idx)", "GemmaAttention(config, 0)"), truth="layer_idx is not passed on: every layer writes to place 0 of the cache")
change("09.2", "writes into its input", LAYER, ("hidden_states = residual + self.strength * x", "hidden_states += self.strength * x"), truth="hidden_states += changes the caller's tensor in place")
change("09.2", "MLP beside the attention", LAYER, ("x = self.post_attention_layernorm(hidden_states)", "x = self.post_attention_layernorm(start)"), ("        residual = hidden_states\n        x = self.input", "        residual = start = hidden_states\n        x = self.input"), truth="the MLP reads the layer's input instead of the stream after the attention (parallel)")
right("09.2", "torch.add with alpha, keywords, a helper", """
class GemmaDecoderLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.strength = 1.0
        make_norm = lambda: package.GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.input_layernorm, self.post_attention_layernorm = make_norm(), make_norm()
        self.mlp = package.GemmaMLP(config)
        self.self_attn = package.GemmaAttention(config, layer_idx)

    def _add(self, stream, branch):
        return torch.add(stream, branch, alpha=self.strength)

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        h = self._add(hidden_states, self.self_attn(self.input_layernorm(hidden_states), position_embeddings, attention_mask, kv_cache)[0])
        return self._add(h, self.mlp(self.post_attention_layernorm(h)))
""")
right("09.2", "in place on its own clone", """
class GemmaDecoderLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.strength = 1.0
        self.self_attn = package.GemmaAttention(config, layer_idx)
        self.mlp = package.GemmaMLP(config)
        for name in ("input_layernorm", "post_attention_layernorm"):
            setattr(self, name, package.GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps))

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        stream = hidden_states.clone()
        out, weights = self.self_attn(self.input_layernorm(stream), position_embeddings, attention_mask, kv_cache)
        out = out * self.strength
        stream = stream + out
        branch = self.mlp(self.post_attention_layernorm(stream))
        return stream + branch * self.strength
""")

# --- 09.3 -------------------------------------------------------------------------------------------------------------

wrong("09.3", "attention still reads the raw stream", """
def mended(x, attend, think, norm_1, norm_2):
    x = x + attend(x)
    return x + think(norm_2(x))
""", truth="attend reads x without norm_1")
wrong("09.3", "residual still normalised", """
def mended(x, attend, think, norm_1, norm_2):
    h = norm_1(x)
    x = h + attend(h)
    return x + think(norm_2(x))
""", truth="the attention's output is added to norm_1(x) instead of x")
wrong("09.3", "norm still behind the MLP", """
def mended(x, attend, think, norm_1, norm_2):
    x = x + attend(norm_1(x))
    return x + norm_2(think(x))
""", truth="norm_2 is applied to think's output instead of its input")
wrong("09.3", "norm on both sides of the MLP", """
def mended(x, attend, think, norm_1, norm_2):
    x = x + attend(norm_1(x))
    return x + norm_2(think(norm_2(x)))
""", truth="norm_2 is applied to think's output as well")
wrong("09.3", "norm_1 twice", """
def mended(x, attend, think, norm_1, norm_2):
    x = x + attend(norm_1(x))
    return x + think(norm_1(x))
""", truth="think reads norm_1 of the stream instead of norm_2")
wrong("09.3", "second residual forgotten", """
def mended(x, attend, think, norm_1, norm_2):
    x = x + attend(norm_1(x))
    return think(norm_2(x))
""", truth="think's output is not added to the stream")
wrong("09.3", "second residual normalised", """
def mended(x, attend, think, norm_1, norm_2):
    x = x + attend(norm_1(x))
    y = norm_2(x)
    return y + think(y)
""", truth="the second sum adds to norm_2(x) instead of x", says="added to its normalised input")
wrong("09.3", "adds in place", """
def mended(x, attend, think, norm_1, norm_2):
    x += attend(norm_1(x))
    return x + think(norm_2(x))
""", truth="x += changes the caller's tensor")
right("09.3", "sum over branches in a loop", """
def mended(x, attend, think, norm_1, norm_2):
    stream = x
    for part, norm in [(attend, norm_1), (think, norm_2)]:
        stream = torch.stack([stream, part(norm(stream))]).sum(dim=0)
    return stream
""")

# --- 09.4 -------------------------------------------------------------------------------------------------------------

TABLE = """
class WordTable(nn.Module):
    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)

    def embed(self, input_ids):
        return self.embed_tokens(input_ids) * self.embed_tokens.weight.shape[1] ** 0.5

    def lm_head(self, hidden_states):
        return hidden_states @ self.embed_tokens.weight.T
"""
change("09.4", "no factor", TABLE, (" * self.embed_tokens.weight.shape[1] ** 0.5", ""), truth="embed does not multiply by the square root of D")
change("09.4", "times D", TABLE, ("self.embed_tokens.weight.shape[1] ** 0.5", "self.embed_tokens.embedding_dim"), truth="embed multiplies by D instead of its square root")
change("09.4", "root of V", TABLE, ("self.embed_tokens.weight.shape[1] ** 0.5", "self.embed_tokens.num_embeddings ** 0.5"), truth="the factor is the root of the vocabulary's size, not of the width")
change("09.4", "divided", TABLE, ("* self.embed_tokens.weight.shape[1] ** 0.5", "/ self.embed_tokens.weight.shape[1] ** 0.5"), truth="embed divides by the root of D")
change("09.4", "head with the factor", TABLE, ("self.embed_tokens.weight.T", "(self.embed_tokens.weight.T * self.embed_tokens.weight.shape[1] ** 0.5)"), truth="the head multiplies by the root of D as well")
change("09.4", "head divides the factor out", TABLE, ("hidden_states @ self.embed_tokens.weight.T", "(hidden_states / self.embed_tokens.weight.shape[1] ** 0.5) @ self.embed_tokens.weight.T"), truth="the head divides by the root of D")
change("09.4", "head is a copy", TABLE, ("nn.Embedding(vocab_size, hidden_size)", "nn.Embedding(vocab_size, hidden_size)\n        self.table = self.embed_tokens.weight.detach().clone()"), ("self.embed_tokens.weight.T", "self.table.T"), truth="the head keeps a copy of the table from __init__, so later changes don't reach it")
change("09.4", "head with its own weights", TABLE, ("nn.Embedding(vocab_size, hidden_size)", "nn.Embedding(vocab_size, hidden_size)\n        self.head = nn.Linear(hidden_size, vocab_size, bias=False)"), ("hidden_states @ self.embed_tokens.weight.T", "self.head(hidden_states)"), truth="the head has weights of its own")
change("09.4", "root cut to a whole number", TABLE, ("self.embed_tokens.weight.shape[1] ** 0.5", "int(self.embed_tokens.weight.shape[1] ** 0.5)"), truth="the factor is cut to a whole number", says="cut off to a whole number")
change("09.4", "head detached", TABLE, ("self.embed_tokens.weight.T", "self.embed_tokens.weight.detach().T"), truth="the head uses the table detached: training through the head does not reach it")
change("09.4", "softmax in the head", TABLE, ("hidden_states @ self.embed_tokens.weight.T", "(hidden_states @ self.embed_tokens.weight.T).softmax(dim=-1)"), truth="the head returns probabilities instead of logits")
right("09.4", "one-hot product and einsum", """
class WordTable(nn.Module):
    def __init__(self, vocab_size, hidden_size):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)
        self.factor = hidden_size**0.5

    def embed(self, input_ids):
        one_hot = F.one_hot(input_ids, self.embed_tokens.num_embeddings).to(self.embed_tokens.weight.dtype)
        return one_hot @ self.embed_tokens.weight * self.factor

    def lm_head(self, hidden_states):
        return torch.einsum("bld,vd->blv", hidden_states, self.embed_tokens.weight)
""")

# --- 09.5 -------------------------------------------------------------------------------------------------------------

LENS = """
def logit_lens(states, norm, table):
    h = norm(torch.stack(states))
    logits = h @ table.T
    p = logits.softmax(dim=-1)
    best = p.max(dim=-1)
    return best.indices, best.values
"""
change("09.5", "no norm", LENS, ("norm(torch.stack(states))", "torch.stack(states)"), truth="the states do not go through the norm")
change("09.5", "norm on the last only", LENS, ("norm(torch.stack(states))", "torch.stack(states[:-1] + [norm(states[-1])])"), truth="only the last state goes through the norm")
change("09.5", "softmax over positions", LENS, ("softmax(dim=-1)", "softmax(dim=-2)"), truth="the softmax is over the positions, not over the vocabulary")
change("09.5", "softmax over layers", LENS, ("softmax(dim=-1)", "softmax(dim=0)"), truth="the softmax is over the layers, not over the vocabulary")
change("09.5", "order of results", LENS, ("best.indices, best.values", "best.values, best.indices"), truth="probability and id are returned in the wrong order")
change("09.5", "logit instead of probability", LENS, ("logits.softmax(dim=-1)", "logits"), truth="the second result is the logit, not the probability")
change("09.5", "log of the probability", LENS, ("logits.softmax(dim=-1)", "logits.log_softmax(dim=-1)"), truth="the second result is the log of the probability")
change("09.5", "states summed up", LENS, ("torch.stack(states)", "torch.stack(states).cumsum(dim=0)"), truth="the states are added up, but each holds all that came before")
change("09.5", "first state skipped", LENS, ("torch.stack(states)", "torch.stack(states[1:])"), truth="the stream before layer 0 is missing")
change("09.5", "layers on the second axis", LENS, ("torch.stack(states)", "torch.stack(states, dim=1)"), truth="the results are [B, layers + 1, L]")
change("09.5", "scaled by the root of D", LENS, ("h @ table.T", "h @ table.T * table.shape[1] ** 0.5"), truth="the logits are multiplied by the root of D")
change("09.5", "table normalised too", LENS, ("h @ table.T", "h @ norm(table).T"), truth="the norm is applied to the table as well")
right("09.5", "one state after another, log-sum-exp", """
def logit_lens(states, norm, table):
    ids, probabilities = [], []
    for state in states:
        logits = F.linear(norm(state), table)
        top = logits.topk(1, dim=-1)
        ids.append(top.indices.squeeze(-1))
        probabilities.append((top.values.squeeze(-1) - logits.logsumexp(dim=-1)).exp())
    return torch.stack(ids), torch.stack(probabilities)
""")

# --- 09.6 -------------------------------------------------------------------------------------------------------------

wrong("09.6", "roles exchanged", """
def tuned_lens(states, last):
    return [torch.linalg.lstsq(last, state).solution for state in states]
""", truth="fits the map from last to the state, the wrong way round")
wrong("09.6", "transposed", """
def tuned_lens(states, last):
    return [torch.linalg.lstsq(state, last).solution.T for state in states]
""", truth="returns the transposed matrices, for T @ state")
wrong("09.6", "difference fitted", """
def tuned_lens(states, last):
    return [torch.linalg.lstsq(state, last - state).solution for state in states]
""", truth="fits what is still to be added (last - state), not last itself")
wrong("09.6", "mean taken off", """
def tuned_lens(states, last):
    return [torch.linalg.lstsq(s - s.mean(0), last - last.mean(0)).solution for s in states]
""", truth="takes the means off first, so it is a fit with a bias, not the best matrix alone")
wrong("09.6", "strong ridge", """
def tuned_lens(states, last):
    D = last.shape[1]
    return [torch.linalg.solve(s.T @ s + torch.eye(D), s.T @ last) for s in states]
""", truth="adds a penalty (ridge), so the fit is not least squares")
wrong("09.6", "to the next state", """
def tuned_lens(states, last):
    return [torch.linalg.lstsq(s, t).solution for s, t in zip(states, states[1:] + [last])]
""", truth="fits each state to the next one instead of the last")
wrong("09.6", "last state left out", """
def tuned_lens(states, last):
    return [torch.linalg.lstsq(state, last).solution for state in states[:-1]]
""", truth="the matrix for the last state is missing from the list")
wrong("09.6", "returns all results", """
def tuned_lens(states, last):
    return [torch.linalg.lstsq(state, last) for state in states]
""", truth="returns lstsq's whole result instead of its .solution")
right("09.6", "pseudo-inverse", """
def tuned_lens(states, last):
    return [torch.linalg.pinv(state.double()).matmul(last.double()).to(last.dtype) for state in states]
""")
right("09.6", "numpy", """
def tuned_lens(states, last):
    import numpy as np
    maps = []
    for state in states:
        solution, *_ = np.linalg.lstsq(state.numpy(), last.numpy(), rcond=None)
        maps.append(torch.from_numpy(solution))
    return maps
""")
