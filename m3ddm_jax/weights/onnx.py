"""The initializers and nodes of an ONNX file, read from protobuf's wire format without onnx."""

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from m3ddm_jax.files.opening import check_regular

_DTYPES = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
}
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types
# Numbers of the fields that are read: of ModelProto, GraphProto, NodeProto, TensorProto.
_GRAPH = 7
_NODE, _INITIALIZER = 1, 5
_INPUT, _OUTPUT, _OP_TYPE = 1, 2, 4
_DIMS, _DATA_TYPE, _FLOAT_DATA, _NAME, _RAW_DATA = 1, 2, 4, 8, 9


@dataclasses.dataclass(frozen=True)
class Node:
    """An operation, and the names of what goes in and comes out."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_onnx(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], list[Node]]:
    """(initializers by name, nodes in the graph's order) of an ONNX file; nothing of it is run.

    Raises ValueError for a file that is missing, cut off or no ONNX file.
    """
    try:
        check_regular(path)
        graphs = [value for number, value in _fields(memoryview(Path(path).read_bytes())) if number == _GRAPH]
        if len(graphs) != 1 or isinstance(graphs[0], int):
            raise ValueError("it holds no graph")
        fields = list(_fields(graphs[0]))
        tensors = dict(_tensor(value) for number, value in fields if number == _INITIALIZER)
        return tensors, [_node(value) for number, value in fields if number == _NODE]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as ONNX: {error}") from None


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of every field of a message."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == _LENGTH:
            length, place = _varint(data, place)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"no field begins at byte {place}")
        if place + length > len(data):
            raise ValueError("it is cut off")
        yield number, data[place : place + length]
        place += length


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ValueError("it is cut off")
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
    raise ValueError(f"no number ends at byte {place}")


def _varints(data: memoryview) -> Iterator[int]:
    place = 0
    while place < len(data):
        value, place = _varint(data, place)
        yield value


def _text(data: memoryview) -> str:
    return bytes(data).decode()


def _node(data: memoryview) -> Node:
    found: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _OP_TYPE: []}
    for number, value in _fields(data):
        if number in found:
            found[number].append(_text(value))
    return Node("".join(found[_OP_TYPE]), tuple(found[_INPUT]), tuple(found[_OUTPUT]))


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    name, kind, shape, raw, floats = "", 0, [], b"", []
    for number, value in _fields(data):
        if number == _DIMS:
            shape += [value] if isinstance(value, int) else list(_varints(value))
        elif number == _DATA_TYPE:
            kind = value
        elif number == _FLOAT_DATA:  # packed, or one by one
            floats.append(bytes(value))
        elif number == _NAME:
            name = _text(value)
        elif number == _RAW_DATA:
            raw = value
    if kind not in _DTYPES:
        raise ValueError(f"{name} has data type {kind}: {', '.join(map(str, _DTYPES))} are accepted")
    values = np.frombuffer(b"".join(floats) if floats else raw, np.dtype(_DTYPES[kind]).newbyteorder("<"))
    if values.size != math.prod(shape):
        raise ValueError(f"{name} has shape {shape} in {values.size} values")
    return name, values.reshape(shape)
