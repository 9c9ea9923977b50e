"""What may be handed to the compiled step, and what is refused before it. Run by test_fast.py in a process of its own:
without the checks, half of these cases read or write where nothing is, and end the process."""

import re

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_close, make_pair, shape

from paligemma import KVCache
from paligemma.speed.fast import prepare_for_decode

SHAPES = {"gemma": shape(), "gemma2": shape("gemma2", sliding_window=3)}
MODELS = {name: make_pair(values)[0] for name, values in SHAPES.items()}
FAST = {name: prepare_for_decode(model) for name, model in MODELS.items()}
MASK_TYPES = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.bfloat16]


def filled_cache(model, B, length, max_length):
    """A cache of `length` random tokens, the same ones every time."""
    cache = KVCache(model.config.text_config, B, max_length)
    for tensor in (cache.keys, cache.values):
        tensor[:, :, :, :length] = torch.randn(
            tensor[:, :, :, :length].shape, generator=torch.Generator().manual_seed(0)
        )
    cache.length = length
    return cache


def laid_out(tensor, layout):
    """The same numbers, in another order in memory or with gaps."""
    if layout == "transposed":
        return tensor.T.contiguous().T
    if layout == "every second":
        return tensor.repeat_interleave(2, dim=1)[:, ::2]
    if layout == "inside":
        return torch.cat([tensor, tensor, tensor], dim=1)[:, tensor.shape[1] : 2 * tensor.shape[1]]
    return tensor


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def every_type_and_layout_gives_the_logits_of_the_plain_path(data):
    """Masks of any type, padding anywhere, rows that may see nothing, values other than 1, answers of any length."""
    name = data.draw(st.sampled_from(sorted(MODELS)))
    B, T = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    layouts = st.sampled_from(["plain", "transposed", "every second", "inside"])
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 299), min_size=B, max_size=B)))[:, None]
    ids = laid_out(ids.to(data.draw(st.sampled_from([torch.int64, torch.int32]))), data.draw(layouts))
    masks = {}
    for key in ("attention_mask", "token_type_ids"):
        if data.draw(st.booleans()):
            dtype = data.draw(st.sampled_from(MASK_TYPES))
            largest = 1 if dtype == torch.bool else data.draw(st.integers(0, 2))
            values = [data.draw(st.lists(st.integers(0, largest), min_size=T, max_size=T)) for _ in range(B)]
            masks[key] = laid_out(torch.tensor(values).to(dtype), data.draw(layouts))
    room = data.draw(st.integers(0, 3))
    results = []
    for model in (MODELS[name], FAST[name]):
        cache = filled_cache(model, B, T - 1, T + room)
        with torch.no_grad():
            logits = model(ids, **masks, kv_cache=cache).logits
        results.append((logits, cache.keys, cache.values))
        assert cache.length == T and torch.isfinite(logits).all()
    for expected, actual in zip(*results, strict=True):
        assert_close(actual, expected)


def a_row_that_sees_nothing_is_finite_in_bfloat16_too():
    model, _ = make_pair(SHAPES["gemma"])
    model.bfloat16()
    logits = []
    for each in (model, prepare_for_decode(model)):
        cache = KVCache(model.config.text_config, 1, 4, dtype=torch.bfloat16)
        mask = torch.zeros(1, 1, dtype=torch.int64)
        logits.append(each(torch.tensor([[5]]), attention_mask=mask, kv_cache=cache).logits.float())
    assert torch.isfinite(logits[1]).all()
    assert_close(logits[1], logits[0], 0.05)


def what_does_not_belong_is_refused():
    """In one sentence, and before anything was written."""
    model, fast = MODELS["gemma"], FAST["gemma"]
    other = {kind: make_pair(shape(**{kind: size}))[0] for kind, size in (("layers", 1), ("H_kv", 1), ("d", 6))}
    ids, mask, types = torch.tensor([[5], [6]]), torch.ones(2, 3), torch.zeros(2, 3)

    def cache(of=model, **changes):
        made = filled_cache(of, 2, 2, 4)
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    whole = cache().keys
    cases = [
        (ids, mask, types, cache(other["layers"]), r"the cache holds torch.float32 \[1, 2, 2, 4, 8\] on cpu, expected"),
        (ids, mask, types, cache(other["H_kv"]), r"the cache holds .* \[2, 2, 1, 4, 8\] .* with this model's"),
        (ids, mask, types, cache(other["d"]), r"the cache holds .* \[2, 2, 2, 4, 6\]"),
        (ids, mask, types, cache(keys=whole.bfloat16()), "the cache holds torch.bfloat16"),
        (ids, mask, types, cache(values=whole[:1]), r"the cache holds .* \[1, 2, 2, 4, 8\]"),
        (ids, mask, types, cache(values=whole.transpose(3, 4).contiguous().transpose(3, 4)), "are views"),
        (ids, mask, types, cache(max_length=9), "the cache holds"),
        (ids, mask, types, cache(length=4), "the cache is full"),
        (ids, mask, types, cache(length=-4), "the cache is full|negative"),
        (ids[:1], mask, types, cache(), "2 rows, this batch has 1"),
        (ids.float(), mask, types, cache(), "input_ids is torch.float32 on cpu, expected int64"),
        (ids.to("meta"), mask, types, cache(), "input_ids is torch.int64 on meta, expected int64"),
        (ids + 10**6, mask, types, cache(), "token ids must lie from 0"),
        (-ids, mask, types, cache(), "token ids must lie from 0"),
        (ids, mask[:, :2], types, cache(), r"attention_mask has shape \[2, 2\], expected \[2, 3\]"),
        (ids, mask.to("meta"), types, cache(), "attention_mask is on meta, expected cpu"),
        (ids, mask / 2, types, cache(), "attention_mask holds fractions"),
        (ids, mask, types - 1, cache(), "token_type_ids holds a negative number"),
    ]
    for ids, mask, types, kv_cache, words in cases:
        before = kv_cache.length, kv_cache.keys.clone(), kv_cache.values.clone()
        try:
            fast(ids, None, mask, types, kv_cache=kv_cache)
        except ValueError as error:
            assert re.search(words, str(error)) and "\n" not in str(error), f"{error} does not say {words}"
        else:
            raise AssertionError(f"not refused: {words}")
        assert kv_cache.length == before[0]
        assert torch.equal(kv_cache.keys, before[1]) and torch.equal(kv_cache.values, before[2])


if __name__ == "__main__":
    every_type_and_layout_gives_the_logits_of_the_plain_path()
    a_row_that_sees_nothing_is_finite_in_bfloat16_too()
    what_does_not_belong_is_refused()
    print("all held")
