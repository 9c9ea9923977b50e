"""The two pictures of a sticker model's card: how it was trained, and what it takes for what.

python -m paligemma.stickers card FOLDER      curves.png and confusions.png, from its logs and figures.json
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from ..processing_paligemma import to_rgb
from ..training import read_log
from ..visualize import save_figure, show_curves
from .atlas import artists, drawing, drawn_by

PAIRS = 8  # pairs of names in the picture of confusions


def draw_curves(folder: Path) -> Path:
    """Draw the two logs that `export` writes into FOLDER/curves.png, a panel a stage. Returns its path.

    Dotted lines mark where one run ends and the next begins.
    """
    stages = (
        ("encoder-training.jsonl", "the image encoder alone", ("patch name",)),
        ("training.jsonl", "the decoder reads it", ("caption", "is there", "relation", "detect")),
    )
    stages = [(read_log(folder / name), title, shares) for name, title, shares in stages if (folder / name).exists()]
    if not stages:
        raise FileNotFoundError(f"{folder / 'training.jsonl'} is missing, expected a folder that `export` wrote")
    figure, axes = plt.subplots(1, len(stages), figsize=(4.5 * len(stages), 3.2), layout="constrained", squeeze=False)
    for ax, (of, title, shares) in zip(axes.flat, stages, strict=True):
        # Runs follow one another, each counting its steps from 1.
        each = np.diff([line["step"] for line in of], prepend=0)
        steps = np.where(each > 0, each, [line["step"] for line in of]).cumsum()
        curves = {}
        for name in shares:
            has = [name in line for line in of]
            curves[name] = (steps[has], [line[name] for line in of if name in line])
        show_curves(curves, title=title, ylabel="share right in training", ax=ax)
        for end in steps[:-1][each[1:] < 0]:
            ax.axvline(end, color="0.6", linewidth=0.8, linestyle=":")
        ax.set_ylim(0, 1)
        if ax.get_legend():
            ax.legend(loc="lower right", bbox_to_anchor=(1, 0.32), fontsize=8)
    return save_figure(figure, folder / "curves.png")


def draw_confusions(folder: Path, split: str = "unseen") -> Path:
    """Draw the commonest mistakes of FOLDER/figures.json into FOLDER/confusions.png. Returns its path.

    Above, a drawing by the artist of `split`; below, what the model took it for, by an artist that it learned from.
    """
    mistakes = json.loads((folder / "figures.json").read_text(encoding="utf-8"))["confused"][split]
    above, below = artists(split)[0], artists("train")[0]
    pairs = [pair for pair in mistakes if pair[1] in drawn_by(below)][:PAIRS]
    figure, axes = plt.subplots(2, PAIRS, figsize=(1.2 * PAIRS, 3.3), layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for column, (truth, said, times) in enumerate(pairs):
        for ax, name, hand, title in (
            (axes[0, column], truth, above, truth),
            (axes[1, column], said, below, f"“{said}”\n{times} times"),
        ):
            ax.imshow(to_rgb(drawing(name, hand)))
            ax.set_title(title, fontsize=9)
    return save_figure(figure, folder / "confusions.png")
