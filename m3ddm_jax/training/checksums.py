"""Checksums of a checkpoint's files, so that a bit that flipped on a disk is found before training goes on from it."""

import concurrent.futures
import json
import mmap
import zlib
from pathlib import Path

from m3ddm_jax.files.opening import read_json
from m3ddm_jax.files.writing import write_file

_NAME, _KIND = "checksums.json", "adler32"
_THREADS = 4


def write_checksums(folder: Path) -> None:
    """Write checksums.json into a folder: of each file of the folders in it, its size and Adler-32, which misses no
    single flip."""
    write_file(folder / _NAME, json.dumps({_KIND: _checksums(folder, sorted(_files(folder)))}))


def find_damage(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """Describe the first difference between a folder's files and their checksums; None where there is none.

    part, parts: index of the part of the files that is checked, and the number of parts. Raises FileNotFoundError where
    the folder has no checksums.
    """
    try:
        expected = read_json(folder / _NAME)
    except ValueError as error:
        return str(error)
    expected = expected.get(_KIND) if isinstance(expected, dict) else None
    if not isinstance(expected, dict):
        return f"{_NAME} holds no {_KIND} checksums"
    if missing := sorted(expected.keys() - _files(folder)):
        return f"{missing[0]} is missing"
    found = _checksums(folder, sorted(expected)[part::parts])
    return next((f"{name} has changed since it was saved" for name in found if found[name] != expected[name]), None)


def _files(folder: Path) -> set[str]:
    """Files of the folders in a folder: Orbax still writes the files next to them when it gives it its name."""
    return {path.relative_to(folder).as_posix() for path in folder.glob("*/**/*") if path.is_file()}


def _checksums(folder: Path, names: list[str]) -> dict[str, list[int]]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _checksum(folder / name), names), strict=True))


def _checksum(path: Path) -> list[int]:
    size = path.stat().st_size
    if not size:  # nothing can be mapped
        return [0, 0]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return [size, zlib.adler32(content)]
