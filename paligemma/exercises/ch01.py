"""Chapter 01: from a picture to numbers."""

import dataclasses

import numpy as np
from PIL import Image, ImageOps

from .. import ASSETS
from ..processing_paligemma import process_images as packages_process_images
from ..processing_paligemma import to_rgb
from .exposing import exposing_task, matching_task
from .tasks import Case, Mistake, Prediction, Task, faults_left, larger
from .watching import picture, swap_task, taken


def pixels(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """A smooth colourful picture as an array uint8 [height, width, channels]."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 4), dtype=np.uint8), "RGBA")
    large = np.array(small.resize((width, height), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(large[:, :, :channels])


# --- 01.1 --------------------------------------------------------------------------------------------------------


def rescale(image, scale):
    return (image.astype(np.float64) * scale).astype(np.float32)


def to_numbers(image, mean, std):
    """A picture uint8 [height, width, 3] -> float32: from 0 to 1, minus the mean of each channel, by its deviation."""
    values = image.astype(np.float32) / 255
    return (values - np.array(mean, dtype=np.float32)) / np.array(std, dtype=np.float32)


def stretched(image, mean, std):
    values = image.astype(np.float32) / max(image.max(), 1)
    return (values - np.array(mean, dtype=np.float32)) / np.array(std, dtype=np.float32)


def one_mean(image, mean, std):
    values = image.astype(np.float32) / 255
    return (values - np.float32(mean[0])) / np.array(std, dtype=np.float32)


def deviation_first(image, mean, std):
    values = image.astype(np.float32) / 255
    return values / np.array(std, dtype=np.float32) - np.array(mean, dtype=np.float32)


def own_mean(image, mean, std):
    values = image.astype(np.float32) / 255
    return (values - values.mean(axis=(0, 1))) / np.array(std, dtype=np.float32)


def in_bytes(image, mean, std):
    shifted = image - np.round(255 * np.array(mean)).astype(np.uint8)  # uint8 minus uint8
    return (shifted.astype(np.float32) / 255) / np.array(std, dtype=np.float32)


WRONG_VERSIONS = {version.__name__: version for version in (stretched, one_mean, deviation_first, own_mean, in_bytes)}


def exposing_pictures():
    white = np.full((2, 2, 3), 255, dtype=np.uint8)
    grey = np.full((2, 2, 3), 51, dtype=np.uint8)
    orange = np.tile(np.array([255, 51, 0], dtype=np.uint8), (2, 2, 1))
    corner = np.zeros((2, 2, 3), dtype=np.uint8)
    corner[0, 0] = 255
    return {
        "stretched": (grey, (0.2, 0.2, 0.2), (1, 1, 1)),
        "one_mean": (orange, (1.0, 0.2, 0.0), (1, 1, 1)),
        "deviation_first": (white, (1, 1, 1), (0.5, 0.5, 0.5)),
        "own_mean": (white, (0, 0, 0), (1, 1, 1)),
        "in_bytes": (corner, (0.25, 0.25, 0.25), (1, 1, 1)),
    }


def not_a_picture(image, mean, std) -> str | None:
    """Why this is no input for `to_numbers`, or None."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        return "the picture is not an array of uint8"
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        return f"the picture's shape is {list(image.shape)}, expected [height, width, 3]"
    for name, values in (("mean", mean), ("std", std)):
        if np.shape(values) != (3,) or not np.isfinite(values).all():
            return f"{name} is {values!r}, expected three numbers"
    if min(mean) < 0 or max(mean) > 1:
        return f"mean is {mean!r}, expected numbers from 0 to 1"
    return None if min(std) > 0 else f"std is {std!r}, expected numbers above 0"


EXPOSE = exposing_task(
    id="01.1",
    title="five inputs that expose",
    points=3,
    minutes=12,
    level="medium",
    importance="core",
    right=to_numbers,
    wrong=WRONG_VERSIONS,
    reference=exposing_pictures,
    usable=not_a_picture,
    see='chapter 01, "Rescale and normalize"; the hints of this task',
    reward=lambda solution: print(
        "  each of the five is right on four of your five inputs: a test is worth what its input is"
    ),
)

# --- 01.2 --------------------------------------------------------------------------------------------------------

SPOILED = {
    "A": "mean not subtracted",
    "B": "reshaped instead of transposed",
    "C": "computed in 8 bits",
    "D": "red and blue exchanged",
    "E": "nearest pixel",
    "F": "rows and columns exchanged",
}


def spoiled(image: Image.Image, fault: str, side: int = 96) -> np.ndarray:
    """What a model would see with this fault on the way to it: uint8 [side, side, 3]."""
    resample = Image.Resampling.NEAREST if fault == "nearest pixel" else Image.Resampling.BICUBIC
    array = np.array(image.convert("RGB").resize((side, side), resample))  # [height, width, 3]
    if fault == "red and blue exchanged":
        return array[:, :, ::-1]
    if fault == "rows and columns exchanged":
        return array.transpose(1, 0, 2)
    if fault == "reshaped instead of transposed":  # channels first by `reshape`, and back as it should be
        return array.reshape(3, side, side).transpose(1, 2, 0)
    if fault == "computed in 8 bits":
        return array * np.uint8(2)  # begins afresh at 256
    if fault == "mean not subtracted":  # 0 to 2, shown as if it were -1 to 1
        return np.clip(array.astype(np.float32) + 127.5, 0, 255).astype(np.uint8)
    return array


def show_spoiled() -> None:
    """Draw one photograph six times, each with another fault in the way to the model: panels A to F."""
    from ..visualize import show_images

    with Image.open(ASSETS / "coffee.jpg") as photograph:
        for ax in show_images(
            [spoiled(photograph, fault) for fault in SPOILED.values()], titles=list(SPOILED), columns=3
        ):
            ax.set(xticks=[], yticks=[], xlabel="", ylabel="")


SPOILED_PICTURES = matching_task(
    id="01.2",
    title="six spoiled pictures",
    points=2,
    minutes=8,
    level="easy",
    importance="core",
    truth=SPOILED,
    confusions={
        frozenset({"mean not subtracted", "computed in 8 bits"}): "one of them makes everything brighter and stops at "
        "white; in the other, what should be brightest has become dark",
        frozenset({"reshaped instead of transposed", "rows and columns exchanged"}): "one of them is a picture that "
        "lies on its side; the other is woven of coloured dots, since its neighbours come from places far apart",
        frozenset({"red and blue exchanged", "computed in 8 bits"}): "with red and blue exchanged, what is white stays "
        "white, and no edge appears that was not there",
        frozenset({"nearest pixel", "reshaped instead of transposed"}): "taking the nearest pixel leaves everything "
        "where it is, and makes stairs of slanting edges",
    },
    see='chapter 01, "Channels first" and "Rescale and normalize"; the hints of this task',
    reward=lambda solution: print(
        "  none of the six changes the shape of a square picture: the model would take them all"
    ),
)

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


def all_or_nothing(opaque_from):
    """Pixels are opaque from this opacity on, and white below it."""

    def function(image):
        pixels = np.array(ImageOps.exif_transpose(image).convert("RGBA"))
        pixels[pixels[..., 3] < opaque_from] = 255
        return Image.fromarray(pixels[..., :3].copy())

    return function


def turned_in_its_frame(image):
    angle = {3: 180, 6: 270, 8: 90}.get(image.getexif().get(0x0112), 0)
    return on("white")(turned(image.rotate(angle), 1))


def grey_stays_grey(image):
    image = ImageOps.exif_transpose(image)
    return on("white")(image) if image.mode == "RGBA" else image


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
    importance="core",
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
        Mistake(
            "no page",
            "what is transparent has become black, and what is half transparent keeps its full colour: "
            "the page that you lay it on is transparent itself",
            on((0, 0, 0, 0)),
        ),
        Mistake(
            "page on top",
            "every picture is white: the page lies on the picture instead of under it",
            lambda image: Image.new("RGB", ImageOps.exif_transpose(image).size, "white"),
        ),
        Mistake(
            "all or nothing",
            "a pixel is either white or opaque: one of half opacity is to be half itself, half white",
            [all_or_nothing(1), all_or_nothing(128), all_or_nothing(255)],
        ),
        Mistake(
            "turned in its frame",
            "the picture is turned inside its old frame: a quarter turn exchanges width and "
            "height as well, and here corners are lost (`rotate` does that without expand=True)",
            turned_in_its_frame,
        ),
        Mistake(
            "not all converted",
            "pictures with transparency become RGB, those that are grey or have a palette do not",
            grey_stays_grey,
        ),
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


def in_proportion(images, size):
    """Each as large as fits into the size, with its own proportions."""
    results = []
    for image in map(to_rgb, images):
        image.thumbnail(size[::-1], Image.Resampling.BICUBIC)
        results += process_images([image], image.size[::-1])
    return results


def reshaped(images, size):
    return [array.transpose(1, 2, 0).reshape(array.shape) for array in process_images(images, size)]


def by_its_own(images, size):
    """Each picture by its own mean and deviation."""
    arrays = process_images(images, size)
    return [(array - array.mean()) / array.std() for array in arrays]


def in_eight_bits(images, size):
    """2 x - 255 while x is still uint8."""
    bytes_of = [np.rint(array * 127.5 + 127.5).astype(np.uint8) for array in process_images(images, size)]
    return [(array * np.uint8(2) - np.uint8(255)).astype(np.float32) / 255 for array in bytes_of]


def cut_to_whole(images, size):
    """0 to 1, and then whole numbers."""
    return [np.trunc(array * 0.5 + 0.5) * 2 - 1 for array in process_images(images, size)]


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
    importance="core",
    from_memory=True,
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
        Mistake("divided by 256", "your numbers are divided by 256: the largest of a byte is 255", but(factor=1 / 256)),
        Mistake("not divided by 0.5", "your numbers run from -0.5 to 0.5: the division by 0.5 is missing",
                but(std=1.0)),
        Mistake("brackets", "your numbers run from -1 to 0: without brackets x - 0.5 / 0.5 is x - 1",
                but(mean=1.0, std=1.0)),
        Mistake("other mean", "your mean and deviation are those of ImageNet: this model was trained with 0.5 and 0.5",
                but(mean=np.array([0.485, 0.456, 0.406]), std=np.array([0.229, 0.224, 0.225]))),
        Mistake("its own mean", "each picture is normalised by its own mean and deviation, so that its brightness is "
                "lost: 0.5 and 0.5 for all", by_its_own),
        Mistake("computed in 8 bits", "your numbers are computed while the picture is still uint8, which begins afresh "
                "at 256: make it float first", in_eight_bits),
        Mistake("cut to whole numbers", "the numbers from 0 to 1 are cut to whole ones: nearly all become 0",
                cut_to_whole),
        Mistake("square", "height and width are the same in yours: `size` has two numbers",
                [lambda images, size: process_images(images, (size[0], size[0])),
                 lambda images, size: process_images(images, (size[1], size[1]))]),
        Mistake("not converted", "pictures are not made RGB first: a grey one has no axis for its channels",
                but(rgb=lambda image: image)),
        Mistake("rescaled twice", "your numbers are divided by 255 twice: everything is close to -1",
                but(factor=1 / 255**2)),
        Mistake("mean not subtracted", "your numbers run from 0 to 2", but(mean=0.0)),
        Mistake("blue first", "red and blue are exchanged", but(bgr=True)),
        Mistake("reshaped instead of transposed", "your numbers are right and lie in the wrong places: `reshape` cuts "
                "them differently and moves none", reshaped),
        Mistake("cropped", "your pictures are cut to the proportions: here they are stretched, as in training",
                centre_crop),
        Mistake("in proportion", "your pictures keep their proportions, and so do not get the size that is asked for "
                "(`thumbnail` does that): here they are stretched, as in training", in_proportion),
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
    importance="deepen",
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
        Mistake("clipped too early", "the numbers are clipped to 0 and 1 while they still run from -1 to 1: the darker "
                "half of every picture becomes grey", lambda array: to_picture(np.clip(array, 0, 1))),
        Mistake("rounded too early", "the numbers are rounded while they run from 0 to 1: only 0 and 255 are left",
                lambda array: to_picture(2 * np.rint(np.clip(array, -1, 1) * 0.5 + 0.5) - 1)),
        Mistake("rounded up", "every number is rounded up instead of to the nearest",
                lambda array: np.clip(np.ceil((array.transpose(1, 2, 0) * 0.5 + 0.5) * 255), 0, 255).astype(np.uint8)),
        Mistake("times 256", "the numbers are multiplied by 256: the largest of a byte is 255",
                lambda array: np.clip(np.rint((array.transpose(1, 2, 0) * 0.5 + 0.5) * 256), 0, 255).astype(np.uint8)),
        Mistake("its own range", "each picture is stretched from its own smallest to its own largest number: -1 and 1 "
                "are to become 0 and 255 whatever the picture holds",
                lambda array: to_picture(2 * (array - array.min()) / (array.max() - array.min()) - 1)),
        Mistake("not shifted", "0.5 is not added: everything below the middle is black",
                lambda array: np.clip(np.rint(array.transpose(1, 2, 0) * 0.5 * 255), 0, 255).astype(np.uint8)),
        Mistake("reshaped instead of transposed", "`reshape` cuts the numbers differently and moves none: the channels "
                "have to be moved behind",
                lambda array: to_picture(array).transpose(2, 0, 1).reshape(*array.shape[1:], 3)),
        Mistake("channels first", "the channels are still the first axis: pictures have them last",
                lambda array: to_picture(array).transpose(2, 0, 1)),
        Mistake("not shifted", "the middle is at 0 and not at 127.5: the mean has to come back",
                lambda array: np.clip(np.rint(array.transpose(1, 2, 0) * 255), 0, 255).astype(np.uint8)),
    ],
)  # fmt: skip


# --- 01.6 --------------------------------------------------------------------------------------------------------


def without_mean(images, *arguments, **named):
    """The package's, and nobody subtracts the mean: from 0 to 2."""
    return [array + 1 for array in packages_process_images(images, *arguments, **named)]


MEAN_LEFT_OUT = Prediction(
    question="The subtraction of the mean left out, for 24 pictures with two objects or more: how many captions stay "
    "as they were, and which words suffer most?",
    truth=lambda: taken(process_images=without_mean),
    tempting={"captions": 0, "suffers most": "shapes"},
    why="Every number is 1 too large, from 0 to 2. Edges are differences of neighbouring pixels, and stay what they "
    "were: with them shapes, sizes and places. A colour is what the three channels are by themselves, and that is "
    "what has moved: about a third of the colour words go.",
    options=("sizes", "colours", "shapes", "relations"),
)

TASKS = [
    EXPOSE, SPOILED_PICTURES, RGB, WHOLE, BACK,
    dataclasses.replace(
        swap_task("01.6", ("process_images",), minutes=8, see="the hints of this task"),
        importance="core", prediction=MEAN_LEFT_OUT,
    ),
]  # fmt: skip
