"""The little world: flat pictures of one to four coloured shapes that know what they show.

A scene is made from a seed. It knows the shape, colour, size, box and angle of each thing in it, so every
caption, question, box and mask can be written down without a human labelling anything, and every answer of a
model can be checked. The world is small (6 shapes, 8 colours, 2 sizes) so that a model small enough to train
on a laptop can master it; the drawing varies (shade, background, softness, noise, rotation, proportions) so
that the model has to look.

Boxes lie on whole pixels of a 64 x 64 grid whatever size the picture is drawn at, so a box is exact in
sixty-fourths of the picture's side and only 65 of PaliGemma's 1,024 location tokens ever occur.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..locations import box_to_tokens, codes_to_tokens

box_tokens = box_to_tokens  # the name that chapter 05 uses
GRID = 64  # boxes lie on whole cells of a GRID x GRID raster

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (225, 30, 35),
    "orange": (250, 145, 20),
    "yellow": (250, 225, 30),
    "green": (30, 160, 60),
    "blue": (35, 75, 220),
    "purple": (130, 40, 165),
    "pink": (250, 150, 195),
    "black": (25, 25, 28),
}
SIZES = {"small": (12, 17), "large": (22, 28)}  # shortest and longest side of a box, in cells of the grid
TASKS = ("caption", "colour", "shape", "size", "how many", "is there", "where", "relation", "detect", "segment")

# A named colour is a region, not a point: each shade is a random mixture of its three corners.
_SHADES = {
    "red": ((255, 0, 0), (190, 20, 40), (235, 65, 55)),
    "orange": ((255, 165, 0), (240, 120, 20), (255, 150, 60)),
    "yellow": ((255, 255, 0), (245, 205, 30), (250, 230, 90)),
    "green": ((0, 255, 0), (0, 120, 30), (70, 170, 80)),
    "blue": ((0, 0, 255), (30, 110, 230), (40, 60, 160)),
    "purple": ((128, 0, 128), (150, 60, 210), (95, 40, 140)),
    "pink": ((255, 192, 203), (250, 105, 180), (245, 150, 200)),
    "black": ((0, 0, 0), (45, 45, 48), (30, 25, 30)),
}

KOREAN = {
    "small": "작은",
    "large": "큰",
    "red": "빨간",
    "orange": "주황",
    "yellow": "노란",
    "green": "초록",
    "blue": "파란",
    "purple": "보라",
    "pink": "분홍",
    "black": "검은",
    "circle": "원",
    "square": "사각형",
    "triangle": "삼각형",
    "star": "별",
    "cross": "십자가",
    "ring": "고리",
    "above": "위에",
    "below": "아래에",
    "left of": "왼쪽에",
    "right of": "오른쪽에",
}
RELATIONS = ("above", "below", "left of", "right of")
_CLEAR = 4 / GRID  # a relation is true when the centres differ by at least this


@dataclass(frozen=True)
class Thing:
    """One shape in a scene. `box` is (y1, x1, y2, x2) in fractions of the side; `angle` is in degrees."""

    shape: str
    colour: str
    size: str
    box: tuple[float, float, float, float]
    angle: float
    rgb: tuple[int, int, int]

    @property
    def name(self) -> str:
        """What the thing is called in captions, without its article: `small red circle`."""
        return f"{self.size} {self.colour} {self.shape}"

    @property
    def centre(self) -> tuple[float, float]:
        """(y, x) of the middle of the box, in fractions of the side."""
        y1, x1, y2, x2 = self.box
        return (y1 + y2) / 2, (x1 + x2) / 2


@dataclass(frozen=True)
class Scene:
    """A picture's whole truth. `things` are in reading order: by upper edge, then by left edge."""

    seed: int
    things: tuple[Thing, ...]
    background: tuple[int, int, int]  # rgb in the middle of the picture
    gradient: tuple[float, float]  # how much brighter bottom and right edges are, in grey levels
    softness: float  # blur of the outlines, in cells of the grid
    noise: float  # standard deviation of the pixel noise, in grey levels


# ---------------------------------------------------------------------------------------------- making scenes


def make_scene(seed: int, max_things: int = 4) -> Scene:
    """Make the scene of this seed: 1 to `max_things` things with disjoint boxes, the same on every machine.

    Raises ValueError for a negative seed or for a number of things outside 1 to 4.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected 0 or more")
    if not 1 <= max_things <= 4:
        raise ValueError(f"max_things is {max_things}, expected 1 to 4")
    rng = np.random.default_rng([seed, max_things])
    things: list[Thing] = []
    for _ in range(rng.integers(1, max_things + 1)):
        shape, colour, size = (_choose(rng, options) for options in (SHAPES, list(COLOURS), list(SIZES)))
        # Things that share a shape or a colour make "how many" and "the red one" worth asking.
        if things and rng.random() < 0.4:
            twin = things[rng.integers(len(things))]
            if rng.random() < 0.5:
                shape = twin.shape
            else:
                colour = twin.colour
        cells = _place(rng, size, things) or _place(rng, "small", things)
        if cells is None:  # no room left: the scene simply has fewer things
            break
        size = "small" if cells[2] - cells[0] <= SIZES["small"][1] else "large"
        box = tuple(int(cell) / GRID for cell in cells)
        angle = round(float(rng.uniform(-12, 12)), 1)
        things.append(Thing(shape, colour, size, box, angle, _shade(rng, colour)))
    things.sort(key=lambda thing: thing.box)
    tint = rng.uniform(-9, 9, size=3)
    background = tuple(int(level) for level in np.clip(rng.uniform(185, 262) + tint, 0, 255))
    gradient = tuple(float(g) for g in rng.uniform(-14, 14, size=2) * (rng.random() < 0.6))
    softness = float(rng.uniform(0, 0.6) * (rng.random() < 0.6))
    noise = float(rng.uniform(0, 5) * (rng.random() < 0.6))
    return Scene(seed, tuple(things), background, gradient, softness, noise)


def _choose(rng, options):
    return options[rng.integers(len(options))]


def _place(rng, size: str, things: list[Thing]):
    """A free box (y1, x1, y2, x2) in cells, two or more cells from the other boxes; None if there is none."""
    low, high = SIZES[size]
    for _ in range(40):
        height = rng.integers(low, high + 1)
        width = np.clip(height + rng.integers(-3, 4), low, high)
        y, x = rng.integers(1, GRID - height), rng.integers(1, GRID - width)
        box = (y, x, y + height, x + width)
        others = [[round(edge * GRID) for edge in thing.box] for thing in things]
        if all(max(o[0] - box[2], box[0] - o[2], o[1] - box[3], box[1] - o[3]) >= 2 for o in others):
            return box
    return None


def _shade(rng, colour: str) -> tuple[int, int, int]:
    corners = np.array(_SHADES[colour], dtype=float)
    weights = rng.random(3)
    rgb = weights @ corners / weights.sum() + rng.uniform(-6, 6, size=3)
    return tuple(int(level) for level in np.clip(rgb, 0, 255))


# -------------------------------------------------------------------------------------------- drawing, masks


def _outline(shape: str, angle: float) -> list[np.ndarray]:
    """Closed curves [points, 2] of (x, y) that bound the rotated shape; the outermost fills [0, 1] x [0, 1].

    The second curve of the ring is its hole.
    """

    def around(count, radii, start=-90.0):
        """Points at these radii, one after another, round the middle; y grows downwards."""
        turn = np.deg2rad(start + 360 * np.arange(count) / count)
        radius = np.resize(np.array(radii, dtype=float), count)
        return radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)

    if shape in ("circle", "ring"):
        curves = [around(64, [1])] + ([around(64, [0.55])] if shape == "ring" else [])
    elif shape == "square":
        curves = [around(4, [1], start=-45)]
    elif shape == "triangle":
        curves = [around(3, [1])]
    elif shape == "star":
        curves = [around(10, [1, 0.45])]
    elif shape == "cross":
        a, b = 1.0, 0.36  # half the length and half the width of an arm
        curves = [
            np.array(
                [
                    (-b, -a),
                    (b, -a),
                    (b, -b),
                    (a, -b),
                    (a, b),
                    (b, b),
                    (b, a),
                    (-b, a),
                    (-b, b),
                    (-a, b),
                    (-a, -b),
                    (-b, -b),
                ]
            )
        ]
    else:
        raise ValueError(f"shape is {shape!r}, expected one of {', '.join(SHAPES)}")
    turn = np.deg2rad(angle)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    curves = [curve @ rotation for curve in curves]
    low, high = curves[0].min(axis=0), curves[0].max(axis=0)
    return [(curve - low) / (high - low) for curve in curves]


def _coverage(shape: str, angle: float, box, size: int, supersample: int = 4) -> Image.Image:
    """How much of each pixel the shape covers, as a grey picture of `size` x `size`: 0 none, 255 all."""
    canvas = Image.new("L", (size * supersample, size * supersample))
    pen = ImageDraw.Draw(canvas)
    y1, x1, y2, x2 = (edge * size * supersample for edge in box)
    # PIL fills a polygon's last pixel too, so the far edges are one fine pixel nearer.
    for curve, ink in zip(_outline(shape, angle), (255, 0), strict=False):
        points = curve * (x2 - x1 - 1, y2 - y1 - 1) + (x1, y1)
        pen.polygon([(float(x), float(y)) for x, y in np.round(points)], fill=ink)
    return canvas.resize((size, size), Image.Resampling.BOX)


def shape_mask(shape: str, angle: float = 0.0, size: int = 64) -> np.ndarray:
    """The mask of a shape that fills its box exactly: float32 [size, size], 0 outside to 1 inside."""
    return np.asarray(_coverage(shape, angle, (0, 0, 1, 1), size), dtype=np.float32) / 255


def mask(scene: Scene, index: int, size: int = 64) -> np.ndarray:
    """The pixels of thing `index` in the scene drawn at `size`: bool [size, size]."""
    thing = scene.things[index]
    return np.asarray(_coverage(thing.shape, thing.angle, thing.box, size)) > 127


def draw(scene: Scene, size: int = 64) -> Image.Image:
    """Draw the scene as an RGB picture of `size` x `size` pixels (16 to 4096). Takes about 1 ms at 64."""
    if not 16 <= size <= 4096:
        raise ValueError(f"size is {size}, expected 16 to 4096 pixels a side")
    ramp = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    light = scene.gradient[0] * ramp[:, None] + scene.gradient[1] * ramp[None, :]
    pixels = np.array(scene.background, dtype=np.float32) + light[:, :, None]  # [H, W, 3]
    for thing in scene.things:
        cover = _coverage(thing.shape, thing.angle, thing.box, size)
        if scene.softness:
            cover = cover.filter(ImageFilter.GaussianBlur(scene.softness * size / GRID))
        alpha = np.asarray(cover, dtype=np.float32)[:, :, None] / 255
        pixels = pixels + alpha * (np.array(thing.rgb, dtype=np.float32) - pixels)
    if scene.noise:
        noise = np.random.default_rng([scene.seed, size]).standard_normal(pixels.shape, dtype=np.float32)
        pixels = pixels + scene.noise * noise
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


# ----------------------------------------------------------------------------------- what is true in a scene


def find(scene: Scene, description: str) -> list[int]:
    """Indices of the things that a description such as `small red circle`, `circle` or `red thing` fits.

    Raises ValueError for a word that is neither a size, a colour, a shape nor `thing`.
    """
    words = description.split()
    for word in words:
        if word not in SIZES and word not in COLOURS and word not in SHAPES and word != "thing":
            raise ValueError(
                f"description is {description!r}, expected sizes, colours and shapes of this world; {word!r} is none"
            )
    wanted = [word for word in words if word != "thing"]
    return [
        index
        for index, thing in enumerate(scene.things)
        if all(word in (thing.size, thing.colour, thing.shape) for word in wanted)
    ]


def relation(a: Thing, b: Thing) -> str:
    """How `a` lies to `b`: above, below, left of or right of, along the axis on which they differ more."""
    dy, dx = a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]
    if abs(dy) >= abs(dx):
        return "above" if dy < 0 else "below"
    return "left of" if dx < 0 else "right of"


def relation_is_true(a: Thing, word: str, b: Thing) -> bool:
    """Whether `a` is `word` (above, below, left of, right of) `b`, by a clear margin."""
    dy, dx = a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]
    return {"above": -dy, "below": dy, "left of": -dx, "right of": dx}[word] >= _CLEAR


def place(thing: Thing) -> str | None:
    """Where in the picture: left, right, top, bottom or middle; None where people might disagree."""
    dy, dx = thing.centre[0] - 0.5, thing.centre[1] - 0.5
    if max(abs(dy), abs(dx)) <= 6 / GRID:
        return "middle"
    if abs(abs(dy) - abs(dx)) < 6 / GRID or max(abs(dy), abs(dx)) < 11 / GRID:
        return None
    if abs(dy) > abs(dx):
        return "top" if dy < 0 else "bottom"
    return "left" if dx < 0 else "right"


# ------------------------------------------------------------------------------------------------- captions


def caption(scene: Scene, language: str = "en") -> str:
    """Describe the whole scene, two things to a clause, in reading order.

    English: `a small red circle above a large blue square, a small black star`.
    Korean:  `작은 빨간 원이 큰 파란 사각형 위에 있다, 작은 검은 별`.
    Raises ValueError for a language other than `en` and `ko`.
    """
    if language not in ("en", "ko"):
        raise ValueError(f"language is {language!r}, expected 'en' or 'ko'")
    clauses = []
    for first in range(0, len(scene.things), 2):
        pair = scene.things[first : first + 2]
        word = relation(*pair) if len(pair) == 2 else None
        clauses.append(_english_clause(pair, word) if language == "en" else _korean_clause(pair, word))
    return ", ".join(clauses)


def _english_clause(pair, word) -> str:
    names = [f"a {thing.name}" for thing in pair]
    return names[0] if word is None else f"{names[0]} {word} {names[1]}"


def _korean_clause(pair, word) -> str:
    names = [" ".join(KOREAN[part] for part in (thing.size, thing.colour, thing.shape)) for thing in pair]
    if word is None:
        return names[0]
    return f"{names[0]}{subject_particle(names[0])} {names[1]} {KOREAN[word]} 있다"


def subject_particle(noun: str) -> str:
    """The Korean subject particle: 이 after a consonant, 가 after a vowel.

    Hangul syllables come in blocks of 28, of which the first ends in a vowel.
    """
    return "가" if (ord(noun[-1]) - 0xAC00) % 28 == 0 else "이"


def parse_caption(text: str, language: str = "en") -> list[tuple[str, str | None, str | None]]:
    """Read a caption back as (name, relation, name) clauses; the last two are None for a lone thing.

    Raises ValueError where the text is not a caption of this world.
    """
    words = {value: key for key, value in KOREAN.items()} if language == "ko" else {}

    def name(part: str) -> str:
        english = " ".join(words.get(word, word) for word in part.split())
        pieces = english.split()
        if len(pieces) != 3 or pieces[0] not in SIZES or pieces[1] not in COLOURS or pieces[2] not in SHAPES:
            raise ValueError(f"{part!r} is no name of this world, expected size, colour and shape")
        return english

    clauses = []
    for clause in text.split(", "):
        if language == "ko":
            pieces = clause.split()
            if len(pieces) == 3:
                clauses.append((name(clause), None, None))
            elif len(pieces) == 8 and pieces[-1] == "있다" and words.get(pieces[6]) in RELATIONS:
                subject = " ".join(pieces[:3])[:-1]  # without its particle
                clauses.append((name(subject), words[pieces[6]], name(" ".join(pieces[3:6]))))
            else:
                raise ValueError(f"{clause!r} is no clause of a caption, expected a name, or two with a relation")
            continue
        for word in RELATIONS:
            left, found, right = clause.partition(f" {word} a ")
            if found:
                clauses.append((name(left.removeprefix("a ")), word, name(right)))
                break
        else:
            clauses.append((name(clause.removeprefix("a ")), None, None))
    return clauses


def caption_is_true(scene: Scene, text: str, language: str = "en") -> bool:
    """Whether the caption names every thing exactly once and every relation it states holds, in any order."""
    try:
        clauses = parse_caption(text, language)
    except ValueError:
        return False
    named = [part for a, _, b in clauses for part in (a, b) if part is not None]
    if sorted(named) != sorted(thing.name for thing in scene.things):
        return False
    for a, word, b in clauses:
        firsts = [thing for thing in scene.things if thing.name == a]
        seconds = [thing for thing in scene.things if thing.name == b]
        if word and not any(relation_is_true(s, word, t) for s in firsts for t in seconds if s is not t):
            return False
    return True


# ------------------------------------------------------------------------------------------------ questions


def _unique_descriptions(scene: Scene, thing: Thing, templates: tuple[str, ...]) -> list[str]:
    """Those of the templates, filled in for this thing, that fit no other thing in the scene."""
    filled = [t.format(size=thing.size, colour=thing.colour, shape=thing.shape) for t in templates]
    return [description for description in filled if len(find(scene, description)) == 1]


def make_query(rng, scene: Scene, present: bool) -> str | None:
    """Something to look for that is, or is not, in the scene; absent ones differ from a thing by a word."""
    template = _choose(
        rng,
        (
            "{colour} {shape}",
            "{colour} {shape}",
            "{shape}",
            "{colour} thing",
            "{size} {shape}",
            "{size} {colour} {shape}",
        ),
    )
    for _ in range(20):
        thing = _choose(rng, scene.things)
        parts = {"size": thing.size, "colour": thing.colour, "shape": thing.shape}
        if not present:
            options = {"size": list(SIZES), "colour": list(COLOURS), "shape": SHAPES}
            changed = _choose(rng, [key for key in parts if "{" + key + "}" in template])
            # Half of the time borrow the word from another thing, so that colour and shape must be bound.
            other = _choose(rng, scene.things)
            parts[changed] = getattr(other, changed) if rng.random() < 0.5 else _choose(rng, options[changed])
        query = template.format(**parts)
        if bool(find(scene, query)) == present:
            return query
    return None


def with_article(query: str) -> str:
    """The query with its indefinite article: `a red circle`, `an orange star`."""
    return ("an " if query[0] in "aeiou" else "a ") + query


def _ask_caption(scene: Scene, thing: Thing, rng, codes) -> tuple[str, str]:
    return "caption en", caption(scene)


def _ask_about(attribute: str, *templates: str):
    """Questions of the form `what colour is the ...?`; the templates leave out the word that is asked for."""

    def ask_about(scene: Scene, thing: Thing, rng, codes) -> tuple[str, str] | None:
        descriptions = _unique_descriptions(scene, thing, templates)
        if not descriptions:
            return None
        return f"answer en what {attribute} is the {_choose(rng, descriptions)}?", getattr(thing, attribute)

    return ask_about


def _ask_how_many(scene: Scene, thing: Thing, rng, codes) -> tuple[str, str]:
    # Mostly about what is there; now and then about what is not.
    query = _choose(
        rng,
        (
            "thing",
            thing.shape,
            f"{thing.colour} thing",
            f"{thing.size} thing",
            _choose(rng, SHAPES),
            f"{_choose(rng, list(COLOURS))} thing",
        ),
    )
    plural = query + ("es" if query == "cross" else "s")
    return f"answer en how many {plural} are there?", str(len(find(scene, query)))


def _ask_is_there(scene: Scene, thing: Thing, rng, codes) -> tuple[str, str] | None:
    present = bool(rng.random() < 0.5)
    query = make_query(rng, scene, present)
    return query and (f"answer en is there {with_article(query)}?", "yes" if present else "no")


def _ask_where(scene: Scene, thing: Thing, rng, codes) -> tuple[str, str] | None:
    descriptions = _unique_descriptions(scene, thing, ("{shape}", "{colour} {shape}"))
    if not descriptions:
        return None
    description, answer = _choose(rng, descriptions), place(thing)
    return answer and (f"answer en where is the {description}?", answer)


def _ask_relation(scene: Scene, thing: Thing, rng, codes) -> tuple[str, str] | None:
    other = _choose(rng, scene.things)
    if other is thing:
        return None
    pair = [_unique_descriptions(scene, t, ("{shape}", "{colour} {shape}")) for t in (thing, other)]
    dy, dx = (abs(a - b) for a, b in zip(thing.centre, other.centre, strict=True))
    if not all(pair) or abs(dy - dx) < 6 / GRID:  # nearly diagonal: people might disagree
        return None
    a, b = (_choose(rng, descriptions) for descriptions in pair)
    return f"answer en where is the {a} relative to the {b}?", relation(thing, other)


def _ask_detect(scene: Scene, thing: Thing, rng, codes) -> tuple[str, str] | None:
    if rng.random() < 0.2:  # something that is not there: the answer is empty
        query = make_query(rng, scene, present=False)
        return query and (f"detect {query}", "")
    queries = [make_query(rng, scene, present=True)]
    if rng.random() < 0.3:
        queries += _second_query(rng, scene, queries[0])
    return "detect " + " ; ".join(queries), detection(scene, queries)


def _ask_detect_pair(scene: Scene, thing: Thing, rng, codes) -> tuple[str, str]:
    queries = [make_query(rng, scene, present=True)]
    queries += _second_query(rng, scene, queries[0])
    return "detect " + " ; ".join(queries), detection(scene, queries)


def _second_query(rng, scene: Scene, first: str) -> list[str]:
    """A second thing to detect, there or not, if one is found that the first query does not mean as well."""
    second = make_query(rng, scene, present=bool(rng.random() < 0.7))
    return [second] if second and not set(find(scene, second)) & set(find(scene, first)) else []


def _ask_segment(scene: Scene, thing: Thing, rng, codes) -> tuple[str, str] | None:
    if codes is None:
        raise ValueError(
            "codes is None, expected a function from a thing to its 16 mask codes for a 'segment' question"
        )
    descriptions = _unique_descriptions(scene, thing, ("{shape}", "{colour} {shape}", "{size} {colour} {shape}"))
    if not descriptions:
        return None
    description = _choose(rng, descriptions)
    return f"segment {description}", segmentation(thing, description, codes(thing))


_QUESTIONS = {
    "caption": _ask_caption,
    "colour": _ask_about("colour", "{shape}", "{size} {shape}"),
    "shape": _ask_about("shape", "{colour} thing", "{size} {colour} thing"),
    "size": _ask_about("size", "{shape}", "{colour} {shape}"),
    "how many": _ask_how_many,
    "is there": _ask_is_there,
    "where": _ask_where,
    "relation": _ask_relation,
    "detect": _ask_detect,
    "detect pair": _ask_detect_pair,
    "segment": _ask_segment,
}


def ask(scene: Scene, task: str, rng, codes=None) -> tuple[str, str] | None:
    """One (prompt, answer) of this task about the scene, or None where nothing unambiguous can be asked.

    `rng` is a numpy Generator. `codes(thing)` gives the 16 mask codes of a thing; only `segment` needs it.
    `detect` asks for two things at once in a quarter of cases, `detect pair` wherever it can; training may need
    more of those. Raises ValueError for a task that is neither that nor in TASKS.
    """
    if task not in _QUESTIONS:
        raise ValueError(f"task is {task!r}, expected one of {', '.join(_QUESTIONS)}")
    return _QUESTIONS[task](scene, _choose(rng, scene.things), rng, codes)


def detection(scene: Scene, queries: list[str]) -> str:
    """The answer to `detect query ; query`: query by query, every fitting box in reading order."""
    found = [(index, query) for query in queries for index in find(scene, query)]
    return " ; ".join(f"{box_to_tokens(scene.things[index].box)} {query}" for index, query in found)


def segmentation(thing: Thing, label: str, codes) -> str:
    """The answer to `segment label`: the box, the 16 mask codes and the label."""
    return f"{box_to_tokens(thing.box)}{codes_to_tokens(codes)} {label}"


def questions(scene: Scene, rng, codes=None) -> list[tuple[str, str]]:
    """One (prompt, answer) of each task that can be asked about this scene; `segment` only with `codes`."""
    tasks = [task for task in TASKS if task != "segment" or codes is not None]
    return [pair for pair in (ask(scene, task, rng, codes) for task in tasks) if pair is not None]
