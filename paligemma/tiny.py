"""What the tiny PaliGemma is made of: its sizes, its tokenizer and its processor files.

The tokenizer is of the same kind as Gemma's: byte-pair encoding over the raw text with spaces written as `▁`,
unknown characters spelled in bytes, and special ids pad 0, eos 1, bos 2, unk 3. It is trained on the little
world's own sentences until every word is one token.
"""

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PaliGemmaProcessor, PreTrainedTokenizerFast, SiglipImageProcessor

from .scenes import TASKS, ask, caption, make_scene

IMAGE_SIZE, PATCH_SIZE = 64, 8
LOCATIONS = [f"<loc{i:04d}>" for i in range(1024)]
SEGMENTS = [f"<seg{i:03d}>" for i in range(128)]


def sentences(count: int = 3000) -> list[str]:
    """Prompts, answers and captions of the first `count` scenes, without location and segment tokens."""
    rng = np.random.default_rng(0)
    texts = []
    for seed in range(count):
        scene = make_scene(seed)
        texts += [caption(scene), "caption ko", caption(scene, "ko")]
        for task in TASKS:
            if task not in ("detect", "segment") and (pair := ask(scene, task, rng)):
                texts += pair
        for thing in scene.things:
            texts += [f"detect {thing.colour} {thing.shape} ; {thing.shape}", f"segment {thing.name}"]
    return texts


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-pair encoding of these texts in Gemma's manner, then the location, segment and image tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    # Pieces are merged only within a word; commas and question marks stay by themselves.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split("▁", behavior="merged_with_next"),
        pre_tokenizers.Split(Regex("[?,]"), behavior="isolated"),
    ])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=4096, min_frequency=1, show_progress=False,
                                  special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", *byte_tokens, "\n"])
    tokenizer.train_from_iterator(texts, trainer)
    # Byte tokens and the newline are ordinary pieces; the trainer took them as special only to place them.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:4]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=False) for token in LOCATIONS + SEGMENTS])
    tokenizer.add_special_tokens([AddedToken("<image>", normalized=False, special=True)])
    return tokenizer


def build_processor(image_size: int = IMAGE_SIZE) -> PaliGemmaProcessor:
    """The processor in the form `transformers` saves and opens; a second or two."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(sentences()),
        pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>", padding_side="left", clean_up_tokenization_spaces=False, model_max_length=512)
    image_processor = SiglipImageProcessor(
        size={"height": image_size, "width": image_size}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    image_processor.image_seq_length = (image_size // PATCH_SIZE) ** 2
    return PaliGemmaProcessor(image_processor=image_processor, tokenizer=tokenizer)


def config(vocab_size: int, image_token_id: int, image_size: int = IMAGE_SIZE, width: int = 128) -> dict:
    """The contents of config.json, in the shape of the official checkpoints'."""
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"], "model_type": "paligemma",
        "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
        "image_token_index": image_token_id, "projection_dim": width, "hidden_size": width,
        "text_config": {
            "model_type": "gemma", "hidden_size": width, "intermediate_size": 3 * width,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": width // 4,
            "num_image_tokens": (image_size // PATCH_SIZE) ** 2, "vocab_size": vocab_size,
            "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 512,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": width, "intermediate_size": 4 * width,
            "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": image_size,
            "patch_size": PATCH_SIZE, "projection_dim": width, "vision_use_head": False,
        },
    }


def write_processor(folder: str | Path, image_size: int = IMAGE_SIZE) -> None:
    """Write the tokenizer and processor files into `folder`."""
    build_processor(image_size).save_pretrained(folder)
