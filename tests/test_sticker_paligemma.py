"""The shipped sticker model: opened by transformers too, and as good as its card says."""

import json
import re

import pytest
import torch
from transformers import AutoProcessor
from transformers import PaliGemmaForConditionalGeneration as Reference

from paligemma import generate, load_pretrained
from paligemma.segmentation import load_mask_tokenizer
from paligemma.stickers.atlas import artists
from paligemma.stickers.evaluation import evaluate, make_questions
from paligemma.stickers.scenes import draw, make_scene
from paligemma.stickers.sticker_model import build_sticker_processor


@pytest.fixture(scope="module")
def folder(root):
    return root / "assets/sticker-paligemma"


@pytest.fixture(scope="module")
def shipped(folder):
    return load_pretrained(folder, dtype=torch.float32)


def test_the_folder_is_small(folder):
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 15e6


def test_transformers_says_the_same_words(shipped, folder):
    """100 prompts of every kind about stickers by artists of training and of choice: identical greedy output."""
    reference = Reference.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    their_processor = AutoProcessor.from_pretrained(folder)
    hands = artists("train") + artists("choice")
    scenes = [make_scene(seed, hands) for seed in range(2000, 2014)]
    rows = make_questions(scenes)[:100]
    assert len(rows) == 100 and len({row[1] for row in rows}) >= 10
    pictures, prompts = [draw(scenes[row[0]]) for row in rows], [row[2] for row in rows]
    ours = generate(*shipped, pictures, prompts, max_new_tokens=48)
    inputs = their_processor(
        text=[f"<image>{prompt}" for prompt in prompts], images=pictures, padding="longest", return_tensors="pt"
    )
    inputs.pop("labels", None)
    with torch.inference_mode():
        ids = reference.generate(**inputs, max_new_tokens=48, do_sample=False)
    theirs = their_processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert ours == theirs


def test_the_shipped_tokenizer_is_the_one_that_the_code_makes(folder):
    shipped = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    made = json.loads(build_sticker_processor().tokenizer.backend_tokenizer.to_str())["model"]
    assert made["vocab"] == shipped["vocab"] and made["merges"] == shipped["merges"]


def test_the_card_shows_the_measured_figures(folder):
    """Every row of the card's table stands in figures.json, rounded."""
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    splits = [name for name in figures if name not in ("scenes", "confused")]
    card = (folder / "README.md").read_text(encoding="utf-8")
    rows = {cells[0]: cells[2:] for line in card.splitlines()
            if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 2 + len(splits)}  # fmt: skip
    assert set(figures[splits[0]]) <= set(rows)
    for name in figures[splits[0]]:
        assert rows[name] == [f"{figures[split][name]:.3f}" for split in splits], name
    assert re.search(rf"{figures['scenes']:,} held-out", card)


def test_the_card_is_true(shipped, folder):
    """60 of the held-out scenes again, by the artists for training: within what 60 scenes can be off by chance."""
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))["train"]
    measured = evaluate(*shipped, load_mask_tokenizer(folder / "mask-tokenizer"), "train", scenes=60)
    for name in ("name", "is there", "how many", "detect: mean IoU", "segment: mean IoU"):
        assert measured[name] == pytest.approx(figures[name], abs=0.16), name  # three standard errors of a share of 0.8
