"""Check the code that you typed from the video: every class and function, then the whole model at work.

    python -m paligemma.exercises mine FOLDER          # or in a notebook:
    from paligemma.exercises import mine; mine("FOLDER")

files.py finds and loads the learner's files; calls.py calls their parts under their own names, modules.py makes their
modules and compares parameters; parts.py has the inputs, the right code (standins.py: in the video's form) and the
usual mistakes (imitations.py); compare.py holds one against the other and locate.py finds the line; whole.py runs the
whole model with the small trained weights; report.py words it all, and worker.py is the process in which it happens.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

LONGEST = 60.0  # seconds for one part: on a slow machine the whole model takes about 10


def mine(folder: str | Path, seconds: float = LONGEST) -> None:
    """Print what is right, wrong and missing in the learner's code in this folder (or file), and see it work.

    The files run in a process of their own; one part may take `seconds`. Raises FileNotFoundError for a folder that
    does not exist.
    """
    run(folder, seconds)


def run(folder: str | Path, seconds: float = LONGEST) -> int:
    """The same; returns 0 when nothing is wrong, and something else otherwise."""
    path = Path(folder).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no folder or file {folder}: pass the one that your .py files lie in")
    command = [sys.executable, "-X", "utf8", "-m", f"{__package__}.worker", str(path.resolve()), str(seconds)]
    root = str(Path(__file__).resolve().parents[3])  # where the package is imported from
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"}
    show(f"Checking {path}")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace", env=environment
    )
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)
    reader.start()
    try:
        for line in process.stdout:
            show(line.rstrip("\n"))
        code = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
    reader.join(timeout=5)
    if code not in (0, 1, 3, 4):
        show(f"the process that ran your files ended unexpectedly (exit code {code})")
        show("".join(errors[-6:]))
    return code


def show(line: str) -> None:
    """Print, on terminals of any encoding."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(line.encode(encoding, errors="replace").decode(encoding), flush=True)
