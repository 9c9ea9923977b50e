"""Take out of executed notebooks what changes from run to run: widget states, their ids, how prints were sent.

A line `# NBVAL_IGNORE_OUTPUT` becomes the tag nbval-ignore-output, which means the same and stands in nobody's way.

    python docs/clean_notebooks.py notebooks/*.ipynb

The figures and printed texts stay; a cell that showed only a widget keeps the text that stands in for it.
"""

import json
import re
import sys
from pathlib import Path

from paligemma.files import write_atomically

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
# The file extension and the types are what `jupyter nbconvert --to script` goes by.
LANGUAGE = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}
MARK = re.compile(r"^# NBVAL_([A-Z_]+)\n", re.M)
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def clean(notebook: dict) -> dict:
    """Change the notebook in place, and return it."""
    notebook["metadata"] = {"kernelspec": KERNEL, "language_info": LANGUAGE}
    for cell in notebook["cells"]:
        cell["metadata"].pop("execution", None)
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            if marks := MARK.findall(source):
                tags = {
                    *cell["metadata"].get("tags", []),
                    *(f"nbval-{mark.lower().replace('_', '-')}" for mark in marks),
                }
                cell["metadata"]["tags"] = sorted(tags)
                cell["source"] = MARK.sub("", source).splitlines(keepends=True)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET_VIEW, None)
        if "outputs" in cell:
            cell["outputs"] = joined([output for output in cell["outputs"] if output.get("data", True)])
    return notebook


def joined(outputs: list[dict]) -> list[dict]:
    """Printed text that the kernel happened to send in several pieces, in one piece."""
    whole = []
    for output in outputs:
        if whole and output["output_type"] == "stream" and output.get("name") == whole[-1].get("name"):
            lines = "".join([*whole[-1]["text"], *output["text"]]).splitlines(keepends=True)
            whole[-1] = {**whole[-1], "text": lines}
        else:
            whole.append(output)
    return whole


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps(clean(notebook), indent=1, ensure_ascii=False) + "\n"
        with write_atomically(path) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
