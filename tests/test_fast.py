"""Fast decoding: the compiled step against transformers and against the plain path, in every dtype; 8-bit weights."""

import ctypes
import shutil
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    ALL_SHAPES,
    PROMPTS,
    assert_close,
    decode_all,
    logits_of_transformers,
    make_inputs,
    make_pair,
    shape,
)

from paligemma import KVCache
from paligemma.generation import align_right, generate_tokens
from paligemma.speed import fast
from paligemma.speed.fast import prepare_for_decode, quantize_rows

needs_compiler = pytest.mark.skipif(fast.find_compiler() is None, reason="no C++ compiler here")


@needs_compiler
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("name", ALL_SHAPES)
def test_logits_are_those_of_transformers(name, padding_side):
    """Every shape of the model tests, rows of unequal length, cached: transformers' one pass without a cache."""
    ours, theirs = make_pair(ALL_SHAPES[name])
    inputs = make_inputs(ALL_SHAPES[name], padding_side)
    suffix = torch.randint(4, 300, (len(PROMPTS), 7), generator=torch.Generator().manual_seed(1))
    logits, kv_cache = decode_all(prepare_for_decode(ours), inputs, suffix)
    assert kv_cache.num_items() == inputs["input_ids"].shape[1] + 7

    expected = logits_of_transformers(theirs, inputs, suffix)
    assert_close(logits, expected)
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))


@needs_compiler
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 8, 9, 13])
def test_any_number_of_rows(rows):
    """Eight rows or four share a pass over the weights, the rest go one by one: every split, and the cache too."""
    settings = shape(D=48, ffn=70, d=16)  # 70 and the vocabulary are no multiples of the kernel's blocks
    ours, _ = make_pair(settings)
    inputs = make_inputs(settings, prompts=(PROMPTS * 5)[:rows])
    suffix = torch.randint(4, 300, (rows, 3), generator=torch.Generator().manual_seed(1))
    logits, kv_cache = decode_all(prepare_for_decode(ours), inputs, suffix)
    expected, expected_cache = decode_all(ours, inputs, suffix)
    assert_close(logits, expected)
    real = torch.cat([align_right(inputs)["attention_mask"], torch.ones_like(suffix)], dim=1).bool()
    for ours_kept, plain_kept in ((kv_cache.keys, expected_cache.keys), (kv_cache.values, expected_cache.values)):
        assert_close(ours_kept.transpose(2, 3)[:, real], plain_kept.transpose(2, 3)[:, real])


@needs_compiler
@pytest.mark.parametrize("text_model", ["gemma", "gemma2"])
def test_bfloat16_is_nearer_to_float32_than_the_plain_path(text_model):
    settings = shape(text_model, D=64, ffn=96, d=16, layers=4)
    exact, _ = make_pair(settings)
    exact.bfloat16().float()  # weights that bfloat16 can hold
    rounded, _ = make_pair(settings)
    rounded.bfloat16()
    inputs = make_inputs(settings)
    suffix = torch.randint(4, 300, (len(PROMPTS), 7), generator=torch.Generator().manual_seed(1))
    expected, _ = decode_all(exact, inputs, suffix)
    plain, _ = decode_all(rounded, inputs, suffix, torch.bfloat16)
    ours, _ = decode_all(prepare_for_decode(rounded), inputs, suffix, torch.bfloat16)
    plain_error, error = (plain - expected).abs().mean(), (ours - expected).abs().mean()
    assert 0 < error < plain_error


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(1, 3),
    L=st.integers(1, 300),
    K=st.integers(1, 600),
    rows=st.integers(1, 200),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    with_work=st.booleans(),
    with_bias=st.booleans(),
)
def test_tiled_products_are_rounded_once(B, L, K, rows, dtype, with_work, with_bias):
    """Sizes that are no multiples of tiles, panels and depth, and more tokens than go through at once."""
    x, weight = torch.randn(B, L, K).to(dtype), torch.randn(rows, K).to(dtype)
    bias = torch.randn(rows).to(dtype) if with_bias else None
    expected = (x.double() @ weight.double().T + (0 if bias is None else bias.double())).float()
    work = torch.full((100,), torch.nan) if with_work else None
    actual = fast.tiled_linear(x, weight, bias, work)
    assert actual.dtype == dtype and actual.shape == (B, L, rows)
    torch.testing.assert_close(actual.float(), expected, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)


@needs_compiler
def test_tiled_products_read_no_further_than_their_inputs():
    """Neighbours in memory are NaN: views into the middle of a larger tensor, rows and tokens that fill no tile."""
    for dtype in (torch.float32, torch.bfloat16):
        around = torch.full((3, 40 * 70), torch.nan, dtype=dtype)
        x, weight, bias = (row[64 : 64 + size].normal_() for row, size in zip(around, (5 * 7, 9 * 7, 9), strict=True))
        x, weight = x.view(5, 7), weight.view(9, 7)
        actual = fast.tiled_linear(x, weight, bias)
        expected = (x.double() @ weight.double().T + bias.double()).float()
        torch.testing.assert_close(actual.float(), expected, rtol=2**-8, atol=1e-4)
        torch.testing.assert_close(fast.tiled_linear(x, weight.T.contiguous().T), fast.tiled_linear(x, weight))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0,), (3,), (5, 7), (3, 160)])
def test_fast_gelu_is_rounded_once(shape, dtype):
    x = (torch.randn(shape) * 4).to(dtype)
    x.view(-1)[:1] = -200.0  # far out: 0, and no overflow on the way
    wide = x.double()
    expected = (0.5 * wide * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)))).float()
    actual = fast.fast_gelu(x.T if x.ndim == 2 else x)
    rtol = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(actual.float(), expected.T if x.ndim == 2 else expected, rtol=rtol, atol=1e-6)


@needs_compiler
def test_what_tiles_cannot_do_is_left_to_torch():
    """Few vectors, other types, and mistakes, which get torch's own message."""
    linear = torch.nn.functional.linear
    wide, narrow, weight = torch.randn(9, 5), torch.randn(7, 5), torch.randn(3, 5)
    with fast.FastOperations():
        for x, w in ((narrow, weight), (wide.double(), weight.double()), (wide[:, :0], weight[:, :0])):
            assert torch.equal(linear(x, w), x @ w.T)
        assert torch.equal(linear(wide, weight[0]), wide @ weight[0])
        assert_close(linear(input=wide, weight=weight), wide @ weight.T)
        assert_close(linear(wide, weight, bias=weight[:, 0]), wide @ weight.T + weight[:, 0])
        assert_close(torch.nn.functional.gelu(wide), wide * (1 + torch.erf(wide / 2**0.5)) / 2, 1e-6)  # not tanh
        with pytest.raises(RuntimeError):
            linear(wide, weight.bfloat16())
        with pytest.raises(RuntimeError):
            linear(wide, torch.randn(3, 6))


@needs_compiler
@pytest.mark.parametrize("text_model", ["gemma", "gemma2"])
def test_a_tiled_prompt_is_as_near_to_float32_as_the_plain_one(monkeypatch, text_model):
    settings = shape(text_model, D=64, ffn=600, d=16, layers=4)
    exact, _ = make_pair(settings)
    exact.bfloat16().float()
    rounded, _ = make_pair(settings)
    model = prepare_for_decode(rounded.bfloat16())
    inputs = make_inputs(settings)
    real, calls, tiled_linear = inputs["attention_mask"].bool(), [], fast.tiled_linear
    monkeypatch.setattr(fast, "tiled_linear", lambda *args, **kw: calls.append(args) or tiled_linear(*args, **kw))
    with torch.no_grad():
        expected, plain = exact(**inputs).logits[real], rounded(**inputs).logits[real].float()
        model.tile_prompt = False
        assert torch.equal(model(**inputs).logits[real].float(), plain) and not calls
        model.tile_prompt = True
        tiled = model(**inputs).logits[real].float()
    assert len(calls) == 2 * 6 + 1 + 4 * 7 + 1  # the encoder's layers, the projector, the decoder's layers, the head
    assert 0 < (tiled - expected).abs().mean() < 1.1 * (plain - expected).abs().mean()


@needs_compiler
@pytest.mark.parametrize("text_model", ["gemma", "gemma2"])
def test_a_tiled_prompt_in_float32_gives_the_logits_of_transformers(text_model):
    settings = shape(text_model, D=64, ffn=600, d=16, layers=4)
    ours, theirs = make_pair(settings)
    model = prepare_for_decode(ours)
    model.tile_prompt = True
    inputs = make_inputs(settings)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        positions = inputs["attention_mask"].cumsum(dim=1).clamp(min=1)
        expected = theirs(**inputs, position_ids=positions).logits[real]
    assert_close(model(**inputs).logits[real], expected)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads):
    before = torch.get_num_threads()
    ours, _ = make_pair(shape())
    inputs, suffix = make_inputs(shape()), torch.full((len(PROMPTS), 2), 5)
    expected, _ = decode_all(ours, inputs, suffix)
    try:
        torch.set_num_threads(threads)
        logits, _ = decode_all(prepare_for_decode(ours), inputs, suffix)
    finally:
        torch.set_num_threads(before)
    assert_close(logits, expected)


@needs_compiler
@pytest.mark.parametrize("text_model", ["gemma", "gemma2"])
def test_generation_takes_it_in_place_of_the_model(text_model):
    ours, theirs = make_pair(shape(text_model))
    inputs = make_inputs(shape(text_model))
    tokens = torch.stack(list(generate_tokens(prepare_for_decode(ours), inputs, 12)), dim=1)
    expected = theirs.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert tokens.tolist() == expected[:, inputs["input_ids"].shape[1] :].tolist()


@needs_compiler
def test_eight_bits_are_the_plain_path_with_rounded_weights():
    """The kernel against the plain model whose matrices hold numbers * scale: only the rounding itself may differ."""
    ours, _ = make_pair(shape("gemma2", D=64, ffn=96, d=16))
    eight = prepare_for_decode(ours, weights="int8")
    inputs, suffix = make_inputs(shape("gemma2")), torch.full((len(PROMPTS), 4), 7)
    # From an empty cache, so that the prompt's pass with unrounded weights plays no part.
    logits, _ = decode_from_nothing(eight, suffix)
    own, _ = decode_from_nothing(prepare_for_decode(ours), suffix)
    embedding = ours.language_model.model.embed_tokens.weight.detach().clone()
    for layer in ours.language_model.model.layers:
        for linear in (*layer.self_attn.children(), *layer.mlp.children()):
            numbers, scale = quantize_rows(linear.weight)
            linear.weight.data = numbers.float() * scale[:, None]
    numbers, scale = quantize_rows(embedding)
    head = numbers.float() * scale[:, None]
    ours.language_model.lm_head = lambda states: 30 * torch.tanh(torch.nn.functional.linear(states, head) / 30)
    expected, _ = decode_from_nothing(ours, suffix)
    assert_close(logits, expected)
    assert 1e-4 < (logits - own).abs().max() < 0.2
    assert eight.weight_bytes() * 4 == prepare_for_decode(ours).weight_bytes()
    assert inputs["input_ids"].shape[0] == suffix.shape[0]


def decode_from_nothing(model, suffix):
    B, n = suffix.shape
    kv_cache = KVCache(model.config.text_config, B, n)
    logits = []
    with torch.no_grad():
        for i in range(n):
            ones = torch.ones(B, i + 1, dtype=torch.int64)
            logits.append(model(suffix[:, i : i + 1], None, ones, ones, kv_cache=kv_cache).logits)
    return torch.cat(logits, dim=1), kv_cache


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 40), size=st.floats(1e-6, 1e4), at_once=st.integers(1, 5))
def test_quantising_is_off_by_half_a_step_at_most(rows, columns, size, at_once):
    weight = torch.randn(rows, columns) * size
    weight[0, :] = 0
    numbers, scale = quantize_rows(weight, at_once)
    assert numbers.dtype == torch.int8 and scale.shape == (rows,)
    error = (numbers.float() * scale[:, None] - weight).abs()
    assert (error <= scale[:, None] * 0.501).all()
    assert (numbers.abs().amax(dim=1)[scale > 0] == 127).all() and scale[0] == 0


@needs_compiler
def test_bad_input_is_refused():
    ours, _ = make_pair(shape())
    with pytest.raises(ValueError, match="weights is 'int4'"):
        prepare_for_decode(ours, weights="int4")
    model = prepare_for_decode(ours)
    kv_cache = KVCache(ours.config.text_config, 2, 1)
    with pytest.raises(ValueError, match="2 rows, this batch has 1"):
        model(torch.tensor([[5]]), kv_cache=kv_cache)
    with pytest.raises(ValueError, match="token ids must lie from 0"):
        model(torch.tensor([[5], [10**6]]), kv_cache=kv_cache)
    with pytest.raises(ValueError, match=r"attention_mask has shape \[2, 3\], expected \[2, 1\]"):
        model(torch.tensor([[5], [6]]), attention_mask=torch.ones(2, 3), kv_cache=kv_cache)
    model(torch.tensor([[5], [6]]), kv_cache=kv_cache)
    with pytest.raises(ValueError, match="the cache is full"):
        model(torch.tensor([[5], [6]]), kv_cache=kv_cache)
    with pytest.raises(ValueError, match="torch.float16 on cpu"):
        prepare_for_decode(ours.half())


@pytest.mark.parametrize("failure", ["no compiler", "a compiler that fails"])
def test_without_a_compiler_the_plain_path_is_taken(monkeypatch, failure):
    ours, _ = make_pair(shape())
    monkeypatch.setattr(fast, "load_library", fast.load_library.__wrapped__)
    monkeypatch.setattr(fast, "find_compiler", lambda: None if failure == "no compiler" else shutil.which("false"))
    if failure != "no compiler" and shutil.which("false") is None:
        pytest.skip("no program that always fails here")
    with pytest.warns(UserWarning, match="decoding takes the plain path"):
        assert prepare_for_decode(ours) is ours


@needs_compiler
def test_loading_leaves_denormal_numbers_alone():
    """-ffast-math at link time would make every tiny number of the process zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(fast.load_library(), ctypes.CDLL)
    assert float(torch.tensor(1e-40) * 2) > 0
