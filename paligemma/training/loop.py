"""The training loop: steps, a log, and a state on disk from which an interrupted run goes on exactly."""

import json
import math
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ..files import temporary_name, write_atomically
from .optimizers import Schedule, make_optimizers, update
from .parallel import all_reduce_metrics, is_main_process

HELD_OUT_EVERY = 100  # steps between two losses of held-out examples


@dataclass
class Metric:
    """A figure for the log: a total over `count` cases. The sum of two is that of all their cases."""

    total: float
    count: float = 1

    def __add__(self, other: "Metric") -> "Metric":
        return Metric(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else math.nan


def train(
    model: nn.Module,
    batch_loss: Callable[[int], tuple[torch.Tensor, dict[str, Metric]]],
    schedule: Schedule,
    folder: str | Path,
    on_cycle: Callable[[int], None] = lambda number: None,
    stop_at: int | None = None,
    options: dict | None = None,
    held_out: Callable[[], float] | None = None,
) -> list[dict]:
    """Run the steps of a stage that are not done yet; returns the log's lines, those of earlier runs included.

    `batch_loss(step)` gives this process's share of the loss at `step`, and metrics for the log. `on_cycle(number)`
    is called at the end of each cycle, before its last step counts as done: what it writes is there, or the step is
    done again. `stop_at` ends the run before that step, as an interruption would. `options` are whatever else
    decides the result, as JSON has it: a run goes on under the same ones only. `held_out()`, the loss of examples
    that are not trained on, is logged every HELD_OUT_EVERY steps.

    Raises ValueError when the folder holds a run with other settings or a damaged state, OSError when it cannot be
    written to, FloatingPointError when loss, gradient or weights are no longer finite.
    """
    folder = open_folder(folder)
    optimizers = make_optimizers(model, schedule)
    settings = json.loads(json.dumps({**(options or {}), **asdict(schedule)}))  # as JSON keeps them: lists for tuples
    del settings["save_every"]  # changes nothing in the result
    first = load_state(folder / "state.pt", settings, model, optimizers)
    log = read_log(folder / "log.jsonl", first)
    if is_main_process():
        write_log(folder / "log.jsonl", log)  # lines after the state will be written again

    def save(step: int) -> None:
        if is_main_process():
            save_state(folder / "state.pt", step, settings, model, optimizers)

    last = schedule.steps if stop_at is None else min(stop_at, schedule.steps)
    seconds, saved = log[-1].get("seconds", 0.0) if log else 0.0, time.monotonic()
    sums: dict[str, Metric] = {}
    model.train()
    model.zero_grad(set_to_none=True)
    bar = tqdm(
        range(first, last),
        initial=first,
        total=schedule.steps,
        disable=not is_main_process(),
        unit=" steps",
        mininterval=5.0,
    )
    for step in bar:
        began = time.monotonic()
        loss, metrics = batch_loss(step)
        total, norm = update(model, optimizers, schedule, step, loss)
        for name, metric in {"loss": Metric(total), **all_reduce_metrics(metrics)}.items():
            sums[name] = sums[name] + metric if name in sums else metric
        seconds += time.monotonic() - began

        done, cycle = step + 1, schedule.ends_cycle(step)
        is_logged = done % schedule.log_every == 0 or cycle is not None or done == last
        if is_logged:
            line = {
                "step": done,
                "seconds": round(seconds, 2),
                "rate": round(schedule.factor(step), 5),
                "gradient": round(norm, 4),
                "loss": sums.pop("loss").mean,
                **{name: round(metric.mean, 4) for name, metric in sums.items()},
            }
            if held_out is not None and (done % HELD_OUT_EVERY == 0 or done == last):
                line["held-out loss"] = round(evaluate(model, held_out), 4)
            log.append(line)
            sums.clear()
            if is_main_process():
                with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            bar.set_postfix(loss=f"{line['loss']:.3f}", refresh=False)
        if cycle is not None and is_main_process():
            on_cycle(cycle)
            model.train()
        is_due = time.monotonic() - saved > schedule.save_every
        if cycle is not None or done == last or (is_due and is_logged):  # with the log: the two stay in step
            save(done)
            saved = time.monotonic()
    return log


def evaluate(model: nn.Module, held_out: Callable[[], float]) -> float:
    """The loss of held-out examples: in evaluation mode, without gradients."""
    model.eval()
    try:
        with torch.no_grad():
            return held_out()
    finally:
        model.train()


# ---------------------------------------------------------------------------------------------- the folder of a run


def open_folder(folder: str | Path) -> Path:
    """Make the folder of a run if it is missing. Raises OSError now, not after the work, if nobody can write there."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = temporary_name(folder / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error}): choose another folder with --out") from error
    return folder


def save_state(
    path: Path, step: int, settings: dict, model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Write a training state, whole or not at all. torch's files are zip files, with a checksum for every tensor.

    Raises FloatingPointError for weights that are not finite, OSError, with what to do, when the disk is full or the
    folder cannot be written to; the file that is there stays in both cases.
    """
    last = f"the last good state, {path}, is untouched" if path.exists() else "no earlier state exists"
    broken = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    if broken:
        raise FloatingPointError(
            f"after step {step} the weights {', '.join(broken[:3])} are no longer finite, so they are not saved; "
            f"{last}: lower the learning rates"
        )
    state = {
        "step": step,
        "model": model.state_dict(),
        "settings": settings,
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    try:
        with write_atomically(path) as partial:
            torch.save(state, partial)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise OSError(
            f"the training state {path} could not be written ({error}); {last}: make room or choose another folder "
            "with --out, then run the same command again, which goes on from the last good state"
        ) from error


def load_state(path: Path, settings: dict, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    """Put a saved state into model and optimisers; returns the steps done, 0 where there is no state.

    Raises ValueError for a state of other settings, and for a file that is damaged or something else.
    """
    if not path.exists():
        return 0
    try:
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():
                raise ValueError(f"its part {damaged} has another checksum than when it was written")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.keys() != {"step", "model", "settings", "optimizers"}:
            raise ValueError("it holds something else")
        step, saved = state["step"], state["settings"]
        if type(step) is not int or step < 0 or not isinstance(saved, dict):
            raise ValueError(f"its step is {step!r}")
    except Exception as error:  # whatever zipfile, pickle and torch say of a file like that
        raise ValueError(bad_state(path, error)) from error
    if saved != settings:
        names = sorted(name for name in saved.keys() | settings.keys() if saved.get(name) != settings.get(name))
        changes = ", ".join(f"{name} {settings.get(name)} (there: {saved.get(name)})" for name in names)
        raise ValueError(
            f"{path.parent} holds a run with other settings than {changes}: give the same settings, choose another "
            "folder with --out, or remove this one"
        )
    try:
        model.load_state_dict(state["model"])
        for optimizer, state_dict in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(state_dict)
            for parameter, buffers in optimizer.state.items():
                if any(b.ndim and b.shape != parameter.shape for b in buffers.values()):
                    raise ValueError("its optimisers are of another model")
    except Exception as error:
        raise ValueError(bad_state(path, error)) from error
    return step


def bad_state(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return (
        f"{path} is damaged or not the training state of this model ({reason}): remove it to start the run anew, or "
        "put back a copy of it"
    )


def read_log(path: Path, last: int | None = None) -> list[dict]:
    """The lines of a log up to step `last`. Lines that cannot be read are left out, with a word on stderr.

    A full disk or a lost power supply can cut a line; the run needs none of them to go on.
    """
    lines, unreadable = [], 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        line = parse_line(text)
        if line is None:
            unreadable += 1
        elif last is None or line["step"] <= last:
            lines.append(line)
    if unreadable:
        print(f"{path}: {unreadable} line(s) could not be read and are left out", file=sys.stderr)
    return lines


def parse_line(text: str) -> dict | None:
    """One line of a log, or None for what is no such line."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int or "\ufffd" in text:
        return None
    return line if all(isinstance(value, int | float) for value in line.values()) else None


def write_log(path: Path, lines: list[dict]) -> None:
    """Write log lines as JSON, one a line."""
    with write_atomically(path) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
