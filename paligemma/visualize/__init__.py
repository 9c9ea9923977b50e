"""Every figure of the course, in one style.

Each function draws into the axes that it is given, or makes its own, labels them, and returns them
(one Axes, or an array of Axes), so that a test can read back what was drawn:
the array, the limits, the titles.
Model files never import this module.

Pictures may be given as a PIL image, as an array or tensor [H, W], [H, W, C] or [C, H, W], with values
0..255 (uint8), 0..1 (float) or -1..1 (float, as the image encoder takes them; recognised by negative values).
Boxes are (y1, x1, y2, x2) in pixels, the order in which PaliGemma writes them.
"""

import io
import os
import sys
import tempfile
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Patch, Polygon, Rectangle
from PIL import Image

WIDTH = 7.0  # inches: the width of a text column on a notebook page

# Okabe and Ito's palette: eight colours that stay apart for every common kind of colour blindness.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PINK = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, PALE = "#6B6B6B", "#E4E4E4"
CYCLE = [BLUE, ORANGE, GREEN, PINK, RED, SKY, BLACK]  # neighbours differ in lightness too
LINE_STYLES = [
    "-",
    "--",
    "-.",
    ":",
]  # used beside colour, so that a figure survives a black and white printer

# One colour for each kind of token, the same in every chapter: (fill, text).
TOKEN_COLOURS = {
    "image": (SKY, BLACK),
    "bos": (PINK, BLACK),
    "prompt": (ORANGE, BLACK),
    "newline": ("#F6D58B", BLACK),
    "suffix": (GREEN, "white"),
    "eos": (PINK, BLACK),
    "loc": (RED, "white"),
    "seg": (BLUE, "white"),
    "pad": (PALE, GREY),
}


def set_style():
    """Sets matplotlib's defaults to the course's one style. Call it once, at the head of a notebook."""
    matplotlib.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.0),
            "figure.dpi": 100,  # a figure is at most 700 pixels wide: a whole chapter stays far below 1 MB
            "figure.constrained_layout.use": True,
            "savefig.dpi": 100,
            "savefig.facecolor": "white",
            "font.family": "DejaVu Sans",  # comes with matplotlib
            "font.size": 9,
            "axes.titlesize": 9.5,
            "axes.titleweight": "bold",
            "axes.labelsize": 8.5,
            "xtick.labelsize": 7.5,
            "ytick.labelsize": 7.5,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": GREY,
            "axes.grid": False,
            "grid.color": PALE,
            "lines.linewidth": 1.6,
            "image.cmap": "cividis",
            "image.interpolation": "nearest",  # a pixel looks like a pixel
            "axes.prop_cycle": matplotlib.cycler(color=CYCLE),
        }
    )
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:  # in a notebook
        plt.switch_backend(matplotlib.get_backend())  # load it now, so that it can't overrule the next line later
        shell.display_formatter.formatters["image/png"].for_type(Figure, small_png)


def small_png(figure):
    """A figure as PNG in 256 colours: a third of the size, which counts where photographs are shown. Returns bytes."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", bbox_inches="tight")
    picture = Image.open(full).convert("RGB")
    # Maximum coverage keeps rare colours, such as the ends of a colour bar, where the default would dull them.
    picture = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    picture.save(small, "PNG", optimize=True)
    return small.getvalue()


def save_figure(figure, path):
    """Writes `figure` (a Figure or any of its Axes) to `path`; the ending of the name chooses the format.

    The file is written under a temporary name and renamed, so nobody ever sees half a picture.
    Returns the path.
    """
    figure = figure if hasattr(figure, "savefig") else np.ravel(figure)[0].figure
    path = Path(path)
    if not path.suffix:
        raise ValueError(f"save_figure: {path} has no ending that names a format; add one, such as .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=path.suffix, prefix=path.stem + ".", dir=path.parent)
    os.close(handle)
    try:
        figure.savefig(temporary, bbox_inches="tight")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


# ------------------------------------------------------------------------------------------------------------
# Helpers
# ------------------------------------------------------------------------------------------------------------


def to_array(values):
    """Tensor, PIL image, list or array -> NumPy array on the CPU; half precision becomes float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point():
            values = values.float()
    return np.asarray(values)


def to_picture(image):
    """Any picture (see the head of this file) -> float array in 0..1, [H, W, 3]."""
    if hasattr(image, "convert"):  # PIL
        image = image.convert("RGB")
    pixels = to_array(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]  # [H, W] -> [H, W, 1]
    if pixels.ndim != 3:
        raise ValueError(
            f"a picture has shape [H, W], [H, W, C] or [C, H, W], but this one is {pixels.shape}; "
            "take one picture out of a batch with images[0]"
        )
    if pixels.shape[-1] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)  # [C, H, W] -> [H, W, C]
    if pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(f"a picture has 1, 3 or 4 channels, but this one is {pixels.shape}")
    if pixels.dtype == bool:
        pixels = pixels.astype(float)
    elif np.issubdtype(pixels.dtype, np.integer):
        pixels = pixels / 255.0
    elif pixels.min() < 0:
        pixels = pixels * 0.5 + 0.5  # undo the normalisation
    pixels = np.clip(pixels.astype(float), 0, 1)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    return pixels[..., :3]


def _axes(ax, width=WIDTH, height=3.0):
    """The axes given, or the only axes of a new figure of that size in inches."""
    if ax is not None:
        return ax
    _, ax = plt.subplots(figsize=(width, height))
    return ax


def _row(n, height, columns=None, width=WIDTH):
    """A row (or several) of n axes in a new figure: array of n Axes. Places left over are taken away."""
    columns = columns or n
    rows = -(-n // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width, height * rows), squeeze=False)
    for ax in axes.flat[n:]:
        ax.remove()
    return axes.flat[:n]


def _frame(ax):
    """A thin frame all around, for pictures and matrices."""
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.6)


def _text_colour(rgba):
    """Black on light fields, white on dark ones (relative luminance)."""
    red, green, blue = rgba[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


# ------------------------------------------------------------------------------------------------------------
# Pictures
# ------------------------------------------------------------------------------------------------------------


def show_image(image, title=None, ax=None):
    """One picture, with its pixel coordinates along the edges. Returns Axes."""
    ax = _axes(ax, 3.2, 3.2)
    ax.imshow(to_picture(image))
    _frame(ax)
    ax.locator_params(nbins=4)
    ax.set(title=title or "", xlabel="x (pixels)", ylabel="y (pixels)")
    return ax


def show_images(images, titles=None, columns=None, height=2.2):
    """Several pictures in a row, each keeping its own size and shape. Returns an array of Axes."""
    titles = titles or [None] * len(images)
    if len(titles) != len(images):
        raise ValueError(f"show_images: {len(images)} pictures but {len(titles)} titles")
    axes = _row(len(images), height, columns)
    for i, (ax, image, title) in enumerate(zip(axes, images, titles)):
        show_image(image, title, ax)
        if i % (columns or len(images)):
            ax.set_ylabel("")
    return axes


def show_patches(image, patch_size, highlight=(), gap=2, numbers=False, title=None, ax=None):
    """A picture cut into square patches that lie a little apart; `highlight` outlines tokens by their number.

    Args:
        image: a picture whose height and width are multiples of `patch_size`.
        highlight: token numbers r*W+c, counted along the rows from the top left.
        gap: white pixels between patches. numbers: write each token's number into its patch.
    Returns Axes; its image is the canvas, [rows*patch + (rows-1)*gap, columns*patch + (columns-1)*gap, 3].
    """
    pixels = to_picture(image)
    height, width = pixels.shape[:2]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"show_patches: {height} x {width} pixels can't be cut into patches of {patch_size}; "
            "resize the picture to a multiple first"
        )
    rows, columns = height // patch_size, width // patch_size
    step = patch_size + gap
    canvas = np.ones((rows * step - gap, columns * step - gap, 3))
    for r in range(rows):
        for c in range(columns):
            patch = pixels[r * patch_size : (r + 1) * patch_size, c * patch_size : (c + 1) * patch_size]
            canvas[r * step : r * step + patch_size, c * step : c * step + patch_size] = patch

    ax = _axes(ax, 4.2, 4.2 * rows / columns + 0.3)
    ax.imshow(canvas)
    for token in range(rows * columns):
        r, c = divmod(token, columns)
        if numbers:
            patch = canvas[r * step : r * step + patch_size, c * step : c * step + patch_size]
            ax.text(
                c * step + patch_size / 2 - 0.5,
                r * step + patch_size / 2 - 0.5,
                str(token),
                ha="center",
                va="center",
                fontsize=7,
                color=_text_colour(patch.mean((0, 1))),
            )
    for token in highlight:
        r, c = divmod(int(token), columns)
        if not 0 <= token < rows * columns:
            raise ValueError(f"show_patches: no token {token}; {rows} x {columns} patches have 0..{rows * columns - 1}")
        corner = (c * step - 0.5, r * step - 0.5)
        ax.add_patch(Rectangle(corner, patch_size, patch_size, fill=False, edgecolor=RED, linewidth=2))
        ax.annotate(
            f"token {token}",
            (corner[0] + patch_size / 2, corner[1]),
            textcoords="offset points",
            xytext=(0, 4),
            ha="center",
            fontsize=7.5,
            fontweight="bold",
            color="white",
            bbox={"boxstyle": "round,pad=0.2", "facecolor": RED, "edgecolor": "none"},
        )
    every = max(1, columns // 8)
    ax.set_xticks([c * step + (patch_size - 1) / 2 for c in range(0, columns, every)], range(0, columns, every))
    ax.set_yticks([r * step + (patch_size - 1) / 2 for r in range(0, rows, every)], range(0, rows, every))
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set(xlabel="column c of the patch", ylabel="row r of the patch")
    ax.set_title(title or "", pad=20 if len(highlight) else 6)  # above the label of a token in the first row
    return ax


def show_filters(filters, columns=12, titles=None, title=None):
    """Filters of a patch embedding as little colour pictures, each scaled to its own largest weight.

    Args: filters: [n, 3, P, P]; grey means zero, and a channel brighter than grey has a positive weight.
    Returns an array of n Axes.
    """
    filters = to_array(filters)
    if filters.ndim != 4 or filters.shape[1] != 3:
        raise ValueError(f"show_filters: filters have shape [n, 3, P, P], not {filters.shape}")
    columns = min(columns, len(filters))
    axes = _row(len(filters), WIDTH / columns * 1.08, columns)
    for i, (ax, weights) in enumerate(zip(axes, filters)):
        scale = np.abs(weights).max() or 1.0
        ax.imshow(weights.transpose(1, 2, 0) / (2 * scale) + 0.5)
        _frame(ax)
        ax.set(xticks=[], yticks=[])
        ax.set_title(str(titles[i]) if titles is not None else str(i), fontsize=7, fontweight="normal", pad=2)
    if title:
        axes[0].figure.suptitle(title, fontsize=9.5, fontweight="bold")
    return axes


def show_similarity_maps(vectors, grid, tokens, title=None):
    """Cosine similarity of a few tokens' vectors with everybody's, each as a map over the patch grid.

    Args:
        vectors: [N, D], such as position embeddings. grid: (rows, columns) with rows * columns = N.
        tokens: the numbers of the tokens to compare with all.
    Returns an array of Axes, one a token; each holds a [rows, columns] map on the scale -1..1.
    """
    vectors = to_array(vectors).astype(float)
    rows, columns = grid
    if vectors.ndim != 2 or len(vectors) != rows * columns:
        raise ValueError(
            f"show_similarity_maps: a grid of {rows} x {columns} needs [{rows * columns}, D], not {vectors.shape}"
        )
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    axes = _row(len(tokens), WIDTH / max(len(tokens), 3) * rows / columns + 0.55)
    for i, (ax, token) in enumerate(zip(axes, tokens)):
        r, c = divmod(int(token), columns)
        shown = ax.imshow((unit @ unit[token]).reshape(rows, columns), vmin=-1, vmax=1)
        ax.add_patch(Rectangle((c - 0.5, r - 0.5), 1, 1, fill=False, edgecolor=RED, linewidth=1.6))
        _frame(ax)
        ax.locator_params(nbins=4, integer=True)
        ax.set(title=f"token {token}\n(row {r}, column {c})", xlabel="column c")
        if i == 0:
            ax.set_ylabel("row r")
    axes[0].figure.colorbar(shown, ax=list(axes), label="cosine similarity", shrink=0.8, pad=0.02)
    if title:
        axes[0].figure.suptitle(title, fontsize=9.5, fontweight="bold")
    return axes


def show_attention_over_image(image, weights, patch=None, title=None, ax=None, alpha=0.65, vmax=None):
    """Attention weights as a heat map over a greyed picture, each weight covering its patch.

    Args:
        image: a picture, [H, W]. weights: [rows, columns], one weight a patch.
        patch: (row, column) of the patch that asks, outlined; None for none. vmax: top of the colour scale.
    Returns Axes: `ax.images[1]` is the heat map, spread over the whole picture.
    """
    pixels, weights = to_picture(image), to_array(weights)
    if weights.ndim != 2:
        raise ValueError(f"show_attention_over_image: weights are a grid [rows, columns], not {weights.shape}")
    ax = _axes(ax, 3.8, 3.3)
    height, width = pixels.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    ax.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=extent)
    heat = ax.imshow(weights, extent=extent, alpha=alpha, vmin=0, vmax=vmax)
    if patch is not None:
        r, c = patch
        dy, dx = height / weights.shape[0], width / weights.shape[1]
        ax.add_patch(
            Rectangle(
                (c * dx - 0.5, r * dy - 0.5),
                dx,
                dy,
                fill=False,
                edgecolor=RED,
                linewidth=2,
                label="the patch that asks",
            )
        )
    _frame(ax)
    ax.locator_params(nbins=4)
    ax.set(title=title or "", xlabel="x (pixels)", ylabel="y (pixels)")
    ax.figure.colorbar(heat, ax=ax, label="attention weight", shrink=0.85, pad=0.03)
    return ax


def show_boxes(image, boxes, labels=None, title=None, ax=None):
    """Boxes [n, 4] = (y1, x1, y2, x2) in pixels over a picture, each with its label. Returns Axes."""
    boxes = to_array(boxes).reshape(-1, 4)
    labels = labels if labels is not None else [""] * len(boxes)
    if len(labels) != len(boxes):
        raise ValueError(f"show_boxes: {len(boxes)} boxes but {len(labels)} labels")
    ax = show_image(image, title, _axes(ax, 3.6, 3.6))
    for i, ((y1, x1, y2, x2), label) in enumerate(zip(boxes, labels)):
        colour = CYCLE[i % len(CYCLE)]
        # A white line below the coloured one keeps the box visible on every background.
        for edge, line in (("white", 3.6), (colour, 2.0)):
            ax.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=line))
        if label:
            ax.annotate(
                label,
                (x1 - 0.5, y1 - 0.5),
                textcoords="offset points",
                xytext=(0, 3),
                fontsize=7.5,
                color="white",
                bbox={"boxstyle": "round,pad=0.2", "facecolor": colour, "edgecolor": "none"},
                annotation_clip=False,
            )
    return ax


def show_masks(image, masks, labels=None, title=None, ax=None, alpha=0.55):
    """Masks [n, H, W] (bool, or 0..1) laid over a picture, one colour each, with a legend. Returns Axes."""
    pixels, masks = to_picture(image), to_array(masks).astype(float)
    if masks.ndim != 3 or masks.shape[1:] != pixels.shape[:2]:
        raise ValueError(
            f"show_masks: masks must be [n, {pixels.shape[0]}, {pixels.shape[1]}] like the picture, not {masks.shape}"
        )
    labels = labels if labels is not None else [f"mask {i}" for i in range(len(masks))]
    ax = show_image(image, title, _axes(ax, 3.6, 3.6))
    for i, mask in enumerate(masks):
        colour = CYCLE[i % len(CYCLE)]
        overlay = np.zeros((*mask.shape, 4))
        overlay[..., :3] = matplotlib.colors.to_rgb(colour)
        overlay[..., 3] = alpha * np.clip(mask, 0, 1)
        ax.imshow(overlay)
        if mask.max() > 0.5 > mask.min():
            ax.contour(mask, levels=[0.5], colors=[colour], linewidths=1.2)
    handles = [Patch(facecolor=CYCLE[i % len(CYCLE)], label=label) for i, label in enumerate(labels)]
    if handles:
        ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=min(3, len(handles)))
    return ax


# ------------------------------------------------------------------------------------------------------------
# Numbers
# ------------------------------------------------------------------------------------------------------------


def show_matrix(
    matrix,
    title=None,
    xlabel="column",
    ylabel="row",
    rows=None,
    columns=None,
    annotate=None,
    decimals=2,
    vmin=None,
    vmax=None,
    cmap=None,
    colour_bar=True,
    ax=None,
):
    """A small matrix as coloured fields with the numbers written in. Returns Axes.

    Args:
        matrix: [rows, columns]. rows, columns: names for the ticks.
        annotate: write the numbers in; by default only where they can be read (at most 16 columns).
        decimals: digits after the point (whole numbers show none).
    """
    matrix = to_array(matrix)
    if matrix.ndim != 2:
        raise ValueError(f"show_matrix: a matrix has two dimensions, this one has shape {matrix.shape}")
    n_rows, n_columns = matrix.shape
    if max(n_rows, n_columns) <= 16:
        size = (min(WIDTH, 0.55 * n_columns + 1.8), max(1.6, 0.42 * n_rows + 0.9))
    else:
        size = (4.4, 3.6)
    ax = _axes(ax, *size)
    shown = ax.imshow(matrix.astype(float), vmin=vmin, vmax=vmax, cmap=cmap)
    if annotate is None:
        annotate = n_columns <= 16 and n_rows <= 16
    if annotate:
        whole = np.issubdtype(matrix.dtype, np.integer) or matrix.dtype == bool
        for (r, c), value in np.ndenumerate(matrix):
            text = str(int(value)) if whole else f"{value:.{decimals}f}"
            colour = _text_colour(shown.cmap(shown.norm(float(value))))
            ax.text(c, r, text, ha="center", va="center", color=colour, fontsize=8)
    if rows is not None:
        ax.set_yticks(range(n_rows), rows)
    elif n_rows <= 16:
        ax.set_yticks(range(n_rows))
    if columns is not None:
        ax.set_xticks(range(n_columns), columns)
    elif n_columns <= 16:
        ax.set_xticks(range(n_columns))
    ax.tick_params(length=0)
    _frame(ax)
    ax.set(title=title or "", xlabel=xlabel, ylabel=ylabel)
    if colour_bar:
        ax.figure.colorbar(shown, ax=ax, shrink=0.85, pad=0.03, label="value")
    return ax


def show_mask_matrix(mask, blocks, title=None, ax=None, names=None):
    """An attention mask: which token (row) may see which (column), with the blocks marked off.

    Args:
        mask: [L, L] bool, True where the row's token may see the column's.
        blocks: [(name, length), ...] that add up to L, such as [("image", 4), ("prompt", 3), ("suffix", 3)].
        names: the tokens' own names, written along the edges if there are at most 24.
    Returns Axes; its image holds 1 (may see) and 0.
    """
    mask = to_array(mask).astype(bool)
    length = sum(n for _, n in blocks)
    if mask.shape != (length, length):
        raise ValueError(f"show_mask_matrix: blocks {blocks} add up to {length}, but the mask is {mask.shape}")
    ax = _axes(ax, 3.9, 3.7)
    ax.imshow(mask.astype(int), cmap=ListedColormap(["#F4F4F4", BLUE]), vmin=0, vmax=1)
    ax.set_xticks(np.arange(length + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(length + 1) - 0.5, minor=True)
    ax.xaxis.remove_overlapping_locs = ax.yaxis.remove_overlapping_locs = False  # a block's name may sit on a line
    ax.grid(which="minor", color="white", linewidth=0.8)
    ax.tick_params(which="both", length=0)
    edges = np.cumsum([0] + [n for _, n in blocks])
    for edge in edges[1:-1]:
        ax.axhline(edge - 0.5, color=BLACK, linewidth=1.2)
        ax.axvline(edge - 0.5, color=BLACK, linewidth=1.2)
    if names is not None and length <= 24:
        ax.set_xticks(range(length), names, rotation=90)
        ax.set_yticks(range(length), names)
    else:
        middles = (edges[:-1] + edges[1:] - 1) / 2
        ax.set_xticks(middles, [name for name, _ in blocks])
        ax.set_yticks(middles, [name for name, _ in blocks])
    _frame(ax)
    ax.set(title=title or "", xlabel="is seen (key)", ylabel="looks (query)")
    ax.legend(
        handles=[
            Patch(facecolor=BLUE, label="may see"),
            Patch(facecolor="#F4F4F4", edgecolor=GREY, label="may not see"),
        ],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16 if names is None else -0.3),
        ncols=2,
    )
    return ax


def show_histograms(arrays, bins=64, xlabel="value", columns=None, height=2.0, axes=None):
    """How often each value occurs, one field for each array; pictures get a line for each colour channel.

    Args:
        arrays: {title: array}. A PIL image or an array [..., 3] or [3, H, W] is split into red, green, blue.
        axes: the axes to draw into, one for each array; by default those of a new figure.
    Returns an array of Axes, in the order of the dictionary.
    """
    axes = _row(len(arrays), height, columns) if axes is None else axes
    channels = [("red", RED, "-"), ("green", GREEN, "--"), ("blue", BLUE, ":")]
    for i, (ax, (title, values)) in enumerate(zip(axes, arrays.items())):
        values = to_array(values)
        if values.ndim == 3 and values.shape[0] == 3 and values.shape[-1] != 3:
            values = np.moveaxis(values, 0, -1)
        low, high = float(values.min()), float(values.max())
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        if values.ndim == 3 and values.shape[-1] == 3:
            for k, (name, colour, style) in enumerate(channels):
                share = np.histogram(values[..., k], edges)[0] / values[..., k].size
                ax.stairs(share, edges, color=colour, linestyle=style, label=name, linewidth=1.3)
        else:
            share = np.histogram(values, edges)[0] / values.size
            ax.stairs(share, edges, color=BLUE, fill=True, alpha=0.8)
        ax.axvline(values.mean(), color=BLACK, linewidth=0.9)
        ax.annotate(
            f"mean {values.mean():.2f}",
            (values.mean(), 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, -2),
            textcoords="offset points",
            va="top",
            fontsize=7.5,
        )
        ax.set(title=title, xlabel=xlabel, ylabel="share of pixels" if i % (columns or len(arrays)) == 0 else "")
        ax.set_ylim(0, ax.get_ylim()[1] * 1.2)  # room for the mean
        ax.locator_params(axis="x", nbins=5)
    handles, names = axes[0].get_legend_handles_labels()
    if handles:
        axes[0].figure.legend(handles, names, loc="outside lower center", ncols=3)
    return axes


def show_curves(
    curves, xlabel="step", ylabel="value", title=None, x=None, logx=False, logy=False, ax=None, marker=None
):
    """Curves in one field, told apart by colour and by line style. Returns Axes.

    Args:
        curves: {name: y} or {name: (x, y)}.
        x: shared by all curves that give y alone (default 0, 1, 2, ...).
    """
    ax = _axes(ax, WIDTH * 0.8, 2.7)
    for i, (name, values) in enumerate(curves.items()):
        if isinstance(values, tuple):
            xs, ys = map(to_array, values)
        else:
            ys = to_array(values)
            xs = np.arange(len(ys)) if x is None else to_array(x)
        if len(xs) != len(ys):
            raise ValueError(f"show_curves: {name} has {len(xs)} x values but {len(ys)} y values")
        style = LINE_STYLES[(i // 2 + i) % len(LINE_STYLES)]
        ax.plot(xs, ys, label=name, color=CYCLE[i % len(CYCLE)], linestyle=style, marker=marker)
    if logx:
        ax.set_xscale("log")
    if logy:
        ax.set_yscale("log")
    ax.grid(True, axis="y")
    ax.set(title=title or "", xlabel=xlabel, ylabel=ylabel)
    if len(curves) > 1:
        ax.legend()
    return ax


def show_tokens(tokens, kinds, title=None, columns=16, longest_run=6, ax=None):
    """A sequence of tokens as a strip of fields, coloured by kind and wrapped into lines.

    Args:
        tokens: list of str. kinds: list of the same length, each a key of TOKEN_COLOURS.
        columns: fields in a line.
        longest_run: a longer run of equal tokens is shortened to its ends and "… n more …".
    Returns Axes with one text per field, in order.
    """
    if len(tokens) != len(kinds):
        raise ValueError(f"show_tokens: {len(tokens)} tokens but {len(kinds)} kinds")
    unknown = sorted(set(kinds) - set(TOKEN_COLOURS))
    if unknown:
        raise ValueError(f"show_tokens: unknown kinds {unknown}; known are {', '.join(TOKEN_COLOURS)}")

    fields, i = [], 0  # (text, kind)
    while i < len(tokens):
        run = 1
        while i + run < len(tokens) and (tokens[i + run], kinds[i + run]) == (tokens[i], kinds[i]):
            run += 1
        if run > longest_run:
            fields += [(tokens[i], kinds[i])] * 2 + [(f"… {run - 3} more …", kinds[i]), (tokens[i], kinds[i])]
        else:
            fields += [(tokens[i], kinds[i])] * run
        i += run

    # A field is as wide as its text needs, at least one unit; a line has at most 24 units and `columns` fields.
    lines, widths = [[]], [[]]
    for text, kind in fields:
        width = max(1.0, 0.2 * len(text) + 0.4)
        if lines[-1] and (len(lines[-1]) == columns or sum(widths[-1]) + width > 24):
            lines.append([])
            widths.append([])
        lines[-1].append((text, kind))
        widths[-1].append(width)
    total = max(sum(line) for line in widths)
    ax = _axes(ax, WIDTH, 0.42 * len(lines) + 0.75)
    for row, (line, line_widths) in enumerate(zip(lines, widths)):
        left = 0.0
        for (text, kind), width in zip(line, line_widths):
            fill, ink = TOKEN_COLOURS[kind]
            ax.add_patch(
                FancyBboxPatch(
                    (left + 0.06, row + 0.1),
                    width - 0.12,
                    0.8,
                    boxstyle="round,pad=0,rounding_size=0.12",
                    facecolor=fill,
                    edgecolor="white",
                )
            )
            label = text.replace("\n", "\\n").replace("▁", " ").strip() or "␣"
            ax.text(
                left + width / 2,
                row + 0.5,
                label,
                ha="center",
                va="center",
                color=ink,
                fontsize=min(8, 150 / total),
            )
            left += width
    ax.set(xlim=(0, total), ylim=(len(lines), 0), xticks=[], yticks=[], title=title or "", xlabel="", ylabel="")
    for spine in ax.spines.values():
        spine.set_visible(False)
    present = [kind for kind in TOKEN_COLOURS if kind in set(kinds)]
    ax.legend(
        handles=[Patch(facecolor=TOKEN_COLOURS[kind][0], label=kind) for kind in present],
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=len(present),
        handlelength=1.0,
        columnspacing=1.2,
    )
    return ax


# ------------------------------------------------------------------------------------------------------------
# The map of the whole model
# ------------------------------------------------------------------------------------------------------------

# name: (left, bottom, width, height, label, family, what comes out), on a page of 740 x 330 units.
_BOXES = {
    "picture": (0, 200, 56, 56, "", "data", "picture"),
    "preprocess": (76, 196, 66, 64, "resize\nrescale\nnormalize", "vision", "[B, C, H, W]"),
    "siglip": (160, 144, 222, 168, "SigLIP image encoder", "frame", "[B, N, D]"),
    "patch_embeddings": (168, 196, 64, 64, "patches\n+\npositions", "vision", ""),
    "siglip_layers": (248, 158, 88, 134, "layer  × 27", "frame", ""),
    "siglip_norm": (255, 164, 74, 22, "LayerNorm", "vision", ""),
    "siglip_attention": (255, 192, 74, 26, "attention", "vision", ""),
    "siglip_norm_2": (255, 224, 74, 22, "LayerNorm", "vision", ""),
    "siglip_mlp": (255, 252, 74, 26, "MLP", "vision", ""),
    "siglip_final_norm": (350, 176, 24, 104, "LayerNorm", "vision", ""),
    "projector": (400, 176, 28, 104, "projector", "vision", "[B, N, D]"),
    "prompt": (0, 50, 86, 36, "“caption en”", "data", "prompt"),
    "tokenizer": (160, 46, 78, 44, "tokenizer", "text", "[B, L]"),
    "embedding": (290, 46, 92, 44, "embedding\n× √D", "text", "[B, L, D]"),
    "merge": (454, 46, 26, 252, "merge", "merge", "[B, L, D]"),
    "gemma": (504, 46, 142, 266, "Gemma decoder", "frame", "[B, L, D]"),
    "gemma_layers": (511, 66, 93, 226, "layer  × 18", "frame", ""),
    "gemma_norm": (518, 74, 79, 34, "RMSNorm", "decoder", ""),
    "gemma_attention": (518, 116, 79, 62, "attention\n+ RoPE\n+ KV cache", "decoder", ""),
    "gemma_norm_2": (518, 186, 79, 34, "RMSNorm", "decoder", ""),
    "gemma_mlp": (518, 228, 79, 48, "gated MLP", "decoder", ""),
    "gemma_final_norm": (616, 100, 22, 156, "RMSNorm", "decoder", ""),
    "lm_head": (662, 100, 24, 156, "LM head", "decoder", "[B, L, V]"),
    "tokens": (704, 160, 36, 36, "“cat”", "data", "next token"),
}
# One name that lights several boxes.
_GROUPS = {
    "siglip_norms": ("siglip_norm", "siglip_norm_2", "siglip_final_norm"),
    "gemma_norms": ("gemma_norm", "gemma_norm_2", "gemma_final_norm"),
    "generation": ("gemma_attention", "lm_head", "tokens"),
    "processor": ("preprocess", "prompt", "tokenizer"),
}
_FILL = {
    "data": "#FFFFFF",
    "vision": "#DCEBF5",
    "text": "#FBE9C8",
    "merge": "#EFEFEF",
    "decoder": "#D5EDE4",
    "frame": "#FAFAFA",
}
_LIT = YELLOW


def architecture(current=None, title=None, ax=None):
    """The whole of PaliGemma on one page, with the boxes that a chapter is about lit up.

    Args:
        current: the name of a box or group, or several of them: "preprocess", "patch_embeddings",
            "siglip_attention", "siglip", "projector", "tokenizer", "embedding", "merge", "gemma_norms",
            "gemma_attention", "gemma_mlp", "gemma", "lm_head", "generation", ...
            An unknown name raises ValueError with the list of all.
    Returns Axes; each box is a patch whose `get_gid()` is its name, and lit ones are filled yellow.
    """
    wanted = [current] if isinstance(current, str) else list(current or [])
    unknown = [name for name in wanted if name not in _BOXES and name not in _GROUPS]
    if unknown:
        raise ValueError(f"architecture: no box called {unknown}; there are {', '.join([*_BOXES, *_GROUPS])}")
    lit = {box for name in wanted for box in _GROUPS.get(name, (name,))}

    ax = _axes(ax, WIDTH, 3.25)
    ax.set(xlim=(-4, 744), ylim=(0, 328), xticks=[], yticks=[], aspect="equal")
    ax.set_axis_off()

    for name, (left, bottom, width, height, label, family, output) in _BOXES.items():
        on = name in lit
        frame = family == "frame"
        ax.add_patch(
            FancyBboxPatch(
                (left, bottom),
                width,
                height,
                boxstyle=f"round,pad=0,rounding_size={8 if frame else 5}",
                facecolor=_LIT if on else _FILL[family],
                edgecolor=BLACK if on else ("#9A9A9A" if frame else GREY),
                linewidth=1.8 if on else 0.8,
                linestyle="--" if frame and not on else "-",
                gid=name,
                zorder=1 if frame else 2,
            )
        )
        weight = "bold" if on else "normal"
        middle = (left + width / 2, bottom + height / 2)
        if frame:
            outer = name in ("siglip", "gemma")
            top, size = bottom + height - (9 if outer else 7.5), 7 if outer else 6.2
            ax.text(middle[0], top, label, ha="center", va="center", fontsize=size, fontweight="bold", color=BLACK)
        elif name != "merge":
            turned = 90 if width < 30 else 0
            ax.text(
                *middle,
                label,
                ha="center",
                va="center",
                fontsize=6.8,
                fontweight=weight,
                rotation=turned,
                linespacing=1.15,
                zorder=4,
            )
        if output:
            word = family == "data"
            ax.text(
                middle[0],
                bottom - 10,
                output,
                ha="center",
                va="center",
                fontsize=6.4,
                color=BLACK if word else GREY,
                fontweight=weight if word else "normal",
                zorder=4,
            )

    # The picture: a small landscape, so that the eye finds the beginning.
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

    # The merge: image tokens on top, text tokens below, one sequence.
    left, bottom, width, height, *_ = _BOXES["merge"]
    for i in range(14):
        colour = TOKEN_COLOURS["image"][0] if i >= 4 else TOKEN_COLOURS["prompt"][0]
        ax.add_patch(
            Rectangle(
                (left + 6, bottom + 6 + i * 17.3),
                width - 12,
                14,
                facecolor=colour,
                edgecolor="white",
                linewidth=0.5,
                zorder=3,
            )
        )
    ax.text(
        left + width / 2,
        bottom + height + 8,
        "merge",
        ha="center",
        va="center",
        fontsize=6.8,
        fontweight="bold" if "merge" in lit else "normal",
    )

    def arrow(*points, dashed=False):
        """A line through the points, with a head at its end."""
        for start, end in zip(points, points[1:]):
            last = end == points[-1]
            ax.add_patch(
                FancyArrowPatch(
                    start,
                    end,
                    arrowstyle="-|>" if last else "-",
                    mutation_scale=7,
                    shrinkA=0,
                    shrinkB=0,
                    linewidth=1.0,
                    color=GREY if dashed else "#333333",
                    linestyle="--" if dashed else "-",
                    zorder=3,
                )
            )

    lane = 228  # the height at which the picture's way runs
    arrow((56, lane), (76, lane))
    arrow((142, lane), (168, lane))
    arrow((232, lane), (248, lane))
    arrow((336, lane), (350, lane))
    arrow((374, lane), (400, lane))
    arrow((428, lane), (454, lane))
    lane = 68
    arrow((86, lane), (160, lane))
    arrow((238, lane), (290, lane))
    arrow((382, lane), (454, lane))
    lane = 178
    arrow((480, lane), (511, lane))
    arrow((604, lane), (616, lane))
    arrow((638, lane), (662, lane))
    arrow((686, lane), (704, lane))
    arrow((722, 138), (722, 14), (336, 14), (336, 30), dashed=True)
    ax.text(
        530,
        7,
        "append it, and go round again",
        ha="center",
        va="center",
        fontsize=6.2,
        color=GREY,
        style="italic",
    )
    if title:
        ax.set_title(title)
    return ax


# ------------------------------------------------------------------------------------------------------------
# Writing (chapter 11)
# ------------------------------------------------------------------------------------------------------------


def show_next_tokens(probabilities, tokenizer, written, top=4, steps=8, columns=4):
    """What the model considered at each step of its writing: bars for the likeliest tokens. Returns an array of Axes.

    Args:
        probabilities: [steps, V], one row for each token written. tokenizer: turns ids into tokens.
        written: list of str, the token chosen at each step; its bar is filled. top: bars in a field.
        steps: at most so many fields. columns: fields in a row.
    """
    probabilities = to_array(probabilities)[:steps]
    axes = _row(len(probabilities), 1.35, columns=columns)
    for step, (ax, row) in enumerate(zip(axes, probabilities)):
        best = row.argsort()[::-1][:top]
        names = [tokenizer.convert_ids_to_tokens(int(token)) for token in best]
        colours = [BLUE if name == written[step] else PALE for name in names]
        ax.barh(range(len(best)), row[best], color=colours, edgecolor=GREY, linewidth=0.6)
        ax.set_yticks(range(len(best)), [name.replace("▁", " ").strip() or "␣" for name in names])
        ax.set(xlim=(0, 1), ylim=(top - 0.4, -0.6), xticks=[0, 0.5, 1])
        ax.set_title(f"{step + 1}: {written[step].replace('▁', ' ').strip()}")
        if step + columns >= len(probabilities):
            ax.set_xlabel("probability")
    return axes


# ------------------------------------------------------------------------------------------------------------
# What the model looks at (chapter 14)
# ------------------------------------------------------------------------------------------------------------


def figure_to_png(figure):
    """The figure as the bytes of a PNG file, for a widget."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def show_answer_attention(image, maps, tokens, columns=5, boxes=None):
    """One heat map over the picture for each token of an answer. Returns an array of Axes.

    Args:
        image: the picture. maps: [A, rows, columns], the attention of each token over the patches.
        tokens: list of A str, the titles. boxes: for each token a box in pixels to outline, or None.
    """
    axes = _row(len(tokens), 1.75, columns=min(columns, len(tokens)))
    for i, (ax, weights, token) in enumerate(zip(axes, maps, tokens)):
        pixels, weights = to_picture(image), to_array(weights)
        extent = (-0.5, pixels.shape[1] - 0.5, pixels.shape[0] - 0.5, -0.5)
        ax.imshow(pixels @ np.array([0.299, 0.587, 0.114]), cmap="gray", vmin=0, vmax=1, extent=extent)
        ax.imshow(weights, extent=extent, alpha=0.65, vmin=0)  # each map on its own scale: where, not how much
        _frame(ax)
        ax.set(xticks=[], yticks=[], title=token.replace("▁", " ").strip() or "␣")
        if boxes is not None and boxes[i] is not None:
            y1, x1, y2, x2 = boxes[i]
            ax.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=RED, linewidth=1.5))
    return axes


def show_spread(groups, xlabel="", ylabel="share", reference=None, reference_label="", title=None, ax=None):
    """For each group of numbers a box plot: median, quartiles, whiskers to the 5th and 95th percentile. Returns Axes.

    Args: groups: {name: numbers}. reference: {name: number} to mark beside each, such as what chance would give.
    """
    ax = _axes(ax, WIDTH * 0.85, 2.8)
    ax.boxplot(
        [to_array(values) for values in groups.values()],
        whis=(5, 95),
        showfliers=False,
        widths=0.5,
        medianprops={"color": BLUE, "linewidth": 2},
    )
    if reference is not None:
        places = range(1, len(groups) + 1)
        ax.plot(places, [reference[name] for name in groups], "D", color=ORANGE, markersize=5, label=reference_label)
        ax.legend()
    ax.set_xticks(range(1, len(groups) + 1), list(groups))
    ax.grid(True, axis="y")
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title or "")
    return ax


# ------------------------------------------------------------------------------------------------------------
# Published sizes (chapter 15)
# ------------------------------------------------------------------------------------------------------------


def show_model_sizes(sizes, title=None, ax=None):
    """One horizontal bar for each model, divided into its parts, in billions of parameters. Returns Axes.

    Args: sizes: {model: {part: number of parameters}}, the same parts for all.
    """
    ax = _axes(ax, WIDTH, 0.5 * len(sizes) + 1.1)
    parts = list(next(iter(sizes.values())))
    left = np.zeros(len(sizes))
    for i, part in enumerate(parts):
        widths = np.array([model[part] for model in sizes.values()]) / 1e9
        ax.barh(list(sizes), widths, left=left, color=CYCLE[i], edgecolor="white", label=part, height=0.65)
        left += widths
    for y, total in enumerate(left):
        ax.text(total + 0.2, y, f"{total:.1f}", va="center", fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="billions of parameters", title=title or "", xlim=(0, left.max() * 1.08))
    ax.legend(loc="upper right")
    return ax


# ------------------------------------------------------------------------------------------------------------
# Codes and masks (chapter 12)
# ------------------------------------------------------------------------------------------------------------


def show_codebook(vectors, codes, title=None, ax=None):
    """Vectors in the plane, each joined to its nearest code, over the regions that the codes rule. Returns Axes.

    Args: vectors: [n, 2]. codes: [K, 2]; the squares, numbered.
    """
    vectors, codes = to_array(vectors), to_array(codes)
    if vectors.ndim != 2 or codes.ndim != 2 or vectors.shape[1] != 2 or codes.shape[1] != 2:
        raise ValueError(f"show_codebook: vectors [n, 2] and codes [K, 2], not {vectors.shape} and {codes.shape}")
    ax = _axes(ax, 3.6, 3.3)
    both = np.concatenate([vectors, codes])
    (x1, y1), (x2, y2) = both.min(axis=0) - 0.5, both.max(axis=0) + 0.5
    xs, ys = np.meshgrid(np.linspace(x1, x2, 200), np.linspace(y1, y2, 200))
    plane = np.stack([xs, ys], axis=-1)[:, :, None]  # [200, 200, 1, 2]
    regions = ((plane - codes) ** 2).sum(axis=-1).argmin(axis=-1)
    tints = [tuple(0.25 * np.array(matplotlib.colors.to_rgb(CYCLE[i % len(CYCLE)])) + 0.75) for i in range(len(codes))]
    ax.imshow(
        regions, cmap=ListedColormap(tints), vmin=0, vmax=len(codes) - 1, extent=(x1, x2, y1, y2), origin="lower",
        aspect="auto",
    )  # fmt: skip
    nearest = ((vectors[:, None] - codes) ** 2).sum(axis=-1).argmin(axis=-1)
    for vector, k in zip(vectors, nearest):
        ax.plot(*zip(vector, codes[k]), color=GREY, linewidth=0.6)
    ax.scatter(*vectors.T, s=14, color=BLACK, zorder=3, label="vector")
    for k, code in enumerate(codes):
        box = {"boxstyle": "square,pad=0.25", "facecolor": CYCLE[k % len(CYCLE)], "edgecolor": "white"}
        ax.text(*code, str(k), color="white", fontsize=8, fontweight="bold", ha="center", va="center", bbox=box)
    ax.set(title=title or "", xlabel="first number", ylabel="second number")
    return ax


def show_mask_codes(masks, codes, drawn, titles):
    """Masks, the 4 x 4 codes of each, and what is drawn from the codes: three rows, one column a mask.

    Args: masks, drawn: [n, H, W], 0 to 1. codes: [n, 16] whole numbers. titles: n str. Returns Axes [3, n].
    """
    masks, codes, drawn = to_array(masks), to_array(codes), to_array(drawn)
    n = len(masks)
    if not n == len(codes) == len(drawn) == len(titles) or codes.shape[1] != 16:
        raise ValueError(f"show_mask_codes: {n} masks, codes {codes.shape}, {len(drawn)} drawn, {len(titles)} titles")
    _, axes = plt.subplots(3, n, figsize=(WIDTH, 3 * WIDTH / max(n, 4) + 0.5), squeeze=False)
    for column, (mask, grid, picture, title) in enumerate(zip(masks, codes.reshape(-1, 4, 4), drawn, titles)):
        axes[0, column].imshow(mask.astype(float), cmap="gray", vmin=0, vmax=1)
        axes[1, column].imshow(grid, vmin=0, vmax=127, alpha=0.75)
        for (r, c), code in np.ndenumerate(grid):
            axes[1, column].text(c, r, str(code), ha="center", va="center", fontsize=7, fontweight="bold",
                                 color="white" if code < 64 else BLACK)  # fmt: skip
        axes[2, column].imshow(picture.astype(float), cmap="gray", vmin=0, vmax=1)
        axes[0, column].set_title(title)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        _frame(ax)
    for row, name in enumerate(("mask", "16 codes", "drawn from them")):
        axes[row, 0].set_ylabel(name)
    return axes


# ------------------------------------------------------------------------------------------------------------
# The decoder's parts (chapters 06 to 09)
# ------------------------------------------------------------------------------------------------------------


def show_matrices(matrices, xlabel="column", ylabel="row", vmin=None, vmax=None, cmap=None, columns=None, height=2.0):
    """Several matrices side by side on one colour scale, so that they can be compared. Returns an array of Axes.

    Args: matrices: {title: [rows, columns]}. The scale is that of all values together unless given.
    """
    arrays = {title: to_array(matrix) for title, matrix in matrices.items()}
    low = min(array.min() for array in arrays.values()) if vmin is None else vmin
    high = max(array.max() for array in arrays.values()) if vmax is None else vmax
    axes = _row(len(arrays), height, columns)
    for i, (ax, (title, array)) in enumerate(zip(axes, arrays.items())):
        bare = {"annotate": False, "colour_bar": False, "ax": ax}
        show_matrix(array, title, xlabel, ylabel, vmin=low, vmax=high, cmap=cmap, **bare)
        ax.set_aspect("auto")
        if i % (columns or len(arrays)):
            ax.set_ylabel("")
    axes[0].figure.colorbar(axes[0].images[0], ax=list(axes), label="value", pad=0.02)
    return axes


def show_clock_hands(angles, positions, names):
    """Angles as hands on dials: one row for each frequency, one column for each position. Returns an array of Axes.

    Args:
        angles: [frequencies, positions] in radians, counted anticlockwise from the right, as in mathematics.
        positions: what to write above the columns. names: what to write beside the rows.
    """
    angles = to_array(angles)
    rows, columns = angles.shape
    side = (WIDTH - 0.6) / columns
    _, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * side + 0.4), squeeze=False)
    turn = np.linspace(0, 2 * np.pi, 100)
    for (r, c), angle in np.ndenumerate(angles):
        ax = axes[r, c]
        ax.plot(np.cos(turn), np.sin(turn), color=PALE, linewidth=1.2)
        ax.plot([0, np.cos(angle)], [0, np.sin(angle)], color=CYCLE[r % len(CYCLE)], linewidth=2.2)
        ax.plot(0, 0, "o", color=BLACK, markersize=2.5)
        ax.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), xticks=[], yticks=[], aspect="equal")
        for spine in ax.spines.values():
            spine.set_visible(False)
        if r == 0:
            ax.set_title(str(positions[c]), fontweight="normal")
        if c == 0:
            ax.set_ylabel(names[r], rotation=0, ha="right", va="center")
    return axes


def show_attention_matrix(weights, blocks, title=None, ax=None):
    """Attention of every token (row) to every token (column), with the blocks of the sequence marked off.

    Args:
        weights: [L, L], each row sums to 1. blocks: [(name, length), ...] that add up to L.
    Returns Axes. The colours follow the logarithm of the weight, so that small ones can be told from none: weights
    of exactly 0 stay white.
    """
    weights = to_array(weights)
    length = sum(n for _, n in blocks)
    if weights.shape != (length, length):
        raise ValueError(f"show_attention_matrix: blocks {blocks} add up to {length}, the weights are {weights.shape}")
    ax = _axes(ax, 4.6, 3.9)
    scale = matplotlib.colors.LogNorm(vmin=1e-4, vmax=1, clip=True)
    shown = ax.imshow(np.ma.masked_equal(weights, 0), norm=scale)
    edges = np.cumsum([0] + [n for _, n in blocks])
    for edge in edges[1:-1]:
        ax.axhline(edge - 0.5, color=RED, linewidth=1.0)
        ax.axvline(edge - 0.5, color=RED, linewidth=1.0)
    middles = (edges[:-1] + edges[1:] - 1) / 2
    ax.set_xticks(middles, [name for name, _ in blocks], rotation=40, ha="right")  # blocks may be narrow
    ax.set_yticks(middles, [name for name, _ in blocks])
    ax.tick_params(length=0)
    _frame(ax)
    ax.set(title=title or "", xlabel="is seen (key)", ylabel="looks (query)")
    ax.figure.colorbar(shown, ax=ax, shrink=0.85, pad=0.03, label="attention weight")
    return ax


def show_logit_lens(words, probabilities, inputs, layers, title=None, ax=None):
    """What each layer would say next: the likeliest word at each layer and position. Returns Axes.

    Args:
        words: [layers][positions] of str. probabilities: [layers, positions], each word's, as the colour.
        inputs: the token that stands at each position. layers: names of the rows; the first is drawn at the bottom.
    """

    def readable(token):
        return token.replace("\n", "\\n").replace("▁", " ").strip() or "␣"

    probabilities = to_array(probabilities)
    rows, columns = probabilities.shape
    ax = _axes(ax, WIDTH, 0.42 * rows + 1.3)
    shown = ax.imshow(probabilities, vmin=0, vmax=1, aspect="auto", origin="lower")
    for (r, c), value in np.ndenumerate(probabilities):
        word = readable(words[r][c])
        colour = _text_colour(shown.cmap(shown.norm(float(value))))
        fits = 0.75 * WIDTH * 72 / columns / (0.65 * len(word))  # points; a letter is about 0.65 of them wide
        ax.text(c, r, word, ha="center", va="center", color=colour, fontsize=min(8, fits))
    ax.set_yticks(range(rows), layers)
    ax.set_xticks(range(columns), [readable(token) for token in inputs], rotation=40, ha="right")
    ax.tick_params(length=0)
    _frame(ax)
    ax.set(title=title or "", xlabel="the token that stands at this position", ylabel="read after")
    ax.figure.colorbar(shown, ax=ax, pad=0.02, label="probability of the word")
    return ax


# ------------------------------------------------------------------------------------------------------------
# What the image encoder knows (chapter 04), a batch of prompts (chapter 05)
# ------------------------------------------------------------------------------------------------------------


def show_similarity(matrix, images, texts, label="similarity", vmin=None, vmax=None, decimals=0):
    """How well every text (row) fits every picture (column), with the pictures along the top. Returns Axes.

    Args:
        matrix: [texts, pictures]. images: the pictures, drawn small. texts: written beside the rows, wrapped.
        label: of the colour bar. The fields on the diagonal, where text and picture belong together, are outlined.
    """
    matrix = to_array(matrix)
    if matrix.shape != (len(texts), len(images)):
        raise ValueError(f"show_similarity: {len(texts)} texts, {len(images)} pictures, matrix {matrix.shape}")
    side = 0.48  # inches of a field
    _, ax = plt.subplots(figsize=(WIDTH, side * (len(texts) + 1.2) + 0.3))
    shown = ax.imshow(matrix, vmin=vmin, vmax=vmax)
    for (r, c), value in np.ndenumerate(matrix):
        colour = _text_colour(shown.cmap(shown.norm(float(value))))
        ax.text(c, r, f"{value:.{decimals}f}", ha="center", va="center", color=colour, fontsize=7.5)
    for i in range(min(matrix.shape)):
        ax.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=RED, linewidth=1.8))
    for c, image in enumerate(images):  # in a row of small axes above the matrix
        inset = ax.inset_axes((c - 0.45, -1.5, 0.9, 0.9), transform=ax.transData)
        inset.imshow(to_picture(image))
        inset.set(xticks=[], yticks=[])
        _frame(inset)
    ax.set_yticks(range(len(texts)), ["\n".join(textwrap.wrap(text, 44)) for text in texts], fontsize=6.5)
    ax.set_xticks([])
    ax.tick_params(length=0)
    _frame(ax)
    ax.set(xlabel="picture", ylabel="")
    ax.figure.colorbar(shown, ax=ax, shrink=0.85, pad=0.02, label=label)
    return ax


def show_feature_colours(colours, names, pictures):
    """Features as colours: a row for each picture, the picture first, then one patch grid a layer.

    Args:
        colours: [pictures, layers, rows, columns, 3] from 0 to 1. names: of the layers. pictures: as many as rows.
    Returns an array of Axes [pictures, layers + 1].
    """
    colours = to_array(colours)
    count, layers = colours.shape[:2]
    if layers != len(names) or count != len(pictures):
        raise ValueError(f"show_feature_colours: {len(pictures)} pictures, {len(names)} names, colours {colours.shape}")
    side = WIDTH / (layers + 1)
    _, axes = plt.subplots(count, layers + 1, figsize=(WIDTH, count * side + 0.25), squeeze=False)
    for row, picture, line in zip(axes, pictures, colours):
        row[0].imshow(to_picture(picture))
        for ax, grid in zip(row[1:], line):
            ax.imshow(grid)
        for ax in row:
            _frame(ax)
            ax.set(xticks=[], yticks=[])
    for ax, name in zip(axes[0], ["picture", *names]):
        ax.set_title(name, fontsize=8)
    return axes


def show_batch(kinds, panels, rows=None, title=None, first=0):
    """A batch of token sequences, one strip of fields a row, and its masks below in the same places.

    Args:
        kinds: [B][L] keys of TOKEN_COLOURS. panels: {name: bool array [B, L]}, True is drawn dark.
        rows: names of the rows. All L places are drawn: leave out of all rows alike what need not be seen.
        first: the position of the first place that is drawn, for the numbers along the bottom.
    Returns an array of Axes: the kinds first, then the panels in order.
    """
    count, length = len(kinds), len(kinds[0])
    for name, panel in panels.items():
        if to_array(panel).shape != (count, length):
            raise ValueError(f"show_batch: {name} is {to_array(panel).shape}, the kinds are {(count, length)}")
    rows = rows if rows is not None else [f"row {i}" for i in range(count)]
    height = 0.2 * count + 0.3
    figure, axes = plt.subplots(1 + len(panels), 1, figsize=(WIDTH, height * (1 + len(panels)) + 0.4), sharex=True)
    axes = np.ravel(axes)
    present = [kind for kind in TOKEN_COLOURS if any(kind in row for row in kinds)]
    numbers = np.array([[present.index(kind) for kind in row] for row in kinds])
    palette = ListedColormap([TOKEN_COLOURS[kind][0] for kind in present])
    axes[0].imshow(numbers, cmap=palette, vmin=-0.5, vmax=len(present) - 0.5, aspect="auto")
    axes[0].set_title(title or "tokens by kind")
    handles = [Patch(facecolor=TOKEN_COLOURS[kind][0], label=kind) for kind in present]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(present), handlelength=1.0)
    for ax, (name, panel) in zip(axes[1:], panels.items()):
        ax.imshow(to_array(panel).astype(int), cmap=ListedColormap(["#F4F4F4", BLUE]), vmin=0, vmax=1, aspect="auto")
        ax.set_title(name)
    for ax in axes:
        ax.set_xticks(np.arange(length + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=0.6)
        ax.tick_params(which="both", length=0)
        ax.set_yticks(range(count), rows)
        _frame(ax)
    step = max(1, length // 12)
    axes[-1].set_xticks(range(0, length, step), range(first, first + length, step))
    axes[-1].set_xlabel("position in the sequence")
    return axes


def roofline(bandwidth, compute, points, ax=None):
    """How fast work can go, by its arithmetic intensity; and where some pieces of work are.

    Left of the corner, memory is the limit (the slope); right of it, arithmetic (the flat roof). Williams, Waterman &
    Patterson 2009, "Roofline".

    Args:
        bandwidth: bytes a second. compute: FLOPs a second. points: {name: (FLOPs per byte, FLOPs a second)}.
    Returns the Axes; its lines are the roof and then the points, in order.
    """
    ax = ax or plt.subplots(figsize=(WIDTH, 3.4))[1]
    corner = compute / bandwidth
    most = max([corner * 8, *(2 * x for x, _ in points.values())])
    least = min([0.5, *(x / 2 for x, _ in points.values())])
    ax.plot([least, corner, most], [least * bandwidth / 1e9, compute / 1e9, compute / 1e9], color=BLACK, label="limit")
    for (name, (intensity, rate)), colour, marker in zip(points.items(), CYCLE * 3, "osD^vPX*" * 3):
        ax.plot([intensity], [rate / 1e9], marker, color=colour, markersize=8, linestyle="none", label=name)
    ax.axvline(corner, color=GREY, linewidth=0.8, linestyle=":")
    ax.text(corner * 0.93, compute / 1e9 * 1.15, "memory is the limit", ha="right", fontsize=8, color=GREY)
    ax.text(corner * 1.07, compute / 1e9 * 1.15, "arithmetic is the limit", ha="left", fontsize=8, color=GREY)
    ax.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOPs per byte of weights)")
    ax.set(ylabel="GFLOPs a second", xlim=(least, most), title="Roofline: how fast, and what stands in the way")
    lowest = min([least * bandwidth, *(rate for _, rate in points.values())])
    ax.set_ylim(lowest / 1e9 * 0.6, compute / 1e9 * 2)
    ax.grid(True, which="major", linewidth=0.5)
    ax.legend(loc="lower right")
    return ax
