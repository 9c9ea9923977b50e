"""What drawings are made of: boxes, arrows, rows and grids of cells, on a page measured in its own units."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.transforms import ScaledTranslation

from .style import BLACK, GREY, SMALL, WIDTH, new_axes

INK = "#333333"  # of lines
# Light grounds, so that black text can be read on them: the part of the model that a shape belongs to.
FILL = {
    "data": "#FFFFFF",
    "vision": "#DCEBF5",
    "text": "#FBE9C8",
    "merge": "#EFEFEF",
    "decoder": "#D5EDE4",
    "frame": "#FAFAFA",
    "loss": "#F9DFC9",
    "off": "#F2F2F2",
}


def page(ax: Axes | None, width: float, height: float, inches: float = WIDTH, title: str | None = None) -> Axes:
    """Axes without ticks, `width` x `height` units, with one scale in both directions and the origin at the lower left.

    A new figure is `inches` wide; its ground is white whatever the page around it is, so that black ink is seen.
    """
    ax = new_axes(ax, inches, inches * height / width + (0.3 if title else 0.05))
    ax.set(xlim=(0, width), ylim=(0, height), xticks=[], yticks=[], aspect="equal")
    ax.set_axis_off()
    ax.figure.set_facecolor("white")
    if title:
        ax.set_title(title)
    return ax


def box(
    ax: Axes,
    left: float,
    bottom: float,
    width: float,
    height: float,
    label: str = "",
    fill: str = FILL["data"],
    bold: bool = False,
    edge: str = GREY,
    line: float = 0.8,
    dashed: bool = False,
    rounding: float = 5,
    rotation: int = 0,
    gid: str | None = None,
    zorder: float = 2,
    colour: str = BLACK,
) -> FancyBboxPatch:
    """A rounded box with its label in the middle."""
    patch = FancyBboxPatch(
        (left, bottom), width, height, boxstyle=f"round,pad=0,rounding_size={rounding}", facecolor=fill,
        edgecolor=edge, linewidth=line, linestyle="--" if dashed else "-", gid=gid, zorder=zorder,
    )  # fmt: skip
    ax.add_patch(patch)
    if label:
        middle = (left + width / 2, bottom + height / 2)
        write(ax, *middle, label, bold=bold, rotation=rotation, colour=colour, zorder=zorder + 2)
    return patch


def write(
    ax: Axes,
    x: float,
    y: float,
    text: str,
    size: float = SMALL,
    bold: bool = False,
    colour: str = BLACK,
    ha: str = "center",
    va: str = "",
    rotation: int = 0,
    zorder: float = 5,
    italic: bool = False,
) -> None:
    """A line or two of text around (x, y); words with and without descenders stand on one line."""
    va = va or ("center" if rotation or text in "+×−" else "center_baseline")
    # matplotlib centres such a line with room for accents above it, which leaves the letters too low.
    up = 0.11 * size / 72 if va == "center_baseline" else 0.0  # inches
    ax.text(
        x, y, text, fontsize=size, fontweight="bold" if bold else "normal", color=colour, ha=ha, va=va,
        rotation=rotation, zorder=zorder, linespacing=1.2, style="italic" if italic else "normal",
        transform=ax.transData + ScaledTranslation(0, up, ax.figure.dpi_scale_trans),
    )  # fmt: skip


def arrow(
    ax: Axes,
    *points: tuple[float, float],
    colour: str = INK,
    line: float = 1.0,
    dashed: bool = False,
    head: bool = True,
    bend: float = 0.0,
    alpha: float = 1.0,
    zorder: float = 3,
) -> None:
    """A line through the points with a head at its end; `bend` curves it (to the left of its way where positive)."""
    for start, end in zip(points, points[1:]):
        style = "-|>" if head and end == points[-1] else "-"
        ax.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle=style, mutation_scale=6 + 2 * line, shrinkA=0, shrinkB=0, linewidth=line,
                color=colour, alpha=alpha, linestyle="--" if dashed else "-", zorder=zorder,
                connectionstyle=f"arc3,rad={bend}", capstyle="butt", joinstyle="miter",
            )
        )  # fmt: skip


def cells(
    ax: Axes,
    left: float,
    bottom: float,
    fills: Sequence[Sequence[str]] | np.ndarray,
    size: float | tuple[float, float] = 10,
    labels: Sequence[Sequence[str]] | None = None,
    edge: str = "white",
    line: float = 1.0,
    colours: Sequence[Sequence[str]] | None = None,
    zorder: float = 3,
) -> None:
    """A grid of cells from colours [rows][columns], the first row on top; `labels` are written in, where not empty."""
    width, height = (size, size) if isinstance(size, (int, float)) else size
    rows = len(fills)
    for r, row in enumerate(fills):
        for c, fill in enumerate(row):
            corner = (left + c * width, bottom + (rows - 1 - r) * height)
            ax.add_patch(
                Rectangle(corner, width, height, facecolor=fill, edgecolor=edge, linewidth=line, zorder=zorder)
            )
            if labels is not None and labels[r][c]:
                ink = colours[r][c] if colours is not None else BLACK
                write(ax, corner[0] + width / 2, corner[1] + height / 2, labels[r][c], colour=ink, zorder=zorder + 2)
