"""Which tasks are done: a plain file beside the notebooks, exercises-progress.json. Delete it to start afresh."""

import json
import os
import time
from pathlib import Path

FILE = "exercises-progress.json"  # in the folder that the notebook runs in


def load() -> dict[str, dict]:
    """{"06.1": {"passed": true, "tries": 3, "when": "2026-01-31 17:05"}}; a damaged file is put aside."""
    path = Path(FILE)
    if not path.exists():
        return {}
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(entry, dict) for entry in done.values()):
            raise ValueError("not a table of tasks")
        return done
    except (ValueError, AttributeError):
        aside = path.with_suffix(".damaged.json")
        os.replace(path, aside)
        print(f"{FILE} could not be read; it is now {aside.name}, and progress starts afresh")
        return {}


def save(done: dict[str, dict]) -> None:
    """Written whole or not at all: to a temporary name first."""
    temporary = Path(f"{FILE}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, FILE)


def record(task_id: str, passed: bool) -> None:
    """Count a try. What was passed once stays passed."""
    try:
        done = load()
        entry = done.setdefault(task_id, {"passed": False, "tries": 0})
        if not entry["passed"]:
            entry["tries"] += 1
            entry["passed"] = passed
            entry["when"] = time.strftime("%Y-%m-%d %H:%M")
            save(done)
    except OSError as error:  # a folder that cannot be written to must not stop the learner
        print(f"(progress is not kept: {error.strerror})")


def progress(chapter: str | None = None) -> None:
    """Print a line a chapter: which tasks are done (●) or not (○), and the points. `chapter` is "06", for one."""
    from .checking import tasks_of  # here, because checking.py records progress

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
    if not chapter:
        print(f"together {points} of {total} points")


def reset(task_or_chapter: str | None = None) -> None:
    """Forget that a task ("06.1"), a chapter's tasks ("06") or all of them were done."""
    if task_or_chapter is None:
        Path(FILE).unlink(missing_ok=True)
        return
    prefix = str(task_or_chapter)
    save({task: entry for task, entry in load().items() if task != prefix and task.split(".")[0] != prefix})
