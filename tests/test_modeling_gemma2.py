"""PaliGemma 2 against transformers: soft caps, four norms, windows, cached and not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    GEMMA2_SHAPES,
    PROMPTS,
    SUFFIXES,
    assert_close,
    compare_cached_with_whole,
    compare_greedy,
    compare_with_transformers,
    make_inputs,
    make_pair,
    shape,
)

from paligemma import record_attention
from paligemma.modeling_gemma import PaliGemmaConfig
from paligemma.modeling_gemma2 import Gemma2Config, softcap


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("name", GEMMA2_SHAPES)
def test_logits_loss_and_gradients(name, padding_side):
    compare_with_transformers(GEMMA2_SHAPES[name], "sdpa", padding_side, PROMPTS, SUFFIXES)
    compare_with_transformers(GEMMA2_SHAPES[name], "eager", padding_side, PROMPTS, None)


@pytest.mark.parametrize("name", GEMMA2_SHAPES)
def test_single_row(name):
    compare_with_transformers(GEMMA2_SHAPES[name], "sdpa", "left", PROMPTS[:1], SUFFIXES[1:2])


@pytest.mark.parametrize("name", GEMMA2_SHAPES)
def test_cached_is_the_same_as_whole(name):
    compare_cached_with_whole(GEMMA2_SHAPES[name], "sdpa", "left")
    compare_cached_with_whole(GEMMA2_SHAPES[name], "eager", "left", chunk=3)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("name", GEMMA2_SHAPES)
def test_greedy_tokens(name, padding_side):
    compare_greedy(GEMMA2_SHAPES[name], "sdpa", padding_side)


def test_a_window_changes_what_is_said():
    """Without this the window tests above would prove nothing: with and without a window, logits differ."""
    inputs = make_inputs(shape("gemma2"), suffixes=SUFFIXES)
    narrow, _ = make_pair(shape("gemma2", sliding_window=3))
    wide, _ = make_pair(shape("gemma2", sliding_window=100))
    rows = inputs["token_type_ids"].bool()
    assert (narrow(**inputs).logits - wide(**inputs).logits)[rows].abs().max() > 0.01


def test_window_shows_the_last_tokens_to_the_answer_and_everything_to_the_prompt():
    model, _ = make_pair(shape("gemma2", sliding_window=3))
    inputs = make_inputs(shape("gemma2"), prompts=PROMPTS[:1], suffixes=SUFFIXES[:1])
    with record_attention(model) as maps:
        model(**inputs)
    sliding = maps["language_model.model.layers.0.self_attn"][0][0, 0]  # [L, L]
    full = maps["language_model.model.layers.1.self_attn"][0][0, 0]
    prompt = int((inputs["token_type_ids"][0] == 0).sum())
    L = sliding.shape[0]
    assert (sliding[:prompt, :prompt] > 0).all() and (full[prompt:, :prompt] > 0).all()
    for i in range(prompt, L):
        assert (sliding[i] > 0).nonzero().flatten().tolist() == list(range(max(i - 2, 0), i + 1))


@settings(max_examples=50, deadline=None)
@given(cap=st.floats(0.1, 100), values=st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=10))
def test_softcap_bounds_and_keeps_order(cap, values):
    x = torch.tensor(sorted(values), dtype=torch.float64)
    y = softcap(x, cap)
    assert (y.abs() <= cap).all()
    assert (y.diff() >= 0).all()
    small = x.abs() < cap / 100
    torch.testing.assert_close(y[small], x[small], rtol=1e-4, atol=1e-12)  # tanh(x) = x - x^3 / 3 + ...
    assert softcap(x, None) is x


def test_final_cap_changes_the_loss_and_not_the_choice():
    inputs = make_inputs(shape("gemma2"), suffixes=SUFFIXES)
    capped, _ = make_pair(shape("gemma2", final_logit_softcapping=1.0))
    free, _ = make_pair(shape("gemma2", final_logit_softcapping=None))
    a, b = capped(**inputs), free(**inputs)
    assert a.logits.abs().max() <= 1.0 < b.logits.abs().max()
    assert (a.logits.argmax(-1) == b.logits.argmax(-1)).all()
    assert abs(a.loss - b.loss) > 0.01


def test_a_null_in_the_file_switches_a_cap_off():
    values = {"vision_config": {}, "text_config": {"model_type": "gemma2", "attn_logit_softcapping": None}}
    config = PaliGemmaConfig.from_dict(values).text_config
    assert config.attn_logit_softcapping is None and config.final_logit_softcapping == 30.0


def test_layers_alternate_beginning_with_a_window():
    assert Gemma2Config(num_hidden_layers=3).layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="layer_types is .*, expected a list of num_hidden_layers = 26 names"):
        Gemma2Config(layer_types=["full_attention"])
    with pytest.raises(ValueError, match="layer_types.*'chunked'"):
        Gemma2Config(num_hidden_layers=1, layer_types=["chunked"])


def test_layer_types_of_the_file_are_followed():
    """All full: the window then has no effect; compared with transformers."""
    settings = shape("gemma2", sliding_window=3, layer_types=["full_attention", "full_attention"])
    compare_with_transformers(settings, "sdpa", "left", PROMPTS, SUFFIXES)


def test_attention_maps_are_those_of_transformers():
    ours, theirs = make_pair(GEMMA2_SHAPES["window shorter than the text"])
    inputs = make_inputs(GEMMA2_SHAPES["window shorter than the text"], prompts=PROMPTS[:1])
    with record_attention(ours) as maps:
        ours(**inputs)
    expected = theirs(**inputs, output_attentions=True).attentions
    assert len(expected) == 4
    for layer, weights in enumerate(expected):
        assert_close(maps[f"language_model.model.layers.{layer}.self_attn"][0], weights, 1e-6)
