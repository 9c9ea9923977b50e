"""The report: what is said of the learner's files, parts and whole model, 100 columns wide."""

import itertools
import textwrap
from collections import Counter
from collections.abc import Iterator

from .compare import Comparison, Result
from .files import WANTED, Trouble
from .whole import Difference, Trained

WIDTH = 100
NAMES = list(WANTED)


def between(first: str, last: str) -> list[str]:
    return NAMES[NAMES.index(first) : NAMES.index(last) + 1]


GROUPS = {
    "image encoder": between("SiglipVisionConfig", "SiglipVisionModel"),
    "processor": between("add_image_tokens_to_prompt", "PaliGemmaProcessor"),
    "decoder": between("KVCache", "GemmaForCausalLM"),
    "the whole": between("PaliGemmaMultiModalProjector", "sample_top_p"),
}


def wrapped(label: str, text: str, indent: int = 6, width: int = 7) -> Iterator[str]:
    """`label  text`, folded under itself."""
    start = " " * indent + f"{label:<{width}}"
    lines = [line for part in text.strip().splitlines() for line in textwrap.wrap(part, WIDTH - len(start)) or [""]]
    for number, line in enumerate(lines):
        yield (start if number == 0 else " " * len(start)) + line


def heading(text: str) -> list[str]:
    return ["", text, "-" * len(text)]


def files(comparison: Comparison) -> Iterator[str]:
    """Which files were read, what could not be read or imported, and which names differ from the usual ones."""
    counts = Counter(found.source.name for found in comparison.found.values())
    listed = ", ".join(f"{name} ({count})" for name, count in counts.items())
    yield from wrapped("Found", f"{sum(counts.values())} classes and functions of the video: {listed}", 0)
    other = [one for one in comparison.found.values() if one.own_name.lstrip("_") != one.name]
    if other:
        yield from wrapped("", "; ".join(f"{one.name} is {one.own_name} in {one.file}" for one in other), 0)
    passed = sorted({one.saw.split()[0] for one in comparison.workspace.troubles if "cannot be imported" in one.saw})
    if passed:
        yield from wrapped("", f"not installed here and passed over: {', '.join(passed)}", 0)
    for trouble in comparison.workspace.troubles:
        if "cannot be imported" not in trouble.saw:
            yield from told(trouble)


def told(trouble: Trouble) -> Iterator[str]:
    what = f": {trouble.about} cannot be read" if trouble.about else ""
    yield ""
    yield f"  {'ERROR' if trouble.grave else 'note '}    {trouble.file}, line {trouble.line}{what}"
    if trouble.text:
        yield f"        {trouble.text}"[:WIDTH]
    yield from wrapped("seen", trouble.saw)
    if trouble.means:
        yield from wrapped("means", trouble.means)


def parts(results: Iterator[Result]) -> Iterator[str]:
    """Part after part: right ones of a group in one line, each finding by itself."""
    group, right, later = "", [], []
    for result in results:
        title = next(title for title, names in GROUPS.items() if result.part in names)
        if title != group or result.state in ("wrong", "broken", "unclear"):
            yield from right_ones(right)
            right = []
        if title != group and result.state != "missing":
            group = title
            yield title
        if result.state == "right":
            right.append((result.part, result.replaced))
        elif result.state == "wrong":
            yield f"  WRONG    {result.part}" + ("" if result.name == "raised" else f": {result.name}")
            yield from finding(result)
            for other in result.more:
                yield from finding(other)
            if result.chapter:
                exercise = f", exercise {result.task}" if result.task else ""
                yield from wrapped("look", f"chapter {result.chapter}{exercise}")
        elif result.state == "broken":
            yield f"  ERROR    {result.part}: see above"
        elif result.state == "unclear":
            yield f"  unclear  {result.part}: it could not be compared here"
            yield from wrapped("seen", result.saw)
        elif result.state == "later":
            later.append(result.part)
    yield from right_ones(right)
    if later:
        text = f"{', '.join(later)}: with token_type_ids, as in this course, and judged with the whole model"
        yield from wrapped("below", text, 2, 9)


def right_ones(right: list[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    """Names of right parts; those that were judged with the same parts of ours inside, together."""
    for replaced, group in itertools.groupby(right, key=lambda one: one[1]):
        inside = f" (with the course's {' and '.join(replaced)} inside)" if replaced else ""
        yield from wrapped("right", ", ".join(name for name, _ in group) + inside, 2, 9)


def finding(result: Result) -> Iterator[str]:
    if result.line:
        yield f"      {result.file}, line {result.line}"
        yield f"        {result.text}"
    yield from wrapped("seen", result.saw)
    if result.means:
        yield from wrapped("means", result.means)


def missing(results: dict[str, Result]) -> Iterator[str]:
    """What is not there yet."""
    for title, names in GROUPS.items():
        absent = [name for name in names if name in results and results[name].state == "missing"]
        if absent and len(absent) == len([name for name in names if name in results]):
            yield from wrapped("missing", f"{title}: everything", 2, 9)
        elif absent:
            yield from wrapped("missing", f"{title}: {', '.join(absent)}", 2, 9)


def trained(found: Trained) -> Iterator[str]:
    """The whole model: weights, numbers, cache."""
    if found.trouble is not None and not found.built:
        yield "  it cannot be built:"
        yield from finding(found.trouble)
        return
    lacking = len(found.lacking)
    if not lacking and not found.misshapen and not found.unused:
        text = f"all {found.parameters} parameters have got theirs, and none is left over"
        yield from wrapped("weights", text, 2, 9)
    else:
        text = (
            f"{lacking} of your {found.parameters} parameters got none, {len(found.unused)} in the file found no place"
        )
        yield from wrapped("weights", text, 2, 9)
        for name, close in found.lacking[:4]:
            yield from wrapped("", f"{name}: the file has {close}" if close else f"{name}: nothing like it", 2, 9)
        if lacking > 4:
            yield from wrapped("", f"and {lacking - 4} more", 2, 9)
        for line in found.misshapen[:4]:
            yield from wrapped("", line, 2, 9)
    for note in found.notes:
        yield from wrapped("note", note, 2, 9)
    if found.first is not None:
        yield from parting("numbers", found.first)
    elif found.modules:
        text = f"the same as the course's in all {found.modules} modules"
        if found.logits is not None:
            text += f"; the logits differ by at most {found.logits:.0e}" if found.logits else "; the logits are equal"
        yield from wrapped("numbers", text, 2, 9)
    if found.cached is not None:
        yield from parting("cache", found.cached)
    elif found.steps:
        yield from wrapped("cache", f"{found.steps} more tokens through your cache: the same in all modules", 2, 9)
    if found.trouble is not None:
        yield "  a step of it raised an error:"
        yield from finding(found.trouble)


def parting(label: str, where: Difference) -> Iterator[str]:
    same = f"the first {where.same} modules give the course's numbers; " if where.same else ""
    kind = f", your {where.kind.__name__}" if where.kind is not None else ""
    yield from wrapped(label, f"{same}they part at {where.path}{kind}: {where.saw}", 2, 9)
    if where.before:
        yield from wrapped("", f"the last module that is the same: {where.before}", 2, 9)


def answers(found: Trained) -> Iterator[str]:
    """What the learner's model says, beside the truth."""
    for answer in found.answers:
        yield f"  {answer.prompt}"
        mine = answer.mine if len(answer.mine) < 160 else answer.mine[:160] + "..."
        yield from wrapped("yours", mine or "(nothing)", 4)
        yield from wrapped("truth", "the same" if mine == answer.truth else answer.truth, 4)
        if answer.remark:
            yield from wrapped("", answer.remark, 4)


def summary(results: dict[str, Result], troubles: list[Trouble], found: Trained) -> Iterator[str]:
    counts = Counter(one.state for one in results.values())
    pieces = [f"{counts['right']} right"]
    pieces += [f"{counts['wrong']} wrong"] if counts["wrong"] else []
    errors = sum(trouble.grave for trouble in troubles)
    pieces += [f"{errors} error{'s' if errors > 1 else ''} in the files"] if errors else []
    pieces += [f"{counts['unclear']} unclear"] if counts["unclear"] else []
    pieces += [f"{counts['missing']} not there yet"] if counts["missing"] else []
    yield ", ".join(pieces)
    if counts["wrong"] or errors:
        yield "Mend what stands first, and run this again."
    elif found.logits is not None and found.first is None and found.cached is None and not found.lacking:
        yield from textwrap.wrap(
            "Your PaliGemma gives the course's numbers. Google's published weights have the same names and go into "
            "it in the same way: chapter 15.",
            WIDTH,
        )
