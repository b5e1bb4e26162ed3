"""Reading what others wrote: regular files alone, and no more of them than their size justifies."""

import json
import lzma
import os
import stat
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from m3ddm_jax.files.limits import LIFT, limits


def check_regular(path: str | os.PathLike) -> None:
    """Raise ValueError where a path leads to something that is no regular file: pipes and devices block or never end.

    Raises FileNotFoundError where it leads nowhere.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise ValueError(f"{path} is {found}: a regular file is accepted")


def read_text(path: str | os.PathLike) -> str:
    """What a small text file holds. Raises ValueError for a large one, and as `check_regular`; OSError where it cannot
    be read."""
    check_regular(path)
    most, size = limits().json_bytes, os.path.getsize(path)
    if size > most:
        raise ValueError(f"it has {size:,} bytes, at most {most:,} are accepted ({LIFT}=1 lifts that)")
    return Path(path).read_text()


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds. Raises ValueError where it cannot be read, FileNotFoundError where there is none."""
    try:
        return json.loads(read_text(path))
    except FileNotFoundError:
        raise
    except RecursionError:
        raise ValueError(f"{path} cannot be read: its values are nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def read_npz(source: str | os.PathLike | BinaryIO) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by name, numbers and text alone.

    source: a path, or a file that is open. Raises ValueError where it is damaged, holds objects, or expands to far
    more than its size; FileNotFoundError where there is none.
    """
    is_path = isinstance(source, str | os.PathLike)
    what = str(source) if is_path else "the record"
    if is_path:
        check_regular(source)
    try:
        with zipfile.ZipFile(source) as archive:
            check_expansion(archive)
            return {member.filename.removesuffix(".npy"): _read_npy(archive, member) for member in archive.infolist()}
    except _DAMAGED as error:
        raise ValueError(f"{what} cannot be read: {str(error) or type(error).__name__}") from None


def check_expansion(archive: zipfile.ZipFile) -> None:
    """Raise ValueError where the members of an archive are far larger than the file that holds them."""
    bound, members = limits(), archive.infolist()
    size, stored = sum(member.file_size for member in members), archive.fp.seek(0, os.SEEK_END)
    if size > bound.expanded_bytes and size > bound.ratio * stored:
        raise ValueError(
            f"it expands from {stored:,} to {size:,} bytes: at most {bound.ratio} times are accepted ({LIFT}=1)"
        )


_DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    RuntimeError,  # of what is encrypted
    NotImplementedError,
    MemoryError,  # of a shape that no memory has room for
    OverflowError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{member.filename} goes on behind its array")
        return array
