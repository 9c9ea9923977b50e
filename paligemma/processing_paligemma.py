"""From pictures and prompts to the tensors that the model takes.

A picture becomes numbers from -1 to 1, channels first; a prompt becomes token ids with a place for each image token:

    <image> x N   <bos>   the prompt   "\\n"   | the answer   <eos>      (the answer only in training)

Names follow hkproj's pytorch-paligemma and transformers. Sources: big_vision/models/proj/paligemma (README, the order
of the tokens), transformers' processing_paligemma.py and image_processing_siglip.py (pixels).
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps

IMAGENET_STANDARD_MEAN = (0.5, 0.5, 0.5)  # not ImageNet's: half of the range, so that pixels fall into -1 to 1
IMAGENET_STANDARD_STD = (0.5, 0.5, 0.5)

IMAGE_TOKEN = "<image>"
LOCATION_TOKENS = [f"<loc{i:04d}>" for i in range(1024)]  # for boxes
SEGMENTATION_TOKENS = [f"<seg{i:03d}>" for i in range(128)]  # for masks


def add_image_tokens_to_prompt(prefix_prompt: str, bos_token: str, image_seq_len: int, image_token: str) -> str:
    """The prompt as the model was trained on it: image tokens, BOS, the prompt, a newline that ends it."""
    return f"{image_token * image_seq_len}{bos_token}{prefix_prompt}\n"


def to_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """Any picture as a person would see it: RGB, 8 bits, upright, the first frame, on white where transparent.

    Takes a PIL image of any mode or an array of uint8, [height, width] or [height, width, 3 or 4]. For plain RGB
    pictures nothing changes. (transformers drops transparency and clips 16-bit pictures to white instead.)
    Raises TypeError for other types and ValueError for files that cannot be read, empty or not of finite numbers.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
            raise ValueError(
                f"the picture is an array of {image.dtype} and shape {list(image.shape)}, expected uint8 (0 to 255) "
                "and [height, width] or [height, width, 3]: a PIL image is safest"
            )
        if 0 in image.shape:
            raise ValueError(f"the picture has shape {list(image.shape)}: there is nothing in it")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"a picture is a {type(image).__name__}, expected a PIL image: open files with PIL.Image.open(path)"
        )
    if 0 in image.size:
        raise ValueError(f"the picture is {image.size[0]} x {image.size[1]} pixels: there is nothing in it")
    try:
        image = ImageOps.exif_transpose(image)  # cameras store the sensor's picture and a note on how to turn it
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the picture cannot be read ({error}): the file is damaged or cut off") from error
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits
        return _from_wide(image)
    try:
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"the picture's mode {image.mode} cannot be turned into RGB: save it as PNG first") from error


def _from_wide(image: Image.Image) -> Image.Image:
    """Grey pictures of 16-bit numbers, or of floats from 0 to 1 (or to 255), to RGB."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the picture holds values that are not finite numbers: replace them before passing it")
    top = values.max()
    if image.mode == "F":
        full = 1.0 if top <= 1 else 255.0
    else:
        full = 65535.0 if image.mode.startswith("I;16") or top > 255 else 255.0
    if values.min() < 0 or top > full:
        raise ValueError(
            f"the picture (mode {image.mode}) holds values from {values.min():g} to {top:g}, expected 0 to {full:g}: "
            "scale it to 8 bits before passing it"
        )
    return Image.fromarray((values / full * 255).round().astype(np.uint8)).convert("RGB")


def resize(
    image: Image.Image,
    size: tuple[int, int],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
    reducing_gap: int | None = None,
) -> Image.Image:
    """To `size` = (height, width) in pixels. The proportions are not kept: the model was trained that way."""
    height, width = size
    return image.resize((width, height), resample=resample, reducing_gap=reducing_gap)


def rescale(image: np.ndarray, scale: float, dtype: np.dtype = np.float32) -> np.ndarray:
    """Each number times `scale`: with 1 / 255, from 0..255 to 0..1."""
    return (image.astype(np.float64) * scale).astype(dtype)  # float64 first: one rounding, not two


def normalize(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Subtract the mean and divide by the standard deviation of each channel. [height, width, C], same dtype"""
    return (image - np.array(mean, dtype=image.dtype)) / np.array(std, dtype=image.dtype)


def process_images(
    images: Sequence[Image.Image],
    size: tuple[int, int],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
    rescale_factor: float = 1 / 255.0,
    image_mean: Sequence[float] = IMAGENET_STANDARD_MEAN,
    image_std: Sequence[float] = IMAGENET_STANDARD_STD,
) -> list[np.ndarray]:
    """Pictures to arrays [C, height, width] of float32, with values from -1 to 1 by default."""
    images = [resize(to_rgb(image), size, resample) for image in images]
    arrays = [rescale(np.array(image), rescale_factor) for image in images]  # [height, width, C]
    arrays = [normalize(array, image_mean, image_std) for array in arrays]
    return [np.ascontiguousarray(array.transpose(2, 0, 1)) for array in arrays]  # channels first


class PaliGemmaProcessor:
    """Pictures and prompts to model inputs, for a tokenizer of the Gemma kind (from transformers).

    num_image_tokens is N, the patches of a picture; image_size is its side in pixels. `<image>`, the `<loc>` and the
    `<seg>` tokens are added to the tokenizer when it lacks them.
    """

    IMAGE_TOKEN = IMAGE_TOKEN

    def __init__(self, tokenizer, num_image_tokens: int, image_size: int):
        self.tokenizer = tokenizer
        self.image_seq_length = num_image_tokens
        self.image_size = image_size
        vocabulary = tokenizer.get_vocab()
        if IMAGE_TOKEN not in vocabulary:
            tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
        tokenizer.add_tokens([token for token in LOCATION_TOKENS + SEGMENTATION_TOKENS if token not in vocabulary])
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        # BOS comes after the image tokens and EOS after the suffix: both are written by hand, below.
        tokenizer.add_bos_token = False
        tokenizer.add_eos_token = False

    def __call__(
        self,
        text: str | Sequence[str],
        images: Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]],
        suffix: str | Sequence[str] | None = None,
        padding: str | bool = "longest",
        truncation: bool = True,
        max_length: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """One picture (or a list of pictures) and one prompt a row; with `suffix`, the answers to learn as well.

        Returns pixel_values [B, 3, height, width] float32, and int64 [B, L]: input_ids, attention_mask (0 for
        padding), token_type_ids (1 for the answer), and with a suffix labels (-100 where no loss is taken).
        `padding` is "longest" (the tokenizer says on which side), "max_length" or False (rows of one length only).
        Rows longer than `max_length` (the tokenizer's own limit by default) lose the end of the prompt, then of the
        suffix, when `truncation` is on, and raise ValueError otherwise; image tokens are never cut.

        Raises ValueError or TypeError, with what to do, for pictures and prompts that do not match or cannot be read.
        """
        prompts, pictures, suffixes = _as_rows(text, images, suffix)
        limit = self._length_limit(max_length)
        rows = [
            self._tokenize(prompt, len(row_pictures), answer, limit, truncation)
            for prompt, row_pictures, answer in zip(prompts, pictures, suffixes, strict=True)
        ]
        batch = self._pad(rows, padding, limit)
        flat = [picture for row_pictures in pictures for picture in row_pictures]
        pixel_values = process_images(flat, size=(self.image_size, self.image_size))
        inputs = {"pixel_values": torch.from_numpy(np.stack(pixel_values)), **batch}
        if suffix is not None:
            inputs["labels"] = inputs["input_ids"].masked_fill(inputs["token_type_ids"] == 0, -100)
        return inputs

    def decode(self, token_ids, skip_special_tokens: bool = True) -> str:
        """Token ids to text. `<loc>` and `<seg>` tokens stay: they are what the model says."""
        return self.tokenizer.decode(
            token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )

    def _length_limit(self, max_length: int | None) -> int | None:
        if max_length is None:  # tokenizers without a limit say so by a huge number
            max_length = self.tokenizer.model_max_length
            return max_length if max_length < 10**9 else None
        if max_length <= self.image_seq_length + 2:
            raise ValueError(
                f"max_length is {max_length}: {self.image_seq_length} image tokens, BOS and the newline alone take "
                f"{self.image_seq_length + 2}; leave it out or make it larger"
            )
        return max_length

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _tokenize(self, prompt: str, num_pictures: int, suffix: str | None, limit: int | None, truncation: bool):
        """One row: (ids of image tokens, BOS, prompt and newline; ids of the answer and EOS)."""
        num_image_tokens = self.image_seq_length * num_pictures
        prefix_ids = self._ids(
            add_image_tokens_to_prompt(prompt, self.tokenizer.bos_token, num_image_tokens, IMAGE_TOKEN)
        )
        suffix_ids = [] if suffix is None else self._ids(suffix + self.tokenizer.eos_token)
        excess = 0 if limit is None else len(prefix_ids) + len(suffix_ids) - limit
        if excess > 0 and not truncation:
            raise ValueError(
                f"the prompt makes {len(prefix_ids) + len(suffix_ids)} tokens with its image tokens, at most {limit} "
                "are allowed: shorten it, raise max_length or allow truncation"
            )
        if excess > 0:  # the newline that ends the prompt and the EOS that ends the answer stay
            from_prompt = min(excess, len(prefix_ids) - num_image_tokens - 2)
            prefix_ids = prefix_ids[: len(prefix_ids) - 1 - from_prompt] + prefix_ids[-1:]
            from_suffix = excess - from_prompt
            if from_suffix > 0:
                suffix_ids = suffix_ids[: max(len(suffix_ids) - 1 - from_suffix, 0)] + suffix_ids[-1:]
        return prefix_ids, suffix_ids

    def _pad(self, rows, padding: str | bool, limit: int | None) -> dict[str, torch.Tensor]:
        """Rows of unequal length to tensors [B, L]."""
        lengths = [len(prefix) + len(suffix) for prefix, suffix in rows]
        longest = max(lengths)
        if padding == "max_length" and limit is not None:
            longest = max(longest, limit)
        elif padding is False or padding == "do_not_pad":
            if len(set(lengths)) > 1:
                raise ValueError(f"rows of {sorted(set(lengths))} tokens do not make a tensor: use padding='longest'")
        elif padding not in ("longest", True, "max_length"):
            raise ValueError(f"padding is {padding!r}, expected 'longest', 'max_length' or False")
        left = self.tokenizer.padding_side == "left"
        input_ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        attention_mask, token_type_ids = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
        for i, (prefix, suffix) in enumerate(rows):
            start = longest - lengths[i] if left else 0
            middle, end = start + len(prefix), start + lengths[i]
            input_ids[i, start:end] = torch.tensor(prefix + suffix)
            attention_mask[i, start:end] = 1
            token_type_ids[i, middle:end] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}


def _as_rows(text, images, suffix) -> tuple[list[str], list[list], list[str | None]]:
    """Single values to lists of one; then one prompt, a list of pictures and a suffix (or None) for each row."""
    prompts = [text] if isinstance(text, str) else text
    if not isinstance(prompts, (list, tuple)) or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(f"text is {_kind(text)}, expected a string or a list of strings (an empty prompt is '')")
    images = [images] if isinstance(images, (Image.Image, np.ndarray)) else images
    if not isinstance(images, (list, tuple)):
        raise TypeError(f"images is {_kind(images)}, expected a PIL image or a list of them, one for each prompt")
    if not prompts or len(images) != len(prompts):
        raise ValueError(
            f"{len(images)} pictures came with {len(prompts)} prompts, expected one picture for each prompt: repeat "
            "the picture to ask it several things, or pass a list of lists for several pictures in one prompt"
        )
    pictures = [list(row) if isinstance(row, (list, tuple)) else [row] for row in images]
    if not all(pictures):
        raise ValueError("a prompt came with an empty list of pictures: PaliGemma needs one at least")
    suffixes = [suffix] if isinstance(suffix, str) else suffix
    if suffixes is None:
        suffixes = [None] * len(prompts)
    elif not isinstance(suffixes, (list, tuple)) or not all(isinstance(answer, str) for answer in suffixes):
        raise TypeError(f"suffix is {_kind(suffix)}, expected a string or a list of strings")
    elif len(suffixes) != len(prompts):
        raise ValueError(f"{len(suffixes)} suffixes came with {len(prompts)} prompts, expected one for each")
    prompts = [_without_image_tokens(prompt, len(row)) for prompt, row in zip(prompts, pictures, strict=True)]
    for answer in suffixes:
        if answer is not None and IMAGE_TOKEN in answer:
            raise ValueError(f"the suffix {answer[:60]!r} contains {IMAGE_TOKEN}, which means a picture: remove it")
    return prompts, pictures, list(suffixes)


def _without_image_tokens(prompt: str, num_pictures: int) -> str:
    """Users of transformers write one <image> a picture at the front; it is added here in any case."""
    written = prompt.count(IMAGE_TOKEN)
    if written in (0, num_pictures) and prompt.startswith(IMAGE_TOKEN * written):
        return prompt[len(IMAGE_TOKEN) * written :]
    raise ValueError(
        f"the prompt {prompt[:60]!r} contains {IMAGE_TOKEN} {written} times, with {num_pictures} picture(s): leave it "
        "out (the processor adds it), or write it once for each picture, at the very beginning"
    )


def _kind(value) -> str:
    if isinstance(value, (list, tuple)):
        return f"a list with {', '.join(sorted({type(item).__name__ for item in value})) or 'nothing in it'}"
    return f"a {type(value).__name__}"
