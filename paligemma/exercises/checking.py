"""How a check works: run the learner's code and the reference on the same inputs, compare, explain.

A task (see tasks.py) names a reference, its inputs and the mistakes that learners usually make there. Each mistake
comes with an imitation: a wrong solution. When the learner's results are the imitation's on every input, the mistake is
recognised, however the code is written. What no imitation explains is described by its symptoms (see comparing.py):
shapes, dtypes, a constant factor, right numbers in wrong places. What the learner's code does to torch and the rest is
undone after each call (see undisturbed.py).
"""

import functools
import inspect
import linecache
import re
import sys
import sysconfig
import textwrap
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from .. import swap as swap_module
from . import progress
from .comparing import compare, copy, describe, same_inputs
from .predicting import show_prediction
from .tasks import Case, Finding, Found, Mistake, Task, find_task, numbers
from .undisturbed import ORIGINALS, say, undisturbed

# --- what a learner sees -------------------------------------------------------------------------------------


class CheckFailed(AssertionError):
    """The check's message. Jupyter shows it alone, without a trace: `_render_traceback_` is asked for the text."""

    def __init__(self, task: Task, finding: Finding):
        self.name, self.finding = finding.name, finding
        lines = [f"{task.id} · {task.title}: not yet", "", f"  seen   {hanging(finding.observed)}"]
        if finding.explanation:
            lines.append(f"  means  {hanging(finding.explanation)}")
        see = finding.see or task.see
        if see:
            lines.append(f"  see    {hanging(see)}")
        super().__init__("\n".join(lines))

    def _render_traceback_(self):
        return [str(self)]


class NotStarted(CheckFailed):
    """The task is as it was handed out."""


def hanging(text: str, width: int = 90, indent: int = 9) -> str:
    """Wrapped at `width` columns, later lines under the beginning of the first. Indented lines stay as they are."""
    lines = []
    for line in text.strip().split("\n"):
        inner = len(line) - len(line.lstrip())
        if inner:  # a line of code, or a row of a table
            lines.append(line)
        else:
            lines += textwrap.wrap(line, width - indent, break_long_words=False, break_on_hyphens=False) or [""]
    return ("\n" + " " * indent).join(lines)


@dataclass(frozen=True)
class Last:
    """The input on which a check failed, what your code gave for it, and what was expected. All are copies."""

    inputs: tuple = ()
    yours: object = None  # the result, or the error that was raised
    expected: object = None
    init: tuple = ()  # of the constructor, when the task is a module


def check(task_id: str, solution, hidden: bool = False) -> None:
    """Check what you wrote for a task. Silent about the answer; raises CheckFailed with what to do next.

    `solution` is the function or class itself, not its result: check("06.1", rms_norm). After a failing check,
    `check.last` holds the input that it speaks of: check.last.inputs, check.last.yours, check.last.expected. With
    `hidden` (for teachers), other inputs are used, nothing is shown and progress is left alone.
    """
    if swap_module.replaced:
        raise ValueError("a swap is open: run the check outside the `with swap(...)` block, or it compares with yours")
    task = find_task(task_id)
    ORIGINALS.remember_package()
    check.last = None
    with undisturbed() as replaced:
        trial = Trial(task, solution, seeds=(11, 12, 13, 14) if hidden else (0, 1, 2))
        finding = trial.first_finding()
    if replaced and not hidden:
        say(f"(replaced since the course was imported, and not used by this check: {', '.join(replaced[:5])})")
    if not hidden:
        check.last = trial.last
        progress.record(task.id, passed=finding is None)
    if finding is not None:
        raise (NotStarted if finding.name == "not started" else CheckFailed)(task, finding)
    if not hidden:
        say(f"{task.id} · {task.title}: passed ({task.points} point{'s' if task.points > 1 else ''})")
        if trial.note:
            say(trial.note)
        if task.reward is not None:
            show_reward(task, solution)
        if task.prediction is not None:
            show_prediction(task)


check.last = None


def show_reward(task: Task, solution) -> None:
    """What passing shows. It calls the learner's code once more, and must not turn a pass into an error."""
    try:
        with undisturbed():
            task.reward(solution)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        say(f"(passed all the same; what comes with it cannot be shown: {describe_error(error)})")


# --- examine -------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of one input: a result or an error."""

    result: object = None
    error: BaseException | None = None


def examine(task: Task, solution, seeds: Sequence[int]) -> Finding | None:
    """The first thing that is wrong, or None when all is right."""
    return Trial(task, solution, seeds).first_finding()


@dataclass
class Trial:
    """One solution on the inputs of one task, and the questions that are put to it."""

    task: Task
    solution: object
    seeds: Sequence[int]
    cases: list[Case] = field(default_factory=list)
    wanted: list[Outcome] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    changed: Case | None = None  # the first whose input the solution has written into
    last: Last | None = None
    note: str = ""  # what a solution that passes is told all the same

    def first_finding(self) -> Finding | None:
        """One question after the other, until one finds something."""
        questions = (
            self.is_a_solution,
            self.has_begun,
            self.gives_the_right_results,
            self.leaves_its_inputs,
            self.repeats_itself,
            self.is_the_same_in_training,
            self.keeps_the_other_rules,
            self.lets_gradients_through,
        )
        return next((finding for question in questions if (finding := question()) is not None), None)

    def is_a_solution(self) -> Finding | None:
        return misplaced(self.task, self.solution)

    def has_begun(self) -> Finding | None:
        """Run everything once; stop at once when it is as it was handed out, or was interrupted."""
        self.cases = [case for seed in self.seeds for case in self.task.cases(seed)]
        self.wanted = [
            known(self.task, self.task.reference, self.seeds, index, case) for index, case in enumerate(self.cases)
        ]
        for case, want in zip(self.cases, self.wanted, strict=True):
            if want.error is not None:  # a fault of the task and not of the learner: never to be shown as theirs
                raise RuntimeError(f"the reference of task {self.task.id} fails on {describe(case)}") from want.error
        for case in self.cases:
            inputs = copy(case.inputs)
            outcome = attempt_theirs(self.task, self.solution, case, inputs)
            self.outcomes.append(outcome)
            if not_started(outcome.error):
                return Finding("not started", "the task is as it was handed out", "write your code where it says so")
            if isinstance(outcome.error, KeyboardInterrupt):
                self.remember(case, outcome, None)
                return Finding(
                    "interrupted",
                    f"the check was interrupted while your code ran ({describe(case)}){learner_line(outcome.error)}",
                    "a loop that never ends stands where it was interrupted: what should end it?",
                )
            if self.changed is None and not same_inputs(inputs, case.inputs):
                self.changed = case
        return None

    def gives_the_right_results(self) -> Finding | None:
        for index, (case, got, want) in enumerate(zip(self.cases, self.outcomes, self.wanted, strict=True)):
            symptom = difference(got, want, case.tolerance or self.task.tolerance, case)
            if symptom is None:
                continue
            self.remember(case, got, want)
            where = f"on input {index + 1} of {len(self.cases)} ({describe(case)}): "
            mistake = self.recognise()
            if mistake is not None:
                note = "your code changes its input; and " if self.changed is not None else ""
                return Finding(mistake.name, note + where + symptom.observed, mistake.message, mistake.see)
            if got.error is None:
                more = self.symptom_of_the_task(case, got, want)
                if more is not None:
                    return Finding(more.name, where + more.observed, more.explanation, more.see)
                if self.changed is not None:
                    return input_changed(self.changed)
                if not self.same_again(case, got):
                    return different_each_time(case)
            return Finding(symptom.name, where + symptom.observed, symptom.explanation, symptom.see)
        return None

    def recognise(self) -> Mistake | None:
        """The first mistake with an imitation that does on every input what the learner's code does."""
        for mistake in self.task.mistakes:
            if any(self.is_like(imitation) for imitation in mistake.imitations):
                return mistake
        return None

    def is_like(self, imitation) -> bool:
        wrong = False
        for index, (case, got, want) in enumerate(zip(self.cases, self.outcomes, self.wanted, strict=True)):
            theirs = known(self.task, imitation, self.seeds, index, case)
            tolerance = case.tolerance or self.task.tolerance
            if not same_outcome(got, theirs, tolerance, case):
                return False  # most are ruled out by the first input
            wrong = wrong or not same_outcome(theirs, want, tolerance, case)
        return wrong

    def symptom_of_the_task(self, case: Case, got: Outcome, want: Outcome) -> Finding | None:
        for rule in self.task.symptoms:
            try:
                finding = rule(case, got.result, want.result)
            except Exception:  # a rule that cannot read this result has nothing to say of it
                continue
            if finding is not None:
                return finding
        return None

    def leaves_its_inputs(self) -> Finding | None:
        return None if self.changed is None else input_changed(self.changed)

    def repeats_itself(self) -> Finding | None:
        for case, got in zip(self.cases, self.outcomes, strict=True):
            if not self.same_again(case, got):
                return different_each_time(case)
        return None

    def same_again(self, case: Case, got: Outcome) -> bool:
        """The same input once more, with other random numbers."""
        return difference(attempt_theirs(self.task, self.solution, case, seed=1), got, 1e-6, case) is None

    def is_the_same_in_training(self) -> Finding | None:
        """A module in training mode gives what it gives otherwise: none of the package's drops anything out."""
        if not a_module_is_asked_for(self.task):
            return None
        case = self.cases[0]
        got = attempt_theirs(self.task, self.solution, case, training=True)
        if got.error is None and difference(got, self.wanted[0], case.tolerance or self.task.tolerance, case) is None:
            return None
        return Finding(
            "other in training",
            f"right after `.eval()`; in training mode, as every module is made, the same input ({describe(case)}) "
            f"gives {describe_error(got.error) if got.error is not None else 'something else'}",
            "what differs between the two: a dropout that the task does not ask for, or a test of self.training?",
        )

    def keeps_the_other_rules(self) -> Finding | None:
        for rule in self.task.extra:
            try:
                with undisturbed(), torch.random.fork_rng(devices=[]):
                    finding = rule(self.solution)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                finding = explain_error(error)
                text = finding.observed.replace(
                    "your code raised an error", "one more test of this task ended in an error"
                )
                return Finding(finding.name, text, finding.explanation)
            if finding is not None:
                return finding
        return None

    def lets_gradients_through(self) -> Finding | None:
        for case in self.cases if self.task.gradients else ():
            finding = compare_gradients(self.task, self.solution, case)
            if finding is not None and finding.name == OVERWRITTEN:
                self.note = "(training would stop here: an in-place operation overwrites numbers that gradients need)"
            elif finding is not None:
                return finding
        return None

    def remember(self, case: Case, got: Outcome, want: Outcome | None) -> None:
        """For `check.last`."""
        yours = got.result if got.error is None else got.error
        expected = copy(want.result) if want is not None else None
        self.last = Last(copy(case.inputs), copy(yours), expected, case.init)


def not_started(error: BaseException | None) -> bool:
    """`raise NotImplementedError` still stands there. (torch raises one too, for a module without forward.)"""
    return isinstance(error, NotImplementedError) and "forward" not in text_of(error)


def misplaced(task: Task, solution) -> Finding | None:
    """What is not a solution at all."""
    reference = task.reference
    if solution is None or solution is Ellipsis:
        return Finding("not started", "there is nothing here yet", "write your code where it says so")
    if inspect.isclass(reference) and not inspect.isclass(solution):
        return Finding(
            "class expected",
            f"check was given a {type(solution).__name__}",
            "pass the class itself, without brackets: check makes its own objects with sizes of its own",
        )
    if callable(reference) and not callable(solution):
        return Finding(
            "function expected",
            f"check was given a {type(solution).__name__}",
            "pass the function itself, without calling it: check calls it with inputs of its own",
        )
    if callable(reference) and not inspect.isclass(reference) and inspect.isclass(solution):
        return Finding(
            "function expected", f"check was given the class {solution.__name__}", "this task asks for a function"
        )
    owner = package_part(solution, task)
    if callable(reference) and owner is not None:
        return Finding(
            "package's own",
            f"{getattr(solution, '__name__', solution)} is {owner}",
            "it is to be yours: write it in the cell above the check, and run that cell",
        )
    try:
        source = inspect.getsource(solution)
    except (OSError, TypeError, IndentationError, SyntaxError, AttributeError):
        return None
    if re.search(r"#\s*YOUR CODE HERE\s*\n\s*raise NotImplementedError", source) and not inspect.isclass(solution):
        return Finding("not started", "the task is as it was handed out", "write your code where it says so")
    return None


def package_part(solution, task: Task) -> str | None:
    """The package's class or function behind this, in words: itself, wrapped, or a subclass that adds nothing."""
    while isinstance(solution, functools.partial):
        solution = solution.func
    solution = inspect.unwrap(solution) if not inspect.isclass(solution) else solution
    if task.use is None and (called := only_call(solution)):
        return f"a call of the package's {called.__name__}, from {called.__module__}, and nothing else"
    if not inspect.isclass(solution):
        module = str(getattr(solution, "__module__", ""))
        return f"the package's, from {module}" if is_ours(solution) else None
    if is_ours(solution):
        return f"the package's, from {solution.__module__}"
    if not inspect.isclass(task.reference):  # a class where something else is asked for
        return None
    methods = [name for name, value in vars(task.reference).items() if inspect.isfunction(value)]
    methods = [name for name in methods if not name.startswith("__")] or methods
    homes = [next((kind for kind in solution.__mro__ if name in vars(kind)), object) for name in methods]
    if homes and all(is_ours(home) for home in homes):
        return f"a subclass of the package's {homes[0].__name__}, from {homes[0].__module__}, that adds nothing to it"
    return None


def only_call(function) -> Callable | None:
    """The package's function that is all that `def mine(x): return theirs(x)` calls."""
    code = getattr(function, "__code__", None)
    if code is None or len(code.co_names) != 1 or len(code.co_consts) > 1 or code.co_freevars:
        return None
    called = getattr(function, "__globals__", {}).get(code.co_names[0])
    return called if inspect.isfunction(called) and is_ours(called) else None


def is_ours(value) -> bool:
    return str(getattr(value, "__module__", "")).split(".")[0] == "paligemma"


def attempt(task: Task, solution, case: Case, inputs=None, seed: int = 0, training: bool = False) -> Outcome:
    """Run a solution, a reference or an imitation on one input, without gradients."""
    inputs = copy(case.inputs) if inputs is None else inputs
    try:
        with torch.no_grad():
            torch.manual_seed(seed)
            function, _ = bind(task, solution, case)
            if training:
                function.train()
            return Outcome(result=function(*inputs))
    except BaseException as error:  # whatever it is: a learner's `exit()` must not end the notebook's check
        return Outcome(error=error)


def attempt_theirs(task: Task, solution, case: Case, inputs=None, seed: int = 0, training: bool = False) -> Outcome:
    """The learner's: what it does to torch and the rest is undone afterwards."""
    with undisturbed():
        return attempt(task, solution, case, inputs, seed, training)


def known(task: Task, solution, seeds, index: int, case: Case) -> Outcome:
    """What the reference or an imitation gives on the input of this index: worked out once."""
    key = id(solution), tuple(seeds), index
    if key not in task.cache:
        outcome = attempt(task, solution, case)
        if isinstance(outcome.error, KeyboardInterrupt):
            raise outcome.error
        task.cache[key] = outcome
    return task.cache[key]


def a_module_is_asked_for(task: Task) -> bool:
    return task.use is None and inspect.isclass(task.reference) and issubclass(task.reference, nn.Module)


class Misfit(Exception):
    """A module of the learner's that does not take the reference's weights."""


def bind(task: Task, solution, case: Case) -> tuple[Callable, dict[str, torch.Tensor]]:
    """What is to be called with the inputs, and the parameters it has: a module gets the reference's weights."""
    if task.use is not None:
        return (lambda *inputs: task.use(solution, *inputs)), {}
    if not callable(task.reference):  # a value is its own result
        return (lambda *inputs: solution), {}
    if not a_module_is_asked_for(task):
        return solution, {}
    named = inspect.signature(task.reference).bind(*case.init).arguments
    module = swap_module.construct(solution, named)
    if not isinstance(module, nn.Module):
        raise Misfit(f"{solution.__name__} makes a {type(module).__name__}: let it be a subclass of nn.Module")
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


def same_outcome(got: Outcome, other: Outcome, tolerance: float, case: Case) -> bool:
    if got.error is not None or other.error is not None:
        # torch's messages carry the shapes: the same message is the same mistake.
        return type(got.error) is type(other.error) and text_of(got.error) == text_of(other.error)
    return difference(got, other, tolerance, case) is None


def difference(got: Outcome, want: Outcome, tolerance: float, case: Case) -> Finding | None:
    """How a result differs from what is wanted: the first symptom, or None."""
    if got.error is not None:
        return explain_error(got.error)
    try:
        return compare(got.result, want.result, tolerance, case, "")
    except Exception as error:  # an object that cannot even be compared
        kind = type(got.result).__name__
        return Finding("type", f"the result is a {kind} that cannot be compared ({describe_error(error)})", "")


def different_each_time(case: Case) -> Finding:
    return Finding(
        "different each time",
        f"the same input ({describe(case)}) gave two different results",
        "something in it is random or remembers the last call: dropout that is not switched off, memory from "
        "torch.empty, an attribute that is added to",
    )


def input_changed(case: Case) -> Finding:
    return Finding(
        "input changed",
        f"after the call the input ({describe(case)}) is not what it was before",
        "an in-place operation (+=, *=, a method ending in _, an assignment to x[...]) writes into the caller's data: "
        "make a new tensor instead",
    )


# --- gradients -----------------------------------------------------------------------------------------------


OVERWRITTEN = "overwritten"  # a solution that is right, and writes into tensors of its own: no reason to refuse it


def compare_gradients(task: Task, solution, case: Case) -> Finding | None:
    """The gradient of a fixed mix of the results, for the inputs and for a module's parameters."""
    mine, theirs = gradients(task, solution, case, guard=undisturbed), gradients(task, task.reference, case)
    if theirs is None:
        return None
    if mine is None or isinstance(mine, BaseException):
        if isinstance(mine, BaseException):
            if "modified by an inplace operation" in text_of(mine):
                return Finding(OVERWRITTEN, text_of(mine), "")
            finding = explain_error(mine)
            seen = (
                f"without gradients it works; with inputs that require gradients ({describe(case)}): {finding.observed}"
            )
            return Finding(finding.name, seen, finding.explanation)
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
            cut = not got.any()
            return Finding(
                "gradient",
                f"the values agree, the gradient of {name} does not ({describe(case)}): largest difference "
                f"{gap:.2g} (allowed {tolerance * scale:.0e}){'; yours is zero' if cut else ''}",
                "the chain from it to the result is cut: .detach(), .data or no_grad on the way, or a constant where "
                "a tensor belongs"
                if cut
                else "either a part of the chain is cut (.detach(), .data, no_grad), or "
                "something is rounded on the way that should not be",
            )
    return None


def gradients(task: Task, solution, case: Case, guard=nullcontext):
    """{name: gradient}; None when nothing depends on the inputs; the error when one is raised.

    `guard` is a context for the calls of the solution: what a learner's does to torch is undone before the way back.
    """
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
            with guard():
                torch.manual_seed(0)
                function, parameters = bind(task, solution, case)
                leaves.update({f"parameter {name}": parameter for name, parameter in parameters.items()})
                result = function(*inputs) if leaves else None
            if not leaves:
                return None
            results = [leaf for leaf in flat(result) if leaf.is_floating_point() and leaf.requires_grad]
            if not results:
                return None
            total = sum((leaf.float() * numbers(i, *leaf.shape)).sum() for i, leaf in enumerate(results))
            found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    except BaseException as error:
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


def text_of(error: BaseException) -> str:
    """The message of an error; classes of a learner's own may fail to give one."""
    try:
        return str(error)
    except BaseException:
        return "(its message cannot be shown: __str__ raises an error)"


def describe_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {text_of(error)}".strip().removesuffix(":")


def explain_error(error: BaseException) -> Finding:
    if isinstance(error, Misfit):
        return Finding(
            "weights do not fit",
            first_lines(text_of(error)),
            "the parameters must have the names and shapes of the package's, or trained weights have nowhere to go",
        )
    if isinstance(error, Found):
        return error.finding
    text = describe_error(error)
    where = learner_line(error)
    if isinstance(error, SystemExit):
        return Finding("raised", f"your code calls exit(){where}", "it would end the notebook: return a result instead")
    if re.search(r"'ellipsis'|(not|got|type) ellipsis|ellipsis object", text, re.IGNORECASE):
        return Finding("not started", f"{where}\n{text}", "a line still has `...` in it: put your code there")
    means = ""
    for pattern, meaning in ERRORS:
        if re.search(pattern, text, re.IGNORECASE):
            means = meaning
            break
    return Finding("raised", f"your code raised an error{where}\n{text}", means)


def first_lines(text: str, count: int = 4) -> str:
    """A long list cut off: a whole model under other names would fill pages."""
    lines = text.split("\n")
    more = f"... and {len(lines) - count} more like these"
    return "\n".join(lines if len(lines) <= count + 1 else [*lines[:count], more])


ERRORS = (
    (r"cannot assign .* before Module.__init__", "super().__init__() must come first in __init__"),
    (r"cannot be converted to type .* without overflow",
     "a number that this dtype cannot hold: the lowest number depends on the dtype of the tensor it goes into"),
    (r"view size is not compatible", "after a transpose the numbers no longer lie in order: reshape copies them"),
    (r"mat1 and mat2 shapes|size mismatch|expected size for first two dimensions|must match the size",
     "two shapes do not fit each other: print both just before this line"),
    (r"leaf Variable that requires grad",
     "an in-place operation (+=, *=, a method ending in _) changes an input"),
    (r"modified by an inplace operation",
     "an in-place operation (+=, *=, a method ending in _) overwrites numbers that the gradient still needs"),
    (r"missing \d+ required positional|takes \d+ positional|unexpected keyword",
     "the signature is not the one that the task gives"),
    (r"unsupported operand .*'tuple'|'tuple' and|can only concatenate tuple|must be Tensor, not .*(tuple|max)",
     "a function returned several values: take the one that you need (`max` over an axis gives values and places)"),
    (r"required \"forward\"", "the class has no method called forward: missing, misspelt or indented too far"),
    (r"NameError", "a name that is not defined here: a typing slip, or a cell that has not been run"),
    (r"has no attribute", "a name that this object does not have: a typing slip, or it was never set in __init__"),
    (r"expected .*dtype|same dtype|must have the same dtype|Float but found|Double", "two dtypes that do not fit"),
)  # fmt: skip


def learner_line(error: BaseException) -> str:
    """ ", in cell In[5], line 3 (`scores = query @ key`)": the innermost line that is the learner's own."""
    try:
        found = traceback.extract_tb(error.__traceback__)
    except Exception:  # linecache or traceback were tampered with: the message goes without a line
        return ""
    frames = [
        frame
        for frame in found
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


if not swap_module.replaced:
    ORIGINALS.remember_package()  # and again in each check: a chapter's tasks are imported when they are asked for
