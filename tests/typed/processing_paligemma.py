# ruff: noqa: UP006, UP007, UP035, UP045, RUF013, RUF005, B905, I001
"""The processor, in the form in which viewers of the video have it: material for tests/test_mine.py."""

from typing import Iterable, List, Optional, Tuple, Union

import numpy as np
import torch
from PIL import Image

MEAN = [0.5, 0.5, 0.5]
STD = [0.5, 0.5, 0.5]


def add_image_tokens_to_prompt(prefix_prompt, bos_token, image_seq_len, image_token):
    return f"{image_token * image_seq_len}{bos_token}{prefix_prompt}\n"


def resize(
    image: Image,
    size: Tuple[int, int],
    resample: Image.Resampling = None,
    reducing_gap: Optional[int] = None,
) -> np.ndarray:
    height, width = size
    return image.resize((width, height), resample=resample, reducing_gap=reducing_gap)


def rescale(image: np.ndarray, scale: float, dtype: np.dtype = np.float32) -> np.ndarray:
    scaled = image * scale
    return scaled.astype(dtype)


def normalize(image: np.ndarray, mean: Union[float, Iterable[float]], std: Union[float, Iterable[float]]) -> np.ndarray:
    mean = np.array(mean, dtype=image.dtype)
    std = np.array(std, dtype=image.dtype)
    return (image - mean) / std


def process_images(
    images: List[Image.Image],
    size: Tuple[int, int] = None,
    resample: Image.Resampling = None,
    rescale_factor: float = None,
    image_mean: Optional[Union[float, List[float]]] = None,
    image_std: Optional[Union[float, List[float]]] = None,
) -> List[np.ndarray]:
    height, width = size
    pictures = [resize(image=image, size=(height, width), resample=resample) for image in images]
    arrays = [np.array(picture) for picture in pictures]
    arrays = [rescale(array, scale=rescale_factor) for array in arrays]
    arrays = [normalize(array, mean=image_mean, std=image_std) for array in arrays]
    return [array.transpose(2, 0, 1) for array in arrays]


class PaliGemmaProcessor:
    IMAGE_TOKEN = "<image>"

    def __init__(self, tokenizer, num_image_tokens: int, image_size: int):
        super().__init__()
        self.image_seq_length = num_image_tokens
        self.image_size = image_size
        tokenizer.add_special_tokens({"additional_special_tokens": [self.IMAGE_TOKEN]})
        places = [f"<loc{i:04d}>" for i in range(1024)]
        outlines = [f"<seg{i:03d}>" for i in range(128)]
        tokenizer.add_tokens(places + outlines)
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.IMAGE_TOKEN)
        tokenizer.add_bos_token = False
        tokenizer.add_eos_token = False
        self.tokenizer = tokenizer

    def __call__(
        self, text: List[str], images: List[Image.Image], padding: str = "longest", truncation: bool = True
    ) -> dict:
        assert len(images) == 1 and len(text) == 1, f"{len(images)} pictures came with {len(text)} prompts"
        arrays = process_images(
            images,
            size=(self.image_size, self.image_size),
            resample=Image.Resampling.BICUBIC,
            rescale_factor=1 / 255.0,
            image_mean=MEAN,
            image_std=STD,
        )
        pixel_values = torch.tensor(np.stack(arrays, axis=0))
        strings = [
            add_image_tokens_to_prompt(
                prefix_prompt=prompt,
                bos_token=self.tokenizer.bos_token,
                image_seq_len=self.image_seq_length,
                image_token=self.IMAGE_TOKEN,
            )
            for prompt in text
        ]
        inputs = self.tokenizer(strings, return_tensors="pt", padding=padding, truncation=truncation)
        return {"pixel_values": pixel_values, **inputs}
