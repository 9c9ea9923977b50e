"""Make the learner's modules and give them the right ones' weights; say which parameters do not match."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from ...swap import hidden
from . import calls, standins
from .calls import Sizes


def with_weights(module: nn.Module) -> nn.Module:
    """Random weights, none of them zero: all zeros would hide mistakes."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module.eval()


@dataclass
class Maker:
    """Makes modules from sizes, with the learner's configuration classes where they are right."""

    kinds: dict[str, type] = field(default_factory=dict)  # {"GemmaConfig": theirs}
    cache: type = standins.KVCache  # the learner's, where it is right

    def given(self, name: str, kind, sizes: Sizes) -> dict:
        """What constructors of this part take, by role. The course's own get a plain configuration."""
        own = not kind.__module__.startswith("paligemma.")
        config = calls.configuration(sizes, self.kinds if own else {})
        if name == "GemmaRMSNorm":
            return {"dim": sizes["hidden_size"], "eps": sizes["rms_norm_eps"], "config": config}
        if name == "GemmaRotaryEmbedding":
            given = {"dim": sizes["head_dim"], "max_position_embeddings": 64, "base": sizes["rope_theta"]}
            return {**given, "config": config}
        if name in ("GemmaAttention", "GemmaDecoderLayer"):
            return {"config": config, "layer_idx": 0}
        return {"config": config}

    def make(self, name: str, kind, sizes: Sizes) -> nn.Module:
        made = kind(**calls.arguments(kind, self.given(name, kind, sizes)))
        if not isinstance(made, nn.Module):
            raise TypeError(f"{kind.__name__} makes a {type(made).__name__}, expected a subclass of nn.Module")
        if hasattr(made, "tie_weights"):
            made.tie_weights()
        return made

    def right(self, name: str, kind, sizes: Sizes) -> nn.Module:
        made = kind(**calls.arguments(kind, self.given(name, kind, sizes)))
        if hasattr(made, "tie_weights"):
            made.tie_weights()
        return with_weights(made)

    def loaded(self, name: str, kind, reference, sizes: Sizes) -> nn.Module:
        """The learner's module with the right one's weights: where names differ, by the likeliest name."""
        made = self.make(name, kind, sizes)
        right = self.right(name, reference, sizes)
        own, source = dict(made.named_parameters(remove_duplicate=False)), dict(right.state_dict())
        pairs = {key: key for key in own if key in source}
        pairs.update(renamed(own, source))
        with torch.no_grad():
            for key, other in pairs.items():
                if own[key].shape == source[other].shape:
                    own[key].copy_(source[other])
        return made.eval()

    def fits(self, name: str, reference, sizes: Sizes) -> Callable:
        """A function that compares the parameters of the learner's module with the right one's, by name and shape."""

        def compare(kind) -> list[tuple[str, str, str, str]]:
            made = self.make(name, kind, sizes)
            right = self.right(name, reference, sizes)
            return list(misfits(made, right, name))

        return compare


def new_cache(maker: Maker, kind, sizes: Sizes, batch_size: int):
    """The learner's cache for the learner's parts, where it is right; the course's in the video's form for others."""
    if kind.__module__.startswith("paligemma.") or maker.cache is standins.KVCache:
        return standins.KVCache()
    given = {"config": calls.configuration(sizes, maker.kinds), "batch_size": batch_size, "max_length": 64}
    return maker.cache(**calls.arguments(maker.cache, given))


def renamed(own: dict, source: dict) -> dict[str, str]:
    """{the learner's name: the usual one} for parameters of another name, by shape and likeness."""
    found, free = {}, [key for key in source if key not in own]
    for key in [key for key in own if key not in source]:
        fitting = [other for other in free if source[other].shape == own[key].shape]
        close = difflib.get_close_matches(key, fitting, n=1, cutoff=0.5)
        if close:
            found[key] = close[0]
            free.remove(close[0])
    return found


NAMES = (
    "the published weights are found by their names: a parameter of another name gets none, and load_state_dict with "
    "strict=False, as in the video, says nothing"
)


def misfits(made: nn.Module, right: nn.Module, name: str):
    """(name, what was seen, what it means, attribute) for each parameter that does not match."""
    own, source = dict(made.named_parameters(remove_duplicate=False)), dict(right.state_dict())
    tied = {id(value) for key, value in own.items() if key in source}
    others = {key: other for key, other in renamed(own, source).items() if id(own[key]) not in tied}
    told = {shorter(key, other): key for key, other in others.items()}
    if told:
        yield (
            "names of weights",
            "; ".join(f"your {mine} is to be called {theirs}" for mine, theirs in told),
            NAMES,
            next(iter(told.values())).split(".")[0],
        )
    for key, value in own.items():
        if key in source and value.shape != source[key].shape:
            turned = " (it looks transposed)" if list(value.shape) == list(source[key].shape)[::-1] else ""
            saw = f"{key} has the shape {list(value.shape)}, expected {list(source[key].shape)}{turned}"
            yield "weights do not fit", saw, "sizes in __init__ are exchanged, or one is written in", key.split(".")[0]
        if key not in source and key not in others and id(value) not in tied:
            if key.endswith(".bias") and key[: -len("bias")] + "weight" in source:
                saw, means = f"you have {key}, the published weights have none", "this nn.Linear needs bias=False"
            else:
                saw, means = f"you have a parameter {key}, which the published weights do not have", NAMES
            yield "weights do not fit", saw, means, key.split(".")[0]
    twins = {id(value): key for key, value in right.named_parameters()}
    for key, value in right.named_parameters(remove_duplicate=False):
        twin = twins[id(value)]
        if twin != key and key in own and twin in own and own[key] is not own[twin]:
            yield (
                "head not tied",
                f"{key} and {twin} are two tensors",
                "Gemma's head is the embedding table (tied weights), and no file has weights for it: tie_weights has "
                "to make the two one",
                key.split(".")[0],
            )
    for key in source:
        if key not in own and key not in others.values():
            if key.endswith(".bias") and key[: -len("bias")] + "weight" in own:
                saw, means = f"{key} is missing", "this layer is made with bias=False; the published one has a bias"
            else:
                saw = f"the parameter {key} is missing{hidden(made, key)}"
                means = "what is not an nn.Parameter or nn.Module in an attribute of its own gets no weights"
            yield "weights do not fit", saw, means, key.split(".")[0]
    for path, module in made.named_modules():
        if path and getattr(module, "layer_idx", 0) is None:
            saw = f"{path} is made without its layer_idx"
            yield "layer_idx not passed on", saw, "the cache keeps each layer's keys under it", path.split(".")[0]
            break
    if name == "GemmaRMSNorm":
        fresh = dict(made.named_parameters()).get("weight")
        if fresh is not None and bool((fresh == 1).all()):
            yield (
                "weight starts at one",
                "a new GemmaRMSNorm has weights of one",
                "Gemma scales by 1 + weight, so weights start at zero. With trained weights nobody notices; a model "
                "that is trained from the start would double everything at each norm",
                "weight",
            )


def shorter(key: str, other: str) -> tuple[str, str]:
    """Two names of a parameter without the end that they share: ("attn", "self_attn"), not ("attn.k_proj.weight", …)"""
    mine, theirs = key.split("."), other.split(".")
    while len(mine) > 1 and len(theirs) > 1 and mine[-1] == theirs[-1]:
        mine.pop()
        theirs.pop()
    return ".".join(mine), ".".join(theirs)
