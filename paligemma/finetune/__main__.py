"""`python -m paligemma.finetune DIR`: check a folder of examples, train a model on it, see how good it is.

python -m paligemma.finetune DIR --check
python -m paligemma.finetune DIR
python -m paligemma.finetune DIR --model google/paligemma2-3b-pt-224 --lora 8 --dtype bfloat16 --device cuda
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

import torch

from .. import ASSETS
from ..checkpoint import EMBEDDING, find_folder, load_pretrained, load_processor, read_config
from ..locations import box_to_pixels, parse_detections
from ..options import number, print_any_letter, seed, whole
from ..segmentation import load_mask_tokenizer
from ..training import read_log, redraw_collapsed_embeddings
from ..training.__main__ import available_device
from ..training.loop import open_folder
from ..training.parallel import is_main_process, start_processes, stop_processes
from .check import MAX_ANSWER, check_examples
from .folder import Example, read_folder
from .lora import PARTS
from .recipe import Plan, memory, merged_model, overfit, prepare, train_on

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m paligemma.finetune",
        description="Teach a PaliGemma your own pictures from a folder of examples (see paligemma/finetune/folder.py).",
    )
    parser.add_argument("folder", metavar="DIR", help="holds train/annotations.jsonl and valid/annotations.jsonl")
    parser.add_argument("--check", action="store_true", help="only look for mistakes, and draw four examples")
    parser.add_argument("--model", default=str(ASSETS / "tiny-paligemma"), help="a folder, or a name on the hub")
    parser.add_argument(
        "--masks", metavar="FOLDER", help="of the mask tokenizer: outlines of COCO and YOLO become masks"
    )
    parser.add_argument("--out", default="runs/finetune", help="folder of the run (default: %(default)s)")
    parser.add_argument("--lora", type=whole, default=0, metavar="RANK", help="train LoRA changes of this rank")
    parser.add_argument("--part", choices=list(PARTS), help="what is trained (default: all, with --lora the decoder)")
    parser.add_argument(
        "--train-embeddings", action="store_true", help="with --lora or --part: for words that are new to the model"
    )
    parser.add_argument("--epochs", type=whole, default=10)
    parser.add_argument("--batch", type=whole, default=16, help="examples a step; in parts when memory is short")
    parser.add_argument("--lr", type=number, help="(default: 4e-3 for a small model, else LoRA 2e-4, all weights 1e-5)")
    parser.add_argument("--max-answer", type=whole, default=MAX_ANSWER, help="tokens of the longest answer")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--device", type=available_device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--checkpointing", action="store_true", help="less memory, a third more time")
    parser.add_argument("--merge", action="store_true", help="with --lora: write the merged model beside the adapter")
    parser.add_argument("--save-every", type=number, default=60.0, help="seconds between two training states")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Check, train, validate, save; returns 0, or 1 after a line for each thing that is wrong."""
    print_any_letter()
    args = parse_arguments(arguments)
    device = start_processes(args.device)
    try:
        return run(args, device)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        stop_processes()


def run(args: argparse.Namespace, device: torch.device) -> int:
    out = open_folder(args.out)
    source = find_folder(args.model)
    config = read_config(source)
    processor = load_processor(config, source)
    found = read_folder(args.folder, load_mask_tokenizer(args.masks) if args.masks else None)
    problems = check_examples(found, processor.tokenizer, args.max_answer)
    for problem in problems:
        say(str(problem))
    counts = ", ".join(f"{len(examples)} {split}" for split, examples in found.splits.items())
    errors = sum(problem.is_error for problem in problems)
    say(f"{args.folder}: {counts}; {errors} errors, {len(problems) - errors} warnings")
    if errors:
        return 1
    if is_main_process():
        last = len(found.splits["train"]) - 1
        shown = [found.splits["train"][i * last // 3] for i in range(4)]  # the first, the last, and two between
        draw_examples(list(dict.fromkeys(shown)), processor.image_size, out / "examples.png")
        say(f"four examples, as the model sees them: {out / 'examples.png'}")
    plan = Plan(
        part=args.part or ("decoder" if args.lora else "all"),
        **{field.name: getattr(args, field.name) for field in fields(Plan) if field.name != "part"},
    )
    needed = memory(config, plan, DTYPES[args.dtype])
    say("memory: " + ", ".join(f"{name} {size:.2f} GB" for name, size in needed.items()) + ", and what a batch needs")
    if args.check:
        return 0

    model, processor = load_pretrained(source, dtype=DTYPES[args.dtype], device=device)
    prepare(model, plan)
    if model.get_parameter(EMBEDDING).requires_grad:
        texts = [text for one in found.splits["train"] for text in (one.prompt, one.answer)]
        redrawn = redraw_collapsed_embeddings(model, processor.tokenizer, texts, seed=plan.seed)
        say(f"{len(redrawn)} tokens that the model was never taught begin with fresh embeddings")
    if not (out / "state.pt").exists():
        said, expected = overfit(model, processor, found.splits["train"], plan)
        wrong = [pair for pair in zip(said, expected, strict=True) if pair[0] != pair[1]]
        say(f"four examples learned by heart: {len(said) - len(wrong)} of {len(said)} come back")
        for text, answer in wrong:
            say(f"    says {text!r}, expected {answer!r}")
        if len(wrong) == len(said):
            say("error: none of four examples could be learned: look at them, or give another --lr", sys.stderr)
            return 1
    lines = train_on(model, processor, found.splits, plan, out, args.model, say)
    if is_main_process():
        draw_curves(out, lines)
        if plan.lora and args.merge:
            merged_model(model, processor, out / "model")
        say(f"written to {out}: {', '.join(sorted(path.name for path in out.iterdir() if path.is_dir()))}, curves.png")
    return 0


def say(text: str, file=None) -> None:
    """Print, from one of several processes."""
    if is_main_process():
        print(text, file=file, flush=True)


def draw_examples(examples: list[Example], size: int, path: Path) -> None:
    """Four pictures at the model's resolution, with their boxes, prompts and answers."""
    import matplotlib.pyplot as plt  # half a second, and only the main process draws

    from ..visualize import plain, save_figure, show_boxes

    figure, axes = plt.subplots(1, len(examples), figsize=(3.2 * len(examples), 3.6), squeeze=False)
    for ax, example in zip(axes[0], examples, strict=True):
        picture = example.picture().resize((size, size))
        detections = parse_detections(example.answer)[0]
        boxes = []
        for one in detections:
            left, top, right, bottom = box_to_pixels(one.box, size, size)
            boxes.append((top, left, bottom, right))
        show_boxes(picture, boxes, [one.label for one in detections], ax=ax)
        ax.set(xlabel="", ylabel="")
        ax.set_title(plain(f"{example.prompt}\n{example.answer}", longest=60), fontsize=7)
    save_figure(figure, path)
    plt.close(figure)


def draw_curves(out: Path, lines: list[dict]) -> None:
    """Loss by step, and the validation's figures by epoch."""
    import matplotlib.pyplot as plt

    from ..visualize import save_figure, show_curves

    log = read_log(out / "log.jsonl")
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    losses = [line["step"] for line in log], [line["loss"] for line in log]
    show_curves({"loss": losses}, title="training", ylabel="loss", logy=True, ax=axes[0])
    steps = [line["step"] for line in lines]
    shares = {
        name: (steps, [line[name] for line in lines])
        for name in ("exact", "exact words", "mean IoU")
        if name in lines[0]
    }
    if shares:
        show_curves(shares, title=f"validation: {', '.join(shares)}", ylabel="share", ax=axes[1])
    save_figure(figure, out / "curves.png")
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
