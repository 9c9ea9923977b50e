"""Solutions by somebody who had not read the checks of chapters 01 to 08: wrong ones as learners write them, and right
ones in unusual styles.

A wrong one has the title of its mistake and a phrase of what the check must say of it. Most differ in one place from a
right one, which is then named together with the place.
"""

# ruff: noqa: E501
# fmt: off

SOLUTIONS: list[tuple[str, str, str, str]] = []  # task, title, source, phrase; the phrase is empty for a right one


def right(task: str, title: str, source: str) -> str:
    SOLUTIONS.append((task, title, source, ""))
    return source


def wrong(task: str, title: str, phrase: str, source: str) -> None:
    SOLUTIONS.append((task, title, source, phrase))


def change(task: str, title: str, phrase: str, source: str, old: str, new: str) -> None:
    """A right solution with one place of it done otherwise."""
    assert old in source, title
    SOLUTIONS.append((task, title, source.replace(old, new), phrase))


HEADS = {  # the imports of the exercise notebooks
    "01": "import numpy as np\nfrom PIL import Image, ImageOps\nfrom paligemma import generate\nfrom paligemma.swap import swap",
    "02": "import torch\nfrom torch import nn\nfrom torch.nn import functional as F",
    "03": "import torch\nfrom torch import nn",
    "04": "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\nfrom paligemma import modeling_siglip",
    "05": "import torch",
    "06": "import torch\nfrom torch import nn\nfrom paligemma import modeling_gemma",
    "07": "import torch\nfrom torch import nn\nfrom paligemma.modeling_gemma import GemmaRotaryEmbedding as PackageRope\nfrom paligemma.modeling_gemma import rotate_half as package_rotate_half",
    "08": "import torch\nfrom torch import nn\nfrom paligemma import modeling_gemma\nfrom paligemma.modeling_gemma import apply_rotary_pos_emb",
}
SOLVES = {  # what is handed to the check
    "01.1": "exposing",
    "01.2": "read_panels",
    "01.3": "to_rgb",
    "01.4": "process_images",
    "01.5": "to_picture",
    "01.6": "describe",
    "02.1": "patch_box",
    "02.2": "cut_patches",
    "02.3": "filters",
    "02.4": "SiglipVisionEmbeddings",
    "02.5": "exposing",
    "02.6": "read_rows",
    "03.1": "softmax",
    "03.2": "attention",
    "03.3": "(split_heads, merge_heads)",
    "03.4": "SiglipAttention",
    "03.5": "looking_back",
    "03.6": "read_maps",
    "04.1": "layer_norm",
    "04.2": "exposing",
    "04.3": "SiglipEncoderLayer",
    "04.4": "sigmoid_loss",
    "04.5": "read_matrices",
    "04.6": "FromTheNorm",
    "05.1": "read_rows",
    "05.2": "make_labels",
    "05.3": "pad",
    "05.4": "encode",
    "05.5": "collate",
    "05.6": "near_misses",
    "06.1": "rms_norm",
    "06.2": "normalise",
    "06.3": "GemmaRMSNorm",
    "06.4": "exposing",
    "06.5": "Centred",
    "07.1": "turn",
    "07.2": "rotate_half",
    "07.3": "GemmaRotaryEmbedding",
    "07.4": "apply_rotary_pos_emb",
    "07.5": "looking_back",
    "08.1": "fill_in",
    "08.2": "make_attn_mask",
    "08.3": "masked_weights",
    "08.4": "exposing",
    "08.5": "GemmaAttention",
    "08.6": "three_masks",
}



# --- 01.1 ---------------------------------------------------------------------------------------------------------

right("01.1", "one pixel, lists instead of tuples", """
def exposing():
    px = lambda *rgb: np.array([[rgb]], dtype=np.uint8)
    four = np.stack([px(255, 255, 255)[0, 0], px(0, 0, 0)[0, 0], px(0, 0, 0)[0, 0], px(0, 0, 0)[0, 0]])[None]
    return dict(
        stretched=(px(102, 102, 102), [0.4] * 3, [1.0] * 3),
        one_mean=(px(255, 255, 0), [1, 1, 0], [1, 1, 1]),
        deviation_first=(px(255, 255, 255), [1, 1, 1], [0.5, 0.5, 0.5]),
        own_mean=(px(0, 255, 0), [0, 0, 0], [1, 1, 1]),
        in_bytes=(four, [0.25] * 3, [1.0] * 3),
    )
""")
E11 = right("01.1", "as most write it", """
def exposing():
    white = np.full((2, 2, 3), 255, np.uint8)
    one = (1.0, 1.0, 1.0)
    grey = np.full((2, 2, 3), 51, np.uint8)
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    quarter = np.zeros((2, 2, 3), np.uint8)
    quarter[0, 0] = 255
    return {
        "stretched": (grey, (0.2, 0.2, 0.2), one),
        "one_mean": (red, (1.0, 0.0, 0.0), one),
        "deviation_first": (white, one, (2.0, 2.0, 2.0)),
        "own_mean": (white, (0.0, 0.0, 0.0), one),
        "in_bytes": (quarter, (0.25, 0.25, 0.25), one),
    }
""")
change("01.1", "random picture for deviation_first", "Your input for deviation_first exposes it, and stretched,", E11, "(white, one, (2.0, 2.0, 2.0))", "(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))")
change("01.1", "one_mean with equal means", "On your input for one_mean, one_mean gives what the right", E11, "(red, (1.0, 0.0, 0.0), one)", "(red, (1.0, 1.0, 1.0), (1.0, 2.0, 3.0))")
change("01.1", "in_bytes: white pixel only", "Your input for in_bytes exposes it, and own_mean, too", E11, """quarter[0, 0] = 255
""", """quarter[0, 0] = 255
    quarter = quarter[:1, :1]
""")
change("01.1", "picture as floats 0..1", "deviation_first: the picture is not an array of", E11, "white = np.full((2, 2, 3), 255, np.uint8)", "white = np.ones((2, 2, 3), np.float32)")
change("01.1", "means in bytes", "stretched: mean is (51, 51, 51), expected numbers", E11, '"stretched": (grey, (0.2, 0.2, 0.2), one)', '"stretched": (grey, (51, 51, 51), one)')
change("01.1", "own_mean forgotten", "one input for each of the wrong versions", E11, """        "own_mean": (white, (0.0, 0.0, 0.0), one),
""", "")
change("01.1", "channels first", "stretched: the picture's shape is [3, 2, 2],", E11, "np.full((2, 2, 3), 51, np.uint8)", "np.full((3, 2, 2), 51, np.uint8)")
change("01.1", "deviation zero", "deviation_first: std is (0.0, 0.0, 0.0), expected", E11, "(2.0, 2.0, 2.0)", "(0.0, 0.0, 0.0)")
change("01.1", "picture without mean and std", "in_bytes: 1 values, which is not the number of", E11, '"in_bytes": (quarter, (0.25, 0.25, 0.25), one)', '"in_bytes": quarter')

# --- 01.2 ---------------------------------------------------------------------------------------------------------

right("01.2", "from two lists", """
def read_panels():
    faults = ["mean not subtracted", "reshaped instead of transposed", "computed in 8 bits",
              "red and blue exchanged", "nearest pixel", "rows and columns exchanged"]
    return dict(zip("ABCDEF", faults))
""")
wrong("01.2", "A and C taken for each other", "'computed in 8 bits' and another are exchanged: one", """
def read_panels():
    return {
        "A": "computed in 8 bits",
        "B": "reshaped instead of transposed",
        "C": "mean not subtracted",
        "D": "red and blue exchanged",
        "E": "nearest pixel",
        "F": "rows and columns exchanged",
    }
""")
P12 = right("01.2", "as most write it", """
def read_panels():
    return {
        "A": "mean not subtracted",
        "B": "reshaped instead of transposed",
        "C": "computed in 8 bits",
        "D": "red and blue exchanged",
        "E": "nearest pixel",
        "F": "rows and columns exchanged",
    }
""")
change("01.2", "one fault twice", "5 of 6 panels are right; 'reshaped instead of", P12, '"F": "rows and columns exchanged"', '"F": "reshaped instead of transposed"')
change("01.2", "panel E left out", "the panels are ['A', 'B', 'C', 'D', 'F'], expected", P12, """        "E": "nearest pixel",
""", "")
change("01.2", "misspelt", "'nearest pixels' is none of the names: computed in", P12, '"nearest pixel"', '"nearest pixels"')

# --- 01.3 ---------------------------------------------------------------------------------------------------------

right("01.3", "blended in numpy", """
def to_rgb(image):
    upright = ImageOps.exif_transpose(image)
    rgba = np.asarray(upright.convert("RGBA")).astype(np.float64)
    a = rgba[..., 3:] / 255
    mixed = rgba[..., :3] * a + 255 * (1 - a)
    return Image.fromarray(np.round(mixed).astype(np.uint8))
""")
right("01.3", "paste with the alpha channel as mask", """
def to_rgb(image):
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGBA":
        background = Image.new("RGB", image.size, (255, 255, 255))
        background.paste(image, mask=image.split()[3])
        return background
    return image.convert("RGB")
""")
right("01.3", "turned by hand from the EXIF tag", """
def to_rgb(image):
    turns = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
             5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}
    o = image.getexif().get(0x0112, 1)
    if o in turns:
        image = image.transpose(turns[o])
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
""")
wrong("01.3", "convert only, after turning", "where the picture is transparent, colours appear", """
def to_rgb(image):
    image = ImageOps.exif_transpose(image)
    return image.convert("RGB")
""")
T13 = right("01.3", "as most write it", """
def to_rgb(image):
    image = ImageOps.exif_transpose(image)
    image = image.convert("RGBA")
    page = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(page, image).convert("RGB")
""")
change("01.3", "EXIF forgotten", "the picture lies on its side or on its head:", T13, """    image = ImageOps.exif_transpose(image)
""", "")
change("01.3", "black page", "what is transparent has become black: on a page it", T13, '"white"', '"black"')
change("01.3", "page laid on the picture", "every picture is white: the page lies on the", T13, "(page, image)", "(image, page)")
change("01.3", "page without colour", "what is transparent has become black, and what is", T13, 'Image.new("RGBA", image.size, "white")', 'Image.new("RGBA", image.size)')
wrong("01.3", "turned at the end", "the picture lies on its side or on its head:", """
def to_rgb(image):
    rgba = image.convert("RGBA")
    page = Image.new("RGBA", rgba.size, "white")
    flat = Image.alpha_composite(page, rgba).convert("RGB")
    return ImageOps.exif_transpose(flat)
""")
wrong("01.3", "grey stays grey", "pictures with transparency become RGB, those that", """
def to_rgb(image):
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGBA":
        page = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(page, image).convert("RGB")
    return image
""")
wrong("01.3", "half transparent counts as opaque", "a pixel is either white or opaque: one of half", """
def to_rgb(image):
    image = ImageOps.exif_transpose(image).convert("RGBA")
    pixels = np.array(image)
    pixels[pixels[..., 3] == 0, :3] = 255
    return Image.fromarray(pixels[..., :3])
""")
wrong("01.3", "rotates without expand", "the picture is turned inside its old frame: a", """
def to_rgb(image):
    orientation = image.getexif().get(274)
    if orientation == 3:
        image = image.rotate(180)
    elif orientation == 6:
        image = image.rotate(270)
    elif orientation == 8:
        image = image.rotate(90)
    image = image.convert("RGBA")
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    return page.convert("RGB")
""")
change("01.3", "RGBA comes out", "the picture has four channels at the end: the", T13, '.convert("RGB")', "")
wrong("01.3", "page pasted without a mask", "where the picture is transparent, colours appear", """
def to_rgb(image):
    image = ImageOps.exif_transpose(image)
    page = Image.new("RGB", image.size, "white")
    page.paste(image.convert("RGB"), (0, 0))
    return page
""")
wrong("01.3", "multiplied by opacity", "what is transparent has become black: on a page it", """
def to_rgb(image):
    image = ImageOps.exif_transpose(image).convert("RGBA")
    a = np.asarray(image).astype(float)
    rgb = a[:, :, :3] * a[:, :, 3:4] / 255
    return Image.fromarray(rgb.round().astype("uint8"), "RGB")
""")

# --- 01.4 ---------------------------------------------------------------------------------------------------------

right("01.4", "moveaxis, 127.5", """
def process_images(images, size):
    h, w = size
    pics = [np.asarray(im.convert("RGB").resize((w, h), resample=Image.BICUBIC), dtype=np.float32) for im in images]
    return [np.moveaxis(p / np.float32(127.5) - 1, -1, 0) for p in pics]
""")
right("01.4", "channel by channel", """
def process_images(images, size):
    result = []
    for im in images:
        planes = im.convert("RGB").split()
        a = np.empty((3, size[0], size[1]), dtype="float32")
        for c in range(3):
            a[c] = np.asarray(planes[c].resize(size[::-1], Image.Resampling.BICUBIC))
        a /= 255.0
        a -= 0.5
        a *= 2.0
        result.append(a)
    return result
""")
right("01.4", "through torch", """
import torch
def process_images(images, size):
    def one(im):
        t = torch.tensor(np.array(im.convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC)))
        return torch.einsum("hwc->chw", t.float().div(255).sub(0.5).div(0.5)).contiguous().numpy()
    return list(map(one, images))
""")
P14 = right("01.4", "as most write it", """
def process_images(images, size):
    height, width = size
    out = []
    for image in images:
        image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        x = np.array(image).astype(np.float32) / 255
        x = (x - 0.5) / 0.5
        out.append(x.transpose(2, 0, 1))
    return out
""")
change("01.4", "resize(height, width)", "PIL's resize takes (width, height), `size` is", P14, "(width, height)", "(height, width)")
change("01.4", "reshape for channels first", "your numbers are right and lie in the wrong places:", P14, "x.transpose(2, 0, 1)", "x.reshape(3, height, width)")
change("01.4", "transpose(2, 1, 0)", "rows and columns are exchanged when the channels", P14, "x.transpose(2, 0, 1)", "x.transpose(2, 1, 0)")
change("01.4", "not divided by 255", "your numbers are normalised and never divided by 255", P14, " / 255", "")
change("01.4", "division by 0.5 left out", "your numbers run from -0.5 to 0.5: the division by", P14, "(x - 0.5) / 0.5", "x - 0.5")
change("01.4", "brackets forgotten", "your numbers run from -1 to 0: without brackets x -", P14, "(x - 0.5) / 0.5", "x - 0.5 / 0.5")
change("01.4", "bilinear", "your numbers are those of bilinear interpolation", P14, "BICUBIC", "BILINEAR")
change("01.4", "nearest", "your numbers are those of the nearest pixel: edges", P14, "(width, height), Image.Resampling.BICUBIC", "(width, height), Image.Resampling.NEAREST")
change("01.4", "float64", "`[0]`: the result is float64, expected float32", P14, ".astype(np.float32) / 255", " / 255.0")
change("01.4", "one array", "one array comes back for all pictures: a list with", P14, "return out", "return np.stack(out)")
change("01.4", "return in the loop", "1 values, expected 2", P14, """out.append(x.transpose(2, 0, 1))
    return out""", """out.append(x.transpose(2, 0, 1))
        return out""")
change("01.4", "crops to keep the proportions", "your pictures are cut to the proportions: here they", P14, 'image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)', 'ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BICUBIC)')
change("01.4", "pads with black bars", "your pictures have bars beside them: here they are", P14, 'image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)', 'ImageOps.pad(image.convert("RGB"), (width, height), Image.Resampling.BICUBIC)')
change("01.4", "divided by 256", "your numbers are divided by 256: the largest of a", P14, "/ 255", "/ 256")
change("01.4", "cut to whole numbers", "the numbers from 0 to 1 are cut to whole ones:", P14, "np.array(image).astype(np.float32) / 255", "(np.array(image) / 255).astype(np.uint8).astype(np.float32)")
change("01.4", "ImageNet's mean and deviation", "your mean and deviation are those of ImageNet: this", P14, "x = (x - 0.5) / 0.5", "x = (x - np.array([0.485, 0.456, 0.406], dtype=np.float32)) / np.array([0.229, 0.224, 0.225], dtype=np.float32)")
change("01.4", "the picture's own mean and deviation", "each picture is normalised by its own mean and", P14, "x = (x - 0.5) / 0.5", "x = (x - x.mean()) / x.std()")
change("01.4", "square only", "height and width are the same in yours: `size` has", P14, "height, width = size", "height = width = size[0]")
change("01.4", "no convert", "pictures are not made RGB first: a grey one has no", P14, '.convert("RGB")', "")
change("01.4", "channels last", "the channels are the last axis: convolutions in", P14, """x = (x - 0.5) / 0.5
        out.append(x.transpose(2, 0, 1))""", """x = (x - 0.5) / 0.5
        out.append(x)""")
change("01.4", "arithmetic in uint8", "your numbers are computed while the picture is", P14, """x = np.array(image).astype(np.float32) / 255
        x = (x - 0.5) / 0.5""", "x = (np.array(image) * 2 - 255).astype(np.float32) / 255")
change("01.4", "BGR", "red and blue are exchanged", P14, "np.array(image)", "np.array(image)[:, :, ::-1]")
change("01.4", "thumbnail", "your pictures keep their proportions, and so do not", P14, 'image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)', """image = image.convert("RGB")
        image.thumbnail((width, height), Image.Resampling.BICUBIC)""")

# --- 01.5 ---------------------------------------------------------------------------------------------------------

right("01.5", "floor plus a half", """
def to_picture(array):
    v = np.moveaxis(np.asarray(array, dtype=np.float64), 0, 2)
    v = 127.5 * v + 127.5
    return np.floor(np.minimum(np.maximum(v, 0.0), 255.0) + 0.5).astype("uint8")
""")
right("01.5", "torch round trip", """
import torch
def to_picture(array):
    t = torch.from_numpy(np.ascontiguousarray(array)).permute(1, 2, 0)
    return ((t + 1) / 2).clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
""")
right("01.5", "in place on a copy", """
def to_picture(array):
    out = np.stack([array[0], array[1], array[2]], axis=-1).copy()
    out += 1
    out *= 127.5
    np.rint(out, out=out)
    out[out < 0] = 0
    out[out > 255] = 255
    return out.astype(np.uint8)
""")
P15 = right("01.5", "as most write it", """
def to_picture(array):
    values = array.transpose(1, 2, 0)
    values = (values * 0.5 + 0.5) * 255
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
""")
change("01.5", "no rounding", "one of three faults is left: most numbers are one", P15, "np.round(values)", "values")
change("01.5", "no clip", "one of three faults is left: numbers just outside", P15, "np.clip(np.round(values), 0, 255)", "np.round(values)")
change("01.5", "axes as before", "one of three faults is left: rows and columns are", P15, "(1, 2, 0)", "(2, 1, 0)")
change("01.5", "clip after the cast", "one of three faults is left: numbers just outside", P15, "np.clip(np.round(values), 0, 255).astype(np.uint8)", "np.clip(np.round(values).astype(np.uint8), 0, 255)")
change("01.5", "clipped from 0 to 1 first", "the numbers are clipped to 0 and 1 while they still", P15, """values = array.transpose(1, 2, 0)
    values = (values * 0.5 + 0.5) * 255""", """values = np.clip(array.transpose(1, 2, 0), 0, 1)
    values = (values * 0.5 + 0.5) * 255""")
change("01.5", "reshape", "`reshape` cuts the numbers differently and moves", P15, "array.transpose(1, 2, 0)", "array.reshape(array.shape[1], array.shape[2], 3)")
change("01.5", "times 256", "the numbers are multiplied by 256: the largest of a", P15, "* 255", "* 256")
change("01.5", "ceil", "every number is rounded up instead of to the nearest", P15, "np.round(values)", "np.ceil(values)")
change("01.5", "int64", "the result is int64, expected uint8", P15, ".astype(np.uint8)", ".astype(np.int64)")
wrong("01.5", "works on the argument", "an in-place operation (+=, *=, a method ending in", """
def to_picture(array):
    array *= 0.5
    array += 0.5
    array *= 255
    return np.clip(np.round(array), 0, 255).astype(np.uint8).transpose(1, 2, 0)
""")
change("01.5", "rounded before times 255", "the numbers are rounded while they run from 0 to 1:", P15, "(values * 0.5 + 0.5) * 255", "np.round(values * 0.5 + 0.5) * 255")
change("01.5", "plus 0.5 forgotten", "0.5 is not added: everything below the middle is", P15, "(values * 0.5 + 0.5) * 255", "(values * 0.5) * 255")
change("01.5", "stretched to the picture's own range", "each picture is stretched from its own smallest to", P15, "(values * 0.5 + 0.5) * 255", "(values - values.min()) / (values.max() - values.min()) * 255")

# --- 01.6 ---------------------------------------------------------------------------------------------------------

right("01.6", "variables and unpacking", """
def process_images(images, size):
    height, width = size
    out = []
    for image in images:
        image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        x = np.array(image).astype(np.float32) / 255
        x = (x - 0.5) / 0.5
        out.append(x.transpose(2, 0, 1))
    return out


def describe(model, processor, image):
    replacement = {"process_images": process_images}
    with swap(model, **replacement) as m:
        (answer,) = generate(m, processor, images=[image], text=["caption en"])
    return answer
""")
D16 = right("01.6", "as most write it", """
def process_images(images, size):
    height, width = size
    out = []
    for image in images:
        image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        x = np.array(image).astype(np.float32) / 255
        x = (x - 0.5) / 0.5
        out.append(x.transpose(2, 0, 1))
    return out


def describe(model, processor, image):
    with swap(model, process_images=process_images) as mine:
        return generate(mine, processor, images=[image], text=["caption en"])[0]
""")
change("01.6", "list instead of text", "`generate` answers a list of prompts with a list", D16, ")[0]", ")")
change("01.6", "caption without en", "the model was asked ['caption'], expected ['caption", D16, '"caption en"', '"caption"')
change("01.6", "swap never used", "the caption is right, and the package's own", D16, """with swap(model, process_images=process_images) as mine:
        return generate(mine""", "return generate(model")
change("01.6", "with block closed too early", "the caption is right, and the package's own", D16, "return generate(mine", """pass
    return generate(model""")
change("01.6", "newline in the prompt", "the model was asked ['caption en\\n'], expected", D16, '"caption en"', '"caption en\\n"')
change("01.6", "picture upside down", "your part does not compute what the package's does:", D16, "images=[image]", "images=[image.rotate(180)]")

# --- 02.1 ---------------------------------------------------------------------------------------------------------

right("02.1", "counting", """
def patch_box(index, width, patch_size):
    y1 = x1 = 0
    for _ in range(index):
        x1 += patch_size
        if x1 >= width:
            x1, y1 = 0, y1 + patch_size
    return (y1, x1, y1 + patch_size, x1 + patch_size)
""")
right("02.1", "in pixels along one long strip", """
def patch_box(index, width, patch_size):
    start = index * patch_size
    left = start % width
    top = start // width * patch_size
    return top, left, top + patch_size, left + patch_size
""")
P21 = right("02.1", "as most write it", """
def patch_box(index, width, patch_size):
    per_row = width // patch_size
    row, column = divmod(index, per_row)
    y, x = row * patch_size, column * patch_size
    return y, x, y + patch_size, x + patch_size
""")
change("02.1", "x first", "your numbers are right with x first: boxes in this", P21, "return y, x, y + patch_size, x + patch_size", "return x, y, x + patch_size, y + patch_size")
change("02.1", "counts from 1", "your box is that of the token before: tokens count", P21, "divmod(index, per_row)", "divmod(index - 1, per_row)")
change("02.1", "divided by the patch size", "you divide by the patch size: how many patches fit", P21, "divmod(index, per_row)", "divmod(index, patch_size)")
change("02.1", "last pixel included", "your box ends one pixel early: its end is the first", P21, "y + patch_size, x + patch_size", "y + patch_size - 1, x + patch_size - 1")
change("02.1", "column by column", "your numbers are right with x first: boxes in this", P21, "row, column = divmod", "column, row = divmod")
change("02.1", "in patches", "your numbers count patches: they are to count pixels", P21, """y, x = row * patch_size, column * patch_size
    return y, x, y + patch_size, x + patch_size""", "return row, column, row + 1, column + 1")
change("02.1", "height and width", "your last two numbers are the size of the box: they", P21, "return y, x, y + patch_size, x + patch_size", "return y, x, patch_size, patch_size")
change("02.1", "eight per row", "right for eight patches in a row: how many there", P21, "width // patch_size", "8")
change("02.1", "true division", "your row is a fraction: `//` divides without a", P21, "row, column = divmod(index, per_row)", """row = index / per_row
    column = index % per_row""")
change("02.1", "row times width", "the row is multiplied by the width of the picture:", P21, "y, x = row * patch_size, column * patch_size", "y, x = row * width, column * patch_size")

# --- 02.2 ---------------------------------------------------------------------------------------------------------

right("02.2", "loops over patches", """
def cut_patches(x, patch_size):
    rows = []
    for top in range(0, x.shape[2], patch_size):
        for left in range(0, x.shape[3], patch_size):
            rows.append(x[:, :, top : top + patch_size, left : left + patch_size].flatten(1))
    return torch.stack(rows, dim=1)
""")
right("02.2", "tensor.unfold twice", """
def cut_patches(x, patch_size):
    u = x.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return u.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
""")
right("02.2", "convolution with an identity", """
def cut_patches(x, patch_size):
    C, P = x.shape[1], patch_size
    eye = torch.eye(C * P * P, dtype=x.dtype).reshape(-1, C, P, P)
    return F.conv2d(x, eye, stride=P).flatten(2).mT
""")
right("02.2", "einsum on six axes, numpy", """
def cut_patches(x, patch_size):
    b, c, h, w = x.shape
    a = x.numpy().reshape(b, c, h // patch_size, patch_size, w // patch_size, patch_size)
    import numpy as np
    return torch.from_numpy(np.einsum("bcrysx->brscyx", a).reshape(b, -1, c * patch_size**2).copy())
""")
wrong("02.2", "a single reshape", "your numbers are those you get when the picture is", """
def cut_patches(x, patch_size):
    B, C, H, W = x.shape
    N = (H // patch_size) * (W // patch_size)
    return x.reshape(B, N, C * patch_size * patch_size)
""")
P22 = right("02.2", "as most write it", """
def cut_patches(x, patch_size):
    B, C, H, W = x.shape
    P = patch_size
    x = x.reshape(B, C, H // P, P, W // P, P)
    x = x.permute(0, 2, 4, 1, 3, 5)
    return x.reshape(B, (H // P) * (W // P), C * P * P)
""")
change("02.2", "channels last inside a patch", "the numbers inside a patch are right, with the", P22, "permute(0, 2, 4, 1, 3, 5)", "permute(0, 2, 4, 3, 5, 1)")
change("02.2", "y and x exchanged inside", "each patch lies on its diagonal: its rows and", P22, "permute(0, 2, 4, 1, 3, 5)", "permute(0, 2, 4, 1, 5, 3)")
change("02.2", "patches column by column", "your patches run down the columns: tokens count row", P22, "permute(0, 2, 4, 1, 3, 5)", "permute(0, 4, 2, 1, 3, 5)")
change("02.2", "one axis wrong", "the third axis of your six is y within the patch;", P22, "permute(0, 2, 4, 1, 3, 5)", "permute(0, 2, 3, 1, 4, 5)")
change("02.2", "height and width exchanged in the shape", "height and width are taken for each other when the", P22, "B, C, H, W = x.shape", "B, C, W, H = x.shape")
change("02.2", "P before the rows", "each side is cut as (place in the patch, patch)", P22, "x.reshape(B, C, H // P, P, W // P, P)", "x.reshape(B, C, P, H // P, P, W // P)")
wrong("02.2", "unfold, not transposed but reshaped", "F.unfold gives [B, C * P * P, N]: its last two axes", """
def cut_patches(x, patch_size):
    u = F.unfold(x, kernel_size=patch_size, stride=patch_size)
    return u.reshape(u.shape[0], u.shape[2], u.shape[1])
""")
wrong("02.2", "unfold without stride", "there are more patches than fit side by side: yours", """
def cut_patches(x, patch_size):
    return F.unfold(x, kernel_size=patch_size).transpose(1, 2)
""")
wrong("02.2", "unfold, axes left", "features and patches are exchanged: that is what", """
def cut_patches(x, patch_size):
    return F.unfold(x, kernel_size=patch_size, stride=patch_size)
""")
wrong("02.2", "last row and column of patches lost", "the last row and the last column of patches are", """
def cut_patches(x, patch_size):
    B, C, H, W = x.shape
    P = patch_size
    out = []
    for i in range(0, H - P, P):
        for j in range(0, W - P, P):
            out.append(x[:, :, i : i + P, j : j + P].reshape(B, -1))
    return torch.stack(out, dim=1)
""")
wrong("02.2", "only the first picture", "only the first picture of the batch is cut", """
def cut_patches(x, patch_size):
    _, C, H, W = x.shape
    P = patch_size
    patches = [x[0, :, i : i + P, j : j + P].flatten() for i in range(0, H, P) for j in range(0, W, P)]
    return torch.stack(patches)[None]
""")

# --- 02.3 ---------------------------------------------------------------------------------------------------------

right("02.3", "gradients of the four means", """
def filters(P):
    rows = []
    measures = [
        lambda p: p.mean(),
        lambda p: p[:, :, P // 2 :].mean() - p[:, :, : P // 2].mean(),
        lambda p: p[:, P // 2 :].mean() - p[:, : P // 2].mean(),
        lambda p: p[0].mean() - p[2].mean(),
    ]
    for measure in measures:
        patch = torch.zeros(3, P, P, requires_grad=True)
        (grad,) = torch.autograd.grad(measure(patch), patch)
        rows.append(grad)
    return torch.stack(rows)
""")
right("02.3", "outer products", """
def filters(P):
    flat = torch.full((P,), 1.0 / P)
    step = torch.tensor([-2.0 / P] * (P // 2) + [2.0 / P] * (P // 2))
    grey = torch.full((3,), 1 / 3)
    red_blue = torch.tensor([1.0, 0.0, -1.0])
    one = lambda c, y, x: torch.einsum("c,y,x->cyx", c, y, x)
    return torch.stack([one(grey, flat, flat), one(grey, flat, step), one(grey, step, flat), one(red_blue, flat, flat)])
""")
P23 = right("02.3", "as most write it", """
def filters(P):
    w = torch.zeros(4, 3, P, P)
    half = P // 2
    w[0] = 1 / (3 * P * P)
    w[1, :, :, half:] = 2 / (3 * P * P)
    w[1, :, :, :half] = -2 / (3 * P * P)
    w[2, :, half:, :] = 2 / (3 * P * P)
    w[2, :, :half, :] = -2 / (3 * P * P)
    w[3, 0] = 1 / (P * P)
    w[3, 2] = -1 / (P * P)
    return w
""")
change("02.3", "brightness is a sum", "its numbers are 48 times what they should be: a", P23, "w[0] = 1 / (3 * P * P)", "w[0] = 1")
change("02.3", "brightness three times too large", "its numbers are 3 times what they should be: a mean", P23, "w[0] = 1 / (3 * P * P)", "w[0] = 1 / (P * P)")
change("02.3", "left minus right", "the filter for the edge between left and right has", P23, """2 / (3 * P * P)
    w[1, :, :, :half] = -""", """-2 / (3 * P * P)
    w[1, :, :, :half] = """)
wrong("02.3", "filters 1 and 2 exchanged", "the second filter compares top and bottom, the", """
def filters(P):
    w = torch.zeros(4, 3, P, P)
    half = P // 2
    w[0] = 1 / (3 * P * P)
    w[1, :, half:, :] = 2 / (3 * P * P)
    w[1, :, :half, :] = -2 / (3 * P * P)
    w[2, :, :, half:] = 2 / (3 * P * P)
    w[2, :, :, :half] = -2 / (3 * P * P)
    w[3, 0] = 1 / (P * P)
    w[3, 2] = -1 / (P * P)
    return w
""")
wrong("02.3", "halves divided by the whole", "its numbers are 0.5 times what they should be: a", """
def filters(P):
    w = torch.zeros(4, 3, P, P)
    half = P // 2
    w[0] = 1 / (3 * P * P)
    w[1, :, :, half:] = 1 / (3 * P * P)
    w[1, :, :, :half] = -1 / (3 * P * P)
    w[2, :, half:, :] = 1 / (3 * P * P)
    w[2, :, :half, :] = -1 / (3 * P * P)
    w[3, 0] = 1 / (P * P)
    w[3, 2] = -1 / (P * P)
    return w
""")
change("02.3", "left half not subtracted", "one of your differences has only one of its two", P23, """    w[1, :, :, :half] = -2 / (3 * P * P)
""", "")
change("02.3", "red minus green", "channel 1 is green, blue is channel 2", P23, "w[3, 2] =", "w[3, 1] =")
change("02.3", "red minus blue divided by 3 P P", "its numbers are 0.333 times what they should be: a", P23, """P * P)
    w[3, 2] = -1 / (""", """3 * P * P)
    w[3, 2] = -1 / (3 * """)
change("02.3", "half is 4", "the two halves meet at a fixed place: half of a", P23, "half = P // 2", "half = 4")
change("02.3", "luminance", "the first filter weighs the colours as the eye", P23, "w[0] = 1 / (3 * P * P)", "w[0, 0], w[0, 1], w[0, 2] = 0.299 / P**2, 0.587 / P**2, 0.114 / P**2")
change("02.3", "blue minus red", "channel 0 is red and channel 2 is blue", P23, """w[3, 0] = 1 / (P * P)
    w[3, 2] = -1 / (P * P)""", """w[3, 2] = 1 / (P * P)
    w[3, 0] = -1 / (P * P)""")
change("02.3", "channels last", "four filters, each with a number for every channel,", P23, "return w", "return w.permute(0, 2, 3, 1)")
change("02.3", "top minus bottom", "the filter for the edge between top and bottom has", P23, """2 / (3 * P * P)
    w[2, :, :half, :] = -""", """-2 / (3 * P * P)
    w[2, :, :half, :] = """)

# --- 02.4 ---------------------------------------------------------------------------------------------------------

right("02.4", "position ids in a buffer", """
class SiglipVisionEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.cfg = config
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size, padding="valid")
        self.position_embedding = nn.Embedding(config.num_image_tokens, config.hidden_size)
        self.register_buffer("position_ids", torch.arange(config.num_image_tokens).expand((1, -1)), persistent=False)

    def forward(self, pixel_values):
        grid = self.patch_embedding(pixel_values)
        b, d = grid.shape[:2]
        return grid.permute(0, 2, 3, 1).reshape(b, -1, d) + self.position_embedding(self.position_ids)
""")
right("02.4", "patches cut, then a matrix", """
class SiglipVisionEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.P = config.patch_size
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=self.P, stride=self.P)
        self.position_embedding = nn.Embedding(config.num_image_tokens, config.hidden_size)

    def forward(self, pixel_values):
        patches = F.unfold(pixel_values, self.P, stride=self.P)
        tokens = torch.einsum("bkn,dk->bnd", patches, self.patch_embedding.weight.flatten(1))
        tokens = tokens + self.patch_embedding.bias
        tokens += self.position_embedding(torch.arange(tokens.shape[1], device=tokens.device))
        return tokens
""")
P24 = right("02.4", "as most write it", """
class SiglipVisionEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Embedding(config.num_image_tokens, config.hidden_size)

    def forward(self, pixel_values):
        x = self.patch_embedding(pixel_values)
        x = x.flatten(2).transpose(1, 2)
        return x + self.position_embedding.weight
""")
change("02.4", "stride 1", "there are more tokens than patches: the convolution", P24, "stride=config.patch_size)", "stride=1)")
change("02.4", "no bias", "parameter `patch_embedding.bias` [6] is missing", P24, "stride=config.patch_size)", "stride=config.patch_size, bias=False)")
wrong("02.4", "other names", "yours has a parameter `patch_embed.weight` [6, 3,", """
class SiglipVisionEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch_embed = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)
        self.pos_embed = nn.Embedding(config.num_image_tokens, config.hidden_size)

    def forward(self, pixel_values):
        x = self.patch_embed(pixel_values)
        x = x.flatten(2).transpose(1, 2)
        return x + self.pos_embed.weight
""")
change("02.4", "reshape instead of transpose", "the features are right and lie in the wrong tokens:", P24, "x = x.flatten(2).transpose(1, 2)", "x = x.reshape(x.shape[0], -1, x.shape[1])")
change("02.4", "positions not added", "your numbers are those you get without the", P24, "return x + self.position_embedding.weight", "return x")
change("02.4", "one position for all", "every token gets the vector of place 0", P24, "self.position_embedding.weight", "self.position_embedding.weight[0]")
change("02.4", "column by column", "your tokens run down the columns: they count row by", P24, "x = x.flatten(2).transpose(1, 2)", "x = x.transpose(2, 3).flatten(2).transpose(1, 2)")
change("02.4", "positions from the end", "the positions count from the end", P24, "return x + self.position_embedding.weight", "return x + self.position_embedding.weight.flip(0)")
change("02.4", "a row for a class token", "`position_embedding.weight` has shape [10, 6],", P24, "nn.Embedding(config.num_image_tokens, config.hidden_size)", "nn.Embedding(config.num_image_tokens + 1, config.hidden_size)")
change("02.4", "scaled by sqrt(D)", "that is the square root of D", P24, "return x + self.position_embedding.weight", "return (x + self.position_embedding.weight) * x.shape[-1] ** 0.5")
change("02.4", "three channels", "`patch_embedding.weight` has shape [10, 3, 5, 5],", P24, "nn.Conv2d(config.num_channels,", "nn.Conv2d(3,")
change("02.4", "Parameter, .weight of it", "yours has a parameter `position_embedding` [9, 6]", P24, "nn.Embedding(config.num_image_tokens, config.hidden_size)", "nn.Parameter(torch.zeros(config.num_image_tokens, config.hidden_size))")
change("02.4", "relu", "nothing is below zero before the positions are", P24, "x = self.patch_embedding(pixel_values)", "x = F.relu(self.patch_embedding(pixel_values))")
wrong("02.4", "dropout left in", "what differs between the two: a dropout that the", """
class SiglipVisionEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)
        self.dropout = nn.Dropout(0.1)
        self.position_embedding = nn.Embedding(config.num_image_tokens, config.hidden_size)

    def forward(self, pixel_values):
        x = self.patch_embedding(pixel_values)
        x = x.flatten(2).transpose(1, 2)
        return self.dropout(x + self.position_embedding.weight)
""")
change("02.4", "a position for each picture", "all tokens of a picture get the vector whose place", P24, "self.position_embedding.weight", "self.position_embedding(torch.arange(pixel_values.shape[0]))[:, None]")
change("02.4", "picture on its side", "height and width of the picture are exchanged", P24, "x = self.patch_embedding(pixel_values)", "x = self.patch_embedding(pixel_values.transpose(2, 3))")

# --- 02.5 ---------------------------------------------------------------------------------------------------------

P25 = right("02.5", "as most write it", """
def exposing():
    z = torch.zeros
    return {
        "columns_first": (torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]), torch.ones(1, 1, 1, 1), z(1), z(4, 1)),
        "one_position": (z(1, 1, 1, 2), z(1, 1, 1, 1), z(1), torch.tensor([[0.0], [1.0]])),
        "no_bias": (z(1, 1, 1, 1), z(1, 1, 1, 1), torch.ones(1), z(1, 1)),
        "reshaped": (torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([1.0, 10.0]).reshape(2, 1, 1, 1), z(2), z(2, 2)),
        "filters_turned": (torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]), z(1), z(1, 1)),
    }
""")
change("02.5", "equal positions", "On your input for one_position, one_position gives what the", P25, "z(1), torch.tensor([[0.0], [1.0]])", "z(1), torch.tensor([[1.0], [1.0]])")
change("02.5", "D = 1", "On your input for reshaped, reshaped gives what the right", P25, '"reshaped": (torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([1.0, 10.0]).reshape(2, 1, 1, 1), z(2), z(2, 2))', '"reshaped": (torch.tensor([[[[1.0, 2.0]]]]), torch.ones(1, 1, 1, 1), z(1), z(2, 1))')
change("02.5", "random input", "Your input for columns_first exposes it, and one_position,", P25, '"columns_first": (torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]), torch.ones(1, 1, 1, 1), z(1), z(4, 1))', '"columns_first": (torch.randn(1, 3, 4, 4), torch.randn(5, 3, 2, 2), torch.randn(5), torch.randn(4, 5))')
change("02.5", "symmetric picture", "On your input for columns_first, columns_first gives what the", P25, '"columns_first": (torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]),', '"columns_first": (torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]]),')
change("02.5", "too many positions", "filters_turned: bias [1] and positions [4, 1],", P25, """z(1), z(1, 1)),
    }""", """z(1), z(4, 1)),
    }""")
change("02.5", "bias of zero", "On your input for no_bias, no_bias gives what the right version", P25, "torch.ones(1), z(1, 1)),", "torch.zeros(1), z(1, 1)),")

# --- 02.6 ---------------------------------------------------------------------------------------------------------

right("02.6", "plain", """
def read_rows():
    return {
        "A": "the picture mirrored",
        "B": "no positions",
        "C": "red and blue exchanged",
        "D": "tokens column by column",
        "E": "positions in reverse",
    }
""")
wrong("02.6", "A and D exchanged", "'tokens column by column' and another are", """
def read_rows():
    return {
        "A": "tokens column by column",
        "B": "no positions",
        "C": "red and blue exchanged",
        "D": "the picture mirrored",
        "E": "positions in reverse",
    }
""")
wrong("02.6", "B and E exchanged", "'positions in reverse' and another are exchanged:", """
def read_rows():
    return {
        "A": "the picture mirrored",
        "B": "positions in reverse",
        "C": "red and blue exchanged",
        "D": "tokens column by column",
        "E": "no positions",
    }
""")
wrong("02.6", "small letters", "the rows are ['a', 'b', 'c', 'd', 'e'], expected", """
def read_rows():
    return {
        "a": "the picture mirrored",
        "b": "no positions",
        "c": "red and blue exchanged",
        "d": "tokens column by column",
        "e": "positions in reverse",
    }
""")

# --- 03.1 ---------------------------------------------------------------------------------------------------------

right("03.1", "max().values and in place on its own tensor", """
def softmax(x, dim):
    shifted = x - x.max(dim=dim, keepdim=True).values
    shifted.exp_()
    shifted.div_(shifted.sum(dim=dim, keepdim=True))
    return shifted
""")
right("03.1", "row by row", """
def softmax(x, dim):
    moved = x.movedim(dim, -1)
    rows = []
    for row in moved.reshape(-1, moved.shape[-1]):
        e = (row - row.max()).exp()
        rows.append(e / e.sum())
    return torch.stack(rows).reshape(moved.shape).movedim(-1, dim)
""")
right("03.1", "log of the sum, shifted", """
def softmax(x, dim):
    top = x.amax(dim=dim, keepdim=True)
    log_total = top + (x - top).exp().sum(dim, keepdim=True).log()
    return (x - log_total).exp()
""")
S31 = right("03.1", "as most write it", """
def softmax(x, dim):
    e = torch.exp(x - x.amax(dim, keepdim=True))
    return e / e.sum(dim, keepdim=True)
""")
change("03.1", "formula as it stands", "the exponential of 500 is larger than any float32,", S31, " - x.amax(dim, keepdim=True)", "")
change("03.1", "one maximum for all", "the largest score of the whole tensor is", S31, "x.amax(dim, keepdim=True)", "x.max()")
wrong("03.1", "always the last axis", "the axis is fixed to the last one: `dim` says which", """
def softmax(x, dim):
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)
""")
change("03.1", "sum over everything", "all weights of the tensor sum to 1, and not those", S31, "e.sum(dim, keepdim=True)", "e.sum()")
change("03.1", "sum over the last axis", "one of the two, the largest score and the sum, is", S31, "e.sum(dim, keepdim=True)", "e.sum(-1, keepdim=True)")
change("03.1", "mean subtracted", "what you subtract is minus infinity in a masked", S31, "x.amax(dim, keepdim=True)", "x.mean(dim, keepdim=True)")
change("03.1", "clamped", "scores above a limit are cut down to it: two of", S31, "x - x.amax(dim, keepdim=True)", "x.clamp(max=80)")
wrong("03.1", "in place on x", "an in-place operation (+=, *=, a method ending in", """
def softmax(x, dim):
    x -= x.amax(dim, keepdim=True)
    e = x.exp()
    return e / e.sum(dim, keepdim=True)
""")
change("03.1", "eps in the sum", "is each exponential divided by the sum over the", S31, "return e / e.sum(dim, keepdim=True)", "return e / (e.sum(dim, keepdim=True) + 1e-3)")
change("03.1", "log softmax", "your numbers are the logarithms of the weights", S31, "return e / e.sum(dim, keepdim=True)", "return torch.log(e / e.sum(dim, keepdim=True))")
change("03.1", "powers of two", "your powers have the base 2: the formula has e", S31, "torch.exp(", "2 ** (")
change("03.1", "minimum subtracted", "what you subtract is minus infinity in a masked", S31, "x.amax(dim, keepdim=True)", "x.amin(dim, keepdim=True)")
wrong("03.1", "torch.softmax", "write it yourself: that is what this task is about", """
def softmax(x, dim):
    return torch.softmax(x, dim)
""")
change("03.1", "largest absolute value", "the largest absolute value is subtracted: where it", S31, "x.amax(dim, keepdim=True)", "x.abs().amax(dim, keepdim=True)")
change("03.1", "minus infinity replaced", "minus infinity is not to be replaced: its", S31, """:
    """, """:
    x = torch.where(torch.isinf(x), torch.zeros_like(x), x)
    """)
change("03.1", "double comes out", "a cast is missing or too much: the result's dtype", S31, "torch.exp(x", "torch.exp(x.double()")

# --- 03.2 ---------------------------------------------------------------------------------------------------------

right("03.2", "einsum", """
import math
def attention(query, key, value):
    scores = torch.einsum("bhld,bhtd->bhlt", query, key) / math.sqrt(key.size(-1))
    w = scores.softmax(-1)
    return torch.einsum("bhlt,bhtd->bhld", w, value), w
""")
right("03.2", "head by head, quarter powers", """
def attention(q, k, v):
    s = q.shape[-1] ** -0.25
    out, all_weights = torch.empty_like(q), q.new_empty(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            w = ((q[b, h] * s) @ (k[b, h] * s).T).softmax(1)
            all_weights[b, h] = w
            out[b, h] = w @ v[b, h]
    return out, all_weights
""")
right("03.2", "torch's own attention beside the weights", """
from torch.nn import functional as F
def attention(query, key, value):
    out = F.scaled_dot_product_attention(query, key, value)
    weights = F.softmax(torch.matmul(query, key.mT).div(query.size(-1) ** 0.5), dim=3)
    return out, weights
""")
A32 = right("03.2", "as most write it", """
def attention(query, key, value):
    d = query.shape[-1]
    scores = query @ key.transpose(-2, -1) / d**0.5
    weights = torch.softmax(scores, dim=-1)
    return weights @ value, weights
""")
change("03.2", "divided by d", "the scale is applied twice, or its root is forgotten", A32, "d**0.5", "d")
change("03.2", "no scale", "your numbers are those you get without the scale:", A32, " / d**0.5", "")
change("03.2", "multiplied by the root", "your scores are multiplied by what they should be", A32, "/ d**0.5", "* d**0.5")
change("03.2", "softmax over queries", "your softmax runs over the queries: then each key", A32, "dim=-1", "dim=-2")
change("03.2", "softmax over heads", "your softmax runs over the heads", A32, "dim=-1", "dim=1")
change("03.2", "root of the number of keys", "the scale comes from the number of keys: the sum", A32, "d = query.shape[-1]", "d = key.shape[-2]")
change("03.2", "root of the model's width", "the scale comes from the width of all heads together", A32, "d = query.shape[-1]", "d = query.shape[1] * query.shape[-1]")
change("03.2", "d = 64", "by what are the scores divided? By the square root", A32, "d = query.shape[-1]", "d = 64")
change("03.2", "reshape for transpose", "the keys are brought to [B, H, d, T] by `reshape`,", A32, "key.transpose(-2, -1)", "key.reshape(key.shape[0], key.shape[1], key.shape[3], key.shape[2])")
change("03.2", "pair the other way round", "output and weights are returned in the other order", A32, "return weights @ value, weights", "return weights, weights @ value")
change("03.2", "output only", "the result is a Tensor, expected 2 values", A32, "return weights @ value, weights", "return weights @ value")
change("03.2", "scores returned", "the output is right; the second result are the", A32, "return weights @ value, weights", "return weights @ value, scores")
change("03.2", "scale after softmax", "the weights are scaled and not the scores: they no", A32, """scores = query @ key.transpose(-2, -1) / d**0.5
    weights = torch.softmax(scores, dim=-1)""", """scores = query @ key.transpose(-2, -1)
    weights = torch.softmax(scores, dim=-1) / d**0.5""")
wrong("03.2", "query scaled in place", "an in-place operation (+=, *=, a method ending in", """
def attention(query, key, value):
    query /= query.shape[-1] ** 0.5
    weights = (query @ key.transpose(-2, -1)).softmax(dim=-1)
    return weights @ value, weights
""")
change("03.2", "tril on scores", "the scores of later keys are set to 0, and a score", A32, "weights = torch.softmax", """scores = scores.tril()
    weights = torch.softmax""")
change("03.2", "causal", "later keys are hidden: nothing in a picture comes", A32, "weights = torch.softmax", """L, T = scores.shape[-2:]
    scores = scores.masked_fill(torch.ones(L, T).triu(1).bool(), -torch.inf)
    weights = torch.softmax""")
change("03.2", "average of keys", "what you average is the keys, not the values", A32, "return weights @ value, weights", "return weights @ key, weights")
change("03.2", "weights averaged over heads", "the weights are averaged over the heads: each", A32, "return weights @ value, weights", "return weights @ value, weights.mean(1)")
wrong("03.2", "relu instead of softmax", "the scores are divided by their sum: some weights", """
def attention(query, key, value):
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    weights = scores / scores.sum(-1, keepdim=True)
    return weights @ value, weights
""")
change("03.2", "keys from the end", "largest difference", A32, "query @ key.transpose(-2, -1)", "(key @ query.transpose(-2, -1)).transpose(-2, -1) @ torch.eye(key.shape[-2]).flip(0)")

# --- 03.3 ---------------------------------------------------------------------------------------------------------

right("03.3", "chunk and cat", """
def split_heads(x, num_heads):
    return torch.stack(x.chunk(num_heads, dim=-1), dim=1)

def merge_heads(x):
    return torch.cat(list(x.unbind(dim=1)), dim=-1)
""")
right("03.3", "unflatten and movedim", """
def split_heads(x, num_heads):
    return x.unflatten(2, (num_heads, -1)).movedim(2, 1)

def merge_heads(x):
    return x.movedim(1, 2).flatten(-2)
""")
right("03.3", "loops that fill", """
def split_heads(x, num_heads):
    d = x.shape[2] // num_heads
    out = torch.empty(x.shape[0], num_heads, x.shape[1], d, dtype=x.dtype)
    for h in range(num_heads):
        out[:, h] = x[..., h * d : (h + 1) * d]
    return out

def merge_heads(x):
    B, H, N, d = x.shape
    out = x.new_zeros(B, N, H * d)
    for h in range(H):
        out[:, :, h * d : h * d + d] = x[:, h]
    return out
""")
wrong("03.3", "both by view alone", "`view` and `reshape` cut the numbers as they lie in", """
def split_heads(x, num_heads):
    B, N, D = x.shape
    return x.view(B, num_heads, N, D // num_heads)


def merge_heads(x):
    B, H, N, d = x.shape
    return x.reshape(B, N, H * d)
""")
wrong("03.3", "interleaved", "neighbouring features go to different heads; a head", """
def split_heads(x, num_heads):
    B, N, D = x.shape
    return x.reshape(B, N, D // num_heads, num_heads).permute(0, 3, 1, 2)


def merge_heads(x):
    B, H, N, d = x.shape
    return x.permute(0, 2, 3, 1).reshape(B, N, H * d)
""")
H33 = right("03.3", "as most write it", """
def split_heads(x, num_heads):
    B, N, D = x.shape
    return x.view(B, N, num_heads, D // num_heads).transpose(1, 2)


def merge_heads(x):
    B, H, N, d = x.shape
    return x.transpose(1, 2).reshape(B, N, H * d)
""")
change("03.3", "merge without transpose", "`view` and `reshape` cut the numbers as they lie in", H33, "x.transpose(1, 2).reshape(B, N, H * d)", "x.reshape(B, N, H * d)")
change("03.3", "merge interleaves", "merge_heads lays the heads between each other; they", H33, "x.transpose(1, 2).reshape(B, N, H * d)", "x.permute(0, 2, 3, 1).reshape(B, N, H * d)")
change("03.3", "merge from the last head", "the last head comes first: head 0 has the first", H33, """d = x.shape
    return x.transpose(1, 2)""", """d = x.shape
    return x.transpose(1, 2).flip(2)""")
change("03.3", "split not transposed", "the heads are split and still come after the tokens", H33, "x.view(B, N, num_heads, D // num_heads).transpose(1, 2)", "x.view(B, N, num_heads, D // num_heads)")
wrong("03.3", "stack on the wrong axis", "your code raised an error RuntimeError: shape '[2,", """
def split_heads(x, num_heads):
    B, N, D = x.shape
    return x.reshape(B, num_heads, N // num_heads, D).reshape(B, num_heads, N, D // num_heads)


def merge_heads(x):
    B, H, N, d = x.shape
    return x.reshape(B, N, H * d)
""")
change("03.3", "heads added", "merge_heads adds the heads up: they are to lie side", H33, "x.transpose(1, 2).reshape(B, N, H * d)", "x.sum(1)")
change("03.3", "four heads", "the number of heads is fixed: it is an argument", H33, "num_heads, D // num_heads).transpose", "4, D // 4).transpose")

# --- 03.4 ---------------------------------------------------------------------------------------------------------

right("03.4", "einsum, other names", """
class SiglipAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(config.hidden_size, config.hidden_size))

    def forward(self, x):
        H = self.config.num_attention_heads
        q, k, v = (p(x).unflatten(-1, (H, -1)) for p in (self.q_proj, self.k_proj, self.v_proj))
        w = torch.einsum("bnhd,bmhd->bhnm", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
        o = torch.einsum("bhnm,bmhd->bnhd", w, v)
        return self.out_proj(o.flatten(2)), w
""")
right("03.4", "one fused projection, loop over heads", """
from torch.nn import functional as F
class SiglipAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.h, self.width = config.num_attention_heads, config.hidden_size
        self.k_proj, self.v_proj, self.q_proj = [nn.Linear(self.width, self.width, bias=True) for _ in range(3)]
        self.out_proj = nn.Linear(self.width, self.width)

    def forward(self, hidden_states):
        W = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        b = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        q, k, v = F.linear(hidden_states, W, b).split(self.width, dim=-1)
        outs, maps = [], []
        for qh, kh, vh in zip(q.chunk(self.h, -1), k.chunk(self.h, -1), v.chunk(self.h, -1)):
            a = torch.softmax(qh @ kh.mT / (self.width / self.h) ** 0.5, -1)
            maps.append(a)
            outs.append(a @ vh)
        return self.out_proj(torch.cat(outs, -1)), torch.stack(maps, 1)
""")
A34 = right("03.4", "as most write it", """
class SiglipAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = D // self.num_heads
        self.q_proj = nn.Linear(D, D)
        self.k_proj = nn.Linear(D, D)
        self.v_proj = nn.Linear(D, D)
        self.out_proj = nn.Linear(D, D)

    def forward(self, hidden_states):
        B, N, D = hidden_states.shape
        query = self.q_proj(hidden_states).view(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        key = self.k_proj(hidden_states).view(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        value = self.v_proj(hidden_states).view(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        scores = query @ key.transpose(2, 3) / self.head_dim**0.5
        weights = scores.softmax(dim=-1)
        out = (weights @ value).transpose(1, 2).reshape(B, N, D)
        return self.out_proj(out), weights
""")
change("03.4", "scale forgotten", "your numbers are those you get without the scale", A34, " / self.head_dim**0.5", "")
change("03.4", "scale of the model", "the scale comes from the whole width: a head's", A34, "self.head_dim**0.5", "D**0.5")
change("03.4", "no bias", "parameter `k_proj.bias` [12] is missing parameter", A34, "nn.Linear(D, D)", "nn.Linear(D, D, bias=False)")
change("03.4", "softmax over queries", "your softmax runs over the queries: each query's", A34, "dim=-1", "dim=-2")
change("03.4", "out_proj not applied", "the heads lie side by side and are never mixed: one", A34, "self.out_proj(out), weights", "out, weights")
change("03.4", "merged without transpose", "`view` and `reshape` cut the numbers as they lie in", A34, "(weights @ value).transpose(1, 2).reshape(B, N, D)", "(weights @ value).reshape(B, N, D)")
change("03.4", "split by view", "`view` and `reshape` cut the numbers as they lie in", A34, ".view(B, N, self.num_heads, self.head_dim).transpose(1, 2)", ".view(B, self.num_heads, N, self.head_dim)")
change("03.4", "v_proj unused", "what you average is the keys, not the values", A34, "value = self.v_proj", "value = self.k_proj")
wrong("03.4", "out_proj called o_proj", "yours has a parameter `o_proj.weight` [12, 12] that", """
class SiglipAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = D // self.num_heads
        self.q_proj = nn.Linear(D, D)
        self.k_proj = nn.Linear(D, D)
        self.v_proj = nn.Linear(D, D)
        self.o_proj = nn.Linear(D, D)

    def forward(self, hidden_states):
        B, N, D = hidden_states.shape
        query = self.q_proj(hidden_states).view(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        key = self.k_proj(hidden_states).view(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        value = self.v_proj(hidden_states).view(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        scores = query @ key.transpose(2, 3) / self.head_dim**0.5
        weights = scores.softmax(dim=-1)
        out = (weights @ value).transpose(1, 2).reshape(B, N, D)
        return self.o_proj(out), weights
""")
change("03.4", "only the output", "the output alone is returned; the docstring asks", A34, "return self.out_proj(out), weights", "return self.out_proj(out)")
change("03.4", "residual inside", "what came in is added to the output: the residual", A34, "return self.out_proj(out), weights", "return hidden_states + self.out_proj(out), weights")
change("03.4", "mean over heads", "the weights are averaged over the heads: each", A34, "return self.out_proj(out), weights", "return self.out_proj(out), weights.mean(dim=1)")
change("03.4", "four heads", "the number of heads is fixed: it stands in the", A34, """config.num_attention_heads
""", """4
""")
change("03.4", "causal", "later patches are hidden: nothing in a picture", A34, "weights = scores.softmax(dim=-1)", """scores = scores.masked_fill(torch.ones(N, N).triu(1).bool(), float("-inf"))
        weights = scores.softmax(dim=-1)""")
change("03.4", "query and key exchanged", "your scores are those of the keys as queries: the", A34, "query @ key.transpose(2, 3)", "key @ query.transpose(2, 3)")
change("03.4", "dropout on the weights", "what differs between the two: a dropout that the", A34, "out = (weights @ value)", "out = (nn.functional.dropout(weights, 0.1, self.training) @ value)")
change("03.4", "heads interleaved at the merge", "the heads are laid between each other when they are", A34, "(weights @ value).transpose(1, 2).reshape(B, N, D)", "(weights @ value).permute(0, 2, 3, 1).reshape(B, N, D)")

# --- 03.5 ---------------------------------------------------------------------------------------------------------

right("03.5", "roll", """
def looking_back(N, back):
    eye = torch.eye(N)
    return eye, 1000.0 * eye.roll(-back, dims=1), eye.clone()
""")
right("03.5", "a parabola with its top at i - back", """
def looking_back(N, back):
    # score = c * (2 (i - back) j - j^2): largest for j = i - back
    i = torch.arange(N, dtype=torch.float32)
    positions = torch.stack([torch.ones(N), i, i * i], dim=1)
    c = 10.0 * 3**0.5
    w_q = torch.tensor([[-2.0 * back, -1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]) * c
    w_k = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    w_k = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return positions, w_q, w_k
""")
right("03.5", "rotations", """
def looking_back(N, back):
    f = 2 * torch.pi * torch.arange(N) / N
    angle = torch.arange(N)[:, None] * f
    positions = torch.cat([angle.cos(), angle.sin()], dim=1)
    c, s = (back * f).cos(), (back * f).sin()
    w_k = torch.eye(2 * N)
    w_q = torch.cat([torch.cat([torch.diag(c), torch.diag(-s)], 1), torch.cat([torch.diag(s), torch.diag(c)], 1)], 0)
    return positions, 40.0 * w_q, w_k
""")
L35 = right("03.5", "as most write it", """
def looking_back(N, back):
    positions = torch.eye(N)
    w_k = torch.eye(N)
    w_q = torch.zeros(N, N)
    for i in range(back, N):
        w_q[i, i - back] = 20 * N**0.5
    return positions, w_q, w_k
""")
change("03.5", "too weak", "larger scores make a sharper softmax: the score of", L35, "20 * N**0.5", "1.0")
change("03.5", "looks ahead", "your head looks ahead instead of back: query and", L35, "w_q[i, i - back]", "w_q[i - back, i]")
change("03.5", "one too few", "which column of the query's row has the number, and", L35, "i - back", "i - back + 1")
change("03.5", "first one left out", "all its scores are equal: is its query set, and not", L35, "range(back, N)", "range(back + 1, N)")
change("03.5", "looks at itself", "queries and keys of one token are alike: shift one", L35, "w_q[i, i - back]", "w_q[i, i]")
change("03.5", "always eight", "your head looks eight back, whatever `back` is", L35, "i - back", "i - 8")
change("03.5", "pair the other way round", "your head looks ahead instead of back: query and", L35, "return positions, w_q, w_k", "return positions, w_k, w_q")
change("03.5", "positions as numbers", "positions, w_q and w_k are [12, 1], [12, 12], [12,", L35, "positions = torch.eye(N)", "positions = torch.arange(N)[:, None]")
change("03.5", "root of N forgotten", "larger scores make a sharper softmax: the score of", L35, "20 * N**0.5", "10")
change("03.5", "looks at two", "its query agrees with two keys: larger scores do", L35, """N**0.5
""", """N**0.5
        w_q[i, i - 1] = 20 * N**0.5
""")

# --- 03.6 ---------------------------------------------------------------------------------------------------------

right("03.6", "plain", """
def read_maps():
    return {
        "A": "softmax over the queries",
        "B": "scale left out",
        "C": "as it should be",
        "D": "causal",
        "E": "query and key exchanged",
        "F": "queries of zero",
    }
""")
wrong("03.6", "B and C exchanged", "'as it should be' and another are exchanged: both", """
def read_maps():
    return {
        "A": "softmax over the queries",
        "B": "as it should be",
        "C": "scale left out",
        "D": "causal",
        "E": "query and key exchanged",
        "F": "queries of zero",
    }
""")
wrong("03.6", "C and E exchanged", "'query and key exchanged' and another are", """
def read_maps():
    return {
        "A": "softmax over the queries",
        "B": "scale left out",
        "C": "query and key exchanged",
        "D": "causal",
        "E": "as it should be",
        "F": "queries of zero",
    }
""")
wrong("03.6", "a list", "the result is a list, expected a dict with a name", """
def read_maps():
    return ["softmax over the queries", "scale left out", "as it should be", "causal", "query and key exchanged", "queries of zero"]
""")

# --- 04.1 ---------------------------------------------------------------------------------------------------------

right("04.1", "var_mean and rsqrt", """
def layer_norm(x, weight, bias, eps=1e-6):
    var, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    return torch.addcmul(bias, (x - mean) * torch.rsqrt(var + eps), weight)
""")
right("04.1", "var_mean and einsum", """
def layer_norm(x, weight, bias, eps=1e-6):
    var, mean = torch.var_mean(x, dim=-1, correction=0)
    y = torch.einsum("bnd,bn->bnd", x - mean[..., None], (var + eps).rsqrt())
    return torch.addcmul(bias, y, weight)
""")
right("04.1", "token by token", """
def layer_norm(x, weight, bias, eps=1e-6):
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for n in range(x.shape[1]):
            t = x[b, n]
            c = t - t.sum() / t.numel()
            out[b, n] = weight * (c / (torch.dot(c, c) / c.numel() + eps).sqrt()) + bias
    return out
""")
right("04.1", "a centring matrix", """
def layer_norm(x, weight, bias, eps=1e-6):
    D = x.shape[-1]
    centring = torch.eye(D) - torch.full((D, D), 1 / D)
    c = torch.einsum("bnd,de->bne", x, centring)
    std = (torch.linalg.vector_norm(c, dim=-1, keepdim=True) ** 2 / D + eps) ** 0.5
    y = c / std
    y *= weight
    y += bias
    return y
""")
N41 = right("04.1", "as most write it", """
def layer_norm(x, weight, bias, eps=1e-6):
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    variance = centred.pow(2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * weight + bias
""")
change("04.1", "variance over D - 1", "your variance divides by the count minus one, as", N41, "centred.pow(2).mean(-1, keepdim=True)", "x.var(-1, keepdim=True)")
change("04.1", "eps outside the root", "eps is added after the root: at size 1 nobody", N41, "torch.sqrt(variance + eps)", "(torch.sqrt(variance) + eps)")
change("04.1", "no eps", "your numbers are those you get without eps: a token", N41, "torch.sqrt(variance + eps)", "torch.sqrt(variance)")
change("04.1", "no root", "your numbers are those you get when dividing by the", N41, "torch.sqrt(variance + eps)", "(variance + eps)")
change("04.1", "mean square instead of variance", "the mean is subtracted above, and below stands the", N41, "variance = centred.pow(2)", "variance = x.pow(2)")
change("04.1", "no mean subtracted", "your numbers are those of RMSNorm, which does not", N41, "mean = x.mean(-1, keepdim=True)", "mean = 0")
change("04.1", "over all tokens of a row", "mean and variance run over tokens and features", N41, "-1, keepdim", "(1, 2), keepdim")
change("04.1", "over the tokens", "mean and variance run over the tokens: each token", N41, "-1, keepdim", "1, keepdim")
change("04.1", "batch norm", "mean and variance run over the batch and the", N41, "-1, keepdim", "(0, 1), keepdim")
change("04.1", "no bias", "your numbers are those you get without the bias", N41, " * weight + bias", " * weight")
change("04.1", "1 + weight", "your scale is 1 + weight: that is Gemma's RMSNorm;", N41, " * weight + bias", " * (1 + weight) + bias")
change("04.1", "bias before weight", "the bias is added first and scaled, too", N41, "centred / torch.sqrt(variance + eps) * weight + bias", "(centred / torch.sqrt(variance + eps) + bias) * weight")
change("04.1", "eps fixed", "the eps that is given is not used: torch's usual", N41, "variance + eps", "variance + 1e-5")
change("04.1", "mean deviation", "the variance is the mean of the squared", N41, "centred.pow(2).mean", "centred.abs().mean")
wrong("04.1", "in place", "an in-place operation (+=, *=, a method ending in", """
def layer_norm(x, weight, bias, eps=1e-6):
    x -= x.mean(-1, keepdim=True)
    x /= torch.sqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * weight + bias
""")
change("04.1", "mean subtracted after the division", "the mean is subtracted after the division: it has", N41, "centred / torch.sqrt(variance + eps) * weight", "(x / torch.sqrt(variance + eps) - mean) * weight")
wrong("04.1", "std instead", "two at once: torch's std divides by the count minus", """
def layer_norm(x, weight, bias, eps=1e-6):
    return weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + eps) + bias
""")
wrong("04.1", "F.layer_norm", "write it yourself: that is what this task is about", """
def layer_norm(x, weight, bias, eps=1e-6):
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)
""")

# --- 04.2 ---------------------------------------------------------------------------------------------------------

E42 = right("04.2", "as most write it", """
def exposing():
    t = torch.tensor
    return {
        "bias_first": (t([[1.0, 1.0]]), t([0.0, 0.0]), t([1.0, 1.0]), torch.eye(2) * 20, torch.eye(2)),
        "large_eps": (t([[0.1, -0.1]]), t([0.1, 0.1]), t([0.0, 0.0]), torch.eye(2) * 200, torch.eye(2)),
        "relu": (t([[100.0, -100.0]]), t([100.0, 100.0]), t([0.0, 0.0]), torch.eye(2) * 0.01, torch.eye(2) * 100),
        "residual_from_norm": (t([[300.0, -300.0]]), t([1.0, 1.0]), t([0.0, 0.0]), torch.zeros(2, 2), torch.eye(2)),
        "mean_of_all": (t([[300.0, -100.0], [-300.0, 100.0]]), t([300.0, 100.0]), t([0.0, 0.0]), torch.eye(2), torch.eye(2)),
    }
""")
change("04.2", "relu with large numbers", "On your input for relu, relu gives what the right version gives", E42, "torch.eye(2) * 0.01, torch.eye(2) * 100", "torch.eye(2), torch.eye(2)")
change("04.2", "x is its own norm", "On your input for residual_from_norm, residual_from_norm gives", E42, "(t([[300.0, -300.0]]), t([1.0, 1.0])", "(t([[1.0, -1.0]]), t([1.0, 1.0])")
wrong("04.2", "random", "Your input for bias_first exposes it, and large_eps, relu,", """
def exposing():
    names = ["bias_first", "large_eps", "relu", "residual_from_norm", "mean_of_all"]
    return {n: (torch.randn(3, 4), torch.randn(4), torch.randn(4), torch.randn(4, 8), torch.randn(8, 4)) for n in names}
""")
change("04.2", "sizes that do not fit", "residual_from_norm: x [1, 2], weight [2], bias [2],", E42, "torch.zeros(2, 2), torch.eye(2))", "torch.zeros(2, 3), torch.eye(2))")

# --- 04.3 ---------------------------------------------------------------------------------------------------------

right("04.3", "a loop over the two halves", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        x = hidden_states
        for norm, part in ((self.layer_norm1, lambda t: self.self_attn(t)[0]), (self.layer_norm2, self.mlp)):
            x = torch.add(x, part(norm(x)))
        return x
""")
right("04.3", "in place on a clone", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        stream = hidden_states.clone()
        stream += self.self_attn(self.layer_norm1(stream))[0]
        stream += self.mlp(self.layer_norm2(stream))
        return stream
""")
L43 = right("04.3", "as most write it", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        residual = hidden_states
        hidden_states = self.layer_norm1(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.layer_norm2(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states
""")
change("04.3", "first residual from the norm", "what the attention's output is added to is the", L43, """        residual = hidden_states
        hidden_states = self.layer_norm1(hidden_states)
""", """        hidden_states = self.layer_norm1(hidden_states)
        residual = hidden_states
""")
change("04.3", "second residual from the norm", "what the MLP's output is added to is the normalised", L43, """        residual = hidden_states
        hidden_states = self.layer_norm2(hidden_states)
""", """        hidden_states = self.layer_norm2(hidden_states)
        residual = hidden_states
""")
change("04.3", "second residual is the input", "the MLP's output is added to what came into the", L43, """hidden_states = residual + hidden_states
        residual = hidden_states
""", """hidden_states = residual + hidden_states
""")
change("04.3", "layer_norm1 twice", "the first norm is used in both places", L43, "self.layer_norm2(hidden_states)", "self.layer_norm1(hidden_states)")
change("04.3", "pair not taken apart", "attention returns two things, output and weights:", L43, "hidden_states, _ = self", "hidden_states = self")
change("04.3", "second residual forgotten", "the MLP's output replaces what came in", L43, """        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states""", "        hidden_states = self.mlp(hidden_states)")
wrong("04.3", "post-norm", "your norms come after the sums (as in 2017,", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        x = hidden_states
        x = self.layer_norm1(x + self.self_attn(x)[0])
        return self.layer_norm2(x + self.mlp(x))
""")
wrong("04.3", "in parallel", "attention and MLP both read what came into the", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        x = hidden_states
        return x + self.self_attn(self.layer_norm1(x))[0] + self.mlp(self.layer_norm2(x))
""")
wrong("04.3", "MLP first", "the MLP comes before the attention", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        x = hidden_states
        x = x + self.mlp(self.layer_norm2(x))
        return x + self.self_attn(self.layer_norm1(x))[0]
""")
wrong("04.3", "norms left out", "the attention reads the tokens as they came,", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        x = hidden_states
        x = x + self.self_attn(x)[0]
        x = x + self.mlp(self.layer_norm2(x))
        return x
""")
wrong("04.3", "in place on the argument", "an in-place operation (+=, *=, a method ending in", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        hidden_states += self.self_attn(self.layer_norm1(hidden_states))[0]
        hidden_states += self.mlp(self.layer_norm2(hidden_states))
        return hidden_states
""")
wrong("04.3", "MLP half forgotten", "what you return is the sum after the attention: the", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        attended, weights = self.self_attn(self.layer_norm1(hidden_states))
        return hidden_states + attended
""")
change("04.3", "pair returned", "the result is a tuple, expected a Tensor", L43, "n hidden_states", "n (hidden_states,)")
wrong("04.3", "norm2 on the attention only", "the second norm gets the attention's output alone:", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        x = hidden_states
        attended, _ = self.self_attn(self.layer_norm1(x))
        x = x + attended
        return x + self.mlp(self.layer_norm2(attended))
""")
change("04.3", "residual halved", "the sums are divided by two: a residual is a sum,", L43, """residual + hidden_states
        residual = hidden_states
        hidden_states = self.layer_norm2(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states""", """(residual + hidden_states) / 2
        residual = hidden_states
        hidden_states = self.layer_norm2(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = (residual + hidden_states) / 2""")

# --- 04.4 ---------------------------------------------------------------------------------------------------------

right("04.4", "binary cross entropy", """
def sigmoid_loss(logits, fits):
    return F.binary_cross_entropy_with_logits(logits, fits.to(logits.dtype), reduction="sum") / logits.shape[0]
""")
right("04.4", "softplus, row by row", """
def sigmoid_loss(logits, fits):
    per_picture = []
    for row, ok in zip(logits, fits):
        per_picture.append(F.softplus(-row[ok]).sum() + F.softplus(row[~ok]).sum())
    return torch.stack(per_picture).mean()
""")
right("04.4", "logaddexp", """
def sigmoid_loss(logits, fits):
    z = torch.where(fits, -logits, logits)
    return torch.logaddexp(z, torch.zeros_like(z)).sum(dim=1).mean(dim=0)
""")
S44 = right("04.4", "as most write it", """
def sigmoid_loss(logits, fits):
    labels = 2.0 * fits - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)
""")
change("04.4", "mean over all", "you take the mean over all pairs: the paper sums", S44, ".sum() / len(logits)", ".mean()")
change("04.4", "divided by the texts", "you divide by the number of texts: the loss is a", S44, "len(logits)", "logits.shape[1]")
change("04.4", "sum", "you sum over everything: the loss is to be a mean", S44, ".sum() / len(logits)", ".sum()")
change("04.4", "log of sigmoid", "for -100, the sigmoid is 0 in float32, and its", S44, "F.logsigmoid(labels * logits)", "torch.log(torch.sigmoid(labels * logits))")
change("04.4", "labels 0 and 1", "with labels 1 and 0, the pairs that do not belong", S44, "labels = 2.0 * fits - 1", "labels = fits.float()")
change("04.4", "labels turned round", "the labels are the wrong way round: pairs that", S44, "labels = 2.0 * fits - 1", "labels = 1 - 2.0 * fits")
change("04.4", "sign", "your loss has the wrong sign: it falls when the", S44, "-F.logsigmoid", "F.logsigmoid")
wrong("04.4", "diagonal only", "you take the matching pairs to be those of equal", """
def sigmoid_loss(logits, fits):
    n, m = logits.shape
    labels = 2 * torch.eye(n, m) - 1
    return -F.logsigmoid(labels * logits).sum() / n
""")
wrong("04.4", "only the pairs that fit", "only the matching pairs count: saying yes to", """
def sigmoid_loss(logits, fits):
    return -F.logsigmoid(logits)[fits].sum() / logits.shape[0]
""")
wrong("04.4", "CLIP's loss", "your softmax lets the texts of a picture compete:", """
def sigmoid_loss(logits, fits):
    log_p = logits.log_softmax(dim=-1)
    return -(log_p * fits).sum() / len(logits)
""")
change("04.4", "clamped", "the probability is kept away from 0 (a clamp, or a", S44, "F.logsigmoid(labels * logits)", "torch.log(torch.sigmoid(labels * logits).clamp(min=1e-7))")
wrong("04.4", "a Python number", "the chain is cut on the way: .detach(), .data,", """
def sigmoid_loss(logits, fits):
    labels = 2.0 * fits - 1
    loss = -F.logsigmoid(labels * logits).sum() / len(logits)
    return loss.item()
""")
change("04.4", "one axis left", "the shape is [1], expected []", S44, ".sum() / len(logits)", ".mean(dim=0).sum(dim=0, keepdim=True)")
wrong("04.4", "squared error", "your loss is a squared error of probabilities:", """
def sigmoid_loss(logits, fits):
    return (torch.sigmoid(logits) - fits.float()).square().sum(1).mean()
""")

# --- 04.5 ---------------------------------------------------------------------------------------------------------

right("04.5", "plain", """
def read_matrices():
    return {
        "A": "every text the same",
        "B": "untrained image encoder",
        "C": "texts moved on by one",
        "D": "as it was trained",
        "E": "colours left out of the texts",
    }
""")
wrong("04.5", "B and E exchanged", "'colours left out of the texts' and another are", """
def read_matrices():
    return {
        "A": "every text the same",
        "B": "colours left out of the texts",
        "C": "texts moved on by one",
        "D": "as it was trained",
        "E": "untrained image encoder",
    }
""")
wrong("04.5", "C and D exchanged", "'as it was trained' and another are exchanged: on", """
def read_matrices():
    return {
        "A": "every text the same",
        "B": "untrained image encoder",
        "C": "as it was trained",
        "D": "texts moved on by one",
        "E": "colours left out of the texts",
    }
""")

# --- 04.6 ---------------------------------------------------------------------------------------------------------

right("04.6", "one name throughout", """
class FromTheNorm(modeling_siglip.SiglipEncoderLayer):
    def forward(self, hidden_states):
        x = self.layer_norm1(hidden_states)
        attended, _ = self.self_attn(x)
        x = self.layer_norm2(attended.add(x))
        x = x.add(self.mlp(x))
        return x
""")
wrong("04.6", "the right layer", "your layer computes what the right one computes:", """
class FromTheNorm(modeling_siglip.SiglipEncoderLayer):
    def forward(self, hidden_states):
        hidden_states = hidden_states + self.self_attn(self.layer_norm1(hidden_states))[0]
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))
""")
B46 = right("04.6", "as most write it", """
class FromTheNorm(modeling_siglip.SiglipEncoderLayer):
    def forward(self, hidden_states):
        normed = self.layer_norm1(hidden_states)
        hidden_states = normed + self.self_attn(normed)[0]
        normed = self.layer_norm2(hidden_states)
        return normed + self.mlp(normed)
""")
change("04.6", "only the first", "the second residual, around the MLP, still comes", B46, "return normed + self", "return hidden_states + self")
change("04.6", "only the second", "the first residual, around the attention, still", B46, "hidden_states = normed + self", "hidden_states = hidden_states + self")
change("04.6", "attention without the norm", "the attention reads the input as it came: it is to", B46, "self.self_attn(normed)[0]", "self.self_attn(hidden_states)[0]")
wrong("04.6", "no residual", "nothing is added any more: the residuals are to", """
class FromTheNorm(modeling_siglip.SiglipEncoderLayer):
    def forward(self, hidden_states):
        x = self.self_attn(self.layer_norm1(hidden_states))[0]
        return self.mlp(self.layer_norm2(x))
""")
wrong("04.6", "post-norm", "your norms come after the sums: they are to stay", """
class FromTheNorm(modeling_siglip.SiglipEncoderLayer):
    def forward(self, hidden_states):
        x = self.layer_norm1(hidden_states + self.self_attn(hidden_states)[0])
        return self.layer_norm2(x + self.mlp(x))
""")
wrong("04.6", "second residual from the first norm", "the MLP's result is added to the output of the", """
class FromTheNorm(modeling_siglip.SiglipEncoderLayer):
    def forward(self, hidden_states):
        normed = self.layer_norm1(hidden_states)
        x = normed + self.self_attn(normed)[0]
        return normed + self.mlp(self.layer_norm2(x))
""")
change("04.6", "layer_norm1 in both places", "the first norm is used in both places", B46, "2", "1")

# --- 05.1 ---------------------------------------------------------------------------------------------------------

right("05.1", "plain", """
def read_rows():
    return {
        "A": "loss on padding",
        "B": "moved twice",
        "C": "as it should be",
        "D": "no EOS",
        "E": "loss on the prompt",
    }
""")
wrong("05.1", "A and E exchanged", "'loss on the prompt' and another are exchanged:", """
def read_rows():
    return {
        "A": "loss on the prompt",
        "B": "moved twice",
        "C": "as it should be",
        "D": "no EOS",
        "E": "loss on padding",
    }
""")
wrong("05.1", "B and C exchanged", "'as it should be' and another are exchanged: labels", """
def read_rows():
    return {
        "A": "loss on padding",
        "B": "as it should be",
        "C": "moved twice",
        "D": "no EOS",
        "E": "loss on the prompt",
    }
""")
wrong("05.1", "D left out", "the rows are ['A', 'B', 'C', 'E'], expected ['A',", """
def read_rows():
    return {
        "A": "loss on padding",
        "B": "moved twice",
        "C": "as it should be",
        "E": "loss on the prompt",
    }
""")

# --- 05.2 ---------------------------------------------------------------------------------------------------------

right("05.2", "arithmetic", """
def make_labels(input_ids, token_type_ids):
    return input_ids * token_type_ids - 100 * (1 - token_type_ids)
""")
right("05.2", "clone and boolean index", """
def make_labels(input_ids, token_type_ids):
    labels = input_ids.clone()
    labels[token_type_ids != 1] = -100
    return labels
""")
right("05.2", "list comprehension", """
def make_labels(ids, kinds):
    return torch.tensor([[i if k else -100 for i, k in zip(a, b)] for a, b in zip(ids.tolist(), kinds.tolist())])
""")
L52 = right("05.2", "as most write it", """
def make_labels(input_ids, token_type_ids):
    return torch.where(token_type_ids == 1, input_ids, -100)
""")
change("05.2", "turned round", "the prompt has labels and the answer has none", L52, "== 1", "== 0")
wrong("05.2", "in place", "an in-place operation (+=, *=, a method ending in", """
def make_labels(input_ids, token_type_ids):
    input_ids[token_type_ids == 0] = -100
    return input_ids
""")
wrong("05.2", "moved to the left", "your labels are moved one place to the left: the", """
def make_labels(input_ids, token_type_ids):
    labels = input_ids.masked_fill(token_type_ids == 0, -100)
    shifted = torch.full_like(labels, -100)
    shifted[:, :-1] = labels[:, 1:]
    return shifted
""")
wrong("05.2", "moved to the right", "your labels are moved one place to the right", """
def make_labels(input_ids, token_type_ids):
    labels = torch.where(token_type_ids == 1, input_ids, -100)
    return torch.roll(labels, 1, dims=1)
""")
change("05.2", "0 for nothing", "where there is nothing to learn stands 0, which is", L52, "-100", "0")
change("05.2", "-1 for nothing", "where there is nothing to learn stands -1: the loss", L52, "-100", "-1")
change("05.2", "kinds as labels", "your labels are the kinds: where the answer is, its", L52, "input_ids, -100", "token_type_ids, -100")
wrong("05.2", "EOS dropped", "the answer's last token has no label: the model", """
def make_labels(input_ids, token_type_ids):
    labels = torch.full_like(input_ids, -100)
    for b in range(len(input_ids)):
        places = token_type_ids[b].nonzero().flatten()
        for t in places[:-1]:
            labels[b, t] = input_ids[b, t]
    return labels
""")
wrong("05.2", "first row's kinds for all", "what sets row 0 apart? Either something is read", """
def make_labels(input_ids, token_type_ids):
    answer = token_type_ids[0].bool()
    labels = torch.full_like(input_ids, -100)
    labels[:, answer] = input_ids[:, answer]
    return labels
""")
wrong("05.2", "one flat row", "the answer is cut out: labels are as long as the", """
def make_labels(input_ids, token_type_ids):
    return input_ids[token_type_ids == 1]
""")
wrong("05.2", "floats", "the result is float32, expected int64", """
def make_labels(input_ids, token_type_ids):
    labels = torch.full(input_ids.shape, -100.0)
    mask = token_type_ids.bool()
    labels[mask] = input_ids[mask].float()
    return labels
""")
wrong("05.2", "everything is learned", "the prompt has labels, too: the model would learn", """
def make_labels(input_ids, token_type_ids):
    labels = input_ids.clone()
    labels[input_ids == -100] = -100
    return labels
""")
wrong("05.2", "everything from the first answer token on", "padding behind the answer has labels, too: the", """
def make_labels(input_ids, token_type_ids):
    started = token_type_ids.cumsum(dim=1) > 0
    return input_ids.masked_fill(~started, -100)
""")

# --- 05.3 ---------------------------------------------------------------------------------------------------------

right("05.3", "with lists", """
def pad(rows, pad_id, side):
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        missing = longest - len(row)
        if side == "left":
            ids.append([pad_id] * missing + row)
            mask.append([0] * missing + [1] * len(row))
        else:
            ids.append(row + [pad_id] * missing)
            mask.append([1] * len(row) + [0] * missing)
    return dict(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
""")
right("05.3", "pad_sequence", """
from torch.nn.utils.rnn import pad_sequence
def pad(rows, pad_id, side):
    tensors = [torch.tensor(r, dtype=torch.long) for r in rows]
    ones = [torch.ones_like(t) for t in tensors]
    return {
        "input_ids": pad_sequence(tensors, batch_first=True, padding_value=pad_id, padding_side=side),
        "attention_mask": pad_sequence(ones, batch_first=True, padding_side=side),
    }
""")
right("05.3", "F.pad, mask from lengths", """
import torch.nn.functional as F
def pad(rows, pad_id, side):
    n = torch.tensor([len(r) for r in rows])
    L = int(n.max())
    place = torch.arange(L)
    mask = place < n[:, None] if side == "right" else place >= L - n[:, None]
    ids = torch.stack([F.pad(torch.tensor(r), (0, L - len(r)) if side == "right" else (L - len(r), 0), value=pad_id) for r in rows])
    return {"attention_mask": mask.long(), "input_ids": ids}
""")
P53 = right("05.3", "as most write it", """
def pad(rows, pad_id, side):
    L = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), L), pad_id)
    attention_mask = torch.zeros(len(rows), L, dtype=torch.int64)
    for i, row in enumerate(rows):
        start = 0 if side == "right" else L - len(row)
        input_ids[i, start : start + len(row)] = torch.tensor(row)
        attention_mask[i, start : start + len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
""")
change("05.3", "mask from the ids", "your mask is 0 wherever the padding token's number", P53, '    return {"input_ids"', '''    attention_mask = (input_ids != pad_id).long()
    return {"input_ids"''')
change("05.3", "side ignored", "your rows are padded on the right, whatever `side`", P53, '0 if side == "right" else L - len(row)', "0")
change("05.3", "sides exchanged", "left and right are exchanged: the side is where the", P53, 'side == "right"', 'side == "left"')
change("05.3", "shortest", "your table is as long as the shortest row: the", P53, "max(len", "min(len")
change("05.3", "zeros for padding", "your padding is 0: the number of the padding token", P53, "torch.full((len(rows), L), pad_id)", "torch.zeros(len(rows), L, dtype=torch.int64)")
change("05.3", "mask always on the left", "the ids stand at the right places, and the mask is", P53, "attention_mask[i, start : start + len(row)] = 1", "attention_mask[i, : len(row)] = 1")
change("05.3", "bool mask", "your mask holds True and False: whole numbers, 1", P53, "dtype=torch.int64", "dtype=torch.bool")
wrong("05.3", "rows grow", "an in-place operation (+=, *=, a method ending in", """
def pad(rows, pad_id, side):
    L = max(len(row) for row in rows)
    mask = []
    for row in rows:
        n = len(row)
        while len(row) < L:
            if side == "left":
                row.insert(0, pad_id)
            else:
                row.append(pad_id)
        mask.append([0] * (L - n) + [1] * n if side == "left" else [1] * n + [0] * (L - n))
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
""")
wrong("05.3", "mask turned round", "your mask is 1 for padding: it is 1 for what may be", """
def pad(rows, pad_id, side):
    L = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), L), pad_id)
    attention_mask = torch.ones(len(rows), L, dtype=torch.int64)
    for i, row in enumerate(rows):
        start = 0 if side == "right" else L - len(row)
        input_ids[i, start : start + len(row)] = torch.tensor(row)
        attention_mask[i, start : start + len(row)] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}
""")
change("05.3", "reversed on the left", "each row holds the right ids in reverse: turning", P53, "torch.tensor(row)", 'torch.tensor(row if side == "right" else row[::-1])')
change("05.3", "one too long", "your rows are one place longer than the longest", P53, "L = max(len(row) for row in rows)", "L = max(len(row) for row in rows) + 1")
change("05.3", "sixteen", "the length of your rows is fixed: it is that of the", P53, "L = max(len(row) for row in rows)", "L = 16")
change("05.3", "a pair", "the result is a tuple, expected a dict", P53, 'return {"input_ids": input_ids, "attention_mask": attention_mask}', "return input_ids, attention_mask")
change("05.3", "called mask", "keys ['input_ids', 'mask'], expected", P53, '"attention_mask": attention_mask', '"mask": attention_mask')
change("05.3", "ones everywhere", "your mask is 1 everywhere: the model would look at", P53, "start : start + len(row)] = 1", ":] = 1")

# --- 05.4 ---------------------------------------------------------------------------------------------------------

right("05.4", "tensors joined", """
def encode(tokenizer, prompt, suffix, num_image_tokens):
    def ids(text):
        return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
    p = ids(f"{'<image>' * num_image_tokens}{tokenizer.bos_token}{prompt}\\n")
    a = ids(f"{suffix}{tokenizer.eos_token}")
    kinds = torch.cat([torch.zeros_like(p), torch.ones_like(a)])
    row = torch.cat([p, a])
    return {k: v.unsqueeze(0) for k, v in dict(input_ids=row, token_type_ids=kinds, labels=row.where(kinds.bool(), torch.tensor(-100))).items()}
""")
right("05.4", "append token by token", """
def encode(tokenizer, prompt, suffix, num_image_tokens):
    out = {"input_ids": [], "token_type_ids": [], "labels": []}
    texts = ["".join(["<image>"] * num_image_tokens + [tokenizer.bos_token, prompt, "\\n"]), suffix + tokenizer.eos_token]
    for kind, text in enumerate(texts):
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
            out["input_ids"].append(token)
            out["token_type_ids"].append(kind)
            out["labels"].append(token if kind == 1 else -100)
    return {name: torch.tensor(values).reshape(1, -1) for name, values in out.items()}
""")
N54 = right("05.4", "as most write it", """
def encode(tokenizer, prompt, suffix, num_image_tokens):
    prefix = "<image>" * num_image_tokens + tokenizer.bos_token + prompt + "\\n"
    answer = suffix + tokenizer.eos_token
    prefix_ids = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return {
        "input_ids": torch.tensor([prefix_ids + answer_ids]),
        "token_type_ids": torch.tensor([[0] * len(prefix_ids) + [1] * len(answer_ids)]),
        "labels": torch.tensor([[-100] * len(prefix_ids) + answer_ids]),
    }
""")
change("05.4", "no newline", "the newline that ends the prompt is missing", N54, ' + "\\n"', "")
change("05.4", "no EOS", "the answer does not end in EOS: the model would", N54, "answer = suffix + tokenizer.eos_token", "answer = suffix")
change("05.4", "newline belongs to the answer", "the newline counts as part of the answer: it ends", N54, """ + "\\n"
    answer =""", """
    answer = "\\n" +""")
change("05.4", "BOS first", "the picture comes before the text, and so before", N54, '"<image>" * num_image_tokens + tokenizer.bos_token', 'tokenizer.bos_token + "<image>" * num_image_tokens')
change("05.4", "no BOS", "the token that begins the text is missing", N54, " + tokenizer.bos_token", "")
change("05.4", "BOS before the answer", "a second BOS stands before the answer: a text", N54, "answer = suffix", "answer = tokenizer.bos_token + suffix")
change("05.4", "labels on the prompt", "the prompt has labels, too: the model would learn", N54, "[-100] * len(prefix_ids) + answer_ids", "prefix_ids + answer_ids")
change("05.4", "labels moved", "your labels are moved one place to the left: the", N54, "[-100] * len(prefix_ids) + answer_ids", "[-100] * (len(prefix_ids) - 1) + answer_ids + [-100]")
change("05.4", "no label for EOS", "EOS has no label: the model would never learn to", N54, "[-100] * len(prefix_ids) + answer_ids", "[-100] * len(prefix_ids) + answer_ids[:-1] + [-100]")
change("05.4", "kinds exchanged", "the kinds are exchanged: 1 is the answer", N54, "[0] * len(prefix_ids) + [1] * len(answer_ids)", "[1] * len(prefix_ids) + [0] * len(answer_ids)")
change("05.4", "image of kind 1", "the image tokens are of kind 1, as the answer is:", N54, "[0] * len(prefix_ids) + [1] * len(answer_ids)", "[1] * num_image_tokens + [0] * (len(prefix_ids) - num_image_tokens) + [1] * len(answer_ids)")
wrong("05.4", "one dimension", "your tensors have one axis: a batch of one row has", """
def encode(tokenizer, prompt, suffix, num_image_tokens):
    prefix = "<image>" * num_image_tokens + tokenizer.bos_token + prompt + "\\n"
    answer = suffix + tokenizer.eos_token
    prefix_ids = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return {
        "input_ids": torch.tensor(prefix_ids + answer_ids),
        "token_type_ids": torch.tensor([0] * len(prefix_ids) + [1] * len(answer_ids)),
        "labels": torch.tensor([-100] * len(prefix_ids) + answer_ids),
    }
""")
change("05.4", "64 image tokens", "the number of image tokens is fixed: it is an", N54, '"<image>" * num_image_tokens', '"<image>" * 64')
change("05.4", "space after BOS", "a space stands between BOS and the prompt: nothing", N54, "bos_token + prompt", 'bos_token + " " + prompt')
change("05.4", "special tokens added", "the tokenizer adds special tokens of its own to", N54, """, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answer, add_special_tokens=False""", """)["input_ids"]
    answer_ids = tokenizer(answer""")
wrong("05.4", "turned into ids together", "prompt and answer are turned into ids as one text:", """
def encode(tokenizer, prompt, suffix, num_image_tokens):
    prefix = "<image>" * num_image_tokens + tokenizer.bos_token + prompt + "\\n"
    ids = tokenizer(prefix + suffix + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    n = len(tokenizer(prefix, add_special_tokens=False)["input_ids"])
    return {
        "input_ids": torch.tensor([ids]),
        "token_type_ids": torch.tensor([[0] * n + [1] * (len(ids) - n)]),
        "labels": torch.tensor([[-100] * n + ids[n:]]),
    }
""")
change("05.4", "space before the answer", "there is a space before the answer: it becomes", N54, "answer = suffix", 'answer = " " + suffix')
change("05.4", "prompt tidied", "the prompt or the answer is changed (stripped, in", N54, 'prompt + "\\n"', 'prompt.strip().lower() + "\\n"')
change("05.4", "labels 0", "the labels of the prefix are 0, which is a token", N54, "[[-100] *", "[[0] *")
change("05.4", "backslash n", "a backslash and an n stand where a newline belongs", N54, 'prompt + "\\n"', 'prompt + "\\\\n"')
change("05.4", "answer first", "the ids of the answer come before those of the", N54, "torch.tensor([prefix_ids + answer_ids])", "torch.tensor([answer_ids + prefix_ids])")

# --- 05.5 ---------------------------------------------------------------------------------------------------------

right("05.5", "lists", """
def collate(rows, pad_id):
    L = max(len(p + a) for p, a in rows)
    table = {"input_ids": [], "attention_mask": [], "token_type_ids": [], "labels": []}
    for p, a in rows:
        rest = L - len(p) - len(a)
        table["input_ids"].append([*p, *a, *[pad_id] * rest])
        table["attention_mask"].append([1] * (L - rest) + [0] * rest)
        table["token_type_ids"].append([0] * len(p) + [1] * len(a) + [0] * rest)
        table["labels"].append([-100] * len(p) + list(a) + [-100] * rest)
    return {k: torch.tensor(v) for k, v in table.items()}
""")
right("05.5", "from lengths by comparison", """
def collate(rows, pad_id):
    p = torch.tensor([len(a) for a, _ in rows])[:, None]
    e = torch.tensor([len(a) + len(b) for a, b in rows])[:, None]
    t = torch.arange(int(e.max()))[None]
    real, kind = (t < e).long(), ((t >= p) & (t < e)).long()
    ids = torch.full(real.shape, pad_id)
    ids[real.bool()] = torch.tensor([x for a, b in rows for x in a + b])
    return dict(input_ids=ids, attention_mask=real, token_type_ids=kind, labels=ids.masked_fill(kind == 0, -100))
""")
C55 = right("05.5", "as most write it", """
def collate(rows, pad_id):
    longest = max(len(prefix) + len(answer) for prefix, answer in rows)
    input_ids = torch.full((len(rows), longest), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    token_type_ids = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for i, (prefix, answer) in enumerate(rows):
        middle, end = len(prefix), len(prefix) + len(answer)
        input_ids[i, :end] = torch.tensor(prefix + answer)
        attention_mask[i, :end] = 1
        token_type_ids[i, middle:end] = 1
        labels[i, middle:end] = torch.tensor(answer)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids, "labels": labels}
""")
change("05.5", "attention mask kept", "one of three faults is left: padding may still be", C55, "attention_mask = torch.zeros_like", "attention_mask = torch.ones_like")
wrong("05.5", "token types kept", "one of three faults is left: padding still counts", """
def collate(rows, pad_id):
    longest = max(len(prefix) + len(answer) for prefix, answer in rows)
    input_ids = torch.full((len(rows), longest), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    token_type_ids = torch.ones_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for i, (prefix, answer) in enumerate(rows):
        middle, end = len(prefix), len(prefix) + len(answer)
        input_ids[i, :end] = torch.tensor(prefix + answer)
        attention_mask[i, :end] = 1
        token_type_ids[i, :middle] = 0
        labels[i, middle:end] = torch.tensor(answer)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids, "labels": labels}
""")
change("05.5", "labels kept", "one of three faults is left: labels stand one place", C55, "labels[i, middle:end]", "labels[i, middle - 1 : end - 1]")
change("05.5", "labels on the prefix", "the prompt has labels now: the answer alone is to", C55, "labels[i, middle:end] = torch.tensor(answer)", "labels[i, :end] = torch.tensor(prefix + answer)")
change("05.5", "labels of pad_id", "labels are pad_id where there is nothing to learn:", C55, "labels = torch.full_like(input_ids, -100)", "labels = torch.full_like(input_ids, pad_id)")
change("05.5", "moved the other way", "your labels are moved one place to the right: they", C55, "labels[i, middle:end] = torch.tensor(answer)", "labels[i, middle + 1 : end] = torch.tensor(answer[:-1])")
wrong("05.5", "prefix += answer", "an in-place operation (+=, *=, a method ending in", """
def collate(rows, pad_id):
    longest = max(len(prefix) + len(answer) for prefix, answer in rows)
    ids, masks, types, labels = [], [], [], []
    for prefix, answer in rows:
        n = len(prefix)
        prefix += answer
        padding = longest - len(prefix)
        ids.append(prefix + [pad_id] * padding)
        masks.append([1] * len(prefix) + [0] * padding)
        types.append([0] * n + [1] * len(answer) + [0] * padding)
        labels.append([-100] * n + answer + [-100] * padding)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(masks), "token_type_ids": torch.tensor(types), "labels": torch.tensor(labels)}
""")
change("05.5", "mask from ids", "the mask is 0 wherever the padding token's number", C55, "    return {", """    attention_mask = (input_ids != pad_id).long()
    return {""")
change("05.5", "answer hidden", "the mask is 0 on the answer: it is 1 on every token", C55, "attention_mask[i, :end] = 1", "attention_mask[i, :middle] = 1")
change("05.5", "last label missing", "the last token of each answer has no label: the", C55, "labels[i, middle:end] = torch.tensor(answer)", "labels[i, middle : end - 1] = torch.tensor(answer[:-1])")
change("05.5", "types exchanged", "the kinds are exchanged: 1 is the answer, 0 all else", C55, "token_type_ids[i, middle:end] = 1", "token_type_ids[i, :middle] = 1")
wrong("05.5", "padded on the left", "your rows are padded on the left: here padding", """
def collate(rows, pad_id):
    longest = max(len(p) + len(a) for p, a in rows)
    out = {"input_ids": [], "attention_mask": [], "token_type_ids": [], "labels": []}
    for p, a in rows:
        k = longest - len(p) - len(a)
        out["input_ids"].append([pad_id] * k + p + a)
        out["attention_mask"].append([0] * k + [1] * len(p + a))
        out["token_type_ids"].append([0] * (k + len(p)) + [1] * len(a))
        out["labels"].append([-100] * (k + len(p)) + a)
    return {name: torch.tensor(t) for name, t in out.items()}
""")

# --- 05.6 ---------------------------------------------------------------------------------------------------------

right("05.6", "named functions", """
def near_misses():
    def right(prompt, bos, count, image):
        return image * count + bos + prompt + "\\n"

    def without_newline(prompt, bos, count, image):
        return right(prompt, bos, count, image)[:-1]

    def without_bos(prompt, bos, count, image):
        return right(prompt, "", count, image)

    def with_space(prompt, bos, count, image):
        return right(" " + prompt, bos, count, image)

    def picture_late(prompt, bos, count, image):
        return "".join([bos, prompt] + [image] * count + ["\\n"])

    names = ["newline left out", "BOS left out", "space after BOS", "picture after the prompt"]
    return dict(zip(names, [without_newline, without_bos, with_space, picture_late]))
""")
M56 = right("05.6", "as most write it", """
def near_misses():
    return {
        "newline left out": lambda prompt, bos, count, image: f"{image * count}{bos}{prompt}",
        "BOS left out": lambda prompt, bos, count, image: f"{image * count}{prompt}\\n",
        "space after BOS": lambda prompt, bos, count, image: f"{image * count}{bos} {prompt}\\n",
        "picture after the prompt": lambda prompt, bos, count, image: f"{bos}{prompt}{image * count}\\n",
    }
""")
change("05.6", "picture after the newline", "the newline stays last: the image tokens belong between", M56, "{bos}{prompt}{image * count}\\n", "{bos}{prompt}\\n{image * count}")
change("05.6", "space before BOS", "it belongs between BOS and the first word of the prompt", M56, "{bos} {prompt}", " {bos}{prompt}")
change("05.6", "two things left out", "'BOS left out' gives", M56, 'f"{image * count}{prompt}\\n"', 'f"{image * count}{prompt}"')
change("05.6", "64 images", "'picture after the prompt' gives", M56, '"picture after the prompt": lambda prompt, bos, count, image: f"{bos}{prompt}{image * count}\\n"', '"picture after the prompt": lambda prompt, bos, count, image: f"{bos}{prompt}{image * 64}\\n"')
change("05.6", "space for the newline", "'newline left out' gives", M56, 'f"{image * count}{bos}{prompt}",', 'f"{image * count}{bos}{prompt} ",')
change("05.6", "prompt before BOS", "'picture after the prompt' gives", M56, '"picture after the prompt": lambda prompt, bos, count, image: f"{bos}{prompt}{image * count}\\n"', '"picture after the prompt": lambda prompt, bos, count, image: f"{prompt}{bos}{image * count}\\n"')
change("05.6", "the right one", "that is the whole prompt, with nothing wrong in it", M56, '"BOS left out": lambda prompt, bos, count, image: f"{image * count}{prompt}\\n"', '"BOS left out": lambda prompt, bos, count, image: f"{image * count}{bos}{prompt}\\n"')
change("05.6", "a string", "'newline left out': a str, expected a function", M56, 'lambda prompt, bos, count, image: f"{image * count}{bos}{prompt}"', 'f"<image>" * 64 + "<bos>caption en"')
change("05.6", "two spaces", "change this one thing, and leave the rest", M56, "{bos} {prompt}", "{bos}  {prompt}")
change("05.6", "space before the newline", "it belongs between BOS and the first word of the prompt", M56, "{image * count}{bos} {prompt}\\n", "{image * count}{bos}{prompt} \\n")

# --- 06.1 ---------------------------------------------------------------------------------------------------------

right("06.1", "rsqrt and einsum", """
def rms_norm(x, eps=1e-6):
    ms = torch.einsum("...d,...d->...", x, x) / x.shape[-1]
    return x * (ms + eps).rsqrt().unsqueeze(-1)
""")
right("06.1", "vector_norm", """
def rms_norm(x, eps=1e-6):
    D = x.size(-1)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / (length.square() / D + eps) ** 0.5
""")
right("06.1", "torch's own", """
def rms_norm(x, eps=1e-6):
    return torch.nn.functional.rms_norm(x, x.shape[-1:], eps=eps)
""")
R61 = right("06.1", "as most write it", """
def rms_norm(x, eps=1e-6):
    mean_square = x.pow(2).mean(dim=-1, keepdim=True)
    return x / torch.sqrt(mean_square + eps)
""")
change("06.1", "eps outside", "your numbers are those you get when eps is added", R61, "torch.sqrt(mean_square + eps)", "(torch.sqrt(mean_square) + eps)")
change("06.1", "no root", "your numbers are those you get when dividing by the", R61, "torch.sqrt(mean_square + eps)", "(mean_square + eps)")
change("06.1", "sum", "your numbers are those you get from the root of the", R61, ".mean(dim=-1, keepdim=True)", ".sum(dim=-1, keepdim=True)")
change("06.1", "mean over all", "your numbers are those you get when one root mean", R61, ".mean(dim=-1, keepdim=True)", ".mean()")
change("06.1", "axis 1", "your mean runs over axis 1, counted from the front:", R61, "dim=-1", "dim=1")
change("06.1", "axis 0", "your numbers are those you get when the mean runs", R61, "dim=-1", "dim=0")
change("06.1", "no eps", "your numbers are those you get without eps: a token", R61, " + eps", "")
change("06.1", "eps fixed", "the eps that is given is not used: a fixed one is", R61, "+ eps", "+ 1e-6")
change("06.1", "mean subtracted", "your numbers are those of a layer norm: RMSNorm", R61, "mean_square = x", """x = x - x.mean(-1, keepdim=True)
    mean_square = x""")
change("06.1", "mean of absolute values", "your numbers are those you get from the mean of the", R61, "x.pow(2).mean(dim=-1, keepdim=True)", "x.abs().mean(dim=-1, keepdim=True).pow(2)")
change("06.1", "std", "your numbers are those you get when dividing by the", R61, "torch.sqrt(mean_square + eps)", "x.std(-1, keepdim=True)")
change("06.1", "keepdim forgotten", "the mean has one axis less than x, so it lines up", R61, ", keepdim=True", "")
wrong("06.1", "in place", "an in-place operation (+=, *=, a method ending in", """
def rms_norm(x, eps=1e-6):
    x /= torch.sqrt(x.square().mean(-1, keepdim=True) + eps)
    return x
""")
change("06.1", "eps squared", "eps is squared before it is added: that is next to", R61, "torch.sqrt(mean_square + eps)", "torch.sqrt(mean_square + eps**2)")
change("06.1", "float32 comes out", "a cast is missing or too much: the result's dtype", R61, "return x /", """x = x.float()
    return x /""")
change("06.1", "multiplied", "your numbers are those you get when multiplying by", R61, "return x / torch.sqrt(mean_square + eps)", "return x * torch.sqrt(mean_square + eps)")
change("06.1", "axis 2", "your axis is 2, counted from the front: x may have", R61, "dim=-1", "dim=2")
wrong("06.1", "F.normalize", "each token is divided by its length, as F.normalize", """
def rms_norm(x, eps=1e-6):
    return torch.nn.functional.normalize(x, dim=-1, eps=eps)
""")

# --- 06.2 ---------------------------------------------------------------------------------------------------------

right("06.2", "torch's functions", """
import torch.nn.functional as F
def normalise(x, kind, eps=1e-6):
    D = x.shape[-1]
    match kind:
        case "batch":
            return F.batch_norm(x.transpose(1, 2), None, None, training=True, eps=eps).transpose(1, 2)
        case "layer":
            return F.layer_norm(x, [D], eps=eps)
        case "rms":
            return F.rms_norm(x, [D], eps=eps)
""")
right("06.2", "one line, flattened", """
def normalise(x, kind, eps=1e-6):
    flat = x.flatten(0, 1)
    axis = {"batch": 0, "layer": 1, "rms": 1}[kind]
    if kind != "rms":
        flat = flat - flat.mean(axis, keepdim=True)
    return (flat * torch.rsqrt((flat * flat).mean(axis, keepdim=True) + eps)).view_as(x)
""")
N62 = right("06.2", "as most write it", """
def normalise(x, kind, eps=1e-6):
    if kind == "batch":
        mean = x.mean(dim=(0, 1), keepdim=True)
        var = x.var(dim=(0, 1), keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var + eps)
    elif kind == "layer":
        mean = x.mean(dim=-1, keepdim=True)
        var = x.var(dim=-1, keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var + eps)
    else:
        return x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)
""")
change("06.2", "batch over axis 0 only", "your batch norm takes its mean over the rows of the", N62, "(0, 1)", "0")
change("06.2", "batch over each row", "your batch norm takes its mean inside each row alone", N62, "(0, 1)", "1")
change("06.2", "batch divides by n - 1", "your variance divides by the count minus one, as", N62, "dim=(0, 1), keepdim=True, correction=0", "dim=(0, 1), keepdim=True")
change("06.2", "layer divides by D - 1", "your variance divides by the count minus one, as", N62, "dim=-1, keepdim=True, correction=0", "dim=-1, keepdim=True")
change("06.2", "layer over the whole row", "your layer norm mixes the tokens of a row: each", N62, """-1, keepdim=True)
        var = x.var(dim=-1""", """(1, 2), keepdim=True)
        var = x.var(dim=(1, 2)""")
change("06.2", "rms subtracts", "your RMSNorm subtracts the mean: then it is the", N62, "return x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)", """x = x - x.mean(-1, keepdim=True)
        return x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)""")
wrong("06.2", "batch and layer exchanged", "your batch norm is the layer norm and the other way", """
def normalise(x, kind, eps=1e-6):
    if kind == "layer":
        mean = x.mean(dim=(0, 1), keepdim=True)
        var = x.var(dim=(0, 1), keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var + eps)
    elif kind == "batch":
        mean = x.mean(dim=-1, keepdim=True)
        var = x.var(dim=-1, keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var + eps)
    else:
        return x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)
""")
change("06.2", "rms: variance", "your RMSNorm divides by the standard deviation", N62, "x.pow(2).mean(dim=-1, keepdim=True)", "x.var(dim=-1, keepdim=True, correction=0)")
change("06.2", "rms: variance with D - 1", "your RMSNorm divides by the standard deviation", N62, "x.pow(2).mean(dim=-1, keepdim=True)", "x.var(dim=-1, keepdim=True)")
wrong("06.2", "rms: only the mean above is 0", "your RMSNorm divides by the standard deviation", """
def normalise(x, kind, eps=1e-6):
    dims = (0, 1) if kind == "batch" else (-1,)
    mean = x.mean(dims, keepdim=True)
    var = (x - mean).square().mean(dims, keepdim=True)
    if kind == "rms":
        mean = 0
    return (x - mean) / torch.sqrt(var + eps)
""")
change("06.2", "rms: eps outside", "in your rms norm eps is added after the root: for", N62, "return x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)", "return x / (torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True)) + eps)")
change("06.2", "layer without eps", "your layer norm leaves eps out", N62, """    elif kind == "layer":
        mean = x.mean(dim=-1, keepdim=True)
        var = x.var(dim=-1, keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var + eps)""", """    elif kind == "layer":
        mean = x.mean(dim=-1, keepdim=True)
        var = x.var(dim=-1, keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var)""")
change("06.2", "layer: divided by the mean square of x", "your layer norm subtracts the mean, and divides by", N62, """        return (x - mean) / torch.sqrt(var + eps)
    else""", """        return (x - mean) / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    else""")
change("06.2", "rms like batch", "the mean square of your RMSNorm runs over the", N62, ").mean(dim=-1", ").mean(dim=(0, 1)")
change("06.2", "no return for rms", "the `return` is missing, or returns nothing", N62, """:
        return """, """:
        """)
change("06.2", "batch over everything", "your batch norm takes one mean over all features:", N62, """), keepdim=True)
        var = x.var(dim=(0, 1""", """, 2), keepdim=True)
        var = x.var(dim=(0, 1, 2""")
change("06.2", "batch: not centred", "your batch norm divides by the right number and", N62, """), keepdim=True, correction=0)
        return (x - mean)""", """), keepdim=True, correction=0)
        return x""")

# --- 06.3 ---------------------------------------------------------------------------------------------------------

right("06.3", "torch's own rms_norm", """
class GemmaRMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.dim, self.epsilon = dim, eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        return nn.functional.rms_norm(x.float(), (self.dim,), 1 + self.weight.float(), self.epsilon).to(x.dtype)
""")
right("06.3", "step by step with other names", """
class GemmaRMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        nn.init.zeros_(self.weight)
        self.small = eps

    def forward(self, x):
        incoming = x.dtype
        y = x.to(torch.float32, copy=True)
        y /= torch.sqrt(torch.mean(y * y, dim=-1, keepdim=True) + self.small)
        y = torch.addcmul(y, y, self.weight.to(torch.float32))
        return y.to(incoming)
""")
G63 = right("06.3", "as most write it", """
class GemmaRMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        scaled = normed * (1.0 + self.weight.float())
        return scaled.type_as(x)
""")
change("06.3", "weight, not 1 + weight", "your numbers are those you get when multiplying by", G63, "(1.0 + self.weight.float())", "self.weight.float()")
change("06.3", "ones", "published Gemma weights are what is added to", G63, "torch.zeros(dim)", "torch.ones(dim)")
change("06.3", "cast before the scale", "the result is rounded to the dtype of x before the", G63, """scaled = normed * (1.0 + self.weight.float())
        return scaled.type_as(x)""", "return normed.type_as(x) * (1.0 + self.weight)")
change("06.3", "not in float32", "in float16 the square of 500 is more than 65504,", G63, "wide = x.float()", "wide = x")
change("06.3", "1 + weight in the weight's dtype", "1 + weight is worked out in bfloat16, where 1.03", G63, "(1.0 + self.weight.float())", "(1.0 + self.weight).float()")
wrong("06.3", "scale instead of weight", "yours has a parameter `scale` [7] that the", """
class GemmaRMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        scaled = normed * (1.0 + self.scale.float())
        return scaled.type_as(x)
""")
change("06.3", "eps fixed", "the eps given to the constructor is not used: a", G63, "+ self.eps)", "+ 1e-6)")
change("06.3", "no Parameter", "parameter `weight` [7] is missing: yours is a plain", G63, "nn.Parameter(torch.zeros(dim))", "torch.zeros(dim)")
change("06.3", "float32 comes out", "the numbers are right and remain float32: the next", G63, "return scaled.type_as(x)", "return scaled")
change("06.3", "dtype of the weight", "the numbers are right and remain float32: the next", G63, "return scaled.type_as(x)", "return scaled.type_as(self.weight)")
change("06.3", "mean subtracted", "your numbers are those of a layer norm, which", G63, "normed = wide *", """wide = wide - wide.mean(-1, keepdim=True)
        normed = wide *""")
change("06.3", "eps outside", "eps is added after the root: at size 1 nobody", G63, "torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)", "1 / (wide.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)")
change("06.3", "[1, dim]", "`weight` has shape [1, 7], expected [7]", G63, "torch.zeros(dim)", "torch.zeros(1, dim)")
change("06.3", "weights first", "the weights are applied before the norm, which then", G63, """normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        scaled = normed * (1.0 + self.weight.float())""", """wide = wide * (1.0 + self.weight.float())
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)""")
change("06.3", "squared before the cast", "in float16 the square of 500 is more than 65504,", G63, "wide.pow(2).mean", "x.pow(2).mean")
change("06.3", "axis 1", "the mean runs over axis 1, counted from the front:", G63, "wide.pow(2).mean(-1", "wide.pow(2).mean(1")
change("06.3", "brackets forgotten", "the weight is added to the result and not to the", G63, "(1.0 + self.weight.float())", "1.0 + self.weight.float()")
change("06.3", "random start", "a new norm scales by 1", G63, "torch.zeros(dim)", "torch.randn(dim) * 0.02")
change("06.3", "back to float32", "the result is cast to the dtype that came in and to", G63, "return scaled.type_as(x)", "return scaled.type_as(x).float()")
change("06.3", "half", "everything is computed in float16, whatever comes", G63, "x.float()", "x.half()")

# --- 06.4 ---------------------------------------------------------------------------------------------------------

right("06.4", "equal weights that are not 0", """
def exposing():
    t = torch.tensor
    none = torch.zeros(2)
    return {
        "half_inside": (t([[300.0, -300.0]], dtype=torch.float16), none),
        "mean_subtracted": (t([[1.0, 2.0]]), none),
        "eps_outside": (t([[1e-3, -1e-3]]), none),
        "over_all": (t([[1.0, -1.0], [10.0, -10.0]]), none),
        "weight_first": (t([[1.0, -1.0]]), t([1.0, 1.0])),
    }
""")
E64 = right("06.4", "as most write it", """
def exposing():
    t = torch.tensor
    none = torch.zeros(2)
    return {
        "half_inside": (t([[300.0, -300.0]], dtype=torch.float16), none),
        "mean_subtracted": (t([[1.0, 2.0]]), none),
        "eps_outside": (t([[1e-3, -1e-3]]), none),
        "over_all": (t([[1.0, -1.0], [10.0, -10.0]]), none),
        "weight_first": (t([[1.0, -1.0]]), t([0.0, 1.0])),
    }
""")
change("06.4", "mean of zero", "On your input for mean_subtracted, mean_subtracted gives what", E64, "t([[1.0, 2.0]])", "t([[1.0, -1.0]])")
change("06.4", "mean not zero", "Your input for over_all exposes it, and mean_subtracted, too", E64, '"over_all": (t([[1.0, -1.0], [10.0, -10.0]])', '"over_all": (t([[1.0, 2.0], [10.0, 20.0]])')
change("06.4", "float32", "On your input for half_inside, half_inside gives what the right", E64, '"half_inside": (t([[300.0, -300.0]], dtype=torch.float16)', '"half_inside": (t([[300.0, -300.0]])')
change("06.4", "too large for eps", "On your input for eps_outside, eps_outside gives what the right", E64, "[[1e-3, -1e-3]]", "[[1.0, -1.0]]")
change("06.4", "tokens of one size", "On your input for over_all, over_all gives what the right", E64, '"over_all": (t([[1.0, -1.0], [10.0, -10.0]])', '"over_all": (t([[1.0, -1.0], [1.0, -1.0]])')

# --- 06.5 ---------------------------------------------------------------------------------------------------------

right("06.5", "layer_norm of torch", """
class Centred(modeling_gemma.GemmaRMSNorm):
    def forward(self, x):
        y = torch.nn.functional.layer_norm(x.float(), x.shape[-1:], self.weight.float() + 1, None, self.eps)
        return y.to(x.dtype)
""")
right("06.5", "super().forward on float32", """
class Centred(modeling_gemma.GemmaRMSNorm):
    def forward(self, x):
        wide = x.to(torch.float32)
        return super().forward(wide - torch.mean(wide, dim=-1, keepdim=True)).to(x.dtype)
""")
C65 = right("06.5", "as most write it", """
class Centred(modeling_gemma.GemmaRMSNorm):
    def forward(self, x):
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True)
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normed * (1.0 + self.weight.float())).type_as(x)
""")
change("06.5", "nothing subtracted", "your norm computes what Gemma's does: no mean is", C65, """        wide = wide - wide.mean(-1, keepdim=True)
""", "")
wrong("06.5", "subtracted after the norm", "the mean is subtracted, and the root mean square is", """
class Centred(modeling_gemma.GemmaRMSNorm):
    def forward(self, x):
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        normed = normed - normed.mean(-1, keepdim=True)
        return (normed * (1.0 + self.weight.float())).type_as(x)
""")
change("06.5", "mean of all", "one mean of all tokens is subtracted: each token", C65, "wide.mean(-1, keepdim=True)", "wide.mean()")
change("06.5", "mean over tokens", "your mean runs over axis 1, counted from the front:", C65, "wide.mean(-1, keepdim=True)", "wide.mean(1, keepdim=True)")
change("06.5", "weight only", "the scale was 1 + weight in Gemma's norm, and is to", C65, "(1.0 + self.weight.float())", "self.weight.float()")
change("06.5", "cast early", "the result is rounded to the dtype of x before the", C65, "return (normed * (1.0 + self.weight.float())).type_as(x)", "return normed.type_as(x) * (1.0 + self.weight)")
wrong("06.5", "mean in x's dtype", "the mean is worked out and subtracted in the dtype", """
class Centred(modeling_gemma.GemmaRMSNorm):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))
""")
change("06.5", "eps fixed", "your eps is fixed: the module has its own, self.eps", C65, "+ self.eps)", "+ 1e-5)")
wrong("06.5", "variance over D - 1", "`var` divides by D - 1 unless you say `correction=0`", """
class Centred(modeling_gemma.GemmaRMSNorm):
    def forward(self, x):
        wide = x.float()
        normed = (wide - wide.mean(-1, keepdim=True)) / torch.sqrt(wide.var(-1, keepdim=True) + self.eps)
        return (normed * (1.0 + self.weight.float())).type_as(x)
""")

# --- 07.1 ---------------------------------------------------------------------------------------------------------

right("07.1", "complex numbers", """
def turn(x, y, angle):
    z = torch.complex(x, y) * torch.polar(torch.ones_like(angle), angle)
    return z.real, z.imag
""")
right("07.1", "a rotation matrix", """
def turn(x, y, angle):
    c, s = angle.cos(), angle.sin()
    matrix = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
    out = torch.einsum("...ij,...j->...i", matrix, torch.stack([x, y], -1))
    return tuple(out.unbind(-1))
""")
T71 = right("07.1", "as most write it", """
def turn(x, y, angle):
    c, s = torch.cos(angle), torch.sin(angle)
    return x * c - y * s, y * c + x * s
""")
change("07.1", "clockwise", "your pair turns clockwise: one of the two signs is", T71, "x * c - y * s, y * c + x * s", "x * c + y * s, y * c - x * s")
wrong("07.1", "x overwritten", "your y is made from the x that has been turned", """
def turn(x, y, angle):
    x = x * torch.cos(angle) - y * torch.sin(angle)
    y = y * torch.cos(angle) + x * torch.sin(angle)
    return x, y
""")
change("07.1", "degrees", "your angles are treated as degrees, and they come", T71, "c, s = torch.cos(angle), torch.sin(angle)", """angle = torch.deg2rad(angle)
    c, s = torch.cos(angle), torch.sin(angle)""")
change("07.1", "cos and sin exchanged", "at angle 0 your pair is not what it was: sine and", T71, "c, s = torch.cos(angle), torch.sin(angle)", "s, c = torch.cos(angle), torch.sin(angle)")
change("07.1", "minus in both", "both sums have a minus: then the pair does not keep", T71, "y * c + x * s", "y * c - x * s")
change("07.1", "stacked", "the result is a Tensor, expected 2 values", T71, "return x * c - y * s, y * c + x * s", "return torch.stack([x * c - y * s, y * c + x * s])")
change("07.1", "y first", "the two results are in the other order", T71, "return x * c - y * s, y * c + x * s", "return y * c + x * s, x * c - y * s")
wrong("07.1", "in place", "an in-place operation (+=, *=, a method ending in", """
def turn(x, y, angle):
    old = x.clone()
    x.mul_(angle.cos()).sub_(y * angle.sin())
    y.mul_(angle.cos()).add_(old * angle.sin())
    return x, y
""")
wrong("07.1", "one angle for all", "all pairs are turned by the first angle: each has", """
import math
def turn(x, y, angle):
    a = angle.flatten()[0].item()
    return x * math.cos(a) - y * math.sin(a), y * math.cos(a) + x * math.sin(a)
""")

# --- 07.2 ---------------------------------------------------------------------------------------------------------

right("07.2", "roll and signs", """
def rotate_half(x):
    half = x.shape[-1] // 2
    rolled = torch.roll(x, half, dims=-1)
    signs = torch.ones(x.shape[-1], dtype=x.dtype)
    signs[:half] = -1
    return rolled * signs
""")
right("07.2", "filled", """
def rotate_half(x):
    d = x.size(-1)
    out = torch.empty_like(x)
    out[..., : d // 2] = x[..., d // 2 :].neg()
    out[..., d // 2 :] = x[..., : d // 2]
    return out
""")
right("07.2", "a matrix", """
def rotate_half(x):
    h = x.shape[-1] // 2
    eye, zero = torch.eye(h), torch.zeros(h, h)
    m = torch.cat([torch.cat([zero, -eye], 1), torch.cat([eye, zero], 1)], 0).to(x.dtype)
    return torch.einsum("ij,...j->...i", m, x)
""")
H72 = right("07.2", "as most write it", """
def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)
""")
change("07.2", "no minus", "the halves change places and no sign does: two", H72, "(-x2, x1)", "(x2, x1)")
change("07.2", "minus on the wrong half", "your quarter turn goes clockwise: the minus is at", H72, "(-x2, x1)", "(x2, -x1)")
change("07.2", "halves not exchanged", "each half stays in its place and one changes its", H72, "(-x2, x1)", "(-x1, x2)")
change("07.2", "minus on both", "both halves are negative now: two quarter turns", H72, "(-x2, x1)", "(-x2, -x1)")
wrong("07.2", "neighbours", "your pairs are neighbours, (0, 1), (2, 3) and so", """
def rotate_half(x):
    x1, x2 = x[..., 0::2], x[..., 1::2]
    return torch.stack((-x2, x1), dim=-1).flatten(-2)
""")
wrong("07.2", "even and odd joined", "you take every second feature: in Gemma's layout a", """
def rotate_half(x):
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.cat([-odd, even], dim=-1)
""")
change("07.2", "cut on axis 0", "the shape is [1, H=3, L=5, 16], expected [B=2, H=3,", H72, """dim=-1)
    return""", """dim=0)
    return""")
wrong("07.2", "in place", "an in-place operation (+=, *=, a method ending in", """
def rotate_half(x):
    half = x.shape[-1] // 2
    first = x[..., :half].clone()
    x[..., :half] = -x[..., half:]
    x[..., half:] = first
    return x
""")
change("07.2", "half is 4", "the two halves meet at a fixed place: half of the", H72, "x1, x2 = x.chunk(2, dim=-1)", "x1, x2 = x[..., :4], x[..., 4:]")
change("07.2", "mirrored", "one of the halves is reversed: feature i belongs to", H72, "(-x2, x1)", "(-x2.flip(-1), x1)")
wrong("07.2", "flip", "the features stand in reverse order: the halves are", """
def rotate_half(x):
    y = x.flip(-1).clone()
    y[..., : x.shape[-1] // 2] *= -1
    return y
""")
change("07.2", "float32 comes out", "a cast is missing or too much: the result's dtype", H72, "return torch", """x1, x2 = x1.float(), x2.float()
    return torch""")

# --- 07.3 ---------------------------------------------------------------------------------------------------------

right("07.3", "einsum, repeat, a plain attribute", """
class GemmaRotaryEmbedding(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        i = torch.arange(dim // 2).float()
        self.theta = [base ** (-2 * k / dim) for k in range(len(i))]

    def forward(self, x, position_ids):
        theta = torch.tensor(self.theta, dtype=torch.float32, device=position_ids.device)
        a = torch.einsum("bl,k->blk", position_ids.float(), theta).repeat(1, 1, 2)
        return torch.cos(a).type_as(x), torch.sin(a).type_as(x)
""")
right("07.3", "exp of the log, filled row by row", """
import math
class GemmaRotaryEmbedding(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        self.d, self.log_base = dim, math.log(base)

    def forward(self, x, position_ids):
        B, L = position_ids.shape
        half = self.d // 2
        theta = torch.exp(-self.log_base * torch.arange(half, dtype=torch.float32) * 2 / self.d)
        cos, sin = torch.empty(B, L, self.d), torch.empty(B, L, self.d)
        for b in range(B):
            turned = torch.outer(position_ids[b].to(torch.float32), theta)
            cos[b] = torch.hstack([turned.cos(), turned.cos()])
            sin[b] = torch.hstack([turned.sin(), turned.sin()])
        return cos.to(x), sin.to(x)
""")
G73 = right("07.3", "as most write it", """
class GemmaRotaryEmbedding(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        self.dim = dim
        self.base = base

    def forward(self, x, position_ids):
        freqs = 1.0 / self.base ** (torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim)
        angles = position_ids[..., None].float() * freqs
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)
""")
change("07.3", "sign of the exponent", "your hands become faster from pair to pair: the", G73, "1.0 / self.base", "self.base")
change("07.3", "factor 2 missing", "your hands are too fast, except the first: the", G73, "torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim", "torch.arange(self.dim // 2, dtype=torch.float32) / self.dim")
change("07.3", "divided by the half", "your hands are too slow, except the first: the", G73, "torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim", "torch.arange(0, self.dim, 2, dtype=torch.float32) / (self.dim // 2)")
change("07.3", "layout of neighbours", "each angle stands twice in a row, for the pairs (0,", G73, "torch.cat([angles, angles], dim=-1)", "angles.repeat_interleave(2, dim=-1)")
change("07.3", "base fixed", "the base that is given to the constructor is not", G73, "self.base = base", "self.base = 10000.0")
change("07.3", "positions counted", "your tokens are counted from 0, whatever", G73, "position_ids[..., None].float()", "torch.arange(position_ids.shape[1])[None, :, None].float().expand(position_ids.shape[0], -1, -1)")
change("07.3", "first row for all", "all rows have the angles of the first: rows that", G73, "position_ids[..., None].float()", "position_ids[:1, :, None].float().expand(position_ids.shape[0], -1, -1)")
change("07.3", "sin first", "the sines come first: at position 0, nothing may", G73, "return angles.cos().to(x.dtype), angles.sin().to(x.dtype)", "return angles.sin().to(x.dtype), angles.cos().to(x.dtype)")
change("07.3", "float32 comes out", "cos and sin are float32 although x is bfloat16: the", G73, "return angles.cos().to(x.dtype), angles.sin().to(x.dtype)", "return angles.cos(), angles.sin()")
change("07.3", "positions in x's dtype", "the positions are bfloat16 on the way: beyond 256", G73, "position_ids[..., None].float()", "position_ids[..., None].to(x.dtype)")
change("07.3", "angles in x's dtype", "the angles are bfloat16 before their cosine is", G73, """angles = torch.cat([angles, angles], dim=-1)
""", """angles = torch.cat([angles, angles], dim=-1).to(x.dtype)
""")
change("07.3", "d/2 angles", "the last axis is d/2: there is one angle for each", G73, """        angles = torch.cat([angles, angles], dim=-1)
""", "")
wrong("07.3", "a buffer", "the frequencies are a buffer, and `to` rounds the", """
class GemmaRotaryEmbedding(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, x, position_ids):
        angles = position_ids[:, :, None].float() * self.inv_freq.float()
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)
""")
wrong("07.3", "a parameter", "yours has a parameter `freq` [4] that the package's", """
class GemmaRotaryEmbedding(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        self.freq = nn.Parameter(base ** -(torch.arange(0, dim, 2).float() / dim))

    def forward(self, x, position_ids):
        angles = position_ids[:, :, None].float() * self.freq
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)
""")
change("07.3", "from 1", "every token is turned as if it stood one place", G73, "position_ids[..., None].float()", "(position_ids[..., None].float() + 1)")
change("07.3", "degrees", "your angles are treated as degrees, and they are", G73, "angles = torch.cat([angles, angles], dim=-1)", "angles = torch.deg2rad(torch.cat([angles, angles], dim=-1))")
change("07.3", "second half reversed", "the angles of the second half are in reverse order:", G73, "torch.cat([angles, angles], dim=-1)", "torch.cat([angles, angles.flip(-1)], dim=-1)")
change("07.3", "frequencies reversed", "your hands are in reverse order: pair 0 is the", G73, """freqs
""", """freqs.flip(0)
""")
change("07.3", "two pi", "your angles are 2 pi times too large: at position 1", G73, "1.0 / self.base ** (", "2 * torch.pi / self.base ** (")
change("07.3", "counted from the row's first", "the positions of a row are counted from its first", G73, "position_ids[..., None].float()", "(position_ids - position_ids[:, :1])[..., None].float()")
change("07.3", "frequencies in x's dtype", "the frequencies are bfloat16 on the way: their", G73, "dtype=torch.float32) / self.dim", "dtype=x.dtype) / self.dim")

# --- 07.4 ---------------------------------------------------------------------------------------------------------

right("07.4", "complex numbers", """
def apply_rotary_pos_emb(query, key, cos, sin):
    half = query.shape[-1] // 2
    turn = torch.complex(cos[..., :half], sin[..., :half]).unsqueeze(1)
    def rotate(x):
        z = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat((z.real, z.imag), -1)
    return rotate(query), rotate(key)
""")
right("07.4", "einsum with the package's rotate_half", """
def apply_rotary_pos_emb(query, key, cos, sin):
    out = []
    for t in (query, key):
        a = torch.einsum("bhld,bld->bhld", t, cos)
        a += torch.einsum("bhld,bld->bhld", package_rotate_half(t), sin)
        out.append(a)
    return tuple(out)
""")
right("07.4", "row by row", """
def apply_rotary_pos_emb(query, key, cos, sin):
    q, k = torch.empty_like(query), torch.empty_like(key)
    for b in range(query.shape[0]):
        q[b] = query[b] * cos[b] + package_rotate_half(query[b]) * sin[b]
        k[b] = key[b] * cos[b] + package_rotate_half(key[b]) * sin[b]
    return q, k
""")
A74 = right("07.4", "as most write it", """
def apply_rotary_pos_emb(query, key, cos, sin):
    def quarter_turn(x):
        half = x.shape[-1] // 2
        return torch.cat([-x[..., half:], x[..., :half]], dim=-1)

    cos, sin = cos[:, None], sin[:, None]
    query = query * cos + quarter_turn(query) * sin
    key = key * cos + quarter_turn(key) * sin
    return query, key
""")
change("07.4", "pairs kept", "one of three faults is left: the rotation pairs", A74, """half = x.shape[-1] // 2
        return torch.cat([-x[..., half:], x[..., :half]], dim=-1)""", "return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)")
change("07.4", "row 0 kept", "one of three faults is left: every row of the batch", A74, "cos[:, None], sin[:, None]", "cos[0], sin[0]")
change("07.4", "minus kept", "one of three faults is left: the key turns the", A74, "key * cos + quarter", "key * cos - quarter")
change("07.4", "minus moved to the query", "the query turns the other way round, and the key", A74, "query * cos + quarter", "query * cos - quarter")
change("07.4", "both turned backwards", "queries and keys turn the other way round", A74, """+ quarter_turn(query) * sin
    key = key * cos +""", """- quarter_turn(query) * sin
    key = key * cos -""")
change("07.4", "key first", "the key is returned first", A74, "return query, key", "return key, query")
change("07.4", "query in the key's line", "the key is made from the query's quarter turn: each", A74, "quarter_turn(key)", "quarter_turn(query)")
change("07.4", "key not turned", "the key is returned as it came: a score depends on", A74, """    key = key * cos + quarter_turn(key) * sin
""", "")
change("07.4", "minus on the other half", "queries and keys turn the other way round", A74, "[-x[..., half:], x[..., :half]]", "[x[..., half:], -x[..., :half]]")
change("07.4", "cos and sin exchanged", "sine and cosine have changed places: at position 0,", A74, """cos + quarter_turn(query) * sin
    key = key * cos + quarter_turn(key) * sin""", """sin + quarter_turn(query) * cos
    key = key * sin + quarter_turn(key) * cos""")
change("07.4", "axis in the third place", "the axis for the heads is in the wrong place:", A74, "cos[:, None], sin[:, None]", "cos[:, :, None], sin[:, :, None]")
wrong("07.4", "in place", "an in-place operation (+=, *=, a method ending in", """
def apply_rotary_pos_emb(query, key, cos, sin):
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    for t in (query, key):
        turned = package_rotate_half(t) * sin
        t *= cos
        t += turned
    return query, key
""")
change("07.4", "half is 4", "the two halves meet at a fixed place: half of the", A74, "half = x.shape[-1] // 2", "half = 4")
change("07.4", "first position for all", "all tokens are turned by the angles of the first", A74, "cos[:, None], sin[:, None]", "cos[:, :1, None].transpose(1, 2), sin[:, :1, None].transpose(1, 2)")
change("07.4", "turned from the scaled one", "the quarter turn of the query is taken of what has", A74, """query = query * cos + quarter_turn(query) * sin
""", """query = query * cos + quarter_turn(query * cos) * sin
""")
change("07.4", "stacked", "query and key cannot be stacked to one tensor:", A74, "return query, key", "return torch.stack([query, key])")

# --- 07.5 ---------------------------------------------------------------------------------------------------------

right("07.5", "the key turned forward", """
def looking_back(d, back, base):
    query = torch.ones(d) * 10
    cos, sin = PackageRope(d, base)(query, torch.tensor([[back]]))
    key = (query * cos + package_rotate_half(query) * sin).flatten()
    return query * 2, key
""")
right("07.5", "complex numbers, one arrow to the right", """
def looking_back(d, back, base):
    i = torch.arange(d // 2).float()
    theta = base ** (-2 * i / d)
    z = torch.polar(torch.full((d // 2,), 200.0), -back * theta)
    key = torch.cat([torch.ones(d // 2), torch.zeros(d // 2)])
    return torch.cat([z.real, z.imag]), key
""")
L75 = right("07.5", "as most write it", """
def looking_back(d, back, base):
    key = torch.ones(d)
    cos, sin = PackageRope(d, base)(key, torch.tensor([[back]]))
    cos, sin = cos[0, 0], sin[0, 0]
    query = key * cos - package_rotate_half(key) * sin
    return 100 * query, key
""")
change("07.5", "too weak", "longer arrows make larger scores, and a sharper", L75, "100 * query", "query")
change("07.5", "turned forward", "the query is turned forward: it agrees with keys", L75, "key * cos - package", "key * cos + package")
change("07.5", "one too few", "by how much is the query turned, and is that the", L75, "torch.tensor([[back]])", "torch.tensor([[back - 1]])")
change("07.5", "base ignored", "the base that is given is not used: 10,000 is", L75, "PackageRope(d, base)", "PackageRope(d)")
change("07.5", "query equals key", "query and key point the same way before they are", L75, "query = key * cos - package_rotate_half(key) * sin", "query = key.clone()")
change("07.5", "pair the other way round", "the query is turned forward: it agrees with keys", L75, "return 100 * query, key", "return key, 100 * query")
change("07.5", "always eight", "your head looks eight back, whatever `back` is", L75, "torch.tensor([[back]])", "torch.tensor([[8]])")
change("07.5", "key of zeros", "all scores are equal: is one of the two vectors", L75, "key = torch.ones(d)", "key = torch.zeros(d)")
wrong("07.5", "layout of neighbours", "your pairs are neighbours, (0, 1), (2, 3) and so", """
def looking_back(d, back, base):
    theta = base ** (-torch.arange(0, d, 2).float() / d)
    a = back * theta
    query = torch.stack([torch.cos(a), -torch.sin(a)], dim=-1).flatten()
    key = torch.stack([torch.ones(d // 2), torch.zeros(d // 2)], dim=-1).flatten()
    return 200 * query, key
""")
change("07.5", "shape [1, 1, d]", "the query is [1, 1, 32], expected [d=32]: all", L75, """    cos, sin = cos[0, 0], sin[0, 0]
""", "")

# --- 08.1 ---------------------------------------------------------------------------------------------------------

right("08.1", "computed from steps", """
def fill_in():
    def table(steps, real=(1, 1, 1, 1, 1)):
        return [[int(k <= q and r) for k, r in zip(steps, real)] for q in steps]
    return {
        "causal": table([0, 1, 2, 3, 4]),
        "full": table([0] * 5),
        "prefix-LM": table([0, 0, 0, 1, 2]),
        "padded": table([0, 0, 0, 1, 2], [0, 1, 1, 1, 1]),
    }
""")
right("08.1", "torch and tolist", """
def fill_in():
    causal = torch.ones(5, 5).tril().int()
    prefix = causal.clone()
    prefix[:3, :3] = 1
    padded = prefix.clone()
    padded[:, 0] = 0
    return {"causal": causal.tolist(), "full": torch.ones(5, 5).int().tolist(), "prefix-LM": prefix.tolist(), "padded": padded.tolist()}
""")
wrong("08.1", "causal transposed", "your causal table is mirrored at the diagonal: a", """
def fill_in():
    causal = torch.ones(5, 5).triu().int()
    prefix = torch.ones(5, 5).tril().int()
    prefix[:3, :3] = 1
    padded = prefix.clone()
    padded[:, 0] = 0
    return {"causal": causal.tolist(), "full": [[1] * 5] * 5, "prefix-LM": prefix.tolist(), "padded": padded.tolist()}
""")
F81 = right("08.1", "as most write it", """
def fill_in():
    return {
        "causal": [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 1],
        ],
        "full": [[1, 1, 1, 1, 1]] * 5,
        "prefix-LM": [
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 1],
        ],
        "padded": [
            [0, 1, 1, 0, 0],
            [0, 1, 1, 0, 0],
            [0, 1, 1, 0, 0],
            [0, 1, 1, 1, 0],
            [0, 1, 1, 1, 1],
        ],
    }
""")
change("08.1", "padding's row emptied", "in your last table the row of the padding is empty,", F81, """        "padded": [
            [0, 1, 1, 0, 0],
            [0, 1, 1, 0, 0],
            [0, 1, 1, 0, 0],
            [0, 1, 1, 1, 0],
            [0, 1, 1, 1, 1],""", """        "padded": [
            [0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 1],""")
change("08.1", "row and column emptied", "in your last table the padding sees nothing. The", F81, """        "padded": [
            [0, 1, 1, 0, 0],""", """        "padded": [
            [0, 0, 0, 0, 0],""")
change("08.1", "prompt a step of its own", "in your table 'prefix-LM' the prompt is a step of", F81, """        "prefix-LM": [
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],""", """        "prefix-LM": [
            [1, 1, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],""")
change("08.1", "answer sees the later one", "in your table 'prefix-LM' the first token of the", F81, '''            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 1],
        ],
        "padded"''', '''            [1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1],
        ],
        "padded"''')
change("08.1", "key misspelt", "keys ['causal', 'full', 'padded', 'prefix-lm'],", F81, '"prefix-LM"', '"prefix-lm"')
change("08.1", "causal without itself", "in your causal mask tokens do not see themselves: a", F81, '''            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 1],
        ],
        "full"''', '''            [0, 0, 0, 0, 0],
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
        ],
        "full"''')
change("08.1", "padded is causal", "your last table is causal: it is the prefix-LM", F81, """[
            [0, 1, 1, 0, 0],
            [0, 1, 1""", """[
            [0, 0, 0, 0, 0],
            [0, 1, 0""")
wrong("08.1", "0 for may see", "each table has 1 where it should have 0: 1 is for", """
def fill_in():
    causal = [[int(k > q) for k in range(5)] for q in range(5)]
    prefix = [[int(k > max(q, 2)) for k in range(5)] for q in range(5)]
    padded = [[1] + row[1:] for row in prefix]
    return {"causal": causal, "full": [[0] * 5 for _ in range(5)], "prefix-LM": prefix, "padded": padded}
""")
change("08.1", "four rows", "`full`: the shape is [4, T=5], expected [T=5,", F81, '"full": [[1, 1, 1, 1, 1]] * 5', '"full": [[1, 1, 1, 1, 1]] * 4')

# --- 08.2 ---------------------------------------------------------------------------------------------------------

right("08.2", "loops", """
def make_attn_mask(input_mask, mask_ar, num_queries=None):
    B, T = mask_ar.shape
    L = T if num_queries is None else num_queries
    out = torch.zeros(B, L, T, dtype=torch.bool)
    for b in range(B):
        steps, s = [], 0
        for a in mask_ar[b].tolist():
            s += a
            steps.append(s)
        for row, q in enumerate(range(T - L, T)):
            for k in range(T):
                out[b, row, k] = steps[k] <= steps[q] and bool(input_mask[b, k])
    return out
""")
right("08.2", "later steps counted, cut at the end", """
def make_attn_mask(input_mask, mask_ar, num_queries=None):
    T = mask_ar.size(1)
    step = torch.cumsum(mask_ar, 1)
    later = (step.unsqueeze(1) - step.unsqueeze(2)).clamp(min=0)
    full = torch.logical_and(later == 0, input_mask.unsqueeze(1) == 1)
    return full.narrow(1, T - (num_queries or T), num_queries or T)
""")
M82 = right("08.2", "as most write it", """
def make_attn_mask(input_mask, mask_ar, num_queries=None):
    step = mask_ar.cumsum(dim=-1)
    query_step = step if num_queries is None else step[:, -num_queries:]
    allowed = step[:, None, :] <= query_step[:, :, None]
    return allowed & input_mask.bool()[:, None, :]
""")
change("08.2", "strictly earlier", "your tokens see earlier steps only, not their own:", M82, "<=", "<")
change("08.2", "turned round", "your tokens see what comes later, and not what came", M82, "<=", ">=")
change("08.2", "own step only", "your tokens see their own step and none before it", M82, "<=", "==")
change("08.2", "padding on rows", "padding cannot look, and can be seen: `input_mask`", M82, "input_mask.bool()[:, None, :]", "input_mask.bool()[:, -allowed.shape[1]:, None]")
change("08.2", "rows and columns", "padding can neither be seen nor look: rows without", M82, "return allowed & input_mask.bool()[:, None, :]", """real = input_mask.bool()
    return allowed & real[:, None, :] & real[:, -allowed.shape[1]:, None]""")
change("08.2", "first queries", "with `num_queries` the first rows come back: those", M82, "step[:, -num_queries:]", "step[:, :num_queries]")
change("08.2", "num_queries ignored", "all rows come back, whatever `num_queries` says", M82, "query_step = step if num_queries is None else step[:, -num_queries:]", "query_step = step")
change("08.2", "padding seen", "padding can be seen: `input_mask` has no effect", M82, " & input_mask.bool()[:, None, :]", "")
change("08.2", "or", "`|` lets a pair through that has one of the two:", M82, "allowed & input", "allowed | input")
change("08.2", "int64", "a comparison gives bool, and so does `&` of two", M82, "return allowed & input_mask.bool()[:, None, :]", "return (allowed & input_mask.bool()[:, None, :]).long()")
change("08.2", "not added up", "zeros and ones themselves are compared: then all", M82, "mask_ar.cumsum(dim=-1)", "mask_ar")
change("08.2", "down the batch", "the steps are added up over the rows of the batch,", M82, "dim=-1", "dim=0")
change("08.2", "input_mask turned round", "padding is seen, and what is real is not:", M82, "input_mask.bool()", "(~input_mask.bool())")
wrong("08.2", "tril", "your mask is causal, whatever `mask_ar` says: each", """
def make_attn_mask(input_mask, mask_ar, num_queries=None):
    B, T = input_mask.shape
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    if num_queries is not None:
        causal = causal[-num_queries:]
    return causal[None] & input_mask.bool()[:, None, :]
""")
change("08.2", "input_mask of the first row", "the padding of the first row of the batch is taken", M82, ".bool()[:", "[0].bool()[None")
wrong("08.2", "keys cut as well", "with `num_queries` the columns are cut as well: the", """
def make_attn_mask(input_mask, mask_ar, num_queries=None):
    step = mask_ar.cumsum(dim=1)
    mask = input_mask.bool()
    if num_queries is not None:
        step, mask = step[:, -num_queries:], mask[:, -num_queries:]
    return (step[:, None, :] <= step[:, :, None]) & mask[:, None, :]
""")
wrong("08.2", "cut before the sum", "the queries are cut off before their steps are", """
def make_attn_mask(input_mask, mask_ar, num_queries=None):
    keys = mask_ar.cumsum(-1)
    queries = keys if num_queries is None else mask_ar[:, -num_queries:].cumsum(-1)
    return (keys[:, None] <= queries[..., None]) & (input_mask[:, None] == 1)
""")
wrong("08.2", "padding taken out of the steps", "`input_mask` changes the steps, and padding can", """
def make_attn_mask(input_mask, mask_ar, num_queries=None):
    step = (mask_ar * input_mask).cumsum(-1)
    queries = step[:, -num_queries:] if num_queries else step
    return step[:, None, :] <= queries[:, :, None]
""")
change("08.2", "an axis for the heads", "the shape is [B=2, 1, T=7, T=7], expected [B=2,", M82, "return allowed & input_mask.bool()[:, None, :]", "return (allowed & input_mask.bool()[:, None, :])[:, None]")
change("08.2", "in place", "an in-place operation (+=, *=, a method ending in", M82, "sum", "sum_")

# --- 08.3 ---------------------------------------------------------------------------------------------------------

right("08.3", "where, softmax in float32", """
def masked_weights(scores, allowed):
    lowest = torch.full_like(scores, torch.finfo(scores.dtype).min)
    visible = allowed[:, None].expand_as(scores)
    return torch.softmax(torch.where(visible, scores, lowest).float(), dim=3).to(scores.dtype)
""")
right("08.3", "by hand, blind rows apart", """
def masked_weights(scores, allowed):
    s = scores.float()
    mask = allowed[:, None].expand(s.shape)
    blind = ~mask.any(dim=-1, keepdim=True)
    mask = mask | blind
    s = torch.where(blind, torch.zeros_like(s), s)
    top = s.masked_fill(~mask, float("-inf")).amax(-1, keepdim=True)
    e = (s - top).exp() * mask
    return (e / e.sum(-1, keepdim=True)).type_as(scores)
""")
right("08.3", "head by head", """
def masked_weights(scores, allowed):
    out = scores.clone()
    for h in range(scores.shape[1]):
        one = out[:, h].masked_fill(allowed.logical_not(), torch.finfo(out.dtype).min)
        out[:, h] = nn.functional.softmax(one, dim=2)
    return out
""")
W83 = right("08.3", "as most write it", """
def masked_weights(scores, allowed):
    scores = scores.masked_fill(~allowed.unsqueeze(1), torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)
""")
change("08.3", "mask kept upside down", "one of three faults is left: what may be seen is", W83, "~allowed", "allowed")
change("08.3", "softmax over queries kept", "one of three faults is left: the weights that a", W83, "dim=-1", "dim=-2")
change("08.3", "infinity kept", "one of three faults is left: a query that may see", W83, "torch.finfo(scores.dtype).min", "-torch.inf")
change("08.3", "-1e9", "float16 ends at -65504: the lowest number depends", W83, "torch.finfo(scores.dtype).min", "-1e9")
change("08.3", "float32's lowest", "float16 ends at -65504: the lowest number depends", W83, "torch.finfo(scores.dtype).min", "torch.finfo(torch.float32).min")
change("08.3", "-10", "is the right place filled in, and with a number", W83, "torch.finfo(scores.dtype).min", "-10.0")
change("08.3", "tiny", "forbidden scores become 0 or nearly, and a 0 gets a", W83, "torch.finfo(scores.dtype).min", "torch.finfo(scores.dtype).tiny")
change("08.3", "filled with 0", "forbidden scores become 0 or nearly, and a 0 gets a", W83, "torch.finfo(scores.dtype).min", "0")
change("08.3", "float32 comes out", "a cast is missing or too much: the result's dtype", W83, "return scores.softmax(dim=-1)", "return scores.float().softmax(dim=-1)")
wrong("08.3", "masked after the softmax", "the weights are set to zero after the softmax, so", """
def masked_weights(scores, allowed):
    weights = scores.softmax(dim=-1)
    return weights * allowed.unsqueeze(1)
""")
wrong("08.3", "nan to 0", "a query that may see nothing gives no weight at", """
def masked_weights(scores, allowed):
    scores = scores.masked_fill(~allowed.unsqueeze(1), -torch.inf)
    return torch.nan_to_num(scores.softmax(dim=-1), nan=0.0)
""")
wrong("08.3", "in place", "an in-place operation (+=, *=, a method ending in", """
def masked_weights(scores, allowed):
    scores.masked_fill_(~allowed[:, None], torch.finfo(scores.dtype).min)
    return scores.softmax(-1)
""")
change("08.3", "first row's mask", "the mask of the first row of the batch is taken for", W83, "allowed.unsqueeze(1)", "allowed[:1].unsqueeze(1)")
wrong("08.3", "mask transposed", "the mask is transposed: its rows are the queries", """
def masked_weights(scores, allowed):
    mask = allowed.transpose(1, 2) if allowed.shape[1] == allowed.shape[2] else allowed
    scores = scores.masked_fill(~mask.unsqueeze(1), torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)
""")
change("08.3", "over the heads", "the softmax runs over the heads", W83, "dim=-1", "dim=1")
wrong("08.3", "scores times mask", "forbidden scores become 0 or nearly, and a 0 gets a", """
def masked_weights(scores, allowed):
    return (scores * allowed.unsqueeze(1)).softmax(dim=-1)
""")
wrong("08.3", "blind rows all zero by where", "a query that may see nothing gives no weight at", """
def masked_weights(scores, allowed):
    m = allowed[:, None]
    w = scores.masked_fill(~m, torch.finfo(scores.dtype).min).softmax(-1)
    return w * m
""")

# --- 08.4 ---------------------------------------------------------------------------------------------------------

E84 = right("08.4", "as most write it", """
def exposing():
    one = torch.ones(1, 1, 1)
    yes = torch.ones(1, 1, dtype=torch.bool)
    causal = torch.tensor([[True, False], [True, True]])
    two = torch.tensor([[[1.0], [2.0]]])
    kv = torch.tensor([[[1.0]], [[2.0]]])
    k4 = torch.tensor([[[1.0, 0, 0, 0], [0, 0, 0, 0]]])
    return {
        "tiled": (torch.ones(4, 1, 1), kv, kv, yes),
        "mask_transposed": (torch.zeros(1, 2, 1), two, two, causal),
        "no_scale": (torch.tensor([[[2.0, 0, 0, 0]]]), k4, k4, torch.ones(1, 2).bool()),
        "always_causal": (torch.zeros(1, 2, 1), two, two, torch.ones(2, 2).bool()),
        "keys_averaged": (one, one, 2 * one, yes),
    }
""")
change("08.4", "as many KV heads as heads", "On your input for tiled, tiled gives what the right version", E84, "(torch.ones(4, 1, 1), kv, kv, yes)", "(torch.ones(2, 1, 1), kv, kv, yes)")
change("08.4", "value is key", "On your input for keys_averaged, keys_averaged gives what the", E84, "(one, one, 2 * one, yes)", "(one, one, one, yes)")
change("08.4", "symmetric mask", "On your input for mask_transposed, mask_transposed gives what", E84, "two, two, causal)", "two, two, torch.ones(2, 2).bool())")
change("08.4", "query of zero", "On your input for no_scale, no_scale gives what the right", E84, '"no_scale": (torch.tensor([[[2.0, 0, 0, 0]]])', '"no_scale": (torch.tensor([[[0.0, 0, 0, 0]]])')
change("08.4", "random", "Your input for keys_averaged exposes it, and tiled, no_scale,", E84, '"keys_averaged": (one, one, 2 * one, yes)', '"keys_averaged": (torch.randn(4, 3, 8), torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.ones(3, 3).bool())')
change("08.4", "causal for always_causal", "On your input for always_causal, always_causal gives what the", E84, '"always_causal": (torch.zeros(1, 2, 1), two, two, torch.ones(2, 2).bool())', '"always_causal": (torch.zeros(1, 2, 1), two, two, causal)')
change("08.4", "float mask", "tiled: allowed is not a bool tensor with 2 axes", E84, "yes = torch.ones(1, 1, dtype=torch.bool)", "yes = torch.ones(1, 1)")

# --- 08.5 ---------------------------------------------------------------------------------------------------------

right("08.5", "grouped einsum without copies", """
class GemmaAttention(nn.Module):
    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.scaling = 1 / config.head_dim**0.5
        q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        for name, (a, b) in {"q_proj": (config.hidden_size, q), "k_proj": (config.hidden_size, kv), "v_proj": (config.hidden_size, kv), "o_proj": (q, config.hidden_size)}.items():
            self.add_module(name, nn.Linear(a, b, bias=False))

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        heads = lambda t: t.unflatten(-1, (-1, self.config.head_dim)).movedim(2, 1)
        q, k, v = heads(self.q_proj(hidden_states)), heads(self.k_proj(hidden_states)), heads(self.v_proj(hidden_states))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        if kv_cache is not None:
            k, v = kv_cache.update(k, v, self.layer_idx)
        q = q.unflatten(1, (self.config.num_key_value_heads, -1))
        s = torch.einsum("bkgld,bktd->bkglt", q, k) * self.scaling
        if attention_mask is not None:
            s = s + attention_mask[:, :, None]
        w = s.softmax(-1)
        o = torch.einsum("bkglt,bktd->blkgd", w, v)
        return self.o_proj(o.flatten(2)), w.flatten(1, 2)
""")
right("08.5", "expand, scaled query", """
class GemmaAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.index = layer_idx
        self.n_q, self.n_kv, self.size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.o_proj = nn.Linear(self.n_q * self.size, config.hidden_size, False)
        self.q_proj = nn.Linear(config.hidden_size, self.n_q * self.size, False)
        self.k_proj, self.v_proj = (nn.Linear(config.hidden_size, self.n_kv * self.size, bias=False) for _ in "kv")

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        b, l = hidden_states.shape[:2]
        q = torch.stack(self.q_proj(hidden_states).chunk(self.n_q, -1), 1)
        k = torch.stack(self.k_proj(hidden_states).chunk(self.n_kv, -1), 1)
        v = torch.stack(self.v_proj(hidden_states).chunk(self.n_kv, -1), 1)
        q, k = apply_rotary_pos_emb(q, k, position_embeddings[0], position_embeddings[1])
        if kv_cache is not None:
            k, v = kv_cache.update(k, v, self.index)
        share = [h * self.n_kv // self.n_q for h in range(self.n_q)]
        k, v = k[:, share], v[:, share]
        mask = 0 if attention_mask is None else attention_mask
        w = torch.softmax(torch.matmul(q / self.size**0.5, k.mT) + mask, dim=-1)
        return self.o_proj(torch.cat((w @ v).unbind(1), -1)), w
""")
G85 = right("08.5", "as most write it", """
class GemmaAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.H = config.num_attention_heads
        self.H_kv = config.num_key_value_heads
        self.d = config.head_dim
        D = config.hidden_size
        self.q_proj = nn.Linear(D, self.H * self.d, bias=False)
        self.k_proj = nn.Linear(D, self.H_kv * self.d, bias=False)
        self.v_proj = nn.Linear(D, self.H_kv * self.d, bias=False)
        self.o_proj = nn.Linear(self.H * self.d, D, bias=False)

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        B, L, _ = hidden_states.shape
        query = self.q_proj(hidden_states).view(B, L, self.H, self.d).transpose(1, 2)
        key = self.k_proj(hidden_states).view(B, L, self.H_kv, self.d).transpose(1, 2)
        value = self.v_proj(hidden_states).view(B, L, self.H_kv, self.d).transpose(1, 2)
        cos, sin = position_embeddings
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        if kv_cache is not None:
            key, value = kv_cache.update(key, value, self.layer_idx)
        groups = self.H // self.H_kv
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
        scores = query @ key.transpose(2, 3) * self.d**-0.5
        if attention_mask is not None:
            scores = scores + attention_mask
        weights = scores.softmax(dim=-1)
        out = (weights @ value).transpose(1, 2).flatten(2)
        return self.o_proj(out), weights
""")
change("08.5", "keys tiled", "the keys are shared out as 0 1 0 1, and the values", G85, "key.repeat_interleave(groups, dim=1)", "key.repeat(1, groups, 1, 1)")
change("08.5", "both tiled", "the KV heads are shared out as 0 1 0 1, so that", G85, """_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=""", """(1, groups, 1, 1)
        value = value.repeat(1, groups, 1, """)
change("08.5", "no scale", "the scores are not divided by the square root of", G85, " * self.d**-0.5", "")
change("08.5", "scale of D", "the scores are divided by the square root of the", G85, "self.d**-0.5", "hidden_states.shape[-1] ** -0.5")
change("08.5", "d = D / H", "`q_proj.weight` has shape [20, 20], expected [24,", G85, "self.d = config.head_dim", "self.d = config.hidden_size // config.num_attention_heads")
change("08.5", "mask multiplied", "the scores are multiplied by the mask: it is made", G85, "scores = scores + attention_mask", "scores = scores * attention_mask")
change("08.5", "mask ignored", "the mask has no effect", G85, """        if attention_mask is not None:
            scores = scores + attention_mask
""", "")
change("08.5", "cache before RoPE", "from the second piece on there are more keys than", G85, """query, key = apply_rotary_pos_emb(query, key, cos, sin)
        if kv_cache is not None:
            key, value = kv_cache.update(key, value, self.layer_idx""", """if kv_cache is not None:
            kv_cache.update(key, value, self.layer_idx)
        query, key = apply_rotary_pos_emb(query, key, cos, sin""")
change("08.5", "cache's answer thrown away", "from the second piece on there are more keys than", G85, "key, value = kv_cache.update(key, value, self.layer_idx)", "kv_cache.update(key, value, self.layer_idx)")
change("08.5", "layer 0 always", "each layer has a place of its own; its number is", G85, "kv_cache.update(key, value, self.layer_idx)", "kv_cache.update(key, value, 0)")
change("08.5", "key and value exchanged in the cache", "the values stand where the keys belong: `update`", G85, "kv_cache.update(key, value, self.layer_idx)", "kv_cache.update(value, key, self.layer_idx)")
change("08.5", "bias", "yours has a parameter `q_proj.bias` [24] that the", G85, """, bias=False)
        self.k_proj = nn.Linear(D, self.H_kv * self.d, bias=False)
        self.v_proj = nn.Linear(D, self.H_kv * self.d, bias=False)
        self.o_proj = nn.Linear(self.H * self.d, D, bias=False""", """)
        self.k_proj = nn.Linear(D, self.H_kv * self.d)
        self.v_proj = nn.Linear(D, self.H_kv * self.d)
        self.o_proj = nn.Linear(self.H * self.d, D""")
change("08.5", "merged without transpose", "the heads are merged while the axis of the heads", G85, "(weights @ value).transpose(1, 2).flatten(2)", "(weights @ value).reshape(B, L, -1)")
change("08.5", "softmax over queries", "the weights of a query do not sum to 1: the softmax", G85, """dim=-1)
        out""", """dim=-2)
        out""")
change("08.5", "values turned", "the values are turned as well: what a token hands", G85, """n)
        """, """n)
        value, _ = apply_rotary_pos_emb(value, value, cos, sin)
        """)
change("08.5", "no RoPE", "queries and keys are not turned: your attention", G85, """        query, key = apply_rotary_pos_emb(query, key, cos, sin)
""", "")
change("08.5", "only queries turned", "only the queries are turned", G85, "query, key = apply_rotary_pos_emb(query, key, cos, sin)", "query, _ = apply_rotary_pos_emb(query, key, cos, sin)")
change("08.5", "cos and sin exchanged", "sine and cosine have changed places", G85, "apply_rotary_pos_emb(query, key, cos, sin)", "apply_rotary_pos_emb(query, key, sin, cos)")
change("08.5", "cached after the copies", "where does the cache come: before RoPE or after?", G85, """if kv_cache is not None:
            key, value = kv_cache.update(key, value, self.layer_idx)
        groups = self.H // self.H_kv
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1""", """groups = self.H // self.H_kv
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
        if kv_cache is not None:
            key, value = kv_cache.update(key, value, self.layer_idx""")
change("08.5", "weights not returned", "the result is a Tensor, expected 2 values", G85, "return self.o_proj(out), weights", "return self.o_proj(out)")
change("08.5", "o_proj not applied", "the heads lie side by side and are never mixed: the", G85, "return self.o_proj(out), weights", "return out, weights")
change("08.5", "scaled after the mask", "the mask is scaled together with the scores. With", G85, """scores = query @ key.transpose(2, 3) * self.d**-0.5
        if attention_mask is not None:
            scores = scores + attention_mask
""", """scores = query @ key.transpose(2, 3)
        if attention_mask is not None:
            scores = scores + attention_mask
        scores = scores * self.d**-0.5
""")
change("08.5", "causal without a mask", "without a mask yours is causal: then every token", G85, "        weights = scores.softmax(dim=-1)", """        else:
            scores = scores + torch.full(scores.shape[-2:], -1e9).triu(1)
        weights = scores.softmax(dim=-1)""")
change("08.5", "mask taken as 0 and 1", "the mask is read as 1 for what may be seen: it is a", G85, "scores = scores + attention_mask", "scores = scores.masked_fill(attention_mask == 0, -1e9)")
change("08.5", "queries split by view", "the queries are cut into [B, H, L, d] at once:", G85, "view(B, L, self.H, self.d).transpose(1, 2)", "view(B, self.H, L, self.d)")
change("08.5", "mask only when square", "keys and values are right in the cache; for a", G85, "scores = scores + attention_mask", "scores = scores + attention_mask[..., -scores.shape[-2]:, :scores.shape[-2]].expand(-1, -1, -1, -1) if attention_mask.shape[-1] == scores.shape[-2] else scores")
change("08.5", "values tiled", "the values are shared out as 0 1 0 1, and the keys", G85, "value = value.repeat_interleave(groups, dim=1)", "value = value.repeat(1, groups, 1, 1)")
change("08.5", "prompt not cached", "keys and values go through `kv_cache.update`, which", G85, "if kv_cache is not None:", "if kv_cache is not None and L == 1:")

# --- 08.6 ---------------------------------------------------------------------------------------------------------

right("08.6", "without the package", """
def three_masks():
    def places(T, L):
        return torch.arange(T)[None, :], torch.arange(T)[T - L :, None]

    def build(rule):
        def mask(input_mask, mask_ar, num_queries=None):
            B, T = input_mask.shape
            L = num_queries if num_queries is not None else T
            key, query = places(T, L)
            step = mask_ar.cumsum(1)
            usual = step[:, None, :] <= step[:, T - L :, None]
            return rule(key, query, usual).expand(B, L, T) & (input_mask[:, None, :] == 1)
        return mask

    return {
        "causal": build(lambda k, q, usual: (k <= q)[None]),
        "everything": build(lambda k, q, usual: torch.ones_like(usual)),
        "window of 48": build(lambda k, q, usual: usual & (k > q - 48)),
    }
""")
right("08.6", "triu for the window", """
def three_masks():
    usual = modeling_gemma.make_attn_mask
    def window(input_mask, mask_ar, num_queries=None):
        T = input_mask.shape[1]
        near = torch.ones(T, T, dtype=torch.bool).triu(diagonal=-47)
        return usual(input_mask, mask_ar, num_queries) & near[T - (num_queries or T):]
    return {
        "causal": lambda i, m, n=None: usual(i, m.new_ones(m.shape), n),
        "everything": lambda i, m, n=None: usual(i, 0 * m, n),
        "window of 48": window,
    }
""")
M86 = right("08.6", "as most write it", """
def three_masks():
    def causal(input_mask, mask_ar, num_queries=None):
        return modeling_gemma.make_attn_mask(input_mask, torch.ones_like(mask_ar), num_queries)

    def everything(input_mask, mask_ar, num_queries=None):
        return modeling_gemma.make_attn_mask(input_mask, torch.zeros_like(mask_ar), num_queries)

    def window(input_mask, mask_ar, num_queries=None):
        allowed = modeling_gemma.make_attn_mask(input_mask, mask_ar, num_queries)
        L, T = allowed.shape[1:]
        query = torch.arange(T - L, T)[:, None]
        key = torch.arange(T)
        return allowed & (query - key < 48)

    return {"causal": causal, "everything": everything, "window of 48": window}
""")
change("08.6", "window of 49", "the pairs that lie further apart than the window", M86, "< 48", "<= 48")
change("08.6", "both sides", "tokens that lie 48 or more places *behind* the one", M86, "query - key < 48", "(query - key).abs() < 48")
change("08.6", "queries from 0", "nothing is hidden: the places of the queries are", M86, "torch.arange(T - L, T)[:, None]", "torch.arange(L)[:, None]")
change("08.6", "rule left out", "pairs are allowed that the usual rule does not", M86, "allowed & (query - key < 48)", "(query - key < 48).expand_as(allowed)")
change("08.6", "num_queries forgotten in causal", "`causal`: the shape is [B=2, T=60, T=60],", M86, "torch.ones_like(mask_ar), num_queries)", "torch.ones_like(mask_ar))")
change("08.6", "causal and everything exchanged", "'causal' and 'everything' are exchanged: ones in", M86, """ones_like(mask_ar), num_queries)

    def everything(input_mask, mask_ar, num_queries=None):
        return modeling_gemma.make_attn_mask(input_mask, torch.zero""", """zeros_like(mask_ar), num_queries)

    def everything(input_mask, mask_ar, num_queries=None):
        return modeling_gemma.make_attn_mask(input_mask, torch.one""")
change("08.6", "causal without padding", "padding is seen by nobody, whatever else may be seen", M86, "return modeling_gemma.make_attn_mask(input_mask, torch.ones_like(mask_ar), num_queries", """B, T = input_mask.shape
        L = T if num_queries is None else num_queries
        return torch.ones(T, T).tril().bool()[T - L :].expand(B, L, T""")
change("08.6", "everything without padding", "padding is seen by nobody, whatever else may be seen", M86, "return modeling_gemma.make_attn_mask(input_mask, torch.zeros_like(mask_ar), num_queries", """B, T = input_mask.shape
        return torch.ones(B, num_queries or T, T, dtype=torch.bool""")
change("08.6", "in place", "make a new tensor instead (torch.ones_like, for", M86, "torch.ones_like(mask_ar", "mask_ar.fill_(1")
change("08.6", "causal window", "later tokens are hidden: of what the usual rule", M86, "k(input_mask, mask_ar", "k(input_mask, torch.ones_like(mask_ar)")
wrong("08.6", "masks instead of functions", "'causal': a Tensor, expected a function", """
def three_masks():
    T = 80
    causal = torch.ones(1, T, T).tril().bool()
    return {"causal": causal, "everything": torch.ones(1, T, T).bool(), "window of 48": causal.triu(-47)}
""")
change("08.6", "window on the wrong side", "the window lies on the wrong side: what goes is", M86, "query - key < 48", "key - query < 48")
change("08.6", "the last 48 of all", "tokens within the window are hidden: for each row,", M86, "query - key < 48", "key >= T - 48")
