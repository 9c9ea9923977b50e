"""How good is a model of the little world? Measured on scenes it was not trained on, greedy decoding.

    python -m paligemma.world.evaluation                       the table for assets/tiny-paligemma, 1,000 scenes
    python -m paligemma.world.evaluation --scenes 100 --renderer vector

Two renderers draw the same scenes: the one the model was trained with (paligemma.world.scenes), and a second that
shares no code with it (matplotlib's vector shapes in other shades, sizes and proportions, saved as JPEG).
"""

import argparse
import io
import json
import sys
from collections import defaultdict

import numpy as np
from PIL import Image
from tqdm import tqdm

from .. import ASSETS
from ..attention_maps import answer_attention, share_inside
from ..checkpoint import load_pretrained
from ..files import write_atomically
from ..generation import generate
from ..locations import box_iou, parse_detections
from ..options import whole
from ..segmentation import load_mask_tokenizer, mask_iou
from .pictures import TRAIN_SEEDS, mask_codes
from .scenes import Scene, ask, caption_is_true, draw, find, make_query, make_scene, mask

# For comparison, on scenes drawn by the model's own renderer: what a model that masters this world reaches.
GOALS = {
    "colour": 0.99,
    "shape": 0.99,
    "size": 0.99,
    "how many": 0.98,
    "is there": 0.98,
    "where": 0.98,
    "caption": 0.98,
    "detect: mean IoU": 0.90,
    "detect: IoU over 0.5": 0.99,
    "segment: mean IoU": 0.85,
    "absent: empty answer": 0.97,
}
QUESTIONS = ("colour", "shape", "size", "how many", "is there", "where", "relation")


# ------------------------------------------------------------------------------------------- a second renderer

VECTOR_COLOURS = {
    "red": ("red", "crimson", "firebrick"),
    "orange": ("orange", "darkorange", "#f58220"),
    "yellow": ("yellow", "gold", "#f7dc30"),
    "green": ("green", "limegreen", "seagreen"),
    "blue": ("blue", "royalblue", "dodgerblue"),
    "purple": ("purple", "darkorchid", "rebeccapurple"),
    "pink": ("pink", "hotpink", "#f4a6c8"),
    "black": ("black", "#222222", "#101820"),
}
VECTOR_BACKGROUNDS = ("white", "whitesmoke", "ivory", "lavender", "gainsboro", "honeydew", "linen", "lightgrey")


def draw_vector(scene: Scene) -> Image.Image:
    """Draw a scene's things with matplotlib: other shades, no noise, any size and proportions, JPEG-compressed.

    The boxes are the scene's own in fractions of the sides, so every answer stays the same.
    """
    from matplotlib import patches, transforms
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Outline

    rng = np.random.default_rng([2, scene.seed])
    width, height = int(rng.integers(80, 320)), int(rng.integers(80, 320))
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="none")  # whatever the style says
    canvas = FigureCanvasAgg(figure)
    figure.set_facecolor(VECTOR_BACKGROUNDS[rng.integers(len(VECTOR_BACKGROUNDS))])
    axes = figure.add_axes([0, 0, 1, 1])
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(1, 0)  # y grows downwards, as in pictures
    for thing in scene.things:
        turn = np.deg2rad(rng.uniform(-10, 10))
        corner = np.pi / 2 + turn
        if thing.shape in ("circle", "ring"):
            outline = Outline.unit_circle()
            if thing.shape == "ring":
                inner = Outline(outline.vertices * (-0.6, 0.6), outline.codes)  # the other way round: a hole
                outline = Outline.make_compound_path(outline, inner)
        elif thing.shape == "square":
            outline = Outline.unit_regular_polygon(4).transformed(transforms.Affine2D().rotate(turn + np.pi / 4))
        elif thing.shape == "triangle":
            outline = Outline.unit_regular_polygon(3).transformed(transforms.Affine2D().scale(1, -1).rotate(turn))
        elif thing.shape == "star":
            outline = Outline.unit_regular_star(5, 0.4).transformed(transforms.Affine2D().rotate(np.pi).rotate(turn))
        else:
            outline = Outline.make_compound_path(
                Outline([(-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3), (-1, -0.3)]),
                Outline([(-0.3, -1), (0.3, -1), (0.3, 1), (-0.3, 1), (-0.3, -1)]),
            )
            outline = outline.transformed(transforms.Affine2D().rotate(corner))
        extents = outline.get_extents()
        y1, x1, y2, x2 = thing.box
        fit = (
            transforms.Affine2D()
            .translate(-extents.x0, -extents.y0)
            .scale((x2 - x1) / extents.width, (y2 - y1) / extents.height)
            .translate(x1, y1)
        )
        shades = VECTOR_COLOURS[thing.colour]
        axes.add_patch(
            patches.PathPatch(outline.transformed(fit), linewidth=0, facecolor=shades[rng.integers(len(shades))])
        )
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=int(rng.integers(60, 93)))
    return Image.open(file).convert("RGB")


RENDERERS = {"own": draw, "vector": draw_vector}


# ------------------------------------------------------------------------------------------------- the questions


def make_questions(scenes: list[Scene], codes) -> list[tuple[int, str, str, str]]:
    """One question of each task about each scene, where one can be asked: (scene, task, prompt, answer)."""
    rows = []
    for index, scene in enumerate(scenes):
        rng = np.random.default_rng([3, scene.seed])
        for task in ("caption", *QUESTIONS, "detect", "segment"):
            pair = ask(scene, task, rng, codes)
            while task == "detect" and pair is not None and not pair[1]:  # absent things: below, by themselves
                pair = ask(scene, task, rng)
            if pair is not None:
                rows.append((index, task, *pair))
        query = make_query(rng, scene, present=False)
        if query:
            rows.append((index, "absent", f"detect {query}", ""))
    return rows


def answer_all(model, processor, pictures: list[Image.Image], rows, batch_size: int = 96) -> list[str]:
    """The model's answers to the rows of `make_questions`, in their order."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i][3]), len(rows[i][2])))  # like with like
    answers = [""] * len(rows)
    for start in tqdm(range(0, len(order), batch_size), desc="asking", unit=" batches", leave=False):
        part = order[start : start + batch_size]
        texts = generate(
            model,
            processor,
            images=[pictures[rows[i][0]] for i in part],
            text=[rows[i][2] for i in part],
            max_new_tokens=48,
        )
        for i, text in zip(part, texts, strict=True):
            answers[i] = text
    return answers


def detection_ious(true_text: str, text: str) -> list[float]:
    """The IoU of each true box with its best match of the same label; 0 for each miss and each box too many."""
    truths, guesses = parse_detections(true_text)[0], parse_detections(text)[0]
    pairs = sorted(
        (
            (box_iou(t.box, g.box), i, j)
            for i, t in enumerate(truths)
            for j, g in enumerate(guesses)
            if t.label == g.label
        ),
        reverse=True,
    )
    matched, used = {}, set()
    for iou, i, j in pairs:
        if i not in matched and j not in used and iou > 0:
            matched[i] = iou
            used.add(j)
    return [matched.get(i, 0.0) for i in range(len(truths))] + [0.0] * (len(guesses) - len(used))


def segment_iou(scene: Scene, prompt: str, text: str, mask_tokenizer, size: int = 256) -> float:
    """IoU of the answered mask with the thing's own, at `size` pixels; 0 where the answer holds no mask."""
    index = find(scene, prompt.removeprefix("segment "))[0]
    for detection in parse_detections(text)[0][:1]:
        if detection.codes:
            guess = mask_tokenizer.codes_to_mask(detection.codes, detection.box, size, size)
            return mask_iou(guess, mask(scene, index, size))
    return 0.0


def score(scenes, rows, answers, mask_tokenizer) -> dict[str, float]:
    """The figures of the table from the answers: shares that are right, and mean IoUs."""
    found = defaultdict(list)
    for (index, task, prompt, truth), text in zip(rows, answers, strict=True):
        scene = scenes[index]
        if task == "caption":
            found["caption"].append(caption_is_true(scene, text))
            found[f"caption of {len(scene.things)}"].append(found["caption"][-1])
        elif task == "detect":
            ious = detection_ious(truth, text)
            asked_for = "two names" if ";" in prompt else "one name"
            for name in ("detect", f"detect, {asked_for}"):
                found[f"{name}: mean IoU"] += ious
                found[f"{name}: IoU over 0.5"] += [iou > 0.5 for iou in ious]
        elif task == "segment":
            found["segment: mean IoU"].append(segment_iou(scene, prompt, text, mask_tokenizer))
        elif task == "absent":
            found["absent: empty answer"].append(text == "")
        else:
            found[task].append(text == truth)
    return {name: float(np.mean(values)) for name, values in sorted(found.items())}


# --------------------------------------------------------------------------------------------------- attention


def attention_in_box(model, processor, scenes: list[Scene], pictures: list[Image.Image]) -> dict[str, dict[str, float]]:
    """How much of the attention to the picture falls inside the box of the object that a token is about.

    For the colour word of an answer and for the four location tokens of a detection. Each token's best head is
    chosen on one half of the scenes and measured on the other. `share` is the mean share of the head's attention
    to image tokens that falls inside the box, a patch counting by the part of it that the box covers (`share_inside`
    of attention_maps.py); `area` is the box's mean share of the picture's area. An answer without these tokens is
    left out, and so is a token that fewer than two scenes have.
    """
    shares, areas = defaultdict(list), defaultdict(list)
    for scene, picture in zip(scenes, pictures, strict=True):
        rng = np.random.default_rng([4, scene.seed])
        pair = ask(scene, "colour", rng)
        if pair is None or len(scene.things) < 2:
            continue
        prompt, colour = pair
        description = prompt.removeprefix("answer en what colour is the ").removesuffix("?")
        box = scene.things[find(scene, description)[0]].box
        looked = answer_attention(model, processor, picture, prompt, colour)
        found = [("colour word", 0, looked)]
        looked = answer_attention(model, processor, picture, f"detect {description}")
        if len(looked.tokens) >= 4 and all(token.startswith("<loc") for token in looked.tokens[:4]):
            found += [(side, token, looked) for token, side in enumerate(("y1", "x1", "y2", "x2"))]
        for name, token, looked in found:
            layers, heads = looked.decoder.shape[:2]
            shares[name].append(
                [[share_inside(looked.to_image(i, j, token), box) for j in range(heads)] for i in range(layers)]
            )
            areas[name].append((box[2] - box[0]) * (box[3] - box[1]))
    results = {}
    for name, values in shares.items():
        values, half = np.array(values), len(values) // 2  # [scenes, layers, H]
        if half == 0:
            continue
        layer, head = np.unravel_index(values[:half].mean(0).argmax(), values.shape[1:])
        share, area = float(values[half:, layer, head].mean()), float(np.mean(areas[name][half:]))
        results[name] = {"layer": int(layer), "head": int(head), "share": share, "area": area, "times": share / area}
    return results


# --------------------------------------------------------------------------------------------------- the command


def evaluate(model, processor, mask_tokenizer, scenes: int = 1000, renderer: str = "own") -> dict[str, float]:
    """The figures for held-out seeds 0 to scenes - 1. Raises ValueError for an unknown renderer or number."""
    if renderer not in RENDERERS:
        raise ValueError(f"renderer is {renderer!r}, expected one of {', '.join(RENDERERS)}")
    if not 1 <= scenes <= TRAIN_SEEDS:
        raise ValueError(f"scenes is {scenes}, expected 1 to {TRAIN_SEEDS:,}, the number of held-out scenes")
    truths = [make_scene(seed) for seed in range(scenes)]
    rows = make_questions(truths, mask_codes(mask_tokenizer))
    pictures = [RENDERERS[renderer](scene) for scene in truths]
    return score(truths, rows, answer_all(model, processor, pictures, rows), mask_tokenizer)


def print_table(results: dict[str, dict[str, float]]) -> None:
    """Print one line a figure: the goal, then what each renderer's pictures gave."""
    renderers = list(results)
    print("| task | goal | " + " | ".join(f"{name} renderer" for name in renderers) + " |")
    print("|---|---|" + "---|" * len(renderers))
    names = list(GOALS) + [name for name in results[renderers[0]] if name not in GOALS]
    for name in names:
        goal = f"{GOALS[name]:.2f}" if name in GOALS else ""
        print(
            f"| {name} | {goal} | " + " | ".join(f"{results[r].get(name, float('nan')):.3f}" for r in renderers) + " |"
        )


def print_attention(attention: dict[str, dict[str, float]]) -> None:
    """Print the table of `attention_in_box`."""
    if not attention:
        print("\nno figures for attention: fewer than two scenes of two or more things were answered as expected")
        return
    print("\n| attention of | best layer, head | share inside the box | box's share of the picture | times |")
    print("|---|---|---|---|---|")
    for name, row in attention.items():
        print(
            f"| {name} | {row['layer']}, {row['head']} | {row['share']:.2f} | {row['area']:.2f} | {row['times']:.1f} |"
        )


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns 0, or 1 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m paligemma.world.evaluation", description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default=str(ASSETS / "tiny-paligemma"), help="folder of the model")
    parser.add_argument("--scenes", type=whole, default=1000, help="how many held-out scenes")
    parser.add_argument("--renderer", choices=[*RENDERERS, "both"], default="both")
    parser.add_argument("--masks", default=str(ASSETS / "mask-tokenizer"), help="folder of the mask tokenizer")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args(arguments)
    try:
        model, processor = load_pretrained(args.model)
        mask_tokenizer = load_mask_tokenizer(args.masks)
        renderers = list(RENDERERS) if args.renderer == "both" else [args.renderer]
        results = {name: evaluate(model, processor, mask_tokenizer, args.scenes, name) for name in renderers}
        print_table(results)
        scenes = [make_scene(seed) for seed in range(min(args.scenes, 400))]
        attention = attention_in_box(model, processor, scenes, [draw(scene) for scene in scenes])
        print_attention(attention)
        if args.json:
            figures = {"scenes": args.scenes, **results, "attention": attention}
            with write_atomically(args.json) as partial:
                partial.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
