"""What is measured: models of several shapes with random weights, ours and transformers' on the same memory; inputs for
them; and the work that they do, counted by hand."""

import torch

from ..checkpoint import WithoutInitialisation, canonical_name, config_to_dict
from ..modeling_gemma import PaliGemmaConfig, PaliGemmaForConditionalGeneration
from ..published import PUBLISHED

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def shape_config(name: str) -> PaliGemmaConfig:
    """tiny: the model of the course; 234m: SigLIP base, a small Gemma; 3b, pg2-3b: published models of 224 pixels."""
    if name == "3b":
        return PaliGemmaConfig.from_dict(PUBLISHED["paligemma-3b-pt-224"])
    if name == "pg2-3b":
        return PaliGemmaConfig.from_dict(PUBLISHED["paligemma2-3b-pt-224"])
    if name == "234m":
        text = dict(vocab_size=59392, hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
        text |= dict(num_attention_heads=6, num_key_value_heads=1, head_dim=128)
        vision, image_token = {}, 59391  # SiglipVisionConfig's defaults are SigLIP base
    else:
        text = dict(vocab_size=1706, hidden_size=128, intermediate_size=384, num_hidden_layers=4)
        text |= dict(num_attention_heads=4, num_key_value_heads=2, head_dim=32)
        vision = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4)
        vision, image_token = vision | dict(image_size=64, patch_size=8), 1705
    return PaliGemmaConfig.from_dict({"text_config": text, "vision_config": vision, "image_token_index": image_token})


def make_models(config: PaliGemmaConfig, dtype: torch.dtype, device: str = "cpu"):
    """(ours, transformers') with the same random weights: the same memory, not a copy."""
    import transformers

    with torch.device("meta"), WithoutInitialisation():
        ours = PaliGemmaForConditionalGeneration(config)
    pattern = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).to(
        device
    )  # laid end to end: quick to make
    state = {}
    for name, parameter in ours.named_parameters():
        size = parameter.numel()
        flat = torch.empty(size, dtype=dtype, device=device)
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        for start in range(0, size, len(pattern)):
            flat[start : start + len(pattern)] = pattern[: size - start] * scale
        state[name] = flat.view(parameter.shape)
    ours.load_state_dict(state, assign=True)

    values = config_to_dict(config, dtype)
    values["vision_config"]["num_image_tokens"] = config.vision_config.num_image_tokens
    reference = transformers.PaliGemmaForConditionalGeneration
    with torch.device("meta"):
        theirs = reference._from_config(
            transformers.PaliGemmaConfig(**values), dtype=dtype, attn_implementation=their_attention(config)[0]
        )
    named = {name: state[canonical_name(name)] for name in theirs.state_dict() if name != "lm_head.weight"}
    named["lm_head.weight"] = state["language_model.model.embed_tokens.weight"]
    theirs.load_state_dict(named, assign=True)
    theirs.tie_weights()
    fill_buffers(theirs, reference, values, dtype)
    return ours.to(device).eval(), theirs.to(device).eval()


def their_attention(config: PaliGemmaConfig) -> list[str]:
    """The attention settings that transformers has for this model, the fastest first. For Gemma 2 it has but one."""
    return ["sdpa", "eager"] if config.text_config.model_type == "gemma" else ["eager"]


def fill_buffers(theirs, reference, values, dtype) -> None:
    """Tables that are in no checkpoint (RoPE's frequencies) are computed by the constructor: taken from a model of one
    layer, because constructing the whole one would fill its memory twice."""
    import transformers

    text = values["text_config"] | {"num_hidden_layers": 1, "vocab_size": 8}
    text.pop("layer_types", None)
    vision = values["vision_config"] | {"num_hidden_layers": 1}
    small = transformers.PaliGemmaConfig(**(values | {"text_config": text, "vision_config": vision}))
    buffers = dict(reference._from_config(small, dtype=dtype, attn_implementation="eager").named_buffers())
    for name, _ in list(theirs.named_buffers()):
        owner, _, last = name.rpartition(".")
        theirs.get_submodule(owner)._buffers[last] = buffers[name]


def make_inputs(config: PaliGemmaConfig, batch_size: int, text_tokens: int = 16, device: str = "cpu") -> dict:
    """A picture and a prompt of that many tokens for each row; no padding."""
    generator = torch.Generator().manual_seed(0)
    vision = config.vision_config
    image_tokens = torch.full((batch_size, vision.num_image_tokens), config.image_token_index)
    text = torch.randint(4, config.text_config.vocab_size // 2, (batch_size, text_tokens), generator=generator)
    input_ids = torch.cat([image_tokens, text], dim=1)
    pixels = (batch_size, vision.num_channels, vision.image_size, vision.image_size)
    inputs = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "token_type_ids": torch.zeros_like(input_ids),
        "pixel_values": torch.rand(pixels, generator=generator) * 2 - 1,
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def make_questions(
    config: PaliGemmaConfig, pictures: int, questions: int, device: str = "cpu"
) -> tuple[dict, torch.Tensor]:
    """A batch to train on: for each picture, `questions` rows of its image tokens, 8 tokens of prompt and 8 of answer.

    Returns the batch (pixel_values [P, C, height, width]; all others [R, L]) and the picture of each row [R].
    """
    batch = make_inputs(config, pictures, text_tokens=16, device=device)
    image_index = torch.arange(pictures, device=device).repeat_interleave(questions)
    batch |= {name: tensor[image_index] for name, tensor in batch.items() if tensor.ndim == 2}
    N = config.vision_config.num_image_tokens
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(4, config.text_config.vocab_size // 2, (len(image_index), 16), generator=generator)
    batch["input_ids"][:, N:] = text.to(device)
    batch["token_type_ids"][:, N + 8 :] = 1
    batch["labels"] = batch["input_ids"].masked_fill(batch["token_type_ids"] == 0, -100)
    return batch, image_index


def count_work(config: PaliGemmaConfig, rows: int, bytes_per_weight: float) -> dict:
    """Multiplications and additions (FLOPs) and bytes of weights: {"decode": (flops, bytes), "prefill": ...}.

    A matrix of n weights costs 2n FLOPs for each token that goes through it, and n numbers to read, however many
    tokens go through at once. Attention, norms and the cache are left out: under 5 % at these lengths.
    """
    text, vision = config.text_config, config.vision_config
    attention = text.hidden_size * text.head_dim * (2 * text.num_attention_heads + 2 * text.num_key_value_heads)
    decoder = text.num_hidden_layers * (attention + 3 * text.hidden_size * text.intermediate_size)
    head = text.vocab_size * text.hidden_size
    encoder_layer = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    patch = vision.num_channels * vision.patch_size**2 * vision.hidden_size
    encoder = vision.num_hidden_layers * encoder_layer + patch + vision.hidden_size * text.hidden_size
    N, prompt = vision.num_image_tokens, vision.num_image_tokens + 16
    return {
        "decode": (2 * rows * (decoder + head), bytes_per_weight * (decoder + head)),
        "prefill": (
            2 * rows * (N * encoder + prompt * decoder + head),
            bytes_per_weight * (encoder + decoder + head),
        ),
    }
