"""How fast is it, and how fast could it be? The machine's limits, then this package and transformers side by side.

    python -m paligemma.speed.benchmark                              # the small model, float32
    python -m paligemma.speed.benchmark --shape 3b --dtype bfloat16  # the published shape, random weights: 16 GB
    python -m paligemma.speed.benchmark --shape pg2-3b               # PaliGemma 2

Both models hold the very same tensors in one process, and take turns, so that whatever else the machine does falls on
both. Each figure is a median with its middle half ("spread"). Prints tables; writes them as JSON, and the roofline as
a picture, to --output. Weights are random: speed does not depend on their values. For a GPU see gpu.py.
"""

import argparse
import inspect
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from ..checkpoint import WithoutInitialisation, canonical_name, config_to_dict
from ..files import write_atomically
from ..generation import generate_tokens
from ..kv_cache import KVCache
from ..modeling_gemma import PaliGemmaConfig, PaliGemmaForConditionalGeneration
from ..published import PUBLISHED
from ..training import Schedule, answer_states, make_optimizers, update
from .compiled import CompiledPaliGemma, compile_for_decode
from .fast import load_library, prepare_for_decode, tiled_linear
from .step import ModelWithFastStep

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# ------------------------------------------------------------------------------------------------------------- shapes


def shape_config(name: str) -> PaliGemmaConfig:
    """tiny: the model of the course; 234m: SigLIP base, a small Gemma; 3b, pg2-3b: published models of 224 pixels."""
    if name == "3b":
        return PaliGemmaConfig.from_dict(PUBLISHED["paligemma-3b-pt-224"])
    if name == "pg2-3b":
        return PaliGemmaConfig.from_dict(PUBLISHED["paligemma2-3b-pt-224"])
    if name == "234m":
        text = dict(vocab_size=59392, hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
        text |= dict(num_attention_heads=6, num_key_value_heads=1, head_dim=128)
        vision, image_token = {}, 59391  # SiglipVisionConfig's defaults are SigLIP base
    else:
        text = dict(vocab_size=1706, hidden_size=128, intermediate_size=384, num_hidden_layers=4)
        text |= dict(num_attention_heads=4, num_key_value_heads=2, head_dim=32)
        vision = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4)
        vision, image_token = vision | dict(image_size=64, patch_size=8), 1705
    return PaliGemmaConfig.from_dict({"text_config": text, "vision_config": vision, "image_token_index": image_token})


def make_models(config: PaliGemmaConfig, dtype: torch.dtype, device: str = "cpu"):
    """(ours, transformers') with the same random weights: the same memory, not a copy."""
    import transformers

    with torch.device("meta"), WithoutInitialisation():
        ours = PaliGemmaForConditionalGeneration(config)
    pattern = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).to(
        device
    )  # laid end to end: quick to make
    state = {}
    for name, parameter in ours.named_parameters():
        size = parameter.numel()
        flat = torch.empty(size, dtype=dtype, device=device)
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        for start in range(0, size, len(pattern)):
            flat[start : start + len(pattern)] = pattern[: size - start] * scale
        state[name] = flat.view(parameter.shape)
    ours.load_state_dict(state, assign=True)

    values = config_to_dict(config, dtype)
    values["vision_config"]["num_image_tokens"] = config.vision_config.num_image_tokens
    reference = transformers.PaliGemmaForConditionalGeneration
    with torch.device("meta"):
        theirs = reference._from_config(
            transformers.PaliGemmaConfig(**values), dtype=dtype, attn_implementation=their_attention(config)[0]
        )
    named = {name: state[canonical_name(name)] for name in theirs.state_dict() if name != "lm_head.weight"}
    named["lm_head.weight"] = state["language_model.model.embed_tokens.weight"]
    theirs.load_state_dict(named, assign=True)
    theirs.tie_weights()
    _fill_buffers(theirs, reference, values, dtype)
    return ours.to(device).eval(), theirs.to(device).eval()


def their_attention(config: PaliGemmaConfig) -> list[str]:
    """The attention settings that transformers has for this model, the fastest first. For Gemma 2 it has but one."""
    return ["sdpa", "eager"] if config.text_config.model_type == "gemma" else ["eager"]


def _fill_buffers(theirs, reference, values, dtype) -> None:
    """Tables that are in no checkpoint (RoPE's frequencies) are computed by the constructor: taken from a model of one
    layer, because constructing the whole one would fill its memory twice."""
    import transformers

    text = values["text_config"] | {"num_hidden_layers": 1, "vocab_size": 8}
    text.pop("layer_types", None)
    vision = values["vision_config"] | {"num_hidden_layers": 1}
    small = transformers.PaliGemmaConfig(**(values | {"text_config": text, "vision_config": vision}))
    buffers = dict(reference._from_config(small, dtype=dtype, attn_implementation="eager").named_buffers())
    for name, _ in list(theirs.named_buffers()):
        owner, _, last = name.rpartition(".")
        theirs.get_submodule(owner)._buffers[last] = buffers[name]


def make_inputs(config: PaliGemmaConfig, batch_size: int, text_tokens: int = 16, device: str = "cpu") -> dict:
    """A picture and a prompt of that many tokens for each row; no padding."""
    generator = torch.Generator().manual_seed(0)
    vision = config.vision_config
    image_tokens = torch.full((batch_size, vision.num_image_tokens), config.image_token_index)
    text = torch.randint(4, config.text_config.vocab_size // 2, (batch_size, text_tokens), generator=generator)
    input_ids = torch.cat([image_tokens, text], dim=1)
    pixels = (batch_size, vision.num_channels, vision.image_size, vision.image_size)
    inputs = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "token_type_ids": torch.zeros_like(input_ids),
        "pixel_values": torch.rand(pixels, generator=generator) * 2 - 1,
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


# ------------------------------------------------------------------------------------------------------ work by hand


def count_work(config: PaliGemmaConfig, rows: int, bytes_per_weight: float) -> dict:
    """Multiplications and additions (FLOPs) and bytes of weights: {"decode": (flops, bytes), "prefill": ...}.

    A matrix of n weights costs 2n FLOPs for each token that goes through it, and n numbers to read, however many
    tokens go through at once. Attention, norms and the cache are left out: under 5 % at these lengths.
    """
    text, vision = config.text_config, config.vision_config
    attention = text.hidden_size * text.head_dim * (2 * text.num_attention_heads + 2 * text.num_key_value_heads)
    decoder = text.num_hidden_layers * (attention + 3 * text.hidden_size * text.intermediate_size)
    head = text.vocab_size * text.hidden_size
    encoder_layer = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    patch = vision.num_channels * vision.patch_size**2 * vision.hidden_size
    encoder = vision.num_hidden_layers * encoder_layer + patch + vision.hidden_size * text.hidden_size
    N, prompt = vision.num_image_tokens, vision.num_image_tokens + 16
    return {
        "decode": (2 * rows * (decoder + head), bytes_per_weight * (decoder + head)),
        "prefill": (
            2 * rows * (N * encoder + prompt * decoder + head),
            bytes_per_weight * (encoder + decoder + head),
        ),
    }


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


def make_questions(
    config: PaliGemmaConfig, pictures: int, questions: int, device: str = "cpu"
) -> tuple[dict, torch.Tensor]:
    """A batch to train on: for each picture, `questions` rows of its image tokens, 8 tokens of prompt and 8 of answer.

    Returns the batch (pixel_values [P, C, height, width]; all others [R, L]) and the picture of each row [R].
    """
    batch = make_inputs(config, pictures, text_tokens=16, device=device)
    image_index = torch.arange(pictures, device=device).repeat_interleave(questions)
    batch |= {name: tensor[image_index] for name, tensor in batch.items() if tensor.ndim == 2}
    N = config.vision_config.num_image_tokens
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(4, config.text_config.vocab_size // 2, (len(image_index), 16), generator=generator)
    batch["input_ids"][:, N:] = text.to(device)
    batch["token_type_ids"][:, N + 8 :] = 1
    batch["labels"] = batch["input_ids"].masked_fill(batch["token_type_ids"] == 0, -100)
    return batch, image_index


def training_losses(ours, theirs, config: PaliGemmaConfig, pictures: int, questions: int, device: str = "cpu") -> dict:
    """{name: function that returns the loss of the same batch}: as paligemma.training computes it, with each picture
    encoded once and the last layer worked out for the answers alone; and as transformers does."""
    batch, image_index = make_questions(config, pictures, questions, device)

    def our_loss():
        features = ours.get_image_features(batch["pixel_values"].to(ours.dtype))
        states, targets, _ = answer_states(ours, features, image_index, batch)
        return F.cross_entropy(ours.language_model.lm_head(states).float(), targets)

    their_batch = batch | {"pixel_values": batch["pixel_values"][image_index].to(theirs.dtype)}
    return {"ours": our_loss, "transformers, sdpa": lambda: theirs(**their_batch).loss}


def training_step(model: torch.nn.Module, loss_of_batch: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """One step of Muon and AdamW as in paligemma.training, at a learning rate of 0: the same work, and the weights,
    which both models share, stay as they are."""
    schedule = Schedule(cycles=((10**6, 1.0),), muon_lr=0.0, adam_lr=0.0)
    optimizers = make_optimizers(model, schedule)

    def step() -> None:
        update(model, optimizers, schedule, 0, loss_of_batch())

    return step


LOADER = """
import json, re, sys, time, torch
def peak():  # bytes; None where it is not known. (getrusage would count the process that started this one)
    try:
        with open("/proc/self/status", encoding="utf-8") as status:
            return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", status.read())[1])
    except OSError:
        return None
who, folder = sys.argv[1:]
if who == "ours":
    from paligemma.checkpoint import load_weights, read_json
    from paligemma.modeling_gemma import PaliGemmaConfig
    from pathlib import Path
else:
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    transformers.PaliGemmaForConditionalGeneration  # imported only now, when it is named
    import transformers.models.gemma.modeling_gemma, transformers.models.siglip.modeling_siglip
before = peak()
start = time.perf_counter()
if who == "ours":
    model = load_weights(PaliGemmaConfig.from_dict(read_json(Path(folder) / "config.json")), Path(folder))
else:
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype="auto")
loaded = time.perf_counter() - start
with torch.no_grad():
    total = sum(float(p.flatten()[::512].float().sum()) for p in model.parameters())  # touch every page
ready = time.perf_counter() - start
print(json.dumps({"loaded": loaded, "ready": ready, "peak": None if before is None else peak() - before}))
"""


def time_loading(ours: PaliGemmaForConditionalGeneration, rounds: int) -> dict:
    """Load time and peak memory beyond the imports, each in a fresh process; the file lies in the system's cache."""
    from safetensors.torch import save_file

    results = {"ours": [], "transformers": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(dict(ours.state_dict()), path, metadata={"format": "pt"})
        # The one measured here never stops; -1 is the id of no token, which a file may not hold.
        config = json.dumps(config_to_dict(replace(ours.config, eos_token_id=1), ours.dtype))
        (Path(folder) / "config.json").write_text(config, encoding="utf-8")
        size = path.stat().st_size
        for _ in range(rounds):
            for who, values in results.items():
                environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
                command = [sys.executable, "-c", LOADER, who, folder]
                child = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
                if child.returncode:
                    raise RuntimeError(f"loading by {who} failed: {child.stderr.strip()[-500:]}")
                values.append(json.loads(child.stdout.strip().splitlines()[-1]))
    return {"file bytes": size, **results}


# ------------------------------------------------------------------------------------------------------------- a report


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


def memory_bytes() -> float:
    """The machine's memory; infinite where Python can't tell."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return float("inf")


def describe_machine(device: str) -> str:
    """Processor, threads, memory and versions, in one line."""
    import transformers

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    if device != "cpu":
        name = f"{torch.cuda.get_device_name()} with {name}"
    memory = f", {memory_bytes() / 2**30:.0f} GiB" if memory_bytes() < float("inf") else ""
    return (
        f"{name}, {torch.get_num_threads()} threads{memory}; {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


class Report:
    """Gathers what is measured, prints it as it comes, and keeps it for the files."""

    def __init__(self, **settings):
        self.values = {**settings, "limits": {}, "rows": []}

    def line(self, text: str = "") -> None:
        print(text, flush=True)

    def table(
        self, work: str, unit: str, results: dict[str, list[float]], limit: float | dict[str, float] | None = None
    ) -> None:
        """One kind of work, a line for each way; names that begin with "transformers" are those to compare with.
        `unit`: "s", or "ms" and what follows. `limit`: seconds at the machine's limit, by way or for all."""
        factor = 1e3 if unit.startswith("ms") else 1.0
        peers = [name for name in results if name.startswith("transformers")]
        fastest_peer = min((statistics.median(results[name]) for name in peers), default=None)
        self.line(f"\n{work}")
        self.line(f"  {'':34} {unit:>9}  {'spread':>17}  {'x transformers':>14}  {'of the limit':>12}")
        for name, seconds in results.items():
            row = {"work": work, "way": name, **summary(seconds)}
            row["times_peer"] = None if fastest_peer is None or name in peers else fastest_peer / row["median"]
            least = limit.get(name) if isinstance(limit, dict) else limit
            row["of_limit"] = None if least is None else least / row["median"]
            self.values["rows"].append(row)
            spread = f"{row['low'] * factor:.4g} - {row['high'] * factor:.4g}"
            peer = "" if row["times_peer"] is None else f"{row['times_peer']:.2f}"
            share = "" if row["of_limit"] is None else f"{row['of_limit']:.0%}"
            self.line(f"  {name:34} {row['median'] * factor:9.4g}  {spread:>17}  {peer:>14}  {share:>12}")

    def save(self, path: Path) -> None:
        with write_atomically(path) as partial:
            partial.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")


# -------------------------------------------------------------------------------------------- what is measured, in turn


@dataclass
class Plan:
    """What all measurements of one run share."""

    config: PaliGemmaConfig
    ways: list[Way]
    device: str
    rounds: int
    new_tokens: int  # of an answer
    steps: int  # single steps of a turn
    large: bool  # a turn takes seconds: no warming up, and one round where others take several


Times = dict[str, list[float]]  # name of the way -> seconds


def measure_answers(plan: Plan, limits: Limits) -> tuple[Times, Times]:
    """Seconds until the first token, and of each further one; the limits beside every turn."""
    inputs = make_inputs(plan.config, 1, device=plan.device)
    prefill, decode = {way.name: [] for way in plan.ways if way.own_prompt}, {way.name: [] for way in plan.ways}
    for way in plan.ways:
        compiles = isinstance(way.model, CompiledPaliGemma)
        if compiles or not plan.large:
            time_generation(way, inputs, plan.new_tokens if compiles else 2, plan.device)
    for _ in range(plan.rounds):
        for way in plan.ways:
            first, *rest = time_generation(way, inputs, plan.new_tokens, plan.device)
            if way.own_prompt:
                prefill[way.name].append(first)
            decode[way.name] += rest[1:]
            limits.measure()
    return prefill, decode


def measure_steps(plan: Plan, rows: int, length: int) -> Times:
    """Single steps with `length` tokens in the cache."""
    seconds = {way.name: [] for way in plan.ways if way.steps}
    for _ in range(plan.rounds):
        for way in plan.ways:
            if way.steps:
                seconds[way.name] += time_steps(way, plan.config, rows, length, plan.steps, plan.device)
    return seconds


SAMPLING = {
    "greedy": {},
    "temperature 0.7": {"temperature": 0.7},
    "temperature 0.7, top-k 50": {"temperature": 0.7, "top_k": 50},
    "temperature 0.7, top-p 0.9": {"temperature": 0.7, "top_p": 0.9},
}


def measure_sampling(plan: Plan) -> dict[str, Times]:
    """Seconds a token by how the next token is chosen: our fastest way and transformers'."""
    inputs = make_inputs(plan.config, 1, device=plan.device)
    ways = best_of_ours(plan.ways), best_peer(plan.ways)
    seconds = {kind: {way.name: [] for way in ways} for kind in SAMPLING}
    for _ in range(plan.rounds):
        for kind, sampling in SAMPLING.items():
            for way in ways:
                seconds[kind][way.name] += time_generation(way, inputs, plan.new_tokens, plan.device, **sampling)[2:]
    return seconds


def measure_shared_picture(plan: Plan, prompts: int = 4) -> Times:
    """Seconds until the first tokens of several prompts: about one picture, or about as many pictures."""
    one = make_inputs(plan.config, prompts, device=plan.device)
    several = dict(one)
    one["pixel_values"] = one["pixel_values"][:1].expand_as(one["pixel_values"]).clone()
    mine, peer = best_of_ours(plan.ways), best_peer(plan.ways)
    cases = {mine.name: (mine, one), f"{mine.name}, {prompts} pictures": (mine, several), peer.name: (peer, one)}
    seconds = {name: [] for name in cases}
    for count in range(plan.rounds + 1):
        for name, (way, inputs) in cases.items():
            first = time_generation(way, inputs, 1, plan.device)[0]
            if count or plan.large:
                seconds[name].append(first)
        if plan.large and count:
            break
    return seconds


def measure_training(plan: Plan, ours, theirs, pictures: int, questions: int) -> Times:
    """Seconds of one step of training on the same batch with the same optimisers."""
    best_peer(plan.ways).choose()
    losses = training_losses(ours, theirs, plan.config, pictures, questions, plan.device)
    models = dict(zip(losses, (ours, theirs), strict=True))
    steps = {name: training_step(models[name], loss) for name, loss in losses.items()}
    try:
        return take_turns(steps, max(2, plan.rounds), plan.device)
    finally:
        for model in models.values():
            model.zero_grad(set_to_none=True)


def run(
    shape: str = "tiny",
    dtype: str = "float32",
    rounds: int | None = None,
    quick: bool = False,
    device: str = "cpu",
    output: Path | None = None,
    compiled: bool = False,
) -> dict:
    """The whole benchmark of one shape: prints it and returns it. `quick` only shows that everything runs."""
    import transformers

    transformers.logging.set_verbosity_error()
    config, number, large = shape_config(shape), DTYPES[dtype], shape in ("3b", "pg2-3b")
    ours, theirs = make_models(config, number, device)
    plan = Plan(
        config=config,
        ways=make_ways(ours, theirs, number, device, compiled),
        device=device,
        rounds=1 if quick else rounds or (2 if large else 3),  # a round of a large shape takes a minute
        new_tokens=4 if quick else 12 if large else 64,
        steps=3 if quick else 5 if large else 30,
        large=large,
    )
    report = Report(
        shape=shape, dtype=dtype, device=device, machine=describe_machine(device), config=asdict(config), quick=quick
    )
    report.line(f"{shape}, {dtype}\n{report.values['machine']}")
    with never_stop(ours):
        report_answers(plan, report, quick)
    if any(way.weight_bytes == 1 for way in plan.ways):
        report_eight_bits(plan, report)
    weights = sum(parameter.nbytes for parameter in ours.parameters())
    if 6 * weights < memory_bytes():  # weights, gradients, and up to two numbers a weight for each model's optimisers
        report_training(plan, report, ours, theirs, quick)
    if device == "cpu" and 3 * weights < memory_bytes():  # these, a second copy, and the file in the system's cache
        report_loading(report, time_loading(ours, 1 if quick or large else 3))
    if output is not None:
        save_report(report, Path(output), f"{shape}-{dtype}")
    return report.values


def report_answers(plan: Plan, report: Report, quick: bool) -> None:
    """Limits, prefill and decode, long caches, a batch, sampling, several prompts about one picture; the roofline."""
    ways = plan.ways
    work = {way.name: count_work(plan.config, 1, way.weight_bytes) for way in ways}
    limits = Limits(plan.config, ways[0].model.dtype, 64 if quick else 1024, plan.device)
    prefill, decode = measure_answers(plan, limits)
    bandwidth, products = limits.bandwidth(), limits.product_rates()
    del limits  # a GB
    fastest = max(products.values())
    report.values["limits"] = {"bandwidth": bandwidth, "products": products}
    report.line(f"\nlimits: memory is read at {bandwidth / 1e9:.1f} GB/s; products with 256 tokens:")
    for way, rate in products.items():
        report.line(f"  {way:34} {rate / 1e9:9.0f} GFLOP/s")
    # Weights that fit the processor's own fast memory are not read from memory at all: no limit is given for those.
    small = work["ours, plain"]["decode"][1] < 2**28
    decode_limit = None if small else {name: counts["decode"][1] / bandwidth for name, counts in work.items()}
    prefill_limit = None if small else work["ours, plain"]["prefill"][0] / fastest
    L = plan.config.vision_config.num_image_tokens + 16
    report.table(f"prefill, {L} tokens, until the first", "ms", prefill, prefill_limit)
    report.table("decode, batch 1", "ms/token", decode, decode_limit)

    short, long = (measure_steps(plan, 1, length) for length in (300, 3000))
    report.table("one step, 300 tokens in the cache", "ms", short)
    report.table("one step, 3000 tokens in the cache", "ms", long)
    report.line("\ngrowth of a step from 300 to 3000 tokens")
    report.values["growth"] = {
        name: statistics.median(long[name]) / statistics.median(short[name]) - 1 for name in short
    }
    for name, growth in report.values["growth"].items():
        report.line(f"  {name:34} {growth:+9.1%}")
    batch = measure_steps(plan, 8, 300)
    report.table("one step, batch 8, 300 tokens", "ms", batch, decode_limit)
    for kind, seconds in measure_sampling(plan).items():
        report.table(f"decode, batch 1, {kind}", "ms/token", seconds)
    report.table("prefill of 4 prompts about one picture", "ms", measure_shared_picture(plan))

    points = {}
    by_name = {way.name: way for way in ways}
    for label, seconds, rows, kind in (
        ("prefill", prefill, 1, "prefill"),
        ("decode, batch 1", decode, 1, "decode"),
        ("decode, batch 8", batch, 8, "decode"),
    ):  # our fastest way with the model's own weights
        candidates = [name for name in seconds if not by_name[name].is_peer and by_name[name].weight_bytes > 1]
        name = min(candidates, key=lambda name, seconds=seconds: statistics.median(seconds[name]))
        flops, read = count_work(plan.config, rows, by_name[name].weight_bytes)[kind]
        points[label] = (flops / read, flops / statistics.median(seconds[name]))
    report.values["roofline"] = points


def report_eight_bits(plan: Plan, report: Report) -> None:
    models = {way.name: way.model for way in plan.ways}
    inputs = make_inputs(plan.config, 1)
    change = change_in_logits(models["ours, fast"], models["ours, fast, 8-bit weights"], inputs)
    report.values["eight_bit"] = change
    report.line(
        f"\n8-bit weights, random as here: logits change by {change['rms']:.2%} of their standard deviation (root "
        f"mean square), at most by {change['largest']:.2%}"
    )


def report_training(plan: Plan, report: Report, ours, theirs, quick: bool) -> None:
    """The model's part of a step: stage 1 asks several questions about each picture, fine-tuning one."""
    for name, pictures, questions in (("stage 1", 16, 3), ("fine-tuning", 16, 1)):
        pictures = 2 if quick or plan.large else pictures
        work = f"training step of {name}: {pictures} pictures, {questions} question{'s' if questions > 1 else ''} each"
        report.table(work, "ms", measure_training(plan, ours, theirs, pictures, questions))


def report_loading(report: Report, loading: dict) -> None:
    report.values["loading"] = loading
    report.line(f"\nloading a file of {loading['file bytes'] / 1e9:.3f} GB that the system has cached")
    report.line(f"  {'':34} {'s':>9}  {'s, all touched':>17}  {'peak memory':>14}")
    for who in ("ours", "transformers"):
        loaded, ready = (statistics.median(value[key] for value in loading[who]) for key in ("loaded", "ready"))
        peaks = [value["peak"] for value in loading[who] if value["peak"] is not None]
        peak = f"{statistics.median(peaks) / loading['file bytes']:.2f} x file" if peaks else "not known"
        report.line(f"  {who:34} {loaded:9.3g}  {ready:17.3g}  {peak:>14}")


def save_report(report: Report, folder: Path, name: str) -> None:
    """NAME.json, and the roofline as NAME.png."""
    from matplotlib import pyplot as plt

    from .. import visualize

    folder.mkdir(parents=True, exist_ok=True)
    report.save(folder / f"{name}.json")
    visualize.set_style()
    limits = report.values["limits"]
    ax = visualize.roofline(limits["bandwidth"], max(limits["products"].values()), report.values["roofline"])
    with write_atomically(folder / f"{name}.png") as partial:
        ax.figure.savefig(partial)
    plt.close(ax.figure)
    report.line(f"\nwritten: {folder / name}.json and .png")


@torch.inference_mode()
def change_in_logits(model, other, inputs: dict) -> dict:
    """Difference of the logits of one decode step, as a share of the standard deviation of the first model's."""
    logits = []
    for each in (model, other):
        length = inputs["input_ids"].shape[1]
        cache = KVCache(each.config.text_config, 1, length + 1, dtype=each.dtype)
        each(**inputs, kv_cache=cache, logits_to_keep=1)
        mask, types = torch.ones(1, length + 1, dtype=torch.int64), torch.zeros(1, length + 1, dtype=torch.int64)
        types[:, -1] = 1
        logits.append(each(torch.tensor([[5]]), None, mask, types, kv_cache=cache).logits.float())
    difference, size = logits[1] - logits[0], logits[0].std()
    return {"rms": float(difference.pow(2).mean().sqrt() / size), "largest": float(difference.abs().max() / size)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m paligemma.speed.benchmark", description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=["tiny", "234m", "3b", "pg2-3b"], default="tiny")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: float32 for the small shapes, else bfloat16")
    parser.add_argument("--rounds", type=int, help="how often each takes its turn (default 3; for the large shapes 2)")
    parser.add_argument("--threads", type=int, help="processor threads (default: torch's choice)")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count the process's processor time instead of the clock's: with --threads 1, on a machine that is busy",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="also decode by torch.compile; on a GPU it always does")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"), help="folder for JSON and picture")
    parser.add_argument("--quick", action="store_true", help="once each, only to see that everything runs")
    options = parser.parse_args(arguments)
    if any(number is not None and number < 1 for number in (options.rounds, options.threads)):
        parser.error("--rounds and --threads must be 1 or more")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use here: leave --device out")
    if options.cpu_time and (options.threads != 1 or options.device != "cpu"):
        parser.error("--cpu-time adds up all threads: it needs --threads 1, and says nothing about a GPU")
    if options.threads:
        torch.set_num_threads(options.threads)
    global clock
    clock = time.process_time if options.cpu_time else time.perf_counter
    dtype = options.dtype or ("bfloat16" if options.shape in ("3b", "pg2-3b") else "float32")
    compiled = options.compile or options.device == "cuda"
    run(options.shape, dtype, options.rounds, options.quick, options.device, options.output, compiled)


if __name__ == "__main__":
    main()
