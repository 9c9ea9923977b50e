"""The capstone: teach the small model the names of 24 stickers, and be judged by an artist that it has never seen.

    python -m paligemma.stickers folder DIR      examples by the artists for training, to start from
    python -m paligemma.finetune DIR             the baseline: trained on with the options as they are
    python -m paligemma.stickers score MODEL     the row for the scoreboard in docs/capstone.md

The score is taken on sealed pictures: their seeds serve for nothing else, and the artist of `unseen` drew them. Take
it once, at the end. While you choose between recipes, `valid` tells them apart: the artist of `choice` drew it.
"""

from pathlib import Path

import numpy as np

from ..checkpoint import load_pretrained
from ..finetune.drawings import PROMPT, place, write_folder
from ..locations import Detection, format_detections
from ..world.evaluation import answer_all, detection_ious
from .atlas import artists, drawing

# Of things that all eight artists drew.
NAMES = (
    "dog", "cat", "rabbit", "fish", "bee", "snail",
    "apple", "strawberry", "mushroom", "pizza", "ice cream", "cake",
    "car", "bicycle", "train", "rocket", "cactus", "sunflower",
    "house", "umbrella", "guitar", "bell", "crown", "anchor",
)  # fmt: skip
SEALED = 7_000_000  # the first seed of the pictures for the score
PER_DRAWING = 10  # sealed pictures of each drawing
COLUMNS = ("name", "names, unseen artist", "names, training artists", "detect, unseen artist", "parameters")


def write_examples(out: str | Path, per_drawing: int = 6, seed: int = 0) -> dict[str, int]:
    """The folder to start from: every drawing of the 24 by the artists for training; `valid` by that of `choice`.

    Returns the number of pictures of each split. Raises FileExistsError for a folder that has something in it.
    """
    train, held_out = (
        {name: [drawing(name, artist) for artist in artists(split)] for name in NAMES} for split in ("train", "choice")
    )
    return write_folder(out, train, held_out, per_drawing, per_held_out=4, seed=seed)


def sealed_questions(split: str, per_drawing: int = PER_DRAWING) -> tuple[list, list[tuple[int, str, str, str]]]:
    """Sealed pictures by the artists of a split, and two questions about each: (picture, task, prompt, answer)."""
    pictures, rows = [], []
    for name in NAMES:
        for artist in artists(split):
            for _ in range(per_drawing):
                picture, box = place(drawing(name, artist), SEALED + len(pictures))
                rows.append((len(pictures), "name", PROMPT, name))
                truth = format_detections([Detection(name, box)])
                rows.append((len(pictures), "detect", f"detect {name}", truth))
                pictures.append(picture)
    return pictures, rows


def score(folder: str | Path, per_drawing: int = PER_DRAWING) -> dict[str, float]:
    """Share of names that are right and mean IoU of boxes, on the sealed pictures; and the number of parameters.

    `names` are pictures by the unseen artist, `own names` as many by the artists for training. Raises what
    `load_pretrained` raises for a folder that holds no model.
    """
    model, processor = load_pretrained(folder)
    figures = {}
    for split, prefix, count in (("unseen", "", per_drawing), ("train", "own ", max(1, per_drawing // 6))):
        pictures, rows = sealed_questions(split, count)
        answers = answer_all(model, processor, pictures, rows)
        pairs = [(task, truth, text) for (_, task, _, truth), text in zip(rows, answers, strict=True)]
        figures[f"{prefix}names"] = float(np.mean([text == truth for task, truth, text in pairs if task == "name"]))
        ious = [iou for task, truth, text in pairs if task == "detect" for iou in detection_ious(truth, text)]
        figures[f"{prefix}detect"] = float(np.mean(ious))
    figures["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return figures


def row(name: str, figures: dict[str, float]) -> str:
    """The line of the scoreboard's table."""
    shares = [f"{100 * figures[key]:.0f} %" for key in ("names", "own names")]
    return f"| {name} | {' | '.join(shares)} | {figures['detect']:.2f} | {figures['parameters'] / 1e6:.1f} M |"
