"""Checkpoint folders with one thing wrong: each is refused in one sentence that names the file, or opens as before.

Seeded: folder 17 is the same folder everywhere. `PALIGEMMA_DAMAGED_FOLDERS=1000 pytest tests/test_damaged_folders.py`
tries a thousand. What no reader can find out is left out: weights or merges in another order, other legal values.
"""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from reference import make_ours, make_theirs, pictures, shape, toy_processors

from paligemma import load_pretrained, save_pretrained

FOLDERS = int(os.environ.get("PALIGEMMA_DAMAGED_FOLDERS", 240))
GROUPS = 8  # tests: each tries its part of the folders
NONSENSE = (
    None, True, False, "", "x", "12", [], [1], {}, {"a": 1}, -1, 0, 0.5, 1.5, float("nan"), float("inf"), -float("inf"),
    10**9, 10**15, 10**30, 1e30, -(10**30),
)  # fmt: skip
TEXTS = (
    "caption en",
    "what is  the cat\n and é 고양이, 🐈?",
    "<loc0012> a <seg003>b<loc1023>",
    " detect\tRed ; <image>",
)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two good folders and what they answer: a PaliGemma in one file, a PaliGemma 2 in shards."""
    folders = {}
    for kind, size in (("gemma", "5GB"), ("gemma2", "20KB")):
        model = make_ours(make_theirs(shape(kind, D=16, H=2, H_kv=1, d=4, ffn=24, layers=2, D_image=16, H_image=2)))
        folder = save_pretrained(model, toy_processors()[0], tmp_path_factory.mktemp(kind) / "model", size)
        folders[folder] = behaviour(*load_pretrained(folder))
    return folders


def behaviour(model, processor) -> list:
    """What a user would notice: the tokens of some texts, the texts of all tokens, and logits."""
    ids = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    letters = [processor.decode([i]) for i in range(0, len(processor.tokenizer), 3)]
    inputs = processor(text=list(TEXTS[:3]), images=pictures(3), suffix=["a", "small cat", ""])
    with torch.no_grad():
        logits = model(**inputs).logits
    config = model.config
    ends = (config.pad_token_id, config.bos_token_id, config.eos_token_id)
    return [ids, [processor.decode(row) for row in ids], letters, ends, logits[inputs["attention_mask"].bool()]]


def same(a: list, b: list) -> bool:
    return a[:-1] == b[:-1] and a[-1].shape == b[-1].shape and torch.allclose(a[-1], b[-1], atol=1e-5)


# -------------------------------------------------------------------------------------------------------- damages


def places(value, path=()) -> list[tuple]:
    """The path to every value inside a JSON value; of long lists and dictionaries only the first and last few."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys if len(keys) <= 24 else [*keys[:6], *keys[-6:]]:
            found += places(value[key], (*path, key))
    return found


def damage_value(rng: random.Random, folder: Path, name: str) -> str:
    """One value of a JSON file becomes nonsense, or goes."""
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    path = rng.choice(places(values))
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    if rng.random() < 0.2:
        del inner[path[-1]]
        what = "deleted"
    else:
        inner[path[-1]] = rng.choice([value for value in NONSENSE if value != inner[path[-1]]])
        what = f"= {inner[path[-1]]!r}"
    (folder / name).write_text(json.dumps(values), encoding="utf-8")
    return f"{name}: {'.'.join(map(str, path))} {what}"


def damage_text(rng: random.Random, folder: Path, name: str) -> str:
    """A JSON file is cut off, of another encoding, something else altogether, or has a key twice."""
    path = folder / name
    data = path.read_bytes()
    kinds = {
        "cut off": data[: rng.randrange(len(data))],
        "empty": b"",
        "null": b"null",
        "a list": b"[" + data + b"]",
        "a number": b"7",
        "a string": b'"config"',
        "an empty object": b"{}",
        "bytes": rng.randbytes(200),
        "zeros": bytes(len(data)),
        "not UTF-8": data.replace(b"a", b"\xff", 3),
        "UTF-16": data.decode().encode("utf-16"),
        "with a mark of UTF-8": b"\xef\xbb\xbf" + data,
        "deep": b"[" * 100_000,
        "a page of HTML": b"<!DOCTYPE html><html>404</html>",
        "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "twice": data + data,
        "a trailing comma": data.rstrip()[:-1] + b",}",
        "with a huge number": data.rstrip()[:-1] + b', "x": ' + b"9" * 5000 + b"}",
        "a key twice": b"{" + rng.choice([b'"model_type": 1, ', b'"a": 1, "a": 1, ', b'"version": 0, "version": 1,'])
        + data.lstrip()[1:],
    }  # fmt: skip
    what = rng.choice(list(kinds))
    path.write_bytes(kinds[what])
    return f"{name}: {what}"


def damage_file(rng: random.Random, folder: Path, name: str) -> str:
    """A file is gone, or a folder has its name."""
    (folder / name).unlink()
    if rng.random() < 0.4:
        (folder / name).mkdir()
        return f"{name}: a folder"
    return f"{name}: gone"


def damage_weights(rng: random.Random, folder: Path) -> str:
    """The header of a weight file, its length, or the length of the file."""
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([key for key in header if key != "__metadata__"])
    kind = rng.choice(
        ["cut", "longer", "length", "zeros", "rename", "delete", "shape", "dtype", "offsets", "value", "text"]
    )
    if kind == "cut":
        data = data[: rng.randrange(len(data))]
    elif kind == "longer":
        data += rng.randbytes(rng.choice([1, 4, 100]))
    elif kind == "length":
        data = rng.choice([0, 1, length - 1, length + 1, 2**40, 2**63, 2**64 - 1]).to_bytes(8, "little") + data[8:]
    elif kind == "zeros":
        data = bytes(len(data))
    elif kind == "text":
        at = 8 + rng.randrange(length)
        data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(7)]) + data[at + 1 :]
    else:
        entry = header[name]
        if kind == "rename":
            prefix = rng.choice(["x.", "module.", "_orig_mod.", "base_model.model.", " ", "model."])
            header[prefix + name] = header.pop(name)
        elif kind == "delete":
            del header[name]
        elif kind == "shape":
            entry["shape"] = rng.choice([[], [1, *entry["shape"]], [-1], [2**62, 4], entry["shape"][::-1] + [1], ["a"]])
        elif kind == "dtype":
            entry["dtype"] = rng.choice(["I32", "F64", "BF16", "F8_E4M3", "U8", "BOOL", "x", 3])
        elif kind == "offsets":
            entry["data_offsets"] = rng.choice([[0, 0], [4, 0], [-1, 4], [0, 2**62], "x", [entry["data_offsets"][0]]])
        elif kind == "value":
            header[name] = rng.choice(NONSENSE)
        text = json.dumps(header).encode()
        data = len(text).to_bytes(8, "little") + text + data[8 + length :]
    path.write_bytes(data)
    return f"{path.name}: {kind} ({name})"


def damage_index(rng: random.Random, folder: Path) -> str:
    """What the index of the shards says."""
    path = folder / INDEX
    if not path.exists():  # a single file: let an index of its tensors stand for it
        names = [name for name in ("a", "b")]
        (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
        values = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    else:
        values = json.loads(path.read_text(encoding="utf-8"))
    files = values["weight_map"]
    name = rng.choice(list(files))
    odd = [
        "/etc/passwd",
        "../model.safetensors",
        "",
        ".",
        "..",
        "a/b",
        "missing.safetensors",
        "config.json",
        "a\\b",
        *NONSENSE,
    ]
    what = rng.choice(["one", "all", "many", "map"])
    if what == "one":
        files[name] = rng.choice(odd)
    elif what == "all":
        values["weight_map"] = dict.fromkeys(files, rng.choice(odd))
    elif what == "many":
        values["weight_map"] = {f"{i}": f"missing-{i}" for i in range(10_000)}
    else:
        values["weight_map"] = rng.choice(NONSENSE)
    path.write_text(json.dumps(values), encoding="utf-8")
    return f"{INDEX}: {what} {str(values['weight_map'])[:60]}"


def damage_tokenizer(rng: random.Random, folder: Path) -> str:
    """A part of the tokenizer is missing or of another kind."""
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    model, added = values["model"], values["added_tokens"]
    token = rng.choice(added)
    piece = rng.choice([piece for piece in model["vocab"] if len(piece) == 1 or piece.startswith("<0x")])
    changes = {
        "no normalizer": lambda: values.update(normalizer=None),
        "another normalizer": lambda: values.update(normalizer={"type": "Lowercase"}),
        "no decoder": lambda: values.update(decoder=None),
        "another decoder": lambda: values.update(decoder={"type": "ByteFallback"}),
        "another pre-tokenizer": lambda: values.update(pre_tokenizer={"type": "Whitespace"}),
        "no merges": lambda: model.update(merges=[]),
        "half of the merges": lambda: model.update(merges=model["merges"][: len(model["merges"]) // 2]),
        "merges of unknown pieces": lambda: model["merges"].append(["qq", "zz"]),
        "no byte fallback": lambda: model.update(byte_fallback=False),
        "dropout": lambda: model.update(dropout=0.5),
        "another model": lambda: values.update(
            model={"type": "WordLevel", "vocab": model["vocab"], "unk_token": "<unk>"}
        ),
        "no added tokens": lambda: values.update(added_tokens=[]),
        "half of the added tokens": lambda: values.update(added_tokens=added[: len(added) // 2]),
        f"no {token['content']}": lambda: added.remove(token),
        f"{token['content']} eats spaces": lambda: token.update(lstrip=True, rstrip=True),
        f"{token['content']} has another id": lambda: token.update(id=token["id"] + 1),
        f"{token['content']} has another name": lambda: token.update(content="<other>"),
        "location tokens are special": lambda: [
            t.update(special=True) for t in added if t["content"].startswith("<loc")
        ],
        f"no piece {piece!r}": lambda: model["vocab"].pop(piece),
        f"{piece!r} has the id of another": lambda: model["vocab"].update({piece: 300}),
    }
    what = rng.choice(list(changes))
    changes[what]()
    path.write_text(json.dumps(values), encoding="utf-8")
    return f"tokenizer.json: {what}"


def damage(rng: random.Random, folder: Path) -> str:
    """One damage of a kind drawn by its weight; returns it in words."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix == ".json")
    name = rng.choice([*names, *["config.json"] * 4, *["tokenizer_config.json"] * 2])
    kinds = {
        damage_value: (0.4, (name,)),
        damage_text: (0.15, (name,)),
        damage_file: (0.07, (rng.choice(sorted(path.name for path in folder.iterdir())),)),
        damage_weights: (0.15, ()),
        damage_index: (0.08, ()),
        damage_tokenizer: (0.15, ()),
    }
    (kind,) = rng.choices(list(kinds), [weight for weight, _ in kinds.values()])
    return kind(rng, folder, *kinds[kind][1])


# ---------------------------------------------------------------------------------------------------------- tests


@contextmanager
def limited(seconds: int):
    """Raise TimeoutError in what takes longer, where the system can (not on Windows)."""

    def stop(*_):
        raise TimeoutError(f"still not done after {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def verdict(folder: Path, expected: list) -> tuple[str, str]:
    """("refused", message), ("opened", "") or the fault and what it was."""
    try:
        with limited(60):
            answers = behaviour(*load_pretrained(folder))
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        if type(error) not in (ValueError, FileNotFoundError):
            return "wrong type", f"{type(error).__name__}: {message[:300]}"
        if "\n" in message.strip() or len(message) > 1500 or str(folder) not in message:
            return "not one sentence with the place", message[:600]
        return "refused", message
    except TimeoutError as error:
        return "hang", str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return "wrong type", f"{type(error).__name__}: {str(error)[:300]}"
    return ("opened", "") if same(answers, expected) else ("accepted silently", "")


def test_the_folders_are_right_before(whole):
    for folder, expected in whole.items():
        assert verdict(folder, expected) == ("opened", "")


@pytest.mark.parametrize("group", range(GROUPS))
def test_damaged_folders_are_refused_or_open_as_before(whole, tmp_path, group, record_property):
    start, counts, faults = time.process_time(), Counter(), []
    for i in range(group, FOLDERS, GROUPS):
        rng = random.Random(f"folder {i}")
        source = list(whole)[rng.random() < 0.5]
        folder = tmp_path / f"{i}"
        shutil.copytree(source, folder)
        what = damage(rng, folder)
        outcome, message = verdict(folder, whole[source])
        counts[outcome] += 1
        if outcome not in ("refused", "opened"):
            faults.append(f"{i}, {what}: {outcome} {message}")
        if os.environ.get("PALIGEMMA_DAMAGED_FOLDERS_LOG"):
            with open(os.environ["PALIGEMMA_DAMAGED_FOLDERS_LOG"], "a", encoding="utf-8") as log:
                log.write(f"{i}\t{what}\t{outcome}\t{message}\n")
        shutil.rmtree(folder)
    assert not faults, "\n".join(faults)
    assert counts["refused"] > counts["opened"]
    record_property("seconds", time.process_time() - start)
