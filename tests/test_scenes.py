"""The little world: seeded, drawn true to its boxes, described truthfully."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.world import scenes
from paligemma.world.scenes import GRID, SHAPES, SIZES, TASKS, Scene, Thing, ask, draw, find, make_scene, mask

SEEDS = st.integers(0, 10_000_000)


def codes(thing):
    return range(16)


def two_things(first, second):
    """A scene with these two things, each (shape, colour, size, (y1, x1, y2, x2) in cells)."""
    things = [
        Thing(shape, colour, size, tuple(edge / GRID for edge in box), 0.0, (200, 0, 0))
        for shape, colour, size, box in (first, second)
    ]
    return Scene(0, tuple(sorted(things, key=lambda t: t.box)), (255, 255, 255), (0.0, 0.0), 0.0, 0.0)


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_boxes_lie_on_whole_cells_and_apart(seed):
    scene = make_scene(seed)
    assert 1 <= len(scene.things) <= 4
    assert list(scene.things) == sorted(scene.things, key=lambda thing: thing.box)
    for i, thing in enumerate(scene.things):
        y1, x1, y2, x2 = (edge * GRID for edge in thing.box)
        assert all(edge == int(edge) and 1 <= edge <= GRID - 1 for edge in (y1, x1, y2, x2))
        low, high = SIZES[thing.size]
        assert low <= y2 - y1 <= high and low <= x2 - x1 <= high
        for other in scene.things[:i]:
            a1, b1, a2, b2 = (edge * GRID for edge in other.box)
            assert a2 <= y1 or y2 <= a1 or b2 <= x1 or x2 <= b1


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_same_seed_same_scene_and_pixels(seed):
    first, second = make_scene(seed), make_scene(seed)
    assert first == second
    assert np.array_equal(np.asarray(draw(first)), np.asarray(draw(second)))


def test_scenes_do_not_depend_on_the_process():
    program = "from paligemma.world.scenes import *; print([repr(make_scene(s)) for s in range(5)])"
    root = Path(__file__).resolve().parent.parent
    output = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == str([repr(make_scene(seed)) for seed in range(5)])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("angle", [-12.0, 0.0, 7.3])
def test_a_shape_fills_its_box_exactly(shape, angle):
    inside = scenes.shape_mask(shape, angle, 64) > 0.02
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (0, 63, 0, 63)


def test_shapes_have_the_areas_of_geometry():
    """Areas in the unit square, from the formulas."""
    star = 5 * 0.45 * np.sin(np.pi / 5) / (2 * np.sin(2 * np.pi / 5) * (1 + np.cos(np.pi / 5)))
    expected = {
        "circle": np.pi / 4,
        "square": 1.0,
        "triangle": 0.5,
        "ring": np.pi / 4 * (1 - 0.55**2),
        "cross": 0.36 + 0.36 - 0.36**2,
        "star": star,
    }
    for shape, area in expected.items():
        assert scenes.shape_mask(shape, 0.0, 256).mean() == pytest.approx(area, abs=0.01), shape


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([64, 96, 128]))
def test_masks_lie_in_their_boxes_and_on_the_drawn_colour(seed, size):
    scene = make_scene(seed)
    plain = Scene(seed, scene.things, (255, 255, 255), (0.0, 0.0), 0.0, 0.0)
    pixels = np.asarray(draw(plain, size)).astype(int)
    for index, thing in enumerate(scene.things):
        where = mask(scene, index, size)
        assert where.any()
        ys, xs = np.nonzero(where)
        y1, x1, y2, x2 = (edge * size for edge in thing.box)
        assert y1 - 1 <= ys.min() and ys.max() <= y2 and x1 - 1 <= xs.min() and xs.max() <= x2
        # Most of the mask is fully covered; there the pixel has the thing's very colour.
        assert np.mean(np.abs(pixels[where] - thing.rgb).max(axis=1) <= 1) > 0.5


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_captions_are_true_and_can_be_read_back(seed):
    scene = make_scene(seed)
    for language in ("en", "ko"):
        text = scenes.caption(scene, language)
        assert scenes.caption_is_true(scene, text, language)
        named = [n for a, _, b in scenes.parse_caption(text, language) for n in (a, b) if n]
        assert named == [thing.name for thing in scene.things]


def test_caption_in_both_languages():
    scene = two_things(("circle", "red", "small", (4, 20, 18, 34)), ("square", "blue", "large", (30, 20, 54, 44)))
    assert scenes.caption(scene) == "a small red circle above a large blue square"
    assert scenes.caption(scene, "ko") == "작은 빨간 원이 큰 파란 사각형 위에 있다"


@pytest.mark.parametrize(
    "text, true",
    [
        ("a small red circle above a large blue square", True),
        ("a large blue square below a small red circle", True),  # the other way round
        ("a small red circle, a large blue square", True),  # nothing false, nothing left out
        ("a small red circle below a large blue square", False),
        ("a small red circle left of a large blue square", False),  # not clearly so
        ("a small red circle", False),  # one thing left out
        ("a large red circle above a large blue square", False),
        ("a small red circle above a large blue square, a small red circle", False),
        ("a small red above a large blue square", False),
        ("", False),
    ],
)
def test_caption_is_true(text, true):
    scene = two_things(("circle", "red", "small", (4, 24, 18, 38)), ("square", "blue", "large", (30, 20, 54, 44)))
    assert scenes.caption_is_true(scene, text) is true


@settings(max_examples=300, deadline=None)
@given(SEEDS, st.integers(0, 1000))
def test_answers_follow_from_the_scene(seed, question_seed):
    """Each answer is worked out again from the scene, by other means than `ask` uses."""
    scene = make_scene(seed)
    things = scene.things
    for prompt, answer in scenes.questions(scene, np.random.default_rng(question_seed), codes):
        words = prompt.removesuffix("?").split()

        def fits(query):
            parts = [w for w in query.split() if w != "thing"]
            return [t for t in things if all(w in t.name.split() for w in parts)]

        if prompt.startswith("answer en what"):
            (thing,) = fits(" ".join(words[6:]))
            assert answer == getattr(thing, words[3])
        elif prompt.startswith("answer en how many"):
            noun = " ".join(words[4:-2])
            noun = noun.removesuffix("es") if noun.endswith("crosses") else noun.removesuffix("s")
            assert answer == str(len(fits(noun)))
        elif prompt.startswith("answer en is there"):
            assert answer == ("yes" if fits(" ".join(words[5:])) else "no")
        elif "relative to" in prompt:
            first, second = " ".join(words[5:]).split(" relative to the ")
            (a,), (b,) = fits(first), fits(second)
            y, x = np.subtract(a.box[:2], b.box[:2]) + np.subtract(a.box[2:], b.box[2:])
            expected = ("above" if y < 0 else "below") if abs(y) > abs(x) else ("left of" if x < 0 else "right of")
            assert answer == expected
        elif prompt.startswith("answer en where"):
            (thing,) = fits(" ".join(words[5:]))
            y, x = (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2
            corner = {"top": (0, 0.5), "bottom": (1, 0.5), "left": (0.5, 0), "right": (0.5, 1), "middle": (0.5, 0.5)}
            distances = {name: np.hypot(y - p, x - q) for name, (p, q) in corner.items()}
            if answer == "middle":
                assert min(distances, key=distances.get) == "middle"
            else:
                del distances["middle"]
                assert min(distances, key=distances.get) == answer
        elif prompt.startswith("detect"):
            queries = prompt.removeprefix("detect ").split(" ; ")
            expected = [pair for q in queries for pair in sorted((t.box, q) for t in fits(q))]
            got = []
            for part in answer.split(" ; ") if answer else []:
                numbers = [int(part[4 + 9 * i : 8 + 9 * i]) for i in range(4)]
                got.append((tuple(round(n / 1023 * GRID) / GRID for n in numbers), part[36:].strip()))
            assert got == expected
        elif prompt.startswith("segment"):
            (thing,) = fits(prompt.removeprefix("segment "))
            assert (
                answer
                == scenes.box_tokens(thing.box)
                + "".join(f"<seg{i:03d}>" for i in range(16))
                + f" {prompt.removeprefix('segment ')}"
            )


def test_yes_and_no_are_asked_equally_often():
    answers = [
        pair[1] for seed in range(1500) if (pair := ask(make_scene(seed), "is there", np.random.default_rng(seed)))
    ]
    assert 0.45 < answers.count("yes") / len(answers) < 0.55


def test_a_no_cannot_be_guessed_from_single_words():
    """Many absent things are made of a colour and a shape that are both there, on different things."""
    mixed = total = 0
    for seed in range(800):
        scene = make_scene(seed)
        query = scenes.make_query(np.random.default_rng(seed), scene, present=False)
        if query and len(scene.things) >= 3 and len(query.split()) == 2 and "thing" not in query:
            total += 1
            mixed += all(find(scene, word) for word in query.split())
    assert mixed / total > 0.25


def test_every_task_can_be_asked():
    asked = {
        task for seed in range(20) for task in TASKS if ask(make_scene(seed), task, np.random.default_rng(seed), codes)
    }
    assert asked == set(TASKS)


def test_bad_input_says_what_to_do():
    scene = make_scene(0)
    with pytest.raises(ValueError, match="seed is -1, expected 0 or more"):
        make_scene(-1)
    with pytest.raises(ValueError, match="max_things is 5, expected 1 to 4"):
        make_scene(0, max_things=5)
    with pytest.raises(ValueError, match="size is 3, expected 16 to 4096"):
        draw(scene, 3)
    with pytest.raises(ValueError, match="language is 'fr', expected 'en' or 'ko'"):
        scenes.caption(scene, "fr")
    with pytest.raises(ValueError, match="expected sizes, colours and shapes of this world; 'hexagon' is none"):
        find(scene, "red hexagon")
    with pytest.raises(ValueError, match="task is 'sing', expected one of"):
        ask(scene, "sing", np.random.default_rng(0))
    with pytest.raises(ValueError, match="codes is None, expected a function"):
        ask(scene, "segment", np.random.default_rng(0))
    with pytest.raises(ValueError, match="shape is 'blob', expected one of"):
        scenes.shape_mask("blob")


def test_scenes_are_plain_data():
    """Truths can be written to JSON, for a class that wants the pictures and the answers in files."""
    scene = make_scene(3)
    json.dumps([[t.shape, t.colour, t.size, t.box, t.angle, t.rgb] for t in scene.things])
