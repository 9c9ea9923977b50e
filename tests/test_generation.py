"""Writing: the tokens of transformers' generate(), its sampling rules, and nothing computed twice."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    GEMMA2_SHAPES,
    GEMMA_SHAPES,
    PROMPTS,
    assert_close,
    compare_greedy,
    logits_of_transformers,
    make_inputs,
    make_ours,
    make_talkative,
    make_theirs,
    pictures,
    processors_for,
    shape,
)
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from paligemma.generation import align_right, generate, generate_tokens, sample, stream, until_eos


@pytest.fixture(scope="module")
def toy():
    """(model, processor): random weights, so that what is written is noise, but always the same noise."""
    theirs = make_theirs(shape(), seed=7)
    make_talkative(theirs)
    return make_ours(theirs), processors_for(shape())[0]


# --------------------------------------------------------------------------------------------------- greedy


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("name", GEMMA_SHAPES)
def test_greedy_tokens_of_unequal_prompts(name, padding_side, attention):
    tokens = compare_greedy(GEMMA_SHAPES[name], attention, padding_side)
    assert tokens.shape == (3, 12)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_of_one_prompt(prompt):
    compare_greedy(shape(), "sdpa", "left", prompts=[prompt])


@pytest.mark.parametrize("settings", [shape(), GEMMA2_SHAPES["window shorter than the text"]], ids=["1", "2"])
def test_each_row_stops_at_its_own_eos(settings):
    """A token that one row writes and another does not is declared EOS: padding follows it, as in transformers."""
    free = compare_greedy(settings, "sdpa", "left").tolist()
    eos = next(token for token in free[1][3:] if not all(token in row for row in free))
    tokens = compare_greedy(settings, "sdpa", "left", eos_token_id=eos).tolist()
    end = tokens[1].index(eos)
    assert tokens[1] == free[1][: end + 1] + [0] * (len(tokens[1]) - end - 1)
    assert any(eos not in row for row in tokens)


def test_it_ends_when_every_row_has_ended(toy):
    model, processor = toy
    inputs = processor(text=["caption en"], images=pictures(1))
    free = [int(token) for token in generate_tokens(model, inputs, 10)]
    model.config.eos_token_id = free[3]
    try:
        assert [int(token) for token in generate_tokens(model, inputs, 10)] == free[: free.index(free[3]) + 1]
    finally:
        model.config.eos_token_id = 1


def test_a_row_of_a_batch_says_what_it_says_alone(toy):
    model, processor = toy
    images = pictures(3)
    together = generate(model, processor, images, PROMPTS, max_new_tokens=10)
    alone = [
        generate(model, processor, image, prompt, max_new_tokens=10)[0]
        for image, prompt in zip(images, PROMPTS, strict=True)
    ]
    assert together == alone
    assert len(set(together)) == 3


def test_several_pictures_in_one_prompt(toy):
    model, processor = toy
    prompts = ["caption en", "what is"]
    texts = generate(model, processor, [pictures(2), pictures(1, seed=3)], prompts, max_new_tokens=6)
    one_each = generate(model, processor, [pictures(1), pictures(1, seed=3)], prompts, max_new_tokens=6)
    assert texts[0] != one_each[0] and texts[1] == one_each[1]


def test_pictures_are_encoded_once_and_logits_computed_for_one_place(toy):
    model, processor = toy
    calls, shapes = [], []
    hooks = [
        model.vision_tower.register_forward_hook(lambda *_: calls.append(1)),
        model.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.logits.shape[:2]))),
    ]
    generate(model, processor, pictures(2), PROMPTS[:2], max_new_tokens=5)
    for hook in hooks:
        hook.remove()
    assert calls == [1]
    assert shapes == [(2, 1)] * 5


def test_one_cache_is_allocated_and_filled(toy, monkeypatch):
    import paligemma.generation as generation

    made = []

    class Watched(generation.KVCache):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(generation, "KVCache", Watched)
    model, processor = toy
    inputs = processor(text=["caption en"], images=pictures(1))
    list(generate_tokens(model, inputs, 6))
    assert len(made) == 1
    assert made[0].max_length == inputs["input_ids"].shape[1] + 6
    assert made[0].num_items() == inputs["input_ids"].shape[1] + 5  # the last token is never fed in


def test_inputs_are_left_as_they_were(toy):
    model, processor = toy
    inputs = processor(text=PROMPTS, images=pictures(3), suffix=["a", "b", "c"])
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    list(generate_tokens(model, inputs, 2))
    assert all(torch.equal(inputs[name], before[name]) for name in before)


def test_no_graph_is_built(toy):
    model, processor = toy
    tokens = next(generate_tokens(model, processor(text=["a"], images=pictures(1)), 1))
    assert tokens.is_inference() and all(parameter.grad is None for parameter in model.parameters())


def test_align_right_moves_padding_and_keeps_order():
    left, right = make_inputs(shape(), "left"), make_inputs(shape(), "right")
    aligned = align_right(right)
    for name in left:
        assert torch.equal(aligned[name], left[name]), name
    again = align_right(left)
    assert all(torch.equal(again[name], left[name]) for name in left)


def test_until_eos():
    assert until_eos([5, 6, 1, 7, 1], 1) == [5, 6]
    assert until_eos([5, 6], 1) == [5, 6]
    assert until_eos([1], 1) == []


# -------------------------------------------------------------------------------------------------- sampling


def their_probabilities(logits, temperature, top_k, top_p):
    """transformers' warpers, in the order in which its generate() applies them."""
    scores = logits.float()
    if temperature != 1:
        scores = TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.softmax(dim=-1)


def our_probabilities(logits, temperature, top_k, top_p, monkeypatch):
    """What `sample` hands to the draw, put back into the order of the vocabulary."""
    seen = {}
    topk, multinomial = torch.Tensor.topk, torch.multinomial

    def watched_topk(self, *args, **kwargs):
        seen["order"] = topk(self, *args, **kwargs)[1]
        return topk(self, *args, **kwargs)

    def watched_draw(probabilities, *args, **kwargs):
        seen["probabilities"] = probabilities.clone()
        return multinomial(probabilities, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "topk", watched_topk)
        patch.setattr(torch, "multinomial", watched_draw)
        sample(logits, temperature, top_k, top_p)
    probabilities = seen["probabilities"] / seen["probabilities"].sum(-1, keepdim=True)
    everything = torch.arange(logits.shape[1]).expand_as(logits)
    return torch.zeros_like(logits).scatter(1, seen.get("order", everything), probabilities)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 20, 50, 1000]),
    top_p=st.sampled_from([0.01, 0.3, 0.9, 0.999, 1.0]),
)
def test_probabilities_are_those_of_transformers_warpers(seed, temperature, top_k, top_p):
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(seed)) * 3
    before = logits.clone()
    with pytest.MonkeyPatch.context() as monkeypatch:
        ours = our_probabilities(logits, temperature, top_k, top_p, monkeypatch)
    assert_close(ours, their_probabilities(logits, temperature, top_k, top_p), 1e-6)
    assert torch.equal(logits, before), "the caller's logits were changed"


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0]])
    expected = their_probabilities(logits, 0.8, 4, 0.95)[0]
    generator = torch.Generator().manual_seed(0)
    draws = sample(logits.expand(20_000, -1), 0.8, 4, 0.95, generator)
    shares = torch.bincount(draws, minlength=5) / 20_000
    assert (shares[expected == 0] == 0).all()
    # Three standard deviations of a share among 20,000 draws are about 0.01.
    assert (shares - expected).abs().max() < 0.012


def test_narrow_sampling_is_greedy():
    logits = torch.randn(6, 40)
    greedy = sample(logits)
    assert torch.equal(greedy, logits.argmax(-1))
    assert torch.equal(sample(logits, temperature=5.0, top_k=1), greedy)
    assert torch.equal(sample(logits, temperature=1.0, top_p=1e-9), greedy)
    assert torch.equal(sample(logits, temperature=1.0, top_p=1e-300), greedy)
    assert torch.equal(sample(logits, temperature=1e-4), greedy)
    assert torch.equal(sample(logits * 1e4, temperature=1.0), greedy)


def test_a_large_vocabulary_is_neither_sorted_nor_cut_without_need(monkeypatch):
    """257,216 logits are sorted as far as top-p reaches, and top_p = 1 keeps every one of them."""
    logits = torch.randn(2, 257_216, generator=torch.Generator().manual_seed(0)) * 4
    kept, drawn, topk, multinomial = [], [], torch.Tensor.topk, torch.multinomial

    def watched_topk(self, k, **options):
        if self.shape == logits.shape:
            kept.append(k)
        return topk(self, k, **options)

    def watched_draw(probabilities, *args, **options):
        drawn.append(probabilities)
        return multinomial(probabilities, *args, **options)

    monkeypatch.setattr(torch.Tensor, "topk", watched_topk)
    monkeypatch.setattr(torch, "multinomial", watched_draw)
    sample(logits, temperature=1.0)
    assert not kept and (drawn[-1] > 0).all()
    sample(logits, temperature=1.0, top_k=50)
    assert kept == [50]
    sample(logits, temperature=0.5, top_p=0.9)
    assert kept[1] < 20_000
    assert (drawn[-1].sum(-1) >= 0.9 - 1e-5).all() and (drawn[-1].sum(-1) - drawn[-1].amax(-1) < 0.9).all()


def test_seeds_repeat_and_differ(toy):
    model, processor = toy

    def say(seed):
        return generate(model, processor, pictures(2), PROMPTS[:2], max_new_tokens=12, temperature=1.0, seed=seed)

    assert say(3) == say(3)
    assert say(3) != say(4)
    torch.manual_seed(7)
    unseeded = say(None)
    torch.manual_seed(7)
    assert say(None) == unseeded
    before = torch.random.get_rng_state()
    say(3)
    assert torch.equal(torch.random.get_rng_state(), before), "a seed of its own leaves torch's alone"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"temperature": 1e-45}, "temperature is 1e-45, expected 0"),
        ({"temperature": 1e67}, r"temperature is 1e\+67"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0, expected a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"max_new_tokens": 10**7}, "max_new_tokens is 10000000, expected at most 81..: with the .* tokens of picture"),
        ({"max_new_tokens": 10**30}, "max_new_tokens is 10000.*, expected at most"),
        *(({"seed": seed}, "seed is .*, expected None or a whole number") for seed in (1.5, "1", True, [1], -1, 2**64)),
    ],
)
def test_settings_out_of_range_are_refused(toy, options, message):
    model, processor = toy
    with pytest.raises(ValueError, match=message):
        generate(model, processor, pictures(1), ["a"], **options)
    with pytest.raises(ValueError, match=message):
        list(stream(model, processor, pictures(1)[0], "a", **options))


def test_numbers_of_numpy_are_numbers(toy):
    model, processor = toy
    options = {"max_new_tokens": np.int64(3), "temperature": np.float32(1), "top_k": np.int32(5), "seed": np.int64(2)}
    plain = {name: value.item() for name, value in options.items()}
    texts = [generate(model, processor, pictures(1), ["a"], **settings) for settings in (options, plain)]
    assert texts[0] == texts[1]


# ------------------------------------------------------------------------------- several prompts about a picture


def test_one_picture_for_several_prompts_is_encoded_once(toy):
    model, processor = toy
    seen, image = [], pictures(1)[0]
    expected = [generate(model, processor, [image], [prompt], max_new_tokens=8)[0] for prompt in PROMPTS]
    hook = model.vision_tower.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[0]))
    try:
        for images in (image, [image], (image,), [image.copy() for _ in PROMPTS]):
            assert generate(model, processor, images, PROMPTS, max_new_tokens=8) == expected
    finally:
        hook.remove()
    assert seen == [1] * 4


def test_repeated_pictures_among_others(toy):
    model, processor = toy
    a, b = pictures(2)
    rows, prompts, seen = [[a, b], [b], [a], [b, b]], [*PROMPTS, "answer"], []
    hook = model.vision_tower.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[0]))
    together = generate(model, processor, rows, prompts, max_new_tokens=8)
    hook.remove()
    assert seen == [2]
    for row, prompt, text in zip(rows, prompts, together, strict=True):
        assert generate(model, processor, [row], [prompt], max_new_tokens=8) == [text]


# --------------------------------------------------------------------------------------------- probabilities


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "top_k": 30, "seed": 1}])
def test_probabilities_are_those_of_transformers_in_one_pass_over_prompt_and_answer(options):
    theirs = make_theirs(shape(), seed=7)
    make_talkative(theirs)
    model, processor = make_ours(theirs), processors_for(shape())[0]
    options = {"max_new_tokens": 7, **options}
    inputs = processor(text=PROMPTS, images=pictures(3))
    _, probabilities = generate(model, processor, pictures(3), PROMPTS, return_probabilities=True, **options)
    tokens = torch.stack(list(generate_tokens(model, inputs, **options)), dim=1).clone()  # [B, 7]
    logits = logits_of_transformers(theirs, inputs, tokens)  # [B, 7, V]: after each token of the answer
    expected = logits[:, :-1].softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]  # [B, 6]: of all but the first
    for ours, row in zip(probabilities, expected, strict=True):
        assert len(ours) == 7
        assert_close(torch.tensor(ours[1:]), row)


def test_probabilities_end_with_eos(toy, monkeypatch):
    model, processor = toy
    forced(model, monkeypatch, [5, 6, 1])
    texts, probabilities = generate(model, processor, pictures(1), ["a"], return_probabilities=True)
    assert len(texts) == 1 and len(probabilities[0]) == 3 and all(0 < p < 1 for p in probabilities[0])


# ------------------------------------------------------------------------------------------------- streaming


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 1}, {"temperature": 1.5, "top_k": 40, "seed": 2}])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_pieces_joined_are_the_answer(toy, prompt, options):
    """Random weights write bytes of broken letters, too: the hard case for a stream."""
    model, processor = toy
    pieces = list(stream(model, processor, pictures(1)[0], prompt, max_new_tokens=40, **options))
    assert "".join(pieces) == generate(model, processor, pictures(1), [prompt], max_new_tokens=40, **options)[0]
    assert all(pieces) and len(pieces) > 5


def forced(model, monkeypatch, ids):
    """Make the model write these ids."""
    import paligemma.generation as generation

    script = iter(ids)
    monkeypatch.setattr(generation, "sample", lambda logits, *_: torch.tensor([next(script)]))


@pytest.mark.parametrize(
    "text", ["a red cat", "고양이 한 마리", "é", "🐈 cat", "<loc0012><loc0500><loc0600><loc0700> cat ; dog"]
)
def test_letters_of_several_tokens_come_out_whole(toy, monkeypatch, text):
    model, processor = toy
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    forced(model, monkeypatch, [*ids, 1])
    pieces = list(stream(model, processor, pictures(1)[0], "", max_new_tokens=100))
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_an_empty_answer(toy, monkeypatch):
    model, processor = toy
    forced(model, monkeypatch, [1])
    assert list(stream(model, processor, pictures(1)[0], "detect cat")) == []
    forced(model, monkeypatch, [1])
    assert generate(model, processor, pictures(1), ["detect cat"]) == [""]


def test_cut_off_in_the_middle_of_a_letter(toy, monkeypatch):
    model, processor = toy
    ids = processor.tokenizer("é", add_special_tokens=False)["input_ids"]
    forced(model, monkeypatch, ids[:1])
    pieces = list(stream(model, processor, pictures(1)[0], "", max_new_tokens=1))
    assert pieces == ["\N{REPLACEMENT CHARACTER}"]
