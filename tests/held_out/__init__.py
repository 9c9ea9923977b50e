"""Held-out solutions: written as learners write, from the texts of the tasks alone, without a look at the checks.

    MEND = right("09.3", "as most write it", '''...''')
    wrong("09.3", "norm_1 twice", '''...''', truth="think reads norm_1 of the stream instead of norm_2")
    change("09.3", "norm_1 twice", MEND, ("norm_2(x)", "norm_1(x)"), says="both parts read through norm_1")

They ask what a learner is told; tests/mistakes asks for the mistakes' names. The message for a wrong solution must hold
the phrase `says`, or, without one, a word of `truth`, which is one sentence on what is wrong.
"""

RIGHT: list[tuple[str, str, str]] = []  # task, title, source
WRONG: list[tuple[str, str, str, str, str]] = []  # task, title, source, truth, says


def right(task: str, title: str, source: str) -> str:
    """A right solution; its source comes back, for `change`."""
    RIGHT.append((task, title, source))
    return source


def wrong(task: str, title: str, source: str, *, truth: str = "", says: str = "") -> None:
    """A wrong solution."""
    assert truth or says, f"{task}, {title!r}: neither truth nor says tells what its message must hold"
    WRONG.append((task, title, source, truth, says))


def change(task: str, title: str, source: str, *places: tuple[str, str], truth: str = "", says: str = "") -> None:
    """A wrong solution: a right one with (old, new) done otherwise, one place after another."""
    for old, new in places:
        assert old in source, f"{task}, {title!r}: {old!r} is not in the source"
        source = source.replace(old, new)
    wrong(task, title, source, truth=truth, says=says)


def answer(function: str, given: dict) -> str:
    """The source of a function that returns the answers: a name or an input for each letter."""
    return f"def {function}():\n    return {given!r}\n"


def exchange(given: dict, first: str, second: str) -> dict:
    """The answers with two of them taken for each other."""
    return given | {first: given[second], second: given[first]}
