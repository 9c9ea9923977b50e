"""Checkpoints: every layout in use, both ways between transformers and us, and what can be wrong with a file."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import safetensors.torch
import torch
import transformers
from huggingface_hub import errors
from reference import (
    GEMMA2_SHAPES,
    GEMMA_SHAPES,
    SUFFIXES,
    VOCAB_SIZE,
    assert_close,
    call_theirs,
    make_inputs,
    make_ours,
    make_pair,
    make_talkative,
    make_theirs,
    pictures,
    processors_for,
    shape,
    toy_processors,
)
from safetensors.torch import load_file, save_file

from paligemma import checkpoint as checkpoint_module
from paligemma import generate, load_pretrained, save_pretrained
from paligemma.checkpoint import canonical_name, find_folder

EMBEDDING = "language_model.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def pair():
    """(ours, transformers', our processor) with the same weights."""
    ours, theirs = make_pair(shape())
    return ours, theirs, processors_for(shape())[0]


@pytest.fixture
def folder(pair, tmp_path) -> Path:
    """A checkpoint written by us, in one file; each test may spoil it."""
    ours, _, processor = pair
    return save_pretrained(ours, processor, tmp_path / "model")


def to_layout(state: dict, layout: str) -> dict:
    """Published names to one of the four layouts: A published, B transformers 4.52, C and D transformers 5."""
    renamed = {}
    for name, tensor in state.items():
        if layout in "CD":
            name = name.replace("vision_tower.vision_model.", "vision_tower.")
        if layout in "BC":
            name = "model." + name.replace("language_model.model.", "language_model.")
        renamed[name] = tensor
    return renamed


def write_weights(folder: Path, state: dict, shards: int) -> None:
    """The tensors of `state` in one file, or in several with an index."""
    for path in folder.glob("model*"):
        path.unlink()
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return
    weight_map = {}
    for i, name in enumerate(sorted(state)):
        weight_map[name] = f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors"
    for shard in set(weight_map.values()):
        save_file({name: state[name] for name in state if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


def load_state(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


# ------------------------------------------------------------------------------------------ what can be opened


@pytest.mark.parametrize("head", [None, "lm_head.weight", "language_model.lm_head.weight"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("layout", "ABCD")
def test_four_layouts_single_and_sharded_with_and_without_head(pair, folder, layout, shards, head):
    ours, theirs, processor = pair
    state = to_layout(ours.state_dict(), layout)
    assert len(set(state)) == len(ours.state_dict())
    if head:
        state[head] = ours.state_dict()[EMBEDDING].clone()
    write_weights(folder, state, shards)
    model, opened = load_pretrained(folder)
    assert not model.training
    for name, tensor in ours.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    inputs = opened(text=["caption en"], images=pictures(1))
    assert_close(model(**inputs).logits, theirs(**inputs).logits)


def test_layout_of_the_transformers_in_use_is_c(pair):
    """Their names in memory, as this test's own table has them."""
    ours, theirs, _ = pair
    assert set(to_layout(ours.state_dict(), "C")) | {"lm_head.weight"} == set(theirs.state_dict())
    for layout in "ABCD":
        assert {canonical_name(name) for name in to_layout(ours.state_dict(), layout)} == set(ours.state_dict())


def test_a_head_of_its_own_is_refused(pair, folder):
    ours, _, _ = pair
    state = dict(ours.state_dict())
    state["lm_head.weight"] = state[EMBEDDING] + 1
    write_weights(folder, state, 1)
    with pytest.raises(ValueError, match="output head of their own.*tied"):
        load_pretrained(folder)


@pytest.mark.parametrize("settings", [*GEMMA_SHAPES.values(), *GEMMA2_SHAPES.values()], ids=str)
def test_written_by_transformers_opens_in_ours(settings, tmp_path):
    theirs = make_theirs(settings)
    theirs.save_pretrained(tmp_path)
    processors_for(settings)[1].save_pretrained(tmp_path)
    model, processor = load_pretrained(tmp_path)
    inputs = make_inputs(settings, suffixes=SUFFIXES)
    opened = processor(text=["caption en"], images=pictures(1, settings["vision"]["image_size"]))
    assert torch.equal(opened["pixel_values"][0], inputs["pixel_values"][0])
    real = inputs["attention_mask"].bool()
    assert_close(model(**inputs).logits[real], theirs(**inputs).logits[real])


@pytest.mark.parametrize("max_shard_size", ["5GB", "30KB"])
@pytest.mark.parametrize("name", ["gemma", "gemma2"])
def test_written_by_us_opens_in_transformers_and_says_the_same(name, max_shard_size, tmp_path):
    theirs = make_theirs(shape(name, sliding_window=9, final_logit_softcapping=None, rope_parameters={
        "rope_type": "default", "rope_theta": 50.0}) if name == "gemma2" else shape(), seed=7)  # fmt: skip
    make_talkative(theirs)
    ours, processor = make_ours(theirs), processors_for(shape())[0]
    save_pretrained(ours, processor, tmp_path / "new", max_shard_size=max_shard_size)
    files = len(list((tmp_path / "new").glob("*.safetensors")))
    assert files == 1 if max_shard_size == "5GB" else files > 2
    opened, info = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        tmp_path / "new", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    their_processor = transformers.AutoProcessor.from_pretrained(tmp_path / "new")
    images = pictures(1, 33)
    inputs = call_theirs(their_processor, ["caption en"], [images])
    mine = processor(text=["caption en"], images=images)
    for key in mine:
        assert torch.equal(mine[key], inputs[key]), key
    inputs.pop("labels")
    assert_close(ours(**mine).logits, opened(**inputs).logits)
    tokens = opened.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    said = their_processor.decode(tokens, skip_special_tokens=True)
    assert generate(ours, processor, images, ["caption en"], max_new_tokens=12) == [said]
    assert generate(*load_pretrained(tmp_path / "new"), images, ["caption en"], max_new_tokens=12) == [said]


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_the_files_unless_given(pair, folder, dtype):
    ours, _, _ = pair
    write_weights(folder, {name: tensor.bfloat16() for name, tensor in ours.state_dict().items()}, 1)
    model, _ = load_pretrained(folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype or torch.bfloat16}
    for name, tensor in ours.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.bfloat16().to(dtype or torch.bfloat16)), name


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_chosen_on_the_way_in(folder, attention):
    model, _ = load_pretrained(folder, attention=attention)
    assert {module.attention for module in model.modules() if hasattr(module, "attention")} == {attention}
    with pytest.raises(ValueError, match="attention is 'flash'"):
        load_pretrained(folder, attention="flash")


@pytest.mark.parametrize(
    "dtype, expected", [("bfloat16", torch.bfloat16), ("float64", torch.float64), ("auto", torch.float32)]
)
def test_dtype_by_name(folder, dtype, expected):
    assert load_pretrained(folder, dtype=dtype)[0].dtype == expected


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", 5.5])
def test_device_that_is_not_there(folder, device):
    with pytest.raises(ValueError, match=f"has no device '{device}', expected cpu"):
        load_pretrained(folder, device=device)


@pytest.mark.parametrize("dtype", ["bfloat", "int8", torch.int64, "nn", 16, float, "float8_e4m3fn", torch.complex64])
def test_dtype_that_weights_cannot_have(folder, dtype):
    with pytest.raises(ValueError, match="dtype is .*, expected float32, bfloat16"):
        load_pretrained(folder, dtype=dtype)


def test_only_the_head_of_the_tied_weights(pair, folder):
    """What safetensors' save_model writes for tied weights: one tensor, under one of its names."""
    ours, theirs, _ = pair
    (folder / "model.safetensors").unlink()
    safetensors.torch.save_model(theirs, str(folder / "model.safetensors"))
    names = set(load_state(folder))
    assert ("lm_head.weight" in names) != any(name.endswith("embed_tokens.weight") for name in names)
    state = dict(ours.state_dict())
    for head in ("lm_head.weight", "language_model.lm_head.weight"):
        write_weights(folder, {name: state[name] for name in state if name != EMBEDDING} | {head: state[EMBEDDING]}, 1)
        model, _ = load_pretrained(folder)
        assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)


def test_a_single_file_goes_before_an_index_as_in_transformers(pair, folder):
    """transformers 5 saves a fine-tuned model as one file and leaves the index of the shards that it came in."""
    ours, theirs, _ = pair
    write_weights(folder, {name: torch.zeros_like(tensor) for name, tensor in ours.state_dict().items()}, 2)
    theirs.save_pretrained(folder)
    assert (folder / "model.safetensors.index.json").exists() and (folder / "model.safetensors").exists()
    for opened in (load_pretrained(folder)[0], transformers.PaliGemmaForConditionalGeneration.from_pretrained(folder)):
        assert any(parameter.any() for parameter in opened.parameters())


def test_progress_is_shown_when_asked(folder, capsys):
    load_pretrained(folder)
    assert capsys.readouterr().err == ""
    load_pretrained(folder, progress=True)
    assert "loading" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- memory and safety

MEASURE = """
import os, sys
from paligemma import load_pretrained
import torch

def status(key):
    for line in open("/proc/self/status", encoding="ascii"):
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024

small, big = sys.argv[1:]
load_pretrained(small)  # everything imported, everything warm
for dtype in (torch.float32, torch.bfloat16):
    if os.fork() == 0:  # a process of its own, whose peak starts from here
        peak, own = status("VmHWM"), status("RssAnon")
        model, _ = load_pretrained(big, dtype=dtype)
        total = sum(float(parameter.detach().sum()) for parameter in model.parameters())  # touch every page
        print(status("VmHWM") - peak, status("RssAnon") - own, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Some 200 MB of random numbers in a checkpoint folder."""
    settings = shape(D=512, ffn=2048, layers=11, H=8, d=64, H_kv=2, D_image=64)
    theirs = make_theirs(settings)
    folder = tmp_path_factory.mktemp("large")
    save_pretrained(make_ours(theirs), toy_processors()[0], folder)
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from /proc, which only Linux has")
def test_loading_does_not_hold_two_copies(large, folder):
    size = (large / "model.safetensors").stat().st_size
    assert size > 150e6
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(large)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    (peak, own), (cast_peak, cast_own) = (map(int, line.split()) for line in result.stdout.splitlines())
    # In the file's own dtype the weights are the mapped file itself.
    assert 0.9 * size < peak < 1.3 * size
    assert own < 0.1 * size
    # Cast to bfloat16: half the size, and the pages of the file, which the system may drop at any time.
    assert 0.4 * size < cast_own < 0.65 * size
    assert cast_peak < 1.65 * size


def test_changing_loaded_weights_never_changes_the_file(folder):
    before = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    model, _ = load_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    del model
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == before
    assert any(parameter.any() for parameter in load_pretrained(folder)[0].parameters())


def test_a_loaded_model_trains_and_saves_over_itself(folder):
    model, processor = load_pretrained(folder)
    inputs = make_inputs(shape(), suffixes=SUFFIXES)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model(**inputs).loss
    before.backward()
    optimiser.step()
    after = model(**inputs).loss.item()
    assert after < before.item()
    save_pretrained(model, processor, folder)
    assert load_pretrained(folder)[0](**inputs).loss.item() == pytest.approx(after, abs=1e-6)
    assert model(**inputs).loss.item() == pytest.approx(after, abs=1e-6), "the old mapping still holds"


# --------------------------------------------------------------------------------------------- what is wrong


def test_missing_key(folder):
    state = load_state(folder)
    del state["multi_modal_projector.linear.bias"], state[EMBEDDING]
    write_weights(folder, state, 1)
    with pytest.raises(ValueError, match=f"missing tensor multi_modal.*linear.bias; missing tensor {EMBEDDING}"):
        load_pretrained(folder)


def test_unexpected_key(folder):
    write_weights(folder, load_state(folder) | {"vision_tower.head.probe": torch.zeros(1)}, 1)
    with pytest.raises(ValueError, match=r"unexpected tensor vision_tower\.head\.probe"):
        load_pretrained(folder)


def test_wrong_shape(folder):
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    write_weights(folder, load_state(folder) | {name: torch.zeros(48, 31)}, 1)
    with pytest.raises(ValueError, match=rf"{name} has shape \[48, 31\], expected \[48, 32\]"):
        load_pretrained(folder)


def test_a_tensor_under_two_names(folder):
    state = load_state(folder)
    write_weights(folder, state | {"model.language_model.norm.weight": torch.zeros(32)}, 1)
    with pytest.raises(ValueError, match="stands twice"):
        load_pretrained(folder)


def test_weights_that_are_no_real_numbers(folder):
    write_weights(folder, {name: tensor.to(torch.int8) for name, tensor in load_state(folder).items()}, 1)
    with pytest.raises(ValueError, match="int8.*expected.*floating"):
        load_pretrained(folder)


def test_many_surprises_are_summed_up(folder):
    write_weights(folder, {"foo": torch.zeros(1)}, 1)
    with pytest.raises(ValueError, match=r"unexpected tensor foo;.*\(and \d+ more\).*fetch the folder again") as caught:
        load_pretrained(folder)
    assert len(str(caught.value)) < 1500 and str(folder) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_truncated_file(folder, keep):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off.*fetch the file again"):
        load_pretrained(folder)


def test_missing_shard(folder):
    write_weights(folder, load_state(folder), 3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks model-00002-of-00003\.safetensors.*fetch it again"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "weight_map, message",
    [
        ({}, "lacks every shard"),
        (None, "index.json: weight_map is None, expected an object with keys"),
        ([1], r"index.json: weight_map is \[1\], expected an object"),
        ({"a": 3}, "index.json: weight_map gives 'a' the file 3, expected the name of a file in this folder"),
        ({"a": "../other/model.safetensors"}, "weight_map gives 'a' the file '../other.*, expected the name of a file"),
        ({"a": "/etc/passwd"}, "weight_map gives 'a' the file '/etc/passwd'"),
        ({"a": "..\\model.safetensors"}, "weight_map gives 'a' the file"),
        ({"a": ".."}, "weight_map gives 'a' the file '..'"),
        ({"a": "deep"}, "lacks deep, named in"),  # a folder
        ({str(i): f"{i:05d}.safetensors" for i in range(10_000)}, r"lacks 00000.*\(and 9992 more\), named in"),
    ],
)
def test_index_that_names_no_files_of_the_folder(folder, weight_map, message):
    (folder / "model.safetensors").unlink()
    (folder / "deep").mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    with pytest.raises((FileNotFoundError, ValueError), match=message) as caught:
        load_pretrained(folder)
    assert len(str(caught.value)) < 600


def test_shards_without_an_index(folder):
    write_weights(folder, load_state(folder), 3)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"holds model-00001.* but not model.safetensors.index.json.*incomplete"
    ):
        load_pretrained(folder)


def test_only_bin_files(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="holds no model.safetensors.*only safetensors are read"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not valid JSON"),
        (b'{"text_config": ', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[1, 2]", "holds a list, expected an object"),
        (b'{"model_type": "llava", "text_config": 3}', "configuration of a 'llava', not of PaliGemma"),
    ],
)
def test_configuration_that_is_none(folder, content, message):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def test_another_decoder(folder):
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change_json(folder / "config.json", text_config=values["text_config"] | {"model_type": "mistral"})
    with pytest.raises(ValueError, match="text_config: model_type is 'mistral', expected 'gemma' or 'gemma2'"):
        load_pretrained(folder)


def test_no_configuration(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json: is it a checkpoint folder"):
        load_pretrained(folder)


def test_no_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer that can be opened.*tokenizer\.json"):
        load_pretrained(folder)


def test_damaged_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": ', encoding="utf-8")
    with pytest.raises((FileNotFoundError, ValueError), match="tokenizer"):
        load_pretrained(folder)


def test_tokenizer_of_another_model(folder):
    change_json(folder / "config.json", image_token_index=VOCAB_SIZE - 1)
    with pytest.raises(ValueError, match=f"gives <image> the id .*, config.json says {VOCAB_SIZE - 1}"):
        load_pretrained(folder)


# ---------------------------------------------------------------------------------------------------- the hub


@pytest.mark.parametrize("name", ["not/here/at/all", "./missing", "/missing/folder", "missing", "", "a/", "~/missing"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(FileNotFoundError, match="there is no folder .*google/paligemma-3b-mix-224"):
        load_pretrained(name)


def test_a_path_is_never_looked_up_on_the_hub():
    with pytest.raises(FileNotFoundError, match="there is no folder missing/folder"):
        load_pretrained(Path("missing/folder"))


def test_a_file_is_no_folder(folder):
    with pytest.raises(FileNotFoundError, match="is a file: give the folder"):
        load_pretrained(folder / "model.safetensors")


def test_no_network(tmp_path, monkeypatch):
    """For real: offline (conftest.py says so), and with an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert constants.HF_HUB_OFFLINE
    with pytest.raises(ConnectionError) as caught:
        load_pretrained("google/paligemma-3b-pt-224")
    assert str(caught.value) == (
        "there is no folder google/paligemma-3b-pt-224 here, it was not downloaded before, and the hub cannot be "
        "reached: check the path, or the network connection"
    )


def hub_error(kind, status):
    response = httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/x/y"))
    return getattr(errors, kind)("403 Client Error: a long technical text", response=response)


@pytest.mark.parametrize(
    "error, expected, message",
    [
        (lambda: hub_error("GatedRepoError", 403), PermissionError, "accept its licence.*huggingface.co/x/y.*hf auth"),
        (lambda: hub_error("RepositoryNotFoundError", 404), FileNotFoundError, "no such model on the hub.*logged in"),
        (lambda: hub_error("RevisionNotFoundError", 404), FileNotFoundError, "x/y has no revision 'odd' on the hub"),
        (lambda: hub_error("HfHubHTTPError", 500), ConnectionError, "hub cannot be reached"),
        (lambda: OSError(errno.ENETUNREACH, "unreachable"), ConnectionError, "hub cannot be reached"),
        (lambda: OSError(errno.ENOSPC, "No space left on device"), OSError, "x/y could not be stored.*No space left"),
        (lambda: httpx.ReadTimeout("timed out"), ConnectionError, "hub cannot be reached"),
        (lambda: errors.HFValidationError("a long technical text"), FileNotFoundError, "no such model on the hub"),
    ],
)
def test_what_the_hub_may_answer(monkeypatch, error, expected, message):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(expected, match=message) as caught:
        load_pretrained("x/y", revision="odd")
    assert type(caught.value) is expected
    assert "\n" not in str(caught.value) and "technical" not in str(caught.value)


def test_what_the_hub_sends_is_opened(folder, monkeypatch):
    import huggingface_hub

    asked = {}

    def send(name, revision, allow_patterns):
        asked[name], asked["revision"] = allow_patterns, revision
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", send)
    model, _ = load_pretrained("x/y")
    assert model.config.text_config.hidden_size == 32
    assert "*.safetensors" in asked["x/y"] and not any("bin" in pattern for pattern in asked["x/y"])
    assert asked["revision"] is None
    load_pretrained("x/y", revision="bfloat16")
    assert asked["revision"] == "bfloat16"


@pytest.mark.parametrize("revision", ["bfloat16", "", 3])
def test_a_folder_has_no_revision(folder, revision):
    with pytest.raises(ValueError, match="revision is .*expected"):
        load_pretrained(folder, revision=revision)


def test_a_folder_of_the_same_name_goes_first(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "x").mkdir()
    shutil.copytree(folder, folder.parent / "x" / "y")
    assert find_folder("x/y") == Path("x/y")


# ------------------------------------------------------------------------------------------------------ saving


def fingerprint(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("failing_call", [1, 2])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), "safetensors"])
def test_a_full_disk_leaves_the_old_checkpoint(pair, folder, monkeypatch, error, failing_call):
    from safetensors import SafetensorError

    ours, _, processor = pair
    before, calls = fingerprint(folder), []

    def full(state, path, **kwargs):
        calls.append(path)
        if len(calls) == failing_call:
            Path(path).write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device") if error == "safetensors" else error
        save_file(state, path, **kwargs)

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(OSError, match="could not be written: .*No space left on device"):
        save_pretrained(ours, processor, folder, max_shard_size="30KB")
    assert len(calls) == failing_call
    assert fingerprint(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing is left beside it"


def test_ctrl_c_leaves_the_old_checkpoint(pair, folder, monkeypatch):
    ours, _, processor = pair
    before = fingerprint(folder)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_module, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(ours, processor, folder)
    assert fingerprint(folder) == before and len(list(folder.parent.iterdir())) == 1


def test_a_folder_that_cannot_be_written(pair, tmp_path):
    ours, _, processor = pair
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(OSError, match="could not be written: .*"):
        save_pretrained(ours, processor, tmp_path / "file" / "model")
    with pytest.raises(OSError, match="could not be written: .*"):
        save_pretrained(ours, processor, tmp_path / "file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    if hasattr(os, "geteuid") and os.geteuid() != 0:  # root may write anywhere
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        with pytest.raises(OSError, match="could not be written: Permission"):
            save_pretrained(ours, processor, closed / "model")


def test_saving_over_another_checkpoint_leaves_no_old_shards(pair, folder):
    ours, _, processor = pair
    (folder / "README.md").write_text("mine", encoding="utf-8")
    for size, files in (("30KB", None), ("5GB", ["model.safetensors"]), ("60KB", None), ("30KB", None), ("5GB", None)):
        save_pretrained(ours, processor, folder, max_shard_size=size)
        weights = sorted(path.name for path in folder.glob("*.safetensors"))
        assert files is None or weights == files
        index = folder / "model.safetensors.index.json"
        assert index.exists() == (size != "5GB")
        if index.exists():
            assert weights == sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        model, _ = load_pretrained(folder)
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())
    assert (folder / "README.md").read_text(encoding="utf-8") == "mine"


def test_a_new_folder_may_lie_deep(pair, tmp_path):
    ours, _, processor = pair
    assert save_pretrained(ours, processor, str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b" / "config.json").exists()


def test_files_are_readable_by_others(folder):
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())


def test_what_is_old_is_not_asked_of_clocks(pair, folder):
    """A file from the future (a clock that was ahead, a restored backup) goes when a new checkpoint replaces it."""
    ours, _, processor = pair
    for size, other in (("30KB", "model.safetensors"), ("5GB", "model.safetensors.index.json")):
        write_weights(
            folder, {name: tensor + 1 for name, tensor in ours.state_dict().items()}, 1 if size == "30KB" else 2
        )
        os.utime(folder / other, (2e9, 2e9))
        save_pretrained(ours, processor, folder, max_shard_size=size)
        assert not (folder / other).exists()
        model, _ = load_pretrained(folder)
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("wrap", ["compile", "compiled part", "compiled layer", "DataParallel", "both"])
def test_wrappers_are_taken_off(pair, folder, tmp_path, wrap):
    ours, _, processor = pair
    model, _ = load_pretrained(folder)
    if wrap == "compiled part":
        model.language_model = torch.compile(model.language_model)
    elif wrap == "compiled layer":
        layers = model.language_model.model.layers
        layers[1] = torch.compile(layers[1])
    elif wrap == "compile":
        model = torch.compile(model)
    else:
        model = torch.nn.DataParallel(torch.compile(model) if wrap == "both" else model)
    save_pretrained(model, processor, tmp_path / "saved")
    opened, _ = load_pretrained(tmp_path / "saved")
    assert all(torch.equal(opened.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())


class Adapted(torch.nn.Module):
    """A linear map inside peft: its own weights are `base_layer`, the rest is the adapter."""

    def __init__(self, linear):
        super().__init__()
        self.base_layer = linear
        self.lora_A = torch.nn.Linear(linear.in_features, 2, bias=False)


class Peft(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.base_model = torch.nn.Module()
        self.base_model.model = model
        self.config = model.config


def test_a_model_that_could_not_be_opened_is_not_saved(folder):
    model, processor = load_pretrained(folder)
    before = fingerprint(folder)
    with pytest.raises(ValueError, match=r"nothing was saved.*unexpected tensor base_model.*merge_and_unload"):
        save_pretrained(Peft(model), processor, folder)
    mlp = model.language_model.model.layers[0].mlp
    mlp.up_proj = Adapted(mlp.up_proj)
    with pytest.raises(ValueError, match=r"nothing was saved.*lora_A.*merge_and_unload"):
        save_pretrained(model, processor, folder)
    mlp.up_proj = torch.nn.Linear(32, 47, bias=False)
    with pytest.raises(
        ValueError, match=r"nothing was saved.*up_proj.weight has shape \[47, 32\], expected \[48, 32\]"
    ):
        save_pretrained(model, processor, folder)
    del mlp.up_proj
    with pytest.raises(ValueError, match=r"nothing was saved.*missing tensor .*up_proj.weight"):
        save_pretrained(model, processor, folder)
    with pytest.raises(ValueError, match="the model is a Linear, expected a PaliGemmaForConditionalGeneration"):
        save_pretrained(torch.nn.Linear(2, 2), processor, folder)
    assert fingerprint(folder) == before


@pytest.mark.parametrize(
    "rename, message",
    [
        (lambda name: "_orig_mod." + name, "hold '_orig_mod.': a model inside torch.compile"),
        (lambda name: "module." + name, "hold 'module.': a model inside DataParallel"),
        (lambda name: "base_model.model." + name, "hold 'base_model.': .*merge_and_unload"),
        (lambda name: name.replace("up_proj.", "up_proj.base_layer."), "hold 'base_layer.': .*merge_and_unload"),
        (lambda name: name.replace("up_proj.", "up_proj.lora_A."), "hold 'lora_': .*merge_and_unload"),
    ],
)
def test_names_that_other_programs_wrote_get_their_own_advice(folder, rename, message):
    write_weights(folder, {rename(name): tensor for name, tensor in load_state(folder).items()}, 1)
    with pytest.raises(ValueError, match=message) as caught:
        load_pretrained(folder)
    assert "fetch the folder again" not in str(caught.value)


def test_an_adapter_alone(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(FileNotFoundError, match="holds a PEFT adapter and no model.*merge_and_unload"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    "key, value",
    [
        ("image_mean", [0.485, 0.456, 0.406]),
        ("image_std", [0.2, 0.2, 0.2]),
        ("image_mean", 0.5),
        ("resample", 2),
        ("do_resize", False),
        ("do_normalize", False),
        ("rescale_factor", 1.0),
        ("size", {"height": 448, "width": 448}),
    ],
)
def test_another_preparation_of_pictures_is_refused(folder, file, key, value):
    change_json(folder / "preprocessor_config.json", do_convert_rgb=None, image_std=None)  # null: as usual
    load_pretrained(folder)
    nested = file == "processor_config.json"
    (folder / file).touch()
    (folder / file).write_text(
        json.dumps({"image_processor": {key: value}} if nested else {key: value}), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=f"{file}: {key} is .*, expected "):
        load_pretrained(folder)


def test_an_earlier_processor_of_transformers_goes_with_its_checkpoint(pair, tmp_path):
    """transformers reads processor_config.json first: left behind, it would speak for the new checkpoint."""
    ours, theirs, processor = pair
    theirs.save_pretrained(tmp_path)
    processors_for(shape(image=30))[1].save_pretrained(tmp_path)
    assert (tmp_path / "processor_config.json").exists()
    save_pretrained(ours, processor, tmp_path)
    assert transformers.AutoProcessor.from_pretrained(tmp_path).image_processor.size == {"height": 20, "width": 20}
