"""Values of options on the command line, checked before any work is done, and output that never fails on a letter."""

import argparse
import io
import math
import re
import sys
from pathlib import Path


def whole(text: str) -> int:
    """A whole number of 1 or more."""
    if not re.fullmatch("[0-9]{1,12}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it is {text!r}, expected a whole number of 1 or more")
    return int(text)


def seed(text: str) -> int:
    """A whole number of 0 or more."""
    if not re.fullmatch("[0-9]{1,12}", text):
        raise argparse.ArgumentTypeError(f"it is {text!r}, expected a whole number of 0 or more")
    return int(text)


def number(text: str) -> float:
    """A finite number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"it is {text!r}, expected a number of 0 or more")
    return value


def refuse_file(parser: argparse.ArgumentParser, output: Path) -> None:
    """End the program with the parser's error if the folder to write into is a file: before the work, not after it."""
    if output.exists() and not output.is_dir():
        parser.error(f"--output is {output}, a file, expected a folder: give another name")


def print_any_letter() -> None:
    """Let `print` write a question mark for a letter that the terminal or the file on standard output cannot hold.

    Where Windows writes to a file in an encoding without Korean, the first such answer would end the program.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # not in a notebook
        sys.stdout.reconfigure(errors="replace")
