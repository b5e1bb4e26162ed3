"""The safetensors format (8-byte length, JSON header, raw bytes): mapped when read, written one tensor at a time.

The library of that name copies every tensor that it reads: 0.5 s and 382 MB of memory for a file of 400 MB, of which
views take nothing before they are used.
"""

import itertools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from m3ddm_jax.files.limits import LIFT, limits
from m3ddm_jax.files.opening import check_regular
from m3ddm_jax.types import Array

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_LENGTH_BYTES = 8

_Entry = tuple[np.dtype, tuple[int, ...], int, int]
"""dtype, shape, first byte and end of a tensor."""


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Tensors by name: read-only views of the file mapped into memory, so that nothing is read before it is used.

    Raises ValueError where the file is missing, cut off or broken.
    """
    try:
        check_regular(path)
        data = np.memmap(path, np.uint8, mode="r")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    start = _LENGTH_BYTES + int.from_bytes(bytes(data[:_LENGTH_BYTES]), "little")
    try:
        header = _read_header(data, start)
        entries = {name: _entry(name, entry, start) for name, entry in header.items()}
        _check_extents(list(entries.values()), len(data))
        data = data.view(np.ndarray)
        return {name: data[a:b].view(dtype).reshape(shape) for name, (dtype, shape, a, b) in entries.items()}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None


def _read_header(data: np.ndarray, start: int) -> dict[str, Any]:
    if start > len(data):
        raise ValueError(f"a header of {start} bytes, a file of {len(data)}")
    bound = limits()
    if start > bound.header_bytes:
        raise ValueError(f"a header of {start:,} bytes: {bound.header_bytes:,} are accepted ({LIFT}=1 lifts that)")
    header = json.loads(bytes(data[_LENGTH_BYTES:start]))
    header.pop("__metadata__", None)
    if len(header) > bound.tensors:
        raise ValueError(f"{len(header):,} tensors: {bound.tensors:,} are accepted ({LIFT}=1 lifts that)")
    return header


def _entry(name: str, entry: Mapping[str, Any], start: int) -> _Entry:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)) or end < begin:
        raise ValueError(f"{name} has shape {shape} at {begin} to {end}")
    dtype = _DTYPES[entry["dtype"]]
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{name} has shape {shape} in {end - begin} bytes")
    return dtype, shape, start + begin, start + end


def _check_extents(entries: list[_Entry], size: int) -> None:
    """Raise ValueError where tensors overlap, as the format forbids, or lie behind the end of the file."""
    extents = sorted((begin, end) for _, _, begin, end in entries if end > begin)
    for (_, before), (begin, _) in itertools.pairwise(extents):
        if begin < before:
            raise ValueError("tensors overlap")
    if extents and extents[-1][1] > size:
        raise ValueError(f"it is cut off after {size} of {extents[-1][1]} bytes")


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, Array]) -> None:
    """Write arrays in the dtype that they have; one at a time is copied into memory.

    The order, larger items first and then by name, keeps every tensor aligned and the same tensors the same file.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, end = {}, 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        shape, code = list(tensor.shape), _CODES[np.dtype(tensor.dtype)]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for name in names:
            # The format is raw memory in C order; bfloat16 has no buffer of its own, bytes have.
            file.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8))
