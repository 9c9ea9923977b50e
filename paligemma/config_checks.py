"""Checks of configurations and arguments: each names the field, what it holds and what was expected."""

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from numbers import Integral, Real


def known_fields(cls, values: dict, leave_out: tuple[str, ...] = ()) -> dict:
    """The entries of a published config.json that the dataclass `cls` has a field for.

    Published files carry many keys that say nothing about the architecture. A "null" means "none" where the field may
    be None (a soft cap that is switched off), and "the usual value" elsewhere.
    """
    types = {field.name: field.type for field in fields(cls) if field.name not in ("attention", *leave_out)}
    return {
        name: value
        for name, value in values.items()
        if name in types and (value is not None or isinstance(None, types[name]))
    }


def check_choice(name: str, value, choices: tuple) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices or isinstance(value, bool) != isinstance(choices[0], bool):  # 0 == False
        raise ValueError(f"{name} is {reprlib.repr(value)}, expected {' or '.join(map(repr, choices))}")


def is_whole(value) -> bool:
    """Whether `value` is a whole number, Python's or numpy's; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value) -> bool:
    """Whether `value` is a real number, Python's or numpy's; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_whole(config, *names: str, least: int = 1) -> None:
    """Raise ValueError for the first of the named fields that is not a whole number of `least` or more."""
    for name in names:
        check_count(name, getattr(config, name), least)


def check_count(name: str, value, least: int = 1) -> None:
    """Raise ValueError unless `value` is a whole number of `least` or more."""
    if not is_whole(value) or value < least:
        raise ValueError(f"{name} is {reprlib.repr(value)}, expected a whole number of {least} or more")


def check_number(config, name: str, low: float, high: float) -> None:
    """Raise ValueError unless the field is a number from `low` to `high` (NaN is refused, too)."""
    value = getattr(config, name)
    if not is_number(value) or not low <= value <= high:
        raise ValueError(f"{name} is {reprlib.repr(value)}, expected a number from {low:g} to {high:g}")


def check_object(name: str, value) -> None:
    """Raise ValueError unless `value`, a part of a JSON file, is an object with keys."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {reprlib.repr(value)}, expected an object with keys")


@contextmanager
def inside(place: str) -> Iterator[None]:
    """Put `place` (a file, a section of it) in front of the message of a ValueError that is raised inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
