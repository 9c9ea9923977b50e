"""Boxes and masks written as text: against the official rule, and against whatever a model may write."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.locations import (
    Detection,
    box_iou,
    box_to_pixels,
    box_to_tokens,
    codes_to_tokens,
    format_detections,
    parse_detections,
    tokens_to_box,
)

TWO = (
    "<loc0256><loc0128><loc0768><loc0512> red circle ; "
    "<loc0100><loc0600><loc0300><loc0900>" + "".join(f"<seg{i:03d}>" for i in range(112, 128)) + " blue square"
)


@st.composite
def boxes(draw):
    """Boxes at least 2/1023 wide, so that their tokens differ."""
    y1, x1 = draw(st.floats(0, 0.99)), draw(st.floats(0, 0.99))
    return y1, x1, draw(st.floats(min(y1 + 0.002, 1), 1)), draw(st.floats(min(x1 + 0.002, 1), 1))


labels = st.text(st.characters(blacklist_characters=";<>", blacklist_categories=("Cs",)), max_size=20).map(str.strip)
things = st.builds(
    Detection, labels, boxes(), st.none() | st.lists(st.integers(0, 127), min_size=16, max_size=16).map(tuple)
)
# Fragments of the language in any order: more garbage of the kind that models write than random text gives.
fragments = st.sampled_from(
    [
        "<loc0000>",
        "<loc0500>",
        "<loc1023>",
        "<loc1024>",
        "<loc9999>",
        "<loc12",
        "loc0001>",
        "<loc٠٠٠١>",
        "<loc0100>" * 4,
        "<loc0100><loc0200><loc0300><loc0400>",
        "<seg000>",
        "<seg127>",
        "<seg128>",
        "<seg999>",
        "<seg001>" * 16,
        " ; ",
        ";",
        " ",
        "\n",
        "cat",
        "<eos>",
        "<",
        ">",
        "<image>",
    ]
)


def official_bins(box):
    """get_refcoco_mask2str of big_vision: tf.cast(tf.round(bbox * 1023), tf.int32), then clip_by_value."""
    return np.clip(np.round(np.array(box) * 1023).astype(np.int32), 0, 1023)


@given(boxes())
def test_box_to_tokens_is_the_official_rule(box):
    assert box_to_tokens(box) == "".join(f"<loc{bin:04d}>" for bin in official_bins(box))


@given(boxes())
def test_a_box_comes_back_within_half_a_token(box):
    back = tokens_to_box(box_to_tokens(box))
    assert max(abs(a - b) for a, b in zip(box, back, strict=True)) <= 0.5 / 1023 + 1e-12


@given(st.lists(st.integers(0, 1023), min_size=4, max_size=4))
def test_tokens_come_back_exactly(bins):
    text = "".join(f"<loc{bin:04d}>" for bin in bins)
    box = tokens_to_box(text)
    assert list(official_bins(box)) == bins
    if box[0] < box[2] and box[1] < box[3]:
        assert box_to_tokens(box) == text


def test_the_divisor_decides_whether_the_far_edge_is_reached():
    assert tokens_to_box([0, 0, 1023, 1023]) == (0, 0, 1, 1)
    assert tokens_to_box([0, 0, 512, 1023], divisor=1024) == (0, 0, 0.5, 1023 / 1024)


def test_y_comes_before_x():
    assert box_to_tokens((0, 1 / 1023, 2 / 1023, 3 / 1023)) == "<loc0000><loc0001><loc0002><loc0003>"
    assert box_to_pixels((0.1, 0.2, 0.5, 1.0), width=1000, height=10) == pytest.approx((200, 1, 1000, 5))


@given(st.lists(things, max_size=4))
def test_written_things_are_read_back(detections):
    read, dropped = parse_detections(format_detections(detections))
    assert dropped == []
    assert [(d.label, d.codes) for d in read] == [(d.label, d.codes) for d in detections]
    for a, b in zip(read, detections, strict=True):
        assert a.box == pytest.approx(b.box, abs=0.5 / 1023 + 1e-12)


def test_the_published_form_is_read():
    read, dropped = parse_detections(TWO)
    assert dropped == []
    assert [d.label for d in read] == ["red circle", "blue square"]
    assert read[0].box == pytest.approx((256 / 1023, 128 / 1023, 768 / 1023, 512 / 1023)) and read[0].codes is None
    assert read[1].codes == tuple(range(112, 128))
    # The published answer to `detect shoe`, with the prompt's space and without any separator.
    assert parse_detections("<loc0051><loc0309><loc0708><loc0646> shoe")[0][0].label == "shoe"


@given(st.text() | st.lists(fragments, max_size=12).map("".join))
def test_reading_never_raises_and_accounts_for_everything(text):
    read, dropped = parse_detections(text)
    assert bool(read or dropped) == bool(re.sub("<bos>|<eos>|<pad>|;", " ", text).strip())
    for thing in read:
        assert all(0 <= side <= 1 for side in thing.box)
        assert thing.box[0] < thing.box[2] and thing.box[1] < thing.box[3]
        assert thing.codes is None or (len(thing.codes) == 16 and all(0 <= code < 128 for code in thing.codes))
        assert not set(thing.label) & set("<>;")


@pytest.mark.parametrize("ends", ["{}<eos>", "<bos>{}", "<bos>{}<eos><pad><pad>", "<pad> {} <eos>"])
def test_special_tokens_around_an_answer_are_skipped(ends):
    """Decoded with skip_special_tokens=False, as much code does it."""
    assert parse_detections(ends.format(TWO)) == parse_detections(TWO)
    assert parse_detections(ends.format("")) == ([], [])


@given(st.text() | st.lists(fragments, max_size=8).map("".join))
def test_rubbish_behind_a_semicolon_does_not_harm_what_stands_before(text):
    read, _ = parse_detections(TWO + " ; " + text)
    assert [d.label for d in read[:2]] == ["red circle", "blue square"]


@pytest.mark.parametrize(
    "text, why",
    [
        ("<loc0100><loc0100><loc0200> cat", "3 location tokens"),
        ("<loc0100><loc0100><loc0200><loc0200><loc0300> cat", "5 location tokens"),
        ("cat", "0 location tokens"),
        ("<loc0300><loc0100><loc0300><loc0200> cat", "bottom is not below"),
        ("<loc0100><loc0300><loc0200><loc0200> cat", "not right of its left"),
        ("<loc0100><loc0100><loc0200><loc1024> cat", "up to 1024"),
        ("<loc0100><loc0100><loc0200><loc0200>" + "<seg001>" * 15 + " cat", "15 segmentation tokens"),
        ("<loc0100><loc0100><loc0200><loc0200>" + "<seg128>" * 16 + " cat", "up to 128"),
        ("<seg001>" * 16 + "<loc0100><loc0100><loc0200><loc0200> cat", "order"),
        ("<loc0100><loc0100><loc0200><loc020 cat", "broken"),
    ],
)
def test_what_is_dropped_is_named_with_its_reason(text, why):
    read, dropped = parse_detections(text + " ; <loc0000><loc0000><loc0001><loc0001> dog")
    assert [d.label for d in read] == ["dog"]
    assert len(dropped) == 1 and why in dropped[0] and text in dropped[0]


def test_things_without_a_separator_are_still_two():
    cat, dog = ("<loc0000><loc0000><loc0100><loc0100> " + label for label in ("cat", "dog"))
    read, dropped = parse_detections(f"{cat} {dog}")
    assert [d.label for d in read] == ["cat", "dog"] and dropped == []


def test_an_empty_answer_drops_nothing():
    assert parse_detections("") == ([], []) == parse_detections("  \n")


def test_long_rubbish_is_read_in_linear_time():
    """A pattern that backtracks would need hours for these."""
    blank = " " * 200_000
    for text in (blank + "<", "a" + blank + "<loc", "<loc0001>" * 20_000, "<seg" * 50_000, ";" * 100_000):
        parse_detections(text)


@pytest.mark.parametrize(
    "box", [(0, 0, 2, 1), (-0.1, 0, 1, 1), (0.5, 0, 0.5, 1), (0, 0.6, 1, 0.5), (0, 0, 1), (0, 0, math.nan, 1)]
)
def test_a_wrong_box_is_refused(box):
    with pytest.raises(ValueError, match="fractions of the picture"):
        Detection("cat", box)


def test_wrong_codes_labels_and_tokens_are_refused():
    with pytest.raises(ValueError, match="codes of a mask are .1, 2, 3., expected 16 whole numbers"):
        Detection("cat", (0, 0, 1, 1), codes=(1, 2, 3))
    with pytest.raises(ValueError, match="separate objects"):
        format_detections([Detection("a;b", (0, 0, 1, 1))])
    with pytest.raises(ValueError, match="expected four from <loc0000>"):
        tokens_to_box("<loc0001><loc0002>")
    with pytest.raises(ValueError, match="0 x 10 pixels, expected at least 1 x 1"):
        box_to_pixels((0, 0, 1, 1), 0, 10)
    with pytest.raises(ValueError, match="codes of a mask are .128., expected whole numbers from 0 to 127"):
        codes_to_tokens([128])


@given(boxes(), boxes())
def test_box_iou_is_the_share_of_points_in_both(a, b):
    """Against counting: a fine grid of points, those in both boxes over those in either."""
    grid = (np.arange(400) + 0.5) / 400

    def inside(box):
        return ((grid >= box[0]) & (grid < box[2]))[:, None] & ((grid >= box[1]) & (grid < box[3]))

    union = (inside(a) | inside(b)).sum()
    if union > 4000:  # otherwise the grid is too coarse to tell
        assert box_iou(a, b) == pytest.approx((inside(a) & inside(b)).sum() / union, abs=0.05)
    assert box_iou(a, b) == pytest.approx(box_iou(b, a)) and box_iou(a, a) == 1


def test_box_iou_by_hand():
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0


@pytest.mark.parametrize("divisor", [0, 512, 1022, 1025])
def test_divisors_are_the_two_in_use(divisor):
    """By a smaller one, sides beyond the edge would all become 1 and boxes lose their area."""
    for read in (tokens_to_box, parse_detections):
        with pytest.raises(ValueError, match=f"divisor is {divisor}, expected 1023, or 1024"):
            read("<loc0600><loc0600><loc0700><loc0700>", divisor)
