"""The mask tokenizer: a picture mask to 16 tokens and back, by a VQ-VAE.

A language model writes tokens, so a mask must become tokens. A mask is cropped to its box, resized to 64 x 64, and
encoded to a 4 x 4 grid of vectors; each vector is replaced by the nearest of 128 learned ones, whose number is the
token. Going back, the decoder draws 64 x 64 values from the 16 numbers, which are then pasted into the box.

Architecture and parameter names are those of the published `vae-oid.npz` that PaliGemma was trained with. It comes
from "All in Tokens" (Ning et al. 2023, arXiv:2301.02229; SwinTransformer/AiT, vae/models/VQVAE.py), and big_vision
has the reading half (pp and evaluators/proj/paligemma, segmentation.py). The quantiser is that of van den Oord et
al. 2017, arXiv:1711.00937. Get the file, if you have a real PaliGemma to use it with, from
`gs://big_vision/paligemma/vae-oid.npz`, and open it with `load_mask_tokenizer("vae-oid.npz")`.

This file also trains such a tokenizer on any masks: `python -m paligemma.segmentation train --help`.
"""

import argparse
import json
import os
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from . import ASSETS
from .config_checks import check_count
from .files import write_atomically, write_files_atomically
from .options import print_any_letter, seed, whole

MASK_SIZE = 64  # a mask is encoded at 64 x 64 ...
GRID = 4  # ... as 4 x 4 codes
STEPS = 1600  # of training, by default: about two minutes on one CPU core


@dataclass(frozen=True)
class MaskTokenizerConfig:
    """Sizes of a mask tokenizer; the defaults are the published one's."""

    num_codes: int = 128  # entries of the codebook, K
    code_dim: int = 512  # length of a code's vector, D
    width: int = 16  # channels C at 32 x 32; twice as many each time the side halves, 8 C at 4 x 4

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{field.name} is {value!r}, expected a whole number of 1 or more")


# ------------------------------------------------------------------------------------------------- the network


class VectorQuantizer(nn.Module):
    """Replaces each vector by the nearest one of the codebook (van den Oord et al. 2017, section 3.1)."""

    def __init__(self, num_codes: int, code_dim: int):
        super().__init__()
        # A buffer, not a parameter: no gradient reaches it. In training the codes follow the vectors (`follow`).
        self.register_buffer("_embedding", torch.randn(num_codes, code_dim))  # [K, D]

    def nearest(self, z: torch.Tensor) -> torch.Tensor:
        """z [B, D, H, W] -> number of the nearest code by Euclidean distance, [B, H * W] int64, row by row."""
        z = z.flatten(2).transpose(1, 2)  # [B, H*W, D]
        # |z - e|^2 = |z|^2 - 2 z.e + |e|^2, and |z|^2 is the same for every code.
        distances = self._embedding.pow(2).sum(dim=1) - 2 * z @ self._embedding.T  # [B, H*W, K]
        return distances.argmin(dim=2)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """codes [B, 16] int64 -> their vectors on the grid, [B, D, 4, 4]."""
        return self._embedding[codes].transpose(1, 2).unflatten(2, (GRID, GRID))


class ResidualBlock(nn.Module):
    """x + net(x), with no activation after the sum."""

    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.net(x)  # [B, 8C, 4, 4]


def mask_decoder(config: MaskTokenizerConfig) -> nn.Sequential:
    """Vectors [B, D, 4, 4] -> mask [B, 1, 64, 64], about -1 outside and +1 inside. Each transposed convolution
    doubles the side: (n - 1) * stride 2 - 2 * padding 1 + kernel 4 = 2 n."""
    c = config.width
    return nn.Sequential(
        nn.Conv2d(config.code_dim, 8 * c, kernel_size=1),
        nn.ReLU(),  # 0, 1
        ResidualBlock(8 * c),  # 2
        ResidualBlock(8 * c),  # 3
        nn.ConvTranspose2d(8 * c, 8 * c, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),  # 4: 8 x 8
        nn.ConvTranspose2d(8 * c, 4 * c, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),  # 6: 16 x 16
        nn.ConvTranspose2d(4 * c, 2 * c, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),  # 8: 32 x 32
        nn.ConvTranspose2d(2 * c, c, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),  # 10: 64 x 64
        nn.Conv2d(c, 1, kernel_size=1),  # 12
    )


def mask_encoder(config: MaskTokenizerConfig) -> nn.Sequential:
    """Mask [B, 1, 64, 64], -1 outside and +1 inside -> vectors [B, D, 4, 4]. Each convolution halves the side."""
    c = config.width
    return nn.Sequential(
        nn.Conv2d(1, c, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),  # 0: 32 x 32
        nn.Conv2d(c, 2 * c, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),  # 2: 16 x 16
        nn.Conv2d(2 * c, 4 * c, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),  # 4: 8 x 8
        nn.Conv2d(4 * c, 8 * c, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),  # 6: 4 x 4
        ResidualBlock(8 * c),  # 8
        ResidualBlock(8 * c),  # 9
        nn.Conv2d(8 * c, config.code_dim, kernel_size=1),  # 10
    )


class MaskTokenizer(nn.Module):
    """Masks to codes and back.

    Values: `encode` takes and `decode` gives masks from 0 (outside) to 1 (inside), cut at 0.5. Inside, as in the
    official code, the network works with -1 to +1, cut at 0: `decode_signed` gives these.
    """

    def __init__(self, config: MaskTokenizerConfig | None = None):
        super().__init__()
        self.config = config or MaskTokenizerConfig()
        self.encoder = mask_encoder(self.config)
        self._vq_vae = VectorQuantizer(self.config.num_codes, self.config.code_dim)  # the published file's name
        self.decoder = mask_decoder(self.config)

    @torch.no_grad()
    def encode(self, masks: torch.Tensor) -> torch.Tensor:
        """masks [B, 64, 64] float, 0 outside to 1 inside -> codes [B, 16] int64, the 4 x 4 grid row by row."""
        if masks.ndim != 3 or masks.shape[1:] != (MASK_SIZE, MASK_SIZE) or not masks.is_floating_point():
            raise ValueError(
                f"masks are {list(masks.shape)} {masks.dtype}, expected float masks [B, {MASK_SIZE}, {MASK_SIZE}]: a "
                "mask of a whole picture goes to mask_to_codes(mask, box)"
            )
        return self._vq_vae.nearest(self.encoder(2 * masks[:, None] - 1))

    @torch.no_grad()
    def decode_signed(self, codes: torch.Tensor) -> torch.Tensor:
        """codes [B, 16] int64 -> masks [B, 64, 64] as the network draws them, about -1 to +1, inside where > 0.

        Raises ValueError for codes of another shape or outside the codebook.
        """
        codes = torch.as_tensor(codes, device=self._vq_vae._embedding.device)
        if codes.ndim != 2 or codes.shape[1] != GRID * GRID or codes.is_floating_point():
            raise ValueError(f"codes are {list(codes.shape)} {codes.dtype}, expected whole numbers [B, {GRID * GRID}]")
        if codes.numel() and (codes.min() < 0 or codes.max() >= self.config.num_codes):
            raise ValueError(
                f"codes go from {codes.min()} to {codes.max()}, expected numbers from 0 to {self.config.num_codes - 1}"
            )
        return self.decoder(self._vq_vae.lookup(codes.long())).squeeze(1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """codes [B, 16] int64 -> masks [B, 64, 64] from 0 to 1, inside where > 0.5: for looking at."""
        return (0.5 * self.decode_signed(codes) + 0.5).clamp(0, 1)

    def mask_to_codes(self, mask: np.ndarray | torch.Tensor, box: Sequence[float]) -> list[int]:
        """The 16 codes of a picture's mask [H, W] inside `box` (y1, x1, y2, x2 in fractions of the picture)."""
        return self.encode(crop_mask(mask, box)[None].to(self._vq_vae._embedding)).squeeze(0).tolist()

    def codes_to_mask(
        self, codes: Sequence[int], box: Sequence[float], width: int, height: int, to_pixel: Callable = round
    ) -> np.ndarray:
        """16 codes and a box (y1, x1, y2, x2 in fractions) to the picture's mask, bool [height, width].

        `to_pixel` as in `paste_mask`.
        """
        mask = self.decode_signed(torch.as_tensor(codes)[None])[0]
        return paste_mask(mask.cpu().float().numpy(), box, width, height, threshold=0.0, to_pixel=to_pixel)


# ------------------------------------------------------------------------------------- between picture and 64 x 64


def crop_mask(mask: np.ndarray | torch.Tensor, box: Sequence[float]) -> torch.Tensor:
    """Crop a picture's mask to its box and resize it to [64, 64] float32: what `encode` wants.

    mask [H, W], bool or 0 to 1; box (y1, x1, y2, x2) in fractions of the picture. The official rule: the box is
    rounded to pixels, the resize is bilinear and antialiased (big_vision, pp/proj/paligemma/segmentation.py).
    Raises ValueError if there is no pixel in the box.
    """
    mask = torch.as_tensor(mask)
    if mask.ndim != 2:
        raise ValueError(f"the mask is {list(mask.shape)}, expected one mask of a picture, [height, width]")
    height, width = mask.shape
    y1, x1, y2, x2 = (round(side * full) for side, full in zip(box, (height, width, height, width), strict=True))
    crop = mask[max(y1, 0) : y2, max(x1, 0) : x2].float()
    if crop.numel() == 0:
        raise ValueError(
            f"the box is {tuple(box)}, and there is no pixel of the {width} x {height} mask in it: expected "
            "(y1, x1, y2, x2) in fractions of the picture, from 0 to 1"
        )
    size = (MASK_SIZE, MASK_SIZE)
    return F.interpolate(crop[None, None], size, mode="bilinear", antialias=True, align_corners=False)[0, 0]


def paste_mask(
    mask: np.ndarray,
    box: Sequence[float],
    width: int,
    height: int,
    threshold: float = 0.5,
    to_pixel: Callable = round,
) -> np.ndarray:
    """Stretch a mask [64, 64] over its box in a picture: bool [height, width], True where it exceeds `threshold`.

    box (y1, x1, y2, x2) in fractions of the picture. As in the official evaluator, the resize is PIL's bilinear and
    the threshold comes after it (0 for values of -1 to +1, 0.5 for 0 to 1). A box too small to cover a pixel gives an
    empty mask, which the evaluator counts as a miss.

    The evaluator makes whole pixels of the sides by int(); here they are rounded, as they are when training targets
    are made (`crop_mask`). Row 40 of 64 is written as `<loc0639>` and read as 39.98: int() makes it 39, and boxes
    move by up to a pixel. In a picture of 448 pixels that is invisible; at 64 it ruins the masks. Pass `to_pixel=int`
    for the evaluator's own figures.
    """
    mask = np.asarray(mask, dtype=np.float32)
    if mask.ndim != 2 or width < 1 or height < 1:
        raise ValueError(
            f"the mask is {list(mask.shape)} and the picture {width} x {height} pixels, expected one mask "
            f"[{MASK_SIZE}, {MASK_SIZE}] and at least 1 x 1"
        )
    if len(box) != 4 or not all(0 <= side <= 1 for side in box):
        raise ValueError(f"the box is {tuple(box)}, expected (y1, x1, y2, x2) in fractions of the picture, 0 to 1")
    y1, x1, y2, x2 = (to_pixel(side * full) for side, full in zip(box, (height, width, height, width), strict=True))
    pasted = np.zeros((height, width), dtype=bool)
    if y1 < y2 and x1 < x2:
        resized = Image.fromarray(mask).resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR)
        pasted[y1:y2, x1:x2] = np.asarray(resized) > threshold
    return pasted


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Pixels in both masks over pixels in either, 0 to 1, for two bool masks of one shape. Two empty ones: 1."""
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"the masks are {list(a.shape)} and {list(b.shape)}, expected two of one shape")
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


# -------------------------------------------------------------------------------------------------- load and save


def mask_tokenizer_folder(model: str | os.PathLike) -> Path:
    """Where the mask tokenizer of a model's folder is: inside it; that of the course's small model lies beside it.

    The codes of one mean nothing to any other. A model without masks has none there.
    """
    folder = Path(model).expanduser().resolve()
    return ASSETS / "mask-tokenizer" if folder == ASSETS / "tiny-paligemma" else folder / "mask-tokenizer"


def load_mask_tokenizer(path: str | Path) -> MaskTokenizer:
    """Open a folder written by `save_mask_tokenizer`, or the published `vae-oid.npz`, in evaluation mode.

    Raises FileNotFoundError if it is not there, and ValueError, with the name of the file, for damaged files and for
    each tensor that is missing, unexpected, of another shape or not of finite numbers. The quantiser's training
    averages (`_vq_vae._ema_...`), if in the file, are not needed.
    """
    path = Path(path)
    if path.suffix == ".npz" and path.is_file():
        config, file = MaskTokenizerConfig(), path
    elif (path / "config.json").is_file() and (path / "model.safetensors").is_file():
        config, file = _read_config(path / "config.json"), path / "model.safetensors"
    else:
        raise FileNotFoundError(
            f"no mask tokenizer at {path}: expected a folder with config.json and model.safetensors, or the published "
            "vae-oid.npz"
        )
    weights = _read_weights(file)
    with torch.device("meta"):  # shapes without memory
        tokenizer = MaskTokenizer(config)
    wanted = tokenizer.state_dict()
    wrong = [f"missing {name}" for name in wanted if name not in weights]
    for name, tensor in weights.items():
        if name not in wanted:
            wrong.append(f"unexpected {name}")
        elif tensor.shape != wanted[name].shape:
            wrong.append(f"{name} is {list(tensor.shape)}, expected {list(wanted[name].shape)}")
        elif not tensor.is_floating_point() or not tensor.isfinite().all():
            wrong.append(f"{name} ({tensor.dtype}) is not of finite floats")
    if wrong:
        raise ValueError(
            f"{file} is no mask tokenizer of {config}: " + "; ".join(wrong[:10]) + " ..." * (len(wrong) > 10)
        )
    tokenizer.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return tokenizer.eval()


def _read_config(file: Path) -> MaskTokenizerConfig:
    try:
        return MaskTokenizerConfig(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:  # no JSON, no dictionary, other keys, other values
        known = ", ".join(field.name for field in fields(MaskTokenizerConfig))
        raise ValueError(
            f"{file} cannot be read ({error}), expected a dictionary of {known}: fetch it again"
        ) from error


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of a .safetensors or .npz file but the quantiser's training averages."""
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        else:
            weights = load_file(file)
    except (SafetensorError, zipfile.BadZipFile, ValueError, TypeError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file} is damaged or cut off ({error}): fetch it again") from error
    return {name: tensor for name, tensor in weights.items() if not name.startswith("_vq_vae._ema_")}


def save_mask_tokenizer(tokenizer: MaskTokenizer, folder: str | Path) -> None:
    """Write config.json and model.safetensors into a folder; what was there stays whole until the new is whole."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tokenizer.state_dict().items()}
    with write_files_atomically(folder) as fresh:
        save_file(weights, fresh / "model.safetensors")
        (fresh / "config.json").write_text(json.dumps(asdict(tokenizer.config), indent=2) + "\n", encoding="utf-8")


# -------------------------------------------------------------------------------------------------------- training


class CodebookAverage:
    """Moves the codes to the mean of the vectors they stand for, and revives the unused.

    Van den Oord et al. 2017, appendix A.1: `count` and `total` are moving averages of how many vectors chose each
    code and of their sum, and the code is total / count. It is k-means, a little at a time.
    """

    def __init__(self, quantizer: VectorQuantizer, decay: float = 0.98):
        self.quantizer, self.decay = quantizer, decay
        self.count = torch.ones(len(quantizer._embedding))  # [K]
        self.total = quantizer._embedding.clone()  # [K, D]

    @torch.no_grad()
    def update(self, z: torch.Tensor, codes: torch.Tensor) -> None:
        """z [N, D] are the vectors of a batch, codes [N] what they chose."""
        chosen = F.one_hot(codes, len(self.count)).to(z)  # [N, K]
        self.count.lerp_(chosen.sum(dim=0), 1 - self.decay)
        self.total.lerp_(chosen.T @ z, 1 - self.decay)
        self.quantizer._embedding.copy_(self.total / self.count[:, None].clamp_min(1e-5))

    @torch.no_grad()
    def revive(self, z: torch.Tensor, codes: torch.Tensor) -> None:
        """A code that no vector chooses never moves again: put it where a vector is far from its nearest code."""
        unused = (self.count < 0.02).nonzero().squeeze(1)
        error = (z - self.quantizer._embedding[codes]).pow(2).sum(dim=1)  # [N]
        if len(unused):
            self.total[unused] = z[torch.multinomial(error + 1e-12, len(unused), replacement=True)]
            self.count[unused] = 1.0


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside the block torch's random numbers on the CPU start at `seed`; the caller's go on undisturbed after it."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would change those of the GPUs as well
    try:
        yield
    finally:
        torch.set_rng_state(before)


def roughen(masks: torch.Tensor) -> torch.Tensor:
    """Masks [B, 64, 64] as a picture shows them: a pixel off, drawn small and hard, stretched to 64 x 64 again."""
    rough = []
    for part in masks.split(8):
        height, width = torch.randint(10, MASK_SIZE // 2, (2,)).tolist() if torch.rand(()) < 0.75 else (MASK_SIZE,) * 2
        shifted = torch.roll(part, torch.randint(-1, 2, (2,)).tolist(), dims=(1, 2))
        small = F.interpolate(shifted[:, None], (height, width), mode="area")
        cut = 0.4 + 0.2 * torch.rand(len(part), 1, 1, 1)
        rough.append(F.interpolate((small > cut).float(), (MASK_SIZE, MASK_SIZE), mode="bilinear").squeeze(1))
    return torch.cat(rough)


def train_mask_tokenizer(
    masks: torch.Tensor,
    config: MaskTokenizerConfig,
    steps: int,
    batch: int = 48,
    lr: float = 3e-3,
    corrupt: float = 0.15,
    agree: float = 2.0,
    seed: int = 0,
    log: Callable[[dict[str, float]], None] = print,
) -> MaskTokenizer:
    """Train a tokenizer on masks [N, 64, 64] float32, 0 to 1, of any objects, each filling its box.

    A language model will have to predict the codes, so a faithful reconstruction is not enough. Each mask is also seen
    roughened, and
    - either view must draw the same clean mask, and the two views' vectors are pulled together (`agree`), so that
      masks that look alike get the same codes;
    - some codes are replaced by those of another mask (`corrupt`, a share, less and less), so that one wrong code
      does not ruin the drawing.
    `log` is called with a dict of figures every 100 steps. The caller's random numbers are not disturbed. Raises
    ValueError for masks of another shape, and for steps or a batch below 1.
    """
    check_count("steps", steps)
    check_count("batch", batch)
    if masks.ndim != 3 or masks.shape[1:] != (MASK_SIZE, MASK_SIZE) or not len(masks):
        raise ValueError(
            f"the masks are {list(masks.shape)}, expected [N, {MASK_SIZE}, {MASK_SIZE}] with N of 1 or more"
        )
    with seeded(seed):
        return _train(masks, config, steps, batch, lr, corrupt, agree, log)


def _train(masks, config, steps, batch, lr, corrupt, agree, log) -> MaskTokenizer:
    """The loop of `train_mask_tokenizer`."""
    tokenizer = MaskTokenizer(config).train()
    quantizer = tokenizer._vq_vae
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        clean = masks[torch.randint(len(masks), (batch,))]  # [B, 64, 64]
        seen = torch.cat([roughen(clean), clean])  # [2B, 64, 64]
        z = tokenizer.encoder(2 * seen[:, None] - 1).flatten(2).transpose(1, 2)  # [2B, 16, D]
        vectors = z.detach().flatten(0, 1)  # [2B*16, D]
        if step == 0:
            quantizer._embedding.copy_(vectors[torch.randint(len(vectors), (config.num_codes,))])
            average = CodebookAverage(quantizer)
        codes = quantizer.nearest(z.transpose(1, 2).unflatten(2, (GRID, GRID)))  # [2B, 16]
        average.update(vectors, codes.flatten())
        if step % 20 == 0 and step < 0.6 * steps:  # later, nobody would have time to learn a new code
            average.revive(vectors, codes.flatten())
        nearest = quantizer._embedding[codes]  # [2B, 16, D]

        commitment = F.mse_loss(z, nearest)  # keep the vectors near their codes
        agreement = F.mse_loss(z[:batch], z[batch:])  # and those of the two views near each other
        # Straight through: forward the code, backward as if it were the vector itself. Draw the rough half.
        quantized = z[:batch] + (nearest[:batch] - z[:batch]).detach()
        share = 2 * corrupt * (1 - step / steps) * torch.rand(batch, 1, 1)
        wrong = torch.rand(batch, GRID * GRID, 1) < share
        quantized = torch.where(wrong, nearest[torch.randperm(batch)], quantized)
        drawn = tokenizer.decoder(quantized.transpose(1, 2).unflatten(2, (GRID, GRID))).squeeze(1)  # [B, 64, 64]
        reconstruction = F.mse_loss(drawn, 2 * clean - 1)

        optimizer.zero_grad()
        (reconstruction + 0.25 * commitment + agree * agreement).backward()
        nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            log(
                {
                    "step": step + 1,
                    "reconstruction": reconstruction.item(),
                    "commitment": commitment.item(),
                    "agreement": agreement.item(),
                    "iou": _mean_iou(drawn.detach() > 0, clean > 0.5),
                    "codes used": len(codes.unique()),
                    "same code in both views": (codes[:batch] == codes[batch:]).float().mean().item(),
                }
            )
    return tokenizer.eval()


def _mean_iou(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over a batch of bool masks [B, 64, 64] of the intersection over the union."""
    return ((a & b).sum(dim=(1, 2)) / (a | b).sum(dim=(1, 2)).clamp_min(1)).mean().item()


def measure(tokenizer: MaskTokenizer, masks: torch.Tensor, seed: int = 0) -> dict[str, float]:
    """How well masks [N, 64, 64] survive the tokens, and how steady the tokens are."""
    truth = masks > 0.5
    codes = tokenizer.encode(masks)

    def iou(codes):
        return _mean_iou(tokenizer.decode_signed(codes) > 0, truth)

    with seeded(seed):
        rough = tokenizer.encode(roughen(masks))
        wrong = [
            torch.where(torch.rand(codes.shape) < share, codes[torch.randperm(len(codes))], codes)
            for share in (0.1, 0.3)
        ]
    shifts = [tokenizer.encode(torch.roll(masks, shift, dims=(1, 2))) for shift in ((0, 1), (0, -1), (1, 0), (-1, 0))]
    return {
        "IoU of the mask drawn from its codes": iou(codes),
        "the same from the mask roughened": iou(rough),
        "the same with 10 % of the codes taken from other masks": iou(wrong[0]),
        "the same with 30 %": iou(wrong[1]),
        "codes unchanged when the mask is roughened": (codes == rough).float().mean().item(),
        "codes unchanged by a shift of 1/64": torch.stack([(codes == s).float().mean() for s in shifts]).mean().item(),
    }


# --------------------------------------------------------------------------------------------------- command line


def shape_masks(per_shape: int, seed: int) -> tuple[torch.Tensor, list[tuple[str, float]]]:
    """The little world's masks at random angles: [6 * per_shape, 64, 64], and (shape, angle) of each."""
    from .world.scenes import SHAPES, shape_mask  # here, so that the tokenizer does not depend on the little world

    rng = np.random.default_rng(seed)
    objects = [(shape, float(angle)) for shape in SHAPES for angle in rng.uniform(-12, 12, per_shape)]
    return torch.from_numpy(np.stack([shape_mask(shape, angle) for shape, angle in objects])), objects


def folder_masks(folder: Path) -> torch.Tensor:
    """Every picture of a folder as a mask (white inside, black outside), cropped to what is white: [N, 64, 64]."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}, expected one of pictures, each one mask, white inside")
    masks = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".bmp", ".tif", ".tiff", ".gif")):
        with Image.open(path) as image:
            mask = np.asarray(image.convert("L")) > 127
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        if not len(rows):
            raise ValueError(f"{path} has no white pixel, expected a mask that is white inside and black outside")
        inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        masks.append(crop_mask(inside, (0, 0, 1, 1)))
    if not masks:
        raise ValueError(f"there is no mask in {folder}, expected pictures, each one mask, white inside; .png is best")
    return torch.stack(masks)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m paligemma.segmentation", description="Train the mask tokenizer.")
    train = parser.add_subparsers(dest="command", required=True).add_parser("train", help="train and save one")
    train.add_argument(
        "--output", type=Path, required=True, help="folder for the weights, the log and what was measured"
    )
    train.add_argument("--masks", type=Path, help="folder of masks, white inside; default: the little world's shapes")
    train.add_argument("--seed", type=seed, default=0)
    train.add_argument("--steps", type=whole, default=STEPS)
    train.add_argument("--batch", type=whole, default=48, help="masks a step")
    train.add_argument("--width", type=whole, default=5, help="16 is the published one's")
    train.add_argument("--code-dim", type=whole, default=16, help="512 is the published one's")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, save and measure; returns 0, or 1 after one line that says what is wrong."""
    print_any_letter()
    options = parse_arguments(arguments)
    try:
        train_and_measure(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def train_and_measure(options: argparse.Namespace) -> None:
    """Write the weights, training.jsonl and measured.json into the output folder."""
    options.output.mkdir(parents=True, exist_ok=True)
    config = MaskTokenizerConfig(code_dim=options.code_dim, width=options.width)
    masks = folder_masks(options.masks) if options.masks else shape_masks(400, options.seed)[0]
    lines: list[str] = []
    started = time.perf_counter()

    def log(figures: dict[str, float]) -> None:
        figures = {**figures, "seconds": time.perf_counter() - started}
        lines.append(json.dumps({name: round(value, 5) for name, value in figures.items()}))
        print(lines[-1], flush=True)

    tokenizer = train_mask_tokenizer(masks, config, options.steps, options.batch, seed=options.seed, log=log)
    save_mask_tokenizer(tokenizer, options.output)
    figures = measure(tokenizer, masks if options.masks else shape_masks(150, options.seed + 1_000_000)[0])
    for name, text in {
        "training.jsonl": "\n".join(lines) + "\n",
        "measured.json": json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=2) + "\n",
    }.items():
        with write_atomically(options.output / name) as partial:
            partial.write_text(text, encoding="utf-8")
    on = "on the training masks themselves" if options.masks else "on 900 masks at other angles"
    print(f"Measured {on}:", *(f"{value:.3f}  {name}" for name, value in figures.items()), sep="\n  ")
    print(f"Saved to {options.output}.")


if __name__ == "__main__":
    sys.exit(main())
