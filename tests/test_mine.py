"""Check my own code: code in the form of the video's is understood, and what is wrong with it is named and located.

tests/typed has the three files, written for this test; tests/planted.py the mistakes to plant into them.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
from planted import GEMMA, PLANTED, PROCESSING, RAISED, SIGLIP

import paligemma
from paligemma.exercises.mycode import run
from paligemma.exercises.mycode.compare import Comparison
from paligemma.exercises.mycode.files import WANTED, Workspace
from paligemma.exercises.mycode.standins import STAND_INS
from paligemma.exercises.mycode.whole import Whole
from paligemma.exercises.mycode.worker import main

TYPED = Path(__file__).parent / "typed"


def compared(folder, names=None):
    """(the comparison, its results that are not right)"""
    comparison = Comparison(Workspace(folder, STAND_INS))
    return comparison, [result for result in comparison.run(names) if result.state != "right"]


@pytest.fixture
def typed(tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(TYPED, tmp_path / "typed", ignore=shutil.ignore_patterns("__pycache__")))


def plant(folder, file, right, wrong):
    path = folder / file
    text = path.read_text(encoding="utf-8")
    assert right in text
    path.write_text(text.replace(right, wrong), encoding="utf-8")


def test_right_code_is_right_in_every_part():
    comparison, others = compared(TYPED)
    assert others == [] and comparison.workspace.troubles == []
    assert set(comparison.results) == set(WANTED) - {"PaliGemmaProcessor"}


@pytest.mark.parametrize("entry", PLANTED, ids=lambda entry: f"{entry[0]}-{entry[4]}")
def test_planted_mistakes_are_named_and_located(typed, entry):
    part, file, right, wrong, name, piece = entry
    plant(typed, file, right, wrong)
    _, others = compared(typed, [part])
    assert [result.part for result in others] == [part]  # nothing else is blamed
    assert others[0].file == file and piece in others[0].text
    assert name is None or others[0].name == name
    line = (typed / file).read_text(encoding="utf-8").splitlines()[others[0].line - 1].strip()
    assert others[0].text[:80] == line[:80]


@pytest.mark.parametrize("entry", RAISED, ids=lambda entry: f"{entry[0]}-{entry[4] or entry[5]}")
def test_what_stops_the_code_is_explained_at_its_line(typed, entry):
    part, file, right, wrong, words, piece = entry
    plant(typed, file, right, wrong)
    comparison, others = compared(typed, [part])
    troubles = comparison.workspace.troubles
    assert {result.part for result in others} <= {part} and len(others) + len(troubles) >= 1
    told = [(one.file, one.text, f"{one.saw} {one.means}") for one in [*others, *troubles]]
    assert any(place == file and piece in text and words in said for place, text, said in told), told


def test_the_whole_model_says_the_same_as_ours():
    whole = Whole(Comparison(Workspace(TYPED, STAND_INS)))
    assert whole.check_processor().state == "right" and whole.build()
    whole.walk()
    whole.ask()
    trained = whole.trained
    assert trained.trouble is None and trained.first is None and trained.cached is None
    assert trained.lacking == [] and trained.unused == [] and trained.modules > 90 and trained.steps == 3
    assert trained.logits < 1e-3
    captions = [answer for answer in trained.answers if answer.prompt == "caption en"]
    assert [answer.mine for answer in captions] == [answer.ours for answer in captions]
    assert all(answer.remark == "" for answer in captions)
    assert [answer.prompt.split()[0] for answer in trained.answers] == ["caption", "caption", "detect", "segment"]
    said = " ".join(text for text, _ in whole.properties())
    assert all(
        word in said for word in ("padding", "training", "once for a picture", "in place", "grey", "PaliGemma 2")
    )


def test_the_whole_model_is_walked_to_the_module_that_differs(typed):
    plant(typed, GEMMA, "math.sqrt(self.head_dim)", "math.sqrt(self.hidden_size)")
    plant(typed, SIGLIP, "layer_norm2", "layer_norm_2")
    whole = Whole(Comparison(Workspace(typed, STAND_INS)))
    assert whole.build()
    assert len(whole.trained.lacking) == 8  # two parameters in each of four layers, as strict=False would hide
    assert whole.trained.lacking[0][1].endswith("layers.0.layer_norm2.weight")
    whole.walk()
    assert whole.trained.first.path.endswith("encoder.layers.0.layer_norm_2") or whole.trained.first.path.endswith(
        "encoder.layers.0.mlp.fc1"
    )
    plant(typed, SIGLIP, "layer_norm_2", "layer_norm2")
    whole = Whole(Comparison(Workspace(typed, STAND_INS)))
    assert whole.build() and whole.trained.lacking == []
    whole.walk()
    assert whole.trained.first.path == "language_model.model.layers.0.self_attn.o_proj"
    assert whole.trained.first.before.endswith("layers.0.self_attn.v_proj")


def test_a_wrong_cache_is_seen_in_the_steps_after_the_prompt(typed):
    plant(typed, GEMMA, "[self.key_cache[layer_idx], key_states]", "[key_states, self.key_cache[layer_idx]]")
    whole = Whole(Comparison(Workspace(typed, STAND_INS)))
    assert whole.build()
    whole.walk()
    assert whole.trained.first is None and whole.trained.cached is not None


def test_processor_that_differs(typed):
    plant(typed, PROCESSING, "tokenizer.add_bos_token = False", "")
    plant(typed, PROCESSING, r"{prefix_prompt}\n", "{prefix_prompt}")
    whole = Whole(Comparison(Workspace(typed, STAND_INS)))
    result = whole.check_processor()
    assert result.state == "wrong" and result.name == "ids" and "caption" in result.means


# --- folders as they are ----------------------------------------------------------------------------------------------


def test_half_way_through_the_video(typed, capsys):
    """Only the image encoder, in a file of another name, beside files called as the package's and Python's are."""
    (typed / SIGLIP).rename(typed / "vision.py")
    (typed / GEMMA).unlink()
    (typed / PROCESSING).unlink()
    (typed / "config.py").write_text("SIZE = 3\n", encoding="utf-8")
    (typed / "utils.py").write_text("raise SystemExit('scripts are not run')\n", encoding="utf-8")
    assert main(str(typed), 60) == 0
    said = capsys.readouterr().out
    assert "Your image encoder with the trained weights" in said and "the same as the course's in all" in said
    assert "missing  decoder: everything" in said and "a large red triangle above a large green circle" in said
    assert max(map(len, said.splitlines())) <= 100


def test_one_notebook_instead_of_files(typed, tmp_path):
    cells = [{"cell_type": "markdown", "source": "# typed"}, {"cell_type": "code", "source": ["!pip install torch\n"]}]
    for name in (SIGLIP, PROCESSING, GEMMA):
        text = (typed / name).read_text(encoding="utf-8").replace("from modeling_siglip import", "# from")
        cells.append({"cell_type": "code", "source": text.splitlines(keepends=True)})
    cells.append({"cell_type": "code", "source": "model = SiglipVisionModel(SiglipVisionConfig())\nraise ValueError"})
    cells[3]["source"] = [line.replace("image - mean)", "image + mean)") for line in cells[3]["source"]]
    folder = tmp_path / "notebook"
    folder.mkdir()
    (folder / "video.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    comparison, others = compared(folder)
    assert [result.part for result in others] == ["normalize"] and len(comparison.results) == len(WANTED) - 1
    assert others[0].file == "video.ipynb, cell 3" and "image + mean" in others[0].text
    assert others[0].name == "mean added"


def test_other_names_methods_and_relative_imports(typed):
    """What others called it: SiglipVisionAttention, apply_rotary_emb, `from .siglip import`, methods for functions."""
    source = typed / "src"
    source.mkdir()
    siglip = (typed / SIGLIP).read_text(encoding="utf-8").replace("SiglipAttention", "SiglipVisionAttention")
    (source / "siglip.py").write_text(siglip.replace("hidden_states", "x"), encoding="utf-8")
    gemma = (typed / GEMMA).read_text(encoding="utf-8").replace("apply_rotary_pos_emb", "apply_rotary_emb")
    gemma = gemma.replace("from modeling_siglip", "from .siglip").replace("kv_cache", "cache")
    (source / "gemma.py").write_text(gemma, encoding="utf-8")
    (typed / SIGLIP).unlink()
    (typed / GEMMA).unlink()
    comparison, others = compared(typed)
    assert others == []
    assert comparison.found["SiglipAttention"].own_name == "SiglipVisionAttention"
    assert comparison.found["apply_rotary_pos_emb"].own_name == "apply_rotary_emb"


OTHER_STYLE = [
    (SIGLIP, """        scores = torch.matmul(queries, keys.transpose(2, 3)) * self.scale
        weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(queries.dtype)
        weights = nn.functional.dropout(weights, p=self.dropout, training=self.training)
        context = torch.matmul(weights, values)
""", """        context = nn.functional.scaled_dot_product_attention(queries, keys, values)
        weights = None
"""),
    (SIGLIP, "grid = self.patch_embedding(pixel_values)  # [B, D, rows, columns]\n        tokens = grid.flatten(2)\n"
     "        tokens = tokens.transpose(1, 2)  # [B, N, D]",
     "tokens = torch.einsum('bdhw->bhwd', self.patch_embedding(pixel_values)).flatten(1, 2)"),
    (SIGLIP, "self.layers = nn.ModuleList([SiglipEncoderLayer(config) for _ in range(config.num_hidden_layers)])",
     "self.layers = nn.Sequential(*(SiglipEncoderLayer(config) for _ in range(config.num_hidden_layers)))"),
    (PROCESSING, "return [array.transpose(2, 0, 1) for array in arrays]",
     "return np.stack([np.moveaxis(array, -1, 0) for array in arrays])"),
    (PROCESSING, "np.stack(arrays, axis=0)", "arrays"),
    (GEMMA, "        self.key_cache: List[torch.Tensor] = []\n        self.value_cache: List[torch.Tensor] = []",
     "        self.key_cache, self.value_cache = {}, {}"),
    (GEMMA, "if layer_idx >= len(self.key_cache):\n            self.key_cache.append(key_states)\n"
     "            self.value_cache.append(value_states)",
     "if layer_idx not in self.key_cache:\n            self.key_cache[layer_idx] = key_states\n"
     "            self.value_cache[layer_idx] = value_states"),
    (GEMMA, "x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)",
     "x / torch.sqrt(torch.mean(x * x, -1, True) + self.eps)"),
    (GEMMA, "angles = (steps @ places).transpose(1, 2)", "angles = torch.einsum('bdo,bol->bld', steps, places)"),
    (GEMMA, "    left = x[..., : x.shape[-1] // 2]\n    right = x[..., x.shape[-1] // 2 :]\n",
     "    left, right = x.chunk(2, -1)\n"),
    (GEMMA, "hidden_states[:, :, None].expand(rows, heads, n_rep, length, width)",
     "torch.repeat_interleave(hidden_states, n_rep, dim=1)"),
    (GEMMA, "scores = torch.matmul(query, key.transpose(2, 3)) / math.sqrt(self.head_dim)",
     "query = query * self.head_dim**-0.5\n        scores = torch.einsum('bhqd,bhkd->bhqk', query, key)"),
    (GEMMA, "        return self.norm(hidden_states)\n", "        return (self.norm(hidden_states),)\n"),
    (GEMMA, "logits = self.lm_head(hidden_states).float()", "logits = self.lm_head(hidden_states[0]).float()"),
    (GEMMA, "merged = torch.where(is_text[..., None].expand(-1, -1, width), inputs_embeds, merged)\n"
     "        merged = merged.masked_scatter(is_image[..., None].expand(-1, -1, width), scaled)",
     "merged[is_text] = inputs_embeds[is_text]\n        if held_nothing(kv_cache):\n"
     "            merged[is_image] = scaled.reshape(-1, width)"),
    (GEMMA, "class PaliGemmaForConditionalGeneration(nn.Module):",
     "def held_nothing(cache):\n    return cache is None or cache.num_items() == 0\n\n\n"
     "class PaliGemmaForConditionalGeneration(nn.Module):"),
]  # fmt: skip


def test_right_code_in_another_style_is_right(typed):
    for file, usual, other in OTHER_STYLE:
        plant(typed, file, usual, other)
    comparison, others = compared(typed)
    assert others == [] and comparison.workspace.troubles == []
    whole = Whole(comparison)
    assert whole.check_processor().state == "right" and whole.build()
    whole.walk()
    assert not whole.trained.differs() and whole.trained.steps == 3


def test_this_courses_own_form(tmp_path):
    """Someone who typed the chapters: the package's signatures, configurations and cache."""
    package = Path(paligemma.__file__).parent
    names = ("modeling_siglip", "modeling_gemma", "processing_paligemma", "kv_cache", "config_checks", "locations")
    for name in names:
        shutil.copy(package / f"{name}.py", tmp_path)
    comparison, others = compared(tmp_path)
    assert {result.part for result in others if result.state == "later"} == {
        "GemmaModel", "GemmaForCausalLM", "PaliGemmaForConditionalGeneration",
    }  # fmt: skip
    assert {result.part for result in others if result.state != "later"} == {"sample_top_p"}
    whole = Whole(comparison)
    assert whole.build()
    whole.walk()
    assert not whole.trained.differs() and whole.trained.logits == 0 and whole.trained.steps == 3


def test_what_is_only_begun_is_missing(typed):
    siglip = (typed / SIGLIP).read_text(encoding="utf-8")
    start, end = siglip.index("class SiglipMLP"), siglip.index("class SiglipEncoderLayer")
    siglip = siglip[:start] + "class SiglipMLP(nn.Module):\n    pass\n\n\n" + siglip[end:]
    (typed / SIGLIP).write_text(siglip, encoding="utf-8")
    _, others = compared(typed, ["SiglipEncoder"])
    assert [(result.part, result.state) for result in others] == [("SiglipMLP", "missing")]


def test_a_missing_file_is_filled_in(typed):
    (typed / SIGLIP).unlink()
    comparison, others = compared(typed)
    assert {result.state for result in others} == {"missing"}
    assert all(result.part.startswith("Siglip") for result in others)
    assert not any(trouble.grave for trouble in comparison.workspace.troubles)


def test_a_right_part_is_not_blamed_for_a_wrong_one_inside(typed):
    plant(typed, GEMMA, "torch.cat((-right, left), dim=-1)", "torch.cat((right, -left), dim=-1)")
    plant(typed, SIGLIP, "keys.transpose(2, 3)) * self.scale", "keys.transpose(2, 3))")
    comparison, others = compared(typed)
    assert [result.part for result in others] == ["SiglipAttention", "rotate_half"]
    assert "SiglipAttention" in comparison.results["SiglipEncoderLayer"].replaced
    assert "rotate_half" in comparison.results["GemmaAttention"].replaced


def test_two_mistakes_in_one_part(typed):
    plant(typed, GEMMA, "GemmaDecoderLayer(config, i) for i", "GemmaDecoderLayer(config, 0) for i")
    plant(typed, GEMMA, "hidden_states = inputs_embeds * normalizer", "hidden_states = inputs_embeds / normalizer")
    _, others = compared(typed, ["GemmaModel"])
    assert [result.name for result in others] == ["divided instead of multiplied"]
    assert others[0].text == "hidden_states = inputs_embeds / normalizer"


def test_a_name_that_is_set_and_never_read_is_told(typed):
    plant(typed, SIGLIP, "wide = nn.functional.gelu(", "wides = nn.functional.gelu(")
    _, others = compared(typed, ["SiglipMLP"])
    assert others[0].name == "no bend" and "sets wides, which is never read: is wide meant?" in others[0].means


def test_a_loop_without_end_is_left(typed, capsys):
    plant(
        typed,
        SIGLIP,
        "        for layer in self.layers:\n",
        "        while True:\n            layer = self.layers[0]\n",
    )
    assert run(typed, seconds=6) == 3
    said = capsys.readouterr().out
    assert "SiglipEncoder: still at it" in said and "modeling_siglip.py, line" in said


def test_folders_without_anything(tmp_path, capsys):
    (tmp_path / "notes.py").write_text("print('hello')\n", encoding="utf-8")
    assert main(str(tmp_path), 60) == 4
    assert "None of the classes and functions" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="pass the one that your .py files lie in"):
        run(tmp_path / "nowhere")


def test_command(typed, capfd):
    import subprocess

    plant(typed, GEMMA, "gate * self.up_proj(x)", "gate + self.up_proj(x)")
    command = [sys.executable, "-m", "paligemma.exercises", "mine", str(typed)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == 1
    assert "WRONG    GemmaMLP: added instead of multiplied" in done.stdout and "29 right, 1 wrong" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
