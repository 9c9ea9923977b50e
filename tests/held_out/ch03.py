"""Held-out solutions of chapter 03."""

# ruff: noqa: E501
# fmt: off

from . import change, right, wrong

# --- 03.1 -------------------------------------------------------------------------------------------------------------

right("03.1", "max().values and in place on its own tensor", """
def softmax(x, dim):
    shifted = x - x.max(dim=dim, keepdim=True).values
    shifted.exp_()
    shifted.div_(shifted.sum(dim=dim, keepdim=True))
    return shifted
""")
right("03.1", "row by row", """
def softmax(x, dim):
    moved = x.movedim(dim, -1)
    rows = []
    for row in moved.reshape(-1, moved.shape[-1]):
        e = (row - row.max()).exp()
        rows.append(e / e.sum())
    return torch.stack(rows).reshape(moved.shape).movedim(-1, dim)
""")
right("03.1", "log of the sum, shifted", """
def softmax(x, dim):
    top = x.amax(dim=dim, keepdim=True)
    log_total = top + (x - top).exp().sum(dim, keepdim=True).log()
    return (x - log_total).exp()
""")
S31 = right("03.1", "as most write it", """
def softmax(x, dim):
    e = torch.exp(x - x.amax(dim, keepdim=True))
    return e / e.sum(dim, keepdim=True)
""")
change("03.1", "formula as it stands", S31, (" - x.amax(dim, keepdim=True)", ""), says="the exponential of 500 is larger than any float32,")
change("03.1", "one maximum for all", S31, ("x.amax(dim, keepdim=True)", "x.max()"), says="the largest score of the whole tensor is")
wrong("03.1", "always the last axis", """
def softmax(x, dim):
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)
""", says="the axis is fixed to the last one: `dim` says which")
change("03.1", "sum over everything", S31, ("e.sum(dim, keepdim=True)", "e.sum()"), says="all weights of the tensor sum to 1, and not those")
change("03.1", "sum over the last axis", S31, ("e.sum(dim, keepdim=True)", "e.sum(-1, keepdim=True)"), says="one of the two, the largest score and the sum, is")
change("03.1", "mean subtracted", S31, ("x.amax(dim, keepdim=True)", "x.mean(dim, keepdim=True)"), says="what you subtract is minus infinity in a masked")
change("03.1", "clamped", S31, ("x - x.amax(dim, keepdim=True)", "x.clamp(max=80)"), says="scores above a limit are cut down to it: two of")
wrong("03.1", "in place on x", """
def softmax(x, dim):
    x -= x.amax(dim, keepdim=True)
    e = x.exp()
    return e / e.sum(dim, keepdim=True)
""", says="an in-place operation (+=, *=, a method ending in")
change("03.1", "eps in the sum", S31, ("return e / e.sum(dim, keepdim=True)", "return e / (e.sum(dim, keepdim=True) + 1e-3)"), says="is each exponential divided by the sum over the")
change("03.1", "log softmax", S31, ("return e / e.sum(dim, keepdim=True)", "return torch.log(e / e.sum(dim, keepdim=True))"), says="your numbers are the logarithms of the weights")
change("03.1", "powers of two", S31, ("torch.exp(", "2 ** ("), says="your powers have the base 2: the formula has e")
change("03.1", "minimum subtracted", S31, ("x.amax(dim, keepdim=True)", "x.amin(dim, keepdim=True)"), says="what you subtract is minus infinity in a masked")
wrong("03.1", "torch.softmax", """
def softmax(x, dim):
    return torch.softmax(x, dim)
""", says="write it yourself: that is what this task is about")
change("03.1", "largest absolute value", S31, ("x.amax(dim, keepdim=True)", "x.abs().amax(dim, keepdim=True)"), says="the largest absolute value is subtracted: where it")
change("03.1", "minus infinity replaced", S31, (""":
    """, """:
    x = torch.where(torch.isinf(x), torch.zeros_like(x), x)
    """), says="minus infinity is not to be replaced: its")
change("03.1", "double comes out", S31, ("torch.exp(x", "torch.exp(x.double()"), says="a cast is missing or too much: the result's dtype")

# --- 03.2 -------------------------------------------------------------------------------------------------------------

right("03.2", "einsum", """
import math
def attention(query, key, value):
    scores = torch.einsum("bhld,bhtd->bhlt", query, key) / math.sqrt(key.size(-1))
    w = scores.softmax(-1)
    return torch.einsum("bhlt,bhtd->bhld", w, value), w
""")
right("03.2", "head by head, quarter powers", """
def attention(q, k, v):
    s = q.shape[-1] ** -0.25
    out, all_weights = torch.empty_like(q), q.new_empty(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            w = ((q[b, h] * s) @ (k[b, h] * s).T).softmax(1)
            all_weights[b, h] = w
            out[b, h] = w @ v[b, h]
    return out, all_weights
""")
right("03.2", "torch's own attention beside the weights", """
from torch.nn import functional as F
def attention(query, key, value):
    out = F.scaled_dot_product_attention(query, key, value)
    weights = F.softmax(torch.matmul(query, key.mT).div(query.size(-1) ** 0.5), dim=3)
    return out, weights
""")
A32 = right("03.2", "as most write it", """
def attention(query, key, value):
    d = query.shape[-1]
    scores = query @ key.transpose(-2, -1) / d**0.5
    weights = torch.softmax(scores, dim=-1)
    return weights @ value, weights
""")
change("03.2", "divided by d", A32, ("d**0.5", "d"), says="the scale is applied twice, or its root is forgotten")
change("03.2", "no scale", A32, (" / d**0.5", ""), says="your numbers are those you get without the scale:")
change("03.2", "multiplied by the root", A32, ("/ d**0.5", "* d**0.5"), says="your scores are multiplied by what they should be")
change("03.2", "softmax over queries", A32, ("dim=-1", "dim=-2"), says="your softmax runs over the queries: then each key")
change("03.2", "softmax over heads", A32, ("dim=-1", "dim=1"), says="your softmax runs over the heads")
change("03.2", "root of the number of keys", A32, ("d = query.shape[-1]", "d = key.shape[-2]"), says="the scale comes from the number of keys: the sum")
change("03.2", "root of the model's width", A32, ("d = query.shape[-1]", "d = query.shape[1] * query.shape[-1]"), says="the scale comes from the width of all heads together")
change("03.2", "d = 64", A32, ("d = query.shape[-1]", "d = 64"), says="by what are the scores divided? By the square root")
change("03.2", "reshape for transpose", A32, ("key.transpose(-2, -1)", "key.reshape(key.shape[0], key.shape[1], key.shape[3], key.shape[2])"), says="the keys are brought to [B, H, d, T] by `reshape`,")
change("03.2", "pair the other way round", A32, ("return weights @ value, weights", "return weights, weights @ value"), says="output and weights are returned in the other order")
change("03.2", "output only", A32, ("return weights @ value, weights", "return weights @ value"), says="the result is a Tensor, expected 2 values")
change("03.2", "scores returned", A32, ("return weights @ value, weights", "return weights @ value, scores"), says="the output is right; the second result are the")
change("03.2", "scale after softmax", A32, ("""scores = query @ key.transpose(-2, -1) / d**0.5
    weights = torch.softmax(scores, dim=-1)""", """scores = query @ key.transpose(-2, -1)
    weights = torch.softmax(scores, dim=-1) / d**0.5"""), says="the weights are scaled and not the scores: they no")
wrong("03.2", "query scaled in place", """
def attention(query, key, value):
    query /= query.shape[-1] ** 0.5
    weights = (query @ key.transpose(-2, -1)).softmax(dim=-1)
    return weights @ value, weights
""", says="an in-place operation (+=, *=, a method ending in")
change("03.2", "tril on scores", A32, ("weights = torch.softmax", """scores = scores.tril()
    weights = torch.softmax"""), says="the scores of later keys are set to 0, and a score")
change("03.2", "causal", A32, ("weights = torch.softmax", """L, T = scores.shape[-2:]
    scores = scores.masked_fill(torch.ones(L, T).triu(1).bool(), -torch.inf)
    weights = torch.softmax"""), says="later keys are hidden: nothing in a picture comes")
change("03.2", "average of keys", A32, ("return weights @ value, weights", "return weights @ key, weights"), says="what you average is the keys, not the values")
change("03.2", "weights averaged over heads", A32, ("return weights @ value, weights", "return weights @ value, weights.mean(1)"), says="the weights are averaged over the heads: each")
wrong("03.2", "relu instead of softmax", """
def attention(query, key, value):
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    weights = scores / scores.sum(-1, keepdim=True)
    return weights @ value, weights
""", says="the scores are divided by their sum: some weights")
change("03.2", "keys from the end", A32, ("query @ key.transpose(-2, -1)", "(key @ query.transpose(-2, -1)).transpose(-2, -1) @ torch.eye(key.shape[-2]).flip(0)"), says="largest difference")

# --- 03.3 -------------------------------------------------------------------------------------------------------------

right("03.3", "chunk and cat", """
def split_heads(x, num_heads):
    return torch.stack(x.chunk(num_heads, dim=-1), dim=1)

def merge_heads(x):
    return torch.cat(list(x.unbind(dim=1)), dim=-1)
""")
right("03.3", "unflatten and movedim", """
def split_heads(x, num_heads):
    return x.unflatten(2, (num_heads, -1)).movedim(2, 1)

def merge_heads(x):
    return x.movedim(1, 2).flatten(-2)
""")
right("03.3", "loops that fill", """
def split_heads(x, num_heads):
    d = x.shape[2] // num_heads
    out = torch.empty(x.shape[0], num_heads, x.shape[1], d, dtype=x.dtype)
    for h in range(num_heads):
        out[:, h] = x[..., h * d : (h + 1) * d]
    return out

def merge_heads(x):
    B, H, N, d = x.shape
    out = x.new_zeros(B, N, H * d)
    for h in range(H):
        out[:, :, h * d : h * d + d] = x[:, h]
    return out
""")
wrong("03.3", "both by view alone", """
def split_heads(x, num_heads):
    B, N, D = x.shape
    return x.view(B, num_heads, N, D // num_heads)


def merge_heads(x):
    B, H, N, d = x.shape
    return x.reshape(B, N, H * d)
""", says="`view` and `reshape` cut the numbers as they lie in")
wrong("03.3", "interleaved", """
def split_heads(x, num_heads):
    B, N, D = x.shape
    return x.reshape(B, N, D // num_heads, num_heads).permute(0, 3, 1, 2)


def merge_heads(x):
    B, H, N, d = x.shape
    return x.permute(0, 2, 3, 1).reshape(B, N, H * d)
""", says="neighbouring features go to different heads; a head")
H33 = right("03.3", "as most write it", """
def split_heads(x, num_heads):
    B, N, D = x.shape
    return x.view(B, N, num_heads, D // num_heads).transpose(1, 2)


def merge_heads(x):
    B, H, N, d = x.shape
    return x.transpose(1, 2).reshape(B, N, H * d)
""")
change("03.3", "merge without transpose", H33, ("x.transpose(1, 2).reshape(B, N, H * d)", "x.reshape(B, N, H * d)"), says="`view` and `reshape` cut the numbers as they lie in")
change("03.3", "merge interleaves", H33, ("x.transpose(1, 2).reshape(B, N, H * d)", "x.permute(0, 2, 3, 1).reshape(B, N, H * d)"), says="merge_heads lays the heads between each other; they")
change("03.3", "merge from the last head", H33, ("""d = x.shape
    return x.transpose(1, 2)""", """d = x.shape
    return x.transpose(1, 2).flip(2)"""), says="the last head comes first: head 0 has the first")
change("03.3", "split not transposed", H33, ("x.view(B, N, num_heads, D // num_heads).transpose(1, 2)", "x.view(B, N, num_heads, D // num_heads)"), says="the heads are split and still come after the tokens")
wrong("03.3", "stack on the wrong axis", """
def split_heads(x, num_heads):
    B, N, D = x.shape
    return x.reshape(B, num_heads, N // num_heads, D).reshape(B, num_heads, N, D // num_heads)


def merge_heads(x):
    B, H, N, d = x.shape
    return x.reshape(B, N, H * d)
""", says="your code raised an error RuntimeError: shape '[2,")
change("03.3", "heads added", H33, ("x.transpose(1, 2).reshape(B, N, H * d)", "x.sum(1)"), says="merge_heads adds the heads up: they are to lie side")
change("03.3", "four heads", H33, ("num_heads, D // num_heads).transpose", "4, D // 4).transpose"), says="the number of heads is fixed: it is an argument")

# --- 03.4 -------------------------------------------------------------------------------------------------------------

right("03.4", "einsum, other names", """
class SiglipAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(config.hidden_size, config.hidden_size))

    def forward(self, x):
        H = self.config.num_attention_heads
        q, k, v = (p(x).unflatten(-1, (H, -1)) for p in (self.q_proj, self.k_proj, self.v_proj))
        w = torch.einsum("bnhd,bmhd->bhnm", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
        o = torch.einsum("bhnm,bmhd->bnhd", w, v)
        return self.out_proj(o.flatten(2)), w
""")
right("03.4", "one fused projection, loop over heads", """
from torch.nn import functional as F
class SiglipAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.h, self.width = config.num_attention_heads, config.hidden_size
        self.k_proj, self.v_proj, self.q_proj = [nn.Linear(self.width, self.width, bias=True) for _ in range(3)]
        self.out_proj = nn.Linear(self.width, self.width)

    def forward(self, hidden_states):
        W = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        b = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        q, k, v = F.linear(hidden_states, W, b).split(self.width, dim=-1)
        outs, maps = [], []
        for qh, kh, vh in zip(q.chunk(self.h, -1), k.chunk(self.h, -1), v.chunk(self.h, -1)):
            a = torch.softmax(qh @ kh.mT / (self.width / self.h) ** 0.5, -1)
            maps.append(a)
            outs.append(a @ vh)
        return self.out_proj(torch.cat(outs, -1)), torch.stack(maps, 1)
""")
A34 = right("03.4", "as most write it", """
class SiglipAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = D // self.num_heads
        self.q_proj = nn.Linear(D, D)
        self.k_proj = nn.Linear(D, D)
        self.v_proj = nn.Linear(D, D)
        self.out_proj = nn.Linear(D, D)

    def forward(self, hidden_states):
        B, N, D = hidden_states.shape
        query = self.q_proj(hidden_states).view(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        key = self.k_proj(hidden_states).view(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        value = self.v_proj(hidden_states).view(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        scores = query @ key.transpose(2, 3) / self.head_dim**0.5
        weights = scores.softmax(dim=-1)
        out = (weights @ value).transpose(1, 2).reshape(B, N, D)
        return self.out_proj(out), weights
""")
change("03.4", "scale forgotten", A34, (" / self.head_dim**0.5", ""), says="your numbers are those you get without the scale")
change("03.4", "scale of the model", A34, ("self.head_dim**0.5", "D**0.5"), says="the scale comes from the whole width: a head's")
change("03.4", "no bias", A34, ("nn.Linear(D, D)", "nn.Linear(D, D, bias=False)"), says="parameter `k_proj.bias` [12] is missing parameter")
change("03.4", "softmax over queries", A34, ("dim=-1", "dim=-2"), says="your softmax runs over the queries: each query's")
change("03.4", "out_proj not applied", A34, ("self.out_proj(out), weights", "out, weights"), says="the heads lie side by side and are never mixed: one")
change("03.4", "merged without transpose", A34, ("(weights @ value).transpose(1, 2).reshape(B, N, D)", "(weights @ value).reshape(B, N, D)"), says="`view` and `reshape` cut the numbers as they lie in")
change("03.4", "split by view", A34, (".view(B, N, self.num_heads, self.head_dim).transpose(1, 2)", ".view(B, self.num_heads, N, self.head_dim)"), says="`view` and `reshape` cut the numbers as they lie in")
change("03.4", "v_proj unused", A34, ("value = self.v_proj", "value = self.k_proj"), says="what you average is the keys, not the values")
wrong("03.4", "out_proj called o_proj", """
class SiglipAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = D // self.num_heads
        self.q_proj = nn.Linear(D, D)
        self.k_proj = nn.Linear(D, D)
        self.v_proj = nn.Linear(D, D)
        self.o_proj = nn.Linear(D, D)

    def forward(self, hidden_states):
        B, N, D = hidden_states.shape
        query = self.q_proj(hidden_states).view(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        key = self.k_proj(hidden_states).view(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        value = self.v_proj(hidden_states).view(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        scores = query @ key.transpose(2, 3) / self.head_dim**0.5
        weights = scores.softmax(dim=-1)
        out = (weights @ value).transpose(1, 2).reshape(B, N, D)
        return self.o_proj(out), weights
""", says="yours has a parameter `o_proj.weight` [12, 12] that")
change("03.4", "only the output", A34, ("return self.out_proj(out), weights", "return self.out_proj(out)"), says="the output alone is returned; the docstring asks")
change("03.4", "residual inside", A34, ("return self.out_proj(out), weights", "return hidden_states + self.out_proj(out), weights"), says="what came in is added to the output: the residual")
change("03.4", "mean over heads", A34, ("return self.out_proj(out), weights", "return self.out_proj(out), weights.mean(dim=1)"), says="the weights are averaged over the heads: each")
change("03.4", "four heads", A34, ("""config.num_attention_heads
""", """4
"""), says="the number of heads is fixed: it stands in the")
change("03.4", "causal", A34, ("weights = scores.softmax(dim=-1)", """scores = scores.masked_fill(torch.ones(N, N).triu(1).bool(), float("-inf"))
        weights = scores.softmax(dim=-1)"""), says="later patches are hidden: nothing in a picture")
change("03.4", "query and key exchanged", A34, ("query @ key.transpose(2, 3)", "key @ query.transpose(2, 3)"), says="your scores are those of the keys as queries: the")
change("03.4", "dropout on the weights", A34, ("out = (weights @ value)", "out = (nn.functional.dropout(weights, 0.1, self.training) @ value)"), says="what differs between the two: a dropout that the")
change("03.4", "heads interleaved at the merge", A34, ("(weights @ value).transpose(1, 2).reshape(B, N, D)", "(weights @ value).permute(0, 2, 3, 1).reshape(B, N, D)"), says="the heads are laid between each other when they are")

# --- 03.5 -------------------------------------------------------------------------------------------------------------

right("03.5", "roll", """
def looking_back(N, back):
    eye = torch.eye(N)
    return eye, 1000.0 * eye.roll(-back, dims=1), eye.clone()
""")
right("03.5", "a parabola with its top at i - back", """
def looking_back(N, back):
    # score = c * (2 (i - back) j - j^2): largest for j = i - back
    i = torch.arange(N, dtype=torch.float32)
    positions = torch.stack([torch.ones(N), i, i * i], dim=1)
    c = 10.0 * 3**0.5
    w_q = torch.tensor([[-2.0 * back, -1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]) * c
    w_k = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    w_k = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return positions, w_q, w_k
""")
right("03.5", "rotations", """
def looking_back(N, back):
    f = 2 * torch.pi * torch.arange(N) / N
    angle = torch.arange(N)[:, None] * f
    positions = torch.cat([angle.cos(), angle.sin()], dim=1)
    c, s = (back * f).cos(), (back * f).sin()
    w_k = torch.eye(2 * N)
    w_q = torch.cat([torch.cat([torch.diag(c), torch.diag(-s)], 1), torch.cat([torch.diag(s), torch.diag(c)], 1)], 0)
    return positions, 40.0 * w_q, w_k
""")
L35 = right("03.5", "as most write it", """
def looking_back(N, back):
    positions = torch.eye(N)
    w_k = torch.eye(N)
    w_q = torch.zeros(N, N)
    for i in range(back, N):
        w_q[i, i - back] = 20 * N**0.5
    return positions, w_q, w_k
""")
change("03.5", "too weak", L35, ("20 * N**0.5", "1.0"), says="larger scores make a sharper softmax: the score of")
change("03.5", "looks ahead", L35, ("w_q[i, i - back]", "w_q[i - back, i]"), says="your head looks ahead instead of back: query and")
change("03.5", "one too few", L35, ("i - back", "i - back + 1"), says="which column of the query's row has the number, and")
change("03.5", "first one left out", L35, ("range(back, N)", "range(back + 1, N)"), says="all its scores are equal: is its query set, and not")
change("03.5", "looks at itself", L35, ("w_q[i, i - back]", "w_q[i, i]"), says="queries and keys of one token are alike: shift one")
change("03.5", "always eight", L35, ("i - back", "i - 8"), says="your head looks eight back, whatever `back` is")
change("03.5", "pair the other way round", L35, ("return positions, w_q, w_k", "return positions, w_k, w_q"), says="your head looks ahead instead of back: query and")
change("03.5", "positions as numbers", L35, ("positions = torch.eye(N)", "positions = torch.arange(N)[:, None]"), says="positions, w_q and w_k are [12, 1], [12, 12], [12,")
change("03.5", "root of N forgotten", L35, ("20 * N**0.5", "10"), says="larger scores make a sharper softmax: the score of")
change("03.5", "looks at two", L35, ("""N**0.5
""", """N**0.5
        w_q[i, i - 1] = 20 * N**0.5
"""), says="its query agrees with two keys: larger scores do")

# --- 03.6 -------------------------------------------------------------------------------------------------------------

right("03.6", "plain", """
def read_maps():
    return {
        "A": "softmax over the queries",
        "B": "scale left out",
        "C": "as it should be",
        "D": "causal",
        "E": "query and key exchanged",
        "F": "queries of zero",
    }
""")
wrong("03.6", "B and C exchanged", """
def read_maps():
    return {
        "A": "softmax over the queries",
        "B": "as it should be",
        "C": "scale left out",
        "D": "causal",
        "E": "query and key exchanged",
        "F": "queries of zero",
    }
""", says="'as it should be' and another are exchanged: both")
wrong("03.6", "C and E exchanged", """
def read_maps():
    return {
        "A": "softmax over the queries",
        "B": "scale left out",
        "C": "query and key exchanged",
        "D": "causal",
        "E": "as it should be",
        "F": "queries of zero",
    }
""", says="'query and key exchanged' and another are")
wrong("03.6", "a list", """
def read_maps():
    return ["softmax over the queries", "scale left out", "as it should be", "causal", "query and key exchanged", "queries of zero"]
""", says="the result is a list, expected a dict with a name")
