"""Drawings that explain one idea each, in one style: boxes, arrows and cells on a white page of 504 units (points).

They show how something is put together, not what was measured; where a drawing takes numbers (weights, angles, a
matrix), they are drawn as given. Each returns its Axes.
"""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Arc, Circle, Rectangle

from .pictures import Picture, to_picture
from .shapes import FILL, INK, arrow, box, cells, page, write
from .style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    RED,
    SKY,
    TOKEN_COLOURS,
    WIDTH,
    plain,
    readable_token,
    text_colour,
    to_array,
)

PAGE = 72 * WIDTH  # units across: one is a point, so that a letter of 8 points is about 5 units wide
# Light grounds for heads and groups that stand side by side; black text is read on each of them.
YELLOW_LIGHT = "#F8F0A0"  # the one that a drawing is about
LIGHT = ["#BBD9EE", "#F6D58B", "#A9DCC6", "#EBC6DA", "#F3BC95", "#D3ECFA", "#DDDDDD", "#E8E3A0"]


def _image(ax: Axes, pixels: np.ndarray, left: float, bottom: float, width: float, height: float) -> None:
    """A picture on a place of the page."""
    limits = ax.get_xlim(), ax.get_ylim()
    ax.imshow(pixels, extent=(left, left + width, bottom, bottom + height), zorder=3, aspect="auto")
    ax.set(xlim=limits[0], ylim=limits[1], aspect="equal")  # imshow changes them
    ax.add_patch(Rectangle((left, bottom), width, height, fill=False, edgecolor=GREY, linewidth=0.8, zorder=4))


def _token(ax: Axes, x: float, y: float, text: str, kind: str, width: float = 44, height: float = 18) -> None:
    """A token as a box around (x, y), in the colour of its kind."""
    fill, ink = TOKEN_COLOURS[kind]
    corner = (x - width / 2, y - height / 2)
    box(ax, *corner, width, height, text, fill=fill, edge="white", colour=ink, rounding=4)


# ------------------------------------------------------------------------------------------------------- attention


def arrows(
    tokens: Sequence[str],
    weights: np.ndarray | torch.Tensor,
    query: int,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Attention of one token: an arrow from every token it reads, as thick as the weight, beside the matrix.

    Args:
        tokens: n str, at most eight or so. weights: [n, n], each row sums to 1. query: the row drawn as arrows.
    """
    weights, n = to_array(weights).astype(float), len(tokens)
    if weights.shape != (n, n) or not 0 <= query < n:
        raise ValueError(f"arrows: {n} tokens, query {query} and weights {weights.shape}, expected weights [{n}, {n}]")
    names = [readable_token(token, 8) for token in tokens]
    height = max(136, 26 * n + 50)
    ax = page(ax, PAGE, height, title=title)
    step = min(80, 250 / n)
    xs, top, bottom = [18 + step * (i + 0.5) for i in range(n)], height - 46, 30
    write(ax, 18, height - 10, "keys and values: what is read", colour=GREY, ha="left")
    write(ax, min(max(xs[query], 76), 260), 10, "query: the token that looks", colour=GREY)
    for i, (x, name) in enumerate(zip(xs, names)):
        box(ax, x - step / 2 + 2, top - 10, step - 4, 20, name, fill=FILL["vision"])
        weight = weights[query, i]
        if weight > 0.005:
            arrow(
                ax,
                (x, top - 10),
                (xs[query], bottom + 10),
                line=0.5 + 7 * weight,
                colour=BLUE,
                alpha=0.35 + 0.6 * weight,
            )
        write(ax, x, top + 18, f"{weight:.2f}", colour=BLUE, bold=weight == weights[query].max())
    box(
        ax, xs[query] - step / 2 + 2, bottom - 10, step - 4, 20, names[query], fill=YELLOW_LIGHT, edge="black", line=1.4
    )
    side = min(26, 170 / n)
    left, low = PAGE - n * side - 12, (height - n * side) / 2 - 6
    scale = matplotlib.colormaps["Blues"]
    fills = [[scale(0.85 * value) for value in row] for row in weights]
    shown = [[f"{value:.2f}" for value in row] for row in weights]
    inks = [[text_colour(fill) for fill in row] for row in fills]
    cells(ax, left, low, fills, side, labels=shown, colours=inks)
    row = low + (n - 1 - query) * side
    ax.add_patch(Rectangle((left, row), n * side, side, fill=False, edgecolor="black", linewidth=1.8, zorder=7))
    for i, name in enumerate(names):
        write(ax, left - 5, low + (n - 0.5 - i) * side, name, ha="right", bold=i == query)
        write(ax, left + (i + 0.5) * side, low + n * side + 5, name, ha="left", va="bottom", rotation=45)
    write(ax, left + n * side / 2, low - 10, "row: query, column: key", colour=GREY)
    return ax


def split_heads(
    num_tokens: int = 4, num_heads: int = 3, head_dim: int = 2, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Queries (keys, values) [N, D] cut into H heads [N, d] that attend on their own, then put side by side again."""
    side = min(18, 161 / (head_dim * (num_heads + 1)))  # both ends and one head's slice on either side fit the page
    row = num_tokens * side
    height = max(num_heads * (row + 20) + 10, 150)
    ax = page(ax, PAGE, height, title=title)
    colours = [LIGHT[h % len(LIGHT)] for h in range(num_heads) for _ in range(head_dim)]
    wide, middle = num_heads * head_dim * side, height / 2
    whole = [colours] * num_tokens
    first, last = 26, PAGE - 12 - wide
    for left in (first, last):
        cells(ax, left, middle - row / 2, whole, side)
        write(ax, left + wide / 2, middle - row / 2 - 10, "[N, D]", colour=GREY)
    write(ax, first + wide / 2, middle + row / 2 + 10, "queries (keys, values)")
    write(ax, last + wide / 2, middle + row / 2 + 10, "side by side again")
    centre = (first + wide + last) / 2
    for h in range(num_heads):
        y = height - 8 - (row + 20) * (h + 0.5) + 5
        left = centre - 42 - head_dim * side
        cells(ax, left, y - row / 2, [[LIGHT[h % len(LIGHT)]] * head_dim] * num_tokens, side)
        write(ax, left + head_dim * side / 2, y - row / 2 - 8, "[N, d]", colour=GREY)
        box(ax, centre - 28, y - 13, 56, 26, f"head {h}", fill=FILL["data"])
        right = centre + 42
        cells(ax, right, y - row / 2, [[LIGHT[h % len(LIGHT)]] * head_dim] * num_tokens, side)
        arrow(ax, (first + wide + 4, middle), (left - 4, y))
        arrow(ax, (left + head_dim * side + 3, y), (centre - 28, y))
        arrow(ax, (centre + 28, y), (right - 3, y))
        arrow(ax, (right + head_dim * side + 4, y), (last - 4, middle))
    return ax


def head_sharing(
    num_heads: int = 8, num_key_value_heads: int = 2, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Which query heads share keys and values: multi-head, grouped-query and multi-query attention side by side."""
    if num_key_value_heads < 1 or num_heads % num_key_value_heads:
        raise ValueError(
            f"head_sharing: {num_heads} heads and {num_key_value_heads} of keys and values, expected a divisor"
        )
    ax = page(ax, PAGE, 132, title=title)
    kinds = [("multi-head (MHA)", num_heads), ("grouped-query (GQA)", num_key_value_heads), ("multi-query (MQA)", 1)]
    panel = PAGE / 3
    for p, (name, groups) in enumerate(kinds):
        left, side = 6 + p * panel + 4, (panel - 26) / num_heads
        middle = left + num_heads * side / 2
        write(ax, middle, 122, name, bold=True, size=8.5)
        per_group = num_heads // groups
        for g in range(groups):
            colour = LIGHT[g % len(LIGHT)]
            x = left + (g + 0.5) * per_group * side
            box(ax, x - 8, 18, 16, 20, fill=colour, rounding=3)
            for h in range(g * per_group, (g + 1) * per_group):
                top = left + (h + 0.5) * side
                box(ax, top - 0.4 * side, 76, 0.8 * side, 20, fill=colour, rounding=3)
                arrow(ax, (x, 38), (top, 76), head=False, line=0.9)
        write(ax, middle, 106, f"{num_heads} query heads")
        write(ax, middle, 8, f"{groups} key and value head{'s' * (groups > 1)}: cache 1/{num_heads // groups}"
              if groups < num_heads else f"{groups} key and value heads")  # fmt: skip
        if p:
            ax.plot([p * panel, p * panel], [6, 118], color=PALE, linewidth=1)
    return ax


def rope_dial(
    query_position: int = 5,
    key_position: int = 2,
    shift: int = 4,
    angle: float = 0.35,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Query and key as hands on one dial, each turned by its position times `angle` (radians): their difference
    depends on the distance alone.

    On the right both positions are `shift` larger, and the hands stand at the same angle to each other. Query and key
    point to the right before they are turned (the dotted hand); angles are counted anticlockwise, and drawn in degrees.
    """
    ax = page(ax, PAGE, 194, title=title)
    step = round(np.degrees(angle), 1)
    for x, moved in ((PAGE * 0.27, 0), (PAGE * 0.73, shift)):
        middle, radius = (x, 102), 60
        ax.add_patch(Circle(middle, radius, facecolor="#FAFAFA", edgecolor=GREY, linewidth=1))
        m, n = query_position + moved, key_position + moved
        ax.plot([x, x + radius], [middle[1]] * 2, color=GREY, linewidth=1, linestyle=":")
        for name, position, colour in (("query", m, RED), ("key", n, BLUE)):
            direction = np.array([np.cos(position * angle), np.sin(position * angle)])
            tip = np.array(middle) + radius * direction
            arrow(ax, middle, tuple(tip), colour=colour, line=2.4)
            label = np.array(middle) + (radius + 16) * direction
            ha = "left" if direction[0] > 0.3 else "right" if direction[0] < -0.3 else "center"
            write(ax, *(label + [-4 if ha == "left" else 4 if ha == "right" else 0, 0]), f"{name} at {position}",
                  colour=colour, ha=ha, bold=True)  # fmt: skip
        low, high = sorted((np.degrees(m * angle), np.degrees(n * angle)))
        ax.add_patch(Arc(middle, 50, 50, theta1=low, theta2=high, color=GREEN, linewidth=2.2, zorder=4))
        write(ax, x, 8, f"between them: ({m} − {n}) · {step:g}° = {round((m - n) * step):g}°", colour=GREEN, bold=True)
    arrow(ax, (PAGE * 0.5 - 22, 8), (PAGE * 0.5 + 22, 8))
    write(ax, PAGE * 0.5, 19, f"both {shift} places later", colour=GREY)
    return ax


# --------------------------------------------------------------------------------------------------------- layers


def residual_stream(
    num_layers: int = 2,
    readings: Sequence[str] = (),
    shape: str = "[N, D]",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The stream that runs through all layers unchanged, and the branches that read from it and add to it.

    Args:
        num_layers: at most four. shape: of the stream, as text.
        readings: what the last norm and the head would say, read before layer 0 and after each layer (the logit lens).
    """
    if not 1 <= num_layers <= 4 or len(readings) not in (0, num_layers + 1):
        raise ValueError(
            f"residual_stream: {num_layers} layers and {len(readings)} readings, expected 1 to 4 layers, "
            "and no readings or one more than there are layers"
        )
    tall = num_layers > 2  # narrow layers: what works stands upright above its norm
    below, above = 66 if readings else 0, 42 if tall else 0
    ax = page(ax, PAGE, 130 + above + below, title=title)
    stream, start, end = 30 + below, 40, PAGE - 44
    arrow(ax, (start, stream), (end, stream), line=5, colour=BLUE)
    write(ax, 4, stream, "input", ha="left")
    write(ax, PAGE - 4, stream, "output", ha="right")
    write(ax, PAGE / 2, 8, f"the residual stream: {shape} all the way, only ever added to", colour=BLUE)
    first = start + (32 if readings else 8)
    step = (end - 16 - first) / num_layers
    for layer in range(num_layers):
        left = first + layer * step
        box(ax, left, stream + 14, step - 10, 80 + above, fill=FILL["frame"], dashed=True, edge="#9A9A9A", zorder=0.5)
        write(ax, left + step / 2 - 5, stream + 86 + above, f"layer {layer}", bold=True)
        half = (step - 14) / 2
        for i, (name, fill) in enumerate((("attention", FILL["vision"]), ("MLP", FILL["decoder"]))):
            x = left + 4 + i * half
            take, give = x + 16, x + half - 9  # where it leaves the stream, and comes back to it
            arrow(ax, (take, stream), (take, stream + 26), line=1.2)
            box(ax, take - 14, stream + 26, 28, 16, "norm", fill=FILL["merge"], rounding=3)
            if tall:
                give, top = x + half - 5, stream + 112
                arrow(ax, (take, stream + 42), (take, stream + 52), line=1.2)
                box(ax, take - 8, stream + 52, 16, 52, name, fill=fill, rotation=90, rounding=3)
                arrow(ax, (take, stream + 104), (take, top), (give, top), (give, stream + 8), line=1.2)
            else:
                work = stream + 64
                arrow(ax, (take, stream + 42), (take, work), (take + 9, work), line=1.2)
                box(ax, take + 9, work - 9, give - take - 17, 18, name, fill=fill)
                arrow(ax, (give - 8, work), (give, work), (give, stream + 8), line=1.2)
            ax.add_patch(Circle((give, stream), 7, facecolor="white", edgecolor=BLUE, linewidth=1.6, zorder=5))
            write(ax, give, stream, "+", bold=True, size=10, zorder=6)
    for i, word in enumerate(readings):
        x = first - 4 + i * step
        arrow(ax, (x, stream), (x, stream - 20), dashed=True)
        box(ax, x - 31, stream - 38, 62, 18, "norm, head", fill=FILL["decoder"], rounding=3)
        arrow(ax, (x, stream - 38), (x, stream - 50))
        write(ax, x, stream - 58, f"“{readable_token(word, 10)}”", colour=GREEN, bold=True)
    return ax


def decoder_layer(title: str | None = None, ax: Axes | None = None) -> Axes:
    """One layer of the Gemma decoder, its gated MLP (GeGLU) opened. D is the width, F the width inside the MLP."""
    ax = page(ax, PAGE, 168, title=title)
    stream = 34
    arrow(ax, (6, stream), (PAGE - 4, stream), line=4, colour=BLUE)
    write(ax, 6, stream - 15, "[B, L, D]", colour=GREY, ha="left")
    write(ax, PAGE - 4, stream - 15, "[B, L, D]", colour=GREY, ha="right")

    def add(x):
        ax.add_patch(Circle((x, stream), 8, facecolor="white", edgecolor=BLUE, linewidth=1.6, zorder=5))
        write(ax, x, stream, "+", bold=True, size=10, zorder=6)

    work = 104
    arrow(ax, (18, stream), (18, work), (30, work), line=1.2)
    box(ax, 30, work - 12, 52, 24, "RMSNorm", fill=FILL["decoder"])
    arrow(ax, (82, work), (94, work))
    box(ax, 94, work - 22, 58, 44, "attention\n+ RoPE", fill=FILL["vision"])
    arrow(ax, (152, work), (168, work), (168, stream + 8), line=1.2)
    add(168)
    arrow(ax, (192, stream), (192, work), (204, work), line=1.2)
    box(ax, 204, work - 12, 52, 24, "RMSNorm", fill=FILL["decoder"])
    box(ax, 266, 56, 188, 104, fill=FILL["frame"], dashed=True, edge="#9A9A9A", zorder=0.5)
    write(ax, 360, 150, "gated MLP (GeGLU)", bold=True)
    up, gate = 78, 128
    arrow(ax, (256, work), (264, work), (278, gate))
    arrow(ax, (264, work), (278, up))
    box(ax, 278, gate - 11, 36, 22, "gate", fill=FILL["text"])
    box(ax, 278, up - 11, 36, 22, "up", fill=FILL["text"])
    arrow(ax, (314, gate), (328, gate))
    box(ax, 328, gate - 11, 38, 22, "GELU", fill=FILL["merge"])
    arrow(ax, (366, gate), (388, gate), (388, work + 9))
    arrow(ax, (314, up), (388, up), (388, work - 9))
    ax.add_patch(Circle((388, work), 9, facecolor="white", edgecolor=INK, linewidth=1.2, zorder=5))
    write(ax, 388, work, "×", bold=True, size=10, zorder=6)
    write(ax, 350, up - 9, "[B, L, F]", colour=GREY)
    arrow(ax, (397, work), (410, work))
    box(ax, 410, work - 11, 38, 22, "down", fill=FILL["text"])
    arrow(ax, (448, work), (472, work), (472, stream + 8), line=1.2)
    add(472)
    return ax


# --------------------------------------------------------------------------------------------- pictures and sequences


def two_towers(
    images: Sequence[Picture],
    texts: Sequence[str],
    matrix: np.ndarray | torch.Tensor | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The two encoders of contrastive learning and the matrix of all pairs; true pairs lie on the diagonal.

    Args:
        images, texts: n of each, that belong together in order; at most five. matrix: [n, n] numbers to write in the
        cells (texts in rows), by default + on the diagonal and − elsewhere.
    """
    n = len(images)
    if len(texts) != n or (matrix is not None and np.shape(matrix) != (n, n)):
        raise ValueError(
            f"two_towers: {n} images, {len(texts)} texts and matrix {np.shape(matrix)}, expected n of each"
        )
    side, bottom = 42, 18
    left = 290 + max(0, (PAGE - 304 - n * side) / 2)
    height = bottom + n * side + 116
    ax = page(ax, PAGE, height, title=title)
    top = bottom + n * side
    for i, image in enumerate(images):
        x = left + (i + 0.5) * side
        _image(ax, to_picture(image), x - 17, top + 72, 34, 34)
        arrow(ax, (x, top + 70), (x, top + 60))
        arrow(ax, (x, top + 34), (x, top + 20))
        cells(ax, x - 15, top + 10, [[SKY] * 5], (6, 8), edge="white", line=0.6)
    box(ax, left, top + 36, n * side, 22, "image encoder", fill=FILL["vision"])
    encoder = left - 140
    box(ax, encoder, bottom, 30, n * side, "text encoder", fill=FILL["text"], rotation=90)
    for i, text in enumerate(texts):
        y = top - (i + 0.5) * side
        write(ax, encoder - 18, y, textwrap.fill(plain(text, 80), 24), ha="right")
        arrow(ax, (encoder - 14, y), (encoder, y))
        arrow(ax, (encoder + 30, y), (left - 72, y))
        cells(ax, left - 68, y - 4, [[ORANGE] * 5], (6, 8), edge="white", line=0.6)
        arrow(ax, (left - 36, y), (left - 3, y))
    values = [
        [("+" if r == c else "−") if matrix is None else f"{matrix[r][c]:.1f}" for c in range(n)] for r in range(n)
    ]
    fills = [["#A9DCC6" if r == c else "#F2F2F2" for c in range(n)] for r in range(n)]
    cells(ax, left, bottom, fills, side, labels=values)
    write(ax, left + n * side / 2, 8, "green: true pairs, pulled together", colour=GREY)
    return ax


def resampling(
    row: Sequence[float], new_length: int, index: int, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """A row of pixels on a number line, and how one pixel of its resized row is worked out (bilinear, as Pillow does).

    Args:
        row: n values from 0 to 255, at most eight or so. new_length: pixels of the resized row. index: the new pixel
        whose weights are drawn.
    """
    n = len(row)
    if not n or not 0 <= index < new_length:
        raise ValueError(f"resampling: {n} pixels, index {index}, expected a pixel or more and 0 to {new_length - 1}")
    ax = page(ax, PAGE, 212, title=title)
    scale, left, width = n / new_length, 30, PAGE - 60
    unit, top, bottom, height = width / n, 132, 32, 30
    centre = (index + 0.5) * scale
    distances = np.abs(np.arange(n) + 0.5 - centre)
    weights = np.clip(1 - distances / max(scale, 1.0), 0, None)
    weights = weights / weights.sum()

    def grey(value: float) -> str:
        return matplotlib.colors.to_hex([min(max(value / 255, 0), 1)] * 3)

    write(ax, left, 203, f"old row: {n} pixels, each 1 wide", ha="left", bold=True)
    for i, value in enumerate(row):
        ink = text_colour(matplotlib.colors.to_rgb(grey(value)))
        box(ax, left + i * unit, top, unit, height, f"{value:g}", fill=grey(value), rounding=0.1, colour=ink)
        ax.plot(left + (i + 0.5) * unit, top, "o", color=BLUE, markersize=5, zorder=6)
        write(ax, left + (i + 0.5) * unit, top + height + 8, f"{i + 0.5:g}", colour=BLUE)
    for i in range(n + 1):
        write(ax, left + i * unit, top + height + 20, str(i), colour=GREY)
        ax.plot([left + i * unit] * 2, [top + height, top + height + 13], color=GREY, linewidth=0.8)
    result = float(weights @ np.asarray(row, dtype=float))
    for j in range(new_length):
        ours = j == index
        x = left + j * scale * unit
        look = {"fill": YELLOW_LIGHT, "edge": "black", "line": 1.4, "bold": True, "zorder": 3} if ours else {}
        box(ax, x, bottom, scale * unit, height, f"{result:.1f}" if ours else "", rounding=0.1, **look)
    target = (left + centre * unit, bottom + height)
    for i in np.flatnonzero(weights > 0.0005):
        start = (left + (i + 0.5) * unit, top)
        arrow(ax, start, target, line=0.6 + 4 * weights[i], colour=BLUE, alpha=0.4 + 0.6 * weights[i])
        side = -1 if start[0] < target[0] - 1 else 1  # the weight stands on the outer side of its arrow
        x, y = start[0] + 0.22 * (target[0] - start[0]), start[1] + 0.22 * (target[1] - start[1])
        write(ax, x + 6 * side, y, f"× {weights[i]:.2f}", ha="right" if side < 0 else "left", colour=BLUE, bold=True)
    ax.plot(*target, "o", color=RED, markersize=5, zorder=6)
    write(ax, target[0], 20, f"centre ({index} + 0.5) × {scale:.3g} = {centre:.3g}", colour=RED)
    write(ax, left, 6, f"new row: {new_length} pixels, each {scale:.3g} wide", ha="left", bold=True)
    return ax


def patch_axes(title: str | None = None, ax: Axes | None = None) -> Axes:
    """How the axes of a batch of pictures move when it is cut into patches: split, reorder, merge."""
    place, content = LIGHT[0], LIGHT[1]  # where a patch lies in the picture, and what is in it
    rows = [
        ("pixels", [("B", ""), ("C", content), ("H", ""), ("W", "")]),
        ("reshape", [("B", ""), ("C", content), ("rows", place), ("P", content), ("columns", place), ("P", content)]),
        ("permute", [("B", ""), ("rows", place), ("columns", place), ("C", content), ("P", content), ("P", content)]),
        ("flatten", [("B", ""), ("N = rows · columns", place), ("C · P · P", content)]),
    ]
    # Where each axis of a row comes from in the row above it.
    links = [
        [(0, 0), (1, 1), (2, 2), (2, 3), (3, 4), (3, 5)],
        [(0, 0), (2, 1), (4, 2), (1, 3), (3, 4), (5, 5)],
        [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)],
    ]
    # The left edge and the width of each box, in slots of the page.
    slots = [
        [(0, 1), (1, 1), (2, 2), (4, 2)],
        [(i, 1) for i in range(6)],
        [(i, 1) for i in range(6)],
        [(0, 1), (1, 2), (3, 3)],
    ]
    ax = page(ax, PAGE, 232, title=title)
    left, slot, height, step = 74, 70, 24, 56
    for r, ((name, axes), widths) in enumerate(zip(rows, slots)):
        y = 204 - r * step
        write(ax, 4, y, name, ha="left", bold=True)
        for (label, fill), (start, wide) in zip(axes, widths):
            box(ax, left + start * slot + 3, y - height / 2, wide * slot - 6, height, label, fill=fill or "white")
        if r:
            for above, below in links[r - 1]:
                (a, wide_a), (b, wide_b) = slots[r - 1][above], widths[below]
                parts = [i for i, (_, to) in enumerate(links[r - 1]) if to == below]
                siblings = [i for i, (source, _) in enumerate(links[r - 1]) if source == above]
                link = links[r - 1].index((above, below))
                start = left + (a + wide_a * (siblings.index(link) + 0.5) / len(siblings)) * slot
                end = left + (b + wide_b * (parts.index(link) + 0.5) / len(parts)) * slot
                arrow(ax, (start, y + step - height / 2), (end, y + height / 2 + 1), line=1.0)
    for x, fill, text in ((74, place, "where the patch lies"), (224, content, "what is in the patch")):
        cells(ax, x, 2, [[fill]], (10, 10))
        write(ax, x + 15, 7, text, ha="left", colour=GREY)
    return ax


def patches_to_sequence(
    image: Picture, grid: int = 4, prompt: Sequence[str] = ("<bos>", "caption", "en", "\\n"),
    title: str | None = None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """A picture cut into grid x grid patches, which become the first tokens of the decoder's sequence."""
    pixels = to_picture(image)
    ax = page(ax, PAGE, 212, title=title)
    size, left, bottom = 112, 8, 96
    _image(ax, pixels, left, bottom, size, size)
    write(ax, left + size / 2, bottom - 8, "picture", colour=GREY)
    gap, cut = 4, (size - 4 * (grid - 1)) / grid
    second = 160
    height, width = pixels.shape[:2]
    rows = np.linspace(0, height, grid + 1).round().astype(int)
    columns = np.linspace(0, width, grid + 1).round().astype(int)
    patches = [
        pixels[rows[r] : max(rows[r + 1], rows[r] + 1), columns[c] : max(columns[c + 1], columns[c] + 1)]
        for r in range(grid)
        for c in range(grid)
    ]
    for i, patch in enumerate(patches):
        r, c = divmod(i, grid)
        _image(ax, patch, second + c * (cut + gap), bottom + size - cut - r * (cut + gap), cut, cut)
    write(ax, second + size / 2, bottom - 8, f"{grid} × {grid} patches", colour=GREY)
    arrow(ax, (left + size + 6, bottom + size / 2), (second - 6, bottom + size / 2))
    box(ax, 310, bottom + size / 2 - 22, 84, 44, "each patch\n× one matrix\n+ its position", fill=FILL["vision"])
    arrow(ax, (second + size + 6, bottom + size / 2), (310, bottom + size / 2))
    box(ax, 412, bottom + size / 2 - 22, 78, 44, "image encoder,\nprojector", fill=FILL["vision"])
    arrow(ax, (394, bottom + size / 2), (412, bottom + size / 2))
    n, words, wide = grid * grid, [readable_token(token, 8) for token in prompt], 36
    cell = min(22, (PAGE - 16 - wide * len(words)) / n)
    middle = 8 + n * cell / 2
    arrow(ax, (451, bottom + size / 2 - 22), (451, 76), (middle, 76), (middle, 64))
    # The sequence: one cell a token, and above each image token its patch.
    y = 22
    for i, patch in enumerate(patches):
        x = 8 + i * cell
        tall = max(cell - 2, 14)  # of many patches each is squeezed into its narrow cell
        _image(ax, patch, x + 0.05 * cell, y + 20, 0.9 * cell, tall)
        cells(ax, x, y, [[TOKEN_COLOURS["image"][0]]], (cell, 16), line=min(1.0, cell / 16))
    for i, word in enumerate(words):
        kind = "bos" if i == 0 else "newline" if i == len(words) - 1 else "prompt"
        cells(ax, 8 + n * cell + i * wide, y, [[TOKEN_COLOURS[kind][0]]], (wide, 16), labels=[[word]])
    write(ax, middle, 10, f"{n} image tokens", colour=GREY)
    write(ax, 8 + n * cell + wide * len(words) / 2, 10, "the prompt", colour=GREY)
    return ax


def coordinate_ruler(
    image: Picture, sides: Sequence[float] = (0.25, 0.125, 0.75, 0.5), title: str | None = None, ax: Axes | None = None
) -> Axes:
    """The ruler of 1,024 location tokens along both sides of a picture, and a box read off it.

    `sides`: (y1, x1, y2, x2) in fractions of the picture, as everywhere in the package.
    """
    ax = page(ax, PAGE, 262, title=title)
    left, bottom, side = 66, 26, 196
    _image(ax, to_picture(image), left, bottom, side, side)
    top = bottom + side
    for tick in (0, 256, 512, 767, 1023):
        place = tick / 1023 * side
        ax.plot([left + place] * 2, [top + 2, top + 8], color=INK, linewidth=1)
        write(ax, left + place, top + 15, str(tick))
        ax.plot([left - 8, left - 2], [top - place] * 2, color=INK, linewidth=1)
        write(ax, left - 11, top - place, str(tick), ha="right")
    write(ax, left + side / 2, top + 29, "x: left to right", colour=GREY)
    write(ax, 12, bottom + side / 2, "y: top to bottom", colour=GREY, rotation=90)
    y1, x1, y2, x2 = sides
    corner, width, height = (left + x1 * side, top - y2 * side), (x2 - x1) * side, (y2 - y1) * side
    for edge, line in (("white", 4.0), (RED, 2.2)):
        ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=edge, linewidth=line, zorder=5))
    names = [("y1", "top", y1), ("x1", "left", x1), ("y2", "bottom", y2), ("x2", "right", x2)]
    for i, (symbol, edge, value) in enumerate(names):
        y = top - 24 - i * 40
        write(ax, 292, y, f"{symbol}, {edge}", ha="left", bold=True)
        write(ax, 352, y, f"{value:.3f} × 1023", ha="left")
        arrow(ax, (418, y), (430, y))
        _token(ax, 464, y, f"<loc{round(value * 1023):04d}>", "loc", width=64)
    for colour, line, style in (("white", 2.4, "-"), (RED, 1.2, ":")):  # dotted guides, to be seen on any picture
        guide = {"color": colour, "linewidth": line, "linestyle": style, "zorder": 4}
        for x in (x1, x2):
            ax.plot([left + x * side] * 2, [top, top - y1 * side], **guide)
        for y in (y1, y2):
            ax.plot([left, left + x1 * side], [top - y * side] * 2, **guide)
    write(ax, 292, bottom + 8, "in this order: y before x, top before bottom", ha="left", colour=GREY)
    return ax


def training_row(
    prompt: Sequence[str] = ("detect", "star"),
    answer: Sequence[str] = ("<loc0256>", "star"),
    num_image_tokens: int = 3,
    num_padding: int = 1,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """What one row of a training batch holds: tokens, mask, types and labels, and who may see whom.

    `num_image_tokens` stands for the hundreds of a real row.
    """
    tokens = ["<image>"] * num_image_tokens + ["<bos>", *prompt, "\\n", *answer, "<eos>"] + ["<pad>"] * num_padding
    kinds = ["image"] * num_image_tokens + ["bos"] + ["prompt"] * len(prompt) + ["newline"]
    kinds += ["loc" if token.startswith("<loc") else "suffix" for token in answer] + ["eos"] + ["pad"] * num_padding
    names, n = [readable_token(token, 9) for token in tokens], len(tokens)
    first = n - num_padding - len(answer) - 1  # where the answer begins
    row, left, side = 19, 96, 12
    height = 24 + row * n
    ax = page(ax, PAGE, height + 14, title=title)
    columns = [("token", 58), ("attention\nmask", 50), ("token\ntype", 42), ("label", 62)]
    x = 8.0
    for name, width in columns:
        write(ax, x + width / 2, height + 2, name, bold=True)
        for i in range(n):
            y = height - 18 - row * (i + 0.5) + 6
            in_answer, padded = first <= i < n - num_padding, kinds[i] == "pad"
            if name == "token":
                _token(ax, x + width / 2, y, names[i], kinds[i], width=width, height=row - 3)
            elif name == "label" and in_answer:
                _token(ax, x + width / 2, y, names[i], kinds[i], width=width - 4, height=row - 3)
            else:
                text = {"attention\nmask": "0" if padded else "1", "token\ntype": "1" if in_answer else "0"}.get(
                    name, "−100"
                )
                write(ax, x + width / 2, y, text, colour=GREY if text in ("0", "−100") else "black")
        x += width + 4
    side = min(row, (PAGE - x - 72) / n)
    left = PAGE - n * side - 6
    base = height - 18 - row * n + 6
    seen = np.zeros((n, n), dtype=bool)
    seen[:, :first] = True  # image and prompt are seen by all
    for i in range(first, n):
        seen[i, first : i + 1] = True
    seen[:, n - num_padding :] = False
    seen[n - num_padding :] = False
    cells(ax, left, base, [[BLUE if value else "#F2F2F2" for value in line] for line in seen], (side, row))
    write(ax, left + n * side / 2, height + 2, "may see (columns: the same tokens)", bold=True)
    for i, name in enumerate(names):
        write(ax, left - 4, height - 18 - row * (i + 0.5) + 6, name, ha="right", colour=GREY)
    ax.plot([8, PAGE - 6], [base + row * (n - first)] * 2, color=INK, linewidth=1, linestyle="--", zorder=6)
    ax.plot([left + first * side] * 2, [base, base + n * row], color=INK, linewidth=1, linestyle="--", zorder=6)
    return ax


def cache_filling(
    prompt: Sequence[str] = ("<image>", "<bos>", "caption", "\\n"),
    answer: Sequence[str] = ("a", "red", "star"),
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The KV cache step by step: the prompt fills its part at once, then every step adds one column and reads all."""
    tokens = [readable_token(token, 9) for token in (*prompt, *answer)]
    n, first = len(tokens), len(prompt)
    left, side = 92, min(52, (PAGE - 92 - 76) / n)
    rows = len(answer) + 1
    height = 46 + 28 * rows + 18
    ax = page(ax, PAGE, height, title=title)
    for i, token in enumerate(tokens):
        write(ax, left + (i + 0.5) * side, height - 12, token, bold=i >= first)
    for step in range(rows):
        y = height - 46 - 28 * step
        name = "prefill" if step == 0 else f"decoding step {step}"
        write(ax, left - 8, y + 10, name, ha="right", bold=step == 0)
        old = 0 if step == 0 else first + step - 1
        new = first if step == 0 else old + 1
        for i in range(n):
            fill, text = (SKY, "kept") if i < old else (ORANGE, "new") if i < new else ("#F2F2F2", "")
            cells(ax, left + i * side, y, [[fill]], (side, 20), labels=[[text]])
        said = answer[step] if step < len(answer) else "<eos>"
        arrow(ax, (left + n * side + 3, y + 10), (left + n * side + 17, y + 10))
        write(ax, left + n * side + 20, y + 10, f"“{readable_token(said, 8)}”", ha="left", colour=GREEN, bold=True)
    for x, fill, text in (
        (left, ORANGE, "computed now"),
        (left + 110, SKY, "read from the cache"),
        (left + 250, "#F2F2F2", "still empty"),
    ):
        cells(ax, x, 4, [[fill]], (10, 10))
        write(ax, x + 15, 9, text, ha="left", colour=GREY)
    return ax
