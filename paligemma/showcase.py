"""Record what a model says about photographs: answers, boxes, masks and attention, in a folder with a page.

    python -m paligemma.showcase google/paligemma-3b-mix-224 --revision bfloat16 --masks vae-oid.npz
    python -m paligemma.showcase MODEL_FOLDER --output assets/showcase

The model sees four photographs of this repository and answers four prompts about each: a caption, a question, a box
and a mask. The folder then holds `README.md`, the page; `showcase.json`, every prompt with its answer as the model
wrote it; and for each photograph a figure of the answers, a figure of what each word of the caption looked at, and the
same attention as a page to explore. Answers are greedy, and nothing is edited or chosen by hand.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from . import ASSETS, visualize
from . import __main__ as command
from .attention_maps import AnswerAttention, answer_attention, box_patches
from .files import write_files_atomically
from .generation import generate
from .locations import parse_detections
from .modeling_gemma import PaliGemmaForConditionalGeneration
from .processing_paligemma import PaliGemmaProcessor, to_rgb
from .segmentation import MaskTokenizer
from .visualize.attention_html import save_attention_html

RECORD, PAGE = "showcase.json", "README.md"
MOST_PATCHES = 1024  # the encoder's attention at 448 pixels is 1.8 GB in float32, at 896 pixels it would be 29 GB
MOST_WORDS = 10  # panels in the figure of attention


@dataclass(frozen=True)
class Shot:
    """A picture, and what is asked about it."""

    name: str  # of its files
    image: Image.Image
    question: str
    thing: str  # what to detect and segment
    prompts: tuple[str, ...] = ()

    def __post_init__(self):
        prompts = ("caption en", f"answer en {self.question}", f"detect {self.thing}", f"segment {self.thing}")
        object.__setattr__(self, "prompts", prompts)


@dataclass(frozen=True)
class Recorded:
    """What the model said about one picture. `answers` belong to the prompts; the head is the one in the figure."""

    picture: str
    answers: dict[str, str]
    attention: dict[str, int] | None  # {"layer", "head"}; None where no attention was recorded


def photographs() -> list[Shot]:
    """The four photographs of the course, each with a question that a look at it can answer."""
    asked = [
        ("cat", "what animal is this?", "cat"),
        ("coffee", "what is in the cup?", "cup"),
        ("astronaut", "what colour is the suit?", "person"),
        ("rocket", "is it day or night?", "rocket"),
    ]
    shots = []
    for name, question, thing in asked:
        with Image.open(ASSETS / f"{name}.jpg") as image:
            shots.append(Shot(name, to_rgb(image), question, thing))
    return shots


def ask(model: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor, shot: Shot) -> list[str]:
    """The greedy answers to the four prompts."""
    return generate(model, processor, images=[shot.image], text=list(shot.prompts), max_new_tokens=100)


def draw_answers(shot: Shot, answers: list[str], masks: MaskTokenizer | None = None) -> Figure:
    """Four panels: the picture with the answer to each prompt, its box and its mask."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 8))
    for ax, prompt, answer in zip(axes.flat, shot.prompts, answers, strict=True):
        command.draw_answer(ax, shot.image, prompt, answer, masks, columns=48)
    return figure


def pointing_head(attention: AnswerAttention, answer: str) -> tuple[int, int]:
    """(layer, head) of the decoder that, for one of the words, puts the largest part of its attention into the box.

    The box is the first in `answer`, the model's own; where it has none, the whole picture stands for it.
    """
    found, _ = parse_detections(answer) if "<loc" in answer else ([], [])
    inside = box_patches(found[0].box if found else (0.0, 0.0, 1.0, 1.0), attention.grid).flatten()  # [N]
    weights = attention.decoder[:, :, attention.queries, : attention.grid**2]  # [layers, H, A, N]
    share = (weights * inside).sum(dim=-1).amax(dim=-1)  # [layers, H]
    layer, head = divmod(int(share.argmax()), share.shape[1])
    return layer, head


def draw_attention(shot: Shot, attention: AnswerAttention, layer: int, head: int) -> Figure:
    """One panel for each word of the caption: the patches that this head looked at when the word was chosen."""
    tokens = attention.tokens[:MOST_WORDS]
    maps = [attention.to_image(layer, head, token) for token in range(len(tokens))]
    axes = visualize.show_answer_attention(shot.image, maps, tokens)
    return axes[0].figure


def record(
    model: PaliGemmaForConditionalGeneration,
    processor: PaliGemmaProcessor,
    folder: str | os.PathLike,
    name: str,
    masks: MaskTokenizer | None = None,
    shots: list[Shot] | None = None,
) -> Path:
    """Ask the model about every picture and write the folder; returns the page.

    `name` is what the page calls the model; `masks` turns <seg> tokens into masks; `shots` are the four photographs
    unless given. An earlier recording is replaced as a whole, at the end. Raises ValueError, before the model is asked,
    for a folder that holds other files, and OSError when it cannot be written.
    """
    check_output(folder)
    visualize.set_style()
    shots = photographs() if shots is None else shots
    recorded = []
    with write_files_atomically(folder, ("*-answers.png", "*-attention.png", "*-attention.html")) as fresh:
        for shot in shots:
            answers = ask(model, processor, shot)
            command.say(f"{shot.name}: " + " | ".join(answers))
            visualize.save_figure(draw_answers(shot, answers, masks), fresh / f"{shot.name}-answers.png")
            chosen = None
            if processor.image_seq_length <= MOST_PATCHES:
                attention = answer_attention(model, processor, shot.image, shot.prompts[0], answers[0])
                layer, head = pointing_head(attention, answers[2])
                chosen = {"layer": layer, "head": head}
                visualize.save_figure(
                    draw_attention(shot, attention, layer, head), fresh / f"{shot.name}-attention.png"
                )
                save_attention_html(fresh / f"{shot.name}-attention.html", attention, shot.image, shot.prompts[0])
            plt.close("all")
            recorded.append(Recorded(shot.name, dict(zip(shot.prompts, answers, strict=True)), chosen))
        facts = {
            "model": name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "pixels": processor.image_size,
            "torch": torch.__version__.split("+")[0],
        }
        contents = facts | {"pictures": [asdict(one) for one in recorded]}
        text = json.dumps(contents, indent=2, ensure_ascii=False) + "\n"
        (fresh / RECORD).write_text(text, encoding="utf-8", newline="\n")
        (fresh / PAGE).write_text(page(facts, recorded), encoding="utf-8", newline="\n")
    return Path(folder) / PAGE


def check_output(folder: str | os.PathLike) -> None:
    """Raise ValueError for a folder that is neither new, nor empty, nor an earlier recording: its README would go."""
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"output is {path}, a file, expected a folder for the recording: give another name")
    if path.is_dir() and any(path.iterdir()) and not (path / RECORD).exists():
        raise ValueError(
            f"output is {path}, which holds other files, expected a new folder or an earlier recording: give another "
            "name"
        )


def page(facts: dict[str, str | int], recorded: list[Recorded]) -> str:
    """The page, as Markdown."""
    lines = [
        f"# {facts['model']} on {len(recorded)} picture{'s' * (len(recorded) != 1)}",
        "",
        f"Recorded by `python -m paligemma.showcase {facts['model']}`: {facts['dtype']} on the {facts['device']}, "
        f"pictures of {facts['pixels']} x {facts['pixels']} pixels, PyTorch {facts['torch']}. Every answer is the "
        f"model's greedy one. [`{RECORD}`]({RECORD}) holds them as they were written.",
    ]
    for one in recorded:
        spoken = {prompt: answer for prompt, answer in one.answers.items() if "<loc" not in answer}
        said = "; ".join(f"to {quoted(prompt)} it answers {quoted(answer)}" for prompt, answer in spoken.items())
        drawn = [prompt for prompt in one.answers if prompt not in spoken]
        boxes = "; drawn on the picture: " + ", ".join(map(quoted, drawn)) if drawn else ""
        lines += ["", f"## {one.picture}", "", f"![The picture four times: {said}{boxes}.]({one.picture}-answers.png)"]
        lines += ["", "| prompt | answer |", "|---|---|"]
        lines += [f"| {code(prompt)} | {code(answer)} |" for prompt, answer in one.answers.items()]
        if one.attention is None:
            lines += ["", f"No attention was recorded: it needs too much memory for more than {MOST_PATCHES} patches."]
            continue
        layer, head = one.attention["layer"], one.attention["head"]
        lines += [
            "",
            f"![For each word of the caption the picture, dimmed where head {head} of layer {layer} did not look; a "
            f"yellow line holds half of its attention.]({one.picture}-attention.png)",
            "",
            f"What head {head} of layer {layer} looked at when each word of the caption was chosen. Of all heads it "
            "puts, for one of the words, the largest part of its attention into the box that the model drew (into the "
            f"picture, where it drew none). [All layers and heads]({one.picture}-attention.html), for a browser.",
        ]
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """Text of the model for the description of a figure: no sign that would end it or make markup."""
    plain = "".join(letter if letter not in "[]`|<>\\*_" else " " for letter in text)
    return f'"{" ".join(plain.split())}"'


def code(text: str) -> str:
    """Text of the model as code in a cell of a table."""
    flat = " ".join(text.split()).replace("|", "\\|").replace("`", "'")
    return f"`{flat}`" if flat else "(nothing)"


def make_parser() -> command.Parser:
    parser = command.Parser(
        "python -m paligemma.showcase",
        description="Record what a model says about four photographs: captions, answers, boxes, masks and attention, "
        "in a folder with a page. Google's models want their licence accepted first: see chapter 15.",
    )
    parser.add_argument("model", metavar="MODEL", help="a checkpoint folder, or a name on the Hugging Face hub")
    parser.add_argument(
        "--output", metavar="FOLDER", type=Path, default=Path("showcase"), help="where to write it (showcase)"
    )
    parser.add_argument(
        "--masks", metavar="FILE", help="what turns <seg> tokens into masks: a folder, or Google's vae-oid.npz"
    )
    parser.add_argument(
        "--revision", metavar="NAME", help="a branch on the hub: bfloat16 halves PaliGemma 1's download"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="numbers of the weights (the file's)"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, mps (default: cuda where there is one, else cpu)")
    return parser


def showcase(options: argparse.Namespace) -> None:
    """The command: open the model, record, say where the page is."""
    check_output(options.output)
    masks = command.open_masks(options)
    model, processor = command.open_model(options.model, options.dtype, options.device, revision=options.revision)
    is_folder = Path(options.model).expanduser().is_dir()
    name = Path(options.model).resolve().name if is_folder else options.model
    print(f"Wrote {record(model, processor, options.output, name, masks)}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(showcase, make_parser(), sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
