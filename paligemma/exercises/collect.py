"""Sort what a class has handed in, for nbgrader: downloads -> submitted/STUDENT/ASSIGNMENT/ASSIGNMENT.ipynb.

Browsers call a second download "06_rmsnorm (1).ipynb", learning platforms put names and numbers in front, or pack all
into one zip file; nbgrader gives such files no points. Here the cells say which assignment a notebook is (each carries
nbgrader's mark, such as t06_1), and the folder or the file's name says whose.
"""

import ast
import io
import itertools
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..files import write_atomically

# What platforms add to a name: Moodle "Kim Min Su_12345_assignsubmission_file_", Canvas "kimminsu_LATE_12345_67890_".
MOODLE = re.compile(r"_\d+_assignsubmission_(file|onlinetext)_?")
CANVAS = re.compile(r"^(?P<student>[^_]+)(_LATE)?_\d+_\d+_")
COPY = re.compile(r"( ?\(\d+\)|-\d+| - Copy| copy)+$")


@dataclass
class Report:
    """What was done with each file, and who is missing: lines for the teacher."""

    placed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.placed)} notebooks placed", *self.placed]
        for title, lines in (("to look at", self.warnings), ("left out", self.refused), ("missing", self.missing)):
            parts += [f"{title}:", *(f"  {line}" for line in lines)] if lines else []
        return "\n".join(parts)


def files_in(path: Path) -> Iterator[tuple[PurePosixPath, bytes, tuple]]:
    """(name inside `path`, content, when it was written) of each file of a folder or zip file, zip files opened."""
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            name = PurePosixPath(file.relative_to(path).as_posix())
            yield from opened(name, file.read_bytes(), (file.stat().st_mtime,))
    elif path.is_file():
        yield from opened(PurePosixPath(path.name), path.read_bytes(), (path.stat().st_mtime,))
    else:
        raise FileNotFoundError(f"there is no folder or file {path}: give the folder of the downloads, or a zip file")


def opened(name: PurePosixPath, content: bytes, when: tuple) -> Iterator[tuple[PurePosixPath, bytes, tuple]]:
    """The file itself or, of a zip file, the files in it; the zip file's own name is no student's."""
    if name.suffix.lower() != ".zip":
        yield name, content, when
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.infolist():
                if not entry.is_dir() and "__MACOSX" not in entry.filename:
                    inside = PurePosixPath(entry.filename.replace("\\", "/"))
                    yield from opened(name.parent / inside, archive.read(entry), (*when, entry.date_time))
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError):  # damaged, with a password, an odd method
        yield name, content, when


def marks_of(notebook: dict) -> list[str]:
    """nbgrader's names of the cells, in order: "t06_1", "t06_1_check", ..."""
    marks = [cell["metadata"].get("nbgrader", {}).get("grade_id") for cell in notebook["cells"]]
    return [mark for mark in marks if mark]


def read_notebook(content: bytes) -> dict:
    """Raises ValueError with the reason when it is not a notebook."""
    try:
        notebook = json.loads(content.decode("utf-8-sig"))
    except ValueError:
        what = "a web page" if b"<html" in content[:2000].lower() else "empty" if not content.strip() else "not JSON"
        raise ValueError(f"is {what}, expected a notebook: ask for the .ipynb file itself") from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(
        isinstance(cell, dict) and isinstance(cell.get("metadata"), dict) and "source" in cell for cell in cells
    ):
        raise ValueError("has no cells, expected a notebook of Jupyter 4 or later")
    return notebook


def whose(name: PurePosixPath, assignment: str, students: list[str] | None = None) -> str:
    """The student by the file's place and name; "" when neither says.

    The innermost folder counts, else what is left of the file's name; with a list of students, whichever is on it.
    """
    for part in name.parts:
        if MOODLE.search(part):
            return MOODLE.split(part)[0].strip()
    if found := CANVAS.match(name.stem):
        return found["student"]
    candidates = [part.strip() for part in reversed(name.parts[:-1]) if part != assignment]
    candidates.append(COPY.sub("", name.stem).replace(assignment, "").strip(" _-."))
    listed = {student.casefold(): student for student in students or []}
    return next((listed[part.casefold()] for part in candidates if part.casefold() in listed), candidates[0])


def mend_doubles(notebook: dict) -> list[str]:
    """Take nbgrader's mark off cells that were copied, all but the first; one such cell stops a whole class's grading.

    Returns the marks that stood more than once; the copies stay, as cells without a mark.
    """
    seen, doubled = set(), []
    for cell in notebook["cells"]:
        mark = cell["metadata"].get("nbgrader", {}).get("grade_id")
        if mark in seen:
            del cell["metadata"]["nbgrader"]
            doubled.append(mark)
        elif mark:
            seen.add(mark)
    return doubled


def assignments_in(folder: Path) -> dict[str, set[str]]:
    """Assignment -> nbgrader's marks, from the class's source/."""
    paths = sorted((folder / "source").glob("*/*.ipynb"))
    if not paths:
        raise FileNotFoundError(
            f"{folder}/source holds no assignments: lay the folder out with "
            f"`python -m paligemma.exercises class {folder}`"
        )
    return {path.stem: set(marks_of(read_notebook(path.read_bytes()))) for path in paths}


def collect(downloads: Path, folder: Path, students: list[str] | None = None, force: bool = False) -> Report:
    """Sort notebooks into the class's submitted/ folder.

    Args:
        downloads: a folder, searched to its depth, or a zip file as learning platforms make them.
        folder: the folder of the class.
        students: the class list, for the lines "missing"; without it, everybody who has ever handed in something.
        force: replace a submission that is there already and differs.

    Of several notebooks of a student for an assignment the latest counts. `downloads` is left as it is.
    """
    folder, report = Path(folder), Report()
    assignments = assignments_in(folder)
    homes = {path.stem: path.parent.name for path in (folder / "source").glob("*/*.ipynb")}
    found: dict[tuple[str, str], list] = {}
    for name, content, when in files_in(Path(downloads)):
        if name.suffix.lower() not in (".ipynb", ".json", ".html", ".zip") or ".ipynb_checkpoints" in name.parts:
            continue
        try:
            notebook = read_notebook(content)
            assignment, marks = which(notebook, name, assignments)
            student = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "", whose(name, assignment, students)).strip(" .")
            if not student:
                raise ValueError("whose? Put it into a folder with the student's name")
        except ValueError as error:
            report.refused.append(f"{name}: {error}")
            continue
        found.setdefault((student, assignment), []).append((when, str(name), notebook, marks))
    for (student, assignment), versions in sorted(found.items()):
        *older, (_, name, notebook, marks) = sorted(versions, key=lambda version: version[:2])
        for _, other, *_ in older:
            report.warnings.append(f"{student}, {assignment}: {other} is older than {name} and was left out")
        if doubled := mend_doubles(notebook):
            report.warnings.append(
                f"{student}, {assignment}: copied cells {', '.join(doubled)}; the first of each counts"
            )
        if lost := sorted(assignments[assignment] - set(marks)):
            report.warnings.append(f"{student}, {assignment}: no cell {', '.join(lost)}: no points for these")
        target = folder / "submitted" / student / homes[assignment] / f"{assignment}.ipynb"
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if target.exists() and target.read_text(encoding="utf-8") != text and not force:
            report.refused.append(f"{name}: {target} is there and differs; --force replaces it")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(target) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
        report.placed.append(f"  {name} -> {target.relative_to(folder)}")
    everybody = students or sorted(path.name for path in (folder / "submitted").glob("*") if path.is_dir())
    for assignment in sorted({assignment for _, assignment in found}):
        home = homes[assignment]
        without = [
            student
            for student in everybody
            if not (folder / "submitted" / student / home / f"{assignment}.ipynb").exists()
        ]
        report.missing += [f"{assignment}: {', '.join(without)}"] if without else []
    return report


def which(notebook: dict, name: PurePosixPath, assignments: dict[str, set[str]]) -> tuple[str, list[str]]:
    """The assignment with which the notebook shares most marks, and its marks. Raises ValueError when it has none."""
    marks = marks_of(notebook)
    shared = {assignment: len(wanted & set(marks)) for assignment, wanted in assignments.items()}
    best = max(shared, key=shared.get)
    if not shared[best]:
        raise ValueError(
            "has none of nbgrader's marks, so it would count 0: the student's editor has dropped them, or it is "
            "another notebook. Let the answers be pasted into a fresh copy of the exercise"
        )
    return best, marks


def same_answers(folder: Path, assignment: str) -> list[tuple[str, str, int, int]]:
    """(student, student, cells that are equal, cells that both have solved) for each pair that shares one, most first.

    Comments, docstrings and spacing are not compared. Short answers are alike by themselves: read before you conclude.
    """
    answers = {}
    for path in sorted((Path(folder) / "submitted").glob(f"*/*/{assignment}.ipynb")):
        answers[path.parts[-3]] = solved(read_notebook(path.read_bytes()))
    pairs = []
    for (one, mine), (other, theirs) in itertools.combinations(answers.items(), 2):
        both = mine.keys() & theirs.keys()
        equal = sum(mine[mark] == theirs[mark] for mark in both)
        if equal:
            pairs.append((one, other, equal, len(both)))
    return sorted(pairs, key=lambda pair: (-pair[2] / pair[3], -pair[2], pair[:2]))


def solved(notebook: dict) -> dict[str, str]:
    """Mark -> code, of the cells that a student has filled in: without comments, docstrings and spacing."""
    code = {}
    for cell in notebook["cells"]:
        marks = cell["metadata"].get("nbgrader", {})
        source = "".join(cell["source"])
        if not marks.get("solution") or "raise NotImplementedError" in source:
            continue
        try:
            tree = ast.parse(source)
        except SyntaxError:
            code[marks["grade_id"]] = " ".join(source.split())
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) and len(node.body) > 1:
                del node.body[0]
        code[marks["grade_id"]] = ast.unparse(tree)
    return code
