"""Held-out solutions of chapter 07."""

# ruff: noqa: E501
# fmt: off

from . import change, right, wrong

# --- 07.1 -------------------------------------------------------------------------------------------------------------

right("07.1", "complex numbers", """
def turn(x, y, angle):
    z = torch.complex(x, y) * torch.polar(torch.ones_like(angle), angle)
    return z.real, z.imag
""")
right("07.1", "a rotation matrix", """
def turn(x, y, angle):
    c, s = angle.cos(), angle.sin()
    matrix = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
    out = torch.einsum("...ij,...j->...i", matrix, torch.stack([x, y], -1))
    return tuple(out.unbind(-1))
""")
T71 = right("07.1", "as most write it", """
def turn(x, y, angle):
    c, s = torch.cos(angle), torch.sin(angle)
    return x * c - y * s, y * c + x * s
""")
change("07.1", "clockwise", T71, ("x * c - y * s, y * c + x * s", "x * c + y * s, y * c - x * s"), says="your pair turns clockwise: one of the two signs is")
wrong("07.1", "x overwritten", """
def turn(x, y, angle):
    x = x * torch.cos(angle) - y * torch.sin(angle)
    y = y * torch.cos(angle) + x * torch.sin(angle)
    return x, y
""", says="your y is made from the x that has been turned")
change("07.1", "degrees", T71, ("c, s = torch.cos(angle), torch.sin(angle)", """angle = torch.deg2rad(angle)
    c, s = torch.cos(angle), torch.sin(angle)"""), says="your angles are treated as degrees, and they come")
change("07.1", "cos and sin exchanged", T71, ("c, s = torch.cos(angle), torch.sin(angle)", "s, c = torch.cos(angle), torch.sin(angle)"), says="at angle 0 your pair is not what it was: sine and")
change("07.1", "minus in both", T71, ("y * c + x * s", "y * c - x * s"), says="both sums have a minus: then the pair does not keep")
change("07.1", "stacked", T71, ("return x * c - y * s, y * c + x * s", "return torch.stack([x * c - y * s, y * c + x * s])"), says="the result is a Tensor, expected 2 values")
change("07.1", "y first", T71, ("return x * c - y * s, y * c + x * s", "return y * c + x * s, x * c - y * s"), says="the two results are in the other order")
wrong("07.1", "in place", """
def turn(x, y, angle):
    old = x.clone()
    x.mul_(angle.cos()).sub_(y * angle.sin())
    y.mul_(angle.cos()).add_(old * angle.sin())
    return x, y
""", says="an in-place operation (+=, *=, a method ending in")
wrong("07.1", "one angle for all", """
import math
def turn(x, y, angle):
    a = angle.flatten()[0].item()
    return x * math.cos(a) - y * math.sin(a), y * math.cos(a) + x * math.sin(a)
""", says="all pairs are turned by the first angle: each has")

# --- 07.2 -------------------------------------------------------------------------------------------------------------

right("07.2", "roll and signs", """
def rotate_half(x):
    half = x.shape[-1] // 2
    rolled = torch.roll(x, half, dims=-1)
    signs = torch.ones(x.shape[-1], dtype=x.dtype)
    signs[:half] = -1
    return rolled * signs
""")
right("07.2", "filled", """
def rotate_half(x):
    d = x.size(-1)
    out = torch.empty_like(x)
    out[..., : d // 2] = x[..., d // 2 :].neg()
    out[..., d // 2 :] = x[..., : d // 2]
    return out
""")
right("07.2", "a matrix", """
def rotate_half(x):
    h = x.shape[-1] // 2
    eye, zero = torch.eye(h), torch.zeros(h, h)
    m = torch.cat([torch.cat([zero, -eye], 1), torch.cat([eye, zero], 1)], 0).to(x.dtype)
    return torch.einsum("ij,...j->...i", m, x)
""")
H72 = right("07.2", "as most write it", """
def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)
""")
change("07.2", "no minus", H72, ("(-x2, x1)", "(x2, x1)"), says="the halves change places and no sign does: two")
change("07.2", "minus on the wrong half", H72, ("(-x2, x1)", "(x2, -x1)"), says="your quarter turn goes clockwise: the minus is at")
change("07.2", "halves not exchanged", H72, ("(-x2, x1)", "(-x1, x2)"), says="each half stays in its place and one changes its")
change("07.2", "minus on both", H72, ("(-x2, x1)", "(-x2, -x1)"), says="both halves are negative now: two quarter turns")
wrong("07.2", "neighbours", """
def rotate_half(x):
    x1, x2 = x[..., 0::2], x[..., 1::2]
    return torch.stack((-x2, x1), dim=-1).flatten(-2)
""", says="your pairs are neighbours, (0, 1), (2, 3) and so")
wrong("07.2", "even and odd joined", """
def rotate_half(x):
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.cat([-odd, even], dim=-1)
""", says="you take every second feature: in Gemma's layout a")
change("07.2", "cut on axis 0", H72, ("""dim=-1)
    return""", """dim=0)
    return"""), says="the shape is [1, H=3, L=5, 16], expected [B=2, H=3,")
wrong("07.2", "in place", """
def rotate_half(x):
    half = x.shape[-1] // 2
    first = x[..., :half].clone()
    x[..., :half] = -x[..., half:]
    x[..., half:] = first
    return x
""", says="an in-place operation (+=, *=, a method ending in")
change("07.2", "half is 4", H72, ("x1, x2 = x.chunk(2, dim=-1)", "x1, x2 = x[..., :4], x[..., 4:]"), says="the two halves meet at a fixed place: half of the")
change("07.2", "mirrored", H72, ("(-x2, x1)", "(-x2.flip(-1), x1)"), says="one of the halves is reversed: feature i belongs to")
wrong("07.2", "flip", """
def rotate_half(x):
    y = x.flip(-1).clone()
    y[..., : x.shape[-1] // 2] *= -1
    return y
""", says="the features stand in reverse order: the halves are")
change("07.2", "float32 comes out", H72, ("return torch", """x1, x2 = x1.float(), x2.float()
    return torch"""), says="a cast is missing or too much: the result's dtype")

# --- 07.3 -------------------------------------------------------------------------------------------------------------

right("07.3", "einsum, repeat, a plain attribute", """
class GemmaRotaryEmbedding(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        i = torch.arange(dim // 2).float()
        self.theta = [base ** (-2 * k / dim) for k in range(len(i))]

    def forward(self, x, position_ids):
        theta = torch.tensor(self.theta, dtype=torch.float32, device=position_ids.device)
        a = torch.einsum("bl,k->blk", position_ids.float(), theta).repeat(1, 1, 2)
        return torch.cos(a).type_as(x), torch.sin(a).type_as(x)
""")
right("07.3", "exp of the log, filled row by row", """
import math
class GemmaRotaryEmbedding(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        self.d, self.log_base = dim, math.log(base)

    def forward(self, x, position_ids):
        B, L = position_ids.shape
        half = self.d // 2
        theta = torch.exp(-self.log_base * torch.arange(half, dtype=torch.float32) * 2 / self.d)
        cos, sin = torch.empty(B, L, self.d), torch.empty(B, L, self.d)
        for b in range(B):
            turned = torch.outer(position_ids[b].to(torch.float32), theta)
            cos[b] = torch.hstack([turned.cos(), turned.cos()])
            sin[b] = torch.hstack([turned.sin(), turned.sin()])
        return cos.to(x), sin.to(x)
""")
G73 = right("07.3", "as most write it", """
class GemmaRotaryEmbedding(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        self.dim = dim
        self.base = base

    def forward(self, x, position_ids):
        freqs = 1.0 / self.base ** (torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim)
        angles = position_ids[..., None].float() * freqs
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)
""")
change("07.3", "sign of the exponent", G73, ("1.0 / self.base", "self.base"), says="your hands become faster from pair to pair: the")
change("07.3", "factor 2 missing", G73, ("torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim", "torch.arange(self.dim // 2, dtype=torch.float32) / self.dim"), says="your hands are too fast, except the first: the")
change("07.3", "divided by the half", G73, ("torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim", "torch.arange(0, self.dim, 2, dtype=torch.float32) / (self.dim // 2)"), says="your hands are too slow, except the first: the")
change("07.3", "layout of neighbours", G73, ("torch.cat([angles, angles], dim=-1)", "angles.repeat_interleave(2, dim=-1)"), says="each angle stands twice in a row, for the pairs (0,")
change("07.3", "base fixed", G73, ("self.base = base", "self.base = 10000.0"), says="the base that is given to the constructor is not")
change("07.3", "positions counted", G73, ("position_ids[..., None].float()", "torch.arange(position_ids.shape[1])[None, :, None].float().expand(position_ids.shape[0], -1, -1)"), says="your tokens are counted from 0, whatever")
change("07.3", "first row for all", G73, ("position_ids[..., None].float()", "position_ids[:1, :, None].float().expand(position_ids.shape[0], -1, -1)"), says="all rows have the angles of the first: rows that")
change("07.3", "sin first", G73, ("return angles.cos().to(x.dtype), angles.sin().to(x.dtype)", "return angles.sin().to(x.dtype), angles.cos().to(x.dtype)"), says="the sines come first: at position 0, nothing may")
change("07.3", "float32 comes out", G73, ("return angles.cos().to(x.dtype), angles.sin().to(x.dtype)", "return angles.cos(), angles.sin()"), says="cos and sin are float32 although x is bfloat16: the")
change("07.3", "positions in x's dtype", G73, ("position_ids[..., None].float()", "position_ids[..., None].to(x.dtype)"), says="the positions are bfloat16 on the way: beyond 256")
change("07.3", "angles in x's dtype", G73, ("""angles = torch.cat([angles, angles], dim=-1)
""", """angles = torch.cat([angles, angles], dim=-1).to(x.dtype)
"""), says="the angles are bfloat16 before their cosine is")
change("07.3", "d/2 angles", G73, ("""        angles = torch.cat([angles, angles], dim=-1)
""", ""), says="the last axis is d/2: there is one angle for each")
wrong("07.3", "a buffer", """
class GemmaRotaryEmbedding(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, x, position_ids):
        angles = position_ids[:, :, None].float() * self.inv_freq.float()
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)
""", says="the frequencies are a buffer, and `to` rounds the")
wrong("07.3", "a parameter", """
class GemmaRotaryEmbedding(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        self.freq = nn.Parameter(base ** -(torch.arange(0, dim, 2).float() / dim))

    def forward(self, x, position_ids):
        angles = position_ids[:, :, None].float() * self.freq
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)
""", says="yours has a parameter `freq` [4] that the package's")
change("07.3", "from 1", G73, ("position_ids[..., None].float()", "(position_ids[..., None].float() + 1)"), says="every token is turned as if it stood one place")
change("07.3", "degrees", G73, ("angles = torch.cat([angles, angles], dim=-1)", "angles = torch.deg2rad(torch.cat([angles, angles], dim=-1))"), says="your angles are treated as degrees, and they are")
change("07.3", "second half reversed", G73, ("torch.cat([angles, angles], dim=-1)", "torch.cat([angles, angles.flip(-1)], dim=-1)"), says="the angles of the second half are in reverse order:")
change("07.3", "frequencies reversed", G73, ("""freqs
""", """freqs.flip(0)
"""), says="your hands are in reverse order: pair 0 is the")
change("07.3", "two pi", G73, ("1.0 / self.base ** (", "2 * torch.pi / self.base ** ("), says="your angles are 2 pi times too large: at position 1")
change("07.3", "counted from the row's first", G73, ("position_ids[..., None].float()", "(position_ids - position_ids[:, :1])[..., None].float()"), says="the positions of a row are counted from its first")
change("07.3", "frequencies in x's dtype", G73, ("dtype=torch.float32) / self.dim", "dtype=x.dtype) / self.dim"), says="the frequencies are bfloat16 on the way: their")

# --- 07.4 -------------------------------------------------------------------------------------------------------------

right("07.4", "complex numbers", """
def apply_rotary_pos_emb(query, key, cos, sin):
    half = query.shape[-1] // 2
    turn = torch.complex(cos[..., :half], sin[..., :half]).unsqueeze(1)
    def rotate(x):
        z = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat((z.real, z.imag), -1)
    return rotate(query), rotate(key)
""")
right("07.4", "einsum with the package's rotate_half", """
def apply_rotary_pos_emb(query, key, cos, sin):
    out = []
    for t in (query, key):
        a = torch.einsum("bhld,bld->bhld", t, cos)
        a += torch.einsum("bhld,bld->bhld", package_rotate_half(t), sin)
        out.append(a)
    return tuple(out)
""")
right("07.4", "row by row", """
def apply_rotary_pos_emb(query, key, cos, sin):
    q, k = torch.empty_like(query), torch.empty_like(key)
    for b in range(query.shape[0]):
        q[b] = query[b] * cos[b] + package_rotate_half(query[b]) * sin[b]
        k[b] = key[b] * cos[b] + package_rotate_half(key[b]) * sin[b]
    return q, k
""")
A74 = right("07.4", "as most write it", """
def apply_rotary_pos_emb(query, key, cos, sin):
    def quarter_turn(x):
        half = x.shape[-1] // 2
        return torch.cat([-x[..., half:], x[..., :half]], dim=-1)

    cos, sin = cos[:, None], sin[:, None]
    query = query * cos + quarter_turn(query) * sin
    key = key * cos + quarter_turn(key) * sin
    return query, key
""")
change("07.4", "pairs kept", A74, ("""half = x.shape[-1] // 2
        return torch.cat([-x[..., half:], x[..., :half]], dim=-1)""", "return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)"), says="one of three faults is left: the rotation pairs")
change("07.4", "row 0 kept", A74, ("cos[:, None], sin[:, None]", "cos[0], sin[0]"), says="one of three faults is left: every row of the batch")
change("07.4", "minus kept", A74, ("key * cos + quarter", "key * cos - quarter"), says="one of three faults is left: the key turns the")
change("07.4", "minus moved to the query", A74, ("query * cos + quarter", "query * cos - quarter"), says="the query turns the other way round, and the key")
change("07.4", "both turned backwards", A74, ("""+ quarter_turn(query) * sin
    key = key * cos +""", """- quarter_turn(query) * sin
    key = key * cos -"""), says="queries and keys turn the other way round")
change("07.4", "key first", A74, ("return query, key", "return key, query"), says="the key is returned first")
change("07.4", "query in the key's line", A74, ("quarter_turn(key)", "quarter_turn(query)"), says="the key is made from the query's quarter turn: each")
change("07.4", "key not turned", A74, ("""    key = key * cos + quarter_turn(key) * sin
""", ""), says="the key is returned as it came: a score depends on")
change("07.4", "minus on the other half", A74, ("[-x[..., half:], x[..., :half]]", "[x[..., half:], -x[..., :half]]"), says="queries and keys turn the other way round")
change("07.4", "cos and sin exchanged", A74, ("""cos + quarter_turn(query) * sin
    key = key * cos + quarter_turn(key) * sin""", """sin + quarter_turn(query) * cos
    key = key * sin + quarter_turn(key) * cos"""), says="sine and cosine have changed places: at position 0,")
change("07.4", "axis in the third place", A74, ("cos[:, None], sin[:, None]", "cos[:, :, None], sin[:, :, None]"), says="the axis for the heads is in the wrong place:")
wrong("07.4", "in place", """
def apply_rotary_pos_emb(query, key, cos, sin):
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    for t in (query, key):
        turned = package_rotate_half(t) * sin
        t *= cos
        t += turned
    return query, key
""", says="an in-place operation (+=, *=, a method ending in")
change("07.4", "half is 4", A74, ("half = x.shape[-1] // 2", "half = 4"), says="the two halves meet at a fixed place: half of the")
change("07.4", "first position for all", A74, ("cos[:, None], sin[:, None]", "cos[:, :1, None].transpose(1, 2), sin[:, :1, None].transpose(1, 2)"), says="all tokens are turned by the angles of the first")
change("07.4", "turned from the scaled one", A74, ("""query = query * cos + quarter_turn(query) * sin
""", """query = query * cos + quarter_turn(query * cos) * sin
"""), says="the quarter turn of the query is taken of what has")
change("07.4", "stacked", A74, ("return query, key", "return torch.stack([query, key])"), says="query and key cannot be stacked to one tensor:")

# --- 07.5 -------------------------------------------------------------------------------------------------------------

right("07.5", "the key turned forward", """
def looking_back(d, back, base):
    query = torch.ones(d) * 10
    cos, sin = PackageRope(d, base)(query, torch.tensor([[back]]))
    key = (query * cos + package_rotate_half(query) * sin).flatten()
    return query * 2, key
""")
right("07.5", "complex numbers, one arrow to the right", """
def looking_back(d, back, base):
    i = torch.arange(d // 2).float()
    theta = base ** (-2 * i / d)
    z = torch.polar(torch.full((d // 2,), 200.0), -back * theta)
    key = torch.cat([torch.ones(d // 2), torch.zeros(d // 2)])
    return torch.cat([z.real, z.imag]), key
""")
L75 = right("07.5", "as most write it", """
def looking_back(d, back, base):
    key = torch.ones(d)
    cos, sin = PackageRope(d, base)(key, torch.tensor([[back]]))
    cos, sin = cos[0, 0], sin[0, 0]
    query = key * cos - package_rotate_half(key) * sin
    return 100 * query, key
""")
change("07.5", "too weak", L75, ("100 * query", "query"), says="longer arrows make larger scores, and a sharper")
change("07.5", "turned forward", L75, ("key * cos - package", "key * cos + package"), says="the query is turned forward: it agrees with keys")
change("07.5", "one too few", L75, ("torch.tensor([[back]])", "torch.tensor([[back - 1]])"), says="by how much is the query turned, and is that the")
change("07.5", "base ignored", L75, ("PackageRope(d, base)", "PackageRope(d)"), says="the base that is given is not used: 10,000 is")
change("07.5", "query equals key", L75, ("query = key * cos - package_rotate_half(key) * sin", "query = key.clone()"), says="query and key point the same way before they are")
change("07.5", "pair the other way round", L75, ("return 100 * query, key", "return key, 100 * query"), says="the query is turned forward: it agrees with keys")
change("07.5", "always eight", L75, ("torch.tensor([[back]])", "torch.tensor([[8]])"), says="your head looks eight back, whatever `back` is")
change("07.5", "key of zeros", L75, ("key = torch.ones(d)", "key = torch.zeros(d)"), says="all scores are equal: is one of the two vectors")
wrong("07.5", "layout of neighbours", """
def looking_back(d, back, base):
    theta = base ** (-torch.arange(0, d, 2).float() / d)
    a = back * theta
    query = torch.stack([torch.cos(a), -torch.sin(a)], dim=-1).flatten()
    key = torch.stack([torch.ones(d // 2), torch.zeros(d // 2)], dim=-1).flatten()
    return 200 * query, key
""", says="your pairs are neighbours, (0, 1), (2, 3) and so")
change("07.5", "shape [1, 1, d]", L75, ("""    cos, sin = cos[0, 0], sin[0, 0]
""", ""), says="the query is [1, 1, 32], expected [d=32]: all")
