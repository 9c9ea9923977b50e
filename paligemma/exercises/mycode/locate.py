"""Where in the learner's code do the numbers part? The first line that computes something the right code does not.

Both codes are run on one input while every result of a torch function is noted, with the line that called it. The
right code's results are known numbers, whichever way their axes are ordered or merged. The first result of the
learner's that is none of them is the place. A lead and no proof: right code in another style computes other things on
the way, so it is looked for only where the end result is wrong.
"""

import ast
import difflib
import itertools
import linecache
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

PACKAGE = str(Path(__file__).resolve().parents[2])
CLOSE = 5e-6  # relative: float32 arithmetic in another order differs by less, mistakes by more


@dataclass
class Event:
    """A value and the line that made it."""

    filename: str
    line: int
    value: object


class Recorder(TorchFunctionMode):
    """Notes results of torch functions, and new values of local variables, in lines of `span` (all, if None).

    `span` is (filename, first line, last line). What other functions of the learner's (`own` are their files) compute
    inside themselves when the span calls them is left out: their results are noted.
    """

    def __init__(self, span: tuple[str, int, int] | None = None, own: frozenset[str] = frozenset()):
        super().__init__()
        self.span, self.own, self.events, self.returned = span, own, [], None

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        frame, inside = sys._getframe(1), False
        while frame is not None and not self.covers(frame):
            filename = frame.f_code.co_filename
            drawing = frame.f_code.co_name in ("__init__", "reset_parameters")  # torch draws a layer's weights
            inside = inside or filename in self.own or drawing or filename.startswith(PACKAGE)
            frame = frame.f_back
        if frame is not None and not inside:
            self.note(frame.f_code.co_filename, frame.f_lineno, result)
        return result

    def note(self, filename: str, line: int, value) -> None:
        """A tensor, an array, a picture, or a list of them."""
        if isinstance(value, torch.Tensor):
            self.events.append(Event(filename, line, value.detach().clone()))
        elif isinstance(value, np.ndarray):
            self.events.append(Event(filename, line, value.copy()))
        elif isinstance(value, Image.Image):
            self.events.append(Event(filename, line, np.asarray(value)))
        elif isinstance(value, tuple | list | dict) and len(value) <= 8:
            for item in value.values() if isinstance(value, dict) else value:
                self.note(filename, line, item)

    def covers(self, frame) -> bool:
        if self.span is None:
            return True
        code = frame.f_code
        return code.co_filename == self.span[0] and self.span[1] <= code.co_firstlineno <= self.span[2]

    def watch(self, frame, event, argument):
        """A trace function: arrays and results of the learner's other functions are found in local variables."""
        if not self.covers(frame) or (self.span is None and not frame.f_code.co_filename.startswith(PACKAGE)):
            return None
        seen, line = dict(frame.f_locals), frame.f_lineno

        def follow(frame, event, argument):
            nonlocal line
            for key, value in frame.f_locals.items():
                if seen.get(key) is not value:
                    seen[key] = value
                    self.note(frame.f_code.co_filename, line, value)
            if event == "return":
                self.returned = frame.f_code.co_filename, frame.f_lineno
                self.note(frame.f_code.co_filename, frame.f_lineno, argument)
            line = frame.f_lineno
            return follow

        return follow

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.watch)
        return super().__enter__()

    def __exit__(self, *error):
        sys.settrace(self.before)
        return super().__exit__(*error)


class Known:
    """Values of the right code, up to the order and merging of their axes."""

    def __init__(self):
        self.entries: dict[int, list[tuple[frozenset, tuple[float, float]]]] = {}

    def add(self, value) -> None:
        value = as_tensor(value)
        if value is None:
            return
        axes = [size for size in value.shape if size != 1]
        value = value.reshape(axes)
        orders = itertools.permutations(range(len(axes))) if len(axes) <= 4 else [tuple(range(len(axes)))]
        for order in orders:
            turned = value.permute(order).contiguous()
            self.entries.setdefault(turned.numel(), []).append((borders(turned.shape), mark(turned)))

    def has(self, value) -> bool:
        value = as_tensor(value)
        if value is None:
            return True
        mine, edge, size = mark(value), borders(value.shape), float(value.norm())
        return any(
            all(abs(a - b) <= CLOSE * size for a, b in zip(mine, other)) and (edge <= edges or edges <= edge)
            for edges, other in self.entries.get(value.numel(), [])
        )


def as_tensor(value) -> torch.Tensor | None:
    """float64, or None for what says nothing: single numbers, constants, whole numbers, masks."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiu":
            return None
        value = torch.from_numpy(np.ascontiguousarray(value).astype(np.float64))
    elif not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return None
    value = value.to(torch.float64).nan_to_num(1e30, 1e30, -1e30)
    if value.numel() < 2 or bool((value == value.flatten()[0]).all()):
        return None
    return value


def borders(shape) -> frozenset:
    """After how many numbers each axis steps: a view that merges or splits axes has more or fewer of them."""
    steps, size = set(), 1
    for length in reversed(shape):
        size *= length
        steps.add(size)
    return frozenset(steps)


def mark(value: torch.Tensor) -> tuple[float, float]:
    """Two numbers for a tensor, in which every element counts with weights of its own."""
    generator = torch.Generator().manual_seed(value.numel())
    weights = torch.randn(value.numel(), 2, generator=generator, dtype=torch.float64)
    first, second = (value.flatten() @ weights).tolist()
    return first, second


def first_difference(theirs, right, span, own, given=()) -> tuple[str, int] | None:
    """(filename, line) of the first value in `span` that does not occur in `right()`; the last return if all do.

    `theirs` and those in `right` are functions without arguments; an error inside them ends the recording. `own` are
    the learner's files, `given` values that are known from the start.
    """
    known = Known()
    for value in given:
        known.add(value)
    for function in right:
        recorder = Recorder()
        run(function, recorder)
        for event in recorder.events:
            known.add(event.value)
    recorder = Recorder(span, own)
    run(theirs, recorder)
    for event in recorder.events:
        if not known.has(event.value):
            return event.filename, event.line
    return recorder.returned


def run(function, recorder) -> None:
    with torch.no_grad():
        torch.manual_seed(0)
        try:
            with recorder:
                function()
        except Exception:
            pass


def place_of_error(error: BaseException, span, others: list, own) -> tuple[str, int] | None:
    """(filename, line): the innermost frame of an error in the span, or in code of the learner's that is no other part.

    `others` are the spans of the other parts: these are judged by themselves, so what they are called with is at fault.
    """
    place, trace = None, error.__traceback__
    while trace is not None:
        code, line = trace.tb_frame.f_code, trace.tb_lineno
        if code.co_filename in own and not any(inside(code, other) for other in others):
            place = code.co_filename, line
        trace = trace.tb_next
    return place


def inside(code, span: tuple[str, int, int]) -> bool:
    return code.co_filename == span[0] and span[1] <= code.co_firstlineno <= span[2]


def line_text(filename: str, line: int) -> str:
    """A line of the learner's, without its indentation and cut to 92 characters."""
    text = linecache.getline(filename, line).strip()
    return text if len(text) <= 92 else text[:89] + "..."


def never_read(span: tuple[str, int, int]) -> tuple[int, str, str] | None:
    """(line, name, a like name) of a local variable that is set and never read, as in `hidden_state = gelu(...)`."""
    try:
        tree = ast.parse("".join(linecache.getlines(span[0])))
    except (SyntaxError, ValueError):
        return None
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or not span[1] <= function.lineno <= span[2]:
            continue
        names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
        read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
        for node in names:
            if isinstance(node.ctx, ast.Store) and node.id not in read:
                close = difflib.get_close_matches(node.id, sorted(read), n=1, cutoff=0.85)
                if close:
                    return node.lineno, node.id, close[0]
    return None


def assignment(filename: str, span: tuple[str, int, int], name: str) -> int | None:
    """The line of `self.NAME = ...` inside the span."""
    lines = linecache.getlines(filename)
    for number in range(span[1], min(span[2], len(lines)) + 1):
        text = lines[number - 1].strip()
        if text.startswith((f"self.{name} =", f"self.{name}:", f"self.{name}=")) or (
            "register_buffer" in text and f'"{name}"' in text
        ):
            return number
    return None
