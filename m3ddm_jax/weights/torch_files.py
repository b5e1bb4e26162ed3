"""Weights files that PyTorch programs write, read without running what is in them."""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from m3ddm_jax.weights.tensors import read_safetensors

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".tar")
SUFFIXES = (".safetensors", *PICKLES)
_WRAPPERS = ("state_dict", "model", "model_state_dict")


def read_state_dict(path: str | os.PathLike) -> Mapping[str, np.ndarray]:
    """Tensors by their PyTorch names, in the dtype that they are stored in, mapped into memory where the file allows.

    path: .safetensors; or .bin, .ckpt, .pt, .pth or .tar, which need torch (a `state_dict`, `model` or
    `model_state_dict` around the tensors is taken off).
    Raises ValueError for a file that is missing, broken, of another kind, or a pickle that wants to run code.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is no weights file: {', '.join(SUFFIXES)} are accepted")
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    return _read_pickle(path) if path.suffix in PICKLES else read_safetensors(path)


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    content = _load_pickle(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    entries = content.items() if isinstance(content, Mapping) else ()
    tensors = {name: value for name, value in entries if isinstance(name, str) and hasattr(value, "detach")}
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name")
    try:
        return {name: _numpy(tensor) for name, tensor in tensors.items()}
    except TypeError as error:
        raise ValueError(f"{path} holds what numpy has no type for: {error}") from None


def _load_pickle(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{path} is a pickle, which only torch reads: pip install torch, or use a .safetensors file"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch would not have written: then they do not load
            # Files of old versions are no zip archives, and cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"more than tensors ({wanted[1]})" if wanted else "something else than tensors"
        raise ValueError(f"{path} is not loaded: it holds {what}, and unpickling that may run code") from None
    except Exception as error:  # a broken pickle raises whatever its bytes lead to
        reason = str(error).partition(". ")[0] or "it is cut off"
        raise ValueError(f"{path} cannot be read: {type(error).__name__}, {reason}") from None


def _numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # numpy knows it by way of jax alone
        return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.numpy()
