"""Make the exercises from their solutions: notebooks/solutions/NN_topic.ipynb -> notebooks/exercises/NN_topic.ipynb.

Solutions are between `### BEGIN SOLUTION` and `### END SOLUTION`, tests that students do not see between
`### BEGIN HIDDEN TESTS` and `### END HIDDEN TESTS`: nbgrader's marks, so nbgrader makes the same from the same file.
"""

import json
import os
import re
import shutil
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
STUB = ("# YOUR CODE HERE", "raise NotImplementedError()")  # nbgrader's own words


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


def make(folder: Path = NOTEBOOKS) -> list[Path]:
    """Write every exercise that is missing or differs from its solution; return the files that were written."""
    written = []
    for path in sorted((folder / "solutions").glob("[0-9]*.ipynb")):
        target = folder / "exercises" / path.name
        text = to_text(exercise(json.loads(path.read_text(encoding="utf-8"))))
        if target.exists() and target.read_text(encoding="utf-8") == text:
            continue
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
        written.append(target)
    return written


def class_folder(folder: Path, notebooks: Path = NOTEBOOKS) -> list[Path]:
    """Lay out what nbgrader needs in `folder`: its configuration, and source/NN_topic/ for each solution.

    Returns the notebooks that were written. What the class has handed in there, and its grades, are left alone.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = notebooks.parent / "nbgrader_config.py"
    if folder.resolve() != config.parent.resolve():
        shutil.copyfile(config, folder / config.name)
    written = []
    for path in sorted((notebooks / "solutions").glob("[0-9]*.ipynb")):
        target = folder / "source" / path.stem / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        written.append(target)
    return written
