"""The bank: solutions that learners write, wrong ones with the name that the check must give them, and right ones.

    @wrong("06.1", "eps outside the root")
    def _(x, eps=1e-6):
        return x / (torch.sqrt((x**2).mean(-1, keepdim=True)) + eps)

    @right("06.1")
    def _(x, eps=1e-6): ...

They are written as learners write, not as the imitations in paligemma/exercises are: a check that knew only its own
words would prove nothing.
"""

import itertools

from paligemma import generate
from paligemma.swap import swap

WRONG: list[tuple[str, str, object]] = []
RIGHT: list[tuple[str, object]] = []


def wrong(task_id: str, name: str):
    """Mark a wrong solution of a task, with the name of its mistake."""

    def mark(thing):
        WRONG.append((task_id, name, thing))
        return thing

    return mark


def right(task_id: str):
    """Mark a right solution of a task."""

    def mark(thing):
        RIGHT.append((task_id, thing))
        return thing

    return mark


def with_faults(task_id: str, written, names: dict[str, str]):
    """`written("ab")` has the faults a and b: right without any, wrong with every set of them; `names` of one alone."""
    right(task_id)(written(""))
    for size in range(len(names), 1, -1):
        for faults in itertools.combinations(names, size):
            wrong(task_id, f"{size} left")(written(faults))
    for fault, name in names.items():
        wrong(task_id, name)(written(fault))


def caption(model, processor, image, prompt="caption en", **settings) -> str:
    return generate(model, processor, images=[image], text=[prompt], **settings)[0]


def speaks_through(parts: dict, answer=caption):
    """A solution of a "put yours in the model" task: what `answer` gives while the parts are in the model."""

    def describe(model, processor, image):
        with swap(model, **parts) as mine:
            return answer(mine, processor, image)

    return describe


STILL_OPEN = []  # swaps that solutions have left in, so that nobody closes them by dropping them


def swap_bank(task_id: str, parts: dict, other: dict | None = None, broken: dict | None = None):
    """The bank of a "put yours in the model" task: `parts` and `other` are right, `broken` changes what it says."""
    right(task_id)(speaks_through(parts))
    right(task_id)(speaks_through(other or parts, lambda *inputs: generate(*inputs, "caption en")[0]))

    def opened_too_early(model, processor, image):
        with swap(model, **parts):
            pass
        return caption(model, processor, image)

    def left_in(model, processor, image):
        opened = swap(model, **parts)
        STILL_OPEN.append(opened)
        return caption(opened.__enter__(), processor, image)

    def misspelt(model, processor, image):
        with swap(model, **{f"My{name}": part for name, part in parts.items()}):
            return caption(model, processor, image)

    wrong(task_id, "not swapped in")(lambda *inputs: caption(*inputs))
    wrong(task_id, "not swapped in")(opened_too_early)
    wrong(task_id, "left in")(left_in)
    wrong(task_id, "raised")(misspelt)
    wrong(task_id, "list instead of text")(speaks_through(parts, lambda *inputs: generate(*inputs, ["caption en"])))
    wrong(task_id, "other prompt")(speaks_through(parts, lambda *inputs: caption(*inputs, "caption ko")))
    wrong(task_id, "prompt repeated")(speaks_through(parts, lambda *inputs: "caption en" + caption(*inputs)))
    wrong(task_id, "cut short")(speaks_through(parts, lambda *inputs: caption(*inputs, max_new_tokens=1)))
    wrong(task_id, "no return")(speaks_through(parts, lambda *inputs: print(caption(*inputs))))
    if broken is not None:
        wrong(task_id, "says something else")(speaks_through(broken))
    if len(parts) > 1:
        for name in parts:
            wrong(task_id, "not all swapped in")(speaks_through({name: parts[name]}))
