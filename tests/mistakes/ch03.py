"""Attention, as learners write it."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from . import right, wrong

# --- 03.1 --------------------------------------------------------------------------------------------------------


@wrong("03.1", "left to torch")
def _(x, dim):
    return F.softmax(x, dim=dim)


@right("03.1")
def _(x, dim):
    return torch.exp(x - torch.logsumexp(x, dim, keepdim=True))


@right("03.1")
def _(x, dim):
    biggest, _ = torch.max(x, dim=dim, keepdim=True)
    numerator = torch.exp(x - biggest)
    return numerator / torch.sum(numerator, dim, True)


@wrong("03.1", "overflow")
def _(x, dim):
    e = torch.exp(x)
    return e / torch.sum(e, dim=dim, keepdim=True)


@wrong("03.1", "largest of everything")
def _(x, dim):
    e = torch.exp(x - torch.max(x))
    return e / e.sum(dim=dim, keepdim=True)


@wrong("03.1", "dim unused")
def _(x, dim):
    return torch.softmax(x, dim=-1)


@wrong("03.1", "wrong axis")
def _(x, dim):
    return torch.softmax(x, dim=0)


@wrong("03.1", "sum over everything")
def _(x, dim):
    e = torch.exp(x - x.max(dim, keepdim=True).values)
    return e / torch.sum(e)


@wrong("03.1", "logarithm")
def _(x, dim):
    return x - torch.logsumexp(x, dim, keepdim=True)


@wrong("03.1", "not divided")
def _(x, dim):
    return torch.exp(x - x.max(dim, True)[0])


@wrong("03.1", "no exponential")
def _(x, dim):
    x = x - x.max(dim=dim, keepdim=True).values
    return x / x.sum(dim=dim, keepdim=True)


@wrong("03.1", "raised")
def _(x, dim):
    e = torch.exp(x - x.max(dim, keepdim=True))
    return e / e.sum(dim, keepdim=True)


@wrong("03.1", "raised")
def _(x, dim):
    e = torch.exp(x - x.max(dim).values)
    return e / e.sum(dim)


@wrong("03.1", "input changed")
def _(x, dim):
    x -= x.max(dim, keepdim=True).values
    return x.exp() / x.exp().sum(dim, keepdim=True)


@wrong("03.1", "shifted in one place only")
def _(x, dim):
    top = torch.exp(x - x.max(dim, keepdim=True).values)
    return top / torch.exp(x).sum(dim, keepdim=True)


@wrong("03.1", "smallest subtracted")
def _(x, dim):
    e = torch.exp(x - x.min(dim, keepdim=True).values)
    return e / e.sum(dim, keepdim=True)


# --- 03.2 --------------------------------------------------------------------------------------------------------


@right("03.2")
def _(query, key, value):
    d = query.size(-1)
    attn = F.softmax(torch.matmul(query, key.transpose(2, 3)) / math.sqrt(d), dim=-1)
    return torch.matmul(attn, value), attn


@right("03.2")
def _(query, key, value):
    scores = torch.einsum("bhld,bhtd->bhlt", query, key) * key.shape[-1] ** -0.5
    weights = scores.softmax(dim=3)
    return torch.einsum("bhlt,bhtd->bhld", weights, value), weights


@right("03.2")
def _(query, key, value):
    output = F.scaled_dot_product_attention(query, key, value)
    eye = torch.eye(key.shape[2]).expand(*key.shape[:2], -1, -1)
    return output, F.scaled_dot_product_attention(query, key, eye)


@right("03.2")
def _(query, key, value):
    B, H, L, d = query.shape
    outputs, maps = [], []
    for b in range(B):
        for h in range(H):
            for i in range(L):
                s = torch.stack([query[b, h, i].dot(k) for k in key[b, h]]) / d**0.5
                w = torch.softmax(s, 0)
                maps.append(w)
                outputs.append(sum(w[j] * value[b, h, j] for j in range(len(w))))
    return torch.stack(outputs).view(B, H, L, -1), torch.stack(maps).view(B, H, L, -1)


def attend(query, key, value, scale=None, dim=-1):
    scale = 1 / math.sqrt(query.size(-1)) if scale is None else scale
    attn = torch.softmax(torch.matmul(query, key.mT) * scale, dim=dim)
    return torch.matmul(attn, value), attn


wrong("03.2", "softmax over the wrong axis")(lambda query, key, value: attend(query, key, value, dim=2))
wrong("03.2", "softmax over the wrong axis")(lambda query, key, value: attend(query, key, value, dim=1))
wrong("03.2", "softmax over the wrong axis")(lambda query, key, value: attend(query, key, value, dim=0))
wrong("03.2", "scale forgotten")(lambda query, key, value: attend(query, key, value, scale=1))
wrong("03.2", "scale doubled")(lambda query, key, value: attend(query, key, value, scale=1 / query.size(-1)))
wrong("03.2", "scale upside down")(lambda query, key, value: attend(query, key, value, scale=query.size(-1) ** 0.5))
wrong("03.2", "scale by the wrong size")(
    lambda query, key, value: attend(query, key, value, scale=1 / math.sqrt(key.size(-2)))
)
wrong("03.2", "scale by the wrong size")(
    lambda query, key, value: attend(query, key, value, scale=1 / math.sqrt(query.size(1)))
)
wrong("03.2", "keys averaged")(lambda query, key, value: attend(query, key, key))
wrong("03.2", "key and value swapped")(lambda query, key, value: attend(query, value, key))
wrong("03.2", "returned the other way round")(lambda query, key, value: attend(query, key, value)[::-1])


@wrong("03.2", "scale doubled")
def _(query, key, value):
    d = query.size(-1)
    scores = (query / math.sqrt(d)) @ (key / math.sqrt(d)).transpose(-2, -1)
    weights = scores.softmax(-1)
    return weights @ value, weights


@wrong("03.2", "scaled after the softmax")
def _(query, key, value):
    weights = torch.softmax(query @ key.transpose(-2, -1), -1) / math.sqrt(query.size(-1))
    return weights @ value, weights


@wrong("03.2", "no softmax")
def _(query, key, value):
    scores = query @ key.transpose(-2, -1) / query.size(-1) ** 0.5
    return scores @ value, scores


@wrong("03.2", "scores returned")
def _(query, key, value):
    scores = query @ key.transpose(-2, -1) / query.size(-1) ** 0.5
    return torch.softmax(scores, -1) @ value, scores


@wrong("03.2", "causal")
def _(query, key, value):
    mask = torch.triu(torch.full((query.size(2), key.size(2)), float("-inf")), diagonal=1)
    weights = torch.softmax(query @ key.mT / query.size(-1) ** 0.5 + mask, -1)
    return weights @ value, weights


@wrong("03.2", "key not transposed")
def _(query, key, value):
    weights = torch.softmax(query @ key / query.size(-1) ** 0.5, -1)
    return weights @ value, weights


@wrong("03.2", "type")
def _(query, key, value):
    return F.scaled_dot_product_attention(query, key, value)


@wrong("03.2", "axes in another order")
def _(query, key, value):
    output, weights = attend(query, key, value)
    return output.transpose(1, 2), weights


@wrong("03.2", "gradient")
def _(query, key, value):
    output, weights = attend(query, key, value)
    return output, weights.detach()


# --- 03.3 --------------------------------------------------------------------------------------------------------


def split(x, num_heads):
    B, N, D = x.shape
    return x.view(B, N, num_heads, D // num_heads).transpose(1, 2)


def merge(x):
    return x.transpose(1, 2).flatten(2)


right("03.3")((split, merge))
right("03.3")(
    (
        lambda x, num_heads: torch.stack(x.chunk(num_heads, dim=-1), dim=1),
        lambda x: torch.cat(list(x.unbind(1)), dim=-1),
    )
)
right("03.3")(
    (
        lambda x, num_heads: torch.einsum("bnhd->bhnd", x.unflatten(-1, (num_heads, -1))),
        lambda x: x.permute(0, 2, 1, 3).contiguous().view(x.size(0), x.size(2), -1),
    )
)

wrong("03.3", "heads split without the transpose")(
    (lambda x, num_heads: x.view(x.size(0), num_heads, x.size(1), x.size(2) // num_heads), merge)
)
wrong("03.3", "heads merged without the transpose")(
    (split, lambda x: x.contiguous().view(x.size(0), x.size(2), x.size(1) * x.size(3)))
)
wrong("03.3", "split and merged without the transpose")(
    (
        lambda x, num_heads: x.view(x.size(0), num_heads, x.size(1), -1),
        lambda x: x.reshape(x.size(0), x.size(2), -1),
    )
)
wrong("03.3", "heads and features exchanged")(
    (
        lambda x, num_heads: x.view(*x.shape[:2], -1, num_heads).permute(0, 3, 1, 2),
        lambda x: x.permute(0, 2, 3, 1).flatten(2),
    )
)
wrong("03.3", "heads and features exchanged")(
    (split, lambda x: torch.stack(list(x.unbind(1)), dim=-1).flatten(2))
)  # fmt: skip
wrong("03.3", "heads not moved forward")((lambda x, num_heads: x.unflatten(2, (num_heads, -1)), merge))
wrong("03.3", "tokens last")((lambda x, num_heads: split(x, num_heads).mT, merge))
wrong("03.3", "not merged")((split, lambda x: x.permute(0, 2, 1, 3)))
wrong("03.3", "functions swapped")((merge, split))
wrong("03.3", "raised")((split, lambda x: x.transpose(1, 2).view(x.size(0), x.size(2), -1)))

# --- 03.4 --------------------------------------------------------------------------------------------------------


class Base(nn.Module):
    scale = None
    dim = -1

    def __init__(self, config):
        super().__init__()
        self.embed_dim = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = self.embed_dim // self.num_heads
        self.k_proj = nn.Linear(self.embed_dim, self.embed_dim)
        self.v_proj = nn.Linear(self.embed_dim, self.embed_dim)
        self.q_proj = nn.Linear(self.embed_dim, self.embed_dim)
        self.out_proj = nn.Linear(self.embed_dim, self.embed_dim)

    def qkv(self, x):
        return [split(proj(x), self.num_heads) for proj in (self.q_proj, self.k_proj, self.v_proj)]

    def forward(self, hidden_states):
        q, k, v = self.qkv(hidden_states)
        out, attn = attend(q, k, v, self.scale and self.scale(self), self.dim)
        return self.out_proj(merge(out)), attn


right("03.4")(Base)


@right("03.4")
class Loops(Base):
    def forward(self, x):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        outs, maps = [], []
        for h in range(self.num_heads):
            part = slice(h * self.head_dim, (h + 1) * self.head_dim)
            w = F.softmax(q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(self.head_dim), dim=-1)
            maps.append(w)
            outs.append(w @ v[..., part])
        return self.out_proj(torch.cat(outs, dim=-1)), torch.stack(maps, dim=1)


@right("03.4")
class Einsum(Base):
    def forward(self, x):
        q, k, v = (proj(x).unflatten(-1, (self.num_heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        weights = torch.einsum("bqhd,bkhd->bhqk", q * self.head_dim**-0.5, k).softmax(-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        return self.out_proj(mixed), weights


@wrong("03.4", "scale forgotten")
class _(Base):
    scale = lambda self, _: 1.0  # noqa: E731


@wrong("03.4", "scale doubled")
class _(Base):
    scale = lambda self, _: 1 / self.head_dim  # noqa: E731


@wrong("03.4", "scale by the wrong size")
class _(Base):
    scale = lambda self, _: self.embed_dim**-0.5  # noqa: E731


@wrong("03.4", "scale upside down")
class _(Base):
    scale = lambda self, _: math.sqrt(self.head_dim)  # noqa: E731


@wrong("03.4", "softmax over the wrong axis")
class _(Base):
    dim = -2


@wrong("03.4", "softmax over the wrong axis")
class _(Base):
    dim = 1


@wrong("03.4", "heads split without the transpose")
class _(Base):
    def qkv(self, x):
        B, N, _ = x.shape
        return [p(x).view(B, self.num_heads, N, self.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj)]


@wrong("03.4", "heads merged without the transpose")
class _(Base):
    def forward(self, x):
        out, attn = attend(*self.qkv(x))
        return self.out_proj(out.reshape(x.shape)), attn


@wrong("03.4", "split and merged without the transpose")
class _(Base):
    def forward(self, x):
        B, N, D = x.shape
        q, k, v = (p(x).view(B, self.num_heads, N, self.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj))
        out, attn = attend(q, k, v)
        return self.out_proj(out.view(B, N, D)), attn


@wrong("03.4", "no output projection")
class _(Base):
    def forward(self, x):
        out, attn = attend(*self.qkv(x))
        return merge(out), attn


@wrong("03.4", "query and key swapped")
class _(Base):
    def forward(self, x):
        q, k, v = self.qkv(x)
        out, attn = attend(k, q, v)
        return self.out_proj(merge(out)), attn


@wrong("03.4", "keys averaged")
class _(Base):
    def forward(self, x):
        q, k, v = self.qkv(x)
        out, attn = attend(q, k, k)
        return self.out_proj(merge(out)), attn


@wrong("03.4", "one head")
class _(Base):
    def forward(self, x):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        attn = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(self.embed_dim), -1)
        return self.out_proj(attn @ v), attn.unsqueeze(1).repeat(1, self.num_heads, 1, 1)


@wrong("03.4", "weights not returned")
class _(Base):
    def forward(self, x):
        return super().forward(x)[0]


@wrong("03.4", "heads averaged")
class _(Base):
    def forward(self, x):
        out, attn = super().forward(x)
        return out, attn.mean(dim=1)


@wrong("03.4", "structure")
class _(Base):
    def forward(self, x):
        out, attn = super().forward(x)
        return out, attn, attn


@wrong("03.4", "weights do not fit")
class _(Base):
    def __init__(self, config):
        super().__init__(config)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)


@wrong("03.4", "weights do not fit")
class _(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)


@wrong("03.4", "raised")
class _(Base):
    def forward(self, x):
        out, attn = attend(*self.qkv(x))
        return self.out_proj(out.transpose(1, 2).view(x.shape)), attn


# --- 03.5 --------------------------------------------------------------------------------------------------------


def by_hand(N, back, offset=None, size=200.0, width=None):
    """Query i is the key of token i - offset, `size` times."""
    offset = back if offset is None else offset
    width = width or N
    names = torch.eye(width)[torch.arange(N) % width]
    w_q = torch.stack([size * names[(i - offset) % N] for i in range(N)])
    return torch.eye(N), w_q, names


@right("03.5")
def _(N, back):
    return by_hand(N, back)


@right("03.5")
def _(N, back):  # angles: two features do, if they are long enough
    angle = 2 * math.pi * torch.arange(N) / N
    key = torch.stack([angle.cos(), angle.sin()], dim=1)
    angle = angle - 2 * math.pi * back / N
    return torch.eye(N), 1000 * torch.stack([angle.cos(), angle.sin()], dim=1), key


@right("03.5")
def _(N, back):  # the whole of it in the positions: keys in front, what is looked for behind
    positions = torch.cat([torch.eye(N), torch.eye(N).roll(-back, 1)], dim=1)
    w_q = torch.cat([torch.zeros(N, N), 100 * torch.eye(N)])
    return [positions, w_q, torch.cat([torch.eye(N), torch.zeros(N, N)])]


wrong("03.5", "ahead")(lambda N, back: by_hand(N, back, -back))
wrong("03.5", "ahead")(lambda N, back: (by_hand(N, back)[0], *by_hand(N, back)[:0:-1]))
wrong("03.5", "at itself")(lambda N, back: by_hand(N, back, 0))
wrong("03.5", "elsewhere")(lambda N, back: by_hand(N, back, back - 1))
wrong("03.5", "back not used")(lambda N, back: by_hand(N, back, 8))
wrong("03.5", "too soft")(lambda N, back: by_hand(N, back, size=4.0))
wrong("03.5", "too soft")(lambda N, back: by_hand(N, back, size=10.0))
wrong("03.5", "two alike")(lambda N, back: by_hand(N, back, width=4))
wrong("03.5", "not finite")(lambda N, back: by_hand(N, back, size=float("inf")))
wrong("03.5", "shape")(lambda N, back: by_hand(64, back))
wrong("03.5", "shape")(lambda N, back: (torch.zeros(N), torch.eye(N), torch.eye(N)))
wrong("03.5", "structure")(lambda N, back: by_hand(N, back)[:2])
wrong("03.5", "structure")(lambda N, back: torch.eye(N))

# --- 03.6 --------------------------------------------------------------------------------------------------------

PANELS = {
    "A": "softmax over the queries",
    "B": "scale left out",
    "C": "as it should be",
    "D": "causal",
    "E": "query and key exchanged",
    "F": "queries of zero",
}


def exchanged(one, other):
    return lambda: PANELS | {one: PANELS[other], other: PANELS[one]}


right("03.6")(lambda: PANELS)
right("03.6")(lambda: dict(sorted(PANELS.items(), reverse=True)))
for pair in ("BC", "AE", "AC", "EC", "EB", "DF"):
    wrong("03.6", "taken for another")(exchanged(*pair))
wrong("03.6", "not matched")(exchanged("B", "D"))
wrong("03.6", "a name twice")(lambda: PANELS | {"C": "causal"})
wrong("03.6", "unknown name")(lambda: PANELS | {"C": "right"})
wrong("03.6", "type")(lambda: set(PANELS.items()))
