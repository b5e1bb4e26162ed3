"""Which videos are held out from training: whole videos, by the hash of their names."""

import hashlib
from collections.abc import Iterable, Sequence

TRAIN, VALIDATION, ALL = SPLITS = ("train", "validation", "all")
HELD_OUT_SHARE = 0.02


def is_held_out(name: str) -> bool:
    """Whether a video of that name is one of the HELD_OUT_SHARE that validation has."""
    return _place(name) < HELD_OUT_SHARE


def by_hash(names: Iterable[str]) -> list[str]:
    """Names in the order in which they are held out: those that are come first."""
    return sorted(names, key=lambda name: (_place(name), name))


def names_of_split(names: Sequence[str], split: str) -> list[str]:
    """The names of a split, in their order: HELD_OUT_SHARE of several are held out, at least one; a single one is not.

    Raises ValueError for an unknown split.
    """
    check_split_name(split)
    first = by_hash(names)[:1] if len(names) > 1 else []
    held_out = {name for name in names if is_held_out(name)} | set(first) if first else set()
    return [name for name in names if split == ALL or (name in held_out) == (split == VALIDATION)]


def part_of(name: str, parts: int) -> int:
    """Returns which of `parts` parts of a folder a video belongs to; independent of its split."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[8:16]) % parts


def check_split_name(split: str) -> None:
    """Raises ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: one of {', '.join(SPLITS)} is accepted")


def are_apart(split: str, other: str) -> bool:
    """Whether two splits of the same videos have no video in common."""
    return {split, other} == {TRAIN, VALIDATION}


def _place(name: str) -> float:
    """A number in [0, 1) for a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
