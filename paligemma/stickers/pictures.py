"""Training pictures of the sticker world: drawn ahead, with what each patch shows.

Seeds from TRAIN_SEEDS on are for training; everything below is held out, so any scene with a small seed, in a
chapter or a test, is one that the shipped model has never seen.
"""

from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..files import write_atomically
from ..segmentation import MASK_SIZE, crop_mask
from ..world.pictures import TRAIN_SEEDS
from ..world.scenes import GRID
from .atlas import NAMES, artists, checksum
from .scenes import MAX_STICKERS, Cut, Scene, Sticker, draw, make_scene, masks

PART = 200  # pictures that a process draws at a time
FINE = 3  # a patch's part of a mask is FINE x FINE cells


def patch_truth(found: np.ndarray, names: list[str], patch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each patch shows, from the visible masks bool [stickers, S, S] and the stickers' names.

    Returns, for the N patches row by row, uint8 arrays: the sticker that covers most of the patch [N], counted from
    1, 0 where all cover less than an eighth; the number of its thing [N], counted from 1, or 0; and how much of
    FINE x FINE cells of the patch that sticker covers [N, FINE * FINE], 0 to 255. Raises ValueError for patches that
    cannot be cut so.
    """
    if patch % FINE:
        raise ValueError(f"patch is {patch} pixels, expected a multiple of {FINE}")
    count, S, _ = found.shape
    side = S // patch
    cells = found.reshape(count, side * FINE, patch // FINE, side * FINE, patch // FINE).mean(axis=(2, 4))
    cells = cells.reshape(count, side, FINE, side, FINE).transpose(1, 3, 0, 2, 4).reshape(side * side, count, FINE**2)
    cover = cells.mean(axis=2)  # [N, stickers]
    best = cover.argmax(axis=1)
    owner = np.where(cover.max(axis=1) >= 0.125, best + 1, 0).astype(np.uint8)
    thing = np.array([0] + [NAMES.index(name) + 1 for name in names], dtype=np.uint8)[owner]
    part = np.round(255 * cells[np.arange(side * side), best]).astype(np.uint8)
    return owner, thing, part


def _seed(split: str, number: int) -> int:
    return number + (TRAIN_SEEDS if split == "train" else 0)


def _draw_part(path: Path, split: str, size: int, patch: int, part: range) -> dict[str, np.ndarray]:
    """Draw the pictures of these numbers into the file at `path`; returns the truth about them, row by row."""
    pixels = np.load(path, mmap_mode="r+")  # [count, S, S, 3]
    rows, N, everybody = len(part), (size // patch) ** 2, artists()
    truth = {
        "thing": np.zeros((rows, MAX_STICKERS), np.uint8),  # counted from 1; 0 where there are fewer stickers
        "artist": np.zeros((rows, MAX_STICKERS), np.uint8),
        "box": np.zeros((rows, MAX_STICKERS, 4), np.uint8),  # in cells of the grid
        "owner": np.zeros((rows, N), np.uint8),
        "name": np.zeros((rows, N), np.uint8),
        "part": np.zeros((rows, N, FINE**2), np.uint8),
        "segmented": np.zeros(rows, np.uint8),
        "mask": np.zeros((rows, MASK_SIZE**2 // 8), np.uint8),  # of that sticker in its box, eight pixels a byte
    }
    for row, number in enumerate(part):
        scene = make_scene(_seed(split, number), artists(split), varied=split == "train")
        pixels[number] = draw(scene, size)
        found = masks(scene, size)
        names = [sticker.name for sticker in scene.things]
        truth["owner"][row], truth["name"][row], truth["part"][row] = patch_truth(found, names, patch)
        for place, sticker in enumerate(scene.things):
            truth["thing"][row, place] = NAMES.index(sticker.name) + 1
            truth["artist"][row, place] = everybody.index(sticker.cut.artist)
            truth["box"][row, place] = [round(edge * GRID) for edge in sticker.box]
        chosen = number % len(scene.things)
        truth["segmented"][row] = chosen
        mask = crop_mask(found[chosen], scene.things[chosen].box)
        truth["mask"][row] = np.packbits(mask.numpy() > 0.5)
    pixels.flush()
    return truth


class Pictures:
    """`count` pictures by the artists of a split, on disk, drawn once by `workers` processes.

    Those for training are varied; those of another split are of held-out seeds, and as drawn.

    The mask of one sticker of each, `segmented`, is kept. Files are written under a temporary name and renamed when
    complete; pixels are memory-mapped, so several processes share one copy.
    """

    def __init__(self, count: int, size: int, patch: int, folder: str | Path = "runs", workers: int = 1, split="train"):
        self.count, self.size, self.patch, self.split = count, size, patch, split
        self.folder = folder = Path(folder)
        stem = f"stickers-{split}-{checksum()}-{size}px-patch{patch}-{count}"
        pixels_path, truth_path = folder / f"{stem}.npy", folder / f"{stem}-truth.npz"
        if not (truth_path.exists() and pixels_path.exists()):
            folder.mkdir(parents=True, exist_ok=True)
            self._draw(pixels_path, truth_path, workers)
        self.pixels = np.load(pixels_path, mmap_mode="r")  # [count, S, S, 3] uint8
        with np.load(truth_path) as truth:
            self.truth = {name: truth[name] for name in truth.files}

    def _draw(self, pixels_path: Path, truth_path: Path, workers: int) -> None:
        parts = [range(first, min(first + PART, self.count)) for first in range(0, self.count, PART)]
        with write_atomically(pixels_path) as path:
            np.lib.format.open_memmap(path, "w+", np.uint8, (self.count, self.size, self.size, 3)).flush()
            draw_part = partial(_draw_part, path, self.split, self.size, self.patch)
            with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
                drawn = (pool.map if pool else map)(draw_part, parts)
                truth = list(tqdm(drawn, total=len(parts), desc="drawing pictures", unit=f" x {PART} pictures"))
        with write_atomically(truth_path) as path:
            np.savez(path, **{key: np.concatenate([part[key] for part in truth]) for key in truth[0]})

    def scene(self, index: int) -> Scene:
        """What picture `index` shows: things and boxes in reading order (not how the drawings were varied)."""
        things = []
        for number, artist, box in zip(*(self.truth[key][index] for key in ("thing", "artist", "box")), strict=True):
            if number:
                cut = Cut(NAMES[number - 1], artists()[artist])
                things.append(Sticker(cut, tuple(int(cell) / GRID for cell in box)))
        return Scene(
            _seed(self.split, int(index)), tuple(things), tuple(range(len(things))), varied=self.split == "train"
        )

    def mask(self, indices) -> torch.Tensor:
        """The mask of the sticker `segmented` of each picture, filling its box: float32 [B, 64, 64], 0 or 1."""
        bits = np.unpackbits(self.truth["mask"][np.asarray(indices)], axis=1)
        return torch.from_numpy(bits.reshape(-1, MASK_SIZE, MASK_SIZE).astype(np.float32))

    def batch(self, indices) -> torch.Tensor:
        """Pictures as the processor would give them: float32 [B, 3, S, S] from -1 to 1."""
        pixels = torch.from_numpy(self.pixels[np.asarray(indices)])  # [B, S, S, 3]
        return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1

    def labels(self, indices) -> dict[str, torch.Tensor]:
        """What each patch of these pictures shows: `name` int64 [B, N], `box` float32 [B, N, 4] in fractions of the
        side, `part` float32 [B, N, FINE * FINE], the visible share of the patch's cells."""
        indices = np.asarray(indices)
        owner = self.truth["owner"][indices].astype(np.int64)  # [B, N]
        box = np.take_along_axis(self.truth["box"][indices], np.maximum(owner - 1, 0)[:, :, None], axis=1)
        return {
            "name": torch.from_numpy(self.truth["name"][indices].astype(np.int64)),
            "box": torch.from_numpy(box.astype(np.float32) / GRID),
            "part": torch.from_numpy(self.truth["part"][indices].astype(np.float32) / 255),
        }
