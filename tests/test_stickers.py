"""The sticker world: drawings with their licences, scenes that know what they show, answers that are true."""

import importlib.util
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paligemma import ASSETS, record_attention
from paligemma.finetune import read_folder
from paligemma.locations import box_iou, parse_detections
from paligemma.segmentation import load_mask_tokenizer
from paligemma.stickers import __main__ as command
from paligemma.stickers import capstone, evaluation, recipe
from paligemma.stickers.atlas import CELL, NAMES, SPLITS, THINGS, artists, drawing, drawn_by
from paligemma.stickers.encoder import EncoderStage, PatchHeads, whiten_patches
from paligemma.stickers.pictures import FINE, Pictures, patch_truth
from paligemma.stickers.scenes import Cut, Scene, Sticker, cutout, draw, make_scene, masks, random_cut, recolour
from paligemma.stickers.sticker_model import build_sticker_model, build_sticker_processor, vision_config
from paligemma.stickers.tasks import TASKS, ask, caption, caption_is_right, find, sentences
from paligemma.training import Metric, ModelWithPatchHeads
from paligemma.world.pictures import collate
from paligemma.world.scenes import GRID

SEEDS = st.integers(0, 10_000_000)
FREE = {"Apache-2.0", "MIT", "CC-BY-4.0"}


@pytest.fixture(scope="module")
def processor():
    return build_sticker_processor()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return Pictures(12, 96, 12, tmp_path_factory.mktemp("pictures"))


# ----------------------------------------------------------------------------------------------- the drawings


def test_every_artist_has_a_sheet_a_free_licence_and_a_split():
    table = json.loads((ASSETS / "stickers/artists.json").read_text(encoding="utf-8"))
    sheets = {path.stem for path in (ASSETS / "stickers").glob("*.png")}
    assert set(table) == sheets == set(artists())
    assert {artist["licence"] for artist in table.values()} <= FREE
    assert len(artists("train")) == 6 and len(artists("choice")) == 1 and len(artists("unseen")) == 1
    assert sorted(name for split in SPLITS for name in artists(split)) == sorted(table)


def test_notice_and_readme_name_every_sheet_with_its_licence():
    notice = (ASSETS.parent / "NOTICE").read_text(encoding="utf-8")
    readme = (ASSETS / "stickers/README.md").read_text(encoding="utf-8")
    for name, artist in json.loads((ASSETS / "stickers/artists.json").read_text(encoding="utf-8")).items():
        assert f"{name}.png" in notice
        assert f"| `{name}.png` | `{artist['package']}`" in readme
        assert artist["version"] in readme
        assert f"{artist['package']}@{artist['version']}" in readme


def test_names_are_distinct_words_and_every_one_is_drawn_by_the_held_out_artists():
    assert len(NAMES) == len(set(NAMES)) == len({thing.korean for thing in THINGS}) == 128
    assert all(re.fullmatch("[a-z]+( [a-z]+)?", name) for name in NAMES)
    assert all(re.fullmatch("[가-힣]+", thing.korean) for thing in THINGS)
    for hand in artists("choice") + artists("unseen"):
        assert drawn_by(hand) == NAMES
    assert all(len([hand for hand in artists("train") if name in drawn_by(hand)]) >= 4 for name in NAMES)


@pytest.mark.parametrize("hand", artists())
def test_drawings_fill_their_cell_but_for_a_margin(hand):
    for name in drawn_by(hand):
        alpha = drawing(name, hand).getchannel("A")
        assert alpha.size == (CELL, CELL)
        left, top, right, bottom = alpha.getbbox()
        assert max(right - left, bottom - top) >= CELL - 5, name
        assert 0.03 < np.asarray(alpha).mean() / 255 < 0.97, name


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match="'sphinx', expected one of the 128 names"):
        drawing("sphinx", "noto")
    with pytest.raises(ValueError, match="'nobody', expected one of noto"):
        drawing("dog", "nobody")
    with pytest.raises(ValueError, match="'test', expected one of train, choice, unseen"):
        artists("test")
    missing = next(name for name in NAMES if name not in drawn_by("streamline"))
    with pytest.raises(ValueError, match="drew no"):
        cutout(Cut(missing, "streamline"))


def test_the_script_finds_an_icon_by_its_alias_and_keeps_the_outline():
    """The sheets' script, without a browser: SVG from a package, the fit into a cell, and the palette."""
    spec = importlib.util.spec_from_file_location("make_atlas", ASSETS / "stickers/make_atlas.py")
    make_atlas = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_atlas)
    icons = {"width": 36, "height": 36, "icons": {"a": {"body": "<path/>"}}, "aliases": {"b": {"parent": "a"}}}
    assert 'viewBox="0 0 36 36"><path/></svg>' in make_atlas.svg(icons, "b")
    with pytest.raises(KeyError):
        make_atlas.svg(icons, "c")
    wide = Image.new("RGBA", (200, 200))
    wide.paste((200, 30, 30, 255), (20, 50, 180, 90))
    cell = make_atlas.fit(wide)
    assert cell.size == (CELL, CELL) and cell.getbbox() == (1, 36, 95, 60)
    before = Image.new("RGBA", (2 * CELL, CELL))
    for x, name in enumerate(("dog", "pizza")):
        before.paste(drawing(name, "noto"), (x * CELL, 0))
    after = make_atlas.reduce_colours(before).convert("RGBA")
    error = np.abs(np.asarray(before, dtype=int) - np.asarray(after, dtype=int))
    assert error[..., 3].mean() < 2 and error[np.asarray(before)[..., 3] > 250].mean() < 6
    assert len({path.stem for path in (ASSETS / "stickers").glob("*.png")}) * 300_000 > sum(
        path.stat().st_size for path in (ASSETS / "stickers").glob("*.png")
    )


# -------------------------------------------------------------------------------------------------- the scenes


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.booleans())
def test_boxes_lie_on_whole_cells_and_hold_their_drawing(seed, varied):
    scene = make_scene(seed, varied=varied)
    assert 1 <= len(scene.things) <= 4
    assert list(scene.things) == sorted(scene.things, key=lambda thing: thing.box)
    assert sorted(scene.stack) == list(range(len(scene.things)))
    found = masks(scene, 128)
    assert found.sum(axis=0).max() <= 1  # a pixel belongs to one sticker
    for thing, mask in zip(scene.things, found, strict=True):
        edges = [edge * GRID for edge in thing.box]
        assert all(edge == int(edge) and 0 <= edge <= GRID for edge in edges)
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        y1, x1, y2, x2 = (2 * edge for edge in edges)  # in pixels of 128
        assert rows[0] >= y1 and rows[-1] < y2 and columns[0] >= x1 and columns[-1] < x2
    for thing in scene.things:  # the drawing reaches every edge of its box
        alpha = cutout(thing.cut).getchannel("A").point(lambda level: 255 * (level > 40))
        assert alpha.getbbox() == (0, 0, *alpha.size)
        height, width = (GRID * (thing.box[k + 2] - thing.box[k]) for k in (0, 1))
        scale = max(width, height) / max(alpha.size)
        assert abs(width - max(6, scale * alpha.width)) <= 0.51 and abs(height - max(6, scale * alpha.height)) <= 0.51


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_same_seed_same_scene_and_pixels(seed):
    first, second = make_scene(seed, varied=True), make_scene(seed, varied=True)
    assert first == second
    assert np.array_equal(np.asarray(draw(first)), np.asarray(draw(second)))


def test_only_the_artists_that_were_asked_for():
    for split in SPLITS:
        hands = {thing.cut.artist for seed in range(60) for thing in make_scene(seed, artists(split)).things}
        assert hands == set(artists(split))
    assert {thing.cut.artist for seed in range(60) for thing in make_scene(seed).things} == set(artists("train"))


def test_the_mask_is_the_drawing_and_the_topmost_wins():
    box = (16 / GRID, 16 / GRID, 48 / GRID, 48 / GRID)
    under, over = Sticker(Cut("pizza", "noto"), box), Sticker(Cut("star", "noto"), box)
    one, both = Scene(1, (under,), (0,), False), Scene(1, (under, over), (0, 1), False)
    star = masks(Scene(1, (over,), (0,), False), 192)[0]
    pizza = masks(one, 192)[0]
    found = masks(both, 192)
    assert np.array_equal(found[1], star) and np.array_equal(found[0], pizza & ~star)
    picture, ground = np.asarray(draw(both, 192), dtype=int), np.asarray(draw(one, 192), dtype=int)
    assert (np.abs(picture - ground).sum(axis=2)[~star] > 60).mean() < 0.01  # outside the star nothing changed
    yellow = picture[star].mean(axis=0)
    assert yellow[0] > 200 and yellow[1] > 150 and yellow[2] < 130


def test_mirror_turn_and_shear_do_what_they_say():
    plain = cutout(Cut("pencil", "noto"))
    mirrored = cutout(Cut("pencil", "noto", mirrored=True))
    assert np.array_equal(np.asarray(plain)[:, ::-1], np.asarray(mirrored))
    # The tulip stands upright: turned counter-clockwise its foot moves to the right, sheared its head does.
    feet = []
    for angle, shear in ((0.0, 0.0), (20.0, 0.0), (-20.0, 0.0), (0.0, 0.25), (0.0, -0.25)):
        alpha = np.asarray(cutout(Cut("tulip", "noto", angle=angle, shear=shear)).getchannel("A"), dtype=float)
        columns = np.arange(alpha.shape[1])
        head, foot = (part.sum(axis=0) @ columns / part.sum() for part in (alpha[:20], alpha[-10:]))
        feet.append(foot - head)
    assert feet[2] < feet[0] < feet[1]
    assert feet[3] < feet[0] < feet[4]
    rimmed = cutout(Cut("star", "noto", rim=3))
    assert rimmed.width > cutout(Cut("star", "noto")).width
    recoloured = recolour(plain, 3)
    assert np.array_equal(np.asarray(recoloured)[..., 3], np.asarray(plain)[..., 3])
    assert not np.array_equal(np.asarray(recoloured), np.asarray(plain))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1,), "seed is -1"),
        ((0, ("nobody",)), "nobody"),
        ((0, None, 5), "most is 5, expected 1 to 4"),
        ((0, None, 0), "most is 0"),
    ],
)
def test_scenes_that_cannot_be_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_scene(*arguments)
    with pytest.raises(ValueError, match="size is 16, expected 32 to 1024"):
        draw(make_scene(0), 16)


# --------------------------------------------------------------------------------------------------- the tasks


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_captions_are_true_and_wrong_ones_are_found(seed):
    scene = make_scene(seed)
    for language in ("en", "ko"):
        text = caption(scene, language)
        assert caption_is_right(scene, text, language) == (True, True)
        absent = next(thing for thing in THINGS if not find(scene, thing.name))
        first = scene.things[0]
        old, new = (first.phrase, absent.phrase) if language == "en" else (first.korean, absent.korean)
        assert caption_is_right(scene, text.replace(old, new, 1), language) == (False, False)
        assert caption_is_right(scene, text + ", " + new, language) == (False, False)
    if len({thing.name for thing in scene.things}) == len(scene.things) > 1:
        word = next(word for word in ("above", "below", "left of", "right of") if f" {word} " in caption(scene))
        opposite = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}[word]
        assert caption_is_right(scene, caption(scene).replace(f" {word} ", f" {opposite} ", 1)) == (True, False)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(TASKS))
def test_answers_follow_from_the_scene(seed, task):
    scene = make_scene(seed)
    rng = np.random.default_rng(seed)
    pair = ask(scene, task, rng, codes=lambda sticker: list(range(16)))
    if pair is None:
        return
    prompt, answer = pair
    names = [thing.name for thing in scene.things]
    if task in ("name", "which"):
        assert answer in names
    if task == "name":
        assert len(names) == 1
    if task == "which":
        category = prompt.removeprefix("answer en which ").removesuffix(" is there?")
        assert [thing.name for thing in scene.things if thing.category == category] == [answer]
    if task == "is there":
        asked = re.sub("^an? ", "", prompt.removeprefix("answer en is there ").removesuffix("?"))
        assert (answer == "yes") == (asked in names)
    if task == "beside":
        word, reference = re.fullmatch(r"answer en what is (above|below|left of|right of) the (.+)\?", prompt).groups()
        axis, sign = {"above": (0, -1), "below": (0, 1), "left of": (1, -1), "right of": (1, 1)}[word]
        (other,) = [thing for thing in scene.things if thing.name == reference]
        there = [thing for thing in scene.things if thing.name == answer]
        assert any(sign * (thing.centre[axis] - other.centre[axis]) > 0 for thing in there)
    if task in ("detect", "detect pair", "segment"):
        things, dropped = parse_detections(answer)
        assert not dropped
        for thing in things:
            assert any(box_iou(thing.box, t.box) > 0.98 and t.name == thing.label for t in scene.things)
        queries = prompt.split(" ", 1)[1].split(" ; ")
        assert len(things) == sum(names.count(query) for query in queries)
        assert all((thing.codes is not None) == (task == "segment") for thing in things)


def test_counting():
    def at(x, name):
        return Sticker(Cut(name, "noto"), (0.2, x, 0.4, x + 0.2))

    scene = Scene(0, (at(0.0, "dog"), at(0.25, "dog"), at(0.5, "cat"), at(0.75, "pizza")), (0, 1, 2, 3), False)
    found = {ask(scene, "how many", np.random.default_rng(seed)) for seed in range(300)}
    answers = dict(found)
    assert len(answers) == len(found)  # one answer to each question
    assert answers["answer en how many stickers are there?"] == "4"
    assert answers["answer en how many stickers show a dog?"] == "2"
    assert answers["answer en how many stickers show an animal?"] == "3"
    assert answers["answer en how many stickers show a vehicle?"] == "0"
    with pytest.raises(ValueError, match="'colour', expected one of caption"):
        ask(scene, "colour", np.random.default_rng(0))
    with pytest.raises(ValueError, match="codes is None, expected a function"):
        ask(scene, "segment", np.random.default_rng(0))
    with pytest.raises(ValueError, match="'red thing'"):
        find(scene, "red thing")
    with pytest.raises(ValueError, match="'de', expected 'en' or 'ko'"):
        caption(scene, "de")


# --------------------------------------------------------------------------------------- tokenizer and pictures


def test_every_word_is_one_token(processor):
    tokenizer = processor.tokenizer
    for text in sentences():
        words = len(re.findall(r"[^ ,?]+|[,?]", text))
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= words, text
    for text in ("a Dog, 12 zebras & ünïcödé 말", "caption en"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids


def test_patches_know_their_sticker():
    found = np.zeros((2, 24, 24), dtype=bool)
    found[0, :12, :16] = True  # the whole first patch and a third of the second
    found[1, 12:, 18:] = True  # half of the fourth patch
    owner, thing, part = patch_truth(found, ["cat", "pizza"], 12)
    assert owner.tolist() == [1, 1, 0, 2]
    assert thing.tolist() == [1 + NAMES.index("cat"), 1 + NAMES.index("cat"), 0, 1 + NAMES.index("pizza")]
    assert part[0].tolist() == [255] * 9 and part[1].tolist() == [255, 0, 0] * 3
    assert part[3].tolist() == [0, 128, 255] * 3
    with pytest.raises(ValueError, match="patch is 8 pixels, expected a multiple of 3"):
        patch_truth(found, ["cat", "pizza"], 8)


def test_pictures_are_kept_with_their_truth(pictures, tmp_path):
    again = Pictures(12, 96, 12, tmp_path, workers=2)
    assert np.array_equal(pictures.pixels, again.pixels)
    assert all(np.array_equal(pictures.truth[key], again.truth[key]) for key in pictures.truth)
    for index in range(12):
        kept, made = pictures.scene(index), make_scene(1_000_000 + index, varied=True)
        assert [(t.name, t.box, t.cut.artist) for t in kept.things] == [
            (t.name, t.box, t.cut.artist) for t in made.things
        ]
        assert np.array_equal(pictures.pixels[index], np.asarray(draw(made)))
    labels = pictures.labels([3, 5])
    names = labels["name"][0].reshape(8, 8)
    for row, column in (names > 0).nonzero().tolist():
        y, x = (row + 0.5) / 8, (column + 0.5) / 8
        y1, x1, y2, x2 = labels["box"][0].reshape(8, 8, 4)[row, column].tolist()
        assert y1 - 1 / 16 <= y <= y2 + 1 / 16 and x1 - 1 / 16 <= x <= x2 + 1 / 16
    assert labels["part"].shape == (2, 64, FINE**2) and 0 <= labels["part"].min() and labels["part"].max() <= 1
    others = Pictures(2, 96, 12, tmp_path, split="choice")
    assert [t.box for t in others.scene(1).things] == [t.box for t in make_scene(1, artists("choice")).things]
    assert np.array_equal(others.pixels[1], np.asarray(draw(make_scene(1, artists("choice")))))
    assert pictures.batch([0, 1]).shape == (2, 3, 96, 96)
    assert set(pictures.mask([0, 1]).unique().tolist()) == {0.0, 1.0}


# -------------------------------------------------------------------------------------------------- the recipe


def test_heads_that_know_everything_have_no_loss():
    """Four patches that are unit vectors, and heads that hold the right answer to each in a column."""
    labels = {
        "name": torch.tensor([[0, 3, 3, 7]]),
        "box": torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0)),
        "part": torch.tensor([[0.0] * 9, [1.0] * 9, [0.0] * 9, [1.0, 0.0, 0.0] * 3])[None],
    }
    heads, patches = PatchHeads(4), torch.eye(4)[None]
    with torch.no_grad():
        for head in (heads.name, heads.box, heads.part):
            head.bias.zero_()
        heads.name.weight.zero_()[labels["name"][0], torch.arange(4)] = 50
        heads.box.weight.copy_(labels["box"][0].T)
        heads.part.weight.copy_(100 * labels["part"][0].T - 50)
    loss, metrics = heads.loss(patches, labels)
    assert loss < 1e-4
    assert metrics == {"patch name": Metric(3, 3), "patch box": Metric(pytest.approx(0), 12)}
    for name, wrong in (
        ("name", torch.tensor([[0, 3, 4, 7]])),
        ("name", torch.tensor([[1, 3, 3, 7]])),
        ("box", labels["box"] + 2 / GRID),
        ("part", 1 - labels["part"]),
    ):
        assert heads.loss(patches, {**labels, name: wrong})[0] > 0.1
    shifted = heads.loss(patches, {**labels, "box": labels["box"] + 2 / GRID})[1]
    assert shifted["patch box"].mean == pytest.approx(2, rel=1e-4)  # in cells of the grid
    moved = {**labels, "box": labels["box"] + 2 / GRID}
    losses = [heads.loss(patches, moved, weight)[0].item() for weight in (0.0, 1.0)]
    assert losses[0] < 1e-4 and losses[1] == pytest.approx(1.5, rel=1e-3)  # smooth L1 of 2 is 1.5


def test_whitened_patches_have_the_same_variance_and_no_correlation():
    stage = EncoderStage(vision_config())
    pixels = torch.rand(40, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1  # all variances above 0.3
    pixels = 0.5 * pixels + torch.nn.functional.avg_pool2d(pixels, 9, 1, 4)  # neighbours alike, as in a picture
    whiten_patches(stage.vision_tower, pixels, floor=1e-6)
    embedding = stage.vision_tower.vision_model.embeddings.patch_embedding
    tokens = embedding(pixels).flatten(2).transpose(1, 2).flatten(0, 1).detach()  # [B * N, D]
    assert torch.allclose(torch.cov(tokens.T), 0.25 * torch.eye(192), atol=1e-3)
    assert tokens.mean(dim=0).abs().max() < 1e-3
    assert not any(parameter.requires_grad for parameter in embedding.parameters())
    before = embedding.weight.clone()
    whiten_patches(stage.vision_tower, pixels.flip(0), floor=1e-6)  # the same patches in another order
    assert torch.allclose(embedding.weight, before, atol=1e-2)


def run(*arguments) -> int:
    return command.main([str(argument) for argument in arguments])


def test_commands_resume_export_and_open_in_transformers(tmp_path, processor, capsys):
    """Interrupted and resumed equals uninterrupted; the export says the same in transformers."""
    from transformers import AutoProcessor
    from transformers import PaliGemmaForConditionalGeneration as Reference

    from paligemma import generate, load_pretrained

    masks_folder = ASSETS / "mask-tokenizer"
    common = ["--pictures", 12, "--cache", tmp_path, "--per-step", 2]
    encoder = tmp_path / "encoder"
    assert run("encoder", *common, "--out", encoder, "--cycles", "2x1.0") == 0
    going_on = ["model", *common, "--masks", masks_folder]
    model = [*going_on, "--encoder", encoder / "state.pt"]
    assert run(*model, "--out", tmp_path / "whole", "--cycles", "2x1.0") == 0
    for stop in (["--stop-at", 1], []):
        assert run(*model, "--out", tmp_path / "parts", "--cycles", "2x1.0", *stop) == 0
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "parts")]
    assert all(torch.equal(tensor, states[1]["model"][name]) for name, tensor in states[0]["model"].items())
    still = ["--muon-lr", 0, "--adam-lr", 0]
    start = ["--start", tmp_path / "parts/state.pt", "--cycles", "1x1.0"]
    assert run(*going_on, "--out", tmp_path / "more", *start, *still) == 0
    more = torch.load(tmp_path / "more/state.pt", weights_only=True)["model"]
    assert all(torch.equal(tensor, states[0]["model"][name]) for name, tensor in more.items())
    weights = ",".join(f"{task}={3 if task == 'detect' else 0}" for task in TASKS)
    options = ["--cycles", "1x1.0", "--freeze-encoder", "--weights", weights]
    assert run(*model, "--out", tmp_path / "frozen", *options) == 0
    line = json.loads((tmp_path / "frozen/log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert "detect" in line and not set(TASKS) - {"detect"} & set(line)
    with pytest.raises(SystemExit):
        run(*model, "--out", tmp_path / "none", "--weights", "dance=1")
    frozen = torch.load(tmp_path / "frozen/state.pt", weights_only=True)["model"]
    old = torch.load(encoder / "state.pt", weights_only=True)["model"]
    assert all(torch.equal(frozen[f"model.{name}"], tensor) for name, tensor in old.items() if "vision" in name)
    assert not torch.equal(frozen["model.multi_modal_projector.linear.weight"], torch.zeros(()))
    sharper = ["--start", encoder / "state.pt", "--cycles", "1x1.0", "--box-weight", 2]
    assert run("encoder", *common, "--out", tmp_path / "sharper", *sharper) == 0
    both = [*start, "--encoder", tmp_path / "sharper/state.pt"]
    assert run(*going_on, *both, "--out", tmp_path / "both", *still) == 0
    found = torch.load(tmp_path / "both/state.pt", weights_only=True)["model"]
    new = torch.load(tmp_path / "sharper/state.pt", weights_only=True)["model"]
    for name, tensor in found.items():
        theirs = new.get(name if name.startswith("heads.") else name.removeprefix("model."), states[0]["model"][name])
        assert torch.equal(tensor, theirs), name
    assert not torch.equal(new["heads.box.weight"], old["heads.box.weight"])
    kept = ["--masks", masks_folder, "--encoder-runs", encoder, "--earlier-runs", tmp_path / "parts"]
    assert run("export", tmp_path / "more", "--out", tmp_path / "export", *kept) == 0
    for name, steps in (("training.jsonl", [2, 1]), ("encoder-training.jsonl", [2])):
        short = (tmp_path / "export" / name).read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["step"] for line in short] == steps

    mean = tmp_path / "mean"
    assert run("export", tmp_path / "frozen", "--out", mean, *kept, "--average", tmp_path / "both", encoder) == 1
    assert "has other weights than" in capsys.readouterr().err
    assert run("export", tmp_path / "frozen", "--out", mean, *kept, "--average", tmp_path / "both") == 0
    weight = load_pretrained(mean, dtype=torch.float32)[0].state_dict()["multi_modal_projector.linear.weight"]
    two = [state["model.multi_modal_projector.linear.weight"] for state in (frozen, found)]
    assert not torch.equal(*two) and torch.allclose(weight, (two[0] + two[1]) / 2, atol=1e-3)

    mine, my_processor = load_pretrained(tmp_path / "export")
    assert mine.dtype == torch.bfloat16
    mine.float()
    theirs = Reference.from_pretrained(tmp_path / "export", dtype=torch.float32).eval()
    their_processor = AutoProcessor.from_pretrained(tmp_path / "export")
    scene = make_scene(0)
    picture = draw(scene)
    for prompt in ("caption ko", "detect dog"):
        a = my_processor(text=[prompt], images=[picture])
        b = their_processor(text="<image>" + prompt, images=picture, return_tensors="pt")
        assert torch.equal(a["input_ids"], b["input_ids"])
        token_types = torch.zeros_like(b["input_ids"])
        with torch.inference_mode():
            ours, reference = mine(**a).logits, theirs(**{**b, "token_type_ids": token_types}).logits
        assert torch.allclose(ours, reference, atol=1e-4)
    assert isinstance(generate(mine, my_processor, [picture], ["caption en"], max_new_tokens=4)[0], str)
    scores = evaluation.evaluate(
        mine, my_processor, load_mask_tokenizer(tmp_path / "export/mask-tokenizer"), "choice", scenes=3
    )
    assert {"name", "detect: mean IoU"} <= set(scores)
    capsys.readouterr()


def test_commands_say_what_is_missing(tmp_path, capsys):
    assert run("export", tmp_path / "nothing", "--out", tmp_path / "x", "--masks", ASSETS / "mask-tokenizer") == 1
    assert "log.jsonl is missing" in capsys.readouterr().err
    assert run("evaluate", tmp_path / "nothing", "--splits", "everybody") == 1
    assert "'everybody', expected one of train, choice, unseen" in capsys.readouterr().err
    for arguments in (("--cycles", "many"), ("--per-step", 0), ("--pictures", -1), ("--device", "abacus")):
        with pytest.raises(SystemExit):
            run("encoder", *arguments)
        assert str(arguments[1]) in capsys.readouterr().err
    assert run("model", "--pictures", 1, "--cache", tmp_path, "--encoder", tmp_path / "none", "--masks", tmp_path) == 1
    assert "No mask tokenizer" in capsys.readouterr().err.replace("no mask", "No mask")


def test_outlines_are_those_of_the_training_artists():
    found = recipe.outlines(1, ("noto",))
    assert found.shape == (128, 64, 64) and 0.1 < found.mean() < 0.9
    rng = np.random.default_rng(0)
    cut = random_cut(rng, "dog", "noto", varied=False)
    assert cut.shear == 0 and cut.rim == 0 and abs(cut.angle) <= 20


def test_mixture_is_the_loss_of_the_model_itself(pictures, processor):
    """The loss of one caption equals the model's own cross-entropy where no location tokens are in play."""
    from paligemma.segmentation import load_mask_tokenizer
    from paligemma.training import AnswerLoss, questions_loss

    model = build_sticker_model(processor).eval()
    scene = pictures.scene(0)
    rows = [(0, "caption", "caption en", caption(scene))]
    pixels = pictures.batch([0])
    features = model.get_image_features(pixels)
    loss, _ = questions_loss(model, processor.tokenizer, AnswerLoss(processor.tokenizer), features, rows, chunks=1)
    batch = collate(processor.tokenizer, ["caption en"], [caption(scene)], 64)
    assert torch.allclose(loss, model(pixel_values=pixels, **batch).loss, atol=1e-4)
    stage = ModelWithPatchHeads(model, PatchHeads(192))
    masks_with = load_mask_tokenizer(ASSETS / "mask-tokenizer")
    mixed = recipe.mixture_loss(stage, processor.tokenizer, pictures, masks_with, 4, 0, torch.device("cpu"))
    (first, metrics), (second, _) = mixed(0), mixed(0)
    assert torch.equal(first, second)  # a function of the seed and the step alone
    assert sum(metric.count for name, metric in metrics.items() if not name.startswith("patch")) == 12


def test_one_task_may_have_all_questions_if_each_picture_gets_one(pictures, processor):
    stage = ModelWithPatchHeads(build_sticker_model(processor), PatchHeads(192))
    masks_with = load_mask_tokenizer(ASSETS / "mask-tokenizer")
    weights = dict.fromkeys(TASKS, 0.0) | {"segment": 1e9, "caption": 1.0}

    def asked(per_picture: int) -> dict[str, float]:
        batch_loss = recipe.mixture_loss(
            stage,
            processor.tokenizer,
            pictures,
            masks_with,
            per_step=8,
            seed=0,
            device=torch.device("cpu"),
            task_weights=weights,
            per_picture=per_picture,
        )
        return {name: metric.count for name, metric in batch_loss(0)[1].items() if not name.startswith("patch")}

    one, two = asked(1), asked(2)
    # Where the same thing is there twice, no mask can be asked for.
    assert sum(one.values()) == 8 and one["segment"] > 4
    assert two == {"segment": one["segment"], "caption": 8}


def test_word_loss_is_cross_entropy_over_the_names(processor):
    """By the definition: patch by patch, form by form; patches beside the stickers do not count."""
    torch.manual_seed(0)
    features, words = torch.randn(2, 5, 8), torch.randn(3, 4, 8)
    names = torch.tensor([[0, 1, 4, 4, 0], [2, 0, 0, 0, 3]])
    losses = [
        -(words[form] @ features[p, n]).log_softmax(0)[names[p, n] - 1]
        for form in range(3)
        for p, n in names.nonzero().tolist()
    ]
    loss, metric = recipe.word_loss(features, words, names)
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5) and metric.count == 5
    ids = recipe.word_ids(processor.tokenizer)
    assert processor.tokenizer.convert_ids_to_tokens(ids[:, NAMES.index("dog")].tolist()) == ["▁dog", "dog", "▁개"]


def test_grounding_is_the_attention_of_the_models_own_first_head(pictures, processor):
    """As recorded while the model reads `detect NAME`: to the patches of that name, or to itself where it is absent."""
    model = build_sticker_model(processor).eval()
    words = recipe.word_ids(processor.tokenizer)[0]
    labels = pictures.labels(range(3))["name"]  # [P, N], 0 is no sticker
    asked = labels.unique()[1:].tolist()
    present, absent = [], []
    for p in range(3):
        for number in asked:
            batch = collate(processor.tokenizer, [f"detect {NAMES[number - 1]}"], [""], 64)
            with record_attention(model) as maps, torch.inference_mode():
                model(pixel_values=pictures.batch([p]), **batch)
            row = maps["language_model.model.layers.0.self_attn"][0][0, 0, 66]  # 64 image tokens, <bos>, detect, NAME
            its_own, mine = row[66].item(), row[:64][labels[p] == number].sum().item()
            total = row[:64].sum().item() + its_own
            (present if (labels[p] == number).any() else absent).append((mine or its_own) / total)
    assert len(present) >= 3 and len(absent) >= 3

    class FirstPlace:
        def integers(self, high):
            return 0

    with torch.no_grad():
        features = model.get_image_features(pictures.batch(range(3)))
        loss, metric = recipe.grounding_loss(model, features, words, labels, FirstPlace())
    assert metric.count == len(present) and metric.total == pytest.approx(sum(present), abs=1e-4)
    assert loss.item() == pytest.approx(-0.5 * (np.log(present).mean() + np.log(absent).mean()), abs=1e-4)


def test_scores_of_perfect_and_empty_answers():
    scenes = [make_scene(seed) for seed in range(12)]
    rows = evaluation.make_questions(scenes)
    masks_with = load_mask_tokenizer(ASSETS / "mask-tokenizer")
    perfect = evaluation.score(scenes, rows, [row[3] for row in rows], masks_with)
    empty = evaluation.score(scenes, rows, ["" for _ in rows], masks_with)
    assert perfect["caption of up to 3: all names"] == perfect["caption ko of up to 3: names and relations"] == 1
    assert perfect["detect: mean IoU"] > 0.98 and perfect["beside"] == 1
    assert empty["detect: mean IoU"] == empty["segment: mean IoU"] == empty["caption of up to 3: all names"] == 0
    assert set(evaluation.GOALS) - {"name"} <= set(perfect) | {"name"}
    with pytest.raises(ValueError, match="scenes is 0, expected 1 to"):
        evaluation.evaluate(None, None, None, "choice", 0)


def test_a_shortened_log_has_the_means():
    log = [{"step": 10 * i, "seconds": float(i), "loss": float(i)} for i in range(1, 13)]
    log[3]["segment"] = 0.5  # not every line has every task
    short = recipe.shorten(log)
    assert short == [
        {"step": 100, "seconds": 10.0, "loss": 5.5, "segment": 0.5},
        {"step": 120, "seconds": 12.0, "loss": 11.5},
    ]


def test_the_card_draws_the_log_and_the_mistakes(tmp_path, capsys):
    """Two runs of the encoder follow one another; a mistake that is no name of the world is left out."""
    log = [{"step": step, "patch name": 0.5} for step in (10, 20, 10, 20)]
    recipe.write_log(tmp_path / "encoder-training.jsonl", log)
    recipe.write_log(
        tmp_path / "training.jsonl", [{"step": step, "caption": 0.5, "is there": 0.7} for step in (10, 20)]
    )
    mistakes = [["dog", "cat", 3], ["pizza", "piz", 2], ["tractor", "car", 1]]
    (tmp_path / "figures.json").write_text(json.dumps({"confused": {"unseen": mistakes}}), encoding="utf-8")
    assert run("card", tmp_path) == 0
    for name in ("curves.png", "confusions.png"):
        picture = np.asarray(Image.open(tmp_path / name).convert("L"))
        assert (picture < 128).sum() > 500, name  # something is drawn
    right = picture[:, picture.shape[1] // 2 :]
    assert (right < 250).sum() == 0  # two mistakes fill two of eight columns
    assert run("card", tmp_path / "none") == 1
    assert "none" in capsys.readouterr().err


def test_the_held_out_loss_is_the_loss_of_those_pictures(pictures):
    stage = EncoderStage(vision_config()).eval()
    found = recipe.held_out_encoder_loss(stage, pictures, torch.device("cpu"))()
    with torch.no_grad():
        patches = stage.vision_tower(pictures.batch(range(12)))
        assert found == pytest.approx(stage.heads.loss(patches, pictures.labels(range(12)))[0].item(), rel=1e-5)


def test_encoder_stage_starts_from_its_seed():
    from paligemma.world.tiny_model import initialise

    stages = [EncoderStage(vision_config()) for _ in range(2)]
    for stage in stages:
        initialise(stage, 7)
    pair = zip(stages[0].parameters(), stages[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pair)


# ------------------------------------------------------------------------------------------------ the capstone


def test_capstone_objects_are_drawn_by_every_artist():
    assert len(set(capstone.NAMES)) == 24 and set(capstone.NAMES) <= set(NAMES)
    assert [(name, artist) for name in capstone.NAMES for artist in artists() if drawing(name, artist) is None] == []


def test_capstone_folder_shows_no_drawing_of_the_judge(tmp_path, monkeypatch):
    """The folder is made from the artists of `train` and `choice`; the unseen artist's sheet is not opened."""
    opened = []
    monkeypatch.setattr(capstone, "drawing", lambda name, artist: opened.append(artist) or drawing(name, artist))
    counts = capstone.write_examples(tmp_path / "folder", per_drawing=1)
    assert counts == {"train": 24 * 6, "valid": 24 * 4}
    assert set(opened) == set(artists("train")) | set(artists("choice"))
    found = read_folder(tmp_path / "folder")
    assert not found.problems and {one.answer for one in found.splits["train"] if "what" in one.prompt} == set(
        capstone.NAMES
    )


def test_sealed_pictures_are_no_pictures_of_the_folder(tmp_path):
    capstone.write_examples(tmp_path / "folder", per_drawing=1)
    seen = {one.picture().tobytes() for one in read_folder(tmp_path / "folder")}
    for split in ("unseen", "train"):
        pictures, rows = capstone.sealed_questions(split, per_drawing=1)
        assert len(pictures) == 24 * len(artists(split)) and len(rows) == 2 * len(pictures)
        assert not seen & {picture.tobytes() for picture in pictures}


def test_score_of_perfect_and_of_silent_answers(monkeypatch, tiny_folder):
    """Answers that are the truth give 100 % and IoU 1, silence gives nothing; the row shows both."""
    monkeypatch.setattr(capstone, "answer_all", lambda model, processor, pictures, rows: [row[3] for row in rows])
    perfect = capstone.score(tiny_folder, per_drawing=1)
    assert perfect["names"] == perfect["own names"] == 1 and perfect["detect"] == pytest.approx(1)
    monkeypatch.setattr(capstone, "answer_all", lambda model, processor, pictures, rows: [""] * len(rows))
    silent = capstone.score(tiny_folder, per_drawing=1)
    assert silent["names"] == silent["own names"] == silent["detect"] == 0
    assert capstone.row("me", perfect).startswith("| me | 100 % | 100 % | 1.00 | ")
    assert capstone.row("me", silent).startswith("| me | 0 % | 0 % | 0.00 | ")


def test_capstone_commands(tmp_path, capsys):
    assert command.main(["folder", str(tmp_path / "folder"), "--per-drawing", "1"]) == 0
    assert "144 pictures" in capsys.readouterr().out
    assert command.main(["folder", str(tmp_path / "folder")]) == 1
    assert "has something in it" in capsys.readouterr().err
    assert command.main(["score", str(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().err
