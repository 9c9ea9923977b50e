"""The training stages: the loss is the formula, and interruptions, processes and full disks change nothing."""

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from paligemma import training
from paligemma.training import (
    AnswerLoss,
    Metric,
    Schedule,
    answer_states,
    at_resolution,
    finetune,
    gradient_checkpointing,
    loop,
    make_optimizers,
    questions_loss,
    redraw_collapsed_embeddings,
    stages,
    train,
)
from paligemma.training.__main__ import main, parse_arguments
from paligemma.training.loop import load_state, save_state
from paligemma.world import scenes as scenes_module
from paligemma.world.contrastive import load_tiny_siglip, patch_labels, sigmoid_loss, text_ids
from paligemma.world.pictures import Pictures, collate, draw_questions
from paligemma.world.scenes import SHAPES, caption, draw, make_scene
from paligemma.world.tiny_model import build_model, build_processor, soft_location_targets


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(scope="module")
def small(processor):
    """An untrained model a quarter as wide as the shipped one."""
    return build_model(processor, seed=1, width=32).eval()


def some_rows(count=6, per_picture=3):
    scenes = [make_scene(seed) for seed in range(count)]
    rows = draw_questions(scenes, training.TASK_WEIGHTS, per_picture, np.random.default_rng(0), lambda thing: range(16))
    return scenes, rows


# -------------------------------------------------------------------------------------------------- the losses


def test_sigmoid_loss_is_the_papers_formula():
    """Zhai et al. 2023, equation 1: mean over pictures i of sum over texts j of log(1 + exp(z_ij (-t x.y - b)))."""
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)) * 4
    expected = 0.0
    for i in range(5):
        for j in range(5):
            z = 1 if i == j else -1
            expected += np.log1p(np.exp(-z * logits[i, j].item())) / 5
    assert sigmoid_loss(logits).item() == pytest.approx(expected, rel=1e-5)
    # Shares of the pictures, each against all the texts, are the whole.
    shares = (2 * sigmoid_loss(logits[:2]) + 3 * sigmoid_loss(logits[2:], first=2)) / 5
    assert shares.item() == pytest.approx(expected, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 100_000))
def test_patch_labels_by_counting_cells(seed):
    scene = make_scene(seed)
    owner = np.full((64, 64), -1)
    for index, thing in enumerate(scene.things):
        y1, x1, y2, x2 = (round(edge * 64) for edge in thing.box)
        owner[y1:y2, x1:x2] = index
    labels = patch_labels(scene, 8).view(8, 8, 7)
    for row in range(8):
        for column in range(8):
            cells = owner[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            counts = [(cells == index).sum() for index in range(len(scene.things))]
            if max(counts) < 16:  # less than a quarter of 64
                assert labels[row, column, 0] == 0
            else:
                allowed = {SHAPES.index(scene.things[i].shape) + 1 for i, c in enumerate(counts) if c == max(counts)}
                assert int(labels[row, column, 0]) in allowed


def test_only_whole_cells_get_soft_targets(processor):
    ids, soft = soft_location_targets(processor.tokenizer)
    assert soft.sum(dim=1) == pytest.approx(np.ones(65), rel=1e-5)
    assert processor.tokenizer.convert_ids_to_tokens([int(ids[0]), int(ids[32]), int(ids[64])]) == [
        "<loc0000>",
        "<loc0512>",
        "<loc1023>",
    ]
    assert (soft.argmax(dim=1) == torch.arange(65)).all()
    assert soft[32, 33] / soft[32, 32] == pytest.approx(np.exp(-0.5 / 0.7**2), rel=1e-4)


def test_the_fast_path_gives_the_models_own_loss(processor, small):
    """Logits at the answer's places alone, and the last layer for these alone, are those of the whole model."""
    scenes, rows = some_rows()
    pictures = [draw(scenes[row[0]]) for row in rows]
    inputs = processor(text=[row[2] for row in rows], images=pictures, suffix=[row[3] for row in rows])
    batch = collate(processor.tokenizer, [row[2] for row in rows], [row[3] for row in rows], 64)
    pixel_values = processor(text=["x"] * len(scenes), images=[draw(scene) for scene in scenes])["pixel_values"]
    image_index = torch.tensor([row[0] for row in rows])
    with torch.inference_mode():
        whole = small(**inputs)
        states, targets, _ = answer_states(small, small.get_image_features(pixel_values), image_index, batch)
        loss = F.cross_entropy(small.language_model.lm_head(states), targets)
    assert (inputs["labels"] != -100).sum() == len(targets)
    assert loss.item() == pytest.approx(whole.loss.item(), abs=1e-5)


@pytest.mark.parametrize("text_model", ["gemma", "gemma2"])
def test_the_fast_path_is_right_for_both_generations(text_model):
    """Random weights, rows of unequal length, padded on the right: the loss is that of the model's own forward."""
    shape = reference.shape(text_model)
    model, _ = reference.make_pair(shape)
    inputs = reference.make_inputs(shape, "right", reference.PROMPTS, reference.SUFFIXES)
    pixel_values = inputs["pixel_values"]
    with torch.inference_mode():
        whole = model(**inputs)
        batch = {name: tensor for name, tensor in inputs.items() if name != "pixel_values"}
        image_index = torch.arange(len(pixel_values))
        states, targets, _ = answer_states(model, model.get_image_features(pixel_values), image_index, batch)
        loss = F.cross_entropy(model.language_model.lm_head(states), targets)
    assert loss.item() == pytest.approx(whole.loss.item(), abs=1e-4)


def test_questions_loss_is_the_weighted_formula(processor, small):
    """Each token counts 1 / sqrt(n); location tokens have soft targets; groups do not matter."""
    scenes, rows = some_rows(4)
    answer_loss = AnswerLoss(processor.tokenizer)
    pixel_values = processor(text=["x"] * len(scenes), images=[draw(scene) for scene in scenes])["pixel_values"]
    ids, soft = soft_location_targets(processor.tokenizer)
    cells = {int(token): target for token, target in zip(ids, soft, strict=True)}
    total = weight = 0.0
    right = {}
    with torch.inference_mode():
        for index, task, prompt, answer in rows:
            inputs = processor(text=[prompt], images=[draw(scenes[index])], suffix=[answer])
            log_p = small(**inputs).logits[0].log_softmax(-1)
            places = (inputs["labels"][0] != -100).nonzero().flatten()
            targets = inputs["labels"][0, places]
            guessed = log_p[places - 1].argmax(-1)
            right[task] = right.get(task, 0) + bool((guessed == targets).all())
            for place, target in zip(places.tolist(), targets.tolist(), strict=True):
                near = cells.get(target)
                loss = -log_p[place - 1, target] if near is None else -(near * log_p[place - 1, ids]).sum()
                total += loss.item() / len(places) ** 0.5
            weight += len(places) ** 0.5
        for chunks in (1, 5):
            loss, metrics = questions_loss(
                small, processor.tokenizer, answer_loss, small.get_image_features(pixel_values), rows, chunks
            )
            assert loss.item() == pytest.approx(total / weight, abs=2e-5)
            assert {task: metric.total for task, metric in metrics.items()} == right
            assert sum(metric.count for metric in metrics.values()) == len(rows)


# ------------------------------------------------------------------------------------------------ data and rates


def test_pictures_are_what_the_processor_makes_of_them(tmp_path, processor):
    pictures = Pictures(3, folder=tmp_path)
    assert pictures.path.name.startswith("pictures-64px-3-of-4-")
    assert sorted(path.name for path in tmp_path.iterdir()) == [pictures.path.name]
    images = [Image.fromarray(np.array(pixels)) for pixels in pictures.pixels]
    expected = processor(text=["x"] * 3, images=images)["pixel_values"]
    assert (pictures.batch([0, 1, 2]) - expected).abs().max() < 1e-6
    again = Pictures(3, folder=tmp_path)  # from the file, not drawn again
    assert np.array_equal(again.pixels, pictures.pixels)


def test_another_world_gets_other_pictures(tmp_path, monkeypatch):
    """Whoever adds a shape or changes a size must not train on the old pictures with the new truth."""
    before = Pictures(2, folder=tmp_path)
    for change in ({"small": (20, 21)}, {"large": (30, 31)}):
        monkeypatch.setattr(scenes_module, "SIZES", {**scenes_module.SIZES, **change})
        after = Pictures(2, folder=tmp_path)
        assert after.path != before.path and len(list(tmp_path.iterdir())) > 1
        assert np.array_equal(after.pixels[0], after.render(0)) and not np.array_equal(after.pixels, before.pixels)
        before = after
    monkeypatch.setitem(scenes_module._SHADES, "pink", ((1, 2, 3),) * 3)
    assert Pictures(2, folder=tmp_path).path != before.path


@pytest.mark.parametrize("damage", [b"", b"half", b"\x93NUMPY\x01\x00", "cut", "other shape"])
def test_a_damaged_file_of_pictures_is_drawn_again(tmp_path, damage):
    whole = Pictures(3, folder=tmp_path)
    expected = np.array(whole.pixels)
    path = whole.path
    del whole
    if damage == "other shape":
        np.save(path, np.zeros((3, 4), dtype=np.uint8))
    else:
        path.write_bytes(path.read_bytes()[:-100] if damage == "cut" else damage)
    assert np.array_equal(Pictures(3, folder=tmp_path).pixels, expected)


def test_no_pictures_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="count is 0, expected a whole number of pictures"):
        Pictures(0, folder=tmp_path)


def test_every_picture_gets_its_questions_of_different_tasks():
    _, rows = some_rows(20, 3)
    for index in range(20):
        tasks = [row[1] for row in rows if row[0] == index]
        assert len(tasks) == len(set(tasks)) == 3


def test_rates_rise_fall_and_start_again():
    schedule = Schedule(cycles=((100, 1.0), (200, 0.5)), warmup=10)
    factors = [schedule.factor(step) for step in range(301)]
    assert factors[0] == pytest.approx(0.1) and max(factors[:100]) == pytest.approx(1.0, abs=0.05)
    assert factors[50] == pytest.approx(0.5 * (1 + np.cos(np.pi * 0.5)))  # half way down the cosine
    assert factors[99] < 0.001 and factors[100] == pytest.approx(0.05) and max(factors[100:]) < 0.5
    assert factors[200] == pytest.approx(0.25) and factors[300] == 0.0
    assert [step for step in range(300) if schedule.ends_cycle(step)] == [99, 299]


def test_each_weight_has_one_optimiser(small):
    muon, adam = training.make_optimizers(small, Schedule(cycles=((1, 1.0),)))
    groups = [{id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in (muon, adam)]
    assert not groups[0] & groups[1] and groups[0] | groups[1] == {id(p) for p in small.parameters()}
    assert id(small.language_model.model.embed_tokens.weight) in groups[1]
    assert id(small.multi_modal_projector.linear.weight) in groups[0]


@pytest.mark.parametrize(
    "trained, optimizers",
    [("mlp", ["Muon"]), ("norm", ["AdamW"]), ("multi_modal_projector", ["Muon", "AdamW"]), ("lora", ["AdamW"])],
)
def test_what_is_frozen_has_no_optimiser(processor, trained, optimizers):
    model = build_model(processor, seed=1, width=32)
    model.language_model.lora_a = nn.Linear(4, 4, bias=False)  # as adapters are named
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name and not ("mlp" in name and "vision" in name))  # those have biases
    made = make_optimizers(model, Schedule(cycles=((1, 1.0),)))
    assert [type(optimizer).__name__ for optimizer in made] == optimizers
    held = {id(p) for optimizer in made for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_a_frozen_model_is_an_error(processor):
    model = build_model(processor, seed=1, width=32).requires_grad_(False)
    with pytest.raises(ValueError, match="no weight of the model requires a gradient"):
        make_optimizers(model, Schedule(cycles=((1, 1.0),)))


# ---------------------------------------------------------------------------------------------- the loop itself


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator, std=0.5)


def toy_loss(model):
    def batch_loss(step):
        x = torch.from_numpy(np.random.default_rng([0, step]).normal(size=(16, 6)).astype(np.float32))
        loss = (model.second(model.first(x).tanh()) - x[:, :2] * 2).square().mean()
        return loss, {"size": Metric(16.0)}

    return batch_loss


def toy_schedule(**changes):
    return Schedule(**{"cycles": ((12, 1.0), (8, 0.5)), "warmup": 3, "log_every": 3, "save_every": 0.0, **changes})


def without_seconds(log):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in log]


@settings(max_examples=8, deadline=None)
@given(stop=st.integers(1, 19))
def test_resume_is_the_uninterrupted_run(tmp_path_factory, stop):
    whole, broken = Toy(), Toy()
    expected = train(whole, toy_loss(whole), toy_schedule(), tmp_path_factory.mktemp("whole"))
    folder = tmp_path_factory.mktemp("broken")
    train(broken, toy_loss(broken), toy_schedule(), folder, stop_at=stop)
    resumed = Toy()  # a new process knows nothing
    cycles = []
    train(resumed, toy_loss(resumed), toy_schedule(), folder, cycles.append)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[-1]["step"] == expected[-1]["step"] == 20
    assert cycles == ([1, 2] if stop < 12 else [2])


def test_other_settings_are_refused(tmp_path):
    """Of the schedule, and of the command: whatever decides the result."""
    model = Toy()
    train(model, toy_loss(model), toy_schedule(), tmp_path, stop_at=2, options={"pictures": 12, "weights": {"a": 1}})
    for schedule, options in (
        (toy_schedule(muon_lr=1.0), {"pictures": 12, "weights": {"a": 1}}),
        (toy_schedule(), {"pictures": 13, "weights": {"a": 1}}),
        (toy_schedule(), {"pictures": 12, "weights": {"a": 2}}),
        (toy_schedule(), None),
    ):
        before = [parameter.clone() for parameter in model.parameters()]
        with pytest.raises(ValueError, match=r"a run with other settings than .*\(there: .*--out"):
            train(model, toy_loss(model), schedule, tmp_path, options=options)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    train(model, toy_loss(model), toy_schedule(save_every=9.0), tmp_path, options={"pictures": 12, "weights": {"a": 1}})


@pytest.mark.parametrize("fails", [1, 2])
def test_a_model_that_could_not_be_written_is_written_by_the_next_run(tmp_path, fails):
    """A cycle whose export was interrupted, for the last cycle as well, is not done."""
    whole = Toy()
    train(whole, toy_loss(whole), toy_schedule(), tmp_path / "whole")
    exported = []

    def disk_is_full(number):
        if number == fails:
            raise OSError(28, "No space left on device")
        exported.append(number)

    model = Toy()
    with pytest.raises(OSError, match="No space left"):
        train(model, toy_loss(model), toy_schedule(), tmp_path / "run", disk_is_full)
    again, weights = Toy(), {}

    def export(number):
        exported.append(number)
        weights[number] = [parameter.detach().clone() for parameter in again.parameters()]

    log = train(again, toy_loss(again), toy_schedule(), tmp_path / "run", export)
    assert exported == [1, 2] and log[-1]["step"] == 20
    assert all(torch.equal(a, b) for a, b in zip(weights[2], whole.parameters(), strict=True))


def damaged_states(model):
    """What a state.pt may turn into, by name."""
    state = {
        "step": 6,
        "model": model.state_dict(),
        "settings": {},
        "optimizers": [optimizer.state_dict() for optimizer in make_optimizers(model, toy_schedule())],
    }
    lacking = {name: tensor for name, tensor in state["model"].items() if name != "first.weight"}
    reshaped = {**state["model"], "first.weight": torch.zeros(2, 2)}
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(3, 3)}}}
    return {
        "text": b"step 6",
        "nothing": b"",
        "zeros": bytes(5000),
        "random": np.random.default_rng(0).bytes(5000),
        "a zip of something else": b"PK\x05\x06" + bytes(18),
        "a folder": None,
        "a tensor": torch.zeros(3),
        "an empty dict": {},
        "a lost weight": {**state, "model": lacking},
        "a weight of another shape": {**state, "model": reshaped},
        "a word for the step": {**state, "step": "six"},
        "one optimiser": {**state, "optimizers": state["optimizers"][:1]},
        "optimisers that are none": {**state, "optimizers": [1, 2]},
        "momentum of another shape": {
            **state,
            "optimizers": [{**state["optimizers"][0], **momentum}, state["optimizers"][1]],
        },
        "code": Path,
    }


@pytest.mark.parametrize("kind", list(damaged_states(nn.ModuleDict({"first": nn.Linear(2, 2)}))))
def test_a_damaged_state_is_named_in_one_sentence(tmp_path, kind):
    model = Toy()
    train(model, toy_loss(model), toy_schedule(), tmp_path, stop_at=6)
    path = tmp_path / "state.pt"
    settings = torch.load(path, weights_only=True)["settings"]
    damage = damaged_states(model)[kind]
    path.unlink()
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    elif damage is None:
        path.mkdir()
    else:
        if isinstance(damage, dict) and "settings" in damage:
            damage["settings"] = settings
        torch.save(damage, path)
    with pytest.raises(ValueError, match=r"state\.pt is damaged or not the training state .*remove it") as error:
        train(model, toy_loss(model), toy_schedule(), tmp_path)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_a_flipped_bit_is_found_or_makes_no_difference(tmp_path):
    """torch.load alone notices none in a weight: the run would go on, to other weights, without a word."""
    model = Toy()
    train(model, toy_loss(model), toy_schedule(), tmp_path, stop_at=6)
    path = tmp_path / "state.pt"
    good, optimizers = path.read_bytes(), make_optimizers(Toy(), toy_schedule())
    settings = torch.load(path, weights_only=True)["settings"]
    in_a_weight = good.index(next(model.parameters()).detach().numpy().tobytes()[:16])
    rng, refused = np.random.default_rng(0), 0
    for position in [in_a_weight, *rng.integers(len(good), size=60)]:
        bits = bytearray(good)
        bits[position] ^= 1 << rng.integers(8)
        path.write_bytes(bits)
        loaded = Toy()
        try:
            assert load_state(path, settings, loaded, optimizers) == 6
        except ValueError as error:
            assert "damaged" in str(error)
            refused += 1
        else:
            assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
            assert position != in_a_weight
    assert refused > 10


@pytest.mark.parametrize(
    "damage",
    [
        b'{"step": 6, "seco',
        b"\n",
        b"hello\n",
        b'\xff\xfe{"step": 3}\n',
        b'{"loss": 1.0}\n',
        b"[1, 2]\n",
        b'{"step": "x"}\n',
        b'{"step": 3, "loss": "low"}\n',
        bytes(40),
    ],
)
def test_a_damaged_log_does_not_end_the_run(tmp_path, capsys, damage):
    whole = Toy()
    expected = train(whole, toy_loss(whole), toy_schedule(), tmp_path / "whole")
    model, log_path = Toy(), tmp_path / "run" / "log.jsonl"
    train(model, toy_loss(model), toy_schedule(), tmp_path / "run", stop_at=6)
    with log_path.open("ab") as file:
        file.write(damage)
    log = train(model, toy_loss(model), toy_schedule(), tmp_path / "run")
    assert without_seconds(log) == without_seconds(expected)
    assert [json.loads(line) for line in log_path.read_text(encoding="utf-8").splitlines()] == log
    assert "log.jsonl: 1 line(s) could not be read" in capsys.readouterr().err


def test_a_lost_log_does_not_end_the_run(tmp_path):
    model = Toy()
    train(model, toy_loss(model), toy_schedule(), tmp_path, stop_at=6)
    (tmp_path / "log.jsonl").unlink()
    assert [line["step"] for line in train(model, toy_loss(model), toy_schedule(), tmp_path)] == [9, 12, 15, 18, 20]


def test_held_out_examples_are_looked_at_and_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "HELD_OUT_EVERY", 6)
    alone, watched, modes = Toy(), Toy(), []

    def held_out():
        modes.append((watched.training, torch.is_grad_enabled()))
        return 0.25

    train(alone, toy_loss(alone), toy_schedule(), tmp_path / "alone")
    log = train(watched, toy_loss(watched), toy_schedule(), tmp_path / "watched", held_out=held_out)
    assert {line["step"]: line["held-out loss"] for line in log if "held-out loss" in line} == dict.fromkeys(
        (6, 12, 18, 20), 0.25
    )
    assert modes == [(False, False)] * 4 and watched.training
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), watched.parameters(), strict=True))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    model = Toy()
    with pytest.raises(FloatingPointError, match="at step 0 the loss is nan"):
        train(model, lambda step: (model.first.weight.sum() * float("nan"), {}), toy_schedule(), tmp_path)


def finite(state):
    return all(tensor.isfinite().all() for tensor in state["model"].values())


def test_an_infinite_gradient_of_a_finite_loss_is_never_saved(tmp_path):
    model = Toy()

    def batch_loss(step):
        loss, metrics = toy_loss(model)(step)
        return (loss + (0 * loss).sqrt() if step == 4 else loss), metrics  # the root's slope at 0 is infinite

    with pytest.raises(FloatingPointError, match="at step 4 .* norm of its gradient (nan|inf)"):
        train(model, batch_loss, toy_schedule(log_every=1), tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 4 and finite(state) and all(p.isfinite().all() for p in model.parameters())


def test_weights_that_overflow_in_the_step_itself_are_never_saved(tmp_path, monkeypatch):
    real = loop.update

    def update(model, optimizers, schedule, step, loss):
        figures = real(model, optimizers, schedule, step, loss)
        if step == 4:
            model.second.bias.data[1] = torch.inf
        return figures

    monkeypatch.setattr(loop, "update", update)
    with pytest.raises(FloatingPointError, match=r"after step 5 .*second\.bias .*state\.pt, is untouched"):
        train(model := Toy(), toy_loss(model), toy_schedule(log_every=1), tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 4 and finite(state)
    with pytest.raises(FloatingPointError, match="no earlier state exists"):
        save_state(tmp_path / "other.pt", 5, {}, model, make_optimizers(model, toy_schedule()))


def test_a_full_disk_leaves_the_last_good_state(tmp_path, monkeypatch):
    model = Toy()
    train(model, toy_loss(model), toy_schedule(), tmp_path, stop_at=6)
    good = (tmp_path / "state.pt").read_bytes()

    def full(state, path):
        path.write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left on device.*is untouched.*--out"):
        train(model, toy_loss(model), toy_schedule(), tmp_path)
    assert (tmp_path / "state.pt").read_bytes() == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "state.pt"]


# ------------------------------------------------------------------------------------------- the command itself


def command(root, tmp_path, out, *more, prefix=()):
    return [
        sys.executable,
        *(prefix or ["-m"]),
        "paligemma.training",
        "stage1",
        "--out",
        str(tmp_path / out),
        "--cache",
        str(tmp_path),
        "--encoder",
        "assets/tiny-siglip",
        "--pictures",
        "12",
        "--per-step",
        "4",
        "--cycles",
        "6x1.0,4x0.5",
        "--device",
        "cpu",
        *more,
    ]


def run(folder, *arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        *arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, **options
    )


@pytest.fixture(scope="module")
def one_run(root, tmp_path_factory):
    """A short run of stage 1 as one process, uninterrupted: (its folder's parent, its log, its weights)."""
    folder = tmp_path_factory.mktemp("stage1")
    result = run(root, command(root, folder, "one"))
    assert result.returncode == 0, result.stderr
    log = [json.loads(line) for line in (folder / "one/log.jsonl").read_text(encoding="utf-8").splitlines()]
    return folder, log, load_file(folder / "one/cycle2/model.safetensors")


def test_the_command_leaves_a_model_that_opens(one_run):
    from paligemma import generate, load_pretrained

    folder, log, _ = one_run
    assert [line["step"] for line in log] == [6, 10] and log[-1]["loss"] < log[0]["loss"]
    model, processor = load_pretrained(folder / "one/cycle2")
    assert len(generate(model, processor, [draw(make_scene(0))], ["caption en"], max_new_tokens=3)) == 1


def test_two_processes_are_one(root, one_run):
    """The same global batch under torchrun: the same losses and the same weights, to rounding."""
    folder, log, weights = one_run
    port = str(20000 + os.getpid() % 9999)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port, "-m"]
    result = run(root, command(root, folder, "two", prefix=torchrun))
    assert result.returncode == 0, result.stderr
    both = [json.loads(line) for line in (folder / "two/log.jsonl").read_text(encoding="utf-8").splitlines()]
    for one, two in zip(log, both, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=2e-3)
        assert two.keys() == one.keys()
    # Another order of adding is another rounding: compare with how far the weights have moved.
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    start = build_model(build_processor()).state_dict()[name]
    two = load_file(folder / "two/cycle2/model.safetensors")[name]
    assert (two - weights[name]).norm() < 0.01 * (weights[name] - start).norm()


SHARDED = """
import copy, sys
import torch, torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from paligemma import load_pretrained
from paligemma.world.scenes import caption, draw, make_scene
from paligemma.training import shard

dist.init_process_group("gloo")
rank = dist.get_rank()
model, processor = load_pretrained(sys.argv[1])
whole = copy.deepcopy(model)
shard(model)
held = sum(parameter.to_local().numel() for parameter in model.parameters())
assert held < 0.51 * sum(parameter.numel() for parameter in whole.parameters()), held

scenes = [make_scene(seed) for seed in range(4)]
batch = processor(["caption en"] * 4, [draw(scene) for scene in scenes], [caption(scene, "ko") for scene in scenes])
halves = [{name: tensor[half : half + 2] for name, tensor in batch.items()} for half in (0, 2)]
for count in range(3):
    for each, losses in ((model, [model(**halves[rank]).loss]), (whole, [whole(**half).loss for half in halves])):
        (sum(losses) / len(losses)).backward()
        torch.optim.SGD(each.parameters(), lr=0.05).step()
        each.zero_grad()
together = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
if rank == 0:
    before = load_pretrained(sys.argv[1])[0].state_dict()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(together[name], tensor, atol=1e-5, rtol=1e-4)
    assert (together["language_model.model.norm.weight"] != before["language_model.model.norm.weight"]).any()
    print("equal")
dist.destroy_process_group()
"""


def test_sharded_weights_train_as_whole_ones(root, tiny_folder, tmp_path):
    """Three steps on two processes that hold half of each weight: the weights of one process that holds all."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED, encoding="utf-8")
    port = str(30000 + os.getpid() % 9999)
    result = run(
        root,
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--master-port",
            port,
            str(script),
            str(tiny_folder),
        ],
    )
    assert result.returncode == 0 and "equal" in result.stdout, result.stderr[-2000:]


def test_sharding_by_one_process_says_what_is_missing(tiny):
    with pytest.raises(RuntimeError, match="torchrun"):
        training.shard(tiny[0])


def test_a_killed_run_goes_on_to_the_same_end(root, one_run):
    folder, _, weights = one_run
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(root, folder, "killed", "--save-every", "0"),
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = folder / "killed/state.pt"
    deadline = time.monotonic() + 240
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert state.exists()
    result = run(root, command(root, folder, "killed", "--save-every", "0"))
    assert result.returncode == 0, result.stderr
    again = load_file(folder / "killed/cycle2/model.safetensors")
    for name, tensor in weights.items():
        assert torch.equal(tensor, again[name]), name


def test_no_room_for_files_is_a_clear_error(root, one_run):
    """A real limit: files may not grow beyond a megabyte, as on a full disk."""
    resource = pytest.importorskip("resource")  # POSIX only
    folder, *_ = one_run

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    result = run(root, command(root, folder, "full"), preexec_fn=limit)
    assert result.returncode == 1
    assert "could not be written" in result.stderr and "Traceback" not in result.stderr
    assert not list((folder / "full").glob("*.pt"))


def test_a_folder_that_cannot_be_is_a_clear_error(root, one_run):
    folder, *_ = one_run
    (folder / "a-file").write_text("", encoding="utf-8")
    result = run(root, command(root, folder, "a-file"))
    assert result.returncode == 1 and "choose another folder with --out" in result.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("stage1 --cycles abc", "'abc', expected steps x factor of each cycle"),
        ("stage1 --cycles 5x", "'5x', expected steps x factor"),
        ("stage1 --cycles 700", "'700', expected steps x factor"),
        ("stage1 --cycles=-5x1", "'-5x1', expected steps x factor"),
        ("stage1 --cycles 0x1", "'0x1', expected steps x factor"),
        ("stage1 --cycles 5x0", "'5x0', expected steps x factor"),
        ("stage1 --cycles 5x1,", "'5x1,', expected steps x factor"),
        ("stage1 --cycles 5x1 --steps 5", "not allowed with argument"),
        ("stage0 --steps 0", "'0', expected a whole number of 1 or more"),
        ("stage1 --steps 1.5", "'1.5', expected a whole number"),
        ("stage1 --per-step 0", "'0', expected a whole number"),
        ("stage2 --pictures 0", "'0', expected a whole number"),
        ("stage3 --examples 0", "'0', expected a whole number"),
        ("stage1 --seed=-1", "'-1', expected a whole number of 0 or more"),
        ("stage1 --weights detec=3", "the task 'detec', expected one of caption"),
        ("stage1 --weights detect=much", "'much', expected a number of 0 or more"),
        ("stage1 --weights detect", "'', expected a number of 0 or more"),
        ("stage1 --weights detect=nan", "'nan', expected a number of 0 or more"),
        ("stage1 --device abacus", "has no device 'abacus'"),
        ("stage0 --weights detect=3", "unrecognized arguments: --weights"),
        ("stage2 --quick", "unrecognized arguments: --quick"),
        ("stage3 --pictures 9", "unrecognized arguments: --pictures"),
        ("stage1 --image-size 96", "unrecognized arguments: --image-size"),
        ("stage4", "invalid choice: 'stage4'"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_happens(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(arguments.split())
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_options_are_read():
    args = parse_arguments(["stage1", "--cycles", "1200x1.0, 1800x.5", "--weights", "detect=3,how many=0"])
    assert args.cycles == ((1200, 1.0), (1800, 0.5)) and args.weights == {"detect": 3.0, "how many": 0.0}
    assert parse_arguments(["stage1", "--steps", "10"]).steps == 10
    assert parse_arguments(["stage0"]).per_step == 64 and parse_arguments(["stage2"]).per_step == 48
    for stage in ("stage2", "stage3"):
        assert Path(parse_arguments([stage]).start).is_absolute()


@pytest.mark.parametrize("stage", ["stage0", "stage1", "stage2", "stage3"])
def test_the_folder_is_looked_at_before_the_work(tmp_path, capsys, monkeypatch, stage):
    """Even the model to start from comes after it."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(stages, "load_pretrained", lambda *_, **__: pytest.fail("the work began"))
    monkeypatch.setattr(stages, "build_processor", lambda *_, **__: pytest.fail("the work began"))
    assert main([stage, "--out", str(tmp_path / "file"), "--device", "cpu"]) == 1
    assert "choose another folder with --out" in capsys.readouterr().err


def test_the_same_folder_with_other_options_is_refused(root, one_run, processor, monkeypatch, capsys):
    folder, *_ = one_run
    monkeypatch.chdir(root)
    monkeypatch.setattr(stages, "build_processor", lambda: processor)
    arguments = command(root, folder, "one")[3:]
    for more in ("--per-step 2", "--weights detect=0", "--patch-labels 0.1", "--quick"):
        assert main([*arguments, *more.split()]) == 1
        message = capsys.readouterr().err
        assert "holds a run with other settings" in message
        assert more.split()[0].strip("-").replace("-", "_") in message


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_heads_of_something_else_are_named(tmp_path, content):
    path = tmp_path / "heads.safetensors"
    if content is None:
        save_file({"shape.weight": torch.zeros(3, 3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"heads\.safetensors does not hold the weights of PatchHeads"):
        stages.load_weights(training.PatchHeads(8), path)


def test_stage1_without_stage0_says_so(root, tmp_path):
    result = run(root, command(root, tmp_path, "x", "--encoder", str(tmp_path / "nowhere")))
    assert result.returncode == 1 and "run `python -m paligemma.training stage0` first" in result.stderr


def test_stage0_runs(root, tmp_path):
    result = run(
        root,
        [
            sys.executable,
            "-m",
            "paligemma.training",
            "stage0",
            "--out",
            str(tmp_path / "zero"),
            "--cache",
            str(tmp_path),
            "--pictures",
            "8",
            "--per-step",
            "4",
            "--steps",
            "3",
            "--device",
            "cpu",
        ],
    )
    assert result.returncode == 0, result.stderr
    assert load_tiny_siglip(tmp_path / "zero/tiny-siglip").vision_tower.config.image_size == 64


def test_stage0_from_captions_alone_and_random_positions(processor, tmp_path):
    """Without labels the loss is SigLIP's alone, no heads are written, and the position table starts without waves."""
    options = "--patch-labels 0 --positions random --pictures 8 --per-step 4 --steps 9 --stop-at 2 --device cpu".split()
    assert main(["stage0", *options, "--out", str(tmp_path), "--cache", str(tmp_path)]) == 0
    assert not (tmp_path / "tiny-siglip/heads.safetensors").exists()
    assert load_tiny_siglip(tmp_path / "tiny-siglip").vision_tower.config.image_size == 64
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert log[-1]["step"] == 2
    assert log[-1].keys() == {"step", "seconds", "rate", "gradient", "loss", "pairs", "retrieved"}
    assert log[-1]["loss"] == pytest.approx(0.3 * log[-1]["pairs"], abs=1e-3)
    config = build_model(processor).config.vision_config
    tables = {
        random: training.Stage0(
            config, len(processor.tokenizer), 0, random_positions=random
        ).towers.vision_tower.vision_model.embeddings.position_embedding.weight.detach()
        for random in (False, True)
    }
    near = {random: F.cosine_similarity(table[27], table[28], dim=0) for random, table in tables.items()}
    assert near[False] > 0.6 and abs(near[True]) < 0.3  # neighbours begin alike, or unrelated
    assert tables[True].std() == pytest.approx(config.hidden_size**-0.5, rel=0.05)


@pytest.mark.parametrize(
    "stage, options, folder, image_size",
    [
        ("stage2", ["--pictures", "4", "--per-step", "2", "--image-size", "96", "--cache", "."], "cycle1", 96),
        ("stage3", ["--examples", "4"], "model", 64),
    ],
)
def test_the_later_stages_go_on_from_the_shipped_model_whatever_the_working_folder(
    tmp_path, stage, options, folder, image_size
):
    from paligemma import load_pretrained

    result = run(
        tmp_path,
        [
            sys.executable,
            "-m",
            "paligemma.training",
            stage,
            "--out",
            str(tmp_path / "out"),
            "--steps",
            "2",
            "--device",
            "cpu",
            *options,
        ],
    )
    assert result.returncode == 0, result.stderr
    model, processor = load_pretrained(tmp_path / "out" / folder)
    assert model.config.vision_config.image_size == image_size
    assert (tmp_path / "out/log.jsonl").read_text(encoding="utf-8").count("\n") >= 1
    if stage == "stage3":  # it re-drew the embeddings of the Korean words: none are left to be re-drawn
        texts = ["caption ko"] + [caption(make_scene(500_000 + i, max_things=2), "ko") for i in range(4)]
        assert redraw_collapsed_embeddings(model, processor.tokenizer, texts) == []


# ------------------------------------------------------------------------------------ resolution and fine-tuning


def test_same_resolution_same_model(small, processor):
    inputs = processor(text=["caption en"], images=[draw(make_scene(1))])
    with torch.inference_mode():
        assert torch.equal(at_resolution(small, 64)(**inputs).logits, small(**inputs).logits)


def test_higher_resolution_keeps_places(small):
    """Position embeddings of a ramp along x stay a ramp along x, over more patches."""
    model = build_model(build_processor(), width=32)
    table = model.vision_tower.vision_model.embeddings.position_embedding.weight
    with torch.no_grad():
        table.copy_((torch.arange(64) % 8 + 0.5)[:, None].expand(-1, 32) / 8)
    bigger = at_resolution(model, 128)
    new = bigger.vision_tower.vision_model.embeddings.position_embedding.weight.view(16, 16, 32)
    expected = (torch.arange(16) + 0.5) / 16
    assert (new[5, 1:-1, 0] - expected[1:-1]).abs().max() < 1e-6
    assert torch.equal(new[3], new[11])
    assert bigger.get_image_features(torch.zeros(1, 3, 128, 128)).shape == (1, 256, 32)
    with pytest.raises(ValueError, match="image_size is 100, expected a multiple of 8"):
        at_resolution(model, 100)


def test_words_that_no_training_has_seen_get_fresh_embeddings(root):
    """In the shipped model those are the Korean words, and no others; afterwards they differ, all else is as it was."""
    from paligemma import load_pretrained

    model, processor = load_pretrained(root / "assets/tiny-paligemma")
    table = model.language_model.model.embed_tokens.weight
    before = table.detach().clone()
    texts = {
        language: [f"caption {language}"] + [caption(make_scene(seed), language) for seed in range(200)]
        for language in ("en", "ko")
    }
    english, korean = (
        {i for ids in processor.tokenizer(texts[language], add_special_tokens=False)["input_ids"] for i in ids}
        for language in ("en", "ko")
    )
    redrawn = redraw_collapsed_embeddings(model, processor.tokenizer, texts["ko"] + texts["en"])
    assert redrawn == sorted(korean - english) and len(redrawn) > 20

    def alike(rows):
        unit = torch.nn.functional.normalize(rows, dim=-1)
        return (unit @ unit.T)[~torch.eye(len(rows), dtype=torch.bool)]

    assert alike(before[redrawn]).mean() > 0.9 and alike(table[redrawn]).abs().max() < 0.6
    assert table[redrawn].std().item() == pytest.approx(table.shape[1] ** -0.5, rel=0.05)
    kept = [i for i in range(len(table)) if i not in set(redrawn)]
    assert torch.equal(table[kept], before[kept]) and table.requires_grad


def test_random_embeddings_are_left_alone(processor, small):
    before = small.language_model.model.embed_tokens.weight.detach().clone()
    texts = [caption(make_scene(seed), "ko") for seed in range(50)]
    assert redraw_collapsed_embeddings(small, processor.tokenizer, texts) == []
    assert torch.equal(small.language_model.model.embed_tokens.weight, before)


def test_finetuning_learns_what_it_is_given(processor):
    model = build_model(processor, seed=2, width=32)
    scenes = [make_scene(seed, max_things=1) for seed in range(4)]
    losses = finetune(
        model,
        processor,
        [draw(scene) for scene in scenes],
        ["caption ko"] * 4,
        [caption(scene, "ko") for scene in scenes],
        steps=30,
        per_step=4,
        muon_lr=5e-3,
        adam_lr=3e-3,
        progress=False,
    )
    assert len(losses) == 30 and losses[-1] < 0.5 * losses[0]
    with pytest.raises(ValueError, match="expected as many of each"):
        finetune(model, processor, [draw(scenes[0])], [], [])


@pytest.fixture
def lesson(processor):
    """A small model and four examples: (model, pictures, prompts, answers)."""
    scenes = [make_scene(seed, max_things=1) for seed in range(4)]
    return (
        build_model(processor, seed=2, width=32),
        [draw(scene) for scene in scenes],
        ["caption en"] * 4,
        [caption(scene) for scene in scenes],
    )


def test_a_prompt_may_begin_with_the_image_token(processor, lesson):
    """As users of transformers write it: the same training, and the row that is asked later."""
    model, pictures, prompts, answers = lesson
    other = build_model(processor, seed=2, width=32)
    settings = {"steps": 2, "per_step": 4, "progress": False}
    losses = finetune(model, processor, pictures, prompts, answers, **settings)
    assert losses == finetune(other, processor, pictures, ["<image>" + p for p in prompts], answers, **settings)
    with pytest.raises(ValueError, match="<image>"):
        finetune(model, processor, pictures, ["caption <image> en"] * 4, answers, **settings)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": []}, "0 pictures came with 4 prompts and 4 answers"),
        ({"answers": ["a"]}, "4 prompts and 1 answers"),
        ({"images": "pairs"}, r"images\[0\] is a list of 2, expected one picture"),
        ({"steps": 0}, "steps is 0, expected a whole number of 1 or more"),
        ({"per_step": 2.5}, "per_step is 2.5, expected a whole number"),
        ({"dtype": torch.float16}, "the model is in float16, expected float32 or bfloat16"),
        ({"frozen": True}, "no weight of the model requires a gradient"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(processor, lesson, changes, message):
    model, images, prompts, answers = lesson
    model.to(changes.pop("dtype", torch.float32)).requires_grad_(not changes.pop("frozen", False))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = {"images": images, "prompts": prompts, "answers": answers, "steps": 1, "progress": False, **changes}
    if given["images"] == "pairs":
        given["images"] = [[image, image] for image in images]
    with pytest.raises(ValueError, match=message):
        finetune(model, processor, **given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("trained", ["self_attn", "norm", "multi_modal_projector.linear.weight"])
def test_a_part_of_the_model_is_trained_alone(processor, lesson, trained):
    model, *examples = lesson
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    finetune(model, processor, *examples, steps=2, per_step=4, progress=False)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(trained in name for name in changed)


def test_a_model_that_is_not_finite_stays_as_it_was(processor, lesson):
    model, *examples = lesson
    with torch.no_grad():
        model.multi_modal_projector.linear.bias[0] = torch.inf
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="at step 0 the loss is nan"):
        finetune(model, processor, *examples, steps=2, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training or model.training == build_model(processor, width=32).training


def test_gradients_from_before_are_not_trained_on(processor, lesson):
    """Of a look at the loss that the caller took, and of a step that was refused because it was not finite."""
    model, *examples = lesson
    settings = {"steps": 2, "per_step": 4, "progress": False}
    start = copy.deepcopy(model.state_dict())
    expected = finetune(model, processor, *examples, **settings)
    model.load_state_dict(start)
    model(**processor(examples[1], examples[0], examples[2])).loss.backward()
    assert finetune(model, processor, *examples, **settings) == expected
    model.load_state_dict(start)
    schedule = Schedule(cycles=((2, 1.0),))
    optimizers = make_optimizers(model, schedule)
    with pytest.raises(FloatingPointError):
        training.update(model, optimizers, schedule, 0, torch.nan * model.language_model.model.norm.weight.sum())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_processes_share_the_examples_of_a_step(processor, lesson, monkeypatch):
    """Their gradients add up to those of one process, also where a process has no example at all."""
    model, *examples = lesson
    module, found = sys.modules["paligemma.training.finetune"], []

    def update(model, optimizers, schedule, step, loss):
        loss.backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        return loss.item(), 0.0

    monkeypatch.setattr(module, "update", update)
    settings = {"steps": 1, "per_step": 4, "progress": False}
    (loss,) = finetune(model, processor, *examples, **settings)
    shares = []
    for share in (slice(0, 1), slice(1, 1), slice(1, 4)):
        monkeypatch.setattr(module, "process_share", lambda count, share=share: share)
        shares += finetune(model, processor, *examples, **settings)
    assert sum(shares) == pytest.approx(loss, rel=1e-5) and shares[1] == 0
    whole, *parts = found
    for name, gradient in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), gradient, atol=1e-5, rtol=1e-3)


def test_stage3_is_written_by_one_process_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "is_main_process", lambda: False)
    command = ["stage3", "--steps", "1", "--examples", "2", "--out", str(tmp_path)]
    assert main(command) == 0 and not list(tmp_path.iterdir())


def test_easy_steps_need_an_easy_picture(processor):
    """A search for a picture of one or two objects among pictures that have more would not end."""

    class Crowded:
        count, max_things = 3, 4

        def scene(self, index):
            return next(scene for scene in map(make_scene, range(index, 99)) if len(scene.things) > 2)

    stage = training.ModelWithPatchHeads(build_model(processor, width=32), None)
    with pytest.raises(ValueError, match="none of the 3 training pictures"):
        training.mixture_loss(
            stage, processor.tokenizer, Crowded(), 2, 1, 0, None, {"caption": 1.0}, torch.device("cpu"), easy_steps=1
        )


def test_training_leaves_the_callers_random_numbers_alone(processor, lesson):
    model, *examples = lesson
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    finetune(model, processor, *examples, steps=1, per_step=2, progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(processor, lesson):
    model, pictures, prompts, answers = lesson
    inputs = processor(text=prompts, images=pictures, suffix=answers)

    def gradients(checkpointing):
        kept = set()

        def keep(tensor):
            kept.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
            return tensor

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            if checkpointing:
                with gradient_checkpointing(model):
                    loss = model(**inputs).loss
                    forward = sum(size for _, size in kept)
                    loss.backward()
            else:
                loss = model(**inputs).loss
                forward = sum(size for _, size in kept)
                loss.backward()
        return forward, loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    model.train()
    plain_bytes, plain_loss, plain = gradients(False)
    less_bytes, loss, found = gradients(True)
    assert loss == plain_loss and less_bytes < 0.5 * plain_bytes
    for a, b in zip(plain, found, strict=True):
        torch.testing.assert_close(a, b)
    assert not any("forward" in vars(layer) for layer in model.language_model.model.layers)
    losses = finetune(model, processor, pictures, prompts, answers, steps=2, progress=False, checkpointing=True)
    assert losses[1] < losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training_mode", [True, False])
def test_higher_resolution_keeps_dtype_and_mode(processor, dtype, training_mode):
    model = build_model(processor, width=32).to(dtype).train(training_mode)
    bigger = at_resolution(model, 96)
    assert {parameter.dtype for parameter in bigger.parameters()} == {dtype}
    assert {module.training for module in bigger.modules()} == {training_mode}


@pytest.mark.parametrize("image_size", [0, -8, 100, 96.0, "96"])
def test_other_resolutions_are_refused(small, image_size):
    with pytest.raises(ValueError, match="image_size is .*, expected a multiple of 8"):
        at_resolution(small, image_size)


def test_the_towers_open_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_tiny_siglip().vision_tower.config.image_size == 64
    with pytest.raises(FileNotFoundError, match=r"has no config\.json, expected a folder like .*tiny-siglip"):
        load_tiny_siglip(tmp_path)


def test_texts_for_the_contrastive_tower(processor):
    ids = text_ids(processor.tokenizer, ["a small red circle", ""])
    assert ids.shape == (2, 40) and processor.tokenizer.decode(ids[0][ids[0] != 0]) == "a small red circle"
    assert ids[1].eq(0).all()
