"""The process in which the learner's files run: python -m paligemma.exercises.mycode.worker FOLDER SECONDS

It prints the report as it comes. A watchdog ends it with the learner's line when one part takes too long.
"""

import logging
import os
import sys
import threading
import traceback
from pathlib import Path

from . import report
from .compare import Comparison
from .files import Workspace
from .standins import STAND_INS
from .whole import Whole

WRONG, STUCK, NOTHING, FAILED = 1, 3, 4, 5  # exit codes


class Watchdog:
    """Ends the process when a step takes longer than `seconds`, and says in which line of the learner's it is."""

    def __init__(self, seconds: float):
        self.seconds, self.timer, self.files = seconds, None, set()
        self.main = threading.main_thread().ident

    def watch(self, what: str) -> None:
        self.stop()
        self.timer = threading.Timer(self.seconds, self.bark, [what])
        self.timer.daemon = True
        self.timer.start()

    def stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def bark(self, what: str) -> None:
        frame, place = sys._current_frames().get(self.main), ""
        while frame is not None and not place:
            if frame.f_code.co_filename in self.files:
                place = f" in {Path(frame.f_code.co_filename).name}, line {frame.f_lineno}"
            frame = frame.f_back
        out = sys.__stdout__
        print(f"  WRONG    {what}: still at it after {self.seconds:.0f} s{place}", file=out)
        print("      means  a loop that does not end, or one that takes far too many steps", file=out, flush=True)
        os._exit(STUCK)


def main(folder: str, seconds: float) -> int:
    dog = Watchdog(seconds)
    try:
        return examine(folder, dog)
    finally:
        dog.stop()  # whichever way it ended: a timer that is left running would end the process later


def examine(folder: str, dog: Watchdog) -> int:
    """Read the files, compare the parts, try the whole model; the exit code of the process."""
    say = Printer()
    dog.watch("reading the files")
    workspace = Workspace(folder, STAND_INS)
    comparison = Comparison(workspace)
    dog.files = comparison.filenames()
    if not comparison.found and not any(trouble.grave for trouble in workspace.troubles):
        seen = ", ".join(source.name for source in workspace.sources[:6]) or "no .py file and no notebook"
        say(f"None of the classes and functions of the video was found in {folder} ({seen}).")
        say("They are found by their names: SiglipVisionModel, PaliGemmaProcessor, GemmaModel and so on.")
        return NOTHING
    say(*report.files(comparison))

    dog.stop()
    whole = Whole(comparison)
    say(*report.heading("Your parts, in the order in which they are built"))
    say.each(report.parts(watched(comparison, whole, dog)))
    say(*report.missing(comparison.results))

    comparison.restore()
    dog.watch("the whole model")
    if whole.build() or whole.trained.trouble is not None:
        tell_whole(comparison, whole, say)
    dog.stop()
    say("", *report.summary(comparison.results, workspace.troubles, whole.trained))
    wrong = any(one.state in ("wrong", "broken") for one in comparison.results.values()) or whole.trained.differs()
    return WRONG if wrong or any(trouble.grave for trouble in workspace.troubles) else 0


def watched(comparison: Comparison, whole: Whole, dog: Watchdog):
    """The results, each part under the watchdog's eyes; the processor, which needs a tokenizer, where it belongs."""
    for part in comparison.parts:
        dog.watch(part.name)
        yield comparison.check(part)
        if part.name == "process_images":
            dog.watch("PaliGemmaProcessor")
            result = comparison.results["PaliGemmaProcessor"] = whole.check_processor()
            yield result


def tell_whole(comparison: Comparison, whole: Whole, say: "Printer") -> None:
    """Weights, numbers, answers and properties of the learner's whole model, or of the image encoder alone."""
    trained, encoder = whole.trained, "PaliGemmaForConditionalGeneration" not in comparison.found
    what = "Your image encoder" if encoder else "Your whole model"
    say(*report.heading(f"{what} with the trained weights of assets/tiny-paligemma"))
    borrowed = [name for name, one in comparison.results.items() if one.state == "broken"]
    if borrowed:
        say(*report.wrapped("note", f"the course's {', '.join(borrowed)} in place of yours", 2, 9))
    if trained.built:
        whole.walk()
    say(*report.trained(trained))
    if not trained.built or trained.trouble is not None:
        return
    whole.ask()
    rest = ", with the course's decoder" if encoder else ""
    say(*report.heading(f"What it says of pictures that it has never seen{rest}"), *report.answers(trained))
    if trained.trouble is not None:
        say(*report.finding(trained.trouble))
        return
    properties = list(whole.properties())
    if properties:
        say(*report.heading("What the video's design leaves out (no mistakes of yours), and where the course has it"))
        for text, where in properties:
            say(*report.wrapped("-", f"{text}: {where}", 2, 2))


class Printer:
    """Prints to the stdout of the start, whatever the learner's code does to sys.stdout."""

    def __init__(self):
        self.out = sys.stdout

    def __call__(self, *lines: str) -> None:
        self.each(lines)

    def each(self, lines) -> None:
        """As they come."""
        for line in lines:
            print(line.rstrip(), file=self.out, flush=True)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    try:
        code = main(sys.argv[1], float(sys.argv[2]))
    except BaseException:
        traceback.print_exc()
        code = FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads that the learner's code started do not keep the process
