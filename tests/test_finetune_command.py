"""`python -m paligemma.finetune`: it learns, says how well, goes on exactly, and leaves files that others open."""

import copy
import json
import shutil

import pytest
import reference
import torch
from PIL import Image
from transformers import PaliGemmaForConditionalGeneration as Reference

from paligemma import ASSETS, generate, load_pretrained
from paligemma.checkpoint import EMBEDDING, read_config
from paligemma.finetune import Plan, load_adapter, recipe
from paligemma.finetune.__main__ import main
from paligemma.finetune.drawings import main as make_folder
from paligemma.finetune.folder import Example, read_folder
from paligemma.modeling_gemma import PaliGemmaConfig
from paligemma.published import PUBLISHED
from paligemma.training import Metric

TINY = ASSETS / "tiny-paligemma"
COLOURS = {"red": (220, 30, 30), "blue": (40, 80, 220), "green": (30, 160, 60), "black": (25, 25, 28)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Plain fields of colour, asked in a way that the model never heard: eight to learn from, four to see."""
    folder = tmp_path_factory.mktemp("own")
    for split, shades in (("train", (0, 6)), ("valid", (3,))):
        lines = []
        for shade in shades:
            for name, rgb in COLOURS.items():
                (folder / split).mkdir(exist_ok=True)
                Image.new("RGB", (40, 30), tuple(level + shade for level in rgb)).save(
                    folder / split / f"{name}{shade}.png"
                )
                lines.append({"image": f"{name}{shade}.png", "prefix": "caption ko", "suffix": name})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / split / "annotations.jsonl").write_text(text, encoding="utf-8")
    return folder


def arguments(folder, out, *more):
    return [str(folder), "--out", str(out), "--device", "cpu", "--epochs", "6", "--batch", "4", *more]


def epochs(out):
    return [json.loads(line) for line in (out / "epochs.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A whole run with all weights: its folder."""
    out = tmp_path_factory.mktemp("run")
    assert main(arguments(folder, out)) == 0
    return out


def ask(model, processor, folder):
    pictures = [Image.open(folder / f"valid/{name}3.png") for name in COLOURS]
    return generate(model, processor, pictures, ["caption ko"] * 4, max_new_tokens=8)


def test_the_four_examples_that_are_drawn_show_both_questions(tmp_path, monkeypatch):
    """`finetune.drawings` asks each picture for its name and its box, in turn: both are to be seen in examples.png."""
    (tmp_path / "drawings").mkdir()
    for name in ("dog", "cat"):
        picture = Image.new("RGB", (40, 40), "white")
        picture.paste("red", (10, 10, 30, 30))
        picture.save(tmp_path / "drawings" / f"{name}.png")
    assert make_folder([str(tmp_path / "drawings"), str(tmp_path / "own"), "--per-drawing", "8"]) == 0
    drawn = []
    monkeypatch.setattr("paligemma.finetune.__main__.draw_examples", lambda examples, *_: drawn.extend(examples))
    assert main([str(tmp_path / "own"), "--check", "--out", str(tmp_path / "run")]) == 0
    assert len(drawn) == 4 and {one.prompt.split()[0] for one in drawn} == {"answer", "detect"}


def test_a_long_answer_is_told_in_part():
    example = Example(ASSETS / "cat.jpg", "caption en", "a cat", "line 1")
    assert "'a cat'" in recipe.told_answer(example, "a cat") and "…" not in recipe.told_answer(example, "x" * 200)
    assert len(recipe.told_answer(example, "square" * 300)) < 300


def test_it_learns_and_leaves_a_model_that_opens(run, folder):
    lines = epochs(run)
    assert [line["epoch"] for line in lines] == list(range(7))
    assert lines[0]["exact"] == 0.0 and lines[-1]["exact"] >= 0.75 and lines[-1]["without <eos>"] == 0.0
    assert {path.name for path in run.iterdir()} == {
        "answers.jsonl", "curves.png", "epochs.jsonl", "examples.png", "log.jsonl", "model", "state.pt"
    }  # fmt: skip
    model, processor = load_pretrained(run / "model")
    said = ask(model, processor, folder)
    assert sum(a == b for a, b in zip(said, COLOURS, strict=True)) == 4 * lines[-1]["exact"]
    answers = [json.loads(line) for line in (run / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["said"] for line in answers] == said
    theirs = Reference.from_pretrained(run / "model").eval()
    inputs = processor(["caption ko"], [Image.open(folder / "valid/red3.png")])
    ids = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(ids) == said[0]


def test_an_interrupted_run_goes_on_to_the_same_weights(run, folder, tmp_path, monkeypatch, capsys):
    real, asked = recipe.validate, []

    def validate(*given):
        asked.append(len(asked))
        if len(asked) == 4:
            raise OSError(28, "No space left on device")
        return real(*given)

    monkeypatch.setattr(recipe, "validate", validate)
    assert main(arguments(folder, tmp_path)) == 1
    assert "No space left" in capsys.readouterr().err and len(epochs(tmp_path)) == 3
    assert main(arguments(folder, tmp_path)) == 0
    assert "learned by heart" not in capsys.readouterr().out  # what was done is not done again
    assert epochs(tmp_path) == epochs(run) and len(asked) == 4 + 4
    one, two = (load_pretrained(out / "model")[0].state_dict() for out in (run, tmp_path))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_other_options_in_the_same_folder_are_refused(run, folder, capsys):
    assert main(arguments(folder, run, "--lr", "0.001")) == 1
    assert "holds a run with other settings" in capsys.readouterr().err


def test_changed_examples_in_the_same_folder_are_refused(run, folder, tmp_path, capsys):
    """As many examples as before, but one has another answer, or another picture: that is another run."""
    for change in ("answer", "picture"):
        other = tmp_path / change
        shutil.copytree(folder, other)
        if change == "answer":
            path = other / "train/annotations.jsonl"
            path.write_text(path.read_text(encoding="utf-8").replace('"red"', '"pink"'), encoding="utf-8")
        else:
            Image.new("RGB", (40, 30), (1, 2, 3)).save(other / "train/red0.png")
        assert main(arguments(other, run)) == 1
        assert "holds a run with other settings" in capsys.readouterr().err


def test_names_are_counted_apart_from_boxes(tiny, monkeypatch):
    """`exact` counts all answers; `exact words` those without location tokens, where there are both kinds."""
    box = "<loc0100><loc0100><loc0900><loc0900> cat"
    examples = [Example(ASSETS / "cat.jpg", "p", answer, "line") for answer in ("cat", "dog", box, box)]
    said = ["cat", "cat", "<loc0101><loc0100><loc0900><loc0900> cat", ""]
    monkeypatch.setattr(recipe, "generate", lambda *_, **__: (said, [[1.0]] * 4))
    figures, _ = recipe.validate(*tiny, examples, recipe.Plan())
    assert figures["exact"] == 0.25 and figures["exact words"] == 0.5
    monkeypatch.setattr(recipe, "generate", lambda *_, **__: (said[:2], [[1.0]] * 2))
    assert "exact words" not in recipe.validate(*tiny, examples[:2], recipe.Plan())[0]


def test_lora_leaves_an_adapter_and_the_merged_model(folder, tmp_path):
    assert main(arguments(folder, tmp_path, "--lora", "4", "--merge")) == 0
    assert epochs(tmp_path)[-1]["exact"] >= 0.5
    state = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
    assert state and all("lora_" in name for name in state)  # 7 MB of weights are not written each minute
    model, processor = load_pretrained(TINY)
    load_adapter(model, tmp_path / "adapter")
    merged, _ = load_pretrained(tmp_path / "model")
    assert ask(model, processor, folder) == ask(merged, processor, folder)


def test_lora_with_embeddings_leaves_an_adapter_that_holds_them(folder, tmp_path, capsys):
    assert main(arguments(folder, tmp_path, "--lora", "4", "--train-embeddings")) == 0
    assert "that the model was never taught begin with fresh embeddings" in capsys.readouterr().out
    lines = epochs(tmp_path)
    assert lines[-1]["exact"] >= 0.75
    state = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
    assert [name for name in state if "lora_" not in name] == [f"model.{EMBEDDING}"]
    model, processor = load_pretrained(TINY)
    load_adapter(model, tmp_path / "adapter")
    assert sum(a == b for a, b in zip(ask(model, processor, folder), COLOURS, strict=True)) == 4 * lines[-1]["exact"]


def test_a_part_and_the_embeddings_are_trained():
    model, _ = load_pretrained(TINY)
    recipe.prepare(model, Plan(part="projector", train_embeddings=True))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {EMBEDDING, "multi_modal_projector.linear.weight", "multi_modal_projector.linear.bias"}


def test_only_a_part_is_trained(folder, tmp_path):
    assert main(arguments(folder, tmp_path, "--part", "attention", "--epochs", "1")) == 0
    before, after = (load_pretrained(path)[0].state_dict() for path in (TINY, tmp_path / "model"))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed and all("language_model" in name and "self_attn" in name for name in changed)


def test_check_alone_trains_nothing(folder, tmp_path, capsys):
    assert main(arguments(folder, tmp_path, "--check")) == 0
    told = capsys.readouterr().out
    assert "8 train, 4 valid, 0 test; 0 errors, 0 warnings" in told and "weights 0.01 GB" in told
    assert [path.name for path in tmp_path.iterdir()] == ["examples.png"]


def test_errors_stop_the_training(folder, tmp_path, capsys):
    (tmp_path / "train").mkdir()
    line = {"image": "none.png", "prefix": "caption en", "suffix": "x"}
    (tmp_path / "train/annotations.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert main(arguments(tmp_path, tmp_path / "out")) == 1
    assert "train/annotations.jsonl:1: error: there is no picture" in capsys.readouterr().out
    assert main(arguments(tmp_path / "nowhere", tmp_path / "out")) == 1
    assert "error: there is no folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def unequal(folder):
    """Eight examples with answers of unequal length."""
    return [
        Example(folder / f"train/{name}{shade}.png", "caption en", "a red circle " * (1 + shade), "")
        for name in COLOURS
        for shade in (0, 6)
    ]


def gradients(model, processor, examples, most=8):
    """Loss, metrics and gradients of one batch, as if the memory sufficed for `most` pictures at a time."""
    student = copy.deepcopy(model)
    real = student.get_image_features

    def features(pixels):
        if len(pixels) > most:
            raise torch.cuda.OutOfMemoryError
        return real(pixels)

    student.get_image_features = features
    loss, metrics = recipe.epoch_loss(student, processor, examples, Plan(batch=8))(0)
    loss.backward()
    return loss.item(), metrics, {name: p.grad for name, p in student.named_parameters()}


def test_a_batch_in_parts_has_the_gradient_of_the_whole(unequal):
    model, processor = load_pretrained(TINY)
    loss, metrics, whole = gradients(model, processor, unequal)
    parted_loss, parted_metrics, parted = gradients(model, processor, unequal, most=2)
    assert parted_loss == pytest.approx(loss, rel=1e-5) and metrics == parted_metrics
    assert metrics["answers right"].count == 8
    for name, gradient in whole.items():
        torch.testing.assert_close(parted[name], gradient, atol=1e-4, rtol=1e-3)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        gradients(model, processor, unequal, most=0)


def test_the_shares_of_three_processes_add_up_to_the_whole(unequal, monkeypatch):
    model, processor = load_pretrained(TINY)
    loss, metrics, whole = gradients(model, processor, unequal)
    shares = []
    for rank in range(3):
        third = [slice(0, 2), slice(2, 5), slice(5, 8)][rank]
        monkeypatch.setattr(recipe, "process_share", lambda count, third=third: third)
        shares.append(gradients(model, processor, unequal))
    assert sum(share[0] for share in shares) == pytest.approx(loss, rel=1e-5)
    assert sum((share[1]["answers right"] for share in shares), Metric(0, 0)) == metrics["answers right"]
    for name, gradient in whole.items():
        torch.testing.assert_close(sum(share[2][name] for share in shares), gradient, atol=1e-4, rtol=1e-3)


def test_a_process_without_an_example_adds_nothing(unequal, monkeypatch):
    """17 examples in batches of 16: the last batch is one example, and the other processes have none."""
    model, processor = load_pretrained(TINY)
    monkeypatch.setattr(recipe, "process_share", lambda count: slice(0, 0))
    loss, metrics, found = gradients(model, processor, unequal)
    assert loss == 0 and metrics == {"answers right": Metric(0, 0)}
    assert all(gradient is not None and not gradient.any() for gradient in found.values())


def test_the_memory_of_a_large_model_is_computed_before_it_is_loaded():
    """3 thousand million weights in bfloat16; rank 8 on the decoder trains 9,805,824 numbers (Gemma 2B, 18 layers)."""
    config = PaliGemmaConfig.from_dict(PUBLISHED["paligemma-3b-pt-224"])
    whole = recipe.memory(config, Plan(), torch.bfloat16)
    assert 5.8 < whole["weights"] < 5.9 and whole["gradients"] == whole["weights"]
    lora = recipe.memory(config, Plan(lora=8, part="decoder"), torch.bfloat16)
    assert lora["gradients"] * 1e9 == 4 * 9_805_824 and lora["optimiser"] == 2 * lora["gradients"]
    table = recipe.memory(config, Plan(lora=8, part="decoder", train_embeddings=True), torch.bfloat16)
    assert (table["gradients"] - lora["gradients"]) * 1e9 == pytest.approx(257_216 * 2_048 * 2)
    assert lora["weights"] == pytest.approx(whole["weights"] + lora["gradients"], abs=1e-6)
    assert recipe.memory(read_config(TINY), Plan(), torch.float32)["weights"] < 0.01


@pytest.mark.parametrize("text_model", ["gemma", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_generations_in_both_precisions(folder, tmp_path, text_model, dtype):
    """Random small models: the loss falls, and the adapter says what the trained model says."""
    shape = reference.shape(text_model)
    model, _ = reference.make_pair(shape)
    processor, _ = reference.processors_for(shape)
    model.to(dtype)
    plain = copy.deepcopy(model)
    plan = Plan(epochs=4, batch=4, lora=4, part="all", lr=1e-2, max_answer=8)
    recipe.prepare(model, plan)
    splits = {split: read_folder(folder).splits[split] for split in ("train", "valid")}
    lines = recipe.train_on(model, processor, splits, plan, tmp_path, "random", tell=lambda text: None)
    assert lines[-1]["loss"] < 0.8 * lines[1]["loss"]
    load_adapter(plain, tmp_path / "adapter")
    inputs = processor(["caption ko"] * 2, [example.picture() for example in splits["valid"][:2]])
    with torch.no_grad():
        assert torch.equal(plain(**inputs).logits, model.eval()(**inputs).logits)
