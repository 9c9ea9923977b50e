"""From a few drawings to a folder of examples: `python -m paligemma.finetune.drawings DRAWINGS DIR`.

    DRAWINGS/dog.png          any drawing on white or on nothing; the file's name is the answer
    DRAWINGS/dog 2.png        a second drawing of a dog: the number is no part of the name
    DRAWINGS/held-out/dog.png drawings to validate on: never trained on

Each drawing becomes many pictures: mirrored, turned a little, of any size and place, on grounds of all kinds. Each
picture is asked what it shows and where, in the prompts `answer en what is this?` and `detect dog`. With drawings in
`held-out`, the folder's `valid` is made of those; else it is made of the same drawings in other places, which says
nothing about how the model takes a drawing that it has not seen.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..files import write_folder_atomically
from ..locations import box_to_tokens
from ..options import print_any_letter, seed, whole
from ..processing_paligemma import to_rgb, upright
from ..stickers.scenes import ground, visible_box
from .folder import JSONL, PICTURES

HELD_OUT = "held-out"
SIZE = 96  # pixels a side; the processor resizes them to what the model wants
PROMPT = "answer en what is this?"
WHITE = 40  # how far from white a pixel at the border may be and still be paper


def read_drawings(folder: str | Path) -> dict[str, list[Image.Image]]:
    """The drawings in a folder by name, as RGBA pictures cropped to what is drawn; the paper is transparent.

    `dog.png`, `dog 2.png` and `dog-3.jpg` are three drawings named `dog`. Raises FileNotFoundError when there is
    none, ValueError for a damaged picture and one on which nothing is drawn, OSError for one that cannot be opened.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURES) if folder.is_dir() else []
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no drawings, expected pictures such as dog.png, named by what they show"
        )
    found: dict[str, list[Image.Image]] = {}
    for path in paths:
        name = re.sub(r"[ _-]*\d*$", "", path.stem).replace("_", " ").strip()
        if not name:
            raise ValueError(f"{path} is named by a number alone, expected the name of what it shows, such as dog.png")
        with Image.open(path) as picture:
            try:
                found.setdefault(name, []).append(without_paper(picture))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
    return found


def without_paper(picture: Image.Image) -> Image.Image:
    """The drawing alone: RGBA, cropped, the white around it made transparent; white inside an outline stays.

    A picture that has transparent pixels is taken as it is. Raises ValueError when nothing is left, and for a picture
    that cannot be read.
    """
    picture = upright(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        drawing = picture.convert("RGBA")
        if drawing.getchannel("A").getextrema()[0] == 255:
            drawing = None  # an alpha channel that is not used
    else:
        drawing = None
    if drawing is None:
        rgb = to_rgb(picture)
        framed = Image.new("RGB", (rgb.width + 2, rgb.height + 2), "white")  # so that the paper is one connected area
        framed.paste(rgb, (1, 1))
        marked = framed.copy()
        ImageDraw.floodfill(marked, (0, 0), (255, 0, 254), thresh=WHITE)
        paper = (np.asarray(marked) == (255, 0, 254)).all(axis=-1)
        drawing = framed.convert("RGBA")
        drawing.putalpha(Image.fromarray(np.where(paper, 0, 255).astype(np.uint8)))
    box = visible_box(drawing)
    if box is None:
        raise ValueError("nothing is drawn on it, expected a drawing on white paper or on a transparent ground")
    return drawing.crop(box)


def place(drawing: Image.Image, seed: int, size: int = SIZE) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """A picture of this drawing somewhere, and its box (y1, x1, y2, x2) in fractions of the side.

    The seed decides all: mirrored or not, turned by up to 20 degrees, from a quarter to two thirds of the picture,
    where, and on which ground.
    """
    rng = np.random.default_rng([11, seed])
    if rng.random() < 0.5:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    drawing = drawing.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    drawing = drawing.crop(visible_box(drawing))
    scale = size * rng.uniform(0.27, 0.67) / max(drawing.size)
    width, height = (max(1, round(side * scale)) for side in drawing.size)
    x, y = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
    picture = ground(seed, size)
    small = drawing.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    picture.paste(small, (x, y), small)
    return picture, (y / size, x / size, (y + height) / size, (x + width) / size)


def write_split(
    folder: Path, drawings: Mapping[str, Sequence[Image.Image]], per_drawing: int, seed: int = 0, detect: bool = True
) -> int:
    """Write `per_drawing` pictures of each drawing and annotations.jsonl into a new folder; returns how many."""
    folder.mkdir()
    lines, count = [], 0
    for name, versions in drawings.items():
        for drawing in versions:
            for _ in range(per_drawing):
                picture, box = place(drawing, seed + count)
                file = f"{count:04}.png"
                picture.save(folder / file)
                lines.append({"image": file, "prefix": PROMPT, "suffix": name})
                if detect:
                    lines.append({"image": file, "prefix": f"detect {name}", "suffix": f"{box_to_tokens(box)} {name}"})
                count += 1
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / JSONL).write_text(text, encoding="utf-8")
    return count


def write_folder(
    out: str | Path,
    train: Mapping[str, Sequence[Image.Image]],
    held_out: Mapping[str, Sequence[Image.Image]] | None = None,
    per_drawing: int = 24,
    per_held_out: int | None = None,
    seed: int = 0,
    detect: bool = True,
) -> dict[str, int]:
    """Write the folder that `python -m paligemma.finetune` reads; returns the number of pictures of each split.

    `train` and `held_out` are drawings by name (RGBA). Without `held_out`, `valid` shows the drawings of `train` in
    other places. Each drawing there gets `per_held_out` pictures, a quarter of `per_drawing` unless given. The folder
    is written whole or not at all. Raises FileExistsError for one that has something in it.
    """
    per_valid = per_held_out or max(1, per_drawing // 4)
    with write_folder_atomically(out) as fresh:
        return {
            "train": write_split(fresh / "train", train, per_drawing, seed, detect),
            "valid": write_split(fresh / "valid", held_out or train, per_valid, seed + 500_000, detect),
        }


def main(arguments: list[str] | None = None) -> int:
    """Read the drawings, write the folder; returns 0, or 1 after a line that says what is wrong."""
    print_any_letter()
    parser = argparse.ArgumentParser(prog="python -m paligemma.finetune.drawings", description=__doc__.split("\n")[0])
    parser.add_argument("drawings", metavar="DRAWINGS", help="a folder of drawings named by what they show")
    parser.add_argument("folder", metavar="DIR", help="the folder of examples to write")
    parser.add_argument("--per-drawing", type=whole, default=24, help="pictures of each drawing (default %(default)s)")
    parser.add_argument("--seed", type=seed, default=0)
    args = parser.parse_args(arguments)
    try:
        train = read_drawings(args.drawings)
        others = Path(args.drawings) / HELD_OUT
        held_out = read_drawings(others) if others.is_dir() else None
        if held_out and (strange := sorted(set(held_out) - set(train))):
            raise ValueError(f"{others} shows {', '.join(strange)}, which no drawing for training shows")
        counts = write_folder(args.folder, train, held_out, args.per_drawing, args.seed)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    whose = "drawings that are not trained on" if held_out else "the same drawings in other places"
    print(f"{args.folder}: {counts['train']} pictures to train on, {counts['valid']} of {whose} to validate on")
    print(f"next: python -m paligemma.finetune {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
