"""The cache holds what was written, in place, and says so when it does not fit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.kv_cache import KVCache
from paligemma.modeling_gemma import GemmaConfig

CONFIG = GemmaConfig(
    vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=6,
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(chunks=st.lists(st.integers(1, 5), min_size=1, max_size=6), spare=st.integers(0, 4), batch=st.integers(1, 3))
def test_it_returns_what_concatenation_would(chunks, spare, batch):
    cache = KVCache(CONFIG, batch, sum(chunks) + spare)
    written = [[] for _ in range(3)]
    for chunk in chunks:
        for layer in range(3):
            key, value = torch.randn(2, batch, 2, chunk, 6)
            written[layer].append((key, value))
            keys, values = cache.update(key, value, layer)
            assert torch.equal(keys, torch.cat([key for key, _ in written[layer]], dim=2))
            assert torch.equal(values, torch.cat([value for _, value in written[layer]], dim=2))
        cache.advance(chunk)
    assert cache.num_items() == sum(chunks)


def test_it_is_allocated_once_and_returns_views():
    cache = KVCache(CONFIG, 2, 10)
    before = cache.keys.data_ptr(), cache.values.data_ptr()
    for _ in range(10):
        keys, values = cache.update(torch.randn(2, 2, 1, 6), torch.randn(2, 2, 1, 6), 1)
        assert keys.untyped_storage().data_ptr() == before[0]
        assert values.untyped_storage().data_ptr() == before[1]
        cache.advance(1)
    assert (cache.keys.data_ptr(), cache.values.data_ptr()) == before


@pytest.mark.parametrize("dtype, width", [(torch.float32, 4), (torch.bfloat16, 2)])
def test_its_memory_is_the_formula(dtype, width):
    cache = KVCache(CONFIG, 5, 11, dtype=dtype)
    assert cache.nbytes() == 2 * 3 * 5 * 2 * 11 * 6 * width
    assert cache.keys.dtype == cache.values.dtype == dtype


def test_the_published_model_at_400_tokens_takes_seven_megabytes():
    """7.03 MiB for 3B in bfloat16 at 400 tokens: 2 x 18 layers x 1 head x 256 x 400 x 2 bytes."""
    cache = KVCache(GemmaConfig(), 1, 400, dtype=torch.bfloat16, device="meta")
    assert round(cache.nbytes() / 2**20, 2) == 7.03


def test_too_many_tokens_are_refused_and_nothing_is_written():
    cache = KVCache(CONFIG, 1, 4)
    cache.update(torch.ones(1, 2, 3, 6), torch.ones(1, 2, 3, 6), 0)
    cache.advance(3)
    before = cache.keys.clone()
    with pytest.raises(ValueError, match="holds 4 tokens; 3 are in it and 2 more do not fit.*larger max_length"):
        cache.update(torch.ones(1, 2, 2, 6), torch.ones(1, 2, 2, 6), 0)
    assert torch.equal(cache.keys, before) and cache.num_items() == 3


def test_another_batch_is_refused():
    cache = KVCache(CONFIG, 2, 4)
    with pytest.raises(ValueError, match="made for 2 rows, this batch has 3"):
        cache.update(torch.ones(3, 2, 1, 6), torch.ones(3, 2, 1, 6), 0)


@pytest.mark.parametrize("batch_size, max_length", [(0, 4), (2, 0), (2, -1), (2, 3.5)])
def test_sizes_must_be_positive_whole_numbers(batch_size, max_length):
    with pytest.raises(ValueError, match="expected a whole number of 1 or more"):
        KVCache(CONFIG, batch_size, max_length)


def test_reset_makes_room_without_allocating():
    cache = KVCache(CONFIG, 1, 2)
    pointer = cache.keys.data_ptr()
    for value in (1.0, 2.0):
        for _ in range(2):
            cache.update(torch.full((1, 2, 1, 6), value), torch.full((1, 2, 1, 6), value), 0)
            cache.advance(1)
        cache.reset()
        assert cache.num_items() == 0
    keys, _ = cache.update(torch.full((1, 2, 1, 6), 3.0), torch.full((1, 2, 1, 6), 3.0), 0)
    assert keys.shape == (1, 2, 1, 6) and (keys == 3).all()
    assert cache.keys.data_ptr() == pointer
