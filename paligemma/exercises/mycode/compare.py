"""Hold each of the learner's classes and functions against the right one, in the order in which they are built."""

import contextlib
import io
import linecache
import re
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from ..checking import examine
from ..tasks import Finding
from . import locate, standins
from .files import WANTED, Found, Workspace, explain
from .modules import Maker
from .parts import NotKept, Part, line_of_pattern, make_parts


@dataclass
class Result:
    """What came of one part. `name` is the mistake's; `line` is 0 where none can be pointed at."""

    part: str
    # "right", "wrong", "missing", "broken" (told with the file), "later" (judged with the whole model), "unclear"
    state: str
    name: str = ""
    file: str = ""
    line: int = 0
    text: str = ""
    saw: str = ""
    means: str = ""
    chapter: str = ""
    task: str = ""
    replaced: tuple[str, ...] = ()  # parts of the learner's that the right ones stood in for
    own_name: str = ""
    more: list["Result"] = field(default_factory=list)  # further things that are wrong with it


@contextmanager
def quiet() -> Iterator[None]:
    """The learner's prints and torch's warnings stay out of the report."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield


class Comparison:
    """The learner's parts, and which of them can be used inside others."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        with quiet():
            self.found: dict[str, Found] = workspace.collect()
        self.maker = Maker()
        self.parts: list[Part] = make_parts(self.maker)
        self.replaced: dict[str, object] = {}  # {usual name: the stand-in}
        self.undo: list[tuple[object, str, object]] = []
        self.results: dict[str, Result] = {}

    def run(self, names=None) -> Iterator[Result]:
        """One part after the other; with `names`, those and the parts that they use."""
        wanted = self.with_parts_of(names) if names is not None else None
        for part in self.parts:
            if wanted is None or part.name in wanted:
                yield self.check(part)

    def check(self, part: Part) -> Result:
        """One part. A wrong one is replaced for those to come; a right cache or configuration is used by them."""
        found = self.found.get(part.name)
        if found is None:
            broken = {trouble.about for trouble in self.workspace.troubles if trouble.about and trouble.grave}
            state = "broken" if broken & {part.name, *WANTED[part.name]} else "missing"
            result = Result(part.name, state, chapter=part.chapter)
        else:
            try:
                with quiet():
                    result = self.examine(part, found)
            except Exception as error:  # the comparison itself failed: no fault of the learner's is claimed
                saw = f"{type(error).__name__}: {error}"
                result = Result(part.name, "unclear", file=found.file, line=found.first, saw=saw, chapter=part.chapter)
        self.results[part.name] = result
        if result.state == "wrong":
            self.replace(part.name)
        elif result.state == "right":
            self.use(part.name, found)
        return result

    def with_parts_of(self, names) -> set[str]:
        inside = {part.name: part.uses for part in self.parts}
        wanted, todo = set(), list(names)
        while todo:
            name = todo.pop()
            if name not in wanted:
                wanted.add(name)
                todo += inside.get(name, ())
        return wanted | {"SiglipVisionConfig", "GemmaConfig", "PaliGemmaConfig"}

    def use(self, name: str, found: Found) -> None:
        if name.endswith("Config"):
            self.maker.kinds[name] = found.thing
        if name == "KVCache":
            self.maker.cache = found.thing

    # Wrong parts are replaced by right ones inside all others, so that each is judged by itself.

    def replace(self, name: str) -> None:
        found = self.found[name]
        if name.endswith("Config") or name not in standins.STAND_INS:
            return
        right = standins.stand_in_for(name, found.thing)
        holder, _, attribute = found.own_name.rpartition(".")
        if holder:  # a method of one of their classes
            owner = getattr(found.source.module, holder, None)
            if owner is not None:
                self.undo.append((owner, attribute, vars(owner)[attribute]))
                setattr(owner, attribute, as_method(right) if hasattr(found.thing, "__self__") else staticmethod(right))
        for source in self.workspace.sources:
            if source.module is None:
                continue
            for key, value in list(vars(source.module).items()):
                if value is found.thing:
                    self.undo.append((source.module, key, value))
                    setattr(source.module, key, right)
        self.replaced[name] = right

    def restore(self) -> None:
        """The learner's own parts again, wrong or not."""
        while self.undo:
            setattr(*self.undo.pop())

    # One part

    def examine(self, part: Part, found: Found) -> Result:
        span = found.filename, found.first, found.last
        base = {
            "part": part.name, "chapter": part.chapter, "file": found.file, "own_name": found.own_name,
            "task": part.tasks[0] if part.tasks else "",
            "replaced": self.replaced_in(part),
        }  # fmt: skip
        stated = self.wrong_kind(part, found)
        if stated is not None:
            saw, means = stated
            text = locate.line_text(span[0], found.first)
            return Result(state="wrong", name="wrong kind", line=found.first, text=text, saw=saw, means=means, **base)
        if in_this_courses_form(found.thing):
            return Result(state="later", **base)
        more: list[Result] = []
        if part.fit is not None:
            try:
                with torch.no_grad():
                    troubles = part.fit(found.thing)
            except Exception as error:
                return self.raised(error, span, base, "when an object of it is made: ")
            for name, saw, means, attribute in troubles:
                line = locate.assignment(span[0], span, attribute) or found.first
                text = locate.line_text(span[0], line)
                more.append(Result(state="wrong", name=name, line=line, text=text, saw=saw, means=means, **base))
        failing, error = self.first_failing(part, found.thing)
        if failing is None:
            if more:
                more[0].more = more[1:4]
                return more[0]
            return Result(state="right", **base)
        if more and not all(one.name in ("names of weights", "weight starts at one") for one in more):
            more[0].more = more[1:4]
            return more[0]  # without its weights the numbers say nothing
        result = self.explain_failure(part, found, failing, error, span, base)
        if more:
            more[0].more = [*more[1:3], result]
            return more[0]
        return result

    def replaced_in(self, part: Part) -> tuple[str, ...]:
        """The parts inside this one, at any depth, that the course's stand in for."""
        uses = {one.name: one.uses for one in self.parts}
        names, todo = [], list(part.uses)
        while todo:
            name = todo.pop(0)
            if name in self.replaced:
                names.append(name)
            else:
                todo += uses.get(name, ())
        return tuple(dict.fromkeys(names))

    def wrong_kind(self, part: Part, found: Found) -> tuple[str, str] | None:
        right = part.right
        if isinstance(right, type) and issubclass(right, nn.Module):
            if not isinstance(found.thing, type):
                return f"{found.own_name} is a {type(found.thing).__name__}, expected a class", ""
            if not issubclass(found.thing, nn.Module):
                bases = ", ".join(base.__name__ for base in found.thing.__bases__ if base is not object) or "nothing"
                return (
                    f"the class inherits from {bases}",
                    "it must be a subclass of nn.Module, or torch does not see its weights",
                )
        return None

    def first_failing(self, part: Part, thing):
        """(the first case whose result differs, the error that was raised there or None)."""
        for case in part.cases:
            want = part.run(part.right, *copied(case.inputs))
            try:
                with torch.no_grad():
                    torch.manual_seed(0)
                    got = part.run(thing, *copied(case.inputs))
            except Exception as error:
                return case, error
            if not alike(got, want, part.tolerance):
                return case, None
        return None, None

    def explain_failure(self, part, found, failing, error, span, base) -> Result:
        with torch.no_grad():
            finding = examine(part.task, found.thing, seeds=(0,))
        if error is not None and (finding is None or finding.name in ("raised", "weights do not fit", "not started")):
            return self.raised(error, span, base, "")
        names = {mistake.name for mistake in part.task.mistakes}
        if finding is not None and finding.name not in names and len(part.cases) > 1:
            # Two mistakes at once: one of them alone may explain this input.
            alone = replace(part.task, cases=lambda seed: [failing], cache={})
            with torch.no_grad():
                other = examine(alone, found.thing, seeds=(0,))
            finding = other if other is not None and other.name in names else finding
        if finding is None:  # examine tolerates a little more: describe it as it was seen
            finding = Finding("values", "the numbers differ slightly", "")
        line, text = self.place(part, found, failing, span, finding)
        means = finding.explanation
        if not means and line > span[1]:
            means = "all values made before occur in the course's computation; what this line makes does not"
        unread = locate.never_read(span)
        if unread is not None:
            slip = f"Line {unread[0]} sets {unread[1]}, which is never read: is {unread[2]} meant?"
            means = f"{means}. {slip}" if means else slip
        saw = re.sub(r"Sizes; |, Sizes", "", finding.observed)
        saw = re.sub(r"`\[(['\"])(.+?)\1\]` ", r"\2: ", saw)  # keys of a dictionary of results
        saw = re.sub(r"`\[(\d)\]` ", lambda found: f"value {int(found[1]) + 1} of your result: ", saw)
        saw = re.sub(r"your code raised an error in .*?, line \d+:\n.*\n", "", saw)  # the line is shown already
        return Result(state="wrong", name=finding.name, line=line, text=text, saw=saw, means=means, **base)

    def raised(self, error: Exception, span, base, when: str) -> Result:
        """An error in the learner's code: its line, in words."""
        others = [(one.filename, one.first, one.last) for one in self.found.values()]
        others = [one for one in others if one != span]
        filename, line = locate.place_of_error(error, span, others, self.filenames()) or (span[0], span[1])
        (saw, means), name = explain(error), "raised"
        if isinstance(error, NotKept):
            line = locate.assignment(span[0], span, error.attribute) or span[1]
            name, saw, means = "value not kept", str(error), error.means
        return Result(state="wrong", name=name, line=line, text=locate.line_text(filename, line), saw=when + saw,
                      means=means, **{**base, "file": self.shown(filename)})  # fmt: skip

    def filenames(self) -> set[str]:
        return {name for source in self.workspace.sources for _, name in source.statements}

    def shown(self, filename: str) -> str:
        for source in self.workspace.sources:
            if any(name == filename for _, name in source.statements):
                return filename if filename.startswith(source.name) else source.name
        return filename

    def place(self, part: Part, found: Found, case, span, finding) -> tuple[int, str]:
        """The line to look at: by what the mistake is known for, else the first whose numbers are not right."""
        pattern = part.places.get(finding.name)
        if pattern:
            lines = linecache.getlines(span[0])[span[1] - 1 : span[2]]
            line = line_of_pattern(pattern, lines, span[1])
            if line is not None:
                return line, locate.line_text(span[0], line)
        difference = locate.first_difference(
            lambda: part.run(found.thing, *copied(case.inputs)),
            [lambda kind=kind: part.run(kind, *copied(case.inputs)) for kind in (part.right, *part.variants)],
            span,
            frozenset(self.filenames()),
            given=[value for value in case.inputs if not isinstance(value, dict)],
        )
        line = span[1] if difference is None or difference[0] != span[0] else difference[1]
        return line, locate.line_text(span[0], line)


def in_this_courses_form(thing) -> bool:
    """A decoder that makes masks and positions itself, from token_type_ids: another interface than the video's."""
    forward = getattr(thing, "forward", None)
    return isinstance(forward, types.FunctionType) and "token_type_ids" in forward.__code__.co_varnames


def as_method(function):
    return lambda self, *args, **kwargs: function(*args, **kwargs)


def copied(inputs: tuple) -> tuple:
    return tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in inputs)


def alike(got, want, tolerance: float) -> bool:
    """Equal results: numbers within the tolerance, everything else exactly."""
    import numpy as np

    if isinstance(want, dict):
        return (
            isinstance(got, dict) and got.keys() == want.keys() and all(alike(got[k], want[k], tolerance) for k in want)
        )
    if isinstance(want, list | tuple):
        same = isinstance(got, list | tuple) and len(got) == len(want)
        return same and all(alike(a, b, tolerance) for a, b in zip(got, want))
    if isinstance(want, torch.Tensor):
        if not isinstance(got, torch.Tensor) or got.shape != want.shape or got.dtype != want.dtype:
            return False
        limit = {torch.bfloat16: max(tolerance, 2e-2), torch.float16: max(tolerance, 3e-3)}.get(got.dtype, tolerance)
        gap = (got.double() - want.double()).abs()
        return bool((gap <= limit * (1 + want.double().abs())).all())
    if isinstance(want, np.ndarray):
        same = isinstance(got, np.ndarray) and got.shape == want.shape and got.dtype == want.dtype
        return same and bool(np.allclose(got, want, atol=tolerance, rtol=tolerance))
    if hasattr(want, "tobytes") and hasattr(want, "size"):
        return type(got).__name__ == type(want).__name__ and got.size == want.size and got.tobytes() == want.tobytes()
    return type(got) is type(want) and got == want
