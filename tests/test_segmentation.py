"""The mask tokenizer: its network against the published formulas, its files, and the shipped weights."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from paligemma import ASSETS, segmentation
from paligemma.locations import box_to_tokens, tokens_to_box
from paligemma.segmentation import (
    MaskTokenizer,
    MaskTokenizerConfig,
    crop_mask,
    load_mask_tokenizer,
    mask_iou,
    paste_mask,
    save_mask_tokenizer,
)
from paligemma.world import scenes

SHIPPED = Path(__file__).parent.parent / "assets" / "mask-tokenizer"
SMALL = MaskTokenizerConfig(num_codes=128, code_dim=8, width=2)

# The tensors of the published vae-oid.npz: names as big_vision reads them (pp and evaluators/proj/paligemma,
# segmentation.py), shapes from the configuration it was trained with (SwinTransformer/AiT, ait_insseg_vqvae.py).
PUBLISHED = {"_vq_vae._embedding": (128, 512)}
for _name, _weight, _out in [
    ("encoder.0", (16, 1, 4, 4), 16),
    ("encoder.2", (32, 16, 4, 4), 32),
    ("encoder.4", (64, 32, 4, 4), 64),
    ("encoder.6", (128, 64, 4, 4), 128),
    ("encoder.10", (512, 128, 1, 1), 512),
    ("decoder.0", (128, 512, 1, 1), 128),
    ("decoder.4", (128, 128, 4, 4), 128),
    ("decoder.6", (128, 64, 4, 4), 64),
    ("decoder.8", (64, 32, 4, 4), 32),
    ("decoder.10", (32, 16, 4, 4), 16),
    ("decoder.12", (1, 16, 1, 1), 1),
    *(
        (f"{half}.net.{i}", (128, 128, k, k), 128)
        for half in ("encoder.8", "encoder.9", "decoder.2", "decoder.3")
        for i, k in ((0, 3), (2, 3), (4, 1))
    ),
]:
    PUBLISHED |= {f"{_name}.weight": _weight, f"{_name}.bias": (_out,)}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file of the published one's names, shapes and container, with random numbers in it."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("npz") / "vae-oid.npz"
    arrays = {name: (rng.standard_normal(shape) * 0.05).astype(np.float32) for name, shape in PUBLISHED.items()}
    arrays |= {"_vq_vae._ema_w": np.zeros((128, 512)), "_vq_vae._ema_cluster_size": np.zeros(128)}
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def shipped():
    return load_mask_tokenizer(SHIPPED)


# ------------------------------------------------- the official computation, written again in numpy from big_vision


def convolve(x, kernel, bias, stride=1):
    """x [H, W, C] with kernel [out, in, k, k], 'SAME' padding as TensorFlow has it."""
    k, (height, width) = kernel.shape[2], x.shape[:2]
    out_h, out_w = -(-height // stride), -(-width // stride)
    pad_h, pad_w = (max((n - 1) * stride + k - full, 0) for n, full in ((out_h, height), (out_w, width)))
    x = np.pad(x, ((pad_h // 2, pad_h - pad_h // 2), (pad_w // 2, pad_w - pad_w // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(0, 1))[::stride, ::stride]  # [h, w, C, k, k]
    return np.einsum("hwcyx,ocyx->hwo", windows[:out_h, :out_w], kernel) + bias


def transposed(x, kernel, bias):
    """Flax's ConvTranspose(4 x 4, strides 2, padding 2, transpose_kernel=True): zeros between the values, 2 rows of
    zeros around, then a convolution with the kernel turned by 180 degrees. kernel [in, out, 4, 4]."""
    height, width, channels = x.shape
    spread = np.zeros((2 * height - 1 + 4, 2 * width - 1 + 4, channels))
    spread[2:-2:2, 2:-2:2] = x
    windows = np.lib.stride_tricks.sliding_window_view(spread, (4, 4), axis=(0, 1))
    return np.einsum("hwcyx,coyx->hwo", windows, kernel[:, :, ::-1, ::-1]) + bias


def relu(x):
    return np.maximum(x, 0)


def residual(w, name, x):
    y = relu(convolve(x, w[f"{name}.net.0.weight"], w[f"{name}.net.0.bias"]))
    y = relu(convolve(y, w[f"{name}.net.2.weight"], w[f"{name}.net.2.bias"]))
    return x + convolve(y, w[f"{name}.net.4.weight"], w[f"{name}.net.4.bias"])


def official_encode(w, mask):
    x = 2.0 * (mask[:, :, None] - 0.5)
    for n in range(4):
        x = relu(convolve(x, w[f"encoder.{2 * n}.weight"], w[f"encoder.{2 * n}.bias"], stride=2))
    for n in range(2):
        x = residual(w, f"encoder.{8 + n}", x)
    x = convolve(x, w["encoder.10.weight"], w["encoder.10.bias"]).reshape(16, -1)
    return ((x[:, None] - w["_vq_vae._embedding"][None]) ** 2).sum(axis=2)  # distances [16, K]


def official_decode(w, codes):
    x = w["_vq_vae._embedding"][codes].reshape(4, 4, -1)
    x = relu(convolve(x, w["decoder.0.weight"], w["decoder.0.bias"]))
    x = residual(w, "decoder.3", residual(w, "decoder.2", x))
    for n in (4, 6, 8, 10):
        x = relu(transposed(x, w[f"decoder.{n}.weight"], w[f"decoder.{n}.bias"]))
    return convolve(x, w["decoder.12.weight"], w["decoder.12.bias"])[:, :, 0]


def as_arrays(tokenizer):
    return {name: tensor.double().numpy() for name, tensor in tokenizer.state_dict().items()}


def test_the_published_file_loads_and_computes_as_published(published):
    tokenizer = load_mask_tokenizer(published)
    assert {name: tuple(w.shape) for name, w in tokenizer.state_dict().items()} == PUBLISHED
    assert sum(p.numel() for p in tokenizer.decoder.parameters()) == 1_123_457
    with np.load(published) as file:
        w = {name: file[name].astype(np.float64) for name in file.files}
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 128, 16)
    drawn = tokenizer.decode_signed(torch.from_numpy(codes)[None])[0].numpy()
    assert np.abs(drawn - official_decode(w, codes)).max() < 1e-5 * np.abs(drawn).max()
    mask = rng.random((64, 64)).astype(np.float32)
    distances = official_encode(w, mask)
    mine = tokenizer.encode(torch.from_numpy(mask)[None])[0].numpy()
    # Of two codes that are equally near to float32, either may be taken.
    assert np.all(distances[np.arange(16), mine] <= distances.min(axis=1) * (1 + 1e-6))


def test_the_shipped_one_computes_as_published(shipped):
    w = as_arrays(shipped)
    mask = scenes.shape_mask("star", 7.0)
    codes = shipped.encode(torch.from_numpy(mask)[None])[0]
    assert codes.tolist() == official_encode(w, mask.astype(np.float64)).argmin(axis=1).tolist()
    drawn = shipped.decode_signed(codes[None])[0].numpy()
    assert np.abs(drawn - official_decode(w, codes.numpy())).max() < 1e-5


@pytest.mark.parametrize("channels", [(3, 5), (4, 2)])
def test_transposed_convolution_is_the_gradient_of_the_convolution(channels):
    """What gives it its name: <conv(a), b> = <a, transposed(b)> for the same kernel, stride and padding."""
    inputs, outputs = channels
    torch.manual_seed(0)
    kernel = torch.randn(inputs, outputs, 4, 4, dtype=torch.float64)
    a, b = torch.randn(1, outputs, 16, 16, dtype=torch.float64), torch.randn(1, inputs, 8, 8, dtype=torch.float64)
    up = F.conv_transpose2d(b, kernel, stride=2, padding=1)
    assert up.shape == a.shape
    assert torch.allclose((F.conv2d(a, kernel, stride=2, padding=1) * b).sum(), (a * up).sum())
    assert np.allclose(up[0].permute(1, 2, 0), transposed(b[0].permute(1, 2, 0).numpy(), kernel.numpy(), 0))


def test_decode_is_decode_signed_moved_to_0_and_1(shipped):
    codes = torch.randint(0, 128, (5, 16), generator=torch.Generator().manual_seed(0))
    signed, mapped = shipped.decode_signed(codes), shipped.decode(codes)
    assert mapped.shape == (5, 64, 64) and mapped.dtype == torch.float32
    assert torch.equal(mapped, ((signed + 1) / 2).clamp(0, 1))
    assert signed.min() < 0 < signed.max()


def test_codes_are_row_by_row():
    """A code that stands for a bright patch brightens its own place: codes count along a row first."""
    quantizer = MaskTokenizer(SMALL)._vq_vae
    grid = quantizer.lookup(torch.arange(16)[None])[0]  # [D, 4, 4]
    assert torch.equal(grid[:, 1, 2], quantizer._embedding[6])
    assert quantizer.nearest(grid[None])[0].tolist() == list(range(16))


# ------------------------------------------------------------------------------------------- crop and paste


def official_paste(m64, box, width, height):
    """The lines of big_vision's evaluator, word for word in what they do."""
    y1, x1, y2, x2 = map(int, (box[0] * height, box[1] * width, box[2] * height, box[3] * width))
    full = np.zeros((height, width), dtype=bool)
    if x2 > x1 and y2 > y1:
        full[y1:y2, x1:x2] = np.asarray(Image.fromarray(m64).resize([x2 - x1, y2 - y1], resample=Image.BILINEAR)) > 0.0
    return full


sides = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


@given(sides, sides, st.integers(1, 200), st.integers(1, 200), st.integers(0, 127))
@settings(deadline=None, max_examples=40)
def test_codes_to_mask_is_the_official_rule(shipped, ys, xs, width, height, code):
    box = (ys[0], xs[0], ys[1], xs[1])
    codes = [(code + 7 * i) % 128 for i in range(16)]
    signed = shipped.decode_signed(torch.tensor([codes]))[0].numpy()
    mask = shipped.codes_to_mask(codes, box, width, height, to_pixel=int)
    assert mask.shape == (height, width) and mask.dtype == bool
    assert np.array_equal(mask, official_paste(signed, box, width, height))


def test_crop_averages_when_it_shrinks_and_interpolates_when_it_grows():
    mask = np.zeros((200, 400), dtype=bool)
    mask[40:168, 100:228] = np.indices((128, 128)).sum(axis=0) % 2  # a chess board of 128 x 128 pixels
    crop = crop_mask(mask, (40 / 200, 100 / 400, 168 / 200, 228 / 400))
    assert crop.shape == (64, 64) and crop.dtype == torch.float32
    assert crop.sub(0.5).abs().max() < 0.05  # without antialiasing: 0 or 1
    # Bilinear by hand: output i lies at (i + 0.5) * 2 / 64 - 0.5 between the two pixels 0 and 1.
    grown = crop_mask(np.array([[False, True], [False, True]]), (0, 0, 1, 1))
    assert np.allclose(grown[0], np.clip((np.arange(64) + 0.5) / 32 - 0.5, 0, 1), atol=1e-6)


def test_crop_rounds_the_box_and_refuses_an_empty_one():
    mask = np.zeros((10, 10), dtype=bool)
    mask[3:6, 2:9] = True
    assert crop_mask(mask, (0.26, 0.24, 0.64, 0.94)).min() == 1  # 2.6, 2.4, 6.4, 9.4: rows 3 to 5
    assert crop_mask(mask, (0.24, 0.24, 0.64, 0.94)).min() == 0  # row 2 is outside the shape
    with pytest.raises(ValueError, match="there is no pixel of the 10 x 10 mask"):
        crop_mask(mask, (0.5, 0.5, 0.5, 0.9))
    with pytest.raises(ValueError, match=r"\[height, width\]"):
        crop_mask(mask[None], (0, 0, 1, 1))


@given(st.integers(0, 63), st.integers(0, 63), st.integers(1, 64), st.integers(1, 64))
@settings(deadline=None)
def test_a_box_on_whole_pixels_comes_back_from_its_tokens_exactly(y1, x1, height, width):
    y2, x2 = min(y1 + height, 64), min(x1 + width, 64)
    box = tokens_to_box(box_to_tokens((y1 / 64, x1 / 64, y2 / 64, x2 / 64)))
    expected = np.zeros((64, 64), dtype=bool)
    expected[y1:y2, x1:x2] = True
    assert np.array_equal(paste_mask(np.ones((64, 64)), box, 64, 64), expected)
    if y2 == 40:  # read as 39.98: the rule of the evaluator loses the row
        assert not paste_mask(np.ones((64, 64)), box, 64, 64, to_pixel=int)[39].any()


def test_paste_refuses_pixels_for_fractions():
    with pytest.raises(ValueError, match="fractions"):
        paste_mask(np.ones((64, 64)), (10, 10, 50, 50), 64, 64)
    assert paste_mask(np.ones((64, 64)), (0.5, 0.5, 0.501, 0.9), 64, 64).sum() == 0


def test_mask_iou_by_hand():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert mask_iou(a, b) == 1
    a[:2], b[1:3] = True, True
    assert mask_iou(a, b) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="one shape"):
        mask_iou(a, b[:3])


# ---------------------------------------------------------------------------------------------- bad input, files


def test_wrong_input_is_refused():
    tokenizer = MaskTokenizer(SMALL)
    for masks in (torch.zeros(64, 64), torch.zeros(1, 32, 32), torch.zeros(1, 64, 64, dtype=torch.bool)):
        with pytest.raises(ValueError, match="float masks"):
            tokenizer.encode(masks)
    with pytest.raises(ValueError, match="0 to 127"):
        tokenizer.decode(torch.full((1, 16), 128))
    with pytest.raises(ValueError, match="0 to 127"):
        tokenizer.decode(torch.full((1, 16), -1))
    with pytest.raises(ValueError, match=r"\[B, 16\]"):
        tokenizer.decode(torch.zeros(1, 15, dtype=torch.int64))


def test_saved_and_loaded_is_the_same(tmp_path):
    tokenizer = MaskTokenizer(SMALL)
    save_mask_tokenizer(tokenizer, tmp_path / "new")
    again = load_mask_tokenizer(tmp_path / "new")
    assert again.config == SMALL and not again.training
    before, after = tokenizer.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"config.json", "model.safetensors"}


def test_a_wrong_file_is_refused_by_name(published, tmp_path):
    with np.load(published) as file:
        arrays = dict(file)
    arrays["decoder.1.weight"] = arrays.pop("decoder.0.weight")
    arrays["decoder.12.bias"] = np.zeros(2, np.float32)
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError) as error:
        load_mask_tokenizer(tmp_path / "bad.npz")
    for complaint in (
        "missing decoder.0.weight",
        "unexpected decoder.1.weight",
        "decoder.12.bias is [2], expected [1]",
    ):
        assert complaint in str(error.value)
    with pytest.raises(FileNotFoundError, match="vae-oid.npz"):
        load_mask_tokenizer(tmp_path / "nothing")


# --------------------------------------------------------------------------------------------- the shipped weights


def test_the_shipped_one_is_small():
    assert (SHIPPED / "model.safetensors").stat().st_size < 800_000
    assert json.loads((SHIPPED / "config.json").read_text(encoding="utf-8"))["num_codes"] == 128


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_the_shipped_one_draws_every_shape(shipped, shape):
    masks = np.stack([scenes.shape_mask(shape, angle) for angle in np.linspace(-12, 12, 25)])
    drawn = shipped.decode(shipped.encode(torch.from_numpy(masks))) > 0.5
    assert np.mean([mask_iou(a, b > 0.5) for a, b in zip(drawn, masks, strict=True)]) > 0.96


def test_a_scenes_masks_survive_the_tokens(shipped):
    """Cropped from a 64-pixel picture, through the codes, and back into the picture."""
    found = []
    for seed in range(40):
        scene = scenes.make_scene(1_000_000 + seed)
        for index, thing in enumerate(scene.things):
            truth = scenes.mask(scene, index)
            codes = shipped.mask_to_codes(truth, thing.box)
            box = tokens_to_box(box_to_tokens(thing.box))
            found.append(mask_iou(shipped.codes_to_mask(codes, box, 64, 64), truth))
    assert np.mean(found) > 0.96


# -------------------------------------------------------------------------------------------------------- training


def test_codes_follow_the_mean_of_their_vectors_and_the_unused_are_revived():
    quantizer = segmentation.VectorQuantizer(3, 2)
    quantizer._embedding.copy_(torch.tensor([[0.0, 0.0], [10.0, 10.0], [99.0, 99.0]]))
    average = segmentation.CodebookAverage(quantizer, decay=0.9)
    z = torch.tensor([[1.0, 0.0], [3.0, 0.0], [10.0, 12.0], [10.0, 12.0]])
    codes = torch.tensor([0, 0, 1, 1])
    for _ in range(200):
        average.update(z, codes)
    assert torch.allclose(quantizer._embedding[:2], torch.tensor([[2.0, 0.0], [10.0, 12.0]]), atol=1e-3)
    average.revive(z, codes)
    average.update(z, codes)
    assert min((quantizer._embedding[2] - v).norm() for v in z[:2]) < 1e-4  # where the error is, not at z[2]


def test_roughen_keeps_the_mask_roughly():
    masks = torch.from_numpy(np.stack([scenes.shape_mask(shape) for shape in scenes.SHAPES]))
    torch.manual_seed(0)
    rough = torch.stack([segmentation.roughen(masks) for _ in range(20)])
    assert rough.shape == (20, *masks.shape) and rough.min() >= 0 and rough.max() <= 1
    overlap = [mask_iou(a > 0.5, b > 0.5) for view in rough for a, b in zip(view, masks, strict=True)]
    assert 0.7 < np.mean(overlap) < 0.99


def test_the_command_trains_on_a_folder_of_any_masks(tmp_path):
    (tmp_path / "masks").mkdir()
    for index, shape in enumerate(("circle", "cross")):
        mask = np.zeros((90, 150), np.uint8)
        mask[20:70, 30:120] = np.asarray(Image.fromarray(scenes.shape_mask(shape)).resize((90, 50))) * 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index}.png")
    command = [
        "train",
        "--output",
        str(tmp_path / "out"),
        "--masks",
        str(tmp_path / "masks"),
        "--steps",
        "200",
        "--batch",
        "8",
        "--width",
        "2",
        "--code-dim",
        "4",
    ]
    segmentation.main(command)
    log = [json.loads(line) for line in (tmp_path / "out" / "training.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["step"] for entry in log] == [100, 200]
    assert log[1]["reconstruction"] < log[0]["reconstruction"] < 1.0  # 1.0 is what drawing nothing scores
    first = load_mask_tokenizer(tmp_path / "out").state_dict()
    measured = json.loads((tmp_path / "out" / "measured.json").read_text(encoding="utf-8"))
    assert measured["IoU of the mask drawn from its codes"] > 0.3 and len(measured) == 6
    segmentation.main(command)  # the same seed, the same weights
    again = load_mask_tokenizer(tmp_path / "out").state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not list((tmp_path / "out").glob("*.partial"))


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--masks", "nowhere"], 1, "there is no folder nowhere"),
        (["--steps", "0"], 2, "argument --steps: it is '0', expected a whole number of 1 or more"),
        (["--batch", "-4"], 2, "--batch: it is '-4', expected a whole number"),
        (["--seed", "-1"], 2, "--seed: it is '-1', expected a whole number of 0 or more"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys, options, code, message):
    try:
        found = segmentation.main(["train", "--output", str(tmp_path / "out"), *options])
    except SystemExit as stop:  # argparse's own
        found = stop.code
    assert found == code
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["steps", "batch"])
def test_training_for_no_steps_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0, expected a whole number of 1 or more"):
        segmentation.train_mask_tokenizer(torch.zeros(2, 64, 64), SMALL, **{"steps": 1, name: 0})


def test_the_mask_tokenizer_of_a_model_is_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(ASSETS)
    assert segmentation.mask_tokenizer_folder("tiny-paligemma") == ASSETS / "mask-tokenizer"
    assert segmentation.mask_tokenizer_folder(tmp_path) == tmp_path.resolve() / "mask-tokenizer"


def test_training_refuses_what_is_not_masks(tmp_path):
    with pytest.raises(ValueError, match="64, 64"):
        segmentation.train_mask_tokenizer(torch.zeros(2, 32, 32), SMALL, steps=1)
    with pytest.raises(ValueError, match="no mask in"):
        segmentation.folder_masks(tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    with pytest.raises(ValueError, match="no white pixel"):
        segmentation.folder_masks(tmp_path)


def test_the_card_tells_what_is_measured(shipped):
    """Every figure of assets/mask-tokenizer/README.md, computed again."""
    masks, objects = segmentation.shape_masks(150, 1_000_000)
    figures = segmentation.measure(shipped, masks)
    for shape in scenes.SHAPES:
        part = masks[[i for i, (name, _) in enumerate(objects) if name == shape]]
        drawn = shipped.decode(shipped.encode(part)) > 0.5
        figures[shape] = np.mean([mask_iou(a, b > 0.5) for a, b in zip(drawn, part, strict=True)])
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| (.+) \| ([0-9.]+) \|$", card, re.MULTILINE))
    assert told.keys() == figures.keys()
    for name, value in figures.items():
        assert float(told[name]) == pytest.approx(value, abs=0.0015), name


def test_the_callers_random_numbers_go_on_undisturbed(shipped):
    masks = torch.from_numpy(np.stack([scenes.shape_mask(shape) for shape in ("circle", "cross")]))
    torch.manual_seed(5)
    expected = torch.rand(3)
    for work in (
        lambda: segmentation.measure(shipped, masks),
        lambda: segmentation.train_mask_tokenizer(masks, SMALL, steps=2, batch=2, log=lambda figures: None),
    ):
        torch.manual_seed(5)
        work()
        assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------------------------------------------- damaged files


def damaged_config(**changes):
    return json.dumps({"num_codes": 128, "code_dim": 8, "width": 2, **changes}).encode()


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", b""),
        ("config.json", b"{"),
        ("config.json", b"[1, 2]"),
        ("config.json", b"null"),
        ("config.json", b"\xff\xfe"),
        ("config.json", b"[" * 100_000),
        ("config.json", damaged_config(width="wide")),
        ("config.json", damaged_config(width=-1)),
        ("config.json", damaged_config(width=True)),
        ("config.json", damaged_config(num_codes=None)),
        ("config.json", damaged_config(extra=1)),
        ("config.json", damaged_config(width=10**7)),  # 4,000 TB, if anybody built it
        ("config.json", damaged_config(code_dim=9)),
        ("model.safetensors", b""),
        ("model.safetensors", b"not tensors"),
        ("model.safetensors", b"\x00" * 64),
        ("model.safetensors", None),  # the first half
    ],
)
def test_a_damaged_folder_is_one_sentence_with_its_name(tmp_path, name, content):
    save_mask_tokenizer(MaskTokenizer(SMALL), tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError) as error:
        load_mask_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an archive", None])
def test_a_damaged_published_file_is_one_sentence(published, tmp_path, content):
    whole = published.read_bytes()
    (tmp_path / "vae-oid.npz").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match="vae-oid.npz is damaged or cut off"):
        load_mask_tokenizer(tmp_path / "vae-oid.npz")


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    tokenizer = MaskTokenizer(SMALL)
    with torch.no_grad():
        tokenizer.decoder[0].bias[1] = torch.nan
    save_mask_tokenizer(tokenizer, tmp_path)
    with pytest.raises(ValueError, match=r"decoder.0.bias \(torch.float32\) is not of finite floats"):
        load_mask_tokenizer(tmp_path)
