"""How good is the sticker model? Measured on held-out scenes, for artists that it learned from and for others.

    python -m paligemma.stickers evaluate                          the table for assets/sticker-paligemma, 500 scenes
    python -m paligemma.stickers evaluate FOLDER --scenes 100 --splits train,choice

Three groups of artists draw the scenes of the same seeds: those of the training, the one on whose drawings recipes are
compared, and the one that serves for nothing else than this. Leave the last out of `--splits` while you choose.
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from ..checkpoint import load_pretrained
from ..files import write_atomically
from ..locations import parse_detections
from ..segmentation import MaskTokenizer, load_mask_tokenizer, mask_iou
from ..world.evaluation import answer_all, detection_ious
from ..world.pictures import TRAIN_SEEDS
from .atlas import NAMES, SPLITS, artists
from .scenes import Scene, draw, make_scene, masks
from .tasks import TASKS, ask, caption_is_right, find

# What the shipped model is to reach on the drawings of the artists that it learned from.
GOALS = {
    "name": 0.98,
    "caption of up to 3: all names": 0.90,
    "caption ko of up to 3: all names": 0.88,
    "detect: mean IoU": 0.85,
    "segment: mean IoU": 0.80,
}
UNSEEN_GOALS = {"name": 0.70}


def make_questions(scenes: list[Scene], tasks: tuple[str, ...] = TASKS) -> list[tuple[int, str, str, str]]:
    """One question of each task about each scene, where one can be asked: (scene, task, prompt, answer).

    Detections are of stickers that are there; those of absent ones count by themselves. The answer to `segment` has
    the true box and 16 codes that mean nothing, since masks are compared pixel by pixel.
    """
    rows = []
    for index, scene in enumerate(scenes):
        rng = np.random.default_rng([3, scene.seed])
        for task in tasks:
            pair = ask(scene, task, rng, codes=lambda sticker: [0] * 16)
            if pair is not None:
                rows.append((index, "absent" if task == "detect" and not pair[1] else task, *pair))
    return rows


def segment_iou(scene: Scene, prompt: str, text: str, mask_tokenizer: MaskTokenizer, size: int = 192) -> float:
    """IoU of the answered mask with the sticker's visible pixels, at `size` pixels; 0 where the answer has no mask."""
    index = find(scene, prompt.removeprefix("segment "))[0]
    for detection in parse_detections(text)[0][:1]:
        if detection.codes:
            guess = mask_tokenizer.codes_to_mask(detection.codes, detection.box, size, size)
            return mask_iou(guess, masks(scene, size)[index])
    return 0.0


def score(scenes: list[Scene], rows, answers: list[str], mask_tokenizer: MaskTokenizer) -> dict[str, float]:
    """The figures of the table from the answers: shares that are right, and mean IoUs."""
    found = defaultdict(list)
    for (index, task, prompt, truth), text in zip(rows, answers, strict=True):
        scene = scenes[index]
        if task in ("caption", "caption ko"):
            names, relations = caption_is_right(scene, text, "ko" if task == "caption ko" else "en")
            found[f"{task} of {len(scene.things)}: all names"].append(names)
            if len(scene.things) <= 3:
                found[f"{task} of up to 3: all names"].append(names)
                found[f"{task} of up to 3: names and relations"].append(relations)
        elif task in ("detect", "detect pair"):
            ious = detection_ious(truth, text)
            found[f"{task}: mean IoU"] += ious
            found[f"{task}: IoU over 0.5"] += [iou > 0.5 for iou in ious]
        elif task == "segment":
            found["segment: mean IoU"].append(segment_iou(scene, prompt, text, mask_tokenizer))
        elif task == "absent":
            found["absent: empty answer"].append(text == "")
        else:
            found[task].append(text == truth)
    return {name: float(np.mean(values)) for name, values in sorted(found.items())}


def single(count: int, hands: tuple[str, ...]) -> list[Scene]:
    """Held-out scenes of one sticker each, seeds 0 to count - 1, by these artists."""
    return [make_scene(seed, hands, most=1) for seed in range(count)]


def ask_all(
    model, processor, split: str, scenes: int
) -> tuple[list[Scene], list[tuple[int, str, str, str]], list[str]]:
    """Held-out seeds 0 to scenes - 1 by the artists of `split`: the scenes, the questions and the answers.

    Naming is asked about `scenes` pictures of one sticker, all else about as many of one to four. Raises ValueError
    for an unknown split or number.
    """
    if not 1 <= scenes <= TRAIN_SEEDS:
        raise ValueError(f"scenes is {scenes}, expected 1 to {TRAIN_SEEDS:,}, the number of held-out scenes")
    hands = artists(split)
    alone = single(scenes, hands)
    mixed = [make_scene(seed, hands) for seed in range(scenes)]
    everything = alone + mixed
    other = tuple(task for task in TASKS if task != "name")
    rows = make_questions(alone, ("name",))
    rows += [(index + scenes, *rest) for index, *rest in make_questions(mixed, other)]
    return everything, rows, answer_all(model, processor, [draw(scene) for scene in everything], rows)


def evaluate(model, processor, mask_tokenizer: MaskTokenizer, split: str, scenes: int = 500) -> dict[str, float]:
    """The figures for the scenes of `ask_all`, which raises for an unknown split or number."""
    return score(*ask_all(model, processor, split, scenes), mask_tokenizer)


def confusions(rows, answers: list[str]) -> list[tuple[str, str, int]]:
    """What is taken for what: (true name, answered name, times), most frequent first, where one sticker was named."""
    counts = defaultdict(int)
    for (_, task, _, truth), text in zip(rows, answers, strict=True):
        if task == "name" and text != truth:
            counts[truth, text] += 1
    return sorted(((*pair, times) for pair, times in counts.items()), key=lambda row: (-row[2], row))


def print_table(results: dict[str, dict[str, float]]) -> None:
    """Print one line a figure: the goals, then what the drawings of each split gave."""
    print("| task | goal | " + " | ".join(results) + " |")
    print("|---|---|" + "---|" * len(results))
    names = list(GOALS) + sorted({name for figures in results.values() for name in figures} - set(GOALS))
    for name in names:
        goals = [f"{GOALS[name]:.2f}"] if name in GOALS else []
        goals += [f"unseen {UNSEEN_GOALS[name]:.2f}"] if name in UNSEEN_GOALS else []
        figures = [f"{figures.get(name, float('nan')):.3f}" for figures in results.values()]
        print(f"| {name} | {', '.join(goals)} | " + " | ".join(figures) + " |")
    print(f"\nA name drawn by lot is right in {1 / len(NAMES):.3f} of cases.")


def run(folder: str | Path, masks_folder: str | Path, splits: list[str], scenes: int, json_path: Path | None) -> None:
    """Measure a model's folder, print the table, and write the figures to a file if one is given."""
    for split in splits:
        artists(split)  # an unknown split is an error before anything is loaded
    model, processor = load_pretrained(folder, dtype=torch.float32)
    mask_tokenizer = load_mask_tokenizer(masks_folder)
    results, confused = {}, {}
    for split in splits:
        asked = ask_all(model, processor, split, scenes)
        results[split] = score(*asked, mask_tokenizer)
        confused[split] = confusions(*asked[1:])
    print_table(results)
    print(f"\nMost often confused (artists: {', '.join(artists(splits[-1]))}):")
    for truth, text, times in confused[splits[-1]][:20]:
        print(f"  {truth} taken for {text[:40] or 'nothing'}: {times}")
    if json_path is not None:
        figures = {"scenes": scenes, **results, "confused": confused}
        with write_atomically(json_path) as partial:
            partial.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


ALL_SPLITS = ",".join(SPLITS)
