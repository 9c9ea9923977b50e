"""Solutions of chapter 08, wrong and right."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from paligemma.modeling_gemma import apply_rotary_pos_emb

from . import right, wrong

# --- 08.1 --------------------------------------------------------------------------------------------------------

CAUSAL = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
FULL = [[1] * 5] * 5
PREFIX = [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
PADDED = [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]


def tables(causal=CAUSAL, full=FULL, prefix=PREFIX, padded=PADDED):
    return lambda: {"causal": causal, "full": full, "prefix-LM": prefix, "padded": padded}


def turned(rows):
    return [list(column) for column in zip(*rows)]


def opposite(rows):
    return [[1 - x for x in row] for row in rows]


right("08.1")(tables())


@right("08.1")
def _():
    causal = torch.ones(5, 5).tril()
    prefix = causal.clone()
    prefix[:3, :3] = 1
    padded = prefix.clone()
    padded[:, 0] = 0
    return {"causal": causal, "full": torch.ones(5, 5), "prefix-LM": prefix, "padded": padded}


@right("08.1")
def _():
    t = range(5)
    rows = {
        "causal": [[k <= q for k in t] for q in t],
        "full": [[True for k in t] for q in t],
        "prefix-LM": [[k <= max(q, 2) for k in t] for q in t],
    }
    rows["padded"] = [[k > 0 and k <= max(q, 2) for k in t] for q in t]
    return rows


wrong("08.1", "upside down")(tables(*map(opposite, (CAUSAL, FULL, PREFIX, PADDED))))
wrong("08.1", "rows and columns swapped")(tables(*map(turned, (CAUSAL, FULL, PREFIX, PADDED))))
wrong("08.1", "causal where prefix-LM")(tables(prefix=CAUSAL, padded=[[0, *row[1:]] for row in CAUSAL]))
wrong("08.1", "causal where prefix-LM")(tables(prefix=CAUSAL))
wrong("08.1", "full where prefix-LM")(tables(prefix=FULL, padded=[[0, 1, 1, 1, 1]] * 5))
wrong("08.1", "prompt causal")(tables(
    prefix=[[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    padded=[[0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]))  # fmt: skip
wrong("08.1", "answer in one step")(tables(prefix=[*PREFIX[:3], [1] * 5, [1] * 5],
                                           padded=[*PADDED[:3], [0, 1, 1, 1, 1], [0, 1, 1, 1, 1]]))  # fmt: skip
wrong("08.1", "diagonal missing")(tables(causal=[[int(k < q) for k in range(5)] for q in range(5)]))
wrong("08.1", "padding attended")(tables(padded=PREFIX))
wrong("08.1", "padding attended")(tables(padded=[[0] * 5, *PREFIX[1:]]))
wrong("08.1", "padding's row emptied")(tables(padded=[[0] * 5, *PADDED[1:]]))
wrong("08.1", "values")(tables(prefix=[*PREFIX[:4], [1, 1, 1, 0, 1]]))
wrong("08.1", "shape")(tables(causal=CAUSAL[:4]))


@wrong("08.1", "structure")
def _():
    return {"causal": CAUSAL, "full": FULL, "prefix": PREFIX, "padded": PADDED}


# --- 08.2 --------------------------------------------------------------------------------------------------------


@right("08.2")
def rule(input_mask, mask_ar, num_queries=None):
    step = torch.cumsum(mask_ar, dim=1)
    allowed = step.unsqueeze(1) <= step.unsqueeze(2)
    allowed = allowed & (input_mask.unsqueeze(1) == 1)
    if num_queries is not None:
        allowed = allowed[:, -num_queries:]
    return allowed


@right("08.2")
def _(input_mask, mask_ar, num_queries=None):
    B, T = mask_ar.shape
    L = T if num_queries is None else num_queries
    allowed = torch.zeros(B, L, T, dtype=torch.bool)
    for b in range(B):
        for q in range(T - L, T):
            for k in range(T):
                later = mask_ar[b, q + 1 : k + 1].sum() > 0
                allowed[b, q - (T - L), k] = not later and input_mask[b, k] == 1
    return allowed


@right("08.2")
def _(input_mask, mask_ar, num_queries=None):
    step = mask_ar.cumsum(-1)
    behind = step[:, :, None] - step[:, None, :]  # [B, query, key]
    allowed = (behind >= 0).long() * input_mask[:, None]
    return allowed[:, -(num_queries or mask_ar.size(1)) :].bool()


def start(input_mask, mask_ar, num_queries):
    T = mask_ar.shape[1]
    L = num_queries or T
    step = mask_ar.cumsum(1)
    return T, L, step[:, None, :], step[:, T - L :, None], input_mask[:, None, :].bool()


@wrong("08.2", "upside down")
def _(input_mask, mask_ar, num_queries=None):
    return torch.logical_not(rule(input_mask, mask_ar, num_queries))


@wrong("08.2", "upside down")
def _(input_mask, mask_ar, num_queries=None):
    T, L, key, query, real = start(input_mask, mask_ar, num_queries)
    return (key > query) & real


@wrong("08.2", "comparison turned round")
def _(input_mask, mask_ar, num_queries=None):
    T, L, key, query, real = start(input_mask, mask_ar, num_queries)
    return (query <= key) & real


@wrong("08.2", "own step not seen")
def _(input_mask, mask_ar, num_queries=None):
    T, L, key, query, real = start(input_mask, mask_ar, num_queries)
    return (key < query) & real


@wrong("08.2", "cumsum forgotten")
def _(input_mask, mask_ar, num_queries=None):
    allowed = (mask_ar[:, None, :] <= mask_ar[:, :, None]) & input_mask[:, None, :].bool()
    return allowed if num_queries is None else allowed[:, -num_queries:]


@wrong("08.2", "cumsum over the rows")
def _(input_mask, mask_ar, num_queries=None):
    step = mask_ar.cumsum(dim=0)
    allowed = (step[:, None, :] <= step[:, :, None]) & input_mask[:, None, :].bool()
    return allowed if num_queries is None else allowed[:, -num_queries:]


@wrong("08.2", "causal where prefix-LM")
def _(input_mask, mask_ar, num_queries=None):
    T = mask_ar.shape[1]
    allowed = torch.ones(T, T, dtype=torch.bool).tril() & input_mask[:, None, :].bool()
    return allowed if num_queries is None else allowed[:, -num_queries:]


@wrong("08.2", "padding attended")
def _(input_mask, mask_ar, num_queries=None):
    return rule(torch.ones_like(input_mask), mask_ar, num_queries)


@wrong("08.2", "padding attended")
def _(input_mask, mask_ar, num_queries=None):
    T, L, key, query, real = start(input_mask, mask_ar, num_queries)
    return (key <= query) & input_mask[:, T - L :, None].bool()


@wrong("08.2", "padding's row emptied")
def _(input_mask, mask_ar, num_queries=None):
    T, L, key, query, real = start(input_mask, mask_ar, num_queries)
    return (key <= query) & (input_mask[:, None, :] * input_mask[:, T - L :, None]).bool()


@wrong("08.2", "first queries instead of last")
def _(input_mask, mask_ar, num_queries=None):
    return rule(input_mask, mask_ar)[:, :num_queries]


@wrong("08.2", "num_queries not used")
def _(input_mask, mask_ar, num_queries=None):
    return rule(input_mask, mask_ar)


@wrong("08.2", "keys cut too")
def _(input_mask, mask_ar, num_queries=None):
    L = num_queries or mask_ar.shape[1]
    return rule(input_mask, mask_ar)[:, -L:, -L:]


@wrong("08.2", "dtype")
def _(input_mask, mask_ar, num_queries=None):
    return rule(input_mask, mask_ar, num_queries).int()


@wrong("08.2", "shape")
def _(input_mask, mask_ar, num_queries=None):
    return rule(input_mask, mask_ar, num_queries).unsqueeze(1)


# --- 08.3 --------------------------------------------------------------------------------------------------------


@right("08.3")
def weights(scores, allowed):
    mask = torch.zeros(allowed.shape, dtype=scores.dtype).masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return torch.softmax(scores + mask.unsqueeze(1), dim=-1)


@right("08.3")
def _(scores, allowed):
    low = torch.tensor(torch.finfo(scores.dtype).min, dtype=scores.dtype)
    return F.softmax(torch.where(allowed[:, None], scores, low), dim=3)


@right("08.3")
def _(scores, allowed):
    s = scores.float()
    out = torch.full_like(s, 1 / scores.shape[-1])
    for b in range(scores.shape[0]):
        for q in range(scores.shape[2]):
            seen = allowed[b, q]
            if seen.any():
                e = torch.exp(s[b, :, q] - s[b, :, q].amax(-1, keepdim=True)) * seen
                out[b, :, q] = e / e.sum(-1, keepdim=True)
    return out.to(scores.dtype)


def listing(upright=False, finite=False, last=False):
    """The code in the notebook, with some of its faults mended."""

    def masked_weights(scores, allowed):
        low = torch.finfo(scores.dtype).min if finite else -torch.inf
        blocked = allowed.unsqueeze(1)
        if upright:
            blocked = ~blocked
        return scores.masked_fill(blocked, low).softmax(dim=-1 if last else -2)

    return masked_weights


wrong("08.3", "3 left")(listing())
wrong("08.3", "2 left")(listing(upright=True))
wrong("08.3", "2 left")(listing(finite=True))
wrong("08.3", "2 left")(listing(last=True))
wrong("08.3", "upside down")(listing(finite=True, last=True))
wrong("08.3", "NaN where nothing may be seen")(listing(upright=True, last=True))
wrong("08.3", "softmax over the wrong axis")(listing(upright=True, finite=True))


@wrong("08.3", "masked after the softmax")
def _(scores, allowed):
    return F.softmax(scores, dim=-1).masked_fill(~allowed.unsqueeze(1), 0)


@wrong("08.3", "NaN where nothing may be seen")
def _(scores, allowed):
    w = F.softmax(scores, dim=-1) * allowed.unsqueeze(1)
    return w / w.sum(dim=-1, keepdim=True)


@wrong("08.3", "score of zero")
def _(scores, allowed):
    return (scores * allowed.unsqueeze(1)).softmax(dim=-1)


@wrong("08.3", "score of zero")
def _(scores, allowed):
    return scores.masked_fill(~allowed.unsqueeze(1), torch.finfo(scores.dtype).tiny).softmax(dim=-1)


@wrong("08.3", "too low for float16")
def _(scores, allowed):
    s = scores.masked_fill(allowed.unsqueeze(1) == False, -1e9)  # noqa: E712
    return torch.softmax(s, -1)


@wrong("08.3", "not broadcast over heads")
def _(scores, allowed):
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(dim=-1)


@wrong("08.3", "softmax over the wrong axis")
def _(scores, allowed):
    return scores.masked_fill(~allowed.unsqueeze(1), torch.finfo(scores.dtype).min).softmax(dim=1)


@wrong("08.3", "input changed")
def _(scores, allowed):
    scores.masked_fill_(~allowed.unsqueeze(1), torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)


# --- 08.4 --------------------------------------------------------------------------------------------------------


def line(*values, heads=1):
    """[1, T, 1], or [H, 1, 1] for heads."""
    return torch.tensor(values, dtype=torch.float32).reshape((-1, 1, 1) if heads > 1 else (1, -1, 1))


YES = torch.ones(1, 1, dtype=torch.bool)
GOOD = {
    "tiled": (torch.ones(6, 1, 1), line(1, 2, 3, heads=3), line(1, 2, 3, heads=3), YES),
    "mask_transposed": (line(0, 0, 0), line(1, 2, 3), line(1, 2, 3), torch.ones(3, 3).tril() > 0),
    "no_scale": (torch.ones(1, 1, 9), torch.eye(9)[None, :3] * 3, torch.eye(9)[None, :3] * 3, torch.ones(1, 3) > 0),
    "always_causal": (line(0, 0), line(5, 7), line(5, 7), torch.ones(2, 2) > 0),
    "keys_averaged": (line(1), line(1), line(2), YES),
}
GOOD["no_scale"] = (GOOD["no_scale"][0] * torch.arange(9), *GOOD["no_scale"][1:])


def instead(**changes):
    return lambda: GOOD | changes


right("08.4")(instead())
right("08.4")(instead(keys_averaged=(torch.zeros(2, 1, 3), torch.ones(1, 1, 3), torch.zeros(1, 1, 3), YES)))


def random_groups(H=4, H_kv=2, L=3, T=3, d=5):
    draw = torch.Generator().manual_seed(0)
    shapes = ((H, L, d), (H_kv, T, d), (H_kv, T, d))
    return *(torch.randn(shape, generator=draw) for shape in shapes), torch.tensor(
        [[1, 1, 0], [0, 1, 1], [1, 0, 1]]
    ) > 0


wrong("08.4", "exposes others")(lambda: dict.fromkeys(GOOD, random_groups()))
wrong("08.4", "exposes others")(instead(tiled=random_groups()))
wrong("08.4", "not exposed")(instead(tiled=random_groups(H_kv=1)))
wrong("08.4", "not exposed")(instead(tiled=(line(1), line(1), line(1), YES)))
wrong("08.4", "not exposed")(instead(mask_transposed=(line(0, 0), line(1, 2), line(1, 2), torch.eye(2) > 0)))
wrong("08.4", "exposes others")(
    instead(mask_transposed=(line(0, 0), line(1, 2), line(1, 2), torch.ones(2, 2).triu() > 0))
)
wrong("08.4", "not an input")(instead(keys_averaged=(line(1), line(1), line(2), torch.ones(1, 1))))
wrong("08.4", "not an input")(instead(keys_averaged=(line(1), line(1), line(2), ~YES)))
wrong("08.4", "not an input")(instead(keys_averaged=random_groups(H=3)))
wrong("08.4", "not an input")(instead(keys_averaged=(line(1), line(1), line(2))))
wrong("08.4", "structure")(lambda: {"tiled": GOOD["tiled"]})
wrong("08.4", "type")(lambda: [GOOD])

# --- 08.5 --------------------------------------------------------------------------------------------------------


def expanded(x, n_rep):
    B, H, T, d = x.shape
    if n_rep == 1:
        return x
    return x[:, :, None, :, :].expand(B, H, n_rep, T, d).reshape(B, H * n_rep, T, d)


def tiled(x, n_rep):
    return torch.cat([x] * n_rep, dim=1)


class Attention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer = layer_idx
        self.h, self.kv, self.d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.D = config.hidden_size
        self.q_proj = nn.Linear(config.hidden_size, self.h * self.d, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv * self.d, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv * self.d, bias=False)
        self.o_proj = nn.Linear(self.h * self.d, config.hidden_size, bias=False)

    def heads(self, x, n):
        return x.unflatten(-1, (n, self.d)).permute(0, 2, 1, 3)

    def rotate(self, q, k, v, rope):
        cos, sin = rope
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        return q, k, v

    def cached(self, k, v, cache):
        return cache.update(k, v, self.layer)

    def expand(self, x):
        return expanded(x, self.h // self.kv)

    def weights(self, q, k, mask):
        scores = torch.einsum("bhld,bhtd->bhlt", q, k) / math.sqrt(self.d)
        if mask is not None:
            scores = scores + mask
        return F.softmax(scores, dim=-1)

    def join(self, x):
        B, H, L, d = x.shape
        return x.permute(0, 2, 1, 3).contiguous().view(B, L, H * d)

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        q = self.heads(self.q_proj(hidden_states), self.h)
        k = self.heads(self.k_proj(hidden_states), self.kv)
        v = self.heads(self.v_proj(hidden_states), self.kv)
        q, k, v = self.rotate(q, k, v, position_embeddings)
        if kv_cache is not None:
            k, v = self.cached(k, v, kv_cache)
        w = self.weights(q, self.expand(k), attention_mask)
        return self.o_proj(self.join(w @ self.expand(v))), w


right("08.5")(Attention)


@right("08.5")
class _(Attention):
    """Heads in groups, without a copy of the keys."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        B, L, _ = hidden_states.shape
        q = self.q_proj(hidden_states).view(B, L, self.h, self.d).transpose(1, 2)
        k = self.k_proj(hidden_states).view(B, L, self.kv, self.d).transpose(1, 2)
        v = self.v_proj(hidden_states).view(B, L, self.kv, self.d).transpose(1, 2)
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        if kv_cache is not None:
            k, v = kv_cache.update(k, v, self.layer)
        grouped = q.view(B, self.kv, self.h // self.kv, L, self.d) * self.d**-0.5
        scores = torch.einsum("bkgld,bktd->bkglt", grouped, k)
        if attention_mask is not None:
            scores = scores + attention_mask[:, :, None]
        w = scores.softmax(-1)
        out = torch.einsum("bkglt,bktd->blkgd", w, v).reshape(B, L, self.h * self.d)
        return self.o_proj(out), w.flatten(1, 2)


@right("08.5")
class _(Attention):
    """Head by head."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        q = self.heads(self.q_proj(hidden_states), self.h)
        k = self.heads(self.k_proj(hidden_states), self.kv)
        v = self.heads(self.v_proj(hidden_states), self.kv)
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        if kv_cache is not None:
            k, v = kv_cache.update(k, v, self.layer)
        outputs, weights = [], []
        for head in range(self.h):
            own = head // (self.h // self.kv)
            scores = q[:, head] @ k[:, own].mT / self.d**0.5
            if attention_mask is not None:
                scores = scores + attention_mask[:, 0]
            weights.append(scores.softmax(-1))
            outputs.append(weights[-1] @ v[:, own])
        return self.o_proj(torch.cat(outputs, -1)), torch.stack(weights, 1)


def scores_by(factor, axis=-1, add=lambda s, m: s + m):
    def weights(self, q, k, mask):
        s = q @ k.transpose(-2, -1) * factor(self)
        if mask is not None:
            s = add(s, mask)
        return torch.softmax(s, axis)

    return weights


def root(self):
    return self.d**-0.5


def variant(name, **methods):
    wrong("08.5", name)(type("Mine", (Attention,), methods))


variant("scale forgotten", weights=scores_by(lambda self: 1))
variant("scale doubled", weights=scores_by(lambda self: 1 / self.d))
variant("scale upside down", weights=scores_by(lambda self: self.d**0.5))
variant("scale of the width", weights=scores_by(lambda self: self.D**-0.5))
variant("softmax over the wrong axis", weights=scores_by(root, axis=2))
variant("softmax over the wrong axis", weights=scores_by(root, axis=1))
variant("mask forgotten", weights=scores_by(root, add=lambda s, m: s))
variant("mask upside down", weights=scores_by(root, add=lambda s, m: s - m))
variant("repeat instead of repeat_interleave", expand=lambda self, x: tiled(x, self.h // self.kv))
variant("heads merged without the transpose", join=lambda self, x: x.reshape(x.size(0), x.size(2), -1))
variant("heads split without the transpose", heads=lambda self, x, n: x.view(x.size(0), n, x.size(1), self.d))
variant("RoPE forgotten", rotate=lambda self, q, k, v, rope: (q, k, v))
variant("layer_idx not used", cached=lambda self, k, v, cache: cache.update(k, v, 0))
variant("cache not used", cached=lambda self, k, v, cache: (k, v))


@wrong("08.5", "cached differs")
class _(Attention):
    def cached(self, k, v, cache):
        keys, values = cache.update(k, k, self.layer)
        return keys, values


@wrong("08.5", "cache moved on")
class _(Attention):
    def cached(self, k, v, cache):
        result = cache.update(k, v, self.layer)
        cache.advance(k.shape[2])
        return result


@wrong("08.5", "raised")
class _(Attention):
    """Keys and values are repeated before they are kept."""

    def cached(self, k, v, cache):
        return cache.update(expanded(k, 2), expanded(v, 2), self.layer)


@wrong("08.5", "mask added before scaling")
class _(Attention):
    def weights(self, q, k, mask):
        s = q @ k.mT
        if mask is not None:
            s = s + mask
        return (s / self.d**0.5).softmax(-1)


@wrong("08.5", "masked after the softmax")
class _(Attention):
    def weights(self, q, k, mask):
        w = (q @ k.mT / self.d**0.5).softmax(-1)
        return w if mask is None else w + mask


@wrong("08.5", "value turned too")
class _(Attention):
    def rotate(self, q, k, v, rope):
        q, k = apply_rotary_pos_emb(q, k, *rope)
        v, _ = apply_rotary_pos_emb(v, v, *rope)
        return q, k, v


@wrong("08.5", "key not turned")
class _(Attention):
    def rotate(self, q, k, v, rope):
        q, _ = apply_rotary_pos_emb(q, k, *rope)
        return q, k, v


@wrong("08.5", "cos and sin swapped")
class _(Attention):
    def rotate(self, q, k, v, rope):
        sin, cos = rope
        return *apply_rotary_pos_emb(q, k, cos, sin), v


@wrong("08.5", "o_proj forgotten")
class _(Attention):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.o_proj.forward = lambda x: x


@wrong("08.5", "key and value swapped")
class _(Attention):
    def rotate(self, q, k, v, rope):
        q, v = apply_rotary_pos_emb(q, v, *rope)
        return q, v, k


@wrong("08.5", "weights do not fit")
class _(Attention):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.k_proj = nn.Linear(config.hidden_size, self.h * self.d, bias=False)


@wrong("08.5", "weights do not fit")
class _(Attention):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.q_proj = nn.Linear(config.hidden_size, self.h * self.d)


@wrong("08.5", "type")
class _(Attention):
    def forward(self, *inputs):
        return super().forward(*inputs)[0]


# --- 08.6 --------------------------------------------------------------------------------------------------------


def masks(**changes):
    """The three from scratch, by loops and comparisons; `changes` by the first word of the name."""

    def built(see):
        def function(input_mask, mask_ar, num_queries=None):
            T = mask_ar.shape[1]
            step, place = mask_ar.cumsum(1), torch.arange(T)
            table = see(step[:, :, None], step[:, None, :], place[:, None], place[None, :])
            table = table.expand(len(mask_ar), T, T) & (input_mask[:, None, :] == 1)
            return table[:, T - (num_queries or T) :]

        return function

    three = {
        "causal": built(lambda s, t, i, j: j <= i),
        "everything": built(lambda s, t, i, j: (j >= 0) & (i >= 0)),
        "window of 48": built(lambda s, t, i, j: (t <= s) & (j > i - 48)),
    }
    names = {name.split()[0]: name for name in three}
    return lambda: three | {names[word]: change(built) for word, change in changes.items()}


right("08.6")(masks())
right("08.6")(lambda: {name: lambda *a, function=function: function(*a) for name, function in masks()().items()})
wrong("08.6", "another mask")(masks(window=lambda built: built(lambda s, t, i, j: (t <= s) & (j >= i - 48))))
wrong("08.6", "another mask")(masks(window=lambda built: built(lambda s, t, i, j: t <= s)))
wrong("08.6", "another mask")(masks(window=lambda built: built(lambda s, t, i, j: (j <= i) & (j > i - 48))))
wrong("08.6", "another mask")(masks(causal=lambda built: built(lambda s, t, i, j: t <= s)))
wrong("08.6", "another mask")(masks(causal=lambda built: built(lambda s, t, i, j: j < i)))
wrong("08.6", "another mask")(
    masks(everything=lambda built: lambda m, ar, n=None: torch.ones(len(m), n or m.shape[1], m.shape[1]).bool())
)
wrong("08.6", "shape")(
    masks(everything=lambda built: lambda m, ar, n=None: (m == 1)[:, None].expand(-1, m.shape[1], -1))
)
wrong("08.6", "dtype")(masks(causal=lambda built: lambda *a: built(lambda s, t, i, j: j <= i)(*a).long()))
wrong("08.6", "type")(masks(causal=lambda built: "j <= i"))
wrong("08.6", "structure")(lambda: {"causal": masks()()["causal"]})
