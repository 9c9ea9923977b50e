"""torch.compile for decoding: logits of transformers, and one graph for every step of an answer."""

import sysconfig
from pathlib import Path

import pytest
import torch
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
from torch._dynamo.testing import CompileCounter

from paligemma import KVCache
from paligemma.generation import generate_tokens
from paligemma.modeling_gemma import make_attn_mask
from paligemma.speed.compiled import compile_for_decode, step_mask
from paligemma.speed.fast import find_compiler

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own, on import
has_python_h = Path(sysconfig.get_paths()["include"], "Python.h").exists()


@pytest.fixture(autouse=True)
def forget_graphs():
    torch._dynamo.reset()  # every test compiles for itself
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("name", ALL_SHAPES)
def test_logits_are_those_of_transformers(name, padding_side):
    """The graph is traced and then run as it is (backend "eager"): what may go wrong is the fixed cache, not the code
    that a compiler makes of it. A window shorter than the prompt, rows of unequal length, every shape."""
    ours, theirs = make_pair(ALL_SHAPES[name])
    inputs = make_inputs(ALL_SHAPES[name], padding_side)
    suffix = torch.randint(4, 300, (len(PROMPTS), 7), generator=torch.Generator().manual_seed(1))
    logits, kv_cache = decode_all(compile_for_decode(ours, backend="eager"), inputs, suffix)
    assert kv_cache.num_items() == inputs["input_ids"].shape[1] + 7
    assert_close(logits, logits_of_transformers(theirs, inputs, suffix))


@pytest.mark.parametrize("text_model", ["gemma", "gemma2"])
def test_one_graph_serves_every_step(text_model):
    """12 steps compile once; a cache of another size once more, for any size; after that nothing is compiled."""
    ours, theirs = make_pair(shape(text_model))
    inputs, counter = make_inputs(shape(text_model)), CompileCounter()
    compiled = compile_for_decode(ours, backend=counter)
    expected = theirs.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
    expected = expected[:, inputs["input_ids"].shape[1] :].tolist()
    for new_tokens, graphs in ((12, 1), (12, 1), (9, 2), (7, 2)):
        tokens = torch.stack(list(generate_tokens(compiled, inputs, new_tokens)), dim=1)
        assert tokens.tolist() == [row[:new_tokens] for row in expected]
        assert counter.frame_count == graphs


@pytest.mark.skipif(find_compiler() is None or not has_python_h, reason="no C++ compiler here, or no Python.h")
@pytest.mark.parametrize("text_model", ["gemma", "gemma2"])
def test_compiled_code_gives_the_logits_of_transformers(text_model):
    """With torch's own compiler, down to machine code."""
    ours, theirs = make_pair(shape(text_model, layers=2))
    inputs = make_inputs(shape(text_model, layers=2))
    suffix = torch.randint(4, 300, (len(PROMPTS), 3), generator=torch.Generator().manual_seed(1))
    logits, _ = decode_all(compile_for_decode(ours), inputs, suffix)
    assert_close(logits, logits_of_transformers(theirs, inputs, suffix))


@pytest.mark.parametrize("window", [None, 1, 3, 20])
def test_the_mask_is_a_row_of_the_rule(window):
    """For every token of an answer, and for columns that are written later."""
    attention_mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]])
    token_type_ids = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1, 1]])
    for column in range(4, 8):
        T = column + 1
        expected = make_attn_mask(attention_mask[:, :T], token_type_ids[:, :T], 1, window)  # [B, 1, T]
        written = torch.arange(8) < T
        actual = step_mask(attention_mask * written, token_type_ids * written, torch.tensor([column]), window)
        assert torch.equal(actual[..., :T], expected) and not actual[..., T:].any()


def test_bad_input_is_refused():
    ours, _ = make_pair(shape())
    compiled, kv_cache = compile_for_decode(ours, backend="eager"), KVCache(ours.config.text_config, 2, 1)
    with pytest.raises(ValueError, match="2 rows, this batch has 1"):
        compiled(torch.tensor([[5]]), kv_cache=kv_cache)
    compiled(torch.tensor([[5], [6]]), kv_cache=kv_cache)
    with pytest.raises(ValueError, match="the cache is full"):
        compiled(torch.tensor([[5], [6]]), kv_cache=kv_cache)
