"""Which tasks are done: a plain file beside the notebooks, exercises-progress.jsonl, a line for each try or prediction.

Lines are only ever added, so nothing is lost by a crash or by two notebooks that run at once. Delete the file to start
afresh.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ..files import write_atomically
from .tasks import tasks_of

FILE = "exercises-progress.jsonl"  # in the folder that the notebook runs in


def entries() -> Iterator[dict]:
    """The lines of the file: tries, {"task", "passed", "when"}, and predictions, {"task", "predicted", "when"}.

    Lines that cannot be read are passed over: empty ones, and one that was cut off by a crash.
    """
    path = Path(FILE)
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
            if {"task", "when"} <= entry.keys() and ("passed" in entry or "predicted" in entry):
                yield entry
        except (ValueError, AttributeError):
            continue


def load() -> dict[str, dict]:
    """{"06.1": {"passed": True, "tries": 3, "when": "2026-01-31 17:05"}}: what was passed once stays passed."""
    done: dict[str, dict] = {}
    for entry in entries():
        if "passed" not in entry:
            continue
        task, passed, when = entry["task"], entry["passed"], entry["when"]
        so_far = done.setdefault(task, {"passed": False, "tries": 0, "when": when})
        if not so_far["passed"]:
            so_far.update(passed=passed, tries=so_far["tries"] + 1, when=when)
    return done


def predictions() -> dict[str, object]:
    """{"16.3": 4}: for each task what was predicted last."""
    return {entry["task"]: entry["predicted"] for entry in entries() if "predicted" in entry}


def record(task_id: str, passed: bool) -> None:
    """Add a try."""
    note({"task": task_id, "passed": passed})


def note(entry: dict) -> None:
    """Add a line, with the time. While nbgrader grades (it sets NBGRADER_EXECUTION), nobody tries: nothing is added."""
    if os.environ.get("NBGRADER_EXECUTION"):
        return
    entry = {**entry, "when": time.strftime("%Y-%m-%d %H:%M")}
    try:
        with open(FILE, "a", encoding="utf-8", newline="\n") as file:
            # A line's end on both sides: a line that a crash has cut off ends here, and costs itself alone.
            file.write("\n" + json.dumps(entry) + "\n")
    except OSError as error:  # a folder that cannot be written to must not stop the learner
        print(f"(progress is not kept: {error.strerror})")


def progress(chapter: str | None = None) -> None:
    """Print a line a chapter: which tasks are done (●) or not (○), and the points. `chapter` is "06", for one."""
    done = load()
    points = total = 0
    for number in [chapter] if chapter else [f"{n:02d}" for n in range(1, 17)]:
        tasks = tasks_of(number)
        if not tasks:
            continue
        passed = [task for task in tasks if done.get(task.id, {}).get("passed")]
        marks = "".join("●" if task in passed else "○" for task in tasks)
        got, possible = sum(task.points for task in passed), sum(task.points for task in tasks)
        points, total = points + got, total + possible
        print(f"chapter {number}  {marks:<6}  {len(passed)} of {len(tasks)} tasks, {got} of {possible} points")
        core = [task.id for task in tasks if task.importance == "core" and task not in passed]
        if chapter and core:
            print(f"core, and still open: {', '.join(core)}")
    if not chapter:
        print(f"together {points} of {total} points")


def reset(task_or_chapter: str | None = None) -> None:
    """Forget that a task ("06.1"), a chapter's tasks ("06") or all of them were done."""
    path = Path(FILE)
    if task_or_chapter is None or not path.exists():
        path.unlink(missing_ok=True)
        return
    what = str(task_or_chapter)
    kept = [
        json.dumps(entry) + "\n" for entry in entries() if entry["task"] != what and entry["task"].split(".")[0] != what
    ]
    with write_atomically(path) as partial:
        partial.write_text("".join(kept), encoding="utf-8")
