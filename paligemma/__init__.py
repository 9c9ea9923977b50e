"""PaliGemma from scratch: the whole vision-language model in a few files that are written to be read.

from paligemma import load_pretrained, generate
model, processor = load_pretrained("assets/tiny-paligemma")
generate(model, processor, images=[image], text=["caption en"])
"""

from pathlib import Path

from .attention_maps import answer_attention, record_attention, set_attention
from .checkpoint import load_pretrained, save_pretrained
from .generation import generate
from .kv_cache import KVCache
from .modeling_gemma import (
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    make_attn_mask,
)
from .modeling_siglip import SiglipVisionConfig, SiglipVisionModel
from .processing_paligemma import PaliGemmaProcessor

ASSETS = Path(__file__).resolve().parent.parent / "assets"  # pictures and the trained model, in the repository

__all__ = [
    "ASSETS",
    "GemmaConfig",
    "KVCache",
    "PaliGemmaConfig",
    "PaliGemmaForConditionalGeneration",
    "PaliGemmaProcessor",
    "SiglipVisionConfig",
    "SiglipVisionModel",
    "answer_attention",
    "generate",
    "load_pretrained",
    "make_attn_mask",
    "record_attention",
    "save_pretrained",
    "set_attention",
]
