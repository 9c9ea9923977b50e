"""Solutions of chapter 07, wrong and right."""

import math

import numpy as np
import torch
from torch import nn

from . import right, wrong

# --- 07.1 --------------------------------------------------------------------------------------------------------


@right("07.1")
def _(x, y, angle):
    c, s = torch.cos(angle), torch.sin(angle)
    return c * x - s * y, s * x + c * y


@right("07.1")
def _(x, y, angle):
    rows = torch.stack([torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)], -2)
    new = torch.einsum("...ij,...j->...i", rows, torch.stack([x, y], dim=-1))
    return new[..., 0], new[..., 1]


@right("07.1")
def _(x, y, angle):
    length, direction = torch.sqrt(x * x + y * y), torch.atan2(y, x)
    return [length * torch.cos(direction + angle), length * torch.sin(direction + angle)]


@wrong("07.1", "turned backwards")
def _(x, y, angle):
    c, s = torch.cos(angle), torch.sin(angle)
    return x * c + y * s, -x * s + y * c


@wrong("07.1", "minus missing")
def _(x, y, angle):
    c, s = torch.cos(angle), torch.sin(angle)
    return c * x + s * y, s * x + c * y


@wrong("07.1", "minus in both")
def _(x, y, angle):
    c, s = torch.cos(angle), torch.sin(angle)
    return c * x - s * y, c * y - s * x


@wrong("07.1", "cos and sin swapped")
def _(x, y, angle):
    s, c = torch.cos(angle), torch.sin(angle)
    return c * x - s * y, c * y + s * x


@wrong("07.1", "new x used for y")
def _(x, y, angle):
    x = x * torch.cos(angle) - y * torch.sin(angle)
    y = y * torch.cos(angle) + x * torch.sin(angle)
    return x, y


@wrong("07.1", "degrees")
def _(x, y, angle):
    a = angle * math.pi / 180
    return x * a.cos() - y * a.sin(), y * a.cos() + x * a.sin()


@wrong("07.1", "x and y swapped")
def _(x, y, angle):
    return y * angle.cos() + x * angle.sin(), x * angle.cos() - y * angle.sin()


@wrong("07.1", "type")
def _(x, y, angle):
    return torch.stack([x * angle.cos() - y * angle.sin(), y * angle.cos() + x * angle.sin()])


@wrong("07.1", "no return")
def _(x, y, angle):
    x * angle.cos() - y * angle.sin(), y * angle.cos() + x * angle.sin()


# --- 07.2 --------------------------------------------------------------------------------------------------------


@right("07.2")
def halves(x):
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-b, a), dim=-1)


@right("07.2")
def _(x):
    d = x.shape[-1]
    out = torch.empty_like(x)
    for i in range(d // 2):
        out[..., i] = -x[..., i + d // 2]
        out[..., i + d // 2] = x[..., i]
    return out


@right("07.2")
def _(x):
    half = x.size(-1) // 2
    matrix = torch.zeros(2 * half, 2 * half, dtype=x.dtype)
    matrix[torch.arange(half), torch.arange(half) + half] = -1
    matrix[torch.arange(half) + half, torch.arange(half)] = 1
    return torch.einsum("ij,...j->...i", matrix, x)


@wrong("07.2", "interleaved")
def pairs(x):
    out = torch.empty_like(x)
    out[..., ::2], out[..., 1::2] = -x[..., 1::2], x[..., ::2]
    return out


@wrong("07.2", "interleaved")
def _(x):
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.cat((-odd, even), -1)


@wrong("07.2", "turned backwards")
def _(x):
    a, b = torch.split(x, x.shape[-1] // 2, dim=-1)
    return torch.cat([b, -a], dim=-1)


@wrong("07.2", "minus missing")
def _(x):
    a, b = x.chunk(2, -1)
    return torch.cat([b, a], -1)


@wrong("07.2", "both negative")
def _(x):
    a, b = x.chunk(2, -1)
    return torch.cat([-b, -a], -1)


@wrong("07.2", "halves not exchanged")
def _(x):
    a, b = x.chunk(2, -1)
    return torch.cat([-a, b], -1)


@wrong("07.2", "halves not exchanged")
def _(x):
    a, b = x.chunk(2, -1)
    return torch.cat([a, -b], -1)


@wrong("07.2", "wrong axis")
def _(x):
    a, b = x.chunk(2)
    return torch.cat([-b, a])


@wrong("07.2", "order reversed")
def _(x):
    a, b = x.chunk(2, -1)
    return torch.cat([-b.flip(-1), a.flip(-1)], -1)


@wrong("07.2", "input changed")
def _(x):
    a, b = x.chunk(2, -1)
    b.neg_()
    return torch.cat([b, a], -1)


@wrong("07.2", "shape")
def _(x):
    a, b = x.chunk(2, -1)
    return torch.stack([-b, a], -1)


@wrong("07.2", "no gradient")
def _(x):
    a, b = np.split(x.detach().float().numpy(), 2, axis=-1)
    return torch.from_numpy(np.concatenate([-b, a], axis=-1)).to(x.dtype)


# --- 07.3 --------------------------------------------------------------------------------------------------------


class Rope(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        self.d = dim
        self.base = base

    def theta(self):
        i = torch.arange(self.d // 2, dtype=torch.float32)
        return torch.exp(-math.log(self.base) * 2 * i / self.d)

    def angles(self, x, position_ids):
        return torch.einsum("bl,i->bli", position_ids.to(torch.float32), self.theta())

    def lay(self, a):
        return torch.cat((a, a), dim=-1)

    def forward(self, x, position_ids):
        a = self.lay(self.angles(x, position_ids))
        return torch.cos(a).to(x.dtype), torch.sin(a).to(x.dtype)


right("07.3")(Rope)


@right("07.3")
class _(Rope):
    def forward(self, x, position_ids):
        B, L = position_ids.shape
        cos, sin = torch.zeros(B, L, self.d, dtype=x.dtype), torch.zeros(B, L, self.d, dtype=x.dtype)
        for i in range(self.d // 2):
            a = position_ids.double() * self.base ** (-2 * i / self.d)
            for place in (i, i + self.d // 2):
                cos[:, :, place] = a.cos()
                sin[:, :, place] = a.sin()
        return cos, sin


@right("07.3")
class _(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        self.freqs = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))  # no buffer

    def forward(self, x, position_ids):
        freqs = (self.freqs[None, :, None] @ position_ids[:, None, :].float()).transpose(1, 2)
        emb = freqs.repeat(1, 1, 2)
        return emb.cos().to(dtype=x.dtype), emb.sin().to(dtype=x.dtype)


@wrong("07.3", "rounded with the model")
class _(Rope):
    def __init__(self, dim, base=10000.0):
        super().__init__(dim, base)
        self.register_buffer("inv_freq", Rope.theta(self), persistent=False)

    def theta(self):
        return self.inv_freq.float()


@wrong("07.3", "interleaved")
class _(Rope):
    def lay(self, a):
        return torch.stack([a, a], dim=-1).flatten(-2)


@wrong("07.3", "theta exponent")
class _(Rope):
    def theta(self):
        return 1 / self.base ** (torch.arange(self.d // 2) / self.d)


@wrong("07.3", "theta exponent")
class _(Rope):
    def theta(self):
        return 1 / self.base ** (torch.arange(0, self.d, 2) / (self.d / 2))


@wrong("07.3", "theta exponent")
class _(Rope):
    def theta(self):
        return 1 / self.base ** (torch.arange(self.d) / self.d)

    def lay(self, a):
        return a


@wrong("07.3", "theta upside down")
class _(Rope):
    def theta(self):
        return self.base ** (torch.arange(0, self.d, 2).float() / self.d)


@wrong("07.3", "angles not repeated")
class _(Rope):
    def lay(self, a):
        return a


@wrong("07.3", "positions off by one")
class _(Rope):
    def angles(self, x, position_ids):
        return super().angles(x, position_ids - 1)


@wrong("07.3", "positions off by one")
class _(Rope):
    def angles(self, x, position_ids):
        return super().angles(x, position_ids + 1)


@wrong("07.3", "positions not used")
class _(Rope):
    def angles(self, x, position_ids):
        B, L = position_ids.shape
        return (torch.arange(L)[:, None] * self.theta())[None].expand(B, L, -1)


@wrong("07.3", "shape")
class _(Rope):
    def angles(self, x, position_ids):
        return (position_ids[0][:, None] * self.theta())[None]


@wrong("07.3", "first row for all")
class _(Rope):
    def angles(self, x, position_ids):
        return (position_ids[0][:, None] * self.theta()).repeat(len(position_ids), 1, 1)


@wrong("07.3", "cos and sin swapped")
class _(Rope):
    def forward(self, x, position_ids):
        cos, sin = super().forward(x, position_ids)
        return sin, cos


@wrong("07.3", "turned backwards")
class _(Rope):
    def forward(self, x, position_ids):
        cos, sin = super().forward(x, position_ids)
        return cos, -sin


@wrong("07.3", "base not passed on")
class _(Rope):
    def theta(self):
        return 1 / 10000 ** (torch.arange(0, self.d, 2) / self.d)


@wrong("07.3", "not cast")
class _(Rope):
    def forward(self, x, position_ids):
        a = self.lay(self.angles(x, position_ids))
        return a.cos(), a.sin()


@wrong("07.3", "computed in half precision")
class _(Rope):
    def angles(self, x, position_ids):
        return position_ids.type_as(x)[:, :, None] * self.theta().type_as(x)


@wrong("07.3", "computed in half precision")
class _(Rope):
    def angles(self, x, position_ids):
        return position_ids.to(x.dtype).unsqueeze(-1) * self.theta()


@wrong("07.3", "computed in half precision")
class _(Rope):
    def angles(self, x, position_ids):
        return position_ids.unsqueeze(-1).float() * self.theta().to(x.dtype)


@wrong("07.3", "computed in half precision")
class _(Rope):
    def angles(self, x, position_ids):
        return super().angles(x, position_ids).to(x.dtype)


@wrong("07.3", "type")
class _(Rope):
    def forward(self, x, position_ids):
        return torch.stack(super().forward(x, position_ids))


# --- 07.4 --------------------------------------------------------------------------------------------------------


@right("07.4")
def good(query, key, cos, sin):
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return (query * cos) + (halves(query) * sin), (key * cos) + (halves(key) * sin)


@right("07.4")
def _(query, key, cos, sin):
    d = query.shape[-1]
    c, s = cos[:, None, :, : d // 2], sin[:, None, :, : d // 2]
    out = []
    for x in (query, key):
        a, b = x[..., : d // 2], x[..., d // 2 :]
        out.append(torch.cat([a * c - b * s, b * c + a * s], dim=-1))
    return tuple(out)


@right("07.4")
def _(query, key, cos, sin):
    def each_row(x):
        rows = [row * c + halves(row) * s for row, c, s in zip(x, cos, sin)]
        return torch.stack(rows)

    return each_row(query), each_row(key)


def listing(halved=False, rows=False, same=False):
    """The code in the notebook, with some of its faults mended."""

    def apply_rotary(query, key, cos, sin):
        def quarter_turn(x):
            if halved:
                return halves(x)
            return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)

        if not rows:
            cos, sin = cos[0], sin[0]
        else:
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        query = query * cos + quarter_turn(query) * sin
        key = key * cos + quarter_turn(key) * sin if same else key * cos - quarter_turn(key) * sin
        return query, key

    return apply_rotary


wrong("07.4", "3 left")(listing())
wrong("07.4", "2 left")(listing(halved=True))
wrong("07.4", "2 left")(listing(rows=True))
wrong("07.4", "2 left")(listing(same=True))
wrong("07.4", "mixed layouts")(listing(rows=True, same=True))
wrong("07.4", "first row for all")(listing(halved=True, same=True))
wrong("07.4", "key turned backwards")(listing(halved=True, rows=True))


@wrong("07.4", "interleaved")
def _(query, key, cos, sin):
    d = query.shape[-1]
    c, s = cos[:, None, :, : d // 2], sin[:, None, :, : d // 2]

    def turned(x):
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack([even * c - odd * s, odd * c + even * s], -1).reshape(x.shape)

    return turned(query), turned(key)


@wrong("07.4", "mixed layouts")
def _(query, key, cos, sin):
    d = query.shape[-1]
    cos, sin = (torch.stack([a[..., : d // 2]] * 2, -1).flatten(-2).unsqueeze(1) for a in (cos, sin))
    return query * cos + halves(query) * sin, key * cos + halves(key) * sin


@wrong("07.4", "not broadcast over heads")
def _(query, key, cos, sin):
    q = query * cos + halves(query) * sin
    k = key * cos + halves(key) * sin
    return q, k


@wrong("07.4", "not broadcast over heads")
def _(query, key, cos, sin):
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    return query * cos + halves(query) * sin, key * cos + halves(key) * sin


@wrong("07.4", "turned backwards")
def _(query, key, cos, sin):
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return query * cos - halves(query) * sin, key * cos - halves(key) * sin


@wrong("07.4", "key not turned")
def _(query, key, cos, sin):
    return good(query, key, cos, sin)[0], key


@wrong("07.4", "quarter turn forgotten")
def _(query, key, cos, sin):
    both = (cos + sin)[:, None]
    return query * both, key * both


@wrong("07.4", "cos and sin swapped")
def _(query, key, cos, sin):
    return good(query, key, sin, cos)


@wrong("07.4", "minus missing")
def _(query, key, cos, sin):
    def swapped(x):
        a, b = x.chunk(2, -1)
        return torch.cat([b, a], -1)

    cos, sin = cos[:, None], sin[:, None]
    return query * cos + swapped(query) * sin, key * cos + swapped(key) * sin


@wrong("07.4", "query and key swapped")
def _(query, key, cos, sin):
    q, k = good(query, key, cos, sin)
    return k, q


# --- 07.5 --------------------------------------------------------------------------------------------------------


def hands(d, back, base, size=60.0, layout=torch.cat):
    """Each pair of the query points to where the key's is `back` positions earlier: arrows (cos, sin)."""
    angle = -back * base ** -(torch.arange(0, d, 2) / d)
    query = layout([angle.cos(), angle.sin()])
    key = layout([torch.ones(d // 2), torch.zeros(d // 2)])
    return size * query, key


@right("07.5")
def _(d, back, base):
    return hands(d, back, base, size=200.0)


@right("07.5")
def _(d, back, base):  # the key turned forward
    key, query = hands(d, -back, base, size=1.0)
    return 300 * query, key


@right("07.5")
def _(d, back, base):
    query, key = hands(d, back, base)
    return [query * 10, key * 10]


wrong("07.5", "turned the other way")(lambda d, back, base: hands(d, -back, base, size=200.0))
wrong("07.5", "back not used")(lambda d, back, base: hands(d, 8, base, size=200.0))
wrong("07.5", "elsewhere")(lambda d, back, base: hands(d, back + 1, base, size=200.0))
wrong("07.5", "at itself")(lambda d, back, base: (100 * torch.ones(d), torch.ones(d)))
wrong("07.5", "interleaved")(
    lambda d, back, base: hands(d, back, base, size=200.0, layout=lambda parts: torch.stack(parts, -1).flatten())
)
wrong("07.5", "too soft")(lambda d, back, base: hands(d, back, base, size=20.0))
wrong("07.5", "too soft")(lambda d, back, base: hands(d, back, base, size=1.0))
wrong("07.5", "not finite")(lambda d, back, base: hands(d, back, base, size=float("inf")))
wrong("07.5", "shape")(lambda d, back, base: hands(32, back, base, size=200.0))
wrong("07.5", "shape")(lambda d, back, base: tuple(x[None] for x in hands(d, back, base)))
wrong("07.5", "structure")(lambda d, back, base: torch.stack(hands(d, back, base)))
