"""The command line: what it prints, what it draws, and one line for every mistake."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reference import make_ours, make_talkative, make_theirs, picture_bomb, pictures, processors_for, shape
from safetensors.torch import load_file, save_file

from paligemma import __main__ as command
from paligemma import generate, load_pretrained, save_pretrained
from paligemma.locations import box_to_tokens

ASSETS = Path(__file__).resolve().parents[1] / "assets"


def needs(folder: str):
    """Skips a test while something that comes with the repository, but is trained, is not there."""
    there = (ASSETS / folder / "config.json").exists()
    return pytest.mark.skipif(not there, reason=f"assets/{folder} is not there: it is trained, see chapter 13")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """A small random model that writes noise."""
    theirs = make_theirs(shape(), seed=7)
    make_talkative(theirs)
    return save_pretrained(make_ours(theirs), processors_for(shape())[0], tmp_path_factory.mktemp("m") / "random")


@pytest.fixture
def image_file(tmp_path) -> Path:
    pictures(1, 40)[0].save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def run(*arguments, **options) -> subprocess.CompletedProcess:
    """As a user would: a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "paligemma", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
        **options,
    )


def forced_answer(monkeypatch, answer: str) -> None:
    """Let the model say this, letter by letter."""
    monkeypatch.setattr(command, "stream", lambda *args: iter(answer))


def failing(capsys, *arguments) -> str:
    """The one line on standard error of a command that ends with exit code 2 and prints nothing else."""
    try:
        code = command.main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == "" and captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


# --------------------------------------------------------------------------------------------- in its own process


def test_it_answers(model_folder, image_file, tmp_path):
    output = tmp_path / "answer.png"
    files = "--image", image_file, "--model", model_folder, "--output", output
    result = run("caption en", *files, "--max-new-tokens", 8)
    assert result.returncode == 0, result.stderr
    expected = generate(*load_pretrained(model_folder), Image.open(image_file), "caption en", max_new_tokens=8)
    assert result.stdout == expected[0] + "\n"
    assert f"saved {output}" in result.stderr
    assert Image.open(output).width > 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer.png", "picture.png"], "nothing else stays"


def test_a_mistake_is_one_line_without_a_traceback(tmp_path):
    result = run("caption en", "--image", tmp_path / "missing.png")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: there is no picture ") and result.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to one process")
def test_ctrl_c_is_quiet(model_folder, image_file, tmp_path):
    endless = shutil.copytree(model_folder, tmp_path / "endless")
    config = json.loads((endless / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["max_position_embeddings"] = 10**6
    (endless / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(endless / "model.safetensors")
    weights["language_model.model.embed_tokens.weight"][1] = 0  # EOS: never the likeliest, so it goes on writing
    save_file(weights, endless / "model.safetensors")
    process = subprocess.Popen(
        [sys.executable, "-m", "paligemma", "caption en", "--image", str(image_file), "--model", str(endless),
         "--max-new-tokens", "100000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Tests that run in the background of a shell ignore Ctrl-C, and a process inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stdout.read(1), "it writes as it goes"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.strip() == b""


@needs("tiny-paligemma")
@needs("mask-tokenizer")
def test_the_demonstration(tmp_path):
    result = run("demo", "--seed", 3, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for prompt in ("caption en", "answer en ", "detect ", "segment "):
        assert prompt in result.stdout
    assert Image.open(tmp_path / "demo.png").width > 800
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]
    assert result.stdout.count("right") + result.stdout.count("found") >= 2, "it knows what it looks at"


# ------------------------------------------------------------------------------------------------- in this process


@needs("mask-tokenizer")
def test_the_demonstration_with_a_model_that_knows_nothing(model_folder, tmp_path, capsys):
    """Noise for answers, but the picture, the prompts and the truth."""
    files = "--model", str(model_folder), "--output", str(tmp_path / "d.png")
    assert command.main(["demo", *files, "--seed", "18"]) == 0
    out = capsys.readouterr().out
    assert "4 coloured shapes (seed 18)" in out and "wrong; the truth is: " in out and "0 of 1 found" in out
    assert Image.open(tmp_path / "d.png").format == "PNG"


def test_help_tells_a_newcomer_what_to_type(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for word in ("caption en", "detect ", "segment ", "answer en", "demo", "--image", "--temperature", "hf auth login"):
        assert word in text
    assert "python -m paligemma PROMPT [PROMPT ...] --image FILE" in text
    assert max(map(len, text.splitlines())) <= 120
    with pytest.raises(SystemExit) as stop:
        command.main(["demo", "--help"])
    assert stop.value.code == 0 and "--seed" in capsys.readouterr().out


def test_options_reach_the_model(model_folder, image_file, capsys):
    arguments = ["caption en", "--image", str(image_file), "--model", str(model_folder), "--max-new-tokens", "12"]
    sampling = ["--temperature", "1.5", "--top-k", "40", "--top-p", "0.9", "--seed", "3"]
    assert command.main([*arguments, *sampling, "--attention", "eager", "--device", "cpu", "--dtype", "float32"]) == 0
    model, processor = load_pretrained(model_folder)
    options = {"max_new_tokens": 12, "temperature": 1.5, "top_k": 40, "top_p": 0.9, "seed": 3}
    expected = generate(model, processor, Image.open(image_file), "caption en", **options)[0]
    assert capsys.readouterr().out == expected + "\n"
    assert expected != generate(model, processor, Image.open(image_file), "caption en", max_new_tokens=12)[0]


def test_dtype_and_attention_are_set(model_folder):
    import torch

    model, _ = command.open_model(str(model_folder), "bfloat16", "cpu", "eager")
    assert model.dtype == torch.bfloat16 and model.config.text_config.attention == "eager"


def test_the_word_demo_as_a_prompt(model_folder, image_file, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "stream", lambda model, proc, image, prompt, *_: asked.append(prompt) or iter("a"))
    assert command.main(["--image", str(image_file), "--model", str(model_folder), "demo"]) == 0
    assert asked == ["demo"]


def test_progress_for_large_checkpoints_only(model_folder, image_file, capsys, monkeypatch):
    arguments = ["a", "--image", str(image_file), "--model", str(model_folder), "--max-new-tokens", "1"]
    command.main(arguments)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(command, "LARGE", 0)
    command.main(arguments)
    assert "loading" in capsys.readouterr().err


def test_sampling_options_without_temperature_are_noted(model_folder, image_file, capsys):
    arguments = ["a", "--image", str(image_file), "--model", str(model_folder), "--max-new-tokens", "1"]
    assert command.main([*arguments, "--top-k", "3"]) == 0
    assert "--top-k and --top-p matter only with a --temperature above 0" in capsys.readouterr().err


def test_several_prompts_are_answered_together(model_folder, image_file, tmp_path, capsys):
    output = tmp_path / "answers.png"
    prompts = ["caption en", "what is the cat", "detect cat", "caption"]
    arguments = [*prompts, "--image", str(image_file), "--model", str(model_folder), "--max-new-tokens", "6"]
    assert command.main([*arguments, "--output", str(output)]) == 0
    model, processor = load_pretrained(model_folder)
    expected = [generate(model, processor, Image.open(image_file), prompt, max_new_tokens=6)[0] for prompt in prompts]
    assert capsys.readouterr().out == "\n".join(expected) + "\n"
    assert Image.open(output).width > 1000


class NotebookOutput(io.StringIO):
    """What sys.stdout is in Jupyter: it can be written to, and that is all."""

    reconfigure = None


@pytest.mark.parametrize("stdout", [io.StringIO, NotebookOutput])
def test_in_a_notebook_standard_output_is_another_one(model_folder, image_file, stdout):
    arguments = ["caption en", "--image", str(image_file), "--model", str(model_folder), "--max-new-tokens", "3"]
    with contextlib.redirect_stdout(stdout()) as printed:
        assert command.main(arguments) == 0
        assert command.main(["a", "--image", "missing.png"]) == 2
    assert printed.getvalue().endswith("\n")


def test_debugging_shows_the_whole_traceback(monkeypatch):
    monkeypatch.setenv("PALIGEMMA_DEBUG", "1")
    with pytest.raises(FileNotFoundError, match="there is no picture missing.png"):
        command.main(["a", "--image", "missing.png"])
    monkeypatch.setenv("PALIGEMMA_DEBUG", "0")
    assert command.main(["a", "--image", "missing.png"]) == 2


def test_a_folder_that_cannot_be_written_is_told_before_any_work(image_file, tmp_path, capsys, monkeypatch):
    def read_only(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(command.tempfile, "TemporaryFile", read_only)
    monkeypatch.setattr(command, "open_model", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.chdir(tmp_path)
    for arguments in (["demo"], ["a", "--image", image_file, "--output", "x.png"]):
        line = failing(capsys, *arguments)
        assert f"nothing can be saved in the folder '{tmp_path}' (Read-only file system): give --output" in line


def test_an_empty_answer_is_explained(model_folder, image_file, capsys, monkeypatch):
    forced_answer(monkeypatch, "")
    assert command.main(["detect cat", "--image", str(image_file), "--model", str(model_folder)]) == 0
    captured = capsys.readouterr()
    assert captured.out == "\n" and "the model sees nothing of that kind" in captured.err


def drawn(monkeypatch, prompt, answer, image_file, model_folder, output, *more):
    """Run it with this answer; returns the axes it drew into."""
    from paligemma import visualize

    kept = {}
    save = visualize.save_figure
    monkeypatch.setattr(visualize, "save_figure", lambda figure, path: kept.update(f=figure) or save(figure, path))
    forced_answer(monkeypatch, answer)
    arguments = [prompt, "--image", image_file, "--model", model_folder, "--output", output, *more]
    assert command.main([str(argument) for argument in arguments]) == 0
    return kept["f"].axes[0]


def test_boxes_are_drawn_where_the_answer_says(model_folder, tmp_path, monkeypatch, capsys):
    """On a picture that is not square: boxes are fractions of its height and of its width."""
    from matplotlib.patches import Rectangle

    Image.new("RGB", (200, 100), "white").save(tmp_path / "wide.png")
    answer = f"{box_to_tokens((0.25, 0.5, 0.75, 1.0))} red cat ; {box_to_tokens((0, 0, 0.5, 0.25))} dog ; <loc0001> bad"
    ax = drawn(monkeypatch, "detect red cat ; dog", answer, tmp_path / "wide.png", model_folder, tmp_path / "o.png")
    boxes = {
        tuple(round(side) for side in (*patch.get_xy(), patch.get_width(), patch.get_height()))
        for patch in ax.patches
        if isinstance(patch, Rectangle)
    }
    assert boxes == {(100, 25, 100, 50), (0, 0, 50, 50)} or boxes == {(100, 24, 100, 50), (0, 0, 50, 50)}
    assert {text.get_text() for text in ax.texts} >= {"red cat", "dog"}
    assert ax.get_title() == "detect red cat ; dog"
    captured = capsys.readouterr()
    assert captured.out == answer + "\n"
    assert "not drawn: '<loc0001> bad': it has 1 location tokens, not 4" in captured.err


@needs("mask-tokenizer")
def test_masks_are_drawn_with_their_tokenizer(model_folder, tmp_path, monkeypatch, capsys):
    from paligemma.segmentation import load_mask_tokenizer

    tokenizer = load_mask_tokenizer(ASSETS / "mask-tokenizer")
    circle = ((np.indices((100, 200)) - np.array([50, 100])[:, None, None]) ** 2).sum(0) < 40**2
    codes = tokenizer.mask_to_codes(circle, (0.1, 0.3, 0.9, 0.7))
    answer = box_to_tokens((0.1, 0.3, 0.9, 0.7)) + "".join(f"<seg{code:03d}>" for code in codes) + " ball"
    Image.new("RGB", (200, 100), "white").save(tmp_path / "wide.png")
    files = tmp_path / "wide.png", model_folder, tmp_path / "o.png"
    ax = drawn(monkeypatch, "segment ball", answer, *files, "--masks", ASSETS / "mask-tokenizer")
    mask = np.asarray(ax.images[-1].get_array())[..., 3] > 0
    assert (mask & circle).sum() / (mask | circle).sum() > 0.85
    capsys.readouterr()
    drawn(monkeypatch, "segment ball", answer, *files)
    assert "masks are not drawn: give the model's mask tokenizer with --masks" in capsys.readouterr().err
    own = tmp_path / "model"
    shutil.copytree(model_folder, own)
    shutil.copytree(ASSETS / "mask-tokenizer", own / "mask-tokenizer")
    ax = drawn(monkeypatch, "segment ball", answer, files[0], own, files[2])
    assert ((np.asarray(ax.images[-1].get_array())[..., 3] > 0) == mask).all(), "the folder's own is found"


def test_long_answers_are_wrapped_between_tokens():
    text = "<loc0001><loc0002><loc0003><loc0004> a red cat ; b"
    lines = command.wrap_tokens(text, 20).split("\n")
    assert all(len(line) <= 21 for line in lines) and len(lines) > 2
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert not any(line.startswith((">", "oc")) for line in lines)
    assert max(map(len, command.wrap_tokens("4" * 100, 20).split("\n"))) <= 20  # what the small model says of a cat


# ------------------------------------------------------------------------------------------------------- mistakes


def test_what_argparse_finds(image_file, tmp_path, capsys):
    assert "the following arguments are required: PROMPT" in failing(capsys)
    assert "the following arguments are required: --image" in failing(capsys, "caption en")
    assert "unrecognized arguments: --foo" in failing(capsys, "a", "--image", image_file, "--foo")
    assert "invalid int value: 'x'" in failing(capsys, "a", "--image", image_file, "--seed", "x")
    assert "must end in .png" in failing(capsys, "a", "--image", image_file, "--output", "answer")
    assert "must end in .png" in failing(capsys, "a", "--image", image_file, "--output", "answer.txt")
    assert "there is no folder" in failing(capsys, "a", "--image", image_file, "--output", tmp_path / "x" / "a.png")
    (tmp_path / "folder.png").mkdir()
    assert "is a folder" in failing(capsys, "demo", "--output", tmp_path / "folder.png")
    assert "invalid choice: 'int8'" in failing(capsys, "a", "--image", image_file, "--dtype", "int8")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--temperature", "-1"], "temperature is -1.0, expected 0"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--top-p", "2"], "top_p is 2.0"),
        (["--top-k", "-3"], "top_k is -3"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--device", "abacus"], "no device 'abacus'"),
        (["--model", "missing-folder"], "there is no folder missing-folder"),
        (["--model", "some/model"], "there is no folder some/model here.*hub cannot be reached"),
        (["--masks", "missing"], "no mask tokenizer at missing"),
    ],
)
def test_options_that_mean_nothing(model_folder, image_file, capsys, options, message):
    arguments = ["a", "--image", image_file, "--model", model_folder, *options]
    line = failing(capsys, *arguments)
    assert line.startswith("error: ")
    assert re.search(message, line), line


def test_pictures_that_are_none(model_folder, image_file, tmp_path, capsys):
    (tmp_path / "text.png").write_text("not a picture", encoding="utf-8")
    (tmp_path / "empty.jpg").write_bytes(b"")
    whole = image_file.read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bomb.png").write_bytes(picture_bomb(40_000, 40_000))
    for name, message in {
        "missing.png": "there is no picture",
        ".": "(it is a folder)",
        "text.png": "is no picture that can be read",
        "empty.jpg": "is no picture that can be read",
        "cut.png": "cut.png: the picture cannot be read",
        "bomb.png": "bomb.png is too large",
    }.items():
        assert message in failing(capsys, "a", "--image", tmp_path / name, "--model", model_folder)


@pytest.mark.parametrize("address", ["https://example.org/cat.jpg", "http://a/b.png", "data:image/png;base64,iVBOR"])
def test_an_address_is_no_file(address, capsys):
    line = failing(capsys, "a", "--image", address)
    assert f"error: {address} is an address, expected a file: download the picture" in line


def test_prompts_that_are_none(model_folder, image_file, capsys):
    line = failing(capsys, "what is <image> here", "--image", image_file, "--model", model_folder)
    assert "contains <image> 1 times" in line


def test_a_damaged_checkpoint(image_file, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    assert "is not valid JSON" in failing(capsys, "a", "--image", image_file, "--model", tmp_path)


def test_the_small_model_is_not_there(image_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "TINY", tmp_path / "tiny-paligemma")
    line = failing(capsys, "a", "--image", image_file)
    assert "the small model is not at" in line and "clone" in line
    assert "the small model is not at" in failing(capsys, "demo", "--output", tmp_path / "demo.png")
    assert not (tmp_path / "demo.png").exists()


def test_a_seed_without_a_scene(capsys, tmp_path):
    assert "seed is -1, expected 0 or more" in failing(capsys, "demo", "--seed", "-1", "--output", tmp_path / "d.png")


def test_a_full_disk_while_saving(model_folder, image_file, tmp_path, capsys, monkeypatch):
    """The answer is printed before; what was at the output's place stays as it was."""
    from matplotlib.figure import Figure

    def full(self, path, **kwargs):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "o.png").write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", full)
    forced_answer(monkeypatch, "a cat")
    arguments = ["a", "--image", str(image_file), "--model", str(model_folder), "--output", str(tmp_path / "o.png")]
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "a cat\n" and "No space left on device" in captured.err
    assert (tmp_path / "o.png").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.png", "picture.png"]


def test_an_interrupted_run(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "ask", interrupted)
    assert command.main(["a", "--image", "x"]) == 130
    assert "Traceback" not in capsys.readouterr().err
