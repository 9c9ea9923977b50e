"""The figures are what they claim: perfect answers score 1, wrong ones what their error is worth."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from paligemma import attention_maps
from paligemma.segmentation import load_mask_tokenizer
from paligemma.world import evaluation
from paligemma.world.evaluation import attention_in_box, detection_ious, draw_vector, make_questions, score
from paligemma.world.pictures import TRAIN_SEEDS, mask_codes
from paligemma.world.scenes import box_tokens, draw, make_scene, mask


@pytest.fixture(scope="module")
def mask_tokenizer(root):
    return load_mask_tokenizer(root / "assets/mask-tokenizer")


@pytest.fixture(scope="module")
def asked(mask_tokenizer):
    scenes = [make_scene(seed) for seed in range(60)]
    return scenes, make_questions(scenes, mask_codes(mask_tokenizer))


def test_the_truth_scores_full_marks(asked, mask_tokenizer):
    scenes, rows = asked
    figures = score(scenes, rows, [row[3] for row in rows], mask_tokenizer)
    assert set(evaluation.GOALS) <= set(figures)
    for name, value in figures.items():
        if name == "segment: mean IoU":
            assert value > 0.95  # what the codes lose
        else:
            assert value == pytest.approx(1.0, abs=1e-9), name


def test_silence_scores_nothing_but_absent_things(asked, mask_tokenizer):
    scenes, rows = asked
    figures = score(scenes, rows, [""] * len(rows), mask_tokenizer)
    assert {name for name, value in figures.items() if value > 0} == {"absent: empty answer"}


def test_box_scores():
    box, moved, far = (0.25, 0.25, 0.5, 0.5), (0.25, 0.25, 0.5, 0.625), (0.75, 0.75, 0.875, 0.875)
    one, other, wrong = (f"{box_tokens(b)} star" for b in (box, moved, far))
    assert detection_ious(one, one) == [1.0]
    assert detection_ious(one, other) == pytest.approx([2 / 3], abs=0.01)
    assert detection_ious(one, wrong) == [0.0, 0.0]  # a miss, and a box too many
    assert detection_ious(one, f"{one} ; {wrong}") == [1.0, 0.0]
    assert detection_ious(f"{one} ; {wrong}", one) == [1.0, 0.0]
    assert detection_ious(one, one.replace("star", "ring")) == [0.0, 0.0]
    assert detection_ious(one, "<loc0001> star") == [0.0]


def test_training_pictures_are_other_scenes(tmp_path):
    from paligemma.world.pictures import Pictures

    pictures = Pictures(2, folder=tmp_path)
    assert pictures.scene(0).seed == TRAIN_SEEDS >= 100_000  # held out: all smaller ones


def test_absent_things_are_absent(asked):
    scenes, rows = asked
    for index, task, prompt, answer in rows:
        if task == "absent":
            words = prompt.removeprefix("detect ").split()
            wanted = [word for word in words if word != "thing"]
            assert answer == "" and not any(all(w in t.name.split() for w in wanted) for t in scenes[index].things)


@pytest.mark.parametrize("seed", range(25))
def test_the_second_renderer_draws_the_same_truth(seed):
    """Where a thing is, the picture differs from the background and has the thing's colour; elsewhere it does not."""
    scene = make_scene(seed)
    picture = draw_vector(scene)
    assert picture.mode == "RGB" and 80 <= min(picture.size) and max(picture.size) <= 320
    pixels = np.asarray(picture.resize((256, 256), Image.Resampling.BILINEAR)).astype(float)
    things = np.zeros((256, 256), dtype=bool)
    background = np.median(pixels[[0, -1]].reshape(-1, 3), axis=0)
    for index, thing in enumerate(scene.things):
        where = mask(scene, index, 256)
        y1, x1, y2, x2 = (round(edge * 256) for edge in thing.box)
        things[max(y1 - 4, 0) : y2 + 4, max(x1 - 4, 0) : x2 + 4] = True
        inner = pixels[where]
        assert (np.abs(inner - background).max(axis=1) > 25).mean() > 0.7  # rotated otherwise: not all
    assert (np.abs(pixels[~things] - background).max(axis=1) < 25).mean() > 0.99


def test_the_second_renderer_is_another(asked):
    scene = asked[0][0]
    ours, theirs = draw(scene), draw_vector(scene).resize((64, 64))
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max() > 20
    assert draw_vector(scene).tobytes() == draw_vector(scene).tobytes()


def test_attention_share_of_an_even_look_is_the_area(tiny, monkeypatch):
    """When every head looks everywhere alike, the share inside a box is the box's area."""
    model, processor = tiny
    from paligemma.modeling_gemma import GemmaAttention

    real = GemmaAttention.attend

    def even(self, query, key, value, attention_mask):
        output, weights = real(self, query, key, value, attention_mask)
        return output, None if weights is None else torch.ones_like(weights) / weights.shape[-1]

    monkeypatch.setattr(GemmaAttention, "attend", even)
    scenes = [make_scene(seed) for seed in range(12)]
    figures = attention_in_box(model, processor, scenes, [draw(scene) for scene in scenes])
    for row in figures.values():
        assert row["share"] == pytest.approx(row["area"], abs=1e-5)


@pytest.mark.parametrize("said", ["red", "", "<loc0001>", "<loc0001><loc0002><loc0003>", "red circle red circle"])
def test_attention_of_a_model_that_does_not_answer_with_boxes(tiny, monkeypatch, capsys, said):
    """There is nothing to look at for the four sides; the colour word has its figure all the same."""
    model, processor = tiny
    monkeypatch.setattr(attention_maps, "generate", lambda *_, **__: [said])
    scenes = [make_scene(seed) for seed in range(6)]
    figures = attention_in_box(model, processor, scenes, [draw(scene) for scene in scenes])
    assert set(figures) == {"colour word"} and np.isfinite(figures["colour word"]["share"])
    assert attention_in_box(model, processor, scenes[:1], [draw(scenes[0])]) == {}
    evaluation.print_attention({})
    assert "no figures for attention" in capsys.readouterr().out


def test_the_command_prints_the_table(root, tiny_folder, tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "paligemma.world.evaluation",
            str(tiny_folder),
            "--scenes",
            "8",
            "--json",
            str(tmp_path / "figures.json"),
        ],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    for name in evaluation.GOALS:
        assert f"| {name} |" in result.stdout
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["scenes"] == 8 and {"own", "vector", "attention"} <= set(figures)


def test_a_missing_model_is_a_clear_error(root, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "paligemma.world.evaluation", str(tmp_path / "none")],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1 and "error: " in result.stderr and "Traceback" not in result.stderr
