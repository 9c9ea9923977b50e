"""How a check works: run the learner's code and the reference on the same inputs, compare, explain.

A task (see Task) names a reference, its inputs and the mistakes that learners usually make there. Each mistake comes
with an imitation: a wrong solution. When the learner's results are the imitation's on every input, the mistake is
recognised, however the code is written. What no imitation explains is described by its symptoms: shapes, dtypes, a
constant factor, right numbers in wrong places.
"""

import importlib
import inspect
import linecache
import random
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from .. import swap as swap_module
from . import progress

# --- what a task is made of ----------------------------------------------------------------------------------


@dataclass
class Case:
    """One input. `inputs` are the arguments; `init` those of the constructor, when the learner writes a module.

    `sizes` names axis lengths, so that messages can speak of [B=2, L=5]: choose them all different.
    """

    inputs: tuple = ()
    init: tuple = ()
    sizes: dict[str, int] = field(default_factory=dict)
    note: str = ""  # what is special about this input: "about 1e-3 in size"
    tolerance: float | None = None  # instead of the task's


@dataclass
class Mistake:
    """A mistake with a name. `message` says what it usually means, and never the answer."""

    name: str
    message: str
    imitation: object  # a wrong function, class or value: its results identify the mistake
    look: str = ""  # where to look, instead of the task's


@dataclass
class Finding:
    """What a check found: a name, what was seen in numbers, what that usually means, where to look."""

    name: str
    saw: str
    means: str
    look: str = ""


@dataclass
class Task:
    """`reference` is a function, a class of torch modules or a value; `cases(seed)` makes the inputs.

    `use(thing, *inputs)` says how to use what the learner wrote, when it isn't just called (for classes that are not
    modules, for instance). `symptoms` are functions (case, got, want) -> Finding or None, tried when results differ and
    no mistake is recognised; `extra` are functions (thing) -> Finding or None, for all else that must hold once the
    results agree; `reward(thing)` draws or prints what the learner gets to see for passing.
    """

    id: str  # "06.1": chapter and number
    title: str
    points: int
    minutes: int
    level: str  # in words: "easy", "medium", "hard"
    reference: object
    cases: Callable[[int], Sequence[Case]]
    mistakes: Sequence[Mistake] = ()
    look: str = ""  # the section of the chapter
    tolerance: float = 1e-5  # of a float32 result, relative to 1 + its size
    gradients: bool = True
    use: Callable | None = None
    symptoms: Sequence[Callable] = ()
    extra: Sequence[Callable] = ()
    reward: Callable | None = None
    remembered: dict = field(default_factory=dict, repr=False)  # what the reference and the imitations gave


def faults_left(faults: Sequence[str], told: dict[str, str], names: dict[str, str], imitation) -> Mistake:
    """Of the faults planted into a listing (`told` has all), these are still in it; `names` if it is but one."""
    number = ("one fault is", "two faults are", "three faults are", "four faults are")[len(faults) - 1]
    number = f"all {number}" if len(faults) == len(told) else number
    name = f"{len(faults)} left" if len(faults) > 1 else names[faults[0]]
    return Mistake(name, f"{number} left: {'; '.join(told[fault] for fault in faults)}", imitation)


def numbers(seed: int, *shape: int, scale: float = 1.0, shift: float = 0.0, dtype=torch.float32) -> torch.Tensor:
    """Normal random numbers of this shape, the same for the same seed."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return (torch.randn(shape, generator=generator) * scale + shift).to(dtype)


# --- what a learner sees -------------------------------------------------------------------------------------


class CheckFailed(AssertionError):
    """The check's message. Jupyter shows it alone, without a trace: `_render_traceback_` is asked for the text."""

    def __init__(self, task: "Task", finding: Finding):
        self.name, self.finding = finding.name, finding
        look = finding.look or task.look
        lines = [f"{task.id} · {task.title}: not yet", "", f"  seen   {indent(finding.saw)}"]
        if finding.means:
            lines.append(f"  means  {indent(finding.means)}")
        if look:
            lines.append(f"  look   {indent(look)}")
        super().__init__("\n".join(lines))

    def _render_traceback_(self):
        return [str(self)]


class NotStarted(CheckFailed):
    """The task is as it was handed out."""


def indent(text: str) -> str:
    return text.strip().replace("\n", "\n         ")


def find_task(task_id: str) -> Task:
    """The task "06.1" of ch06.py. Raises ValueError for one that there isn't."""
    chapter = str(task_id).split(".")[0]
    tasks = tasks_of(chapter)
    for task in tasks:
        if task.id == task_id:
            return task
    there = ", ".join(task.id for task in tasks) if tasks else "that chapter has no exercises"
    raise ValueError(f"there is no task {task_id!r}; there are: {there}")


def tasks_of(chapter: str) -> list[Task]:
    """The tasks of a chapter, "06"; an empty list when it has none."""
    if not re.fullmatch(r"\d\d", chapter) or not (Path(__file__).parent / f"ch{chapter}.py").exists():
        return []
    return importlib.import_module(f".ch{chapter}", __package__).TASKS


def check(task_id: str, thing, hidden: bool = False) -> None:
    """Check what you wrote for a task. Silent about the answer; raises CheckFailed with what to do next.

    `thing` is the function or class itself, not its result: check("06.1", rms_norm). With `hidden` (for teachers),
    other inputs are used, nothing is shown and progress is left alone.
    """
    if swap_module.replaced:
        raise ValueError("a swap is open: run the check outside the `with swap(...)` block, or it compares with yours")
    task = find_task(task_id)
    with left_alone():
        finding = examine(task, thing, seeds=(11, 12, 13, 14) if hidden else (0, 1, 2))
    if not hidden:
        progress.record(task.id, passed=finding is None)
    if finding is not None:
        raise (NotStarted if finding.name == "not started" else CheckFailed)(task, finding)
    if not hidden:
        print(f"{task.id} · {task.title}: passed ({task.points} point{'s' if task.points > 1 else ''})")
        if task.reward is not None:
            with left_alone():
                task.reward(thing)


@contextmanager
def left_alone():
    """Leave the learner's random numbers and torch's settings as they are."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        torch.set_grad_enabled(states[3])


# --- examine -------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of one input: a result or an error."""

    result: object = None
    error: BaseException | None = None


def examine(task: Task, thing, seeds: Sequence[int]) -> Finding | None:
    """The first thing that is wrong, or None when all is right."""
    finding = misplaced(task, thing)
    if finding:
        return finding
    cases = [case for seed in seeds for case in task.cases(seed)]
    wanted = [known(task, task.reference, seeds, index, case) for index, case in enumerate(cases)]
    for case, want in zip(cases, wanted, strict=True):
        if want.error is not None:  # a fault of the task and not of the learner: never to be shown as theirs
            raise RuntimeError(f"the reference of task {task.id} fails on {describe(case)}") from want.error

    outcomes, changed = [], None
    for case in cases:
        inputs = copy(case.inputs)
        outcomes.append(attempt(task, thing, case, inputs))
        if not_started(outcomes[-1].error):
            return Finding("not started", "the task is as it was handed out", "write your code where it says so")
        if changed is None and not same_inputs(inputs, case.inputs):
            changed = case

    for index, (case, got, want) in enumerate(zip(cases, outcomes, wanted, strict=True)):
        tolerance = case.tolerance or task.tolerance
        symptom = difference(got, want, tolerance, case)
        if symptom is None:
            continue
        where = f"on input {index + 1} of {len(cases)} ({describe(case)}): "
        mistake = recognise(task, seeds, cases, outcomes, wanted)
        if mistake is not None:
            seen = changed_note(changed) + where + symptom.saw
            return Finding(mistake.name, seen, mistake.message, mistake.look)
        if got.error is None:
            for rule in task.symptoms:
                finding = rule(case, got.result, want.result)
                if finding is not None:
                    return Finding(finding.name, where + finding.saw, finding.means, finding.look)
        if changed is not None and got.error is None:
            return input_changed(changed)
        return Finding(symptom.name, where + symptom.saw, symptom.means, symptom.look)

    if changed is not None:
        return input_changed(changed)
    for case, got in zip(cases, outcomes, strict=True):
        again = attempt(task, thing, case)
        if difference(again, got, 1e-6, case) is not None:
            return Finding(
                "different each time",
                f"the same input ({describe(case)}) gave two different results",
                "something in it is random or remembers the last call: dropout that is not switched off, memory from "
                "torch.empty, an attribute that is added to",
            )
    if task.gradients:
        for case in cases:
            finding = compare_gradients(task, thing, case)
            if finding is not None:
                return finding
    for rule in task.extra:
        finding = rule(thing)
        if finding is not None:
            return finding
    return None


def not_started(error: BaseException | None) -> bool:
    """`raise NotImplementedError` still stands there. (torch raises one too, for a module without forward.)"""
    return isinstance(error, NotImplementedError) and "forward" not in str(error)


def misplaced(task: Task, thing) -> Finding | None:
    """Things that are not what is to be checked at all."""
    reference = task.reference
    if thing is None or thing is Ellipsis:
        return Finding("not started", "there is nothing here yet", "write your code where it says so")
    if inspect.isclass(reference) and not inspect.isclass(thing):
        return Finding(
            "class expected",
            f"check was given a {type(thing).__name__}",
            "pass the class itself, without brackets: check makes its own objects with sizes of its own",
        )
    if callable(reference) and not callable(thing):
        return Finding(
            "function expected",
            f"check was given a {type(thing).__name__}",
            "pass the function itself, without calling it: check calls it with inputs of its own",
        )
    if callable(reference) and str(getattr(thing, "__module__", "")).split(".")[0] == "paligemma":
        return Finding(
            "package's own",
            f"{getattr(thing, '__name__', thing)} comes from {thing.__module__}",
            "it is to be yours: write it in the cell above the check, and run that cell",
        )
    try:
        tree = inspect.getsource(thing)
    except (OSError, TypeError, IndentationError):
        return None
    if re.search(r"#\s*YOUR CODE HERE\s*\n\s*raise NotImplementedError", tree) and not inspect.isclass(thing):
        return Finding("not started", "the task is as it was handed out", "write your code where it says so")
    return None


def attempt(task: Task, thing, case: Case, inputs=None) -> Outcome:
    """Run a learner's thing, a reference or an imitation on one input, without gradients."""
    inputs = copy(case.inputs) if inputs is None else inputs
    try:
        with torch.no_grad():
            torch.manual_seed(0)
            function, _ = start(task, thing, case)
            return Outcome(result=function(*inputs))
    except Misfit as misfit:
        return Outcome(error=misfit)
    except Exception as error:
        return Outcome(error=error)


def known(task: Task, thing, seeds, index: int, case: Case) -> Outcome:
    """What the reference or an imitation gives on the input of this index: worked out once."""
    key = id(thing), tuple(seeds), index
    if key not in task.remembered:
        task.remembered[key] = attempt(task, thing, case)
    return task.remembered[key]


class Misfit(Exception):
    """A module of the learner's that does not take the reference's weights."""


def start(task: Task, thing, case: Case) -> tuple[Callable, dict[str, torch.Tensor]]:
    """What is to be called with the inputs, and the parameters it has: a module gets the reference's weights."""
    if task.use is not None:
        return (lambda *inputs: task.use(thing, *inputs)), {}
    if not callable(task.reference):  # a value is its own result
        return (lambda *inputs: thing), {}
    if not (inspect.isclass(task.reference) and issubclass(task.reference, nn.Module)):
        return thing, {}
    module = thing(*case.init)
    if not isinstance(module, nn.Module):
        raise Misfit(f"{thing.__name__} makes a {type(module).__name__}: let it be a subclass of nn.Module")
    problems = swap_module.take_over(module, with_weights(task.reference(*case.init)))
    if problems:
        raise Misfit("\n".join(problems))
    return module.eval(), dict(module.named_parameters())


def with_weights(module: nn.Module) -> nn.Module:
    """Random weights, none of them zero: all zeros would hide mistakes."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module.eval()


def recognise(task: Task, seeds, cases, outcomes, wanted) -> Mistake | None:
    """The first mistake whose imitation does on every input what the learner's code does."""
    for mistake in task.mistakes:
        wrong = False
        for index, (case, got, want) in enumerate(zip(cases, outcomes, wanted, strict=True)):
            imitation = known(task, mistake.imitation, seeds, index, case)
            tolerance = case.tolerance or task.tolerance
            if not alike(got, imitation, tolerance, case):
                break  # most are ruled out by the first input
            wrong = wrong or not alike(imitation, want, tolerance, case)
        else:
            if wrong:
                return mistake
    return None


def alike(got: Outcome, other: Outcome, tolerance: float, case: Case) -> bool:
    if got.error is not None or other.error is not None:
        # torch's messages carry the shapes: the same message is the same mistake.
        return type(got.error) is type(other.error) and str(got.error) == str(other.error)
    return difference(got, other, tolerance, case) is None


# --- compare two results -------------------------------------------------------------------------------------


def difference(got: Outcome, want: Outcome, tolerance: float, case: Case) -> Finding | None:
    """How a result differs from what is wanted: the first symptom, or None."""
    if got.error is not None:
        return explain_error(got.error)
    return compare(got.result, want.result, tolerance, case, "")


def compare(got, want, tolerance: float, case: Case, path: str) -> Finding | None:
    label = f"`{path}` " if path else ""
    if got is None and want is not None:
        return Finding("no return", f"{label}the result is None", "the `return` is missing, or returns nothing")
    if got is Ellipsis:
        return Finding("not started", "the result is `...`", "put your code in place of the dots")
    if isinstance(want, dict):
        if not isinstance(got, dict):
            return wrong_type(label, got, want)
        if set(got) != set(want):
            return Finding("structure", f"{label}keys {sorted(map(str, got))}, expected {sorted(map(str, want))}", "")
        pairs = [(f"{path}[{key!r}]", got[key], want[key]) for key in want]
    elif isinstance(want, list | tuple):
        if not isinstance(got, list | tuple):
            return wrong_type(label, got, want)
        if len(got) != len(want):
            means = "something is missing or too much in what you return"
            return Finding("structure", f"{label}{len(got)} values, expected {len(want)}", means)
        pairs = [(f"{path}[{index}]", a, b) for index, (a, b) in enumerate(zip(got, want, strict=True))]
    else:
        return compare_leaves(got, want, tolerance, case, label)
    for name, a, b in pairs:
        finding = compare(a, b, tolerance, case, name)
        if finding is not None:
            return finding
    return None


def wrong_type(label: str, got, want) -> Finding:
    expected = {dict: "a dict", tuple: f"{len(want) if isinstance(want, tuple) else 0} values", list: "a list"}.get(
        type(want), f"a {type(want).__name__}"
    )
    return Finding(
        "type", f"{label}the result is a {type(got).__name__}, expected {expected}", "look at what the docstring says"
    )


def compare_leaves(got, want, tolerance: float, case: Case, label: str) -> Finding | None:
    """Two tensors, arrays, pictures, numbers or texts."""
    numeric = int, float, complex, np.number
    if isinstance(want, Image.Image):
        if not isinstance(got, Image.Image):
            return wrong_type(label, got, want)
        if got.size != want.size or got.mode != want.mode:
            seen = f"{label}a picture {got.size[0]} x {got.size[1]} ({got.mode}), "
            seen += f"expected {want.size[0]} x {want.size[1]} ({want.mode})"
            turned = got.size == want.size[::-1] and got.size != want.size
            means = "PIL counts (width, height), arrays count (height, width)" if turned else ""
            return Finding("height and width swapped" if turned else "size", seen, means)
        got, want = np.asarray(got).astype(np.float64), np.asarray(want).astype(np.float64)
    if isinstance(want, numeric) and isinstance(got, torch.Tensor | np.ndarray) and got.ndim == 0:
        got = got.item()
    if isinstance(want, torch.Tensor) and want.ndim == 0 and isinstance(got, numeric):
        got = torch.tensor(got, dtype=want.dtype)
    if isinstance(want, bool | np.bool_):
        good = isinstance(got, bool | np.bool_) and bool(got) == bool(want)
        return None if good else Finding("values", f"{label}{brief(got)}, expected {want}", "")
    if isinstance(want, numeric):
        if not isinstance(got, numeric):
            return wrong_type(label, got, want)
        got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    if isinstance(want, torch.Tensor):
        if not isinstance(got, torch.Tensor):
            return Finding("type", f"{label}the result is a {type(got).__name__}, expected a tensor", "")
        return compare_numbers(got.detach(), want.detach(), got.dtype, want.dtype, tolerance, case, label)
    if isinstance(want, np.ndarray):
        if not isinstance(got, np.ndarray):
            return Finding("type", f"{label}the result is a {type(got).__name__}, expected a numpy array", "")
        if got.dtype.kind not in "biuf":
            return Finding("dtype", f"{label}an array of {got.dtype}, expected {want.dtype}", "")
        mine, theirs = torch.from_numpy(np.array(got)), torch.from_numpy(np.array(want))
        return compare_numbers(mine, theirs, got.dtype, want.dtype, tolerance, case, label)
    if type(got) is not type(want) and not isinstance(got, type(want)):
        return wrong_type(label, got, want)
    if got != want:
        return Finding("values", f"{label}{brief(got)}\nexpected {brief(want)}", "")
    return None


def compare_numbers(got, want, got_dtype, want_dtype, tolerance: float, case: Case, label: str) -> Finding | None:
    if got.shape != want.shape:
        return explain_shape(got, want, case, label)
    if got_dtype != want_dtype:
        return Finding(
            "dtype",
            f"{label}the result is {name_dtype(got_dtype)}, expected {name_dtype(want_dtype)}",
            "a cast is missing or too much: the result's dtype is to follow the input's, as the docstring says",
        )
    if got.numel() == 0:
        return None
    if got.dtype == torch.bool:
        wrong = got != want
        if not wrong.any():
            return None
        seen = f"{label}{int(wrong.sum())} of {wrong.numel()} entries are the other way round"
        means = "every entry is the opposite of what is expected: True and False swapped" if wrong.all() else ""
        return Finding("upside down" if wrong.all() else "values", seen + at(wrong.float(), got, want), means)
    tolerance = {torch.bfloat16: max(tolerance, 2e-2), torch.float16: max(tolerance, 3e-3)}.get(got.dtype, tolerance)
    wide, target = got.to(torch.float64), want.to(torch.float64)
    if not torch.isfinite(wide[torch.isfinite(target)]).all():
        bad = (~torch.isfinite(wide) & torch.isfinite(target)).sum()
        return Finding(
            "not finite",
            f"{label}{int(bad)} of {wide.numel()} numbers are NaN or infinite",
            "a division by zero, 0 times infinity, an exponential of a large number, or memory that was never written",
        )
    gap = (wide - target).nan_to_num(0.0, 0.0, 0.0).abs()
    same = (gap <= tolerance * (1 + target.abs())) | (wide == target) | (wide.isnan() & target.isnan())
    if same.all():
        return None
    seen = f"{label}largest difference {gap.max():.2g} (allowed {tolerance:.0e})" + at(gap, got, want)
    return explain_values(wide, target, tolerance, case, seen)


def at(gap: torch.Tensor, got, want) -> str:
    """Where the largest difference is."""
    index = np.unravel_index(int(gap.argmax()), tuple(gap.shape)) if gap.ndim else ()
    place = f" at [{', '.join(map(str, index))}]" if index else ""
    return f",{place} yours {short(got[index])}, expected {short(want[index])}"


def explain_values(got, want, tolerance: float, case: Case, seen: str) -> Finding:
    """Numbers of the right shape that are wrong: what relates them to the right ones?"""

    def equal(a, b):
        return a.shape == b.shape and bool(((a - b).abs() <= 1e-3 * (1e-3 + b.abs()) + tolerance).all())

    large = want.abs() > 0.05 * want.abs().max()
    if not got.any():
        return Finding("all zeros", seen, "your result is zero everywhere: is what you compute put into the result?")
    if want.numel() > 1 and large.any():
        ratio = float((got[large] / want[large]).median())
        if abs(ratio - 1) > 1e-3 and ratio != 0 and equal(got, ratio * want):
            return Finding(
                "constant factor",
                f"{seen}; every number is {ratio:.4g} times the expected one{guess(ratio, case.sizes)}",
                "a factor is forgotten, doubled or turned upside down" if ratio > 0 else "a sign is turned round",
            )
        shift = float((got - want).median())
        if equal(got, want + shift) and abs(shift) > tolerance:
            return Finding(
                "constant difference",
                f"{seen}; every number is {shift:+.4g} away from the expected one",
                "something is added that should not be, or left out",
            )
    if got.ndim >= 2 and equal(got.transpose(-1, -2), want):
        return Finding("transposed", seen, "your result is the expected one transposed: rows and columns are swapped")
    if got.numel() > 3 and equal(got.flatten().sort().values, want.flatten().sort().values):
        return Finding(
            "right numbers in other places",
            seen,
            "all numbers are right and lie in other places: axes are merged or split in another order. `view` and "
            "`reshape` never move numbers; a transpose may be missing before or after",
        )
    return Finding("values", seen, "")


def guess(ratio: float, sizes: dict[str, int]) -> str:
    for name, size in sizes.items():
        for text, value in ((f"{name}", size), (f"the square root of {name}", size**0.5)):
            if size > 1 and abs(abs(ratio) / value - 1) < 2e-3:
                return f": that is {text} ({name} is {size} here)"
            if size > 1 and abs(abs(ratio) * value - 1) < 2e-3:
                return f": that is 1 / {text} ({name} is {size} here)"
    return ""


def explain_shape(got, want, case: Case, label: str = "") -> Finding:
    """A wrong shape, in the names of its axes; the same axes in another order are recognised."""
    mine, theirs = named_shape(got.shape, case.sizes), named_shape(want.shape, case.sizes)
    seen = f"{label}the shape is {mine}, expected {theirs}"
    if sorted(got.shape) == sorted(want.shape):
        moved = [theirs_i for theirs_i, (a, b) in enumerate(zip(got.shape, want.shape)) if a != b]
        means = f"the axes are right and in another order (places {', '.join(map(str, moved))}): are two of them "
        return Finding("axes in another order", seen, means + "swapped, query and key for instance, or a transpose?")
    if got.numel() == want.numel():
        return Finding("shape", seen, "the numbers are as many as expected: axes are merged, split or squeezed")
    if [size for size in got.shape if size != 1] == [size for size in want.shape if size != 1]:
        return Finding("shape", seen, "an axis of length 1 is missing or too much (keepdim, unsqueeze)")
    return Finding("shape", seen, "print the shape after every line and find the first that is not as you expect")


def named_shape(shape, sizes: dict[str, int]) -> str:
    names = {}
    for name, size in sizes.items():
        names[size] = f"{name}={size}" if size not in names else str(size)  # two of one length cannot be told apart
    return f"[{', '.join(names.get(size, str(size)) for size in shape)}]"


def compare_gradients(task: Task, thing, case: Case) -> Finding | None:
    """The gradient of a fixed mix of the results, for the inputs and for a module's parameters."""
    mine, theirs = gradients(task, thing, case), gradients(task, task.reference, case)
    if theirs is None:
        return None
    if mine is None or isinstance(mine, BaseException):
        if isinstance(mine, BaseException):
            finding = explain_error(mine)
            saw = f"without gradients it works; with inputs that require gradients ({describe(case)}): {finding.saw}"
            return Finding(finding.name, saw, finding.means)
        return Finding(
            "no gradient",
            f"no gradient reaches the inputs ({describe(case)})",
            "the chain is cut on the way: .detach(), .data, .item(), numpy, torch.tensor(...) or no_grad",
        )
    tolerance = max(10 * (case.tolerance or task.tolerance), 1e-4)
    for name, want in theirs.items():
        got = mine.get(name)
        if got is None:
            continue
        scale = max(float(want.abs().max()), 1.0)
        gap = float((got.float() - want.float()).abs().max())
        if want.dtype in (torch.float32, torch.float64) and not gap <= tolerance * scale:
            return Finding(
                "gradient",
                f"the values are right, the gradient of {name} is not ({describe(case)}): largest difference "
                f"{gap:.2g} (allowed {tolerance * scale:.0e})",
                "part of the chain is cut: .detach(), .data or no_grad on the way, or a constant where a tensor "
                "belongs",
            )
    return None


def gradients(task: Task, thing, case: Case):
    """{name: gradient}; None when nothing depends on the inputs; the error when one is raised."""
    inputs = copy(case.inputs)
    leaves = {}

    def mark(value, name):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            leaves[name] = value.requires_grad_(True)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                mark(item, f"{name}, part {index + 1},")

    for index, value in enumerate(inputs):
        mark(value, f"input {index + 1}")
    try:
        with torch.enable_grad():
            torch.manual_seed(0)
            function, parameters = start(task, thing, case)
            leaves.update({f"parameter {name}": parameter for name, parameter in parameters.items()})
            if not leaves:
                return None
            results = [leaf for leaf in flat(function(*inputs)) if leaf.is_floating_point() and leaf.requires_grad]
            if not results:
                return None
            total = sum((leaf.float() * numbers(i, *leaf.shape)).sum() for i, leaf in enumerate(results))
            found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    except Exception as error:
        return error
    pairs = zip(leaves.items(), found, strict=True)
    return {name: torch.zeros_like(leaf) if value is None else value for (name, leaf), value in pairs}


def flat(result) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, dict):
        result = list(result.values())
    return [leaf for item in result for leaf in flat(item)] if isinstance(result, list | tuple) else []


# --- errors at the learner's line ----------------------------------------------------------------------------

# The learner's code is neither the package's nor an installed library's.
NOT_THE_LEARNERS = tuple(
    str(Path(path).resolve())
    for path in (Path(__file__).parents[1], *(sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "platlib")))
)


def explain_error(error: BaseException) -> Finding:
    if isinstance(error, Misfit):
        return Finding(
            "weights do not fit",
            str(error),
            "the parameters must have the names and shapes of the package's, or trained weights have nowhere to go",
        )
    text = f"{type(error).__name__}: {error}".strip()
    where = learner_line(error)
    if "Ellipsis" in str(error) or "ellipsis" in str(error):
        return Finding("not started", f"{where}\n{text}", "a line still has `...` in it: put your code there")
    means = ""
    for pattern, meaning in ERRORS:
        if re.search(pattern, text, re.IGNORECASE):
            means = meaning
            break
    return Finding("raised", f"your code raised an error{where}\n{text}", means)


ERRORS = (
    (r"cannot assign .* before Module.__init__", "super().__init__() must come first in __init__"),
    (r"cannot be converted to type .* without overflow",
     "a number that this dtype cannot hold: the lowest number depends on the dtype of the tensor it goes into"),
    (r"view size is not compatible", "after a transpose the numbers no longer lie in order: reshape copies them"),
    (r"mat1 and mat2 shapes|size mismatch|expected size for first two dimensions|must match the size",
     "two shapes do not fit each other: print both just before this line"),
    (r"leaf Variable that requires grad|modified by an inplace operation",
     "an in-place operation (+=, *=, a method ending in _) changes an input"),
    (r"missing \d+ required positional|takes \d+ positional|unexpected keyword",
     "the signature is not the one that the task gives"),
    (r"required \"forward\"", "the class has no method called forward: missing, misspelt or indented too far"),
    (r"NameError", "a name that is not defined here: a typing slip, or a cell that has not been run"),
    (r"has no attribute", "a name that this object does not have: a typing slip, or it was never set in __init__"),
    (r"expected .*dtype|same dtype|must have the same dtype|Float but found|Double", "two dtypes that do not fit"),
)  # fmt: skip


def learner_line(error: BaseException) -> str:
    """ ", in cell In[5], line 3 (`scores = query @ key`)": the innermost line that is the learner's own."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not str(Path(frame.filename).resolve()).startswith(NOT_THE_LEARNERS) and frame.filename[:1] != "<"
    ]
    if not frames:
        return ""
    frame = frames[-1]
    source = (frame.line or linecache.getline(frame.filename, frame.lineno)).strip()
    return f" in {file_or_cell(frame.filename)}, line {frame.lineno}:\n    {source}"


def file_or_cell(filename: str) -> str:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    named = shell.compile.format_code_name(filename) if shell is not None else None
    return f"{named[0].lower()} {named[1]}" if named else Path(filename).name


# --- inputs --------------------------------------------------------------------------------------------------


def copy(value):
    """A copy that the learner may spoil. Models, tokenizers and the like are passed as they are."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, np.ndarray | Image.Image):
        return value.copy()
    if type(value) in (list, tuple):
        return type(value)(copy(item) for item in value)
    if type(value) is dict:
        return {key: copy(item) for key, item in value.items()}
    return value


def same_inputs(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, Image.Image):
        return a.size == b.size and a.mode == b.mode and a.tobytes() == b.tobytes()
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(same_inputs(x, y) for x, y in zip(a, b))
    if type(a) is dict:
        return a.keys() == b.keys() and all(same_inputs(a[key], b[key]) for key in a)
    return True


def input_changed(case: Case) -> Finding:
    return Finding(
        "input changed",
        f"after the call the input ({describe(case)}) is not what it was before",
        "an in-place operation (+=, *=, a method ending in _, an assignment to x[...]) writes into the caller's data: "
        "make a new tensor instead",
    )


def changed_note(changed: Case | None) -> str:
    return "" if changed is None else "your code changes its input; and "


def describe(case: Case) -> str:
    """ "[2, 5, 4] float32, about 1e-3 in size" """
    parts = [brief(value, case.sizes) for value in case.inputs]
    text = ", ".join(part for part in parts if part)
    if len(text) > 140:
        text = text[:140] + "..."
    return f"{text}{'; ' if text and case.note else ''}{case.note}" or "no input"


def brief(value, sizes: dict[str, int] | None = None) -> str:
    if isinstance(value, torch.Tensor):
        return f"{named_shape(value.shape, sizes or {})} {name_dtype(value.dtype)}" if value.ndim else short(value)
    if isinstance(value, np.ndarray):
        return f"array {named_shape(value.shape, sizes or {})} {value.dtype}"
    if isinstance(value, Image.Image):
        return f"picture {value.size[0]} x {value.size[1]} {value.mode}"
    if isinstance(value, str | int | float | bool):
        text = repr(value)
        return text if len(text) < 200 else f"{text[:120]}...{text[-60:]}"
    if isinstance(value, list | tuple):
        inside = ", ".join(brief(item, sizes) for item in value[:4])
        return f"[{inside}{', ...' if len(value) > 4 else ''}]"
    return type(value).__name__


def name_dtype(dtype) -> str:
    return str(dtype).replace("torch.", "")


def short(value) -> str:
    value = value.item() if hasattr(value, "item") else value
    return f"{value:.4g}" if isinstance(value, float) else str(value)
