"""`swap` against a small model with random weights: an identical part changes nothing, a broken one does."""

import gc
import importlib
import importlib.util
import inspect
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paligemma import generation, kv_cache, modeling_gemma, modeling_gemma2, modeling_siglip, processing_paligemma
from paligemma.modeling_gemma import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration
from paligemma.modeling_gemma2 import Gemma2Config
from paligemma.modeling_siglip import SiglipVisionConfig
from paligemma.swap import swap

swap_module = importlib.import_module("paligemma.swap")

SIGLIP = [name for name, value in vars(modeling_siglip).items() if inspect.isclass(value) and issubclass(
    value, nn.Module)]  # fmt: skip
GEMMA = [name for name, value in vars(modeling_gemma).items() if inspect.isclass(value) and issubclass(
    value, nn.Module) and value.__module__ == modeling_gemma.__name__]  # fmt: skip
GEMMA2 = ["Gemma2Attention", "Gemma2DecoderLayer", "Gemma2Model", "Gemma2ForCausalLM"]


def make_model(version=1, dtype=torch.float32, seed=0):
    sizes = dict(vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, head_dim=8)  # fmt: skip
    text = GemmaConfig(**sizes) if version == 1 else Gemma2Config(**sizes, sliding_window=4, query_pre_attn_scalar=9)
    vision = SiglipVisionConfig(hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
                                image_size=8, patch_size=4)  # fmt: skip
    model = PaliGemmaForConditionalGeneration(PaliGemmaConfig(vision, text, image_token_index=49))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.4, generator=generator)
    return model.to(dtype).eval()


@pytest.fixture
def model():
    return make_model()


def inputs():
    ids = torch.tensor([[49, 49, 49, 49, 2, 7, 8, 5], [49, 49, 49, 49, 2, 9, 5, 11]])
    types = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 1]] * 2)
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "pixel_values": pixels, "token_type_ids": types}


def logits(model):
    with torch.no_grad():
        return model(**inputs()).logits


# --- parts as a learner writes them in a notebook ------------------------------------------------------------


class MyRMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim))
        self.epsilon = eps

    def forward(self, x):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.epsilon) * (1 + self.weight)


class NormWithoutOne(MyRMSNorm):
    def forward(self, x):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.epsilon) * self.weight


def my_rotate_half(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def interleaved(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


class MyMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class MyEncoderLayer(nn.Module):
    """Made of the learner's MLP and the package's attention."""

    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.mlp = MyMLP(config)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))[0]
        return x + self.mlp(self.layer_norm2(x))


# --- what it must do -----------------------------------------------------------------------------------------


def copied_class(home, name, namespace):
    """The package's class compiled anew, as if a learner had typed it into a notebook."""
    exec(inspect.getsource(vars(home)[name]), namespace)
    namespace[name].__module__ = "__main__"
    return namespace[name]


@pytest.mark.parametrize(
    "version, home, name",
    [(1, modeling_siglip, name) for name in SIGLIP]
    + [(1, modeling_gemma, name) for name in GEMMA]
    + [(2, modeling_gemma2, name) for name in GEMMA2],
)  # fmt: skip
def test_the_same_class_typed_again_changes_nothing(version, home, name):
    model = make_model(version)
    before, modules = logits(model), dict(model.named_modules())
    kind = copied_class(home, name, dict(vars(home)))
    with swap(model, **{name: kind}) as mine:
        assert sum(type(module) is kind for module in mine.modules()) >= 1
        assert not any(type(module) is vars(home)[name] for module in mine.modules())
        assert torch.equal(logits(mine), before)
    assert all(module is modules[path] for path, module in model.named_modules())
    assert torch.equal(logits(model), before)


def test_everything_at_once_from_one_notebook(model):
    before = logits(model)
    notebook = {**vars(modeling_siglip), **vars(modeling_gemma)}
    for home, names in ((modeling_siglip, SIGLIP), (modeling_gemma, GEMMA)):
        for name in names:
            copied_class(home, name, notebook)
    with swap(model, **{name: notebook[name] for name in SIGLIP + GEMMA}) as mine:
        assert mine is not model and type(mine) is notebook["PaliGemmaForConditionalGeneration"]
        ours = [type(module).__name__ for module in mine.modules() if type(module).__module__.startswith("paligemma")]
        assert ours == []
        assert torch.equal(logits(mine), before)
        assert mine.config is model.config and mine.dtype == torch.float32
    assert torch.equal(logits(model), before)


def test_right_and_broken_parts(model):
    before = logits(model)
    with swap(model, GemmaRMSNorm=MyRMSNorm, rotate_half=my_rotate_half) as mine:
        assert mine is model
        torch.testing.assert_close(logits(mine), before, rtol=0, atol=1e-5)
    for parts in ({"GemmaRMSNorm": NormWithoutOne}, {"rotate_half": interleaved}):
        with swap(model, **parts):
            assert (logits(model) - before).abs().max() > 0.01
        assert torch.equal(logits(model), before)


def test_put_back_after_an_exception(model):
    before, function = logits(model), modeling_gemma.rotate_half
    with pytest.raises(ZeroDivisionError):
        with swap(model, GemmaRMSNorm=NormWithoutOne, rotate_half=interleaved, sample=lambda logits: 0):
            raise ZeroDivisionError
    assert modeling_gemma.rotate_half is function and torch.equal(logits(model), before)


def test_put_back_when_the_second_part_does_not_fit(model):
    modules, function = dict(model.named_modules()), modeling_gemma.rotate_half
    with pytest.raises(ValueError, match="GemmaMLP=MyMLP does not fit"):
        with swap(model, rotate_half=interleaved, GemmaRMSNorm=MyRMSNorm, GemmaMLP=MyMLP):
            pass
    assert modeling_gemma.rotate_half is function
    assert all(module is modules[path] for path, module in model.named_modules())


def test_nested(model):
    before = logits(model)
    with swap(model, GemmaRMSNorm=MyRMSNorm, rotate_half=my_rotate_half):
        outer = logits(model)
        with swap(model, GemmaRMSNorm=NormWithoutOne, rotate_half=interleaved):
            assert isinstance(model.language_model.model.norm, NormWithoutOne)
            assert modeling_gemma.rotate_half is interleaved
        assert type(model.language_model.model.norm) is MyRMSNorm and modeling_gemma.rotate_half is my_rotate_half
        assert torch.equal(logits(model), outer)
    assert torch.equal(logits(model), before)


def test_a_container_and_its_parts(model):
    class Attention(modeling_siglip.SiglipAttention):
        pass

    class OtherMLP(MyMLP):
        pass

    before = logits(model)
    parts = dict(SiglipMLP=OtherMLP, SiglipAttention=Attention, SiglipEncoderLayer=MyEncoderLayer)
    with swap(model, **parts):
        for layer in model.vision_tower.vision_model.encoder.layers:
            assert type(layer) is MyEncoderLayer
            assert type(layer.mlp) is MyMLP, "what a learner's container makes of its own stays"
            assert type(layer.self_attn) is Attention, "what it takes from the package is replaced"
        torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)


def test_weights_mode_dtype_and_the_random_state_are_kept():
    model = make_model(dtype=torch.bfloat16).train()
    model.language_model.model.norm.weight.requires_grad_(False)
    state = torch.get_rng_state()
    with swap(model, GemmaRMSNorm=MyRMSNorm):
        norm = model.language_model.model.norm
        assert norm.weight.dtype == torch.bfloat16 and norm.training and not norm.weight.requires_grad
        assert norm.epsilon == model.config.text_config.rms_norm_eps
        norm.weight.data.zero_()  # a copy: the model's own weights are safe
    assert torch.equal(torch.get_rng_state(), state)
    assert model.language_model.model.norm.weight.abs().sum() > 0


def test_the_attention_setting_goes_along(model):
    class Mine(modeling_siglip.SiglipAttention):
        pass

    for module in model.modules():
        if isinstance(module, modeling_siglip.SiglipAttention):
            module.attention = "eager"
    with swap(model, SiglipAttention=Mine):
        assert model.vision_tower.vision_model.encoder.layers[0].self_attn.attention == "eager"


def test_repeat_kv_is_used_whatever_the_attention_setting(model):
    """The fused attention shares keys by itself; a learner's repeat_kv must drive the model all the same."""
    before = logits(model)
    with swap(model, repeat_kv=lambda states, n: states.repeat(1, n, 1, 1)) as mine:  # the heads in the wrong order
        assert (logits(mine) - before).abs().max() > 1e-3
    with swap(model, repeat_kv=lambda states, n: states.repeat_interleave(n, 1)) as mine:
        torch.testing.assert_close(logits(mine), before)
    assert model.language_model.model.layers[0].self_attn.attention == "sdpa"
    assert torch.equal(logits(model), before)


def test_own_argument_names_and_extra_ones(model):
    class Rotary(nn.Module):
        def __init__(self, dim, max_position_embeddings=99, base=10000):
            super().__init__()
            self.register_buffer("inv_freq", 1.0 / base ** (torch.arange(0, dim, 2).float() / dim))  # saved, too

        def forward(self, x, position_ids):
            angles = torch.outer(position_ids.flatten().float(), self.inv_freq).view(*position_ids.shape, -1)
            angles = angles.repeat(1, 1, 2)
            return angles.cos(), angles.sin()

    class Norm(MyRMSNorm):
        def __init__(self, hidden_size, epsilon):
            super().__init__(hidden_size, epsilon)

    before = logits(model)
    with swap(model, GemmaRotaryEmbedding=Rotary, GemmaRMSNorm=Norm):
        torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)


def test_a_tied_head_needs_no_weights_of_its_own(model):
    class CausalLM(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.model = modeling_gemma.GemmaModel(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            self.lm_head.weight = self.model.embed_tokens.weight

    before = logits(model)
    with swap(model, GemmaForCausalLM=CausalLM):
        assert model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight
        torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)


def test_functions_of_the_processor_need_no_model():
    image = np.full((2, 2, 3), 51, dtype=np.uint8)
    with swap(None, rescale=lambda image, scale: image * 0.0):
        assert processing_paligemma.process_images([image], (2, 2))[0].max() == -1
    assert processing_paligemma.process_images([image], (2, 2))[0].max() == pytest.approx(51 / 255 * 2 - 1)


def test_names_are_replaced_in_every_module_that_imported_them(model):
    calls = []

    def my_mask(*arguments):
        calls.append(len(arguments))
        return original(*arguments)

    class MyCache(kv_cache.KVCache):
        pass

    original = modeling_gemma.make_attn_mask
    with swap(model, make_attn_mask=my_mask, KVCache=MyCache):
        assert modeling_gemma2.make_attn_mask is my_mask and generation.KVCache is MyCache
        logits(model)
    assert calls and modeling_gemma2.make_attn_mask is original and generation.KVCache is kv_cache.KVCache


def test_the_checks_never_see_a_stand_in(model):
    exercises = pytest.importorskip("paligemma.exercises")
    exercises.rotate_half = modeling_gemma.rotate_half
    try:
        with swap(model, rotate_half=interleaved):
            assert exercises.rotate_half is not interleaved
    finally:
        del exercises.rotate_half


# --- what it must say ----------------------------------------------------------------------------------------


def complaint(model, **parts) -> str:
    with pytest.raises((ValueError, TypeError)) as caught:
        with swap(model, **parts):
            pass
    return str(caught.value)


def test_unknown_names(model):
    assert "did you mean GemmaRMSNorm" in complaint(model, GemaRMSNorm=MyRMSNorm)
    assert "rotate_half" in complaint(model, rotatehalf=my_rotate_half)
    assert "no class or function" in complaint(model, zzz=my_rotate_half)
    assert "holds no Gemma2Attention; it holds GemmaAttention" in complaint(model, Gemma2Attention=MyRMSNorm)
    assert "is to be replaced by a int" in complaint(model, rotate_half=3)
    assert "NoneType, expected the module" in complaint(None, GemmaRMSNorm=MyRMSNorm)


def test_constructors_that_do_not_fit(model):
    class NoEps(nn.Module):
        def __init__(self, dim):
            super().__init__()

    class NoSuper(nn.Module):
        def __init__(self, dim, eps):
            self.weight = nn.Parameter(torch.zeros(dim))

    text = complaint(model, GemmaRMSNorm=NoEps)
    assert "NoEps(dim=24, eps=1e-06) raised TypeError" in text and "these names, or come in this order" in text
    assert "before Module.__init__() call" in complaint(model, GemmaRMSNorm=NoSuper)
    assert "makes a int" in complaint(model, GemmaRMSNorm=lambda dim, eps: 1)


def test_weights_that_do_not_fit(model):
    class Renamed(nn.Module):
        def __init__(self, dim, eps):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(dim))

    class Plain(nn.Module):
        def __init__(self, dim, eps):
            super().__init__()
            self.weight = torch.zeros(dim)

    class Wide(nn.Module):
        def __init__(self, dim, eps):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, dim))

    class Turned(MyMLP):
        def __init__(self, config):
            super().__init__(config)
            self.fc1.weight = nn.Parameter(torch.zeros(config.hidden_size, config.intermediate_size))

    class ListOfLayers(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.layers = [MyEncoderLayer(config) for _ in range(config.num_hidden_layers)]

    text = complaint(model, GemmaRMSNorm=Renamed)
    assert "parameter `weight` [24] is missing" in text and "`scale` [24] that the package's has not" in text
    assert "at language_model.model.layers.0.input_layernorm" in text
    assert "plain tensor" in complaint(model, GemmaRMSNorm=Plain)
    assert "`weight` has shape [1, 24], expected [24]" in complaint(model, GemmaRMSNorm=Wide)
    assert "expected [20, 12]; it looks transposed" in complaint(model, SiglipMLP=Turned)
    assert "plain list" in complaint(model, SiglipEncoder=ListOfLayers)


# --- whatever is done with it, all is as it was ----------------------------------------------------------------


def everything(model) -> list:
    """All that a swap can change: the modules of the model, their settings, and the names of the package."""
    modules = [(id(module), dict(module._modules), vars(module).get("attention")) for module in model.modules()]
    names = [
        (name, key, id(value))
        for name, module in sorted(sys.modules.items())
        if name.split(".")[0] == "paligemma"
        for key, value in vars(module).items()
        if key in ("rotate_half", "repeat_kv", "KVCache", "make_attn_mask")
    ]
    return [modules, names, list(swap_module.replaced), len(swap_module.PLACES.stacks), len(swap_module.PLACES.names)]


@pytest.mark.parametrize("parts", [
    ({"rotate_half": lambda x: x}, {"rotate_half": lambda x: -x}),
    ({"GemmaRMSNorm": MyRMSNorm}, {"GemmaRMSNorm": MyRMSNorm}),
    ({"repeat_kv": lambda x, n: x.repeat_interleave(n, 1)}, {"repeat_kv": lambda x, n: x.repeat_interleave(n, 1)}),
], ids=["function", "class", "repeat_kv"])  # fmt: skip
def test_swaps_may_be_closed_in_the_order_in_which_they_were_opened(model, parts):
    before = everything(model)
    first, second = (swap(model, **some) for some in parts)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    if "rotate_half" in parts[1]:
        assert modeling_gemma.rotate_half is parts[1]["rotate_half"], "the one that is still open counts"
    second.__exit__(None, None, None)
    assert everything(model) == before


def test_generators_by_turns_and_dropped(model):
    before = everything(model)

    def generator(part):
        with swap(model, rotate_half=part, GemmaRMSNorm=MyRMSNorm):
            yield 1
            yield 2

    one, other = generator(lambda x: x), generator(lambda x: -x)
    next(one), next(other), next(one)
    one.close()
    next(other)
    del other
    gc.collect()
    assert everything(model) == before


def test_two_threads(model):
    before = everything(model)

    def work(number):
        for _ in range(5):
            with swap(model, rotate_half=lambda x: x * number, GemmaRMSNorm=MyRMSNorm):
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert everything(model) == before


def test_a_module_imported_inside_a_swap_does_not_keep_the_stand_in(model, tmp_path):
    source = tmp_path / "late.py"
    source.write_text("from paligemma.modeling_gemma import rotate_half\n", encoding="utf-8")
    spec = importlib.util.spec_from_file_location("paligemma.late", source)
    late = importlib.util.module_from_spec(spec)
    try:
        with swap(model, rotate_half=interleaved):
            sys.modules["paligemma.late"] = late
            spec.loader.exec_module(late)
            assert late.rotate_half is interleaved
        assert late.rotate_half is modeling_gemma.rotate_half is not interleaved
    finally:
        sys.modules.pop("paligemma.late", None)


def test_parts_that_would_never_be_used_are_refused(model):
    assert "would never be used" in complaint(model, PaliGemmaProcessor=processing_paligemma.PaliGemmaProcessor)
    assert "would never be used" in complaint(model, GemmaConfig=GemmaConfig)


def test_arguments_go_by_name_where_the_names_fit():
    class Rotary:
        def __init__(self, dim, max_position_embeddings=2048, base=10000.0):
            self.got = dim, max_position_embeddings, base

    assert swap_module.construct(Rotary, {"dim": 8, "base": 100.0}).got == (8, 2048, 100.0)

    class Other:
        def __init__(self, index, config):
            self.got = index, config

    assert swap_module.construct(Other, {"config": "c", "layer_idx": 3}).got == (3, "c")
    assert swap_module.construct(lambda *values: values, {"config": "c", "layer_idx": 3}) == ("c", 3)
    with pytest.raises(TypeError):
        swap_module.construct(lambda one: one, {"config": "c", "layer_idx": 3})


def test_a_buffer_is_not_a_parameter(model):
    class Frozen(nn.Module):
        def __init__(self, dim, eps):
            super().__init__()
            self.register_buffer("weight", torch.zeros(dim))

    assert "`weight` is a buffer, which training never changes" in complaint(model, GemmaRMSNorm=Frozen)
