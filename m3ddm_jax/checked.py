"""Plain values from files and flags, checked against the types of a dataclass's fields."""

import math
import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin

_LONGEST = 64  # items of a sequence
MOST = 1 << 20
"""What a whole number is at most, where nothing else is said."""


def accepted_instead(kind: Any, value: Any, least: int = 1, most: int = MOST) -> str | None:
    """What a field accepts, in words, where a value is none of it; None where it is.

    kind: bool, int, float or str, a Literal, Sequence or tuple of them, or one of them or None. Any other kind accepts
    everything. least, most: of whole numbers. Numbers are finite.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        found = [accepted_instead(part, value, least, most) for part in parts if part is not types.NoneType]
        fits = None in found or (value is None and types.NoneType in parts)
        return None if fits else " or ".join([*found, *(["null"] if types.NoneType in parts else [])])
    if origin is Literal:
        return None if any(type(value) is type(part) and value == part for part in parts) else _choice(parts)
    if origin in (Sequence, tuple):
        return _sequence(parts, value, least, most)
    fits, accepted = {
        bool: (isinstance(value, bool), "true or false"),
        int: (type(value) is int and least <= value <= most, _whole(least, most)),
        float: (type(value) in (int, float) and math.isfinite(value), "a number"),
        str: (isinstance(value, str), "text"),
    }.get(kind, (True, ""))
    return None if fits else accepted


def _whole(least: int, most: int) -> str:
    if most < MOST:
        return f"a whole number from {least} to {most}"
    return "a whole number above 0" if least == 1 else f"a whole number, {least} or more"


def _choice(parts: Sequence[Any]) -> str:
    return f"one of {', '.join(map(str, parts))}"


def _sequence(parts: tuple[Any, ...], value: Any, least: int, most: int) -> str | None:
    """As `accepted_instead`, of Sequence[kind], tuple[kind, ...] and tuple[kind, kind]."""
    has_length = len(parts) > 1 and parts[1] is not Ellipsis
    kinds = parts if has_length else parts[:1] * (len(value) if isinstance(value, list | tuple) else 1)
    items = value if isinstance(value, list | tuple) and 0 < len(value) <= _LONGEST else [None] * len(kinds)
    if len(items) == len(kinds):
        found = [accepted_instead(kind, item, least, most) for kind, item in zip(kinds, items, strict=True)]
        if not any(found):
            return None
    of = accepted_instead(kinds[0], object(), least, most)
    return f"a list of {len(parts) if has_length else f'1 to {_LONGEST}'}, each {of}"
