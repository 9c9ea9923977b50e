"""What both fast decoding paths (fast.py, compiled.py) share: which calls and which models they take over, and what is
checked before a step.

Both write a part of the model's forward pass out again, so they are right only while the model is the package's own.
Parts of somebody else's (`swap`, LoRA adapters, a replaced method) and hooks (`record_attention`, `ablate_head`) are
left to the model itself.
"""

import operator
import warnings
from collections.abc import Iterable
from itertools import zip_longest

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from .. import modeling_gemma, modeling_gemma2
from ..checkpoint import WithoutInitialisation
from ..kv_cache import KVCache
from ..modeling_gemma import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaOutput

# What a fast step writes out again: methods, and the functions between the modules.
METHODS = ("forward", "embed", "layer_masks", "attend", "attend_eager", "cap", "lm_head", "inv_freq")
FUNCTIONS = ("rotate_half", "apply_rotary_pos_emb", "repeat_kv", "make_attn_mask", "additive_mask", "softcap")


def is_own(thing) -> bool:
    """Is this class or function defined in the package's model files, or by torch? (A stand-in of `swap` is not.)"""
    return getattr(thing, "__module__", "").startswith(("paligemma.modeling_", "torch."))


def blueprint(model: PaliGemmaForConditionalGeneration) -> list[tuple]:
    """The decoder's modules in order: path, class, and the shapes of its own parameters."""
    return [
        (path, type(module), [(name, tuple(value.shape)) for name, value in module.named_parameters(recurse=False)])
        for path, module in model.language_model.named_modules(prefix="language_model")
    ]


def expected_blueprint(config: PaliGemmaConfig) -> list[tuple]:
    """That of the model which the configuration describes, built without memory for weights."""
    with torch.device("meta"), WithoutInitialisation():
        return blueprint(PaliGemmaForConditionalGeneration(config))


def foreign_part(model: nn.Module, expected: list[tuple] | None = None) -> str | None:
    """The first part of the decoder that is not the package's own, in words; None when there is none.

    Classes of modules and shapes of parameters are compared with what the configuration describes (`expected`), then
    come `replaced_code`'s questions. Hooks and values of weights are not looked at.
    """
    if not isinstance(model, PaliGemmaForConditionalGeneration) or not is_own(type(model)):
        return f"the model is a {type(model).__name__}"
    for found, wanted in zip_longest(blueprint(model), expected or expected_blueprint(model.config)):
        if found != wanted:
            path, kind, shapes = found or wanted
            return f"{path} is not what the configuration describes ({kind.__name__}{dict(shapes) or ''})"
    modules = [model, *model.language_model.modules()]
    return replaced_code({type(module) for module in modules}, modules)


def replaced_code(kinds: Iterable[type], modules: Iterable[nn.Module]) -> str | None:
    """The first function between the modules, or method of these classes and objects, that is not the package's own."""
    for home in (modeling_gemma, modeling_gemma2):
        for name in FUNCTIONS:
            if name in vars(home) and not is_own(vars(home)[name]):
                return f"{name} was replaced"
    for kind in kinds:
        for name in METHODS:
            if not is_own(getattr(kind, name, nn.Module)):
                return f"{kind.__name__}.{name} was replaced"
    for module in modules:
        for name in METHODS:
            if name in vars(module):
                return f"{name} of a {type(module).__name__} was replaced"
    return None


def takes_fast_steps(model: nn.Module) -> bool:
    """Is the decoder all the package's own? Warns when it is not. Raises TypeError for what is no model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is a {type(model).__name__}, expected PaliGemmaForConditionalGeneration")
    foreign = foreign_part(model)
    if foreign is not None:
        warnings.warn(f"{foreign}, which fast steps do not know: decoding takes the plain path", stacklevel=3)
    return foreign is None


class ModelWithFastStep:
    """Called like the model it holds. A single new token takes `step`, everything else the model.

    While the model has hooks, or a part that is not the package's own, every call takes the model.
    """

    def __init__(self, model: PaliGemmaForConditionalGeneration):
        self.model = model
        self.config, self.device, self.dtype = model.config, model.device, model.dtype
        text = model.config.text_config
        self.cache_shape = text.num_hidden_layers, text.num_key_value_heads, text.head_dim
        self.hooks = [torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]
        for module in model.modules():
            self.hooks += [module._forward_hooks, module._forward_pre_hooks]
        self.expected = expected_blueprint(model.config)
        self.parts = [  # every module of the decoder, and what hangs on it
            (module, type(module), len(vars(module)), [*module._modules.values(), *module._parameters.values()])
            for module in model.language_model.modules()
        ]
        self.kinds = {type(module) for module in model.language_model.modules()}
        self.obstacle = None  # why the steps of the answer that is being written take the model; None: they need not

    def __call__(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        kv_cache: KVCache | None = None,
        image_features: torch.Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> PaliGemmaOutput:
        """Arguments and result are those of the model. Raises what it raises, and ValueError for a cache that was
        made for another model."""
        others = any(other is not None for other in (pixel_values, labels, image_features))
        if kv_cache is not None and not others and input_ids.ndim == 2 and input_ids.shape[1] == 1:
            if self.can_step(kv_cache):
                with torch.no_grad():
                    masks = self.check_step(input_ids, attention_mask, token_type_ids, kv_cache)
                    logits = self.step(input_ids, *masks, kv_cache)
                kv_cache.advance(1)
                return PaliGemmaOutput(logits=logits, kv_cache=kv_cache)
        else:
            self.look_at_model()
        arguments = pixel_values, attention_mask, token_type_ids, labels, kv_cache, image_features, logits_to_keep
        with torch.set_grad_enabled(torch.is_grad_enabled() and labels is not None):
            return self.prompt(input_ids, *arguments)

    def step(self, input_ids, attention_mask, token_type_ids, kv_cache) -> torch.Tensor:
        """One token for each row, whose arguments were checked: input_ids [B, 1] -> logits [B, 1, V]."""
        raise NotImplementedError

    def prompt(self, *arguments) -> PaliGemmaOutput:
        """Everything else."""
        return self.model(*arguments)

    def look_at_model(self) -> None:
        """Once a prompt: has the model changed in a way that a fast step would miss? Warns of what is new."""
        before, self.obstacle = self.obstacle, self.changed()
        if self.obstacle not in (None, before):
            warnings.warn(f"{self.obstacle}: decoding takes the plain path", stacklevel=3)

    def changed(self) -> str | None:
        """Asked once a prompt, so it must be quick: all is compared only when some part is another object."""
        if not self.same_objects():
            return foreign_part(self.model, self.expected)
        return replaced_code({type(self.model), *self.kinds}, [self.model])

    def same_objects(self) -> bool:
        """Does the decoder still consist of the very modules and parameters that it had, with no attribute more?"""
        for module, kind, attributes, held in self.parts:
            now = (*module._modules.values(), *module._parameters.values())
            if type(module) is not kind or len(vars(module)) != attributes or len(now) != len(held):
                return False
            if not all(map(operator.is_, now, held)):
                return False
        return self.parts[0][0] is self.model.language_model

    def can_step(self, kv_cache) -> bool:
        return self.obstacle is None and not any(self.hooks) and type(kv_cache).__module__ == "paligemma.kv_cache"

    def check_step(self, input_ids, attention_mask, token_type_ids, kv_cache) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask and types [B, T] int64 of a step that adds one token to the cache; where None, what the model takes.

        Raises ValueError when batch, cache and model do not belong together, when the cache is full, and for masks of
        another shape or with fractions.
        """
        B, T = input_ids.shape[0], kv_cache.length + 1
        if B != kv_cache.batch_size:
            raise ValueError(f"the cache was made for {kv_cache.batch_size} rows, this batch has {B}")
        if not 1 <= T <= kv_cache.max_length:
            raise ValueError(f"the cache is full ({kv_cache.max_length} tokens): make it with a larger max_length")
        layers, heads, size = self.cache_shape
        expected = (layers, B, heads, kv_cache.max_length, size)
        for tensor in (kv_cache.keys, kv_cache.values):
            if tuple(tensor.shape) != expected or tensor.dtype != self.dtype or tensor.device != self.device:
                raise ValueError(
                    f"the cache holds {tensor.dtype} {list(tensor.shape)} on {tensor.device}, expected {self.dtype} "
                    f"{list(expected)} on {self.device}: make it with this model's text_config, dtype and device"
                )
        if input_ids.dtype not in (torch.int64, torch.int32) or input_ids.device != self.device:
            raise ValueError(f"input_ids is {input_ids.dtype} on {input_ids.device}, expected int64 on {self.device}")
        if attention_mask is None:
            attention_mask = torch.ones(B, T, dtype=torch.int64, device=self.device)
        if token_type_ids is None:
            token_type_ids = torch.zeros(B, T, dtype=torch.int64, device=self.device)
        masks = []
        for name, mask in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if tuple(mask.shape) != (B, T):
                raise ValueError(f"{name} has shape {list(mask.shape)}, expected [{B}, {T}]")
            if mask.dtype != torch.int64 or mask.device != self.device:
                mask = whole_numbers(name, mask, self.device)
            masks.append(mask)
        return tuple(masks)

    # What `generate`, `record_attention` and `ablate_head` ask of a model.

    @property
    def vision_tower(self) -> nn.Module:
        return self.model.vision_tower

    @property
    def language_model(self) -> nn.Module:
        return self.model.language_model

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """As the model's."""
        return self.model.get_image_features(pixel_values)

    def named_modules(self, *arguments, **options):
        """As the model's: the names are its own, without a prefix."""
        return self.model.named_modules(*arguments, **options)

    def modules(self):
        """As the model's."""
        return self.model.modules()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()})"

    def describe(self) -> str:
        raise NotImplementedError


def whole_numbers(name: str, mask: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A mask of any type (bool, int32, float) as int64. Raises ValueError for fractions and for another device."""
    if mask.device != device:
        raise ValueError(f"{name} is on {mask.device}, expected {device}: move it there")
    whole = mask.to(torch.int64)
    if mask.is_floating_point() and not torch.equal(whole.to(mask.dtype), mask):
        raise ValueError(f"{name} holds fractions, expected 0 and 1")
    return whole
