"""The tensors of a zip archive of `torch.save`, read without torch; what else is pickled in it stays inert."""

import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from m3ddm_jax.files.opening import check_expansion
from m3ddm_jax.weights.numpy_pickle import Function, Refused
from m3ddm_jax.weights.torchscript import STORAGES, Storage, strided

_WRAPPER = "state_dict"


class _Inert:
    """Stands for an object of an unknown class: hashable, and nothing that a pickle does to it does anything."""

    def __new__(cls, *_: Any, **__: Any):
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self

    def __setitem__(self, *_: Any) -> None:
        pass

    __setstate__ = append = extend = add = update = __setitem__


class _Dict(dict):
    """Stands for OrderedDict, whose attributes are of no use."""

    def __setstate__(self, _: Any) -> None:
        pass


class _Tensor:
    """A tensor whose storage has not been read: its arguments of torch._utils._rebuild_tensor_v2."""

    __slots__ = ("arguments",)

    def __init__(self, *arguments: Any):
        self.arguments = arguments


def _parameter(tensor: Any, *_: Any) -> Any:
    """What torch._utils._rebuild_parameter does."""
    return tensor


_FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor_v2"): Function(_Tensor),
    ("torch._utils", "_rebuild_parameter"): Function(_parameter),
    ("collections", "OrderedDict"): _Dict,
}


class _Unpickler(pickle.Unpickler):
    """Resolves every name to what this module stands in for it; it imports nothing and reads no storage."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _FUNCTIONS:
            return _FUNCTIONS[module, name]
        if module == "torch" and name in STORAGES:
            return Storage(name)
        return type("_Unknown", (_Inert,), {})

    def persistent_load(self, pid: Any) -> Any:
        return pid


def read_inert(path: str | os.PathLike, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """Tensors by name of a file that torch.save wrote, whatever objects are pickled next to them; none of these lives.

    A `state_dict` around the tensors is taken off. Read-only arrays in the dtype that they are stored in.
    wanted: the names whose storages are read.
    Raises ValueError for a damaged archive, one without tensors by name, and one older than the zip format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_expansion(archive)
            roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise Refused(f"{len(roots)} of data.pkl, one is accepted")
            content = _Unpickler(archive.open(f"{roots[0]}data.pkl")).load()
            if isinstance(content, Mapping) and isinstance(content.get(_WRAPPER), Mapping):
                content = content[_WRAPPER]
            tensors = {
                name: value
                for name, value in (content.items() if isinstance(content, Mapping) else ())
                if isinstance(name, str) and isinstance(value, _Tensor)
            }
            if not tensors:
                raise Refused("no tensors by name")
            return {name: _read(archive, roots[0], tensor) for name, tensor in tensors.items() if wanted(name)}
    except Refused as error:
        raise ValueError(f"{path} is not loaded: it holds {error}") from None
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} cannot be read, is it cut off, or older than PyTorch 1.6? ({error})") from None
    except Exception as error:  # a damaged pickle raises what its bytes lead to
        raise ValueError(f"{path} cannot be read: {type(error).__name__}, {error}") from None


def _read(archive: zipfile.ZipFile, root: str, tensor: _Tensor) -> np.ndarray:
    pid, *place = tensor.arguments
    if not (isinstance(pid, tuple) and len(pid) == 5 and isinstance(pid[1], Storage) and isinstance(pid[2], str)):
        raise Refused(f"the storage {pid!r:.100}")
    _, kind, key, _, count = pid
    return strided(np.frombuffer(archive.read(f"{root}data/{key}"), kind.dtype, count), *place)
