"""Held-out solutions of chapter 01."""

# ruff: noqa: E501
# fmt: off

from . import change, right, wrong

# --- 01.1 -------------------------------------------------------------------------------------------------------------

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
change("01.1", "random picture for deviation_first", E11, ("(white, one, (2.0, 2.0, 2.0))", "(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))"), says="Your input for deviation_first exposes it, and stretched,")
change("01.1", "one_mean with equal means", E11, ("(red, (1.0, 0.0, 0.0), one)", "(red, (1.0, 1.0, 1.0), (1.0, 2.0, 3.0))"), says="On your input for one_mean, one_mean gives what the right")
change("01.1", "in_bytes: white pixel only", E11, ("""quarter[0, 0] = 255
""", """quarter[0, 0] = 255
    quarter = quarter[:1, :1]
"""), says="Your input for in_bytes exposes it, and own_mean, too")
change("01.1", "picture as floats 0..1", E11, ("white = np.full((2, 2, 3), 255, np.uint8)", "white = np.ones((2, 2, 3), np.float32)"), says="deviation_first: the picture is not an array of")
change("01.1", "means in bytes", E11, ('"stretched": (grey, (0.2, 0.2, 0.2), one)', '"stretched": (grey, (51, 51, 51), one)'), says="stretched: mean is (51, 51, 51), expected numbers")
change("01.1", "own_mean forgotten", E11, ("""        "own_mean": (white, (0.0, 0.0, 0.0), one),
""", ""), says="one input for each of the wrong versions")
change("01.1", "channels first", E11, ("np.full((2, 2, 3), 51, np.uint8)", "np.full((3, 2, 2), 51, np.uint8)"), says="stretched: the picture's shape is [3, 2, 2],")
change("01.1", "deviation zero", E11, ("(2.0, 2.0, 2.0)", "(0.0, 0.0, 0.0)"), says="deviation_first: std is (0.0, 0.0, 0.0), expected")
change("01.1", "picture without mean and std", E11, ('"in_bytes": (quarter, (0.25, 0.25, 0.25), one)', '"in_bytes": quarter'), says="in_bytes: 1 values, which is not the number of")

# --- 01.2 -------------------------------------------------------------------------------------------------------------

right("01.2", "from two lists", """
def read_panels():
    faults = ["mean not subtracted", "reshaped instead of transposed", "computed in 8 bits",
              "red and blue exchanged", "nearest pixel", "rows and columns exchanged"]
    return dict(zip("ABCDEF", faults))
""")
wrong("01.2", "A and C taken for each other", """
def read_panels():
    return {
        "A": "computed in 8 bits",
        "B": "reshaped instead of transposed",
        "C": "mean not subtracted",
        "D": "red and blue exchanged",
        "E": "nearest pixel",
        "F": "rows and columns exchanged",
    }
""", says="'computed in 8 bits' and another are exchanged: one")
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
change("01.2", "one fault twice", P12, ('"F": "rows and columns exchanged"', '"F": "reshaped instead of transposed"'), says="5 of 6 panels are right; 'reshaped instead of")
change("01.2", "panel E left out", P12, ("""        "E": "nearest pixel",
""", ""), says="the panels are ['A', 'B', 'C', 'D', 'F'], expected")
change("01.2", "misspelt", P12, ('"nearest pixel"', '"nearest pixels"'), says="'nearest pixels' is none of the names: computed in")

# --- 01.3 -------------------------------------------------------------------------------------------------------------

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
wrong("01.3", "convert only, after turning", """
def to_rgb(image):
    image = ImageOps.exif_transpose(image)
    return image.convert("RGB")
""", says="where the picture is transparent, colours appear")
T13 = right("01.3", "as most write it", """
def to_rgb(image):
    image = ImageOps.exif_transpose(image)
    image = image.convert("RGBA")
    page = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(page, image).convert("RGB")
""")
change("01.3", "EXIF forgotten", T13, ("""    image = ImageOps.exif_transpose(image)
""", ""), says="the picture lies on its side or on its head:")
change("01.3", "black page", T13, ('"white"', '"black"'), says="what is transparent has become black: on a page it")
change("01.3", "page laid on the picture", T13, ("(page, image)", "(image, page)"), says="every picture is white: the page lies on the")
change("01.3", "page without colour", T13, ('Image.new("RGBA", image.size, "white")', 'Image.new("RGBA", image.size)'), says="what is transparent has become black, and what is")
wrong("01.3", "turned at the end", """
def to_rgb(image):
    rgba = image.convert("RGBA")
    page = Image.new("RGBA", rgba.size, "white")
    flat = Image.alpha_composite(page, rgba).convert("RGB")
    return ImageOps.exif_transpose(flat)
""", says="the picture lies on its side or on its head:")
wrong("01.3", "grey stays grey", """
def to_rgb(image):
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGBA":
        page = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(page, image).convert("RGB")
    return image
""", says="pictures with transparency become RGB, those that")
wrong("01.3", "half transparent counts as opaque", """
def to_rgb(image):
    image = ImageOps.exif_transpose(image).convert("RGBA")
    pixels = np.array(image)
    pixels[pixels[..., 3] == 0, :3] = 255
    return Image.fromarray(pixels[..., :3])
""", says="a pixel is either white or opaque: one of half")
wrong("01.3", "rotates without expand", """
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
""", says="the picture is turned inside its old frame: a")
change("01.3", "RGBA comes out", T13, ('.convert("RGB")', ""), says="the picture has four channels at the end: the")
wrong("01.3", "page pasted without a mask", """
def to_rgb(image):
    image = ImageOps.exif_transpose(image)
    page = Image.new("RGB", image.size, "white")
    page.paste(image.convert("RGB"), (0, 0))
    return page
""", says="where the picture is transparent, colours appear")
wrong("01.3", "multiplied by opacity", """
def to_rgb(image):
    image = ImageOps.exif_transpose(image).convert("RGBA")
    a = np.asarray(image).astype(float)
    rgb = a[:, :, :3] * a[:, :, 3:4] / 255
    return Image.fromarray(rgb.round().astype("uint8"), "RGB")
""", says="what is transparent has become black: on a page it")

# --- 01.4 -------------------------------------------------------------------------------------------------------------

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
change("01.4", "resize(height, width)", P14, ("(width, height)", "(height, width)"), says="PIL's resize takes (width, height), `size` is")
change("01.4", "reshape for channels first", P14, ("x.transpose(2, 0, 1)", "x.reshape(3, height, width)"), says="your numbers are right and lie in the wrong places:")
change("01.4", "transpose(2, 1, 0)", P14, ("x.transpose(2, 0, 1)", "x.transpose(2, 1, 0)"), says="rows and columns are exchanged when the channels")
change("01.4", "not divided by 255", P14, (" / 255", ""), says="your numbers are normalised and never divided by 255")
change("01.4", "division by 0.5 left out", P14, ("(x - 0.5) / 0.5", "x - 0.5"), says="your numbers run from -0.5 to 0.5: the division by")
change("01.4", "brackets forgotten", P14, ("(x - 0.5) / 0.5", "x - 0.5 / 0.5"), says="your numbers run from -1 to 0: without brackets x -")
change("01.4", "bilinear", P14, ("BICUBIC", "BILINEAR"), says="your numbers are those of bilinear interpolation")
change("01.4", "nearest", P14, ("(width, height), Image.Resampling.BICUBIC", "(width, height), Image.Resampling.NEAREST"), says="your numbers are those of the nearest pixel: edges")
change("01.4", "float64", P14, (".astype(np.float32) / 255", " / 255.0"), says="`[0]`: the result is float64, expected float32")
change("01.4", "one array", P14, ("return out", "return np.stack(out)"), says="one array comes back for all pictures: a list with")
change("01.4", "return in the loop", P14, ("""out.append(x.transpose(2, 0, 1))
    return out""", """out.append(x.transpose(2, 0, 1))
        return out"""), says="1 values, expected 2")
change("01.4", "crops to keep the proportions", P14, ('image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)', 'ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BICUBIC)'), says="your pictures are cut to the proportions: here they")
change("01.4", "pads with black bars", P14, ('image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)', 'ImageOps.pad(image.convert("RGB"), (width, height), Image.Resampling.BICUBIC)'), says="your pictures have bars beside them: here they are")
change("01.4", "divided by 256", P14, ("/ 255", "/ 256"), says="your numbers are divided by 256: the largest of a")
change("01.4", "cut to whole numbers", P14, ("np.array(image).astype(np.float32) / 255", "(np.array(image) / 255).astype(np.uint8).astype(np.float32)"), says="the numbers from 0 to 1 are cut to whole ones:")
change("01.4", "ImageNet's mean and deviation", P14, ("x = (x - 0.5) / 0.5", "x = (x - np.array([0.485, 0.456, 0.406], dtype=np.float32)) / np.array([0.229, 0.224, 0.225], dtype=np.float32)"), says="your mean and deviation are those of ImageNet: this")
change("01.4", "the picture's own mean and deviation", P14, ("x = (x - 0.5) / 0.5", "x = (x - x.mean()) / x.std()"), says="each picture is normalised by its own mean and")
change("01.4", "square only", P14, ("height, width = size", "height = width = size[0]"), says="height and width are the same in yours: `size` has")
change("01.4", "no convert", P14, ('.convert("RGB")', ""), says="pictures are not made RGB first: a grey one has no")
change("01.4", "channels last", P14, ("""x = (x - 0.5) / 0.5
        out.append(x.transpose(2, 0, 1))""", """x = (x - 0.5) / 0.5
        out.append(x)"""), says="the channels are the last axis: convolutions in")
change("01.4", "arithmetic in uint8", P14, ("""x = np.array(image).astype(np.float32) / 255
        x = (x - 0.5) / 0.5""", "x = (np.array(image) * 2 - 255).astype(np.float32) / 255"), says="your numbers are computed while the picture is")
change("01.4", "BGR", P14, ("np.array(image)", "np.array(image)[:, :, ::-1]"), says="red and blue are exchanged")
change("01.4", "thumbnail", P14, ('image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)', """image = image.convert("RGB")
        image.thumbnail((width, height), Image.Resampling.BICUBIC)"""), says="your pictures keep their proportions, and so do not")

# --- 01.5 -------------------------------------------------------------------------------------------------------------

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
change("01.5", "no rounding", P15, ("np.round(values)", "values"), says="one of three faults is left: most numbers are one")
change("01.5", "no clip", P15, ("np.clip(np.round(values), 0, 255)", "np.round(values)"), says="one of three faults is left: numbers just outside")
change("01.5", "axes as before", P15, ("(1, 2, 0)", "(2, 1, 0)"), says="one of three faults is left: rows and columns are")
change("01.5", "clip after the cast", P15, ("np.clip(np.round(values), 0, 255).astype(np.uint8)", "np.clip(np.round(values).astype(np.uint8), 0, 255)"), says="one of three faults is left: numbers just outside")
change("01.5", "clipped from 0 to 1 first", P15, ("""values = array.transpose(1, 2, 0)
    values = (values * 0.5 + 0.5) * 255""", """values = np.clip(array.transpose(1, 2, 0), 0, 1)
    values = (values * 0.5 + 0.5) * 255"""), says="the numbers are clipped to 0 and 1 while they still")
change("01.5", "reshape", P15, ("array.transpose(1, 2, 0)", "array.reshape(array.shape[1], array.shape[2], 3)"), says="`reshape` cuts the numbers differently and moves")
change("01.5", "times 256", P15, ("* 255", "* 256"), says="the numbers are multiplied by 256: the largest of a")
change("01.5", "ceil", P15, ("np.round(values)", "np.ceil(values)"), says="every number is rounded up instead of to the nearest")
change("01.5", "int64", P15, (".astype(np.uint8)", ".astype(np.int64)"), says="the result is int64, expected uint8")
wrong("01.5", "works on the argument", """
def to_picture(array):
    array *= 0.5
    array += 0.5
    array *= 255
    return np.clip(np.round(array), 0, 255).astype(np.uint8).transpose(1, 2, 0)
""", says="an in-place operation (+=, *=, a method ending in")
change("01.5", "rounded before times 255", P15, ("(values * 0.5 + 0.5) * 255", "np.round(values * 0.5 + 0.5) * 255"), says="the numbers are rounded while they run from 0 to 1:")
change("01.5", "plus 0.5 forgotten", P15, ("(values * 0.5 + 0.5) * 255", "(values * 0.5) * 255"), says="0.5 is not added: everything below the middle is")
change("01.5", "stretched to the picture's own range", P15, ("(values * 0.5 + 0.5) * 255", "(values - values.min()) / (values.max() - values.min()) * 255"), says="each picture is stretched from its own smallest to")

# --- 01.6 -------------------------------------------------------------------------------------------------------------

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
change("01.6", "list instead of text", D16, (")[0]", ")"), says="`generate` answers a list of prompts with a list")
change("01.6", "caption without en", D16, ('"caption en"', '"caption"'), says="the model was asked ['caption'], expected ['caption")
change("01.6", "swap never used", D16, ("""with swap(model, process_images=process_images) as mine:
        return generate(mine""", "return generate(model"), says="the caption is right, and the package's own")
change("01.6", "with block closed too early", D16, ("return generate(mine", """pass
    return generate(model"""), says="the caption is right, and the package's own")
change("01.6", "newline in the prompt", D16, ('"caption en"', '"caption en\\n"'), says="the model was asked ['caption en\\n'], expected")
change("01.6", "picture upside down", D16, ("images=[image]", "images=[image.rotate(180)]"), says="your part does not compute what the package's does:")
