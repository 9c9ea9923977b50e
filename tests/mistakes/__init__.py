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
