"""Chapter 12: boxes and masks as text."""

import math
import random
import re

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from .. import ASSETS
from ..generation import generate
from ..locations import parse_detections
from ..segmentation import load_mask_tokenizer, mask_iou
from ..world.scenes import draw, make_scene, mask, shape_mask
from . import watching
from .exposing import exposing_task
from .tasks import Case, Finding, Mistake, Prediction, Task, faults_left, larger, numbers

# --- 12.1 --------------------------------------------------------------------------------------------------------


def box_to_tokens(box):
    numbers_ = (min(max(int(np.rint(side * 1023)), 0), 1023) for side in box)
    return "".join("<loc" + str(number).zfill(4) + ">" for number in numbers_)


def writing(number=lambda side: min(max(round(side * 1023), 0), 1023), order=(0, 1, 2, 3), form="<loc{:04d}>", glue=""):
    """`box_to_tokens` with one step done differently."""
    return lambda box: glue.join(form.format(number(box[place])) for place in order)


def random_box(generator: random.Random):
    y1, x1 = generator.uniform(0.02, 0.4), generator.uniform(0.02, 0.4)
    return (y1, x1, generator.uniform(y1 + 0.1, 0.98), generator.uniform(x1 + 0.1, 0.98))


WRITERS = {
    "A": writing(lambda side: min(max(round(side * 1024), 0), 1023)),
    "B": writing(lambda side: min(max(int(side * 1023), 0), 1023)),
    "C": writing(order=(1, 0, 3, 2)),
    "D": writing(lambda side: min(round(side * 1023), 1023)),
    "E": writing(lambda side: max(round(side * 1023), 0)),
}


def expose_writers():
    return {
        "A": (0.0, 0.0, 0.75, 0.75),
        "B": (0.0, 0.0, 0.6, 0.6),
        "C": (0.0, 0.0, 0.1, 1.0),
        "D": (-0.004, -0.004, 1.0, 1.0),
        "E": (0.0, 0.0, 1.01, 1.01),
    }


def usable_box(*box):
    if len(box) != 4 or not all(isinstance(side, int | float) for side in box):
        return "a box is four numbers, (y1, x1, y2, x2)"
    if not all(-0.05 <= side <= 1.05 for side in box):
        return f"{box} lies outside of the picture by more than a twentieth"
    return None if box[0] < box[2] and box[1] < box[3] else f"{box} has its bottom above its top, or no area"


def show_writers(expose):
    for name, box in expose().items():
        numbers_ = [" ".join(re.findall(r"-?\d+", write(box))) for write in (box_to_tokens, WRITERS[name])]
        print(f"  {name}  {str(tuple(box)):30} right {numbers_[0]:22} {name} writes {numbers_[1]}")


def one_box(writer):
    return lambda *box: writer(box)


WRITE = exposing_task(
    "12.1",
    right=one_box(box_to_tokens),
    wrong={name: one_box(writer) for name, writer in WRITERS.items()},
    reference=expose_writers,
    usable=usable_box,
    title="five writers of boxes",
    points=3,
    minutes=12,
    level="medium",
    importance="core",
    see='chapter 12, "By hand"; the hints of this task',
    reward=show_writers,
)

# --- 12.2 --------------------------------------------------------------------------------------------------------


def table_of(function):
    """A function of two boxes as one of two tensors of boxes, [n, 4] and [m, 4] -> [n, m]."""

    def table(a, b):
        pairs = [[function(one, other) for other in b.double()] for one in a.double()]
        return torch.tensor(pairs, dtype=torch.float64).to(a.dtype).reshape(len(a), len(b))

    return table


def box_iou(a, b):
    """By the inclusion of intervals: how much two of them share is what both ends allow."""
    shared = 1.0
    for low, high in ((0, 2), (1, 3)):
        shared *= max(0.0, min(a[high], b[high]) - max(a[low], b[low]))
    sizes = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = sum(sizes) - shared
    return shared / union if union > 0 else 0.0


def iou(extent=lambda side: max(side, 0.0), area=lambda h, w: h * w, whole=lambda a, b, both: a + b - both, guard=True):
    """`box_iou` with one step done differently."""

    def function(a, b):
        height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        both = area(extent(height), extent(width))
        union = whole((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]), both)
        return both / union if union > 0 else 0.0 if guard else torch.nan

    return function


def pairs(*change, **named):
    return table_of(iou(*change, **named))


def hull(a, b):
    both = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    sizes = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return both / (sizes - both) if sizes > both else 0.0


def counted_in_pixels(a, b):
    both = max(min(a[2], b[2]) - max(a[0], b[0]) + 1, 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]) + 1, 0.0)
    return both / (sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)) - both)


def one_direction(a, b, axis):
    both = max(min(a[axis + 2], b[axis + 2]) - max(a[axis], b[axis]), 0.0)
    union = a[axis + 2] - a[axis] + b[axis + 2] - b[axis] - both
    return both / union if union > 0 else 0.0


def heights_and_widths(a, b):
    def corners(box):
        return box[0], box[1], box[0] + box[2], box[1] + box[3]

    return box_iou(corners(a), corners(b))


def pair_cases(seed):
    k = larger(seed)
    generator = random.Random(50 + seed)
    box = random_box(generator)
    y1, x1, y2, x2 = box
    h, w = y2 - y1, x2 - x1
    second = random_box(generator)
    others = {
        "they overlap": (y1 + 0.3 * h, x1 + 0.4 * w, y2 + 0.3 * h, x2 + 0.4 * w),
        "one lies in the other": (y1 + 0.2 * h, x1 + 0.1 * w, y2 - 0.3 * h, x2 - 0.2 * w),
        "the same box": box,
        "side by side": (y1 + 0.2 * h, x2 + 0.1, y2 + 0.2 * h, x2 + 0.3),
        "one below the other": (y2 + 0.1, x1 + 0.2 * w, y2 + 0.4, x2 + 0.1),
        "apart in both directions": (y2 + 0.2, x2 + 0.1, y2 + 0.5, x2 + 0.3),
        "they touch": (y1, x2, y2, x2 + w),
    }
    for note, other in others.items():
        yield Case((torch.tensor([box]), torch.tensor([other])), sizes={}, note=f"one box against one: {note}")
    flat = torch.tensor([[y1, x1, y1, x2]])
    yield Case((flat, flat.clone()), note="two boxes without an area")
    a, b = torch.tensor([box, second]), torch.tensor(list(others.values())[: 3 + k])
    yield Case((a, b), sizes={"n": 2, "m": 3 + k}, note="several against several")
    yield Case((b[:3], b[:3].clone()), sizes={"n": 3, "m": 3}, note="as many as others")


def pairs_missing(case, got, want) -> Finding | None:
    if got.ndim == 1:
        return Finding("row by row", f"the shape is {list(got.shape)}, expected {list(want.shape)}",
                       "each box of a is to be compared with every box of b")  # fmt: skip
    return None


def show_iou(thing):
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    shifts = (0.0, 0.1, 0.25, 0.5, 1.0)
    moved = torch.tensor([[0.0, shift, 1.0, 1.0 + shift] for shift in shifts])
    print("  a box against itself, shifted to the right by a part of its width:")
    for shift, value in zip(shifts, thing(whole, moved)[0].tolist(), strict=True):
        print(f"  shifted by {shift:.2f}   IoU {value:.2f}")


IOU = Task(
    id="12.2",
    title="intersection over union, all pairs at once",
    points=3,
    minutes=12,
    level="medium",
    importance="core",
    prediction=Prediction(
        "A box is shifted to the side by half of its width. Its IoU with the old box is:",
        truth=1 / 3,
        tempting=0.5,
        why="Half of each box is shared, so the intersection is 1/2 and the union 3/2.",
    ),
    reference=table_of(box_iou),
    symptoms=[pairs_missing],
    cases=pair_cases,
    gradients=False,
    see='chapter 12, "How good is a box?"; the hints of this task',
    reward=show_iou,
    mistakes=[
        Mistake("negative sides", "boxes that are apart get an intersection: a height or width below zero was "
                "multiplied as it was", pairs(extent=lambda side: side)),
        Mistake("negative sides", "boxes that are apart in both directions get an intersection: two negative sides "
                "have a positive product", pairs(lambda side: side, lambda h, w: max(h * w, 0.0))),
        Mistake("negative sides", "boxes that are apart get an intersection: its height or width is taken without its "
                "sign", pairs(extent=abs)),
        Mistake("negative sides", "one of the two sides of the intersection may still fall below zero",
                pairs(lambda side: side, lambda h, w: max(h, 0.0) * w)),
        Mistake("negative sides", "one of the two sides of the intersection may still fall below zero",
                pairs(lambda side: side, lambda h, w: h * max(w, 0.0))),
        Mistake("intersection counted twice", "the two areas are added as they are: what both cover is counted twice, "
                "and a box would agree with itself by half", pairs(whole=lambda a, b, both: a + b)),
        Mistake("not the union", "the intersection is divided by the smaller box: a small box inside a large one would "
                "be perfect", pairs(whole=lambda a, b, both: min(a, b))),
        Mistake("not the union", "the intersection is divided by the larger box", pairs(
            whole=lambda a, b, both: max(a, b))),
        Mistake("not the union", "the intersection is divided by one of the boxes", pairs(whole=lambda a, b, both: a)),
        Mistake("not the union", "the intersection is divided by one of the boxes", pairs(whole=lambda a, b, both: b)),
        Mistake("twice the intersection", "your number is 2 I / (A + B), the Dice score: it is larger than IoU",
                table_of(lambda a, b: (lambda i: 2 * i / (1 + i))(box_iou(a, b)))),
        Mistake("min and max swapped", "the intersection begins at the smaller and ends at the larger side: that is "
                "the box around both", table_of(hull)),
        Mistake("height and width for corners", "the last two numbers of a box are taken for its height and width: "
                "they are its bottom and its right side", table_of(heights_and_widths)),
        Mistake("division by zero", "two boxes without an area have a union of 0: they are to give 0.0",
                pairs(guard=False)),
        Mistake("number added below", "a small number is added to the union, so equal boxes have less than 1: it is "
                "the "
                "union of 0 alone that needs care", [pairs(whole=lambda a, b, both, eps=eps: a + b - both + eps)
                                                     for eps in (1e-2, 1e-3, 1e-4)]),
        Mistake("pixels counted", "1 is added to the sides, as for whole pixels: these boxes are real numbers",
                table_of(counted_in_pixels)),
        Mistake("one box for both", "both areas are those of the boxes of a",
                pairs(whole=lambda a, b, both: 2 * a - both)),
        Mistake("one box for both", "both areas are those of the boxes of b",
                pairs(whole=lambda a, b, both: 2 * b - both)),
        Mistake("one direction only", "only heights are compared: a box has a width, too", table_of(
            lambda a, b: one_direction(a, b, 0))),
        Mistake("one direction only", "only widths are compared: a box has a height, too", table_of(
            lambda a, b: one_direction(a, b, 1))),
    ],
)  # fmt: skip

# --- 12.3 --------------------------------------------------------------------------------------------------------

THING = r"((?:<loc[0-9]{4}>)*)\s*((?:<seg[0-9]{3}>)*)([^<>]*)"


def good_box(n):
    return len(n) == 4 and max(n) <= 1023 and n[0] < n[2] and n[1] < n[3]


def good_codes(codes):
    return len(codes) in (0, 16) and all(code <= 127 for code in codes)


def reading(box=good_box, codes=good_codes, strip=True, all_dropped=True, empty=False, first=False, stop=False,
            keep_box=False, order=(0, 1, 2, 3), anywhere=False, cut=";", pattern=THING, fits=re.fullmatch,
            form=lambda label, box, codes: (label, box, codes), drop_bad=True, drop=str):  # fmt: skip
    """The parser, with one rule done differently for the imitations."""

    def read_things(text):
        things, dropped = [], []
        for piece in text.split(cut):
            piece = piece.strip()
            if not piece and not empty:
                continue
            match = fits(pattern, piece)
            if match and not anywhere:
                places, segments = ([int(n) for n in re.findall("[0-9]+", match[group])] for group in (1, 2))
            else:
                places = [int(n) for n in re.findall("<loc([0-9]{4})>", piece)]
                segments = [int(n) for n in re.findall("<seg([0-9]{3})>", piece)]
            label = re.sub("<(?:loc|seg)[0-9]+>", "", piece) if anywhere else match[3] if match else ""
            good = (match or anywhere) and box(places)
            if good and (codes(segments) or keep_box):
                segments = segments if codes(segments) else []
                things.append(form(label.strip() if strip else label, [places[i] for i in order], segments))
                if first:
                    break
            elif all_dropped and (drop_bad or not match):
                dropped.append(drop(piece))
                if stop:
                    break
        return things, dropped

    return read_things


read_things = reading()


def reading_as_it_is(text):
    """Blanks stay around what is dropped."""
    things, dropped = read_things(text)
    pieces = [piece for piece in text.split(";") if piece.strip() in dropped and piece.strip()]
    return things, pieces


def reading_known_forms(text):
    """What does not even fit the pattern is passed over."""
    things, dropped = read_things(text)
    return things, [piece for piece in dropped if re.fullmatch(THING, piece)]


def text_cases(seed):
    k = larger(seed)
    generator = random.Random(900 + seed)
    y1, x1 = generator.randrange(400), generator.randrange(400)
    y2, x2 = generator.randrange(y1 + 20, 1000), generator.randrange(x1 + 20, 1000)

    def locs(*places):
        return "".join(f"<loc{place:04d}>" for place in places)

    box, seg = locs(y1, x1, y2, x2), "".join(f"<seg{generator.randrange(128):03d}>" for _ in range(16))
    other = locs(0, x1 + 3, 1023, 1023)
    for text, note in (
        (f"{box} {'very ' * k}red circle", "one thing"),
        (f"{box} red circle ; {other} star ;{box}{seg} large blue ring", "three things, one with a mask"),
        ("", "an empty answer"),
        ("  ;  ; ", "nothing between the ;"),
        (f"{box}", "no label"),
        ("there is nothing like that", "no tokens"),
        (f"{locs(y1, x1, y2)} circle ; {other} star", "three locations"),
        (f"{box}<loc0007> circle", "five locations"),
        (f"{locs(y2, x1, y1, x2)} circle ; {box} ring", "bottom above top"),
        (f"{locs(y1, x2, y2, x1)} circle", "right before left"),
        (f"{locs(y1, x1, y1, x2)} circle", "no height"),
        (f"{locs(y1, x1, 1024, x2)} circle", "a number above 1023"),
        (f"{box}{seg[:-8]} circle ; {box} ring", "fifteen segments"),
        (f"{box}{seg[8:]}<seg128> circle", "a segment above 127"),
        (f"{box} {seg}  red   circle  ", "spaces"),
        (f"{seg}{box} circle", "segments before locations"),
        (f"red {box} circle", "a word before the box"),
        (f"{box} circle <loc00", "cut off"),
        (f"{box}{seg[:-8]}<seg127> circle", "the last segment is 127"),
        (f"<loc1023>{box[9:18]} circle ; {locs(y1, x1)[:-1]}0><loc0999><loc0999> ring", "too many digits"),
        (f"{box[:18]}<loc999><loc999> circle ; {box} ring", "too few digits"),
        (f"{box}{seg[:-8]}<seg07> circle", "two digits in a segment"),
    ):
        yield Case((text,), note=note)


def show_things(thing):
    text = "<loc0256><loc0128><loc0767><loc0512> red circle ; <loc0100><loc0200> star ; "
    text += "<loc0500><loc0000><loc0900><loc0300>"
    things, dropped = thing(text)
    for label, places, codes in things:
        print(f"  understood: {label or '(no label)'} at {list(places)}, {len(codes)} codes")
    for piece in dropped:
        print(f"  dropped:    {piece}")


PARSE = Task(
    id="12.3",
    title="a parser that no text can break",
    points=4,
    minutes=20,
    level="hard",
    importance="core",
    reference=read_things,
    cases=text_cases,
    gradients=False,
    see='chapter 12, "Reading what a model wrote"; the hints of this task',
    reward=show_things,
    mistakes=[
        Mistake("number of locations", "a piece with three or five locations is not dropped: a box has four",
                reading(box=lambda n: len(n) >= 4 and max(n) <= 1023 and n[0] < n[2] and n[1] < n[3])),
        Mistake("number of locations", "a piece with three or five locations is not dropped: a box has four",
                reading(box=lambda n: len(n) >= 3 and max(n) <= 1023 and n[0] < n[2] and n[1] < n[-1],
                        order=(0, 1, 2))),
        Mistake("box without an area", "a box whose bottom is not below its top, or its right not right of its left, "
                "is not dropped", reading(box=lambda n: len(n) == 4 and max(n) <= 1023)),
        Mistake("box without an area", "a box of no height or width is not dropped", reading(
            box=lambda n: len(n) == 4 and max(n) <= 1023 and n[0] <= n[2] and n[1] <= n[3])),
        Mistake("box without an area", "only one of the two directions is checked", reading(
            box=lambda n: len(n) == 4 and max(n) <= 1023 and n[0] < n[2])),
        Mistake("box without an area", "only one of the two directions is checked", reading(
            box=lambda n: len(n) == 4 and max(n) <= 1023 and n[1] < n[3])),
        Mistake("number above 1023", "a number that no location token has is not dropped", reading(
            box=lambda n: len(n) == 4 and n[0] < n[2] and n[1] < n[3])),
        Mistake("box compared in x1 y1 order", "the first number is compared with the second: top and bottom are the "
                "first and the third", reading(box=lambda n: len(n) == 4 and max(n) <= 1023 and n[0] < n[1]
                                               and n[2] < n[3])),
        Mistake("y and x swapped", "the numbers come back as x1 y1 x2 y2", reading(order=(1, 0, 3, 2))),
        Mistake("number of segments", "a mask of other than sixteen codes is not dropped", reading(
            codes=lambda codes: all(code <= 127 for code in codes))),
        Mistake("number above 127", "a code that no segment token has is not dropped", reading(
            codes=lambda codes: len(codes) in (0, 16))),
        Mistake("numbers not limited", "neither the limit of the locations nor that of the segments is checked: the "
                "last tokens are <loc1023> and <seg127>, and a piece with a higher number is dropped", reading(
                    box=lambda n: len(n) == 4 and n[0] < n[2] and n[1] < n[3],
                    codes=lambda codes: len(codes) in (0, 16))),
        Mistake("mask not checked", "neither the number of codes nor their size is checked", reading(
            codes=lambda codes: True)),
        Mistake("box kept without its mask", "a thing whose mask is broken is kept without it: the whole piece is to "
                "be dropped", reading(keep_box=True)),
        Mistake("masks always wanted", "a thing without a mask is dropped", reading(
            codes=lambda codes: len(codes) == 16 and max(codes) <= 127)),
        Mistake("label not stripped", "blanks around the label are left in", reading(strip=False)),
        Mistake("dropped pieces not told", "nothing is told about what was dropped", reading(all_dropped=False)),
        Mistake("empty pieces dropped", "a piece with nothing in it counts as dropped: an empty answer is an answer",
                reading(empty=True)),
        Mistake("first thing only", "only the first thing of an answer comes back", reading(first=True)),
        Mistake("stops at a broken piece", "after a piece that is dropped the rest of the text is not read",
                reading(stop=True)),
        Mistake("tokens anywhere", "tokens are picked out wherever they stand: pieces that are broken, cut off or in "
                "another order count as things", reading(anywhere=True)),
        Mistake("pieces not cut", "the text is not cut at each `;`", reading(cut="\0")),
        Mistake("not the whole piece", "a piece is understood although something stands behind what fits: the whole of "
                "it has to fit", [reading(fits=re.match), reading(fits=re.search)]),
        Mistake("largest number refused", "the location 1023 is refused: it is the last of the 1024", reading(
            box=lambda n: len(n) == 4 and max(n) < 1023 and n[0] < n[2] and n[1] < n[3])),
        Mistake("largest number refused", "the segment 127 is refused: it is the last of the 128", reading(
            codes=lambda codes: len(codes) in (0, 16) and all(code < 127 for code in codes))),
        Mistake("label required", "a thing without a label is dropped: it may be empty", [
            reading(pattern=THING.replace("[^<>]*", "[^<>]+")),
            reading(pattern=THING.replace("([^<>]*)", r"\s*([^<>]+)"))]),
        Mistake("blanks not allowed for", "blanks between the tokens make a thing broken: they may stand around each "
                "of "
                "the three", [reading(pattern=THING.replace(r"\s*", "", 1)),
                              reading(pattern=THING.replace(r"\s*", "", 1).replace("([^<>]*)", r"\s*([^<>]*)"))]),
        Mistake("blanks around dropped pieces", "blanks around what was dropped are left in", reading_as_it_is),
        Mistake("some pieces not told", "a piece whose form is right and whose numbers are not is neither understood "
                "nor "
                "dropped", reading(drop_bad=False)),
        Mistake("some pieces not told", "a piece whose form is not right is neither understood nor dropped",
                reading_known_forms),
        Mistake("numbers as fractions", "the box comes back in fractions: the numbers are wanted as they are",
                [reading(form=lambda label, box, codes, last=last: (label, [n / last for n in box], codes))
                 for last in (1023, 1024)]),
        Mistake("None for no codes", "codes are None where there are none: an empty list is wanted",
                reading(form=lambda label, box, codes: (label, box, codes or None))),
        Mistake("number of digits", "tokens with fewer or more digits than four (or three) are taken for tokens",
                [reading(pattern=THING.replace("{4}", "+")),
                 reading(pattern=THING.replace("{4}", "+").replace("{3}", "+")),
                 reading(pattern=THING.replace("{3}", "+"))]),
        Mistake("largest of nothing", "a piece without locations ends in an error: `max` of an empty list. Ask first "
                "how "
                "many there are", reading(
                    box=lambda n: max(n) <= 1023 and len(n) == 4 and n[0] < n[2] and n[1] < n[3])),
    ],
)  # fmt: skip

# --- 12.4 --------------------------------------------------------------------------------------------------------


def quantise(z, codebook):
    vectors = z.flatten(2).transpose(1, 2)  # [B, h * w, D]
    codes = torch.cdist(vectors, codebook[None]).argmin(dim=-1)
    e = codebook[codes].transpose(1, 2).reshape(z.shape)
    return z + (e - z).detach(), codes


def run_quantise(function, z, codebook):
    """(quantised, codes, gradient that reaches z, gradient that reaches the codebook)"""
    z, codebook = z.clone().requires_grad_(), codebook.clone().requires_grad_()
    with torch.enable_grad():
        result = function(z, codebook)
        if result is None:
            return None
        if not isinstance(result, tuple | list) or len(result) != 2 or not isinstance(result[0], torch.Tensor):
            raise TypeError(f"two tensors are to come back, quantised and codes; this is a {type(result).__name__}")
        quantised, codes = result
        found = (None, None)
        if quantised.requires_grad:
            total = (quantised * numbers(3, *quantised.shape)).sum()
            found = torch.autograd.grad(total, (z, codebook), allow_unused=True)
    zeros = (torch.zeros_like(z), torch.zeros_like(codebook))
    reaches_z, reaches_codes = (b if a is None else a for a, b in zip(found, zeros, strict=True))
    return {
        "codes": codes,
        "quantised": quantised.detach(),
        "gradient of z": reaches_z,
        "gradient of the codebook": reaches_codes.detach(),
    }


def quantising(choose=lambda d, dot, v, book: d.argmin(-1), back=lambda z, e: z + (e - z).detach(), place=None,
               order=None):  # fmt: skip
    """`quantise` with one step done differently."""

    def function(z, codebook):
        B, D, h, w = z.shape
        vectors = z.flatten(2).transpose(1, 2)
        if order == "columns":
            vectors = z.transpose(2, 3).flatten(2).transpose(1, 2)
        if order in ("mixed", "mixed in"):
            vectors = z.reshape(B, h * w, D)
        distances = torch.cdist(vectors, codebook[None])
        codes = choose(distances, vectors @ codebook.T, vectors, codebook)
        e = codebook[codes]
        if order == "columns":
            e = e.transpose(1, 2).unflatten(2, (w, h)).transpose(2, 3)
        elif order == "mixed" or place == "mixed":
            e = e.reshape(B, D, h, w)
        else:
            e = e.transpose(1, 2).reshape(B, D, h, w)
        return back(z, e), codes

    return function


def lengths(book):
    return book.square().sum(-1)


def vector_cases(seed):
    k = larger(seed)
    sizes = {"B": 3, "D": 6 + k, "h": 2, "w": 4 + k, "K": 10 + k}
    yield Case((numbers(seed, 3, 6 + k, 2, 4 + k), numbers(seed + 40, 10 + k, 6 + k)), sizes=sizes)
    yield Case((numbers(seed, 2, 5, 4, 3, shift=1.0), numbers(seed + 50, 7, 5, scale=2.0)),
               sizes={"B": 2, "D": 5, "h": 4, "w": 3, "K": 7}, note="codes of very different lengths")  # fmt: skip
    yield Case((numbers(seed, 1, 2, 4, 4), numbers(seed + 60, 8, 2, scale=0.7)), sizes={"D": 2, "K": 8})


def show_quantise(thing):
    """The trained mask tokenizer's codes of a star, chosen by the learner's function."""
    tokenizer = load_mask_tokenizer(ASSETS / "mask-tokenizer")
    star = torch.from_numpy(shape_mask("star", angle=5.0)).float()[None, None]  # [1, 1, 64, 64]
    with torch.no_grad():
        z = tokenizer.encoder(2 * star - 1)
        quantised, codes = thing(z, tokenizer._vq_vae._embedding)
        drawn = tokenizer.decoder(quantised)[0, 0] > 0
    print("  the trained mask tokenizer, with your quantiser, writes a star of 64 x 64 pixels as")
    for row in codes.view(4, 4).tolist():
        print("    " + "  ".join(f"{code:3d}" for code in row))
    print(f"  and draws it again with {int(drawn.sum())} pixels inside, of {int((star > 0.5).sum())}")


QUANTISE = Task(
    id="12.4",
    title="the nearest code, straight through",
    points=3,
    minutes=15,
    level="medium",
    importance="deepen",
    reference=quantise,
    cases=vector_cases,
    use=run_quantise,
    gradients=False,
    see='chapter 12, "The mask tokenizer: quantise" and "Straight through"; the hints of this task',
    reward=show_quantise,
    mistakes=[
        Mistake("dot product instead of distance", "the code with the largest dot product is taken: a long code then "
                "wins against a near one", quantising(lambda d, dot, v, book: dot.argmax(-1))),
        Mistake("dot product instead of distance", "the code with the smallest dot product is taken: that is no "
                "distance", quantising(lambda d, dot, v, book: dot.argmin(-1))),
        Mistake("angle instead of distance", "the code of the most similar direction is taken: how long the vectors "
                "are counts, too", quantising(lambda d, dot, v, book: (dot / lengths(book).sqrt()).argmax(-1))),
        Mistake("two forgotten", "in |z|² - 2 z·e + |e|² the factor 2 is missing",
                quantising(lambda d, dot, v, book: (lengths(book) - dot).argmin(-1))),
        Mistake("sign of the product", "in |z|² - 2 z·e + |e|² the sign of the middle term is turned round",
                quantising(lambda d, dot, v, book: (lengths(book) + 2 * dot).argmin(-1))),
        Mistake("farthest code", "the farthest code is taken", quantising(lambda d, dot, v, book: d.argmax(-1))),
        Mistake("sum of sizes", "the distance is the sum of the absolute differences: Euclid's is wanted",
                quantising(lambda d, dot, v, book: (v[:, :, None] - book).abs().sum(-1).argmin(-1))),
        Mistake("vectors mixed up", "z is cut into pieces of D numbers as they lie in memory: the D numbers of a "
                "vector lie along axis 1, and have to be brought to the end first", quantising(order="mixed")),
        Mistake("codes mixed up", "the codes are right, and their vectors are put back in another order: the result "
                "of the lookup has D at the end", quantising(place="mixed")),
        Mistake("column by column", "the grid is read column by column: row by row is the order of the tokens",
                quantising(order="columns")),
        Mistake("straight through missing", "the values are right, and no gradient reaches z: an encoder before it "
                "would learn nothing", quantising(back=lambda z, e: e)),
        Mistake("straight through missing", "the values are right, and no gradient reaches z: an encoder before it "
                "would learn nothing", quantising(back=lambda z, e: (z + e - z).detach())),
        Mistake("wrong part detached", "the values are right, and the gradient of z has the wrong sign: what is cut "
                "off is the part that should carry it", quantising(back=lambda z, e: z.detach() + (e.detach() - z))),
        Mistake("wrong part detached", "the values are right, and the gradient of z has the wrong sign, while the "
                "codebook gets one, too", quantising(back=lambda z, e: z.detach() + (e - z))),
        Mistake("codebook gets a gradient", "the gradient reaches z, and the codebook as well: codes are moved "
                "otherwise, and this gradient is to go to z alone", quantising(back=lambda z, e: z + e - z.detach())),
        Mistake("not quantised", "z comes back as it was: forward, the codes' vectors are wanted",
                quantising(back=lambda z, e: z)),
        Mistake("vectors mixed up", "z is cut into pieces of D numbers as they lie in memory, and what is looked up is "
                "put back with a transpose: the D numbers of a vector lie along axis 1, and have to be brought to "
                "the end "
                "first", quantising(order="mixed in")),
        Mistake("wrong part detached", "the value is z, and the gradient is the codebook's: the two have changed "
                "places",
                quantising(back=lambda z, e: e + (z - e).detach())),
    ],
)  # fmt: skip

# --- 12.5 --------------------------------------------------------------------------------------------------------

FAULTS = {  # what can be observed of each, and its name
    "divisor": (
        "the far edge of the picture is never reached, as if the last token's number were 1024",
        "1024 instead of 1023",
    ),
    "order": ("the four numbers are read as x first, and the model writes y first", "y and x swapped"),
    "floor": ("pixels are cut off below, so that boxes drift towards the top left corner", "floor instead of round"),
}


def read_box(text, width, height, faults=()):
    places = [int(n) / (1024 if "divisor" in faults else 1023) for n in re.findall("<loc([0-9]{4})>", text)[:4]]
    y1, x1, y2, x2 = [places[i] for i in (1, 0, 3, 2)] if "order" in faults else places
    pixel = int if "floor" in faults else round
    return pixel(x1 * width), pixel(y1 * height), pixel(x2 * width), pixel(y2 * height)


def reader_cases(seed):
    k = larger(seed)
    generator = random.Random(300 + seed)
    for width, height in ((640, 400), (4000, 3001), (97 + k, 1200), (224, 224), (3000, 2000)):
        y1, x1 = generator.randrange(300), generator.randrange(300)
        y2, x2 = generator.randrange(500, 1000), generator.randrange(500, 1000)
        yield Case((f"<loc{y1:04d}><loc{x1:04d}><loc{y2:04d}><loc{x2:04d}> cat", width, height))
    yield Case((f"<loc0000><loc{x1:04d}><loc1023><loc1023> dog", 4000, 2250), note="up to the far edge")
    two = f"<loc0100><loc{x1:04d}><loc0800><loc0900> cat ; <loc0001><loc0002><loc0300><loc0400> dog"
    yield Case((two, 640, 400), note="an answer with two boxes: the first is asked for")


def pixels(place):
    """`read_box` with another way from a fraction and a side to a pixel."""

    def function(text, width, height):
        y1, x1, y2, x2 = (int(n) / 1023 for n in re.findall("<loc([0-9]{4})>", text)[:4])
        return place(x1, width), place(y1, height), place(x2, width), place(y2, height)

    return function


def exactly_four(text, width, height):
    y1, x1, y2, x2 = [int(n) / 1023 for n in re.findall("<loc([0-9]{4})>", text)]
    return round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)


def last_four(text, width, height):
    found = re.findall("<loc[0-9]{4}>", text)
    return read_box("".join(found[-4:]), width, height)


def y_first(text, width, height):
    x1, y1, x2, y2 = read_box(text, width, height)
    return y1, x1, y2, x2


def sides_swapped(text, width, height):
    y1, x1, y2, x2 = (int(n) / 1023 for n in re.findall("<loc([0-9]{4})>", text)[:4])
    return round(x1 * height), round(y1 * width), round(x2 * height), round(y2 * width)


def unrounded(text, width, height):
    y1, x1, y2, x2 = (int(n) / 1023 for n in re.findall("<loc([0-9]{4})>", text)[:4])
    return x1 * width, y1 * height, x2 * width, y2 * height


def square(text, width, height):
    x1, y1, x2, y2 = read_box(text, 224, 224)
    return x1, y1, x2, y2


def clear_scene(first: int, things: int):
    """A scene of several things, each of which has a name of its own."""
    for seed in range(first, first + 400):
        scene = make_scene(seed)
        names = {f"{thing.colour} {thing.shape}" for thing in scene.things}
        if len(scene.things) == len(names) == things:
            return scene
    raise RuntimeError("no such scene")


def ask_for_things(scene, picture, task: str) -> list[str]:
    """What the trained model writes for "detect ..." or "segment ..." of each thing."""
    model, processor = watching.trained()
    prompts = [f"{task} {thing.colour} {thing.shape}" for thing in scene.things]
    return generate(model, processor, [picture] * len(prompts), prompts, max_new_tokens=32)


def show_reader(thing):
    """The trained model detects, and the learner's function says where."""
    from ..visualize import show_boxes  # here: matplotlib is not needed for anything else

    if watching.trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so it cannot speak.")
        return
    scene = clear_scene(7100, 3)
    picture = draw(scene, size=256).resize((384, 256))  # wide: width and height matter
    boxes, names = [], []
    for text, wanted in zip(ask_for_things(scene, picture, "detect"), scene.things, strict=True):
        if not parse_detections(text)[0]:
            print(f"  {wanted.colour} {wanted.shape}: the model's answer names no box")
            continue
        x1, y1, x2, y2 = thing(text, *picture.size)
        names.append(f"{wanted.colour} {wanted.shape}")
        print(f"  {names[-1]}: x {x1} to {x2} of {picture.size[0]}, y {y1} to {y2} of {picture.size[1]}")
        boxes.append((y1, x1, y2, x2))
    show_boxes(picture, boxes or np.zeros((0, 4)), names, "detected, and read by you")


READER = Task(
    id="12.5",
    title="find the three faults",
    points=3,
    minutes=10,
    level="medium",
    importance="deepen",
    reference=read_box,
    cases=reader_cases,
    gradients=False,
    see='chapter 12, "Boxes to tokens and back" and "Boxes to pixels"',
    reward=show_reader,
    mistakes=[
        *faults_left(FAULTS, lambda some: lambda *inputs: read_box(*inputs, faults=some)),
        Mistake("last box", "of an answer with two boxes yours is the last: the text begins with the one asked for",
                last_four),
        Mistake("four tokens exactly", "an answer may go on after the first box: take the first four location tokens",
                exactly_four),
        Mistake("y first in the result", "the result is y1, x1, y2, x2: PIL, which gets it, wants x first", y_first),
        Mistake("width and height swapped", "x is multiplied by the height and y by the width", sides_swapped),
        Mistake("not rounded", "the pixels are no whole numbers", unrounded),
        Mistake("pixels of the square", "the pixels are those of the square that the model saw, and not the picture's",
                square),
        Mistake("last pixel", "the fractions are multiplied by the side less one: the far edge is the side itself",
                pixels(lambda fraction, side: round(fraction * (side - 1)))),
        Mistake("rounded up", "pixels are rounded up: the nearest is wanted",
                pixels(lambda fraction, side: math.ceil(fraction * side))),
        Mistake("rounded too early", "the fractions are rounded before they are multiplied, and their error with them",
                [pixels(lambda fraction, side, digits=digits: round(round(fraction, digits) * side))
                 for digits in (1, 2, 3)]),
    ],
)  # fmt: skip

# --- 12.6 --------------------------------------------------------------------------------------------------------


def paste(drawn, box, width, height):
    y1, x1, y2, x2 = (round(side * full) for side, full in zip(box, (height, width, height, width), strict=True))
    pasted = np.zeros((height, width), dtype=bool)
    if y2 > y1 and x2 > x1:
        pasted[y1:y2, x1:x2] = np.asarray(Image.fromarray(drawn).resize((x2 - x1, y2 - y1), 2)) > 0
    return pasted


def pasting(to_pixel=round, threshold=0.0, first_cut=False, resample=2, guard=True, whole=False, turned=False,
            sides="hwhw", order=(0, 1, 2, 3), invert=False, grow=False, window=False,
            inside=lambda resized, limit: resized > limit):  # fmt: skip
    """`paste` with one step done differently."""

    def function(drawn, box, width, height):
        full = {"h": height, "w": width}
        y1, x1, y2, x2 = (to_pixel(box[i] * full[side]) for i, side in zip(order, sides, strict=True))
        if whole:
            y1, x1, y2, x2 = 0, 0, height, width
        if grow:
            y2, x2 = max(y2, y1 + 1), max(x2, x1 + 1)
        pasted = np.zeros((height, width), dtype=bool)
        if guard and (y2 <= y1 or x2 <= x1):
            return pasted
        size = (width, height) if window else (y2 - y1, x2 - x1) if turned else (x2 - x1, y2 - y1)
        source = (drawn > threshold).astype(np.float32) if first_cut else drawn
        resized = np.asarray(Image.fromarray(source).resize(size, resample))
        resized = resized.T if turned == "back" else resized[y1:y2, x1:x2] if window else resized
        found = inside(resized, 0.5 if first_cut else threshold)
        pasted[y1:y2, x1:x2] = ~found if invert else found
        return pasted

    return function


def unresized(drawn, box, width, height):
    y1, x1 = round(box[0] * height), round(box[1] * width)
    pasted = np.zeros((height, width), dtype=bool)
    pasted[y1 : y1 + 64, x1 : x1 + 64] = drawn > 0
    return pasted


def mask_cases(seed):
    k = larger(seed)
    generator = random.Random(70 + seed)

    def smooth(shift=0.0):
        rough = numbers(seed + round(10 * shift), 1, 1, 7, 7, shift=shift)
        return F.interpolate(rough, (64, 64), mode="bicubic", align_corners=False)[0, 0].numpy()

    yield Case((smooth(), random_box(generator), 150 + k, 90), sizes={"height": 90, "width": 150 + k})
    yield Case((smooth(0.3), random_box(generator), 61, 203), sizes={"height": 203, "width": 61}, note="a tall picture")
    yield Case((smooth(), (0.0, 0.129, 1.0, 0.871), 97, 71), note="as high as the picture")
    yield Case((smooth(), (0.31, 0.31, 0.69, 0.69), 100, 100), note="a square in a square")
    yield Case((smooth(), (0.4, 0.4, 0.4004, 0.8), 80, 60), note="a box without a pixel")


def show_paste(thing):
    """The trained model segments, the mask tokenizer draws, the learner's function pastes."""
    from ..visualize import show_masks  # here: matplotlib is not needed for anything else

    if watching.trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so it cannot speak.")
        return
    tokenizer = load_mask_tokenizer(ASSETS / "mask-tokenizer")
    scene = clear_scene(7200, 3)
    picture = draw(scene, size=256)
    masks, names = [], []
    for index, text in enumerate(ask_for_things(scene, picture, "segment")):
        wanted = f"{scene.things[index].colour} {scene.things[index].shape}"
        found = [detection for detection in parse_detections(text)[0] if detection.codes]
        if not found:
            print(f"  {wanted}: the model's answer holds no mask")
            continue
        drawn = tokenizer.decode_signed(torch.tensor([found[0].codes]))[0].numpy()
        masks.append(thing(drawn, found[0].box, *picture.size))
        print(f"  {wanted}: IoU with the true mask {mask_iou(masks[-1], mask(scene, index, size=256)):.2f}")
        names.append(wanted)
    if masks:
        show_masks(picture, np.stack(masks), names, "segmented, and pasted by you")


PASTE = Task(
    id="12.6",
    title="the trained model segments, you paste",
    points=3,
    minutes=12,
    level="medium",
    importance="core",
    reference=paste,
    cases=mask_cases,
    gradients=False,
    see='chapter 12, "From text to mask"; the hints of this task',
    reward=show_paste,
    mistakes=[
        Mistake("width and height swapped", "the size of the resized mask is given as (height, width): PIL wants "
                "(width, height)", pasting(turned=True)),
        Mistake("width and height swapped", "y is multiplied by the width and x by the height", pasting(sides="whwh")),
        Mistake("y and x swapped", "the box is read as x1 y1 x2 y2", pasting(order=(1, 0, 3, 2))),
        Mistake("floor instead of round", "the sides of the box are cut off to pixels below, and not rounded",
                pasting(to_pixel=int)),
        Mistake("threshold", "the mask is cut at 0.5: these values go from -1 to +1, and what is above 0 is inside",
                pasting(threshold=0.5)),
        Mistake("upside down", "outside and inside are swapped", pasting(invert=True)),
        Mistake("cut before the stretch", "the mask is cut first and stretched after: each of its 64 x 64 "
                "values becomes a block of pixels, and the outline gets steps", pasting(first_cut=True)),
        Mistake("cut before the stretch", "the mask is cut to 0 and 1 before it is stretched: bilinear mixes 0 and 1, "
                "so every pixel that one value from inside has a share in is above 0, and the mask has grown",
                pasting(first_cut=True, inside=lambda resized, limit: resized > 0)),
        Mistake("nearest pixel", "the mask is stretched by taking the nearest value: its outline gets steps",
                pasting(resample=0)),
        Mistake("bicubic", "the mask is stretched by another rule than bilinear, PIL's default perhaps",
                pasting(resample=3)),
        Mistake("box without a pixel", "a box that is rounded to no pixel at all must give an empty mask",
                pasting(guard=False)),
        Mistake("box ignored", "the mask is stretched over the whole picture: it belongs into the box",
                pasting(whole=True)),
        Mistake("not stretched", "the mask is pasted as it is, 64 x 64", unresized),
        Mistake("width and height swapped", "the size of the resized mask is given as (height, width), and its "
                "transpose "
                "is pasted: the drawing lies on its side", pasting(turned="back")),
        Mistake("box without a pixel", "a box that is rounded to no pixel at all gets one: its mask is empty",
                pasting(grow=True)),
        Mistake("threshold", "everything that is not exactly 0 counts as inside: what is above 0 is",
                pasting(inside=lambda resized, limit: resized != 0)),
        Mistake("box as a window", "the drawing is stretched over the whole picture, and the box cuts a window out "
                "of it: "
                "it is to be stretched over the box", pasting(window=True)),
    ],
)  # fmt: skip

TASKS = [WRITE, IOU, PARSE, QUANTISE, READER, PASTE]
