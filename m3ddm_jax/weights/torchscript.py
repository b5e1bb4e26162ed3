"""The tensors of a TorchScript archive, read without torch and without running the code that is in it."""

import math
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from m3ddm_jax.files.opening import check_expansion
from m3ddm_jax.weights.numpy_pickle import Function, Refused

_MAX_DEPTH = 64
_MAX_TENSORS = 100_000
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Object:
    """Stands for an instance of a scripted class: its attributes by name."""

    attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise Refused("an object whose state only its own code restores")
        self.attributes = state


class Storage:
    """Stands for a kind of storage: a dtype."""

    def __init__(self, name: str):
        self.dtype = np.dtype(STORAGES[name])


def strided(values: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> np.ndarray:
    """What torch._utils._rebuild_tensor_v2 does, with bounds."""
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(number) is int and number >= 0 for number in numbers):
        raise Refused(f"a tensor of shape {shape}, strides {strides}, offset {offset}")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    count = math.prod(shape)
    if count and (last >= values.size or count > values.size):
        raise Refused(f"a tensor of shape {shape} in {values.size} values")
    steps = [stride * values.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)


def _first(value: Any, *_: Any) -> Any:
    """What torch.jit._pickle's functions do: they say the type of a value."""
    return value


_TYPED = ("restore_type_tag", "build_intlist", "build_boollist", "build_doublelist", "build_tensorlist")
_FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor_v2"): Function(strided),
    ("collections", "OrderedDict"): dict,
    **{("torch.jit._pickle", name): Function(_first) for name in _TYPED},
}


class _Unpickler(pickle.Unpickler):
    """Resolves names to what this module stands in for them; it imports nothing."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(f"{root}data.pkl"))
        self._archive, self._root, self._read = archive, root, {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type(name, (_Object,), {})
        if module == "torch" and name in STORAGES:
            return Storage(name)
        if (module, name) in _FUNCTIONS:
            return _FUNCTIONS[module, name]
        raise Refused(f"{module}.{name}, tensors in scripted modules are accepted")

    def persistent_load(self, pid: Any) -> np.ndarray:
        if not (isinstance(pid, tuple) and len(pid) == 5 and isinstance(pid[1], Storage) and isinstance(pid[2], str)):
            raise Refused(f"the storage {pid!r:.100}")
        _, kind, key, _, count = pid
        if key not in self._read:
            self._read[key] = self._archive.read(f"{self._root}data/{key}")
        return np.frombuffer(self._read[key], kind.dtype, count)


def is_torchscript(path: Path) -> bool:
    """Whether a file is such an archive; both kinds of PyTorch files are zip archives, only these hold constants.

    One whose directory is damaged is none: whatever reads it reports that.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _root(archive) is not None
    except (zipfile.BadZipFile, NotImplementedError):
        return False


def read_torchscript(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Parameters and buffers by name, read-only, in the dtype that they are stored in.

    Nothing of the archive is run, so that a module whose state its own code restores (`__setstate__`) is rejected.
    Raises ValueError for a damaged archive, and for one that holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_expansion(archive)
            content = _Unpickler(archive, _root(archive)).load()
            return dict(_named_tensors(content, (), _MAX_DEPTH, [0]))
    except Refused as error:
        raise ValueError(f"{path} is not loaded: it holds {error}") from None
    except Exception as error:  # a damaged pickle raises what its bytes lead to
        raise ValueError(f"{path} cannot be read: {type(error).__name__}, {error}") from None


def _root(archive: zipfile.ZipFile) -> str | None:
    names = [name for name in archive.namelist() if name.endswith("/constants.pkl")]
    return names[0].removesuffix("constants.pkl") if names else None


def _named_tensors(value: Any, path: tuple[str, ...], depth: int, seen: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    seen[0] += 1
    if depth == 0 or seen[0] > _MAX_TENSORS:
        raise Refused(f"more than {_MAX_TENSORS} values or {_MAX_DEPTH} levels of modules")
    if isinstance(value, np.ndarray):
        yield ".".join(path), value
    elif isinstance(value, _Object):
        for name, attribute in value.attributes.items():
            yield from _named_tensors(attribute, (*path, str(name)), depth - 1, seen)
