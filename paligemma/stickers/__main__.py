"""The commands of the sticker world: `python -m paligemma.stickers masks | encoder | model | export | evaluate |
card`, and of the capstone: `folder | score`."""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from ..options import number, print_any_letter, seed, whole
from ..segmentation import load_mask_tokenizer, mask_tokenizer_folder
from ..training import Schedule
from ..training.__main__ import available_device, cycles, task_weights
from . import capstone, evaluation
from .card import draw_confusions, draw_curves
from .encoder import BOX_WEIGHT
from .recipe import (
    ENCODER_CYCLES,
    MODEL_CYCLES,
    PER_PICTURE,
    export,
    open_pictures,
    train_encoder,
    train_masks,
    train_model,
)
from .tasks import TASKS

RUNS = Path("runs/stickers")
ENCODER = RUNS / "encoder/state.pt"
SHIPPED = "assets/sticker-paligemma"


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m paligemma.stickers", description=__doc__.replace("\n", " "))
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str, seeded: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        if seeded:
            sub.add_argument("--out", type=Path, default=RUNS / name, help="folder of the run (default %(default)s)")
            sub.add_argument("--seed", type=seed, default=0)
        return sub

    masks = command("masks", "train the mask tokenizer on the outlines of the drawings")
    masks.add_argument("--steps", type=whole, default=2000)
    stages = [
        command("encoder", "train the image encoder alone, from labels for each patch"),
        command("model", "train the whole model on all tasks"),
    ]
    for sub, default, per_step in zip(stages, (ENCODER_CYCLES, MODEL_CYCLES), (32, 24), strict=True):
        text = ",".join(f"{steps}x{factor}" for steps, factor in default)
        sub.add_argument("--cycles", type=cycles, default=default, help=f"steps x factor of each (default {text})")
        sub.add_argument("--per-step", type=whole, default=per_step, help="pictures a step (default %(default)s)")
        sub.add_argument("--pictures", type=whole, default=24_000, help="how many to draw (default %(default)s)")
        sub.add_argument("--cache", type=Path, default=RUNS, help="folder for the drawn pictures")
        sub.add_argument("--workers", type=whole, default=1, help="processes that draw them (default %(default)s)")
        sub.add_argument("--muon-lr", type=number, default=5e-3)
        sub.add_argument("--adam-lr", type=number, default=3e-3)
        sub.add_argument("--save-every", type=number, default=60.0, help="seconds between two training states")
        sub.add_argument("--start", type=Path, help="state.pt of an earlier run to begin from, with a new schedule")
        sub.add_argument("--stop-at", type=whole, help="stop before this step; the same command without it goes on")
        sub.add_argument("--device", type=available_device, default="cuda" if torch.cuda.is_available() else "cpu")
    stages[0].add_argument(
        "--box-weight", type=number, default=BOX_WEIGHT, help="of a patch's box in the loss (default %(default)s)"
    )
    stages[1].add_argument(
        "--encoder",
        type=Path,
        help=f"state.pt of the encoder (default: {ENCODER.as_posix()}, or with --start its own)",
    )
    stages[1].add_argument("--freeze-encoder", action="store_true", help="train all but the image encoder")
    stages[1].add_argument(
        "--weights", type=partial(task_weights, tasks=TASKS), default={}, help="of tasks, such as detect=3,relation=1"
    )
    stages[1].add_argument(
        "--per-picture", type=whole, default=PER_PICTURE, help="questions about each picture (default %(default)s)"
    )
    sub = command("export", "write what a run of `model` has come to as a folder in bfloat16", seeded=False)
    sub.add_argument("run", type=Path, nargs="?", default=RUNS / "model", help="folder of the run")
    sub.add_argument("--out", type=Path, default=RUNS / "export", help="folder to write (default %(default)s)")
    for option, what in (("--earlier-runs", "the model's runs before this one"), ("--encoder-runs", "the encoder's")):
        sub.add_argument(option, type=Path, nargs="*", default=[], help=f"folders of {what}, to keep their logs")
    sub.add_argument(
        "--average", type=Path, nargs="*", default=[], help="folders of runs whose weights to average with this one's"
    )
    for needing in (stages[1], sub):
        needing.add_argument("--masks", type=Path, default=RUNS / "masks", help="folder of the mask tokenizer")
    sub = command("evaluate", "measure a model on held-out scenes", seeded=False)
    sub.add_argument("model", nargs="?", default=SHIPPED, help="folder of the model (default %(default)s)")
    sub.add_argument("--masks", help="folder of the mask tokenizer (default: mask-tokenizer in the model's folder)")
    sub.add_argument("--splits", default=evaluation.ALL_SPLITS, help="whose drawings (default %(default)s)")
    sub.add_argument("--scenes", type=whole, default=500, help="held-out scenes of each kind (default %(default)s)")
    sub.add_argument("--json", type=Path, help="also write the figures to this file")
    sub = command("card", "draw a model's curves and its commonest mistakes into its folder", seeded=False)
    sub.add_argument("model", type=Path, nargs="?", default=SHIPPED, help="folder with training.jsonl and figures.json")
    sub = command("folder", "capstone: write a folder of examples of 24 things to start from", seeded=False)
    sub.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    sub.add_argument("--per-drawing", type=whole, default=6, help="pictures of each drawing (default %(default)s)")
    sub.add_argument("--seed", type=seed, default=0)
    sub = command(
        "score", "capstone: the row for the scoreboard, from sealed pictures by the unseen artist", seeded=False
    )
    sub.add_argument("model", type=Path, help="folder of the model, such as runs/finetune/model")
    sub.add_argument("--name", default="yours", help="what the row is called (default %(default)s)")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    print_any_letter()
    args = parse_arguments(arguments)
    try:
        if args.command == "masks":
            train_masks(args.out, args.seed, args.steps)
        elif args.command == "evaluate":
            masks = args.masks or mask_tokenizer_folder(args.model)
            evaluation.run(args.model, masks, args.splits.split(","), args.scenes, args.json)
        elif args.command == "export":
            logs = tuple(args.earlier_runs), tuple(args.encoder_runs)
            steps = export(args.run, args.masks, args.out, *logs, tuple(args.average))
            print(f"{args.out}: the model after {steps} steps")
        elif args.command == "card":
            print(f"{draw_curves(Path(args.model))} and {draw_confusions(Path(args.model))}")
        elif args.command == "folder":
            counts = capstone.write_examples(args.folder, args.per_drawing, args.seed)
            print(f"{args.folder}: {counts['train']} pictures to train on, {counts['valid']} by another artist")
        elif args.command == "score":
            print(f"| {' | '.join(capstone.COLUMNS)} |\n|{'---|' * len(capstone.COLUMNS)}")
            print(capstone.row(args.name, capstone.score(args.model)))
            print(f"\nA name drawn by lot is right in {100 / len(capstone.NAMES):.0f} % of the pictures.")
        else:
            schedule = Schedule(args.cycles, args.muon_lr, args.adam_lr, seed=args.seed, save_every=args.save_every)
            pictures = open_pictures(args.pictures, args.cache, args.workers)
            if args.command == "encoder":
                train_encoder(
                    args.out,
                    pictures,
                    schedule,
                    args.per_step,
                    args.device,
                    args.start,
                    args.stop_at,
                    args.box_weight,
                )
            else:
                masks = load_mask_tokenizer(args.masks)
                train_model(
                    args.out,
                    args.encoder or (None if args.start else ENCODER),
                    pictures,
                    masks,
                    schedule,
                    args.per_step,
                    args.device,
                    args.start,
                    args.stop_at,
                    args.freeze_encoder,
                    args.weights,
                    args.per_picture,
                )
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
