"""python -m paligemma.exercises make | progress | reset | class | collect | same | mine; `--help` says more."""

import argparse
import sys
from pathlib import Path

from . import mycode, progress, reset
from .collect import collect, same_answers
from .make import class_folder, make


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m paligemma.exercises", description="The exercises of the course.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make", help="make notebooks/exercises from notebooks/solutions")
    show = commands.add_parser("progress", help="which tasks are done (run it in notebooks/exercises)")
    show.add_argument("chapter", nargs="?", help='one chapter: "06"')
    forget = commands.add_parser("reset", help="forget what was done")
    forget.add_argument("what", nargs="?", help='a task, "06.1", or a chapter, "06"; without it, everything')
    classroom = commands.add_parser("class", help="lay out a folder for nbgrader, from notebooks/solutions")
    classroom.add_argument("--force", action="store_true", help="overwrite also what you have changed there")
    gather = commands.add_parser("collect", help="sort downloaded notebooks into the class's submitted/ folder")
    gather.add_argument("downloads", type=Path, help="a folder, or a zip file as learning platforms make them")
    gather.add_argument("--students", type=Path, help="a text file with a student a line: says who is missing")
    gather.add_argument("--force", action="store_true", help="replace submissions that are there already")
    alike = commands.add_parser("same", help="pairs of students with equal answers")
    alike.add_argument("assignment", help='for example "06_rmsnorm"')
    for command in (classroom, gather, alike):
        command.add_argument(
            "folder", nargs="?", type=Path, default="class", help='of the class; "class", if not given'
        )
    typed = commands.add_parser("mine", help="check the code that you typed from the video, and see it work")
    typed.add_argument("folder", help="the folder (or file, or notebook) that your classes are in")
    arguments = parser.parse_args()
    try:
        sys.exit(run(arguments))
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked, and print what was done; returns the exit code."""
    if arguments.command == "make":
        lines = [f"written: {path.parent.name}/{path.name}" for path in make()]
        print("\n".join(lines) or "all exercises are up to date")
    elif arguments.command == "progress":
        progress(arguments.chapter)
    elif arguments.command == "reset":
        reset(arguments.what)
    elif arguments.command == "class":
        written, kept = class_folder(arguments.folder, force=arguments.force)
        print(f"{len(written)} files written in {arguments.folder}; go on with docs/teaching.md")
        for path in kept:
            print(f"left alone, because you have changed it (--force overwrites it): {path}")
    elif arguments.command == "collect":
        lines = arguments.students.read_text(encoding="utf-8-sig").splitlines() if arguments.students else []
        students = [line.strip() for line in lines if line.strip()]
        print(collect(arguments.downloads, arguments.folder, students, arguments.force))
    elif arguments.command == "same":
        pairs = same_answers(arguments.folder, arguments.assignment)
        for one, other, equal, both in pairs:
            print(f"{one} and {other}: {equal} of {both} answers are equal, comments and spacing aside")
        print(f"{len(pairs)} pairs; short answers are alike by themselves, so read before you conclude")
    else:
        return mycode.run(arguments.folder)
    return 0


if __name__ == "__main__":
    main()
