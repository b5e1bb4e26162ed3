"""PyTorch's names and layouts of weights <-> ours; every name of a file is used exactly once."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict

from m3ddm_jax.models import registry
from m3ddm_jax.weights.store import check_names

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Counted by BatchNorm in training; nothing is computed from it.
COUNTER = "num_batches_tracked"


class Target(NamedTuple):
    """Where a weight of a file goes: our path (joined by '.') and our shape."""

    path: str
    shape: tuple[int, ...]


def torch_name(path: str) -> str:
    """PyTorch's name of our path in networks that keep its names: `params.a_0.b.kernel` is `a.0.b.weight`.

    `linear_1` and `linear_2` are names of their own there.
    """
    _, *scopes, leaf = path.split(".")
    scopes = re.sub(r"(?<!linear)_(\d+)(_?)", lambda found: f".{found[1]}{'.' * len(found[2])}", ".".join(scopes))
    return f"{scopes}.{_LEAVES[leaf]}"


def targets(module: nn.Module, name: Callable[[str], str] = torch_name) -> dict[str, Target]:
    """The weights of a registered module by their PyTorch names, which `name` makes of our paths."""
    expected = flatten_dict(registry.abstract_variables(module), sep=".")
    return {name(path): Target(path, leaf.shape) for path, leaf in expected.items()}


def take(
    source: str, tensors: Mapping[str, np.ndarray], wanted: Mapping[str, Target], remarks: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """The wanted tensors by our paths, channels last; nothing is read yet where they are views of a file.

    A kernel's taps of size 1 may be there or not: 1x1 convolutions are dense layers here, 1x3x3 ones act on frames.
    Raises ValueError as `store.check_names`, and for weights that are no floating-point numbers.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTER)}
    expected = {name: torch_shape(target.shape) for name, target in wanted.items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    for name in expected.keys() & found.keys():
        if _without_unit_taps(expected[name]) == _without_unit_taps(found[name]):
            found[name] = expected[name]
    check_names(source, found, expected, remarks)
    quantized = [name for name in wanted if not jnp.issubdtype(tensors[name].dtype, jnp.floating)]
    if quantized:
        raise ValueError(f"{source} holds {quantized[0]} as {tensors[quantized[0]].dtype}: floating point is accepted")
    return {target.path: _channels_last(tensors[name]).reshape(target.shape) for name, target in wanted.items()}


def count(tensors: Mapping[str, np.ndarray], prefix: str) -> int:
    """How many parts of a kind there are: one more than the highest number that names have for `{}` in a prefix."""
    numbered = re.compile(re.escape(prefix).replace(r"\{\}", r"(\d+)"))
    return 1 + max((int(found[1]) for found in map(numbered.match, tensors) if found), default=-1)


def size(tensors: Mapping[str, np.ndarray], name: str, axis: int = 0) -> int | None:
    """The length of a tensor's axis; None where there is no such tensor or axis."""
    shape = tensors[name].shape if name in tensors else ()
    return shape[axis] if axis < len(shape) else None


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[*taps, in, out] -> [out, in, *taps]; vectors as they are."""
    return shape if len(shape) < 2 else (shape[-1], shape[-2], *shape[:-2])


def _channels_last(tensor: np.ndarray) -> np.ndarray:
    return tensor if tensor.ndim < 2 else rearrange(tensor, "o i ... -> ... i o")


def _without_unit_taps(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:2], *(size for size in shape[2:] if size != 1))
