"""Whole files of every kind that the project reads, and seeded ways to damage them."""

import json
import pathlib
import random
import re

_VALUES = ["0", "-1", "1e308", "1e999", "NaN", "[]", "{}", "null", '"x"', "true", "1" * 30, "[" * 9000, "0.5", "65536"]


def mutate(data: bytes, rng: random.Random, is_text: bool) -> bytes:
    """The bytes of a file with one to three faults."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        data = rng.choice([*_BYTES, *(_TEXT if is_text else [])])(data, rng)
    return data


def mutate_file(root: pathlib.Path, rng: random.Random) -> pathlib.Path:
    """Damage one file below a folder, large ones more often; returns which."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = rng.choices(files, [1 + path.stat().st_size ** 0.5 for path in files])[0]
    path.write_bytes(mutate(path.read_bytes(), rng, path.suffix in (".json", ".jsonl")))
    return path


def _place(data: bytes, rng: random.Random, most: int = 512) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.randint(1, most))


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    start, end = _place(data, rng)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def _blank(data: bytes, rng: random.Random) -> bytes:
    start, end = _place(data, rng, 4096)
    return data[:start] + bytes(end - start) + data[end:]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _drop(data: bytes, rng: random.Random) -> bytes:
    start, end = _place(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start, end = _place(data, rng)
    return data[:end] + data[start:end] * rng.randint(1, 9) + data[end:]


def _extremes(data: bytes, rng: random.Random) -> bytes:
    """A length or a count is the largest or the smallest there is."""
    start = rng.randrange(len(data) + 1)
    width = rng.choice([2, 4, 8])
    return data[:start] + rng.choice([b"\xff", b"\x7f", b"\x00"]) * width + data[start + width :]


def _replace_number(data: bytes, rng: random.Random) -> bytes:
    places = list(re.finditer(rb'-?\d+\.?\d*|"[^"]*"|true|false|null', data))
    if not places:
        return data
    place = rng.choice(places)
    return data[: place.start()] + rng.choice(_VALUES).encode() + data[place.end() :]


def _without_key(data: bytes, rng: random.Random) -> bytes:
    try:
        values = json.loads(data)
        del values[rng.choice(sorted(values))]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return data
    return json.dumps(values).encode()


_BYTES = [_flip, _overwrite, _blank, _cut, _drop, _repeat, _extremes]
_TEXT = [_replace_number, _replace_number, _replace_number, _without_key]
