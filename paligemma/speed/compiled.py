"""Decoding with torch.compile: the model's own layers, for one token, turned into one graph. For GPUs above all.

    from paligemma.speed.compiled import compile_for_decode
    compiled = compile_for_decode(model)
    generate(compiled, processor, images=[image], text=["caption en"])

On a GPU a step of the plain path is hundreds of small kernels, each started from Python, and most of the time goes into
starting them. A graph can be compiled once only if no shape changes from step to step. The plain path's do: one more
token is visible each time. So here every step looks at the whole memory of the cache, and the mask hides what is not
written yet; where to write is a tensor, not a number in Python. The prompt goes through the model itself.

On the CPU fast.py is faster; this works there, too.
"""

import torch
from torch.nn import functional as F

from ..modeling_gemma import PaliGemmaForConditionalGeneration, additive_mask
from .step import ModelWithFastStep, takes_fast_steps


class FixedColumns:
    """What the layers see of a KVCache in a compiled step: all its columns, of which one is written.

    keys, values: the cache's tensors [layers, B, H_kv, S, d]; column: int64 [1], where the new token goes.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, column: torch.Tensor):
        self.keys, self.values, self.column = keys, values, column

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token's key and value [B, H_kv, 1, d]; return all columns [B, H_kv, S, d]."""
        self.keys[layer_idx].index_copy_(2, self.column, key)
        self.values[layer_idx].index_copy_(2, self.column, value)
        return self.keys[layer_idx], self.values[layer_idx]


def step_mask(
    attention_mask: torch.Tensor, token_type_ids: torch.Tensor, column: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    """The row of `make_attn_mask` that belongs to the token in `column`, bool [B, 1, S].

    attention_mask and token_type_ids [B, S] cover the whole cache; columns that are not written yet are 0 in both.
    """
    place = torch.arange(attention_mask.shape[1], device=column.device)  # [S]
    step = token_type_ids.cumsum(dim=-1)  # [B, S]
    own_step = step.index_select(1, column)  # [B, 1]
    allowed = (step <= own_step) & attention_mask.bool()  # [B, S]
    if window is not None:
        allowed = allowed & ((column - place < window) | (step == own_step))
    return allowed.unsqueeze(1)


def decode_step(model, tokens, column, attention_mask, token_type_ids, keys, values) -> torch.Tensor:
    """One token of each row, [B, 1] -> logits [B, 1, V]: GemmaModel.forward with shapes that never change."""
    decoder, config = model.language_model.model, model.config.text_config
    hidden_states = decoder.embed(tokens)  # [B, 1, D]
    position_ids = attention_mask.sum(dim=-1, keepdim=True).clamp(min=1)  # [B, 1]: the new token is the latest
    position_embeddings = decoder.rotary_emb(hidden_states, position_ids)
    windows = [None] * len(decoder.layers)
    if config.model_type == "gemma2":
        windows = [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]
    masks = {
        window: additive_mask(step_mask(attention_mask, token_type_ids, column, window), hidden_states.dtype)
        for window in set(windows)
    }
    kv_cache = FixedColumns(keys, values, column)
    for layer, window in zip(decoder.layers, windows, strict=True):
        hidden_states = layer(hidden_states, position_embeddings, masks[window], kv_cache)
    return model.language_model.lm_head(decoder.norm(hidden_states))


def compile_for_decode(model: PaliGemmaForConditionalGeneration, **options):
    """A model whose decoding steps are compiled; give it to `generate` in place of `model`, which stays as it is.

    `options` go to torch.compile (mode, backend). The first step compiles, for up to a minute; a cache of another size
    (prompt + new tokens) or batch compiles once more, and from the second time on for any size. Returns the model
    itself, with a warning, when one of its parts is not the package's own (see `prepare_for_decode`).
    """
    if not takes_fast_steps(model):
        return model
    return CompiledPaliGemma(model, torch.compile(decode_step, fullgraph=True, **options))


class CompiledPaliGemma(ModelWithFastStep):
    """Called like the model it holds. A single new token takes the compiled step, everything else the model."""

    def __init__(self, model: PaliGemmaForConditionalGeneration, compiled):
        super().__init__(model)
        self.compiled = compiled

    def step(self, input_ids, attention_mask, token_type_ids, kv_cache) -> torch.Tensor:
        """One token for each row: input_ids [B, 1] -> logits [B, 1, V]."""
        missing = kv_cache.max_length - kv_cache.length - 1
        masks = (F.pad(mask, (0, missing)) for mask in (attention_mask, token_type_ids))  # [B, S]
        column = torch.tensor([kv_cache.length], device=input_ids.device)
        return self.compiled(self.model, input_ids, column, *masks, kv_cache.keys, kv_cache.values)

    def describe(self) -> str:
        return "one token: torch.compile; prompt: the model"
