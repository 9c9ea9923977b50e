"""Pictures to numbers, as learners write it."""

import numpy as np
import torch
from PIL import Image, ImageOps

from . import right, speaks_through, swap_bank, wrong

# --- 01.1 --------------------------------------------------------------------------------------------------------


def flat(*colour):
    """A picture of one colour."""
    return np.full((3, 4, 3), colour, dtype=np.uint8)


def three_of_five():
    image = np.zeros((1, 5, 3), dtype=np.uint8)
    image[0, :3] = 255
    return image


ONES = (1.0, 1.0, 1.0)
GOOD = {
    "stretched": (flat(100, 100, 100), (100 / 255,) * 3, ONES),
    "one_mean": (flat(255, 0, 51), (1, 0, 0.2), ONES),
    "deviation_first": (flat(255, 255, 255), ONES, (2, 3, 4)),
    "own_mean": (flat(255, 255, 255), [0.4, 0.4, 0.4], ONES),
    "in_bytes": (three_of_five(), (0.6, 0.6, 0.6), ONES),  # 0.6 is its own mean, and 153 of 255
}


@right("01.1")
def _():
    return dict(GOOD)


@right("01.1")
def _():
    numpy_style = {name: (image, np.array(mean), np.array(std)) for name, (image, mean, std) in GOOD.items()}
    return numpy_style | {"own_mean": (flat(255, 255, 255), (0.0, 0.0, 0.0), ONES)}


def instead(**changes):
    return lambda: GOOD | changes


PHOTOGRAPH = np.random.default_rng(0).integers(0, 250, (6, 7, 3), dtype=np.uint8)
wrong("01.1", "exposes others")(lambda: dict.fromkeys(GOOD, (PHOTOGRAPH, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))))
wrong("01.1", "not exposed")(lambda: dict.fromkeys(GOOD, (flat(255, 255, 255), ONES, ONES)))
wrong("01.1", "not exposed")(instead(stretched=(flat(255, 255, 255), ONES, ONES)))
wrong("01.1", "exposes others")(instead(stretched=(flat(100, 100, 100), (0.5,) * 3, ONES)))
wrong("01.1", "exposes others")(instead(one_mean=(flat(255, 255, 255), (0.3, 0.4, 0.5), ONES)))
wrong("01.1", "not exposed")(instead(deviation_first=(flat(255, 255, 255), (0, 0, 0), (2, 2, 2))))
wrong("01.1", "exposes others")(instead(in_bytes=(flat(10, 10, 10), (0.5,) * 3, ONES)))
wrong("01.1", "not an input")(instead(own_mean=(flat(255, 255, 255) / 255, (0, 0, 0), ONES)))
wrong("01.1", "not an input")(instead(own_mean=(flat(255, 255, 255), 0.0, 1.0)))
wrong("01.1", "not an input")(instead(own_mean=flat(255, 255, 255)))
wrong("01.1", "structure")(lambda: {"stretched": GOOD["stretched"]})
wrong("01.1", "type")(lambda: list(GOOD.values()))
wrong("01.1", "type")(lambda: print(GOOD))

# --- 01.2 --------------------------------------------------------------------------------------------------------

PANELS = {
    "F": "rows and columns exchanged",
    "E": "nearest pixel",
    "D": "red and blue exchanged",
    "C": "computed in 8 bits",
    "B": "reshaped instead of transposed",
    "A": "mean not subtracted",
}


def exchanged(one, other):
    return lambda: PANELS | {one: PANELS[other], other: PANELS[one]}


right("01.2")(lambda: PANELS)
right("01.2")(lambda: dict(sorted(PANELS.items())))
wrong("01.2", "taken for another")(exchanged("A", "C"))
wrong("01.2", "taken for another")(exchanged("B", "F"))
wrong("01.2", "taken for another")(exchanged("C", "D"))
wrong("01.2", "not matched")(exchanged("A", "F"))
wrong("01.2", "a name twice")(lambda: PANELS | {"A": "nearest pixel"})
wrong("01.2", "unknown name")(lambda: PANELS | {"A": "overflow"})
wrong("01.2", "structure")(lambda: {"A": "nearest pixel"})
wrong("01.2", "type")(lambda: list(PANELS.values()))

# --- 01.3 --------------------------------------------------------------------------------------------------------


@right("01.3")
def _(image):
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGB", image.size, (255, 255, 255))
        background.paste(image, mask=image.split()[3])
        return background
    return image.convert("RGB")


@right("01.3")
def _(image):
    rgba = np.asarray(ImageOps.exif_transpose(image).convert("RGBA")).astype(np.float64)
    alpha = rgba[:, :, 3:] / 255
    mixed = rgba[:, :, :3] * alpha + 255 * (1 - alpha)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


@wrong("01.3", "transparency dropped")
def _(image):
    return image.convert("RGB")


@wrong("01.3", "transparency dropped")
def _(image):
    image = ImageOps.exif_transpose(image)
    return image.convert("RGB") if image.mode != "RGB" else image


@wrong("01.3", "EXIF forgotten")
def _(image):
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


@wrong("01.3", "black behind it")
def _(image):
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGBA":
        black = Image.new("RGB", image.size)
        black.paste(image, mask=image.getchannel("A"))
        return black
    return image.convert("RGB")


@wrong("01.3", "not converted")
def _(image):
    image.convert("RGB")
    return image


@wrong("01.3", "still transparent")
def _(image):
    image = ImageOps.exif_transpose(image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


@wrong("01.3", "type")
def _(image):
    return np.array(ImageOps.exif_transpose(image).convert("RGB"))


# --- 01.4 --------------------------------------------------------------------------------------------------------


def process(images, size, resample=Image.BICUBIC, scale=255.0, mean=0.5, std=0.5, order=(2, 0, 1)):
    height, width = size
    out = []
    for image in images:
        image = image.convert("RGB").resize((width, height), resample=resample)
        array = np.array(image).astype(np.float32) / scale
        array = (array - mean) / std
        out.append(array.transpose(order).astype(np.float32))
    return out


right("01.4")(lambda images, size: process(images, size))


@right("01.4")
def _(images, size):
    result = []
    for image in images:
        x = torch.from_numpy(np.array(image.convert("RGB").resize((size[1], size[0]), Image.BICUBIC)))
        result.append((x.permute(2, 0, 1).float() / 127.5 - 1).numpy())
    return result


wrong("01.4", "channels last")(lambda images, size: process(images, size, order=(0, 1, 2)))
wrong("01.4", "height and width swapped")(lambda images, size: process(images, size[::-1]))
wrong("01.4", "height and width swapped")(lambda images, size: process(images, size, order=(2, 1, 0)))
wrong("01.4", "other interpolation")(lambda images, size: process(images, size, resample=Image.BILINEAR))
wrong("01.4", "other interpolation")(lambda images, size: process(images, size, resample=Image.NEAREST))
wrong("01.4", "not normalised")(lambda images, size: process(images, size, mean=0, std=1))
wrong("01.4", "not rescaled")(lambda images, size: process(images, size, scale=1.0))
wrong("01.4", "rescaled twice")(lambda images, size: process(images, size, scale=255.0**2))
wrong("01.4", "mean not subtracted")(lambda images, size: process(images, size, mean=0))
wrong("01.4", "one array")(lambda images, size: np.array(process(images, size)))
wrong("01.4", "blue first")(lambda images, size: [array[::-1].copy() for array in process(images, size)])
wrong("01.4", "cropped")(
    lambda images, size: process([ImageOps.fit(im.convert("RGB"), (size[1], size[0])) for im in images], size)
)
wrong("01.4", "reshaped instead of transposed")(
    lambda images, size: [array.reshape(3, *size) for array in process(images, size, order=(0, 1, 2))]
)


@wrong("01.4", "not converted")
def _(images, size):
    out = []
    for image in images:  # a grey picture has no third axis
        array = np.array(image.resize((size[1], size[0]), Image.BICUBIC)) / 255.0
        out.append(((array - 0.5) / 0.5).transpose(2, 0, 1).astype(np.float32))
    return out


# --- 01.5 --------------------------------------------------------------------------------------------------------


@right("01.5")
def _(array):
    x = np.moveaxis(array, 0, -1)
    x = (x + 1) * 127.5
    return x.round().clip(0, 255).astype(np.uint8)


@right("01.5")
def _(array):
    x = torch.from_numpy(array).permute(1, 2, 0)
    return ((x * 0.5 + 0.5) * 255).round().clamp(0, 255).to(torch.uint8).numpy()


@wrong("01.5", "3 left")
def _(array):
    x = array.transpose(2, 1, 0)
    x = (x * 0.5 + 0.5) * 255
    return x.astype(np.int32).astype(np.uint8)


@wrong("01.5", "2 left")
def _(array):
    x = array.transpose(1, 2, 0)
    x = (x * 0.5 + 0.5) * 255
    return x.astype(np.int32).astype(np.uint8)


@wrong("01.5", "left: the ends")
def _(array):
    x = array.transpose(1, 2, 0)
    return np.round((x * 0.5 + 0.5) * 255).astype(np.int32).astype(np.uint8)


@wrong("01.5", "left: the axes")
def _(array):
    x = array.T
    return np.round((x * 0.5 + 0.5) * 255).clip(0, 255).astype(np.uint8)


@wrong("01.5", "left: the fraction")
def _(array):
    x = array.transpose(1, 2, 0)
    return np.clip((x * 0.5 + 0.5) * 255, 0, 255).astype(np.uint8)


@wrong("01.5", "channels first")
def _(array):
    return np.round((array * 0.5 + 0.5) * 255).clip(0, 255).astype(np.uint8)


@wrong("01.5", "not shifted")
def _(array):
    return np.round(array.transpose(1, 2, 0) * 255).clip(0, 255).astype(np.uint8)


# --- 01.6 --------------------------------------------------------------------------------------------------------


def mine(images, size):
    return process(images, size)


def red_for_blue(images, size):
    return process(images, size, order=(2, 1, 0))


def blocky(images, size):
    return process(images, size, resample=Image.NEAREST, scale=250.0)


swap_bank("01.6", {"process_images": mine}, broken={"process_images": red_for_blue})
wrong("01.6", "nearly right")(speaks_through({"process_images": blocky}))


# --- Wrong ones that once passed ---------------------------------------------------------------------------------


@wrong("01.3", "EXIF lost")
def _(image):
    if image.mode in ("RGBA", "LA"):
        page = Image.new("RGB", image.size, (255, 255, 255))
        page.paste(image, mask=image.getchannel("A"))
        image = page
    return ImageOps.exif_transpose(image).convert("RGB")
