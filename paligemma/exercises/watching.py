"""The last task of each chapter: your part in the trained model, and what the model says through it."""

import functools
import inspect
import itertools
import re
import textwrap
from collections import Counter
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from .. import ASSETS, generation
from .. import swap as swap_module
from ..checkpoint import load_pretrained
from ..generation import generate
from ..processing_paligemma import PaliGemmaProcessor
from ..world.scenes import COLOURS, RELATIONS, SHAPES, SIZES, draw, make_scene
from .tasks import Case, Finding, Mistake, Task, larger

PROMPT = "caption en"


@functools.cache
def trained():
    """(model, processor) of the small trained model in assets/, or None where it is not."""
    folder = ASSETS / "tiny-paligemma"
    return load_pretrained(str(folder)) if (folder / "model.safetensors").exists() else None


@functools.cache
def practice():
    """The trained model; where it is missing, one of the same make that has learned nothing."""
    from ..world.tiny_model import build_model, build_processor  # here: building a tokenizer takes two seconds

    if trained() is not None:
        return trained()
    processor = build_processor()
    model = build_model(processor).eval()
    with torch.no_grad():  # large weights, so that what it says depends on everything
        for layer in model.language_model.model.layers:
            for parameter in layer.parameters():
                parameter.mul_(4)
    return model, processor


def picture(seed: int):
    """A picture of the little world."""
    return draw(make_scene(7000 + seed))


def watch(**parts) -> None:
    """Let the trained model caption three pictures through these parts, and draw them with what it says."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so it cannot speak.")
        return
    model, processor = trained()
    images = [picture(seed) for seed in (0, 1, 2)]
    with swap_module.swap(model, **parts) as mine:
        captions = generate(mine, processor, images=images, text=[PROMPT] * len(images))
    show_captions(images, captions, f"The model speaks through your {' and '.join(parts)}:")


def show_captions(images, captions, heading: str) -> None:
    from ..visualize import show_images  # here: matplotlib is not needed for anything else

    print(heading)
    for caption in captions:
        print(f"  {caption}")
    for ax in show_images(images, titles=["\n".join(textwrap.wrap(caption, 26)) for caption in captions]):
        ax.title.set_fontsize(9)


def pictures(seed: int) -> list[Case]:
    """One picture for a seed; two in all, because writing takes time. The hidden ones are of other sizes."""
    if seed not in (0, 1, 11, 12):
        return []
    image = picture(seed)
    if k := larger(seed):
        image = image.resize((64 + 8 * k, 64 + 4 * k))
    return [Case((*practice(), image), note="a picture of the little world")]


# --- what a change takes from the captions ---------------------------------------------------------------------

KINDS = {"sizes": tuple(SIZES), "colours": tuple(COLOURS), "shapes": SHAPES, "relations": RELATIONS}


@functools.cache
def scenes(number: int = 24) -> list:
    """The scenes that changes are counted on: each has two objects at least, so that every caption has a relation."""
    several = (scene for seed in itertools.count(9000) if len((scene := make_scene(seed)).things) > 1)
    return list(itertools.islice(several, number))


@functools.cache
def whole_captions(number: int) -> tuple[str, ...]:
    """What the model says about `scenes(number)` as it is."""
    return tuple(captions_of(*trained(), number))


def captions_of(model, processor, number: int = 24) -> list[str]:
    images = [draw(scene) for scene in scenes(number)]
    return generate(model, processor, images=images, text=[PROMPT] * number)


def words_kept(number: int = 24, captions: list[str] | None = None, **parts) -> dict[str, float]:
    """How many of `number` captions stay as they are with these parts in the model, and which words are kept.

    {"captions": 17, "sizes": 0.85, "colours": 1.0, "shapes": 0.97, "relations": 0.93}: of the size words of the whole
    model's captions, 85 % stand in the changed one's caption of the same picture, too. `captions` are those of the
    changed model, where they were made in another way than by a swap.
    """
    if captions is None:
        with swap_module.swap(trained()[0], **parts) as mine:
            captions = captions_of(mine, trained()[1], number)
    whole = whole_captions(number)
    kept = {"captions": sum(mine == theirs for mine, theirs in zip(captions, whole, strict=True))}
    for kind, words in KINDS.items():
        before = [count_words(caption, words) for caption in whole]
        after = [count_words(caption, words) for caption in captions]
        same = sum((one & other).total() for one, other in zip(before, after, strict=True))
        kept[kind] = same / sum(one.total() for one in before)
    return kept


def count_words(caption: str, words: tuple[str, ...]) -> Counter:
    return Counter({word: len(re.findall(rf"\b{word}\b", caption)) for word in words})


def taken(**parts) -> dict[str, object]:
    """What these parts take from the captions: how many of 24 are as before, and which kind of word suffers most."""
    kept = words_kept(**parts)
    return {"captions": kept["captions"], "suffers most": min(KINDS, key=kept.get)}


def show_words_kept(kept: dict[str, float], number: int = 24, what: str = "your part") -> None:
    """Print a line of `words_kept`."""
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in kept.items() if kind != "captions")
    print(f"With {what} in the model, {kept['captions']} of {number} captions are as before.")
    print(f"Of the words of the {number} captions it keeps: {shares}.")


def draw_kept(rows: dict[str, dict[str, float]], number: int = 24) -> None:
    """Draw what `words_kept` gave as a table in shades: a row for each name, a column for each kind of word."""
    import matplotlib.pyplot as plt

    columns = ["captions", *KINDS]
    shares = [[kept["captions"] / number, *(kept[kind] for kind in KINDS)] for kept in rows.values()]
    _, ax = plt.subplots(figsize=(6.2, 0.8 + 0.42 * len(rows)), layout="constrained")
    ax.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for row, kept in enumerate(rows.values()):
        for column, share in enumerate(shares[row]):
            text = f"{kept['captions']} of {number}" if column == 0 else f"{share:.0%}"
            ax.text(column, row, text, ha="center", va="center", color="black" if share > 0.55 else "white")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    plt.show()


# --- "put yours into the trained model" as a task --------------------------------------------------------------


def swap_task(id: str, names: tuple[str, ...], points: int = 2, minutes: int = 5, see: str = "") -> Task:
    """The learner writes describe(model, processor, image) -> str, which swaps these parts of theirs in and captions.

    The result is compared with the model's own caption; the parts of the package must not run meanwhile, and the
    model must afterwards be as it was.
    """

    def plain(model, processor, image):
        return generate(model, processor, images=[image], text=[PROMPT])[0]

    copies = {name: copy_of(name) for name in names}

    def with_copies(model, processor, image, describe=plain):
        with swap_module.swap(model, **copies) as mine:
            return describe(mine, processor, image)

    def left_in(model, processor, image):
        mine = swap_module.swap(model, **copies).__enter__()
        return plain(mine, processor, image)

    def as_list(model, processor, image):
        return generate(model, processor, images=[image], text=[PROMPT])

    def korean(model, processor, image):
        return generate(model, processor, images=[image], text=["caption ko"])[0]

    def no_prompt(model, processor, image):
        return generate(model, processor, images=[image], text=[""])[0]

    def repeated(model, processor, image):
        return PROMPT + plain(model, processor, image)

    def short(model, processor, image):
        return generate(model, processor, images=[image], text=[PROMPT], max_new_tokens=1)[0]

    def through(function):
        return lambda model, processor, image: with_copies(model, processor, image, function)

    parts = " and ".join(names)
    return Task(
        id=id,
        title=f"your {parts} in the trained model",
        points=points,
        minutes=minutes,
        level="easy",
        reference=with_copies,
        cases=pictures,
        use=run_and_look(names),
        gradients=False,
        tolerance=1e-3,  # of logits
        see=see or "docs of swap: the example at the top of paligemma/swap.py",
        mistakes=[
            Mistake(
                "not swapped in",
                f"the caption is right, and the package's own {parts} wrote it: yours was not in the model when "
                "`generate` ran. Is generate called inside the `with` block?",
                plain,
            ),
            Mistake("left in", "the swap was opened and never closed: use it in a `with` statement", left_in),
            Mistake("list instead of text", "`generate` answers a list of prompts with a list", through(as_list)),
            Mistake("list instead of text", "`generate` answers a list of prompts with a list", as_list),
            Mistake("other prompt", "the model was asked something else than the task says", through(korean)),
            Mistake("other prompt", "the model was asked something else than the task says", through(no_prompt)),
            Mistake("prompt repeated", "the answer alone is asked for", through(repeated)),
            Mistake("cut short", "the model was not given enough tokens to finish", through(short)),
        ],
        symptoms=[functools.partial(explain_swap, parts)],
        reward=lambda describe: reward(describe, parts),
    )


def reward(describe, parts: str) -> None:
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so it cannot speak.")
        return
    images = [picture(seed) for seed in (0, 1, 2)]
    captions = [describe(*trained(), image) for image in images]
    show_captions(images, captions, f"The model speaks through your {parts}:")


def explain_swap(parts: str, case, got, want) -> Finding | None:
    if got["the package's parts that ran"]:
        names = ", ".join(got["the package's parts that ran"])
        return Finding(
            "not all swapped in",
            f"while your function ran, the package still used its own {names}",
            "each part must be named in `swap(...)`; a container of yours must not make parts from the package",
        )
    if not got["put back"]:
        return Finding("left in", "afterwards the model is not what it was", "use swap in a `with` statement")
    if got["asked"] != want["asked"]:
        return Finding("other prompt", f"the model was asked {got['asked']}, expected {want['asked']}", "")
    if isinstance(got["caption"], str) and got["caption"] != want["caption"]:
        return Finding(
            "says something else",
            f"with your {parts} the model says {got['caption']!r}\nwith the package's it says {want['caption']!r}",
            "your part does not compute what the package's does: do the checks before this one pass? "
            "Or the model was asked something else than the task says",
        )
    mine, theirs = got["logits"], want["logits"]
    if got["caption"] == want["caption"] and mine is not None and theirs is not None and mine.shape == theirs.shape:
        return Finding(
            "nearly right",
            f"the caption is right, and the logits of its first word differ by {(mine - theirs).abs().max():.2g}",
            f"the model forgives what your {parts} computes; it is not what the package's computes. Do the checks "
            "before this one pass?",
        )
    return None


def copy_of(name: str):
    """The package's part under a type of its own."""
    part = vars(swap_module.find_home(name))[name]
    if inspect.isclass(part):
        return type(name, (part,), {"__module__": "copy"})
    return lambda *arguments, **named: part(*arguments, **named)


def run_and_look(names):
    """How such a function is used: run it, note which parts of the package ran, and whether the model is as before."""

    def use(describe, model, processor, image):
        before = [(module, dict(module._modules)) for module in model.modules()]
        ran: set[str] = set()
        asked: list[str] = []
        logits: list[torch.Tensor] = []
        try:
            with listening(asked, logits), spy(names, ran):
                swaps = set(swap_module.PLACES.owners())
                caption = describe(model, processor, image)
                put_back = all(dict(module._modules) == children for module, children in before)
                put_back = put_back and set(swap_module.PLACES.owners()) == swaps
        finally:
            for module, children in before:
                module._modules.clear()
                module._modules.update(children)
        return {
            "caption": caption,
            "asked": asked,
            "the package's parts that ran": sorted(ran),
            "put back": put_back,
            "logits": logits[0] if logits else None,  # of the first word
        }

    return use


@contextmanager
def listening(asked: list[str], logits: list[torch.Tensor]):
    """Note the prompts that the processor is given meanwhile, and the logits that words are chosen from."""
    call, sample = PaliGemmaProcessor.__call__, generation.sample

    @functools.wraps(call)
    def noted(self, text, *arguments, **named):
        asked.extend([text] if isinstance(text, str) else text)
        return call(self, text, *arguments, **named)

    @functools.wraps(sample)
    def noted_sample(scores, *arguments, **named):
        logits.append(scores.detach().clone())
        return sample(scores, *arguments, **named)

    PaliGemmaProcessor.__call__, generation.sample = noted, noted_sample
    try:
        yield
    finally:
        PaliGemmaProcessor.__call__, generation.sample = call, sample


@contextmanager
def spy(names, ran: set[str]):
    """Note in `ran` which of the package's own parts are used meanwhile."""
    before = set(swap_module.PLACES.owners())
    with ExitStack() as undo:
        counting = {}
        for name in names:
            part = vars(swap_module.find_home(name))[name]
            if inspect.isclass(part) and issubclass(part, nn.Module):
                undo.callback(setattr, part, "forward", part.forward)
                part.forward = noting(part.forward, name, ran, part)
            else:
                counting[name] = noting(part, name, ran)
        try:
            with swap_module.swap(None, **counting):
                yield
        finally:  # a swap that was never closed is closed here
            for owner in set(swap_module.PLACES.owners()) - before:
                swap_module.PLACES.close(owner)


def noting(function, name: str, ran: set[str], kind: type | None = None):
    @functools.wraps(function)
    def wrapped(*arguments, **named):
        if kind is None or type(arguments[0]) is kind:
            ran.add(name)
        return function(*arguments, **named)

    return wrapped


def draw_in_hundredths(panels: dict[str, torch.Tensor], rows: str, columns: str) -> None:
    """Draw up to six matrices of numbers from 0 to 1, each number written into its cell in hundredths."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(7.4, 5.4), layout="constrained")
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    for ax, (panel, matrix) in zip(axes.flat, panels.items(), strict=False):
        ax.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
        for row, column in itertools.product(*map(range, matrix.shape)):
            value = float(matrix[row, column])
            color = "black" if value > 0.55 else "white"
            ax.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=color)
        ax.set(title=panel, xticks=[], yticks=[])
    figure.supxlabel(columns)
    figure.supylabel(rows)
    plt.show()
