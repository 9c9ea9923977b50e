"""Record attention weights, roll them out through the layers, measure where they fall, ablate heads."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import nn

from .config_checks import check_choice
from .generation import generate
from .modeling_gemma import PaliGemmaForConditionalGeneration
from .processing_paligemma import PaliGemmaProcessor


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The attention modules of a model by name, in order: those whose setting `attention` is "sdpa" or "eager".

    A module whose attribute `attention` is something else, such as an attention layer in a learner's own class, does
    not count. The fast forms of a model (paligemma.speed) have the modules of the model that they hold. Raises
    TypeError for an object without modules.
    """
    if not hasattr(model, "named_modules"):
        raise TypeError(
            f"the model is a {type(model).__name__}, expected a torch.nn.Module, such as the model that "
            "load_pretrained gives"
        )
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(getattr(module, "attention", None), str)}


def set_attention(model: nn.Module, attention: str) -> nn.Module:
    """Switch every attention of the model to "sdpa" (fused, fast) or "eager" (readable, returns the weights)."""
    check_choice("attention", attention, ("sdpa", "eager"))
    for module in attention_modules(model).values():
        module.attention = attention
    return model


# How many recorders look at each module now, and the setting that it had before the first of them. Recorders may be
# closed in any order, in other threads or by a generator that is collected later: the last one restores the setting.
_watched: WeakKeyDictionary[nn.Module, tuple[int, str]] = WeakKeyDictionary()
_lock = threading.RLock()


def _watch(module: nn.Module) -> None:
    with _lock:
        count, setting = _watched.get(module, (0, module.attention))
        _watched[module] = (count + 1, setting)
        module.attention = "eager"


def _unwatch(module: nn.Module) -> None:
    with _lock:
        count, setting = _watched.pop(module)
        if count > 1:
            _watched[module] = (count - 1, setting)
        else:
            module.attention = setting


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Gather the attention weights of every forward pass inside the `with` block.

        with record_attention(model) as maps:
            model(**inputs)
        maps["language_model.model.layers.0.self_attn"][0]      # [B, H, L, T] of the first pass, float32 on the CPU

    Yields a dict from the module's name to a list with one tensor a forward pass: [B, H, N, N] for the image encoder,
    [B, H, L, T] for the decoder (while generating, the first is the prompt's and each further one a token's). Works
    for either setting of `attention` and puts the setting back when the last of several recorders is closed, in
    whatever order, and also when an error is raised inside.
    """
    modules = attention_modules(model)
    maps: dict[str, list[torch.Tensor]] = {name: [] for name in modules}

    def recorder(name):
        def record(module, inputs, outputs):
            maps[name].append(outputs[1].detach().float().cpu())

        return record

    watched, hooks = [], []
    try:
        for name, module in modules.items():
            _watch(module)
            watched.append(module)
            hooks.append(module.register_forward_hook(recorder(name)))
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
        for module in watched:
            _unwatch(module)


@dataclass
class AnswerAttention:
    """What each token of an answer looked at when it was chosen (see `answer_attention`)."""

    text: str  # the answer
    tokens: list[str]  # its A tokens, the last is EOS
    decoder: torch.Tensor  # [layers, H, L, L]: all attention of the decoder, picture, prompt and answer
    encoder: torch.Tensor  # [layers, H, N, N]: all attention of the image encoder
    queries: torch.Tensor  # [A]: the positions at which the tokens were chosen, one before their own
    grid: int  # patches along one side: N = grid * grid

    def to_image(self, layer: int, head: int, token: int) -> torch.Tensor:
        """The map of one head for one token over the patches, [grid, grid]; it sums to the picture's share."""
        weights = self.decoder[layer, head, self.queries[token], : self.grid**2]
        return weights.view(self.grid, self.grid)


@torch.no_grad()
def answer_attention(
    model: PaliGemmaForConditionalGeneration,
    processor: PaliGemmaProcessor,
    image: Image.Image,
    prompt: str,
    answer: str | None = None,
) -> AnswerAttention:
    """Ask once, and record what every token of the answer looks at. The answer is the model's own unless given.

    The logits at a position choose the token after it, so the attention that chose token t is that of position t - 1.
    """
    attention_modules(model)  # a TypeError now, not after the answer was written
    if answer is None:
        answer = generate(model, processor, [image], [prompt], max_new_tokens=64)[0]
    inputs = processor(text=[prompt], images=[image], suffix=[answer])
    with record_attention(model) as maps:
        model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
    decoder = torch.cat([maps[name][0] for name in maps if name.startswith("language_model.")])  # [layers, H, L, L]
    encoder = torch.cat([maps[name][0] for name in maps if name.startswith("vision_tower.")])  # [layers, H, N, N]
    positions = inputs["token_type_ids"][0].nonzero().flatten()  # [A]
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0, positions].tolist())
    grid = round(processor.image_seq_length**0.5)
    return AnswerAttention(answer, [str(token) for token in tokens], decoder, encoder, positions - 1, grid)


def rollout(attention: torch.Tensor) -> torch.Tensor:
    """Attention followed through all layers. [layers, H, L, L] -> [L, L], each row sums to 1

    Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers": heads are averaged, half of each token's
    weight stays with itself (the residual), and the layers' matrices are multiplied.
    """
    flow = torch.eye(attention.shape[-1])
    for weights in attention.mean(dim=1):  # [L, L], first layer first
        flow = (0.5 * weights + 0.5 * torch.eye(len(weights))) @ flow
    return flow


def box_patches(box: Sequence[float], grid: int) -> torch.Tensor:
    """How much of each patch lies inside a box (y1, x1, y2, x2) of fractions. [grid, grid], from 0 to 1"""
    edges = torch.arange(grid + 1) / grid

    def covered(low, high):  # [grid]: the covered part of each row (or column)
        overlap = edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)
        return overlap.clamp(min=0) * grid

    y1, x1, y2, x2 = box
    return covered(y1, y2)[:, None] * covered(x1, x2)[None, :]


def share_inside(weights: torch.Tensor, box: Sequence[float]) -> float:
    """The share of the attention to the picture [grid, grid] that falls inside the box, from 0 to 1.

    Compare it with the box's share of the picture's area: uniform attention would have exactly that.
    """
    return float((weights * box_patches(box, len(weights))).sum() / weights.sum())


@contextmanager
def ablate_head(
    model: PaliGemmaForConditionalGeneration, layer: int, head: int
) -> Iterator[PaliGemmaForConditionalGeneration]:
    """Ablate one head of one decoder layer inside the `with` block: its output is replaced by zeros."""
    layers = model.language_model.model.layers
    if not 0 <= layer < len(layers):
        raise ValueError(f"layer is {layer}, this decoder has layers 0 to {len(layers) - 1}")
    attention = layers[layer].self_attn
    if not 0 <= head < attention.num_heads:
        raise ValueError(f"head is {head}, this layer has heads 0 to {attention.num_heads - 1}")

    def silence(module, inputs):
        (heads,) = inputs  # [B, L, H * d], the heads side by side
        heads = heads.clone()
        heads[..., head * attention.head_dim : (head + 1) * attention.head_dim] = 0
        return (heads,)

    hook = attention.o_proj.register_forward_pre_hook(silence)
    try:
        yield model
    finally:
        hook.remove()
