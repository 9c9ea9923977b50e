"""What chapter 14 draws: the attention of an answer, rollout, shares inside a box, heads taken away, the viewer."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import GEMMA_SHAPES, make_pair, pictures, processors_for

from paligemma import answer_attention, generate
from paligemma.attention_maps import ablate_head, box_patches, rollout, share_inside

SHAPE = GEMMA_SHAPES["two heads share keys"]


@pytest.fixture(scope="module")
def small():
    """(our model, transformers' with the same weights, our processor, a picture)"""
    ours, theirs = make_pair(SHAPE)
    return ours, theirs, processors_for(SHAPE)[0], pictures(1)[0]


def test_answer_attention_is_that_of_transformers_and_picks_the_row_before_each_token(small):
    model, theirs, processor, picture = small
    attention = answer_attention(model, processor, picture, "caption en", answer="a red cat")
    inputs = processor(text=["caption en"], images=[picture], suffix=["a red cat"])
    labels = inputs.pop("labels")
    with torch.no_grad():
        reference = theirs(**inputs, output_attentions=True)
    torch.testing.assert_close(attention.decoder, torch.cat(reference.attentions), atol=1e-5, rtol=0)
    first = int((labels[0] != -100).nonzero()[0])
    assert attention.queries.tolist() == list(range(first - 1, labels.shape[1] - 1))
    assert attention.tokens[-1] == "<eos>" and len(attention.tokens) == len(attention.queries)
    grid = attention.grid
    shown = attention.to_image(layer=1, head=2, token=0)
    torch.testing.assert_close(shown.flatten(), reference.attentions[1][0, 2, first - 1, : grid**2], atol=1e-5, rtol=0)


def test_the_answer_is_the_models_own_unless_given(small):
    model, _, processor, picture = small
    own = answer_attention(model, processor, picture, "caption en")
    assert own.text == generate(model, processor, [picture], ["caption en"], max_new_tokens=64)[0]
    assert own.decoder.shape[-1] == own.queries[-1] + 2


def test_rollout_by_hand():
    first = torch.tensor([[1.0, 0.0], [0.4, 0.6]])
    second = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    attention = torch.stack([first, second])[:, None]  # [layers, H, L, L], one head
    eye = torch.eye(2)
    expected = (0.5 * second + 0.5 * eye) @ (0.5 * first + 0.5 * eye)
    torch.testing.assert_close(rollout(attention), expected)
    # Token 1 keeps half of its own at each layer: (0.5 * 0.6 + 0.5) * 0.5.
    assert rollout(attention)[1, 1].item() == pytest.approx(0.4)


@given(layers=st.integers(1, 4), heads=st.integers(1, 3), length=st.integers(1, 9), seed=st.integers(0, 99))
def test_rows_of_a_rollout_sum_to_one(layers, heads, length, seed):
    scores = torch.randn(layers, heads, length, length, generator=torch.Generator().manual_seed(seed))
    flow = rollout(scores.softmax(dim=-1))
    torch.testing.assert_close(flow.sum(dim=-1), torch.ones(length))
    assert (flow >= 0).all()


edge = st.floats(0, 1, allow_nan=False)


@given(edges=st.tuples(edge, edge, edge, edge), grid=st.integers(1, 12))
def test_a_box_covers_its_area_and_even_attention_has_just_that_share(edges, grid):
    y1, y2 = sorted(edges[:2])
    x1, x2 = sorted(edges[2:])
    inside = box_patches((y1, x1, y2, x2), grid)
    area = (y2 - y1) * (x2 - x1)
    assert inside.shape == (grid, grid) and inside.min() >= 0 and inside.max() <= 1 + 1e-5
    assert inside.mean().item() == pytest.approx(area, abs=1e-5)
    assert share_inside(torch.ones(grid, grid), (y1, x1, y2, x2)) == pytest.approx(area, abs=1e-5)


def test_share_inside_knows_rows_from_columns():
    weights = torch.zeros(4, 4)
    weights[0, 3] = 1  # the upper right corner
    assert share_inside(weights, (0, 0.5, 0.5, 1)) == 1
    assert share_inside(weights, (0.5, 0, 1, 0.5)) == 0


def test_a_head_taken_away_adds_nothing_and_comes_back(small):
    model, _, processor, picture = small
    inputs = processor(text=["caption en"], images=[picture])
    attention = model.language_model.model.layers[1].self_attn
    d = attention.head_dim
    with torch.no_grad():
        before = model(**inputs).logits
        with ablate_head(model, layer=1, head=2):
            without = model(**inputs).logits
        weight = attention.o_proj.weight.clone()
        attention.o_proj.weight[:, 2 * d : 3 * d] = 0  # the same by other means: its columns of the output matrix
        expected = model(**inputs).logits
        attention.o_proj.weight.copy_(weight)
        after = model(**inputs).logits
    torch.testing.assert_close(without, expected)
    assert (without - before).abs().max() > 1e-3
    torch.testing.assert_close(after, before, atol=0, rtol=0)


def test_a_head_that_is_not_there_is_named(small):
    with pytest.raises(ValueError, match="head is 4, this layer has heads 0 to 3"), ablate_head(small[0], 0, 4):
        pass
    with pytest.raises(ValueError, match="layer is 9, this decoder has layers 0 to"), ablate_head(small[0], 9, 0):
        pass


def test_the_viewer_follows_its_controls(small):
    from paligemma.visualize.viewer import attention_viewer, sharpest

    model, _, processor, picture = small
    viewer = attention_viewer(model, processor, {"one": picture, "two": pictures(1, seed=5)[0]}, ["caption en", "what"])
    text, token, layer, head, shown = viewer.state()
    expected = answer_attention(model, processor, picture, "caption en")
    assert (text, (layer, head, token)) == (expected.text, sharpest(expected))
    every = expected.decoder[:, :, expected.queries, : expected.grid**2]
    assert shown.max() == every.max(), "it opens where one patch gets most"
    np.testing.assert_allclose(shown, expected.to_image(layer, head, token))
    viewer.controls["token"].value = 0
    png = viewer.children[1].value
    for layer in range(2):
        for head in range(4):
            viewer.controls["layer"].value = layer
            viewer.controls["head"].value = head
            np.testing.assert_allclose(viewer.state()[-1], expected.to_image(layer, head, 0))
    assert bytes(viewer.children[1].value) != bytes(png) and bytes(viewer.children[1].value).startswith(b"\x89PNG")
    viewer.controls["token"].value = 1
    np.testing.assert_allclose(viewer.state()[-1], expected.to_image(1, 3, 1))
    viewer.controls["picture"].value = "two"
    other = answer_attention(model, processor, pictures(1, seed=5)[0], "caption en")
    assert viewer.state()[0] == other.text and np.isfinite(viewer.state()[-1]).all()
    assert viewer.state()[2:4] == (1, 3), "the head that was chosen stays"
    viewer.controls["prompt"].value = "what"
    assert viewer.state()[1] == 0


def test_the_viewer_opens_where_it_is_told_and_shows_whole_sentences(small, monkeypatch):
    from paligemma.visualize import viewer as module

    model, _, processor, picture = small
    attention = answer_attention(model, processor, picture, "caption en")
    attention.text = "<loc0001>" * 40 + " a <b> & c"
    monkeypatch.setattr(module, "answer_attention", lambda *_: attention)
    viewer = module.attention_viewer(model, processor, {"one": picture}, ["caption en"], layer=1, head=0)
    assert viewer.state()[2:4] == (1, 0)
    answer, numbers = viewer.children[0].children[2], viewer.children[0].children[-1]
    assert "&lt;loc0001&gt;" * 40 + " a &lt;b&gt; &amp; c" in answer.value and "overflow-wrap:anywhere" in answer.value
    assert "of this head&#x27;s attention goes to the picture" in numbers.value and numbers.value.endswith("%</div>")
