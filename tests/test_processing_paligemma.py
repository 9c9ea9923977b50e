"""The processor: pixels and tokens equal to transformers', odd pictures and prompts, and errors that say what to do."""

import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from reference import PROMPTS, SUFFIXES, call_theirs, pictures, toy_processors, toy_tokenizer
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from paligemma.processing_paligemma import (
    LOCATION_TOKENS,
    SEGMENTATION_TOKENS,
    PaliGemmaProcessor,
    add_image_tokens_to_prompt,
    make_rows,
    normalize,
    pad_rows,
    process_images,
    rescale,
    resize,
    to_rgb,
    upright_size,
)

SIZES = [(20, 20), (1, 1), (1, 300), (300, 1), (33, 21), (224, 224), (640, 427), (3, 2), (1000, 10)]


@pytest.fixture(scope="module")
def processors():
    """(ours, transformers')"""
    return toy_processors()


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def same(a, b) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


# ----------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("target", [20, 21, 224])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_transformers(size, target):
    image = picture(*size)
    theirs = SiglipImageProcessorPil(size={"height": target, "width": target})
    expected = theirs(image, return_tensors="pt")["pixel_values"]
    ours = torch.from_numpy(np.stack(process_images([image], (target, target))))
    assert ours.dtype == torch.float32 and ours.shape == (1, 3, target, target)
    assert torch.equal(ours, expected)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 90), height=st.integers(1, 90), seed=st.integers(0, 1000),
    mode=st.sampled_from("1 L RGB CMYK".split()),
)  # fmt: skip
def test_pixels_are_those_of_transformers_at_any_size(width, height, seed, mode):
    image = picture(width, height, mode, seed)
    theirs = SiglipImageProcessorPil(size={"height": 14, "width": 14})
    expected = theirs(image, return_tensors="np")["pixel_values"]
    assert np.array_equal(np.stack(process_images([image], (14, 14))), expected)


def test_pixels_are_the_formula():
    """(x / 255 - 0.5) / 0.5 of PIL's own resize, in float64."""
    image = picture(50, 30)
    values = np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC)).astype(np.float64)
    expected = ((values / 255 - 0.5) / 0.5).transpose(2, 0, 1)
    [pixels] = process_images([image], (8, 8))
    np.testing.assert_allclose(pixels, expected, atol=1e-6)
    assert pixels.min() >= -1 and pixels.max() <= 1 and pixels.flags["C_CONTIGUOUS"]


def test_the_steps_by_themselves():
    image = picture(6, 4)
    assert resize(image, (2, 3)).size == (3, 2)  # size is (height, width)
    assert rescale(np.array([0, 255], dtype=np.uint8), 1 / 255).tolist() == [0.0, 1.0]
    halves = np.full((1, 1, 3), 0.5, dtype=np.float32)
    assert (normalize(halves, (0.5, 0.25, 0), (0.5, 0.5, 0.5)) == [0, 0.5, 1]).all()
    assert normalize(halves, (0.5,) * 3, (0.5,) * 3).dtype == np.float32


def test_the_callers_picture_is_left_alone():
    image = picture(9, 7, "RGBA")
    before = image.tobytes()
    process_images([image], (20, 20))
    assert (image.mode, image.size, image.tobytes()) == ("RGBA", (9, 7), before)


# ---------------------------------------------------------------------------------------------- image modes


@pytest.mark.parametrize("mode", "1 L P RGB CMYK YCbCr HSV".split())
def test_modes_that_pil_can_convert(mode):
    image = picture(12, 9, mode)
    assert same(to_rgb(image), image.convert("RGB"))
    assert to_rgb(image).mode == "RGB"


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_is_white(mode):
    """As a picture looks on a page, not the colour that happens to be stored where nothing is to be seen."""
    image = Image.new(mode, (3, 1), (0,) * len(mode))  # black, transparent
    image.putpixel((1, 0), (0,) * (len(mode) - 1) + (255,))  # black, opaque
    image.putpixel((2, 0), (0,) * (len(mode) - 1) + (51,))  # a fifth of black
    assert np.asarray(to_rgb(image))[0].tolist() == [[255] * 3, [0] * 3, [204] * 3]


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 10, 30])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.gif", transparency=0)
    opened = Image.open(tmp_path / "p.gif")
    assert opened.mode == "P"
    assert np.asarray(to_rgb(opened))[0].tolist() == [[255, 255, 255], [200, 10, 30]]
    image.save(tmp_path / "p.png", transparency=bytes([255, 0]))
    assert np.asarray(to_rgb(Image.open(tmp_path / "p.png")))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_rgb_with_a_transparent_colour(tmp_path):
    Image.new("RGB", (2, 1), (1, 2, 3)).save(tmp_path / "t.png", transparency=(1, 2, 3))
    assert (np.asarray(to_rgb(Image.open(tmp_path / "t.png"))) == 255).all()


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_become_eight(mode, tmp_path):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    image = Image.fromarray(values.astype(np.int32)).convert("I") if mode == "I" else Image.new(mode, (4, 1))
    if mode != "I":
        image = Image.frombytes(mode, (4, 1), values.astype(">u2" if mode.endswith("B") else "<u2").tobytes())
    assert np.asarray(to_rgb(image))[0, :, 1].tolist() == [0, 1, 128, 255]
    if mode == "I;16":
        image.save(tmp_path / "16.png")
        assert same(to_rgb(Image.open(tmp_path / "16.png")), to_rgb(image))


def test_a_dark_sixteen_bit_picture_stays_dark():
    image = Image.frombytes("I;16", (2, 1), np.array([0, 200], dtype="<u2").tobytes())
    with pytest.warns(UserWarning, match="16 bits, but its numbers end at 200 of 65535.* if 255 is white"):
        assert np.asarray(to_rgb(image)).max() == 1


@pytest.mark.parametrize("top, warned", [(4095, True), (4096, False), (65535, False), (0, False)])
def test_twelve_bits_are_not_stretched_and_a_warning_says_so(top, warned):
    """0 to 4095 may be a 12-bit camera or a dark room: the numbers alone can't tell."""
    image = Image.frombytes("I;16", (2, 1), np.array([0, top], dtype="<u2").tobytes())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert np.asarray(to_rgb(image)).max() == round(top / 65535 * 255)
    assert [("if 4095 is white in it, scale it to 8 bits" in str(w.message)) for w in caught] == [True] * warned


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floats(top):
    image = Image.fromarray(np.array([[0, 0.2 * top, top]], dtype=np.float32))
    assert image.mode == "F"
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 51, 255]


@pytest.mark.parametrize(
    "values, message",
    [([0.0, np.nan], "not finite"), ([0.0, np.inf], "not finite"), ([-1.0, 0.5], "from -1 to 0.5, expected 0 to 1"),
     ([0.0, 300.0], "from 0 to 300, expected 0 to 255")],
)  # fmt: skip
def test_floats_that_are_no_picture(values, message):
    with pytest.raises(ValueError, match=message):
        to_rgb(Image.fromarray(np.array([values], dtype=np.float32)))


def test_whole_numbers_that_are_no_picture():
    with pytest.raises(ValueError, match=r"mode I\) holds values from -5 to 7"):
        to_rgb(Image.fromarray(np.array([[-5, 7]], dtype=np.int32)))


def test_a_mode_that_cannot_be_converted(monkeypatch):
    def refuse(self, *args, **kwargs):
        raise ValueError("conversion not supported")  # PIL's words for a mode that it has lost since

    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(ValueError, match="mode L cannot be turned into RGB: save it as PNG"):
        to_rgb(Image.new("L", (2, 2)))


def test_grey_multiplied_by_its_transparency():
    image = Image.new("La", (2, 1), (0, 0))  # nothing there
    image.putpixel((1, 0), (0, 255))  # black
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "TIFF", "BMP"])
def test_a_closed_picture_is_one_sentence(file_format):
    data = io.BytesIO()
    Image.new("RGB", (5, 4)).save(data, file_format)
    with Image.open(data) as image:
        pass
    with pytest.raises(ValueError, match="closed before it was read: use it inside `with`"):
        to_rgb(image)
    made = Image.new("RGB", (5, 4))
    made.close()
    with pytest.raises(ValueError, match="closed before it was read"):
        to_rgb(made)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_upright_size_is_that_of_what_the_model_sees(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "phone.jpg", exif=exif)
    with Image.open(tmp_path / "phone.jpg") as image:
        assert upright_size(image) == ((20, 30) if orientation >= 5 else (30, 20)) == to_rgb(image).size
    assert upright_size(np.zeros((7, 9), dtype=np.uint8)) == (9, 7)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_cameras_notes_on_rotation_are_followed(orientation, tmp_path):
    """Transposed as the EXIF standard (CIPA DC-008, table of Orientation) says, corner by corner."""
    upright = Image.new("RGB", (24, 16), "white")
    ImageDraw.Draw(upright).rectangle((0, 0, 7, 7), fill="red")  # top left
    T = Image.Transpose
    store = {1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90,
             7: T.TRANSVERSE, 8: T.ROTATE_270}[orientation]  # fmt: skip
    stored = upright if store is None else upright.transpose(store)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    seen = to_rgb(Image.open(tmp_path / "photo.png"))
    assert seen.size == (24, 16) and same(seen, upright)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    opened = Image.open(tmp_path / "a.gif")
    assert opened.n_frames == 2
    assert (np.asarray(to_rgb(opened)) == (254, 0, 0)).all() or (np.asarray(to_rgb(opened)) == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_file_that_was_cut_off(kind):
    file = io.BytesIO()
    picture(60, 50).save(file, kind, **({"exif": Image.Exif()} if kind == "JPEG" else {}))
    whole = file.getvalue()
    cut = Image.open(io.BytesIO(whole[: len(whole) // 2])) if kind not in ("TIFF", "WEBP") else None
    if cut is None:  # these say so when they are opened
        with pytest.raises((OSError, SyntaxError)):
            Image.open(io.BytesIO(whole[: len(whole) // 2])).load()
        return
    with pytest.raises(ValueError, match="cannot be read .*damaged or cut off"):
        to_rgb(cut)


def test_a_huge_picture_is_resized(processors):
    image = Image.new("L", (8000, 6000), 255)
    pixels = processors[0](text="a", images=image)["pixel_values"]
    assert (pixels == 1).all()


def test_arrays_are_pictures_too(processors):
    image = picture(17, 11)
    expected = processors[0](text="a", images=image)["pixel_values"]
    assert torch.equal(processors[0](text="a", images=np.asarray(image))["pixel_values"], expected)
    assert torch.equal(processors[0](text=["a"], images=[np.asarray(image)])["pixel_values"], expected)
    assert same(to_rgb(np.asarray(image.convert("L"))), image.convert("L").convert("RGB"))
    assert same(to_rgb(np.asarray(image.convert("RGBA"))), image)


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3)), np.zeros((3, 5, 5), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8),
     np.zeros((1, 4, 4, 3), np.uint8), np.zeros((4, 4), bool), np.zeros((4, 4), np.int64)],
)  # fmt: skip
def test_arrays_that_are_no_pictures(array):
    with pytest.raises(ValueError, match="expected uint8 .*a PIL image is safest"):
        to_rgb(array)


@pytest.mark.parametrize("empty", [np.zeros((0, 4, 3), np.uint8), Image.new("RGB", (0, 5))])
def test_empty_pictures(empty):
    with pytest.raises(ValueError, match="nothing in it"):
        to_rgb(empty)


@pytest.mark.parametrize("wrong", ["cat.jpg", b"bytes", 3, None, torch.zeros(3, 4, 4), {"image": 1}])
def test_things_that_are_no_pictures(wrong, processors):
    with pytest.raises(TypeError, match=r"expected a PIL image"):
        processors[0](text=["a"], images=[wrong])
    if not isinstance(wrong, (list, tuple)):
        with pytest.raises(TypeError, match="images is a .*expected a PIL image or a list"):
            processors[0](text=["a"], images=wrong)


# ---------------------------------------------------------------------------------------------------- prompts


def check_equal(processors, prompts, images, suffixes=None, **options):
    ours, theirs = processors
    inputs = ours(text=prompts, images=images, suffix=suffixes, **options)
    nested = [row if isinstance(row, list) else [row] for row in images]
    expected = call_theirs(theirs, prompts, nested, suffixes, **options)
    for name, tensor in inputs.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name
    return inputs


AWKWARD = [
    "", " ", "   ", "\n", "\n\n", " \n ", "\t", "a  b", " caption en", "caption en ", "caption en\n", "é 고양이 🐈",
    "<loc0000>", "detect <loc0000><loc1023> ; <seg127>", "<loc1024>", "<eos>", "a<bos>b<pad>", "<0x41>", "▁▁",
]  # fmt: skip


@pytest.mark.parametrize("prompt", AWKWARD)
def test_awkward_prompts_give_transformers_tokens(processors, prompt):
    check_equal(processors, [prompt], pictures(1))
    check_equal(processors, [prompt, "caption en"], pictures(2), ["a cat", prompt])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.text(max_size=30) | st.sampled_from(AWKWARD + PROMPTS)] * 2), min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
    with_suffix=st.booleans(),
)
def test_any_prompts_give_transformers_tokens(processors, rows, side, with_suffix):
    for processor in processors:
        processor.tokenizer.padding_side = side
    prompts, suffixes = ([row[i].replace("<image>", "") for row in rows] for i in (0, 1))
    try:
        inputs = check_equal(processors, prompts, pictures(len(rows)), suffixes if with_suffix else None)
    finally:
        for processor in processors:
            processor.tokenizer.padding_side = "left"
    lengths = inputs["attention_mask"].sum(dim=1)
    assert lengths.max() == inputs["input_ids"].shape[1]
    assert ((inputs["input_ids"] == processors[0].image_token_id).sum(dim=1) == 16).all()
    assert (inputs["token_type_ids"] <= inputs["attention_mask"]).all()
    if with_suffix:
        learnt = inputs["labels"] != -100
        assert torch.equal(learnt.long(), inputs["token_type_ids"])
        assert (inputs["labels"][learnt] == inputs["input_ids"][learnt]).all()


def test_order_of_the_tokens(processors):
    """FORMAT of the official README: image tokens, BOS, prompt, newline; then the answer and EOS."""
    ours = processors[0]
    ids = ours(text="caption en", images=pictures(1)[0], suffix="a cat")["input_ids"][0].tolist()
    tokens = ours.tokenizer.convert_ids_to_tokens(ids)
    assert tokens[:16] == ["<image>"] * 16 and tokens[16] == "<bos>" and tokens[-1] == "<eos>"
    middle = tokens.index("\n")
    assert ours.decode(ids[17:middle]) == "caption en" and ours.decode(ids[middle + 1 :]) == "a cat"
    assert add_image_tokens_to_prompt("hi", "<bos>", 2, "<image>") == "<image><image><bos>hi\n"


def test_a_single_prompt_and_picture_need_no_lists(processors):
    ours, [image] = processors[0], pictures(1)
    alone, listed = ours(text="a cat", images=image, suffix="x"), ours(text=["a cat"], images=[image], suffix=["x"])
    assert all(torch.equal(alone[name], listed[name]) for name in listed)
    assert set(alone) == {"pixel_values", "input_ids", "attention_mask", "token_type_ids", "labels"}
    assert "labels" not in ours(text="a cat", images=image)


def test_very_long_prompts(processors):
    inputs = check_equal(processors, ["a red cat " * 2000, "a"], pictures(2), ["x", "large star " * 1000])
    assert inputs["input_ids"].shape[1] > 6000


def test_several_pictures_in_a_prompt(processors):
    images = [pictures(3, 30), pictures(1, 12), pictures(2, 9)]
    inputs = check_equal(processors, PROMPTS, images, SUFFIXES)
    assert inputs["pixel_values"].shape == (6, 3, 20, 20)
    assert (inputs["input_ids"] == processors[0].image_token_id).sum(dim=1).tolist() == [48, 16, 32]


def test_image_token_written_at_the_front_means_the_same(processors):
    ours, images = processors[0], pictures(2)
    expected = ours(text=["caption en"], images=images[:1])
    assert torch.equal(ours(text=["<image>caption en"], images=images[:1])["input_ids"], expected["input_ids"])
    expected = ours(text=["caption en"], images=[images])
    assert torch.equal(ours(text=["<image><image>caption en"], images=[images])["input_ids"], expected["input_ids"])


@pytest.mark.parametrize("prompt", ["what is <image> here", "caption en<image>", " <image>caption", "<image><image>a"])
def test_image_token_elsewhere_or_too_often(processors, prompt):
    with pytest.raises(ValueError, match=r"contains <image> [12] times, with 1 picture.*leave it out"):
        processors[0](text=[prompt], images=pictures(1))


def test_image_token_in_the_answer(processors):
    with pytest.raises(ValueError, match="suffix 'an <image>' contains <image>"):
        processors[0](text=["a"], images=pictures(1), suffix=["an <image>"])


@pytest.mark.parametrize(
    "text, images, suffix, error, message",
    [
        (["a", "b"], 1, None, ValueError, "1 pictures came with 2 prompts.*repeat the picture"),
        (["a"], 2, None, ValueError, "2 pictures came with 1 prompts.*list of lists"),
        ([], 0, None, ValueError, "0 pictures came with 0 prompts"),
        (["a"], 0, None, ValueError, "0 pictures came with 1 prompts"),
        (None, 1, None, TypeError, r"text is a NoneType.*an empty prompt is ''"),
        (3, 1, None, TypeError, "text is a int"),
        (["a", 3], 2, None, TypeError, "text is a list with int, str"),
        (["a"], 1, ["x", "y"], ValueError, "2 suffixes came with 1 prompts"),
        (["a"], 1, [None], TypeError, "suffix is a list with NoneType"),
        (["a"], 1, 5, TypeError, "suffix is a int"),
    ],
)
def test_prompts_pictures_and_suffixes_must_match(processors, text, images, suffix, error, message):
    with pytest.raises(error, match=message):
        processors[0](text=text, images=pictures(images) if images else [], suffix=suffix)


def test_a_prompt_without_pictures(processors):
    with pytest.raises(ValueError, match="empty list of pictures"):
        processors[0](text=["a", "b"], images=[pictures(1), []])
    with pytest.raises(TypeError, match="images is a NoneType"):
        processors[0](text=["a"], images=None)


# ---------------------------------------------------------------------------------------- padding and truncation


def test_padding(processors):
    ours, images = processors[0], pictures(2)
    inputs = ours(text=["a", "a red cat"], images=images)
    assert inputs["attention_mask"][0].tolist() == [0, 0] + [1] * 19  # left, as Gemma's tokenizer has it
    assert inputs["input_ids"][0, :2].tolist() == [0, 0]
    full = check_equal(processors, ["a", "a red cat"], images, padding="max_length", max_length=30, truncation=True)
    assert full["input_ids"].shape == (2, 30)
    equal = ours(text=["a", "a"], images=images, padding=False)
    assert equal["attention_mask"].all()
    with pytest.raises(ValueError, match=r"rows of \[19, 21\] tokens do not make a tensor: use padding='longest'"):
        ours(text=["a", "a red cat"], images=images, padding=False)
    with pytest.raises(ValueError, match="padding is 'left', expected"):
        ours(text=["a"], images=images[:1], padding="left")


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.integers(0, 20), suffix=st.none() | st.integers(0, 20), limit=st.integers(19, 60),
    side=st.sampled_from(["left", "right"]),
)  # fmt: skip
def test_truncation_keeps_what_matters(prompt, suffix, limit, side):
    """The end of the prompt goes first, then the end of the answer; the frame around them stays."""
    processor = PaliGemmaProcessor(toy_tokenizer(side), 16, 20)
    text, answer = " cat" * prompt, None if suffix is None else " dog" * suffix
    options = {"images": pictures(1), "suffix": None if answer is None else [answer]}
    whole = processor(text=[text], **options)["input_ids"][0].tolist()
    ids = processor(text=[text], **options, max_length=limit)["input_ids"][0].tolist()
    cat, dog, newline = (processor.tokenizer.convert_tokens_to_ids(token) for token in ("▁cat", "▁dog", "\n"))
    assert ids[:17] == whole[:17]  # every image token, and BOS
    assert len(ids) == max(min(len(whole), limit), 18 + (suffix is not None))
    assert ids.count(newline) == 1
    kept = ids.count(cat), ids.count(dog)
    if len(whole) > limit:
        excess = len(whole) - limit
        assert kept == (max(prompt - excess, 0), max((suffix or 0) - max(excess - prompt, 0), 0))
        with pytest.raises(ValueError, match=f"makes {len(whole)} tokens.*at most {limit}"):
            processor(text=[text], **options, max_length=limit, truncation=False)
    else:
        assert ids == whole
    if suffix is not None:
        assert ids[-1] == 1  # EOS
        assert processor(text=[text], **options, max_length=limit)["labels"][0, -1] == 1


def test_the_tokenizers_own_limit_counts():
    processor = PaliGemmaProcessor(toy_tokenizer(model_max_length=25), 16, 20)
    with pytest.warns(UserWarning, match="1 of 1 prompts are cut: .* up to 119 tokens, .* model_max_length is 25"):
        assert processor(text=["a " * 100], images=pictures(1))["input_ids"].shape == (1, 25)
    assert processor(text=["a " * 100], images=pictures(1), max_length=40)["input_ids"].shape == (1, 40)


@pytest.mark.parametrize("max_length", [0, -1, 17, 18])
def test_a_limit_that_leaves_no_room(processors, max_length):
    with pytest.raises(
        ValueError, match=f"max_length is {max_length}: the 16 image tokens of 1 .*, BOS and .* alone take 18"
    ):
        processors[0](text=["a"], images=pictures(1), max_length=max_length)


def test_every_picture_counts_for_the_limit(processors):
    """Two pictures of 16 tokens do not fit into 20, whatever is cut."""
    with pytest.raises(ValueError, match="max_length is 20: the 32 image tokens of 2 picture.* alone take 34"):
        processors[0](text=["caption en"], images=[pictures(2)], max_length=20)
    assert processors[0](text=["a b c"], images=[pictures(2)], max_length=35)["input_ids"].shape == (1, 35)
    small = PaliGemmaProcessor(toy_tokenizer(model_max_length=25), 16, 20)
    with pytest.raises(ValueError, match="the tokenizer's model_max_length is 25: the 32 image tokens"):
        small(text=["a"], images=[pictures(2)])


@pytest.mark.parametrize("max_length", ["64", 64.0, True])
def test_a_limit_that_is_no_number(processors, max_length):
    with pytest.raises(ValueError, match=f"max_length is {max_length!r}, expected a whole number"):
        processors[0](text=["a"], images=pictures(1), max_length=max_length)


def test_cutting_is_silent_only_where_it_was_asked_for(processors, caplog):
    """And transformers' own warning, that long rows will end in indexing errors, is not true here."""
    small = PaliGemmaProcessor(toy_tokenizer(model_max_length=25), 16, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(text=["a " * 100], images=pictures(1), max_length=25)
        small(text=["a"], images=pictures(1))
    with pytest.warns(UserWarning, match="2 of 3 prompts are cut") as caught:
        small(text=["a " * 100, "a", "a " * 50], images=pictures(3))
    assert len(caught) == 1, "once for a batch"
    assert not caplog.records


@pytest.mark.parametrize("text", ["caption \ud800 en", "\udcff"])
def test_half_a_letter_is_one_sentence(processors, text):
    with pytest.raises(ValueError, match="the prompt holds half a letter .* lone surrogate"):
        processors[0](text=[text], images=pictures(1))
    with pytest.raises(ValueError, match="the suffix holds half a letter"):
        processors[0](text=["a"], images=pictures(1), suffix=[text])


# ------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_what_the_processor_gives(processors, side):
    ours = processors[0]
    tokenizer, images = ours.tokenizer, pictures(3)
    expected = ours(text=PROMPTS, images=images, suffix=SUFFIXES)
    rows = make_rows(tokenizer, PROMPTS, SUFFIXES, 16)
    batch = pad_rows(rows, tokenizer.pad_token_id, side=tokenizer.padding_side)
    assert batch.keys() == expected.keys() - {"pixel_values"}
    for name, tensor in batch.items():
        assert torch.equal(tensor, expected[name]), name
    padded = pad_rows(rows, tokenizer.pad_token_id, length=90, side=side)
    for i, (prefix, suffix) in enumerate(rows):
        real = padded["attention_mask"][i].bool()
        assert padded["input_ids"].shape == (3, 90) and bool(real[0 if side == "right" else -1])
        assert padded["input_ids"][i, real].tolist() == prefix + suffix
        assert padded["labels"][i, real].tolist() == [-100] * len(prefix) + suffix
        assert padded["token_type_ids"][i, real].tolist() == [0] * len(prefix) + [1] * len(suffix)


def test_image_tokens_written_by_hand_make_no_difference(processors):
    tokenizer = processors[0].tokenizer
    plain = make_rows(tokenizer, ["a", "b"], None, 16, [1, 2])
    assert make_rows(tokenizer, ["<image>a", "<image><image>b"], None, 16, [1, 2]) == plain
    assert [len(prefix) - 16 * n for (prefix, _), n in zip(plain, [1, 2], strict=True)] == [
        3,
        3,
    ]  # BOS, prompt, newline
    with pytest.raises(ValueError, match="contains <image> 1 times, with 2 picture"):
        make_rows(tokenizer, ["<image>b"], None, 16, [2])
    with pytest.raises(ValueError, match="1 suffixes came with 2 prompts"):
        make_rows(tokenizer, ["a", "b"], ["c"], 16)


# -------------------------------------------------------------------------------------------------- vocabulary


def test_missing_tokens_are_added_as_transformers_adds_them(processors):
    ours, theirs = processors
    assert ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    assert ours.image_token_id == theirs.image_token_id
    assert len(LOCATION_TOKENS) == 1024 and len(SEGMENTATION_TOKENS) == 128
    before = len(ours.tokenizer)
    PaliGemmaProcessor(ours.tokenizer, 16, 20)
    assert len(ours.tokenizer) == before, "a second time adds nothing"


def test_decoding_keeps_boxes_and_spaces(processors):
    ours = processors[0]
    text = "<loc0001><loc0500><loc0600><loc1023><seg000> red cat ; a , b ."
    ids = ours.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ours.decode([2, *ids, 1, 0]) == text
    assert ours.decode([*ids, 1], skip_special_tokens=False) == text + "<eos>"
