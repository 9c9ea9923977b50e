"""Read a folder of examples: what people have, turned into pictures, prompts and answers.

    DIR/train/annotations.jsonl    {"image": "1.png", "prefix": "caption en", "suffix": "a dog"}, one a line
    DIR/valid/annotations.jsonl    the same; valid may be called val, and test is read as well
    DIR/annotations.jsonl          or one file for all, of which every fifth picture is kept for validation

The format of Roboflow's maestro and of big_vision's jsonl datasets; pictures lie beside the file, or at the path that
it gives. In place of annotations.jsonl a folder may hold boxes and outlines as other programs write them:

    _annotations.coco.json         COCO: boxes in pixels, x y width height; polygons
    images/ labels/ ../data.yaml   YOLO: class x y width height (or a polygon), in fractions of the picture

For these each picture is asked `detect a ; b ; c` with the names of all classes, and answered with its boxes. With a
mask tokenizer, and outlines for all objects of a picture, it is asked `segment a ; b ; c`, and answered with masks.

Nothing is skipped silently: what cannot be read is a problem with file and line.
"""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw

from ..locations import Detection, format_detections
from ..processing_paligemma import to_rgb
from ..segmentation import MaskTokenizer

SPLITS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
JSONL, COCO = "annotations.jsonl", ("_annotations.coco.json", "annotations.json", "annotations.coco.json")
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}


@dataclass(frozen=True)
class Example:
    """One question about one picture, and where it is written: `train/annotations.jsonl:12`."""

    image: Path
    prompt: str
    answer: str
    where: str

    def picture(self) -> Image.Image:
        """The picture as the processor sees it. Raises OSError when it cannot be read."""
        with Image.open(self.image) as picture:
            return to_rgb(picture)


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with the examples. An error stops the training; the rest is for you to judge."""

    where: str
    what: str
    is_error: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {'error' if self.is_error else 'warning'}: {self.what}"


@dataclass
class Examples:
    """What a folder holds: examples by split, and what could not be read."""

    folder: Path
    splits: dict[str, list[Example]] = field(default_factory=lambda: {name: [] for name in SPLITS})
    problems: list[Problem] = field(default_factory=list)
    mask_tokenizer: MaskTokenizer | None = None  # turns outlines into <seg> tokens

    def __iter__(self) -> Iterator[Example]:
        return (example for examples in self.splits.values() for example in examples)

    def name(self, path: Path) -> str:
        """A path as messages give it: from the folder on."""
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path)


def read_folder(folder: str | Path, mask_tokenizer: MaskTokenizer | None = None) -> Examples:
    """Read the examples of a folder in any of the layouts above; outlines become masks with a `mask_tokenizer`.

    Raises FileNotFoundError for a folder that is missing or holds none of them.
    """
    found = Examples(Path(folder), mask_tokenizer=mask_tokenizer)
    if not found.folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    for split, names in SPLITS.items():
        for part in (found.folder / name for name in names):
            if part.is_dir():
                found.splits[split] += read_split(found, part)
    if not any(found.splits.values()) and not found.problems:
        everything = read_split(found, found.folder)
        pictures = sorted({example.image for example in everything})
        kept = set(pictures[4::5])  # by picture: a picture in both parts would make the validation too easy
        for example in everything:
            found.splits["valid" if example.image in kept else "train"].append(example)
    if not any(found.splits.values()) and not found.problems:
        raise FileNotFoundError(
            f"{folder} holds no examples, expected train/{JSONL} and valid/{JSONL}, or {JSONL}, or COCO or YOLO files"
        )
    return found


def read_split(found: Examples, part: Path) -> list[Example]:
    """The examples of one folder, in whichever format it holds."""
    if (part / JSONL).is_file():
        return read_jsonl(found, part / JSONL)
    for name in COCO:
        if (part / name).is_file():
            return read_coco(found, part / name)
    if (part / "labels").is_dir():
        return read_yolo(found, part)
    return []


def read_jsonl(found: Examples, path: Path) -> list[Example]:
    """Lines {"image", "prefix", "suffix"}; the picture lies beside the file, or below the whole folder."""
    examples = []
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)  # some editors of Windows write one
    for number, line in enumerate(content.splitlines(), start=1):
        where = f"{found.name(path)}:{number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line.decode("utf-8"))
        except ValueError as error:
            found.problems.append(Problem(where, f"this is no line of JSON ({error})"))
            continue
        keys = ("image", "prefix", "suffix")
        wrong = [key for key in keys if not isinstance(values, dict) or not isinstance(values.get(key), str)]
        if wrong:
            found.problems.append(
                Problem(where, f"{' and '.join(wrong)} missing or no text, expected {', '.join(keys)}")
            )
            continue
        image = path.parent / values["image"]
        if not image.is_file() and (found.folder / values["image"]).is_file():
            image = found.folder / values["image"]
        examples.append(Example(image, values["prefix"], values["suffix"], where))
    return examples


def example_of_objects(image: Path, classes: list[str], objects: list[Detection], where: str) -> Example:
    """`detect` (or `segment`) every class, and the answer in the order of the classes, then from top to bottom."""
    objects = sorted(objects, key=lambda one: (classes.index(one.label), one.box))
    task = "segment" if objects and all(one.codes for one in objects) else "detect"
    return Example(image, f"{task} {' ; '.join(classes)}", format_detections(objects), where)


def with_mask(one: Detection, polygons: list[list[float]], tokenizer: MaskTokenizer | None) -> Detection:
    """The detection with the codes of its outlines: lists x y x y ..., in fractions of the picture."""
    if tokenizer is None or not polygons:
        return one
    side = 1024  # fine enough for an outline, whatever the picture's size
    canvas = Image.new("1", (side, side))
    for polygon in polygons:
        points = [(x * side, y * side) for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
        ImageDraw.Draw(canvas).polygon(points, fill=1)
    return Detection(one.label, one.box, tuple(tokenizer.mask_to_codes(np.array(canvas), one.box)))


def read_coco(found: Examples, path: Path) -> list[Example]:
    """COCO: `bbox` is x, y, width, height in pixels of the picture."""
    name = found.name(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        classes = {one["id"]: label_of(one["name"]) for one in values["categories"]}
        images = {one["id"]: one for one in values["images"]}
        pictures = {key: path.parent / str(one["file_name"]) for key, one in images.items()}
        annotations = list(values["annotations"])
    except (ValueError, KeyError, TypeError) as error:
        found.problems.append(Problem(name, f"this is no COCO file: {type(error).__name__} {error}"))
        return []
    used = [one.get("category_id") for one in annotations if isinstance(one, dict)]
    asked = sorted({label for key, label in classes.items() if key in used})  # Roboflow adds a class that none has
    objects: dict[object, list[Detection]] = {key: [] for key in images}
    for index, one in enumerate(annotations):
        where = f"{name}: annotations[{index}]"
        try:
            image, label, (x, y, width, height) = images[one["image_id"]], classes[one["category_id"]], one["bbox"]
            across, down = image["width"], image["height"]
            if not across > 0 or not down > 0:
                raise ValueError(f"the picture is {across} x {down} pixels, expected 1 x 1 or more")
            box = clipped(label, y / down, x / across, (y + height) / down, (x + width) / across)
            polygons = one.get("segmentation")
            polygons = polygons if isinstance(polygons, list) else []  # run lengths stay boxes
            polygons = [[v / (down if i % 2 else across) for i, v in enumerate(polygon)] for polygon in polygons]
            objects[one["image_id"]].append(with_mask(box, polygons, found.mask_tokenizer))
        except (KeyError, TypeError, ValueError) as error:
            found.problems.append(Problem(where, f"it cannot be read: {type(error).__name__} {error}"))
    return [
        example_of_objects(picture, asked, objects[key], f"{name}: {images[key]['file_name']}")
        for key, picture in pictures.items()
    ]


def read_yolo(found: Examples, part: Path) -> list[Example]:
    """YOLO: labels/NAME.txt beside images/NAME.png, lines `class x y width height`, the centre, in fractions.

    A line of more numbers is a polygon. The names of the classes stand in data.yaml.
    """
    names = [part / "data.yaml", part.parent / "data.yaml", found.folder / "data.yaml"]
    names = [path for path in names if path.is_file()]
    if not names:
        found.problems.append(Problem(found.name(part / "labels"), "there is no data.yaml, which names the classes"))
        return []
    try:
        classes = yolo_classes(yaml.safe_load(names[0].read_text(encoding="utf-8"))["names"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        found.problems.append(Problem(found.name(names[0]), f"it names no classes: {type(error).__name__} {error}"))
        return []
    pictures = {path.stem: path for path in sorted((part / "images").glob("*")) if path.suffix.lower() in PICTURES}
    known, labels = ", ".join(map(str, classes)), list(classes.values())
    examples = []
    for path in sorted((part / "labels").glob("*.txt")):
        objects = []
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{found.name(path)}:{number}"
            try:
                index, *numbers = line.split()
                if int(index) not in classes:
                    raise ValueError(f"the class is {index}, expected one of those in {names[0].name}: {known}")
                objects.append(yolo_object(classes[int(index)], list(map(float, numbers)), found.mask_tokenizer))
            except ValueError as error:
                found.problems.append(Problem(where, f"{line.strip()[:60]!r} cannot be read: {error}"))
        image = pictures.pop(path.stem, part / "images" / f"{path.stem}.png")
        examples.append(example_of_objects(image, labels, objects, found.name(path)))
    for stem, image in pictures.items():
        what = f"it is left out, as there is no labels/{stem}.txt: an empty one says that it shows none of the classes"
        found.problems.append(Problem(found.name(image), what, False))
    return examples


def yolo_classes(names: list | dict) -> dict[int, str]:
    """The classes in data.yaml by their numbers: a list counts from 0. Raises TypeError or ValueError otherwise."""
    if not isinstance(names, list | dict):
        raise TypeError(f"names is {names!r}, expected a list")
    numbered = names.items() if isinstance(names, dict) else enumerate(names)
    return {int(number): label_of(name) for number, name in numbered}


def label_of(name: object) -> str:
    """The name of a class as a label. Raises ValueError for one that holds `;`, `<` or `>`, which separate objects."""
    label = str(name)
    if any(sign in label for sign in ";<>"):
        raise ValueError(f"a class is named {label!r}, expected none of ';', '<' and '>': rename it")
    return label


def yolo_object(label: str, numbers: list[float], tokenizer: MaskTokenizer | None = None) -> Detection:
    """A box by centre and size, or a polygon with its box. Raises ValueError for other numbers."""
    if len(numbers) == 4:
        x, y, width, height = numbers
        return clipped(label, y - height / 2, x - width / 2, y + height / 2, x + width / 2)
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"{len(numbers)} numbers came after the class, expected 4, or a polygon of 6 or more")
    xs, ys = numbers[::2], numbers[1::2]
    return with_mask(clipped(label, min(ys), min(xs), max(ys), max(xs)), [numbers], tokenizer)


def clipped(label: str, y1: float, x1: float, y2: float, x2: float) -> Detection:
    """A detection whose box is cut at the picture's edges. Raises ValueError when it lies outside by more than 2 %."""
    if min(y1, x1) < -0.02 or max(y2, x2) > 1.02:
        raise ValueError(f"the box {y1:.2f} {x1:.2f} {y2:.2f} {x2:.2f} (of 1) leaves the picture")
    return Detection(label, tuple(min(max(side, 0.0), 1.0) for side in (y1, x1, y2, x2)))
