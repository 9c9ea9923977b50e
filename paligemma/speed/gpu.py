"""Everything that docs/performance.md needs to know of a GPU, in one command of ten minutes.

    python -m paligemma.speed.gpu                              # the published 3B shape, bfloat16, random weights
    python -m paligemma.speed.gpu --device cpu --shape tiny    # to see that it runs; says nothing about GPUs

Each way runs in a process of its own: when one fails or hangs, the others go on. Each result is appended to
OUTPUT/results.jsonl as soon as it is there, the quick and important ones first; at the end a table is printed from that
file. Both models hold the same weights, in one process at a time, so nothing else is on the GPU beside them.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.nn import functional as F

from ..options import refuse_file
from .benchmark import describe_machine
from .compiled import capture_for_decode, compile_for_decode
from .shapes import DTYPES, count_work, make_inputs, make_models, shape_config, their_attention
from .timing import (
    Way,
    never_stop,
    summary,
    take_turns,
    time_generation,
    time_steps,
    training_losses,
    training_step,
)

NEW_TOKENS = 64


class Session:
    """What a process measures with: the models, the device, and the file for results."""

    def __init__(self, part: str, shape: str, dtype: str, device: str, output: Path):
        self.part, self.device, self.path = part, device, output / "results.jsonl"
        self.config, self.dtype = shape_config(shape), DTYPES[dtype]

    def make_models(self):
        return make_models(self.config, self.dtype, self.device)

    def write(self, **values) -> None:
        """One line of results, on the disk before the next measurement begins."""
        line = json.dumps({"part": self.part, **values})
        print(line, flush=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def try_to(self, work: str, measure: Callable[[], dict]) -> None:
        """Write what `measure` returns, or why it failed."""
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        try:
            values = measure()
        except Exception as error:  # out of memory, a kernel that is missing here: the next measurement may work
            values = {"error": f"{type(error).__name__}: {str(error).strip()[:300]}"}
        else:
            if self.device != "cpu":
                values["peak_bytes"] = torch.cuda.max_memory_allocated()
        self.write(work=work, **values)
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()


# ----------------------------------------------------------------------------------------------------------- the parts


def measure_limits(session: Session) -> None:
    """How fast memory is read and matrices are multiplied: the roof over everything else."""
    device = session.device
    count, side = (2**25, 1024) if device == "cpu" else (2**31, 8192)

    def bandwidth() -> dict:
        weights = torch.ones(count, dtype=torch.bfloat16, device=device)
        seconds = take_turns({"sum": weights.sum}, 10, device)["sum"]
        return {"bytes_per_second": weights.nbytes / summary(seconds)["median"]}

    def products() -> dict:
        x, weight = (torch.ones(side, side, dtype=session.dtype, device=device) for _ in range(2))
        seconds = take_turns({"product": lambda: F.linear(x, weight)}, 10, device)["product"]
        return {"flops_per_second": 2 * side**3 / summary(seconds)["median"]}

    session.write(work="machine", machine=describe_machine(device))
    session.try_to("memory is read", bandwidth)
    session.try_to("matrix products", products)


def measure_way(session: Session, make: Callable) -> None:
    """A way to generate: prompt, answer, a long cache, eight rows."""
    ours, theirs = session.make_models()
    size = torch.finfo(session.dtype).bits // 8
    way = make(ours, theirs, size)
    device, config = session.device, session.config
    rounds = 2 if device == "cpu" else 5
    flops, read = count_work(config, 1, size)["prefill"][0], count_work(config, 1, size)["decode"][1]

    def answer() -> dict:
        inputs = make_inputs(config, 1, device=device)
        start = time.perf_counter()
        time_generation(way, inputs, NEW_TOKENS, device)
        warm_up = time.perf_counter() - start
        prefill, decode = [], []
        for _ in range(rounds):
            first, *rest = time_generation(way, inputs, NEW_TOKENS, device)
            prefill.append(first)
            decode += rest[1:]
        values = {"prefill": summary(prefill), "decode": summary(decode), "warm_up_seconds": warm_up}
        values |= {"prefill_flops_per_second": flops / values["prefill"]["median"]}
        return values | {"decode_bytes_per_second": read / values["decode"]["median"]}

    def several(rows: int) -> dict:
        inputs = make_inputs(config, rows, device=device)
        time_generation(way, inputs, NEW_TOKENS, device)
        first, *rest = time_generation(way, inputs, NEW_TOKENS, device)
        return {"prefill": summary([first]), "decode": summary(rest[1:])}

    with never_stop(ours):
        session.try_to("answer, batch 1", answer)
        session.try_to("answer, batch 8", lambda: several(8))
        if way.steps:
            session.try_to(
                "one step, 3000 tokens in the cache",
                lambda: {"decode": summary(time_steps(way, config, 1, 3000, 12, device))},
            )


def measure_training(session: Session, who: int) -> None:
    """A training step, of both kinds; `who`: 0 ours, 1 transformers'."""
    models = session.make_models()
    pictures = 2 if session.device == "cpu" else 8
    for name, questions in (("fine-tuning", 1), ("stage 1", 3)):

        def step_times(questions=questions) -> dict:
            loss = list(training_losses(*models, session.config, pictures, questions, session.device).values())[who]
            seconds = take_turns({"step": training_step(models[who], loss)}, 3, session.device)["step"]
            return {"step": summary(seconds)}

        session.try_to(f"training step of {name}: {pictures} pictures, {questions} questions each", step_times)
        models[who].zero_grad(set_to_none=True)


def transformers_way(static: bool) -> Callable:
    def make(ours, theirs, size) -> Way:
        settings = their_attention(ours.config)
        options = {"cache_implementation": "static"} if static else {}
        only = settings[0] if len(settings) > 1 else None
        return Way("transformers", theirs, size, True, only, options, steps=not static)

    return make


WAYS = {
    "ours, plain": lambda ours, theirs, size: Way("ours", ours, size),
    "transformers, growing cache": transformers_way(static=False),
    "ours, CUDA graph": lambda ours, theirs, size: Way("ours", capture_for_decode(ours), size),
    # transformers compiles the step of a static cache by itself
    "transformers, static cache, compiled": transformers_way(static=True),
    "ours, torch.compile": lambda ours, theirs, size: Way("ours", compile_for_decode(ours), size),
    "ours, torch.compile, CUDA graph": lambda ours, theirs, size: Way("ours", capture_for_decode(ours, True), size),
}
GENERATION = {name: lambda session, make=make: measure_way(session, make) for name, make in WAYS.items()}
PARTS = {
    "limits": measure_limits,
    **{name: part for name, part in GENERATION.items() if "compile" not in name},
    "training, ours": lambda session: measure_training(session, 0),
    "training, transformers": lambda session: measure_training(session, 1),
    **{name: part for name, part in GENERATION.items() if "compile" in name},  # the slow ones last
}


# ------------------------------------------------------------------------------------------------- all parts, one table


def run_parts(options: argparse.Namespace) -> None:
    """Each part in a process of its own, as long as there is time."""
    begin = time.monotonic()
    options.output.mkdir(parents=True, exist_ok=True)
    results = options.output / "results.jsonl"
    results.unlink(missing_ok=True)
    for part in PARTS:
        left = options.minutes * 60 - (time.monotonic() - begin)
        session = Session(part, options.shape, options.dtype, options.device, options.output)
        if left < 10:
            session.write(error="no time was left for it")
            continue
        command = [sys.executable, "-m", "paligemma.speed.gpu", "--part", part, "--output", str(options.output)]
        command += ["--shape", options.shape, "--dtype", options.dtype, "--device", options.device]
        try:
            code = subprocess.run(command, timeout=min(left, options.part_minutes * 60)).returncode
        except subprocess.TimeoutExpired:
            session.write(error=f"stopped after {min(left, options.part_minutes * 60):.0f} s")
        else:
            if code:
                session.write(error=f"the process ended with code {code}")
    print("\n" + "\n".join(table(read_results(results))))


def read_results(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(results: list[dict]) -> Iterator[str]:
    """The results as a Markdown table, in milliseconds, with the ratio to the best of transformers."""
    times = {}  # (work, quantity) -> {part: summary}
    for row in results:
        for quantity in ("prefill", "decode", "step"):
            if quantity in row:
                times.setdefault((row["work"], quantity), {})[row["part"]] = row[quantity]
        if "machine" in row:
            yield f"{row['machine']}\n"
        for rate, unit in (("bytes_per_second", "GB/s"), ("flops_per_second", "GFLOP/s")):
            if rate in row:
                yield f"{row['work']}: {row[rate] / 1e9:,.0f} {unit}"
    yield "\n| work | way | median, ms | middle half | x transformers' best |\n|---|---|---:|---:|---:|"
    for (work, quantity), by_part in times.items():
        peers = [values["median"] for part, values in by_part.items() if "transformers" in part]
        for part, values in by_part.items():
            ratio = f"{min(peers) / values['median']:.2f}" if peers and "transformers" not in part else ""
            spread = f"{values['low'] * 1e3:.4g} to {values['high'] * 1e3:.4g}"
            yield f"| {work}: {quantity} | {part} | {values['median'] * 1e3:.4g} | {spread} | {ratio} |"
    for row in results:
        if "error" in row:
            yield f"\nfailed: {row['part']}, {row.get('work', 'all of it')}: {row['error']}"
    peaks = {
        row["part"]: row["peak_bytes"]
        for row in results
        if row.get("work") == "answer, batch 1" and "peak_bytes" in row
    }
    for part, peak in peaks.items():
        yield f"\npeak memory of an answer, {part}: {peak / 2**30:.2f} GiB"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m paligemma.speed.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=["tiny", "234m", "3b", "pg2-3b"], default="3b")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--minutes", type=float, default=10, help="for everything (default 10)")
    parser.add_argument("--part-minutes", type=float, default=3, help="for one way, the longest (default 3)")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder for results.jsonl")
    parser.add_argument("--part", choices=list(PARTS), help="measure this alone, and append to results.jsonl")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use here: --device cpu --shape tiny shows that the command runs")
    if not (options.minutes > 0 and options.part_minutes > 0):
        parser.error("--minutes and --part-minutes must be more than 0")
    refuse_file(parser, options.output)
    if options.part is None:
        run_parts(options)
        return
    import transformers

    transformers.logging.set_verbosity_error()
    options.output.mkdir(parents=True, exist_ok=True)
    PARTS[options.part](Session(options.part, options.shape, options.dtype, options.device, options.output))


if __name__ == "__main__":
    main()
