"""The training stages: the loss is the formula, and interruptions, processes and full disks change nothing."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
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
    questions_loss,
    redraw_collapsed_embeddings,
    train,
)
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
    model = Toy()
    train(model, toy_loss(model), toy_schedule(), tmp_path, stop_at=2)
    with pytest.raises(ValueError, match="a run with other settings"):
        train(model, toy_loss(model), toy_schedule(muon_lr=1.0), tmp_path)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    model = Toy()
    with pytest.raises(FloatingPointError, match="at step 0 the loss is nan"):
        train(model, lambda step: (model.first.weight.sum() * float("nan"), {}), toy_schedule(), tmp_path)


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


def test_texts_for_the_contrastive_tower(processor):
    ids = text_ids(processor.tokenizer, ["a small red circle", ""])
    assert ids.shape == (2, 40) and processor.tokenizer.decode(ids[0][ids[0] != 0]) == "a small red circle"
    assert ids[1].eq(0).all()
