"""Where attention goes: over pictures and over sequences."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from .pictures import Picture, to_picture
from .style import BLACK, RED, YELLOW, frame, new_axes, plain, readable_token, row_of_axes, to_array

# No attention is a dark veil over the picture, the strongest attention no veil at all.
VEIL = LinearSegmentedColormap.from_list("veil", [(0.04, 0.04, 0.06, 0.66), (0.04, 0.04, 0.06, 0.0)])
OUTLINED = 0.5  # the outline holds this share of the attention to the picture


def show_attention_over_image(
    image: Picture,
    weights: np.ndarray | torch.Tensor,
    patch: tuple[int, int] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    vmax: float | None = None,
    colour_bar: bool = True,
) -> Axes:
    """Attention weights over a picture, each weight covering its patch: what is not looked at is dimmed.

    The yellow line encloses the fewest patches that together hold half of the attention to the picture.

    Args:
        image: a picture, [H, W]. weights: [rows, columns], one weight a patch.
        patch: (row, column) of the patch that asks, outlined in red; None for none.
        vmax: the weight from which the picture is seen undimmed, by default the largest; give one to panels that are
            compared.
    Returns Axes: `ax.images[1]` holds the weights, spread over the whole picture.
    """
    weights = to_array(weights)
    if weights.ndim != 2:
        raise ValueError(f"show_attention_over_image: weights are a grid [rows, columns], not {weights.shape}")
    ax = new_axes(ax, 3.8, 3.3)
    veil = _dim(ax, to_picture(image), weights, vmax)
    if patch is not None:
        (r, c), (height, width) = patch, veil.axes.images[0].get_array().shape[:2]
        dy, dx = height / weights.shape[0], width / weights.shape[1]
        corner = (c * dx - 0.5, r * dy - 0.5)
        ax.add_patch(
            Rectangle(corner, dx, dy, fill=False, edgecolor=RED, linewidth=2, zorder=4, label="the patch that asks")
        )
    frame(ax)
    ax.locator_params(nbins=4)
    ax.set(title=plain(title or ""), xlabel="x (pixels)", ylabel="y (pixels)")
    if colour_bar:
        ax.figure.colorbar(veil, ax=ax, label="attention weight", shrink=0.85, pad=0.03)
    return ax


def show_answer_attention(
    image: Picture,
    maps: np.ndarray | torch.Tensor | Sequence[np.ndarray | torch.Tensor],
    tokens: Sequence[str],
    columns: int = 5,
    boxes: Sequence[Sequence[float] | None] | None = None,
    one_scale: bool = True,
) -> np.ndarray:
    """What each token of an answer looked at, one panel a token, as `show_attention_over_image` draws it.

    Args:
        image: the picture. maps: [A, rows, columns], the attention of each token over the patches.
        tokens: list of A str, the titles. boxes: for each token a box in pixels to outline in red, or None.
        one_scale: all panels on one scale, so that they can be compared (how much); False: each on its own (where).
    Returns an array of Axes, one a token; `ax.images[1]` holds the weights.
    """
    pixels, maps = to_picture(image), [to_array(weights) for weights in maps]
    if len(maps) != len(tokens):
        raise ValueError(f"show_answer_attention: {len(maps)} maps but {len(tokens)} tokens")
    columns = max(1, min(columns, len(tokens)))
    axes = row_of_axes(len(tokens), min(1.75, 6 / columns + 0.3), columns)  # no gap below narrow panels
    largest = max(float(weights.max()) for weights in maps) if one_scale else None
    for i, (ax, weights, token) in enumerate(zip(axes, maps, tokens, strict=True)):
        veil = _dim(ax, pixels, weights, largest)
        frame(ax)
        ax.set(xticks=[], yticks=[], title=readable_token(token, 24))
        if boxes is not None and boxes[i] is not None:
            y1, x1, y2, x2 = boxes[i]
            corner = (x1 - 0.5, y1 - 0.5)
            ax.add_patch(Rectangle(corner, x2 - x1, y2 - y1, fill=False, edgecolor=RED, linewidth=1.8, zorder=4))
    if one_scale:
        axes[0].figure.colorbar(veil, ax=list(axes), label="attention weight", shrink=0.7, pad=0.02)
    return axes


def _dim(ax: Axes, pixels: np.ndarray, weights: np.ndarray, vmax: float | None) -> matplotlib.image.AxesImage:
    """The picture, the veil over it, and the outline of the strongest patches. Returns the veil."""
    height, width = pixels.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(pixels, extent=extent)
    veil = ax.imshow(weights, extent=extent, cmap=VEIL, vmin=0, vmax=vmax or weights.max() or 1.0)
    scale = np.array([width / weights.shape[1], height / weights.shape[0]])
    edges = [[tuple(np.array(end) * scale - 0.5) for end in edge] for edge in outline(strongest(weights))]
    # A black line below the yellow one keeps it visible on every ground.
    ax.add_collection(LineCollection(edges, colors=BLACK, linewidths=2.6, capstyle="projecting", zorder=3))
    ax.add_collection(LineCollection(edges, colors=YELLOW, linewidths=1.3, capstyle="projecting", zorder=3))
    return veil


def strongest(weights: np.ndarray, share: float = OUTLINED) -> np.ndarray:
    """The fewest patches that together hold this share of the attention. [rows, columns] -> bool, the same shape"""
    order = np.argsort(weights, axis=None)[::-1]
    held = np.cumsum(np.ravel(weights)[order])
    chosen = np.zeros(weights.size, dtype=bool)
    if held[-1] > 0:
        chosen[order[: int(np.searchsorted(held, share * held[-1] * (1 - 1e-6))) + 1]] = True
    return chosen.reshape(weights.shape)


def outline(inside: np.ndarray) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The sides of patches that part inside from outside, [rows, columns] bool -> ((x1, y1), (x2, y2)) in patches."""
    padded = np.pad(inside, 1)
    edges = []
    for r, c in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]):  # between row r - 1 and row r
        edges.append(((int(c), int(r)), (int(c) + 1, int(r))))
    for r, c in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]):
        edges.append(((int(c), int(r)), (int(c), int(r) + 1)))
    return edges


def show_attention_matrix(
    weights: np.ndarray | torch.Tensor,
    blocks: Sequence[tuple[str, int]],
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
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
    ax = new_axes(ax, 4.6, 3.9)
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
    frame(ax)
    ax.set(title=plain(title or ""), xlabel="is seen (key)", ylabel="looks (query)")
    ax.figure.colorbar(shown, ax=ax, shrink=0.85, pad=0.03, label="attention weight")
    return ax
