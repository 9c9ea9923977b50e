"""A whole class: an assignment released, five submissions graded, fed back and exported, by nbgrader's commands."""

import copy
import csv
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from paligemma.exercises.collect import collect, same_answers
from paligemma.exercises.make import class_folder, make
from paligemma.exercises.progress import record
from paligemma.exercises.tasks import tasks_of

pytestmark = pytest.mark.skipif(importlib.util.find_spec("nbgrader") is None, reason="nbgrader is an extra: .[teach]")

ASSIGNMENT = "06_rmsnorm"
POINTS = {"t06_1": 2, "t06_2": 3, "t06_3": 4, "t06_4": 3, "t06_5": 2}

BY_HAND = 6  # the open investigation, which waits for the teacher

WRONG = {  # runs, and is wrong
    "t06_1": "def rms_norm(x, eps=1e-6):\n    return x / (x.pow(2).mean() + eps).sqrt()",
    "t06_2": "def normalise(x, kind, eps=1e-6):\n    return x",
    "t06_3": "class GemmaRMSNorm(nn.Module):\n    def __init__(self, dim, eps=1e-6):\n        super().__init__()\n"
    "        self.eps, self.weight = eps, nn.Parameter(torch.zeros(dim))\n\n    def forward(self, x):\n"
    "        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight",
    "t06_4": "def exposing():\n    return {}",
    "t06_5": "class Centred(modeling_gemma.GemmaRMSNorm):\n"
    "    def forward(self, x):\n        return super().forward(x)",
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
    written, _ = class_folder(folder)
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
    assert all(float(row["max_score"]) == total + BY_HAND for row in rows.values())
    scores = {student: float(row["score"]) for student, row in rows.items()}
    assert scores == {"ada": total, "ben": 0, "chae": 5, "dora": total - POINTS["t06_2"], "eve": 0}


def outputs(classroom, student, grade_id) -> str:
    notebook = read(classroom / "autograded" / student / ASSIGNMENT / f"{ASSIGNMENT}.ipynb")
    cell = next(cell for cell in notebook["cells"] if key(cell) == grade_id)
    return json.dumps(cell["outputs"], ensure_ascii=False)


def test_the_endless_one_is_cut_off_and_the_rest_goes_on(classroom):
    assert "the check was interrupted while your code ran" in outputs(classroom, "dora", "t06_2_check")
    assert "passed (4 points)" in outputs(classroom, "dora", "t06_3_check")


def test_a_tampered_check_is_restored_and_a_replaced_one_is_of_no_use(classroom):
    assert "all right" not in outputs(classroom, "eve", "t06_1_check")
    assert "an answer in reach: False" in outputs(classroom, "eve", "t06_1")
    assert "passed" in outputs(classroom, "eve", "t06_1_check"), "the replaced check says so, and counts for nothing"
    assert "CheckFailed" in outputs(classroom, "eve", "t06_1_check")


def test_feedback_says_what_was_seen(classroom):
    pages = {path.parts[-3]: path for path in (classroom / "feedback").rglob("*.html")}
    assert sorted(pages) == ["ada", "ben", "chae", "dora", "eve"]
    text = " ".join(pages["ben"].read_text(encoding="utf-8").split())  # a long message is wrapped
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
    """What the teacher has changed stays; what is as it was laid out follows the course; the grades are not touched."""
    notebooks = tmp_path / "course" / "notebooks"
    (notebooks / "solutions").mkdir(parents=True)
    solutions = [notebooks / "solutions" / f"0{n}_a.ipynb" for n in (1, 2)]
    for path in [*solutions, notebooks.parent / "nbgrader_config.py"]:
        path.write_text("first", encoding="utf-8")
    folder = tmp_path / "my class"
    written, kept = class_folder(folder, notebooks)
    assert [path.name for path in written] == ["01_a.ipynb", "02_a.ipynb", "nbgrader_config.py"] and kept == []
    assert class_folder(folder, notebooks) == ([], [])
    (folder / "gradebook.db").write_text("grades", encoding="utf-8")
    mine, theirs = (folder / "source" / path.stem / path.name for path in solutions)
    mine.write_text("five points", encoding="utf-8")
    for path in solutions:
        path.write_text("second", encoding="utf-8")
    assert class_folder(folder, notebooks) == ([theirs], [mine])
    assert class_folder(folder, notebooks) == ([], [mine])
    assert mine.read_text(encoding="utf-8") == "five points" and theirs.read_text(encoding="utf-8") == "second"
    assert class_folder(folder, notebooks, force=True) == ([mine], [])
    assert mine.read_text(encoding="utf-8") == "second"
    assert (folder / "gradebook.db").read_text(encoding="utf-8") == "grades"


def test_without_the_repository_it_is_said_what_is_missing(tmp_path):
    for call in (lambda: make(tmp_path), lambda: class_folder(tmp_path / "class", tmp_path / "notebooks")):
        with pytest.raises(FileNotFoundError, match="come with the repository"):
            call()


# --- collecting -----------------------------------------------------------------------------------------------


@pytest.fixture
def ready(tmp_path) -> Path:
    """A class's folder with two assignments."""
    class_folder(tmp_path / "class")
    return tmp_path / "class"


def handed_in(answer: str = "x", chapter: str = ASSIGNMENT) -> str:
    """An exercise with an answer in its first task."""
    notebook = read(Path(__file__).parents[1] / "notebooks" / "exercises" / f"{chapter}.ipynb")
    next(cell for cell in notebook["cells"] if key(cell))["source"] = answer
    return json.dumps(notebook)


def put(folder: Path, name: str, text: str, age: int = 0) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    os.utime(path, (1_000_000_000 - age, 1_000_000_000 - age))


@pytest.mark.parametrize(
    "name, student",
    [
        ("kim min su/06_rmsnorm.ipynb", "kim min su"),
        ("이지은/06_rmsnorm (1).ipynb", "이지은"),
        ("kim/06_rmsnorm/06_rmsnorm.ipynb", "kim"),
        ("Kim Min Su_12345_assignsubmission_file_/06_rmsnorm.ipynb", "Kim Min Su"),
        ("Kim Min Su_12345_assignsubmission_file_06_rmsnorm.ipynb", "Kim Min Su"),
        ("kimminsu_4711_98765_06_rmsnorm-1.ipynb", "kimminsu"),
        ("kimminsu_LATE_4711_98765_06_rmsnorm.ipynb", "kimminsu"),
        ("lee_06_rmsnorm.ipynb", "lee"),
        ("06_rmsnorm-o'brien (2).ipynb", "o'brien"),
        ("ada/homework.ipynb", "ada"),
        ("ada/06_rmsnorm.json", "ada"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_downloads_by_any_name_find_their_place(ready, tmp_path, name, student, packed):
    downloads = tmp_path / "downloads"
    put(downloads, name, handed_in())
    if packed:
        downloads = Path(shutil.make_archive(str(tmp_path / "from the platform"), "zip", downloads))
    report = collect(downloads, ready)
    placed = ready / "submitted" / student / ASSIGNMENT / f"{ASSIGNMENT}.ipynb"
    assert len(report.placed) == 1 and not report.refused and not report.warnings, report
    assert read(placed)["cells"] == json.loads(handed_in())["cells"]


def test_the_latest_counts_and_nothing_is_overwritten(ready, tmp_path):
    downloads = tmp_path / "downloads"
    put(downloads, "ada/06_rmsnorm.ipynb", handed_in("old"), age=100)
    put(downloads, "ada/06_rmsnorm (1).ipynb", handed_in("new"))
    put(downloads, "ada/.ipynb_checkpoints/06_rmsnorm-checkpoint.ipynb", handed_in("checkpoint"), age=-100)
    report = collect(downloads, ready, students=["ada", "ben"])
    placed = ready / "submitted" / "ada" / ASSIGNMENT / f"{ASSIGNMENT}.ipynb"
    assert '"new"' in placed.read_text(encoding="utf-8")
    assert "older" in str(report) and report.missing == [f"{ASSIGNMENT}: ben"]
    assert collect(downloads, ready).refused == []  # the same again: no complaint
    put(downloads, "ada/06_rmsnorm (2).ipynb", handed_in("newest"), age=-50)
    assert "--force replaces it" in collect(downloads, ready).refused[0]
    assert '"new"' in placed.read_text(encoding="utf-8")
    assert collect(downloads, ready, force=True).refused == []
    assert '"newest"' in placed.read_text(encoding="utf-8")


def test_what_would_stop_or_spoil_the_grading_is_said(ready, tmp_path):
    downloads = tmp_path / "downloads"
    copied, deleted, stripped = (json.loads(handed_in()) for _ in range(3))
    checks = [cell for cell in copied["cells"] if key(cell).endswith("_check")]
    copied["cells"].append(copy.deepcopy(checks[0]))
    deleted["cells"] = [cell for cell in deleted["cells"] if key(cell) != key(checks[0])]
    for cell in stripped["cells"]:
        cell["metadata"] = {}
    for student, notebook in {"copied": copied, "deleted": deleted, "stripped": stripped}.items():
        put(downloads, f"{student}/06_rmsnorm.ipynb", json.dumps(notebook))
    put(downloads, "page/06_rmsnorm.ipynb", "<!doctype html><html>log in first</html>")
    put(downloads, "empty/06_rmsnorm.ipynb", "")
    put(downloads, "list/06_rmsnorm.ipynb", '{"cells": [1, 2]}')
    put(downloads, "broken.zip", "PK")
    put(downloads, "06_rmsnorm.ipynb", handed_in())  # nobody's
    report = collect(downloads, ready)
    assert len(report.placed) == 2
    assert any("copied cells t06_1_check" in line for line in report.warnings)
    assert any("deleted" in line and "no points" in line for line in report.warnings)
    marks = [key(cell) for cell in read(ready / "submitted/copied" / ASSIGNMENT / f"{ASSIGNMENT}.ipynb")["cells"]]
    assert marks.count("t06_1_check") == 1
    refused = "\n".join(report.refused)
    for words in ("none of nbgrader's marks", "is a web page", "is empty", "has no cells", "not JSON", "whose?"):
        assert words in refused, words


def test_nobody_leaves_the_folder_of_the_class(ready, tmp_path):
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../06_rmsnorm.ipynb", handed_in())
        file.writestr("a/../06_rmsnorm.ipynb", handed_in())
    before = {path for path in tmp_path.rglob("*") if ready not in path.parents}
    assert len(collect(archive, ready).placed) == 0
    assert {path for path in tmp_path.rglob("*") if ready not in path.parents} == before


def test_a_list_of_the_class_settles_whose_it_is(ready, tmp_path):
    put(tmp_path / "downloads", "session 3/kim_06_rmsnorm.ipynb", handed_in())
    collect(tmp_path / "downloads", ready, students=["Kim", "Lee"])
    assert [path.name for path in (ready / "submitted").iterdir()] == ["Kim"]


def test_equal_answers_are_found(ready, tmp_path):
    code = "def rms_norm(x, eps=1e-6):\n    return x / 2"
    for student, answer in {
        "ada": code,
        "ben": 'def rms_norm(x, eps = 1e-6):\n    """Mine."""\n    # my own\n    return x/2',
        "chae": "def rms_norm(x, eps=1e-6):\n    return x / 3",
        "dora": "def rms_norm(:",
    }.items():
        put(tmp_path / "downloads", f"{student}/06_rmsnorm.ipynb", handed_in(answer))
    collect(tmp_path / "downloads", ready)
    assert same_answers(ready, ASSIGNMENT) == [("ada", "ben", 1, 1)]


def test_grading_leaves_no_trace_of_progress(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    record("06.1", True)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delenv("NBGRADER_EXECUTION")
    record("06.1", True)
    assert len(list(tmp_path.iterdir())) == 1
