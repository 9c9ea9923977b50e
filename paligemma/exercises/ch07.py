"""Chapter 07: rotary positions (RoPE)."""

import torch

from ..modeling_gemma import GemmaRotaryEmbedding, apply_rotary_pos_emb, rotate_half
from .tasks import Case, Finding, Found, Mistake, Prediction, Task, faults_left, larger, numbers
from .watching import words_kept

# --- 07.1 --------------------------------------------------------------------------------------------------------


def turn(x, y, angle):
    """As a product of complex numbers: another way than the learner's."""
    turned = torch.complex(x, y) * torch.polar(torch.ones_like(angle), angle)
    return turned.real, turned.imag


def turn_cases(seed):
    k = larger(seed)
    sizes = {"B": 2, "L": 5 + k}
    yield Case(tuple(numbers(seed + extra, 2, 5 + k) for extra in (0, 20, 40)), sizes=sizes)
    right = torch.ones(3), torch.zeros(3), torch.tensor([0.5, 1.0, 2.0])
    yield Case(right, sizes={"L": 3}, note="arrows that point to the right")
    up = torch.zeros(4), torch.ones(4), torch.tensor([0.0, 0.3, -0.7, 40.0])
    yield Case(up, sizes={"L": 4}, note="arrows that point up")


def show_turn(thing):
    angle = torch.arange(0, 5) * (torch.pi / 4)
    x, y = thing(torch.ones(5), torch.zeros(5), angle)
    for step, a, b in zip(range(5), x.tolist(), y.tolist()):
        a, b = round(a, 2) + 0.0, round(b, 2) + 0.0  # + 0.0: no "-0.00"
        print(f"  an arrow to the right, turned by {45 * step:3}°:  ({a:5.2f}, {b:5.2f})")


TURN = Task(
    id="07.1",
    importance="core",
    title="turn one pair",
    points=1,
    minutes=5,
    level="easy",
    reference=turn,
    cases=turn_cases,
    see='chapter 07, "By hand"; the hints of this task',
    reward=show_turn,
    mistakes=[
        Mistake(
            "turned backwards",
            "your pair turns clockwise: one of the two signs is on the wrong side",
            lambda x, y, angle: turn(x, y, -angle),
        ),
        Mistake(
            "minus missing",
            "both sums have a plus: then the pair does not keep its length, so it is not a rotation",
            lambda x, y, angle: (x * angle.cos() + y * angle.sin(), y * angle.cos() + x * angle.sin()),
        ),
        Mistake(
            "minus in both",
            "both sums have a minus: then the pair does not keep its length, so it is not a rotation",
            lambda x, y, angle: (x * angle.cos() - y * angle.sin(), y * angle.cos() - x * angle.sin()),
        ),
        Mistake(
            "cos and sin swapped",
            "at angle 0 your pair is not what it was: sine and cosine have changed places",
            lambda x, y, angle: (x * angle.sin() - y * angle.cos(), y * angle.sin() + x * angle.cos()),
        ),
        Mistake(
            "new x used for y",
            "your y is made from the x that has been turned already: both are to be made from the old pair",
            lambda x, y, angle: (lambda new: (new, y * angle.cos() + new * angle.sin()))(turn(x, y, angle)[0]),
        ),
        Mistake(
            "degrees",
            "your angles are treated as degrees, and they come in radians, as torch's sine expects them",
            lambda x, y, angle: turn(x, y, torch.deg2rad(angle)),
        ),
        Mistake("x and y swapped", "the two results are in the other order", lambda x, y, a: turn(x, y, a)[::-1]),
        Mistake(
            "one angle for all",
            "all pairs are turned by the first angle: each has an angle of its own",
            lambda x, y, angle: turn(x, y, angle.flatten()[:1].expand(angle.shape)),
        ),
    ],
)

# --- 07.2 --------------------------------------------------------------------------------------------------------


def quarter_turn(x):
    """From the definition: feature i gets minus feature i + d/2, and feature i + d/2 gets feature i."""
    half = x.shape[-1] // 2
    sign = torch.tensor([-1] * half + [1] * half, dtype=x.dtype)
    return x.roll(half, dims=-1) * sign


def neighbours(x):
    """The quarter turn of the other layout, whose pairs are (0, 1), (2, 3), ..."""
    return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)


def half_cases(seed):
    k = larger(seed)
    yield Case((numbers(seed, 2, 3, 5 + k, 8 + 2 * k),), sizes={"B": 2, "H": 3, "L": 5 + k, "d": 8 + 2 * k})
    yield Case((numbers(seed, 4, 6),), sizes={"L": 4, "d": 6})
    yield Case((numbers(seed, 2, 4, 10, dtype=torch.bfloat16),), sizes={"H": 2, "L": 4, "d": 10})


def over(axis):
    return lambda x: torch.cat([-x.chunk(2, dim=axis)[1], x.chunk(2, dim=axis)[0]], dim=axis)


def show_half(thing):
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for turns in range(5):
        print(f"  after {turns} quarter turn{' ' if turns == 1 else 's'}  {[int(value) for value in x.tolist()]}")
        x = thing(x)


HALF = Task(
    id="07.2",
    importance="core",
    from_memory=True,
    title="rotate_half",
    points=2,
    minutes=5,
    level="easy",
    reference=quarter_turn,
    cases=half_cases,
    see='chapter 07, "Which features form a pair?"; the hints of this task',
    reward=show_half,
    mistakes=[
        Mistake(
            "interleaved",
            "your pairs are neighbours, (0, 1), (2, 3) and so on: that is the layout of the paper. Gemma's weights "
            "were trained with the other one",
            neighbours,
        ),
        Mistake(
            "interleaved",
            "you take every second feature: in Gemma's layout a pair is one feature of the first half and one of the "
            "second",
            lambda x: torch.cat([-x[..., 1::2], x[..., 0::2]], dim=-1),
        ),
        Mistake(
            "turned backwards",
            "your quarter turn goes clockwise: the minus is at the wrong half",
            lambda x: -quarter_turn(x),
        ),
        Mistake(
            "minus missing",
            "the halves change places and no sign does: two quarter turns must make a half turn, x to -x",
            lambda x: x.roll(x.shape[-1] // 2, -1),
        ),
        Mistake(
            "both negative", "both halves are negative now: two quarter turns must make a half turn, x to -x",
            lambda x: -x.roll(x.shape[-1] // 2, -1),
        ),
        Mistake(
            "halves not exchanged",
            "each half stays in its place and one changes its sign: that is a mirror and not a turn",
            lambda x: torch.cat([-x.chunk(2, -1)[0], x.chunk(2, -1)[1]], -1),
        ),
        Mistake(
            "halves not exchanged",
            "each half stays in its place and one changes its sign: that is a mirror and not a turn",
            lambda x: torch.cat([x.chunk(2, -1)[0], -x.chunk(2, -1)[1]], -1),
        ),
        Mistake(
            "half is fixed",
            "the two halves meet at a fixed place: half of the last axis is d / 2, and d is what x has",
            [lambda x, at=at: torch.cat([-x[..., at:], x[..., :at]], dim=-1) for at in (2, 3, 4, 8, 16, 32, 64, 128)],
        ),
        Mistake(
            "order reversed",
            "one of the halves is reversed: feature i belongs to feature i + d/2, in the same order",
            [
                lambda x: torch.cat([-x.chunk(2, -1)[1].flip(-1), x.chunk(2, -1)[0]], -1),
                lambda x: torch.cat([-x.chunk(2, -1)[1], x.chunk(2, -1)[0].flip(-1)], -1),
            ],
        ),
        Mistake("wrong axis", "you cut the axis of the tokens in two, and not that of the features", over(-2)),
        Mistake("wrong axis", "you cut the first axis in two: the features of a head are the last one", over(0)),
        Mistake("wrong axis", "you cut the second axis in two: the features of a head are the last one", over(1)),
        Mistake(
            "order reversed",
            "the features stand in reverse order: the halves are exchanged, and inside each the order stays",
            lambda x: torch.cat([-x.flip(-1).chunk(2, -1)[0], x.flip(-1).chunk(2, -1)[1]], -1),
        ),
    ],
)  # fmt: skip

# --- 07.3 --------------------------------------------------------------------------------------------------------


def rotary_cases(seed):
    k = larger(seed)
    sizes = {"B": 2, "H": 3, "L": 5, "d": 8}
    positions = torch.stack([torch.arange(1, 6), torch.arange(30, 35) + seed])
    yield Case((numbers(seed, 2, 3, 5, 8), positions), (8,), sizes, note="the second row begins at a later position")
    sizes = {"B": 2, "H": 3, "L": 7, "d": 12 + 2 * k}
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [1, 1, 1, 2, 3, 4, 5]]) + seed
    yield Case((numbers(seed, 2, 3, 7, 12 + 2 * k), positions), (12 + 2 * k, 100.0), sizes, note="base = 100")
    far = torch.arange(255, 700, 37)[None] + seed
    x = numbers(seed, 1, 2, 13, 8, dtype=torch.bfloat16)
    yield Case((x, far), (8,), {"H": 2, "L": 13, "d": 8}, note="positions beyond 256")


def usual(dim, base):
    return base ** -(torch.arange(0, dim, 2).float() / dim)


def end_to_end(angles):
    return torch.cat([angles, angles], dim=-1)


def cos_and_sin(angles, x):
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def rotary(inv_freq=usual, move=lambda p, x: p.float(), lay=end_to_end, finish=cos_and_sin, low=lambda theta, x: theta):
    """The reference with one step done differently."""

    class Variant(GemmaRotaryEmbedding):
        def forward(self, x, position_ids):
            angles = move(position_ids, x)[..., None] * low(inv_freq(self.dim, self.base), x)
            return finish(lay(angles), x)

    return Variant


def rounded_with_the_model(kind) -> Finding | None:
    """model.to(torch.bfloat16) must not round the frequencies: 8 bits of them, times a position of hundreds."""
    x, positions = numbers(0, 1, 1, 4, 8, dtype=torch.bfloat16), torch.tensor([[3, 300, 500, 599]])
    want = GemmaRotaryEmbedding(8)(x, positions)
    gap = 0.0
    for got, right in zip(kind(8).to(torch.bfloat16)(x, positions), want, strict=True):
        gap = max(gap, float((got.float() - right.float()).abs().max()))
    if gap < 0.02:
        return None
    return Finding(
        "rounded with the model",
        f"after module.to(torch.bfloat16) the cosines and sines at positions up to 599 are wrong by up to {gap:.2f}",
        "the frequencies are a buffer, and `to` rounds the buffers of a model together with its weights",
    )


def show_rotary(kind):
    """The hands of four pairs."""
    from ..visualize import show_clock_hands  # here: matplotlib is not needed for anything else

    positions = torch.arange(10)
    cos, sin = kind(32)(numbers(0, 1, 1, 10, 32), positions[None])
    pairs = [0, 2, 4, 8]
    angles = torch.atan2(sin, cos)[0][:, pairs].T
    print("  four of the sixteen pairs of a head of size 32, at positions 0 to 9:")
    show_clock_hands(angles, positions.tolist(), [f"pair {i}" for i in pairs])


ROTARY = Task(
    id="07.3",
    importance="core",
    from_memory=True,
    title="the angles",
    points=4,
    minutes=15,
    level="medium",
    reference=GemmaRotaryEmbedding,
    cases=rotary_cases,
    tolerance=5e-5,
    gradients=False,
    see='chapter 07, "Many hands, many speeds" and "Angles in float32"; the hints of this task',
    reward=show_rotary,
    extra=[rounded_with_the_model],
    mistakes=[
        Mistake(
            "interleaved",
            "each angle stands twice in a row, for the pairs (0, 1), (2, 3) and so on: that goes with the other "
            "layout. `rotate_half` pairs feature i with feature i + d/2",
            rotary(lay=lambda angles: angles.repeat_interleave(2, dim=-1)),
        ),
        Mistake(
            "theta exponent",
            "your hands are too fast, except the first: the exponent grows half as fast as it should (where is the 2 "
            "of 2i/d?)",
            rotary(lambda dim, base: base ** -(torch.arange(dim // 2).float() / dim)),
        ),
        Mistake(
            "theta exponent",
            "your hands are too slow, except the first: the exponent grows twice as fast as it should. i/(d/2) is the "
            "same as 2i/d; 2i/(d/2) is not",
            rotary(lambda dim, base: base ** -(torch.arange(0, dim, 2).float() / (dim // 2))),
        ),
        Mistake(
            "theta exponent",
            "all d features have angles of their own: the two of a pair must turn together",
            rotary(lambda dim, base: base ** -(torch.arange(dim).float() / dim), lay=lambda angles: angles),
        ),
        Mistake(
            "theta exponent",
            "the last hand's exponent is exactly -1 with your numbers: it is to stop one step before",
            rotary(lambda dim, base: base ** -torch.linspace(0, 1, dim // 2)),
        ),
        Mistake(
            "theta upside down",
            "your hands become faster from pair to pair: the sign of the exponent is missing",
            rotary(lambda dim, base: base ** (torch.arange(0, dim, 2).float() / dim)),
        ),
        Mistake(
            "degrees",
            "your angles are treated as degrees, and they are radians",
            rotary(finish=lambda angles, x: cos_and_sin(torch.deg2rad(angles), x)),
        ),
        Mistake(
            "whole turns",
            "your angles are 2 pi times too large: at position 1 pair 0 has turned by 1 radian, not by a whole turn",
            rotary(lambda dim, base: 2 * torch.pi * usual(dim, base)),
        ),
        Mistake(
            "frequencies reversed",
            "your hands are in reverse order: pair 0 is the fastest, with one radian for each position",
            rotary(lambda dim, base: usual(dim, base).flip(0)),
        ),
        Mistake(
            "second half reversed",
            "the angles of the second half are in reverse order: feature i and feature i + d/2 turn by the same angle",
            rotary(lay=lambda angles: torch.cat([angles, angles.flip(-1)], dim=-1)),
        ),
        Mistake(
            "counted from the row's first",
            "the positions of a row are counted from its first token, wherever that stands: a row may begin anywhere",
            rotary(move=lambda p, x: (p - p[:, :1]).float()),
        ),
        Mistake(
            "angles not repeated",
            "the last axis is d/2: there is one angle for each pair, and cos and sin are needed for each feature",
            rotary(lay=lambda angles: angles),
        ),
        Mistake(
            "positions off by one", "every token is turned as if it stood one place further on",
            rotary(move=lambda p, x: p.float() + 1),
        ),
        Mistake(
            "positions off by one", "every token is turned as if it stood one place earlier",
            rotary(move=lambda p, x: p.float() - 1),
        ),
        Mistake(
            "positions not used",
            "your tokens are counted from 0, whatever `position_ids` says: a new token that comes alone would always "
            "stand at the start",
            rotary(move=lambda p, x: torch.arange(p.shape[1]).float().expand(p.shape)),
        ),
        Mistake(
            "positions not used",
            "your tokens are counted from 1, whatever `position_ids` says: a new token that comes alone would always "
            "stand at the start",
            rotary(move=lambda p, x: torch.arange(1, p.shape[1] + 1).float().expand(p.shape)),
        ),
        Mistake(
            "first row for all",
            "all rows have the angles of the first: rows that are padded differently have different positions",
            rotary(move=lambda p, x: p[:1].float().expand(p.shape)),
        ),
        Mistake(
            "cos and sin swapped", "the sines come first: at position 0, nothing may turn",
            rotary(finish=lambda angles, x: cos_and_sin(angles, x)[::-1]),
        ),
        Mistake(
            "turned backwards", "the sines have the wrong sign",
            rotary(finish=lambda angles, x: cos_and_sin(-angles, x)),
        ),
        Mistake(
            "angles returned", "the angles themselves are returned, without cosine and sine",
            rotary(finish=lambda angles, x: (angles.to(x.dtype), angles.to(x.dtype))),
        ),
        Mistake(
            "base not passed on", "the base that is given to the constructor is not used: 10,000 is",
            rotary(lambda dim, base: usual(dim, 10_000.0)),
        ),
        Mistake(
            "not cast",
            "cos and sin are float32 although x is bfloat16: the queries would become float32 with them",
            rotary(finish=lambda angles, x: (angles.cos(), angles.sin())),
        ),
        Mistake(
            "computed in half precision",
            "positions and frequencies are bfloat16 before they are multiplied: beyond 256 it cannot even count",
            rotary(move=lambda p, x: p.to(x.dtype), low=lambda theta, x: theta.to(x.dtype)),
        ),
        Mistake(
            "computed in half precision",
            "the positions are bfloat16 on the way: beyond 256 it cannot even count",
            rotary(move=lambda p, x: p.to(x.dtype).float()),
        ),
        Mistake(
            "computed in half precision",
            "the frequencies are bfloat16 on the way: their error is multiplied by the position",
            rotary(low=lambda theta, x: theta.to(x.dtype).float()),
        ),
        Mistake(
            "computed in half precision",
            "the angles are bfloat16 before their cosine is taken: an angle of 600 is then known to the nearest 4",
            rotary(finish=lambda angles, x: cos_and_sin(angles.to(x.dtype), x)),
        ),
    ],
)  # fmt: skip

# --- 07.4 --------------------------------------------------------------------------------------------------------


def turn_all(query, key, cos, sin):
    """With complex numbers, one for each pair: another way than the learner's."""
    half = cos.shape[-1] // 2
    angle = torch.complex(cos[..., :half], sin[..., :half])[:, None]  # [B, 1, L, d/2]

    def turned(x):
        pairs = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * angle
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    return turned(query), turned(key)


def apply_cases(seed):
    k = larger(seed)

    def case(B, H, H_kv, L, d, positions, note):
        inputs = numbers(seed, B, H, L, d), numbers(seed + 30, B, H_kv, L, d), positions
        return Case(inputs, sizes={"B": B, "H": H, "H_kv": H_kv, "L": L, "d": d}, note=note)

    positions = torch.stack([torch.arange(1, 6), torch.arange(20, 25) + seed])
    yield case(2, 6, 3, 5, 8 + 2 * k, positions, "the second row begins at a later position")
    yield case(1, 4, 2, 3, 6, torch.tensor([[1, 2, 50]]), "one row")


def turn_at(thing, query, key, positions):
    """The angles are made here: of two equal halves a learner may use either, and their gradients would differ."""
    cos, sin = GemmaRotaryEmbedding(query.shape[-1])(query, positions)
    return thing(query, key, cos, sin)


FAULTS = {  # what can be observed of each, and its name
    "layout": (
        "the rotation pairs neighbours, and the angles are laid out for halves, so no pair has one angle",
        "mixed layouts",
    ),
    "row": ("every row of the batch is turned by the positions of the first", "first row for all"),
    "key": (
        "the key turns the other way round, so that a score depends on the sum of the "
        "positions and not on their difference",
        "key turned backwards",
    ),
}


def apply(query, key, cos, sin, faults=(), rotate=rotate_half):
    rotate = neighbours if "layout" in faults else rotate
    if "row" in faults:
        cos, sin = cos[:1], sin[:1]
    cos, sin = cos[:, None], sin[:, None]
    key_sin = -sin if "key" in faults else sin
    return query * cos + rotate(query) * sin, key * cos + rotate(key) * key_sin


def for_pairs(angles):
    """Cosines that are laid out end to end, laid out for neighbours."""
    return angles[..., : angles.shape[-1] // 2].repeat_interleave(2, dim=-1)


def show_apply(thing):
    query, key = numbers(0, 1, 1, 1, 8), numbers(1, 1, 1, 1, 8)
    rope = GemmaRotaryEmbedding(8)

    def score(m, n):
        turned_query, _ = thing(query, query, *rope(query, torch.tensor([[m]])))
        _, turned_key = thing(key, key, *rope(key, torch.tensor([[n]])))
        return float((turned_query * turned_key).sum())

    for m, n in ((5, 2), (105, 102), (5, 4), (2, 5)):
        print(f"  query at {m:3}, key at {n:3}: score {round(score(m, n), 2) + 0.0:5.2f}")


APPLY = Task(
    id="07.4",
    prediction=Prediction(
        "Pairs of neighbours, (0, 1), (2, 3), ..., with angles that are laid out for halves, in the whole trained "
        "decoder: how many of 24 captions stay as they were?",
        truth=lambda: words_kept(rotate_half=neighbours)["captions"],
        tempting=24,
        why="Every shape is right, position 0 is untouched, and short distances are turned by nearly the right angles "
        "in some features: enough for 4 captions, and for most of the shapes. Relations go first: what lies left of "
        "what is read by position.",
    ),
    importance="deepen",
    from_memory=True,
    title="find the mixed layouts",
    points=3,
    minutes=15,
    level="medium",
    reference=turn_all,
    cases=apply_cases,
    use=turn_at,
    see='chapter 07, "Halves or interleaved?"; the hints of this task: which input would show each fault?',
    reward=show_apply,
    mistakes=[
        *faults_left(FAULTS, lambda some: lambda *inputs: apply(*inputs, faults=some)),
        Mistake(
            "interleaved",
            "pairs are neighbours and each has one angle: a rotation, and not the one that Gemma's weights were "
            "trained with. `cos` and `sin` come laid out for halves",
            lambda query, key, cos, sin: apply(query, key, for_pairs(cos), for_pairs(sin), rotate=neighbours),
        ),
        Mistake(
            "mixed layouts",
            "the angles are laid out for neighbours now, and the rotation pairs halves",
            lambda query, key, cos, sin: apply(query, key, for_pairs(cos), for_pairs(sin)),
        ),
        Mistake(
            "not broadcast over heads",
            "cos and sin have no axis for the heads, so that the rows of the batch meet the heads",
            lambda query, key, cos, sin: (query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin),
        ),
        Mistake(
            "not broadcast over heads",
            "the axis for the heads is in the wrong place: queries are [B, H, L, d], cos and sin [B, L, d]",
            lambda query, key, cos, sin: (query * cos[:, :, None] + rotate_half(query) * sin[:, :, None],
                                          key * cos[:, :, None] + rotate_half(key) * sin[:, :, None]),
        ),
        Mistake(
            "turned backwards", "queries and keys turn the other way round",
            lambda query, key, cos, sin: apply(query, key, cos, -sin),
        ),
        Mistake(
            "query turned backwards", "the query turns the other way round, and the key does not",
            lambda query, key, cos, sin: (apply(query, key, cos, -sin)[0], apply(query, key, cos, sin)[1]),
        ),
        Mistake(
            "key not turned", "the key is returned as it came: a score depends on the query's position alone",
            lambda query, key, cos, sin: (apply(query, key, cos, sin)[0], key),
        ),
        Mistake(
            "query not turned", "the query is returned as it came: a score depends on the key's position alone",
            lambda query, key, cos, sin: (query, apply(query, key, cos, sin)[1]),
        ),
        Mistake(
            "quarter turn forgotten",
            "both products take x itself: the second is to take x after a quarter turn of every pair",
            lambda query, key, cos, sin: apply(query, key, cos, sin, rotate=lambda x: x),
        ),
        Mistake(
            "cos and sin swapped", "sine and cosine have changed places: at position 0, nothing may turn",
            lambda query, key, cos, sin: apply(query, key, sin, cos),
        ),
        Mistake(
            "minus missing", "the halves are exchanged without the minus: lengths are not kept",
            lambda query, key, cos, sin: apply(query, key, cos, sin, rotate=lambda x: x.roll(x.shape[-1] // 2, -1)),
        ),
        Mistake(
            "first position for all", "all tokens are turned by the angles of the first position: each has its own",
            lambda query, key, cos, sin: apply(query, key, cos[:, :1], sin[:, :1]),
        ),
        Mistake(
            "turned twice",
            "the quarter turn is taken of what has been multiplied by the cosine: it is to be that of query and key "
            "as they came",
            lambda query, key, cos, sin: [
                x * cos[:, None] + rotate_half(x * cos[:, None]) * sin[:, None] for x in (query, key)
            ],
        ),
        Mistake(
            "turned twice",
            "the quarter turn of the query is taken of what has been multiplied by the cosine: it is to be that of the "
            "query as it came",
            lambda query, key, cos, sin: (
                query * cos[:, None] + rotate_half(query * cos[:, None]) * sin[:, None],
                apply(query, key, cos, sin)[1],
            ),
        ),
        Mistake(
            "half is fixed", "the two halves meet at a fixed place: half of the last axis is d / 2",
            [lambda *inputs, at=at: apply(*inputs, rotate=lambda x: torch.cat([-x[..., at:], x[..., :at]], dim=-1))
             for at in (2, 3, 4, 5, 8, 16, 32, 64, 128)],
        ),
        Mistake(
            "key of the query", "the key is made from the query's quarter turn: each is turned by itself",
            [lambda query, key, cos, sin: (apply(query, key, cos, sin)[0],
                                           key * cos[:, None] + rotate_half(query) * sin[:, None]),
             lambda query, key, cos, sin: (apply(query, key, cos, sin)[0],
                                           query * cos[:, None] + rotate_half(key) * sin[:, None])],
        ),
        Mistake(
            "one tensor", "query and key cannot be stacked to one tensor: there may be fewer key heads. A pair is "
            "asked for", lambda query, key, cos, sin: torch.stack(apply(query, key, cos, sin)),
        ),
        Mistake(
            "query and key swapped", "the key is returned first",
            lambda query, key, cos, sin: apply(query, key, cos, sin)[::-1],
        ),
    ],
)  # fmt: skip

# --- 07.5 --------------------------------------------------------------------------------------------------------


def turned_back(d, back, base):
    """A key of ones, and the query: the key turned back by `back` positions, long enough for a sharp softmax."""
    key = torch.ones(d)
    cos, sin = GemmaRotaryEmbedding(d, base)(key, torch.tensor([[back]]))
    return 100 * (key * cos[0, 0] - rotate_half(key) * sin[0, 0]), key


def for_neighbours(second):
    """A key whose pairs are all (1, second), laid out for neighbours, and the query: the key turned back."""

    def function(d, back, base):
        angle = -back * usual(d, base)
        x, y = angle.cos() - second * angle.sin(), second * angle.cos() + angle.sin()
        key = torch.stack([torch.ones(d // 2), torch.full((d // 2,), second)], dim=-1).flatten()
        return 200 * torch.stack([x, y], dim=-1).flatten(), key

    return function


def look_back(solution, d, back, base) -> dict[str, torch.Tensor]:
    """Where 24 tokens look that all have this query and this key, at positions from 3 on and from 40 on."""
    given = solution(d, back, base)
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise Found("structure", f"the result is {type(given).__name__}, expected a query and a key")
    for name, value in zip(("query", "key"), given, strict=True):
        if not isinstance(value, torch.Tensor) or list(value.shape) != [d]:
            seen = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise Found("shape", f"the {name} is {seen}, expected [d={d}]: all tokens have the same one")
    query, key = (value.detach().float().expand(2, 1, 24, d) for value in given)
    positions = torch.stack([torch.arange(3, 27), torch.arange(40, 64)])
    query, key = apply_rotary_pos_emb(query, key, *GemmaRotaryEmbedding(d, base)(query, positions))
    weights = (query @ key.transpose(2, 3) / d**0.5).softmax(-1)[:, 0, back:]  # [2, 24 - back, 24]
    tokens = torch.arange(back, 24)
    weight = weights[:, tokens - back, tokens - back]
    if float((weights - 1 / 24).abs().max()) < 1e-4:
        raise Found("no preference", "every token gives all 24 tokens the same weight",
                    "all scores are equal: is one of the two vectors zero?")  # fmt: skip
    return {"tokens back": tokens - weights.argmax(-1), "weight": weight}


def where_it_looks(case, got, want) -> Finding | None:
    back, seen = case.inputs[1], got["tokens back"]
    if not got["weight"].isfinite().all():
        return Finding("not finite", "the weights are NaN", "scores of infinity: shorter arrows are enough")
    if (seen == 0).all():
        return Finding("at itself", "every query looks at its own token", "query and key point the same way before "
                       "they are turned: at which distance do they agree then?")  # fmt: skip
    if (seen == seen[0, 0]).all() and seen[0, 0] != back:
        text = f"every query looks {int(seen[0, 0])} tokens back, instead of {back}"
        return Finding("elsewhere", text, "by how much is the query turned, and is that the `back` and the `base` that "
                       "are given?")  # fmt: skip
    if (seen != back).any():
        text = (
            f"{int((seen == back).sum())} of {seen.numel()} queries look {back} back; the last one of each row looks "
        )
        last = ", ".join(dict.fromkeys(f"{int(n)} back" for n in seen[:, -1]))
        return Finding("elsewhere", text + last, "by how much, and in which direction, has the query to be turned so "
                       "that it agrees with a key `back` places before it?")  # fmt: skip
    return Finding(
        "too soft",
        f"every query looks most at the token {back} before it, with a weight of {float(got['weight'].min()):.2g}; "
        "0.99 is asked for",
        "longer arrows make larger scores, and a sharper softmax",
    )


def show_look_back(solution):
    """The scores of the learner's query and key by distance."""
    import matplotlib.pyplot as plt

    query, key = solution(32, 8, 10_000.0)
    positions = torch.arange(33)
    cos, sin = GemmaRotaryEmbedding(32)(query, positions[None])
    keys = key * cos[0] + rotate_half(key.expand(33, -1)) * sin[0]  # [33, d]
    at = query * cos[0, 20] + rotate_half(query) * sin[0, 20]
    scores = (keys @ at / 32**0.5).detach()
    print("The score of your query at position 20 with your key at positions 0 to 32 (back = 8):")
    _, ax = plt.subplots(figsize=(5.4, 2.6), layout="constrained")
    ax.plot(positions, scores, marker="o", markersize=3)
    ax.axvline(12, linestyle="--", linewidth=1, color="grey")
    ax.set(xlabel="position of the key", ylabel="score")
    plt.show()


BY_HAND = Task(
    id="07.5",
    title="a RoPE head that looks eight back",
    points=3,
    minutes=15,
    level="medium",
    importance="core",
    reference=turned_back,
    cases=lambda seed: [
        Case((32 + 4 * larger(seed), 8, 10_000.0), note="back = 8"),
        Case((16, 3 + larger(seed), 100.0), note=f"back = {3 + larger(seed)}, base = 100"),
    ],
    use=look_back,
    gradients=False,
    tolerance=5e-3,
    symptoms=[where_it_looks],
    see='chapter 07, "By hand" and "Halves or interleaved?"; the hints of this task',
    reward=show_look_back,
    mistakes=[
        Mistake("turned the other way", "the query is turned forward: it agrees with keys that come after it",
                lambda d, back, base: (turned_back(d, -back, base)[0], torch.ones(d))),
        Mistake("interleaved", "your pairs are neighbours, (0, 1), (2, 3) and so on: RoPE turns feature i together "
                "with feature i + d/2", [for_neighbours(0.0), for_neighbours(1.0)]),
        Mistake("base not used", "the base that is given is not used: 10,000 is",
                lambda d, back, base: turned_back(d, back, 10_000.0)),
        Mistake("back not used", "your head looks eight back, whatever `back` is",
                lambda d, back, base: turned_back(d, 8, base)),
    ],
)  # fmt: skip

TASKS = [TURN, HALF, ROTARY, APPLY, BY_HAND]
