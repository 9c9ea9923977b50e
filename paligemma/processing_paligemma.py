"""From pictures and prompts to the tensors that the model takes.

A picture becomes numbers from -1 to 1, channels first; a prompt becomes token ids with a place for each image token:

    <image> x N   <bos>   the prompt   "\\n"   | the answer   <eos>      (the answer only in training)

`make_rows` writes that order down and `pad_rows` makes tensors of it; the processor and the training data call both.
Names follow hkproj's pytorch-paligemma and transformers. Sources: big_vision/models/proj/paligemma (README, the order
of the tokens), transformers' processing_paligemma.py and image_processing_siglip.py (pixels).
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import PreTrainedTokenizerBase

from .locations import LOCATION_TOKENS, SEGMENTATION_TOKENS

IMAGENET_STANDARD_MEAN = (0.5, 0.5, 0.5)  # not ImageNet's: half of the range, so that pixels fall into -1 to 1
IMAGENET_STANDARD_STD = (0.5, 0.5, 0.5)

IMAGE_TOKEN = "<image>"
LONGEST_PADDING = 1_000_000  # tokens; no model reads as many, and a row of more would not fit into memory
TWELVE_BITS = 4095  # cameras and scanners of 12 bits store their numbers in 16-bit files


def add_image_tokens_to_prompt(prefix_prompt: str, bos_token: str, image_seq_len: int, image_token: str) -> str:
    """The prompt as the model was trained on it: image tokens, BOS, the prompt, a newline that ends it."""
    return f"{image_token * image_seq_len}{bos_token}{prefix_prompt}\n"


def to_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """Any picture as a person would see it: RGB, 8 bits, upright, the current frame, on white where transparent.

    Takes a PIL image of any mode or an array of uint8, [height, width] or [height, width, 3 or 4]. For plain RGB
    pictures nothing changes. (transformers drops transparency and clips 16-bit pictures to white instead.)

    Grey pictures of 16 bits run from 0 (black) to 65535 (white), as the PNG standard has it. Numbers that fill fewer
    bits, such as the 0 to 4095 of a 12-bit camera, are not stretched, because a dark picture looks the same in
    numbers; a warning says so. Raises TypeError for other types and ValueError for pictures that cannot be read, are
    empty, or hold numbers that are not finite.
    """
    image = upright(image)
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits
        return _from_wide(image)
    try:
        if image.mode == "La":  # grey and transparency, multiplied
            image = image.convert("LA")
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")
    except (ValueError, OSError) as error:
        raise ValueError(f"the picture's mode {image.mode} cannot be turned into RGB: save it as PNG first") from error


def upright(image: Image.Image | np.ndarray) -> Image.Image:
    """The picture read from its file and turned as its EXIF data say; its mode stays. Raises as `to_rgb` does."""
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"a picture is a {type(image).__name__}, expected a PIL image: open files with PIL.Image.open(path)"
        )
    if 0 in image.size:
        raise ValueError(f"the picture is {image.size[0]} x {image.size[1]} pixels: there is nothing in it")
    try:
        image.load()  # the file is read here, not before
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"the picture cannot be read ({error}): the file is damaged or cut off") from error
    except (ValueError, AssertionError, AttributeError) as error:  # what PIL says depends on the format
        raise ValueError("the picture was closed before it was read: use it inside `with`, or image.copy()") from error
    try:
        return ImageOps.exif_transpose(image)  # cameras store the sensor's picture and a note on how to turn it
    except Exception as error:  # a damaged note: the readers of PIL raise anything
        raise ValueError(f"the picture's EXIF data cannot be read ({error}): save it again without them") from error


def upright_size(image: Image.Image | np.ndarray) -> tuple[int, int]:
    """(width, height) in pixels of the picture as the model sees it.

    `image.size` is that of the stored pixels: in a photograph with an EXIF orientation the two may be swapped. Boxes
    and masks that the model writes belong to the upright picture.
    """
    return upright(image).size


def _from_array(array: np.ndarray) -> Image.Image:
    """An array of uint8, [height, width] or [height, width, 3 or 4], as a PIL image."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ValueError(
            f"the picture is an array of {array.dtype} and shape {list(array.shape)}, expected uint8 (0 to 255) "
            "and [height, width] or [height, width, 3]: a PIL image is safest"
        )
    if 0 in array.shape:
        raise ValueError(f"the picture has shape {list(array.shape)}: there is nothing in it")
    return Image.fromarray(array)


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
    if full == 65535 and 0 < top <= TWELVE_BITS:
        warnings.warn(
            f"the picture has 16 bits, but its numbers end at {top:g} of 65535, so it is nearly black to the model: "
            f"if {TWELVE_BITS if top > 255 else 255} is white in it, scale it to 8 bits before passing it",
            stacklevel=2,
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


# ------------------------------------------------------------------------------------------------------------- rows


def make_rows(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str] | None,
    num_image_tokens: int,
    num_pictures: Sequence[int] | None = None,
) -> list[tuple[list[int], list[int]]]:
    """The token ids of each row in two parts: (image tokens, BOS, prompt, newline) and (answer, EOS).

    `num_image_tokens` is N for one picture, `num_pictures` how many each row has (one, if it is left out). Without
    `answers` the second part is empty. `<image>` need not be written: at the head of a prompt it may stand as often
    as there are pictures, and makes no difference. Raises ValueError for `<image>` elsewhere and for text with lone
    surrogates.
    """
    if answers is not None and len(answers) != len(prompts):
        raise ValueError(f"{len(answers)} suffixes came with {len(prompts)} prompts, expected one for each")
    num_pictures = [1] * len(prompts) if num_pictures is None else num_pictures
    prefixes = [
        add_image_tokens_to_prompt(
            _without_image_tokens(_checked(prompt, "prompt"), count), tokenizer.bos_token, num_image_tokens * count,
            IMAGE_TOKEN,
        )
        for prompt, count in zip(prompts, num_pictures, strict=True)
    ]  # fmt: skip
    suffixes = []
    for answer in answers or ():
        if IMAGE_TOKEN in _checked(answer, "suffix"):
            raise ValueError(f"the suffix {answer[:60]!r} contains {IMAGE_TOKEN}, which means a picture: remove it")
        suffixes.append(answer + tokenizer.eos_token)

    def ids(texts: list[str]) -> list[list[int]]:
        # verbose=False: what happens to long prompts is decided by the processor, not by the tokenizer.
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []

    return list(zip(ids(prefixes), ids(suffixes) or [[]] * len(prefixes), strict=True))


def pad_rows(
    rows: Sequence[tuple[list[int], list[int]]], pad_token_id: int, length: int = 0, side: str = "right"
) -> dict[str, torch.Tensor]:
    """Rows of unequal length, as `make_rows` gives them, to int64 tensors [B, L], padded on that side.

    input_ids       <image> x N, <bos>, prompt, newline, answer, <eos>
    attention_mask  1, and 0 on padding
    token_type_ids  0 on image and prompt (which see each other), 1 on the answer (which is causal)
    labels          the answer's tokens in their own places, -100 elsewhere: the model shifts by one

    L is that of the longest row, or `length` where that is more.
    """
    lengths = [len(prefix) + len(suffix) for prefix, suffix in rows]
    longest = max([length, *lengths])
    input_ids = torch.full((len(rows), longest), pad_token_id)
    attention_mask, token_type_ids = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    for i, (prefix, suffix) in enumerate(rows):
        start = longest - lengths[i] if side == "left" else 0
        middle, end = start + len(prefix), start + lengths[i]
        input_ids[i, start:end] = torch.tensor(prefix + suffix)
        attention_mask[i, start:end] = 1
        token_type_ids[i, middle:end] = 1
    labels = input_ids.masked_fill(token_type_ids == 0, -100)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
        "labels": labels,
    }


def _checked(text: str, name: str) -> str:
    """The text itself, if it can be written in UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the {name} holds half a letter ({text[error.start]!a}, a lone surrogate) at position {error.start}: read "
            "the text again with the encoding it was written in"
        ) from None
    return text


def _without_image_tokens(prompt: str, num_pictures: int) -> str:
    """Users of transformers write one <image> a picture at the front; it is added here in any case."""
    written = prompt.count(IMAGE_TOKEN)
    if written in (0, num_pictures) and prompt.startswith(IMAGE_TOKEN * written):
        return prompt[len(IMAGE_TOKEN) * written :]
    raise ValueError(
        f"the prompt {prompt[:60]!r} contains {IMAGE_TOKEN} {written} times, with {num_pictures} picture(s): leave it "
        "out (the processor adds it), or write it once for each picture, at the very beginning"
    )


# -------------------------------------------------------------------------------------------------------- processor


class PaliGemmaProcessor:
    """Pictures and prompts to model inputs, for a tokenizer of the Gemma kind (from transformers).

    num_image_tokens is N, the patches of a picture; image_size is its side in pixels. `<image>`, the `<loc>` and the
    `<seg>` tokens are added to the tokenizer when it lacks them.
    """

    IMAGE_TOKEN = IMAGE_TOKEN

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_image_tokens: int, image_size: int):
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
        Rows longer than `max_length` (the tokenizer's own limit by default, and then with a warning) lose the end of
        the prompt, then of the suffix, when `truncation` is on, and raise ValueError otherwise; image tokens are never
        cut.

        Raises ValueError or TypeError, with what to do, for pictures and prompts that do not match or cannot be read.
        """
        prompts, pictures, suffixes = _as_rows(text, images, suffix)
        if not isinstance(truncation, bool):
            raise ValueError(f"truncation is {truncation!r}, expected True or False")
        counts = [len(row_pictures) for row_pictures in pictures]
        rows = make_rows(self.tokenizer, prompts, suffixes, self.image_seq_length, counts)
        limit = self._length_limit(max_length, max(counts))
        if limit is not None:
            self._check_lengths(rows, limit, truncation, asked=max_length is not None)
            rows = [self._cut(*row, limit, count) for row, count in zip(rows, counts, strict=True)]
        length = self._padded_length(rows, padding, limit)
        batch = pad_rows(rows, self.tokenizer.pad_token_id, length, self.tokenizer.padding_side)
        if suffix is None:
            del batch["labels"]
        flat = [picture for row_pictures in pictures for picture in row_pictures]
        pixel_values = process_images(flat, size=(self.image_size, self.image_size))
        return {"pixel_values": torch.from_numpy(np.stack(pixel_values)), **batch}

    def decode(self, token_ids: Sequence[int] | torch.Tensor, skip_special_tokens: bool = True) -> str:
        """Token ids to text. `<loc>` and `<seg>` tokens stay: they are what the model says."""
        return self.tokenizer.decode(
            token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )

    def _length_limit(self, max_length: int | None, num_pictures: int) -> int | None:
        """Tokens that a row may have, None for any number; ValueError if its image tokens alone take them all."""
        limit, name = max_length, "max_length"
        if max_length is None:
            limit, name = self.tokenizer.model_max_length, "the tokenizer's model_max_length"
            if limit >= 10**9:  # tokenizers without a limit say so by a huge number
                return None
        elif isinstance(max_length, bool) or not isinstance(max_length, int):
            raise ValueError(f"max_length is {max_length!r}, expected a whole number of tokens")
        num_image_tokens = self.image_seq_length * num_pictures
        if limit <= num_image_tokens + 2:
            raise ValueError(
                f"{name} is {limit}: the {num_image_tokens} image tokens of {num_pictures} picture(s), BOS and the "
                f"newline alone take {num_image_tokens + 2}; leave it out or make it larger"
            )
        return limit

    def _check_lengths(self, rows: list[tuple[list[int], list[int]]], limit: int, truncation: bool, asked: bool):
        """Say so when rows are too long: an error without truncation, a warning if nobody asked for this limit."""
        lengths = [len(prefix) + len(suffix) for prefix, suffix in rows]
        longest, too_long = max(lengths), sum(length > limit for length in lengths)
        if not too_long or (truncation and asked):
            return
        if not truncation:
            raise ValueError(
                f"the prompt makes {longest} tokens with its image tokens, at most {limit} are allowed: shorten it, "
                "raise max_length or allow truncation"
            )
        warnings.warn(
            f"{too_long} of {len(rows)} prompts are cut: with the image tokens they make up to {longest} tokens, and "
            f"the tokenizer's model_max_length is {limit}. Shorten them, or raise max_length",
            stacklevel=3,
        )

    def _cut(self, prefix: list[int], suffix: list[int], limit: int, num_pictures: int) -> tuple[list[int], list[int]]:
        """A row of at most `limit` tokens. The newline that ends the prompt and the EOS that ends the answer stay."""
        excess = max(len(prefix) + len(suffix) - limit, 0)
        from_prompt = min(excess, len(prefix) - self.image_seq_length * num_pictures - 2)
        prefix = prefix[: len(prefix) - 1 - from_prompt] + prefix[-1:]
        from_suffix = excess - from_prompt
        return prefix, suffix[: max(len(suffix) - 1 - from_suffix, 0)] + suffix[-1:] if from_suffix else suffix

    def _padded_length(self, rows: list[tuple[list[int], list[int]]], padding: str | bool, limit: int | None) -> int:
        """To how many tokens the rows are padded at least."""
        lengths = {len(prefix) + len(suffix) for prefix, suffix in rows}
        if padding == "max_length":
            if limit is not None and limit > LONGEST_PADDING:
                raise ValueError(
                    f"max_length is {limit} and padding 'max_length', expected at most {LONGEST_PADDING} tokens"
                )
            return limit or 0
        if padding is False or padding == "do_not_pad":
            if len(lengths) > 1:
                raise ValueError(f"rows of {sorted(lengths)} tokens do not make a tensor: use padding='longest'")
        elif padding is not True and padding != "longest":
            raise ValueError(f"padding is {padding!r}, expected 'longest', 'max_length' or False")
        return 0


def _as_rows(text, images, suffix) -> tuple[list[str], list[list], list[str] | None]:
    """Single values to lists of one: a prompt, a list of pictures and (unless there are none) a suffix for each row."""
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
        return list(prompts), pictures, None
    if not isinstance(suffixes, (list, tuple)) or not all(isinstance(answer, str) for answer in suffixes):
        raise TypeError(f"suffix is {_kind(suffix)}, expected a string or a list of strings")
    return list(prompts), pictures, list(suffixes)


def _kind(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"a list with {', '.join(sorted({type(item).__name__ for item in value})) or 'nothing in it'}"
    return f"a {type(value).__name__}"
