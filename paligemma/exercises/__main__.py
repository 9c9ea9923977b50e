"""python -m paligemma.exercises make | progress [chapter] | reset [task or chapter] | class [folder] | mine FOLDER"""

import argparse
import sys

from . import progress, reset
from .make import class_folder, make
from .mycode import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m paligemma.exercises", description="The exercises of the course.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make", help="make notebooks/exercises from notebooks/solutions")
    show = commands.add_parser("progress", help="which tasks are done (run it in notebooks/exercises)")
    show.add_argument("chapter", nargs="?", help='one chapter: "06"')
    forget = commands.add_parser("reset", help="forget what was done")
    forget.add_argument("what", nargs="?", help='a task, "06.1", or a chapter, "06"; without it, everything')
    classroom = commands.add_parser("class", help="lay out a folder for nbgrader, from notebooks/solutions")
    classroom.add_argument("folder", nargs="?", default="class", help='"class", if not given')
    typed = commands.add_parser("mine", help="check the code that you typed from the video, and see it work")
    typed.add_argument("folder", help="the folder (or file, or notebook) that your classes are in")
    arguments = parser.parse_args()
    if arguments.command == "make":
        lines = [f"written: {path.parent.name}/{path.name}" for path in make()]
        print("\n".join(lines) or "all exercises are up to date")
    elif arguments.command == "progress":
        progress(arguments.chapter)
    elif arguments.command == "class":
        written = class_folder(arguments.folder)
        print(f"{len(written)} assignments in {arguments.folder}/source; go on with docs/teaching.md")
    elif arguments.command == "mine":
        try:
            sys.exit(run(arguments.folder))
        except FileNotFoundError as error:
            parser.error(str(error))
    else:
        reset(arguments.what)


if __name__ == "__main__":
    main()
