"""Two kinds of tasks without code to write: inputs that expose wrong versions, and figures to be read.

`exposing_task`: there are a right function and a few wrong ones, by name. The learner writes for each wrong one an
input that exposes it: on that input it differs from the right one, and the other wrong ones do not.

`matching_task`: a figure has panels without names. The learner says which is which.
"""

import collections
from collections.abc import Callable

import torch

from .comparing import compare, copy
from .tasks import Case, Finding, Found, Mistake, Task

ONE_CASE = Case(note="your answer")


def exposing_task(
    id: str,
    right: Callable,
    wrong: dict[str, Callable],
    reference: Callable[[], dict[str, tuple]],
    usable: Callable[..., str | None],
    tolerance: float = 1e-4,
    mistakes: tuple[Mistake, ...] = (),
    together: dict[str, set[str]] | None = None,
    **more,
) -> Task:
    """The learner writes a function without arguments that returns {name of a wrong version: its input, a tuple}.

    `reference` is such a function. `usable(*inputs)` says in words why an input cannot be used, or returns None.
    Results that differ by more than `tolerance` (relative to 1 + their size) differ. `together` names for a version
    the others that every input exposes which exposes it: these may be exposed with it.
    """

    def differs(version, inputs) -> bool:
        with torch.no_grad():
            want = right(*copy(inputs))
            try:
                got = version(*copy(inputs))
            except Exception:  # a wrong version that stops is exposed, too
                return True
        return compare(got, want, tolerance, ONE_CASE, "") is not None

    def use(solution) -> dict[str, list[str]]:
        """For each wrong version the names of those that its input exposes."""
        given = solution()
        if not isinstance(given, dict):
            raise Found("type", f"the result is a {type(given).__name__}, expected a dict with an input for each name")
        if set(given) != set(wrong):
            seen = f"the keys are {sorted(map(str, given))}, expected {sorted(wrong)}"
            raise Found("structure", seen, "one input for each of the wrong versions")
        exposed = {}
        for name in wrong:
            inputs = tuple(given[name]) if isinstance(given[name], tuple | list) else (given[name],)
            try:
                problem = usable(*inputs)
            except TypeError:
                problem = f"{len(inputs)} values, which is not the number of arguments"
            if problem:
                raise Found("not an input", f"{name}: {problem}", "an input that the right version cannot take")
            allowed = (together or {}).get(name, ())
            exposed[name] = [other for other in wrong if other not in allowed and differs(wrong[other], inputs)]
        return exposed

    def symptom(case, got, want) -> Finding | None:
        hidden = [name for name in wrong if name not in got[name]]
        crowded = [name for name in wrong if name in got[name] and len(got[name]) > 1]
        done = len(wrong) - len(hidden) - len(crowded)
        seen = f"{done} of {len(wrong)} inputs expose their version and no other. "
        if hidden:
            name = hidden[0]
            others = f"; it exposes {', '.join(got[name])}" if got[name] else ""
            return Finding(
                "not exposed",
                seen + f"On your input for {name}, {name} gives what the right version gives{others}",
                f"what does {name} do otherwise, and for which numbers does that make a difference?",
            )
        if crowded:
            name = crowded[0]
            others = ", ".join(other for other in got[name] if other != name)
            return Finding(
                "exposes others",
                seen + f"Your input for {name} exposes it, and {others}, too",
                "take away from the input what makes the others differ: smaller, simpler, fewer axes that vary",
            )
        return None

    return Task(
        id=id, reference=reference, cases=lambda seed: [ONE_CASE], use=use, gradients=False, symptoms=[symptom],
        mistakes=mistakes, **more,
    )  # fmt: skip


def matching_task(
    id: str,
    truth: dict[str, str],
    confusions: dict[frozenset, str],
    mistakes: tuple[Mistake, ...] = (),
    parts: str = "panels",
    **more,
) -> Task:
    """The learner writes a function without arguments that returns {panel: its name}; `parts` says what panels are.

    `confusions` says for a pair of names that are easily exchanged what tells them apart:
    {frozenset({"scale left out", "softmax over queries"}): "look at the sums of the rows"}.
    """
    names = set(truth.values())

    def use(solution) -> dict[str, str]:
        given = solution()
        if not isinstance(given, dict):
            raise Found("type", f"the result is a {type(given).__name__}, expected a dict with a name for each panel")
        if any(value is ... for value in given.values()):
            raise Found("not started", "there are still dots in your answer", "put a name in place of each")
        if set(given) != set(truth):
            seen = f"the {parts} are {sorted(map(str, given))}, expected {sorted(truth)}"
            raise Found("structure", seen, f"the keys of the dict are the {parts}, each with one name")
        unknown = [value for value in given.values() if value not in names]
        if unknown:
            raise Found("unknown name", f"{unknown[0]!r} is none of the names: {', '.join(sorted(names))}")
        return given

    def symptom(case, got, want) -> Finding | None:
        right = sum(got[panel] == want[panel] for panel in want)
        seen = f"{right} of {len(want)} {parts} are right"
        twice = [name for name, number in collections.Counter(got.values()).items() if number > 1]
        if twice and len(names) == len(truth):
            return Finding(
                "a name twice", f"{seen}; {twice[0]!r} stands at more than one of the {parts}", "each name fits once"
            )
        for panel in want:
            text = confusions.get(frozenset((got[panel], want[panel])))
            if text and got[panel] != want[panel]:
                return Finding("taken for another", seen, f"{got[panel]!r} and another are exchanged: {text}")
        return Finding("not matched", seen, "begin with the panel that you are surest of, and say what you see in it")

    return Task(
        id=id, reference=lambda: dict(truth), cases=lambda seed: [ONE_CASE], use=use, gradients=False,
        symptoms=[symptom], mistakes=mistakes, **more,
    )  # fmt: skip
