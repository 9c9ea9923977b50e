"""The showcase: what it records is what the model says, the page shows all of it, and no file of the reader's goes."""

import json
import re

import pytest
import torch
from PIL import Image
from test_main import needs

from paligemma import ASSETS, generate, load_pretrained, showcase
from paligemma.attention_maps import AnswerAttention, answer_attention, share_inside
from paligemma.locations import box_iou, parse_detections
from paligemma.segmentation import load_mask_tokenizer
from paligemma.world.scenes import draw, make_scene

pytestmark = [needs("tiny-paligemma"), needs("mask-tokenizer")]


@pytest.fixture(scope="module")
def tiny():
    return load_pretrained(ASSETS / "tiny-paligemma")


@pytest.fixture(scope="module")
def shot():
    return showcase.Shot("shapes", draw(make_scene(18), 256), "what colour is the ring?", "triangle")


@pytest.fixture(scope="module")
def recording(tiny, shot, tmp_path_factory):
    folder = tmp_path_factory.mktemp("showcase") / "new" / "folder"
    masks = load_mask_tokenizer(ASSETS / "mask-tokenizer")
    page = showcase.record(*tiny, folder, "tiny [model]", masks, [shot])
    assert page == folder / "README.md"
    return folder


def test_it_holds_what_the_model_says(recording, tiny, shot):
    record = json.loads((recording / "showcase.json").read_text(encoding="utf-8"))
    assert record["model"] == "tiny [model]" and record["dtype"] == "float32" and record["pixels"] == 64
    (one,) = record["pictures"]
    prompts = ["caption en", "answer en what colour is the ring?", "detect triangle", "segment triangle"]
    assert list(one["answers"]) == prompts
    assert list(one["answers"].values()) == generate(*tiny, images=[shot.image], text=prompts, max_new_tokens=100)
    assert one["answers"]["answer en what colour is the ring?"] == "orange"
    assert len(parse_detections(one["answers"]["segment triangle"])[0][0].codes) == 16


def test_the_page_shows_all_of_it(recording):
    page = (recording / "README.md").read_text(encoding="utf-8")
    record = json.loads((recording / "showcase.json").read_text(encoding="utf-8"))
    for answer in record["pictures"][0]["answers"].values():
        assert f"`{answer}`" in page
    files = {path.name for path in recording.iterdir()} - {"README.md"}
    assert files == set(re.findall(r"\]\(([^)]+)\)", page)) and len(files) == 4
    for name in re.findall(r"!\[[^\]]{40,}\]\((.+?)\)", page):  # figures, each with a description
        with Image.open(recording / name) as figure:
            assert figure.width > 800 and len(figure.convert("L").getcolors()) > 20
    assert len(re.findall(r"!\[", page)) == 2


def test_the_head_in_the_figure_points_at_the_box_best(recording, tiny, shot):
    (one,) = json.loads((recording / "showcase.json").read_text(encoding="utf-8"))["pictures"]
    attention = answer_attention(*tiny, shot.image, "caption en")
    box = parse_detections(one["answers"]["detect triangle"])[0][0].box
    assert box_iou(box, parse_detections(one["answers"]["segment triangle"])[0][0].box) > 0.8

    def inside(layer, head):
        maps = [attention.to_image(layer, head, token) for token in range(len(attention.tokens))]
        return max(float(weights.sum()) * share_inside(weights, box) for weights in maps)

    layers, heads = attention.decoder.shape[:2]
    best = max((inside(layer, head), layer, head) for layer in range(layers) for head in range(heads))
    assert (one["attention"]["layer"], one["attention"]["head"]) == best[1:]


@pytest.mark.parametrize("answer, expected", [("<loc0000><loc0000><loc0511><loc0511> dog", (1, 2)), ("a dog", (0, 1))])
def test_without_a_box_the_whole_picture_stands_for_it(answer, expected):
    decoder = torch.zeros(2, 3, 6, 6)  # four patches, two words
    decoder[1, 2, 5, 0] = 0.5  # in the box, half of the attention for the second word
    decoder[0, 1, 4, 3] = 0.9  # outside, but in the picture
    decoder[0, 0, 3, 0] = 1.0  # in the box, but before the first word was chosen
    attention = AnswerAttention("", ["a", "dog"], decoder, torch.zeros(1, 1, 4, 4), torch.tensor([4, 5]), grid=2)
    assert showcase.pointing_head(attention, answer) == expected


def test_too_many_patches_leave_the_attention_out(tiny, shot, tmp_path, monkeypatch):
    monkeypatch.setattr(showcase, "MOST_PATCHES", 63)
    showcase.record(*tiny, tmp_path, "tiny", None, [shot])
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "showcase.json", "shapes-answers.png"}
    assert "No attention was recorded" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_new_recording_takes_the_place_of_the_old_one_and_only_when_it_is_whole(tiny, shot, tmp_path, monkeypatch):
    monkeypatch.setattr(showcase, "MOST_PATCHES", 63)
    showcase.record(*tiny, tmp_path, "first", None, [shot])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = showcase.Shot("other", shot.image, shot.question, shot.thing)

    def fails(*args):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(showcase, "page", fails)
        with pytest.raises(RuntimeError):
            showcase.record(*tiny, tmp_path, "second", None, [other])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    showcase.record(*tiny, tmp_path, "second", None, [other])
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "showcase.json", "other-answers.png"}


@pytest.mark.parametrize("there", ["README.md", "thesis.txt", None])
def test_a_folder_with_other_files_is_left_alone(there, tmp_path, capsys):
    output = tmp_path / "output"
    if there:
        output.mkdir()
        (output / there).write_text("years of work", encoding="utf-8")
    else:
        output.write_text("a file", encoding="utf-8")
    assert showcase.main([str(ASSETS / "tiny-paligemma"), "--output", str(output)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: output is ") and said.err.count("\n") == 1
    assert (output / there if there else output).read_text(encoding="utf-8") in ("years of work", "a file")


def test_the_command_names_a_folder_without_its_path(tmp_path, capsys, monkeypatch, shot):
    monkeypatch.setattr(showcase, "photographs", lambda: [shot])
    assert showcase.main([str(ASSETS / "tiny-paligemma"), "--output", str(tmp_path / "new"), "--device", "cpu"]) == 0
    page = (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    assert page.startswith("# tiny-paligemma on 1 picture\n") and str(ASSETS) not in page
    assert str(tmp_path / "new" / "README.md") in capsys.readouterr().out
    assert showcase.main([str(tmp_path / "missing"), "--output", str(tmp_path / "new")]) == 2
    assert "error: there is no folder" in capsys.readouterr().err


def test_the_photographs_are_those_of_the_course():
    shots = showcase.photographs()
    assert [shot.name for shot in shots] == ["cat", "coffee", "astronaut", "rocket"]
    for shot in shots:
        assert shot.image.mode == "RGB" and shot.prompts[2] == f"detect {shot.thing}"


def test_what_a_model_writes_makes_no_markup_of_its_own():
    nasty = "a|b `c` ](x.png) <script>\n**d**"
    facts = {"model": "m", "dtype": "float32", "device": "cpu", "pixels": 64, "torch": "2"}
    page = showcase.page(facts, [showcase.Recorded("x", {"caption en": nasty, "empty": ""}, None)])
    row = next(line for line in page.splitlines() if line.startswith("| `caption en`"))
    assert row == "| `caption en` | `a\\|b 'c' ](x.png) <script> **d**` |"
    assert "| `empty` | (nothing) |" in page
    description = re.search(r"!\[(.+?)\]\(x-answers.png\)", page)[1]
    assert not set(description) & set("[]`|<>*\\")
