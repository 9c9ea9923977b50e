"""Pictures, and what belongs to places in them: patches, boxes, masks and their codes."""

from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from ..processing_paligemma import to_rgb
from .style import (
    BLACK,
    CYCLE,
    RED,
    SMALL,
    WIDTH,
    frame,
    name_of,
    new_axes,
    plain,
    row_of_axes,
    text_colour,
    to_array,
)

Picture = Image.Image | np.ndarray | torch.Tensor  # see the head of this package


def to_picture(image: Picture) -> np.ndarray:
    """Any picture (see the package) -> float array in 0..1, [H, W, 3]; a PIL image as the model sees it."""
    pixels = to_array(to_rgb(image) if isinstance(image, Image.Image) else image)
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
    if 0 in pixels.shape:
        raise ValueError(f"the picture has shape {pixels.shape}: there is nothing in it")
    if pixels.dtype == bool:
        pixels = pixels.astype(float)
    elif np.issubdtype(pixels.dtype, np.integer):
        pixels = pixels / 255.0
    elif pixels.min() < 0:
        pixels = pixels * 0.5 + 0.5  # undo the normalisation
    pixels = np.clip(pixels.astype(float), 0, 1)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    if pixels.shape[-1] == 4:  # on white where it is transparent
        pixels = pixels[..., :3] * pixels[..., 3:] + 1 - pixels[..., 3:]
    return pixels


def show_image(image: Picture, title: str | None = None, ax: Axes | None = None) -> Axes:
    """One picture, with its pixel coordinates along the edges. Returns Axes."""
    ax = new_axes(ax, 3.2, 3.2)
    ax.imshow(to_picture(image))
    frame(ax)
    ax.locator_params(nbins=4)
    ax.set(title=plain(title or ""), xlabel="x (pixels)", ylabel="y (pixels)")
    return ax


def show_images(
    images: Sequence[Picture],
    titles: Sequence[str | None] | None = None,
    columns: int | None = None,
    height: float = 2.2,
) -> np.ndarray:
    """Several pictures in a row, each keeping its own size and shape. Returns an array of Axes."""
    titles = titles or [None] * len(images)
    if len(titles) != len(images):
        raise ValueError(f"show_images: {len(images)} pictures but {len(titles)} titles")
    axes = row_of_axes(len(images), height, columns)
    for i, (ax, image, title) in enumerate(zip(axes, images, titles)):
        show_image(image, title, ax)
        if i % (columns or len(images)):
            ax.set_ylabel("")
    return axes


def show_patches(
    image: Picture,
    patch_size: int,
    highlight: Iterable[int] = (),
    gap: int = 2,
    numbers: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A picture cut into square patches that lie a little apart; `highlight` outlines tokens by their number.

    Args:
        image: a picture whose height and width are multiples of `patch_size`.
        highlight: token numbers r*W+c, counted along the rows from the top left.
        gap: white pixels between patches. numbers: write each token's number into its patch.
    Returns Axes; its image is the canvas, [rows*patch + (rows-1)*gap, columns*patch + (columns-1)*gap, 3].
    """
    pixels, highlight = to_picture(image), list(highlight)
    height, width = pixels.shape[:2]
    if patch_size < 1 or height % patch_size or width % patch_size:
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

    ax = new_axes(ax, 4.2, 4.2 * rows / columns + 0.3)
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
                fontsize=SMALL,
                color=text_colour(patch.mean((0, 1))),
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
            fontsize=SMALL,
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
    ax.set_title(plain(title or ""), pad=20 if len(highlight) else 6)  # above the label of a token in the first row
    return ax


def show_boxes(
    image: Picture,
    boxes: np.ndarray | Sequence[Sequence[float]],
    labels: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Boxes [n, 4] = (y1, x1, y2, x2) in pixels over a picture, each with its label. Returns Axes."""
    boxes = to_array(boxes).reshape(-1, 4)
    labels = labels if labels is not None else [""] * len(boxes)
    if len(labels) != len(boxes):
        raise ValueError(f"show_boxes: {len(boxes)} boxes but {len(labels)} labels")
    ax = show_image(image, title, new_axes(ax, 3.6, 3.6))
    for i, ((y1, x1, y2, x2), label) in enumerate(zip(boxes, labels)):
        colour = CYCLE[i % len(CYCLE)]
        # A white line below the coloured one keeps the box visible on every background.
        for edge, line in (("white", 3.6), (colour, 2.0)):
            ax.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=line))
        if label:
            ax.annotate(
                name_of(label),
                (x1 - 0.5, y1 - 0.5),
                textcoords="offset points",
                xytext=(0, 3),
                fontsize=SMALL,
                color=text_colour(matplotlib.colors.to_rgb(colour)),
                bbox={"boxstyle": "round,pad=0.2", "facecolor": colour, "edgecolor": "none"},
                annotation_clip=False,
            )
    return ax


def show_masks(
    image: Picture,
    masks: np.ndarray | torch.Tensor,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    alpha: float = 0.55,
) -> Axes:
    """Masks [n, H, W] (bool, or 0..1) laid over a picture, one colour each. Returns Axes.

    With a legend of `labels`; an empty list leaves it out.
    """
    pixels, masks = to_picture(image), to_array(masks).astype(float)
    if masks.ndim != 3 or masks.shape[1:] != pixels.shape[:2]:
        raise ValueError(
            f"show_masks: masks must be [n, {pixels.shape[0]}, {pixels.shape[1]}] like the picture, not {masks.shape}"
        )
    labels = labels if labels is not None else [f"mask {i}" for i in range(len(masks))]
    if len(labels) not in (0, len(masks)):
        raise ValueError(f"show_masks: {len(masks)} masks but {len(labels)} labels")
    ax = show_image(image, title, new_axes(ax, 3.6, 3.6))
    for i, mask in enumerate(masks):
        colour = CYCLE[i % len(CYCLE)]
        overlay = np.zeros((*mask.shape, 4))
        overlay[..., :3] = matplotlib.colors.to_rgb(colour)
        overlay[..., 3] = alpha * np.clip(mask, 0, 1)
        ax.imshow(overlay)
        if mask.max() > 0.5 > mask.min():
            ax.contour(mask, levels=[0.5], colors=[colour], linewidths=1.2)
    handles = [Patch(facecolor=CYCLE[i % len(CYCLE)], label=name_of(label)) for i, label in enumerate(labels)]
    if handles:
        ncols = min(int(ax.figure.get_figwidth() / 1.2), len(handles))
        ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.5, ncols=ncols)
    return ax


def show_mask_codes(
    masks: np.ndarray | torch.Tensor,
    codes: np.ndarray | torch.Tensor,
    drawn: np.ndarray | torch.Tensor,
    titles: Sequence[str],
) -> np.ndarray:
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
            axes[1, column].text(c, r, str(code), ha="center", va="center", fontsize=SMALL, fontweight="bold",
                                 color="white" if code < 64 else BLACK)  # fmt: skip
        axes[2, column].imshow(picture.astype(float), cmap="gray", vmin=0, vmax=1)
        axes[0, column].set_title(plain(title))
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        frame(ax)
    for row, name in enumerate(("mask", "16 codes", "drawn from them")):
        axes[row, 0].set_ylabel(name)
    return axes
