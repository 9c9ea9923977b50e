"""What the image encoder has learned: filters, positions, similarities, features."""

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from .pictures import Picture, to_picture
from .style import BLACK, SIGNED, SMALL, WIDTH, colour_scale, frame, plain, row_of_axes, text_colour, to_array


def show_filters(
    filters: np.ndarray | torch.Tensor,
    columns: int = 12,
    titles: Sequence[str] | None = None,
    title: str | None = None,
) -> np.ndarray:
    """Filters of a patch embedding as little colour pictures, each scaled to its own largest weight.

    Args: filters: [n, 3, P, P]; grey means zero, and a channel brighter than grey has a positive weight.
    Returns an array of n Axes.
    """
    filters = to_array(filters)
    if filters.ndim != 4 or filters.shape[1] != 3:
        raise ValueError(f"show_filters: filters have shape [n, 3, P, P], not {filters.shape}")
    columns = max(1, min(columns, len(filters)))
    axes = row_of_axes(len(filters), WIDTH / columns * 1.08, columns)
    for i, (ax, weights) in enumerate(zip(axes, filters)):
        scale = np.abs(weights).max() or 1.0
        ax.imshow(weights.transpose(1, 2, 0) / (2 * scale) + 0.5)
        frame(ax)
        ax.set(xticks=[], yticks=[])
        ax.set_title(str(titles[i]) if titles is not None else str(i), fontsize=SMALL, fontweight="normal", pad=2)
    if title:
        axes[0].figure.suptitle(plain(title), fontsize=9.5, fontweight="bold")
    return axes


def show_similarity_maps(
    vectors: np.ndarray | torch.Tensor,
    grid: tuple[int, int],
    tokens: Sequence[int],
    title: str | None = None,
) -> np.ndarray:
    """Cosine similarity of a few tokens' vectors with those of all, each as a map over the patch grid.

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
    axes = row_of_axes(len(tokens), WIDTH / max(len(tokens), 3) * rows / columns + 0.55)
    for i, (ax, token) in enumerate(zip(axes, tokens)):
        r, c = divmod(int(token), columns)
        shown = ax.imshow((unit @ unit[token]).reshape(rows, columns), vmin=-1, vmax=1, cmap=SIGNED)
        ax.add_patch(Rectangle((c - 0.5, r - 0.5), 1, 1, fill=False, edgecolor=BLACK, linewidth=1.8))
        frame(ax)
        ax.locator_params(nbins=4, integer=True)
        ax.set(title=f"token {token}\n(row {r}, column {c})", xlabel="column c")
        if i == 0:
            ax.set_ylabel("row r")
    axes[0].figure.colorbar(shown, ax=list(axes), label="cosine similarity", shrink=0.8, pad=0.02)
    if title:
        axes[0].figure.suptitle(plain(title), fontsize=9.5, fontweight="bold")
    return axes


def show_similarity(
    matrix: np.ndarray | torch.Tensor,
    images: Sequence[Picture],
    texts: Sequence[str],
    label: str = "similarity",
    vmin: float | None = None,
    vmax: float | None = None,
    decimals: int = 0,
) -> Axes:
    """How well every text (row) fits every picture (column), with the pictures along the top. Returns Axes.

    Args:
        matrix: [texts, pictures]. images: the pictures, drawn small. texts: written beside the rows, wrapped.
        label: of the colour bar. The cells on the diagonal, where text and picture belong together, are outlined.
    """
    matrix = to_array(matrix)
    if matrix.shape != (len(texts), len(images)):
        raise ValueError(f"show_similarity: {len(texts)} texts, {len(images)} pictures, matrix {matrix.shape}")
    side = 0.48  # inches of a cell
    _, ax = plt.subplots(figsize=(WIDTH, side * (len(texts) + 1.2) + 0.3))
    shown = ax.imshow(matrix, **colour_scale([matrix], vmin, vmax))
    for (r, c), value in np.ndenumerate(matrix):
        colour = text_colour(shown.cmap(shown.norm(float(value))))
        ax.text(c, r, f"{value:.{decimals}f}", ha="center", va="center", color=colour, fontsize=SMALL)
    for i in range(min(matrix.shape)):
        ax.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=BLACK, linewidth=2.2))
    for c, image in enumerate(images):  # in a row of small axes above the matrix
        inset = ax.inset_axes((c - 0.45, -1.5, 0.9, 0.9), transform=ax.transData)
        inset.imshow(to_picture(image))
        inset.set(xticks=[], yticks=[])
        frame(inset)
    ax.set_yticks(range(len(texts)), ["\n".join(textwrap.wrap(plain(text), 40)) for text in texts])
    ax.set_xticks([])
    ax.tick_params(length=0)
    frame(ax)
    ax.set(xlabel="picture", ylabel="")
    ax.figure.colorbar(shown, ax=ax, shrink=0.85, pad=0.02, label=label)
    return ax


def show_feature_colours(
    colours: np.ndarray | torch.Tensor,
    names: Sequence[str],
    pictures: Sequence[Picture],
    rows: Sequence[str] | None = None,
) -> np.ndarray:
    """Features as colours: a row for each picture, the picture first, then one patch grid a layer.

    Args:
        colours: [pictures, layers, rows, columns, 3] from 0 to 1. names: of the layers. pictures: as many as rows.
        rows: what to write beside the rows.
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
            frame(ax)
            ax.set(xticks=[], yticks=[])
    for ax, name in zip(axes[0], ["picture", *names]):
        ax.set_title(name, fontsize=8)
    for ax, name in zip(axes[:, 0], rows or []):
        ax.set_ylabel(plain(name), fontweight="bold")
    return axes
