"""What a figure shows is read back from its Axes: arrays, limits, titles, labels."""

import matplotlib

matplotlib.use("Agg")

import ast
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as MplPath
from PIL import Image

from paligemma import visualize as vis
from paligemma.locations import box_to_pixels
from paligemma.processing_paligemma import to_rgb, upright_size
from paligemma.visualize import attention, model_map
from paligemma.visualize.style import SIGNED, SMALL, png_for_notebook


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        vis.set_style()
        yield
        plt.close("all")


@pytest.fixture
def picture():
    """[12, 16, 3] uint8, every value different from its neighbours."""
    return np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def shown(ax, i=0):
    return np.asarray(ax.images[i].get_array())


def texts(ax):
    return [text.get_text() for text in ax.texts]


def assert_labelled(ax):
    assert ax.get_xlabel() and ax.get_ylabel()


# --- one style ------------------------------------------------------------------------------------


def test_style_is_narrow_small_and_safe_for_colour_blind_readers():
    width, _ = matplotlib.rcParams["figure.figsize"]
    assert width == vis.WIDTH <= 7.5
    assert width * matplotlib.rcParams["figure.dpi"] <= 1000, "wide figures make notebooks heavy"
    assert matplotlib.rcParams["image.cmap"] == "cividis"
    # A cycle that survives greyscale: no two neighbours have nearly the same luminance.
    colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    luminance = np.array([np.dot(to_rgba(c)[:3], [0.299, 0.587, 0.114]) for c in colours])
    assert np.abs(np.diff(luminance)).min() > 0.05


def test_fonts_come_with_matplotlib():
    from matplotlib import font_manager

    path = Path(font_manager.findfont(matplotlib.rcParams["font.family"][0], fallback_to_default=False))
    assert Path(matplotlib.get_data_path()) in path.parents


def test_model_files_never_import_visualize():
    package = Path(vis.__file__).parents[1]
    for name in ("modeling_*.py", "processing_*.py", "kv_cache.py", "generation.py", "checkpoint.py"):
        assert list(package.glob(name)), name
        for path in package.glob(name):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or "", *(alias.name for alias in node.names)]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                else:
                    continue
                assert not any("visualize" in n or "matplotlib" in n for n in names), path


# --- reading pictures -----------------------------------------------------------------------------


def test_every_form_of_a_picture_reads_alike(picture):
    expected = picture / 255.0
    chw = torch.tensor(picture).permute(2, 0, 1)
    forms = {
        "pil": Image.fromarray(picture),
        "hwc": picture,
        "chw": chw,
        "floats": picture / 255.0,
        "normalised": chw.float() / 255 * 2 - 1,
        "needs grad": (chw.float() / 255).requires_grad_(),
        "rgba": np.dstack([picture, np.full((12, 16), 255, np.uint8)]),
    }
    for name, form in forms.items():
        np.testing.assert_allclose(vis.to_picture(form), expected, atol=1e-6, err_msg=name)
    half = vis.to_picture((chw.float() / 255).bfloat16())
    np.testing.assert_allclose(half, expected, atol=5e-3)


def test_grey_pictures_get_three_equal_channels():
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    for form in (grey, grey[None], grey[..., None], Image.fromarray(grey)):
        pixels = vis.to_picture(form)
        assert pixels.shape == (4, 5, 3)
        for channel in range(3):
            np.testing.assert_allclose(pixels[..., channel], grey / 255)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (8,), (7, 8, 9)])
def test_what_is_no_picture_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError, match=str(shape[0])):
        vis.to_picture(np.zeros(shape))


def marked(mode: str) -> Image.Image:
    """30 x 20 pixels of this mode: dark, with a light block at the top left (where the mode can say so)."""
    grey = np.full((20, 30), 40, np.uint8)
    grey[:8, :10] = 220
    image = Image.fromarray(grey)
    if mode == "I;16":
        return Image.frombytes("I;16", (30, 20), (grey.astype("<u2") * 257).tobytes())
    if mode in ("I", "F"):
        return Image.fromarray((grey.astype(np.int32) * 257) if mode == "I" else grey.astype(np.float32) / 255)
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(255 - np.roll(grey, 12, axis=1) // 2))
        return image
    if mode == "P with transparency":
        image = image.convert("P")
        image.info["transparency"] = 40
        return image
    return image.convert("RGB").convert(mode)


MODES = ["1", "L", "P", "P with transparency", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"]


@pytest.mark.parametrize("mode", MODES)
def test_what_is_drawn_is_what_the_model_sees(mode):
    """Transparent, 16-bit, palette: one way from a PIL image to pixels, the processor's."""
    image = marked(mode)
    np.testing.assert_array_equal(vis.to_picture(image), np.asarray(to_rgb(image)) / 255)
    np.testing.assert_array_equal(shown(vis.show_image(image)), np.asarray(to_rgb(image)) / 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_box_mask_and_heat_map_land_on_the_same_object_however_the_camera_was_held(orientation, form, tmp_path):
    """A light block in the upright picture; the file is stored turned, as a telephone stores it."""
    upright = np.asarray(marked("RGB").resize((120, 80), Image.Resampling.NEAREST))
    T = Image.Transpose
    store = {1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90,
             7: T.TRANSVERSE, 8: T.ROTATE_270}[orientation]  # fmt: skip
    stored = Image.fromarray(upright) if store is None else Image.fromarray(upright).transpose(store)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "phone", form, exif=exif)
    image = Image.open(tmp_path / "phone")
    block = np.zeros((80, 120), dtype=bool)
    block[:32, :40] = True  # what the model would say: 0 to 0.4 of the height, 0 to 1/3 of the width
    x1, y1, x2, y2 = box_to_pixels((0, 0, 0.4, 1 / 3), *upright_size(image))

    def light(ax):
        return shown(ax).mean(axis=-1) > 0.5

    ax = vis.show_boxes(image, [(y1, x1, y2, x2)])
    assert (light(ax) == block).mean() > 0.99
    corner, width, height = ax.patches[0].get_xy(), ax.patches[0].get_width(), ax.patches[0].get_height()
    assert (corner, width, height) == ((-0.5, -0.5), 40, 32)
    ax = vis.show_masks(image, block[None], labels=[])
    assert (light(ax) == (shown(ax, 1)[..., 3] > 0)).mean() > 0.99
    weights = np.zeros((5, 3))
    weights[:2, 0] = 0.5
    for ax in (vis.show_attention_over_image(image, weights), vis.show_answer_attention(image, [weights], ["a"])[0]):
        spread = np.kron(shown(ax, 1), np.ones((16, 40))) > 0
        assert ax.images[1].get_extent() == [-0.5, 119.5, 79.5, -0.5] and (light(ax) == spread).mean() > 0.99
    assert shown(vis.show_patches(image, 8, gap=0)).shape == (80, 120, 3)


# --- text that may hold anything ---------------------------------------------------------------------

ODD_TEXTS = {
    "formula": "costs $5 and $6_x^2, \\frac{1",
    "letters": "a \ud83d b \udc00 한국어 빨간 원 \U0001f600\U0001f469\u200d\U0001f680 \ufe0f "
    "\x00\x07\t\x1b[0m \u202eשלום\u202c العربية",
    "ten thousand words": "word " * 10_000,
    "ten thousand lines": "line\n" * 10_000,
    "one long word": "w" * 10_000,
    "empty": "",
}


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_any_text_is_drawn_without_a_warning(name, picture):
    text = ODD_TEXTS[name]
    probabilities = np.full((1, 1), 0.5)
    figures = [
        vis.show_image(picture, text),
        vis.show_images([picture], [text]),
        vis.show_patches(picture, 4, title=text),
        vis.show_boxes(picture, [[0, 0, 9, 9]], [text], text),
        vis.show_masks(picture, np.ones((1, 12, 16)), [text], text),
        vis.show_tokens([text, "b"], ["prompt", "eos"], text),
        vis.show_tokens(text.split(), ["suffix"] * len(text.split()), text),
        vis.show_batch([["prompt"]], {text: np.ones((1, 1), bool)}, [text], text),
        vis.show_logit_lens([[text]], probabilities, [text], ["layer"], text),
        vis.show_attention_over_image(picture, np.ones((3, 4)), title=text),
        vis.show_answer_attention(picture, np.ones((1, 3, 4)), [text]),
        vis.show_attention_matrix(np.ones((1, 1)), [("a", 1)], text),
        vis.show_matrix(np.ones((1, 1)), text, rows=[text], columns=[text]),
        vis.show_mask_matrix(np.ones((1, 1)), [("a", 1)], text, names=[text]),
        vis.show_curves({text: [1, 2], "b": [2, 3]}, title=text),
        vis.show_histograms({text: [1.0, 2]}),
        vis.show_similarity(np.ones((1, 1)), [picture], [text]),
        vis.show_mask_codes(np.zeros((1, 8, 8)), np.zeros((1, 16), int), np.zeros((1, 8, 8)), [text]),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for axes in figures:
            np.ravel(axes)[0].figure.savefig(io.BytesIO(), format="png", dpi=40)


def test_text_keeps_what_can_be_drawn():
    assert vis.plain("a red circle") == "a red circle"
    assert vis.plain("$5") == r"\$5" and vis.plain("é ü ␣ … “a”") == "é ü ␣ … “a”"
    assert vis.plain("\ud800x") == "□x" and vis.plain("a\x07\tb") == "a□ b"
    assert len(vis.plain("word " * 10_000)) == 160 and vis.plain("word " * 10_000).endswith("…")
    assert vis.plain("l\n" * 99).count("\n") == 1
    assert vis.readable_token("▁red") == "red" and vis.readable_token("\n") == "\\n" and vis.readable_token("▁") == "␣"
    assert vis.readable_token("top\nlayer 2, head 3") == "top\nlayer 2, head 3", "a label of two lines stays one"


def test_dollars_are_drawn_as_dollars():
    """As many letters as stand there: a formula would have lost its dollars."""
    from matplotlib.textpath import TextPath

    def width(text):
        return TextPath((0, 0), text, size=10, usetex=False).get_extents().width

    assert width(vis.plain("x $y$ z")) == pytest.approx(width("x $") + width("y$ z"), rel=0.15)
    assert width("x $y$ z") < 0.8 * width(vis.plain("x $y$ z"))


# --- styles of other people ---------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["dark_background", "ggplot", "Solarize_Light2", "a matplotlibrc"])
def test_the_style_does_not_depend_on_the_one_before(other, picture):
    def pixels():
        buffer = io.BytesIO()
        vis.show_curves({"a": [1, 2], "b": [2, 1]}, title="a title").figure.savefig(buffer, format="png")
        with Image.open(buffer) as image:
            return np.asarray(image.convert("RGB"), int)

    expected = pixels()
    if other == "a matplotlibrc":
        matplotlib.rcParams.update(
            {"text.color": "white", "axes.facecolor": "black", "savefig.bbox": "tight", "font.size": 30,
             "axes.labelcolor": "white", "figure.facecolor": "none", "savefig.transparent": True,
             "lines.color": "white", "image.origin": "lower", "axes.titlelocation": "left"}
        )  # fmt: skip
    else:
        plt.style.use(other)
    assert pixels().shape != expected.shape or (pixels() != expected).any(), "the other style shows"
    vis.set_style()
    np.testing.assert_array_equal(pixels(), expected)
    ground = expected[0, 0]
    assert (ground == 255).all() and expected.min() < 60, "dark letters on white"


def test_nothing_is_written_smaller_than_eight_points(picture):
    matplotlib.rcParams["figure.max_open_warning"] = 0
    codes = np.arange(32).reshape(2, 16)
    vectors = np.random.default_rng(0).standard_normal((12, 5))
    figures = [
        vis.show_patches(picture, 4, numbers=True, highlight=[6]),
        vis.show_filters(np.zeros((3, 3, 2, 2))),
        vis.show_similarity_maps(vectors, (3, 4), [0]),
        vis.show_similarity(np.ones((2, 2)), [picture, picture], ["a", "b"]),
        vis.show_boxes(picture, [[0, 0, 9, 9]], ["a"]),
        vis.show_masks(picture, np.ones((1, 12, 16))),
        vis.show_mask_codes(np.zeros((2, 8, 8)), codes, np.zeros((2, 8, 8)), ["a", "b"]),
        vis.show_matrix(np.ones((3, 3))),
        vis.show_tokens([f"<loc{i:04}>" for i in range(40)], ["loc"] * 40),
        vis.show_batch([["prompt"] * 20], {"mask": np.ones((1, 20), bool)}),
        vis.show_next_tokens(np.array([[0.1, 0.7, 0.2]]), Names(), ["▁blue"], top=2),
        vis.show_logit_lens([["a long word"] * 30], np.ones((1, 30)), ["a"] * 30, ["x"]),
        vis.show_answer_attention(picture, np.ones((2, 3, 4)), ["a", "b"]),
        vis.show_attention_over_image(picture, np.ones((3, 4))),
        vis.show_attention_matrix(np.ones((1, 1)), [("a", 1)]),
        vis.show_histograms({"a": picture}),
        vis.show_curves({"a": [1, 2], "b": [2, 3]}),
        vis.show_feature_colours(np.zeros((1, 2, 4, 4, 3)), ["a", "b"], [picture]),
        vis.show_spread({"a": [1.0, 2]}, reference={"a": 1}, reference_label="chance"),
        vis.show_model_sizes({"a": {"x": 1e9}}),
        vis.show_clock_hands(np.zeros((1, 2)), [0, 1], ["a"]),
        vis.show_codebook(vectors[:, :2], vectors[:3, :2]),
        vis.roofline(20e9, 300e9, {"decode": (1.0, 18e9)}),
        *(vis.architecture(open=name) for name in model_map._INSIDE),
    ]
    assert len(figures) > 25
    for axes in figures:
        for text in np.ravel(axes)[0].figure.findobj(matplotlib.text.Text):
            assert text.get_fontsize() >= SMALL or not text.get_text(), text


def test_a_notebook_shows_a_sharp_figure_in_its_own_size(picture):
    figure = vis.show_image(picture).figure
    data, size = png_for_notebook(figure)
    with Image.open(io.BytesIO(data)) as png:
        assert png.width == pytest.approx(2 * size["width"], abs=1)
    assert size["width"] == pytest.approx(320, abs=25)  # 3.2 inches


# --- pictures -------------------------------------------------------------------------------------


def test_show_image(picture):
    ax = vis.show_image(picture, "a title")
    np.testing.assert_allclose(shown(ax), picture / 255)
    assert ax.get_title() == "a title"
    assert_labelled(ax)
    assert ax.get_ylim() == (11.5, -0.5)  # y grows downwards


def test_show_images(picture):
    axes = vis.show_images([picture, picture[:6]], ["one", "two"])
    assert [ax.get_title() for ax in axes] == ["one", "two"]
    assert shown(axes[1]).shape == (6, 16, 3)
    with pytest.raises(ValueError, match="2 pictures but 1 titles"):
        vis.show_images([picture, picture], ["one"])


def test_show_patches_keeps_every_pixel_and_numbers_rows_first(picture):
    ax = vis.show_patches(picture, 4, gap=2, numbers=True)
    canvas = shown(ax)
    assert canvas.shape == (3 * 4 + 2 * 2, 4 * 4 + 3 * 2, 3)
    pixels = picture / 255
    for r in range(3):
        for c in range(4):
            patch = canvas[r * 6 : r * 6 + 4, c * 6 : c * 6 + 4]
            np.testing.assert_allclose(patch, pixels[r * 4 : r * 4 + 4, c * 4 : c * 4 + 4])
    assert (canvas[4:6] == 1).all() and (canvas[:, 4:6] == 1).all()  # white between the patches
    assert texts(ax) == [str(i) for i in range(12)]
    assert_labelled(ax)


def test_show_patches_highlights_token_by_row_times_width_plus_column(picture):
    ax = vis.show_patches(picture, 4, gap=2, highlight=[6])  # 6 = 1 * 4 + 2
    (box,) = ax.patches
    assert (box.get_x(), box.get_y()) == (2 * 6 - 0.5, 1 * 6 - 0.5)
    assert texts(ax) == ["token 6"]
    with pytest.raises(ValueError, match="no token 12"):
        vis.show_patches(picture, 4, highlight=[12])


def test_show_patches_refuses_what_does_not_divide(picture):
    with pytest.raises(ValueError, match="12 x 16.*patches of 5"):
        vis.show_patches(picture, 5)


def test_what_cannot_be_drawn_is_refused_in_one_sentence(picture):
    """Nothing to draw, names and numbers that do not fit: no trace from the depths of NumPy or matplotlib."""
    nothing = "there is nothing to draw, expected one panel or more"
    for draw, message in (
        (lambda: vis.show_images([]), nothing),
        (lambda: vis.show_matrices({}), nothing),
        (lambda: vis.show_histograms({}), nothing),
        (lambda: vis.show_filters(np.zeros((0, 3, 2, 2))), nothing),
        (lambda: vis.show_similarity_maps(np.ones((4, 2)), (2, 2), []), nothing),
        (lambda: vis.show_answer_attention(picture, [], []), nothing),
        (lambda: vis.show_patches(picture, 0), "patches of 0"),
        (lambda: vis.show_masks(picture, np.ones((2, 12, 16)), ["one"]), "2 masks but 1 labels"),
        (lambda: vis.show_batch([], {}), "expected one row or more"),
        (lambda: vis.show_batch([["pad"], ["pad", "pad"]], {}), "all of one length"),
        (lambda: vis.show_batch([["word"]], {}), "unknown kinds .*word"),
        (lambda: vis.show_model_sizes({"a": {"x": 1}, "b": {"y": 1}}), "b has the parts .*expected"),
        (lambda: vis.drawings.head_sharing(8, 0), "expected a divisor"),
    ):
        with pytest.raises(ValueError, match=message):
            draw()


def test_more_parts_than_colours_are_drawn_all_the_same():
    ax = vis.show_model_sizes({"model": {f"part {i}": 10**9 for i in range(9)}})
    assert len(ax.containers) == 9


def test_show_filters_scales_each_filter_and_keeps_zero_grey():
    filters = torch.zeros(3, 3, 2, 2)
    filters[1, 0, 0, 1] = 4.0
    filters[2, 2, 1, 0] = -0.5
    axes = vis.show_filters(filters, titles=["a", "b", "c"])
    assert len(axes) == 3
    assert (shown(axes[0]) == 0.5).all()
    assert shown(axes[1])[0, 1, 0] == 1.0 and shown(axes[2])[1, 0, 2] == 0.0
    assert axes[2].get_title() == "c"
    with pytest.raises(ValueError, match="n, 3, P, P"):
        vis.show_filters(torch.zeros(3, 2, 2))


def test_show_similarity_maps_are_cosines():
    vectors = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    axes = vis.show_similarity_maps(vectors, (2, 3), [4, 0])
    cosines = torch.nn.functional.cosine_similarity(vectors, vectors[4:5]).reshape(2, 3)
    np.testing.assert_allclose(shown(axes[0]), cosines.numpy(), atol=1e-6)
    assert shown(axes[0])[1, 1] == pytest.approx(1)  # token 4 is row 1, column 1, of a grid 3 wide
    assert axes[0].images[0].get_clim() == (-1, 1) and axes[0].images[0].get_cmap().name == SIGNED
    assert "row 1, column 1" in axes[0].get_title()
    with pytest.raises(ValueError, match="2 x 2"):
        vis.show_similarity_maps(vectors, (2, 2), [0])


def test_show_attention_covers_the_picture_and_outlines_the_patch(picture):
    weights = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    ax = vis.show_attention_over_image(picture, weights, patch=(2, 1), title="head 0")
    np.testing.assert_allclose(shown(ax, 1), weights.numpy())
    for layer in ax.images:
        assert tuple(layer.get_extent()) == (-0.5, 15.5, 11.5, -0.5)
    np.testing.assert_allclose(shown(ax), picture / 255)  # in its own colours
    (box,) = ax.patches
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (3.5, 7.5, 4, 4)
    assert ax.images[1].get_clim() == (0, weights.max())
    veil = ax.images[1]
    alpha = veil.cmap(veil.norm(np.array([0.0, 0.5 * float(weights.max()), float(weights.max())])))[:, 3]
    assert alpha[0] > 0.6 and alpha[2] == 0 and alpha[0] > alpha[1] > alpha[2], "dark where nobody looks"
    assert vis.show_attention_over_image(picture, weights, vmax=2).images[1].get_clim() == (0, 2)
    assert ax.images[1].colorbar is not None
    with pytest.raises(ValueError, match="rows, columns"):
        vis.show_attention_over_image(picture, weights.flatten())


def test_the_outline_encloses_the_fewest_patches_with_half_of_the_attention():
    weights = np.array([[0.1, 0.3, 0.05], [0.05, 0.3, 0.2]])
    assert attention.strongest(weights).tolist() == [[False, True, False], [False, True, False]]
    assert attention.strongest(np.full((2, 2), 0.25)).sum() == 2
    assert not attention.strongest(np.zeros((2, 2))).any()
    edges = attention.outline(attention.strongest(weights))
    assert sorted(edges) == [
        ((1, 0), (1, 1)), ((1, 0), (2, 0)), ((1, 1), (1, 2)), ((1, 2), (2, 2)), ((2, 0), (2, 1)), ((2, 1), (2, 2)),
    ]  # fmt: skip
    ax = vis.show_attention_over_image(np.zeros((20, 30, 3)), weights)
    drawn = np.concatenate(ax.collections[1].get_segments())
    assert drawn.min(axis=0).tolist() == [9.5, -0.5] and drawn.max(axis=0).tolist() == [19.5, 19.5]


def test_panels_of_an_answer_share_one_scale_unless_told_otherwise(picture):
    maps = np.array([[[0.1, 0.2]], [[0.4, 0.8]]])
    axes = vis.show_answer_attention(picture, maps, ["a", "b"])
    assert {ax.images[1].get_clim() for ax in axes} == {(0, 0.8)} and axes[1].images[1].colorbar is not None
    axes = vis.show_answer_attention(picture, maps, ["a", "b"], one_scale=False)
    assert [ax.images[1].get_clim() for ax in axes] == [(0, 0.2), (0, 0.8)]
    with pytest.raises(ValueError, match="2 maps but 1 tokens"):
        vis.show_answer_attention(picture, maps, ["a"])


def test_show_boxes_are_y_before_x(picture):
    ax = vis.show_boxes(picture, [[2, 5, 8, 15]], ["cat"])
    for box in ax.patches:
        assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (4.5, 1.5, 10, 6)
    assert texts(ax) == ["cat"]
    assert not vis.show_boxes(picture, []).patches  # nothing found is a picture without boxes
    with pytest.raises(ValueError, match="1 boxes but 2 labels"):
        vis.show_boxes(picture, [[0, 0, 1, 1]], ["a", "b"])


def test_show_masks_colour_only_the_mask(picture):
    mask = np.zeros((1, 12, 16), bool)
    mask[0, 3:6, 4:9] = True
    ax = vis.show_masks(picture, mask, ["cat"], alpha=0.5)
    np.testing.assert_allclose(shown(ax, 1)[..., 3], mask[0] * 0.5)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["cat"]
    with pytest.raises(ValueError, match="12, 16"):
        vis.show_masks(picture, mask[:, :-1])


# --- numbers --------------------------------------------------------------------------------------


def test_values_on_both_sides_of_zero_get_a_diverging_map_around_it():
    signed = vis.show_matrix(np.array([[-1.0, 3.0]])).images[0]
    assert signed.get_cmap().name == SIGNED and signed.get_clim() == (-3, 3)
    assert vis.show_matrix(np.array([[1.0, 3.0]])).images[0].get_cmap().name == "cividis"
    assert vis.show_matrix(np.array([[-1.0, 3.0]]), cmap="gray").images[0].get_cmap().name == "gray"
    lopsided = vis.show_matrix(np.array([[-1.0, 3.0]]), vmin=-1, vmax=3).images[0]
    assert lopsided.get_cmap().name == "cividis" and lopsided.get_clim() == (-1, 3)
    assert vis.show_matrix(np.array([[np.nan, -1.0, 1.0]])).images[0].get_clim() == (-1, 1)


def test_show_matrix_writes_the_numbers():
    ax = vis.show_matrix(torch.tensor([[0.25, -1.0], [2.0, 0.0]]), title="m", rows=["a", "b"])
    assert texts(ax) == ["0.25", "-1.00", "2.00", "0.00"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert texts(vis.show_matrix(np.array([[1, 22]]))) == ["1", "22"]
    assert texts(vis.show_matrix(np.zeros((20, 20)))) == []  # too many to read
    with pytest.raises(ValueError, match="two dimensions"):
        vis.show_matrix(np.zeros(3))


def test_numbers_stand_out_from_their_field():
    ax = vis.show_matrix(np.array([[0.0, 1.0]]))
    assert [text.get_color() for text in ax.texts] == ["white", "black"]  # cividis: dark to light


def test_show_mask_matrix():
    mask = torch.ones(4, 4).tril().bool()
    ax = vis.show_mask_matrix(mask, [("image", 3), ("prompt", 1)])
    np.testing.assert_array_equal(shown(ax), mask.numpy().astype(int))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["image", "prompt"]
    assert "key" in ax.get_xlabel() and "query" in ax.get_ylabel()
    for length in (2, 4):  # the middle of an even block lies on a line: the line is drawn all the same
        ax = vis.show_mask_matrix(torch.ones(length, length), [("image", length)])
        assert len(ax.xaxis.get_minorticklocs()) == len(ax.yaxis.get_minorticklocs()) == length + 1
    with pytest.raises(ValueError, match="add up to 5"):
        vis.show_mask_matrix(mask, [("image", 3), ("prompt", 2)])


def test_show_histograms_count_every_pixel_of_each_channel(picture):
    axes = vis.show_histograms({"bytes": picture, "floats": torch.tensor(picture).permute(2, 0, 1) / 255.0}, bins=8)
    for ax, scale in zip(axes, (1, 255)):
        assert len(ax.patches) == 3  # red, green, blue
        for channel, steps in enumerate(ax.patches):
            values, edges, _ = steps.get_data()
            assert values.sum() == pytest.approx(1)
            expected, _ = np.histogram(picture[..., channel] / scale, edges)
            np.testing.assert_allclose(values, expected / (12 * 16), atol=1.5 / (12 * 16))
        assert_labelled(axes[0])
    assert axes[0].get_title() == "bytes"
    assert len(vis.show_histograms({"grey": picture[..., 0]})[0].patches) == 1


def test_show_curves():
    ax = vis.show_curves({"a": [1, 2, 3], "b": ([0, 10], [5, 6])}, xlabel="tokens", ylabel="ms", logy=True)
    a, b = ax.lines
    np.testing.assert_array_equal(a.get_xdata(), [0, 1, 2])
    np.testing.assert_array_equal(b.get_xdata(), [0, 10])
    assert (a.get_color(), a.get_linestyle()) != (b.get_color(), b.get_linestyle())
    assert ax.get_yscale() == "log" and ax.get_xlabel() == "tokens"
    with pytest.raises(ValueError, match="a has 2 x values but 3"):
        vis.show_curves({"a": [1, 2, 3]}, x=[0, 1])


def test_many_curves_never_share_both_colour_and_line():
    ax = vis.show_curves({str(i): [i, i] for i in range(7)})
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 7
    assert len({line.get_linestyle() for line in ax.lines[:4]}) == 4  # up to four can be told apart without colour


def test_show_tokens_shortens_long_runs_only():
    tokens = ["<image>"] * 64 + ["<bos>", "caption", "en", "\n"]
    kinds = ["image"] * 64 + ["bos", "prompt", "prompt", "newline"]
    ax = vis.show_tokens(tokens, kinds)
    assert texts(ax) == ["<image>", "<image>", "… 61 more …", "<image>", "<bos>", "caption", "en", "\\n"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["image", "BOS", "prompt", "newline"]
    legend = vis.show_tokens(["<bos>", "<eos>"], ["bos", "eos"]).get_legend()  # one colour, one entry
    assert [t.get_text() for t in legend.get_texts()] == ["BOS, EOS"]
    for field, kind in zip(ax.patches, ["image"] * 4 + kinds[64:]):
        assert field.get_facecolor() == to_rgba(vis.TOKEN_COLOURS[kind][0])
    with pytest.raises(ValueError, match="unknown kinds"):
        vis.show_tokens(["a"], ["verb"])
    with pytest.raises(ValueError, match="longest_run 0, expected 1 or more"):
        vis.show_tokens(["a"], ["prompt"], longest_run=0)
    with pytest.raises(ValueError, match="1 tokens but 0 kinds"):
        vis.show_tokens(["a"], [])


@pytest.mark.parametrize(
    "run, longest, expected",
    [
        (1, 1, ["a"]),
        (2, 1, ["a", "… 1 more …"]),
        (2, 2, ["a", "a"]),
        (3, 2, ["a", "… 1 more …", "a"]),
        (4, 3, ["a", "a", "… 1 more …", "a"]),
        (9, 1, ["a", "… 8 more …"]),
    ],
)
def test_shortened_runs_count_what_they_leave_out(run, longest, expected):
    ax = vis.show_tokens(["a"] * run, ["image"] * run, longest_run=longest)
    assert texts(ax) == expected


def test_endless_token_strips_are_cut_in_the_middle():
    ax = vis.show_tokens([f"t{i}" for i in range(10_000)], ["suffix"] * 10_000)
    assert len(texts(ax)) == 401 and "… 9600 more …" in texts(ax) and texts(ax)[-1] == "t9999"
    assert texts(vis.show_tokens([], [])) == [""]


def test_long_token_strips_wrap_inside_their_axes():
    ax = vis.show_tokens([f"<loc{i:04}>" for i in range(40)], ["loc"] * 40, columns=10)
    assert len(texts(ax)) == 40
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    for field in ax.patches:
        box = field.get_bbox()
        assert left <= box.x0 and box.x1 <= right and top <= box.y0 and box.y1 <= bottom


# --- the map of the model -------------------------------------------------------------------------


def highlighted(ax):
    return {p.get_gid() for p in ax.patches if p.get_gid() and p.get_facecolor() == to_rgba(vis.YELLOW)}


def test_architecture_highlights_what_it_is_asked_to():
    assert highlighted(vis.architecture()) == set()
    assert highlighted(vis.architecture("preprocess")) == {"preprocess"}
    assert highlighted(vis.architecture(["merge", "projector"])) == {"merge", "projector"}
    assert highlighted(vis.architecture("gemma_norms")) == {"gemma_norm", "gemma_norm_2", "gemma_final_norm"}
    with pytest.raises(ValueError, match="no box called.*patch_embeddings"):
        vis.architecture("tarnsformer")


@pytest.mark.parametrize("name", [*model_map._INSIDE, *model_map._SAME])
def test_an_open_box_shows_its_steps_inside_the_drawer(name):
    ax = vis.architecture(open=name)
    ax.figure.canvas.draw()
    renderer = ax.figure.canvas.get_renderer()
    steps = [p for p in ax.patches if p.get_gid() == "inside"]
    columns, _ = model_map._INSIDE[model_map._SAME.get(name, name)]
    assert len(steps) == sum(step is not None for column in columns for step in column) >= 3
    assert highlighted(ax) == set(model_map._GROUPS.get(name, (name,)))
    labels = [text for text in ax.texts if text.get_position()[1] < 0]
    frame = ax.get_window_extent(renderer)
    for text in labels:
        extent = text.get_window_extent(renderer)
        assert frame.x0 <= extent.x0 and extent.x1 <= frame.x1 and frame.y0 <= extent.y0, text
        holder = [p.get_window_extent(renderer) for p in steps]
        middle = ((extent.x0 + extent.x1) / 2, (extent.y0 + extent.y1) / 2)
        for box in holder:
            if box.contains(*middle):
                assert box.x0 <= extent.x0 and extent.x1 <= box.x1, f"{text.get_text()!r} is too wide"
    for i, one in enumerate(labels):  # and no two texts lie on one another
        for other in labels[i + 1 :]:
            assert not one.get_window_extent(renderer).overlaps(other.get_window_extent(renderer)), (one, other)


@pytest.mark.parametrize("name", ["siglip", "gemma_layers"])
def test_a_frame_holds_the_steps_that_every_layer_repeats(name):
    ax = vis.architecture(open=name)
    ax.figure.canvas.draw()
    below = [text for text in ax.texts if text.get_position()[1] < 0]
    (frame,) = (patch.get_window_extent() for patch in ax.patches if patch.get_gid() == "repeated")
    inside = [t.get_text() for t in below if frame.contains(*t.get_window_extent().get_points().mean(axis=0))]
    assert inside.count("+ x") == 2 and sum(text.startswith("layer ×") for text in inside) == 1
    assert sum("Norm" in text for text in inside) == 2  # the last norm stands outside
    assert sum("Norm" in text.get_text() for text in below) == 3


def test_what_cannot_be_opened_is_named():
    with pytest.raises(ValueError, match="'tokens' cannot be opened; these can: .*gemma_mlp"):
        vis.architecture(open="tokens")


def test_architecture_text_stays_inside_its_box():
    ax = vis.architecture([*model_map._BOXES])
    ax.figure.canvas.draw()
    renderer = ax.figure.canvas.get_renderer()
    boxes = {p.get_gid(): p.get_window_extent(renderer) for p in ax.patches if p.get_gid()}
    for name, (*_, label, _family, _out) in model_map._BOXES.items():
        if not label or name == "merge":
            continue
        box = boxes[name]
        fitting = [t for t in ax.texts if t.get_text() == label]
        assert fitting, name
        for text in fitting:
            extent = text.get_window_extent(renderer)
            middle = ((extent.x0 + extent.x1) / 2, (extent.y0 + extent.y1) / 2)
            if box.contains(*middle):
                assert box.x0 <= extent.x0 and extent.x1 <= box.x1, f"{name}: {label!r} is too wide"
                assert box.y0 <= extent.y0 and extent.y1 <= box.y1, f"{name}: {label!r} is too high"


@pytest.mark.parametrize("name", [None, *model_map._INSIDE])
def test_no_text_of_the_map_touches_an_edge_or_an_arrow(name):
    ax = vis.architecture(open=name)
    ax.figure.canvas.draw()
    renderer = ax.figure.canvas.get_renderer()
    near = 0.7 * ax.figure.dpi / 72  # a little more than half of an edge's width
    boxes = [p.get_window_extent(renderer) for p in ax.patches if isinstance(p, FancyBboxPatch)]
    arrows = [p for p in ax.patches if isinstance(p, FancyArrowPatch)]
    lines = [line for p in arrows for line in p.get_path().to_polygons(p.get_transform(), closed_only=False)]
    assert len(boxes) > 20 and len(lines) > 15
    for text in ax.texts:
        extent = text.get_window_extent(renderer).padded(near)
        for box in boxes:
            inside = box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0 and extent.y1 <= box.y1
            assert inside or not extent.overlaps(box), f"{text.get_text()!r} touches the edge of a box"
        for line in lines:
            assert not MplPath(line).intersects_bbox(extent, filled=False), f"an arrow crosses {text.get_text()!r}"


def test_what_is_written_beside_the_boxes_of_the_map_touches_no_box_and_no_arrow():
    ax = vis.architecture([*model_map._BOXES])  # highlighted boxes have bold text and the thickest lines
    ax.figure.canvas.draw()
    renderer = ax.figure.canvas.get_renderer()
    frames = {name for name, (*_, family, _output) in model_map._BOXES.items() if family == "frame"}
    beside = [text for text in ax.texts if text.get_text() in {"layer × 27", "layer × 18", "merge", "next\ntoken"}]
    others = [patch for patch in ax.patches if patch.get_gid() not in frames]
    assert len(beside) == 4
    for text in beside:
        extent = text.get_window_extent(renderer)
        for patch in others:
            assert not patch.get_window_extent(renderer).overlaps(extent), f"{text.get_text()!r} touches {patch}"


# --- files ----------------------------------------------------------------------------------------


def test_save_figure_takes_figures_and_axes(tmp_path, picture):
    ax = vis.show_image(picture)
    for i, thing in enumerate((ax, ax.figure, vis.show_images([picture, picture]))):
        path = vis.save_figure(thing, tmp_path / "new folder" / f"{i}.png")
        with Image.open(path) as saved:
            assert saved.format == "PNG" and saved.width > 100
    assert len(list((tmp_path / "new folder").iterdir())) == 3  # nothing temporary is left


def test_save_figure_leaves_the_old_file_when_it_fails(tmp_path, picture, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    figure = vis.show_image(picture).figure

    def half_written(name, **_):
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", half_written)
    with pytest.raises(OSError, match="disk full"):
        vis.save_figure(figure, path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_small_png_is_smaller_and_looks_the_same():
    photo = Image.open(Path(__file__).parents[1] / "assets" / "cat.jpg")
    figure = vis.show_image(photo, "cat").figure
    small = vis.small_png(figure)
    full = io.BytesIO()
    figure.savefig(full, format="png", bbox_inches="tight")
    assert len(small) < len(full.getvalue()) / 2
    with Image.open(full) as a, Image.open(io.BytesIO(small)) as b:
        assert a.size == b.size and b.mode == "P"
        difference = np.abs(np.array(a.convert("RGB"), int) - np.array(b.convert("RGB"), int))
    assert difference.max() < 32  # of 255: no colour is lost, however rare


def test_save_figure_needs_an_ending(tmp_path, picture):
    with pytest.raises(ValueError, match="ending"):
        vis.save_figure(vis.show_image(picture), tmp_path / "figure")


class Names:
    """A tokenizer as far as the figures need one."""

    def convert_ids_to_tokens(self, token):
        return ["▁red", "▁blue", "▁star"][token]


def test_next_tokens_show_the_likeliest_first_and_fill_the_one_written():
    axes = vis.show_next_tokens(np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]), Names(), ["▁blue", "▁red"], top=2)
    assert [bar.get_width() for bar in axes[0].patches] == [0.7, 0.2]
    assert texts(axes[0]) == ["0.70", "0.20"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["blue", "star"]
    filled = [bar.get_facecolor() for bar in axes[1].patches]
    assert axes[1].get_title() == "2: red" and filled[0] != filled[1]


def test_answer_attention_draws_a_map_and_a_box_for_each_token():
    maps = np.arange(8.0).reshape(2, 2, 2)
    axes = vis.show_answer_attention(np.zeros((8, 8, 3)), maps, ["a", "▁b"], boxes=[(1, 2, 5, 8), None])
    for ax, weights in zip(axes, maps, strict=True):
        np.testing.assert_array_equal(ax.images[1].get_array(), weights)
        assert ax.images[1].get_extent() == [-0.5, 7.5, 7.5, -0.5]
    (box,) = axes[0].patches
    assert (box.get_xy(), box.get_width(), box.get_height()) == ((1.5, 0.5), 6, 4)
    assert not axes[1].patches and axes[1].get_title() == "b"


def test_spread_shows_the_median_and_the_reference():
    ax = vis.show_spread({"a": [1.0, 2, 3], "b": [4.0, 4, 4]}, reference={"a": 0.5, "b": 0.6}, reference_label="chance")
    medians = [line.get_ydata()[0] for line in ax.lines if line.get_color() == vis.BLUE]
    assert medians == [2, 4]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
    assert any(list(line.get_ydata()) == [0.5, 0.6] for line in ax.lines)


def test_model_sizes_stack_the_parts_in_billions():
    ax = vis.show_model_sizes({"small": {"eye": 1e9, "rest": 2e9}, "large": {"eye": 1e9, "rest": 5e9}})
    widths = [[bar.get_width() for bar in group] for group in ax.containers]
    assert widths == [[1, 1], [2, 5]]
    assert {text.get_text() for text in ax.texts} == {"3.0", "6.0"}


def test_codebook_shows_regions_of_the_nearest_code():
    vectors, codes = np.array([[0.2, 0.1], [1.9, 0.3]]), np.array([[0.0, 0.0], [2.0, 0.0]])
    ax = vis.show_codebook(vectors, codes)
    regions = ax.images[0].get_array()
    assert (regions[:, :99] == 0).all() and (regions[:, 101:] == 1).all()  # cut in the middle between the two
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[0.2, 0.1], [0, 0]], [[1.9, 0.3], [2, 0]]]
    assert [text.get_text() for text in ax.texts] == ["0", "1"]
    with pytest.raises(ValueError, match="codes"):
        vis.show_codebook(vectors, np.zeros((2, 3)))


def test_mask_codes_show_mask_numbers_and_drawing():
    masks, codes = np.zeros((2, 8, 8)), np.arange(32).reshape(2, 16)
    axes = vis.show_mask_codes(masks, codes, masks == 0, ["a", "b"])
    assert axes.shape == (3, 2) and axes[0, 1].get_title() == "b"
    np.testing.assert_array_equal(axes[1, 1].images[0].get_array(), codes[1].reshape(4, 4))
    assert [text.get_text() for text in axes[1, 0].texts] == [str(i) for i in range(16)]
    assert axes[0, 0].images[0].get_array().max() == 0 and axes[2, 0].images[0].get_array().min() == 1
    with pytest.raises(ValueError, match="titles"):
        vis.show_mask_codes(masks, codes, masks, ["a"])


def test_matrices_share_one_scale_and_keep_their_values():
    axes = vis.show_matrices({"a": np.array([[0.0, 2.0]]), "b": np.array([[-3.0, 1.0]])}, ylabel="token")
    np.testing.assert_array_equal(shown(axes[1]), [[-3, 1]])
    assert [ax.get_title() for ax in axes] == ["a", "b"]
    assert {ax.images[0].get_clim() for ax in axes} == {(-3, 3)}, "zero is in the middle"
    assert {ax.images[0].get_cmap().name for ax in axes} == {SIGNED}
    assert [ax.get_ylabel() for ax in axes] == ["token", ""]


def test_clock_hands_point_where_the_angle_says():
    axes = vis.show_clock_hands(np.array([[0, np.pi / 2]]), [0, 1], ["fast"])
    ends = [ax.lines[1].get_xydata()[1] for ax in axes[0]]
    np.testing.assert_allclose(ends, [[1, 0], [0, 1]], atol=1e-12)
    assert axes[0, 0].get_ylabel() == "fast" and axes[0, 1].get_title() == "1"
    assert [text.get_text() for text in axes[0, 0].texts] == ["position"]


def test_attention_matrix_leaves_out_what_is_forbidden():
    weights = np.array([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
    ax = vis.show_attention_matrix(weights, [("image", 2), ("answer", 1)])
    drawn = ax.images[0].get_array()
    np.testing.assert_array_equal(drawn.mask, weights == 0)
    np.testing.assert_array_equal(drawn.filled(0), weights)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["image", "answer"]
    with pytest.raises(ValueError, match="add up to 2"):
        vis.show_attention_matrix(weights, [("image", 2)])


def test_logit_lens_writes_each_word_on_its_field():
    ax = vis.show_logit_lens([["▁a", "b"], ["c", "▁"]], [[0.1, 0.2], [0.9, 1.0]], ["\n", "▁a"], ["in", "out"])
    assert texts(ax) == ["a", "b", "c", "␣"]
    np.testing.assert_array_equal(shown(ax), [[0.1, 0.2], [0.9, 1.0]])
    assert ax.images[0].get_clim() == (0, 1) and ax.get_ylim() == (-0.5, 1.5)  # the first layer at the bottom
    assert [label.get_text() for label in ax.get_xticklabels()] == ["\\n", "a"]
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {0}  # they fit side by side
    many = vis.show_logit_lens([["a"] * 12], np.ones((1, 12)), ["▁triangle"] * 12, ["out"])
    assert {label.get_rotation() for label in many.get_xticklabels()} == {40}


def test_logit_lens_frames_what_the_last_layer_says():
    words = [["a", "b"], ["c", "b"], ["c", "d"]]
    ax = vis.show_logit_lens(words, np.full((3, 2), 0.5), ["x", "y"], ["0", "1", "2"])
    framed = {(round(p.get_x() + 0.46), round(p.get_y() + 0.44)) for p in ax.patches}  # (column, row)
    assert framed == {(0, 1), (0, 2), (1, 2)}


def test_similarity_puts_texts_in_rows_and_outlines_the_diagonal(picture):
    matrix = np.array([[3.0, -9.0], [-8.0, 2.0]])
    ax = vis.show_similarity(matrix, [picture, picture], ["a red circle", "a blue star"])
    np.testing.assert_array_equal(ax.images[0].get_array(), matrix)
    assert [text.get_text() for text in ax.texts] == ["3", "-9", "-8", "2"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a red circle", "a blue star"]
    assert [box.get_xy() for box in ax.patches] == [(-0.5, -0.5), (0.5, 0.5)]
    assert len(ax.child_axes) == 2
    with pytest.raises(ValueError, match="3 texts"):
        vis.show_similarity(matrix, [picture, picture], ["a", "b", "c"])


def test_feature_colours_show_the_picture_and_then_every_layer(picture):
    colours = np.random.default_rng(0).random((2, 3, 4, 4, 3))
    axes = vis.show_feature_colours(colours, ["first", "second", "third"], [picture, picture], ["one", "two"])
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["one", "two"]
    assert axes.shape == (2, 4)
    np.testing.assert_allclose(axes[1, 2].images[0].get_array(), colours[1, 1])
    assert [ax.get_title() for ax in axes[0]] == ["picture", "first", "second", "third"]
    with pytest.raises(ValueError, match="2 names"):
        vis.show_feature_colours(colours, ["a", "b"], [picture, picture])


def test_batch_keeps_every_row_and_panel_in_its_place():
    kinds = [["pad", "image", "bos", "prompt"], ["image", "bos", "prompt", "suffix"]]
    real = np.array([[0, 1, 1, 1], [1, 1, 1, 1]], dtype=bool)
    axes = vis.show_batch(kinds, {"attention_mask": real}, rows=["short", "long"])
    assert [label.get_text() for label in axes[-1].get_xticklabels()] == ["0", "1", "2", "3"]
    drawn = axes[0].images[0]
    colours = drawn.cmap(drawn.norm(drawn.get_array()))  # [B, L, 4]
    for row, names in zip(colours, kinds, strict=True):
        np.testing.assert_allclose(row, [to_rgba(vis.TOKEN_COLOURS[name][0]) for name in names])
    np.testing.assert_array_equal(axes[1].images[0].get_array(), real)
    assert axes[1].get_title() == "attention_mask"
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["short", "long"]
    with pytest.raises(ValueError, match="labels"):
        vis.show_batch(kinds, {"labels": real[:1]})
    long = vis.show_batch([["image"] * 90], {})  # round positions
    assert [label.get_text() for label in long[0].get_xticklabels()] == [str(n) for n in range(0, 90, 10)]


def test_roofline_draws_limit_and_points_where_they_are():
    ax = vis.roofline(20e9, 300e9, {"decode": (1.0, 18e9), "prefill": (250.0, 280e9)})
    roof, decode, prefill = [line for line in ax.lines if not line.get_label().startswith("_")]
    corner = 300e9 / 20e9
    assert list(roof.get_xdata())[1] == corner and list(roof.get_ydata())[1:] == [300, 300]
    assert roof.get_ydata()[0] == pytest.approx(20 * roof.get_xdata()[0])
    assert (decode.get_xdata()[0], decode.get_ydata()[0]) == (1.0, 18)
    assert (prefill.get_xdata()[0], prefill.get_ydata()[0]) == (250.0, 280)
    low, high = ax.get_xlim()
    assert low < 1.0 and high > 250.0 and ax.get_xscale() == ax.get_yscale() == "log"
    bottom, top = ax.get_ylim()
    assert bottom < 18 and top > 300
