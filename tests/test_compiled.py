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
from paligemma.speed.compiled import capture, capture_for_decode, compile_for_decode, step_mask
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


# ------------------------------------------- CUDA graphs, on the CPU: everything but the graph itself is the same there


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("name", ALL_SHAPES)
def test_a_captured_step_gives_the_logits_of_transformers(name, padding_side):
    ours, theirs = make_pair(ALL_SHAPES[name])
    inputs = make_inputs(ALL_SHAPES[name], padding_side)
    suffix = torch.randint(4, 300, (len(PROMPTS), 7), generator=torch.Generator().manual_seed(1))
    logits, kv_cache = decode_all(capture_for_decode(ours), inputs, suffix)
    assert kv_cache.num_items() == inputs["input_ids"].shape[1] + 7
    assert_close(logits, logits_of_transformers(theirs, inputs, suffix))


def test_answers_that_take_turns_do_not_disturb_each_other():
    """They share the graph's memory: each gets what it would have got alone, also in inference mode and out of it."""
    ours, _ = make_pair(shape())
    captured = capture_for_decode(ours)
    inputs = [make_inputs(shape(), prompts=[prompt]) for prompt in PROMPTS]
    length = max(batch["input_ids"].shape[1] for batch in inputs)
    caches = [KVCache(ours.config.text_config, 1, length + 4) for _ in inputs]
    with torch.inference_mode():
        logits = [captured(**batch, kv_cache=cache).logits for batch, cache in zip(inputs, caches, strict=True)]
    expected = [list(generate_tokens(ours, batch, 4)) for batch in inputs]
    for step in range(4):
        with torch.no_grad() if step % 2 else torch.inference_mode():
            for row, cache in enumerate(caches):
                token = logits[row][:, -1].argmax(-1)
                assert token.tolist() == expected[row][step].tolist()
                types = torch.cat([inputs[row]["token_type_ids"], torch.ones(1, step + 1, dtype=torch.int64)], dim=1)
                logits[row] = captured(token[:, None], None, torch.ones_like(types), types, kv_cache=cache).logits
    assert list(captured.captured) == [(1, length + 4)]


def test_captured_steps_by_size():
    """Another batch size or cache size: another graph; the same again: the same graph. Logits stay as they were."""
    ours, _ = make_pair(shape())
    captured, kept = capture_for_decode(ours), []
    for rows, room in ((1, 3), (2, 3), (1, 5), (1, 3)):
        inputs = make_inputs(shape(), prompts=PROMPTS[:rows])
        tokens = list(generate_tokens(captured, inputs, room))
        assert torch.equal(torch.stack(tokens), torch.stack(list(generate_tokens(ours, inputs, room))))
        cache = KVCache(ours.config.text_config, 1, 4)
        kept.append([captured(torch.tensor([[token]]), kv_cache=cache).logits for token in (5, 6)])
    assert len(captured.captured) == 4
    assert not torch.equal(kept[0][0], kept[0][1]) and torch.equal(kept[0][0], kept[3][0])


@pytest.mark.parametrize("change", ["in place", "new memory"])
def test_captured_steps_read_the_weights_that_there_are(change):
    ours, _ = make_pair(shape())
    captured, inputs, suffix = capture_for_decode(ours), make_inputs(shape()), torch.full((len(PROMPTS), 3), 5)
    before, _ = decode_all(captured, inputs, suffix)
    graphs = dict(captured.captured)
    weight = ours.language_model.model.layers[1].mlp.down_proj.weight
    if change == "in place":
        torch.nn.init.ones_(weight)
    else:
        weight.data = torch.ones_like(weight)
    after, _ = decode_all(captured, inputs, suffix)
    assert_close(after, decode_all(ours, inputs, suffix)[0])
    assert (after - before).abs().max() > 1e-3
    assert (list(captured.captured.values()) == list(graphs.values())) == (change == "in place")


def test_capturing_follows_the_manual(monkeypatch):
    """Three runs on a stream of its own, both streams waiting for each other, then the graph: in this order."""
    calls = []

    class Stream:
        def __init__(self, name="side"):
            self.name = name

        def wait_stream(self, other):
            calls.append(f"{self.name} waits for {other.name}")

    class Block:
        def __init__(self, what):
            self.what = what

        def __enter__(self):
            calls.append(f"enter {self.what}")

        def __exit__(self, *_):
            calls.append(f"leave {self.what}")

    class Graph:
        def replay(self):
            calls.append("replay")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("current"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: Block(stream.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: Block("graph"))
    replay, output = capture(lambda: calls.append("run") or "output", torch.device("cuda"))
    replay()
    warm_up = ["side waits for current", "enter side", "run", "run", "run", "leave side", "current waits for side"]
    assert calls == [*warm_up, "enter graph", "run", "leave graph", "replay"] and output == "output"
