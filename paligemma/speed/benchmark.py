"""How fast is it, and how fast could it be? The machine's limits, then this package and transformers side by side.

    python -m paligemma.speed.benchmark                              # the small model, float32
    python -m paligemma.speed.benchmark --shape 3b --dtype bfloat16  # the published shape, random weights: 16 GB
    python -m paligemma.speed.benchmark --shape pg2-3b               # PaliGemma 2

Both models hold the very same tensors in one process, and take turns, so that whatever else the machine does falls on
both. Each figure is a median with its middle half ("spread"). Prints tables; writes them as JSON, and the roofline as
a picture, to --output. Weights are random: speed does not depend on their values. For a GPU see gpu.py.
"""

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..files import write_atomically
from ..kv_cache import KVCache
from ..modeling_gemma import PaliGemmaConfig
from ..options import refuse_file
from . import timing
from .compiled import CompiledPaliGemma
from .loading import time_loading
from .shapes import DTYPES, count_work, make_inputs, make_models, shape_config
from .timing import (
    Limits,
    Way,
    best_of_ours,
    best_peer,
    make_ways,
    never_stop,
    summary,
    take_turns,
    time_generation,
    time_steps,
    training_losses,
    training_step,
)

# ------------------------------------------------------------------------------------------------------------- a report


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


def digits(number: float) -> str:
    """Four digits, without an exponent."""
    return f"{number:.4g}" if number < 9999.5 else f"{number:,.0f}"


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
            spread = f"{digits(row['low'] * factor)} - {digits(row['high'] * factor)}"
            peer = "" if row["times_peer"] is None else f"{row['times_peer']:.2f}"
            share = "" if row["of_limit"] is None else f"{row['of_limit']:.0%}"
            self.line(f"  {name:34} {digits(row['median'] * factor):>9}  {spread:>17}  {peer:>14}  {share:>12}")

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
    if 6 * weights < memory_bytes() and (
        number == torch.float32 or device != "cpu"
    ):  # weights, gradients, and up to two numbers a weight for each model's optimisers
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
    large = sum(parameter.numel() for parameter in ours.parameters()) > 10**8  # a step of 16 pictures takes minutes
    for name, pictures, questions in (("stage 1", 16, 3), ("fine-tuning", 16, 1)):
        pictures = 2 if quick or large else pictures
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
    refuse_file(parser, options.output)
    if options.threads:
        torch.set_num_threads(options.threads)
    timing.clock = time.process_time if options.cpu_time else time.perf_counter
    dtype = options.dtype or ("bfloat16" if options.shape in ("3b", "pg2-3b") else "float32")
    compiled = options.compile or options.device == "cuda"
    run(options.shape, dtype, options.rounds, options.quick, options.device, options.output, compiled)


if __name__ == "__main__":
    main()
