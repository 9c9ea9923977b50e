"""What the tiny PaliGemma is made of: its sizes, its tokenizer and how its weights start.

The tokenizer is of the same kind as Gemma's: byte-pair encoding over the raw text with spaces written as `▁`,
unknown characters spelled in bytes, and special ids pad 0, eos 1, bos 2, unk 3. It is trained on the little
world's own sentences until every word is one token.
"""

import json

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from ..modeling_gemma import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration
from ..modeling_siglip import SiglipVisionConfig
from ..processing_paligemma import LOCATION_TOKENS, SEGMENTATION_TOKENS, PaliGemmaProcessor
from .scenes import TASKS, ask, caption, make_scene

IMAGE_SIZE, PATCH_SIZE, WIDTH = 64, 8, 128


# ------------------------------------------------------------------------------------------------- tokenizer


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
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", behavior="merged_with_next"),
            pre_tokenizers.Split(Regex("[?,]"), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        show_progress=False,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", *byte_tokens, "\n"],
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Byte tokens and the newline are ordinary pieces; the trainer took them as special only to place them.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:4]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=False) for token in LOCATION_TOKENS + SEGMENTATION_TOKENS]
    )
    tokenizer.add_special_tokens([AddedToken("<image>", normalized=False, special=True)])
    return tokenizer


def build_processor(
    image_size: int = IMAGE_SIZE, patch_size: int = PATCH_SIZE, texts: list[str] | None = None
) -> PaliGemmaProcessor:
    """The processor with a tokenizer freshly trained on `texts`, the same every time; takes about two seconds.

    Without `texts` these are the little world's sentences.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(sentences() if texts is None else texts),
        model_max_length=512,
        padding_side="left",
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    return PaliGemmaProcessor(tokenizer, (image_size // patch_size) ** 2, image_size)


# ----------------------------------------------------------------------------------------------------- model


def build_model(processor: PaliGemmaProcessor, seed: int = 0, width: int = WIDTH) -> PaliGemmaForConditionalGeneration:
    """An untrained tiny PaliGemma that fits the processor, with weights drawn by `seed`."""
    vision_config = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=processor.image_size,
        patch_size=PATCH_SIZE,
    )
    return new_model(vision_config, processor, width, seed)


def new_model(
    vision_config: SiglipVisionConfig,
    processor: PaliGemmaProcessor,
    width: int,
    seed: int,
    head_dim: int | None = None,
) -> PaliGemmaForConditionalGeneration:
    """An untrained model with this image encoder and a decoder of this width, four layers and four heads of `head_dim`.

    Its weights are drawn by `seed`; those of the location tokens start smooth.
    """
    text_config = GemmaConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim or width // 4,
    )
    model = PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(vision_config, text_config, image_token_index=processor.image_token_id)
    )
    initialise(model, seed)
    smooth_locations(model.language_model.model.embed_tokens.weight, processor.tokenizer, seed)
    return model


def initialise(model: nn.Module, seed: int) -> None:
    """Draw the weights of a transformer: unit variance passes through every layer at the start.

    Linear maps get a standard deviation of 1 / sqrt(fan in), and those that write into the residual stream
    less, because eight of them add up (Radford et al. 2019, section 2.3). Token embeddings get 1 / sqrt(width):
    the decoder multiplies them by sqrt(width), and as the tied head they give logits of unit variance. Position
    embeddings of the picture start as waves along y and x, so that neighbours begin alike.
    """
    generator = torch.Generator().manual_seed(seed)
    writers = ("out_proj", "o_proj", "fc2", "down_proj")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("embeddings.position_embedding.weight"):  # of the picture
                parameter.copy_(picture_waves(*parameter.shape))
            elif "embed" in name and name.endswith("weight") and "patch" not in name:
                parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
            elif parameter.ndim >= 2:
                scale = 8**-0.5 if any(writer in name for writer in writers) else 1.0
                parameter.normal_(std=scale * parameter[0].numel() ** -0.5, generator=generator)
            elif name.endswith("bias") and "logit" not in name:
                parameter.zero_()


def picture_waves(count: int, width: int) -> torch.Tensor:
    """Sines and cosines of the patch's row and column, [count, width], of standard deviation about 0.35."""
    side = round(count**0.5)
    frequencies = torch.pi * 2 ** torch.linspace(-1, 3, width // 4)  # half a wave to 8 waves
    angles = torch.arange(side)[:, None] / side * frequencies  # [side, width / 4]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    rows = waves[:, None, :].expand(side, side, -1)
    columns = waves[None, :, :].expand(side, side, -1)
    return 0.5 * torch.cat([rows, columns], dim=-1).reshape(count, width)


def smooth_locations(embedding: torch.Tensor, tokenizer, seed: int) -> None:
    """Start the location tokens as a smooth curve: near numbers get near vectors, as distances are near.

    `embedding` [V, D] is changed in place. The vectors are random mixtures of slow waves along 0..1023, of the
    same size as the other tokens'.
    """
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(LOCATION_TOKENS))
    place = torch.arange(1024)[:, None] / 1024  # [1024, 1]
    waves = torch.arange(1, 25)[None, :] * torch.pi * place  # [1024, 24]
    features = torch.cat([waves.cos(), waves.sin()], dim=1) / torch.arange(1, 25).repeat(2) ** 0.5
    mixture = torch.randn(features.shape[1], embedding.shape[1], generator=torch.Generator().manual_seed(seed + 1))
    curve = features @ mixture
    with torch.no_grad():
        embedding[ids] = curve / curve.std() * embedding.shape[1] ** -0.5


def soft_location_targets(tokenizer, sigma: float = 0.7, grid: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets for location tokens that count a near miss as nearly right.

    Returns the ids of the grid + 1 tokens on whole cells [65], and for each the probabilities [65, 65] of a
    bell of `sigma` cells around it. As one-hot targets, a box one pixel off would cost as much as a wrong one.
    """
    tokens = [LOCATION_TOKENS[round(cell / grid * 1023)] for cell in range(grid + 1)]
    cells = torch.arange(grid + 1)
    bell = torch.exp(-0.5 * ((cells[:, None] - cells[None, :]) / sigma) ** 2)
    return torch.tensor(tokenizer.convert_tokens_to_ids(tokens)), bell / bell.sum(dim=1, keepdim=True)
