"""Take out of executed notebooks what changes from run to run: widget states and their ids.

    python docs/clean_notebooks.py notebooks/*.ipynb

The figures and printed texts stay; a cell that showed only a widget keeps the text that stands in for it.
"""

import json
import os
import sys
from pathlib import Path

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def clean(notebook: dict) -> dict:
    """Change the notebook in place, and return it."""
    notebook["metadata"] = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for cell in notebook["cells"]:
        cell["metadata"].pop("execution", None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET_VIEW, None)
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if output.get("data", True)]
    return notebook


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps(clean(notebook), indent=1, ensure_ascii=False) + "\n"
        temporary = path.with_suffix(".ipynb.tmp")
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)


if __name__ == "__main__":
    main(sys.argv[1:])
