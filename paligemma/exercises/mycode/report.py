"""The report: what is said of the learner's files, parts and whole model, 100 columns wide."""

import textwrap
from collections.abc import Iterator

from .compare import Comparison, Result
from .files import WANTED, Trouble
from .whole import Answer, Difference, Trained

WIDTH = 100
GROUPS = (
    ("image encoder", ("SiglipVisionConfig", "SiglipVisionModel")),
    ("processor", ("add_image_tokens_to_prompt", "PaliGemmaProcessor")),
    ("decoder", ("KVCache", "GemmaForCausalLM")),
    ("the whole", ("PaliGemmaMultiModalProjector", "sample_top_p")),
)
# Whole parts that are not on their own in the video's files, and need not be missed.
OPTIONAL = {"sample_top_p", "rotate_half", "apply_rotary_pos_emb", "repeat_kv", "resize", "rescale", "normalize"}


def wrapped(label: str, text: str, indent: int = 6) -> Iterator[str]:
    """`label  text`, folded under itself."""
    start = " " * indent + f"{label:<7}"
    text, start = text.lstrip(), start + " " * (len(text) - len(text.lstrip()))
    lines = [line for part in text.strip().splitlines() for line in textwrap.wrap(part, WIDTH - len(start)) or [""]]
    for number, line in enumerate(lines):
        yield (start if number == 0 else " " * len(start)) + line


def heading(text: str) -> list[str]:
    return ["", text, "-" * len(text)]


def files(comparison: Comparison) -> Iterator[str]:
    """Which files were read, what could not be read or imported, and which names differ from the usual ones."""
    used = {found.source.name: [] for found in comparison.found.values()}
    for found in comparison.found.values():
        used[found.source.name].append(found)
    for name, things in used.items():
        yield f"  {name}: {len(things)} of the {len(WANTED)} classes and functions that are looked for"
    for found in comparison.found.values():
        if found.own_name != found.name:
            yield f"  {found.name} is called {found.own_name} in {found.file}"
    for trouble in comparison.workspace.troubles:
        if trouble.grave or "cannot be imported" not in trouble.saw:
            yield from told(trouble)
    passed = sorted({t.saw.split()[0] for t in comparison.workspace.troubles if "cannot be imported" in t.saw})
    if passed:
        yield f"  not installed here, and passed over: {', '.join(passed)}"


def told(trouble: Trouble) -> Iterator[str]:
    what = f": {trouble.about} cannot be read" if trouble.about else ""
    yield f"  {trouble.file}, line {trouble.line}{what}"
    if trouble.text:
        yield f"      {trouble.text[: WIDTH - 6]}"
    yield from wrapped("seen", trouble.saw)
    if trouble.means:
        yield from wrapped("means", trouble.means)


def part(result: Result) -> Iterator[str]:
    """One part: a line when it is right, the finding when it is wrong."""
    if result.state == "right":
        note = f"   (judged with the course's {', '.join(result.replaced)} inside)" if result.replaced else ""
        yield f"  right    {result.part}{note}"
        return
    if result.state == "missing":
        yield f"  missing  {result.part}"
        return
    if result.state == "broken":
        yield f"  broken   {result.part}   (see above: it could not be read)"
        return
    yield f"  WRONG    {result.part}: {result.name}" if result.name != "raised" else f"  WRONG    {result.part}"
    yield from finding(result)
    for other in result.more:
        yield from finding(other)


def finding(result: Result) -> Iterator[str]:
    if result.line:
        yield f"      {result.file}, line {result.line}:"
        yield f"        {result.text}"
    yield from wrapped("seen", result.saw)
    if result.means:
        yield from wrapped("means", result.means)
    if result.chapter:
        exercise = f", exercise {result.task}" if result.task else ""
        yield from wrapped("look", f"chapter {result.chapter}{exercise}")


def missing(results: dict[str, Result]) -> Iterator[str]:
    """What is not there yet, in one line a group."""
    names = list(WANTED)
    for title, (first, last) in GROUPS:
        group = names[names.index(first) : names.index(last) + 1]
        absent = [name for name in group if name in results and results[name].state == "missing"]
        if absent and len(absent) == len([name for name in group if name in results]):
            yield from wrapped("missing", f"  the {title.removeprefix('the ')}: {', '.join(absent)}", 2)
        elif absent:
            yield from wrapped("missing", f"  {', '.join(absent)}", 2)


def trained(found: Trained) -> Iterator[str]:
    """The whole model: weights, numbers, cache."""
    if found.trouble is not None and not found.built:
        yield "  it cannot be built:"
        yield from finding(found.trouble)
        return
    lacking = len(found.lacking)
    if not lacking and not found.misshapen and not found.unused:
        yield f"  weights  all {found.parameters} parameters have got theirs, and no weight is left over"
    else:
        yield (
            f"  weights  {lacking} of your {found.parameters} parameters got none, {len(found.unused)} weights of the "
            "file found no place"
        )
        for name, close in found.lacking[:6]:
            yield f"           {name}" + (f"   (the file has {close})" if close else "")
        for line in found.misshapen[:4]:
            yield f"           {line}"
        if lacking > 6:
            yield f"           and {lacking - 6} more"
    for note in found.notes:
        yield from wrapped("note", note, 2)
    if found.first is not None:
        yield from parting("numbers", found.first)
    elif found.modules:
        yield (
            f"  numbers  the same as the course's in all {found.modules} modules"
            + (f"; logits differ by at most {found.logits:.0e}" if found.logits is not None else "")
        )
    if found.cached is not None:
        yield from parting("cache", found.cached)
    elif found.steps:
        yield f"  cache    {found.steps} more tokens through your cache: the same in all modules"
    if found.trouble is not None:
        yield "  a step of it raised an error:"
        yield from finding(found.trouble)


def parting(label: str, where: Difference) -> Iterator[str]:
    same = f"the first {where.same} modules are the same as the course's; " if where.same else ""
    kind = f" ({where.kind.__name__})" if where.kind is not None else ""
    yield from wrapped(label, f"{same}they part at {where.path}{kind}: {where.saw}", 2)
    if where.before:
        yield from wrapped("", f"the last module that is the same: {where.before}", 2)


def answers(found: Trained) -> Iterator[str]:
    """What the learner's model says, beside the truth."""
    for answer in found.answers:
        yield from one_answer(answer)


def one_answer(answer: Answer) -> Iterator[str]:
    yield f"  {answer.prompt}"
    box = answer.prompt.startswith(("detect", "segment"))
    label = "box (y1 x1 y2 x2, of 256 pixels)  " if box and answer.mine[:1].isdigit() else ""
    yield from wrapped("yours", f"{label}{answer.mine or '(nothing)'}", 4)
    yield from wrapped("truth", f"{label}{answer.truth}", 4)
    yield from wrapped("", answer.remark, 4)


def summary(results: dict[str, Result], troubles: list[Trouble], found: Trained) -> str:
    right = sum(one.state == "right" for one in results.values())
    wrong = sum(one.state == "wrong" for one in results.values())
    broken = sum(trouble.grave for trouble in troubles)
    absent = sum(one.state == "missing" for one in results.values())
    pieces = [f"{right} right"]
    if wrong:
        pieces.append(f"{wrong} wrong")
    if broken:
        pieces.append(f"{broken} line{'s' if broken > 1 else ''} that cannot be read or imported")
    if absent:
        pieces.append(f"{absent} not there yet")
    return ", ".join(pieces)
