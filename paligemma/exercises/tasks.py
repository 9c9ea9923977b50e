"""What a task of the exercises is made of, and where the tasks are found: those of chapter NN in chNN.py."""

import importlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Case:
    """One input. `inputs` are the arguments; `init` those of the constructor, when the learner writes a module.

    `sizes` names axis lengths, so that messages can speak of [B=2, L=5]: choose them all different.
    """

    inputs: tuple = ()
    init: tuple = ()
    sizes: dict[str, int] = field(default_factory=dict)
    note: str = ""  # what is special about this input: "about 1e-3 in size"
    tolerance: float | None = None  # instead of the task's


@dataclass(frozen=True)
class Mistake:
    """A mistake with a name. `message` says what it usually means, and never the answer.

    `imitation` is a wrong function, class or value, whose results identify the mistake; or a list of several, any of
    which does.
    """

    name: str
    message: str
    imitation: object
    see: str = ""  # where to read, instead of the task's

    @property
    def imitations(self) -> list:
        return self.imitation if isinstance(self.imitation, list) else [self.imitation]


@dataclass(frozen=True)
class Finding:
    """What a check found: a name, what was observed in numbers, what that usually means, where to read."""

    name: str
    observed: str
    explanation: str
    see: str = ""


class Found(Exception):
    """Raised by a task's `use` when it sees what is wrong before there is a result to compare."""

    def __init__(self, name: str, observed: str, explanation: str = ""):
        super().__init__(observed)
        self.finding = Finding(name, observed, explanation)


@dataclass(frozen=True)
class Prediction:
    """What a learner is to predict before the check, see predicting.py.

    The answers are numbers, words out of `options`, or dicts of these. `truth` may be a function that measures it.
    """

    question: str  # "Of 24 captions, as many as these stay the same when the scale is left out:"
    truth: object
    tempting: object  # the answer that suggests itself
    why: str  # the truth is as it is, and the tempting answer is not right
    options: Sequence[str] = ()


@dataclass(frozen=True)
class Task:
    """`reference` is a function, a class of torch modules or a value; `cases(seed)` makes the inputs.

    Seeds from 10 on are those of the hidden check: its inputs have other sizes, too (see `larger`).
    `use(solution, *inputs)` says how to use what the learner wrote, when it isn't just called (for classes that are not
    modules, for instance). `symptoms` are functions (case, got, want) -> Finding or None, tried when results differ and
    no mistake is recognised; `extra` are functions (solution) -> Finding or None, for all else that must hold once the
    results agree; `reward(solution)` draws or prints what the learner gets to see for passing.
    """

    id: str  # "06.1": chapter and number
    title: str
    points: int
    minutes: int
    level: str  # in words: "easy", "medium", "hard"
    reference: object
    cases: Callable[[int], Sequence[Case]]
    mistakes: Sequence[Mistake] = ()
    see: str = ""  # the section of the chapter
    tolerance: float = 1e-5  # of a float32 result, relative to 1 + its size
    gradients: bool = True
    use: Callable | None = None
    symptoms: Sequence[Callable] = ()
    extra: Sequence[Callable] = ()
    reward: Callable | None = None
    importance: str = ""  # "core", "deepen", "extra": what to do first, and what to leave out when time is short
    from_memory: bool = False  # the chapter prints a solution: the task is to write it without looking
    prediction: Prediction | None = None
    cache: dict = field(default_factory=dict, repr=False)  # what the reference and the imitations gave


COUNT = ("no", "one", "two", "three", "four")


def faults_left(faults: dict[str, tuple[str, str]], listing_with: Callable) -> list[Mistake]:
    """A mistake for every set of planted faults that may still be in a listing, the largest set first.

    `faults`: for each what can be observed of it, and its name, the title when it alone is left. `listing_with(some)`
    is the listing with some of them. The message counts what is left and names what is mended; the last fault is
    described. Whoever hands in the listing as it was learns how many faults to look for, and no more.
    """
    found = []
    total = len(faults)
    for number in range(total, 0, -1):
        for some in itertools.combinations(faults, number):
            left = f"{COUNT[number]} of {COUNT[total]} faults {'is' if number == 1 else 'are'} left"
            mended = "; ".join(name.removeprefix("left: ") for fault, (_, name) in faults.items() if fault not in some)
            observed, name = faults[some[0]]
            if number == total:
                message = f"all {COUNT[total]} faults are left: take the input above, and follow it line by line"
            elif number == 1:
                message = f"{left}: {observed}. Mended: {mended}"
            else:
                message = f"{left}. Mended: {mended}"
            found.append(Mistake(f"{number} left" if number > 1 else name, message, listing_with(some)))
    return found


def numbers(seed: int, *shape: int, scale: float = 1.0, shift: float = 0.0, dtype=torch.float32) -> torch.Tensor:
    """Normal random numbers of this shape, the same for the same seed."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return (torch.randn(shape, generator=generator) * scale + shift).to(dtype)


class OperatorNames(TorchDispatchMode):
    """Gathers the names of torch's operators that run inside it: "_softmax"."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*arguments, **(named or {}))


def written_by_hand(operators: Sequence[str], text: str, *inputs) -> Callable[[Callable], Finding | None]:
    """A rule for Task.extra: the solution, called with these inputs, must not leave the work to torch's `operators`."""

    def rule(solution) -> Finding | None:
        with OperatorNames() as used:
            solution(*inputs)
        return Finding("left to torch", f"your function calls {text}", "write it yourself: that is what this task is "
                       "about") if used.names & set(operators) else None  # fmt: skip

    return rule


def larger(seed: int) -> int:
    """How much longer an axis is in the hidden check: 0 for the seeds that are shown, 1, 2, ... for 11, 12, ..."""
    return seed - 10 if seed > 10 else 0


def find_task(task_id: str) -> Task:
    """The task "06.1" of ch06.py. Raises ValueError for one that there isn't."""
    chapter = str(task_id).split(".")[0]
    tasks = tasks_of(chapter)
    for task in tasks:
        if task.id == task_id:
            return task
    padded = re.sub(r"^\d\.", r"0\g<0>", str(task_id))
    if padded != str(task_id) and any(task.id == padded for task in tasks_of(padded[:2])):
        raise ValueError(f"there is no task {task_id!r}: did you mean {padded!r}?")
    there = ", ".join(task.id for task in tasks) if tasks else "that chapter has no exercises"
    raise ValueError(f"there is no task {task_id!r}; there are: {there}")


def tasks_of(chapter: str) -> list[Task]:
    """The tasks of a chapter, "06"; an empty list when it has none."""
    if not re.fullmatch(r"\d\d", chapter) or not (Path(__file__).parent / f"ch{chapter}.py").exists():
        return []
    return importlib.import_module(f".ch{chapter}", __package__).TASKS
