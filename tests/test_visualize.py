"""What a figure shows is read back from its Axes: arrays, limits, titles, labels."""

import matplotlib

matplotlib.use("Agg")

import ast
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from PIL import Image

from paligemma import visualize as vis


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
    package = Path(vis.__file__).parent
    for name in ("modeling_*.py", "processing_*.py", "kv_cache.py", "generation.py", "checkpoint.py"):
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
        "rgba": np.dstack([picture, np.full((12, 16), 9, np.uint8)]),
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
    assert axes[0].images[0].get_clim() == (-1, 1)
    assert "row 1, column 1" in axes[0].get_title()
    with pytest.raises(ValueError, match="2 x 2"):
        vis.show_similarity_maps(vectors, (2, 2), [0])


def test_show_attention_covers_the_picture_and_outlines_the_patch(picture):
    weights = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    ax = vis.show_attention_over_image(picture, weights, patch=(2, 1), title="head 0")
    np.testing.assert_allclose(shown(ax, 1), weights.numpy())
    for layer in ax.images:
        assert tuple(layer.get_extent()) == (-0.5, 15.5, 11.5, -0.5)
    (box,) = ax.patches
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (3.5, 7.5, 4, 4)
    assert ax.images[1].get_clim()[0] == 0
    assert ax.images[1].colorbar is not None
    with pytest.raises(ValueError, match="rows, columns"):
        vis.show_attention_over_image(picture, weights.flatten())


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


def test_show_tokens_shortens_long_runs_only():
    tokens = ["<image>"] * 64 + ["<bos>", "caption", "en", "\n"]
    kinds = ["image"] * 64 + ["bos", "prompt", "prompt", "newline"]
    ax = vis.show_tokens(tokens, kinds)
    assert texts(ax) == ["<image>", "<image>", "… 61 more …", "<image>", "<bos>", "caption", "en", "\\n"]
    for field, kind in zip(ax.patches, ["image"] * 4 + kinds[64:]):
        assert field.get_facecolor() == to_rgba(vis.TOKEN_COLOURS[kind][0])
    with pytest.raises(ValueError, match="unknown kinds"):
        vis.show_tokens(["a"], ["verb"])
    with pytest.raises(ValueError, match="1 tokens but 0 kinds"):
        vis.show_tokens(["a"], [])


def test_long_token_strips_wrap_inside_their_axes():
    ax = vis.show_tokens([f"<loc{i:04}>" for i in range(40)], ["loc"] * 40, columns=10)
    assert len(texts(ax)) == 40
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    for field in ax.patches:
        box = field.get_bbox()
        assert left <= box.x0 and box.x1 <= right and top <= box.y0 and box.y1 <= bottom


# --- the map of the model -------------------------------------------------------------------------


def lit(ax):
    return {p.get_gid() for p in ax.patches if p.get_gid() and p.get_facecolor() == to_rgba(vis.YELLOW)}


def test_architecture_lights_what_it_is_asked_to():
    assert lit(vis.architecture()) == set()
    assert lit(vis.architecture("preprocess")) == {"preprocess"}
    assert lit(vis.architecture(["merge", "projector"])) == {"merge", "projector"}
    assert lit(vis.architecture("gemma_norms")) == {"gemma_norm", "gemma_norm_2", "gemma_final_norm"}
    with pytest.raises(ValueError, match="no box called.*patch_embeddings"):
        vis.architecture("tarnsformer")


def test_architecture_text_stays_inside_its_box():
    ax = vis.architecture()
    ax.figure.canvas.draw()
    renderer = ax.figure.canvas.get_renderer()
    boxes = {p.get_gid(): p.get_window_extent(renderer) for p in ax.patches if p.get_gid()}
    for name, (*_, label, _family, _out) in vis._BOXES.items():
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
    ax = vis.show_spread({"a": [1.0, 2, 3], "b": [4.0, 4, 4]}, reference={"a": 0.5, "b": 0.6})
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
    assert {ax.images[0].get_clim() for ax in axes} == {(-3, 2)}
    assert [ax.get_ylabel() for ax in axes] == ["token", ""]


def test_clock_hands_point_where_the_angle_says():
    axes = vis.show_clock_hands(np.array([[0, np.pi / 2]]), [0, 1], ["fast"])
    ends = [ax.lines[1].get_xydata()[1] for ax in axes[0]]
    np.testing.assert_allclose(ends, [[1, 0], [0, 1]], atol=1e-12)
    assert axes[0, 0].get_ylabel() == "fast" and axes[0, 1].get_title() == "1"


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
    axes = vis.show_feature_colours(colours, ["first", "second", "third"], [picture, picture])
    assert axes.shape == (2, 4)
    np.testing.assert_allclose(axes[1, 2].images[0].get_array(), colours[1, 1])
    assert [ax.get_title() for ax in axes[0]] == ["picture", "first", "second", "third"]
    with pytest.raises(ValueError, match="2 names"):
        vis.show_feature_colours(colours, ["a", "b"], [picture, picture])


def test_batch_keeps_every_row_and_panel_in_its_place():
    kinds = [["pad", "image", "bos", "prompt"], ["image", "bos", "prompt", "suffix"]]
    real = np.array([[0, 1, 1, 1], [1, 1, 1, 1]], dtype=bool)
    axes = vis.show_batch(kinds, {"attention_mask": real}, rows=["short", "long"], first=60)
    assert [label.get_text() for label in axes[-1].get_xticklabels()] == ["60", "61", "62", "63"]
    drawn = axes[0].images[0]
    colours = drawn.cmap(drawn.norm(drawn.get_array()))  # [B, L, 4]
    for row, names in zip(colours, kinds, strict=True):
        np.testing.assert_allclose(row, [to_rgba(vis.TOKEN_COLOURS[name][0]) for name in names])
    np.testing.assert_array_equal(axes[1].images[0].get_array(), real)
    assert axes[1].get_title() == "attention_mask"
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["short", "long"]
    with pytest.raises(ValueError, match="labels"):
        vis.show_batch(kinds, {"labels": real[:1]})


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
