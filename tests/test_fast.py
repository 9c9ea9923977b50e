"""Fast decoding: the compiled step against transformers and against the plain path, in every dtype; 8-bit weights."""

import ctypes
import inspect
import os
import shutil
import subprocess
import sys
import time
import types
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path

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

from paligemma import KVCache, modeling_gemma, modeling_gemma2, record_attention
from paligemma.attention_maps import ablate_head
from paligemma.generation import align_right, generate_tokens
from paligemma.modeling_gemma import GemmaMLP, GemmaRMSNorm, PaliGemmaForConditionalGeneration, rotate_half
from paligemma.speed import fast
from paligemma.speed.compiled import compile_for_decode
from paligemma.speed.fast import FastPaliGemma, prepare_for_decode, quantize_rows
from paligemma.speed.step import FUNCTIONS, METHODS
from paligemma.swap import swap

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
    B=st.integers(0, 3),
    L=st.integers(1, 300),
    K=st.integers(1, 600),
    rows=st.integers(1, 200),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    with_workspace=st.booleans(),
    with_bias=st.booleans(),
)
def test_tiled_products_are_rounded_once(B, L, K, rows, dtype, with_workspace, with_bias):
    """Sizes that are no multiples of tiles, panels and depth, and more tokens than go through at once."""
    x, weight = torch.randn(B, L, K).to(dtype), torch.randn(rows, K).to(dtype)
    bias = torch.randn(rows).to(dtype) if with_bias else None
    expected = (x.double() @ weight.double().T + (0 if bias is None else bias.double())).float()
    workspace = torch.full((100,), torch.nan) if with_workspace else None
    actual = fast.tiled_linear(x, weight, bias, workspace)
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
def test_what_tiles_cannot_do_is_left_to_torch(monkeypatch):
    """Few vectors, other types, and mistakes, which get torch's own message."""
    linear = torch.nn.functional.linear
    wide, narrow, weight = torch.randn(9, 5), torch.randn(7, 5), torch.randn(3, 5)
    always_tile(monkeypatch)
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


def always_tile(monkeypatch, seconds=1.0):
    """As if gemm.cpp saved so many seconds whatever it did."""
    monkeypatch.setattr(fast, "linear_saves", lambda *_: seconds)
    monkeypatch.setattr(fast, "gelu_saves", lambda *_: seconds)


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
        always_tile(monkeypatch, seconds=-1.0)
        for _ in range(2):
            assert torch.equal(model(**inputs).logits[real].float(), plain)
            assert not calls and repr(model).endswith(" tokens: torch)")
        model.tiled.clear()
        always_tile(monkeypatch)
        tiled = model(**inputs).logits[real].float()
    assert " tokens: gemm.cpp for 32 x 32, " in repr(model) and "torch for" not in repr(model)
    assert len(calls) == 2 * 6 + 1 + 4 * 7 + 1  # the encoder's layers, the projector, the decoder's layers, the head
    assert 0 < (tiled - expected).abs().mean() < 1.1 * (plain - expected).abs().mean()


@needs_compiler
@pytest.mark.parametrize("text_model", ["gemma", "gemma2"])
def test_a_tiled_prompt_in_float32_gives_the_logits_of_transformers(monkeypatch, text_model):
    settings = shape(text_model, D=64, ffn=600, d=16, layers=4)
    ours, theirs = make_pair(settings)
    model = prepare_for_decode(ours)
    always_tile(monkeypatch)
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
    suffix = torch.full((len(PROMPTS), 4), 7)
    # From an empty cache, so that the prompt's pass with unrounded weights plays no part.
    logits, _ = decode_from_nothing(eight, suffix)
    as_they_are = prepare_for_decode(ours)
    own, _ = decode_from_nothing(as_they_are, suffix)
    assert eight.weight_bytes() * 4 == as_they_are.weight_bytes()
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


@needs_compiler
def test_what_could_end_the_process_is_checked_first():
    """Types, layouts, caches of other models, rows that see nothing: see fast_boundary.py."""
    script = Path(__file__).with_name("fast_boundary.py")
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(script)], capture_output=True, text=True, encoding="utf-8"
    )
    assert result.returncode == 0 and result.stdout.endswith("all held\n"), result.stderr[-3000:]


@needs_compiler
def test_products_that_tiles_must_not_be_given_are_refused(monkeypatch):
    """Not read as something else: a bias of another type was, silently."""
    x, weight = torch.randn(9, 5), torch.randn(3, 5)
    for bad in (
        (x.half(), weight.half()),
        (x.bfloat16(), weight),
        (x, weight, torch.randn(3).bfloat16()),
        (x, weight, torch.randn(2)),
        (x, torch.randn(3, 6)),
        (x, weight[0]),
        (x[:, :0], weight[:, :0]),
        (x.to("meta"), weight),
        (x, torch.nn.Parameter(weight)),
    ):
        with pytest.raises(ValueError, match="expected x|expected all|gradients"):
            fast.tiled_linear(*bad)
    for bad in (x.double(), x.to("meta"), x.requires_grad_()):
        with pytest.raises(ValueError, match="expected all|gradients"):
            fast.fast_gelu(bad)
    always_tile(monkeypatch)
    with fast.FastOperations():  # left to torch
        with pytest.raises(RuntimeError):
            torch.nn.functional.linear(x.detach().bfloat16(), weight.bfloat16(), torch.randn(3))
        parameter = torch.nn.Parameter(weight)
        torch.nn.functional.linear(x.detach(), parameter).sum().backward()
        assert_close(parameter.grad, x.detach().sum(dim=0).expand(3, 5))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.nn.functional.linear(x.detach(), weight).dtype == torch.bfloat16


# ------------------------------------------------------------------------------------- what is not the package's own


class ScaledNorm(GemmaRMSNorm):
    """As a learner's mistake might be."""

    def forward(self, x):
        return super().forward(x) * 0.2


def test_every_function_and_method_that_a_step_writes_out_is_found():
    """A renamed one would no longer be watched."""
    homes = (modeling_gemma, modeling_gemma2)
    for name in FUNCTIONS:
        assert any(callable(vars(home).get(name)) for home in homes), name
    classes = [kind for home in homes for kind in vars(home).values() if isinstance(kind, type)]
    for name in METHODS:
        assert any(name in vars(kind) for kind in classes), name


@contextmanager
def replaced_by(model, what):
    """One change of the model that is not in its weights, while the block runs."""
    layer = model.language_model.model.layers[1]
    linear = layer.self_attn.q_proj
    if what == "swapped class":
        with swap(model, GemmaRMSNorm=ScaledNorm):
            yield
    elif what == "swapped function":
        with swap(model, rotate_half=lambda x: -rotate_half(x)):
            yield
    elif what == "a patched class":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GemmaMLP, "forward", lambda self, x: x)
            yield
    elif what == "a patched object":
        layer.mlp.forward = lambda x: x
        yield
        del layer.mlp.forward
    elif what == "an adapter":  # a linear layer that is not torch's own class, as PEFT puts it in
        layer.self_attn.q_proj = type("LoraLinear", (torch.nn.Linear,), {})(linear.in_features, linear.out_features)
        yield
        layer.self_attn.q_proj = linear
    elif what == "a bias":
        layer.self_attn.q_proj = torch.nn.Linear(linear.in_features, linear.out_features)
        yield
        layer.self_attn.q_proj = linear
    elif what == "a layer less":
        layers = model.language_model.model.layers
        model.language_model.model.layers = layers[:1]
        yield
        model.language_model.model.layers = layers
    elif what == "a layer without its MLP":
        mlp, layer.mlp = layer.mlp, torch.nn.Identity()
        yield
        layer.mlp = mlp


CHANGES = ["swapped class", "swapped function", "a patched class", "a patched object", "an adapter", "a bias"]
CHANGES += ["a layer less", "a layer without its MLP"]


@needs_compiler
@pytest.mark.parametrize("prepare", [prepare_for_decode, partial(compile_for_decode, backend="eager")])
@pytest.mark.parametrize("what", CHANGES)
def test_parts_of_somebody_else_take_the_plain_path(what, prepare):
    """Whether they came before the model was prepared or after: the answer is the changed model's, with a warning."""
    model, _ = make_pair(shape())
    inputs, suffix = make_inputs(shape()), torch.full((len(PROMPTS), 3), 5)
    before, own = prepare(model), decode_all(model, inputs, suffix)[0]
    assert before is not model
    with replaced_by(model, what):
        expected, _ = decode_all(model, inputs, suffix)
        assert (expected - own).abs().max() > 1e-3
        with pytest.warns(UserWarning, match="decoding takes the plain path"):
            assert prepare(model) is model
        with pytest.warns(UserWarning, match="decoding takes the plain path"):
            assert_close(decode_all(before, inputs, suffix)[0], expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(decode_all(before, inputs, suffix)[0], own)


@needs_compiler
@pytest.mark.parametrize("change", ["in place", "assigned", "new memory"])
def test_changed_weights_are_noticed(change):
    model, _ = make_pair(shape())
    inputs, suffix = make_inputs(shape()), torch.full((len(PROMPTS), 3), 5)
    prepared = prepare_for_decode(model, weights="int8")
    decode_all(prepared, inputs, suffix)
    norm = model.language_model.model.norm
    if change == "in place":
        torch.nn.init.ones_(norm.weight)
    elif change == "assigned":
        norm.weight = torch.nn.Parameter(torch.ones_like(norm.weight))
    else:
        norm.weight.data = torch.ones_like(norm.weight)
    expected, _ = decode_all(model, inputs, suffix)
    with pytest.warns(UserWarning, match="weights have changed since prepare_for_decode"):
        assert_close(decode_all(prepared, inputs, suffix)[0], expected)
    assert (decode_all(prepare_for_decode(model), inputs, suffix)[0] - expected).abs().max() < 1e-5


@needs_compiler
def test_other_wrappers_are_left_as_they_are():
    model, _ = make_pair(shape())
    with pytest.warns(UserWarning, match="the model is a DataParallel"):
        wrapper = torch.nn.DataParallel(model)
        assert prepare_for_decode(wrapper) is wrapper
    with pytest.raises(TypeError, match="the model is a FastPaliGemma, expected PaliGemmaForCond"):
        prepare_for_decode(prepare_for_decode(model))


@needs_compiler
@pytest.mark.parametrize("prepare", [prepare_for_decode, partial(compile_for_decode, backend="eager")])
def test_hooks_see_every_token(prepare):
    """record_attention and ablate_head on the fast model are what they are on the model itself."""
    model, _ = make_pair(shape())
    inputs, suffix = make_inputs(shape()), torch.full((len(PROMPTS), 3), 5)
    fast_model = prepare(model)
    with record_attention(model) as expected:
        decode_all(model, inputs, suffix)
    with record_attention(fast_model) as maps:
        decode_all(fast_model, inputs, suffix)
    assert maps.keys() == expected.keys()
    for name, recorded in maps.items():
        assert len(recorded) == (4 if name.startswith("language_model") else 1)
        for ours, plain in zip(recorded, expected[name], strict=True):
            assert_close(ours, plain)
    with ablate_head(fast_model, 1, 2):
        ablated, _ = decode_all(fast_model, inputs, suffix)
        assert_close(ablated, decode_all(model, inputs, suffix)[0])
    assert (ablated - decode_all(fast_model, inputs, suffix)[0]).abs().max() > 1e-3


@needs_compiler
def test_arguments_are_taken_by_position_and_losses_have_gradients():
    model, _ = make_pair(shape())
    names = list(inspect.signature(PaliGemmaForConditionalGeneration.forward).parameters)
    assert list(inspect.signature(FastPaliGemma.__call__).parameters) == names
    inputs = make_inputs(shape(), suffixes=["a cat", "a dog", "red"])
    order = ("input_ids", "pixel_values", "attention_mask", "token_type_ids", "labels")
    losses = [each(*(inputs[name] for name in order)).loss for each in (model, prepare_for_decode(model))]
    assert_close(losses[1], losses[0])
    losses[1].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.fixture
def unmeasured():
    """Nothing was measured yet, and nothing that this test makes slow stays measured."""
    for function in (fast._linear_saves, fast._gelu_saves, fast.detour):
        function.cache_clear()
    yield
    for function in (fast._linear_saves, fast._gelu_saves, fast.detour):
        function.cache_clear()


@needs_compiler
def test_each_size_of_matrix_is_measured_once(monkeypatch, unmeasured):
    """And again for another type, and a prompt of another length."""
    taken, tiled_linear = [], fast.tiled_linear
    monkeypatch.setattr(fast, "tiled_linear", lambda *a, **kw: taken.append(a[0].shape) or tiled_linear(*a, **kw))
    saved = fast.linear_saves(70, 32, 48, torch.float32)
    assert taken == [(64, 48)] * 4
    assert fast.linear_saves(60, 32, 48, torch.float32) == saved and len(taken) == 4
    for other in ((200, 32, 48, torch.float32), (70, 48, 32, torch.float32), (70, 32, 48, torch.bfloat16)):
        before = len(taken)
        fast.linear_saves(*other)
        assert len(taken) == before + 4


@needs_compiler
@pytest.mark.parametrize("slow", ["torch", "gemm.cpp"])
def test_the_faster_way_is_taken(monkeypatch, unmeasured, slow):
    """Product by product, and in the whole: a detour that costs more than it gains is not taken a second time."""
    model, _ = make_pair(shape())
    prepared, inputs = prepare_for_decode(model), make_inputs(shape())
    functional = torch.nn.functional
    names = (
        [(functional, "linear"), (functional, "gelu")]
        if slow == "torch"
        else [(fast, "tiled_linear"), (fast, "fast_gelu")]
    )
    with pytest.MonkeyPatch.context() as patch:
        for home, name in names:
            function = getattr(home, name)
            patch.setattr(home, name, lambda *a, function=function, **kw: time.sleep(0.02) or function(*a, **kw))
        assert (fast.linear_saves(64, 32, 48, torch.float32) > 0.01) == (slow == "torch")
        assert (fast.linear_saves(64, 32, 48, torch.float32) < -0.01) == (slow == "gemm.cpp")
        assert (fast.gelu_saves(1000, torch.float32) > 0.01) == (slow == "torch")
    with monkeypatch.context() as patch:
        patch.setattr(fast, "linear_saves", lambda *_: 1.0 if slow == "torch" else -1.0)
        patch.setattr(fast, "gelu_saves", lambda *_: 1.0 if slow == "torch" else -1.0)
        entered = []
        enter = fast.FastOperations.__enter__
        patch.setattr(fast.FastOperations, "__enter__", lambda self: entered.append(self) or enter(self))
        fast.detour()
        entered.clear()
        for _ in range(3):
            prepared(**inputs)
        assert len(entered) == (3 if slow == "torch" else 1)
        assert entered[0].calls > 50 and entered[0].saved == (
            0 if slow == "gemm.cpp" else pytest.approx(2 * 6 + 1 + 2 * 7 + 1 + 4)
        )


@needs_compiler
def test_a_detour_takes_less_than_a_millisecond_and_more_than_nothing(unmeasured):
    assert 0 < fast.detour() < 1e-3


@needs_compiler
def test_one_picture_for_several_prompts_is_read_by_tiles_too(monkeypatch):
    always_tile(monkeypatch)
    model, _ = make_pair(shape())
    prepared, inputs = prepare_for_decode(model), make_inputs(shape())
    inputs["pixel_values"] = inputs["pixel_values"][:1].expand_as(inputs["pixel_values"]).clone()
    expected = [tokens.tolist() for tokens in generate_tokens(model, inputs, 5)]
    assert [tokens.tolist() for tokens in generate_tokens(prepared, inputs, 5)] == expected
    assert "pictures of about 16 tokens: gemm.cpp for 32 x 32" in repr(prepared)
    assert_close(prepared.get_image_features(inputs["pixel_values"]), model.get_image_features(inputs["pixel_values"]))


@needs_compiler
def test_a_loss_says_nothing_about_prompts(monkeypatch):
    """With gradients nothing is tiled, which must not be remembered for prompts of the same length."""
    always_tile(monkeypatch)
    model, _ = make_pair(shape())
    prepared, inputs = prepare_for_decode(model), make_inputs(shape(), suffixes=["a cat", "a dog", "red"])
    prepared(**inputs).loss.backward()
    inputs.pop("labels")
    prepared(**inputs)
    assert "gemm.cpp for 32 x 32" in repr(prepared)


@needs_compiler
def test_it_says_what_it_does():
    model, _ = make_pair(shape())
    assert repr(prepare_for_decode(model)).startswith("FastPaliGemma(one token: gemv.cpp, float32 weights; prompts:")
    assert "8-bit weights" in repr(prepare_for_decode(model, weights="int8"))


# ---------------------------------------------------------------------------------------------- where compiling fails


@pytest.mark.parametrize("failure", ["no compiler", "a compiler that fails", "a compiler that cannot be started"])
def test_without_a_compiler_the_plain_path_is_taken(monkeypatch, tmp_path, failure):
    ours, _ = make_pair(shape())
    compiler = {
        "no compiler": None,
        "a compiler that fails": shutil.which("false"),
        "a compiler that cannot be started": str(tmp_path / "g++"),
    }[failure]
    if failure == "a compiler that fails" and compiler is None:
        pytest.skip("no program that always fails here")
    monkeypatch.setattr(fast, "try_to_load", fast.try_to_load.__wrapped__)
    monkeypatch.setattr(fast, "find_compiler", lambda: compiler)
    monkeypatch.setattr(fast.Path, "home", lambda: tmp_path)
    for _ in range(2):  # each time it is asked for
        with pytest.warns(UserWarning, match="decoding takes the plain path"):
            assert prepare_for_decode(ours) is ours
    for product in (
        lambda: fast.tiled_linear(torch.ones(8, 4), torch.ones(3, 4)),
        lambda: fast.fast_gelu(torch.ones(8)),
    ):
        with pytest.raises(RuntimeError, match="use F.linear and F.gelu"):
            product()


@needs_compiler
def test_a_folder_that_runs_no_programs_is_left_for_another(monkeypatch, tmp_path):
    """A file system mounted with "noexec": what was compiled can be written, and not loaded."""
    ours, _ = make_pair(shape())
    here, home, tried = tmp_path / "here", tmp_path / "no home yet", []
    here.mkdir()
    library = fast.compile_library(fast.find_compiler(), tmp_path)
    load = ctypes.CDLL

    def load_elsewhere(path):
        tried.append(path)
        if path.startswith(str(here)) or not allowed:
            raise OSError(f"{path}: failed to map segment from shared object")
        return load(path)

    monkeypatch.setattr(fast, "try_to_load", fast.try_to_load.__wrapped__)
    monkeypatch.setattr(fast.ctypes, "CDLL", load_elsewhere)
    monkeypatch.setattr(fast.tempfile, "gettempdir", lambda: str(here))
    monkeypatch.setattr(fast.Path, "home", lambda: home)
    monkeypatch.setattr(fast, "compile_library", lambda _, folder: shutil.copy(library, folder))
    allowed = False
    with pytest.warns(UserWarning, match="could not be loaded .*failed to map.*decoding takes the plain path"):
        assert prepare_for_decode(ours) is ours
    allowed = True
    assert isinstance(fast.load_library(), load)
    assert [Path(path).parent.parent for path in tried] == [here, home / ".cache"] * 2
    assert not list(here.iterdir()) and not list((home / ".cache").iterdir())


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for a compiler is a shell script")
@pytest.mark.parametrize("body", ["", "true", "exit 0"])
def test_a_compiler_that_writes_nothing_usable(monkeypatch, tmp_path, body):
    ours, _ = make_pair(shape())
    script = tmp_path / "c++"
    script.write_text(f"#!/bin/sh\nfor last; do :; done\n{body or ': > $last'}\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setattr(fast, "try_to_load", fast.try_to_load.__wrapped__)
    monkeypatch.setattr(fast.Path, "home", lambda: tmp_path)
    with pytest.warns(UserWarning, match="could not be loaded .*decoding takes the plain path"):
        assert prepare_for_decode(ours) is ours


@pytest.mark.parametrize("compiler, flag", [("g++", True), ("clang++", False)])
def test_windows_gets_a_dll_that_stands_alone(monkeypatch, tmp_path, compiler, flag):
    """What is run there; that it works was tried on Linux only."""
    commands = []
    monkeypatch.setattr(fast, "sys", types.SimpleNamespace(platform="win32"))
    monkeypatch.setattr(
        fast.subprocess, "run", lambda step, **_: commands.append(step) or types.SimpleNamespace(returncode=0)
    )
    assert fast.compile_library(compiler, tmp_path).name == "fast.dll"
    assert "-static" in commands[-1] and not any("-fPIC" in command for command in commands)
    assert all(("-Wa,-muse-unaligned-vector-move" in command) == flag for command in commands[:-1])


@needs_compiler
def test_loading_leaves_denormal_numbers_alone():
    """-ffast-math at link time would make every tiny number of the process zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(fast.load_library(), ctypes.CDLL)
    assert float(torch.tensor(1e-40) * 2) > 0
