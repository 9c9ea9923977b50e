"""Curves, histograms, bars, and the roofline."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes

from .pictures import Picture
from .style import (
    BLACK,
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    LINE_STYLES,
    ORANGE,
    RED,
    SMALL,
    WIDTH,
    name_of,
    new_axes,
    plain,
    row_of_axes,
    to_array,
)

Numbers = np.ndarray | torch.Tensor | Sequence[float]


def show_histograms(
    arrays: Mapping[str, Picture | Numbers],
    bins: int = 64,
    xlabel: str = "value",
    columns: int | None = None,
    height: float = 2.0,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    """How often each value occurs, one panel for each array; pictures get a line for each colour channel.

    Args:
        arrays: {title: array}. A PIL image or an array [..., 3] or [3, H, W] is split into red, green, blue.
        axes: the axes to draw into, one for each array; by default those of a new figure.
    Returns an array of Axes, in the order of the dictionary.
    """
    axes = row_of_axes(len(arrays), height, columns) if axes is None else axes
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
            fontsize=SMALL,
        )
        ax.set(title=plain(title), xlabel=xlabel, ylabel="share of pixels" if i % (columns or len(arrays)) == 0 else "")
        ax.set_ylim(0, ax.get_ylim()[1] * 1.2)  # room for the mean
        ax.locator_params(axis="x", nbins=5)
    handles, names = axes[0].get_legend_handles_labels()
    if handles:
        axes[0].figure.legend(handles, names, loc="outside lower center", ncols=3)
    return axes


def show_curves(
    curves: Mapping[str, Numbers | tuple[Numbers, Numbers]],
    xlabel: str = "step",
    ylabel: str = "value",
    title: str | None = None,
    x: Numbers | None = None,
    logx: bool = False,
    logy: bool = False,
    ax: Axes | None = None,
    marker: str | None = None,
) -> Axes:
    """Curves in one panel, told apart by colour and by line style. Returns Axes.

    Args:
        curves: {name: y} or {name: (x, y)}.
        x: shared by all curves that give y alone (default 0, 1, 2, ...).
    """
    ax = new_axes(ax, WIDTH * 0.8, 2.7)
    for i, (name, values) in enumerate(curves.items()):
        if isinstance(values, tuple):
            xs, ys = map(to_array, values)
        else:
            ys = to_array(values)
            xs = np.arange(len(ys)) if x is None else to_array(x)
        if len(xs) != len(ys):
            raise ValueError(f"show_curves: {name} has {len(xs)} x values but {len(ys)} y values")
        style = LINE_STYLES[i % len(LINE_STYLES)]
        ax.plot(xs, ys, label=name_of(name), color=CYCLE[i % len(CYCLE)], linestyle=style, marker=marker)
    if logx:
        ax.set_xscale("log")
    if logy:
        ax.set_yscale("log")
    ax.grid(True, axis="y")
    ax.set(title=plain(title or ""), xlabel=xlabel, ylabel=ylabel)
    if len(curves) > 1:
        ax.legend(handlelength=4.0 if marker else 2.6)  # long enough to show the dashes, a marker in their middle too
    return ax


def show_spread(
    groups: Mapping[str, Numbers],
    xlabel: str = "",
    ylabel: str = "share",
    reference: Mapping[str, float] | None = None,
    reference_label: str = "",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """For each group of numbers a box plot: median, quartiles, whiskers to the 5th and 95th percentile. Returns Axes.

    Args: groups: {name: numbers}. reference: {name: number} to mark beside each, such as what chance would give.
    """
    ax = new_axes(ax, WIDTH * 0.85, 2.8)
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
    ax.set(xlabel=xlabel, ylabel=ylabel, title=plain(title or ""))
    return ax


def show_model_sizes(sizes: Mapping[str, Mapping[str, int]], title: str | None = None, ax: Axes | None = None) -> Axes:
    """One horizontal bar for each model, divided into its parts, in billions of parameters. Returns Axes.

    Args: sizes: {model: {part: number of parameters}}, the same parts for all.
    """
    parts = list(next(iter(sizes.values()), {}))
    for name, model in sizes.items():
        if set(model) != set(parts):
            raise ValueError(f"show_model_sizes: {name} has the parts {list(model)}, expected {parts} for every model")
    ax = new_axes(ax, WIDTH, 0.5 * len(sizes) + 1.1)
    left = np.zeros(len(sizes))
    for i, part in enumerate(parts):
        widths = np.array([model[part] for model in sizes.values()]) / 1e9
        ax.barh(list(sizes), widths, left=left, color=CYCLE[i % len(CYCLE)], edgecolor="white", label=part, height=0.65)
        left += widths
    for y, total in enumerate(left):
        ax.text(total + 0.2, y, f"{total:.1f}", va="center", fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="billions of parameters", title=plain(title or ""), xlim=(0, left.max() * 1.08))
    ax.legend(loc="upper right")
    return ax


def roofline(
    bandwidth: float, compute: float, points: Mapping[str, tuple[float, float]], ax: Axes | None = None
) -> Axes:
    """How fast work can go, by its arithmetic intensity; and where some pieces of work are.

    Left of the corner, memory is the limit (the slope); right of it, arithmetic (the flat roof). Williams, Waterman &
    Patterson 2009, "Roofline".

    Args:
        bandwidth: bytes a second. compute: FLOPs a second. points: {name: (FLOPs per byte, FLOPs a second)}.
    Returns the Axes; its lines are the roof and then the points, in order.
    """
    ax = new_axes(ax, WIDTH, 3.4)
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
