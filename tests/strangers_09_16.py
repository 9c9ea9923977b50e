# fmt: off
# ruff: noqa: E501
"""Solutions of chapters 09 to 16, written from the texts of the tasks alone: (task, kind, title, source, truth).

`truth` says what is wrong, in one sentence. Most wrong ones are a right one with one change, as learners make it.
"""

SOLUTIONS = []


def wrong(task, title, truth, source):
    SOLUTIONS.append((task, "wrong", title, source.strip("\n") + "\n", truth))


def right(task, title, source):
    SOLUTIONS.append((task, "right", title, source.strip("\n") + "\n", ""))


# 09.1
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
wrong("09.1", "one inner feature only", "only one sign of a is served: the second inner feature, with a gate of -a, is missing", """
@torch.no_grad()
def set_weights(mlp, a, b, out):
    for p in mlp.parameters():
        p.zero_()
    mlp.gate_proj.weight[0, a] = 1
    mlp.up_proj.weight[0, b] = 1
    mlp.down_proj.weight[out, 0] = 1
""")
wrong("09.1", "second product not turned back", "the second inner feature adds GELU(-a) b with a plus; its sign must be turned", MULT.replace("up_proj.weight[1, b] = -1", "up_proj.weight[1, b] = 1"))
wrong("09.1", "sign turned twice", "the sign of the second product is turned twice, in up and in down, so it is wrong again", MULT.replace("down_proj.weight[out, 1] = 1", "down_proj.weight[out, 1] = -1"))
wrong("09.1", "old weights left", "the old weights are not set to 0 first", MULT.replace("    for p in mlp.parameters():\n        p.zero_()\n", ""))
wrong("09.1", "only the gate zeroed", "up_proj and down_proj keep their old weights elsewhere", MULT.replace("    for p in mlp.parameters():\n        p.zero_()\n", "    mlp.gate_proj.weight.zero_()\n"))
wrong("09.1", "only the rows of its own zeroed", "the other weights are not set to 0: down_proj's other rows keep their old ones", MULT.replace("    for p in mlp.parameters():\n        p.zero_()\n", "    mlp.gate_proj.weight[:2] = 0\n    mlp.up_proj.weight[:2] = 0\n"))
wrong("09.1", "row out zeroed alone", "down_proj's other rows keep their old weights", MULT.replace("    for p in mlp.parameters():\n        p.zero_()\n", "    mlp.gate_proj.weight.zero_()\n    mlp.up_proj.weight.zero_()\n    mlp.down_proj.weight[out] = 0\n"))
wrong("09.1", "down the wrong way round", "down_proj.weight is [to, from]: row out, not column out", MULT.replace("down_proj.weight[out, 0]", "down_proj.weight[0, out]").replace("down_proj.weight[out, 1]", "down_proj.weight[1, out]"))
wrong("09.1", "squares a", "up_proj reads a, not b: the result is a times a", MULT.replace("weight[0, b]", "weight[0, a]").replace("weight[1, b]", "weight[1, a]"))
wrong("09.1", "out fixed at 0", "the product goes to feature 0 instead of out", MULT.replace("[out, ", "[0, "))
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

# 09.2
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
def layer(title, truth, *pairs):
    text = LAYER
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("09.2", title, truth, text)
layer("second residual from the input", "the second sum starts from the layer's input, so the attention's output is lost from the stream", ("        residual = hidden_states\n        x = self.post", "        x = self.post"))
layer("norm overwrites the stream", "the residual of the MLP is the normalised copy", ("        residual = hidden_states\n        x = self.post_attention_layernorm(hidden_states)", "        x = self.post_attention_layernorm(hidden_states)\n        residual = x"))
layer("dial on the attention only", "the MLP's output is not multiplied by strength", ("return residual + self.strength * x", "return residual + x"))
layer("dial read once", "strength is copied in __init__; changing it later has no effect", ("        self.self_attn =", "        self.scale = self.strength\n        self.self_attn ="), ("self.strength * x", "self.scale * x"))
layer("dial on the sum", "strength multiplies the whole sum, the stream too", ("hidden_states = residual + self.strength * x", "hidden_states = self.strength * (residual + x)"), ("return residual + self.strength * x", "return self.strength * (residual + x)"))
layer("dial before the branch", "strength multiplies what the part reads, not what it returns", ("x, _ = self.self_attn(x,", "x, _ = self.self_attn(self.strength * x,"), ("x = self.mlp(x)", "x = self.mlp(self.strength * x)"), ("self.strength * x\n        residual", "x\n        residual"), ("return residual + self.strength * x", "return residual + x"))
layer("one norm for both", "the MLP's norm is input_layernorm again instead of post_attention_layernorm", ("x = self.post_attention_layernorm(hidden_states)", "x = self.input_layernorm(hidden_states)"))
layer("norm behind the attention", "post_attention_layernorm is applied to the attention's output and the MLP reads an unnormalised stream", ("hidden_states = residual + self.strength * x", "hidden_states = residual + self.strength * self.post_attention_layernorm(x)"), ("x = self.post_attention_layernorm(hidden_states)", "x = hidden_states"))
layer("no eps", "eps of the norms is not taken from config.rms_norm_eps", ("config.hidden_size, eps=config.rms_norm_eps", "config.hidden_size"))
layer("cache not passed on", "kv_cache is not given to the attention", ("attention_mask, kv_cache)\n", "attention_mask)\n"))
layer("mask not passed on", "attention_mask is not given to the attention", ("position_embeddings, attention_mask, kv_cache)\n        hidden", "position_embeddings, None, kv_cache)\n        hidden"))
layer("layer index fixed", "layer_idx is not passed on: every layer writes to place 0 of the cache", ("GemmaAttention(config, layer_idx)", "GemmaAttention(config, 0)"))
layer("writes into its input", "hidden_states += changes the caller's tensor in place", ("hidden_states = residual + self.strength * x", "hidden_states += self.strength * x"))
layer("MLP beside the attention", "the MLP reads the layer's input instead of the stream after the attention (parallel)", ("x = self.post_attention_layernorm(hidden_states)", "x = self.post_attention_layernorm(start)"), ("        residual = hidden_states\n        x = self.input", "        residual = start = hidden_states\n        x = self.input"))
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

# 09.3
wrong("09.3", "attention still reads the raw stream", "attend reads x without norm_1", """
def mended(x, attend, think, norm_1, norm_2):
    x = x + attend(x)
    return x + think(norm_2(x))
""")
wrong("09.3", "residual still normalised", "the attention's output is added to norm_1(x) instead of x", """
def mended(x, attend, think, norm_1, norm_2):
    h = norm_1(x)
    x = h + attend(h)
    return x + think(norm_2(x))
""")
wrong("09.3", "norm still behind the MLP", "norm_2 is applied to think's output instead of its input", """
def mended(x, attend, think, norm_1, norm_2):
    x = x + attend(norm_1(x))
    return x + norm_2(think(x))
""")
wrong("09.3", "norm on both sides of the MLP", "norm_2 is applied to think's output as well", """
def mended(x, attend, think, norm_1, norm_2):
    x = x + attend(norm_1(x))
    return x + norm_2(think(norm_2(x)))
""")
wrong("09.3", "norm_1 twice", "think reads norm_1 of the stream instead of norm_2", """
def mended(x, attend, think, norm_1, norm_2):
    x = x + attend(norm_1(x))
    return x + think(norm_1(x))
""")
wrong("09.3", "second residual forgotten", "think's output is not added to the stream", """
def mended(x, attend, think, norm_1, norm_2):
    x = x + attend(norm_1(x))
    return think(norm_2(x))
""")
wrong("09.3", "second residual normalised", "the second sum adds to norm_2(x) instead of x", """
def mended(x, attend, think, norm_1, norm_2):
    x = x + attend(norm_1(x))
    y = norm_2(x)
    return y + think(y)
""")
wrong("09.3", "adds in place", "x += changes the caller's tensor", """
def mended(x, attend, think, norm_1, norm_2):
    x += attend(norm_1(x))
    return x + think(norm_2(x))
""")
right("09.3", "sum over branches in a loop", """
def mended(x, attend, think, norm_1, norm_2):
    stream = x
    for part, norm in [(attend, norm_1), (think, norm_2)]:
        stream = torch.stack([stream, part(norm(stream))]).sum(dim=0)
    return stream
""")

# 09.4
TABLE = """
class WordTable(nn.Module):
    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size){init}

    def embed(self, input_ids):
        return {embed}

    def lm_head(self, hidden_states):
        return {head}
"""
def words(title, truth, init="", embed="self.embed_tokens(input_ids) * self.embed_tokens.weight.shape[1] ** 0.5", head="hidden_states @ self.embed_tokens.weight.T"):
    wrong("09.4", title, truth, TABLE.format(init=init, embed=embed, head=head))
words("no factor", "embed does not multiply by the square root of D", embed="self.embed_tokens(input_ids)")
words("times D", "embed multiplies by D instead of its square root", embed="self.embed_tokens(input_ids) * self.embed_tokens.embedding_dim")
words("root of V", "the factor is the root of the vocabulary's size, not of the width", embed="self.embed_tokens(input_ids) * self.embed_tokens.num_embeddings ** 0.5")
words("divided", "embed divides by the root of D", embed="self.embed_tokens(input_ids) / self.embed_tokens.weight.shape[1] ** 0.5")
words("head with the factor", "the head multiplies by the root of D as well", head="hidden_states @ (self.embed_tokens.weight.T * self.embed_tokens.weight.shape[1] ** 0.5)")
words("head divides the factor out", "the head divides by the root of D", head="(hidden_states / self.embed_tokens.weight.shape[1] ** 0.5) @ self.embed_tokens.weight.T")
words("head is a copy", "the head keeps a copy of the table from __init__, so later changes don't reach it", init="\n        self.table = self.embed_tokens.weight.detach().clone()", head="hidden_states @ self.table.T")
words("head with its own weights", "the head has weights of its own", init="\n        self.head = nn.Linear(hidden_size, vocab_size, bias=False)", head="self.head(hidden_states)")
words("root cut to a whole number", "the factor is cut to a whole number", embed="self.embed_tokens(input_ids) * int(self.embed_tokens.weight.shape[1] ** 0.5)")
words("head detached", "the head uses the table detached: training through the head does not reach it", head="hidden_states @ self.embed_tokens.weight.detach().T")
words("softmax in the head", "the head returns probabilities instead of logits", head="(hidden_states @ self.embed_tokens.weight.T).softmax(dim=-1)")
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

# 09.5
LENS = """
def logit_lens(states, norm, table):
    h = norm(torch.stack(states))
    logits = h @ table.T
    p = logits.softmax(dim=-1)
    best = p.max(dim=-1)
    return best.indices, best.values
"""
def lens(title, truth, *pairs):
    text = LENS
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("09.5", title, truth, text)
lens("no norm", "the states do not go through the norm", ("norm(torch.stack(states))", "torch.stack(states)"))
lens("norm on the last only", "only the last state goes through the norm", ("norm(torch.stack(states))", "torch.stack(states[:-1] + [norm(states[-1])])"))
lens("softmax over positions", "the softmax is over the positions, not over the vocabulary", ("softmax(dim=-1)", "softmax(dim=-2)"))
lens("softmax over layers", "the softmax is over the layers, not over the vocabulary", ("softmax(dim=-1)", "softmax(dim=0)"))
lens("order of results", "probability and id are returned in the wrong order", ("best.indices, best.values", "best.values, best.indices"))
lens("logit instead of probability", "the second result is the logit, not the probability", ("logits.softmax(dim=-1)", "logits"))
lens("log of the probability", "the second result is the log of the probability", ("logits.softmax(dim=-1)", "logits.log_softmax(dim=-1)"))
lens("states summed up", "the states are added up, but each holds all that came before", ("torch.stack(states)", "torch.stack(states).cumsum(dim=0)"))
lens("first state skipped", "the stream before layer 0 is missing", ("torch.stack(states)", "torch.stack(states[1:])"))
lens("layers on the second axis", "the results are [B, layers + 1, L]", ("torch.stack(states)", "torch.stack(states, dim=1)"))
lens("scaled by the root of D", "the logits are multiplied by the root of D", ("h @ table.T", "h @ table.T * table.shape[1] ** 0.5"))
lens("table normalised too", "the norm is applied to the table as well", ("h @ table.T", "h @ norm(table).T"))
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

# 09.6
def tuned(title, truth, body):
    wrong("09.6", title, truth, "def tuned_lens(states, last):\n    " + body + "\n")
tuned("roles exchanged", "fits the map from last to the state, the wrong way round", "return [torch.linalg.lstsq(last, state).solution for state in states]")
tuned("transposed", "returns the transposed matrices, for T @ state", "return [torch.linalg.lstsq(state, last).solution.T for state in states]")
tuned("difference fitted", "fits what is still to be added (last - state), not last itself", "return [torch.linalg.lstsq(state, last - state).solution for state in states]")
tuned("mean taken off", "takes the means off first, so it is a fit with a bias, not the best matrix alone", "return [torch.linalg.lstsq(s - s.mean(0), last - last.mean(0)).solution for s in states]")
tuned("strong ridge", "adds a penalty (ridge), so the fit is not least squares", "D = last.shape[1]\n    return [torch.linalg.solve(s.T @ s + torch.eye(D), s.T @ last) for s in states]")
tuned("to the next state", "fits each state to the next one instead of the last", "return [torch.linalg.lstsq(s, t).solution for s, t in zip(states, states[1:] + [last])]")
tuned("last state left out", "the matrix for the last state is missing from the list", "return [torch.linalg.lstsq(state, last).solution for state in states[:-1]]")
tuned("returns all results", "returns lstsq's whole result instead of its .solution", "return [torch.linalg.lstsq(state, last) for state in states]")
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

# 10.1
def merge(title, truth, body):
    wrong("10.1", title, truth, "def merge(embeddings, image_features, is_image):\n" + "\n".join("    " + line for line in body.strip("\n").split("\n")) + "\n")
merge("in place", "changes the embeddings that were given", "embeddings[is_image] = image_features.flatten(0, 1).to(embeddings.dtype)\nreturn embeddings")
merge("first places", "writes to the first N places of each row instead of where is_image is True", "out = embeddings.clone()\nout[:, : image_features.shape[1]] = image_features.to(out.dtype)\nreturn out")
merge("one picture a row", "assumes one picture for each row: a prompt with two fails", "out = embeddings.clone()\nfor b in range(len(out)):\n    out[b, is_image[b]] = image_features[b].to(out.dtype)\nreturn out")
merge("first picture for all", "every row gets the first picture's features", "out = embeddings.clone()\nfor b in range(len(out)):\n    n = int(is_image[b].sum())\n    out[b, is_image[b]] = image_features[0, :n].to(out.dtype) if n <= image_features.shape[1] else image_features.flatten(0, 1)[:n].to(out.dtype)\nreturn out")
merge("column by column", "fills the places column by column, not row by row", "out = embeddings.clone().transpose(0, 1).contiguous()\nout[is_image.T] = image_features.flatten(0, 1).to(out.dtype)\nreturn out.transpose(0, 1)")
merge("dtype of the features", "the result has the features' dtype instead of the embeddings'", "out = embeddings.to(image_features.dtype, copy=True)\nout[is_image] = image_features.flatten(0, 1)\nreturn out")
merge("no cast", "the features are not cast to the embeddings' dtype, so assigning fails", "out = embeddings.clone()\nout[is_image] = image_features.flatten(0, 1)\nreturn out")
merge("added", "adds the features to what stands there instead of replacing it", "out = embeddings.clone()\nout[is_image] += image_features.flatten(0, 1).to(out.dtype)\nreturn out")
merge("mask inverted", "writes where is_image is False", "out = embeddings.clone()\nout[~is_image] = image_features.flatten(0, 1).to(out.dtype)\nreturn out")
merge("other places set to 0", "all other places become 0", "out = torch.zeros_like(embeddings)\nout[is_image] = image_features.flatten(0, 1).to(out.dtype)\nreturn out")
merge("off by one", "the running number begins at 1: each place gets the next patch", "flat = image_features.flatten(0, 1).to(embeddings.dtype)\nnumber = is_image.flatten().cumsum(0).clamp(max=len(flat) - 1).view_as(is_image)\nreturn torch.where(is_image[..., None], flat[number], embeddings)")
merge("patches and width mixed", "reshape deals out the transposed features: patches and width are mixed up", "out = embeddings.clone()\nD = out.shape[-1]\nout[is_image] = image_features.transpose(1, 2).reshape(-1, D).to(out.dtype)\nreturn out")
right("10.1", "running number and where", """
def merge(embeddings, image_features, is_image):
    flat = image_features.reshape(-1, image_features.shape[-1]).to(embeddings.dtype)
    number = (is_image.flatten().long().cumsum(0) - 1).clamp(min=0).view(is_image.shape)
    return torch.where(is_image.unsqueeze(-1), flat[number], embeddings)
""")
right("10.1", "two loops and an iterator", """
def merge(embeddings, image_features, is_image):
    patches = iter(vector for picture in image_features for vector in picture)
    rows = []
    for b in range(embeddings.shape[0]):
        row = [next(patches).to(embeddings.dtype) if is_image[b, t] else embeddings[b, t] for t in range(embeddings.shape[1])]
        rows.append(torch.stack(row))
    return torch.stack(rows)
""")

# 10.2
NAMES_102 = {"A": "features divided by the root of D", "B": "grid read column by column", "C": "bias of the projector left out", "D": "first picture for every row", "E": "no RoPE in the decoder"}
def answer(function, mapping):
    return f"def {function}():\n    return {mapping!r}\n"
def exchange(mapping, first, second):
    return mapping | {first: mapping[second], second: mapping[first]}
wrong("10.2", "first picture and RoPE exchanged", "D is the first picture for every row and E is the missing RoPE", answer("faults", exchange(NAMES_102, "D", "E")))
wrong("10.2", "features and RoPE exchanged", "A is the divided features and E the missing RoPE", answer("faults", exchange(NAMES_102, "A", "E")))
wrong("10.2", "grid and first picture exchanged", "B is the grid by columns and D the first picture", answer("faults", exchange(NAMES_102, "B", "D")))
wrong("10.2", "one line forgotten", "there is no answer for E", answer("faults", {k: v for k, v in NAMES_102.items() if k != "E"}))
wrong("10.2", "one name twice", "the same name is given to D and E", answer("faults", NAMES_102 | {"E": NAMES_102["D"]}))
right("10.2", "zip", """
def faults():
    names = ["features divided by the root of D", "grid read column by column", "bias of the projector left out",
             "first picture for every row", "no RoPE in the decoder"]
    return dict(zip("ABCDE", names))
""")

# 10.3
SEQ = """
def embed_sequence(input_ids, table, image_features, image_token_index):
    mask = input_ids == image_token_index
    features = image_features.flatten(0, 1)
    if int(mask.sum()) != len(features):
        raise ValueError(f"{int(mask.sum())} places for {len(features)} features")
    x = table[input_ids.masked_fill(mask, 0)] * table.shape[1] ** 0.5
    x[mask] = features
    return x
"""
def seq(title, truth, *pairs):
    text = SEQ
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("10.3", title, truth, text)
seq("everything scaled", "the image features are scaled by the root of D as well", (" * table.shape[1] ** 0.5", ""), ("return x", "return x * table.shape[1] ** 0.5"))
seq("nothing scaled", "the text is not multiplied by the root of D", (" * table.shape[1] ** 0.5", ""))
seq("features divided", "the features are divided by the root of D", ("x[mask] = features", "x[mask] = features / table.shape[1] ** 0.5"))
seq("root of V", "the factor is the root of V, the table's rows, not of D", ("table.shape[1] ** 0.5", "table.shape[0] ** 0.5"))
seq("looks up the image token", "looks the image token up, which may lie outside the table", ("input_ids.masked_fill(mask, 0)", "input_ids"))
seq("raises only for too few places", "does not raise when there are more places than features", ("!=", "<"))
seq("counts one row", "compares places with N of one picture, not with all features", ("if int(mask.sum()) != len(features)", "if int(mask[0].sum()) != image_features.shape[1]"))
seq("no numbers in the message", "the ValueError does not give both numbers", ('f"{int(mask.sum())} places for {len(features)} features"', '"the number of image tokens does not fit the number of features"'))
seq("assert instead of ValueError", "raises AssertionError instead of ValueError", ('    if int(mask.sum()) != len(features):\n        raise ValueError(f"{int(mask.sum())} places for {len(features)} features")\n', '    assert int(mask.sum()) == len(features), f"{int(mask.sum())} places for {len(features)} features"\n'))
seq("ids changed", "input_ids is changed in place", ("    x = table[input_ids.masked_fill(mask, 0)]", "    input_ids[mask] = 0\n    x = table[input_ids]"))
seq("no comparison", "does not compare places and features at all", ('    if int(mask.sum()) != len(features):\n        raise ValueError(f"{int(mask.sum())} places for {len(features)} features")\n', ""), ("x[mask] = features", "x = x.masked_scatter(mask[..., None], features)"))
seq("mask from the safe ids", "the mask is made from the replaced ids: places of id 0 become pictures' places", ("x[mask] = features", "x = x.masked_scatter((input_ids.masked_fill(mask, 0) == 0)[..., None], features)"))
right("10.3", "embedding and masked_scatter", """
def embed_sequence(input_ids, table, image_features, image_token_index):
    is_image = input_ids.eq(image_token_index)
    wanted, given = is_image.sum().item(), image_features.shape[0] * image_features.shape[1]
    if wanted != given:
        raise ValueError("the prompt keeps {} places but there are {} image features".format(wanted, given))
    ids = torch.where(is_image, torch.zeros_like(input_ids), input_ids)
    text = nn.functional.embedding(ids, table).mul(table.size(-1) ** 0.5)
    return text.masked_scatter(is_image.unsqueeze(-1), image_features.to(text.dtype))
""")
right("10.3", "only text is looked up", """
def embed_sequence(input_ids, table, image_features, image_token_index):
    B, L = input_ids.shape
    ids = input_ids.reshape(-1)
    pictures = (ids == image_token_index).nonzero()[:, 0]
    text = (ids != image_token_index).nonzero()[:, 0]
    features = image_features.reshape(-1, table.shape[1])
    if pictures.numel() != features.shape[0]:
        raise ValueError(f"{features.shape[0]} features for {pictures.numel()} places")
    out = table.new_empty(B * L, table.shape[1])
    out[pictures] = features
    out[text] = table[ids[text]] * table.shape[1] ** 0.5
    return out.view(B, L, -1)
""")

# 10.4
NEXT = """
def next_token_logits(model, input_ids, pictures, token_type_ids):
    features = model.project(model.encode(pictures))
    is_image = input_ids == model.image_token_index
    merged = model.embed(input_ids).masked_scatter(is_image[..., None], features)
    states = model.decode(merged, token_type_ids)
    return model.head(states[:, -1])
"""
def nxt(title, truth, *pairs):
    text = NEXT
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("10.4", title, truth, text)
nxt("widths still made to fit", "project is not called; the width is filled up with a copied number", ("features = model.project(model.encode(pictures))", "features = model.encode(pictures)\n    features = torch.cat([features, features[..., :1]], dim=-1)"))
nxt("types still all ones", "token_type_ids is not used: the mask is causal everywhere", ("model.decode(merged, token_type_ids)", "model.decode(merged, torch.ones_like(token_type_ids))"))
nxt("types all zero", "token_type_ids is replaced by zeros: the answer sees what comes after it", ("model.decode(merged, token_type_ids)", "model.decode(merged, torch.zeros_like(token_type_ids))"))
nxt("types inverted", "token_type_ids is inverted", ("model.decode(merged, token_type_ids)", "model.decode(merged, 1 - token_type_ids)"))
nxt("first state", "the next token is chosen from the first position's state instead of the last's", ("states[:, -1]", "states[:, 0]"))
nxt("last but one", "the state of the last but one position is used", ("states[:, -1]", "states[:, -2]"))
nxt("last row of the batch", "states[-1] is the last row of the batch, not the last position", ("states[:, -1]", "states[-1]"))
nxt("first row of the batch", "states[0] is the first row of the batch, not the last position", ("states[:, -1]", "states[0]"))
nxt("mean over positions", "the states are averaged over all positions", ("states[:, -1]", "states.mean(dim=1)"))
nxt("logits of all positions", "returns logits of every position", ("states[:, -1]", "states"))
nxt("no merge", "the image features never get into the sequence", ("    merged = model.embed(input_ids).masked_scatter(is_image[..., None], features)", "    merged = model.embed(input_ids)"))
nxt("token instead of logits", "returns the chosen id instead of the logits", ("model.head(states[:, -1])", "model.head(states[:, -1]).argmax(dim=-1)"))
right("10.4", "mask assignment on a clone, head before choosing", """
def next_token_logits(model, input_ids, pictures, token_type_ids):
    x = model.embed(input_ids).clone()
    where = input_ids.eq(model.image_token_index)
    x[where] = model.project(model.encode(pictures)).reshape(-1, x.shape[-1]).to(x.dtype)
    return model.head(model.decode(x, token_type_ids))[:, -1, :]
""")

# 10.5
WHOLE = """
class MyPaliGemma(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vision_tower = SiglipVisionModel(config.vision_config)
        self.multi_modal_projector = PaliGemmaMultiModalProjector(config)
        self.language_model = GemmaForCausalLM(config.text_config)

    def forward(self, input_ids, pixel_values, attention_mask, token_type_ids):
        features = self.multi_modal_projector(self.vision_tower(pixel_values))
        is_image = input_ids == self.config.image_token_index
        x = self.language_model.model.embed(input_ids.masked_fill(is_image, 0))
        x = x.masked_scatter(is_image[..., None], features)
        states = self.language_model.model(x, attention_mask, token_type_ids)
        B, L = input_ids.shape
        last = (torch.arange(L) * attention_mask).amax(dim=1)
        return self.language_model.lm_head(states[torch.arange(B), last])
"""
def whole(title, truth, *pairs):
    text = WHOLE
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("10.5", title, truth, text)
whole("last column", "takes the last column, which is padding in rows padded on the right", ("states[torch.arange(B), last]", "states[:, -1]"))
whole("count of tokens", "the number of tokens minus 1 is not the last place in a row padded on the left", ("(torch.arange(L) * attention_mask).amax(dim=1)", "attention_mask.sum(dim=1) - 1"))
whole("ids not made safe", "the image token is looked up although it may lie outside the table", ("input_ids.masked_fill(is_image, 0)", "input_ids"))
whole("scaled twice", "the embeddings are multiplied by the root of D a second time", ("x = x.masked_scatter", "x = x * x.shape[-1] ** 0.5\n        x = x.masked_scatter"))
whole("features scaled", "the image features are divided by the root of D", ("is_image[..., None], features)", "is_image[..., None], features / self.config.text_config.hidden_size ** 0.5)"))
whole("no mask", "the attention mask is not used: padding is seen", ("self.language_model.model(x, attention_mask,", "self.language_model.model(x, torch.ones_like(attention_mask),"))
whole("types zero", "token_type_ids is not used", ("attention_mask, token_type_ids)\n        B", "attention_mask, torch.zeros_like(token_type_ids))\n        B"))
whole("first picture for every row", "every row gets the first picture", ("self.vision_tower(pixel_values)", "self.vision_tower(pixel_values[:1].expand_as(pixel_values))"))
whole("logits of all places", "returns logits for all places instead of each row's last", ("states[torch.arange(B), last]", "states"))
whole("other names", "the parts have other names, so the trained weights do not fit", ("self.vision_tower", "self.vision"), ("self.multi_modal_projector", "self.projector"), ("self.language_model", "self.decoder"))
whole("one place too early", "takes the state one place before the last token", ("states[torch.arange(B), last]", "states[torch.arange(B), last - 1]"))
whole("last place of row 0 for all", "uses the first row's last place for every row", ("last = (torch.arange(L) * attention_mask).amax(dim=1)", "last = (torch.arange(L) * attention_mask).amax(dim=1)[0]"))
right("10.5", "flip and argmax, gather, head first", """
class MyPaliGemma(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.language_model = GemmaForCausalLM(config.text_config)
        self.vision_tower = SiglipVisionModel(config.vision_config)
        self.multi_modal_projector = PaliGemmaMultiModalProjector(config)

    def forward(self, input_ids, pixel_values, attention_mask, token_type_ids):
        patches = self.multi_modal_projector(self.vision_tower(pixel_values)).flatten(0, 1)
        here = input_ids == self.config.image_token_index
        stream = self.language_model.model.embed(torch.where(here, 0, input_ids)).clone()
        stream[here] = patches
        logits = self.language_model.lm_head(self.language_model.model(stream, attention_mask, token_type_ids))
        from_end = attention_mask.flip(1).argmax(dim=1)
        place = attention_mask.shape[1] - 1 - from_end
        return logits.gather(1, place[:, None, None].expand(-1, 1, logits.shape[-1])).squeeze(1)
""")

# 11.1
def probs(title, truth, body):
    wrong("11.1", title, truth, "def probabilities(logits, temperature):\n" + "\n".join("    " + line for line in body.split("\n")) + "\n")
probs("divides afterwards", "divides the probabilities by the temperature, not the logits", "return torch.softmax(logits, dim=-1) / temperature")
probs("multiplies", "multiplies the logits by the temperature instead of dividing", "return torch.softmax(logits * temperature, dim=-1)")
probs("over the batch", "the softmax is over the rows of the batch, not the vocabulary", "return torch.softmax(logits / temperature, dim=0)")
probs("exp overflows", "exp of large logits overflows: the largest must be subtracted first", "e = torch.exp(logits / temperature)\nreturn e / e.sum(dim=-1, keepdim=True)")
probs("largest of the batch", "subtracts the largest of the whole batch: other rows underflow to 0 / 0", "z = logits / temperature\ne = torch.exp(z - z.max())\nreturn e / e.sum(dim=-1, keepdim=True)")
probs("power not divided by its sum", "probabilities to the power 1/T no longer sum to 1", "return torch.softmax(logits, dim=-1) ** (1 / temperature)")
probs("power of underflowed numbers", "the softmax comes first, so unlikely tokens have underflowed to 0 before the power", "p = torch.softmax(logits, dim=-1) ** (1 / temperature)\nreturn p / p.sum(dim=-1, keepdim=True)")
probs("divides in place", "changes the logits that were given", "logits /= temperature\nreturn logits.softmax(dim=-1)")
probs("log-probabilities", "returns logarithms of probabilities", "return torch.log_softmax(logits / temperature, dim=-1)")
probs("no temperature", "the temperature is not used", "return torch.softmax(logits, dim=-1)")
probs("sum of the batch", "divides by the sum over the whole batch: rows do not sum to 1", "z = logits / temperature\ne = torch.exp(z - z.amax(dim=-1, keepdim=True))\nreturn e / e.sum()")
right("11.1", "numpy round trip", """
def probabilities(logits, temperature):
    import numpy as np
    z = logits.double().numpy() / temperature
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return torch.from_numpy(e / e.sum(axis=1, keepdims=True)).to(logits.dtype)
""")

# 11.2
NUCLEUS = """
def keep_nucleus(p, top_p):
    values, order = p.sort(dim=-1, descending=True)
    before = values.cumsum(dim=-1) - values
    values = values.masked_fill(before >= top_p, 0.0)
    kept = torch.zeros_like(p).scatter(1, order, values)
    return kept / kept.sum(dim=-1, keepdim=True)
"""
def nucleus(title, truth, *pairs):
    text = NUCLEUS
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("11.2", title, truth, text)
nucleus("sum includes the token itself", "the sum includes the token itself, so the one that crosses the line is dropped", ("values.cumsum(dim=-1) - values", "values.cumsum(dim=-1)"), ("before >= top_p", "before > top_p"))
nucleus("greater instead of greater or equal", "a token before which there is exactly top_p is kept: it must have less than top_p before it", ("before >= top_p", "before > top_p"))
nucleus("not back in order", "the result is in sorted order, not in the vocabulary's", ("kept = torch.zeros_like(p).scatter(1, order, values)", "kept = values"))
nucleus("gather for the way back", "gather with order is not the way back: it needs scatter (the inverse order)", ("torch.zeros_like(p).scatter(1, order, values)", "values.gather(1, order)"))
nucleus("not divided", "what is kept is not divided by its sum", ("return kept / kept.sum(dim=-1, keepdim=True)", "return kept"))
nucleus("divided by top_p", "divides by top_p instead of the sum of what is kept", ("kept.sum(dim=-1, keepdim=True)", "top_p"))
nucleus("divided by the batch's sum", "divides by the sum over the whole batch", ("kept.sum(dim=-1, keepdim=True)", "kept.sum()"))
nucleus("from the least likely", "sorted from the least likely up", ("descending=True", "descending=False"))
nucleus("softmax again", "renormalises with a softmax instead of dividing by the sum", ("return kept / kept.sum(dim=-1, keepdim=True)", "return kept.softmax(dim=-1)"))
nucleus("one count for all rows", "the number of tokens kept in row 0 is used for every row", ("values = values.masked_fill(before >= top_p, 0.0)", "values[:, int((before[0] < top_p).sum()) :] = 0"))
wrong("11.2", "threshold on each probability", "keeps tokens by a threshold on their own probability, not by what is before them", """
def keep_nucleus(p, top_p):
    kept = torch.where(p >= 1 - top_p, p, torch.zeros_like(p))
    return kept / kept.sum(dim=-1, keepdim=True)
""")
wrong("11.2", "stops after crossing, one more", "one token too many is kept: the loop stops one token after the line is crossed", """
def keep_nucleus(p, top_p):
    kept = torch.zeros_like(p)
    for b in range(len(p)):
        total = 0.0
        for i in p[b].argsort(descending=True).tolist():
            kept[b, i] = p[b, i]
            if total >= top_p:
                break
            total += float(p[b, i])
    return kept / kept.sum(dim=-1, keepdim=True)
""")
wrong("11.2", "writes into p", "changes the probabilities that were given", """
def keep_nucleus(p, top_p):
    values, order = p.sort(dim=-1, descending=True)
    drop = values.cumsum(dim=-1) - values >= top_p
    p[torch.zeros_like(drop).scatter(1, order, drop)] = 0
    return p / p.sum(dim=-1, keepdim=True)
""")
right("11.2", "loop over rows", """
def keep_nucleus(p, top_p):
    rows = []
    for row in p:
        kept, before = torch.zeros_like(row), torch.zeros(())
        for i in torch.argsort(row, descending=True, stable=True):
            if before >= top_p:
                break
            kept[i] = row[i]
            before = before + row[i]
        rows.append(kept / kept.sum())
    return torch.stack(rows)
""")
right("11.2", "inverse permutation by argsort", """
def keep_nucleus(p, top_p):
    order = p.argsort(dim=1, descending=True)
    sorted_p = torch.take_along_dim(p, order, dim=1)
    before = torch.cat([torch.zeros(len(p), 1), sorted_p.cumsum(1)[:, :-1]], dim=1)
    keep = (before < top_p).gather(1, order.argsort(dim=1))
    kept = p * keep
    return torch.nn.functional.normalize(kept, p=1, dim=1)
""")

# 11.3
CACHE = """
class KVCache:
    def __init__(self, config, batch_size, max_length, dtype=torch.float32, device="cpu"):
        shape = (config.num_hidden_layers, batch_size, config.num_key_value_heads, max_length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def update(self, key, value, layer_idx):
        end = self.length + key.shape[2]
        self.keys[layer_idx, :, :, self.length:end] = key
        self.values[layer_idx, :, :, self.length:end] = value
        return self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]

    def advance(self, new_tokens):
        self.length += new_tokens

    def crop(self, length):
        self.length = length
"""
def cache(title, truth, *pairs):
    text = CACHE
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("11.3", title, truth, text)
cache("update moves length", "update moves length on, so the second layer writes behind the first", ("        return self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]", "        self.length = end\n        return self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]"), ("        self.length += new_tokens", "        pass"))
cache("advance sets", "advance sets length instead of adding", ("self.length += new_tokens", "self.length = new_tokens"))
cache("advance by one", "advance counts one token, however many are new", ("self.length += new_tokens", "self.length += 1"))
cache("only the new ones returned", "update returns only the new columns, not all so far", ("[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]", "[layer_idx, :, :, self.length:end], self.values[layer_idx, :, :, self.length:end]"))
cache("new ones not returned", "update returns only the old columns, without the new ones", ("return self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]", "return self.keys[layer_idx, :, :, :self.length], self.values[layer_idx, :, :, :self.length]"))
cache("everything returned", "update returns all the room, with the empty columns", ("return self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]", "return self.keys[layer_idx], self.values[layer_idx]"))
cache("copies returned", "update returns copies instead of views", ("return self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]", "return self.keys[layer_idx, :, :, :end].clone(), self.values[layer_idx, :, :, :end].clone()"))
cache("query heads", "room for all query heads instead of the key/value heads", ("config.num_key_value_heads", "config.num_attention_heads"))
cache("dtype forgotten", "dtype is not passed to the tensors", ("dtype=dtype, ", ""))
cache("values share the keys' memory", "keys and values are the same tensor", ("self.values = torch.zeros(shape, dtype=dtype, device=device)", "self.values = self.keys"))
cache("wrong axis counted", "L is read off the axis of heads, not of tokens", ("key.shape[2]", "key.shape[1]"))
cache("crop subtracts", "crop takes length off instead of setting it", ("        self.length = length", "        self.length -= length"))
cache("crop loses room", "crop cuts the tensors off, so room is lost", ("        self.length = length", "        self.keys, self.values = self.keys[:, :, :, :length], self.values[:, :, :, :length]\n        self.length = length"))
cache("crop does nothing", "crop does not set length back", ("        self.length = length", "        self.keys[:, :, :, length:] = 0\n        self.values[:, :, :, length:] = 0"))
cache("crop erases all", "crop starts again from nothing instead of keeping the first tokens", ("        self.length = length", "        self.length = 0"))
cache("writes at the start", "new tokens are written at column 0, over the old ones", ("[layer_idx, :, :, self.length:end] =", "[layer_idx, :, :, :key.shape[2]] ="))
cache("one layer for all", "all layers write to layer 0", ("[layer_idx,", "[0,"))
wrong("11.3", "grows by cat", "the cache grows by torch.cat, which copies everything each time, instead of reserving the room", """
class KVCache:
    def __init__(self, config, batch_size, max_length, dtype=torch.float32, device="cpu"):
        empty = torch.zeros(batch_size, config.num_key_value_heads, 0, config.head_dim, dtype=dtype, device=device)
        self.keys = [empty] * config.num_hidden_layers
        self.values = [empty] * config.num_hidden_layers
        self.length = 0

    def update(self, key, value, layer_idx):
        self.keys[layer_idx] = torch.cat([self.keys[layer_idx][:, :, :self.length], key], dim=2)
        self.values[layer_idx] = torch.cat([self.values[layer_idx][:, :, :self.length], value], dim=2)
        return self.keys[layer_idx], self.values[layer_idx]

    def advance(self, new_tokens):
        self.length += new_tokens

    def crop(self, length):
        self.length = length
""")
right("11.3", "narrow and copy_", """
class KVCache:
    def __init__(self, config, batch_size, max_length, dtype=torch.float32, device="cpu"):
        room = [config.num_hidden_layers, batch_size, config.num_key_value_heads, max_length, config.head_dim]
        self.keys = torch.empty(*room, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def update(self, key, value, layer_idx):
        L = key.size(2)
        for store, new in ((self.keys, key), (self.values, value)):
            store[layer_idx].narrow(2, self.length, L).copy_(new)
        return tuple(store[layer_idx].narrow(2, 0, self.length + L) for store in (self.keys, self.values))

    def advance(self, new_tokens):
        self.crop(self.length + new_tokens)

    def crop(self, length):
        self.length = length
""")
right("11.3", "other names, length as a property", """
class KVCache:
    def __init__(self, config, batch_size, max_length, dtype=torch.float32, device="cpu"):
        shape = (config.num_hidden_layers, batch_size, config.num_key_value_heads, max_length, config.head_dim)
        self.k, self.v = torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)
        self._held = 0

    @property
    def length(self):
        return self._held

    def update(self, key, value, layer_idx):
        first, last = self._held, self._held + key.shape[-2]
        self.k[layer_idx][..., first:last, :] = key
        self.v[layer_idx][..., first:last, :] = value
        return self.k[layer_idx][..., :last, :], self.v[layer_idx][..., :last, :]

    def advance(self, new_tokens):
        self._held += new_tokens

    def crop(self, length):
        self._held = length
""")

# 11.4
LOOP = """
def write(next_logits, prompt, max_new_tokens, eos, pad):
    finished = torch.zeros(len(prompt), dtype=torch.bool)
    written = []
    logits = next_logits(prompt)
    while True:
        tokens = logits.argmax(dim=-1).masked_fill(finished, pad)
        written.append(tokens)
        finished = finished | (tokens == eos)
        if finished.all() or len(written) == max_new_tokens:
            break
        logits = next_logits(tokens[:, None])
    return torch.stack(written, dim=1)
"""
def loop(title, truth, *pairs):
    text = LOOP
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("11.4", title, truth, text)
loop("whole text fed again", "feeds everything so far instead of the new token alone", ("logits = next_logits(tokens[:, None])", "logits = next_logits(torch.cat([prompt, torch.stack(written, dim=1)], dim=1))"))
loop("one call too many", "calls the model once more after the last token", ("        if finished.all() or len(written) == max_new_tokens:\n            break\n        logits = next_logits(tokens[:, None])", "        logits = next_logits(tokens[:, None])\n        if finished.all() or len(written) == max_new_tokens:\n            break"))
loop("stops at the first row", "stops when any row has ended instead of all", ("finished.all()", "finished.any()"))
loop("ended rows not padded", "rows that have ended go on writing instead of getting pad", (".masked_fill(finished, pad)", ""))
loop("eos becomes pad", "eos itself is replaced by pad", ("        tokens = logits.argmax(dim=-1).masked_fill(finished, pad)\n        written.append(tokens)\n        finished = finished | (tokens == eos)\n", "        tokens = logits.argmax(dim=-1)\n        finished = finished | (tokens == eos)\n        tokens = tokens.masked_fill(finished, pad)\n        written.append(tokens)\n"))
loop("finished forgotten", "which rows had ended is forgotten at the next step", ("finished = finished | (tokens == eos)", "finished = tokens == eos"))
loop("prompt returned too", "the prompt is in the result", ("torch.stack(written, dim=1)", "torch.cat([prompt, torch.stack(written, dim=1)], dim=1)"))
loop("steps and rows exchanged", "the result is [steps, B]", ("torch.stack(written, dim=1)", "torch.stack(written, dim=0)"))
loop("one token too many", "writes max_new_tokens + 1 tokens", ("len(written) == max_new_tokens", "len(written) > max_new_tokens"))
loop("one token too few", "writes only max_new_tokens - 1 tokens", ("len(written) == max_new_tokens", "len(written) >= max_new_tokens - 1"))
loop("last eos dropped", "the last tokens, with eos, are not in the result when all rows have ended", ("        written.append(tokens)\n        finished = finished | (tokens == eos)\n        if finished.all() or", "        finished = finished | (tokens == eos)\n        if finished.all() and written:\n            break\n        written.append(tokens)\n        if"))
loop("argmax over the batch", "argmax over rows of the batch instead of the vocabulary", ("argmax(dim=-1)", "argmax(dim=0)[: len(prompt)]"))
loop("never stops early", "goes on to max_new_tokens although all rows have ended", ("finished.all() or ", ""))
loop("only the first row's token fed", "feeds the first row's token to every row", ("next_logits(tokens[:, None])", "next_logits(tokens[:1, None].expand(len(prompt), 1))"))
loop("pad instead of eos", "looks for pad instead of eos as the end", ("tokens == eos", "tokens == pad"))
right("11.4", "for loop over a padded result", """
def write(next_logits, prompt, max_new_tokens, eos, pad):
    B = prompt.shape[0]
    result = torch.full((B, max_new_tokens), pad, dtype=torch.int64)
    alive = [True] * B
    feed = prompt
    for step in range(max_new_tokens):
        best = next_logits(feed).max(dim=1).indices
        for b in range(B):
            if alive[b]:
                result[b, step] = best[b]
                alive[b] = int(best[b]) != eos
        if not any(alive):
            return result[:, : step + 1]
        feed = result[:, step : step + 1]
    return result
""")

# 11.5
half = "torch.tensor([[0.6, 0.4]])"
SAMPLERS = """
def expose():
    return {
        "A": (torch.tensor([[0.5, 0.5]]), 0.75),
        "B": (torch.tensor([[0.25, 0.75]]), 1.0),
        "C": (torch.tensor([[0.75, 0.25]]), 0.5),
        "D": (torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.25, 0.25]]), 1.0),
        "E": (torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.75, 0.25]]), 1.0),
    }
"""
def samplers(title, truth, *pairs):
    text = SAMPLERS
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("11.5", title, truth, text)
samplers("B's input drops a word", "B's input exposes C as well, because a word is dropped", ("(torch.tensor([[0.25, 0.75]]), 1.0)", "(torch.tensor([[0.25, 0.75]]), 0.5)"))
samplers("A's input exposes nothing", "A's input exposes nothing: with top_p 1 A drops nothing", ("(torch.tensor([[0.5, 0.5]]), 0.75)", "(torch.tensor([[0.5, 0.5]]), 1.0)"))
samplers("D's input drops a word", "D's input exposes C as well: a word with a probability is dropped", ("(torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.25, 0.25]]), 1.0)", "(torch.tensor([[0.75, 0.25], [0.5, 0.5]]), 0.6)"))
samplers("one row for E", "with a single row E has nothing to add up: E's input exposes nothing", ("torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.75, 0.25]])", "torch.tensor([[0.75, 0.25]])"))
samplers("rows do not sum to 1", "a row of A's input does not sum to 1", ("[[0.5, 0.5]]", "[[0.5, 0.4]]"))
samplers("top_p above 1", "D's top_p is above 1", ("[0.5, 0.25, 0.25]]), 1.0)", "[0.5, 0.25, 0.25]]), 1.5)"))
samplers("E forgotten", "there is no input for E", ('        "E": (torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.75, 0.25]]), 1.0),\n', ""))
samplers("no batch axis", "p of C has no batch axis: it is [V] instead of [B, V]", ("torch.tensor([[0.75, 0.25]]), 0.5", "torch.tensor([0.75, 0.25]), 0.5"))
right("11.5", "larger inputs", """
def expose():
    rows = torch.tensor([[0.5, 0.25, 0.125, 0.125]])
    return dict(
        A=(rows, 0.9375),
        B=(rows.flip(1), 1.0),
        C=(rows, 0.5),
        D=(torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.25, 0.25]]), 1.0),
        E=(rows.repeat(4, 1), 1.0),
    )
""")

# 12.1
BOXES = {"A": (0.0, 0.0, 0.75, 0.75), "B": (0.0, 0.0, 0.6, 0.6), "C": (0.1, 0.0, 1.0, 1.0), "D": (-0.01, -0.01, 1.0, 1.0), "E": (0.0, 0.0, 1.01, 1.01)}
right("12.1", "another box for A", answer("expose", BOXES | {"A": (0.0, 0.0, 0.7, 0.7)}))
wrong("12.1", "A's box exposes B too", "A's box exposes B as well", answer("expose", BOXES | {"A": (0.0, 0.0, 0.9, 0.9)}))
wrong("12.1", "whole picture for A", "the whole picture exposes nothing", answer("expose", BOXES | {"A": (0.0, 0.0, 1.0, 1.0)}))
wrong("12.1", "D and E exchanged", "D forgets the lower edge, E the upper one: their boxes are exchanged", answer("expose", exchange(BOXES, "D", "E")))
wrong("12.1", "C's box exposes others", "C's box exposes A or B as well", answer("expose", BOXES | {"C": (0.6, 0.1, 0.9, 0.75)}))
wrong("12.1", "D outside too little", "-0.0004 rounds to tick 0 anyway: D's box exposes nothing", answer("expose", BOXES | {"D": (-0.0004, -0.0004, 1.0, 1.0)}))
wrong("12.1", "too far outside", "sides may only go from -0.05 to 1.05; E's go to 1.5", answer("expose", BOXES | {"E": (0.0, 0.0, 1.5, 1.5)}))
wrong("12.1", "bottom above top", "C's box has y1 above y2", answer("expose", BOXES | {"C": (1.0, 0.0, 0.1, 1.0)}))
wrong("12.1", "one forgotten", "there is no box for B", answer("expose", {k: v for k, v in BOXES.items() if k != "B"}))
right("12.1", "other boxes, lists", """
def expose():
    return {
        "A": [0.0, 0.0, 800.3 / 1023, 800.3 / 1023],
        "B": [0.0, 0.0, 100.7 / 1023, 100.7 / 1023],
        "C": [0.0, 50.2 / 1023, 1.0, 1.0],
        "D": [-0.05, -0.05, 1.0, 1.0],
        "E": [0, 0, 1.05, 1.05],
    }
""")

# 12.2
IOU = """
def box_iou(a, b):
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    area_a = (a[:, 2:] - a[:, :2]).prod(dim=-1)
    area_b = (b[:, 2:] - b[:, :2]).prod(dim=-1)
    union = area_a[:, None] + area_b[None, :] - inter
    return torch.where(union > 0, inter / union, 0.0)
"""
def iou(title, truth, *pairs):
    text = IOU
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("12.2", title, truth, text)
iou("no clamp", "negative sides are not cut off: two negatives multiply to a positive area", (".clamp(min=0)", ""))
iou("clamp after the product", "the product is clamped instead of each side: two negative sides give a positive area", (".clamp(min=0).prod(dim=-1)", ".prod(dim=-1).clamp(min=0)"))
iou("intersection counted twice", "the union counts the intersection twice", (" - inter\n", "\n"))
iou("NaN for points", "0 / 0 is NaN for boxes without an area", ("torch.where(union > 0, inter / union, 0.0)", "inter / union"))
iou("minimum and maximum exchanged", "takes the smaller top left and the larger bottom right: the hull, not the intersection", ("torch.maximum", "torch.m_"), ("torch.minimum", "torch.maximum"), ("torch.m_", "torch.minimum"))
iou("transposed", "the result is [m, n]", ("torch.where(union > 0, inter / union, 0.0)", "torch.where(union > 0, inter / union, 0.0).T"))
iou("one pixel more", "sides get + 1, as for pixel counts, but boxes are real numbers", ("bottom_right - top_left)", "bottom_right - top_left + 1)"), ("a[:, 2:] - a[:, :2]", "a[:, 2:] - a[:, :2] + 1"), ("b[:, 2:] - b[:, :2]", "b[:, 2:] - b[:, :2] + 1"))
iou("smaller area below", "divides by the smaller area instead of the union", ("union = area_a[:, None] + area_b[None, :] - inter", "union = torch.minimum(area_a[:, None], area_b[None, :])"))
iou("eps below", "adds 1e-3 to the union, so equal boxes have less than 1", ("inter / union,", "inter / (union + 1e-3),"))
iou("area of a for both", "both areas are those of a", ("area_b = (b[:, 2:] - b[:, :2])", "area_b = (a[:, 2:] - a[:, :2])"), ("area_b[None, :]", "area_b[:, None]"))
iou("only heights", "compares heights only", (".clamp(min=0).prod(dim=-1)", ".clamp(min=0)[..., 0]"), ("(a[:, 2:] - a[:, :2]).prod(dim=-1)", "(a[:, 2] - a[:, 0])"), ("(b[:, 2:] - b[:, :2]).prod(dim=-1)", "(b[:, 2] - b[:, 0])"))
wrong("12.2", "pairs one by one", "compares row i of a with row i of b only, not all pairs", """
def box_iou(a, b):
    top_left = torch.maximum(a[:, :2], b[:, :2])
    bottom_right = torch.minimum(a[:, 2:], b[:, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    union = (a[:, 2:] - a[:, :2]).prod(dim=-1) + (b[:, 2:] - b[:, :2]).prod(dim=-1) - inter
    return torch.where(union > 0, inter / union, 0.0)
""")
right("12.2", "python loops", """
def box_iou(a, b):
    table = torch.zeros(a.shape[0], b.shape[0])
    for i, (t, l, d, r) in enumerate(a.tolist()):
        for j, (T, L, D, R) in enumerate(b.tolist()):
            inter = max(min(d, D) - max(t, T), 0) * max(min(r, R) - max(l, L), 0)
            union = (d - t) * (r - l) + (D - T) * (R - L) - inter
            table[i, j] = inter / union if union else 0
    return table
""")
right("12.2", "nan_to_num", """
def box_iou(a, b):
    y1, x1, y2, x2 = a.unbind(1)
    Y1, X1, Y2, X2 = b.unbind(1)
    h = (torch.min(y2[:, None], Y2) - torch.max(y1[:, None], Y1)).relu()
    w = (torch.min(x2[:, None], X2) - torch.max(x1[:, None], X1)).relu()
    both = ((y2 - y1) * (x2 - x1))[:, None] + (Y2 - Y1) * (X2 - X1)
    return (h * w / (both - h * w)).nan_to_num(0.0)
""")

# 12.3
PARSER = r"""
def read_things(text):
    things, dropped = [], []
    for piece in text.split(";"):
        piece = piece.strip()
        if not piece:
            continue
        match = re.fullmatch(r"((?:<loc[0-9]{4}>)*)\s*((?:<seg[0-9]{3}>)*)\s*([^<>]*)", piece)
        if match:
            box = [int(n) for n in re.findall("[0-9]{4}", match[1])]
            codes = [int(n) for n in re.findall("[0-9]{3}", match[2])]
            if len(box) == 4 and len(codes) in (0, 16) and max(box) <= 1023 and max(codes, default=0) <= 127 and box[0] < box[2] and box[1] < box[3]:
                things.append((match[3].strip(), box, codes))
                continue
        dropped.append(piece)
    return things, dropped
"""
def parser(title, truth, *pairs):
    text = PARSER
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("12.3", title, truth, text)
parser("search instead of fullmatch", "only a part of the piece has to fit: broken pieces are understood", ("re.fullmatch", "re.match"))
parser("location numbers not checked", "a location number above 1023 is accepted", (" and max(box) <= 1023", ""))
parser("segment numbers not checked", "a segment number above 127 is accepted", (" and max(codes, default=0) <= 127", ""))
parser("numbers not checked", "locations above 1023 and segments above 127 are accepted", (" and max(box) <= 1023 and max(codes, default=0) <= 127", ""))
parser("1023 refused", "location 1023 is refused, but it exists", ("max(box) <= 1023", "max(box) < 1023"))
parser("127 refused", "segment 127 is refused, but it exists", ("max(codes, default=0) <= 127", "max(codes, default=0) < 127"))
parser("bottom equal to top accepted", "a box whose bottom equals its top is accepted", ("box[0] < box[2]", "box[0] <= box[2]"))
parser("left and right not compared", "the right side is not compared with the left", (" and box[1] < box[3]", ""))
parser("order x y", "compares neighbours, as if the order were y1, y2, x1, x2", ("box[0] < box[2] and box[1] < box[3]", "box[0] < box[1] and box[2] < box[3]"))
parser("fewer segments accepted", "any number of segment tokens is accepted, not only 0 or 16", (" and len(codes) in (0, 16)", " and len(codes) <= 16"))
parser("segments required", "a thing without segment tokens is dropped", ("len(codes) in (0, 16)", "len(codes) == 16"))
parser("label required", "an empty label is refused", ("([^<>]*)", "([^<>]+)"))
parser("label not stripped", "blanks around the label stay", ("match[3].strip()", "match[3]"), (r"\s*([^<>]*)", "([^<>]*)"))
parser("no blank between tokens", "a blank between location and segment tokens is not allowed for", (r"*)\s*((?:<seg", "*)((?:<seg"))
parser("empty pieces dropped", "an empty piece is put into dropped", ("        if not piece:\n            continue\n", ""))
parser("dropped with blanks", "dropped pieces keep their blanks", ("        piece = piece.strip()\n        if not piece:", "        if not piece.strip():"), ('r"((?:<loc', r'r"\s*((?:<loc'))
parser("stops at a broken piece", "nothing is read after the first broken piece", ("        dropped.append(piece)", "        dropped.append(piece)\n        break"))
parser("broken pieces forgotten", "pieces with a wrong box are neither understood nor dropped", ("                continue\n        dropped.append(piece)", "        else:\n            dropped.append(piece)"))
parser("numbers as fractions", "the box is divided by 1023; the numbers are wanted as they are", ("match[3].strip(), box, codes", "match[3].strip(), [n / 1023 for n in box], codes"))
parser("None for no codes", "codes are None where there are none, an empty list is wanted", ("match[3].strip(), box, codes", "match[3].strip(), box, codes or None"))
parser("any number of digits", "tokens with another number of digits are accepted", ("<loc[0-9]{4}>", "<loc[0-9]+>"), ('"[0-9]{4}"', '"[0-9]+"'))
parser("crashes without tokens", "max of an empty list: a piece without location tokens raises", ("len(box) == 4 and len(codes) in (0, 16) and max(box) <= 1023", "max(box) <= 1023 and len(box) == 4 and len(codes) in (0, 16)"))
right("12.3", "without a pattern for the whole piece", r"""
def read_things(text):
    things, dropped = [], []
    for raw in text.split(";"):
        piece = raw.strip()
        if piece == "":
            continue
        rest, numbers = piece, {"loc": [], "seg": []}
        for kind, width in (("loc", 4), ("seg", 3)):
            rest = rest.lstrip()
            while m := re.match(f"<{kind}([0-9]{{{width}}})>", rest):
                numbers[kind].append(int(m.group(1)))
                rest = rest[m.end():]
        good = len(numbers["loc"]) == 4 and len(numbers["seg"]) in {0, 16} and not set(rest) & set("<>")
        if good:
            y1, x1, y2, x2 = numbers["loc"]
            good = y1 < y2 <= 1023 and x1 < x2 <= 1023 and all(n < 128 for n in numbers["seg"])
        if good:
            things.append((rest.strip(), numbers["loc"], numbers["seg"]))
        else:
            dropped.append(piece)
    return things, dropped
""")

# 12.4
QUANT = """
def quantise(z, codebook):
    B, D, h, w = z.shape
    vectors = z.flatten(2).transpose(1, 2)
    codes = torch.cdist(vectors, codebook[None]).argmin(dim=-1)
    e = codebook[codes].transpose(1, 2).reshape(B, D, h, w)
    return z + (e - z).detach(), codes
"""
def quant(title, truth, *pairs):
    text = QUANT
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("12.4", title, truth, text)
quant("dot product", "chooses the largest dot product instead of the smallest distance", ("torch.cdist(vectors, codebook[None]).argmin(dim=-1)", "(vectors @ codebook.T).argmax(dim=-1)"))
quant("cosine", "chooses by the angle (cosine), not by distance", ("torch.cdist(vectors, codebook[None]).argmin(dim=-1)", "(torch.nn.functional.normalize(vectors, dim=-1) @ torch.nn.functional.normalize(codebook, dim=-1).T).argmax(dim=-1)"))
quant("furthest code", "chooses the furthest code", ("argmin", "argmax"))
quant("reshape instead of transpose", "the vectors are cut out by reshape: places and numbers are mixed up", ("z.flatten(2).transpose(1, 2)", "z.reshape(B, h * w, D)"))
quant("no way back", "the looked-up codes are reshaped without the transpose", ("codebook[codes].transpose(1, 2).reshape", "codebook[codes].reshape"))
quant("no gradient for z", "z gets no gradient: it is not straight through", ("z + (e - z).detach()", "e.detach()"))
quant("gradient to the codebook", "the gradient goes to the codebook, not to z", ("z + (e - z).detach()", "e"))
quant("detach forgotten", "z + (e - z) is e: the gradient goes to the codebook and not to z", ("(e - z).detach()", "(e - z)"))
quant("roles exchanged", "returns z's values with the codebook's gradient", ("z + (e - z).detach()", "e + (z - e).detach()"))
quant("both get the gradient", "the codebook gets a gradient too", ("z + (e - z).detach()", "z + e - z.detach()"))
quant("codes as a grid", "codes are [B, h, w] instead of [B, h * w]", ("detach(), codes", "detach(), codes.view(B, h, w)"))
quant("grid column by column", "the codes are listed column by column", ("detach(), codes", "detach(), codes.view(B, h, w).transpose(1, 2).reshape(B, -1)"))
quant("int32", "codes are int32 instead of int64", ("detach(), codes", "detach(), codes.int()"))
quant("size of the codes forgotten", "the distance lacks |e| squared", ("torch.cdist(vectors, codebook[None]).argmin(dim=-1)", "(vectors.square().sum(-1, keepdim=True) - 2 * vectors @ codebook.T).argmin(dim=-1)"))
quant("2 forgotten", "the distance has -z e instead of -2 z e", ("torch.cdist(vectors, codebook[None]).argmin(dim=-1)", "(codebook.square().sum(-1) - vectors @ codebook.T).argmin(dim=-1)"))
quant("sum of absolute differences", "measures by the sum of absolute differences, not the Euclidean distance", ("codebook[None])", "codebook[None], p=1)"))
right("12.4", "autograd function, channels last", """
class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, e):
        return e.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def quantise(z, codebook):
    last = z.permute(0, 2, 3, 1)
    distance = (last.unsqueeze(-2) - codebook).pow(2).sum(dim=-1)
    codes = distance.argmin(dim=-1)
    e = torch.nn.functional.embedding(codes, codebook.detach()).permute(0, 3, 1, 2)
    return Straight.apply(z, e), codes.flatten(1)
""")
right("12.4", "loop over places, no_grad", """
def quantise(z, codebook):
    B, D, h, w = z.shape
    codes = torch.zeros(B, h * w, dtype=torch.long)
    e = torch.zeros_like(z)
    with torch.no_grad():
        for b in range(B):
            for y in range(h):
                for x in range(w):
                    k = (codebook - z[b, :, y, x]).norm(dim=1).argmin()
                    codes[b, y * w + x] = k
                    e[b, :, y, x] = codebook[k]
        step = e - z
    return z + step, codes
""")

# 12.5
def readbox(title, truth, body):
    wrong("12.5", title, truth, "def read_box(text, width, height):\n" + "\n".join("    " + line for line in body.split("\n")) + "\n")
FIND = 're.findall("<loc([0-9]{4})>", text)[:4]'
readbox("still 1024", "divides by 1024 instead of 1023", f"y1, x1, y2, x2 = [int(n) / 1024 for n in {FIND}]\nreturn round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)")
readbox("still x first", "the model writes y first, read as x first", f"x1, y1, x2, y2 = [int(n) / 1023 for n in {FIND}]\nreturn round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)")
readbox("still cut off", "cuts fractions off instead of rounding", f"y1, x1, y2, x2 = [int(n) / 1023 for n in {FIND}]\nreturn int(x1 * width), int(y1 * height), int(x2 * width), int(y2 * height)")
readbox("y first in the result", "returns (y1, x1, y2, x2)", f"y1, x1, y2, x2 = [int(n) / 1023 for n in {FIND}]\nreturn round(y1 * height), round(x1 * width), round(y2 * height), round(x2 * width)")
readbox("width and height exchanged", "x is multiplied by the height and y by the width", f"y1, x1, y2, x2 = [int(n) / 1023 for n in {FIND}]\nreturn round(x1 * height), round(y1 * width), round(x2 * height), round(y2 * width)")
readbox("last pixel", "multiplies by width - 1 and height - 1", f"y1, x1, y2, x2 = [int(n) / 1023 for n in {FIND}]\nreturn round(x1 * (width - 1)), round(y1 * (height - 1)), round(x2 * (width - 1)), round(y2 * (height - 1))")
readbox("rounded up", "rounds up instead of to the nearest pixel", f"import math\ny1, x1, y2, x2 = [int(n) / 1023 for n in {FIND}]\nreturn tuple(math.ceil(v) for v in (x1 * width, y1 * height, x2 * width, y2 * height))")
readbox("not whole numbers", "returns numbers with fractions", f"y1, x1, y2, x2 = [int(n) / 1023 for n in {FIND}]\nreturn x1 * width, y1 * height, x2 * width, y2 * height")
readbox("all tokens", "takes all location tokens, not only the first four", 'y1, x1, y2, x2 = [int(n) / 1023 for n in re.findall("<loc([0-9]{4})>", text)]\nreturn round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)')
readbox("rounded too early", "rounds the fraction before it is multiplied", f"y1, x1, y2, x2 = [round(int(n) / 1023, 2) for n in {FIND}]\nreturn round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)")
right("12.5", "whole-number arithmetic", """
def read_box(text, width, height):
    top, left, bottom, right = (int(m) for m in re.findall(r"<loc(\\d{4})>", text)[:4])
    nearest = lambda number, size: (2 * number * size + 1023) // 2046
    return nearest(left, width), nearest(top, height), nearest(right, width), nearest(bottom, height)
""")
right("12.5", "numpy", """
def read_box(text, width, height):
    numbers = np.array([int(n) for n in re.match("(?:<loc([0-9]{4})>)" * 4, text).groups()])
    sides = np.rint(numbers[[1, 0, 3, 2]] * np.array([width, height, width, height]) / 1023).astype(int)
    return tuple(sides.tolist())
""")

# 12.6
PASTE = """
def paste(drawn, box, width, height):
    mask = np.zeros((height, width), dtype=bool)
    y1, x1, y2, x2 = round(box[0] * height), round(box[1] * width), round(box[2] * height), round(box[3] * width)
    if y2 > y1 and x2 > x1:
        big = np.asarray(Image.fromarray(drawn).resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR))
        mask[y1:y2, x1:x2] = big > 0
    return mask
"""
def pasted(title, truth, *pairs):
    text = PASTE
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("12.6", title, truth, text)
pasted("cut first", "the drawing is cut at 0 before it is stretched", ("Image.fromarray(drawn).resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR))\n        mask[y1:y2, x1:x2] = big > 0", "Image.fromarray(drawn > 0).resize((x2 - x1, y2 - y1), Image.Resampling.NEAREST))\n        mask[y1:y2, x1:x2] = big"))
pasted("cut first, then bilinear", "the drawing is cut at 0 before it is stretched", ("Image.fromarray(drawn)", "Image.fromarray((drawn > 0).astype(np.float32))"), ("big > 0", "big > 0.5"))
pasted("cut first, then bilinear and above 0", "the drawing is cut at 0 before it is stretched", ("Image.fromarray(drawn)", "Image.fromarray((drawn > 0).astype(np.float32))"))
pasted("nearest", "stretches with nearest instead of bilinear", ("BILINEAR", "NEAREST"))
pasted("bicubic", "stretches with bicubic instead of bilinear", ("BILINEAR", "BICUBIC"))
pasted("resize the wrong way round", "resize gets (height, width); the stretched drawing is transposed to fit", ("resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR))", "resize((y2 - y1, x2 - x1), Image.Resampling.BILINEAR)).T"))
pasted("resize with rows first", "resize gets (height, width) instead of (width, height)", ("resize((x2 - x1, y2 - y1)", "resize((y2 - y1, x2 - x1)"))
pasted("cut off", "the box's sides are cut off, not rounded", ("round(box[0] * height), round(box[1] * width), round(box[2] * height), round(box[3] * width)", "int(box[0] * height), int(box[1] * width), int(box[2] * height), int(box[3] * width)"))
pasted("mask on its side", "the mask is [width, height]", ("np.zeros((height, width), dtype=bool)", "np.zeros((width, height), dtype=bool)"), ("mask[y1:y2, x1:x2] = big > 0", "mask[x1:x2, y1:y2] = big.T > 0"))
pasted("x first", "reads the box as (x1, y1, x2, y2)", ("y1, x1, y2, x2 = round(box[0] * height), round(box[1] * width), round(box[2] * height), round(box[3] * width)", "x1, y1, x2, y2 = round(box[0] * width), round(box[1] * height), round(box[2] * width), round(box[3] * height)"))
pasted("thin box crashes", "a box without a pixel makes resize fail", ("    if y2 > y1 and x2 > x1:\n", "    if True:\n"))
pasted("thin box not empty", "a box without a pixel gets one", ("    if y2 > y1 and x2 > x1:", "    y2, x2 = max(y2, y1 + 1), max(x2, x1 + 1)\n    if y2 > y1 and x2 > x1:"))
pasted("numbers instead of bool", "returns numbers instead of bool", ("dtype=bool", "dtype=np.uint8"))
pasted("not cut at all", "everything in the box that is not exactly 0 is inside: > 0 is missing", ("= big > 0", "= big"))
pasted("threshold of one half", "cuts at 0.5 instead of 0", ("big > 0", "big > 0.5"))
pasted("inside and outside exchanged", "what is below 0 is inside", ("big > 0", "big < 0"))
pasted("over the whole picture", "stretches the drawing over the whole picture instead of the box", ("resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR))", "resize((width, height), Image.Resampling.BILINEAR))"), ("= big > 0", "= big[y1:y2, x1:x2] > 0"))
right("12.6", "a PIL picture of minus ones", """
def paste(drawn, box, width, height):
    canvas = Image.new("F", (width, height), -1.0)
    top, left, bottom, right = np.rint(np.array(box) * [height, width, height, width]).astype(int).tolist()
    if bottom - top >= 1 and right - left >= 1:
        canvas.paste(Image.fromarray(drawn).resize((right - left, bottom - top), resample=Image.BILINEAR), (left, top))
    return np.array(canvas) > 0
""")

# 13.1
def labels(title, truth, body):
    wrong("13.1", title, truth, "def make_labels(input_ids, attention_mask, token_type_ids):\n" + "\n".join("    " + line for line in body.split("\n")) + "\n")
labels("padding learned", "padding whose type is 1 gets a label: the attention mask is not used", "return input_ids.masked_fill(token_type_ids == 0, -100)")
labels("prompt learned", "picture and prompt get labels: the types are not used", "return input_ids.masked_fill(attention_mask == 0, -100)")
labels("or instead of and", "a token needs both to count; with | the prompt and padding get labels", "keep = (token_type_ids == 1) | (attention_mask == 1)\nreturn torch.where(keep, input_ids, -100)")
labels("shifted", "the labels are shifted by one, but a label stays in its own place", "keep = (token_type_ids == 1) & (attention_mask == 1)\nlabels = torch.where(keep, input_ids, -100)\nreturn F.pad(labels[:, 1:], (0, 1), value=-100)")
labels("0 instead of -100", "what does not count gets 0 instead of -100", "return input_ids * token_type_ids * attention_mask")
labels("in place", "input_ids is changed in place", "input_ids[(token_type_ids == 0) | (attention_mask == 0)] = -100\nreturn input_ids")
labels("inverted", "the prompt gets labels and the answer -100", "return torch.where((token_type_ids == 0) & (attention_mask == 1), input_ids, -100)")
labels("eos left out", "the last token of the answer, eos, has no label", "keep = (token_type_ids == 1) & (attention_mask == 1)\nlast = keep & ~F.pad(keep[:, 1:], (0, 1), value=False)\nreturn torch.where(keep & ~last, input_ids, -100)")
labels("mask as label", "returns which tokens count, not their ids", "keep = (token_type_ids == 1) & (attention_mask == 1)\nreturn torch.where(keep, 1, -100)")
labels("float", "the labels are float", "keep = (token_type_ids == 1) & (attention_mask == 1)\nreturn torch.where(keep, input_ids.float(), -100.0)")
labels("-1", "what does not count gets -1 instead of -100", "keep = (token_type_ids == 1) & (attention_mask == 1)\nreturn input_ids.masked_fill(~keep, -1)")
right("13.1", "arithmetic", """
def make_labels(input_ids, attention_mask, token_type_ids):
    counts = token_type_ids * attention_mask
    return input_ids * counts - 100 * (1 - counts)
""")
right("13.1", "loops over lists", """
def make_labels(input_ids, attention_mask, token_type_ids):
    rows = []
    for ids, mask, types in zip(input_ids.tolist(), attention_mask.tolist(), token_type_ids.tolist()):
        rows.append([i if m == 1 and t == 1 else -100 for i, m, t in zip(ids, mask, types)])
    return torch.tensor(rows, dtype=torch.long)
""")

# 13.2
LOSS = """
def suffix_loss(logits, labels, average):
    logits, targets = logits.float()[:, :-1], labels[:, 1:]
    counts = (targets != -100).sum(dim=1)
    if counts.sum() == 0:
        raise ValueError("no token has a label")
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    if average == "tokens":
        return losses.sum() / counts.sum()
    return (losses.sum(dim=1) / counts).mean()
"""
def loss(title, truth, *pairs):
    text = LOSS
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("13.2", title, truth, text)
loss("not shifted", "the guess at t is compared with the token at t, not at t + 1", ("logits.float()[:, :-1], labels[:, 1:]", "logits.float(), labels"))
loss("shifted the wrong way", "the guess at t is compared with the token at t - 1", ("logits.float()[:, :-1], labels[:, 1:]", "logits.float()[:, 1:], labels[:, :-1]"))
loss("shifted by two", "the guess at t is compared with the token at t + 2", ("logits.float()[:, :-1], labels[:, 1:]", "logits.float()[:, :-2], labels[:, 2:]"))
loss("always over tokens", "the mean over tokens is taken for examples, too", ("    return (losses.sum(dim=1) / counts).mean()", "    return losses.sum() / counts.sum()"))
loss("averages exchanged", "the two averages are exchanged", ('average == "tokens"', 'average == "examples"'))
loss("divides by all places", "the mean is over all places, those without a label too", ("losses.sum() / counts.sum()", "losses.mean()"))
loss("rows divided by their length", "each row is divided by its length, not by how many of its guesses count", ("losses.sum(dim=1) / counts", "losses.mean(dim=1)"))
loss("sum over rows", "the rows' means are added up, not averaged", ("counts).mean()", "counts).sum()"))
loss("no error", "no ValueError when no label counts: NaN comes out", ('    if counts.sum() == 0:\n        raise ValueError("no token has a label")\n', ""))
loss("computed in half precision", "the loss is computed in the logits' bfloat16, not in float32", ("logits.float()[:, :-1]", "logits[:, :-1]"), ("losses.sum() / counts.sum()", "(losses.sum() / counts.sum()).float()"), ("counts).mean()", "counts).mean().float()"))
loss("float32 too late", "the softmax is in bfloat16; only the losses are made float32", ("logits.float()[:, :-1]", "logits[:, :-1]"), ('reduction="none")', 'reduction="none").float()'))
loss("log of the softmax", "log(softmax) gives minus infinity where the softmax is 0", ('F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")', '-torch.log(logits.softmax(-1)).gather(2, targets.clamp(min=0)[..., None])[..., 0]\n    losses = torch.where(targets == -100, 0.0, losses)'))
loss("counts before the cut", "the labels are counted before the first is cut off", ("counts = (targets != -100)", "counts = (labels != -100)"))
loss("reshape mixes rows", "the vocabulary is made the second axis by reshape, which mixes the numbers up", ("logits.transpose(1, 2)", "logits.reshape(logits.shape[0], logits.shape[2], logits.shape[1])"))
loss("softmax before cross-entropy", "the softmax is taken twice: cross_entropy wants logits", ("logits.transpose(1, 2)", "logits.softmax(dim=-1).transpose(1, 2)"))
loss("-100 counted as token 0", "places with -100 count as token 0", ("logits.transpose(1, 2), targets,", "logits.transpose(1, 2), targets.clamp(min=0),"))
loss("a python number", "returns a python number, from which nothing can be learned", ("return losses.sum() / counts.sum()", "return (losses.sum() / counts.sum()).item()"), ("return (losses.sum(dim=1) / counts).mean()", "return (losses.sum(dim=1) / counts).mean().item()"))
right("13.2", "a loop over rows", """
def suffix_loss(logits, labels, average):
    per_row = []
    for scores, ids in zip(logits, labels):
        which = [t for t in range(1, len(ids)) if ids[t] != -100]
        if which:
            picked = torch.stack([torch.logsumexp(scores[t - 1].float(), 0) - scores[t - 1, ids[t]].float() for t in which])
            per_row.append(picked)
    if not per_row:
        raise ValueError("nothing to learn: all labels are -100")
    return torch.cat(per_row).mean() if average == "tokens" else torch.stack([row.mean() for row in per_row]).mean()
""")
right("13.2", "one-hot weights", """
def suffix_loss(logits, labels, average):
    log_p = logits[:, :-1].to(torch.float32).log_softmax(dim=-1)
    keep = labels[:, 1:].ne(-100)
    if not keep.any():
        raise ValueError("no labels")
    one_hot = F.one_hot(labels[:, 1:].masked_fill(~keep, 0), logits.shape[-1]).float()
    nll = -torch.einsum("blv,blv->bl", one_hot, log_p)
    weights = keep.float()
    if average == "examples":
        weights = weights / weights.sum(dim=1, keepdim=True)
    return (nll * weights).sum() / weights.sum()
""")

# 13.3
LOGS = {"A": "the answer is visible", "B": "rate a hundred times too small", "C": "all is right", "D": "loss on everything"}
wrong("13.3", "A and C exchanged", "A is the visible answer, C is right", answer("causes", exchange(LOGS, "A", "C")))
wrong("13.3", "C and D exchanged", "C is right, D has the loss on everything", answer("causes", exchange(LOGS, "C", "D")))
wrong("13.3", "A and D exchanged", "A is the visible answer, D the loss on everything", answer("causes", exchange(LOGS, "A", "D")))
wrong("13.3", "a name mistyped", "there is no such name as 'the answer is seen'", answer("causes", LOGS | {"A": "the answer is seen"}))
wrong("13.3", "D forgotten", "there is no answer for D", answer("causes", {k: v for k, v in LOGS.items() if k != "D"}))

# 13.4
GRID = """
def interpolate_positions(table, old, new):
    grid = table.view(1, old[0], old[1], -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode="bilinear", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1)
"""
def grid(title, truth, *pairs):
    text = GRID
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("13.4", title, truth, text)
grid("view as channels", "view does not move the channels in front: places and channels are mixed up", ("table.view(1, old[0], old[1], -1).permute(0, 3, 1, 2)", "table.view(1, -1, old[0], old[1])"))
grid("old grid on its side", "rows and columns of the old grid are exchanged", ("old[0], old[1], -1", "old[1], old[0], -1"))
grid("new grid on its side", "rows and columns of the new grid are exchanged", ("size=new", "size=(new[1], new[0])"))
grid("result column by column", "the new table is listed column by column", ("grid.permute(0, 2, 3, 1)", "grid.permute(0, 3, 2, 1)"))
grid("old read column by column", "the old table is read column by column", ("table.view(1, old[0], old[1], -1).permute(0, 3, 1, 2)", "table.view(1, old[1], old[0], -1).permute(0, 3, 2, 1)"))
grid("channels not moved back", "the channels are not moved back behind the places", ("grid.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1)", "grid.reshape(new[0] * new[1], -1)"))
grid("corners aligned", "align_corners=True: the corners are aligned", ("align_corners=False", "align_corners=True"))
grid("nearest", "nearest instead of bilinear", ('mode="bilinear", align_corners=False', 'mode="nearest"'))
grid("bicubic", "bicubic instead of bilinear", ("bilinear", "bicubic"))
grid("square assumed", "assumes that the old grid is square", ("old[0], old[1], -1)", "int(len(table) ** 0.5), int(len(table) ** 0.5), -1)"))
grid("table stretched as a line", "the table is stretched along one line, not as a grid", ('    grid = table.view(1, old[0], old[1], -1).permute(0, 3, 1, 2)\n    grid = F.interpolate(grid, size=new, mode="bilinear", align_corners=False)\n    return grid.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1)', '    line = table.T[None]\n    line = F.interpolate(line, size=new[0] * new[1], mode="linear")\n    return line[0].T'))
right("13.4", "one matrix for each axis", """
def interpolate_positions(table, old, new):
    def matrix(n_old, n_new):
        where = ((torch.arange(n_new, dtype=table.dtype) + 0.5) * n_old / n_new - 0.5).clamp(0, n_old - 1)
        low = where.floor().long()
        high = (low + 1).clamp(max=n_old - 1)
        m = torch.zeros(n_new, n_old, dtype=table.dtype)
        for i in range(n_new):
            m[i, low[i]] += 1 - (where[i] - low[i])
            m[i, high[i]] += where[i] - low[i]
        return m

    picture = table.reshape(old[0], old[1], table.shape[1])
    out = torch.einsum("yr,xc,rcd->yxd", matrix(old[0], new[0]), matrix(old[1], new[1]), picture)
    return out.flatten(0, 1)
""")
right("13.4", "channel by channel", """
def interpolate_positions(table, old, new):
    columns = []
    for channel in table.T:
        picture = channel.contiguous().view(1, 1, *old)
        columns.append(F.interpolate(picture, size=tuple(new), mode="bilinear").flatten())
    return torch.stack(columns, dim=1)
""")

# 13.5
STEP = """
def training_step(model, optimizer, batch, clip=1.0):
    optimizer.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()
"""
def step(title, truth, *pairs):
    text = STEP
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("13.5", title, truth, text)
step("gradients not cleared", "the gradients of the step before are not cleared", ("    optimizer.zero_grad()\n", ""))
step("cleared after backward", "the gradients are cleared after backward: nothing is learned", ("    optimizer.zero_grad()\n", ""), ("    loss.backward()\n", "    loss.backward()\n    optimizer.zero_grad()\n"))
step("clipped before backward", "clipping comes before backward, when there are no gradients", ("    loss.backward()\n    nn.utils.clip_grad_norm_(model.parameters(), clip)\n", "    nn.utils.clip_grad_norm_(model.parameters(), clip)\n    loss.backward()\n"))
step("clipped after the step", "clipping comes after the step", ("    nn.utils.clip_grad_norm_(model.parameters(), clip)\n    optimizer.step()\n", "    optimizer.step()\n    nn.utils.clip_grad_norm_(model.parameters(), clip)\n"))
step("not clipped", "the gradient is not clipped", ("    nn.utils.clip_grad_norm_(model.parameters(), clip)\n", ""))
step("each number clipped", "each number of the gradient is clipped, not its length", ("clip_grad_norm_", "clip_grad_value_"))
step("each tensor clipped by itself", "each tensor is clipped by itself instead of the whole gradient", ("    nn.utils.clip_grad_norm_(model.parameters(), clip)", "    for p in model.parameters():\n        nn.utils.clip_grad_norm_(p, clip)"))
step("clip ignored", "clips to 1.0 always; clip is not used", ("model.parameters(), clip", "model.parameters(), 1.0"))
step("labels shifted", "the labels are shifted once more, though the model does it", ("    loss = model(**batch).loss", "    labels = F.pad(batch[\"labels\"][:, 1:], (0, 1), value=-100)\n    loss = model(**{**batch, \"labels\": labels}).loss"))
step("labels from the ids", "everything gets a label, the prompt too: the batch's labels are replaced", ("    loss = model(**batch).loss", "    labels = batch[\"input_ids\"].masked_fill(batch[\"attention_mask\"] == 0, -100)\n    loss = model(**{**batch, \"labels\": labels}).loss"))
step("loss after the step", "returns the loss after the step", ("    return loss.item()", "    return model(**batch).loss.item()"))
step("tensor returned", "returns a tensor instead of a number", ("loss.item()", "loss"))
step("no step", "the optimizer makes no step", ("    optimizer.step()\n", ""))
right("13.5", "cleared after the step", STEP.replace("    optimizer.zero_grad()\n", "").replace("    optimizer.step()\n", "    optimizer.step()\n    optimizer.zero_grad()\n"))
step("batch changed", "takes the labels out of the batch (pop), which changes it", ("    loss = model(**batch).loss", "    labels = batch.pop(\"labels\")\n    loss = model(**batch, labels=labels).loss"))
right("13.5", "clips by hand", """
def training_step(model, optimizer, batch, clip=1.0):
    for p in model.parameters():
        p.grad = None
    loss = model(**batch)["loss"] if isinstance(model(**batch), dict) else model(**batch).loss
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    length = torch.sqrt(sum(g.pow(2).sum() for g in grads))
    if length > clip:
        for g in grads:
            g.mul_(clip / length)
    optimizer.step()
    return float(loss)
""")
right("13.5", "autograd.grad", """
def training_step(model, optimizer, batch, clip=1.0):
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = model(**batch).loss
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters)):
        p.grad = g
    nn.utils.clip_grad_norm_(parameters, max_norm=clip)
    optimizer.step()
    return loss.detach().item()
""")

# 13.6
TEACH = """
def teach(model, optimizer, new, old, steps):
    losses = []
    for i in range(steps):
        loss = (model(**new[i % len(new)]).loss + model(**old[i % len(old)]).loss) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
"""
def teach(title, truth, *pairs):
    text = TEACH
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("13.6", title, truth, text)
teach("sum instead of mean", "the losses are added, not averaged", (" / 2\n", "\n"))
teach("two steps", "the optimizer makes two steps, one for each loss", ("        loss = (model(**new[i % len(new)]).loss + model(**old[i % len(old)]).loss) / 2\n        optimizer.zero_grad()\n        loss.backward()\n        optimizer.step()\n", "        total = 0\n        for batch in (new[i % len(new)], old[i % len(old)]):\n            part = model(**batch).loss\n            optimizer.zero_grad()\n            part.backward()\n            optimizer.step()\n            total = total + part\n        loss = total / 2\n"))
teach("old examples forgotten", "only the new batches are learned", ("(model(**new[i % len(new)]).loss + model(**old[i % len(old)]).loss) / 2", "model(**new[i % len(new)]).loss"))
teach("old by the length of new", "the old list's batch is chosen with the new list's length", ("old[i % len(old)]", "old[i % len(new) % len(old)]"))
teach("stays at the last", "a list at its end repeats its last batch instead of beginning again", ("new[i % len(new)]", "new[min(i, len(new) - 1)]"), ("old[i % len(old)]", "old[min(i, len(old) - 1)]"))
teach("stops with the shorter list", "stops when the shorter list is at its end", ("range(steps)", "range(min(steps, len(new), len(old)))"))
teach("one batch for ever", "batch 0 is used in every step", ("new[i % len(new)]", "new[0]"), ("old[i % len(old)]", "old[0]"))
teach("gradients not cleared", "the gradients are not cleared between steps", ("        optimizer.zero_grad()\n", ""))
teach("log of the new loss only", "the list holds the new batches' losses, not the mean of both", ("        loss = (model(**new[i % len(new)]).loss + model(**old[i % len(old)]).loss) / 2", "        first = model(**new[i % len(new)]).loss\n        loss = (first + model(**old[i % len(old)]).loss) / 2"), ("losses.append(loss.item())", "losses.append(first.item())"))
teach("tensors in the list", "the list holds tensors instead of numbers", ("losses.append(loss.item())", "losses.append(loss.detach())"))
teach("begins with batch 1", "step 0 uses batch 1 instead of batch 0", ("range(steps)", "range(1, steps + 1)"))
teach("by turns", "new and old take turns instead of both in each step", ("(model(**new[i % len(new)]).loss + model(**old[i % len(old)]).loss) / 2", "model(**(new[i % len(new)] if i % 2 == 0 else old[i % len(old)])).loss"))
teach("clears between the two", "the new loss's gradient is cleared before the step", ("        loss = (model(**new[i % len(new)]).loss + model(**old[i % len(old)]).loss) / 2\n        optimizer.zero_grad()\n        loss.backward()\n", "        first = model(**new[i % len(new)]).loss / 2\n        first.backward()\n        optimizer.zero_grad()\n        second = model(**old[i % len(old)]).loss / 2\n        second.backward()\n        loss = first + second\n"))
teach("clipped", "the gradient is clipped, which was not asked for", ("        optimizer.step()", "        nn.utils.clip_grad_norm_(model.parameters(), 0.1)\n        optimizer.step()"))
right("13.6", "itertools.cycle, two backward passes", """
def teach(model, optimizer, new, old, steps):
    from itertools import cycle, islice

    history = []
    for fresh, known in islice(zip(cycle(new), cycle(old)), steps):
        optimizer.zero_grad(set_to_none=True)
        parts = []
        for batch in (fresh, known):
            part = 0.5 * model(**batch).loss
            part.backward()
            parts.append(float(part))
        optimizer.step()
        history.append(sum(parts))
    return history
""")

# 14.1
def chosen(title, truth, body):
    wrong("14.1", title, truth, "def chosen_by(weights, position, grid):\n    " + body + "\n")
chosen("own row", "the row of the token itself is taken, not the one before, which chose it", "return weights[:, :, position, : grid * grid].unflatten(-1, (grid, grid))")
chosen("row after", "the row after the token is taken", "return weights[:, :, position + 1, : grid * grid].unflatten(-1, (grid, grid))")
chosen("column instead of row", "takes a column (who looks at the token), not a row", "return weights[:, :, : grid * grid, position - 1].unflatten(-1, (grid, grid))")
chosen("on its side", "rows and columns of the map are exchanged", "return weights[:, :, position - 1, : grid * grid].unflatten(-1, (grid, grid)).transpose(-1, -2)")
chosen("last columns", "takes the last grid * grid columns, not the first", "return weights[:, :, position - 1, -grid * grid :].unflatten(-1, (grid, grid))")
chosen("divided by their sum", "the weights are divided by their sum; they are wanted as they are", "m = weights[:, :, position - 1, : grid * grid]\n    return (m / m.sum(-1, keepdim=True)).unflatten(-1, (grid, grid))")
chosen("mean over heads", "averages over the heads", "return weights[:, :, position - 1, : grid * grid].unflatten(-1, (grid, grid)).mean(dim=1)")
chosen("from column 1", "the columns begin at 1 instead of 0", "return weights[:, :, position - 1, 1 : grid * grid + 1].unflatten(-1, (grid, grid))")
chosen("last layer only", "only the last layer is returned", "return weights[-1, :, position - 1, : grid * grid].unflatten(-1, (grid, grid))")
chosen("last row", "takes the last row of the sequence, whatever the position", "return weights[:, :, -1, : grid * grid].unflatten(-1, (grid, grid))")
right("14.1", "loops", """
def chosen_by(weights, position, grid):
    layers, H = weights.shape[:2]
    out = torch.zeros(layers, H, grid, grid, dtype=weights.dtype)
    for r in range(grid):
        for c in range(grid):
            out[..., r, c] = weights[..., position - 1, r * grid + c]
    return out
""")

# 14.2
SHARE = """
def share_inside(weights, box):
    grid = len(weights)
    edges = torch.arange(grid + 1) / grid
    y1, x1, y2, x2 = box
    rows = (edges[1:].clamp(max=y2) - edges[:-1].clamp(min=y1)).clamp(min=0) * grid
    columns = (edges[1:].clamp(max=x2) - edges[:-1].clamp(min=x1)).clamp(min=0) * grid
    inside = rows[:, None] * columns[None, :]
    return float((weights * inside).sum() / weights.sum())
"""
def share(title, truth, *pairs):
    text = SHARE
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("14.2", title, truth, text)
share("x and y exchanged", "the box is read as (x1, y1, x2, y2)", ("y1, x1, y2, x2 = box", "x1, y1, x2, y2 = box"))
share("mask on its side", "rows and columns of the mask are exchanged", ("rows[:, None] * columns[None, :]", "rows[None, :] * columns[:, None]"))
share("not divided", "what is inside is not divided by what the picture gets", (" / weights.sum())", ")"))
share("divided by the patches inside", "divides by the area inside (a mean), not by the picture's sum", (" / weights.sum())", " / inside.sum())"))
share("whole patches by their middle", "a patch counts wholly if its middle is inside, not by its part", ("rows = (edges[1:].clamp(max=y2) - edges[:-1].clamp(min=y1)).clamp(min=0) * grid", "middle = (edges[1:] + edges[:-1]) / 2\n    rows = ((middle > y1) & (middle < y2)).float()"), ("columns = (edges[1:].clamp(max=x2) - edges[:-1].clamp(min=x1)).clamp(min=0) * grid", "columns = ((middle > x1) & (middle < x2)).float()"))
share("every patch touched", "a patch that the box touches counts wholly", ("    inside = rows[:, None] * columns[None, :]", "    inside = ((rows[:, None] * columns[None, :]) > 0).float()"))
share("not times grid", "the parts are not multiplied by grid: a whole patch counts 1 / grid squared", (".clamp(min=0) * grid\n", ".clamp(min=0)\n"))
share("only once times grid", "only the rows are multiplied by grid", ("columns = (edges[1:].clamp(max=x2) - edges[:-1].clamp(min=x1)).clamp(min=0) * grid", "columns = (edges[1:].clamp(max=x2) - edges[:-1].clamp(min=x1)).clamp(min=0)"))
share("negative parts", "parts of patches outside are negative: they are not held at 0", (".clamp(min=0) * grid\n", " * grid\n"))
share("share outside", "returns the share outside", ("float((weights * inside).sum() / weights.sum())", "1 - float((weights * inside).sum() / weights.sum())"))
share("area of the box", "returns the box's share of the area; the weights are not used", ("(weights * inside).sum() / weights.sum()", "inside.sum() / grid**2"))
share("sum of parts", "adds the row's and the column's part instead of multiplying", ("rows[:, None] * columns[None, :]", "(rows[:, None] + columns[None, :]) / 2"))
share("rows only", "only the rows are looked at", ("rows[:, None] * columns[None, :]", "rows[:, None] * torch.ones(grid)"))
right("14.2", "python loops", """
def share_inside(weights, box):
    grid = weights.shape[0]
    y1, x1, y2, x2 = [side * grid for side in box]
    total = inside = 0.0
    for r in range(grid):
        for c in range(grid):
            w = float(weights[r, c])
            part = max(0.0, min(r + 1, y2) - max(r, y1)) * max(0.0, min(c + 1, x2) - max(c, x1))
            total += w
            inside += w * part
    return inside / total
""")

# 14.3
ROLL = """
def rollout(attention):
    L = attention.shape[-1]
    result = torch.eye(L)
    for layer in attention.mean(dim=1):
        mixed = 0.5 * layer + 0.5 * torch.eye(L)
        result = mixed @ result
    return result
"""
def roll(title, truth, *pairs):
    text = ROLL
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("14.3", title, truth, text)
roll("wrong side", "the later layer stands on the right; it must stand on the left", ("mixed @ result", "result @ mixed"))
roll("no residual", "the half for the residual connection (identity) is missing", ("0.5 * layer + 0.5 * torch.eye(L)", "layer"))
roll("identity not halved", "attention and identity are added without halving: rows do not sum to 1", ("0.5 * layer + 0.5 * torch.eye(L)", "layer + torch.eye(L)"))
roll("heads added", "the heads are added up, not averaged", ("attention.mean(dim=1)", "attention.sum(dim=1)"))
roll("largest head", "takes the largest head instead of the mean", ("attention.mean(dim=1)", "attention.amax(dim=1)"))
roll("first head", "takes head 0 alone", ("attention.mean(dim=1)", "attention[:, 0]"))
roll("mean over layers", "averages over layers instead of heads", ("attention.mean(dim=1)", "attention.mean(dim=0)"))
roll("product of numbers", "multiplies number by number instead of the matrices", ("mixed @ result", "mixed * result"))
roll("layers averaged", "averages the layers' matrices instead of multiplying them", ("    result = torch.eye(L)\n", "    result = torch.zeros(L, L)\n"), ("mixed @ result", "result + mixed / len(attention)"))
roll("last layer only", "only the last layer is used", ("result = mixed @ result", "result = mixed"))
roll("first layer left out", "the first layer is left out", ("attention.mean(dim=1)", "attention.mean(dim=1)[1:]"))
roll("transposed", "the result is transposed: columns, not rows, say where tokens gathered from", ("    return result", "    return result.T"))
roll("identity once", "the identity is mixed in once at the end, not in each layer", ("        mixed = 0.5 * layer + 0.5 * torch.eye(L)\n        result = mixed @ result\n    return result", "        result = layer @ result\n    return 0.5 * result + 0.5 * torch.eye(L)"))
right("14.3", "multi_dot of reversed layers", """
def rollout(attention):
    half = attention.mean(1).mul(0.5)
    half = half + 0.5 * torch.eye(half.shape[-1], dtype=half.dtype).expand_as(half)
    layers = list(half.flip(0))
    return torch.linalg.multi_dot(layers) if len(layers) > 1 else layers[0]
""")
right("14.3", "reduce and einsum", """
def rollout(attention):
    from functools import reduce
    heads = torch.einsum("nhij->nij", attention) / attention.shape[1]
    mixed = [(layer + torch.eye(len(layer))) / 2 for layer in heads]
    return reduce(lambda so_far, layer: torch.einsum("ij,jk->ik", layer, so_far), mixed)
""")

# 14.4
VIEW = """
def viewer_map(decoder, token_type_ids, layer, t, grid, size):
    answer = token_type_ids.nonzero().flatten()
    row = decoder[layer].mean(dim=0)[answer[t] - 1][: grid * grid]
    row = row / row.max()
    scale = size // grid
    picture = torch.zeros(size, size)
    for i in range(grid * grid):
        y, x = divmod(i, grid)
        picture[y * scale : (y + 1) * scale, x * scale : (x + 1) * scale] = row[i]
    return picture
"""
def view(title, truth, *pairs):
    text = VIEW
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("14.4", title, truth, text)
view("row of the token itself", "the row is the token's own: it shows what the next token was chosen from", ("answer[t] - 1", "answer[t]"))
view("token before in the answer", "answer[t - 1] is not the place before for t = 0", ("answer[t] - 1", "answer[t - 1]"))
view("still on its side", "divmod gives the row first: x and y are exchanged", ("y, x = divmod", "x, y = divmod"))
view("largest of the text", "divides by the largest value of the whole row, the text's too", ("[: grid * grid]", ""))
view("maximum before the mean", "each head is divided by its own maximum before the mean", ("    row = decoder[layer].mean(dim=0)[answer[t] - 1][: grid * grid]\n    row = row / row.max()\n", "    rows = decoder[layer][:, answer[t] - 1, : grid * grid]\n    row = (rows / rows.amax(dim=-1, keepdim=True)).mean(dim=0)\n"))
view("maximum before the mean and after", "each head is divided by its own maximum before the mean", ("    row = decoder[layer].mean(dim=0)[answer[t] - 1][: grid * grid]\n", "    rows = decoder[layer][:, answer[t] - 1, : grid * grid]\n    row = (rows / rows.amax(dim=-1, keepdim=True)).mean(dim=0)\n"))
view("divided by the sum", "divides by the sum, so the largest value is not 1", ("row / row.max()", "row / row.sum()"))
view("not divided", "is not divided by its largest value", ("    row = row / row.max()\n", ""))
view("last layer always", "always the last layer; layer is not used", ("decoder[layer]", "decoder[-1]"))
view("all layers", "averages over layers as well", ("decoder[layer].mean(dim=0)", "decoder.mean(dim=(0, 1))"))
view("largest head", "takes the largest head instead of the mean", ("decoder[layer].mean(dim=0)", "decoder[layer].amax(dim=0)"))
view("column", "takes a column (who looks at it) instead of a row", ("decoder[layer].mean(dim=0)[answer[t] - 1]", "decoder[layer].mean(dim=0)[:, answer[t] - 1]"))
view("smallest taken off", "the smallest value is taken off before dividing", ("row / row.max()", "(row - row.min()) / (row.max() - row.min())"))
view("place t of the sequence", "t counts tokens of the answer, not of the sequence", ("answer[t] - 1", "t - 1"))
right("14.4", "kron", """
def viewer_map(decoder, token_type_ids, layer, t, grid, size):
    start = int((token_type_ids == 1).int().argmax())
    patches = decoder[layer, :, start + t - 1, : grid**2].mean(0).reshape(grid, grid)
    return torch.kron(patches / patches.amax(), torch.ones(size // grid, size // grid))
""")
right("14.4", "repeat_interleave", """
def viewer_map(decoder, token_type_ids, layer, t, grid, size):
    place = [i for i, kind in enumerate(token_type_ids.tolist()) if kind == 1][t]
    m = decoder[layer].narrow(-1, 0, grid * grid)[:, place - 1].mean(dim=0).view(grid, grid)
    m = m.repeat_interleave(size // grid, dim=0).repeat_interleave(size // grid, dim=1)
    return m.div(m.max())
""")

# 14.5
MAPS = {"A": "pink", "B": "yellow, first layer", "C": "purple", "D": "yellow, the odd head", "E": "yellow, on its side", "F": "yellow"}
wrong("14.5", "yellow and on its side exchanged", "F is yellow, E is the one on its side", answer("names", exchange(MAPS, "E", "F")))
wrong("14.5", "first layer and odd head exchanged", "B is the first layer, D the odd head", answer("names", exchange(MAPS, "B", "D")))
wrong("14.5", "pink and purple exchanged", "A is pink and C is purple", answer("names", exchange(MAPS, "A", "C")))
wrong("14.5", "three turned round", "C is purple, E is on its side, and D is the odd head", answer("names", MAPS | {"C": MAPS["E"], "E": MAPS["D"], "D": MAPS["C"]}))
wrong("14.5", "one name twice", "the name 'yellow' is given to E and F", answer("names", MAPS | {"E": "yellow"}))

# 14.6
HEADS = """
def head_that_counts(accuracy, ablate, layers, heads):
    whole = accuracy()
    table = torch.zeros(layers, heads)
    for layer in range(layers):
        for head in range(heads):
            with ablate(layer, head):
                table[layer, head] = whole - accuracy()
    return table, divmod(int(table.argmax()), heads)
"""
def head(title, truth, *pairs):
    text = HEADS
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("14.6", title, truth, text)
head("sign turned", "the difference is the wrong way round: a loss comes out negative", ("whole - accuracy()", "accuracy() - whole"))
head("measured after the block", "measures after the with block, when the head is back", ("                table[layer, head] = whole - accuracy()", "                pass\n            table[layer, head] = whole - accuracy()"))
head("accuracy instead of loss", "the table holds the accuracies, not what is lost", ("whole - accuracy()", "accuracy()"))
head("accuracy, smallest", "the table holds the accuracies, not what is lost (the head is right)", ("whole - accuracy()", "accuracy()"), ("table.argmax()", "table.argmin()"))
head("largest size", "takes the largest difference in size: a head that harms may win", ("table.argmax()", "table.abs().argmax()"))
head("absolute losses", "the losses' signs are taken away", ("whole - accuracy()", "abs(whole - accuracy())"))
head("losses held at 0", "negative losses are cut off at 0", ("whole - accuracy()", "max(0.0, whole - accuracy())"))
head("least missed", "returns the head that is missed least", ("argmax", "argmin"))
head("head and layer exchanged", "returns (head, layer)", ("divmod(int(table.argmax()), heads)", "divmod(int(table.argmax()), heads)[::-1]"))
head("divided by layers", "divmod by the number of layers instead of heads", ("divmod(int(table.argmax()), heads)", "divmod(int(table.argmax()), layers)"))
head("table on its side", "the table is [heads, layers]", ("    return table,", "    return table.T,"))
head("whole measured without a head", "the whole model is measured inside the first block, with a head away", ("    whole = accuracy()\n", "    with ablate(0, 0):\n        whole = accuracy()\n"))
head("heads stay away", "heads that were taken away are not put back: losses add up", ("    table = torch.zeros(layers, heads)\n", "    table = torch.zeros(layers, heads)\n    from contextlib import ExitStack\n    stack = ExitStack()\n"), ("            with ablate(layer, head):\n                table", "            stack.enter_context(ablate(layer, head))\n            table"), ("    return table,", "    stack.close()\n    return table,"))
head("flat place", "returns the place in the flat table, not (layer, head)", ("divmod(int(table.argmax()), heads)", "int(table.argmax())"))
head("last head of each layer forgotten", "the last head of each layer is not tried", ("range(heads)", "range(heads - 1)"))
head("relative loss", "the loss is divided by the whole accuracy", ("whole - accuracy()", "(whole - accuracy()) / whole"))
right("14.6", "list and unravel_index", """
def head_that_counts(accuracy, ablate, layers, heads):
    def without(layer, head):
        with ablate(layer, head):
            return accuracy()

    left = torch.tensor([[without(i, j) for j in range(heads)] for i in range(layers)], dtype=torch.float64)
    lost = (accuracy() - left).float()
    best = max(((i, j) for i in range(layers) for j in range(heads)), key=lambda place: lost[place])
    return lost, best
""")

# 15.1
NAME = """
PAIRS = [
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("vision_tower.vision_model.", "vision_tower.vision_model."),
    ("vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model.model."),
]


def canonical_name(name):
    for prefix, published in PAIRS:
        if name.startswith(prefix):
            return published + name[len(prefix):]
    return name
"""
def name(title, truth, *pairs):
    text = NAME
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("15.1", title, truth, text)
name("short prefix first", "vision_tower. is tried before vision_tower.vision_model.: vision_model stands there twice", ('    ("vision_tower.vision_model.", "vision_tower.vision_model."),\n    ("vision_tower.", "vision_tower.vision_model."),', '    ("vision_tower.", "vision_tower.vision_model."),\n    ("vision_tower.vision_model.", "vision_tower.vision_model."),'))
name("short prefix first in memory", "model.vision_tower. is tried before model.vision_tower.vision_model.", ('    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),\n    ("model.vision_tower.", "vision_tower.vision_model."),', '    ("model.vision_tower.", "vision_tower.vision_model."),\n    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),'))
name("projector in memory forgotten", "model.multi_modal_projector. is not handled", ('    ("model.multi_modal_projector.", "multi_modal_projector."),\n', ""))
name("saved encoder forgotten", "vision_tower. without vision_model is not handled", ('    ("vision_tower.", "vision_tower.vision_model."),\n', ""))
name("decoder without model", "the decoder becomes language_model. instead of language_model.model.", ('"language_model.model."', '"language_model."'))
name("published decoder changed", "a published language_model.model. name gets model twice", ('    ("model.language_model.", "language_model.model."),\n', '    ("model.language_model.", "language_model.model."),\n    ("language_model.", "language_model.model."),\n'))
name("replaced anywhere", "replaces anywhere in the name, not only at its beginning", ("if name.startswith(prefix)", "if prefix in name"), ("published + name[len(prefix):]", "name.replace(prefix, published)"))
name("every model. stripped", "model. is stripped from names that are unknown, too", ("    return name\n", "    return name.removeprefix(\"model.\")\n"))
name("in memory 4.52 forgotten", "model.vision_tower.vision_model. gets vision_model twice", ('    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),\n', ""))
name("unknown names give None", "unknown names give None instead of coming back", ("    return name\n", "    return None\n"))
wrong("15.1", "lstrip", "lstrip takes off letters, not a prefix", """
def canonical_name(name):
    in_memory = name.startswith(("model.vision_tower.", "model.multi_modal_projector.", "model.language_model."))
    if in_memory:
        name = name.lstrip("model.")
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        name = "vision_tower.vision_model." + name.removeprefix("vision_tower.")
    if in_memory and name.startswith("language_model."):
        name = "language_model.model." + name.removeprefix("language_model.")
    return name
""")
wrong("15.1", "prefix taken off and text replaced anywhere", "model. is taken off any name, unknown ones too, and texts are replaced anywhere", """
def canonical_name(name):
    if name.startswith("model."):
        name = name[len("model.") :]
        name = name.replace("language_model.", "language_model.model.")
    if "vision_tower." in name and "vision_model." not in name:
        name = name.replace("vision_tower.", "vision_tower.vision_model.")
    return name
""")
wrong("15.1", "prefix without its dot", "the prefix is compared without its dot: names that only begin alike are changed", NAME.replace('"vision_tower.", "vision_tower.vision_model."', '"vision_tower", "vision_tower.vision_model"'))
right("15.1", "regular expressions", r"""
import re


def canonical_name(name):
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    name = re.sub(r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision_tower.vision_model.", name)
    return re.sub(r"^model\.multi_modal_projector\.", "multi_modal_projector.", name)
""")

# 15.2
LOADERS = {
    "A": ({"w": (2,)}, {"w": (2,), "b": (3,)}),
    "B": ({"w": (2,), "b": (3,)}, {"w": (2,)}),
    "C": ({"w": (4, 3)}, {"w": (4, 2)}),
    "D": ({"w": (4, 3)}, {"w": (12,)}),
    "E": ({"w": (4,)}, {"v": (4,)}),
}
wrong("15.2", "A and B exchanged", "A never looks at what only the file has, B at what only the model has: exchanged", answer("expose", exchange(LOADERS, "A", "B")))
wrong("15.2", "C's shapes exposes D too", "C's shapes (4, 3) and (3, 4) expose D as well", answer("expose", LOADERS | {"C": ({"w": (4, 3)}, {"w": (3, 4)})}))
wrong("15.2", "D with as many axes", "D's shapes (4, 3) and (2, 6) expose C as well", answer("expose", LOADERS | {"D": ({"w": (4, 3)}, {"w": (2, 6)})}))
wrong("15.2", "C exposes nothing", "C's shapes have another number of axes, so C sees it", answer("expose", LOADERS | {"C": ({"w": (4, 3)}, {"w": (4,)})}))
wrong("15.2", "D exposes nothing", "D's shapes have another number of numbers, so D sees it", answer("expose", LOADERS | {"D": ({"w": (4, 3)}, {"w": (11,)})}))
wrong("15.2", "E fits", "E's file fits the model: nothing is wrong, so nothing is exposed", answer("expose", LOADERS | {"E": ({"w": (4,)}, {"w": (4,)})}))
wrong("15.2", "E with another shape", "E's shapes differ, so E sees it: it exposes nothing", answer("expose", LOADERS | {"E": ({"w": (4,)}, {"v": (5,)})}))
wrong("15.2", "C forgotten", "there is no entry for C", answer("expose", {k: v for k, v in LOADERS.items() if k != "C"}))
wrong("15.2", "model and file exchanged in A", "A's model has more than the file: expected and found are exchanged", answer("expose", LOADERS | {"A": ({"w": (2,), "b": (3,)}, {"w": (2,)})}))
right("15.2", "E by another order", """
def expose():
    model = {"norm": (8,), "proj": (8, 4)}
    file = {"proj": (8, 4), "norm": (8,)}
    return {
        "A": (dict(model), {**model, "post": (8,)}),
        "B": (dict(model), {"norm": (8,)}),
        "C": (model, model | {"proj": (8, 5)}),
        "D": (model, model | {"proj": (32,)}),
        "E": (model, file),
    }
""")

# 15.3
CAPPED = """
def capped_attention(query, key, value, allowed, scale, cap=None):
    scores = query @ key.transpose(2, 3) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return weights @ value
"""
def capped(title, truth, *pairs):
    text = CAPPED
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("15.3", title, truth, text)
capped("masked before the cap", "the mask comes before the cap, which bends the hidden scores back to -cap", ("    if cap is not None:\n        scores = cap * torch.tanh(scores / cap)\n    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)\n", "    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)\n    if cap is not None:\n        scores = cap * torch.tanh(scores / cap)\n"))
capped("tanh of the score", "the score is not divided by cap inside tanh", ("torch.tanh(scores / cap)", "torch.tanh(scores)"))
capped("not times cap", "tanh is not multiplied by cap", ("cap * torch.tanh(scores / cap)", "torch.tanh(scores / cap)"))
capped("clamped", "the scores are clamped instead of bent by tanh", ("cap * torch.tanh(scores / cap)", "scores.clamp(-cap, cap)"))
capped("no scale", "scale is not used", (" * scale", ""))
capped("divided by scale", "divides by scale instead of multiplying", (" * scale", " / scale"))
capped("root of d", "divides by the root of d instead of using scale", (" * scale", " / query.shape[-1] ** 0.5"))
capped("scale after the cap", "the scale comes after the cap", (" * scale", ""), ("    scores = scores.masked_fill", "    scores = scores * scale\n    scores = scores.masked_fill"))
capped("mask inverted", "hides what is allowed and shows what is not", ("~allowed", "allowed"))
capped("softmax over queries", "the softmax is over the queries, not over the keys", ("softmax(dim=-1,", "softmax(dim=-2,"))
capped("no cap", "the cap is not used", ("    if cap is not None:\n        scores = cap * torch.tanh(scores / cap)\n", ""))
capped("cap of 50 always", "the cap is always 50", ("cap * torch.tanh(scores / cap)", "50.0 * torch.tanh(scores / 50.0)"))
capped("None fails", "cap=None is not allowed for", ("    if cap is not None:\n        scores = cap * torch.tanh(scores / cap)\n", "    scores = cap * torch.tanh(scores / cap)\n"))
capped("mask by 0", "hidden scores become 0, which the softmax does not make 0", ("torch.finfo(scores.dtype).min", "0.0"))
capped("mask not low enough", "hidden scores become -10: their weight is not exactly 0", ("torch.finfo(scores.dtype).min", "-10.0"))
capped("zeroed after the softmax", "hidden weights are set to 0 after the softmax, so rows do not sum to 1", ("    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)\n", ""), ("    return weights", "    weights = weights.masked_fill(~allowed, 0.0)\n    return weights"))
capped("cap after the softmax", "the weights are bent, not the scores", ("    if cap is not None:\n        scores = cap * torch.tanh(scores / cap)\n", ""), ("    return weights", "    if cap is not None:\n        weights = cap * torch.tanh(weights / cap)\n    return weights"))
capped("result in float32", "the result is float32, not the query's dtype", (".to(query.dtype)\n    return weights @ value", "\n    return weights @ value.float()"))
capped("-1e9 in half precision", "-1e9 does not fit into float16", ("torch.finfo(scores.dtype).min", "-1e9"))
right("15.3", "loop over heads, -inf, own softmax", """
def capped_attention(query, key, value, allowed, scale, cap=None):
    heads = []
    for h in range(query.shape[1]):
        s = torch.einsum("bld,btd->blt", query[:, h].float(), key[:, h].float()) * scale
        s = s if cap is None else (s / cap).tanh() * cap
        s = torch.where(allowed[:, 0], s, -torch.inf)
        e = (s - s.amax(dim=-1, keepdim=True)).exp()
        heads.append(torch.bmm(e / e.sum(-1, keepdim=True), value[:, h].float()))
    return torch.stack(heads, dim=1).to(query.dtype)
""")
right("15.3", "scaled query, additive mask", """
def capped_attention(query, key, value, allowed, scale, cap=None):
    scores = torch.matmul(query * scale, key.mT).float()
    if cap:
        scores = torch.tanh(scores / cap) * cap
    scores = scores + torch.zeros(allowed.shape).masked_fill(allowed.logical_not(), float("-inf"))
    return torch.matmul(torch.softmax(scores, -1).type_as(query), value)
""")

# 15.4
MEND = """
class Mended(nn.Module):
    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.self_attn = Gemma2Attention(config, layer_idx)
        self.mlp = GemmaMLP(config)
        self.input_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.pre_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), position_embeddings, attention_mask)
        hidden_states = hidden_states + self.post_attention_layernorm(attended)
        x = self.pre_feedforward_layernorm(hidden_states)
        return hidden_states + self.post_feedforward_layernorm(self.mlp(x))
"""
def mend(title, truth, *pairs):
    text = MEND
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("15.4", title, truth, text)
mend("norm of the sum", "post_attention_layernorm is taken of the sum, not of what attention gives", ("hidden_states + self.post_attention_layernorm(attended)", "self.post_attention_layernorm(hidden_states + attended)"))
mend("stream overwritten", "the norm before the MLP overwrites the stream, so it is the residual of the second sum", ("        x = self.pre_feedforward_layernorm(hidden_states)", "        x = hidden_states = self.pre_feedforward_layernorm(hidden_states)"))
mend("feedforward norms exchanged", "pre_feedforward_layernorm stands after the MLP and post_feedforward_layernorm before it", ("self.pre_feedforward_layernorm(hidden_states)", "self.POST(hidden_states)"), ("self.post_feedforward_layernorm(self.mlp", "self.pre_feedforward_layernorm(self.mlp"), ("self.POST", "self.post_feedforward_layernorm"))
mend("no norm after attention", "what attention gives is added without post_attention_layernorm", ("self.post_attention_layernorm(attended)", "attended"))
mend("no norm after the MLP", "what the MLP gives is added without post_feedforward_layernorm", ("self.post_feedforward_layernorm(self.mlp(x))", "self.mlp(x)"))
mend("no norm before the MLP", "the MLP reads the stream without pre_feedforward_layernorm", ("x = self.pre_feedforward_layernorm(hidden_states)", "x = hidden_states"))
mend("second norm of the sum", "post_feedforward_layernorm is taken of the sum", ("hidden_states + self.post_feedforward_layernorm(self.mlp(x))", "self.post_feedforward_layernorm(hidden_states + self.mlp(x))"))
mend("as in Gemma 1", "post_attention_layernorm stands before the MLP, as in Gemma 1, and nothing after attention", ("self.post_attention_layernorm(attended)", "attended"), ("self.pre_feedforward_layernorm(hidden_states)", "self.post_attention_layernorm(hidden_states)"))
mend("attention reads the raw stream", "input_layernorm is not used", ("self.self_attn(self.input_layernorm(hidden_states)", "self.self_attn(hidden_states"))
mend("mask not passed on", "attention_mask is not passed on", ("position_embeddings, attention_mask)\n        hidden", "position_embeddings)\n        hidden"))
mend("second sum from the input", "the second sum starts from the layer's input: attention's part is lost", ("        attended, _", "        start = hidden_states\n        attended, _"), ("return hidden_states + self.post", "return start + self.post"))
right("15.4", "a helper for both halves", """
class Mended(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            self.add_module(norm + "_layernorm", GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps))
        self.mlp, self.self_attn = GemmaMLP(config), Gemma2Attention(config, layer_idx)

    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        attend = lambda x: self.self_attn(x, position_embeddings, attention_mask)[0]
        stream = hidden_states
        for before, part, after in [
            (self.input_layernorm, attend, self.post_attention_layernorm),
            (self.pre_feedforward_layernorm, self.mlp, self.post_feedforward_layernorm),
        ]:
            stream = stream + after(part(before(stream)))
        return stream
""")

# 15.5
WINDOW = """
def window_mask(is_answer, window):
    L = is_answer.shape[1]
    place = torch.arange(L)
    back = place[:, None] - place
    band = (back >= 0) & (back < window) & is_answer[:, :, None]
    block = ~is_answer[:, :, None] & ~is_answer[:, None, :]
    return band | block
"""
def win(title, truth, *pairs):
    text = WINDOW
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("15.5", title, truth, text)
win("one too many", "the window holds window + 1 tokens: itself is not counted", ("back < window", "back <= window"))
win("one too few", "the window holds window - 1 tokens", ("back < window", "back < window - 1"))
win("window in the prompt", "the prompt has a window too, but all of it sees each other", ("block = ~is_answer[:, :, None] & ~is_answer[:, None, :]", "block = ~is_answer[:, :, None] & ~is_answer[:, None, :] & (back.abs() < window)"))
win("prompt always seen", "the answer sees picture and prompt however far back", ("block = ~is_answer[:, :, None] & ~is_answer[:, None, :]", "block = (~is_answer[:, None, :]).expand(-1, L, -1)"))
win("sees the future", "a token of the answer sees those after it", ("(back >= 0) & (back < window)", "(back.abs() < window)"))
win("no window", "the window is not used", (" & (back < window)", ""))
win("prompt sees the answer", "picture and prompt see the answer", ("block = ~is_answer[:, :, None] & ~is_answer[:, None, :]", "block = (~is_answer[:, :, None]).expand(-1, -1, L)"))
win("rows and columns exchanged", "rows and columns are exchanged", ("    return band | block", "    return (band | block).transpose(1, 2)"))
win("causal prompt", "the prompt is causal: it does not see what comes after", ("block = ~is_answer[:, :, None] & ~is_answer[:, None, :]", "block = ~is_answer[:, :, None] & ~is_answer[:, None, :] & (back >= 0)"))
win("inverted", "True where a token must not be seen", ("    return band | block", "    return ~(band | block)"))
win("numbers instead of bool", "returns 0 and -inf instead of bool", ("    return band | block", "    return torch.zeros(is_answer.shape[0], L, L).masked_fill(~(band | block), -torch.inf)"))
win("block missing", "the prompt sees nothing", ("    return band | block", "    return band"))
win("first row for all", "the first row's answer is used for every row of the batch", ("    L = is_answer.shape[1]\n", "    L = is_answer.shape[1]\n    is_answer = is_answer[:1].expand_as(is_answer)\n"))
win("prompt not counted in the window", "the window counts tokens of the answer only; the prompt is hidden from it", ("& is_answer[:, :, None]\n", "& is_answer[:, :, None] & is_answer[:, None, :]\n"))
right("15.5", "three loops", """
def window_mask(is_answer, window):
    B, L = is_answer.shape
    seen = torch.zeros(B, L, L, dtype=torch.bool)
    for b in range(B):
        n = int((~is_answer[b]).sum())
        seen[b, :n, :n] = True
        for i in range(n, L):
            seen[b, i, max(0, i - window + 1) : i + 1] = True
    return seen
""")
right("15.5", "tril and triu", """
def window_mask(is_answer, window):
    L = is_answer.size(1)
    band = torch.ones(L, L, dtype=torch.bool).tril().triu(1 - window)
    prompt = is_answer.logical_not()
    return torch.where(is_answer.unsqueeze(2), band.unsqueeze(0), prompt.unsqueeze(2) & prompt.unsqueeze(1))
""")

# 15.6
LOAD = """
def load(folder):
    config = PaliGemmaConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(config)
    weights = {}
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():
            if not name.endswith("lm_head.weight"):
                weights[to_published(name)] = file.get_tensor(name)
    model.load_state_dict(weights, assign=True)
    return model.eval()
"""
def loads(title, truth, *pairs):
    text = LOAD
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("15.6", title, truth, text)
loads("not strict", "strict=False: missing and unexpected tensors pass", ("assign=True", "assign=True, strict=False"))
loads("not assigned", "without assign the tensors are copied into a model on meta: nothing arrives", (", assign=True", ""))
loads("training mode", "the model is in training mode", ("return model.eval()", "return model"))
loads("names as they are", "names are not brought to the published layout", ("weights[to_published(name)]", "weights[name]"))
loads("head not skipped", "the head is not skipped: it is unexpected", ('            if not name.endswith("lm_head.weight"):\n                weights', "            weights"))
loads("float32", "the weights are made float32 instead of staying in the file's dtype", ("file.get_tensor(name)", "file.get_tensor(name).float()"))
loads("model float at the end", "the whole model is made float32 at the end", ("model.eval()", "model.float().eval()"))
loads("built with memory", "the model is built with memory, not on the meta device", ('    with torch.device("meta"):\n        model = PaliGemmaForConditionalGeneration(config)', "    model = PaliGemmaForConditionalGeneration(config)"))
loads("copied into float32", "the model is built with memory and the weights are copied into it", ('    with torch.device("meta"):\n        model = PaliGemmaForConditionalGeneration(config)', "    model = PaliGemmaForConditionalGeneration(config)"), (", assign=True", ""))
loads("unexpected ones skipped", "tensors that the model does not have are skipped silently", ("    model.load_state_dict(weights, assign=True)", "    weights = {name: tensor for name, tensor in weights.items() if name in model.state_dict()}\n    model.load_state_dict(weights, assign=True)"))
loads("copied by clone", "the tensors are cloned: each is copied", ("file.get_tensor(name)", "file.get_tensor(name).clone()"))
loads("missing ones filled", "missing tensors are filled with zeros silently", ("    model.load_state_dict(weights, assign=True)", "    for name, tensor in model.state_dict().items():\n        if name not in weights:\n            weights[name] = torch.zeros(tensor.shape)\n    model.load_state_dict(weights, assign=True)"))
loads("to_empty", "to_empty gives the model memory of its own, and the weights are copied", (", assign=True", ""), ("    weights = {}", "    model = model.to_empty(device=\"cpu\")\n    weights = {}"))
right("15.6", "load_file", """
def load(folder):
    from safetensors.torch import load_file

    with open(folder / "config.json", encoding="utf-8") as file:
        config = PaliGemmaConfig.from_dict(json.load(file))
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(config)
    tensors = load_file(str(folder / "model.safetensors"))
    tensors = {to_published(name): tensor for name, tensor in tensors.items() if "lm_head" not in name}
    model.load_state_dict(tensors, strict=True, assign=True)
    model.train(False)
    return model
""")
right("15.6", "parameters set one by one", """
def load(folder):
    config = PaliGemmaConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(config)
    waiting = dict(model.named_parameters())
    with safe_open(str(folder / "model.safetensors"), framework="pt", device="cpu") as file:
        for raw in file.keys():
            if raw.split(".")[-2:] == ["lm_head", "weight"]:
                continue
            name, tensor = to_published(raw), file.get_tensor(raw)
            if name not in waiting:
                raise ValueError(f"{name} is not a tensor of the model")
            if waiting.pop(name).shape != tensor.shape:
                raise ValueError(f"{name} has another shape")
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, nn.Parameter(tensor))
    if waiting:
        raise ValueError(f"missing: {sorted(waiting)}")
    return model.eval()
""")

# 16.1
FLOPS = """
def prefill_flops(config, L):
    D, F_, d = config.hidden_size, config.intermediate_size, config.head_dim
    H, H_kv = config.num_attention_heads, config.num_key_value_heads
    matrices = D * H * d + 2 * D * H_kv * d + H * d * D + 3 * D * F_
    attention = 2 * 2 * H * d * L * L
    head = 2 * config.vocab_size * D
    return config.num_hidden_layers * (2 * L * matrices + attention) + head
"""
def flops(title, truth, *pairs):
    text = FLOPS
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("16.1", title, truth, text)
flops("2 forgotten in the matrices", "a weight is one multiplication and one addition: the 2 is missing for the matrices", ("2 * L * matrices", "L * matrices"))
flops("mix forgotten", "only the scores are counted, not the mix of the values", ("attention = 2 * 2 *", "attention = 2 *"))
flops("shared heads in the scores", "scores are counted for the key/value heads only", ("attention = 2 * 2 * H *", "attention = 2 * 2 * H_kv *"))
flops("key heads like query heads", "keys and values are counted with H heads instead of H_kv", ("2 * D * H_kv * d", "2 * D * H * d"))
flops("causal half", "only half of the scores are counted, as with a causal mask", ("attention = 2 * 2 * H * d * L * L", "attention = 2 * H * d * L * (L + 1)"))
flops("head for all tokens", "the head is counted for all tokens, not only the last", ("head = 2 * config", "head = 2 * L * config"))
flops("head forgotten", "the head is missing", (" + head\n", "\n"))
flops("head in each layer", "the head is counted in each layer", ("(2 * L * matrices + attention) + head", "(2 * L * matrices + attention + head)"))
flops("two matrices in the MLP", "the MLP has three matrices, not two", ("3 * D * F_", "2 * D * F_"))
flops("output matrix forgotten", "o_proj is missing", (" + H * d * D", ""))
flops("D by D", "q_proj and o_proj are counted as D by D, but H * d need not be D", ("D * H * d + 2", "D * D + 2"), ("H * d * D", "D * D"))
flops("one token", "the matrices are counted for one token only", ("2 * L * matrices", "2 * matrices"))
flops("attention not squared", "attention is counted with L instead of L squared", ("* d * L * L", "* d * L"))
flops("one layer", "only one layer is counted", ("config.num_hidden_layers * (2", "(2"))
right("16.1", "a list of shapes", """
def prefill_flops(config, L):
    inner = config.num_attention_heads * config.head_dim
    shared = config.num_key_value_heads * config.head_dim
    shapes = [(inner, config.hidden_size), (shared, config.hidden_size), (shared, config.hidden_size), (config.hidden_size, inner)]
    shapes += [(config.intermediate_size, config.hidden_size)] * 2 + [(config.hidden_size, config.intermediate_size)]
    total = 0
    for _ in range(config.num_hidden_layers):
        for rows, columns in shapes:
            total += 2 * rows * columns * L
        for _ in range(config.num_attention_heads):
            total += 2 * L * L * config.head_dim
            total += 2 * L * config.head_dim * L
    return total + 2 * config.hidden_size * config.vocab_size
""")

# 16.2
BYTES = """
def step_bytes(parameters, bits, config, rows, length, cache_bits=16):
    weights = parameters * bits / 8
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return weights + rows * length * per_token * cache_bits / 8
"""
def byte(title, truth, *pairs):
    text = BYTES
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("16.2", title, truth, text)
byte("query heads", "the cache is counted with all query heads", ("config.num_key_value_heads", "config.num_attention_heads"))
byte("values forgotten", "only keys are counted, not the values", ("per_token = 2 * ", "per_token = "))
byte("weights for each row", "the weights are counted once for each row", ("weights = parameters", "weights = rows * parameters"))
byte("cache of one row", "the cache is counted for one row only", ("rows * length", "length"))
byte("cache bits ignored", "the cache is counted with the weights' bits", ("per_token * cache_bits", "per_token * bits"))
byte("cache always 16 bits", "the cache is always counted with 16 bits", ("per_token * cache_bits", "per_token * 16"))
byte("bits not bytes", "returns bits, not bytes", (" / 8", ""))
byte("layers forgotten", "the layers are missing in the cache", ("config.num_hidden_layers * ", ""))
byte("whole bytes for weights", "bits // 8 is 0 for 4 bits", ("bits / 8\n    per", "(bits // 8)\n    per"))
byte("hidden size", "the cache is counted with the hidden size instead of key/value heads times head size", ("config.num_key_value_heads * config.head_dim", "config.hidden_size"))
byte("one place", "the cache of one token only: length is missing", ("rows * length *", "rows *"))
byte("cache forgotten", "the cache is not counted", (" + rows * length * per_token * cache_bits / 8", ""))
right("16.2", "in bits first", """
def step_bytes(parameters, bits, config, rows, length, cache_bits=16):
    total_bits = parameters * bits
    for kept in ("key", "value"):
        total_bits += config.num_hidden_layers * rows * length * config.num_key_value_heads * config.head_dim * cache_bits
    return total_bits / 8.0
""")

# 16.3
ROOF = """
def tokens_per_second(rows, flops, read, compute, bandwidth):
    arithmetic, fetching = flops / compute, read / bandwidth
    return rows / max(arithmetic, fetching), "memory" if fetching > arithmetic else "compute"
"""
def roof(title, truth, *pairs):
    text = ROOF
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("16.3", title, truth, text)
roof("one after the other", "adds the two times, but both go on at once", ("max(arithmetic, fetching)", "(arithmetic + fetching)"))
roof("shorter time", "takes the shorter of the two times", ("max(", "min("))
roof("rows forgotten", "counts one token a step instead of one for each row", ("rows / max", "1 / max"))
roof("names exchanged", "memory and compute are exchanged", ('"memory" if fetching > arithmetic else "compute"', '"compute" if fetching > arithmetic else "memory"'))
roof("seconds a token", "returns seconds for a token, not tokens a second", ("rows / max(arithmetic, fetching)", "max(arithmetic, fetching) / rows"))
roof("rows counted twice", "multiplies FLOPs and bytes by rows, though they are for the whole batch", ("flops / compute, read / bandwidth", "rows * flops / compute, rows * read / bandwidth"))
roof("bandwidth and compute exchanged", "divides FLOPs by the bandwidth and bytes by the compute", ("flops / compute, read / bandwidth", "flops / bandwidth, read / compute"))
roof("always memory", "the name is always memory", ('"memory" if fetching > arithmetic else "compute"', '"memory"'))
roof("compares the counts", "compares FLOPs with bytes instead of the times", ('"memory" if fetching > arithmetic', '"memory" if read > flops'))
roof("other word", "the name is 'bandwidth' instead of 'memory'", ('"memory"', '"bandwidth"'))
roof("whole number", "the rate is cut to a whole number", ("rows / max(arithmetic, fetching)", "int(rows / max(arithmetic, fetching))"))
roof("steps a second as name first", "returns the name first", ('return rows / max(arithmetic, fetching), "memory" if fetching > arithmetic else "compute"', 'return ("memory" if fetching > arithmetic else "compute"), rows / max(arithmetic, fetching)'))
right("16.3", "by the roof", """
def tokens_per_second(rows, flops, read, compute, bandwidth):
    intensity = flops / read
    reachable = min(compute, bandwidth * intensity)
    name = "compute" if bandwidth * intensity >= compute else "memory"
    return reachable / flops * rows, name
""")

# 16.4
WATCH = """
def seconds_of(work, make_input, wait, clock, rounds):
    work(make_input())
    wait()
    seconds = []
    for _ in range(rounds):
        x = make_input()
        wait()
        start = clock()
        work(x)
        wait()
        seconds.append(clock() - start)
    return statistics.median(seconds)
"""
def watch(title, truth, *pairs):
    text = WATCH
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("16.4", title, truth, text)
watch("input in the time", "making the input is inside the time", ("        x = make_input()\n        wait()\n        start = clock()\n", "        start = clock()\n        x = make_input()\n"))
watch("does not wait", "the clock stops when the work is only asked for, not done", ("        work(x)\n        wait()\n", "        work(x)\n"))
watch("no warm-up", "the very first call is counted: there is no warm-up", ("    work(make_input())\n    wait()\n", ""))
watch("mean", "the mean is moved by outliers; the median is not", ("statistics.median", "statistics.mean"))
watch("minimum", "the smallest time is not the usual case", ("statistics.median", "min"))
watch("warm-up not waited for", "the warm-up is not waited for: its rest is in the first round", ("    work(make_input())\n    wait()\n", "    work(make_input())\n"), ("        wait()\n        start", "        start"))
watch("waits after the clock", "waits only after the clock was read", ("        work(x)\n        wait()\n        seconds.append(clock() - start)", "        work(x)\n        seconds.append(clock() - start)\n        wait()"))
watch("one round too few", "the warm-up is one of the rounds: only rounds - 1 calls count", ("range(rounds)", "range(rounds - 1)"))
watch("total time", "returns the time of all rounds together", ("statistics.median(seconds)", "sum(seconds)"))
watch("maximum", "the largest time is the outlier", ("statistics.median", "max"))
watch("waits once at the end", "one clock for all rounds: returns a mean, which outliers move", ("    seconds = []\n    for _ in range(rounds):\n        x = make_input()\n        wait()\n        start = clock()\n        work(x)\n        wait()\n        seconds.append(clock() - start)\n    return statistics.median(seconds)", "    inputs = [make_input() for _ in range(rounds)]\n    start = clock()\n    for x in inputs:\n        work(x)\n    wait()\n    return (clock() - start) / rounds"))
watch("middle not sorted", "takes the middle round without sorting the times", ("statistics.median(seconds)", "seconds[rounds // 2]"))
right("16.4", "first measurement thrown away, sorted", """
def seconds_of(work, make_input, wait, clock, rounds):
    times = []
    for i in range(rounds + 1):
        x = make_input()
        wait()
        before = clock()
        work(x)
        wait()
        after = clock()
        if i > 0:
            times.append(after - before)
    return sorted(times)[rounds // 2]
""")
right("16.4", "inputs made beforehand, torch.median", """
def seconds_of(work, make_input, wait, clock, rounds):
    first, *inputs = [make_input() for _ in range(rounds + 1)]
    work(first)
    wait()
    times = torch.zeros(rounds, dtype=torch.float64)
    for i, x in enumerate(inputs):
        start = clock()
        work(x)
        wait()
        times[i] = clock() - start
    return times.median().item()
""")

# 16.5
EIGHT = """
def quantize_rows(weight):
    weight = weight.float()
    scale = weight.abs().amax(dim=1) / 127
    numbers = (weight / scale.clamp(min=1e-30)[:, None]).round().to(torch.int8)
    return numbers, scale
"""
def eight(title, truth, *pairs):
    text = EIGHT
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("16.5", title, truth, text)
eight("size forgotten", "the largest number is taken, not the largest size: negative ones overflow", ("weight.abs().amax(dim=1)", "weight.amax(dim=1)"))
eight("one scale for each column", "the largest is taken over the rows: one scale for each column", ("amax(dim=1) / 127", "amax(dim=0) / 127"), ("[:, None]", ""))
eight("one scale for all", "one scale for the whole matrix", ("weight.abs().amax(dim=1)", "weight.abs().max().expand(len(weight)).clone()"))
eight("cut off", "fractions are cut off, not rounded", (".round()", ""))
eight("128", "the scale is for 128, so the largest weight overflows int8", ("/ 127", "/ 128"))
eight("255 steps", "divides by 255 instead of 127", ("/ 127", "/ 255"))
eight("rows of zeros", "0 / 0 is NaN in a row of zeros", (".clamp(min=1e-30)", ""))
eight("zeros get scale 1", "a row of zeros gets the scale 1 instead of 0", ("    numbers =", "    scale = torch.where(scale == 0, 1.0, scale)\n    numbers ="))
eight("clamped scale returned", "a row of zeros gets a scale of 1e-8 instead of 0, and small rows are wrong", ("amax(dim=1) / 127", "amax(dim=1).clamp(min=1e-3) / 127"))
eight("inverse scale", "returns what to divide by, not what to multiply by", ("    return numbers, scale", "    return numbers, torch.where(scale > 0, 1 / scale, 0.0)"))
eight("scale with an axis more", "the scale is [rows, 1] instead of [rows]", ("    return numbers, scale", "    return numbers, scale[:, None]"))
eight("computed in bfloat16", "computes in bfloat16 instead of float32", ("    weight = weight.float()\n", ""), ("return numbers, scale", "return numbers, scale.float()"))
eight("scale in bfloat16", "the scale is in the weight's dtype, not float32", ("    weight = weight.float()\n", "    dtype = weight.dtype\n    weight = weight.float()\n"), ("return numbers, scale", "return numbers, scale.to(dtype)"))
eight("largest as scale", "the scale is the largest size, not divided by 127", ("return numbers, scale", "return numbers, scale * 127"))
eight("floor", "rounds down instead of to the nearest", (".round()", ".floor()"))
eight("float numbers", "the numbers are not int8", (".to(torch.int8)", ""))
eight("order of results", "scale and numbers are returned in the wrong order", ("return numbers, scale", "return scale, numbers"))
eight("int32", "the numbers are int32 instead of int8", ("torch.int8", "torch.int32"))
eight("shifted range", "numbers from 0 to 254 are shifted by 127: the scale alone does not give the weight back", (".round().to(torch.int8)", ".round().add(127).clamp(0, 127).to(torch.int8)"))
right("16.5", "row by row, numpy", """
def quantize_rows(weight):
    import numpy as np
    w = weight.detach().to(torch.float32).numpy()
    numbers, scale = np.zeros(w.shape, np.int8), np.zeros(len(w), np.float32)
    for r, row in enumerate(w):
        largest = np.abs(row).max()
        if largest > 0:
            scale[r] = largest / np.float32(127)
            numbers[r] = np.rint(row / scale[r])
    return torch.from_numpy(numbers), torch.from_numpy(scale)
""")

# 16.6
LINEAR = """
class EightBitLinear(nn.Module):
    def __init__(self, numbers, scale, bias=None):
        super().__init__()
        self.register_buffer("numbers", numbers)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x):
        out = F.linear(x.float(), self.numbers.float()) * self.scale
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype)
"""
def linear(title, truth, *pairs):
    text = LINEAR
    for old, new in pairs:
        assert old in text, (title, old)
        text = text.replace(old, new)
    wrong("16.6", title, truth, text)
linear("wide copy kept", "keeps a wide float copy of the matrix instead of the 8-bit one", ('self.register_buffer("numbers", numbers)', 'self.register_buffer("numbers", numbers.float())'))
linear("wide weight beside", "keeps a wide copy beside the 8-bit matrix", ('self.register_buffer("scale", scale)', 'self.register_buffer("scale", scale)\n        self.register_buffer("weight", numbers.float() * scale[:, None])'), ("F.linear(x.float(), self.numbers.float()) * self.scale", "F.linear(x.float(), self.weight)"))
linear("bias forgotten", "the bias is not added", ("            out = out + self.bias", "            pass"))
linear("bias scaled", "the bias is multiplied by the scale", ("        out = F.linear(x.float(), self.numbers.float()) * self.scale\n        if self.bias is not None:\n            out = out + self.bias\n", "        out = F.linear(x.float(), self.numbers.float())\n        if self.bias is not None:\n            out = out + self.bias\n        out = out * self.scale\n"))
linear("scale forgotten", "the scale is not used", (" * self.scale", ""))
linear("divided by the scale", "divides by the scale", (" * self.scale", " / self.scale"))
linear("result float32", "the result is float32, not the dtype of x", ("return out.to(x.dtype)", "return out"))
linear("plain attributes", "the tensors are plain attributes, not buffers: they are not saved with the module", ('self.register_buffer("numbers", numbers)', "self.numbers = numbers"), ('self.register_buffer("scale", scale)', "self.scale = scale"), ('self.register_buffer("bias", bias)', "self.bias = bias"))
linear("scale a plain attribute", "the scale is a plain attribute, not a buffer", ('self.register_buffer("scale", scale)', "self.scale = scale"))
linear("parameters", "scale is a parameter instead of a buffer", ('self.register_buffer("scale", scale)', "self.scale = nn.Parameter(scale)"))
linear("not persistent", "the buffers are not persistent, so they are not saved", ('"numbers", numbers)', '"numbers", numbers, persistent=False)'), ('"scale", scale)', '"scale", scale, persistent=False)'))
linear("bias always", "fails without a bias", ("        if self.bias is not None:\n            out = out + self.bias\n", "        out = out + self.bias\n"))
linear("x rounded to int8", "x is cut to int8 to multiply whole numbers", ("F.linear(x.float(), self.numbers.float())", "F.linear(x.to(torch.int8).float(), self.numbers.float())"))
linear("transposed", "multiplies with the matrix the wrong way round", ("F.linear(x.float(), self.numbers.float()) * self.scale", "F.linear(x.float(), self.numbers.float().T)"))
linear("int8 with float", "multiplies an int8 matrix with a float one, which torch refuses", ("F.linear(x.float(), self.numbers.float())", "x @ self.numbers.T"))
linear("scale over the columns", "the scale is multiplied along the columns: it belongs to rows", ("F.linear(x.float(), self.numbers.float()) * self.scale", "F.linear(x.float(), self.numbers.float() * self.scale.mean())"))
linear("two axes only", "works for x with two axes only", ("F.linear(x.float(), self.numbers.float()) * self.scale", "torch.einsum('nk,rk->nr', x.float(), self.numbers.float()) * self.scale"))
linear("bias dtype", "adds the float32 bias last, so the result is float32 for bfloat16", ("        if self.bias is not None:\n            out = out + self.bias\n        return out.to(x.dtype)", "        out = out.to(x.dtype)\n        return out if self.bias is None else out + self.bias"))
right("16.6", "wide weight in forward, other names", """
class EightBitLinear(nn.Module):
    def __init__(self, numbers, scale, bias=None):
        super().__init__()
        for name, tensor in {"q": numbers, "s": scale, "b": bias}.items():
            self.register_buffer(name, tensor)

    def forward(self, x):
        wide = self.q.to(torch.float32).mul(self.s.unsqueeze(1))
        y = torch.einsum("...k,rk->...r", x.to(torch.float32), wide)
        return (y if self.b is None else y + self.b).type_as(x)
""")

# 16.7
POINTS = {"A": "one row, 16 bits", "B": "one row, 8 bits", "C": "64 rows, 16 bits", "D": "64 rows, one thread of eight", "E": "prompt of 272 tokens"}
wrong("16.7", "bits exchanged", "A is 16 bits and B 8 bits", answer("names", exchange(POINTS, "A", "B")))
wrong("16.7", "threads exchanged", "C is all threads, D is one thread of eight", answer("names", exchange(POINTS, "C", "D")))
wrong("16.7", "rows and prompt exchanged", "C is 64 rows, E is the prompt", answer("names", exchange(POINTS, "C", "E")))
wrong("16.7", "one forgotten", "there is no answer for E", answer("names", {k: v for k, v in POINTS.items() if k != "E"}))

# Where the message says what is so in other words than the sentence above: these it must hold.
TOLD = {
    ("09.1", "only the rows of its own zeroed"): "rows of `down_proj` besides `out` still hold weights",
    ("09.1", "row out zeroed alone"): "a part of the old weights is left beside yours",
    ("09.3", "second residual normalised"): "added to its normalised input",
    ("09.4", "root cut to a whole number"): "cut off to a whole number",
    ("10.1", "in place"): "writes into the caller's data",
    ("10.1", "mask inverted"): "mask is upside down",
    ("10.2", "one line forgotten"): "lines are .*'D'], expected .*'E']",
    ("10.4", "last row of the batch"): "logits of one row of the batch",
    ("10.4", "first row of the batch"): "logits of one row of the batch",
    ("10.4", "types inverted"): "types are read the other way round",
    ("11.1", "divides in place"): "writes into the caller's data",
    ("11.2", "writes into p"): "writes into the caller's data",
    ("11.3", "only the new ones returned"): "the new tokens alone",
    ("11.4", "steps and rows exchanged"): r"\[4, B=2\], expected \[B=2, 4\]",
    ("11.5", "E forgotten"): "keys are .*'D'], expected .*'E']",
    ("11.5", "no batch axis"): r"C: p is to be a tensor \[B, V\]",
    ("12.1", "D and E exchanged"): "On your input for D, .*exposes E",
    ("12.1", "one forgotten"): "keys are .*expected .*'B'",
    ("12.2", "transposed"): r"\[m=3, n=2\], expected \[n=2, m=3\]",
    ("12.3", "numbers not checked"): "neither the limit of the locations nor that of the segments",
    ("12.3", "left and right not compared"): "only one of the two directions",
    ("12.4", "cosine"): "most similar direction",
    ("12.4", "size of the codes forgotten"): "a long code then wins",
    ("12.5", "still cut off"): "pixels are cut off below",
    ("12.5", "y first in the result"): "result is y1, x1, y2, x2",
    ("12.5", "not whole numbers"): "pixels are no whole numbers",
    ("12.6", "cut first, then bilinear and above 0"): "cut to 0 and 1 before it is stretched",
    ("13.2", "averages exchanged"): "and the other way round",
    ("13.2", "a python number"): r"\.item\(\)",
    ("13.3", "D forgotten"): "logs are .*'C'], expected .*'D']",
    ("13.3", "a name mistyped"): "is none of the names",
    ("13.4", "nearest"): "neighbours are repeated, not interpolated",
    ("13.5", "batch changed"): "writes into the caller's data",
    ("14.1", "on its side"): "grid is on its side",
    ("14.2", "only once times grid"): "one of the two overlaps",
    ("14.4", "maximum before the mean"): "each head is divided by its own largest value",
    ("14.4", "maximum before the mean and after"): "each head is divided by its own largest value",
    ("14.6", "absolute losses"): "changes without their sign",
    ("14.6", "table on its side"): r"\[4, 3\], expected \[3, 4\]",
    ("15.1", "prefix taken off and text replaced anywhere"): "`model.` is cut off a name that is in none of the four",
    ("15.2", "A and B exchanged"): "On your input for A, .*exposes B",
    ("15.2", "C exposes nothing"): "On your input for C, C gives what the right version gives",
    ("15.2", "D exposes nothing"): "On your input for D, D gives what the right version gives",
    ("15.2", "C forgotten"): "keys are .*expected .*'C'",
    ("15.2", "model and file exchanged in A"): "On your input for A, .*exposes B",
    ("15.3", "-1e9 in half precision"): "a number that this dtype cannot hold",
    ("15.6", "not assigned"): "on the meta device, expected on the cpu.*parameters are still without memory",
    ("16.1", "output matrix forgotten"): "output projection is not in your count",
    ("16.3", "shorter time"): "the faster of the two",
    ("16.4", "minimum"): "the fastest round",
    ("16.4", "total time"): "the times are added up",
    ("16.5", "255 steps"): "becomes 255",
    ("16.7", "one forgotten"): "points are .*'D'], expected .*'E']",
}
