"""The configurations of Google's published checkpoints, so that their sizes can be counted without a download.

    from paligemma.published import PUBLISHED, count_parameters
    count_parameters("paligemma-3b-pt-224")      # 2923466480

Each entry has the keys of a checkpoint's config.json that matter to PaliGemmaConfig.from_dict. Sources: the file of
google/paligemma-3b-pt-224 (what it leaves out, such as head_dim and image_size, is left out here: a default stands in);
for PaliGemma 2, whose files are behind a licence, the sizes in transformers' convert_paligemma2_weights_to_hf.py, with
the settings of Gemma 2 (soft caps 50 and 30, window 4096). The mix and fine-tuned checkpoints have the configurations
of the pre-trained ("pt") ones that are listed here.
"""

import torch

from .modeling_gemma import PaliGemmaConfig, PaliGemmaForConditionalGeneration

_VISION = {  # SigLIP So400m/14
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "vision_use_head": False,
}

_GEMMA_2B = {
    "model_type": "gemma",
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "vocab_size": 257216,
}

_GEMMA_2 = {
    "model_type": "gemma2",
    "vocab_size": 257216,
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
}


def _gemma2(hidden_size, intermediate_size, layers, heads, kv_heads, head_dim, query_pre_attn_scalar) -> dict:
    return _GEMMA_2 | {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "query_pre_attn_scalar": query_pre_attn_scalar,
    }


_TEXT = {
    "paligemma-3b": _GEMMA_2B,
    "paligemma2-3b": _gemma2(2304, 9216, 26, 8, 4, 256, 256),
    "paligemma2-10b": _gemma2(3584, 14336, 42, 16, 8, 256, 256),
    "paligemma2-28b": _gemma2(4608, 36864, 46, 32, 16, 128, 144),  # 144 = 4608 / 32: not the head size
}


def _config(text: dict, image_size: int) -> dict:
    num_image_tokens = (image_size // 14) ** 2
    vision = _VISION | {"num_image_tokens": num_image_tokens, "projection_dim": text["hidden_size"]}
    if image_size != 224:
        vision["image_size"] = image_size
    return {
        "model_type": "paligemma",
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "image_token_index": 257152,
        "projection_dim": text["hidden_size"],
        "hidden_size": text["hidden_size"],
        "text_config": text | {"num_image_tokens": num_image_tokens},
        "vision_config": vision,
    }


PUBLISHED = {f"{name}-pt-{size}": _config(text, size) for name, text in _TEXT.items() for size in (224, 448, 896)}


def build_on_meta(name: str) -> PaliGemmaForConditionalGeneration:
    """The model of that name without memory for its weights: shapes and names only (torch's "meta" device).

    Raises KeyError for a name that is not in PUBLISHED.
    """
    with torch.device("meta"):
        return PaliGemmaForConditionalGeneration(PaliGemmaConfig.from_dict(PUBLISHED[name]))


def count_parameters(name: str) -> int:
    """How many parameters it has, the tied head counted once."""
    return sum(parameter.numel() for parameter in build_on_meta(name).parameters())
