"""Prompts and answers about sticker scenes, in PaliGemma's prompt language.

caption en                                    a dog left of a banana, an ant
caption ko                                    개가 바나나 왼쪽에 있다, 개미
answer en what is this?                       dog                    (pictures of one sticker)
answer en what is left of the banana?         dog
answer en which animal is there?              dog
answer en how many stickers show an animal?   2
answer en is there a pizza?                   no
answer en where is the dog?                   left
answer en where is the dog relative to the banana?    left of
detect dog ; banana                           <loc....> x 4 dog ; <loc....> x 4 banana
segment dog                                   <loc....> x 4 <seg...> x 16 dog
"""

import re
from collections.abc import Callable

from ..locations import box_to_tokens
from ..world.scenes import (
    GRID,
    KOREAN,
    RELATIONS,
    place,
    relation,
    relation_is_true,
    segmentation,
    subject_particle,
    with_article,
)
from .atlas import BY_NAME, CATEGORIES, THINGS
from .scenes import Scene, Sticker

TASKS = (
    "caption",
    "caption ko",
    "name",
    "beside",
    "which",
    "how many",
    "is there",
    "where",
    "relation",
    "detect",
    "detect pair",
    "segment",
)
_NAME_OF = {thing.phrase: thing.name for thing in THINGS}
_ENGLISH_OF = {thing.korean: thing.name for thing in THINGS}
_CLEAR = 6 / GRID  # two distances that differ by less are too close to say which is longer


def find(scene: Scene, query: str) -> list[int]:
    """Numbers of the stickers that a name, a category or the word `sticker` fits, in reading order.

    Raises ValueError for another word.
    """
    if query not in BY_NAME and query not in CATEGORIES and query != "sticker":
        raise ValueError(f"query is {query!r}, expected a name, a category or `sticker`")
    return [index for index, thing in enumerate(scene.things) if query in (thing.name, thing.category, "sticker")]


# ---------------------------------------------------------------------------------------------------- captions


def caption(scene: Scene, language: str = "en") -> str:
    """Name every sticker, two to a clause with how they lie to one another, in reading order.

    Raises ValueError for a language other than `en` and `ko`.
    """
    if language not in ("en", "ko"):
        raise ValueError(f"language is {language!r}, expected 'en' or 'ko'")
    clauses = []
    for first in range(0, len(scene.things), 2):
        pair = scene.things[first : first + 2]
        names = [thing.phrase if language == "en" else thing.korean for thing in pair]
        if len(pair) == 1:
            clauses.append(names[0])
        elif language == "en":
            clauses.append(f"{names[0]} {relation(*pair)} {names[1]}")
        else:
            clauses.append(f"{names[0]}{subject_particle(names[0])} {names[1]} {KOREAN[relation(*pair)]} 있다")
    return ", ".join(clauses)


def parse_caption(text: str, language: str = "en") -> list[tuple[str, str | None, str | None]]:
    """Read a caption back as (name, relation, name) clauses in English words; the last two are None for one alone.

    Raises ValueError where the text is not a caption of this world.
    """

    def name(text: str) -> str:
        found = (_ENGLISH_OF if language == "ko" else _NAME_OF).get(text)
        if found is None:
            raise ValueError(f"{text!r} is no name of this world, expected one of things.tsv")
        return found

    words = {KOREAN[word]: word for word in RELATIONS}
    clauses = []
    for clause in text.split(", "):
        if language == "ko":
            pieces = clause.split(" ")
            if len(pieces) == 4 and pieces[2] in words and pieces[3] == "있다":
                clauses.append((name(pieces[0][:-1]), words[pieces[2]], name(pieces[1])))  # without its particle
            else:
                clauses.append((name(clause), None, None))
            continue
        match = re.fullmatch(f"(.+) ({'|'.join(RELATIONS)}) (.+)", clause)
        clauses.append((name(match[1]), match[2], name(match[3])) if match else (name(clause), None, None))
    return clauses


def caption_is_right(scene: Scene, text: str, language: str = "en") -> tuple[bool, bool]:
    """Whether a caption names every sticker exactly once and nothing else; and whether its relations hold as well."""
    try:
        clauses = parse_caption(text, language)
    except ValueError:
        return False, False
    named = [part for first, _, second in clauses for part in (first, second) if part is not None]
    if sorted(named) != sorted(thing.name for thing in scene.things):
        return False, False
    for first, word, second in clauses:
        a, b = ([thing for thing in scene.things if thing.name == part] for part in (first, second))
        if word and not any(relation_is_true(s, word, t) for s in a for t in b if s is not t):
            return True, False
    return True, True


# --------------------------------------------------------------------------------------------------- questions


def _choose(rng, options):
    return options[rng.integers(len(options))]


def _phrase(query: str) -> str:
    """A name or a category with its article, if it takes one."""
    return BY_NAME[query].phrase if query in BY_NAME else with_article(query)


def _only(scene: Scene, query: str) -> bool:
    return len(find(scene, query)) == 1


def _relation_is_clear(a: Sticker, b: Sticker) -> bool:
    dy, dx = (abs(p - q) for p, q in zip(a.centre, b.centre, strict=True))
    return abs(dy - dx) >= _CLEAR


def _absent(rng, scene: Scene) -> str:
    """The name of something that is not there, half of the time of a category that is."""
    category = _choose(rng, scene.things).category if rng.random() < 0.5 else None
    there = {thing.name for thing in scene.things}
    return _choose(rng, [t.name for t in THINGS if t.name not in there and category in (None, t.category)])


def ask(
    scene: Scene, task: str, rng, codes: Callable[[Sticker], list[int] | None] | None = None
) -> tuple[str, str] | None:
    """One (prompt, answer) of this task about the scene, or None where nothing unambiguous can be asked.

    `rng` is a numpy Generator. `codes(sticker)` gives the 16 mask codes of a sticker, or None for one that is not to
    be asked about; only `segment` needs it. Raises ValueError for a task that is not in TASKS.
    """
    thing = _choose(rng, scene.things)
    if task == "caption":
        return "caption en", caption(scene)
    if task == "caption ko":
        return "caption ko", caption(scene, "ko")
    if task == "name":
        return ("answer en what is this?", thing.name) if len(scene.things) == 1 else None
    if task == "beside":
        word = _choose(rng, RELATIONS)
        there = [t for t in scene.things if t is not thing and relation(t, thing) == word]
        if len(there) != 1 or not _only(scene, thing.name):
            return None
        if not all(_relation_is_clear(t, thing) for t in scene.things if t is not thing):
            return None
        return f"answer en what is {word} the {thing.name}?", there[0].name
    if task == "which":
        is_clear = _only(scene, thing.category)
        return (f"answer en which {thing.category} is there?", thing.name) if is_clear else None
    if task == "how many":
        query = _choose(rng, ("sticker", thing.name, thing.category, _choose(rng, CATEGORIES), _absent(rng, scene)))
        count = str(len(find(scene, query)))
        if query == "sticker":
            return "answer en how many stickers are there?", count
        return f"answer en how many stickers show {_phrase(query)}?", count
    if task == "is there":
        present = bool(rng.random() < 0.5)
        name = thing.name if present else _absent(rng, scene)
        return f"answer en is there {_phrase(name)}?", "yes" if present else "no"
    if task == "where":
        answer = place(thing)
        return (f"answer en where is the {thing.name}?", answer) if answer and _only(scene, thing.name) else None
    if task == "relation":
        other = _choose(rng, scene.things)
        if other is thing or not _only(scene, thing.name) or not _only(scene, other.name):
            return None
        if not _relation_is_clear(thing, other):
            return None
        return f"answer en where is the {thing.name} relative to the {other.name}?", relation(thing, other)
    if task == "detect":
        name = _absent(rng, scene) if rng.random() < 0.15 else thing.name
        return f"detect {name}", detection(scene, [name])
    if task == "detect pair":
        other = _choose(rng, scene.things).name if rng.random() < 0.8 else _absent(rng, scene)
        if other == thing.name:
            return None
        return f"detect {thing.name} ; {other}", detection(scene, [thing.name, other])
    if task == "segment":
        if codes is None:
            raise ValueError(
                "codes is None, expected a function from a sticker to its 16 mask codes for a 'segment' question"
            )
        options = [t for t in scene.things if _only(scene, t.name) and codes(t) is not None]
        if not options:
            return None
        thing = _choose(rng, options)
        return f"segment {thing.name}", segmentation(thing, thing.name, codes(thing))
    raise ValueError(f"task is {task!r}, expected one of {', '.join(TASKS)}")


def detection(scene: Scene, queries: list[str]) -> str:
    """The answer to `detect query ; query`: query by query, every fitting box in reading order."""
    found = [(scene.things[index], query) for query in queries for index in find(scene, query)]
    return " ; ".join(f"{box_to_tokens(thing.box)} {query}" for thing, query in found)


def sentences() -> list[str]:
    """Every word of the world in the places where it occurs, for the tokenizer to be trained on."""
    texts = ["caption en", "caption ko", "answer en what is this?", "answer en how many stickers are there?"]
    texts += ["yes", "no", "middle", "left", "right", "top", "bottom", *"01234"]
    for i, thing in enumerate(THINGS):
        other = THINGS[i - 1]
        texts += [thing.name, thing.korean, f"detect {thing.name} ; {other.name}", f"segment {thing.name}"]
        texts += [f"answer en which {thing.category} is there?", f"answer en where is the {thing.name}?"]
        texts += [f"answer en is there {thing.phrase}?"]
        texts += [f"answer en how many stickers show {_phrase(query)}?" for query in (thing.name, thing.category)]
        for word in RELATIONS:
            name = thing.korean
            texts += [
                f"answer en what is {word} the {thing.name}?",
                f"answer en where is the {thing.name} relative to the {other.name}?",
                word,
                f"{thing.phrase} {word} {other.phrase}, {THINGS[i - 2].phrase}",
                f"{name}{subject_particle(name)} {other.korean} {KOREAN[word]} 있다, {THINGS[i - 2].korean}",
            ]
    return texts
