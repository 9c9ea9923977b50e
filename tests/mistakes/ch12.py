"""Boxes and masks, as learners write them."""

import re

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from . import right, wrong

# --- 12.1 --------------------------------------------------------------------------------------------------------


def boxes(**changed):
    given = {
        "A": (0.0, 0.0, 0.8, 0.8),
        "B": (0.0, 0.0, 0.2, 0.2),
        "C": (0.0, 0.1, 1.0, 1.0),
        "D": (-0.01, -0.01, 0.1, 0.1),
        "E": (0.0, 0.0, 1.0, 1.02),
    }
    return lambda: {**given, **changed}


right("12.1")(boxes())
right("12.1")(boxes(E=(0, 0, 1.03, 1.03), D=(-0.02, -0.02, 1, 1)))
wrong("12.1", "not exposed")(boxes(A=(0.0, 0.0, 0.1, 0.1)))
wrong("12.1", "not exposed")(boxes(C=(0.1, 0.1, 1.0, 1.0)))
wrong("12.1", "not exposed")(boxes(D=(-0.0001, 0.0, 1.0, 1.0)))
wrong("12.1", "exposes others")(boxes(A=(0.0, 0.0, 0.7, 0.9)))
wrong("12.1", "exposes others")(boxes(D=(-0.01, 0.0, 0.9, 1.0)))
wrong("12.1", "exposes others")(boxes(B=(0.0, 0.0, 0.6, 0.7)))
wrong("12.1", "not an input")(boxes(B=(0.6, 0.6, 0.1, 0.1)))
wrong("12.1", "not an input")(boxes(E=(0.0, 0.0, 2.0, 2.0)))
wrong("12.1", "not an input")(boxes(E=(0.0, 0.0, 1.0)))
wrong("12.1", "structure")(lambda: {"a": (0.0, 0.0, 1.0, 1.0)})


# --- 12.2 --------------------------------------------------------------------------------------------------------


def all_pairs(function):
    """A function of two boxes, as learners write it in two loops."""

    def table(a, b):
        rows = []
        for one in a.tolist():
            rows.append([float(function(one, other)) for other in b.tolist()])
        return torch.tensor(rows)

    return table


@right("12.2")
@all_pairs
def _(a, b):
    top, left = max(a[0], b[0]), max(a[1], b[1])
    bottom, right_ = min(a[2], b[2]), min(a[3], b[3])
    intersection = max(bottom - top, 0) * max(right_ - left, 0)
    area_a = (a[2] - a[0]) * (a[3] - a[1])
    area_b = (b[2] - b[0]) * (b[3] - b[1])
    union = area_a + area_b - intersection
    return intersection / union if union else 0.0


@right("12.2")
@all_pairs
def _(a, b):
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    low, high = torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])
    inter = (high - low).clamp(min=0).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inter
    return (inter / union.clamp(min=1e-12)).item()


@right("12.2")
@all_pairs
def _(a, b):
    if a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]:
        return 0.0
    h = min(a[2], b[2]) - max(a[0], b[0])
    w = min(a[3], b[3]) - max(a[1], b[1])
    return h * w / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - h * w)


def ratio(inter, a, b, union=None):
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    u = area_a + area_b - inter if union is None else union(area_a, area_b)
    return inter / u if u > 0 else 0.0


def overlap(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])), max(0, min(a[3], b[3]) - max(a[1], b[1]))


@wrong("12.2", "negative sides")
@all_pairs
def _(a, b):
    h, w = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return ratio(h * w, a, b)


@wrong("12.2", "negative sides")
@all_pairs
def _(a, b):
    h, w = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = h * w
    if inter < 0:
        inter = 0.0
    return ratio(inter, a, b)


@wrong("12.2", "negative sides")
@all_pairs
def _(a, b):
    return ratio(abs(min(a[2], b[2]) - max(a[0], b[0])) * abs(min(a[3], b[3]) - max(a[1], b[1])), a, b)


@wrong("12.2", "intersection counted twice")
@all_pairs
def _(a, b):
    h, w = overlap(a, b)
    return ratio(h * w, a, b, lambda p, q: p + q)


@wrong("12.2", "not the union")
@all_pairs
def _(a, b):
    h, w = overlap(a, b)
    return ratio(h * w, a, b, min)


@wrong("12.2", "not the union")
@all_pairs
def _(a, b):
    h, w = overlap(a, b)
    return ratio(h * w, a, b, lambda p, q: p)


@wrong("12.2", "twice the intersection")
@all_pairs
def _(a, b):
    h, w = overlap(a, b)
    return 2 * ratio(h * w, a, b, lambda p, q: p + q)


@wrong("12.2", "min and max swapped")
@all_pairs
def _(a, b):
    h, w = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    return ratio(h * w, a, b)


@wrong("12.2", "height and width for corners")
@all_pairs
def _(a, b):
    h = max(0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    w = max(0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    return h * w / (a[2] * a[3] + b[2] * b[3] - h * w)


def in_tensors(a, b, division=lambda inter, union: inter / union.clamp(min=1e-9)):
    a, b = a[:, None], b[None]
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    inter = sides.clamp(min=0).prod(-1)
    area_a, area_b = ((box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b))
    return division(inter, area_a + area_b - inter)


right("12.2")(lambda a, b: in_tensors(a, b))


@wrong("12.2", "division by zero")
def _(a, b):
    return in_tensors(a, b, torch.div)


@wrong("12.2", "row by row")
def _(a, b):
    top, left = torch.maximum(a[:, 0], b[:, 0]), torch.maximum(a[:, 1], b[:, 1])
    bottom, right_ = torch.minimum(a[:, 2], b[:, 2]), torch.minimum(a[:, 3], b[:, 3])
    inter = (bottom - top).clamp(min=0) * (right_ - left).clamp(min=0)
    areas = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1]) + (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return inter / (areas - inter).clamp(min=1e-9)


@wrong("12.2", "axes in another order")
def _(a, b):
    return in_tensors(b, a)


@wrong("12.2", "type")
def _(a, b):
    return in_tensors(a, b).tolist()


# --- 12.3 --------------------------------------------------------------------------------------------------------

PATTERN = re.compile(r"((?:<loc\d{4}>)*)\s*((?:<seg\d{3}>)*)([^<>]*)")


@right("12.3")
def _(text):
    things, dropped = [], []
    for piece in text.split(";"):
        piece = piece.strip()
        if piece == "":
            continue
        match = PATTERN.fullmatch(piece)
        if match is None:
            dropped.append(piece)
            continue
        locs = [int(n) for n in re.findall(r"\d{4}", match.group(1))]
        segs = [int(n) for n in re.findall(r"\d{3}", match.group(2))]
        ok = len(locs) == 4 and max(locs) < 1024 and locs[0] < locs[2] and locs[1] < locs[3]
        ok = ok and (segs == [] or (len(segs) == 16 and max(segs) < 128))
        if ok:
            things.append((match.group(3).strip(), locs, segs))
        else:
            dropped.append(piece)
    return things, dropped


@right("12.3")
def _(text):
    exact = r"\s*<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>\s*((?:<seg\d{3}>){16})?([^<>]*)"
    things, dropped = [], []
    for piece in text.split(";"):
        match = re.fullmatch(exact, piece)
        if not piece.strip():
            continue
        try:
            y1, x1, y2, x2 = map(int, match.groups()[:4])
            codes = list(map(int, re.findall(r"\d+", match[5] or "")))
            assert y1 < y2 <= 1023 and x1 < x2 <= 1023 and all(c < 128 for c in codes)
            things.append((match[6].strip(), (y1, x1, y2, x2), codes))
        except (AttributeError, AssertionError):
            dropped.append(piece.strip())
    return things, dropped


@right("12.3")
def _(text):
    """Without regular expressions."""
    things, dropped = [], []
    for piece in [p.strip() for p in text.split(";") if p.strip()]:
        rest, locs, segs = piece, [], []
        while rest[:4] == "<loc" and rest[4:8].isdigit() and rest[8:9] == ">":
            locs.append(int(rest[4:8]))
            rest = rest[9:]
        rest = rest.lstrip()
        while rest[:4] == "<seg" and rest[4:7].isdigit() and rest[7:8] == ">":
            segs.append(int(rest[4:7]))
            rest = rest[8:]
        bad = "<" in rest or ">" in rest or len(locs) != 4 or len(segs) not in (0, 16)
        if bad or max(locs) > 1023 or max(segs, default=0) > 127 or locs[0] >= locs[2] or locs[1] >= locs[3]:
            dropped.append(piece)
        else:
            things.append((rest.strip(), locs, segs))
    return things, dropped


def parser(ok=lambda y1, x1, y2, x2: y1 < y2 and x1 < x2, biggest=1023, segments=lambda s: len(s) in (0, 16),
           last=127, finish=str.strip, skip_empty=True, tell=True):  # fmt: skip
    def read_things(text):
        things, dropped = [], []
        for piece in text.split(";"):
            piece = piece.strip()
            if skip_empty and not piece:
                continue
            m = PATTERN.fullmatch(piece)
            locs = [int(x) for x in re.findall(r"\d+", m.group(1))] if m else []
            segs = [int(x) for x in re.findall(r"\d+", m.group(2))] if m else []
            fine = len(locs) == 4 and max(locs) <= biggest and ok(*locs)
            if fine and segments(segs) and max(segs, default=0) <= last:
                things.append((finish(m.group(3)), tuple(locs), segs))
            elif tell:
                dropped.append(piece)
        return things, dropped

    return read_things


right("12.3")(parser())
wrong("12.3", "box without an area")(parser(ok=lambda *box: True))
wrong("12.3", "box without an area")(parser(ok=lambda y1, x1, y2, x2: y2 >= y1 and x2 >= x1))
wrong("12.3", "box without an area")(parser(ok=lambda y1, x1, y2, x2: y1 < y2))
wrong("12.3", "box compared in x1 y1 order")(parser(ok=lambda y1, y2, x1, x2: y1 < y2 and x1 < x2))
wrong("12.3", "number above 1023")(parser(biggest=9999))
wrong("12.3", "number of segments")(parser(segments=lambda s: True))
wrong("12.3", "number above 127")(parser(last=999))
wrong("12.3", "masks always wanted")(parser(segments=lambda s: len(s) == 16))
wrong("12.3", "label not stripped")(parser(finish=str))
wrong("12.3", "empty pieces dropped")(parser(skip_empty=False))
wrong("12.3", "dropped pieces not told")(parser(tell=False))


@wrong("12.3", "raised")
def _(text):
    things = []
    for piece in text.split(";"):
        y1, x1, y2, x2 = (int(n) for n in re.findall("<loc([0-9]{4})>", piece))
        codes = [int(n) for n in re.findall("<seg([0-9]{3})>", piece)]
        things.append((re.sub("<[^>]*>", "", piece).strip(), [y1, x1, y2, x2], codes))
    return things, []


@wrong("12.3", "tokens anywhere")
def _(text):
    things, dropped = [], []
    for piece in text.split(";"):
        piece = piece.strip()
        if not piece:
            continue
        locs = [int(n) for n in re.findall("<loc([0-9]{4})>", piece)]
        segs = [int(n) for n in re.findall("<seg([0-9]{3})>", piece)]
        label = re.sub("<loc[0-9]{4}>|<seg[0-9]{3}>", "", piece).strip()
        fine = len(locs) == 4 and max(locs) < 1024 and locs[0] < locs[2] and locs[1] < locs[3]
        if fine and (not segs or len(segs) == 16 and max(segs) < 128):
            things.append((label, locs, segs))
        else:
            dropped.append(piece)
    return things, dropped


@wrong("12.3", "first thing only")
def _(text):
    dropped = []
    for piece in text.split(";"):
        things, broken = parser()(piece)
        if things:
            return things, dropped
        dropped += broken
    return [], dropped


@wrong("12.3", "stops at a broken piece")
def _(text):
    things = []
    for piece in text.split(";"):
        found, broken = parser()(piece)
        if broken:
            return things, broken
        things += found
    return things, []


@wrong("12.3", "box kept without its mask")
def _(text):
    things, dropped = [], []
    for piece in text.split(";"):
        found, broken = parser(segments=lambda s: True, last=999)(piece)
        dropped += broken
        for label, box, codes in found:
            things.append((label, box, codes if len(codes) == 16 and max(codes) < 128 else []))
    return things, dropped


@wrong("12.3", "y and x swapped")
def _(text):
    things, dropped = parser()(text)
    return [(label, (x1, y1, x2, y2), codes) for label, (y1, x1, y2, x2), codes in things], dropped


@wrong("12.3", "structure")
def _(text):
    return [(label, box) for label, box, _ in parser()(text)[0]], parser()(text)[1]


# --- 12.4 --------------------------------------------------------------------------------------------------------


@right("12.4")
def _(z, codebook):
    B, D, h, w = z.shape
    flat = z.permute(0, 2, 3, 1).reshape(B, h * w, D)
    distances = flat.pow(2).sum(-1, keepdim=True) - 2 * flat @ codebook.T + codebook.pow(2).sum(-1)
    codes = distances.argmin(-1)
    e = codebook[codes].view(B, h, w, D).permute(0, 3, 1, 2)
    return z + (e - z).detach(), codes


@right("12.4")
def _(z, codebook):
    """One vector at a time, and a gradient that is cut with no_grad."""
    B, D, h, w = z.shape
    codes = torch.zeros(B, h * w, dtype=torch.long)
    e = torch.empty_like(z)
    with torch.no_grad():
        for b in range(B):
            for i in range(h):
                for j in range(w):
                    code = ((codebook - z[b, :, i, j]) ** 2).sum(1).argmin()
                    codes[b, i * w + j] = code
                    e[b, :, i, j] = codebook[code]
    return e + z - z.detach(), codes


@right("12.4")
def _(z, codebook):
    difference = z[:, None] - codebook[None, :, :, None, None]  # [B, K, D, h, w]
    codes = difference.norm(dim=2).argmin(dim=1)  # [B, h, w]
    e = F.embedding(codes, codebook).movedim(-1, 1).detach()
    return z + (e - z).detach(), codes.flatten(1)


def quantiser(distance, straight=lambda z, e: z + (e - z).detach(), back=None, flat=None):
    def quantise(z, codebook):
        B, D, h, w = z.shape
        vectors = flat(z) if flat else z.flatten(2).mT
        codes = distance(vectors, codebook).argmin(-1)
        e = codebook[codes]
        e = back(e, z) if back else e.mT.reshape(B, D, h, w)
        return straight(z, e), codes

    return quantise


def squared(v, book):
    return (book**2).sum(1) - 2 * v @ book.T


wrong("12.4", "dot product instead of distance")(quantiser(lambda v, book: -(v @ book.T)))
wrong("12.4", "dot product instead of distance")(quantiser(lambda v, book: torch.einsum("bnd,kd->bnk", v, book)))
wrong("12.4", "angle instead of distance")(
    quantiser(lambda v, book: -F.normalize(v, dim=-1) @ F.normalize(book, dim=-1).T)
)
wrong("12.4", "two forgotten")(quantiser(lambda v, book: (v**2).sum(-1, keepdim=True) - v @ book.T + (book**2).sum(1)))
wrong("12.4", "sign of the product")(quantiser(lambda v, book: (book**2).sum(1) + 2 * v @ book.T))
wrong("12.4", "farthest code")(quantiser(lambda v, book: -squared(v, book)))
wrong("12.4", "sum of sizes")(quantiser(lambda v, book: torch.cdist(v, book[None], p=1)))
wrong("12.4", "vectors mixed up")(
    quantiser(squared, flat=lambda z: z.reshape(len(z), -1, z.shape[1]), back=lambda e, z: e.reshape(z.shape))
)
wrong("12.4", "codes mixed up")(quantiser(squared, back=lambda e, z: e.view(z.shape)))
wrong("12.4", "column by column")(
    quantiser(
        squared,
        flat=lambda z: z.permute(0, 3, 2, 1).flatten(1, 2),
        back=lambda e, z: e.unflatten(1, (z.shape[3], z.shape[2])).permute(0, 3, 2, 1),
    )
)
wrong("12.4", "straight through missing")(quantiser(squared, straight=lambda z, e: e.detach()))
wrong("12.4", "straight through missing")(quantiser(squared, straight=lambda z, e: (z + (e - z)).detach()))
wrong("12.4", "straight through missing")(quantiser(squared, straight=lambda z, e: z + (e - z)))
wrong("12.4", "wrong part detached")(quantiser(squared, straight=lambda z, e: (z + e).detach() - z))
wrong("12.4", "wrong part detached")(quantiser(squared, straight=lambda z, e: z.detach() + (e - z)))
wrong("12.4", "codebook gets a gradient")(quantiser(squared, straight=lambda z, e: e + z - z.detach()))
wrong("12.4", "not quantised")(quantiser(squared, straight=lambda z, e: z))


@wrong("12.4", "shape")
def _(z, codebook):
    quantised, codes = quantiser(squared)(z, codebook)
    return quantised, codes.unflatten(1, z.shape[2:])


@wrong("12.4", "raised")
def _(z, codebook):
    return quantiser(squared)(z, codebook)[0]


# --- 12.5 --------------------------------------------------------------------------------------------------------


@right("12.5")
def _(text, width, height):
    y1, x1, y2, x2 = [int(n) / 1023 for n in re.findall("<loc([0-9]{4})>", text)[:4]]
    return round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)


@right("12.5")
def _(text, width, height):
    places = np.array([int(text[i + 4 : i + 8]) for i in range(0, 36, 9)]) / 1023
    pixels = np.round(places * [height, width, height, width]).astype(int)
    return pixels[1], pixels[0], pixels[3], pixels[2]


def listing(divisor=1024, order="xyxy", pixel=int):
    """The code in the notebook, with some of its faults mended."""

    def read_box(text, width, height):
        numbers = [int(number) / divisor for number in re.findall("<loc([0-9]{4})>", text)[:4]]
        if order == "xyxy":
            x1, y1, x2, y2 = numbers
        else:
            y1, x1, y2, x2 = numbers
        return pixel(x1 * width), pixel(y1 * height), pixel(x2 * width), pixel(y2 * height)

    return read_box


wrong("12.5", "3 left")(listing())
wrong("12.5", "2 left")(listing(divisor=1023))
wrong("12.5", "2 left")(listing(order="yxyx"))
wrong("12.5", "2 left")(listing(pixel=round))
wrong("12.5", "1024 instead of 1023")(listing(order="yxyx", pixel=round))
wrong("12.5", "y and x swapped")(listing(divisor=1023, pixel=round))
wrong("12.5", "floor instead of round")(listing(divisor=1023, order="yxyx"))
wrong("12.5", "not rounded")(listing(1023, "yxyx", float))


@wrong("12.5", "y first in the result")
def _(text, width, height):
    y1, x1, y2, x2 = [int(n) / 1023 for n in re.findall("<loc([0-9]{4})>", text)[:4]]
    return round(y1 * height), round(x1 * width), round(y2 * height), round(x2 * width)


@wrong("12.5", "width and height swapped")
def _(text, width, height):
    return listing(1023, "yxyx", round)(text, height, width)


# --- 12.6 --------------------------------------------------------------------------------------------------------


@right("12.6")
def _(drawn, box, width, height):
    y1, x1, y2, x2 = box
    top, left, bottom, right_ = round(y1 * height), round(x1 * width), round(y2 * height), round(x2 * width)
    result = np.zeros((height, width), dtype=bool)
    if bottom > top and right_ > left:
        stretched = Image.fromarray(drawn).resize((right_ - left, bottom - top), Image.Resampling.BILINEAR)
        result[top:bottom, left:right_] = np.array(stretched) > 0
    return result


@right("12.6")
def _(drawn, box, width, height):
    """The resize is torch's."""
    top, bottom = (round(side * height) for side in box[::2])
    left, right_ = (round(side * width) for side in box[1::2])
    result = torch.zeros(height, width, dtype=torch.bool)
    if bottom > top and right_ > left:
        x = torch.from_numpy(drawn)[None, None]
        big = F.interpolate(x, (bottom - top, right_ - left), mode="bilinear", antialias=True)
        result[top:bottom, left:right_] = big[0, 0] > 0
    return result.numpy()


def paster(whole=round, limit=0, size=lambda h, w: (w, h), how=Image.Resampling.BILINEAR, before=None, empty=True,
           box_order=lambda y1, x1, y2, x2: (y1, x1, y2, x2), scale=lambda w, h: (w, h)):  # fmt: skip
    def paste(drawn, box, width, height):
        y1, x1, y2, x2 = box_order(*box)
        across, down = scale(width, height)
        y1, y2, x1, x2 = whole(y1 * down), whole(y2 * down), whole(x1 * across), whole(x2 * across)
        canvas = np.zeros((height, width)) > 0
        if empty and (y1 == y2 or x1 == x2):
            return canvas
        image = Image.fromarray(before(drawn) if before else drawn)
        image = image.resize(size(y2 - y1, x2 - x1), how)
        canvas[y1:y2, x1:x2] = np.asarray(image) > limit
        return canvas

    return paste


right("12.6")(paster())
wrong("12.6", "width and height swapped")(paster(size=lambda h, w: (h, w)))
wrong("12.6", "width and height swapped")(paster(scale=lambda w, h: (h, w)))
wrong("12.6", "y and x swapped")(paster(box_order=lambda x1, y1, x2, y2: (y1, x1, y2, x2)))
wrong("12.6", "floor instead of round")(paster(whole=int))
wrong("12.6", "threshold")(paster(limit=0.5))
wrong("12.6", "cut before the stretch")(paster(before=lambda m: (m > 0).astype(np.float32), limit=0.5))
wrong("12.6", "nearest pixel")(paster(how=Image.Resampling.NEAREST))
wrong("12.6", "bicubic")(paster(how=Image.Resampling.BICUBIC))
wrong("12.6", "bicubic")(paster(how=None))
wrong("12.6", "box without a pixel")(paster(empty=False))
wrong("12.6", "box ignored")(lambda drawn, box, width, height: (
    np.asarray(Image.fromarray(drawn).resize((width, height), Image.Resampling.BILINEAR)) > 0))  # fmt: skip


@wrong("12.6", "upside down")
def _(drawn, box, width, height):
    y1, x1, y2, x2 = (round(s * f) for s, f in zip(box, [height, width] * 2))
    canvas = np.zeros((height, width), dtype=bool)
    if y2 > y1 and x2 > x1:
        canvas[y1:y2, x1:x2] = np.asarray(Image.fromarray(drawn).resize((x2 - x1, y2 - y1), 2)) <= 0
    return canvas


@wrong("12.6", "dtype")
def _(drawn, box, width, height):
    return paster()(drawn, box, width, height).astype(np.float32)


@wrong("12.6", "type")
def _(drawn, box, width, height):
    return torch.from_numpy(paster()(drawn, box, width, height))


# --- Wrong ones that once passed ---------------------------------------------------------------------------------


@wrong("12.5", "four tokens exactly")
def _(text, width, height):
    y1, x1, y2, x2 = [int(number) for number in re.findall(r"<loc(\d{4})>", text)]
    return tuple(round(n / 1023 * size) for n, size in ((x1, width), (y1, height), (x2, width), (y2, height)))
