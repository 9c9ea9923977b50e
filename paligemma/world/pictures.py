"""Training data of the little world: pictures drawn ahead, questions asked anew at every step.

Seeds from TRAIN_SEEDS on are for training; everything below is held out, so any scene with a small seed, in a
chapter or a test, is one that the shipped model has never seen.
"""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..files import write_atomically
from ..processing_paligemma import make_rows, pad_rows
from .scenes import SHAPES, Scene, Thing, ask, draw, make_scene, shape_mask

TRAIN_SEEDS = 1_000_000  # the first seed that training uses


def render(scene: Scene, size: int, rng) -> Image.Image:
    """Draw a scene the way a stranger's file might arrive: another size, compressed, a little paler or darker."""
    if rng.random() < 0.4:
        return draw(scene, size)
    picture = draw(scene, int(size * rng.choice([0.9, 1.25, 1.5, 1.75, 2.0, 2.5])))
    if rng.random() < 0.5:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=int(rng.integers(50, 96)))
        picture = Image.open(file)
    picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    gain, lift = rng.uniform(0.88, 1.08), rng.uniform(-8, 12)
    return Image.fromarray(np.clip(np.asarray(picture) * gain + lift, 0, 255).astype(np.uint8))


class Pictures:
    """`count` training pictures [size, size, 3] uint8 on disk, drawn once (about 3 ms each) and kept in `folder`.

    The file is memory-mapped, so several processes share one copy. Its name ends with a fingerprint of the world: when
    shapes, colours or the drawing change, other pictures are drawn. A damaged file is drawn again. Raises ValueError
    for a count below 1.
    """

    def __init__(self, count: int, size: int = 64, folder: str | Path = "runs", max_things: int = 4):
        if type(count) is not int or count < 1:
            raise ValueError(f"count is {count!r}, expected a whole number of pictures, 1 or more")
        self.count, self.size, self.max_things = count, size, max_things
        self.path = Path(folder) / f"pictures-{size}px-{count}-of-{max_things}-{self.fingerprint()}.npy"
        pixels = self.opened()
        if pixels is None:
            self.draw()
            pixels = self.opened()
        self.pixels = pixels

    def fingerprint(self, scenes: int = 48) -> str:
        """Eight letters that change when the world does: of some scenes' truth and pictures."""
        found = hashlib.sha256()
        for index in range(scenes):
            found.update(repr(self.scene(index)).encode())
            found.update(self.render(index).tobytes())
        return found.hexdigest()[:8]

    def opened(self) -> np.ndarray | None:
        """The pictures on disk, or None where there are none or the file is damaged."""
        try:
            pixels = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None
        return pixels if pixels.shape == (self.count, self.size, self.size, 3) and pixels.dtype == np.uint8 else None

    def draw(self) -> None:
        """Draw all pictures into the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(self.path) as partial:
            pixels = np.lib.format.open_memmap(partial, "w+", np.uint8, (self.count, self.size, self.size, 3))
            for index in tqdm(range(self.count), desc="drawing pictures", unit=" pictures"):
                pixels[index] = self.render(index)
            pixels.flush()
            del pixels  # closes the file, which Windows wants before it is renamed

    def render(self, index: int) -> np.ndarray:
        """Draw picture `index`: uint8 [size, size, 3]."""
        return np.asarray(render(self.scene(index), self.size, np.random.default_rng([1, TRAIN_SEEDS + index])))

    def scene(self, index: int) -> Scene:
        """The truth of picture `index`."""
        return make_scene(TRAIN_SEEDS + index, self.max_things)

    def batch(self, indices) -> torch.Tensor:
        """Pictures as the processor would give them: float32 [B, 3, size, size] from -1 to 1."""
        pixels = torch.from_numpy(self.pixels[np.asarray(indices)])  # [B, H, W, 3]
        return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_questions(scenes: list, weights: dict[str, float], per_picture: int, rng, codes=None, ask=ask):
    """Ask `per_picture` questions of different tasks about each scene, tasks drawn by their weights.

    `ask(scene, task, rng, codes)` is that of the scenes' world. Returns a list of (index of the scene, task, prompt,
    answer).
    """
    tasks = [task for task, weight in weights.items() if weight > 0]
    keys_per_task = 1 / np.array([weights[task] for task in tasks])
    rows = []
    for index, scene in enumerate(scenes):
        # Sorting exponential draws divided by the weights is a weighted draw without replacement.
        order = np.argsort(rng.exponential(size=len(tasks)) * keys_per_task)
        asked = 0
        for position in order:
            pair = ask(scene, tasks[position], rng, codes)
            if pair is not None:
                rows.append((index, tasks[position], *pair))
                asked += 1
            if asked == per_picture:
                break
    return rows


def collate(tokenizer, prompts: list[str], answers: list[str], num_image_tokens: int, pad_to: int = 0) -> dict:
    """Image tokens, prompt and answer of each row side by side, padded at the end. int64 tensors [R, L].

    The processor's own rows (see `make_rows` and `pad_rows`), for pictures that are encoded once and asked often.
    """
    rows = make_rows(tokenizer, prompts, answers, num_image_tokens)
    return pad_rows(rows, tokenizer.pad_token_id, pad_to)


def mask_codes(mask_tokenizer) -> Callable[[Thing], list[int]]:
    """A function from a thing to its 16 mask codes, looked up in a table of every shape and angle."""
    angles = [round(-12 + 0.1 * i, 1) for i in range(241)]
    table = {}
    with torch.inference_mode():
        for shape in SHAPES:
            masks = np.stack([shape_mask(shape, angle, 64) for angle in angles])
            codes = torch.cat([mask_tokenizer.encode(part) for part in torch.from_numpy(masks).split(32)])
            table |= {(shape, angle): code.tolist() for angle, code in zip(angles, codes, strict=True)}
    return lambda thing: table[thing.shape, thing.angle]
