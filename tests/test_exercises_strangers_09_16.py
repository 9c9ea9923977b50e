"""Solutions of chapters 09 to 16 by somebody who had not read the checks: what is wrong is caught, and told truly."""

import importlib
import json
import re
from pathlib import Path

import pytest
import strangers_09_16 as strangers

from paligemma.exercises.checking import examine
from paligemma.exercises.comparing import describe
from paligemma.exercises.tasks import find_task
from paligemma.exercises.undisturbed import undisturbed

EXERCISES = Path(__file__).parents[1] / "notebooks" / "exercises"
TASKS = sorted({task for task, *_ in strangers.SOLUTIONS})
COMMON = set(
    "also been being does done each every expected from give gives given here input inputs instead into itself less "
    "more most must number numbers other over result results right same should some take taken takes than that their "
    "them then there these they this those want wanted wants what when where which whole will with would wrong your "
    "yours".split()
)


def notebook_of(task_id: str) -> tuple[str, str]:
    """The code that the exercise's notebook gives (imports, listings), and the name of what its check is handed."""
    (path,) = EXERCISES.glob(f"{task_id[:2]}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    given = [cell for cell in code if not re.search(r"check\(\"|predict\(|YOUR CODE|show_|progress\(|# Your", cell)]
    (name,) = re.findall(rf'^check\("{re.escape(task_id)}", (\w+)\)', "\n".join(code), re.M)
    return "\n".join(given), name


def words_of(text: str) -> set[str]:
    """Beginnings of words that carry a meaning, and numbers."""
    words = re.findall(r"[a-z_]{3,}|[-+]?\d+(?:\.\d+)?", text.lower())
    return {word[:5] for word in words if word not in COMMON}


def findings(task_id: str, kind: str):
    task, (given, name) = find_task(task_id), notebook_of(task_id)
    start: dict = {}
    exec(given, start)
    for entry in strangers.SOLUTIONS:
        if entry[:2] != (task_id, kind):
            continue
        title, source, truth = entry[2:]
        space = dict(start)
        exec(compile(source, title, "exec"), space)
        with undisturbed():
            yield title, truth, examine(task, space[name], seeds=(0,))


def test_the_set_is_large_enough():
    kinds = [kind for _, kind, *_ in strangers.SOLUTIONS]
    assert kinds.count("wrong") >= 500 and kinds.count("right") >= 60 and len(TASKS) == 47


@pytest.mark.parametrize("task_id", TASKS)
def test_wrong_ones_are_caught_and_told_what_is_so(task_id):
    """The message holds a word of the truth, which was written without a look at the checks, or the words in TOLD."""
    task, faults = find_task(task_id), []
    for title, truth, finding in findings(task_id, "wrong"):
        if finding is None:
            faults.append(f"{title!r} passes")
            continue
        observed = finding.observed
        for case in task.cases(0):
            observed = observed.replace(describe(case), "")
        said = f"{observed} {finding.explanation}"
        told = strangers.TOLD.get((task_id, title))
        if told is not None:
            good = re.search(told, said) is not None
        else:
            good = bool(finding.explanation) and not words_of(truth).isdisjoint(words_of(said))
        if not good:
            faults.append(f"{title!r} ({truth}) is told: {said}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("task_id", sorted({task for task, kind, *_ in strangers.SOLUTIONS if kind == "right"}))
def test_right_ones_in_other_styles_pass(task_id):
    faults = [f"{title!r} is refused: {found}" for title, _, found in findings(task_id, "right") if found is not None]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("chapter, name", [
    ("01", "EXPOSE"), ("02", "EXPOSE"), ("04", "EXPOSE"), ("06", "EXPOSE"), ("08", "EXPOSE"), ("11", "EXPOSE"),
    ("12", "WRITE"), ("15", "STRICT"),
])  # fmt: skip
def test_inputs_that_expose_one_version_alone_exist(chapter, name):
    """What a task asks for has to be possible: the reference's inputs expose their own version and no other."""
    task = getattr(importlib.import_module(f"paligemma.exercises.ch{chapter}"), name)
    exposed = task.use(task.reference)
    assert exposed == {version: [version] for version in exposed}
