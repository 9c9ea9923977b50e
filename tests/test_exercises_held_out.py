"""The solutions in tests/held_out: the checks catch the wrong ones and say what is wrong, and accept the right ones."""

import ast
import functools
import importlib
import json
import re
from pathlib import Path

import pytest
from held_out import RIGHT, WRONG

from paligemma.exercises.checking import examine
from paligemma.exercises.comparing import describe
from paligemma.exercises.tasks import Finding, find_task, tasks_of
from paligemma.exercises.undisturbed import undisturbed

EXERCISES = Path(__file__).parents[1] / "notebooks" / "exercises"
CHAPTERS = sorted(path.stem[2:] for path in (Path(__file__).parent / "held_out").glob("ch[0-9][0-9].py"))
for chapter in CHAPTERS:
    importlib.import_module(f"held_out.ch{chapter}")
TASKS = [task.id for chapter in CHAPTERS for task in tasks_of(chapter)]
COMMON = set(
    "also been being does done each every expected from give gives given here input inputs instead into itself less "
    "more most must number numbers other over result results right same should some take taken takes than that their "
    "them then there these they this those want wanted wants what when where which whole will with would wrong your "
    "yours".split()
)


def defines_only(code: str) -> bool:
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    return all(isinstance(node, kinds) for node in ast.parse(code).body)


@functools.cache
def notebook_of(task_id: str) -> tuple[str, str]:
    """The imports and listings that the exercise's notebook gives, and what it hands to the task's check."""
    (path,) = EXERCISES.glob(f"{task_id[:2]}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    given = [cell for cell in code if "YOUR CODE" not in cell and defines_only(cell)]
    (handed,) = re.findall(rf'^check\("{re.escape(task_id)}", (.+)\)$', "\n".join(code), re.M)
    return "\n".join(given), handed


def finding_for(task_id: str, source: str) -> Finding | None:
    """What the check finds when the source is run in the exercise's notebook."""
    given, handed = notebook_of(task_id)
    space: dict = {}
    exec(given, space)
    exec(source, space)
    with undisturbed():
        return examine(find_task(task_id), eval(handed, space), seeds=(0,))


@functools.cache
def inputs_of(task_id: str) -> list[str]:
    """The task's inputs as a message describes them."""
    return [describe(case) for case in find_task(task_id).cases(0)]


def words_of(text: str) -> set[str]:
    """Beginnings of words that carry a meaning, and numbers."""
    words = re.findall(r"[a-z_]{3,}|[-+]?\d+(?:\.\d+)?", text.lower())
    return {word[:5] for word in words if word not in COMMON}


def is_told(task_id: str, finding: Finding, truth: str, says: str) -> bool:
    """Whether the message holds `says`, or else a word of `truth`; what it quotes of the inputs does not count."""
    observed = finding.observed
    for inputs in inputs_of(task_id):
        observed = observed.replace(inputs, "...")
    said = " ".join(f"{observed} {finding.explanation}".split())
    if says:
        return says in said
    return bool(finding.explanation) and not words_of(truth).isdisjoint(words_of(said))


def test_the_set_is_large_enough():
    assert len(WRONG) >= 1148 and len(RIGHT) >= 202
    assert {task_id for task_id, *_ in WRONG} == set(TASKS)


@pytest.mark.parametrize("task_id", TASKS)
def test_wrong_ones_are_caught_and_told_what_is_so(task_id):
    faults = []
    for task, title, source, truth, says in WRONG:
        if task != task_id:
            continue
        finding = finding_for(task_id, source)
        if finding is None:
            faults.append(f"{title!r} passes")
        elif not is_told(task_id, finding, truth, says):
            faults.append(f"{title!r} ({says or truth}) is told: {finding.observed} {finding.explanation}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("task_id", sorted({task_id for task_id, *_ in RIGHT}))
def test_right_ones_in_other_styles_pass(task_id):
    faults = []
    for task, title, source in RIGHT:
        finding = finding_for(task_id, source) if task == task_id else None
        if finding is not None:
            faults.append(f"{title!r} is refused: {finding}")
    assert not faults, "\n".join(faults)
