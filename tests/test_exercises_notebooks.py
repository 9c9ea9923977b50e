"""The notebooks of the exercises: made from their solutions, solved by them, polite when untouched."""

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from paligemma.exercises import NotStarted, checking
from paligemma.exercises.make import clear_solutions, drop_hidden_tests, exercise, make, to_text
from paligemma.exercises.tasks import tasks_of

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SOLUTIONS = sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))
EXERCISES = sorted((NOTEBOOKS / "exercises").glob("*.ipynb"))
each_solution = pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def marks(cell: dict) -> dict:
    return cell["metadata"].get("nbgrader", {})


def test_every_chapter_with_tasks_has_its_notebooks():
    chapters = {path.stem[2:] for path in Path(checking.__file__).parent.glob("ch[0-9][0-9].py")}
    assert {path.name[:2] for path in SOLUTIONS} == {path.name[:2] for path in EXERCISES} == chapters


@each_solution
def test_the_exercise_is_made_from_the_solution(path):
    made = to_text(exercise(read(path)))
    committed = (NOTEBOOKS / "exercises" / path.name).read_text(encoding="utf-8")
    assert committed == made, "run `python -m paligemma.exercises make`"


@each_solution
def test_nbgrader_would_make_the_same(path):
    """Its own preprocessors, on the same file."""
    preprocessors = pytest.importorskip("nbgrader.preprocessors")
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.kernelspec["language"] = "python"
    for step in (preprocessors.ClearSolutions(), preprocessors.ClearHiddenTests()):
        notebook, _ = step.preprocess(notebook, {})
    theirs = [cell.source.rstrip() for cell in notebook.cells]
    assert theirs == [source(cell).rstrip() for cell in exercise(read(path))["cells"]]


@each_solution
def test_every_task_is_there_with_its_marks(path):
    notebook = read(path)
    cells = notebook["cells"]
    tasks = tasks_of(path.name[:2])
    checks = [cell for cell in cells if marks(cell).get("grade")]
    assert len(checks) == len(tasks)
    for task, cell in zip(tasks, checks, strict=True):
        assert source(cell).startswith(f'check("{task.id}", ')
        assert marks(cell)["points"] == task.points and marks(cell)["locked"] and not marks(cell)["solution"]
        assert f'hidden_check("{task.id}"' in source(cell) and "hidden=True" in source(cell)
        solution = cells[cells.index(cell) - 1]
        assert marks(solution)["solution"] and not marks(solution)["locked"]
        assert '"""' in source(solution) or task.level != "easy" or "class" in source(solution)
        heading = next(c for c in cells if source(c).startswith(f"## {task.id} · "))
        text = source(heading)
        assert task.title.lower() in text.splitlines()[0].lower()
        importance = f"{task.importance} · " if task.importance else ""
        assert f"*{importance}{task.level} · {task.points} point" in text and f"about {task.minutes} minutes*" in text
        assert task.from_memory == ("**From memory.**" in text), "a task that the chapter prints says so"
        predicted = [c for c in cells if re.match(rf'predict\(\s*"{task.id}", *', source(c))]
        assert len(predicted) == (task.prediction is not None)
        assert all(cells.index(heading) < cells.index(c) < cells.index(cell) for c in predicted)
        hints = re.findall(r"<summary>(Hint \d)</summary>", text)
        assert "**Goal.**" in text and hints == ["Hint 1", "Hint 2", "Hint 3"]
    ids = [marks(cell)["grade_id"] for cell in cells if marks(cell)]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"\w+", grade_id) for grade_id in ids)


@each_solution
def test_open_investigations_have_a_rubric(path):
    """They have no check: nbgrader's "task" cell, which a teacher grades by hand, and a learner alone by the rubric."""
    cells = read(path)["cells"]
    opened = [cell for cell in cells if re.match(r"## (Open|Project)\b", source(cell))]
    assert [cell for cell in cells if marks(cell).get("task")] == opened
    for cell in opened:
        text = source(cell)
        points = sum(map(int, re.findall(r"^\| *(\d+) *\|", text, re.M)))
        assert "**Rubric.**" in text and marks(cell)["points"] == points > 0 and cell["cell_type"] == "markdown"
        assert re.search(rf"^\*extra · .*no check · {points} points by the rubric · about \d+ minutes\*$", text, re.M)
        assert re.search(r"<summary>What .* found</summary>", text), "an example of what came of it, to unfold"


@each_solution
def test_questions_have_answers_to_unfold(path):
    """A question in the text of a task, outside of what is folded, is answered in a fold or asked by `predict`."""
    tasks = {task.id: task for task in tasks_of(path.name[:2])}
    for cell in read(path)["cells"]:
        text = source(cell)
        found = re.match(r"## (\d\d\.\d) · ", text)
        if cell["cell_type"] != "markdown" or not found or not tasks[found[1]].importance:
            continue
        open_text = re.sub(r"<details>.*?</details>|```.*?```|`[^`]*`", "", text.partition("\n")[2], flags=re.S)
        if "?" in open_text and tasks[found[1]].prediction is None:
            assert re.search(r"<summary>Answer", text), f"{found[1]} asks and does not answer"


@each_solution
def test_the_question_is_read_before_the_prediction(path):
    """What `predict` asks for stands in the text of the task, outside of all folds, with the words it takes."""
    cells = read(path)["cells"]
    for task in tasks_of(path.name[:2]):
        if task.prediction is None:
            continue
        heading = next(source(cell) for cell in cells if source(cell).startswith(f"## {task.id} · "))
        open_text = re.sub(r"<details>.*?</details>", "", heading, flags=re.S)
        asked = re.search(r"\*\*Predict first\*\*,? (.*?)(?:\n\n|$)", open_text, re.S)
        assert asked and "?" in asked[1], f"{task.id}: no question above `predict`"
        for word in task.prediction.options:
            assert f'`"{word}"`' in asked[1], f"{task.id}: {word!r} is an answer, and the text does not name it"
        unasked = set(re.findall(r"\d+", task.prediction.question)) - set(re.findall(r"\d+", open_text))
        assert not unasked, f"{task.id}: the question has the numbers {unasked}, the text has not"


def run(cell: dict, name: str, space: dict) -> None:
    exec(compile(source(cell), name, "exec"), space)
    plt.close("all")


@each_solution
def test_every_solution_passes_its_checks_and_hidden_tests(path):
    space = {"__name__": "__main__"}
    for number, cell in enumerate(read(path)["cells"]):
        if cell["cell_type"] == "code":
            run(cell, f"{path.stem}, cell {number}", space)


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_an_untouched_exercise_is_told_so_politely(path):
    space = {"__name__": "__main__"}
    for number, cell in enumerate(read(path)["cells"]):
        if cell["cell_type"] != "code":
            continue
        assert not re.search(r"### (BEGIN|END)|hidden=True", source(cell)) and cell["outputs"] == []
        if marks(cell).get("grade"):
            with pytest.raises((NotStarted, NameError)) as caught:
                run(cell, f"{path.stem}, cell {number}", space)
            assert caught.type is NotStarted, caught.value
            assert "Traceback" not in str(caught.value) and 'File "' not in str(caught.value)
        else:
            run(cell, f"{path.stem}, cell {number}", space)


def sections_named(task) -> list[tuple[str, str]]:
    """(chapter, heading) for each section that the task's messages send a learner to."""
    found = []
    for text in (task.see, *(mistake.see for mistake in task.mistakes)):
        for chapter, rest in re.findall(r"[Cc]hapter (\d\d),? ([^;.]*)", text):
            found += [(chapter, heading) for heading in re.findall(r'"([^"]+)"', rest)]
    return found


@pytest.mark.parametrize("chapter", sorted({path.name[:2] for path in SOLUTIONS}))
def test_where_to_look_is_there(chapter):
    missing = []
    for task in tasks_of(chapter):
        for number, heading in sections_named(task):
            for path in NOTEBOOKS.glob(f"{number}_*.ipynb"):
                prose = "\n\n".join(source(cell) for cell in read(path)["cells"] if cell["cell_type"] == "markdown")
                headings = [found.strip(" #").replace("`", "") for found in re.findall(r"^#+ .*$", prose, re.M)]
                if not any(heading.lower() in found.lower() for found in headings):
                    missing.append(f"{task.id}: chapter {number} has no section {heading!r}")
    assert not missing, "\n".join(missing)


# --- the command ------------------------------------------------------------------------------------------------


def notebook(*sources) -> dict:
    cells = [{"cell_type": "code", "metadata": {}, "source": text.splitlines(keepends=True), "outputs": [{}],
              "execution_count": 3} for text in sources]  # fmt: skip
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def test_solutions_are_cleared_at_their_indentation():
    text = "def f(x):\n    y = 1\n    ### BEGIN SOLUTION\n    z = 2\n    ### END SOLUTION\n    return z\n"
    cleared = clear_solutions(text)
    assert cleared == "def f(x):\n    y = 1\n    # YOUR CODE HERE\n    raise NotImplementedError()\n    return z\n"
    twice = clear_solutions(text + text)
    assert twice == cleared + cleared
    assert drop_hidden_tests("a\n### BEGIN HIDDEN TESTS\nb\n### END HIDDEN TESTS\nc") == "a\nc"


def test_marks_without_partner_are_refused():
    with pytest.raises(ValueError, match="a mark without its partner"):
        exercise(notebook("### BEGIN SOLUTION\nx = 1"))


def test_make_writes_what_is_missing_or_differs_and_nothing_else(tmp_path):
    folder = tmp_path / "notebooks"
    (folder / "solutions").mkdir(parents=True)
    solved = notebook("### BEGIN SOLUTION\nx = 1\n### END SOLUTION", "check(x)\n")
    (folder / "solutions" / "01_a.ipynb").write_text(json.dumps(solved), encoding="utf-8")
    assert [path.name for path in make(folder)] == ["01_a.ipynb"]
    assert make(folder) == []
    made = read(folder / "exercises" / "01_a.ipynb")
    assert source(made["cells"][0]) == "# YOUR CODE HERE\nraise NotImplementedError()"
    assert made["cells"][1]["outputs"] == [] and made["cells"][1]["execution_count"] is None
    solved["cells"][1]["source"] = ["check(y)"]
    (folder / "solutions" / "01_a.ipynb").write_text(json.dumps(solved), encoding="utf-8")
    assert len(make(folder)) == 1 and "check(y)" in (folder / "exercises" / "01_a.ipynb").read_text(encoding="utf-8")
    assert not list(folder.rglob("*.tmp"))


# --- in Jupyter ---------------------------------------------------------------------------------------------------


def run_cells(*sources) -> list[dict]:
    """Outputs of the last of these cells, run in a kernel."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in sources])
    NotebookClient(notebook, kernel_name="python3", allow_errors=True, timeout=300).execute()
    return notebook.cells[-1].outputs


def test_jupyter_shows_the_message_alone_and_the_learners_line():
    wrong = "import torch\n\ndef rms_norm(x, eps=1e-6):\n    square = x @ x\n    return x / square"
    (output,) = run_cells("1 + 1", wrong, 'from paligemma.exercises import check\n\ncheck("06.1", rms_norm)')
    text = "\n".join(output["traceback"])
    assert text.startswith("06.1 · divide by the root mean square: not yet")
    text = " ".join(text.split())  # the message is wrapped
    assert "in cell In[2], line 4:" in text and "square = x @ x" in text
    assert ".py" not in text and "Traceback" not in text
