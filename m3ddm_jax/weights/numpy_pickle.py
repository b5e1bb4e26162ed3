"""Reads a pickle of numpy arrays without running code from it."""

import dataclasses
import io
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_CORES = ("numpy.core", "numpy._core")
_MAX_DEPTH = 16
_MAX_ARRAYS = 10_000
_SCALARS = {f"{kind}{size}" for kind in "fiu" for size in (1, 2, 4, 8)} | {"b1"}


class Refused(Exception):
    """What a pickle holds that is not accepted."""


class Function:
    """What stands for a function that a pickle names; nothing in the pickle can change it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise Refused("a function with a state")


class _DType:
    """Stands for numpy.dtype: the name and the byte order of a number."""

    def __init__(self, name: str, *_: Any):
        if name not in _SCALARS:
            raise Refused(f"an array of dtype {name!r}, numbers are accepted")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray; `value` is the array once its state was read."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, is_fortran, data = state
        if not isinstance(data, bytes | bytearray) or math.prod(shape) * kind.dtype.itemsize != len(data):
            raise Refused(f"an array of shape {shape} with other content than its size says")
        flat = np.frombuffer(data, kind.dtype)
        self.value = flat.reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    """What protocols 3 and 4 call; the state follows."""
    return _Array()


def _from_buffer(data: bytes, kind: _DType, shape: tuple[int, ...], order: str) -> _Array:
    """What protocol 5 calls."""
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", data))
    return array


_FUNCTIONS = {
    ("multiarray", "_reconstruct"): Function(_reconstruct),
    ("numeric", "_frombuffer"): Function(_from_buffer),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _DType
        package, _, last = module.rpartition(".")
        if package in _CORES and (last, name) in _FUNCTIONS:
            return _FUNCTIONS[last, name]
        raise Refused(f"{module}.{name}, only numpy arrays are accepted")


def read_numpy_pickle(data: bytes, source: str) -> dict[str, np.ndarray]:
    """Arrays of nested dicts, by their keys joined with "/"; read-only views of the pickle's own bytes.

    The unpickler resolves the names that an array needs, to classes and functions of this module. It imports nothing.
    data: of protocol 3 or later. source: what messages call the pickle.
    Raises ValueError for a damaged pickle, and for one that holds anything else than dicts of numeric arrays.
    """
    try:
        content = _Unpickler(io.BytesIO(data)).load()
        return dict(_Walk().arrays(content, (), _MAX_DEPTH))
    except Refused as error:
        raise ValueError(f"{source} is not loaded: it holds {error}") from None
    except Exception as error:  # a damaged pickle raises what its bytes lead to
        raise ValueError(f"{source} cannot be read: {type(error).__name__}, {error}") from None


@dataclasses.dataclass
class _Walk:
    """Counts what it visits, because a small pickle can hold one dict a million times."""

    visited: int = 0

    def arrays(self, content: Any, path: tuple[str, ...], depth: int) -> Iterator[tuple[str, np.ndarray]]:
        self.visited += 1
        if self.visited > _MAX_ARRAYS or depth == 0:
            raise Refused(f"more than {_MAX_ARRAYS} arrays or {_MAX_DEPTH} levels of dicts")
        if isinstance(content, _Array) and content.value is not None:
            yield "/".join(path), content.value
        elif isinstance(content, dict) and all(isinstance(key, str) for key in content):
            for key, value in content.items():
                yield from self.arrays(value, (*path, key), depth - 1)
        else:
            raise Refused(f"{type(content).__name__.strip('_')}, dicts of numpy arrays are accepted")
