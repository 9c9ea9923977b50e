"""The map of the whole model; any of its parts can be opened to see what is inside."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Circle, Polygon, Rectangle

from .shapes import FILL, arrow, box, write
from .style import BLACK, GREEN, GREY, ORANGE, TOKEN_COLOURS, WIDTH, YELLOW, new_axes

# name: (left, bottom, width, height, label, family, what comes out), on a page of 740 x 330 units.
_BOXES = {
    "picture": (0, 200, 56, 56, "", "data", "picture"),
    "preprocess": (76, 196, 66, 64, "resize\nrescale\nnormalize", "vision", "[B, C, H, W]"),
    "siglip": (160, 144, 222, 168, "SigLIP image encoder", "frame", "[B, N, D]"),
    "patch_embeddings": (168, 196, 64, 64, "patches\n+\npositions", "vision", ""),
    "siglip_layers": (248, 158, 88, 134, "layer × 27", "frame", ""),
    "siglip_norm": (255, 164, 74, 20, "LayerNorm", "vision", ""),
    "siglip_attention": (255, 190, 74, 24, "attention", "vision", ""),
    "siglip_norm_2": (255, 220, 74, 20, "LayerNorm", "vision", ""),
    "siglip_mlp": (255, 246, 74, 24, "MLP", "vision", ""),
    "siglip_final_norm": (350, 176, 24, 104, "LayerNorm", "vision", ""),
    "projector": (400, 176, 28, 104, "projector", "vision", "[B, N, D]"),
    "prompt": (0, 50, 86, 36, "“caption en”", "data", "prompt"),
    "tokenizer": (160, 46, 78, 44, "tokenizer", "text", "[B, L]"),
    "embedding": (290, 46, 92, 44, "embedding\n× √D", "text", "[B, L, D]"),
    "merge": (454, 46, 26, 252, "merge", "merge", "[B, L, D]"),
    "gemma": (504, 46, 142, 266, "Gemma decoder", "frame", "[B, L, D]"),
    "gemma_layers": (511, 66, 93, 226, "layer × 18", "frame", ""),
    "gemma_norm": (518, 74, 79, 34, "RMSNorm", "decoder", ""),
    "gemma_attention": (518, 116, 79, 62, "attention\n+ RoPE\n+ KV cache", "decoder", ""),
    "gemma_norm_2": (518, 186, 79, 34, "RMSNorm", "decoder", ""),
    "gemma_mlp": (518, 228, 79, 42, "gated MLP", "decoder", ""),
    "gemma_final_norm": (616, 100, 22, 156, "RMSNorm", "decoder", ""),
    "lm_head": (662, 100, 24, 156, "LM head", "decoder", "[B, L, V]"),
    "tokens": (704, 160, 36, 36, "“cat”", "data", "next\ntoken"),
}
# One name that highlights several boxes.
_GROUPS = {
    "siglip_norms": ("siglip_norm", "siglip_norm_2", "siglip_final_norm"),
    "gemma_norms": ("gemma_norm", "gemma_norm_2", "gemma_final_norm"),
    "generation": ("gemma_attention", "lm_head", "tokens"),
    "processor": ("preprocess", "prompt", "tokenizer"),
}
_HIGHLIGHT = YELLOW
_PAGE = (-4, 744), (0, 328)  # left and right, bottom and top
_ROW = 56  # height of a row of steps in an open box

# What is inside a box: columns of steps from left to right. A step is (label, what comes out of it), or None where a
# line goes straight on; the arrows between two columns are pairs of places, or None for the usual ones (each to the
# same place, one to all, all to one).
_INSIDE = {
    "preprocess": ([[("picture", "any size")], [("resize", "a square")], [("rescale\n× 1/255", "0 to 1")],
                    [("normalize\n(x − ½) / ½", "−1 to 1")], [("channels\nfirst", "[B, 3, H, W]")]], {}),
    "patch_embeddings": ([[("pixels", "[B, 3, H, W]")], [("cut into\npatches", "[B, N, 3·P·P]")],
                          [("× matrix\n+ bias", "[B, N, D]")], [("+ position\nof the patch", "[B, N, D]")]], {}),
    "siglip_attention": ([[("x", "[B, N, D]")],
                          [("query", "[B, H, N, d]"), ("key", "[B, H, N, d]"), ("value", "[B, H, N, d]")],
                          [("query · key\n/ √d", "[B, H, N, N]"), None], [("softmax\nover keys", "[B, H, N, N]"), None],
                          [("weights\n× values", "[B, H, N, d]")], [("heads side\nby side", "[B, N, D]")],
                          [("output\nmatrix", "[B, N, D]")]], {1: [(0, 0), (1, 0), (2, 1)]}),
    "siglip_mlp": ([[("x", "[B, N, D]")], [("Linear", "[B, N, 4D]")], [("GELU", "[B, N, 4D]")],
                    [("Linear", "[B, N, D]")]], {}),
    "siglip_norm": ([[("x", "[B, N, D]")], [("− mean\nof the token", "")], [("/ standard\ndeviation", "")],
                     [("× weight\n+ bias", "[B, N, D]")]], {}),
    "siglip": ([[("pixels", "[B, 3, H, W]")], [("patches +\npositions", "[B, N, D]")], [("LayerNorm", "")],
                [("attention", "")], [("+ x", "[B, N, D]")], [("LayerNorm", "")], [("MLP", "")], [("+ x", "[B, N, D]")],
                [("LayerNorm", "[B, N, D]")]], {}),
    "projector": ([[("image\nfeatures", "[B, N, D$_v$]")], [("Linear", "")],
                   [("image tokens\nof the decoder", "[B, N, D]")]], {}),
    "processor": ([[("picture", "any size"), ("prompt", "text")],
                   [("resize, rescale,\nnormalize", ""), ("<image> × N, <bos>,\nprompt, newline", "text")],
                   [("pixel values", "[B, 3, H, W]"), ("token ids", "[B, L]")]], {}),
    "tokenizer": ([[("“caption en\\n”", "text")], [("pieces", "caption · ▁en · \\n")], [("ids", "[B, L]")]], {}),
    "embedding": ([[("ids", "[B, L]")], [("one row of the\ntable each", "[B, L, D]")], [("× √D", "[B, L, D]")]], {}),
    "merge": ([[("image tokens", "[B, N, D]"), ("text tokens", "[B, L, D]")],
               [("image tokens take the\nplaces of <image>", "[B, L, D]")]], {}),
    "gemma_norm": ([[("x", "[B, L, D]")], [("mean of\nsquares", "[B, L, 1]")], [("x / √(mean + ε)", "[B, L, D]")],
                    [("× (1 + weight)", "[B, L, D]")]], {}),
    "gemma_attention": ([[("x", "[B, L, D]")], [("query", ""), ("key", ""), ("value", "")],
                         [("RoPE", "[B, H, L, d]"), ("RoPE", ""), None],
                         [None, ("KV cache", "[B, H$_{kv}$, T, d]"), ("KV cache", "[B, H$_{kv}$, T, d]")],
                         [None, ("repeat\nheads", "[B, H, T, d]"), ("repeat\nheads", "[B, H, T, d]")],
                         [("query ·\nkey / √d", "[B, H, L, T]"), None], [("mask,\nsoftmax", "[B, H, L, T]"), None],
                         [("weights\n× values", "[B, H, L, d]")], [("output\nmatrix", "[B, L, D]")]],
                        {4: [(0, 0), (1, 0), (2, 1)]}),
    "gemma_mlp": ([[("x", "[B, L, D]")], [("gate", "[B, L, F]"), ("up", "[B, L, F]")], [("GELU", ""), None],
                   [("gate × up", "[B, L, F]")], [("down", "[B, L, D]")]], {}),
    "gemma": ([[("sequence", "[B, L, D]")], [("RMSNorm", "")], [("attention", "")], [("+ x", "[B, L, D]")],
               [("RMSNorm", "")], [("gated MLP", "")], [("+ x", "[B, L, D]")], [("RMSNorm", "[B, L, D]")]], {}),
    "lm_head": ([[("last state", "[B, L, D]")], [("× embedding\ntable", "[B, L, V]")], [("softmax", "[B, L, V]")],
                 [("choose", "next token")]], {}),
    "generation": ([[("image and prompt", "prefill, once")], [("keys and values\nof all layers", "KV cache")],
                    [("logits of the\nlast place", "[B, V]")], [("next token", "[B]")],
                    [("one decoding step\nwith the new token", "again, until <eos>")]], {}),
}  # fmt: skip
# The steps of an open box that are repeated: the first and last column, and how often.
_REPEATED = {"siglip": (2, 7, "layer × 27"), "gemma": (1, 6, "layer × 18")}
# Other names for the same inside.
_SAME = {
    "siglip_layers": "siglip",
    "siglip_norms": "siglip_norm",
    "siglip_norm_2": "siglip_norm",
    "siglip_final_norm": "siglip_norm",
    "gemma_layers": "gemma",
    "gemma_norms": "gemma_norm",
    "gemma_norm_2": "gemma_norm",
    "gemma_final_norm": "gemma_norm",
}


def architecture(
    current: str | Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    open: str | None = None,  # the word that a reader expects; the builtin is not needed here
) -> Axes:
    """The whole of PaliGemma on one page, with the boxes that a chapter is about highlighted.

    Args:
        current: the name of a box or group, or several of them: "preprocess", "patch_embeddings",
            "siglip_attention", "siglip", "projector", "tokenizer", "embedding", "merge", "gemma_norms",
            "gemma_attention", "gemma_mlp", "gemma", "lm_head", "generation", ...
            An unknown name raises ValueError with the list of all.
        open: the name of one box whose inside is shown below the map; it is highlighted, too.
    Returns Axes; each box is a patch whose `get_gid()` is its name, and highlighted ones are filled yellow. The steps
    inside an open box have the gid "inside".
    """
    wanted = [current] if isinstance(current, str) else list(current or [])
    unknown = [name for name in wanted if name not in _BOXES and name not in _GROUPS]
    if unknown:
        raise ValueError(f"architecture: no box called {unknown}; there are {', '.join([*_BOXES, *_GROUPS])}")
    if open is not None:
        if _SAME.get(open, open) not in _INSIDE:
            raise ValueError(f"architecture: {open!r} cannot be opened; these can: {', '.join([*_INSIDE, *_SAME])}")
        wanted.append(open)
    highlighted = {box for name in wanted for box in _GROUPS.get(name, (name,))}

    (left, right), (bottom, top) = _PAGE
    bottom -= _drawer(open)
    ax = new_axes(ax, WIDTH, 3.25 + WIDTH * _drawer(open) / (right - left))
    ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    ax.set_axis_off()
    for name in _BOXES:
        _draw_box(ax, name, name in highlighted)
    _draw_landscape(ax)
    _draw_sequence(ax, "merge" in highlighted)
    _draw_arrows(ax)
    if open is not None:
        _draw_inside(ax, open)
    if title:
        ax.set_title(title)
    return ax


def _drawer(name: str | None) -> int:
    """How far the page is lengthened at the bottom to show what is inside a box."""
    if name is None:
        return 0
    columns, _ = _INSIDE[_SAME.get(name, name)]
    frame = 26 if _SAME.get(name, name) in _REPEATED else 0
    return 46 + frame + _ROW * max(len(column) for column in columns)


def _draw_box(ax: Axes, name: str, on: bool) -> None:
    left, bottom, width, height, label, family, output = _BOXES[name]
    is_frame, is_data = family == "frame", family == "data"
    box(
        ax, left, bottom, width, height,
        label="" if is_frame or name == "merge" else label,
        fill=_HIGHLIGHT if on else FILL[family],
        edge=BLACK if on else "#9A9A9A" if is_frame else GREY,
        line=1.8 if on else 0.8,
        dashed=is_frame and not on,
        rounding=8 if is_frame else 5,
        rotation=90 if width < 30 else 0,
        gid=name,
        zorder=1 if is_frame else 2,
    )  # fmt: skip
    middle = left + width / 2
    if is_frame:
        write(ax, middle, bottom + height - (10 if name in ("siglip", "gemma") else 11), label, bold=True)
    if output:
        below = bottom - (10 if "\n" not in output else 17)
        write(ax, middle, below, output, colour=BLACK if is_data else GREY, bold=on and is_data)


def _draw_landscape(ax: Axes) -> None:
    """The picture: a small landscape, so that the eye finds the beginning."""
    left, bottom, width, height, *_ = _BOXES["picture"]
    clip = Rectangle((left + 4, bottom + 4), width - 8, height - 8, transform=ax.transData)
    for shape in (
        Rectangle((left + 4, bottom + 4), width - 8, height - 8, facecolor="#BFE3F5"),
        Circle((left + 40, bottom + 40), 6, facecolor=ORANGE),
        Polygon([(left + 4, bottom + 4), (left + 22, bottom + 34), (left + 40, bottom + 4)], facecolor=GREEN),
        Polygon([(left + 26, bottom + 4), (left + 40, bottom + 24), (left + 60, bottom + 4)], facecolor="#00724F"),
    ):
        shape.set(edgecolor="none", zorder=3)
        ax.add_patch(shape)
        shape.set_clip_path(clip)


def _draw_sequence(ax: Axes, on: bool) -> None:
    """The merge: image tokens on top, text tokens below, one sequence."""
    left, bottom, width, height, *_ = _BOXES["merge"]
    for i in range(14):
        colour = TOKEN_COLOURS["image" if i >= 4 else "prompt"][0]
        corner = (left + 6, bottom + 6 + i * 17.3)
        ax.add_patch(Rectangle(corner, width - 12, 14, facecolor=colour, edgecolor="white", linewidth=0.5, zorder=3))
    write(ax, left + width / 2, bottom + height + 11, "merge", bold=on)


def _draw_arrows(ax: Axes) -> None:
    picture, prompt, decoder = 228, 68, 178  # the heights at which the three ways run
    for lane, stretches in {
        picture: [(56, 76), (142, 168), (232, 248), (336, 350), (374, 400), (428, 454)],
        prompt: [(86, 160), (238, 290), (382, 454)],
        decoder: [(480, 511), (604, 616), (638, 662), (686, 704)],
    }.items():
        for start, end in stretches:
            arrow(ax, (start, lane), (end, lane))
    arrow(ax, (722, 122), (722, 6), (336, 6), (336, 26), colour=GREY, dashed=True)
    write(ax, 560, 17, "append the token and run again", colour=GREY, italic=True)


def _draw_inside(ax: Axes, name: str) -> None:
    """The open box below the map: its steps from left to right."""
    columns, special = _INSIDE[_SAME.get(name, name)]
    boxes = [_BOXES[box] for box in _GROUPS.get(name, (name,))]
    left, top, right = min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[0] + b[2] for b in boxes)
    page = (0, 6 - _drawer(name), 740, _drawer(name) - 22)  # left, bottom, width, height of the drawer
    edge = page[1] + page[3]
    fan = Polygon([(left, top), (right, top), (page[2], edge), (0, edge)], facecolor=_HIGHLIGHT, alpha=0.18, zorder=0)
    ax.add_patch(fan)
    box(ax, *page, fill="#FFFDF2", edge=BLACK, line=1.2, rounding=8, zorder=1)
    step = page[2] / len(columns)
    width, height = min(142, step - 11), 34
    middle = page[1] + page[3] / 2 + 5  # what comes out of a step is written below it
    if _SAME.get(name, name) in _REPEATED:
        first, last, times = _REPEATED[_SAME.get(name, name)]
        start, end = step * first + 1, step * (last + 1) - 1
        around = start, page[1] + 6, end - start, page[3] - 12
        box(ax, *around, fill="none", edge="#9A9A9A", dashed=True, gid="repeated", zorder=1.5)
        write(ax, (start + end) / 2, edge - 16, times, bold=True)
        middle -= 10
    # Rows of two or three steps lie one above the other; places[column][row] is the middle of each.
    places = [
        [(step * (c + 0.5), middle + ((len(column) - 1) / 2 - r) * _ROW) for r in range(len(column))]
        for c, column in enumerate(columns)
    ]
    for column, spots in zip(columns, places):
        for entry, (x, y) in zip(column, spots):
            if entry is None:
                continue
            label, output = entry
            box(ax, x - width / 2, y - height / 2, width, height, label, fill="white", edge=GREY, gid="inside")
            if output:
                write(ax, x, y - height / 2 - 9, output, colour=GREY)
    for c, (before, after) in enumerate(zip(places, places[1:])):
        usual = [(i, j) for i in range(len(before)) for j in range(len(after)) if len(before) != len(after) or i == j]
        for i, j in special.get(c) or usual:
            (x1, y1), (x2, y2) = before[i], after[j]
            passes = columns[c + 1][j] is None  # the line goes on through that place
            arrow(ax, (x1 + width / 2, y1), (x2 - width / 2, y2), head=not passes)
            if passes:
                arrow(ax, (x2 - width / 2, y2), (x2 + width / 2, y2), head=False)
