"""Held-out solutions of chapter 12."""

# ruff: noqa: E501
# fmt: off

from . import answer, change, exchange, right, wrong

# --- 12.1 -------------------------------------------------------------------------------------------------------------

BOXES = {"A": (0.0, 0.0, 0.75, 0.75), "B": (0.0, 0.0, 0.6, 0.6), "C": (0.1, 0.0, 1.0, 1.0), "D": (-0.01, -0.01, 1.0, 1.0), "E": (0.0, 0.0, 1.01, 1.01)}
right("12.1", "another box for A", answer("expose", BOXES | {"A": (0.0, 0.0, 0.7, 0.7)}))
wrong("12.1", "A's box exposes B too", answer("expose", BOXES | {"A": (0.0, 0.0, 0.9, 0.9)}), truth="A's box exposes B as well")
wrong("12.1", "whole picture for A", answer("expose", BOXES | {"A": (0.0, 0.0, 1.0, 1.0)}), truth="the whole picture exposes nothing")
wrong("12.1", "D and E exchanged", answer("expose", exchange(BOXES, "D", "E")), truth="D forgets the lower edge, E the upper one: their boxes are exchanged", says="On your input for D, D gives what the right version gives; it exposes E")
wrong("12.1", "C's box exposes others", answer("expose", BOXES | {"C": (0.6, 0.1, 0.9, 0.75)}), truth="C's box exposes A or B as well")
wrong("12.1", "D outside too little", answer("expose", BOXES | {"D": (-0.0004, -0.0004, 1.0, 1.0)}), truth="-0.0004 rounds to tick 0 anyway: D's box exposes nothing")
wrong("12.1", "too far outside", answer("expose", BOXES | {"E": (0.0, 0.0, 1.5, 1.5)}), truth="sides may only go from -0.05 to 1.05; E's go to 1.5")
wrong("12.1", "bottom above top", answer("expose", BOXES | {"C": (1.0, 0.0, 0.1, 1.0)}), truth="C's box has y1 above y2")
wrong("12.1", "one forgotten", answer("expose", {k: v for k, v in BOXES.items() if k != "B"}), truth="there is no box for B", says="the keys are ['A', 'C', 'D', 'E'], expected ['A', 'B', 'C', 'D', 'E']")
right("12.1", "other boxes, lists", """
def expose():
    return {
        "A": [0.0, 0.0, 800.3 / 1023, 800.3 / 1023],
        "B": [0.0, 0.0, 100.7 / 1023, 100.7 / 1023],
        "C": [0.0, 50.2 / 1023, 1.0, 1.0],
        "D": [-0.05, -0.05, 1.0, 1.0],
        "E": [0, 0, 1.05, 1.05],
    }
""")

# --- 12.2 -------------------------------------------------------------------------------------------------------------

IOU = """
def box_iou(a, b):
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    area_a = (a[:, 2:] - a[:, :2]).prod(dim=-1)
    area_b = (b[:, 2:] - b[:, :2]).prod(dim=-1)
    union = area_a[:, None] + area_b[None, :] - inter
    return torch.where(union > 0, inter / union, 0.0)
"""
change("12.2", "no clamp", IOU, (".clamp(min=0)", ""), truth="negative sides are not cut off: two negatives multiply to a positive area")
change("12.2", "clamp after the product", IOU, (".clamp(min=0).prod(dim=-1)", ".prod(dim=-1).clamp(min=0)"), truth="the product is clamped instead of each side: two negative sides give a positive area")
change("12.2", "intersection counted twice", IOU, (" - inter\n", "\n"), truth="the union counts the intersection twice")
change("12.2", "NaN for points", IOU, ("torch.where(union > 0, inter / union, 0.0)", "inter / union"), truth="0 / 0 is NaN for boxes without an area")
change("12.2", "minimum and maximum exchanged", IOU, ("torch.maximum", "torch.m_"), ("torch.minimum", "torch.maximum"), ("torch.m_", "torch.minimum"), truth="takes the smaller top left and the larger bottom right: the hull, not the intersection")
change("12.2", "transposed", IOU, ("torch.where(union > 0, inter / union, 0.0)", "torch.where(union > 0, inter / union, 0.0).T"), truth="the result is [m, n]", says="[m=3, n=2], expected [n=2, m=3]")
change("12.2", "one pixel more", IOU, ("bottom_right - top_left)", "bottom_right - top_left + 1)"), ("a[:, 2:] - a[:, :2]", "a[:, 2:] - a[:, :2] + 1"), ("b[:, 2:] - b[:, :2]", "b[:, 2:] - b[:, :2] + 1"), truth="sides get + 1, as for pixel counts, but boxes are real numbers")
change("12.2", "smaller area below", IOU, ("union = area_a[:, None] + area_b[None, :] - inter", "union = torch.minimum(area_a[:, None], area_b[None, :])"), truth="divides by the smaller area instead of the union")
change("12.2", "eps below", IOU, ("inter / union,", "inter / (union + 1e-3),"), truth="adds 1e-3 to the union, so equal boxes have less than 1")
change("12.2", "area of a for both", IOU, ("area_b = (b[:, 2:] - b[:, :2])", "area_b = (a[:, 2:] - a[:, :2])"), ("area_b[None, :]", "area_b[:, None]"), truth="both areas are those of a")
change("12.2", "only heights", IOU, (".clamp(min=0).prod(dim=-1)", ".clamp(min=0)[..., 0]"), ("(a[:, 2:] - a[:, :2]).prod(dim=-1)", "(a[:, 2] - a[:, 0])"), ("(b[:, 2:] - b[:, :2]).prod(dim=-1)", "(b[:, 2] - b[:, 0])"), truth="compares heights only")
wrong("12.2", "pairs one by one", """
def box_iou(a, b):
    top_left = torch.maximum(a[:, :2], b[:, :2])
    bottom_right = torch.minimum(a[:, 2:], b[:, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    union = (a[:, 2:] - a[:, :2]).prod(dim=-1) + (b[:, 2:] - b[:, :2]).prod(dim=-1) - inter
    return torch.where(union > 0, inter / union, 0.0)
""", truth="compares row i of a with row i of b only, not all pairs")
right("12.2", "python loops", """
def box_iou(a, b):
    table = torch.zeros(a.shape[0], b.shape[0])
    for i, (t, l, d, r) in enumerate(a.tolist()):
        for j, (T, L, D, R) in enumerate(b.tolist()):
            inter = max(min(d, D) - max(t, T), 0) * max(min(r, R) - max(l, L), 0)
            union = (d - t) * (r - l) + (D - T) * (R - L) - inter
            table[i, j] = inter / union if union else 0
    return table
""")
right("12.2", "nan_to_num", """
def box_iou(a, b):
    y1, x1, y2, x2 = a.unbind(1)
    Y1, X1, Y2, X2 = b.unbind(1)
    h = (torch.min(y2[:, None], Y2) - torch.max(y1[:, None], Y1)).relu()
    w = (torch.min(x2[:, None], X2) - torch.max(x1[:, None], X1)).relu()
    both = ((y2 - y1) * (x2 - x1))[:, None] + (Y2 - Y1) * (X2 - X1)
    return (h * w / (both - h * w)).nan_to_num(0.0)
""")

# --- 12.3 -------------------------------------------------------------------------------------------------------------

PARSER = r"""
def read_things(text):
    things, dropped = [], []
    for piece in text.split(";"):
        piece = piece.strip()
        if not piece:
            continue
        match = re.fullmatch(r"((?:<loc[0-9]{4}>)*)\s*((?:<seg[0-9]{3}>)*)\s*([^<>]*)", piece)
        if match:
            box = [int(n) for n in re.findall("[0-9]{4}", match[1])]
            codes = [int(n) for n in re.findall("[0-9]{3}", match[2])]
            if len(box) == 4 and len(codes) in (0, 16) and max(box) <= 1023 and max(codes, default=0) <= 127 and box[0] < box[2] and box[1] < box[3]:
                things.append((match[3].strip(), box, codes))
                continue
        dropped.append(piece)
    return things, dropped
"""
change("12.3", "search instead of fullmatch", PARSER, ("re.fullmatch", "re.match"), truth="only a part of the piece has to fit: broken pieces are understood")
change("12.3", "location numbers not checked", PARSER, (" and max(box) <= 1023", ""), truth="a location number above 1023 is accepted")
change("12.3", "segment numbers not checked", PARSER, (" and max(codes, default=0) <= 127", ""), truth="a segment number above 127 is accepted")
change("12.3", "numbers not checked", PARSER, (" and max(box) <= 1023 and max(codes, default=0) <= 127", ""), truth="locations above 1023 and segments above 127 are accepted", says="neither the limit of the locations nor that of the segments")
change("12.3", "1023 refused", PARSER, ("max(box) <= 1023", "max(box) < 1023"), truth="location 1023 is refused, but it exists")
change("12.3", "127 refused", PARSER, ("max(codes, default=0) <= 127", "max(codes, default=0) < 127"), truth="segment 127 is refused, but it exists")
change("12.3", "bottom equal to top accepted", PARSER, ("box[0] < box[2]", "box[0] <= box[2]"), truth="a box whose bottom equals its top is accepted")
change("12.3", "left and right not compared", PARSER, (" and box[1] < box[3]", ""), truth="the right side is not compared with the left", says="only one of the two directions")
change("12.3", "order x y", PARSER, ("box[0] < box[2] and box[1] < box[3]", "box[0] < box[1] and box[2] < box[3]"), truth="compares neighbours, as if the order were y1, y2, x1, x2")
change("12.3", "fewer segments accepted", PARSER, (" and len(codes) in (0, 16)", " and len(codes) <= 16"), truth="any number of segment tokens is accepted, not only 0 or 16")
change("12.3", "segments required", PARSER, ("len(codes) in (0, 16)", "len(codes) == 16"), truth="a thing without segment tokens is dropped")
change("12.3", "label required", PARSER, ("([^<>]*)", "([^<>]+)"), truth="an empty label is refused")
change("12.3", "label not stripped", PARSER, ("match[3].strip()", "match[3]"), (r"\s*([^<>]*)", "([^<>]*)"), truth="blanks around the label stay")
change("12.3", "no blank between tokens", PARSER, (r"*)\s*((?:<seg", "*)((?:<seg"), truth="a blank between location and segment tokens is not allowed for")
change("12.3", "empty pieces dropped", PARSER, ("        if not piece:\n            continue\n", ""), truth="an empty piece is put into dropped")
change("12.3", "dropped with blanks", PARSER, ("        piece = piece.strip()\n        if not piece:", "        if not piece.strip():"), ('r"((?:<loc', r'r"\s*((?:<loc'), truth="dropped pieces keep their blanks")
change("12.3", "stops at a broken piece", PARSER, ("        dropped.append(piece)", "        dropped.append(piece)\n        break"), truth="nothing is read after the first broken piece")
change("12.3", "broken pieces forgotten", PARSER, ("                continue\n        dropped.append(piece)", "        else:\n            dropped.append(piece)"), truth="pieces with a wrong box are neither understood nor dropped")
change("12.3", "numbers as fractions", PARSER, ("match[3].strip(), box, codes", "match[3].strip(), [n / 1023 for n in box], codes"), truth="the box is divided by 1023; the numbers are wanted as they are")
change("12.3", "None for no codes", PARSER, ("match[3].strip(), box, codes", "match[3].strip(), box, codes or None"), truth="codes are None where there are none, an empty list is wanted")
change("12.3", "any number of digits", PARSER, ("<loc[0-9]{4}>", "<loc[0-9]+>"), ('"[0-9]{4}"', '"[0-9]+"'), truth="tokens with another number of digits are accepted")
change("12.3", "crashes without tokens", PARSER, ("len(box) == 4 and len(codes) in (0, 16) and max(box) <= 1023", "max(box) <= 1023 and len(box) == 4 and len(codes) in (0, 16)"), truth="max of an empty list: a piece without location tokens raises")
right("12.3", "without a pattern for the whole piece", r"""
def read_things(text):
    things, dropped = [], []
    for raw in text.split(";"):
        piece = raw.strip()
        if piece == "":
            continue
        rest, numbers = piece, {"loc": [], "seg": []}
        for kind, width in (("loc", 4), ("seg", 3)):
            rest = rest.lstrip()
            while m := re.match(f"<{kind}([0-9]{{{width}}})>", rest):
                numbers[kind].append(int(m.group(1)))
                rest = rest[m.end():]
        good = len(numbers["loc"]) == 4 and len(numbers["seg"]) in {0, 16} and not set(rest) & set("<>")
        if good:
            y1, x1, y2, x2 = numbers["loc"]
            good = y1 < y2 <= 1023 and x1 < x2 <= 1023 and all(n < 128 for n in numbers["seg"])
        if good:
            things.append((rest.strip(), numbers["loc"], numbers["seg"]))
        else:
            dropped.append(piece)
    return things, dropped
""")

# --- 12.4 -------------------------------------------------------------------------------------------------------------

QUANT = """
def quantise(z, codebook):
    B, D, h, w = z.shape
    vectors = z.flatten(2).transpose(1, 2)
    codes = torch.cdist(vectors, codebook[None]).argmin(dim=-1)
    e = codebook[codes].transpose(1, 2).reshape(B, D, h, w)
    return z + (e - z).detach(), codes
"""
change("12.4", "dot product", QUANT, ("torch.cdist(vectors, codebook[None]).argmin(dim=-1)", "(vectors @ codebook.T).argmax(dim=-1)"), truth="chooses the largest dot product instead of the smallest distance")
change("12.4", "cosine", QUANT, ("torch.cdist(vectors, codebook[None]).argmin(dim=-1)", "(torch.nn.functional.normalize(vectors, dim=-1) @ torch.nn.functional.normalize(codebook, dim=-1).T).argmax(dim=-1)"), truth="chooses by the angle (cosine), not by distance", says="most similar direction")
change("12.4", "furthest code", QUANT, ("argmin", "argmax"), truth="chooses the furthest code")
change("12.4", "reshape instead of transpose", QUANT, ("z.flatten(2).transpose(1, 2)", "z.reshape(B, h * w, D)"), truth="the vectors are cut out by reshape: places and numbers are mixed up")
change("12.4", "no way back", QUANT, ("codebook[codes].transpose(1, 2).reshape", "codebook[codes].reshape"), truth="the looked-up codes are reshaped without the transpose")
change("12.4", "no gradient for z", QUANT, ("z + (e - z).detach()", "e.detach()"), truth="z gets no gradient: it is not straight through")
change("12.4", "gradient to the codebook", QUANT, ("z + (e - z).detach()", "e"), truth="the gradient goes to the codebook, not to z")
change("12.4", "detach forgotten", QUANT, ("(e - z).detach()", "(e - z)"), truth="z + (e - z) is e: the gradient goes to the codebook and not to z")
change("12.4", "roles exchanged", QUANT, ("z + (e - z).detach()", "e + (z - e).detach()"), truth="returns z's values with the codebook's gradient")
change("12.4", "both get the gradient", QUANT, ("z + (e - z).detach()", "z + e - z.detach()"), truth="the codebook gets a gradient too")
change("12.4", "codes as a grid", QUANT, ("detach(), codes", "detach(), codes.view(B, h, w)"), truth="codes are [B, h, w] instead of [B, h * w]")
change("12.4", "grid column by column", QUANT, ("detach(), codes", "detach(), codes.view(B, h, w).transpose(1, 2).reshape(B, -1)"), truth="the codes are listed column by column")
change("12.4", "int32", QUANT, ("detach(), codes", "detach(), codes.int()"), truth="codes are int32 instead of int64")
change("12.4", "size of the codes forgotten", QUANT, ("torch.cdist(vectors, codebook[None]).argmin(dim=-1)", "(vectors.square().sum(-1, keepdim=True) - 2 * vectors @ codebook.T).argmin(dim=-1)"), truth="the distance lacks |e| squared", says="a long code then wins")
change("12.4", "2 forgotten", QUANT, ("torch.cdist(vectors, codebook[None]).argmin(dim=-1)", "(codebook.square().sum(-1) - vectors @ codebook.T).argmin(dim=-1)"), truth="the distance has -z e instead of -2 z e")
change("12.4", "sum of absolute differences", QUANT, ("codebook[None])", "codebook[None], p=1)"), truth="measures by the sum of absolute differences, not the Euclidean distance")
right("12.4", "autograd function, channels last", """
class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, e):
        return e.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def quantise(z, codebook):
    last = z.permute(0, 2, 3, 1)
    distance = (last.unsqueeze(-2) - codebook).pow(2).sum(dim=-1)
    codes = distance.argmin(dim=-1)
    e = torch.nn.functional.embedding(codes, codebook.detach()).permute(0, 3, 1, 2)
    return Straight.apply(z, e), codes.flatten(1)
""")
right("12.4", "loop over places, no_grad", """
def quantise(z, codebook):
    B, D, h, w = z.shape
    codes = torch.zeros(B, h * w, dtype=torch.long)
    e = torch.zeros_like(z)
    with torch.no_grad():
        for b in range(B):
            for y in range(h):
                for x in range(w):
                    k = (codebook - z[b, :, y, x]).norm(dim=1).argmin()
                    codes[b, y * w + x] = k
                    e[b, :, y, x] = codebook[k]
        step = e - z
    return z + step, codes
""")

# --- 12.5 -------------------------------------------------------------------------------------------------------------

wrong("12.5", "still 1024", """
def read_box(text, width, height):
    y1, x1, y2, x2 = [int(n) / 1024 for n in re.findall("<loc([0-9]{4})>", text)[:4]]
    return round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)
""", truth="divides by 1024 instead of 1023")
wrong("12.5", "still x first", """
def read_box(text, width, height):
    x1, y1, x2, y2 = [int(n) / 1023 for n in re.findall("<loc([0-9]{4})>", text)[:4]]
    return round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)
""", truth="the model writes y first, read as x first")
wrong("12.5", "still cut off", """
def read_box(text, width, height):
    y1, x1, y2, x2 = [int(n) / 1023 for n in re.findall("<loc([0-9]{4})>", text)[:4]]
    return int(x1 * width), int(y1 * height), int(x2 * width), int(y2 * height)
""", truth="cuts fractions off instead of rounding", says="pixels are cut off below")
wrong("12.5", "y first in the result", """
def read_box(text, width, height):
    y1, x1, y2, x2 = [int(n) / 1023 for n in re.findall("<loc([0-9]{4})>", text)[:4]]
    return round(y1 * height), round(x1 * width), round(y2 * height), round(x2 * width)
""", truth="returns (y1, x1, y2, x2)", says="result is y1, x1, y2, x2")
wrong("12.5", "width and height exchanged", """
def read_box(text, width, height):
    y1, x1, y2, x2 = [int(n) / 1023 for n in re.findall("<loc([0-9]{4})>", text)[:4]]
    return round(x1 * height), round(y1 * width), round(x2 * height), round(y2 * width)
""", truth="x is multiplied by the height and y by the width")
wrong("12.5", "last pixel", """
def read_box(text, width, height):
    y1, x1, y2, x2 = [int(n) / 1023 for n in re.findall("<loc([0-9]{4})>", text)[:4]]
    return round(x1 * (width - 1)), round(y1 * (height - 1)), round(x2 * (width - 1)), round(y2 * (height - 1))
""", truth="multiplies by width - 1 and height - 1")
wrong("12.5", "rounded up", """
def read_box(text, width, height):
    import math
    y1, x1, y2, x2 = [int(n) / 1023 for n in re.findall("<loc([0-9]{4})>", text)[:4]]
    return tuple(math.ceil(v) for v in (x1 * width, y1 * height, x2 * width, y2 * height))
""", truth="rounds up instead of to the nearest pixel")
wrong("12.5", "not whole numbers", """
def read_box(text, width, height):
    y1, x1, y2, x2 = [int(n) / 1023 for n in re.findall("<loc([0-9]{4})>", text)[:4]]
    return x1 * width, y1 * height, x2 * width, y2 * height
""", truth="returns numbers with fractions", says="pixels are no whole numbers")
wrong("12.5", "all tokens", """
def read_box(text, width, height):
    y1, x1, y2, x2 = [int(n) / 1023 for n in re.findall("<loc([0-9]{4})>", text)]
    return round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)
""", truth="takes all location tokens, not only the first four")
wrong("12.5", "rounded too early", """
def read_box(text, width, height):
    y1, x1, y2, x2 = [round(int(n) / 1023, 2) for n in re.findall("<loc([0-9]{4})>", text)[:4]]
    return round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)
""", truth="rounds the fraction before it is multiplied")
right("12.5", "whole-number arithmetic", """
def read_box(text, width, height):
    top, left, bottom, right = (int(m) for m in re.findall(r"<loc(\\d{4})>", text)[:4])
    nearest = lambda number, size: (2 * number * size + 1023) // 2046
    return nearest(left, width), nearest(top, height), nearest(right, width), nearest(bottom, height)
""")
right("12.5", "numpy", """
def read_box(text, width, height):
    numbers = np.array([int(n) for n in re.match("(?:<loc([0-9]{4})>)" * 4, text).groups()])
    sides = np.rint(numbers[[1, 0, 3, 2]] * np.array([width, height, width, height]) / 1023).astype(int)
    return tuple(sides.tolist())
""")

# --- 12.6 -------------------------------------------------------------------------------------------------------------

PASTE = """
def paste(drawn, box, width, height):
    mask = np.zeros((height, width), dtype=bool)
    y1, x1, y2, x2 = round(box[0] * height), round(box[1] * width), round(box[2] * height), round(box[3] * width)
    if y2 > y1 and x2 > x1:
        big = np.asarray(Image.fromarray(drawn).resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR))
        mask[y1:y2, x1:x2] = big > 0
    return mask
"""
change("12.6", "cut first", PASTE, ("Image.fromarray(drawn).resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR))\n        mask[y1:y2, x1:x2] = big > 0", "Image.fromarray(drawn > 0).resize((x2 - x1, y2 - y1), Image.Resampling.NEAREST))\n        mask[y1:y2, x1:x2] = big"), truth="the drawing is cut at 0 before it is stretched")
change("12.6", "cut first, then bilinear", PASTE, ("Image.fromarray(drawn)", "Image.fromarray((drawn > 0).astype(np.float32))"), ("big > 0", "big > 0.5"), truth="the drawing is cut at 0 before it is stretched")
change("12.6", "cut first, then bilinear and above 0", PASTE, ("Image.fromarray(drawn)", "Image.fromarray((drawn > 0).astype(np.float32))"), truth="the drawing is cut at 0 before it is stretched", says="cut to 0 and 1 before it is stretched")
change("12.6", "nearest", PASTE, ("BILINEAR", "NEAREST"), truth="stretches with nearest instead of bilinear")
change("12.6", "bicubic", PASTE, ("BILINEAR", "BICUBIC"), truth="stretches with bicubic instead of bilinear")
change("12.6", "resize the wrong way round", PASTE, ("resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR))", "resize((y2 - y1, x2 - x1), Image.Resampling.BILINEAR)).T"), truth="resize gets (height, width); the stretched drawing is transposed to fit")
change("12.6", "resize with rows first", PASTE, ("resize((x2 - x1, y2 - y1)", "resize((y2 - y1, x2 - x1)"), truth="resize gets (height, width) instead of (width, height)")
change("12.6", "cut off", PASTE, ("round(box[0] * height), round(box[1] * width), round(box[2] * height), round(box[3] * width)", "int(box[0] * height), int(box[1] * width), int(box[2] * height), int(box[3] * width)"), truth="the box's sides are cut off, not rounded")
change("12.6", "mask on its side", PASTE, ("np.zeros((height, width), dtype=bool)", "np.zeros((width, height), dtype=bool)"), ("mask[y1:y2, x1:x2] = big > 0", "mask[x1:x2, y1:y2] = big.T > 0"), truth="the mask is [width, height]")
change("12.6", "x first", PASTE, ("y1, x1, y2, x2 = round(box[0] * height), round(box[1] * width), round(box[2] * height), round(box[3] * width)", "x1, y1, x2, y2 = round(box[0] * width), round(box[1] * height), round(box[2] * width), round(box[3] * height)"), truth="reads the box as (x1, y1, x2, y2)")
change("12.6", "thin box crashes", PASTE, ("    if y2 > y1 and x2 > x1:\n", "    if True:\n"), truth="a box without a pixel makes resize fail")
change("12.6", "thin box not empty", PASTE, ("    if y2 > y1 and x2 > x1:", "    y2, x2 = max(y2, y1 + 1), max(x2, x1 + 1)\n    if y2 > y1 and x2 > x1:"), truth="a box without a pixel gets one")
change("12.6", "numbers instead of bool", PASTE, ("dtype=bool", "dtype=np.uint8"), truth="returns numbers instead of bool")
change("12.6", "not cut at all", PASTE, ("= big > 0", "= big"), truth="everything in the box that is not exactly 0 is inside: > 0 is missing")
change("12.6", "threshold of one half", PASTE, ("big > 0", "big > 0.5"), truth="cuts at 0.5 instead of 0")
change("12.6", "inside and outside exchanged", PASTE, ("big > 0", "big < 0"), truth="what is below 0 is inside")
change("12.6", "over the whole picture", PASTE, ("resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR))", "resize((width, height), Image.Resampling.BILINEAR))"), ("= big > 0", "= big[y1:y2, x1:x2] > 0"), truth="stretches the drawing over the whole picture instead of the box")
right("12.6", "a PIL picture of minus ones", """
def paste(drawn, box, width, height):
    canvas = Image.new("F", (width, height), -1.0)
    top, left, bottom, right = np.rint(np.array(box) * [height, width, height, width]).astype(int).tolist()
    if bottom - top >= 1 and right - left >= 1:
        canvas.paste(Image.fromarray(drawn).resize((right - left, bottom - top), resample=Image.BILINEAR), (left, top))
    return np.array(canvas) > 0
""")
