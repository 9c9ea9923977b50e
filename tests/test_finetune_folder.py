"""A folder of examples: every layout is read, and each mistake that people make is named with file and line."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from paligemma import ASSETS, load_pretrained
from paligemma.finetune.check import check_examples
from paligemma.finetune.folder import read_folder
from paligemma.locations import box_to_tokens, parse_detections
from paligemma.segmentation import load_mask_tokenizer, mask_iou
from paligemma.world.scenes import draw, make_scene


@pytest.fixture(scope="module")
def tokenizer():
    return load_pretrained(ASSETS / "tiny-paligemma")[1].tokenizer


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def scene_row(folder, seed, size=(96, 64)):
    """A picture of one object, wider than high, and what is asked about it."""
    scene = make_scene(seed, max_things=1)
    folder.mkdir(parents=True, exist_ok=True)
    draw(scene, 96).resize(size).save(folder / f"{seed}.png")
    thing = scene.things[0]
    label = f"{thing.colour} {thing.shape}"
    return {"image": f"{seed}.png", "prefix": f"detect {label}", "suffix": f"{box_to_tokens(thing.box)} {label}"}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """train/ and valid/ in the format of maestro."""
    folder = tmp_path_factory.mktemp("good")
    for split, seeds in (("train", range(12)), ("valid", range(20, 24))):
        rows = [scene_row(folder / split, seed) for seed in seeds]
        write_lines(folder / split / "annotations.jsonl", rows)
    return folder


def planted(good, tmp_path, change, split="train"):
    """A copy of the folder whose lines `change(rows)` has changed."""
    folder = tmp_path / "planted"
    shutil.copytree(good, folder)
    path = folder / split / "annotations.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    write_lines(path, change(rows, folder) or rows)
    return folder


def test_a_good_folder_has_no_problem(good, tokenizer):
    found = read_folder(good)
    assert [len(found.splits[split]) for split in ("train", "valid", "test")] == [12, 4, 0]
    assert check_examples(found, tokenizer) == []
    first = found.splits["train"][0]
    assert first.where == "train/annotations.jsonl:1" and first.picture().size == (96, 64)


def missing(rows, folder):
    rows[2]["image"] = "no.png"


def beyond(rows, folder):
    rows[3]["suffix"] = "<loc0000><loc0100><loc1024><loc0500> red circle"


def reversed_box(rows, folder):
    rows[4]["suffix"] = "<loc0700><loc0100><loc0200><loc0500> red circle"


def three_numbers(rows, folder):
    rows[4]["suffix"] = "<loc0100><loc0200><loc0500> red circle"


def changed_over(rows, folder):
    for row in rows:
        (found,), _ = parse_detections(row["suffix"])
        y1, x1, y2, x2 = found.box
        row["suffix"] = f"{box_to_tokens((x1, y1, x2, y2))} {found.label}"


def space(rows, folder):
    rows[0]["prefix"], rows[5]["prefix"] = "detect ring", "detect  ring"


def both_splits(rows, folder):
    shutil.copy(folder / "train/3.png", folder / "valid/other name.png")
    rows[1]["image"] = "other name.png"


def empty(rows, folder):
    rows[6] |= {"prefix": "caption en", "suffix": " "}


def in_bytes(rows, folder):
    rows[7]["suffix"] = "ЖЯЮ Ψ"


def long(rows, folder):
    rows[8]["suffix"] = "red circle " * 200


def eos_written(rows, folder):
    rows[9]["suffix"] += "<eos>"


def image_written(rows, folder):
    rows[9]["prefix"] = "<image>" + rows[9]["prefix"]


def no_prefix(rows, folder):
    del rows[10]["prefix"]


def broken_picture(rows, folder):
    (folder / "train/11.png").write_bytes(b"\x89PNG half a picture")


@pytest.mark.parametrize(
    "change, split, where, what, is_error",
    [
        (missing, "train", "train/annotations.jsonl:3", "there is no picture", True),
        (beyond, "train", "train/annotations.jsonl:4", "<loc1024> is no token, expected <loc0000> to <loc1023>", True),
        (reversed_box, "train", "train/annotations.jsonl:5", "expected y1 x1 y2 x2 with y1 < y2 and x1 < x2", True),
        (three_numbers, "train", "train/annotations.jsonl:5", "3 location tokens", True),
        (changed_over, "train", "train/annotations.jsonl:", "x and y may be changed over", False),
        (space, "train", "train/annotations.jsonl:6", "differ by space or case alone", True),
        (both_splits, "valid", "valid/annotations.jsonl:2", "is that of train/annotations.jsonl:4", True),
        (empty, "train", "train/annotations.jsonl:7", "the suffix is empty", True),
        (in_bytes, "train", "train/annotations.jsonl:8", "tokens are single bytes", False),
        (long, "train", "train/annotations.jsonl:9", "expected at most 256", True),
        (eos_written, "train", "train/annotations.jsonl:10", "the suffix holds <eos>", True),
        (image_written, "train", "train/annotations.jsonl:10", "the prefix holds <image>", True),
        (no_prefix, "train", "train/annotations.jsonl:11", "prefix missing or no text", True),
        (broken_picture, "train", "train/annotations.jsonl:12", "cannot be opened", True),
    ],
)
def test_each_mistake_is_named_with_its_line_and_alone(good, tmp_path, tokenizer, change, split, where, what, is_error):
    problems = check_examples(read_folder(planted(good, tmp_path, change, split)), tokenizer)
    assert [problem.what for problem in problems if what in problem.what] and len(problems) == 1, problems
    assert problems[0].where.startswith(where) and problems[0].is_error == is_error
    assert str(problems[0]).startswith(where) and "\n" not in str(problems[0])


@pytest.mark.parametrize(
    "line", [b"{", b"not json", b"[1]", b"null", b'{"image": 1}', b"\xff\xfe", b'{"image": "a"} x']
)
def test_a_line_that_is_none_is_named(good, tmp_path, tokenizer, line):
    folder = tmp_path / "copy"
    shutil.copytree(good, folder)
    with (folder / "train/annotations.jsonl").open("ab") as file:
        file.write(line + b"\n\n")
    (problem,) = check_examples(read_folder(folder), tokenizer)
    assert problem.where == "train/annotations.jsonl:13" and problem.is_error


def test_one_file_is_split_by_picture(good, tmp_path, tokenizer):
    rows = [scene_row(tmp_path, seed) for seed in range(10)]
    rows += [{**row, "prefix": "caption en", "suffix": "a ring"} for row in rows]
    write_lines(tmp_path / "annotations.jsonl", rows)
    found = read_folder(tmp_path)
    trained, kept = ({example.image.name for example in found.splits[split]} for split in ("train", "valid"))
    assert len(trained) == 8 and len(kept) == 2 and not trained & kept and len(list(found)) == 20
    assert check_examples(found, tokenizer) == []


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"holds no examples, expected train/annotations\.jsonl"):
        read_folder(tmp_path)


def test_without_validation_there_is_a_warning(good, tmp_path, tokenizer):
    shutil.copytree(good / "train", tmp_path / "train")
    (problem,) = check_examples(read_folder(tmp_path), tokenizer)
    assert "no example to validate on" in problem.what and not problem.is_error


# --------------------------------------------------------------------------------------------------- COCO and YOLO


def two_objects(folder, name="one.png", width=200, height=100):
    """A picture with a red field at x 20..60, y 10..50 and a blue one at x 120..180, y 40..90."""
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    pixels[10:50, 20:60] = (220, 20, 20)
    pixels[40:90, 120:180] = (20, 20, 220)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


EXPECTED = {"blue": (0.4, 0.6, 0.9, 0.9), "red": (0.1, 0.1, 0.5, 0.3)}  # y1 x1 y2 x2


def check_boxes(example):
    detections, dropped = parse_detections(example.answer)
    assert not dropped and [found.label for found in detections] == ["blue", "red"]
    for found in detections:
        assert found.box == pytest.approx(EXPECTED[found.label], abs=1e-3)
    assert example.prompt == "detect blue ; red"


def coco(tmp_path, **changes):
    values = {
        "categories": [{"id": 0, "name": "all"}, {"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
        "images": [{"id": 7, "file_name": "one.png", "width": 200, "height": 100}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [20, 10, 40, 40]},
            {"image_id": 7, "category_id": 2, "bbox": [120, 40, 60, 50]},
        ],
        **changes,
    }
    two_objects(tmp_path / "train")
    (tmp_path / "train/_annotations.coco.json").write_text(json.dumps(values), encoding="utf-8")
    return read_folder(tmp_path)


def test_coco_boxes_become_answers(tmp_path, tokenizer):
    found = coco(tmp_path)
    (example,) = found.splits["train"]
    check_boxes(example)
    assert example.image.is_file() and not found.problems


def test_problems_of_a_coco_file_are_named(tmp_path):
    found = coco(tmp_path, annotations=[{"image_id": 7, "category_id": 9, "bbox": [0, 0, 1, 1]}, {"image_id": 7, "category_id": 1, "bbox": [150, 0, 100, 10]}, 5])  # fmt: skip  # noqa: E501
    assert [problem.where for problem in found.problems] == [
        f"train/_annotations.coco.json: annotations[{index}]" for index in range(3)
    ]
    assert "leaves the picture" in found.problems[1].what
    (tmp_path / "train/_annotations.coco.json").write_text("{}", encoding="utf-8")
    assert "this is no COCO file" in read_folder(tmp_path).problems[0].what


@pytest.mark.parametrize(
    ("changes", "where", "what"),
    [
        ({"images": [{"id": 7, "width": 200, "height": 100}]}, "", "no COCO file: KeyError 'file_name'"),
        ({"images": [{"id": 7, "file_name": "one.png", "width": 200, "height": 0}]}, ": annotations[0]", "200 x 0"),
        ({"categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue; sky"}]}, "", "'blue; sky'"),
        (
            {"annotations": [{"image_id": 7, "category_id": [1], "bbox": [0, 0, 9, 9]}]},
            ": annotations[0]",
            "unhashable",
        ),
    ],
)
def test_no_coco_file_ends_in_a_traceback(tmp_path, changes, where, what):
    problem = coco(tmp_path, **changes).problems[0]
    assert problem.where == f"train/_annotations.coco.json{where}" and what in problem.what


def test_files_of_windows_may_begin_with_a_byte_order_mark(tmp_path):
    coco(tmp_path / "coco")
    two_objects(tmp_path / "lines/train")
    (tmp_path / "lines/train/annotations.jsonl").write_text(
        '{"image": "one.png", "prefix": "caption en", "suffix": "red"}\n', encoding="utf-8-sig"
    )
    path = tmp_path / "coco/train/_annotations.coco.json"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    for folder in (tmp_path / "coco", tmp_path / "lines"):
        found = read_folder(folder)
        assert len(found.splits["train"]) == 1 and not found.problems


def test_outlines_become_masks(tmp_path):
    """A triangle in COCO's pixels and one in YOLO's fractions; a picture with one box without outline stays boxes."""
    tokenizer = load_mask_tokenizer(ASSETS / "mask-tokenizer")
    outline = [[20, 50, 60, 50, 40, 10]]
    red = {"image_id": 7, "category_id": 1, "bbox": [20, 10, 40, 40], "segmentation": outline}
    blue = {"image_id": 7, "category_id": 2, "bbox": [120, 40, 60, 50]}
    coco(tmp_path, annotations=[red])
    (example,) = read_folder(tmp_path, tokenizer).splits["train"]
    assert example.prompt == "segment red"
    ((found,), dropped) = parse_detections(example.answer)
    triangle = np.zeros((100, 200), dtype=bool)
    for y in range(10, 50):
        half = (y - 10) / 40 * 20
        triangle[y, round(40 - half) : round(40 + half)] = True
    assert not dropped and mask_iou(tokenizer.codes_to_mask(found.codes, found.box, 200, 100), triangle) > 0.85
    coco(tmp_path, annotations=[red, blue])
    assert read_folder(tmp_path, tokenizer).splits["train"][0].prompt == "detect blue ; red"
    assert read_folder(tmp_path).splits["train"][0].prompt == "detect blue ; red"

    two_objects(tmp_path / "yolo/train/images")
    (tmp_path / "yolo/train/labels").mkdir()
    (tmp_path / "yolo/data.yaml").write_text("names: [red]\n", encoding="utf-8")
    (tmp_path / "yolo/train/labels/one.txt").write_text("0 0.1 0.5 0.3 0.5 0.2 0.1\n", encoding="utf-8")
    (example,) = read_folder(tmp_path / "yolo", tokenizer).splits["train"]
    assert parse_detections(example.answer)[0][0].codes == found.codes


@pytest.mark.parametrize("names", ["names: [red, blue]\n", "names:\n  0: red\n  1: blue\n"])
@pytest.mark.parametrize("polygons", [False, True])
def test_yolo_boxes_become_answers(tmp_path, names, polygons):
    two_objects(tmp_path / "train/images")
    (tmp_path / "train/labels").mkdir()
    (tmp_path / "data.yaml").write_text(names, encoding="utf-8")
    lines = ["0 0.2 0.3 0.2 0.4", "1 0.75 0.65 0.3 0.5"]
    if polygons:
        lines = ["0 0.1 0.1 0.3 0.1 0.3 0.5 0.1 0.5", "1 0.6 0.4 0.9 0.9 0.6 0.9"]
    (tmp_path / "train/labels/one.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = read_folder(tmp_path)
    (example,) = found.splits["train"]
    assert not found.problems and example.image.is_file()
    detections, _ = parse_detections(example.answer)
    assert {one.label: one.box for one in detections} == {
        label: pytest.approx(box, abs=1e-3) for label, box in EXPECTED.items()
    }


@pytest.mark.parametrize(
    "line",
    ["5 0.5 0.5 0.1 0.1", "-1 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1", "0 a b c d", "0 1.5 0.5 0.1 0.1", "0 0.5 0.5 0 0.1"],
)
def test_lines_of_yolo_that_are_none_are_named(tmp_path, line):
    two_objects(tmp_path / "train/images")
    (tmp_path / "train/labels").mkdir()
    (tmp_path / "data.yaml").write_text("names: [red, blue]\n", encoding="utf-8")
    (tmp_path / "train/labels/one.txt").write_text(f"0 0.2 0.3 0.2 0.4\n{line}\n", encoding="utf-8")
    (problem,) = read_folder(tmp_path).problems
    assert problem.where == "train/labels/one.txt:2" and "cannot be read" in problem.what


@pytest.mark.parametrize("names", ["names: {1: red, 2: blue}\n", "names: {'1': red, '2': blue}\n"])
def test_yolo_classes_have_the_numbers_that_they_are_given(tmp_path, names):
    two_objects(tmp_path / "train/images")
    (tmp_path / "train/labels").mkdir()
    (tmp_path / "data.yaml").write_text(names, encoding="utf-8")
    (tmp_path / "train/labels/one.txt").write_text("1 0.2 0.3 0.2 0.4\n", encoding="utf-8")
    found = read_folder(tmp_path)
    assert found.splits["train"][0].answer.endswith(" red") and not found.problems


def test_one_word_is_no_list_of_yolo_classes(tmp_path):
    two_objects(tmp_path / "train/images")
    (tmp_path / "train/labels").mkdir()
    (tmp_path / "data.yaml").write_text("names: red\n", encoding="utf-8")
    (tmp_path / "train/labels/one.txt").write_text("0 0.2 0.3 0.2 0.4\n", encoding="utf-8")
    (problem,) = read_folder(tmp_path).problems
    assert problem.where == "data.yaml" and "'red', expected a list" in problem.what


def test_a_yolo_picture_without_labels_is_named(tmp_path):
    """YOLO takes it for a picture of nothing; whether it is one, or was forgotten, only its owner can say."""
    for name in ("one.png", "two.png"):
        two_objects(tmp_path / "train/images", name)
    (tmp_path / "train/labels").mkdir()
    (tmp_path / "data.yaml").write_text("names: [red]\n", encoding="utf-8")
    (tmp_path / "train/labels/one.txt").write_text("0 0.2 0.3 0.2 0.4\n", encoding="utf-8")
    found = read_folder(tmp_path)
    assert len(found.splits["train"]) == 1
    (problem,) = found.problems
    assert problem.where == "train/images/two.png" and "no labels/two.txt" in problem.what and not problem.is_error
