"""Make the exercises from their solutions: notebooks/solutions/NN_topic.ipynb -> notebooks/exercises/NN_topic.ipynb.

Solutions are between `### BEGIN SOLUTION` and `### END SOLUTION`, tests that students do not see between
`### BEGIN HIDDEN TESTS` and `### END HIDDEN TESTS`: nbgrader's marks, so nbgrader makes the same from the same file.
"""

import hashlib
import json
import re
from pathlib import Path

from ..files import write_atomically

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
STUB = ("# YOUR CODE HERE", "raise NotImplementedError()")  # nbgrader's own words
LAID_OUT = ".laid-out.json"  # in the folder of a class: what each file was when it was laid out


def clear_solutions(source: str) -> str:
    """The stub in place of each solution, at the same indentation."""
    pattern = r"^([ \t]*)### BEGIN SOLUTION\n.*?### END SOLUTION[ \t]*$"
    return re.sub(pattern, lambda found: "\n".join(found[1] + line for line in STUB), source, flags=re.M | re.S)


def drop_hidden_tests(source: str) -> str:
    """Without the hidden tests."""
    return re.sub(r"^[ \t]*### BEGIN HIDDEN TESTS\n.*?### END HIDDEN TESTS[ \t]*\n?", "", source, flags=re.M | re.S)


def exercise(notebook: dict) -> dict:
    """A student's notebook from a solved one; the one passed in is left alone."""
    cells = []
    for cell in notebook["cells"]:
        cell = {**cell, "metadata": {**cell["metadata"]}}
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            cleared = drop_hidden_tests(clear_solutions(source)).rstrip("\n")
            if "### " in cleared and re.search(r"### (BEGIN|END) (SOLUTION|HIDDEN)", cleared):
                raise ValueError(f"a mark without its partner in the cell that begins {source[:60]!r}")
            cell.update(source=cleared.splitlines(keepends=True), outputs=[], execution_count=None)
            if cell["metadata"].get("nbgrader", {}).get("grade"):
                # "Run all cells" goes on past a check that does not pass yet.
                cell["metadata"]["tags"] = ["raises-exception"]
        cells.append(cell)
    return {**notebook, "cells": cells}


def to_text(notebook: dict) -> str:
    """As Jupyter writes it."""
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def solutions_in(notebooks: Path) -> list[Path]:
    """The solved notebooks. Raises FileNotFoundError where there are none: installed without the repository."""
    paths = sorted((notebooks / "solutions").glob("[0-9]*.ipynb"))
    if not paths:
        raise FileNotFoundError(
            f"{notebooks / 'solutions'} holds no notebooks: they come with the repository, not with the installed "
            "package. Run this in a checkout that was installed with `pip install -e .`"
        )
    return paths


def make(folder: Path = NOTEBOOKS) -> list[Path]:
    """Write every exercise that is missing or differs from its solution; return the files that were written."""
    written = []
    for path in solutions_in(folder):
        target = folder / "exercises" / path.name
        text = to_text(exercise(json.loads(path.read_text(encoding="utf-8"))))
        if target.exists() and target.read_text(encoding="utf-8") == text:
            continue
        target.parent.mkdir(exist_ok=True)
        with write_atomically(target) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
        written.append(target)
    return written


def class_folder(folder: Path, notebooks: Path = NOTEBOOKS, force: bool = False) -> tuple[list[Path], list[Path]]:
    """Lay out what nbgrader needs in `folder`: its configuration, and source/NN_topic/ for each solution.

    A second time, files that are as they were laid out are brought up to date, and files that somebody has changed
    stay as they are, unless `force`. What the class has handed in there, and its grades, are never touched.

    Returns the files that were written, and the changed ones that were left alone.
    """
    folder = Path(folder)
    wanted = {f"source/{path.stem}/{path.name}": path for path in solutions_in(notebooks)}
    config = notebooks.parent / "nbgrader_config.py"
    if folder.resolve() != config.parent.resolve():
        wanted[config.name] = config
    record = folder / LAID_OUT
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    written, kept = [], []
    for name, path in wanted.items():
        target, content = folder / name, path.read_bytes()
        there = target.read_bytes() if target.exists() else None
        if there is not None and there != content and digest(there) != known.get(name) and not force:
            kept.append(target)
            continue
        known[name] = digest(content)
        if there != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(target) as partial:
                partial.write_bytes(content)
            written.append(target)
    with write_atomically(record) as partial:
        partial.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return written, kept


def digest(content: bytes) -> str:
    """A fingerprint by which a changed file is known."""
    return hashlib.sha256(content).hexdigest()
