"""From drawings to a folder of examples: paper, places and boxes, names, splits, and what is refused."""

import io
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from paligemma.finetune import check_examples, drawings, read_folder
from paligemma.finetune.drawings import PROMPT, place, read_drawings, without_paper, write_folder
from paligemma.locations import tokens_to_box


def on_paper(colour="red", mode="RGB", box=(30, 20, 90, 60)):
    """A ring on white paper: what is inside of it is white, too."""
    picture = Image.new(mode, (120, 100), "white")
    ImageDraw.Draw(picture).ellipse(box, outline=colour, width=6)
    return picture


def save(folder, **pictures):
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        picture.save(folder / f"{name.replace('__', ' ')}.png")


def test_paper_becomes_transparent_and_what_is_enclosed_stays():
    drawing = without_paper(on_paper())
    assert drawing.mode == "RGBA" and drawing.size == (61, 41)  # the ring's own box
    alpha = np.asarray(drawing.getchannel("A"))
    assert alpha[0, 0] == 0  # the corner beside the ring
    assert alpha[20, 30] == 255 and drawing.getpixel((30, 20))[:3] == (255, 255, 255)  # the ring's white inside
    assert alpha[0, 30] == 255 and drawing.getpixel((30, 1))[:3] == (255, 0, 0)


def test_a_drawing_that_touches_the_edges_keeps_its_paper_apart():
    """A line across the paper parts it in two; both parts are paper."""
    picture = Image.new("RGB", (60, 40), "white")
    ImageDraw.Draw(picture).line([(0, 20), (59, 20)], fill="black", width=4)
    alpha = np.asarray(without_paper(picture).getchannel("A"))
    assert alpha.shape == (4, 60) and (alpha == 255).all()


def test_a_transparent_ground_is_taken_as_it_is():
    picture = Image.new("RGBA", (50, 50), (255, 255, 255, 0))
    ImageDraw.Draw(picture).rectangle((10, 10, 29, 39), fill=(255, 255, 255, 255))  # white on nothing
    assert without_paper(picture).size == (20, 30)


def test_an_unused_alpha_channel_is_paper():
    assert without_paper(on_paper(mode="RGBA")).size == (61, 41)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1"])
def test_other_modes_of_pictures(mode):
    assert without_paper(on_paper("black").convert(mode)).size == (61, 41)


@given(seed=st.integers(0, 10_000), width=st.integers(1, 90), height=st.integers(1, 90))
@settings(max_examples=60, deadline=None)
def test_the_box_is_where_the_drawing_is(seed, width, height):
    """Compared with the picture of the same seed whose drawing has another colour: they differ inside the box alone."""
    pictures, boxes = zip(*(place(Image.new("RGBA", (width, height), c), seed) for c in ("red", "blue")), strict=True)
    assert boxes[0] == boxes[1] and pictures[0].size == (96, 96) and pictures[0].mode == "RGB"
    rows, columns = np.nonzero((np.asarray(pictures[0]) != np.asarray(pictures[1])).any(axis=-1))
    y1, x1, y2, x2 = (round(side * 96) for side in boxes[0])
    assert 0 <= y1 <= rows.min() and rows.max() < y2 <= 96
    assert 0 <= x1 <= columns.min() and columns.max() < x2 <= 96
    assert rows.min() - y1 <= 1 and y2 - 1 - rows.max() <= 1  # and the box is no larger than it has to be
    assert columns.min() - x1 <= 1 and x2 - 1 - columns.max() <= 1


def test_numbers_are_no_part_of_a_name(tmp_path):
    save(
        tmp_path,
        dog=on_paper(),
        dog__2=on_paper("blue"),
        **{"dog-3": on_paper(), "ice_cream": on_paper(), "고양이": on_paper()},
    )
    found = read_drawings(tmp_path)
    assert {name: len(versions) for name, versions in found.items()} == {"dog": 3, "ice cream": 1, "고양이": 1}


def test_folder_is_what_finetune_reads(tmp_path):
    save(tmp_path / "mine", dog=on_paper(), key=on_paper("blue"))
    save(tmp_path / "mine/held-out", dog=on_paper("green"))
    assert drawings.main([str(tmp_path / "mine"), str(tmp_path / "folder"), "--per-drawing", "8"]) == 0
    found = read_folder(tmp_path / "folder")
    assert not found.problems
    train, valid = found.splits["train"], found.splits["valid"]
    assert len(train) == 2 * 2 * 8 and len(valid) == 2 * 2  # two prompts a picture; one held-out drawing, twice
    assert {(one.prompt, one.answer) for one in train if one.prompt == PROMPT} == {(PROMPT, "dog"), (PROMPT, "key")}
    boxes = [tokens_to_box(one.answer[:36]) for one in train if one.prompt == "detect dog"]
    assert len(boxes) == 8 and all(0 <= y1 < y2 <= 1 and 0 <= x1 < x2 <= 1 for y1, x1, y2, x2 in boxes)


def test_the_shipped_check_finds_nothing_wrong(tmp_path, tiny):
    write_folder(tmp_path / "folder", {"dog": [without_paper(on_paper())]}, per_drawing=4)
    problems = check_examples(read_folder(tmp_path / "folder"), tiny[1].tokenizer)
    assert not [str(problem) for problem in problems if problem.is_error]


def test_same_seed_same_folder(tmp_path):
    for out in ("a", "b"):
        write_folder(tmp_path / out, {"dog": [without_paper(on_paper())]}, per_drawing=3, seed=5)
    write_folder(tmp_path / "c", {"dog": [without_paper(on_paper())]}, per_drawing=3, seed=6)
    text = {out: (tmp_path / out / "train/annotations.jsonl").read_text(encoding="utf-8") for out in "abc"}
    assert text["a"] == text["b"] != text["c"]
    assert all(set(json.loads(line)) == {"image", "prefix", "suffix"} for line in text["a"].splitlines())


def test_nothing_is_overwritten(tmp_path, capsys):
    save(tmp_path / "mine", dog=on_paper())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("keep", encoding="utf-8")
    assert drawings.main([str(tmp_path / "mine"), str(tmp_path / "folder")]) == 1
    assert "has something in it" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["notes.txt"]


def test_an_interruption_leaves_no_half_of_a_folder(tmp_path, monkeypatch):
    """Ctrl-C while `valid` is drawn: the same command can simply be given again."""
    real = drawings.place
    for stop in (2, 4):
        calls = []

        def place(*arguments, calls=calls, stop=stop):
            calls.append(arguments)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(drawings, "place", place)
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(KeyboardInterrupt):
            write_folder(tmp_path / "folder", {"dog": [without_paper(on_paper())]}, per_drawing=3)
        assert [path.name for path in tmp_path.iterdir()] == ["folder"] and not any((tmp_path / "folder").iterdir())
    monkeypatch.setattr(drawings, "place", real)
    counts = write_folder(tmp_path / "folder", {"dog": [without_paper(on_paper())]}, per_drawing=3)
    assert counts == {"train": 3, "valid": 1}
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["train", "valid"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_damaged_drawing_is_named(tmp_path, capsys, mode):
    save(tmp_path / "mine", dog=without_paper(on_paper()).convert(mode))
    path = tmp_path / "mine/dog.png"
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"IDAT") + 12])  # cut off in the middle of its pixels
    assert drawings.main([str(tmp_path / "mine"), str(tmp_path / "folder")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: the picture cannot be read")


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ({}, "holds no drawings"),
        ({"dog": Image.new("RGB", (40, 40), "white")}, "nothing is drawn on it"),
        ({"dog": Image.new("RGBA", (40, 40), (0, 0, 0, 0))}, "nothing is drawn on it"),
        ({"12": on_paper()}, "named by a number alone"),
    ],
)
def test_what_is_refused(tmp_path, capsys, pictures, message):
    save(tmp_path / "mine", **pictures)
    assert drawings.main([str(tmp_path / "mine"), str(tmp_path / "folder")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()


def test_a_held_out_name_must_be_trained_on(tmp_path, capsys):
    save(tmp_path / "mine", dog=on_paper())
    save(tmp_path / "mine/held-out", cat=on_paper())
    assert drawings.main([str(tmp_path / "mine"), str(tmp_path / "folder")]) == 1
    assert "cat" in capsys.readouterr().err


def test_a_letter_that_standard_output_lacks_ends_nothing(tmp_path, monkeypatch):
    """A file on standard output in Windows's cp1252 has no Korean."""
    save(tmp_path / "mine", dog=on_paper())
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="cp1252", write_through=True))
    assert drawings.main([str(tmp_path / "mine"), str(tmp_path / "강아지"), "--per-drawing", "1"]) == 0
    assert b"???: 1 pictures to train on" in output.getvalue()
