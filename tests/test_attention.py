"""Recorded attention: the weights of transformers, and a model left as it was."""

import gc
import threading

import pytest
import torch
from reference import (
    ALL_SHAPES,
    PROMPTS,
    SUFFIXES,
    assert_close,
    make_inputs,
    make_pair,
    pictures,
    processors_for,
    shape,
)

from paligemma import generate, record_attention, set_attention
from paligemma.attention_maps import attention_modules
from paligemma.modeling_gemma import GemmaDecoderLayer
from paligemma.swap import swap


def state_of(model):
    """What record_attention may not change: settings, hooks, mode, and the weights."""
    return (
        {name: module.attention for name, module in attention_modules(model).items()},
        {name: len(module._forward_hooks) for name, module in model.named_modules()},
        {name: module.training for name, module in model.named_modules()},
        {name: (tensor.data_ptr(), tensor._version) for name, tensor in model.state_dict().items()},
    )


@pytest.mark.parametrize("name", ALL_SHAPES)
def test_weights_are_those_of_transformers(name):
    settings = ALL_SHAPES[name]
    ours, theirs = make_pair(settings)
    inputs = make_inputs(settings, suffixes=SUFFIXES)
    with torch.no_grad(), record_attention(ours) as maps:
        ours(**inputs)
    with torch.no_grad():
        decoder = theirs(**inputs, output_attentions=True).attentions
        encoder = theirs.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
    assert len(maps) == len(decoder) + len(encoder)
    real = inputs["attention_mask"].bool()
    for layer, expected in enumerate(encoder):
        [weights] = maps[f"vision_tower.vision_model.encoder.layers.{layer}.self_attn"]
        assert_close(weights, expected, 1e-6)
    for layer, expected in enumerate(decoder):
        [weights] = maps[f"language_model.model.layers.{layer}.self_attn"]
        # Rows of padding are nobody's business.
        assert_close(weights.transpose(1, 2)[real], expected.transpose(1, 2)[real], 5e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_rows_sum_to_one_and_padding_gets_nothing(attention):
    model, _ = make_pair(shape(), attention)
    inputs = make_inputs(shape())
    with record_attention(model) as maps:
        model(**inputs)
    real = inputs["attention_mask"].bool()
    for name, [weights] in maps.items():
        assert weights.dtype == torch.float32 and not weights.requires_grad and (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5, rtol=0)
        if name.startswith("language_model"):
            assert weights.shape == (3, 4, *inputs["input_ids"].shape[1:] * 2)
            for row in range(3):
                assert (weights[row][:, real[row]][:, :, ~real[row]] == 0).all()
        else:
            assert weights.shape == (3, 4, 16, 16)


@pytest.mark.parametrize("settings", [shape(), shape("gemma2")], ids=["1", "2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_model_is_left_as_it_was(settings, attention):
    model, _ = make_pair(settings, attention)
    inputs = make_inputs(settings)
    before, expected = state_of(model), model(**inputs).logits
    with record_attention(model) as maps:
        recorded = model(**inputs).logits
    assert_close(recorded, expected)
    assert state_of(model) == before
    assert torch.equal(model(**inputs).logits, expected)
    assert {len(weights) for weights in maps.values()} == {1}, "nothing is gathered after the block"


def test_mixed_settings_come_back_one_by_one():
    model, _ = make_pair(shape())
    modules = list(attention_modules(model).values())
    modules[1].attention = modules[3].attention = "eager"
    before = state_of(model)
    with record_attention(model):
        assert {module.attention for module in modules} == {"eager"}
    assert state_of(model) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_inside_leaves_it_as_it_was(error):
    model, _ = make_pair(shape())
    before = state_of(model)
    with pytest.raises(error):
        with record_attention(model):
            raise error
    with pytest.raises(ValueError, match="pixel_values has shape"), record_attention(model):
        model(**make_inputs(shape()) | {"pixel_values": torch.zeros(1)})
    assert state_of(model) == before


def test_blocks_may_lie_in_one_another():
    model, _ = make_pair(shape())
    inputs, before = make_inputs(shape()), state_of(model)
    with record_attention(model) as outer:
        model(**inputs)
        with record_attention(model) as inner:
            model(**inputs)
        model(**inputs)
    assert {len(weights) for weights in outer.values()} == {3}
    assert {len(weights) for weights in inner.values()} == {1}
    assert state_of(model) == before


def test_while_generating_there_is_one_map_a_token():
    model, _ = make_pair(shape())
    processor, _ = processors_for(shape())
    L = processor(text=PROMPTS[:1], images=pictures(1))["input_ids"].shape[1]
    with record_attention(model) as maps:
        generate(model, processor, pictures(1), PROMPTS[:1], max_new_tokens=4)
    shapes = [tuple(weights.shape) for weights in maps["language_model.model.layers.1.self_attn"]]
    assert shapes == [(1, 4, L, L)] + [(1, 4, 1, L + i) for i in (1, 2, 3)]
    assert len(maps["vision_tower.vision_model.encoder.layers.0.self_attn"]) == 1


def test_training_mode_and_gradients_are_untouched():
    model, _ = make_pair(shape())
    model.train()
    inputs = make_inputs(shape(), suffixes=SUFFIXES)
    model(**inputs).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    with record_attention(model):
        model(**inputs).loss.backward()
    assert model.training
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=0)


def test_set_attention():
    model, _ = make_pair(shape())
    inputs = make_inputs(shape())
    expected = model(**inputs).logits
    assert set_attention(model, "eager") is model
    assert {module.attention for module in attention_modules(model).values()} == {"eager"}
    assert len(attention_modules(model)) == 4
    assert_close(model(**inputs).logits, expected)
    with pytest.raises(ValueError, match="attention is 'flash', expected 'sdpa' or 'eager'"):
        set_attention(model, "flash")


# ----------------------------------------------------------------------- recorders that end in an order of their own


def record_in_a_generator(model):
    with record_attention(model) as maps:
        yield maps


@pytest.mark.parametrize("order", ["first opened, first closed", "last opened, first closed"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_recorders_may_be_closed_in_any_order(attention, order):
    model, _ = make_pair(shape(), attention)
    before = state_of(model)
    recorders = [record_in_a_generator(model) for _ in range(3)]
    for recorder in recorders:
        next(recorder)
    for i, recorder in enumerate(recorders if order.startswith("first") else recorders[::-1]):
        assert {module.attention for module in attention_modules(model).values()} == {"eager"}, f"{i} are closed"
        recorder.close()
    assert state_of(model) == before


def test_a_generator_that_is_thrown_away_leaves_nothing():
    model, _ = make_pair(shape())
    before = state_of(model)
    recorder = record_in_a_generator(model)
    next(recorder)
    assert state_of(model) != before
    del recorder
    gc.collect()
    assert state_of(model) == before


def test_recorders_in_two_threads():
    model, _ = make_pair(shape())
    before, inputs, failures = state_of(model), make_inputs(shape()), []

    def work():
        for _ in range(8):
            with record_attention(model) as maps:
                model(**inputs)
            if not all(maps.values()):
                failures.append(maps)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, "a pass went by without weights"
    assert state_of(model) == before


def test_a_learners_own_attribute_called_attention_is_left_alone():
    """`self.attention = self.self_attn` in a layer of one's own is a module, not a setting."""

    class Mine(GemmaDecoderLayer):
        def __init__(self, config, layer_idx):
            super().__init__(config, layer_idx)
            self.attention = self.self_attn

    model, _ = make_pair(shape())
    inputs = make_inputs(shape())
    with swap(model, GemmaDecoderLayer=Mine) as mine:
        with record_attention(mine) as maps:
            mine(**inputs)
        assert len(maps) == len(mine.language_model.model.layers) + len(mine.vision_tower.vision_model.encoder.layers)
        assert all(len(weights) == 1 for weights in maps.values())


def test_what_is_no_module_is_one_sentence():
    class Fast:
        pass

    with pytest.raises(TypeError, match="the model is a Fast, expected a torch.nn.Module"), record_attention(Fast()):
        pass
