"""A whole class: an assignment released, five submissions graded, fed back and exported, by nbgrader's commands."""

import csv
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from paligemma.exercises.checking import tasks_of
from paligemma.exercises.make import class_folder

pytestmark = pytest.mark.skipif(importlib.util.find_spec("nbgrader") is None, reason="nbgrader is an extra: .[teach]")

ASSIGNMENT = "06_rmsnorm"
POINTS = {"t06_1": 2, "t06_2": 3, "t06_3": 4, "t06_4": 3, "t06_5": 2}

WRONG = {  # runs, and is wrong
    "t06_1": "def rms_norm(x, eps=1e-6):\n    return x / (x.pow(2).mean() + eps).sqrt()",
    "t06_2": "def normalise(x, kind, eps=1e-6):\n    return x",
    "t06_3": "class GemmaRMSNorm(nn.Module):\n    def __init__(self, dim, eps=1e-6):\n        super().__init__()\n"
    "        self.eps, self.weight = eps, nn.Parameter(torch.zeros(dim))\n\n    def forward(self, x):\n"
    "        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight",
    "t06_4": "Mended = Suspect",
    "t06_5": "def describe(model, processor, image):\n"
    "    return generate(model, processor, images=[image], text=['caption en'])[0]",
}
ENDLESS = "def normalise(x, kind, eps=1e-6):\n    while True:\n        pass"
# Reads whatever it finds while it is graded, tries to call the tests that it finds there, and replaces the check.
CURIOUS = """
from pathlib import Path

everything = "".join(path.read_text(encoding="utf-8") for path in Path(".").rglob("*.ipynb"))
print("an answer in reach:", "mean" + "_square" in everything)


def check(*arguments, **named):
    print("passed")


hidden_check = check


def rms_norm(x, eps=1e-6):
    return x
"""


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def key(cell: dict) -> str:
    return cell["metadata"].get("nbgrader", {}).get("grade_id", "")


def hand_in(folder: Path, student: str, answers: dict[str, str], tamper=None) -> Path:
    """A student's notebook: the released one, with these cells filled in."""
    notebook = read(folder / "release" / ASSIGNMENT / f"{ASSIGNMENT}.ipynb")
    for cell in notebook["cells"]:
        if key(cell) in answers:
            cell["source"] = answers[key(cell)]
        if tamper and key(cell).endswith("_check"):
            cell["source"] = tamper
    path = folder / "submitted" / student / ASSIGNMENT / f"{ASSIGNMENT}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def nbgrader(folder: Path, *arguments: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it calls `alembic` by name
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": path}
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def classroom(tmp_path_factory) -> Path:
    """A folder in which the class has handed in and everything is graded."""
    folder = tmp_path_factory.mktemp("class")
    written = class_folder(folder)
    solved = read(folder / "source" / ASSIGNMENT / f"{ASSIGNMENT}.ipynb")
    assert any(path.stem == ASSIGNMENT for path in written)
    nbgrader(folder, "generate_assignment", ASSIGNMENT)

    right = {key(cell): "".join(cell["source"]) for cell in solved["cells"] if key(cell) in POINTS}
    assert right.keys() == POINTS.keys()
    handed_in = [
        hand_in(folder, "ada", right),
        hand_in(folder, "ben", WRONG),
        hand_in(folder, "chae", {name: right[name] for name in ("t06_1", "t06_2")}),
        hand_in(folder, "dora", {**right, "t06_2": ENDLESS}),
        hand_in(folder, "eve", {"t06_1": CURIOUS}, tamper="print('all right')"),
    ]
    before = [hashlib.sha256(path.read_bytes()).hexdigest() for path in handed_in]
    nbgrader(folder, "autograde", ASSIGNMENT, "--ExecutePreprocessor.timeout=40")
    nbgrader(folder, "generate_feedback", ASSIGNMENT)
    nbgrader(folder, "export", "--to", "grades.csv")
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in handed_in] == before
    return folder


def test_what_students_get_has_no_solutions_and_no_hidden_tests(classroom):
    text = (classroom / "release" / ASSIGNMENT / f"{ASSIGNMENT}.ipynb").read_text(encoding="utf-8")
    assert not re.search("SOLUTION|HIDDEN|hidden_check", text) and text.count("raise NotImplementedError()") == 6
    committed = read(Path(__file__).parents[1] / "notebooks" / "exercises" / f"{ASSIGNMENT}.ipynb")
    released = json.loads(text)
    assert ["".join(cell["source"]).rstrip() for cell in committed["cells"]] == [
        "".join(cell["source"]).rstrip() for cell in released["cells"]
    ], "the exercises that lie in the repository are those that nbgrader hands out"


def test_everybody_gets_the_grade_they_earned(classroom):
    with open(classroom / "grades.csv", encoding="utf-8", newline="") as file:
        rows = {row["student_id"]: row for row in csv.DictReader(file) if row["assignment"] == ASSIGNMENT}
    total = sum(POINTS.values())
    assert all(float(row["max_score"]) == total for row in rows.values())
    scores = {student: float(row["score"]) for student, row in rows.items()}
    assert scores == {"ada": total, "ben": 0, "chae": 5, "dora": total - POINTS["t06_2"], "eve": 0}


def outputs(classroom, student, grade_id) -> str:
    notebook = read(classroom / "autograded" / student / ASSIGNMENT / f"{ASSIGNMENT}.ipynb")
    cell = next(cell for cell in notebook["cells"] if key(cell) == grade_id)
    return json.dumps(cell["outputs"], ensure_ascii=False)


def test_the_endless_one_is_cut_off_and_the_rest_goes_on(classroom):
    assert "KeyboardInterrupt" in outputs(classroom, "dora", "t06_2_check")
    assert "passed (4 points)" in outputs(classroom, "dora", "t06_3_check")


def test_a_tampered_check_is_restored_and_a_replaced_one_is_of_no_use(classroom):
    assert "all right" not in outputs(classroom, "eve", "t06_1_check")
    assert "an answer in reach: False" in outputs(classroom, "eve", "t06_1")
    assert "passed" in outputs(classroom, "eve", "t06_1_check"), "the replaced check says so, and counts for nothing"
    assert "CheckFailed" in outputs(classroom, "eve", "t06_1_check")


def test_feedback_says_what_was_seen(classroom):
    pages = {path.parts[-3]: path for path in (classroom / "feedback").rglob("*.html")}
    assert sorted(pages) == ["ada", "ben", "chae", "dora", "eve"]
    text = pages["ben"].read_text(encoding="utf-8")
    assert "one root mean square is taken of the whole tensor" in text and "not yet" in text
    assert "as it was handed out" in pages["chae"].read_text(encoding="utf-8")


def test_the_teachers_page_names_commands_that_exist():
    page = (Path(__file__).parents[1] / "docs" / "teaching.md").read_text(encoding="utf-8")
    help_text = subprocess.run(
        [sys.executable, "-m", "nbgrader", "--help"], capture_output=True, text=True, encoding="utf-8"
    ).stdout
    commands = set(re.findall(r"`nbgrader ([a-z_]+)", page))
    assert {"generate_assignment", "autograde", "generate_feedback", "export"} <= commands
    for command in commands:
        assert re.search(rf"^\s*{command}\b", help_text, re.M), f"nbgrader has no command {command}"
    tasks = [task for n in range(1, 17) for task in tasks_of(f"{n:02d}")]
    assert f"There are {len(tasks)} tasks with {sum(task.points for task in tasks)} points in all" in page
    for named in re.findall(r"\b\d\d\.\d\b", page):
        assert named in {task.id for task in tasks}, f"there is no task {named}"
    for target in re.findall(r"\]\(((?!https?:|#)[^)#]+)", page):
        assert (Path(__file__).parents[1] / "docs" / target).exists(), f"dead link: {target}"


def test_a_class_folder_is_laid_out_again_without_harm(tmp_path):
    class_folder(tmp_path)
    (tmp_path / "gradebook.db").write_text("grades", encoding="utf-8")
    class_folder(tmp_path)
    assert (tmp_path / "gradebook.db").read_text(encoding="utf-8") == "grades"
    assert (tmp_path / "nbgrader_config.py").exists()
