"""SigLIP's training: pictures and their captions are pulled together, all other pairs pushed apart.

Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", algorithm 1. The image encoder of the tiny
PaliGemma learns to see this way, with one helper: each patch must also tell which object it belongs to and where that
object's edges are (`patch_labels`; the heads that learn them are in `paligemma.training`).
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from .. import ASSETS
from ..attention_maps import box_patches
from ..modeling_siglip import SiglipEncoder, SiglipVisionConfig, SiglipVisionModel
from .scenes import COLOURS, SHAPES, SIZES, Scene

TEXT_LENGTH = 40  # tokens of the longest caption, rounded up


class TinySiglip(nn.Module):
    """Two towers into one space: an image encoder and a small text encoder of the same kind of layers.

    `image_embeddings` and `text_embeddings` give unit vectors [B, D]; `forward` the scaled similarities
    [pictures, texts], whose sigmoid is the probability that the two belong together.
    """

    def __init__(self, vision: SiglipVisionConfig, vocab_size: int):
        super().__init__()
        width = vision.hidden_size
        self.vision_tower = SiglipVisionModel(vision)
        self.image_projection = nn.Linear(width, width)
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.text_position_embedding = nn.Embedding(TEXT_LENGTH, width)
        text = SiglipVisionConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=vision.num_attention_heads,
        )
        self.text_encoder = SiglipEncoder(text)
        self.text_layernorm = nn.LayerNorm(width)
        self.text_projection = nn.Linear(width, width)
        # The paper's start: temperature 10 and bias -10, so that the many wrong pairs begin as "no".
        self.logit_scale = nn.Parameter(torch.tensor(10.0).log())
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def image_embeddings(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values [B, 3, S, S] -> unit vectors [B, D]: the mean of the patches, projected."""
        return self.pool_image(self.vision_tower(pixel_values))

    def pool_image(self, patches: torch.Tensor) -> torch.Tensor:
        """Patch vectors [B, N, D] -> unit vectors [B, D]."""
        return F.normalize(self.image_projection(patches.mean(dim=1)), dim=-1)

    def text_embeddings(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids [B, TEXT_LENGTH], 0 where the text has ended -> unit vectors [B, D]."""
        is_word = (input_ids != 0).unsqueeze(-1)  # [B, L, 1]
        hidden = self.token_embedding(input_ids) + self.text_position_embedding.weight[: input_ids.shape[1]]
        hidden = self.text_layernorm(self.text_encoder(hidden))  # [B, L, D]
        mean = (hidden * is_word).sum(dim=1) / is_word.sum(dim=1).clamp(min=1)  # [B, D]
        return F.normalize(self.text_projection(mean), dim=-1)

    def similarity(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Unit vectors [I, D] and [T, D] -> logits [I, T]."""
        return image @ text.T * self.logit_scale.exp() + self.logit_bias

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        return self.similarity(self.image_embeddings(pixel_values), self.text_embeddings(input_ids))


def sigmoid_loss(logits: torch.Tensor, first: int = 0) -> torch.Tensor:
    """SigLIP's loss of logits [pictures, texts] where picture i belongs to text `first + i`. A scalar.

    Every pair is a yes-or-no question of its own, so a process can work on its share of the pictures alone;
    softmax (CLIP) must know the whole row and column. Mean over pictures, sum over texts.
    """
    pictures, texts = logits.shape
    labels = 2 * torch.eye(texts, device=logits.device)[first : first + pictures] - 1  # 1 or -1
    return -F.logsigmoid(labels * logits).sum(dim=-1).mean()


def patch_labels(scene: Scene, patches_per_side: int) -> torch.Tensor:
    """What each patch shows: float32 [N, 7]: shape, colour, size (0 for none) and the box of the object.

    A patch belongs to the object whose box covers most of it, if that is at least a quarter.
    """
    labels = torch.zeros(patches_per_side, patches_per_side, 7)
    best = torch.full((patches_per_side, patches_per_side), 0.25)
    for thing in scene.things:
        cover = box_patches(thing.box, patches_per_side)  # from 0 to 1
        row = [
            1 + SHAPES.index(thing.shape),
            1 + list(COLOURS).index(thing.colour),
            1 + list(SIZES).index(thing.size),
            *thing.box,
        ]
        labels[cover >= best] = torch.tensor(row, dtype=torch.float32)
        best = torch.maximum(best, cover)
    return labels.flatten(0, 1)


def load_tiny_siglip(folder: str | Path = ASSETS / "tiny-siglip") -> TinySiglip:
    """Open the trained pair of towers, in float32 and evaluation mode.

    Raises FileNotFoundError when the folder lacks config.json or model.safetensors.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}, expected a folder like {ASSETS / 'tiny-siglip'}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = TinySiglip(SiglipVisionConfig.from_dict(config["vision_config"]), config["vocab_size"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.float().eval()


def text_ids(tokenizer, texts: list[str]) -> torch.Tensor:
    """Captions as token ids int64 [B, TEXT_LENGTH], padded with 0 at the end; longer texts are cut."""
    ids = torch.zeros(len(texts), TEXT_LENGTH, dtype=torch.int64)
    for row, tokens in zip(ids, tokenizer(list(texts), add_special_tokens=False)["input_ids"], strict=True):
        row[: len(tokens)] = torch.tensor(tokens[:TEXT_LENGTH], dtype=torch.int64)
    return ids
