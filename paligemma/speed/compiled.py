"""A decoding step as one graph, by torch.compile or as a CUDA graph: the model's own layers, for one token. For GPUs.

    from paligemma.speed.compiled import capture_for_decode, compile_for_decode
    compiled = compile_for_decode(model)   # a compiler turns the step into fewer, larger kernels
    captured = capture_for_decode(model)   # a CUDA graph: the kernels as they are, started by one call
    generate(captured, processor, images=[image], text=["caption en"])

On a GPU a step of the plain path is hundreds of small kernels, each started from Python, and most of the time goes into
starting them. A graph can be compiled once only if no shape changes from step to step. The plain path's do: one more
token is visible each time. So here every step looks at the whole memory of the cache, and the mask hides what is not
written yet; where to write is a tensor, not a number in Python. The prompt goes through the model itself.

On the CPU fast.py is faster; this works there, too.
"""

import weakref
from collections.abc import Callable

import torch
from torch.nn import functional as F

from ..kv_cache import KVCache
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
        column = torch.full((1,), kv_cache.length, device=input_ids.device)
        return self.compiled(self.model, input_ids, column, *masks, kv_cache.keys, kv_cache.values)

    def describe(self) -> str:
        return "one token: torch.compile; prompt: the model"


# --------------------------------------------------------------------------------------------------------- CUDA graphs


def capture_for_decode(model: PaliGemmaForConditionalGeneration, compiled: bool = False):
    """A model whose decoding steps are CUDA graphs; give it to `generate` in place of `model`, which stays as it is.

    The first step for each batch size and cache size captures a graph, in less than a second; `compiled`: of the step
    that torch.compile makes, in up to a minute. All answers share the graph's memory, so one is written at a time: when
    another cache takes its turn, the first gets a copy of its own. On the CPU, where there are no graphs, the step
    simply runs. Returns the model itself, with a warning, when one of its parts is not the package's own.
    """
    if not takes_fast_steps(model):
        return model
    return CapturedPaliGemma(model, torch.compile(decode_step, fullgraph=True) if compiled else decode_step)


class CapturedPaliGemma(ModelWithFastStep):
    """Called like the model it holds. A single new token replays a CUDA graph, everything else takes the model."""

    def __init__(self, model: PaliGemmaForConditionalGeneration, one_step: Callable):
        super().__init__(model)
        self.one_step = one_step
        self.captured: dict[tuple[int, int], CapturedStep] = {}  # by batch size and size of the cache
        self.addresses = self.weight_addresses()

    def weight_addresses(self) -> list[int]:
        return [parameter.data_ptr() for parameter in self.model.language_model.parameters()]

    def changed(self) -> str | None:
        addresses = self.weight_addresses()
        if addresses != self.addresses:  # a graph reads the memory that it was captured with
            self.captured.clear()
            self.addresses = addresses
        return super().changed()

    def step(self, input_ids, attention_mask, token_type_ids, kv_cache) -> torch.Tensor:
        """One token for each row: input_ids [B, 1] -> logits [B, 1, V]."""
        size = kv_cache.batch_size, kv_cache.max_length
        if size not in self.captured:
            self.captured[size] = CapturedStep(self.one_step, self.model, kv_cache)
        return self.captured[size](input_ids, attention_mask, token_type_ids, kv_cache)

    def describe(self) -> str:
        return "one token: a CUDA graph; prompt: the model"


class CapturedStep:
    """decode_step for one batch size and one size of the cache, with inputs and outputs that never move in memory."""

    def __init__(self, one_step: Callable, model: PaliGemmaForConditionalGeneration, kv_cache: KVCache):
        B, S, device = kv_cache.batch_size, kv_cache.max_length, model.device
        self.owner = None  # a weak reference to the KVCache whose tensors are the graph's
        with torch.inference_mode(False), torch.no_grad():  # tensors made in inference mode could be used in it only
            self.allocate(B, S, device, kv_cache)
            inputs = self.tokens, self.column, self.attention_mask, self.token_type_ids, self.keys, self.values
            self.replay, self.logits = capture(lambda: one_step(model, *inputs), device)

    def allocate(self, B: int, S: int, device: torch.device, kv_cache: KVCache) -> None:
        self.tokens = torch.zeros(B, 1, dtype=torch.int64, device=device)
        self.column = torch.zeros(1, dtype=torch.int64, device=device)
        self.attention_mask = torch.ones(B, S, dtype=torch.int64, device=device)
        self.token_type_ids = torch.zeros(B, S, dtype=torch.int64, device=device)
        self.keys, self.values = torch.zeros_like(kv_cache.keys), torch.zeros_like(kv_cache.values)

    def __call__(self, input_ids, attention_mask, token_type_ids, kv_cache: KVCache) -> torch.Tensor:
        self.lend_memory_to(kv_cache)
        T = kv_cache.length + 1
        self.tokens.copy_(input_ids)
        self.column.fill_(kv_cache.length)
        for mine, mask in ((self.attention_mask, attention_mask), (self.token_type_ids, token_type_ids)):
            mine[:, :T].copy_(mask)
            mine[:, T:].zero_()
        self.replay()
        return self.logits.clone()

    def lend_memory_to(self, kv_cache: KVCache) -> None:
        """Let this cache live in the graph's memory; the cache that did before keeps what it holds, elsewhere."""
        owner = None if self.owner is None else self.owner()
        if owner is kv_cache and kv_cache.keys is self.keys and kv_cache.values is self.values:
            return
        if owner is not None and owner is not kv_cache:
            owner.keys, owner.values = self.keys.clone(), self.values.clone()
        self.keys.copy_(kv_cache.keys)
        self.values.copy_(kv_cache.values)
        kv_cache.keys, kv_cache.values = self.keys, self.values
        self.owner = weakref.ref(kv_cache)


def capture(function: Callable[[], torch.Tensor], device: torch.device) -> tuple[Callable[[], None], torch.Tensor]:
    """(replay, output): `replay()` does what `function` did with the same memory, and so refreshes `output`.

    On a GPU a CUDA graph, captured after three runs on a stream of its own (libraries allocate their workspaces in the
    first), as https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs asks for. On the CPU `function` itself.
    """
    if device.type != "cuda":
        output = function()
        return lambda: output.copy_(function()), output
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function()
    return graph.replay, output
