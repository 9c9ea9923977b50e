"""The image encoder of the sticker model learns to see first, alone, from labels for each patch.

SigLIP learned from billions of pictures with captions. Here there are some ten thousand pictures, but each knows its
whole truth, so every patch can be asked: which thing do you belong to, where are its edges, and which part of you does
it cover? (Zhai et al. 2023 for the encoder; dense labels in the manner of Segmenter, Strudel et al. 2021.)
"""

import torch
from torch import nn
from torch.nn import functional as F

from ..modeling_siglip import SiglipVisionConfig, SiglipVisionModel
from ..training import Metric
from ..world.scenes import GRID
from .atlas import NAMES
from .pictures import FINE


class PatchHeads(nn.Module):
    """What each patch says of the sticker it belongs to; used in training only. [B, N, D] -> three answers."""

    def __init__(self, width: int):
        super().__init__()
        self.name = nn.Linear(width, len(NAMES) + 1)  # 0 is "no sticker here"
        self.box = nn.Linear(width, 4)  # y1, x1, y2, x2 in 0..1
        self.part = nn.Linear(width, FINE * FINE)  # logits: does the sticker cover this cell of the patch?

    def loss(self, patches: torch.Tensor, labels: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Metric]]:
        """Patches [B, N, D] and labels of `Pictures.labels` -> loss and metrics for the log."""
        inside = labels["name"] > 0  # [B, N]
        count = inside.sum().clamp(min=1)
        predicted = self.name(patches)  # [B, N, names + 1]
        loss = F.cross_entropy(predicted[inside], labels["name"][inside], reduction="sum") / count
        # The ground is easy, and two patches in three are ground.
        ground = F.cross_entropy(predicted[~inside], labels["name"][~inside], reduction="sum")
        loss = loss + 0.3 * ground / (~inside).sum().clamp(min=1)
        error = (self.box(patches)[inside] - labels["box"][inside]) * GRID  # [patches, 4], in cells of the grid
        loss = loss + 0.1 * F.smooth_l1_loss(error, torch.zeros_like(error), reduction="sum") / (4 * count)
        part, covered = self.part(patches)[inside], labels["part"][inside]  # [patches, FINE * FINE]
        covering = F.binary_cross_entropy_with_logits(part, covered, reduction="sum")
        loss = loss + 0.5 * covering / (FINE * FINE * count)
        right = (predicted.argmax(-1) == labels["name"])[inside]
        return loss, {
            "patch name": Metric(right.sum().item(), right.numel()),
            "patch box": Metric(error.abs().sum().item(), error.numel()),
        }


class EncoderStage(nn.Module):
    """What the first stage trains: the image encoder, and the heads that are thrown away afterwards."""

    def __init__(self, vision: SiglipVisionConfig):
        super().__init__()
        self.vision_tower = SiglipVisionModel(vision)
        self.heads = PatchHeads(vision.hidden_size)
