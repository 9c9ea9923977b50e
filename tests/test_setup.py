"""The set-up: project file, exact versions, conda environment, Makefile and README say the same; any system will do."""

import ast
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from importlib.metadata import PackageNotFoundError, version

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def required(project):
    """name -> Requirement, of the course and all its extras."""
    lines = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        lines += extra
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


@pytest.fixture(scope="module")
def pins(root):
    """A Requirement for each line of constraints.txt; a name may come twice, for two Python versions."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def test_every_constraint_is_one_exact_public_version(pins):
    for pin in pins:
        assert re.fullmatch(r"==[^,*+]+", str(pin.specifier)), f"{pin}: one exact version, not +cpu"
        assert pin.url is None, f"{pin}: a package of the index, not a file"


def test_every_requirement_has_a_pin_that_satisfies_it(required, pins):
    for name, requirement in required.items():
        versions = [next(iter(pin.specifier)).version for pin in pins if canonicalize_name(pin.name) == name]
        assert versions, f"{name} is in pyproject.toml, but constraints.txt doesn't pin it"
        for pinned in versions:
            assert requirement.specifier.contains(pinned), f"{name}: {pinned} pinned, {requirement} required"


def test_one_pin_for_each_package_on_this_machine(pins):
    here = [canonicalize_name(pin.name) for pin in pins if pin.marker is None or pin.marker.evaluate()]
    assert sorted(here) == sorted(set(here)), "a package is pinned to two versions at once"


def test_what_is_installed_is_what_is_pinned(pins):
    wrong = []
    for pin in pins:
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        try:
            installed = Version(version(pin.name)).public
        except PackageNotFoundError:
            continue  # belongs to an extra or a system that isn't here
        if not pin.specifier.contains(installed):
            wrong.append(f"{pin.name} {installed}, pinned {pin.specifier}")
    assert not wrong, "run `make test` or pip install -c constraints.txt again:\n" + "\n".join(wrong)


def test_torch_and_transformers_as_tested(pins):
    by_name = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}
    assert by_name["torch"] == "==2.13.0"
    assert "transformers" in by_name


def test_environment_yml_installs_the_same(root, project):
    environment = yaml.safe_load((root / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "paligemma"
    *conda, with_pip = environment["dependencies"]
    # conda brings Python and pip alone, so that no version is decided in two places
    assert {re.split(r"[=<>]", line)[0] for line in conda} == {"python", "pip"}
    python = next(line for line in conda if line.startswith("python")).split("=")[-1]
    assert Requirement(f"x{project['requires-python']}").specifier.contains(f"{python}.99")
    lines = with_pip["pip"]
    assert "-c constraints.txt" in lines
    editable = [line for line in lines if line.startswith("-e ")]
    assert len(editable) == 1 and len(lines) == 3
    # without it, pip on Linux takes the build with gigabytes of CUDA libraries
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in lines
    for extra in re.findall(r"\[(.*)\]", editable[0]):
        assert set(extra.split(",")) <= set(project["optional-dependencies"])


def test_package_imports_from_the_repository_and_nothing_of_the_extras(root):
    """`import paligemma` works from any folder, with the course's own dependencies alone."""
    code = (
        "import sys, paligemma\n"
        "extras = {'nbgrader', 'pytest', 'hypothesis', 'sphinx', 'IPython'} & set(sys.modules)\n"
        "print(paligemma.__file__, sorted(extras))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root.parent, check=True)
    path, extras = out.stdout.strip().rsplit(" ", 1)
    assert path == str(root / "paligemma" / "__init__.py")
    assert extras == "[]"


def test_documents_and_extras_named_in_the_commands_exist(root, project):
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    readme = (root / "README.md").read_text(encoding="utf-8")
    workflow = "".join(p.read_text(encoding="utf-8") for p in (root / ".github" / "workflows").glob("*.yml"))
    for text in (makefile, readme, workflow):
        for extras in re.findall(r"['\" ]\.\[([a-z,]+)\]", text):
            assert set(extras.split(",")) <= set(project["optional-dependencies"])
    for path in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", readme):
        assert (root / path).exists(), f"README.md links to {path}, which is not there"
    for target in re.findall(r"`make ([a-z]+)", readme):
        assert re.search(rf"^{target}:", makefile, re.M), f"README.md names `make {target}`: there is none"


def test_ci_and_readme_run_the_same_command(root):
    script = root / ".ci" / "run"
    assert script.read_text(encoding="utf-8").rstrip().endswith("make test")
    assert "make test" in (root / "README.md").read_text(encoding="utf-8")
    assert ".ci/run" in (root / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    if sys.platform != "win32":
        assert script.stat().st_mode & 0o111, ".ci/run must be executable"


with_make = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("make") is None, reason="the Makefile is for systems with sh and make"
)


def dry_run(folder):
    """The commands that `make demo` would run in the folder."""
    run = subprocess.run(["make", "-n", "demo"], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout


@with_make
def test_makefile_reuses_the_environment(root, tmp_path):
    """With the stamp in place nothing is installed again; a newer constraints.txt installs again."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    (tmp_path / ".venv" / ".course").touch()
    plan = dry_run(tmp_path)
    assert "pip install" not in plan and "paligemma demo" in plan
    (tmp_path / ".venv" / ".course").unlink()
    plan = dry_run(tmp_path)
    assert "pip install" in plan and "--constraint constraints.txt" in plan


@with_make
def test_makefile_says_what_is_missing(root, tmp_path):
    """No python3-venv, or an old Python: the message says what to do, and no half-made .venv stays behind."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path / name)
    broken = tmp_path / "python-without-venv"
    script = '#!/bin/sh\nif [ "$1" = -m ]; then mkdir -p .venv; exit 1; fi\nexit 0\n'
    broken.write_text(script, encoding="utf-8")
    broken.chmod(0o755)
    run = subprocess.run(["make", "demo", f"PYTHON={broken}"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode != 0 and "python3-venv" in run.stdout
    assert not (tmp_path / ".venv").exists()
    old = tmp_path / "python-too-old"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    run = subprocess.run(["make", "demo", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode != 0 and "3.11" in run.stdout


@pytest.fixture
def slow_index():
    """An address that hangs up on the first visitor, and answers the second after six seconds."""
    visits = []

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            visits.append(self.path)
            if len(visits) > 1:
                time.sleep(6)
                self.send_response(200)
                self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@with_make
@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("nvidia-smi") is not None, reason="only Linux without a GPU asks the index"
)
@pytest.mark.parametrize("answers", [True, False])
def test_a_slow_index_of_cpu_builds_is_used_and_a_missing_one_costs_no_time(root, tmp_path, slow_index, answers):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] || exec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    index, begin = slow_index if answers else "http://127.0.0.1:9", time.monotonic()
    environment = os.environ | {"no_proxy": "127.0.0.1"}
    command = ["make", ".venv/.course", f"CPU_INDEX={index}"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=True)
    assert (f"--extra-index-url {index} --editable" in run.stderr) == answers
    assert ("does not answer" in run.stdout) != answers
    assert time.monotonic() - begin < (60 if answers else 30)


@pytest.fixture(scope="module")
def sanitize(root):
    """What nbval does to an output before it compares, with the patterns of tests/nbval_sanitize.cfg."""
    plugin = pytest.importorskip("nbval.plugin")
    text = (root / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8")
    patterns = plugin.get_sanitize_patterns(text)
    assert len(patterns) == text.count("regex:")

    def apply(output):
        for pattern, replacement in patterns:
            output = re.sub(pattern, replacement, output)
        return output

    return apply


@pytest.mark.parametrize(
    "once, again",
    [
        ("<torch._C.Generator object at 0x7f06c8a1b2d0>", "<torch._C.Generator object at 0x7fd1e2a00990>"),
        ("forward: 12.5 ms", "forward: 9 ms"),
        ("12.1 \u00b5s a token", "9.7 \u00b5s a token"),
        ("done in 41 s", "done in 3.5 s"),
        (" 40%|####      | 4/10 [00:01<00:02,  2.9it/s]", "100%|##########| 10/10 [00:03<00:00,  3.1it/s]"),
        ("22.8 GB/s", "17 GB/s"),
        ("wrote /tmp/tmpab12/x.png", "wrote /var/folders/zz/T/tmpq/x.png"),
    ],
)
def test_what_changes_from_run_to_run_is_not_compared(sanitize, once, again):
    assert sanitize(once) == sanitize(again)


@pytest.mark.parametrize(
    "once, again",
    [
        ("max difference 3.0e-07", "max difference 3.0e-03"),
        ("shape [2, 64, 128]", "shape [2, 65, 128]"),
        ("a small red circle", "a small blue circle"),
        ("<loc0123><loc0456> red circle", "<loc0124><loc0456> red circle"),
        ("share inside 97%", "share inside 14%"),
        ("3 steps, loss 1.25", "4 steps, loss 1.25"),
        ("2,923,466,480 parameters", "2,924,351,216 parameters"),
    ],
)
def test_what_matters_is_compared(sanitize, once, again):
    assert sanitize(once) != sanitize(again)


def test_licence_and_citation(root, project):
    assert "Apache License" in (root / "LICENSE").read_text(encoding="utf-8")
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"] == "Apache-2.0"


def test_photographs_have_a_source_and_a_licence_and_are_small(root):
    from PIL import Image

    text = (root / "assets" / "README.md").read_text(encoding="utf-8")
    pictures = sorted(p for p in (root / "assets").iterdir() if p.suffix in {".jpg", ".png"})
    assert len(pictures) >= 5
    for path in pictures:
        row = next((line for line in text.splitlines() if line.startswith(f"| `{path.name}`")), None)
        assert row is not None, f"{path.name} is not in assets/README.md"
        assert re.search(r"CC0|public domain|CC BY 4\.0", row), f"{path.name}: which licence?"
        assert path.stat().st_size < 400_000, f"{path.name} is larger than a course should download"
        with Image.open(path) as picture:
            picture.load()
    for name in re.findall(r"^\| `([^`/]+)`", text, re.M):
        assert (root / "assets" / name).exists(), f"assets/README.md names {name}, which is not there"


def test_odd_photographs_are_odd(root):
    """The three pictures that are there to be handled: grey, transparent, turned by EXIF."""
    from PIL import Image, ImageOps

    assets = root / "assets"
    assert Image.open(assets / "camera_grey.png").mode == "L"
    cut_out = Image.open(assets / "coffee_rgba.png")
    assert cut_out.mode == "RGBA" and cut_out.getchannel("A").getextrema() == (0, 255)
    turned, straight = Image.open(assets / "cat_exif.jpg"), Image.open(assets / "cat.jpg")
    assert turned.size == straight.size[::-1] and ImageOps.exif_transpose(turned).size == straight.size


def test_style(root):
    """`ruff check` finds nothing in the package, the tests and the notebooks."""
    pytest.importorskip("ruff", reason="ruff is not installed (extra `dev`)")
    run = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", "."],
        cwd=root, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


# --- any system, any processor --------------------------------------------------------------------------------

POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios"}
POSIX_NAMES = {
    ("os", name) for name in ("fork", "geteuid", "getpgid", "getuid", "killpg", "mkfifo", "setsid", "sysconf", "wait3")
} | {("signal", name) for name in ("SIGALRM", "SIGKILL", "SIGUSR1", "alarm", "setitimer")}


def portability_faults(text: str):
    """What only POSIX has, used where nothing guards it; text files opened without naming their encoding."""
    tree = ast.parse(text)
    guarded = re.search(
        r"sys\.platform|os\.name|hasattr\(|skipif|importorskip|except (ImportError|AttributeError)", text
    )
    for node in tree.body:  # imported as soon as the module is
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"line {node.lineno}: import {name}" for name in names if name.split(".")[0] in POSIX_MODULES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and not guarded:
            if (node.value.id, node.attr) in POSIX_NAMES:
                yield f"line {node.lineno}: {node.value.id}.{node.attr}"
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            if (
                called == "open"
                and isinstance(owner, ast.Name)
                and owner.id in {"Image", "os", "self", "tarfile", "webbrowser"}
            ):
                continue
            if called not in {"open", "read_text", "write_text"} or any(
                k.arg in ("encoding", None) for k in node.keywords
            ):
                continue
            mode = next((k.value for k in node.keywords if k.arg == "mode"), None)
            place = 1 if owner is None else 0  # open(path, mode), path.open(mode)
            if called == "open" and mode is None and len(node.args) > place:
                mode = node.args[place]
            binary = isinstance(mode, ast.Constant) and "b" in str(mode.value)
            named = {"read_text": 1, "write_text": 2, "open": place + 3}[called] <= len(node.args)
            if not binary and not named:
                yield f"line {node.lineno}: {called} without encoding"


def test_nothing_needs_posix_and_every_text_file_names_its_encoding(root):
    sources = [path for name in ("paligemma", "tests", "docs") for path in (root / name).rglob("*.py")]
    wrong = [
        f"{path.relative_to(root)}, {fault}"
        for path in sources
        for fault in portability_faults(path.read_text("utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text, count",
    [
        ("import resource", 1),
        ("from fcntl import flock", 1),
        ("def f():\n    import resource", 0),
        ("import os\nos.getuid()", 1),
        ("import os\nif hasattr(os, 'getuid'):\n    os.getuid()", 0),
        ("open('x')", 1),
        ("open('x', 'rb')", 0),
        ("open('x', mode='wb')", 0),
        ("open('x', 'a', encoding='utf-8')", 0),
        ("path.open()", 1),
        ("path.open('rb')", 0),
        ("Image.open('x.png')", 0),
        ("path.read_text()", 1),
        ("path.read_text('utf-8')", 0),
        ("path.write_text('x')", 1),
        ("path.write_text('x', encoding='utf-8')", 0),
    ],
)
def test_what_is_not_portable_is_noticed(text, count):
    assert len(list(portability_faults(text))) == count


def test_other_processors_print_the_same():
    """Chapters 03, 06, 08 and 10 as a processor without AVX runs them; `make portable` does it for all."""
    from portable import ROOT, run

    paths = [next((ROOT / "notebooks").glob(f"{number}_*.ipynb")) for number in ("03", "06", "08", "10")]
    last, failed = run(paths, "sse")
    assert not failed, "\n".join([last, *failed])


def test_another_output_is_noticed(tmp_path):
    from portable import run

    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    paths = [tmp_path / "other numbers.ipynb", tmp_path / "same numbers.ipynb"]
    for path, number in zip(paths, ("0.25", "0.24"), strict=True):
        outputs = [{"output_type": "stream", "name": "stdout", "text": [f"{number}\n"]}]
        cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "print(0.24)", "execution_count": 1}
        notebook = {"cells": [{**cell, "outputs": outputs}], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
        path.write_text(json.dumps(notebook), encoding="utf-8")
    _, failed = run(paths, "default")
    assert len(failed) == 1 and "Cell 0" in failed[0]
