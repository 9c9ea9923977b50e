"""LoRA: the model itself at the start, the paper's formula, peft's numbers and files, and plain weights at the end."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PaliGemmaForConditionalGeneration as Reference

from paligemma import ASSETS, generate, load_pretrained, save_pretrained
from paligemma.checkpoint import EMBEDDING
from paligemma.finetune import add_lora, load_adapter, merge_lora, save_adapter
from paligemma.finetune.lora import PARTS, linear_maps, lora_maps, transformers_name
from paligemma.training import finetune
from paligemma.world.scenes import caption, draw, make_scene

TINY = ASSETS / "tiny-paligemma"


@pytest.fixture(scope="module")
def shipped():
    return load_pretrained(TINY)


@pytest.fixture
def model(shipped):
    return copy.deepcopy(shipped[0])


@pytest.fixture(scope="module")
def inputs(shipped):
    scenes = [make_scene(seed, max_things=2) for seed in range(3)]
    return shipped[1](["caption en"] * 3, [draw(scene) for scene in scenes], [caption(scene) for scene in scenes])


def fill(model, seed=1, scale=0.05):
    """Give B values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_maps(model).values():
        layer.lora_B.data.normal_(std=scale, generator=generator)


def move_embeddings(table, seed=2):
    """Change the table in place, as training would."""
    table.data.add_(0.02 * torch.randn(table.shape, generator=torch.Generator().manual_seed(seed)))


def logits(model, inputs):
    """Of the real tokens: what stands at padding is nobody's business."""
    with torch.no_grad():
        return model(**inputs).logits[inputs["attention_mask"].bool()]


def test_it_starts_as_the_model_itself_and_is_the_papers_formula(model, shipped, inputs):
    before = logits(shipped[0], inputs)
    names = add_lora(model, rank=4, alpha=6, part="all")
    assert torch.equal(logits(model, inputs), before)
    fill(model)
    assert (logits(model, inputs) - before).abs().max() > 0.1
    name = names[5]
    layer, x = model.get_submodule(name), torch.randn(2, 3, model.get_submodule(name).lora_A.shape[1])
    base = layer.base_layer
    for i in range(2):
        for j in range(3):
            change = layer.lora_B.double() @ (layer.lora_A.double() @ x[i, j].double()) * 6 / 4
            torch.testing.assert_close(layer(x)[i, j].double(), base(x[i, j]).double() + change, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "part, maps", [("attention", 4 * 4), ("decoder", 4 * 7), ("projector", 1), ("encoder", 4 * 6), ("all", 4 * 13 + 1)]
)
def test_a_part_is_covered_whole_and_nothing_else_is_trained(model, part, maps):
    names = add_lora(model, rank=2, part=part)
    assert len(names) == maps and set(names) == set(lora_maps(model))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.{half}" for name in names for half in ("lora_A", "lora_B")}


def test_the_embeddings_are_trained_on_request(model):
    names = add_lora(model, rank=2, part="attention", train_embeddings=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {EMBEDDING} | {f"{name}.{half}" for name in names for half in ("lora_A", "lora_B")}


def test_all_means_every_linear_map_of_the_layers(model):
    every = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(linear_maps(model, "all")) == every - {"language_model.lm_head"}
    assert set(PARTS) == {"attention", "decoder", "projector", "encoder", "all"}


def test_merging_gives_the_plain_model_with_the_same_logits(model, shipped, inputs, tmp_path):
    names = {name for name, _ in model.named_modules()}
    add_lora(model, rank=4, part="all")
    fill(model)
    changed = logits(model, inputs)
    with pytest.raises(ValueError, match="lora"):  # unmerged, nobody could open it
        save_pretrained(model, shipped[1], tmp_path / "unmerged")
    merge_lora(model)
    assert {name for name, _ in model.named_modules()} == names and not lora_maps(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(logits(model, inputs), changed, atol=2e-4, rtol=1e-4)
    save_pretrained(model, shipped[1], tmp_path / "merged")
    torch.testing.assert_close(logits(load_pretrained(tmp_path / "merged")[0], inputs), changed, atol=2e-4, rtol=1e-4)
    theirs = Reference.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(theirs, inputs), changed, atol=1e-3, rtol=1e-3)


def test_an_adapter_comes_back(model, shipped, inputs, tmp_path):
    names = add_lora(model, rank=4, part="all")
    fill(model)
    save_adapter(model, tmp_path / "adapter", base=TINY)
    again = copy.deepcopy(shipped[0])
    assert sorted(load_adapter(again, tmp_path / "adapter")) == sorted(names)
    assert torch.equal(logits(again, inputs), logits(model, inputs))
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == 4 and config["lora_alpha"] == 8 and config["base_model_name_or_path"] == str(TINY)


def test_an_adapter_with_embeddings_comes_back_and_is_saved_again(model, shipped, inputs, tmp_path):
    add_lora(model, rank=4, train_embeddings=True)
    fill(model)
    lora_alone = logits(model, inputs)
    move_embeddings(model.get_parameter(EMBEDDING))
    assert (logits(model, inputs) - lora_alone).abs().max() > 0.1
    save_adapter(model, tmp_path / "first")
    first, second = copy.deepcopy(shipped[0]), copy.deepcopy(shipped[0])
    load_adapter(first, tmp_path / "first")
    assert torch.equal(logits(first, inputs), logits(model, inputs))
    save_adapter(first, tmp_path / "second")
    load_adapter(second, tmp_path / "second")
    assert torch.equal(logits(second, inputs), logits(model, inputs))
    assert not torch.equal(shipped[0].get_parameter(EMBEDDING), model.get_parameter(EMBEDDING))
    merge_lora(model)
    save_pretrained(model, shipped[1], tmp_path / "merged")
    torch.testing.assert_close(
        logits(load_pretrained(tmp_path / "merged")[0], inputs), logits(first, inputs), atol=2e-4, rtol=1e-4
    )


def test_embeddings_that_do_not_fit_are_refused(model, shipped, tmp_path):
    add_lora(model, rank=2, part="projector", train_embeddings=True)
    save_adapter(model, tmp_path)
    plain = copy.deepcopy(shipped[0])
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    weights = load_file(tmp_path / "adapter_model.safetensors")
    embeddings, head = (f"base_model.model.{name}.weight" for name in ("model.language_model.embed_tokens", "lm_head"))
    for change, message in (
        ({embeddings: weights[embeddings][:, :3].clone()}, r"expected \[1706, 128\], found \[1706, 3\]"),
        ({embeddings: None, head: None}, "found none"),
        ({embeddings: None}, "found none"),
        ({head: None}, "has a head that is not its embedding table"),
        ({head: weights[head] + 1}, "has a head that is not its embedding table"),
    ):
        changed = {name: tensor for name, tensor in {**weights, **change}.items() if tensor is not None}
        save_file(changed, tmp_path / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=message):
            load_adapter(plain, tmp_path)
    save_file(weights, tmp_path / "adapter_model.safetensors")
    changed = {**config, "modules_to_save": ["multi_modal_projector"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(ValueError, match="modules_to_save holds 'multi_modal_projector', expected embed_tokens"):
        load_adapter(plain, tmp_path)
    assert not lora_maps(plain) and torch.equal(plain.get_parameter(EMBEDDING), shipped[0].get_parameter(EMBEDDING))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finetuning_trains_the_adapter_alone(model, shipped, dtype):
    model.to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_lora(model, rank=4, part="decoder")
    scenes = [make_scene(seed, max_things=1) for seed in range(4)]
    pictures, answers = [draw(scene) for scene in scenes], ["red"] * 4
    losses = finetune(model, shipped[1], pictures, ["caption en"] * 4, answers, steps=12, per_step=4, progress=False)
    assert losses[-1] < 0.5 * losses[0]
    for name, layer in lora_maps(model).items():
        assert torch.equal(layer.base_layer.weight, before[f"{name}.weight"])
    assert generate(model, shipped[1], pictures[:1], ["caption en"], max_new_tokens=2) == ["red"]


def test_what_does_not_fit_is_refused(model, shipped, tmp_path):
    with pytest.raises(ValueError, match="rank is 0, expected a whole number of 1 or more"):
        add_lora(model, rank=0)
    with pytest.raises(ValueError, match="part is 'q_proj', expected one of attention, decoder"):
        add_lora(model, part="q_proj")
    with pytest.raises(ValueError, match="no LoRA, expected one"):
        save_adapter(model, tmp_path)
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        load_adapter(model, tmp_path)
    add_lora(model, rank=2, part="projector")
    with pytest.raises(ValueError, match="has LoRA already"):
        add_lora(model)
    save_adapter(model, tmp_path)
    plain = copy.deepcopy(shipped[0])
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    weights = load_file(tmp_path / "adapter_model.safetensors")
    for change, message in (
        ({"use_dora": True}, "use_dora is True, expected False"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
        ({"rank_pattern": {"a": 1}}, "rank_pattern"),
        ({"r": 3}, "does not fit this model"),
        ({"r": "2"}, "r is '2', expected a whole number"),
        ({"lora_alpha": None}, "lora_alpha is None"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_adapter(plain, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    for names, message in (
        (lambda name: name.replace("projector", "director"), "no map of that name"),
        (lambda name: name.replace("lora_A", "lora_magnitude"), "lora_magnitude"),
    ):
        save_file({names(name): t for name, t in weights.items()}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=message):
            load_adapter(plain, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="is damaged"):
        load_adapter(plain, tmp_path)
    assert not lora_maps(plain) and all(parameter.requires_grad for parameter in plain.parameters())


# ------------------------------------------------------------------------------- against peft, where it is installed


@pytest.fixture(scope="module")
def theirs():
    return Reference.from_pretrained(TINY).eval()


@pytest.mark.parametrize("embeddings", [False, True])
def test_peft_opens_the_adapter_and_says_the_same(model, theirs, inputs, tmp_path, embeddings):
    peft = pytest.importorskip("peft")
    add_lora(model, rank=4, part="all", train_embeddings=embeddings)
    fill(model)
    if embeddings:
        move_embeddings(model.get_parameter(EMBEDDING))
    save_adapter(model, tmp_path, base=TINY)
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(theirs), tmp_path).eval()
    assert (logits(adapted, inputs) - logits(theirs, inputs)).abs().max() > 0.1
    torch.testing.assert_close(logits(adapted, inputs), logits(model, inputs), atol=1e-4, rtol=1e-5)


def test_pefts_adapter_opens_here_with_the_same_outputs_and_gradients(model, theirs, inputs, tmp_path):
    """Wrapped by peft with the usual list of names: the half of the image encoder that it takes is read as it is."""
    peft = pytest.importorskip("peft")
    usual = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=usual, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(copy.deepcopy(theirs), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    adapted.save_pretrained(tmp_path)
    names = load_adapter(model, tmp_path)
    assert len(names) == 4 * 7 + 4 * 3
    loss, their_loss = model(**inputs).loss, adapted(**inputs).loss
    torch.testing.assert_close(loss, their_loss, atol=1e-6, rtol=1e-6)
    loss.backward()
    their_loss.backward()
    gradients = {name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert len(gradients) == 2 * len(names)
    for name, layer in lora_maps(model).items():
        for half in ("lora_A", "lora_B"):
            expected = gradients[f"base_model.model.{transformers_name(name)}.{half}.default.weight"]
            torch.testing.assert_close(getattr(layer, half).grad, expected, atol=1e-6, rtol=1e-4)


def test_pefts_embeddings_open_here_with_the_same_outputs_and_gradients(model, theirs, inputs, tmp_path):
    peft = pytest.importorskip("peft")
    modules = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **modules)
    adapted = peft.get_peft_model(copy.deepcopy(theirs), config)
    table = adapted.base_model.model.get_input_embeddings().weight
    move_embeddings(table)
    adapted.save_pretrained(tmp_path)
    load_adapter(model, tmp_path)
    ours = model.get_parameter(EMBEDDING)
    assert torch.equal(ours, table) and ours.requires_grad
    loss, their_loss = model(**inputs).loss, adapted(**inputs).loss
    torch.testing.assert_close(loss, their_loss, atol=1e-6, rtol=1e-6)
    loss.backward()
    their_loss.backward()
    torch.testing.assert_close(ours.grad, table.grad, atol=1e-6, rtol=1e-4)


def test_pefts_embeddings_without_the_head_are_refused(model, theirs, tmp_path):
    """peft's own default: the embeddings are trained, and the head stays the old table."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", modules_to_save=["embed_tokens"])
    peft.get_peft_model(copy.deepcopy(theirs), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ensure_weight_tying=True"):
        load_adapter(model, tmp_path)
