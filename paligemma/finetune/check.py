"""What is wrong with a folder of examples, each with file and line, before any time is spent on training.

The mistakes are those that people make: see the names of the functions. Nothing is mended silently.
"""

import re
from hashlib import sha256

import numpy as np
from PIL import Image

from ..locations import parse_detections, tokens_to_box
from .folder import Example, Examples, Problem

SPECIAL = ("<image>", "<bos>", "<eos>", "<pad>")  # the processor adds these where they belong
MAX_ANSWER = 256  # tokens


def check_examples(found: Examples, tokenizer, max_answer: int = MAX_ANSWER) -> list[Problem]:
    """All problems of these examples, in the order of their files; those of the reading come first."""
    problems = list(found.problems)
    if not found.splits["train"]:
        problems.append(Problem(str(found.folder), "there is no example to train on"))
    if not found.splits["valid"]:
        problems.append(
            Problem(str(found.folder), "there is no example to validate on: how good it is stays unknown", False)
        )
    contents = {}
    for example in found:
        if example.image not in contents:
            contents[example.image] = check_picture(example, problems)
        check_texts(example, problems)
        check_locations(example, problems)
        check_tokens(example, tokenizer, max_answer, problems)
    check_prompts_that_differ_by_a_space(list(found), problems)
    check_pictures_in_two_splits(found, contents, problems)
    for examples in found.splits.values():
        check_order_of_coordinates(examples, problems)
    return problems


def check_picture(example: Example, problems: list[Problem]) -> str | None:
    """A fingerprint of the picture's pixels, or None when it cannot be opened."""
    if not example.image.is_file():
        problems.append(Problem(example.where, f"there is no picture {example.image}"))
        return None
    try:
        picture = example.picture()
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        problems.append(Problem(example.where, f"the picture {example.image} cannot be opened: {error}"))
        return None
    return sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


def check_texts(example: Example, problems: list[Problem]) -> None:
    for name, text in (("prefix", example.prompt), ("suffix", example.answer)):
        for token in SPECIAL:
            if token in text:
                problems.append(
                    Problem(example.where, f"the {name} holds {token}, which is added for you: leave it out")
                )
    if not example.prompt.strip():
        problems.append(Problem(example.where, "the prefix is empty, expected a prompt such as 'caption en'"))
    if not example.answer.strip() and not example.prompt.startswith(("detect", "segment")):
        problems.append(Problem(example.where, "the suffix is empty: the model would learn to say nothing"))


def check_locations(example: Example, problems: list[Problem]) -> None:
    """Location tokens that do not exist, and boxes that are no boxes."""
    for token in re.findall(r"<(?:loc|seg)[^>]*>", example.answer):
        number = token[4:-1]
        digits, limit = (4, 1023) if token.startswith("<loc") else (3, 127)
        if not re.fullmatch(f"[0-9]{{{digits}}}", number) or int(number) > limit:
            first, last = f"{token[:4]}{0:0{digits}d}>", f"{token[:4]}{limit}>"
            hint = " (multiply by 1023, not by 1024)" if token == "<loc1024>" else ""
            problems.append(Problem(example.where, f"{token} is no token, expected {first} to {last}{hint}"))
            return
    for box in re.findall(r"(?:<loc[0-9]{4}>){4}", example.answer):
        y1, x1, y2, x2 = (int(number) for number in re.findall("[0-9]{4}", box))
        if y1 >= y2 or x1 >= x2:
            what = f"{box} is no box, expected y1 x1 y2 x2 with y1 < y2 and x1 < x2: are two of them reversed?"
            problems.append(Problem(example.where, what))
            return
    if "<loc" in example.answer:
        for complaint in parse_detections(example.answer)[1][:1]:
            problems.append(Problem(example.where, complaint))


def check_tokens(example: Example, tokenizer, max_answer: int, problems: list[Problem]) -> None:
    """Words that the tokenizer spells in bytes, and answers longer than the limit."""
    ids = tokenizer(example.answer, add_special_tokens=False)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    spelled = sum(bool(re.fullmatch("<0x[0-9A-F]{2}>", token)) for token in tokens)
    if spelled > len(tokens) / 4 or tokenizer.unk_token_id in ids:
        what = f"{spelled} of the suffix's {len(tokens)} tokens are single bytes: its words are not in the vocabulary"
        problems.append(Problem(example.where, f"{what} and will be learned slowly", False))
    if len(ids) + 1 > max_answer:
        problems.append(
            Problem(
                example.where, f"the suffix has {len(ids) + 1} tokens, <eos> included, expected at most {max_answer}"
            )
        )


def check_prompts_that_differ_by_a_space(examples: list[Example], problems: list[Problem]) -> None:
    """To the model `caption en` and `caption en ` are two prompts, and it learns each from a part of the examples."""
    first: dict[str, Example] = {}
    told = set()
    for example in examples:
        other = first.setdefault(" ".join(example.prompt.lower().split()), example)
        if other.prompt != example.prompt and example.prompt not in told:
            told.add(example.prompt)
            pair = f"{example.prompt!r} and that of {other.where}, {other.prompt!r},"
            problems.append(Problem(example.where, f"the prefix {pair} differ by space or case alone"))


def check_pictures_in_two_splits(found: Examples, contents: dict, problems: list[Problem]) -> None:
    """A model that has learned a picture by heart looks good on it."""
    trained: dict[str, Example] = {}
    for example in found.splits["train"]:
        trained.setdefault(contents[example.image], example)
    told = set()
    for split in ("valid", "test"):
        for example in found.splits[split]:
            content = contents[example.image]
            if content is not None and content in trained and content not in told:
                told.add(content)
                what = f"the picture {example.image.name} is that of {trained[content].where}, which is trained on"
                problems.append(Problem(example.where, what))


def check_order_of_coordinates(examples: list[Example], problems: list[Problem], least: int = 6) -> None:
    """PaliGemma writes y before x. Are the boxes on something when read in that order, or in the other?

    A box on an object has other colours inside than around it. Where that contrast is larger in the other order
    for three of four boxes that are not symmetric, x and y were probably changed over. A guess, so only a warning.
    """
    better, first = [], None
    for example in examples:
        boxes = re.findall(r"(?:<loc[0-9]{4}>){4}", example.answer)
        if not boxes or len(better) >= 60:
            continue
        try:
            picture = np.asarray(example.picture(), dtype=np.float32)
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        for tokens in boxes:
            try:
                y1, x1, y2, x2 = tokens_to_box(tokens)
            except ValueError:
                continue
            if max(abs(y1 - x1), abs(y2 - x2)) > 0.1 and y1 < y2 and x1 < x2:
                first = first or example
                better.append(contrast(picture, (x1, y1, x2, y2)) > contrast(picture, (y1, x1, y2, x2)))
    if len(better) >= least and np.mean(better) >= 0.75:
        what = (
            f"x and y may be changed over: of {len(better)} boxes {sum(better)} lie better on their pictures when read "
            "x1 y1 x2 y2; PaliGemma's order is y1 x1 y2 x2"
        )
        problems.append(Problem(first.where, what, False))


def contrast(picture: np.ndarray, box: tuple[float, float, float, float]) -> float:
    """How different the colours inside a box (y1, x1, y2, x2) of fractions are from those around it."""
    height, width = picture.shape[:2]
    y1, x1, y2, x2 = box
    inside = np.zeros((height, width), dtype=bool)
    around = np.zeros((height, width), dtype=bool)
    dy, dx = 0.15 * (y2 - y1), 0.15 * (x2 - x1)
    for mask, grow in ((inside, 0.0), (around, 1.0)):
        top, left = max(y1 - grow * dy, 0), max(x1 - grow * dx, 0)
        bottom, right = y2 + grow * dy, x2 + grow * dx
        mask[int(top * height) : round(bottom * height), int(left * width) : round(right * width)] = True
    around &= ~inside
    if not inside.any() or not around.any():
        return 0.0
    return float(np.abs(picture[inside].mean(axis=0) - picture[around].mean(axis=0)).sum())
