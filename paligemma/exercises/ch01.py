"""Chapter 01: from a picture to numbers."""

import numpy as np
from PIL import Image, ImageOps

from ..processing_paligemma import to_rgb
from .tasks import Case, Mistake, Task, faults_left, larger
from .watching import picture, swap_task


def pixels(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """A smooth colourful picture as an array uint8 [height, width, channels]."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 4), dtype=np.uint8), "RGBA")
    large = np.array(small.resize((width, height), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(large[:, :, :channels])


# --- 01.1 --------------------------------------------------------------------------------------------------------


def rescale(image, scale):
    return (image.astype(np.float64) * scale).astype(np.float32)


def rescale_cases(seed):
    k = larger(seed)
    yield Case((pixels(seed, 4 + k, 6), 1 / 255), sizes={"height": 4 + k, "width": 6, "C": 3})
    yield Case((pixels(seed, 5, 7, 1)[:, :, 0], 1 / 255), sizes={"height": 5, "width": 7}, note="a grey picture")
    yield Case(
        (pixels(seed, 4 + k, 6) // 4, 1 / 255), sizes={"height": 4 + k, "width": 6, "C": 3}, note="a dark picture"
    )
    yield Case((pixels(seed, 4 + k, 6), 2.0), sizes={"height": 4 + k, "width": 6, "C": 3}, note="scale = 2")


def show_range(thing):
    image = np.array([[0, 51, 128, 255]], dtype=np.uint8)
    values = [round(float(value), 3) for value in thing(image, 1 / 255)[0]]
    print(f"  {image[0].tolist()} -> {values}")


RESCALE = Task(
    id="01.1",
    title="rescale",
    points=1,
    minutes=4,
    level="easy",
    reference=rescale,
    cases=rescale_cases,
    gradients=False,
    see='chapter 01, "Rescale and normalize"; the hints of this task',
    reward=show_range,
    mistakes=[
        Mistake(
            "computed in uint8",
            "your numbers are those you get when the product is taken in 8 bits: it starts afresh after 255",
            lambda image, scale: (image * np.uint8(scale)).astype(np.float32),
        ),
        Mistake(
            "rounded to whole numbers",
            "the fraction is cut off: only whole numbers are left",
            lambda image, scale: np.floor(image * scale).astype(np.float32),
        ),
        Mistake(
            "divided by the scale",
            "your numbers are divided by the scale instead of multiplied",
            lambda image, scale: (image / scale).astype(np.float32),
        ),
        Mistake(
            "scale not used",
            "255 is written into your function: the scale that is passed says what to multiply by",
            lambda image, scale: (image / 255).astype(np.float32),
        ),
        Mistake(
            "float64",
            "the numbers are right, and twice as long as the model's: numpy computes in float64 unless told otherwise",
            lambda image, scale: image * np.float64(scale),
        ),
        Mistake(
            "stretched to the full range",
            "your numbers run from 0 to 1 for every picture: a dark picture must remain dark",
            lambda image, scale: ((image - image.min()) / (image.max() - image.min())).astype(np.float32),
        ),
    ],
)

# --- 01.2 --------------------------------------------------------------------------------------------------------


def normalize(image, mean, std):
    return ((image - np.array(mean)) / np.array(std)).astype(image.dtype)


def normalize_cases(seed):
    k = larger(seed)
    image = rescale(pixels(seed, 4, 6 + k), 1 / 255)
    sizes = {"height": 4, "width": 6 + k, "C": 3}
    yield Case((image, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), sizes=sizes, note="mean and std 0.5")
    yield Case((image, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)), sizes=sizes, note="a mean and std for each channel")
    yield Case((image, [0.1, 0.5, 0.9], [0.2, 0.4, 0.8]), sizes=sizes, note="lists instead of tuples")


def as32(function):
    return lambda image, mean, std: function(image, np.array(mean), np.array(std)).astype(np.float32)


def show_normalize(thing):
    image = np.array([[[0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [1.0, 1.0, 1.0]]], dtype=np.float32)
    result = thing(image, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    print(f"  black {result[0, 0].tolist()}, grey {result[0, 1].tolist()}, white {result[0, 2].tolist()}")


NORMALIZE = Task(
    id="01.2",
    title="normalize",
    points=1,
    minutes=4,
    level="easy",
    reference=normalize,
    cases=normalize_cases,
    gradients=False,
    see='chapter 01, "Rescale and normalize"; the hints of this task',
    reward=show_normalize,
    mistakes=[
        Mistake("divided before subtracting", "your numbers are those you get when dividing first and subtracting the "
                "mean after: brackets", as32(lambda image, mean, std: image / std - mean)),
        Mistake("bracket missing", "your numbers are those of image - mean / std: division binds more tightly",
                as32(lambda image, mean, std: image - mean / std)),
        Mistake("multiplied by std", "your numbers are multiplied by std instead of divided",
                as32(lambda image, mean, std: (image - mean) * std)),
        Mistake("variance instead of std", "your numbers are divided by the square of std",
                as32(lambda image, mean, std: (image - mean) / std**2)),
        Mistake("root of std", "your numbers are divided by the root of std: std is the root already",
                as32(lambda image, mean, std: (image - mean) / std**0.5)),
        Mistake("one number for all channels", "the first channel's mean and std are used for all three",
                as32(lambda image, mean, std: (image - mean[0]) / std[0])),
        Mistake("mean and std swapped", "your numbers are those you get with mean and std exchanged",
                as32(lambda image, mean, std: (image - std) / mean)),
        Mistake("mean added", "the mean is added instead of subtracted",
                as32(lambda image, mean, std: (image + mean) / std)),
        Mistake("mean of the picture", "the picture's own mean and std are used: then a dark picture looks like a "
                "bright one", as32(lambda image, mean, std: (image - image.mean((0, 1))) / image.std((0, 1)))),
        Mistake("fixed to 0.5", "0.5 is written into your function: mean and std are arguments",
                as32(lambda image, mean, std: (image - 0.5) / 0.5)),
        Mistake("float64", "the numbers are right, and twice as long as what came in",
                lambda image, mean, std: (image.astype(np.float64) - np.array(mean)) / np.array(std)),
    ],
)  # fmt: skip

# --- 01.3 --------------------------------------------------------------------------------------------------------


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """As a camera writes it: the pixels of the sensor, and a note on how to turn them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = image.copy()
    image.info["exif"] = exif.tobytes()
    image._exif = exif
    return image


def rgb_cases(seed):
    k = larger(seed)
    rgb, grey = Image.fromarray(pixels(seed, 5, 7 + k)), Image.fromarray(pixels(seed, 5, 7 + k, 1)[:, :, 0])
    rgba = Image.fromarray(pixels(seed, 5, 7 + k, 4))
    alpha = np.array(rgba)
    alpha[:, :4, 3] = 0  # the left half is invisible
    yield Case((rgb,), note="an ordinary picture")
    yield Case((grey,), note="a grey picture")
    yield Case((Image.fromarray(alpha),), note="its left half transparent", tolerance=0.02)
    yield Case((rgb.quantize(16),), note="a palette of 16 colours")
    yield Case((turned(rgb, 6),), note="a camera held upright: EXIF orientation 6")
    yield Case((turned(rgb, 3),), note="a camera upside down: EXIF orientation 3")
    yield Case((turned(Image.fromarray(alpha), 6),), note="transparent, and EXIF orientation 6", tolerance=0.02)


def on(colour):
    def function(image):
        image = ImageOps.exif_transpose(image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")

    return function


def note_lost(image):
    """The white page is laid under first, and has no note on how to turn the picture."""
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return ImageOps.exif_transpose(image).convert("RGB")


def show_modes(thing):
    from .. import ASSETS
    from ..visualize import show_images  # here: matplotlib is not needed for anything else

    names = ("camera_grey.png", "coffee_rgba.png", "cat_exif.jpg")
    images = [Image.open(ASSETS / name) for name in names]
    results = [thing(image) for image in images]
    for name, *pair in zip(names, images, results):
        print(f"  {name}: {' -> '.join(f'{image.size[0]} x {image.size[1]} {image.mode}' for image in pair)}")
    show_images(results, titles=list(names))


RGB = Task(
    id="01.3",
    title="any picture to RGB",
    points=3,
    minutes=10,
    level="medium",
    reference=to_rgb,
    cases=rgb_cases,
    gradients=False,
    tolerance=0.02,  # of 255: one step, where transparency is rounded
    see='chapter 01, "Any file at all"; the hints of this task',
    reward=show_modes,
    mistakes=[
        Mistake(
            "EXIF forgotten",
            "the picture lies on its side or on its head: cameras store the sensor's pixels with a note on how to turn "
            "them, and viewers obey it before you ever see the file",
            lambda image: Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert(
                "RGB"
            ),
        ),
        Mistake(
            "EXIF lost",
            "a picture that is transparent and turned as well lies on its side: laying it on a white page makes a new "
            "picture, which has no note on how to turn it",
            note_lost,
        ),
        Mistake(
            "transparency dropped",
            "where the picture is transparent, colours appear that nobody would see",
            lambda image: ImageOps.exif_transpose(image).convert("RGB"),
        ),
        Mistake(
            "transparency dropped",
            "where the picture is transparent, colours appear that nobody would see (and turned pictures lie on their "
            "side)",
            lambda image: image.convert("RGB"),
        ),
        Mistake("black behind it", "what is transparent has become black: on a page it would be white", on("black")),
        Mistake("grey behind it", "what is transparent has become grey: on a page it would be white", on("grey")),
        Mistake("not converted", "the picture comes out in the mode it came in", lambda image: image),
        Mistake("not converted", "the picture comes out in the mode it came in", ImageOps.exif_transpose),
        Mistake(
            "still transparent",
            "the picture has four channels at the end: the model's first layer takes three",
            lambda image: on("white")(image).convert("RGBA"),
        ),
        Mistake(
            "grey at the end", "all colours are gone", lambda image: on("white")(image).convert("L").convert("RGB")
        ),
    ],
)

# --- 01.4 --------------------------------------------------------------------------------------------------------


def process_images(images, size, resample=Image.Resampling.BICUBIC, factor=1 / 255, mean=0.5, std=0.5,
                   axes=(2, 0, 1), rgb=to_rgb, turn=False, bgr=False):  # fmt: skip
    results = []
    for image in images:
        image = rgb(image).resize(size if turn else size[::-1], resample)
        array = (np.array(image, dtype=np.float64) * factor - mean) / std
        array = array[:, :, ::-1] if bgr else array
        results.append(array.transpose(axes).astype(np.float32))
    return results


def but(**changes):
    """`process_images` with something done differently."""
    return lambda images, size: process_images(images, size, **changes)


def image_cases(seed):
    k = larger(seed)
    grey = Image.fromarray(pixels(seed + 9, 9, 8, 1)[:, :, 0])
    wide, tall = Image.fromarray(pixels(seed, 11, 17 + k)), Image.fromarray(pixels(seed + 5, 19, 6))
    sizes = {"C": 3, "height": 8, "width": 12 + k}
    yield Case(([wide, tall], (8, 12 + k)), sizes=sizes, note=f"size = (height 8, width {12 + k})", tolerance=1e-4)
    yield Case(([tall], (8, 8)), sizes={"C": 3, "side": 8}, note="size = (8, 8)", tolerance=1e-4)
    yield Case(([grey, wide], (8, 12 + k)), sizes=sizes, note="the first one grey", tolerance=1e-4)


def centre_crop(images, size):
    images = [ImageOps.fit(to_rgb(image), size[::-1], Image.Resampling.BICUBIC) for image in images]
    return process_images(images, size)


def letterbox(images, size):
    images = [ImageOps.pad(to_rgb(image), size[::-1], Image.Resampling.BICUBIC) for image in images]
    return process_images(images, size)


def reshaped(images, size):
    return [array.transpose(1, 2, 0).reshape(array.shape) for array in process_images(images, size)]


def show_processed(thing):
    from ..visualize import show_images

    image = picture(0)
    array = thing([image], (64, 64))[0]
    print(f"  {image.size[0]} x {image.size[1]} {image.mode} -> {list(array.shape)} {array.dtype}, "
          f"from {array.min():.2f} to {array.max():.2f}")  # fmt: skip
    channels = [channel / 2 + 0.5 for channel in array]
    show_images([image, *channels], titles=["picture", "red", "green", "blue"])


WHOLE = Task(
    id="01.4",
    title="process_images",
    points=3,
    minutes=12,
    level="medium",
    reference=lambda images, size: process_images(images, size),
    cases=image_cases,
    gradients=False,
    see='chapter 01, "All together"; the hints of this task',
    reward=show_processed,
    mistakes=[
        Mistake("channels last", "the channels are the last axis: convolutions in torch want them first",
                but(axes=(0, 1, 2))),
        Mistake("height and width swapped", "PIL's resize takes (width, height), `size` is (height, width)",
                but(turn=True)),
        Mistake("height and width swapped", "rows and columns are exchanged when the channels move to the front",
                but(axes=(2, 1, 0))),
        Mistake("other interpolation", "your numbers are those of bilinear interpolation",
                but(resample=Image.Resampling.BILINEAR)),
        Mistake("other interpolation", "your numbers are those of the nearest pixel: edges become steps",
                but(resample=Image.Resampling.NEAREST)),
        Mistake("other interpolation", "your numbers are those of Lanczos interpolation",
                but(resample=Image.Resampling.LANCZOS)),
        Mistake("not normalised", "your numbers run from 0 to 1: the last step, to -1 to 1, is missing",
                but(mean=0.0, std=1.0)),
        Mistake("not rescaled", "your numbers are normalised and never divided by 255", but(factor=1.0)),
        Mistake("rescaled twice", "your numbers are divided by 255 twice: everything is close to -1",
                but(factor=1 / 255**2)),
        Mistake("mean not subtracted", "your numbers run from 0 to 2", but(mean=0.0)),
        Mistake("blue first", "red and blue are exchanged", but(bgr=True)),
        Mistake("reshaped instead of transposed", "your numbers are right and lie in the wrong places: `reshape` cuts "
                "them differently and moves none", reshaped),
        Mistake("cropped", "your pictures are cut to the proportions: here they are stretched, as in training",
                centre_crop),
        Mistake("padded", "your pictures have bars beside them: here they are stretched, as in training", letterbox),
        Mistake("one array", "one array comes back for all pictures: a list with an array for each is asked for",
                lambda images, size: np.stack(process_images(images, size))),
    ],
)  # fmt: skip

# --- 01.5 --------------------------------------------------------------------------------------------------------


def to_picture(array, axes=(1, 2, 0), clip=True, rounding=True):
    values = (array.transpose(axes) * 0.5 + 0.5) * 255
    values = np.clip(values, 0, 255) if clip else values
    values = np.rint(values) if rounding else values
    return values.astype(np.int64).astype(np.uint8)


FAULTS = {  # what can be observed of each, and its name
    "axes": ("rows and columns are exchanged", "left: the axes"),
    "clip": ("numbers just outside of -1 to 1 turn from white to black, or from black to white", "left: the ends"),
    "rounding": ("most numbers are one too small: there and back again, a picture gets darker", "left: the fraction"),
}


def back_with(faults):
    """The listing with these faults."""
    changes = {"axes": (2, 1, 0), "clip": False, "rounding": False}
    return lambda array: to_picture(array, **{fault: changes[fault] for fault in faults})


def back_cases(seed):
    k = larger(seed)
    sizes = {"C": 3, "height": 4 + k, "width": 6}
    array = rescale(pixels(seed, 4 + k, 6), 1 / 255) * 2 - 1
    yield Case((np.ascontiguousarray(array.transpose(2, 0, 1)),), sizes=sizes)
    yield Case((np.ascontiguousarray(1.1 * array.transpose(2, 0, 1)),), sizes=sizes, note="from -1.1 to 1.1")


def show_back(thing):
    from ..visualize import show_images

    images = [picture(seed) for seed in (0, 1)]
    arrays = process_images(images, (64, 64))
    print("  to numbers and back, and back with every value made larger:")
    show_images([thing(arrays[0]), thing(arrays[1]), thing(arrays[1] * 1.5)], titles=["back", "back", "times 1.5"])


BACK = Task(
    id="01.5",
    title="find the three faults on the way back",
    points=3,
    minutes=10,
    level="medium",
    reference=to_picture,
    cases=back_cases,
    gradients=False,
    see="the hints of this task: which picture would show each fault?",
    reward=show_back,
    mistakes=[
        *faults_left(FAULTS, back_with),
        Mistake("channels first", "the channels are still the first axis: pictures have them last",
                lambda array: to_picture(array).transpose(2, 0, 1)),
        Mistake("not shifted", "the middle is at 0 and not at 127.5: the mean has to come back",
                lambda array: np.clip(np.rint(array.transpose(1, 2, 0) * 255), 0, 255).astype(np.uint8)),
    ],
)  # fmt: skip

TASKS = [RESCALE, NORMALIZE, RGB, WHOLE, BACK, swap_task("01.6", ("process_images",), see="the hints of this task")]
