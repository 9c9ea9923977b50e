"""Taking classes out of notebooks and putting them together."""

import json

import pytest
import torch

from paligemma.exercises.from_notebooks import BUILT, gather


def write(path, *cells):
    """A notebook of these cells; one that begins with # is prose."""
    cells = [{"cell_type": "markdown" if cell.startswith("#") else "code", "source": cell} for cell in cells]
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")


def test_definitions_come_with_what_they_need_and_nothing_else_is_run(tmp_path):
    write(
        tmp_path / "a.ipynb",
        "import math\nFACTOR = 2\nraise_if_run = 1 / 1",
        "%matplotlib inline\ndef helper(x):\n    return FACTOR * math.floor(x)",
        "assert False, 'a cell that is not needed must not run'",
        "def part(x):\n    return 0",
        "def part(x):\n    return helper(x) + 1",
        "## Break it",
        "def part(x):\n    return -1",
    )
    module = gather(tmp_path, {"a.ipynb": ("part",)})
    assert module.part(2.5) == 5  # the last definition before the heading
    assert not hasattr(module, "raise_if_run")


def test_a_variable_inside_a_function_pulls_in_no_namesake(tmp_path):
    write(
        tmp_path / "a.ipynb",
        "heads = undefined_here",
        "class Part:\n    def call(self, x):\n        heads = [x]\n        return heads",
    )
    assert gather(tmp_path, {"a.ipynb": ("Part",)}).Part().call(1) == [1]


def test_later_notebooks_use_the_parts_of_earlier_ones(tmp_path):
    write(tmp_path / "a.ipynb", "def rotate_half(x):\n    return 'mine'")
    write(
        tmp_path / "b.ipynb",
        "from paligemma.modeling_gemma import rotate_half",
        "def apply(x):\n    return rotate_half(x)",
    )
    module = gather(tmp_path, {"a.ipynb": ("rotate_half",), "b.ipynb": ("apply",)})
    assert module.apply(torch.ones(2)) == "mine"


def test_what_is_missing_is_named(tmp_path):
    write(tmp_path / "a.ipynb", "## Break it", "def part():\n    pass")
    with pytest.raises(ValueError, match="a.ipynb does not define part before its heading"):
        gather(tmp_path, {"a.ipynb": ("part",)})
    with pytest.raises(FileNotFoundError, match="b.ipynb"):
        gather(tmp_path, {"b.ipynb": ("part",)})


def test_what_is_finished_in_an_exercise_takes_the_place_of_the_chapters(tmp_path):
    own = tmp_path / "exercises"
    own.mkdir()
    write(tmp_path / "a.ipynb", "def low():\n    return 'chapter'", "def high():\n    return 'chapter'")
    write(own / "a.ipynb", "def low():\n    return 'mine'", "def high():\n    raise NotImplementedError()", "def b(:")
    write(tmp_path / "b.ipynb", "def both():\n    return low(), high()")
    write(own / "b.ipynb", "import paligemma.modeling_gemma as package", "def both():\n    return package.low()")
    write(tmp_path / "c.ipynb", "def last():\n    return both()")
    chapters = {"a.ipynb": ("low", "high"), "b.ipynb": ("both",), "c.ipynb": ("last",)}
    module = gather(tmp_path, chapters, exercises=own)
    assert module.origin == {
        "low": "exercises/a.ipynb", "high": "a.ipynb", "both": "exercises/b.ipynb", "last": "c.ipynb"
    }  # fmt: skip
    assert module.last() == "mine" and module.high() == "chapter"
    assert set(gather(tmp_path, {"a.ipynb": ("low", "high")}).origin.values()) == {"a.ipynb"}


@pytest.mark.parametrize("exercises", [None, "solutions", "exercises"])
def test_the_chapters_together_make_the_whole_model(root, tiny, exercises):
    model, _ = tiny
    own = gather(root / "notebooks", exercises=None if exercises is None else root / "notebooks" / exercises)
    assert {name for names in BUILT.values() for name in names} == set(own.origin) <= set(vars(own))
    from_exercises = {name for name, filename in own.origin.items() if "/" in filename}
    solved = {"SiglipAttention", "GemmaRMSNorm", "GemmaAttention"}
    assert from_exercises >= solved if exercises == "solutions" else not from_exercises
    whole = own.PaliGemmaForConditionalGeneration(model.config).eval()
    assert not [m for m in whole.modules() if type(m).__module__.startswith("paligemma")]
    whole.load_state_dict(model.state_dict())
    ids = torch.full((1, 70), model.config.image_token_index)
    ids[0, 64:] = torch.tensor([2, 300, 301, 302, 303, 260])
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(whole(ids, pixels).logits, model(ids, pixels).logits, atol=1e-5, rtol=1e-5)
