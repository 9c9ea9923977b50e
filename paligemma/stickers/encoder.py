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

BOX_WEIGHT = 0.1  # of a patch's box, beside its name: first see what it is, then where it ends


class PatchHeads(nn.Module):
    """What each patch says of the sticker it belongs to; used in training only. [B, N, D] -> three answers."""

    def __init__(self, width: int):
        super().__init__()
        self.name = nn.Linear(width, len(NAMES) + 1)  # 0 is "no sticker here"
        self.box = nn.Linear(width, 4)  # y1, x1, y2, x2 in 0..1
        self.part = nn.Linear(width, FINE * FINE)  # logits: does the sticker cover this cell of the patch?

    def loss(
        self, patches: torch.Tensor, labels: dict[str, torch.Tensor], box_weight: float = BOX_WEIGHT
    ) -> tuple[torch.Tensor, dict[str, Metric]]:
        """Patches [B, N, D] and labels of `Pictures.labels` -> loss and metrics for the log."""
        inside = labels["name"] > 0  # [B, N]
        count = inside.sum().clamp(min=1)
        predicted = self.name(patches)  # [B, N, names + 1]
        loss = F.cross_entropy(predicted[inside], labels["name"][inside], reduction="sum") / count
        # The ground is easy, and two patches in three are ground.
        ground = F.cross_entropy(predicted[~inside], labels["name"][~inside], reduction="sum")
        loss = loss + 0.3 * ground / (~inside).sum().clamp(min=1)
        error = (self.box(patches)[inside] - labels["box"][inside]) * GRID  # [patches, 4], in cells of the grid
        loss = loss + box_weight * F.smooth_l1_loss(error, torch.zeros_like(error), reduction="sum") / (4 * count)
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


@torch.no_grad()
def whiten_patches(vision_tower: SiglipVisionModel, pixel_values: torch.Tensor, floor: float = 0.02) -> None:
    """Set the patch embedding to the principal components of these pictures' patches, all of about the same variance.

    Nine tenths of the variance of a patch are its mean colour and slopes; with random weights they drown the eyes and
    wheels by which things are told apart. Components of much less variance than `floor` stay small: they are noise.
    The embedding is frozen as it is (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.1, does
    the same to the first convolution): AdamW's steps are as large for every pixel, so their sum, the mean colour,
    would soon be back. The standard deviation is a half, not far from the position embeddings' third: with more, places
    are hard to tell. `pixel_values` [B, 3, S, S] as the processor gives them.
    """
    convolution = vision_tower.vision_model.embeddings.patch_embedding
    P = convolution.kernel_size[0]
    patches = F.unfold(pixel_values, P, stride=P).transpose(1, 2).flatten(0, 1)  # [B * N, 3 * P * P]
    mean = patches.mean(dim=0)
    covariance = torch.cov(patches.T)
    variances, directions = torch.linalg.eigh(covariance.double())  # from smallest to largest
    largest = convolution.out_channels
    kernel = directions[:, -largest:] / (variances[-largest:].clamp(min=0) + floor).sqrt()  # [3 * P * P, D]
    # The sign of an eigenvector is the library's choice; here its largest entry is positive.
    kernel = kernel * kernel.gather(0, kernel.abs().argmax(dim=0, keepdim=True)).sign()
    kernel = 0.5 * kernel.T.float()
    convolution.weight.copy_(kernel.view_as(convolution.weight))
    convolution.bias.copy_(-kernel @ mean)
    freeze_patches(vision_tower)


def freeze_patches(vision_tower: SiglipVisionModel) -> None:
    """Take the patch embedding out of the training."""
    vision_tower.vision_model.embeddings.patch_embedding.requires_grad_(False)
