"""Where outputs may go: never onto or into what is read, and only in place of what this program wrote."""

import os
from collections.abc import Iterable
from pathlib import Path

from m3ddm_jax.files.writing import resolve

MARKER = ".m3ddm_jax_output"
"""A file of this name, which readers of frames pass over, says that a folder may be replaced."""

_Named = tuple[str, str | os.PathLike | None]
_MARK = "Written by m3ddm_jax, which may replace this folder.\n"


def mark(folder: Path) -> None:
    """Mark a new folder as an output of this program."""
    (folder / MARKER).write_text(_MARK)


def check_replaceable(folder: Path) -> None:
    """Raise ValueError where a folder is there, holds something and is not marked as an output of this program."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise ValueError(
            f"{folder} holds files and has no {MARKER}, which is in folders that this program writes: "
            "name another folder, or delete this one"
        )


def check_apart(outputs: Iterable[_Named], inputs: Iterable[_Named]) -> None:
    """Raise ValueError where an output is an input, lies in one or would replace one, links of both kinds followed.

    outputs, inputs: what messages call them, and the path; None for one that is not given.
    """
    outputs = [(name, path, resolve(path)) for name, path in outputs if path is not None]
    for input_name, given in inputs:
        if given is None or not os.path.exists(given):
            continue
        source = resolve(given)
        for output_name, path, target in outputs:
            if target == source or _is_same(target, [source]):
                raise ValueError(f"the {output_name} {path} is the {input_name}")
            if source in target.parents or _is_same(target, _files(source)):
                raise ValueError(f"the {output_name} {path} lies in the {input_name} {given}")
            if target in source.parents:
                raise ValueError(f"the {output_name} {path} would replace the {input_name} {given}, which lies in it")


def _files(source: Path) -> Iterable[Path]:
    return source.iterdir() if source.is_dir() else ()


def _is_same(target: Path, others: Iterable[Path]) -> bool:
    """Whether a file is another one under a second name."""
    if not target.is_file():
        return False
    there = os.stat(target)
    if there.st_nlink == 1:
        return False
    return any(other.is_file() and os.path.samestat(there, os.stat(other)) for other in others)
