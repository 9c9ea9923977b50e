"""Matrices and vectors as coloured cells and dials."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from .style import (
    BLACK,
    BLUE,
    CYCLE,
    GREY,
    PALE,
    WIDTH,
    colour_scale,
    frame,
    name_of,
    new_axes,
    plain,
    row_of_axes,
    text_colour,
    to_array,
)


def show_matrix(
    matrix: np.ndarray | torch.Tensor | Sequence[Sequence[float]],
    title: str | None = None,
    xlabel: str = "column",
    ylabel: str = "row",
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    annotate: bool | None = None,
    decimals: int = 2,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str | None = None,
    colour_bar: bool = True,
    ax: Axes | None = None,
    label: str = "value",
) -> Axes:
    """A small matrix as coloured cells with the numbers written in. Returns Axes.

    Args:
        matrix: [rows, columns]. rows, columns: names for the ticks.
        annotate: write the numbers in; by default only where they can be read (at most 16 columns).
        decimals: digits after the point (whole numbers show none).
        cmap: by default cividis, and a diverging map with zero in its middle for values on both sides of it.
        label: of the colour bar, the quantity that is shown.
    """
    matrix = to_array(matrix)
    if matrix.ndim != 2:
        raise ValueError(f"show_matrix: a matrix has two dimensions, this one has shape {matrix.shape}")
    n_rows, n_columns = matrix.shape
    rows, columns = ([name_of(name) for name in names] if names is not None else None for names in (rows, columns))
    if max(n_rows, n_columns) <= 16:
        beside, below = (max(map(len, names or [""])) for names in (rows, columns))  # letters, 0.075 inches each
        width = min(WIDTH, 0.55 * n_columns + 1.8 + 0.075 * max(beside - 12, 0))
        size = (width, max(1.6, 0.42 * n_rows + 0.9) + 0.055 * max(below - 12, 0))
    else:
        size = (4.4, 3.6)
    ax = new_axes(ax, *size)
    shown = ax.imshow(matrix.astype(float), **colour_scale([matrix], vmin, vmax, cmap))
    if annotate is None:
        annotate = n_columns <= 16 and n_rows <= 16
    if annotate:
        whole = np.issubdtype(matrix.dtype, np.integer) or matrix.dtype == bool
        for (r, c), value in np.ndenumerate(matrix):
            text = str(int(value)) if whole else f"{value:.{decimals}f}"
            colour = text_colour(shown.cmap(shown.norm(float(value))))
            ax.text(c, r, text, ha="center", va="center", color=colour, fontsize=8)
    if rows is not None:
        ax.set_yticks(range(n_rows), rows)
    elif n_rows <= 16:
        ax.set_yticks(range(n_rows))
    if columns is not None:
        turned = {"rotation": 40, "ha": "right"} if max(map(len, columns or [""])) > 12 else {}
        ax.set_xticks(range(n_columns), columns, **turned)
    elif n_columns <= 16:
        ax.set_xticks(range(n_columns))
    ax.tick_params(length=0)
    frame(ax)
    ax.set(title=plain(title or ""), xlabel=xlabel, ylabel=ylabel)
    if colour_bar:
        ax.figure.colorbar(shown, ax=ax, shrink=0.85, pad=0.03, label=label)
    return ax


def show_matrices(
    matrices: Mapping[str, np.ndarray | torch.Tensor],
    xlabel: str = "column",
    ylabel: str = "row",
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str | None = None,
    columns: int | None = None,
    height: float = 2.0,
    label: str = "value",
) -> np.ndarray:
    """Several matrices side by side on one colour scale, so that they can be compared. Returns an array of Axes.

    Args: matrices: {title: [rows, columns]}. The scale is that of all values together unless given. label: of the
    colour bar.
    """
    arrays = {title: to_array(matrix) for title, matrix in matrices.items()}
    scale = colour_scale(arrays, vmin, vmax, cmap)
    axes = row_of_axes(len(arrays), height, columns)
    for i, (ax, (title, array)) in enumerate(zip(axes, arrays.items())):
        bare = {"annotate": False, "colour_bar": False, "ax": ax}
        show_matrix(array, title, xlabel, ylabel, **scale, **bare)
        ax.set_aspect("auto")
        if i % (columns or len(arrays)):
            ax.set_ylabel("")
    axes[0].figure.colorbar(axes[0].images[0], ax=list(axes), label=label, pad=0.02)
    return axes


def show_mask_matrix(
    mask: np.ndarray | torch.Tensor,
    blocks: Sequence[tuple[str, int]],
    title: str | None = None,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
) -> Axes:
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
    ax = new_axes(ax, 3.9, 3.7)
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
        names = [name_of(name) for name in names]
        ax.set_xticks(range(length), names, rotation=90)
        ax.set_yticks(range(length), names)
    else:
        middles = (edges[:-1] + edges[1:] - 1) / 2
        ax.set_xticks(middles, [name for name, _ in blocks])
        ax.set_yticks(middles, [name for name, _ in blocks])
    frame(ax)
    ax.set(title=plain(title or ""), xlabel="is seen (key)", ylabel="looks (query)")
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


def show_codebook(
    vectors: np.ndarray | torch.Tensor,
    codes: np.ndarray | torch.Tensor,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Vectors in the plane, each joined to its nearest code, over the region of each code. Returns Axes.

    Args: vectors: [n, 2]. codes: [K, 2]; the squares, numbered.
    """
    vectors, codes = to_array(vectors), to_array(codes)
    if vectors.ndim != 2 or codes.ndim != 2 or vectors.shape[1] != 2 or codes.shape[1] != 2:
        raise ValueError(f"show_codebook: vectors [n, 2] and codes [K, 2], not {vectors.shape} and {codes.shape}")
    ax = new_axes(ax, 3.6, 3.3)
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
        colour = CYCLE[k % len(CYCLE)]
        box = {"boxstyle": "square,pad=0.25", "facecolor": colour, "edgecolor": "white"}
        ink = text_colour(matplotlib.colors.to_rgb(colour))
        ax.text(*code, str(k), color=ink, fontsize=8, fontweight="bold", ha="center", va="center", bbox=box)
    ax.set(title=plain(title or ""), xlabel="first number", ylabel="second number")
    return ax


def show_clock_hands(
    angles: np.ndarray | torch.Tensor, positions: Sequence[object], names: Sequence[str]
) -> np.ndarray:
    """Angles as hands on dials: one row for each frequency, one column for each position. Returns an array of Axes.

    Args:
        angles: [frequencies, positions] in radians, counted anticlockwise from the right, as in mathematics.
        positions: what to write above the columns, after the word "position". names: what to write beside the rows.
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
    axes[0, 0].annotate("position", (0, 1), (-6, 6), "axes fraction", textcoords="offset points", ha="right")
    return axes
