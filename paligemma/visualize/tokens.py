"""Token sequences: one, a batch, and what a model would say next."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle
from transformers import PreTrainedTokenizerBase

from .style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    PALE,
    SMALL,
    TOKEN_COLOURS,
    WIDTH,
    frame,
    name_of,
    new_axes,
    plain,
    readable_token,
    row_of_axes,
    text_colour,
    to_array,
)

LINE_UNITS = 18  # the width of a line of tokens; a letter is 0.2 units wide at 8 points
MOST_CELLS = 400  # a strip of more is cut in its middle
# What the legend says for a kind, where it is not the kind's own name.
KIND_NAMES = {
    "bos": "BOS",
    "eos": "EOS",
    "suffix": "answer word",
    "loc": "location",
    "seg": "segment",
    "pad": "padding",
}


def show_tokens(
    tokens: Sequence[str],
    kinds: Sequence[str],
    title: str | None = None,
    columns: int = 16,
    longest_run: int = 6,
    ax: Axes | None = None,
) -> Axes:
    """A sequence of tokens as a strip of cells, coloured by kind and wrapped into lines.

    Args:
        tokens: list of str. kinds: list of the same length, each a key of TOKEN_COLOURS.
        columns: cells in a line.
        longest_run: a longer run of equal tokens is shortened to its ends and "… n more …".
    Returns Axes with one text per cell, in order.
    """
    if len(tokens) != len(kinds):
        raise ValueError(f"show_tokens: {len(tokens)} tokens but {len(kinds)} kinds")
    check_kinds("show_tokens", set(kinds))
    if columns < 1 or longest_run < 1:
        raise ValueError(f"show_tokens: columns is {columns} and longest_run {longest_run}, expected 1 or more")

    lines = _into_lines(_shortened(tokens, kinds, longest_run), columns)
    total = max(sum(width for *_, width in line) for line in lines)
    ax = new_axes(ax, WIDTH, 0.42 * len(lines) + 0.75)
    for row, line in enumerate(lines):
        left = 0.0
        for text, kind, width in line:
            fill, ink = TOKEN_COLOURS[kind]
            corner, rounded = (left + 0.06, row + 0.1), "round,pad=0,rounding_size=0.12"
            ax.add_patch(FancyBboxPatch(corner, width - 0.12, 0.8, boxstyle=rounded, facecolor=fill, edgecolor="white"))
            ax.text(left + width / 2, row + 0.5, text, ha="center", va="center", color=ink, fontsize=SMALL)
            left += width
    ax.set(xlim=(0, total), ylim=(len(lines), 0), xticks=[], yticks=[], title=plain(title or ""), xlabel="", ylabel="")
    for spine in ax.spines.values():
        spine.set_visible(False)
    handles = _legend_handles(set(kinds))
    ax.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=len(handles),
        handlelength=1.0,
        columnspacing=1.2,
    )
    return ax


def check_kinds(function: str, kinds: set[str]) -> None:
    """Raise ValueError for a kind of token that has no colour."""
    unknown = sorted(kinds - set(TOKEN_COLOURS))
    if unknown:
        raise ValueError(f"{function}: unknown kinds {unknown}; known are {', '.join(TOKEN_COLOURS)}")


def _legend_handles(kinds: set[str]) -> list[Patch]:
    """A patch for each colour; kinds of one colour (BOS and EOS) share it."""
    names = {}
    for kind, (fill, _) in TOKEN_COLOURS.items():
        if kind in kinds:
            names.setdefault(fill, []).append(KIND_NAMES.get(kind, kind))
    return [Patch(facecolor=fill, label=", ".join(several)) for fill, several in names.items()]


def _shortened(tokens: Sequence[str], kinds: Sequence[str], longest_run: int) -> list[tuple[str, str]]:
    """(text, kind) of each cell: long runs of equal tokens become their ends and "… n more …"."""
    before, after = (1, 0) if longest_run == 1 else (1, 1) if longest_run == 2 else (2, 1)
    cells, i = [], 0
    while i < len(tokens):
        run = 1
        while i + run < len(tokens) and (tokens[i + run], kinds[i + run]) == (tokens[i], kinds[i]):
            run += 1
        cell = (readable_token(tokens[i]), kinds[i])
        if run > longest_run:
            cells += [cell] * before + [(f"… {run - before - after} more …", kinds[i])] + [cell] * after
        else:
            cells += [cell] * run
        i += run
    if len(cells) > MOST_CELLS:
        half = MOST_CELLS // 2
        cells = cells[:half] + [(f"… {len(cells) - 2 * half} more …", "pad")] + cells[-half:]
    return cells


def _into_lines(cells: list[tuple[str, str]], columns: int) -> list[list[tuple[str, str, float]]]:
    """(text, kind, width) line by line. A cell is as wide as its text needs, at least one unit."""
    lines = [[]]
    for text, kind in cells:
        width = max(1.0, 0.2 * len(text) + 0.4)
        if lines[-1] and (len(lines[-1]) == columns or sum(w for *_, w in lines[-1]) + width > LINE_UNITS):
            lines.append([])
        lines[-1].append((text, kind, width))
    return lines if cells else [[("", "pad", 1.0)]]


def show_batch(
    kinds: Sequence[Sequence[str]],
    panels: Mapping[str, np.ndarray | torch.Tensor],
    rows: Sequence[str] | None = None,
    title: str | None = None,
) -> np.ndarray:
    """A batch of token sequences, one strip of cells a row, and its masks below in the same places.

    Args:
        kinds: [B][L] keys of TOKEN_COLOURS. panels: {name: bool array [B, L]}, True is drawn dark.
        rows: names of the rows.
    Returns an array of Axes: the kinds first, then the panels in order.
    """
    check_kinds("show_batch", {kind for row in kinds for kind in row})
    if not kinds or {len(row) for row in kinds} != {len(kinds[0])}:
        lengths = [len(row) for row in kinds]
        raise ValueError(f"show_batch: the rows have lengths {lengths}, expected one row or more, all of one length")
    count, length = len(kinds), len(kinds[0])
    for name, panel in panels.items():
        if to_array(panel).shape != (count, length):
            raise ValueError(f"show_batch: {name} is {to_array(panel).shape}, the kinds are {(count, length)}")
    rows = rows if rows is not None else [f"row {i}" for i in range(count)]
    height = 0.2 * count + 0.3
    figure, axes = plt.subplots(1 + len(panels), 1, figsize=(WIDTH, height * (1 + len(panels)) + 0.4), sharex=True)
    axes = np.ravel(axes)
    present = [kind for kind in TOKEN_COLOURS if any(kind in row for row in kinds)]
    index = np.array([[present.index(kind) for kind in row] for row in kinds])
    palette = ListedColormap([TOKEN_COLOURS[kind][0] for kind in present])
    axes[0].imshow(index, cmap=palette, vmin=-0.5, vmax=len(present) - 0.5, aspect="auto")
    axes[0].set_title(plain(title or "tokens by kind", lines=1))
    handles = _legend_handles(set(present))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handlelength=1.0)
    for ax, (name, panel) in zip(axes[1:], panels.items()):
        ax.imshow(to_array(panel).astype(int), cmap=ListedColormap(["#F4F4F4", BLUE]), vmin=0, vmax=1, aspect="auto")
        ax.set_title(plain(name, lines=1))
    for ax in axes:
        ax.set_xticks(np.arange(length + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=0.6)
        ax.tick_params(which="both", length=0)
        ax.set_yticks(range(count), [name_of(row) for row in rows])
        frame(ax)
    step = next(size * 10**k for k in range(9) for size in (1, 2, 5) if size * 10**k * 12 >= length)
    axes[-1].set_xticks(range(0, length, step))
    axes[-1].set_xlabel("position in the sequence")
    return axes


def show_next_tokens(
    probabilities: np.ndarray | torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    written: Sequence[str],
    top: int = 4,
    steps: int = 8,
    columns: int = 4,
) -> np.ndarray:
    """What the model considered at each step of its writing: bars for the likeliest tokens. Returns an array of Axes.

    Args:
        probabilities: [steps, V], one row for each token written. tokenizer: turns ids into tokens.
        written: list of str, the token chosen at each step; its bar is filled. top: bars in a panel.
        steps: at most so many panels. columns: panels in a row.
    """
    probabilities = to_array(probabilities)[:steps]
    axes = row_of_axes(len(probabilities), 1.35, columns=columns)
    for step, (ax, row) in enumerate(zip(axes, probabilities)):
        best = row.argsort()[::-1][:top]
        names = [tokenizer.convert_ids_to_tokens(int(token)) for token in best]
        colours = [BLUE if name == written[step] else PALE for name in names]
        ax.barh(range(len(best)), row[best], color=colours, edgecolor=GREY, linewidth=0.6)
        for place, (value, colour) in enumerate(zip(row[best], colours)):  # the number at the end of its bar
            inside = value > 0.7
            ax.text(
                value - 0.03 if inside else value + 0.03, place, f"{value:.2f}", fontsize=SMALL, va="center",
                ha="right" if inside else "left", color=text_colour(to_rgb(colour)) if inside else BLACK,
            )  # fmt: skip
        ax.set_yticks(range(len(best)), [readable_token(name, 14) for name in names])
        ax.set(xlim=(0, 1), ylim=(top - 0.4, -0.6), xticks=[0, 0.5, 1])
        ax.set_title(f"{step + 1}: {readable_token(written[step], 20)}")
        if step + columns >= len(probabilities):
            ax.set_xlabel("probability")
    return axes


def show_logit_lens(
    words: Sequence[Sequence[str]],
    probabilities: np.ndarray | torch.Tensor,
    inputs: Sequence[str],
    layers: Sequence[str],
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """What each layer would say next: the likeliest word at each layer and position. Returns Axes.

    A word that is also the last layer's stands in a frame.

    Args:
        words: [layers][positions] of str. probabilities: [layers, positions], each word's, as the colour.
        inputs: the token that stands at each position. layers: names of the rows; the first is drawn at the bottom.
    """
    probabilities = to_array(probabilities)
    rows, columns = probabilities.shape
    ax = new_axes(ax, WIDTH, 0.42 * rows + 1.3)
    fits = max(2, int(0.75 * WIDTH * 72 / columns / (0.58 * SMALL)))  # letters, each about 0.58 of their height wide
    shown = ax.imshow(probabilities, vmin=0, vmax=1, aspect="auto", origin="lower", cmap="Blues")
    for (r, c), value in np.ndenumerate(probabilities):
        colour = text_colour(shown.cmap(shown.norm(float(value))))
        word, final = readable_token(words[r][c], fits), words[r][c] == words[-1][c]
        ax.text(c, r, word, ha="center", va="center", color=colour, fontsize=SMALL)
        if final and rows > 1:
            ax.add_patch(Rectangle((c - 0.46, r - 0.44), 0.92, 0.88, fill=False, edgecolor=ORANGE, linewidth=1.6))
    ax.set_yticks(range(rows), layers)
    standing = [readable_token(token, 20) for token in inputs]
    turned = {"rotation": 40, "ha": "right"} if max(map(len, standing), default=0) > fits else {}
    ax.set_xticks(range(columns), standing, **turned)
    ax.tick_params(length=0)
    frame(ax)
    ax.set(title=plain(title or ""), xlabel="the token that stands at this position", ylabel="read after")
    ax.figure.colorbar(shown, ax=ax, pad=0.02, label="probability of the word")
    return ax
