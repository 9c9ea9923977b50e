"""Small checks that the configurations share."""

from dataclasses import fields


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


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}")


def check_positive(config, *names: str) -> None:
    """Raise ValueError for the first of the named fields that is not a positive whole number."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}, expected a positive whole number")
