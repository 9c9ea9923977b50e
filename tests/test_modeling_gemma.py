"""The decoder and the whole of PaliGemma: against transformers, against the formulas, and against wrong input."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    GEMMA_SHAPES,
    IMAGE_TOKEN_ID,
    PROMPTS,
    SUFFIXES,
    VOCAB_SIZE,
    assert_close,
    call_theirs,
    compare_cached_with_whole,
    compare_with_transformers,
    make_inputs,
    make_ours,
    make_pair,
    make_theirs,
    pictures,
    processors_for,
    shape,
)
from transformers.models.gemma import modeling_gemma as hf

from paligemma import KVCache
from paligemma.modeling_gemma import (
    GemmaConfig,
    GemmaMLP,
    GemmaRMSNorm,
    GemmaRotaryEmbedding,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    additive_mask,
    apply_rotary_pos_emb,
    make_attn_mask,
    repeat_kv,
    rotate_half,
    suffix_loss,
)
from paligemma.modeling_gemma2 import Gemma2Config
from paligemma.modeling_siglip import SiglipVisionConfig
from paligemma.published import PUBLISHED

LONG = "a red cat and a blue dog and a large star " * 8  # some 150 tokens, against 16 of the picture
seeds = st.integers(0, 2**31)

# --------------------------------------------------------------------------------------- against transformers


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("name", GEMMA_SHAPES)
def test_batches_with_suffix(name, padding_side, attention):
    compare_with_transformers(GEMMA_SHAPES[name], attention, padding_side, PROMPTS, SUFFIXES)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("name", GEMMA_SHAPES)
def test_batches_without_suffix(name, padding_side, attention):
    compare_with_transformers(GEMMA_SHAPES[name], attention, padding_side, PROMPTS, None)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("suffix", [None, "", "a cat", LONG])
@pytest.mark.parametrize("prompt", ["", "\n", "caption en", LONG])
def test_single_rows_of_several_lengths(prompt, suffix, attention):
    suffixes = None if suffix is None else [suffix]
    compare_with_transformers(GEMMA_SHAPES["two heads share keys"], attention, "left", [prompt], suffixes)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("name", GEMMA_SHAPES)
def test_cached_is_the_same_as_whole(name, padding_side, attention):
    compare_cached_with_whole(GEMMA_SHAPES[name], attention, padding_side, chunk=1)


@pytest.mark.parametrize("chunk", [2, 7])
def test_cached_in_larger_steps(chunk):
    compare_cached_with_whole(GEMMA_SHAPES["one key head"], "sdpa", "left", chunk)


@pytest.mark.parametrize("seed", range(1, 5))
def test_other_weights(seed):
    ours, theirs = make_pair(shape(), seed=seed)
    inputs = make_inputs(shape(), suffixes=SUFFIXES)
    output, expected = ours(**inputs), theirs(**inputs)
    real = inputs["attention_mask"].bool()
    assert_close(output.logits[real], expected.logits[real])
    assert abs(output.loss - expected.loss) <= 1e-5


def test_several_pictures_in_a_row():
    ours, theirs = make_pair(shape())
    p, q = processors_for(shape())
    images = [pictures(2, 20), pictures(1, 20, seed=1), pictures(3, 20, seed=2)]
    inputs = p(text=PROMPTS, images=images, suffix=SUFFIXES)
    expected = call_theirs(q, PROMPTS, images, SUFFIXES)
    for name in inputs:
        assert torch.equal(inputs[name], expected[name]), name
    real = inputs["attention_mask"].bool()
    assert_close(ours(**inputs).logits[real], theirs(**expected).logits[real])


def test_text_alone():
    ours, theirs = make_pair(shape())
    ids = torch.randint(4, 300, (2, 9))
    types = torch.tensor([[0] * 4 + [1] * 5] * 2)
    output = ours(ids, token_type_ids=types)
    assert_close(output.logits, theirs(input_ids=ids, token_type_ids=types).logits)


def test_without_token_types_everything_is_prompt():
    """transformers falls back to a causal mask instead when they are left out."""
    ours, theirs = make_pair(shape())
    inputs = make_inputs(shape(), prompts=PROMPTS[:1])
    assert int(inputs.pop("token_type_ids").sum()) == 0
    logits = ours(**inputs).logits
    assert_close(logits, theirs(**inputs, token_type_ids=torch.zeros_like(inputs["input_ids"])).logits)
    assert (logits - theirs(**inputs).logits).abs().max() > 0.01


def test_image_token_outside_the_table():
    """Some checkpoints give <image> an id beyond the last row of the embedding."""
    theirs = make_theirs(shape())
    theirs.config.image_token_index = theirs.config.image_token_id = VOCAB_SIZE + 3
    ours = make_ours(theirs)
    inputs = make_inputs(shape(), prompts=PROMPTS[:1])
    inputs["input_ids"][inputs["input_ids"] == IMAGE_TOKEN_ID] = VOCAB_SIZE + 3
    assert_close(ours(**inputs).logits, theirs(**inputs).logits)


def test_bfloat16():
    ours, theirs = make_pair(shape())
    inputs = make_inputs(shape(), prompts=PROMPTS[:1])
    logits = ours.bfloat16()(**inputs).logits
    assert logits.dtype == torch.bfloat16
    expected = theirs.bfloat16()(**inputs | {"pixel_values": inputs["pixel_values"].bfloat16()}).logits
    difference = (logits.float() - expected.float()).abs()
    assert difference.mean() < 0.03, "of logits with a standard deviation of 1 and 8 bits of precision"


def test_last_logits_alone():
    model, _ = make_pair(shape())
    inputs = make_inputs(shape())
    with torch.no_grad():
        whole = model(**inputs).logits
        for keep in (1, 3):
            logits = model(**inputs, logits_to_keep=keep).logits
            assert logits.shape == (3, keep, VOCAB_SIZE)
            assert_close(logits, whole[:, -keep:], 1e-6)


def test_image_features_can_be_used_again():
    model, _ = make_pair(shape())
    inputs = make_inputs(shape())
    features = model.get_image_features(inputs["pixel_values"])
    assert features.shape == (3, 16, 32)
    expected = model(**inputs).logits
    del inputs["pixel_values"]
    assert torch.equal(model(**inputs, image_features=features).logits, expected)


# ------------------------------------------------------------------------------------------ against the formulas


@settings(max_examples=40, deadline=None)
@given(seed=seeds, dim=st.integers(1, 40), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_rms_norm_is_the_formula(seed, dim, scale):
    """Zhang & Sennrich 2019, equation 4, with Gemma's 1 + weight, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, dim, generator=generator, dtype=torch.float64) * scale
    norm = GemmaRMSNorm(dim)
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + norm.weight.double())
    output = norm(x.float())
    torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=2e-6)
    theirs = hf.GemmaRMSNorm(dim)
    theirs.load_state_dict(norm.state_dict())
    assert torch.equal(output, theirs(x.float()))


def test_rms_norm_multiplies_before_it_rounds():
    norm = GemmaRMSNorm(64)
    with torch.no_grad():
        norm.weight.normal_()
    x = torch.randn(5, 64).bfloat16()
    theirs = hf.GemmaRMSNorm(64)
    theirs.load_state_dict(norm.state_dict())
    assert norm(x).dtype == torch.bfloat16
    assert torch.equal(norm(x), theirs(x))
    rounded_first = (x.float() * x.float().pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()).bfloat16() * (
        1 + norm.weight
    ).bfloat16()
    assert not torch.equal(norm(x), rounded_first)  # the order of Llama


@settings(max_examples=30, deadline=None)
@given(seed=seeds, half=st.integers(1, 16), base=st.sampled_from([10.0, 10000.0]), position=st.integers(0, 4000))
def test_rope_turns_pairs_as_complex_numbers(seed, half, base, position):
    """Su et al. 2021, equation 13: pair (i, i + d/2) as a complex number times exp(i m theta^(-2i/d)), in float64."""
    x = torch.randn(1, 2, 1, 2 * half, generator=torch.Generator().manual_seed(seed))
    cos, sin = GemmaRotaryEmbedding(2 * half, base)(x, torch.tensor([[position]]))
    turned, _ = apply_rotary_pos_emb(x, x, cos, sin)
    pairs = x[..., :half].double().numpy() + 1j * x[..., half:].double().numpy()
    expected = pairs * np.exp(1j * position * base ** (-np.arange(half) / half))
    # float32 angles: at position 4,000 their last bit is worth 2e-4.
    tolerance = 1e-5 + 3e-7 * position
    np.testing.assert_allclose(turned[..., :half].numpy(), expected.real, atol=tolerance)
    np.testing.assert_allclose(turned[..., half:].numpy(), expected.imag, atol=tolerance)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


@settings(max_examples=30, deadline=None)
@given(seed=seeds, m=st.integers(0, 200), n=st.integers(0, 200), shift=st.integers(0, 200))
def test_rope_scores_depend_on_the_distance_alone(seed, m, n, shift):
    query, key = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(seed))
    rotary = GemmaRotaryEmbedding(16)

    def score(query_position, key_position):
        turned, _ = apply_rotary_pos_emb(query, query, *rotary(query, torch.tensor([[query_position]])))
        _, key_turned = apply_rotary_pos_emb(key, key, *rotary(key, torch.tensor([[key_position]])))
        return (turned * key_turned).sum()

    torch.testing.assert_close(score(m, n), score(m + shift, n + shift), atol=2e-3, rtol=0)


def test_rope_angles_are_those_of_transformers_and_survive_a_cast():
    x, positions = torch.zeros(1, 5, 8), torch.tensor([[1, 2, 3, 500, 4000]])
    theirs = hf.GemmaRotaryEmbedding(hf.GemmaConfig(head_dim=8, hidden_size=16, num_attention_heads=2))
    ours = GemmaRotaryEmbedding(8)
    for a, b in zip(ours(x, positions), theirs(x, positions), strict=True):
        assert torch.equal(a, b)
    before = ours(x, positions)
    after = ours.to(torch.bfloat16)(x, positions)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_rotate_half_is_a_quarter_turn():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rotate_half(x).tolist() == [-3.0, -4.0, 1.0, 2.0]
    assert rotate_half(rotate_half(x)).tolist() == (-x).tolist()


def test_mlp_is_the_formula():
    """GEGLU of Shazeer 2020, equation 6, with the tanh form of GELU, in float64."""
    mlp = GemmaMLP(GemmaConfig(hidden_size=6, intermediate_size=10)).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    gate, up = x @ mlp.gate_proj.weight.T, x @ mlp.up_proj.weight.T
    gelu = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    torch.testing.assert_close(mlp(x), (gelu * up) @ mlp.down_proj.weight.T, atol=1e-12, rtol=0)
    assert all(layer.bias is None for layer in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))


def test_repeat_kv_gives_neighbouring_query_heads_the_same_keys():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(repeat_kv(x, 2), hf.repeat_kv(x, 2))
    assert torch.equal(repeat_kv(x, 2)[:, 0], repeat_kv(x, 2)[:, 1])
    assert torch.equal(repeat_kv(x, 1), x)


def test_text_is_scaled_and_pictures_are_not():
    model, _ = make_pair(shape(D=25, H_kv=1))
    inputs = make_inputs(shape(D=25, H_kv=1), prompts=["caption en"])
    features = torch.full((1, 16, 25), 7.0)
    embeddings = model._merge_input_ids_with_image_features(inputs["input_ids"], features)
    is_image = inputs["input_ids"] == IMAGE_TOKEN_ID
    assert (embeddings[is_image] == 7.0).all()
    table = model.language_model.model.embed_tokens.weight
    assert torch.equal(embeddings[~is_image], table[inputs["input_ids"][~is_image]] * 5.0)  # sqrt(25)


def test_loss_is_the_mean_over_all_labels_of_the_batch():
    """Not the mean of the rows' means. By hand: -log softmax at each label, in float64."""
    logits = torch.randn(2, 5, 11)
    labels = torch.tensor([[-100, -100, 3, 4, 5], [-100, -100, -100, -100, 6]])
    terms = []
    for b in range(2):
        for t in range(4):
            if labels[b, t + 1] != -100:
                row = logits[b, t].double()
                terms.append(row.exp().sum().log() - row[labels[b, t + 1]])
    assert len(terms) == 4
    assert suffix_loss(logits, labels).item() == pytest.approx(sum(terms).item() / 4, abs=1e-6)


# ------------------------------------------------------------------------------------------------------ the mask

rows = st.lists(st.tuples(st.integers(0, 1), st.booleans()), min_size=1, max_size=12)  # (mask_ar, input_mask)


@settings(max_examples=100, deadline=None)
@given(row=rows, queries=st.integers(1, 12), window=st.none() | st.integers(1, 12))
def test_mask_is_the_official_rule(row, queries, window):
    """big_vision's make_attn_mask, entry by entry: cumsum(ar)[k] <= cumsum(ar)[q] and k is a token."""
    mask_ar, input_mask = zip(*row, strict=True)
    T = len(mask_ar)
    L = min(queries, T)
    mask = make_attn_mask(torch.tensor([input_mask]), torch.tensor([mask_ar]), L, window)
    assert mask.shape == (1, L, T) and mask.dtype == torch.bool
    for i in range(L):
        q = T - L + i
        for k in range(T):
            allowed = sum(mask_ar[: k + 1]) <= sum(mask_ar[: q + 1]) and input_mask[k]
            if window is not None:
                allowed = allowed and (q - k < window or sum(mask_ar[: k + 1]) == sum(mask_ar[: q + 1]))
            assert mask[0, i, k].item() == allowed


def test_mask_of_the_three_kinds():
    ones = torch.ones(1, 4)
    assert torch.equal(make_attn_mask(ones, torch.ones(1, 4))[0], torch.ones(4, 4).tril().bool())
    assert make_attn_mask(ones, torch.zeros(1, 4)).all()
    prefix_lm = make_attn_mask(ones, torch.tensor([[0, 0, 1, 1]]))[0]
    assert prefix_lm.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_a_row_that_may_see_nothing_gives_numbers():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        mask = additive_mask(torch.zeros(1, 2, 3, dtype=torch.bool), dtype)
        assert mask.shape == (1, 1, 2, 3) and mask.dtype == dtype
        assert torch.isfinite((torch.randn(1, 1, 2, 3).to(dtype) + mask).softmax(-1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("decoder", ["gemma", "gemma2"])
def test_a_model_that_may_see_nothing_gives_numbers(decoder, attention, dtype):
    model = make_pair(shape(decoder), attention)[0].to(dtype)
    ids = torch.tensor([[5, 6], [7, 8]])
    with torch.no_grad():
        for mask in (torch.zeros(2, 2), torch.tensor([[1, 0], [0, 0]])):
            assert torch.isfinite(model(ids, attention_mask=mask.long()).logits).all()
            cache = KVCache(model.config.text_config, 2, 3, dtype=dtype)
            model(ids[:, :1], attention_mask=mask[:, :1].long(), kv_cache=cache)
            assert torch.isfinite(model(ids[:, 1:], attention_mask=mask.long(), kv_cache=cache).logits).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradients_through_padding_are_finite(attention):
    model, _ = make_pair(shape(), attention)
    model(**make_inputs(shape(), "left", suffixes=SUFFIXES)).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_nobody_looks_ahead_in_the_answer(attention):
    """Changing token t of the answer changes no logits before t, and those of the prompt never."""
    model, _ = make_pair(shape(), attention)
    inputs = make_inputs(shape(), prompts=PROMPTS[:1], suffixes=["a red cat in a large circle"])
    first = int((inputs["token_type_ids"][0] == 0).sum())
    with torch.no_grad():
        before = model(**inputs).logits[0]
        for t in range(first, inputs["input_ids"].shape[1]):
            changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
            changed["input_ids"][0, t] = 299
            after = model(**changed).logits[0]
            assert torch.equal(after[:t], before[:t])
            assert (after[t:] - before[t:]).abs().max() > 0.01


def test_the_prompt_sees_itself_whole():
    """Changing the last word of the prompt changes what stands at its first."""
    model, _ = make_pair(shape())
    inputs = make_inputs(shape(), prompts=PROMPTS[:1])
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][0, -2] = 299
    assert (model(**changed).logits[0, 0] - model(**inputs).logits[0, 0]).abs().max() > 1e-3


def test_padding_is_seen_by_nobody():
    model, _ = make_pair(shape())
    for side in ("left", "right"):
        inputs = make_inputs(shape(), side)
        real = inputs["attention_mask"].bool()
        changed = {**inputs, "input_ids": inputs["input_ids"].masked_fill(~real, 299)}
        assert torch.equal(model(**changed).logits[real], model(**inputs).logits[real])


def test_left_right_and_single_are_one():
    model, _ = make_pair(shape())
    left, right = make_inputs(shape(), "left"), make_inputs(shape(), "right")
    left_logits, right_logits = model(**left).logits, model(**right).logits
    for i, prompt in enumerate(PROMPTS):
        processor, _ = processors_for(shape())
        alone = model(**processor(text=[prompt], images=[pictures(3, 20)[i]])).logits[0]
        assert_close(left_logits[i][left["attention_mask"][i].bool()], alone)
        assert_close(right_logits[i][right["attention_mask"][i].bool()], alone)


# --------------------------------------------------------------------------------------------------- wrong input


def test_image_tokens_must_match_the_features():
    model, _ = make_pair(shape())
    inputs = make_inputs(shape(), prompts=PROMPTS[:1])
    two = inputs | {"pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)}
    with pytest.raises(ValueError, match="hold 16 <image> tokens and the pictures give 32 features.*processor"):
        model(**two)
    fewer = inputs | {"input_ids": inputs["input_ids"].clone()}
    fewer["input_ids"][0, 0] = 7
    with pytest.raises(ValueError, match="hold 15 <image> tokens and the pictures give 16 features"):
        model(**fewer)


def test_one_prompt_needs_a_batch_of_one():
    model, _ = make_pair(shape())
    for ids in (torch.tensor([2, 3, 4]), torch.zeros(1, 1, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"input_ids has shape \[.*3\], expected \[B, L\]"):
            model(ids)


def test_logits_are_not_kept_from_the_front():
    model, _ = make_pair(shape())
    with pytest.raises(ValueError, match="logits_to_keep is -1, expected 0"):
        model(**make_inputs(shape()), logits_to_keep=-1)


@pytest.mark.parametrize("name", ["attention_mask", "token_type_ids"])
def test_masks_must_have_the_shape_of_the_tokens(name):
    model, _ = make_pair(shape())
    inputs = make_inputs(shape())
    with pytest.raises(ValueError, match=rf"{name} has shape \[3, \d+\], expected"):
        model(**inputs | {name: inputs[name][:, 1:]})


def test_masks_must_count_the_cache():
    from paligemma import KVCache

    model, _ = make_pair(shape())
    inputs = make_inputs(shape())
    kv_cache = KVCache(model.config.text_config, 3, 100)
    model(**inputs, kv_cache=kv_cache)
    with pytest.raises(ValueError, match="the 1 tokens fed in and the .* in the cache"):
        model(torch.ones(3, 1, dtype=torch.int64), attention_mask=torch.ones(3, 1), kv_cache=kv_cache)


def test_labels_need_token_types():
    model, _ = make_pair(shape())
    inputs = make_inputs(shape(), suffixes=SUFFIXES)
    del inputs["token_type_ids"]
    with pytest.raises(ValueError, match="labels came without token_type_ids"):
        model(**inputs)


def test_labels_that_are_all_empty_are_refused():
    """transformers returns a loss of NaN here."""
    model, _ = make_pair(shape())
    inputs = make_inputs(shape())
    with pytest.raises(ValueError, match="no token has a label.*suffix"):
        model(**inputs, labels=torch.full_like(inputs["input_ids"], -100))
    with pytest.raises(ValueError, match="labels has shape"):
        model(**make_inputs(shape(), suffixes=SUFFIXES), logits_to_keep=1)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "multiple of num_key_value_heads"),
        ({"head_dim": 7}, "head_dim is 7, expected an even number"),
        ({"attention": "flash"}, "attention is 'flash'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        GemmaConfig(**values)


NONSENSE = (None, "x", "1", [], {}, float("nan"), float("inf"), -float("inf"), True, -1, 1e30, 10**400)
NUMBERS = {
    SiglipVisionConfig: ("layer_norm_eps", "attention_dropout"),
    GemmaConfig: ("rms_norm_eps", "rope_theta", "attention_dropout"),
    Gemma2Config: ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
}


@pytest.mark.parametrize("config_class, name", [(kind, name) for kind, names in NUMBERS.items() for name in names])
def test_numbers_that_cannot_be_are_refused(config_class, name):
    for value in NONSENSE:
        if value is None and "softcapping" in name:
            continue  # no cap
        with pytest.raises(ValueError, match=f"^{name} is .*, expected ") as caught:
            config_class(**{name: value})
        assert len(str(caught.value)) < 150


@pytest.mark.parametrize("name", ["image_token_index", "pad_token_id", "bos_token_id", "eos_token_id", "ignore_index"])
def test_ids_that_cannot_be_are_refused(name):
    for value in (None, "x", [], float("nan"), 1.5, True, -1):
        with pytest.raises(ValueError, match=f"^{name} is .*, expected "):
            PaliGemmaConfig(**{name: value})


@pytest.mark.parametrize(
    "part, values, message",
    [
        ("text_config", {"hidden_act": "relu"}, "text_config: hidden_act is 'relu', expected 'gelu_pytorch_tanh'"),
        ("text_config", {"hidden_activation": "gelu"}, "text_config: hidden_activation is 'gelu', expected"),
        ("text_config", {"attention_bias": True}, "text_config: attention_bias is True, expected False"),
        ("text_config", {"attention_dropout": 0.1}, "text_config: attention_dropout is 0.1, expected 0.0"),
        ("text_config", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "text_config: rope_type is 'linear'"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn"}}, "text_config: rope_type is 'yarn'"),
        ("text_config", {"rope_parameters": 7}, "text_config: rope_parameters is 7, expected an object"),
        (
            "text_config",
            {"rope_theta": 10.0, "rope_parameters": {"rope_theta": 20.0}},
            "text_config: rope_theta is 20.0, expected 10.0",
        ),
        ("vision_config", {"hidden_act": "gelu"}, "vision_config: hidden_act is 'gelu', expected"),
        ("vision_config", {"model_type": "clip_vision_model"}, "vision_config: model_type is 'clip_vision_model'"),
        (
            "vision_config",
            {"patch_size": "x"},
            "vision_config: patch_size is 'x', expected a whole number of 1 or more",
        ),
    ],
)
def test_what_would_compute_something_else_is_refused(part, values, message):
    config = {"vision_config": {}, "text_config": {}}
    PaliGemmaConfig.from_dict(config)
    config[part] = values
    with pytest.raises(ValueError, match=message):
        PaliGemmaConfig.from_dict(config)


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
@pytest.mark.parametrize("value", [None, 3, "x", [], [1], float("nan")])
def test_a_half_that_is_none_is_refused(part, value):
    with pytest.raises(ValueError, match=f"{part}: it is .*, expected an object with keys"):
        PaliGemmaConfig.from_dict({"vision_config": {}, "text_config": {}} | {part: value})


def test_the_names_that_published_files_use_are_there():
    """Everything about the architecture that hkproj's and transformers' configurations are asked for."""
    config = PaliGemmaConfig()
    for name in ("ignore_index", "image_token_index", "projection_dim", "hidden_size", "vocab_size", "pad_token_id"):
        assert isinstance(getattr(config, name), int)
    assert (config.hidden_size, config.vocab_size, config.ignore_index) == (2048, 257216, -100)
    GemmaConfig(
        vocab_size=257216, hidden_size=2048, intermediate_size=16384, num_hidden_layers=18, num_attention_heads=8,
        num_key_value_heads=1, head_dim=256, max_position_embeddings=8192, rms_norm_eps=1e-6, rope_theta=10000.0,
        attention_bias=False, attention_dropout=0.0,
    )  # fmt: skip


def test_a_token_without_an_embedding_is_named():
    model, _ = make_pair(shape())
    with pytest.raises(
        ValueError, match=rf"ids from 3 to {VOCAB_SIZE + 7}, expected 0 to {VOCAB_SIZE - 1}: the tokenizer"
    ):
        model(torch.tensor([[3, VOCAB_SIZE + 7]]))


@pytest.mark.parametrize("name", ["paligemma-3b-pt-224", "paligemma2-3b-pt-224"])
def test_every_weight_is_drawn_once(name, monkeypatch):
    """What is built is what is kept: no layer is made, drawn and thrown away."""
    drawn = []
    for kind, size in ((torch.nn.Linear, "weight"), (torch.nn.Embedding, "weight"), (torch.nn.Conv2d, "weight")):
        draw = kind.reset_parameters

        def counted(self, draw=draw, size=size):
            drawn.append(getattr(self, size).numel())
            draw(self)

        monkeypatch.setattr(kind, "reset_parameters", counted)
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(PaliGemmaConfig.from_dict(PUBLISHED[name]))
    assert sum(drawn) == sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)


def test_the_halves_must_have_one_width():
    with pytest.raises(ValueError, match="projection_dim 64 is not the decoder's hidden_size 2048"):
        PaliGemmaConfig(projection_dim=64)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"model_type": "llava"}, "configuration of a 'llava'.*expected model_type 'paligemma' with a vision_config"),
        ({}, "unknown type"),
        (
            {"vision_config": {}, "text_config": {"model_type": "llama"}},
            "text_config: model_type is 'llama', expected 'gemma' or 'gemma2'",
        ),
    ],
)
def test_configurations_of_other_models_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        PaliGemmaConfig.from_dict(values)


def test_configuration_of_transformers_with_all_its_keys_is_read():
    """Their file repeats token ids in text_config and keeps rope_theta in a dict of its own."""
    theirs = make_theirs(GEMMA_SHAPES["deep, another base of RoPE"])
    values = json.loads(theirs.config.to_json_string())
    values["text_config"] |= {"pad_token_id": 0, "some_key_of_tomorrow": [1]}
    values["vision_config"] |= {"num_image_tokens": 256}
    config = PaliGemmaConfig.from_dict(values)
    assert config.text_config.rope_theta == 50
    assert config.vision_config.num_image_tokens == 9
    assert config.image_token_index == IMAGE_TOKEN_ID


def test_defaults_build_the_published_model():
    config = PaliGemmaConfig(vision_config=SiglipVisionConfig(hidden_size=1152, num_attention_heads=16))
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(config)
    assert model.language_model.model.embed_tokens.weight.shape == (257216, 2048)
    assert model.multi_modal_projector.linear.weight.shape == (2048, 1152)
