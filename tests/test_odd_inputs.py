"""800 odd pictures, prompts and options from a seeded generator: an answer, or one sentence from the package itself.

No crash, no hang, nothing from the depths of torch, PIL or tokenizers.
"""

import collections
import io
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference import make_ours, make_talkative, make_theirs, processors_for, shape

import paligemma
from paligemma import generate, visualize
from paligemma.generation import stream
from paligemma.locations import parse_detections

PACKAGE = Path(paligemma.__file__).parent
CASES = 800
SECONDS = 20  # for one case, on a slow and busy machine


@pytest.fixture(scope="module")
def small():
    """(a random model that writes noise, its processor)"""
    theirs = make_theirs(shape(), seed=7)
    make_talkative(theirs)
    return make_ours(theirs), processors_for(shape())[0]


# ---------------------------------------------------------------------------------------------------- the generator

MODES = ["1", "L", "P", "PA", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"]
WIDE = ["I;16", "I;16B", "I;16L"]
FORMATS = {"PNG": "1 L P LA RGB RGBA I".split(), "JPEG": "L RGB CMYK".split(), "GIF": "1 L P RGB".split(),
           "TIFF": "1 L P LA RGB RGBA CMYK I F LAB".split(), "BMP": "1 L P RGB".split(), "WEBP": "RGB RGBA".split(),
           "PPM": "1 L RGB".split(), "TGA": "L P RGB RGBA".split(), "ICO": "RGBA RGB".split()}  # fmt: skip
SIDES = [1, 2, 3, 7, 16, 20, 33, 64, 300, 2000]
SCRIPTS = [
    "caption en",
    "한국어 그림",
    "עברית",
    "🙂👩‍🚀",
    "e\u0301",
    "\u202e",
    "\x00",
    "\t\n\r",
    "$x_1^2$",
    "％",
    "a" * 500,
    " ",
]
SCRIPTS += [
    "<loc0001>",
    "<seg001>",
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "<image>",
    "\ud800",
    "\udfff",
    "\\",
    "'\";--",
    "{}",
]
NOT_TEXT = [None, 5, b"caption", ["a", 5], [], {}, ("a",), [["a"]], object(), np.array("a"), 1.5, True]
NOT_PICTURES = [None, "cat.png", b"\x89PNG", 5, Path("cat.png"), [], {}, object(), torch.zeros(3, 8, 8), io.BytesIO()]
NUMBERS = [0, -1, 1, 2, 3, 1.5, 0.5, 1e-45, 1e-300, 1e67, 1e308, float("nan"), float("inf"), -float("inf")]
NUMBERS += [2**31, 2**63, 2**70, 10**7, 10**12, "1", "a", None, True, [1], np.float32(0.7), np.int64(2)]
NUMBERS += [torch.tensor(2), 1 + 2j]


def make_picture(rng: np.random.Generator) -> Image.Image:
    """Any mode, any size, as it is or through a file of any format, sometimes turned by a note."""
    width, height = (int(rng.choice(SIDES[:-1] if rng.random() < 0.9 else SIDES)) for _ in range(2))
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    if rng.random() < 0.2:
        numbers = rng.integers(0, rng.choice([200, 4096, 65536]), (height, width)).astype("<u2")
        return Image.frombytes(str(rng.choice(WIDE)), (width, height), numbers.tobytes())
    mode = str(rng.choice(MODES))
    via = {"LAB": "RGB", "PA": "P", "La": "LA", "RGBa": "RGBA", "HSV": "RGB", "YCbCr": "RGB", "F": "L", "I": "L"}
    image = noise.convert("RGB") if mode not in ("RGBA", "LA", "La", "RGBa", "PA") else noise
    image = image.convert(via.get(mode, mode)) if mode not in ("LAB", "PA") else Image.new(mode, (width, height))
    return image if image.mode == mode else image.convert(mode)


def through_a_file(rng: np.random.Generator) -> Image.Image:
    """Saved and opened again; in half of the cases the file is damaged."""
    file_format = str(rng.choice([*FORMATS]))
    image, data = Image.new("RGB", (1, 1)), io.BytesIO()
    while image.mode not in FORMATS[file_format] or (file_format == "ICO" and max(image.size) > 64):
        image = make_picture(rng)
    extra = {}
    if file_format in ("JPEG", "PNG", "TIFF", "WEBP") and rng.random() < 0.6:
        extra["exif"] = Image.Exif()
        extra["exif"][0x0112] = int(rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 99]))
    if file_format in ("GIF", "PNG", "WEBP", "TIFF") and rng.random() < 0.2:
        extra |= {"save_all": True, "append_images": [image.copy()]}
    image.save(data, file_format, **extra)
    content = bytearray(data.getvalue())
    if rng.random() < 0.5:
        for _ in range(int(rng.integers(1, 6))):
            content[rng.integers(len(content))] = rng.integers(256)
        content = content[: int(len(content) * rng.choice([1, 1, 0.9, 0.5]))]
    opened = Image.open(io.BytesIO(bytes(content)))
    if rng.random() < 0.1:
        opened.close()
    return opened


def make_array(rng: np.random.Generator) -> np.ndarray:
    sides = tuple(int(side) for side in rng.choice([0, 1, 3, 4, 8, 21], int(rng.integers(0, 5))))
    kind = str(
        rng.choice(["uint8", "uint8", "uint8", "float32", "float64", "int64", "uint16", "bool", "complex64", "S1"])
    )
    return np.zeros(sides, dtype=kind)


def make_prompt(rng: np.random.Generator) -> str:
    pieces = [str(rng.choice(SCRIPTS)) for _ in range(int(rng.integers(0, 5)))]
    if rng.random() < 0.05:
        pieces *= 300
    return str(rng.choice(["", " ", "\n"])).join(pieces)


def cases(count: int, seed: int = 0):
    """(what, a function that makes images, text and options of `generate`): a quarter each of the four kinds."""
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        plain = Image.new("RGB", (20, 20), "red")
        if i % 4 == 0:
            yield "picture", lambda rng=rng: (make_picture(rng), "caption en", {})
        elif i % 4 == 1:
            make = [through_a_file, through_a_file, through_a_file, make_array,
                    lambda rng: NOT_PICTURES[rng.integers(len(NOT_PICTURES))]][i // 4 % 5]  # fmt: skip
            yield "file or array", lambda rng=rng, make=make: (make(rng), "caption en", {})
        elif i % 4 == 2:
            odd = NOT_TEXT[rng.integers(len(NOT_TEXT))] if rng.random() < 0.15 else make_prompt(rng)
            pictures = [plain, [plain], [[plain, plain]], [plain, plain]][rng.choice(4, p=[0.7, 0.1, 0.1, 0.1])]
            yield "prompt", lambda odd=odd, pictures=pictures: (pictures, odd, {})
        else:
            names = rng.choice(["max_new_tokens", "temperature", "top_k", "top_p", "seed"], rng.integers(1, 4), False)
            options = {str(name): NUMBERS[rng.integers(len(NUMBERS))] for name in names}
            yield "options", lambda options=options, plain=plain: (plain, "caption en", options)


def complaint(error: BaseException) -> str | None:
    """What is wrong with an error as an answer to its user; None if nothing is."""
    if not isinstance(error, (ValueError, TypeError)):
        return f"a {type(error).__name__}: {error}"
    if not str(error) or "\n" in str(error) or len(str(error)) > 500:
        return f"no single sentence: {str(error)[:300]!r}"
    if "expected" not in str(error) and ": " not in str(error):
        return f"neither what was expected nor what to do: {error}"
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    if PACKAGE not in raised_in.parents:
        return f"from the depths ({raised_in.name}): {error}"
    return None


def run(small, draw_every: int = 20) -> tuple[collections.Counter, list[str]]:
    """All cases: (how many of each kind and outcome, what went wrong)."""
    model, processor = small
    outcomes, wrong = collections.Counter(), []
    for i, (kind, make) in enumerate(cases(CASES)):
        try:
            images, text, options = make()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            outcomes[kind, "PIL itself cannot open it"] += 1
            continue
        options = {"max_new_tokens": 2, **options}
        started = time.monotonic()
        try:
            answers = generate(model, processor, images=images, text=text, **options)
            outcomes[kind, "answered"] += 1
            assert isinstance(answers, list) and all(isinstance(answer, str) for answer in answers)
            parse_detections(answers[0])
            if i % draw_every == 0 and isinstance(images, Image.Image):
                title = text if isinstance(text, str) else None
                figure = visualize.show_image(images, title).figure
                figure.savefig(io.BytesIO(), format="png", dpi=30)
                visualize.show_tokens(answers, ["suffix"] * len(answers))
        except Exception as error:
            outcomes[kind, "one sentence"] += 1
            if problem := complaint(error):
                wrong.append(f"case {i} ({kind}; {type(images).__name__}, {str(text)[:40]!r}, {options}): {problem}")
        if time.monotonic() - started > SECONDS:
            wrong.append(f"case {i} ({kind}, {options}) took {time.monotonic() - started:.0f} s")
    return outcomes, wrong


def test_800_odd_pictures_prompts_and_options(small):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes, wrong = run(small)
    assert not wrong, f"{len(wrong)} of {CASES}:\n" + "\n".join(wrong[:20])
    assert sum(outcomes.values()) == CASES
    for kind in ("picture", "file or array", "prompt", "options"):
        assert outcomes[kind, "answered"] > 20, (kind, "the generator makes nothing that works")
    for kind in ("file or array", "prompt", "options"):
        assert outcomes[kind, "one sentence"] > 20, (kind, "the generator makes nothing that is refused")


@pytest.mark.parametrize("text", ["caption \ud800", 5, None])
def test_streaming_refuses_in_one_sentence_too(small, text):
    with pytest.raises((ValueError, TypeError)) as caught:
        list(stream(*small, Image.new("RGB", (8, 8)), text))
    assert complaint(caught.value) is None


@pytest.mark.parametrize("padding", [None, 5, "left", [], "max_length"])
@pytest.mark.parametrize("max_length", [None, "9", 1.5, -3, 10**30, True])
@pytest.mark.parametrize("truncation", [True, False, "longest_first", None])
def test_odd_options_of_the_processor(small, padding, max_length, truncation):
    try:
        small[1](
            text=["caption en"], images=[Image.new("RGB", (8, 8))], padding=padding, max_length=max_length,
            truncation=truncation,
        )  # fmt: skip
    except Exception as error:
        assert complaint(error) is None, complaint(error)
