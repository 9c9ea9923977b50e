"""What a chapter prints, pasted into its exercises: nothing passes, but where a task says that it is the chapter's own.

python tests/test_exercises_pasted.py     # the number of tasks that pass unchanged, chapter by chapter
"""

import ast
import itertools
import json
import sys
from pathlib import Path

import pytest

from paligemma.exercises.checking import examine
from paligemma.exercises.tasks import tasks_of
from paligemma.exercises.undisturbed import undisturbed

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
REWORKED = ["01", "02", "03", "04", "05", "06", "07", "08"]


def printed_in(chapter: str) -> dict[str, list]:
    """Every class and function that a code cell of the chapter defines: {name: its versions}, in the cells' order.

    Only imports, constants and definitions are run, each with what stands before it, so nothing is trained or drawn.
    """
    (path,) = NOTEBOOKS.glob(f"{chapter}_*.ipynb")
    space = {"__name__": "__main__"}
    found: dict[str, list] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(line for line in cell["source"] if not line.startswith(("%", "!")))
        if cell["cell_type"] != "code":
            continue
        for node in ast.parse(source).body:
            constant = isinstance(node, ast.Assign) and is_literal(node.value)
            if not (constant or isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)):
                continue
            try:
                exec(compile(ast.Module([node], []), f"chapter {chapter}", "exec"), space)
            except NameError:  # a class of the chapter's that needs a model, a decorator
                continue
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.setdefault(node.name, []).append(space[node.name])
    return found


def is_literal(node) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def passing(chapter: str) -> dict[str, list[str]]:
    """{task: names out of the chapter that pass it unchanged}, whatever they are called there."""
    printed = printed_in(chapter)
    passed = {}
    for task in tasks_of(chapter):
        tries = [(name, thing) for name, versions in printed.items() for thing in versions]
        if isinstance(task.reference, tuple):  # a task that takes a pair of functions
            pairs = itertools.permutations(tries, len(task.reference))
            tries = [(" and ".join(names), things) for names, things in (zip(*pair, strict=True) for pair in pairs)]
        with undisturbed():
            passed[task.id] = [name for name, thing in tries if examine(task, thing, seeds=(0,)) is None]
    return passed


@pytest.mark.parametrize("chapter", REWORKED)
def test_what_a_chapter_prints_does_not_pass_its_exercises(chapter):
    passed = passing(chapter)
    copied = {task: names for task, names in passed.items() if names}
    from_memory = {task.id for task in tasks_of(chapter) if task.from_memory}
    assert set(copied) <= from_memory, f"pass as they stand in the chapter: {copied}"


def test_the_pasting_would_be_seen():
    """The chapter's own rotate_half, for one, passes the task that asks for it from memory."""
    assert passing("07")["07.2"] == ["rotate_half"]


if __name__ == "__main__":
    for chapter in sys.argv[1:] or REWORKED:
        result = passing(chapter)
        copied = {task: names for task, names in result.items() if names}
        print(f"chapter {chapter}: {len(copied)} of {len(result)} tasks pass with what the chapter prints: {copied}")
