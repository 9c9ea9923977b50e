"""The command line: ask a model about a picture, or see the small model at work.

    python -m paligemma "caption en" --image picture.png
    python -m paligemma demo
    python -m paligemma explore

`python -m paligemma --help` says the rest. Exit codes: 0 done, 2 something about the input is wrong (one line on
standard error says what), 130 stopped with Ctrl-C. With PALIGEMMA_DEBUG=1 in the environment an error ends in Python's
traceback, for those who look for a fault in the package.
"""

import argparse
import io
import os
import sys
import tempfile
import textwrap
import warnings
import webbrowser
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image, UnidentifiedImageError

from . import ASSETS, generate, load_pretrained
from .checkpoint import check_device, find_folder
from .generation import check_sampling, stream
from .locations import box_iou, box_to_pixels, parse_detections
from .modeling_gemma import PaliGemmaForConditionalGeneration
from .options import print_any_letter
from .processing_paligemma import PaliGemmaProcessor, to_rgb
from .segmentation import MaskTokenizer, load_mask_tokenizer, mask_tokenizer_folder
from .world import scenes

# matplotlib is imported inside the functions that draw: it takes half as long as everything else together.

TINY, MASKS = ASSETS / "tiny-paligemma", ASSETS / "mask-tokenizer"
LARGE = 200e6  # bytes of weights from which loading shows its progress

ASK_HELP = """\
Ask a PaliGemma about a picture. The answer is written as text; with --output its boxes and masks are drawn on the
picture, too. Without --model you talk to the small model of this course, which runs on any computer but knows only
one to four coloured shapes on a plain ground.
"""

EXAMPLES = """\
what to ask (PaliGemma was trained on such short commands):
  caption en                                  describe the picture in English
  answer en what colour is the circle?        answer a question, in a word or two
  detect circle ; square                      find objects: <loc> tokens are the sides of boxes
  segment red circle                          outline an object: <seg> tokens are its mask

examples:
  python -m paligemma demo                    no picture needed: the small model looks at one of its own
  python -m paligemma explore --open          the small model alive in a page: draw, ask, look inside
  python -m paligemma "caption en" --image shapes.png
  python -m paligemma "caption en" "detect star" --image shapes.png
  python -m paligemma "segment red circle" --image shapes.png --output mask.png
  python -m paligemma "detect cat" --image cat.jpg --model google/paligemma-3b-mix-224 --revision bfloat16
  python -m paligemma "caption en" --image cat.jpg --model ./my-folder --temperature 0.7 --seed 1

Accept the licence of Google's models once, on the model's page at huggingface.co, then run `hf auth login`.
If the first word after `paligemma` is demo or explore, that command starts (`demo --help`, `explore --help`). To send
the word itself as a prompt, put it after the options: python -m paligemma --image shapes.png demo
"""


class Parser(argparse.ArgumentParser):
    """argparse, with its errors on one line."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (try --help)\n")


def ask_parser() -> Parser:
    parser = Parser(
        "python -m paligemma",
        usage="python -m paligemma PROMPT [PROMPT ...] --image FILE [options]"
        "\n       python -m paligemma demo [options]"
        "\n       python -m paligemma explore [FOLDER] [options]",
        description=ASK_HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "prompts", metavar="PROMPT", nargs="+",
        help="what to ask, in quotes; or the word demo (see below).\nSeveral prompts are answered at once, a line each",
    )  # fmt: skip
    parser.add_argument("--image", metavar="FILE", required=True, help="the picture: PNG, JPEG, GIF, WebP, ...")
    parser.add_argument(
        "--model", metavar="NAME", default=str(TINY), help="a checkpoint folder, or a name on the Hugging Face hub"
    )
    parser.add_argument(
        "--output", metavar="FILE", type=figure_file, help="draw the answer on the picture, save it here (.png, ...)"
    )
    parser.add_argument(
        "--masks",
        metavar="FILE",
        help="what turns <seg> tokens into masks: a folder, or Google's vae-oid.npz\n"
        "(default: the one in the model's folder)",
    )
    writing = parser.add_argument_group("how the answer is written")
    writing.add_argument(
        "--max-new-tokens", metavar="N", type=int, default=100, help="stop after N tokens (default 100)"
    )
    writing.add_argument(
        "--temperature",
        metavar="T",
        type=float,
        default=0.0,
        help="0 (default): always the likeliest token; 1: draw as the model\nbelieves; between: more careful",
    )
    writing.add_argument("--top-k", metavar="K", type=int, default=0, help="draw among the K likeliest tokens only")
    writing.add_argument(
        "--top-p", metavar="P", type=float, default=1.0, help="draw among the likeliest that make up P (0 to 1)"
    )
    writing.add_argument("--seed", metavar="N", type=int, help="the same draws each time")
    running = parser.add_argument_group("how the model is run")
    running.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="numbers of the weights (default: the file's); bfloat16 halves\nthe memory of float32",
    )
    running.add_argument(
        "--revision",
        metavar="NAME",
        help="a branch on the hub: bfloat16 halves the download of PaliGemma 1,\nwhose main branch is float32",
    )
    running.add_argument("--device", metavar="NAME", help="cpu, cuda, mps (default: cuda where there is one, else cpu)")
    running.add_argument(
        "--attention", choices=["sdpa", "eager"], default="sdpa", help="sdpa (default): fast; eager: the readable code"
    )
    return parser


def demo_parser() -> Parser:
    parser = Parser(
        "python -m paligemma demo",
        description="Draw a picture of coloured shapes, put four questions about it to the small model, print what it "
        "says and draw it on the picture. Takes a few seconds, and no network.",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=18, help="another number, another picture (18)")
    parser.add_argument(
        "--output", metavar="FILE", type=figure_file, default="demo.png", help="where to save it (demo.png)"
    )
    parser.add_argument("--model", metavar="FOLDER", default=str(TINY), help="another model of the little world")
    return parser


def explore_parser() -> Parser:
    parser = Parser(
        "python -m paligemma explore",
        description="Write a page in which a small PaliGemma runs: draw a picture, ask, look inside. It needs no "
        "server and sends nothing anywhere.",
    )
    parser.add_argument(
        "model", metavar="FOLDER", nargs="?", default=str(TINY), help="a model folder (the course's own)"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", type=Path, default=Path("site/explorer"), help="where to write it (site/explorer)"
    )
    parser.add_argument("--single-file", action="store_true", help="everything in one index.html, to send to somebody")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    return parser


def figure_file(name: str) -> Path:
    """A name that matplotlib can save a picture under; checked before any work is done."""
    path = Path(name).expanduser()
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"{name!r} must end in .png, .jpg, .webp, .pdf or .svg")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{name!r} is a folder")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r} to save {path.name} in")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        reason = f"nothing can be saved in the folder {str(path.parent.resolve())!r} ({error.strerror})"
        raise argparse.ArgumentTypeError(f"{reason}: give --output in another") from error
    return path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["demo"]:
        return run(demo, demo_parser(), arguments[1:])
    if arguments[:1] == ["explore"]:
        return run(explore, explore_parser(), arguments[1:])
    return run(ask, ask_parser(), arguments)


def run(command: Callable[[argparse.Namespace], None], parser: Parser, arguments: list[str]) -> int:
    """One command with its options; what goes wrong becomes one line on standard error. Returns the exit code."""
    print_any_letter()
    try:
        command(parser.parse_args(arguments))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough
        if isinstance(sys.stdout, io.TextIOWrapper):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, RuntimeError, MemoryError) as error:
        if os.environ.get("PALIGEMMA_DEBUG", "0") not in ("", "0"):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        say(f"error: {lines[0]}")
        return 2
    return 0


def say(text: str) -> None:
    """To standard error, so that standard output is the model's words alone."""
    print(text, file=sys.stderr, flush=True)


def ask(options: argparse.Namespace) -> None:
    """One prompt or several about one picture."""
    check_sampling(options.max_new_tokens, options.temperature, options.top_k, options.top_p, options.seed)
    if options.temperature == 0 and (options.top_k or options.top_p < 1):
        say("note: --top-k and --top-p matter only with a --temperature above 0")
    image = open_picture(options.image)
    masks = open_masks(options)
    model, processor = open_model(options.model, options.dtype, options.device, options.attention, options.revision)
    settings = options.max_new_tokens, options.temperature, options.top_k, options.top_p, options.seed
    if len(options.prompts) == 1:
        pieces = []
        for piece in stream(model, processor, image, *options.prompts, *settings):
            print(piece, end="", flush=True)
            pieces.append(piece)
        print(flush=True)
        answers = ["".join(pieces)]
    else:
        answers = generate(model, processor, [image], options.prompts, *settings)
        print(*answers, sep="\n", flush=True)
    for prompt, answer in zip(options.prompts, answers, strict=True):
        if not answer.strip():
            searched = prompt.startswith(("detect", "segment"))
            which = f" to {prompt!r}" if len(answers) > 1 else ""
            say(f"note: the answer{which} is empty" + (": the model sees nothing of that kind" if searched else ""))
    if options.output:
        draw_answers(image, options.prompts, answers, masks, options.output)


def draw_answers(
    image: Image.Image, prompts: list[str], answers: list[str], masks: MaskTokenizer | None, output: Path
) -> None:
    """One panel a prompt, saved; says what could not be drawn."""
    from matplotlib import pyplot as plt

    from . import visualize

    visualize.set_style()
    columns = min(len(prompts), 3)
    rows = -(-len(prompts) // columns)
    width = 7 if columns == 1 else 3.6
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, (width + 0.6) * rows), squeeze=False)
    for ax in axes.flat[len(prompts) :]:
        ax.remove()
    for ax, prompt, answer in zip(axes.flat, prompts, answers, strict=False):
        for note in draw_answer(ax, image, prompt, answer, masks, columns=round(11 * width)):
            say(f"note: {note}")
    say(f"saved {visualize.save_figure(figure, output)}")


def open_picture(name: str) -> Image.Image:
    """The file as an upright RGB picture. Raises ValueError or OSError that say what is wrong."""
    if name.startswith(("http://", "https://", "ftp://", "data:", "s3://")):
        raise ValueError(f"{name[:80]} is an address, expected a file: download the picture and give its name")
    path = Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {name}" + (" (it is a folder)" if path.is_dir() else ""))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return to_rgb(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is no picture that can be read: give a PNG or a JPEG, for instance") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large ({error}): make it smaller first") from error
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"{name}: {error}") from error


def open_masks(options: argparse.Namespace) -> MaskTokenizer | None:
    """The mask tokenizer that goes with the model, or None. Codes mean nothing to any other model's."""
    if options.masks:
        return load_mask_tokenizer(Path(options.masks).expanduser())
    own = mask_tokenizer_folder(options.model)
    return load_mask_tokenizer(own) if options.output and own.is_dir() else None


def open_model(
    name: str,
    dtype: str | None = None,
    device: str | None = None,
    attention: str = "sdpa",
    revision: str | None = None,
) -> tuple[PaliGemmaForConditionalGeneration, PaliGemmaProcessor]:
    """Model and processor, with a progress bar for large files."""
    transformers.logging.set_verbosity_error()
    if Path(name) == TINY and not TINY.exists():
        raise FileNotFoundError(
            f"the small model is not at {TINY}: it comes with the repository, so install from a clone of it "
            "(pip install -e .), or name another --model"
        )
    device = check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folder = find_folder(name, revision)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    dtype = getattr(torch, dtype) if dtype else None
    return load_pretrained(folder, dtype=dtype, device=device, attention=attention, progress=size > LARGE)


def draw_answer(
    ax, image: Image.Image, prompt: str, answer: str, masks: MaskTokenizer | None = None, columns: int = 70
) -> list[str]:
    """Draw a picture with the boxes and masks of an answer into `ax`, the words below; returns what it left out.

    `ax` is one of matplotlib's Axes; `columns` is how many letters of text fit across the picture.
    """
    from . import visualize

    found, notes = parse_detections(answer) if "<loc" in answer else ([], [])
    notes = [f"not drawn: {note}" for note in notes]
    boxes = []
    for thing in found:
        x1, y1, x2, y2 = box_to_pixels(thing.box, *image.size)
        boxes.append((y1, x1, y2, x2))
    if found:
        visualize.show_boxes(image, boxes, [thing.label for thing in found], ax=ax)
    else:
        visualize.show_image(image, ax=ax)
    with_codes = [thing for thing in found if thing.codes]
    if with_codes and masks is None:
        notes.append("masks are not drawn: give the model's mask tokenizer with --masks (Google's is vae-oid.npz)")
    elif with_codes:
        nothing = np.zeros((image.height, image.width), dtype=bool)
        layers = [masks.codes_to_mask(t.codes, t.box, *image.size) if t.codes else nothing for t in found]
        visualize.show_masks(image, np.stack(layers), labels=[], ax=ax, alpha=0.25)  # the object keeps its colour
    ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
    title = "\n".join(textwrap.wrap(visualize.plain(prompt, 300), columns, max_lines=4, placeholder=" ..."))
    ax.set_title(title, pad=18)  # leaves room for the label of a box at the upper edge
    ax.text(
        0.5, -0.04, wrap_tokens(visualize.plain(answer, 2000, 99), columns) or "(nothing)", transform=ax.transAxes,
        ha="center", va="top", fontsize=8 if found else 9.5, family="DejaVu Sans Mono" if found else None,
        linespacing=1.35, color=visualize.GREY if found else visualize.BLACK,
    )  # fmt: skip
    return notes


def wrap_tokens(text: str, columns: int) -> str:
    """At most nine lines, broken between words and between tokens such as <loc0012>, which have no spaces between."""
    lines = textwrap.wrap(text.replace("><", "> \0<"), columns, max_lines=9, placeholder=" ...")
    return "\n".join(line.replace(" \0", "").replace("\0", "") for line in lines)


def demo(options: argparse.Namespace) -> None:
    """Four questions about a picture of the little world, answered by the small model."""
    from matplotlib import pyplot as plt

    from . import visualize

    scene = scenes.make_scene(options.seed)
    image = scenes.draw(scene, 384)
    model, processor = open_model(options.model)
    own = mask_tokenizer_folder(options.model)
    masks = load_mask_tokenizer(own if own.is_dir() else MASKS)
    rng = np.random.default_rng(options.seed)
    prompts, truths = demo_questions(scene, rng, masks)
    answers = generate(model, processor, images=[image], text=prompts, max_new_tokens=100)

    count = len(scene.things)
    shapes = f"{count} coloured shape" + "s" * (count > 1)
    print(f"A picture of {shapes} (seed {options.seed}). The small model looks at it:\n")
    visualize.set_style()
    figure, axes = plt.subplots(1, len(prompts), figsize=(11, 4), squeeze=False)
    for ax, prompt, answer, truth in zip(axes[0], prompts, answers, truths, strict=True):
        print(f"  {prompt}\n    {answer or '(nothing)'}\n    {verdict(scene, answer, truth)}\n")
        draw_answer(ax, image, prompt, answer, masks, columns=36)
    print(f"Saved {visualize.save_figure(figure, options.output)}. Now ask about a picture of shapes of your own:")
    print('  python -m paligemma "caption en" --image FILE')


def explore(options: argparse.Namespace) -> None:
    """Write the live page."""
    from .visualize.explorer import write_explorer

    page = write_explorer(options.output, options.model, options.single_file)
    print(f"Wrote {page}: open it in any browser.")
    if options.open:
        webbrowser.open(page.resolve().as_uri())


def demo_questions(scene, rng, masks) -> tuple[list[str], list[str]]:
    """(prompts, true answers): a caption, a question, a detection and a segmentation that this scene allows."""

    def codes(thing):
        return masks.mask_to_codes(scenes.shape_mask(thing.shape, thing.angle), (0, 0, 1, 1))

    pairs = []
    for tasks in (("caption",), ("colour", "where", "how many"), ("detect",), ("segment",)):
        tries = (scenes.ask(scene, tasks[i % len(tasks)], rng, codes) for i in range(30))
        pair = next((pair for pair in tries if pair and pair[1]), None)  # a question with something to show for it
        if pair:
            pairs.append(pair)
    prompts, truths = zip(*pairs, strict=True)
    return list(prompts), list(truths)


def verdict(scene, answer: str, truth: str) -> str:
    """How good an answer is, in words: the scene knows the truth."""
    if "<loc" not in truth:
        right = answer == truth or (truth.count(" ") > 2 and scenes.caption_is_true(scene, answer))
        return "right" if right else f"wrong; the truth is: {truth}"
    found, expected = parse_detections(answer)[0], parse_detections(truth)[0]
    overlaps = [max((box_iou(thing.box, other.box) for other in found), default=0.0) for thing in expected]
    hits, mean = sum(overlap > 0.5 for overlap in overlaps), sum(overlaps) / len(overlaps)
    extra = f", {len(found) - len(expected)} too many" if len(found) > len(expected) else ""
    return f"{hits} of {len(expected)} found{extra}; overlap with the true box: {mean:.2f} of 1 (IoU)"


if __name__ == "__main__":
    sys.exit(main())
