"""How it is measured: the machine's limits, the ways to run a model, and the seconds that each takes."""

import inspect
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.nn import functional as F

from ..generation import generate_tokens
from ..kv_cache import KVCache
from ..modeling_gemma import PaliGemmaConfig, PaliGemmaForConditionalGeneration
from ..training import Schedule, answer_states, make_optimizers, update
from .compiled import compile_for_decode
from .fast import load_library, prepare_for_decode, tiled_linear
from .shapes import make_questions, their_attention
from .step import ModelWithFastStep

# ------------------------------------------------------------------------------------------------ the machine's limits


clock = time.perf_counter  # `--cpu-time` puts time.process_time in its place


def wait(device: str) -> None:
    """A GPU works behind Python's back: wait until it is done before looking at the clock."""
    if device != "cpu":
        torch.cuda.synchronize()


def take_turns(functions: dict, rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each function, called in turn, after one call each that does not count."""
    seconds = {name: [] for name in functions}
    for count in range(rounds + 1):
        for name, function in functions.items():
            wait(device)
            start = clock()
            function()
            wait(device)
            if count:
                seconds[name].append(clock() - start)
    return seconds


class Limits:
    """How fast the machine reads memory and multiplies matrices. Measured again in every round, beside the models,
    because a machine that is shared is faster in one minute than in another.

    Memory: a large matrix is read by torch's product with a vector, by a sum and by a plain loop. (It is larger than
    the caches; for a processor with hundreds of MB of cache the true limit lies a little lower.) Products: the
    decoder's own matrices with 256 tokens, by torch and by gemm.cpp.
    """

    def __init__(self, config: PaliGemmaConfig, dtype: torch.dtype, megabytes: int, device: str = "cpu"):
        self.device, self.reads, self.products = device, {}, {}
        library, threads = load_library() if device == "cpu" else None, torch.get_num_threads()
        rows = megabytes * 2**20 // 4 // 2048
        weights, x = torch.ones(rows, 2048, device=device), torch.ones(1, 2048, device=device)
        self.read_bytes = weights.nbytes
        self.read_ways = {"product": lambda: F.linear(x, weights), "sum": lambda: weights.sum()}
        if library is not None:
            self.read_ways["read"] = lambda: library.read_matrix(weights.data_ptr(), rows, 2048, threads)

        D, ffn = config.text_config.hidden_size, config.text_config.intermediate_size
        heads = config.text_config.num_attention_heads * config.text_config.head_dim
        name = str(dtype).removeprefix("torch.")
        ways = {f"{name}, torch": (dtype, F.linear)}
        if device == "cpu":
            ways |= {"float32, torch": (torch.float32, F.linear)}
        if library is not None:
            ways |= {f"{name}, gemm.cpp": (dtype, partial(tiled_linear, workspace=torch.empty(0)))}
        shapes = [(heads, D), (ffn, D), (ffn, D), (D, ffn)]  # query; gate and up; down
        self.product_flops = sum(2 * 256 * rows * columns for rows, columns in shapes)
        self.product_ways = {}
        for way, (number, function) in ways.items():
            pairs = [
                (
                    torch.ones(256, columns, dtype=number, device=device),
                    torch.ones(rows, columns, dtype=number, device=device),
                )
                for rows, columns in shapes
            ]
            self.product_ways[way] = lambda pairs=pairs, function=function: [function(*pair) for pair in pairs]

    @torch.inference_mode()
    def measure(self) -> None:
        """Measure once more, and keep all figures so far."""
        for ways, kept in ((self.read_ways, self.reads), (self.product_ways, self.products)):
            for way, seconds in take_turns(ways, 1, self.device).items():
                kept.setdefault(way, []).extend(seconds)

    def bandwidth(self) -> float:
        """Bytes a second: the median of the fastest way."""
        return self.read_bytes / min(statistics.median(seconds) for seconds in self.reads.values())

    def product_rates(self) -> dict[str, float]:
        """FLOPs a second of each way, medians."""
        return {way: self.product_flops / statistics.median(seconds) for way, seconds in self.products.items()}


def summary(seconds: list[float]) -> dict:
    """Median and quartiles of some times."""
    ordered = sorted(seconds)
    quarter = len(ordered) // 4
    return {
        "median": statistics.median(ordered),
        "low": ordered[quarter],
        "high": ordered[-1 - quarter],
        "count": len(ordered),
    }


# --------------------------------------------------------------------------------------------- the ways to be compared


@dataclass
class Way:
    """One way to run the model: ours, or one that transformers offers."""

    name: str
    model: torch.nn.Module | ModelWithFastStep
    weight_bytes: float  # bytes of a weight when a step reads it
    is_peer: bool = False  # transformers'
    attention: str | None = None  # transformers' setting; None: this model has but one
    options: dict = field(default_factory=dict)  # more arguments for transformers' generate()
    own_prompt: bool = True  # False: it reads the prompt as another way does, so that prefill is not measured again
    steps: bool = True  # False: single steps are not measured

    def choose(self) -> None:
        """Switch the model to this way (transformers' ways share one model)."""
        if self.attention is not None:
            self.model.set_attn_implementation(self.attention)


def make_ways(ours, theirs, dtype: torch.dtype, device: str = "cpu", compiled: bool = False) -> list[Way]:
    """Ours first, then transformers', its fastest way first."""
    size = torch.finfo(dtype).bits // 8
    ways = [Way("ours, plain", ours, size)]
    if compiled:
        ways.append(Way("ours, torch.compile", compile_for_decode(ours), size, own_prompt=False))
    if device == "cpu" and isinstance(fast := prepare_for_decode(ours), ModelWithFastStep):
        ways.append(Way("ours, fast", fast, size))
        eight_bit = prepare_for_decode(ours, weights="int8")
        ways.append(Way("ours, fast, 8-bit weights", eight_bit, 1, own_prompt=False))
    settings = their_attention(ours.config)
    for i, attention in enumerate(settings):
        only = attention if len(settings) > 1 else None
        ways.append(Way(f"transformers, {attention}", theirs, size, True, only, steps=i == 0))
    if len(settings) > 1:  # transformers' static cache does not support Gemma 2's sliding window here
        static = {"cache_implementation": "static"}
        ways.append(
            Way(f"transformers, {settings[0]}, static cache", theirs, size, True, settings[0], static, steps=False)
        )
    return ways


def best_of_ours(ways: list[Way]) -> Way:
    """Our fastest way with the model's own weights."""
    return next((way for way in ways if way.name == "ours, fast"), ways[0])


def best_peer(ways: list[Way]) -> Way:
    return next(way for way in ways if way.is_peer)


# ------------------------------------------------------------------------------------------------------ what is timed


class Stopwatch:
    """Given to transformers' generate() as a streamer: notes the time of every token."""

    def __init__(self, device: str):
        self.device, self.times = device, []

    def put(self, value) -> None:
        wait(self.device)
        self.times.append(clock())

    def end(self) -> None:
        pass


@torch.inference_mode()
def time_generation(way: Way, inputs: dict, new_tokens: int, device: str = "cpu", **sampling) -> list[float]:
    """Seconds until the first token, then of each further one, as a user calls it. `sampling`: temperature, top_k,
    top_p; greedy without. The model must never say EOS (see `never_stop`)."""
    way.choose()
    wait(device)
    start = clock()
    if not way.is_peer:
        times = []
        for _ in generate_tokens(way.model, inputs, new_tokens, **sampling):
            wait(device)
            times.append(clock())
    else:
        stopwatch = Stopwatch(device)
        length = dict(max_new_tokens=new_tokens, min_new_tokens=new_tokens)
        if sampling:  # top_k of 0: no limit, in both
            sampling = {"top_k": 0, "top_p": 1.0, **sampling, "do_sample": True}
        else:
            sampling = {"do_sample": False}
        way.model.generate(**inputs, **length, **sampling, streamer=stopwatch, **way.options)
        times = stopwatch.times[1:]  # the first is the prompt, which it hands over before it begins
    return [end - begin for begin, end in zip([start, *times], times)]


@contextmanager
def never_stop(ours: PaliGemmaForConditionalGeneration) -> Iterator[None]:
    """Inside the block no token of ours means the end, so that answers have the length that was asked for."""
    before, ours.config.eos_token_id = ours.config.eos_token_id, -1
    try:
        yield
    finally:
        ours.config.eos_token_id = before


@torch.inference_mode()
def time_steps(
    way: Way, config: PaliGemmaConfig, rows: int, length: int, steps: int, device: str = "cpu"
) -> list[float]:
    """Seconds of each of a few decode steps with `length` tokens in the cache (of random contents)."""
    way.choose()
    text = config.text_config
    token = torch.full((rows, 1), 5, device=device)
    ones = torch.ones(rows, length + steps, dtype=torch.int64, device=device)
    dtype = way.model.dtype
    seconds = []
    if not way.is_peer:
        cache = KVCache(text, rows, length + steps, dtype=dtype, device=device)
        cache.keys.normal_()
        cache.values.normal_()
        cache.length = length

        def step(count):
            mask = ones[:, : length + count + 1]
            way.model(token, None, mask, mask, kv_cache=cache, logits_to_keep=1)
    else:
        import transformers

        cache = transformers.DynamicCache(config=way.model.config.get_text_config())
        shape = (rows, text.num_key_value_heads, length, text.head_dim)
        for layer in range(text.num_hidden_layers):
            key, value = torch.randn(shape, device=device).to(dtype), torch.randn(shape, device=device).to(dtype)
            cache.update(key, value, layer)
        name = "cache" if "cache" in inspect.signature(way.model.forward).parameters else "past_key_values"

        def step(count):
            mask = ones[:, : length + count + 1]
            options = {name: cache, "use_cache": True, "logits_to_keep": 1}
            way.model(input_ids=token, attention_mask=mask, token_type_ids=mask[:, -1:], **options)

    for count in range(steps):
        wait(device)
        start = clock()
        step(count)
        wait(device)
        seconds.append(clock() - start)
    return seconds[1:]  # the first pays for fresh memory


def training_losses(ours, theirs, config: PaliGemmaConfig, pictures: int, questions: int, device: str = "cpu") -> dict:
    """{name: function that returns the loss of the same batch}: as paligemma.training computes it, with each picture
    encoded once and the last layer worked out for the answers alone; and as transformers does."""
    batch, image_index = make_questions(config, pictures, questions, device)

    def our_loss():
        features = ours.get_image_features(batch["pixel_values"].to(ours.dtype))
        states, targets, _ = answer_states(ours, features, image_index, batch)
        return F.cross_entropy(ours.language_model.lm_head(states).float(), targets)

    their_batch = batch | {"pixel_values": batch["pixel_values"][image_index].to(theirs.dtype)}
    return {"ours": our_loss, f"transformers, {their_attention(config)[0]}": lambda: theirs(**their_batch).loss}


def training_step(model: torch.nn.Module, loss_of_batch: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """One step of Muon and AdamW as in paligemma.training, at a learning rate of 0: the same work, and the weights,
    which both models share, stay as they are."""
    schedule = Schedule(cycles=((10**6, 1.0),), muon_lr=0.0, adam_lr=0.0)
    optimizers = make_optimizers(model, schedule)

    def step() -> None:
        update(model, optimizers, schedule, 0, loss_of_batch())

    return step
