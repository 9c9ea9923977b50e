"""Look at the attention of a model without changing it."""

from contextlib import contextmanager

import torch
from torch import nn

from .configuration import check_choice


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The attention modules of a model by name, in order: those with a setting `attention`."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "attention")}


def set_attention(model: nn.Module, attention: str) -> nn.Module:
    """Switch every attention of the model to "sdpa" (fused, fast) or "eager" (readable, returns the weights)."""
    check_choice("attention", attention, ("sdpa", "eager"))
    for module in attention_modules(model).values():
        module.attention = attention
    return model


@contextmanager
def record_attention(model: nn.Module):
    """Gather the attention weights of every forward pass inside the `with` block.

        with record_attention(model) as maps:
            model(**inputs)
        maps["language_model.model.layers.0.self_attn"][0]      # [B, H, L, T] of the first pass, float32 on the CPU

    Yields a dict from the module's name to a list with one tensor a forward pass: [B, H, N, N] for the image encoder,
    [B, H, L, T] for the decoder (while generating, the first is the prompt's and each further one a token's). Works
    for either setting of `attention` and puts the setting back afterwards, also when an error is raised inside.
    """
    modules = attention_modules(model)
    maps: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
    settings = {name: module.attention for name, module in modules.items()}

    def recorder(name):
        def record(module, inputs, outputs):
            maps[name].append(outputs[1].detach().float().cpu())

        return record

    hooks = []
    try:
        for name, module in modules.items():
            module.attention = "eager"
            hooks.append(module.register_forward_hook(recorder(name)))
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
        for name, module in modules.items():
            module.attention = settings[name]
