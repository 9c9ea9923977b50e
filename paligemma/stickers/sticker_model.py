"""What the sticker model is made of: its sizes and its tokenizer.

Pictures of 96 pixels in patches of 12 make 64 image tokens, as many as the tiny model has, so the decoder's work is
the same; the larger patches cost the encoder next to nothing, and the drawings keep their faces.
"""

from ..modeling_gemma import PaliGemmaForConditionalGeneration
from ..modeling_siglip import SiglipVisionConfig
from ..processing_paligemma import PaliGemmaProcessor
from ..world.tiny_model import build_processor, new_model
from .tasks import sentences

IMAGE_SIZE, PATCH_SIZE = 96, 12
VISION_WIDTH, TEXT_WIDTH = 192, 128
HEAD_DIM = 64  # a name has to find its patches among 128 names; 32 numbers, half of which RoPE turns, are few


def build_sticker_processor() -> PaliGemmaProcessor:
    """The processor with a tokenizer freshly trained on the sticker world's sentences, the same every time."""
    return build_processor(IMAGE_SIZE, PATCH_SIZE, sentences())


def vision_config() -> SiglipVisionConfig:
    """The sizes of the image encoder."""
    return SiglipVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=4 * VISION_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )


def build_sticker_model(processor: PaliGemmaProcessor, seed: int = 0) -> PaliGemmaForConditionalGeneration:
    """An untrained sticker model that fits the processor, with weights drawn by `seed`."""
    return new_model(vision_config(), processor, TEXT_WIDTH, seed, HEAD_DIM)
