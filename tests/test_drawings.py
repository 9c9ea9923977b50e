"""The drawings: what they draw is true of the model, and every word can be read."""

import io

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from matplotlib.patches import Arc, FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image

from paligemma import make_attn_mask
from paligemma.locations import LOCATION_TOKENS, box_to_tokens
from paligemma.visualize import drawings, set_style
from paligemma.visualize.style import BLUE, ORANGE, SKY, SMALL, TOKEN_COLOURS

WEIGHTS = np.array([[0.7, 0.1, 0.1, 0.1], [0.3, 0.5, 0.1, 0.1], [0.05, 0.15, 0.6, 0.2], [0.1, 0.55, 0.25, 0.1]])
PICTURES = [np.random.default_rng(i).integers(0, 256, (24, 32, 3), dtype=np.uint8) for i in range(5)]
DRAWINGS = {
    "arrows": lambda **kw: drawings.arrows(["the", "red", "star", "is"], WEIGHTS, 3, **kw),
    "arrows of eight": lambda **kw: drawings.arrows(list("abcdefgh"), np.full((8, 8), 1 / 8), 0, **kw),
    "split_heads": drawings.split_heads,
    "split_heads of four": lambda **kw: drawings.split_heads(3, 4, 4, **kw),
    "head_sharing": drawings.head_sharing,
    "head_sharing of four": lambda **kw: drawings.head_sharing(4, 2, **kw),
    "rope_dial": drawings.rope_dial,
    "rope_dial, far apart": lambda **kw: drawings.rope_dial(9, 0, 3, 0.3, **kw),
    "residual_stream": drawings.residual_stream,
    "residual_stream of four": lambda **kw: drawings.residual_stream(4, ["blue", "<loc0256>", "a", "b", "c"], **kw),
    "decoder_layer": drawings.decoder_layer,
    "two_towers": lambda **kw: drawings.two_towers(
        PICTURES[:3], ["a cat", "a dog on a mat by the sea", "a bird"], **kw
    ),
    "two_towers of five": lambda **kw: drawings.two_towers(PICTURES, list("abcde"), np.eye(5), **kw),
    "resampling": lambda **kw: drawings.resampling([0, 51, 102, 255], 6, 2, **kw),
    "resampling, shorter": lambda **kw: drawings.resampling([0, 51, 102, 255, 0, 9], 4, 1, **kw),
    "resampling, at the edge": lambda **kw: drawings.resampling([0, 51, 102, 255], 6, 0, **kw),
    "patch_axes": drawings.patch_axes,
    "patches_to_sequence": lambda **kw: drawings.patches_to_sequence(PICTURES[0], **kw),
    "patches_to_sequence, eight": lambda **kw: drawings.patches_to_sequence(PICTURES[0], 8, **kw),
    "coordinate_ruler": lambda **kw: drawings.coordinate_ruler(PICTURES[0], **kw),
    "training_row": drawings.training_row,
    "cache_filling": drawings.cache_filling,
}


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        set_style()
        yield
        plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def arrows_of(ax):
    return [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]


def cells_of(ax, colour):
    return [p for p in ax.patches if type(p) is Rectangle and p.get_facecolor() == to_rgba(colour)]


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_word_can_be_read(name):
    """At least 8 points, inside the page, and no two words on one another."""
    ax = DRAWINGS[name](title="a title")
    assert ax.get_title() == "a title"
    ax.figure.canvas.draw()
    renderer = ax.figure.canvas.get_renderer()
    words = [text for text in ax.texts if text.get_text()]
    page = ax.get_window_extent(renderer)
    assert words
    for i, word in enumerate(words):
        assert word.get_fontsize() >= SMALL
        extent = word.get_window_extent(renderer)
        assert page.x0 - 3 <= extent.x0 and extent.x1 <= page.x1 + 3, word
        assert page.y0 - 3 <= extent.y0 and extent.y1 <= page.y1 + 3, word
        for other in words[i + 1 :]:
            rest = other.get_window_extent(renderer)
            turned = word.get_rotation() or other.get_rotation()
            assert turned or not extent.padded(-1).overlaps(rest.padded(-1)), (word, other)


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_word_in_a_box_fits_into_it(name):
    ax = DRAWINGS[name]()
    ax.figure.canvas.draw()
    renderer = ax.figure.canvas.get_renderer()
    boxes = [p.get_window_extent(renderer) for p in ax.patches if isinstance(p, FancyBboxPatch)]
    frames = {box.width * box.height for box in boxes if box.width > 150 and box.height > 80}
    for word in ax.texts:
        extent = word.get_window_extent(renderer)
        for box in boxes:
            middle = (extent.x0 + extent.x1) / 2, (extent.y0 + extent.y1) / 2
            if box.contains(*middle) and box.width * box.height not in frames:
                assert box.x0 - 1 <= extent.x0 and extent.x1 <= box.x1 + 1, word
                assert box.y0 - 1 <= extent.y0 and extent.y1 <= box.y1 + 1, word


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_ground_is_white_whatever_the_page_is(name):
    plt.style.use("dark_background")
    set_style()
    buffer = io.BytesIO()
    DRAWINGS[name]().figure.savefig(buffer, format="png", dpi=50)
    with Image.open(buffer) as image:
        assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


def test_arrows_are_as_thick_as_the_weights():
    ax = DRAWINGS["arrows"]()
    drawn = [arrow.get_linewidth() for arrow in arrows_of(ax)]
    np.testing.assert_allclose((np.array(drawn) - 0.5) / 7, WEIGHTS[3], atol=1e-9)
    numbers = [text for text in texts(ax) if text.startswith("0.")]
    assert numbers[:4] == ["0.10", "0.55", "0.25", "0.10"]
    assert sorted(numbers[4:]) == sorted(f"{weight:.2f}" for weight in WEIGHTS.flatten())
    with pytest.raises(ValueError, match=r"4 tokens, query 4 .*expected weights \[4, 4\]"):
        drawings.arrows(list("abcd"), WEIGHTS, 4)


def test_no_arrow_from_what_gets_no_attention():
    ax = drawings.arrows(["a", "b"], np.array([[1.0, 0.0], [0.5, 0.5]]), 0)
    assert len(arrows_of(ax)) == 1


def test_split_heads_keeps_every_number():
    ax = drawings.split_heads(num_tokens=4, num_heads=3, head_dim=2)
    for colour in drawings.LIGHT[:3]:
        assert len(cells_of(ax, colour)) == 4 * 2 * 4  # in [N, D], before and after the head, and in [N, D] again
    assert {f"head {i}" for i in range(3)} <= set(texts(ax))


def test_head_sharing_draws_one_line_for_each_query_head():
    ax = drawings.head_sharing(num_heads=8, num_key_value_heads=2)
    assert len(arrows_of(ax)) == 3 * 8
    boxes = [p for p in ax.patches if isinstance(p, FancyBboxPatch)]
    assert len(boxes) == (8 + 8) + (8 + 2) + (8 + 1)
    assert "2 key and value heads: cache 1/4" in texts(ax) and "1 key and value head: cache 1/8" in texts(ax)
    with pytest.raises(ValueError, match="8 heads and 3 of keys and values"):
        drawings.head_sharing(8, 3)


def test_both_dials_show_the_same_angle_between_query_and_key():
    ax = drawings.rope_dial(query_position=5, key_position=2, shift=4, angle=0.35)
    arcs = [patch for patch in ax.patches if isinstance(patch, Arc)]
    spans = [arc.theta2 - arc.theta1 for arc in arcs]
    assert spans == pytest.approx([np.degrees(3 * 0.35)] * 2) and arcs[0].theta1 != pytest.approx(arcs[1].theta1)
    assert "query at 9" in texts(ax) and "key at 6" in texts(ax)
    assert "between them: (9 − 6) · 20.1° = 60°" in texts(ax)


def test_the_layer_adds_twice_to_the_stream():
    assert texts(drawings.decoder_layer()).count("+") == 2
    assert {"gate", "up", "down", "GELU", "×"} <= set(texts(drawings.decoder_layer()))
    assert texts(drawings.residual_stream(num_layers=2)).count("+") == 4


def test_the_stream_is_read_before_the_first_layer_and_after_each():
    ax = drawings.residual_stream(3, ["a", "b", "c", "d"], "[B, L, D]")
    assert texts(ax).count("+") == 6 and texts(ax).count("norm, head") == 4
    where = {text.get_text(): text.get_position()[0] for text in ax.texts}
    order = ["“a”", "layer 0", "“b”", "layer 1", "“c”", "layer 2", "“d”"]
    assert sorted(order, key=where.get) == order
    assert any("[B, L, D]" in text for text in texts(ax))
    with pytest.raises(ValueError, match="3 layers and 2 readings"):
        drawings.residual_stream(3, ["a", "b"])
    with pytest.raises(ValueError, match="5 layers"):
        drawings.residual_stream(5)


def test_true_pairs_are_on_the_diagonal():
    ax = drawings.two_towers(PICTURES[:3], ["a", "b", "c"])
    green = cells_of(ax, "#A9DCC6")
    assert [round(p.get_x() + p.get_y()) for p in green] == [round(green[0].get_x() + green[0].get_y())] * 3
    assert texts(ax).count("+") == 3 and texts(ax).count("−") == 6
    with pytest.raises(ValueError, match="2 images, 1 texts"):
        drawings.two_towers(PICTURES[:2], ["a"])


def test_every_patch_becomes_a_token_in_reading_order():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4).repeat(8, 0).repeat(8, 1) * 15
    ax = drawings.patches_to_sequence(image, grid=4)
    assert len(cells_of(ax, TOKEN_COLOURS["image"][0])) == 16
    patches = [np.asarray(drawn.get_array()) for drawn in ax.images[1:17]]
    np.testing.assert_allclose([patch.mean() * 255 for patch in patches], np.arange(16) * 15)
    again = [np.asarray(drawn.get_array()).mean() * 255 for drawn in ax.images[17:]]
    np.testing.assert_allclose(again, np.arange(16) * 15)
    assert len(drawings.patches_to_sequence(image, grid=8).images) == 1 + 2 * 64  # narrow cells show theirs, too


@pytest.mark.parametrize("sides", [(0.25, 0.125, 0.75, 0.5), (0.0, 0.1, 1.0, 0.9)])
def test_the_ruler_reads_the_tokens_of_the_box(sides):
    ax = drawings.coordinate_ruler(PICTURES[0], sides)
    written = [text for text in texts(ax) if text in LOCATION_TOKENS]
    assert "".join(written) == box_to_tokens(sides)
    outline = [p for p in ax.patches if type(p) is Rectangle and not p.get_fill()][-1]
    left, right, bottom, top = ax.images[0].get_extent()
    y1, x1, y2, x2 = sides
    assert outline.get_x() == pytest.approx(left + x1 * (right - left))
    assert outline.get_y() == pytest.approx(top - y2 * (top - bottom))
    assert outline.get_width() == pytest.approx((x2 - x1) * (right - left))


def test_the_training_row_shows_the_mask_that_the_model_uses():
    ax = drawings.training_row(("detect", "star"), ("<loc0256>", "star"), num_image_tokens=3, num_padding=1)
    n, first, padding = 11, 7, 1
    real = torch.tensor([[1] * (n - padding) + [0] * padding])
    types = torch.tensor([[0] * first + [1] * (n - first - padding) + [0] * padding])
    allowed = make_attn_mask(real, types)[0]
    allowed = allowed.reshape(n, n) if allowed.numel() == n * n else allowed[0]
    seen = [p for p in ax.patches if type(p) is Rectangle and p.get_facecolor() in (to_rgba(BLUE), to_rgba("#F2F2F2"))]
    drawn = np.array([p.get_facecolor() == to_rgba(BLUE) for p in seen]).reshape(n, n)
    np.testing.assert_array_equal(drawn[: n - padding], allowed.numpy()[: n - padding])  # rows of padding: nobody reads
    assert texts(ax).count("−100") == first + padding


def test_the_cache_grows_by_one_column_a_step():
    ax = drawings.cache_filling(("<image>", "<bos>", "caption", "\\n"), ("a", "red", "star"))
    new, kept = cells_of(ax, ORANGE), cells_of(ax, SKY)
    assert len(new) == 4 + 3 + 1 and len(kept) == 4 + 5 + 6 + 1  # and one each in the legend
    rows = sorted({round(p.get_y()) for p in new} - {4}, reverse=True)
    assert [sum(round(p.get_y()) == y for p in new) for y in rows] == [4, 1, 1, 1]
    assert [text for text in texts(ax) if text.startswith("“")] == ["“a”", "“red”", "“star”", "“<eos>”"]


@pytest.mark.parametrize("row, new_length", [([0, 51, 102, 255], 6), ([0, 51, 102, 255, 0, 9], 4), ([7, 200], 2)])
def test_a_resampled_pixel_is_pillows(row, new_length):
    line = Image.fromarray(np.array([row], dtype=np.float32))
    pillows = np.array(line.resize((new_length, 1), Image.Resampling.BILINEAR))[0]
    for index in range(new_length):
        drawn = texts(drawings.resampling(row, new_length, index))
        assert f"{pillows[index]:.1f}" in drawn
        assert sum(float(text[2:]) for text in drawn if text.startswith("× ")) == pytest.approx(1, abs=0.011)
    with pytest.raises(ValueError, match=f"index {new_length}, expected .* 0 to {new_length - 1}"):
        drawings.resampling(row, new_length, new_length)


def test_patch_axes_move_as_the_tensor_does():
    """Read the arrows between the second row and the third: they are the permutation that cuts into patches."""
    ax = drawings.patch_axes()
    boxes = [p for p in ax.patches if isinstance(p, FancyBboxPatch)]
    rows = sorted({round(box.get_y()) for box in boxes}, reverse=True)
    reshaped, permuted = ([box for box in boxes if round(box.get_y()) == y] for y in rows[1:3])

    def at(x, row):
        return next(i for i, box in enumerate(row) if box.get_x() <= x <= box.get_x() + box.get_width())

    moves = {}
    for arrow in arrows_of(ax):
        (x1, y1), (x2, y2) = arrow._posA_posB
        if rows[2] < y2 < y1 <= rows[1] + 1:
            moves[at(x2, permuted)] = at(x1, reshaped)
    x = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = x.reshape(2, 3, 2, 2, 3, 2).permute(*(moves[i] for i in range(6))).flatten(3).flatten(1, 2)
    assert torch.equal(patches[1, 5], x[1, :, 2:4, 4:6].flatten())
