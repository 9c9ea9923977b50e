"""`python -m paligemma.training STAGE`: the command line of the stages."""

import argparse
import re
import sys
from collections.abc import Iterable

import torch

from .. import ASSETS
from ..checkpoint import check_device
from ..options import number, print_any_letter, seed, whole
from . import stages
from .parallel import start_processes, stop_processes
from .stages import TASK_WEIGHTS

SHIPPED = ASSETS / "tiny-paligemma"


# ----------------------------------------------------------------------------------------------- values of options


def cycles(text: str) -> tuple[tuple[int, float], ...]:
    """`1200x1.0,1800x0.5` to ((1200, 1.0), (1800, 0.5))."""
    parts = [re.fullmatch(r"([0-9]{1,9})x([0-9]*\.?[0-9]+)", part.strip()) for part in text.split(",")]
    found = [(int(part[1]), float(part[2])) for part in parts if part]
    if len(found) < len(parts) or not all(steps > 0 and factor > 0 for steps, factor in found):
        raise argparse.ArgumentTypeError(
            f"it is {text!r}, expected steps x factor of each cycle, such as 1200x1.0,1800x0.5"
        )
    return tuple(found)


def task_weights(text: str, tasks: Iterable[str] = tuple(TASK_WEIGHTS)) -> dict[str, float]:
    """`detect=3,relation=1` to {"detect": 3.0, "relation": 1.0}, for names among `tasks`."""
    weights = {}
    for part in text.split(","):
        task, _, weight = part.strip().partition("=")
        if task not in tasks:
            raise argparse.ArgumentTypeError(f"it names the task {task!r}, expected one of {', '.join(tasks)}")
        weights[task] = number(weight)
    return weights


def available_device(text: str) -> torch.device:
    """A device that this computer has."""
    try:
        return check_device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# ----------------------------------------------------------------------------------------------------- the parsers


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Each stage has its own options; one that a stage does not know is refused."""
    parser = argparse.ArgumentParser(
        prog="python -m paligemma.training", description="PaliGemma's training recipe in miniature."
    )
    commands = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")

    def add_stage(name: str, run, text: str) -> argparse.ArgumentParser:
        stage = commands.add_parser(name, help=text, description=text)
        stage.set_defaults(run=run)
        stage.add_argument("--out", default=f"runs/{name}", help="folder of the run (default: %(default)s)")
        stage.add_argument("--seed", type=seed, default=0)
        stage.add_argument("--device", type=available_device, default="cuda" if torch.cuda.is_available() else "cpu")
        return stage

    def add_data(stage: argparse.ArgumentParser, per_step: int) -> None:
        stage.add_argument("--pictures", type=whole, default=60_000, help="how many training pictures to draw")
        stage.add_argument("--per-step", type=whole, default=per_step, help="pictures a step (default: %(default)s)")
        stage.add_argument("--cache", default="runs", help="folder for the drawn pictures (default: %(default)s)")
        stage.add_argument("--save-every", type=number, default=60.0, help="seconds between two training states")
        stage.add_argument("--stop-at", type=whole, help="stop before this step; the same command goes on")

    def add_tasks(stage: argparse.ArgumentParser) -> None:
        stage.add_argument("--weights", type=task_weights, default={}, help="of tasks, such as detect=3,relation=1")
        stage.add_argument("--masks", default=str(ASSETS / "mask-tokenizer"), help="folder of the mask tokenizer")

    stage0 = add_stage("stage0", stages.run_stage0, "the image encoder alone")
    add_data(stage0, per_step=64)
    stage0.add_argument("--steps", type=whole, help="(default: 1400, with --quick 700)")
    stage0.add_argument("--quick", action="store_true", help="fewer steps")
    stage0.add_argument(
        "--patch-labels",
        type=number,
        default=1.0,
        help="weight of the labels for each patch, beside 0.3 for the pairs of pictures and captions (0: pairs alone)",
    )
    stage0.add_argument(
        "--positions",
        choices=("waves", "random"),
        default="waves",
        help="how the position embeddings of the picture start (default: %(default)s)",
    )

    stage1 = add_stage("stage1", stages.run_stage1, "all of it together, nothing frozen, every task mixed")
    add_data(stage1, per_step=48)
    add_tasks(stage1)
    length = stage1.add_mutually_exclusive_group()
    length.add_argument("--cycles", type=cycles, help="steps x factor of each (default: 1100x1.0,3200x0.6)")
    length.add_argument("--steps", type=whole, help="one cycle of so many steps")
    stage1.add_argument("--quick", action="store_true", help="words only, and 700 steps unless --steps or --cycles")
    stage1.add_argument("--encoder", default="runs/stage0/tiny-siglip", help="where stage 0 left it (%(default)s)")
    stage1.add_argument(
        "--patch-labels", type=number, default=0.3, help="weight of the auxiliary per-patch heads (0: without)"
    )
    stage1.add_argument("--heads", help="their file (default: stage 0's)")
    stage1.add_argument("--start", help="a model to go on from, in place of a new one with stage 0's encoder")

    stage2 = add_stage("stage2", stages.run_stage2, "the same at a higher resolution")
    add_data(stage2, per_step=48)
    add_tasks(stage2)
    stage2.add_argument("--steps", type=whole, default=600)
    stage2.add_argument("--start", default=str(SHIPPED), help="the model to go on from (default: %(default)s)")
    stage2.add_argument("--image-size", type=whole, default=96, help="pixels a side (default: %(default)s)")

    stage3 = add_stage(
        "stage3", stages.run_stage3, "transfer to a new task: Korean captions from some hundred examples"
    )
    stage3.add_argument("--steps", type=whole, default=150)
    stage3.add_argument("--start", default=str(SHIPPED), help="the model to go on from (default: %(default)s)")
    stage3.add_argument("--examples", type=whole, default=600, help="how many captions to learn from")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run one stage; returns 0, or 1 after one line that says what is wrong."""
    print_any_letter()
    args = parse_arguments(arguments)
    device = start_processes(args.device)
    try:
        args.run(args, device)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        stop_processes()
    return 0


if __name__ == "__main__":
    sys.exit(main())
