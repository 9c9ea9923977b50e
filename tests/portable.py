"""Do the notebooks print the same on other machines? `make portable`, or

    python tests/portable.py [--setting sse] [--setting avx2] [notebooks ...]

A processor without AVX-512, another math library and another number of threads add up in another order, and round
otherwise. Environment variables make this machine's libraries behave so; under each setting every notebook runs from a
fresh kernel, and its printed outputs are compared with those in the file. Chapter 13 trains for minutes and is left out
unless it is named. To try another version of Python, make an environment with it and run this file there:

    python3.13 -m venv other && other/bin/python -m pip install -c constraints.txt -e ".[dev]"
    other/bin/python tests/portable.py --setting default
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# torch's own kernels, MKL (matrix products, vector functions) and oneDNN (convolutions) each have a switch.
SETTINGS = {
    "default": {"OMP_NUM_THREADS": "1"},
    "sse": {
        "OMP_NUM_THREADS": "1",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
    "avx2": {
        "OMP_NUM_THREADS": "1",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "two threads": {"OMP_NUM_THREADS": "2"},
}


def run(paths: list[Path], setting: str) -> tuple[str, list[str]]:
    """Run notebooks under a setting. Returns pytest's last line, and what differed: "notebook::cell" each."""
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env",
        "--nbval-cell-timeout=900", "--nbval-sanitize-with", str(ROOT / "tests" / "nbval_sanitize.cfg"),
        *map(str, paths),
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **SETTINGS[setting]}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8")
    failed = re.findall(r"^FAILED (.*::\S+(?: \d+)?)", done.stdout, re.M)
    if done.returncode and not failed:
        failed = [done.stdout + done.stderr]
    return done.stdout.strip().splitlines()[-1], failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", action="append", choices=list(SETTINGS), help="may be repeated; default: all")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: every chapter and solution but 13's")
    arguments = parser.parse_args()
    everything = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    everything += sorted((ROOT / "notebooks" / "solutions").glob("[0-9]*.ipynb"))
    paths = arguments.notebooks or [path for path in everything if not path.name.startswith("13")]
    wrong = 0
    for path in paths:
        for setting in arguments.setting or SETTINGS:
            last, failed = run([path.resolve()], setting)
            wrong += len(failed)
            print(f"{path.parent.name}/{path.stem:24} {setting:12} {last}", *failed, sep="\n    ", flush=True)
    print(f"{wrong} cells differ" if wrong else "the same everywhere")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
