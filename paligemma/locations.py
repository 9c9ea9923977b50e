"""Text with location and segmentation tokens to objects in the picture, and back.

PaliGemma has no box head and no mask head: it *writes* where things are. Four tokens `<loc0000>` to `<loc1023>`
are the sides of a box, in the order y1 x1 y2 x2 (top, left, bottom, right); 16 tokens `<seg000>` to `<seg127>`
after them are a mask inside that box (`paligemma.segmentation` turns them into pixels); then comes the label.
Several objects are joined by ` ; `:

    <loc0256><loc0128><loc0768><loc0512> red circle ; <loc0100><loc0600><loc0300><loc0900> blue square

A model may write anything, so the reading half of this file never raises on text: it returns what it
understood, and says what it dropped and why.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NUM_LOCATIONS = 1024  # <loc0000> ... <loc1023>
NUM_SEGMENTS = 128  # <seg000> ... <seg127>
CODES_PER_MASK = 16  # a 4 x 4 grid, row by row
LOCATION_TOKENS = [f"<loc{i:04d}>" for i in range(NUM_LOCATIONS)]  # for boxes
SEGMENTATION_TOKENS = [f"<seg{i:03d}>" for i in range(NUM_SEGMENTS)]  # for masks
SEPARATOR = " ; "

# [0-9], not \d: \d also matches the digits of other scripts, which the tokenizer does not have.
_OBJECT = re.compile(r"((?:<loc[0-9]{4}>)*)(?:\s*(?=<seg))?((?:<seg[0-9]{3}>)*)([^<>]*)")
_SPECIAL = re.compile("<(?:bos|eos|pad)>")  # what is left in a text that was decoded with its special tokens


@dataclass(frozen=True)
class Detection:
    """One object: its label, its box, and the 16 codes of its mask if there are any.

    `box` is (y1, x1, y2, x2), each from 0 to 1 as a fraction of the picture's height or width.
    Raises ValueError for a box outside the picture or without an area, and for codes that are not 16 of 0..127.
    """

    label: str
    box: tuple[float, float, float, float]
    codes: tuple[int, ...] | None = None

    def __post_init__(self):
        object.__setattr__(self, "box", tuple(float(side) for side in self.box))
        _check_box(self.box)
        if self.codes is not None:
            object.__setattr__(self, "codes", tuple(int(code) for code in self.codes))
            if len(self.codes) != CODES_PER_MASK or not all(0 <= code < NUM_SEGMENTS for code in self.codes):
                raise ValueError(
                    f"the codes of a mask are {self.codes}, expected {CODES_PER_MASK} whole numbers from 0 to "
                    f"{NUM_SEGMENTS - 1}"
                )


def _check_box(box: Sequence[float]) -> None:
    if len(box) != 4 or not all(0 <= side <= 1 for side in box) or not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(
            f"the box is {tuple(box)}, expected (y1, x1, y2, x2) in fractions of the picture, 0 to 1, with y1 < y2 and "
            "x1 < x2: divide pixels by the picture's height or width first"
        )


# ---------------------------------------------------------------------------------------------- boxes and tokens


def box_to_tokens(box: Sequence[float]) -> str:
    """(y1, x1, y2, x2) in fractions of the picture to four location tokens.

    The rule is the official one (big_vision, pp/proj/paligemma/segmentation.py): round(side * 1023), clipped to
    0..1023, so the first token is the one edge of the picture and the last token the other. Rounding is to the
    even neighbour at a tie, as in TensorFlow. A box thinner than about 1/1023 can become two equal tokens, which
    `parse_detections` drops, as the official evaluator does. Raises ValueError for a box outside the picture.
    """
    _check_box(box)
    bins = [min(max(round(side * (NUM_LOCATIONS - 1)), 0), NUM_LOCATIONS - 1) for side in box]
    return "".join(LOCATION_TOKENS[bin] for bin in bins)


def tokens_to_box(tokens: str | Sequence[int], divisor: int = NUM_LOCATIONS - 1) -> tuple[float, ...]:
    """Four location tokens, or their four numbers, to (y1, x1, y2, x2) in fractions of the picture.

    The official evaluator divides by 1023 (big_vision, evaluators/proj/paligemma/transfers/segmentation.py), as it
    must to undo `box_to_tokens`: 1023 / 1023 is the far edge of the picture. Much demonstration code divides by
    1024, as if a token were the near edge of one of 1,024 cells. Its boxes are up to a thousandth of a side short,
    which is invisible in a picture 224 pixels wide, and they never reach the far edge. For the results of such code
    pass `divisor=1024`.

    Returns the four numbers even if they are no proper box. Raises ValueError unless there are four of 0..1023, and
    for another divisor than these two.
    """
    _check_divisor(divisor)
    bins = [int(number) for number in re.findall(r"<loc([0-9]{4})>", tokens)] if isinstance(tokens, str) else tokens
    if len(bins) != 4 or not all(0 <= bin < NUM_LOCATIONS for bin in bins):
        raise ValueError(f"the tokens of a box are {tokens!r}, expected four from <loc0000> to <loc1023>")
    return tuple(bin / divisor for bin in bins)


def _check_divisor(divisor: int) -> None:
    if divisor not in (NUM_LOCATIONS - 1, NUM_LOCATIONS):
        raise ValueError(f"divisor is {divisor!r}, expected {NUM_LOCATIONS - 1}, or {NUM_LOCATIONS} for other code's")


def box_to_pixels(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    """(y1, x1, y2, x2) in fractions to (x1, y1, x2, y2) in pixels of a picture of any size, not rounded.

    Mind the order: PaliGemma writes y first, while PIL and matplotlib want x first.
    The processor squeezes every picture into a square, whatever its shape, so a fraction of the square is the same
    fraction of the picture, and nothing else has to be undone. Width and height are those of the upright picture
    (`upright_size(image)` in processing_paligemma): in a photograph with an EXIF orientation, `image.size` may have
    them swapped.
    """
    if width < 1 or height < 1:
        raise ValueError(f"the picture is {width} x {height} pixels, expected at least 1 x 1")
    y1, x1, y2, x2 = box
    return x1 * width, y1 * height, x2 * width, y2 * height


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Area of the intersection of two boxes over the area of their union, 0 to 1. Any one order of the sides."""

    def area(top, left, bottom, right):
        return max(bottom - top, 0.0) * max(right - left, 0.0)

    intersection = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - intersection
    return intersection / union if union > 0 else 0.0


# ---------------------------------------------------------------------------------------------------- whole texts


def codes_to_tokens(codes: Iterable[int]) -> str:
    """The codes of a mask to segmentation tokens: 7, 127 to `<seg007><seg127>`. ValueError unless 0 to 127."""
    codes = [int(code) for code in codes]
    if not all(0 <= code < NUM_SEGMENTS for code in codes):
        raise ValueError(f"the codes of a mask are {codes}, expected whole numbers from 0 to {NUM_SEGMENTS - 1}")
    return "".join(SEGMENTATION_TOKENS[code] for code in codes)


def format_detections(detections: Iterable[Detection]) -> str:
    """Write objects the way PaliGemma writes them: location tokens, segmentation tokens, label, joined by ` ; `.

    Raises ValueError for a label that could not be read back: one with `;`, `<` or `>`.
    """
    texts = []
    for found in detections:
        if re.search("[;<>]", found.label):
            raise ValueError(f"the label is {found.label!r}, expected none of ';', '<' and '>', which separate objects")
        texts.append(f"{box_to_tokens(found.box)}{codes_to_tokens(found.codes or ())} {found.label}".rstrip())
    return SEPARATOR.join(texts)


def parse_detections(text: str, divisor: int = NUM_LOCATIONS - 1) -> tuple[list[Detection], list[str]]:
    """Read what the model wrote: (the objects understood, what was dropped and why). No text raises an error.

    An object counts if it has exactly four location tokens with y1 < y2 and x1 < x2, and either no segmentation
    tokens or exactly 16 of 0..127; this is the official evaluator's rule for a valid prediction. An object whose box
    is good but whose mask is not is dropped whole, too: a caller who wants the box alone finds it in the text of
    the reason. A label may be missing, and is then "". `<bos>`, `<eos>` and `<pad>` say nothing about objects and are
    skipped. `divisor` as in `tokens_to_box`.

    An empty text is an answer ("there is no such object"), so it drops nothing.
    """
    _check_divisor(divisor)
    detections, dropped = [], []
    for piece in _pieces(_SPECIAL.sub(" ", text)):
        match = _OBJECT.fullmatch(piece.strip())
        reason = None
        if match is None:
            reason = "its tokens are broken, unknown or not in the order locations, segments, label"
        else:
            locations = [int(number) for number in re.findall("[0-9]{4}", match[1])]
            codes = [int(number) for number in re.findall("[0-9]{3}", match[2])]
            reason = _complaint(locations, codes)
        if reason is None:
            box = tokens_to_box(locations, divisor)
            detections.append(Detection(match[3].strip(), box, tuple(codes) or None))
        else:
            dropped.append(f"{piece.strip()!r}: {reason}")
    return detections, dropped


def _pieces(text: str) -> list[str]:
    """Cut the text at every `;`, and before a `<loc>` that follows a label (models forget the `;`)."""
    pieces = []
    for piece in text.split(";"):
        pieces += re.split(r"(?<=[^<>\s])\s*(?=<loc[0-9]{4}>)", piece)
    return [piece for piece in pieces if piece.strip()]


def _complaint(locations: list[int], codes: list[int]) -> str | None:
    """What is wrong with these numbers as an object; None if nothing is."""
    if len(locations) != 4:
        return f"it has {len(locations)} location tokens, not 4"
    if max(locations) >= NUM_LOCATIONS:
        return f"its location tokens go up to {max(locations)}, the last is {NUM_LOCATIONS - 1}"
    y1, x1, y2, x2 = locations
    if y2 <= y1:
        return f"its bottom is not below its top (y1={y1}, y2={y2})"
    if x2 <= x1:
        return f"its right side is not right of its left (x1={x1}, x2={x2})"
    if len(codes) not in (0, CODES_PER_MASK):
        return f"it has {len(codes)} segmentation tokens, not {CODES_PER_MASK} or none"
    if codes and max(codes) >= NUM_SEGMENTS:
        return f"its segmentation tokens go up to {max(codes)}, the last is {NUM_SEGMENTS - 1}"
    return None
