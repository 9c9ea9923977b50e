"""LoRA: freeze the model, and train a change of low rank beside each linear map.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1: W x becomes W x + (alpha / r) B A x
with A [r, in] and B [out, r]. For r = 8 and a map of 2,048 x 2,048 that is 32,768 trained weights in place of four
million, and the optimiser's memory shrinks with them. B starts at zero, so training starts at the model itself.
`train_embeddings=True` trains the embedding table beside them, for words that the model was never taught.

    names = add_lora(model, rank=8)          # which maps have one
    ...                                      # train: lora_A and lora_B alone require a gradient
    save_adapter(model, "my-adapter")        # in peft's format; load_adapter opens it, and so does peft
    merge_lora(model)                        # W + (alpha / r) B A: the plain model again, as fast as before
"""

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..checkpoint import EMBEDDING, HEAD_NAMES, canonical_name, read_json
from ..config_checks import check_count
from ..files import write_files_atomically
from ..modeling_gemma import PaliGemmaForConditionalGeneration

# Linear maps by part, by their whole names. The usual list of last names ("q_proj", "v_proj", ...) finds SigLIP's
# query, key and value maps as well, but not its out_proj, fc1 and fc2: half of the image encoder, by accident.
DECODER_LAYER = r"language_model\.model\.layers\.\d+\."
ENCODER_LAYER = r"vision_tower\.vision_model\.encoder\.layers\.\d+\."
PARTS = {
    "attention": DECODER_LAYER + r"self_attn\.(q|k|v|o)_proj",
    "decoder": DECODER_LAYER + r"(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)",
    "projector": r"multi_modal_projector\.linear",
    "encoder": ENCODER_LAYER + r"(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])",
}
PARTS["all"] = "|".join(PARTS[part] for part in ("decoder", "projector", "encoder"))


class LoRALinear(nn.Module):
    """A frozen linear map and a trained change of rank r: [..., in] -> [..., out]."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.scale = alpha / rank
        # float32 whatever the model's dtype: the steps are small, and bfloat16 would round them away.
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change = (x.to(self.lora_A.dtype) @ self.lora_A.T) @ self.lora_B.T  # [..., r], then [..., out]
        output = self.base_layer(x)
        return (output + change * self.scale).to(output.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain linear map that does the same: W + (alpha / r) B A, rounded to the dtype of W."""
        weight = self.base_layer.weight
        weight.copy_(weight + (self.lora_B @ self.lora_A * self.scale).to(weight.device))
        return self.base_layer


def linear_maps(model: PaliGemmaForConditionalGeneration, part: str = "decoder") -> dict[str, nn.Linear]:
    """The linear maps of a part (attention, decoder, projector, encoder, all) by name. Raises ValueError otherwise."""
    if part not in PARTS:
        raise ValueError(f"part is {part!r}, expected one of {', '.join(PARTS)}")
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(PARTS[part], name)
    }


def lora_maps(model: nn.Module) -> dict[str, LoRALinear]:
    """The maps that have a LoRA change, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def add_lora(
    model: PaliGemmaForConditionalGeneration,
    rank: int = 8,
    alpha: float | None = None,
    part: str = "decoder",
    seed: int = 0,
    train_embeddings: bool = False,
) -> list[str]:
    """Freeze the model and give the linear maps of `part` a change of this rank, in place; returns their names.

    With `train_embeddings` the embedding table, which is the head as well, stays trainable: a frozen one keeps the
    vectors that it has, and for a word that no training has seen these say nothing about the word.

    `alpha` is twice the rank unless given. A is drawn as peft and `nn.Linear` draw theirs, uniform in
    +-1 / sqrt(in), so the two halves of a product start alike however wide the map is. Raises ValueError for a rank
    below 1 and for a model that has LoRA already.
    """
    check_count("rank", rank)
    if lora_maps(model):
        raise ValueError("the model has LoRA already, expected a plain one: call merge_lora first")
    maps = linear_maps(model, part)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, base in maps.items():
        layer = LoRALinear(base, rank, 2 * rank if alpha is None else alpha)
        bound = base.in_features**-0.5
        start = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator)
        layer.lora_A.data.copy_(start)
        put(model, name, layer)
    model.get_parameter(EMBEDDING).requires_grad_(train_embeddings)
    return list(maps)


def merge_lora(model: nn.Module) -> None:
    """Add every LoRA change to the weights and take the LoRA away, in place; everything can be trained again."""
    for name, layer in lora_maps(model).items():
        put(model, name, layer.merged())
    model.requires_grad_(True)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module.train(model.training))


# --------------------------------------------------------------------------------------------------- peft's format


def transformers_name(name: str) -> str:
    """A module's name in this package to that in transformers' PaliGemma, which is what peft goes by."""
    for ours, theirs in (("vision_tower.vision_model.", "vision_tower."), ("language_model.model.", "language_model.")):
        name = name.replace(ours, theirs)
    return f"model.{name}"


def save_adapter(model: nn.Module, folder: str | Path, base: str = "") -> None:
    """Write adapter_config.json and adapter_model.safetensors as peft does; `base` names the model they belong to.

    An embedding table that requires a gradient is written whole, twice: as the embeddings and as the tied head, which
    is how peft saves a model with `modules_to_save` and `ensure_weight_tying`. (Older versions of peft, which do not
    know the latter, then open it with the same numbers.)

    Raises ValueError for a model without LoRA, OSError when the folder cannot be written.
    """
    maps = lora_maps(model)
    if not maps:
        raise ValueError("the model has no LoRA, expected one: call add_lora first")
    layer = next(iter(maps.values()))
    rank = layer.lora_A.shape[0]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": layer.scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [transformers_name(name) for name in maps],
    }
    weights = {}
    for name, layer in maps.items():
        for half in ("lora_A", "lora_B"):
            key = f"base_model.model.{transformers_name(name)}.{half}.weight"
            weights[key] = getattr(layer, half).detach().cpu().contiguous()
    table = model.get_parameter(EMBEDDING)
    if table.requires_grad:
        config |= {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}
        for name in (transformers_name(EMBEDDING), HEAD_NAMES[0]):
            weights[f"base_model.model.{name}"] = table.detach().cpu().clone()  # a safetensors file shares no memory
    with write_files_atomically(folder) as fresh:
        (fresh / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(weights, fresh / "adapter_model.safetensors", metadata={"format": "pt"})


def load_adapter(model: PaliGemmaForConditionalGeneration, folder: str | Path) -> list[str]:
    """Put an adapter in peft's format on the model it was trained from, in place; returns the names of its maps.

    Where the adapter has embeddings of its own, they replace the model's.

    Raises FileNotFoundError when a file is missing, ValueError for an adapter of another kind (its message names what
    is different) or of another model.
    """
    folder = Path(folder)
    config_path, weights_path = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    config = read_json(config_path)
    check_adapter_config(config, config_path)
    if not weights_path.is_file():
        raise FileNotFoundError(f"{folder} holds no {weights_path.name}: is the download complete?")
    try:
        weights = load_file(weights_path)
    except SafetensorError as error:
        raise ValueError(f"{weights_path} is damaged: {error}") from error
    table = take_embeddings(weights, model.get_parameter(EMBEDDING), config, weights_path)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in weights.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.(lora_A|lora_B)\.weight", key)
        if not match:
            raise ValueError(f"{weights_path} holds {key}, expected names that end in lora_A.weight or lora_B.weight")
        halves.setdefault(canonical_name(match[1]), {})[match[2]] = tensor
    known = linear_maps(model, "all")
    for name, pair in halves.items():
        base = known.get(name)
        wanted = base and {"lora_A": [config["r"], base.in_features], "lora_B": [base.out_features, config["r"]]}
        if {half: list(tensor.shape) for half, tensor in pair.items()} != wanted:
            raise ValueError(
                f"{weights_path} has a change for {name} that does not fit this model: expected "
                f"{wanted or 'no map of that name'}, found { {half: list(t.shape) for half, t in pair.items()} }"
            )
    model.requires_grad_(False)
    for name, pair in halves.items():
        layer = LoRALinear(known[name], config["r"], config["lora_alpha"])
        layer.lora_A.data.copy_(pair["lora_A"])
        layer.lora_B.data.copy_(pair["lora_B"])
        put(model, name, layer)
    if table is not None:
        model.get_parameter(EMBEDDING).requires_grad_(True).data.copy_(table)
    return list(halves)


def take_embeddings(
    weights: dict[str, torch.Tensor], model_table: torch.Tensor, config: dict, path: Path
) -> torch.Tensor | None:
    """Take the embedding table [V, D] and the head out of an adapter's weights; None where it has neither.

    Raises ValueError for a table that does not fit `model_table`, and for a head that is not the same table: peft
    separates the two unless it is told otherwise, and a PaliGemma has one table for both.
    """
    names = {key: canonical_name(key.removeprefix("base_model.model.")) for key in weights}
    saved = {name: weights.pop(key) for key, name in names.items() if name == EMBEDDING or name in HEAD_NAMES}
    if not config.get("modules_to_save") and not saved:
        return None
    table = saved.pop(EMBEDDING, None)
    if table is None or table.shape != model_table.shape:
        raise ValueError(
            f"{path} has embeddings that do not fit this model: expected {list(model_table.shape)}, found "
            f"{'none' if table is None else list(table.shape)}"
        )
    if not any(torch.equal(head, table) for head in saved.values()):
        raise ValueError(
            f"{path} has a head that is not its embedding table, expected one table for both: train with "
            "LoraConfig(modules_to_save=['embed_tokens'], ensure_weight_tying=True)"
        )
    return table


def check_adapter_config(config: dict, path: Path) -> None:
    """Raise ValueError for whatever would make the adapter compute something else than this file does."""
    usual = {
        "peft_type": "LORA",
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "fan_in_fan_out": False,
    }
    for key, value in usual.items():
        if config.get(key, value) not in (value, None):
            raise ValueError(f"{path}: {key} is {config[key]!r}, expected {value!r}: that kind is not supported")
    for name in config.get("modules_to_save") or []:
        if str(name).rpartition(".")[2] not in ("embed_tokens", "lm_head"):
            raise ValueError(
                f"{path}: modules_to_save holds {name!r}, expected embed_tokens and lm_head at most: other modules are "
                "not supported"
            )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise ValueError(f"{path}: r is {rank!r}, expected a whole number of 1 or more")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha > 0:
        raise ValueError(f"{path}: lora_alpha is {alpha!r}, expected a number above 0")
