"""The shipped model: small, opened by transformers too, and good at what its card says."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoProcessor, AutoTokenizer
from transformers import PaliGemmaForConditionalGeneration as Reference

from paligemma import generate
from paligemma.segmentation import load_mask_tokenizer
from paligemma.world.evaluation import answer_all, draw_vector, make_questions, score
from paligemma.world.pictures import mask_codes
from paligemma.world.scenes import caption, draw, make_scene
from paligemma.world.tiny_model import build_processor, sentences


@pytest.fixture(scope="module")
def reference(tiny_folder):
    """The same folder, opened by transformers."""
    model = Reference.from_pretrained(tiny_folder, dtype=torch.float32, attn_implementation="eager").eval()
    return model, AutoProcessor.from_pretrained(tiny_folder)


def test_the_folder_is_small(tiny_folder):
    assert sum(path.stat().st_size for path in tiny_folder.iterdir()) < 8.5e6


def test_transformers_says_the_same_words(tiny, reference):
    """100 prompts of every kind on 100 pictures: identical greedy output."""
    model, processor = tiny
    their_model, their_processor = reference
    scenes = [make_scene(seed) for seed in range(2000, 2012)]
    rows = make_questions(scenes, lambda thing: [0] * 16)[:100]
    assert len(rows) == 100 and len({row[1] for row in rows}) >= 10
    pictures = [draw(scenes[row[0]]) for row in rows]
    prompts = [row[2] for row in rows]
    ours = generate(model, processor, pictures, prompts, max_new_tokens=48)
    inputs = their_processor(
        text=[f"<image>{prompt}" for prompt in prompts], images=pictures, padding="longest", return_tensors="pt"
    )
    inputs.pop("labels", None)
    with torch.inference_mode():
        ids = their_model.generate(**inputs, max_new_tokens=48, do_sample=False)
    theirs = their_processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert ours == theirs


def test_transformers_prepares_the_same_inputs(tiny, reference):
    picture = draw(make_scene(5), 100)  # to be resized
    ours = tiny[1](text=["caption en"], images=[picture], suffix=["a small red circle"])
    theirs = reference[1](
        text=["<image>caption en"], images=[picture], suffix=["a small red circle"], return_tensors="pt"
    )
    for name in ("input_ids", "token_type_ids", "attention_mask", "labels"):
        assert torch.equal(ours[name], theirs[name]), name
    assert (ours["pixel_values"] - theirs["pixel_values"]).abs().max() <= 2.1 / 255  # torchvision rounds otherwise


def test_the_logits_agree(tiny, reference):
    inputs = tiny[1](text=["caption en"], images=[draw(make_scene(7))], suffix=[caption(make_scene(7))])
    with torch.inference_mode():
        ours, theirs = tiny[0](**inputs), reference[0](**inputs)
    assert (ours.logits - theirs.logits).abs().max() < 2e-4  # logits here reach 30; float32 keeps 7 digits
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=1e-5)


# -------------------------------------------------------------------------------------------------- the tokenizer


def test_special_ids_are_gemmas(tiny):
    tokenizer = tiny[1].tokenizer
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<eos>", "<bos>", "<unk>"]) == [0, 1, 2, 3]
    last = tokenizer.convert_tokens_to_ids("<image>")
    assert tokenizer.convert_tokens_to_ids("<loc0000>") == last - 1152
    assert tokenizer.convert_tokens_to_ids("<seg127>") == last - 1


def test_every_word_of_the_world_is_one_token(tiny):
    """In the places where the world uses it: a comma or question mark is a token of its own."""
    tokenizer = tiny[1].tokenizer
    for text in sentences(300):
        assert len(tokenizer.tokenize(text)) == len(text.replace(",", " ,").replace("?", " ?").split()), text


@pytest.mark.parametrize(
    "text", ["caption en", "Hello, world! 123", "naïve café", "한국어 문장", "日本 🙂", "\t\n  x", "<loc0012> ; a"]
)
def test_no_text_is_unknown(tiny_folder, text):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_the_shipped_tokenizer_is_the_one_that_the_code_makes(tiny_folder):
    shipped = json.loads((tiny_folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    made = json.loads(build_processor().tokenizer.backend_tokenizer.to_str())["model"]
    assert made["vocab"] == shipped["vocab"] and made["merges"] == shipped["merges"]


# ------------------------------------------------------------------------------------------------------ what it can


@pytest.fixture(scope="module")
def figures(tiny, root):
    """The card's figures on 80 held-out scenes of each renderer (the card has 1,000)."""
    mask_tokenizer = load_mask_tokenizer(root / "assets/mask-tokenizer")
    scenes = [make_scene(seed) for seed in range(5000, 5080)]
    rows = make_questions(scenes, mask_codes(mask_tokenizer))
    return {
        renderer.__name__: score(
            scenes, rows, answer_all(*tiny, [renderer(scene) for scene in scenes], rows), mask_tokenizer
        )
        for renderer in (draw, draw_vector)
    }


@pytest.mark.parametrize(
    "task, least",
    [
        ("colour", 0.95),
        ("shape", 0.95),
        ("size", 0.95),
        ("how many", 0.92),
        ("is there", 0.92),
        ("where", 0.92),
        ("caption", 0.90),
        ("relation", 0.90),
        ("detect, one name: mean IoU", 0.93),
        ("detect, one name: IoU over 0.5", 0.93),
        ("detect, two names: mean IoU", 0.80),
        ("detect: mean IoU", 0.90),
        ("segment: mean IoU", 0.82),
        ("absent: empty answer", 0.90),
    ],
)
@pytest.mark.parametrize("renderer", ["draw", "draw_vector"])
def test_it_sees(figures, renderer, task, least):
    """Well below the card's figures: of 80 scenes a few more or less may go wrong."""
    assert figures[renderer][task] >= least - (0.05 if renderer == "draw_vector" else 0)


def test_it_understands_a_picture_from_a_paint_program(tiny):
    """Flat pure colours on white, drawn by hand at another size and shape."""
    picture = Image.new("RGB", (200, 150), "white")
    pen = ImageDraw.Draw(picture)
    pen.ellipse((20, 20, 90, 75), fill="#ff0000")
    pen.rectangle((110, 80, 150, 120), fill="#0000ff")
    prompts = [
        "answer en what colour is the circle?",
        "answer en what shape is the blue thing?",
        "answer en how many things are there?",
        "answer en is there a green star?",
    ]
    assert generate(*tiny, [picture] * 4, prompts) == ["red", "square", "2", "no"]


def test_it_does_not_answer_blindly(tiny):
    """The same question on different pictures gets different answers."""
    scenes = [scene for scene in map(make_scene, range(200)) if [t.shape for t in scene.things].count("circle") == 1]
    answers = generate(*tiny, [draw(scene) for scene in scenes], ["answer en what colour is the circle?"] * len(scenes))
    truths = [next(t.colour for t in scene.things if t.shape == "circle") for scene in scenes]
    assert len(set(truths)) >= 6 and np.mean([a == t for a, t in zip(answers, truths, strict=True)]) > 0.9
