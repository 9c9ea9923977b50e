"""Pictures of one to four stickers that know what they show.

As in the little world, a scene is made from a seed and knows its whole truth: what each sticker shows, by which
artist, its box, and its mask, which is the drawing's own alpha channel. Boxes lie on whole cells of the same
64 x 64 grid. Stickers are scaled, turned a little and mirrored, and may lie partly over one another, on plain,
uneven or photographic grounds.

For training, a sticker can also be *varied*: sheared, outlined, recoloured, greyed, blurred. Six artists are few; what
they have in common with a seventh is more easily found in drawings whose colours and outlines cannot be relied on.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from .. import ASSETS
from ..world.scenes import GRID
from .atlas import BY_NAME, CELL, artists, drawing, drawn_by

MAX_STICKERS = 4
SIDES = (17, 44)  # shortest and longest longer side of a box, in cells of the grid
PHOTOGRAPHS = ("astronaut.jpg", "camera_grey.png", "rocket.jpg")


@dataclass(frozen=True)
class Cut:
    """The outline of a sticker before it is scaled: whose drawing, mirrored, turned, sheared, with a rim or not.

    `angle` is in degrees, counter-clockwise; `shear` how far the top leans to the right, per height; `rim` the width
    of a line around the drawing, in pixels of its cell (0: none).
    """

    name: str
    artist: str
    mirrored: bool = False
    angle: float = 0.0
    shear: float = 0.0
    rim: int = 0


@dataclass(frozen=True)
class Sticker:
    """One sticker in a scene. `box` is (y1, x1, y2, x2) in fractions of the side; `colours` a seed, or None: as drawn.

    The box is that of the whole drawing, also where another sticker covers a part.
    """

    cut: Cut
    box: tuple[float, float, float, float]
    colours: int | None = None

    @property
    def name(self) -> str:
        """What the sticker shows, in English: `dog`."""
        return self.cut.name

    @property
    def phrase(self) -> str:
        """The name as a caption has it: `a dog`."""
        return BY_NAME[self.cut.name].phrase

    @property
    def korean(self) -> str:
        """What the sticker shows, in Korean."""
        return BY_NAME[self.cut.name].korean

    @property
    def category(self) -> str:
        """Its category: `animal`."""
        return BY_NAME[self.cut.name].category

    @property
    def centre(self) -> tuple[float, float]:
        """(y, x) of the middle of the box, in fractions of the side."""
        y1, x1, y2, x2 = self.box
        return (y1 + y2) / 2, (x1 + x2) / 2


@dataclass(frozen=True)
class Scene:
    """A picture's whole truth. `things` are the stickers in reading order; `stack` their numbers, lowest first."""

    seed: int
    things: tuple[Sticker, ...]
    stack: tuple[int, ...]
    varied: bool


# ------------------------------------------------------------------------------------------------ making scenes


def make_scene(
    seed: int, hands: tuple[str, ...] | None = None, most: int = MAX_STICKERS, varied: bool = False
) -> Scene:
    """Make the scene of this seed: 1 to `most` stickers by the artists `hands` (default: those for training).

    The same seed and arguments give the same scene on every machine. `varied` changes outlines and colours as
    training wants them. Raises ValueError for a negative seed, an unknown artist or `most` outside 1 to 4.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected 0 or more")
    if not 1 <= most <= MAX_STICKERS:
        raise ValueError(f"most is {most}, expected 1 to {MAX_STICKERS}")
    hands = artists("train") if hands is None else hands
    rng = np.random.default_rng([seed, most, varied])
    count = int(rng.integers(1, most + 1))
    overlapping = rng.random() < 0.3
    stickers: list[Sticker] = []
    for _ in range(count):
        hand = hands[rng.integers(len(hands))]
        name = _choose(rng, drawn_by(hand))
        if stickers and rng.random() < 0.15:  # the same thing twice makes "how many" worth asking
            twin = stickers[rng.integers(len(stickers))].name
            name = twin if twin in drawn_by(hand) else name
        cut = random_cut(rng, name, hand, varied)
        box = _place(rng, cutout(cut).size, stickers, count, overlapping)
        if box is None:
            break
        colours = int(rng.integers(2**31)) if varied else None
        stickers.append(Sticker(cut, tuple(cell / GRID for cell in box), colours))
    order = sorted(range(len(stickers)), key=lambda index: stickers[index].box)  # by upper edge, then left edge
    things = tuple(stickers[index] for index in order)
    stack = tuple(order.index(index) for index in range(len(stickers)))
    return Scene(seed, things, stack, varied)


def _choose(rng, options):
    return options[rng.integers(len(options))]


def random_cut(rng, name: str, hand: str, varied: bool) -> Cut:
    """A cut of this drawing: mirrored half of the time and turned a little; when `varied`, sheared and rimmed too."""
    mirrored = bool(rng.random() < 0.5)
    angle = round(float(rng.uniform(-20, 20)), 1)
    if not varied:
        return Cut(name, hand, mirrored, angle)
    shear = round(float(rng.uniform(-0.25, 0.25)), 2) if rng.random() < 0.5 else 0.0
    rim = int(rng.integers(1, 5)) if rng.random() < 0.3 else 0
    return Cut(name, hand, mirrored, angle, shear, rim)


def _place(rng, size: tuple[int, int], stickers: list[Sticker], count: int, overlapping: bool):
    """A box (y1, x1, y2, x2) in cells for a drawing of `size` (width, height); None if there is no room."""
    low, high = SIDES
    high = high if count == 1 else high - 6 * count + 4  # 36, 30 and 24 cells for two, three and four
    for attempt in range(60):
        longest = int(rng.integers(low, max(low + 1, high - attempt // 6) + 1))
        scale = longest / max(size)
        width, height = (max(6, round(side * scale)) for side in size)
        y, x = int(rng.integers(0, GRID - height + 1)), int(rng.integers(0, GRID - width + 1))
        box = (y, x, y + height, x + width)
        allowed = 0.2 if overlapping else 0.0
        if all(_hidden(box, sticker.box) <= allowed for sticker in stickers):
            return box
    return None


def _hidden(box, other) -> float:
    """Which share of the smaller of two boxes lies under the other; `other` is in fractions of the side."""
    other = [round(edge * GRID) for edge in other]
    high = max(0, min(box[2], other[2]) - max(box[0], other[0]))
    wide = max(0, min(box[3], other[3]) - max(box[1], other[1]))
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return high * wide / smaller


# ---------------------------------------------------------------------------------------------------- drawing


@lru_cache(maxsize=1024)
def cutout(cut: Cut) -> Image.Image:
    """The drawing with its outline changed as `cut` says, cropped to what is visible: RGBA of any size."""
    picture = drawing(cut.name, cut.artist)
    if picture is None:
        raise ValueError(f"the artist {cut.artist!r} drew no {cut.name!r}: `drawn_by` lists the things of each")
    if cut.mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if cut.angle or cut.shear:
        turn = np.deg2rad(cut.angle)
        # Where each pixel of the result comes from: turned back, then sheared back, around the middle.
        back = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [[1, cut.shear], [0, 1]]
        side = round(1.4 * CELL)
        shift = CELL / 2 - back @ (side / 2, side / 2)
        matrix = (*back[0], shift[0], *back[1], shift[1])
        picture = picture.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    if cut.rim:
        picture = _with_rim(picture, cut.rim)
    return picture.crop(visible_box(picture))


def visible_box(picture: Image.Image) -> tuple[int, int, int, int] | None:
    """The box (left, upper, right, lower) of what can be seen of an RGBA picture; None where nothing can."""
    return picture.getchannel("A").point(lambda alpha: 255 * (alpha > 40)).getbbox()


def _with_rim(picture: Image.Image, width: int) -> Image.Image:
    """A line around the drawing, as on a sticker or in a cartoon; it is black, and recolouring may change that."""
    grown = Image.new("RGBA", (picture.width + 2 * width, picture.height + 2 * width))
    grown.paste(picture, (width, width))
    alpha = grown.getchannel("A").filter(ImageFilter.MaxFilter(2 * width + 1))
    rim = Image.merge("RGBA", [Image.new("L", grown.size, 20)] * 3 + [alpha])
    return Image.alpha_composite(rim, grown)


def recolour(picture: Image.Image, seed: int) -> Image.Image:
    """Change colours, sharpness and depth of shading of an RGBA picture at random; its outline stays."""
    rng = np.random.default_rng([5, seed])
    alpha, rgb = picture.getchannel("A"), picture.convert("RGB")
    if rng.random() < 0.6:  # turn the hue, mostly a little
        hue, saturation, value = rgb.convert("HSV").split()
        turn = int(rng.integers(256)) if rng.random() < 0.2 else int(rng.normal(0, 8))
        hue = hue.point(lambda level: (level + turn) % 256)
        rgb = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    rgb = ImageEnhance.Color(rgb).enhance(0.0 if rng.random() < 0.1 else rng.uniform(0.4, 1.6))
    rgb = ImageEnhance.Brightness(rgb).enhance(rng.uniform(0.65, 1.3))
    rgb = ImageEnhance.Contrast(rgb).enhance(rng.uniform(0.6, 1.4))
    if rng.random() < 0.15:  # flat areas of few colours
        rgb = rgb.quantize(int(rng.integers(2, 8)), Image.Quantize.FASTOCTREE).convert("RGB")
    if rng.random() < 0.2:
        rgb = rgb.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.5)))
    rgb.putalpha(alpha)
    return rgb


@lru_cache
def _photograph(name: str) -> Image.Image:
    with Image.open(ASSETS / name) as picture:
        return picture.convert("RGB")


def ground(seed: int, size: int) -> Image.Image:
    """The ground of a scene: plain, uneven, or a small crop of a photograph, too small to show a thing. RGB."""
    rng = np.random.default_rng([6, seed])
    kind = rng.random()
    if kind < 0.25:
        picture = _photograph(_choose(rng, PHOTOGRAPHS))
        side = int(min(picture.size) * rng.uniform(0.08, 0.2))
        x, y = (int(rng.integers(full - side)) for full in picture.size)
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))
        plain = Image.new("RGB", (size, size), _random_colour(rng))
        return Image.blend(picture, plain, rng.uniform(0.1, 0.6))
    colour = np.array(_random_colour(rng), dtype=np.float32)
    if kind < 0.55:
        return Image.new("RGB", (size, size), tuple(int(level) for level in colour))
    cells = int(rng.integers(2, 7))  # a few soft patches
    coarse = colour + rng.normal(0, rng.uniform(4, 30), (cells, cells, 3))
    coarse = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    return coarse.resize((size, size), Image.Resampling.BICUBIC)


def _random_colour(rng) -> tuple[int, ...]:
    """Mostly light, sometimes any colour."""
    if rng.random() < 0.7:
        return tuple(int(level) for level in np.clip(rng.uniform(190, 262) + rng.uniform(-25, 25, 3), 0, 255))
    return tuple(int(level) for level in rng.integers(0, 256, 3))


def _fine(size: int) -> int:
    """The side of the canvas on which stickers are pasted: a multiple of GRID, so that boxes are whole pixels."""
    return GRID * max(1, -(-size // GRID))


def _in_place(scene: Scene, index: int, fine: int) -> tuple[Image.Image, tuple[int, int]]:
    """Sticker `index` scaled to its box on a canvas of `fine` pixels, and its upper left corner (x, y)."""
    sticker = scene.things[index]
    y1, x1, y2, x2 = (round(edge * fine) for edge in sticker.box)
    picture = cutout(sticker.cut).resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR, reducing_gap=2.0)
    if sticker.colours is not None:
        picture = recolour(picture, sticker.colours)
    return picture, (x1, y1)


def draw(scene: Scene, size: int = 96) -> Image.Image:
    """Draw the scene as an RGB picture of `size` x `size` pixels (32 to 1024). Takes some milliseconds at 96."""
    if not 32 <= size <= 1024:
        raise ValueError(f"size is {size}, expected 32 to 1024 pixels a side")
    fine = _fine(size)
    canvas = ground(scene.seed, fine)
    for index in scene.stack:
        picture, corner = _in_place(scene, index, fine)
        canvas.paste(picture, corner, picture)
    picture = canvas if fine == size else canvas.resize((size, size), Image.Resampling.BOX)
    rng = np.random.default_rng([7, scene.seed])
    if scene.varied and rng.random() < 0.3:
        noise = rng.standard_normal((size, size, 1), dtype=np.float32) * rng.uniform(1, 8)
        picture = Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))
    return picture


def masks(scene: Scene, size: int = 96) -> np.ndarray:
    """The visible pixels of each sticker in the scene drawn at `size`: bool [stickers, size, size].

    A pixel belongs to the sticker whose drawing covers at least half of it, and where several do, to the topmost.
    """
    fine = _fine(size)
    found = np.zeros((len(scene.things), size, size), dtype=bool)
    for index in scene.stack:
        picture, corner = _in_place(scene, index, fine)
        layer = Image.new("L", (fine, fine))
        layer.paste(picture.getchannel("A"), corner)
        covered = np.asarray(layer.resize((size, size), Image.Resampling.BOX)) > 127
        found &= ~covered
        found[index] = covered
    return found
