"""How the arrays of a training state lie on a mesh: rules on path and shape, outside the models."""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from m3ddm_jax.parallel.constrain import is_wide

# What training keeps once a parameter, and what is therefore worth splitting, is in fields with names that end so
# (ema_params, discriminator_opt_state); all else is small and replicated.
_SPLIT = ("params", "opt_state")
# Below this many elements a gather costs more than the memory that splitting saves.
_MIN_SIZE = 4096
# Kernels that `tensor` splits in levels that are wide: the axis that is split, and the one that is as wide as the
# level. What one splits by columns the next takes by rows, so that sums between devices come once a pair: queries, keys
# and values before the output, the two halves of a pseudo-3D convolution. The feed-forward's first kernel holds value
# and gate behind one another: it is kept by rows, and split by columns where it is used.
_TENSOR = (
    (re.compile(r"(/to_[qkv]|/spatial_conv)/kernel$"), -1, -1),
    (re.compile(r"(/to_out_0|/net_2|/temporal_conv)/kernel$"), -2, -1),
    (re.compile(r"/net_0_proj/kernel$"), -2, -2),
)


def partition_spec(path: str, shape: tuple[int, ...], fsdp: int, tensor: int = 1) -> P:
    """Which axes of an array are split: over tensor devices as the kernels of wide levels are, and over fsdp devices
    the longest other axis that divides, the last of equals; none if small.

    path: where it stands in the state, joined by '/'.
    """
    if math.prod(shape) < _MIN_SIZE or not path.split("/")[0].endswith(_SPLIT):
        return P()
    spec = [None] * len(shape)
    for pattern, axis, width in _TENSOR if tensor > 1 else ():
        if pattern.search(path) and is_wide(shape[width]) and shape[axis] % tensor == 0:
            spec[axis] = "tensor"
    free = [(length, axis) for axis, length in enumerate(shape) if length % fsdp == 0 and spec[axis] is None]
    if fsdp > 1 and free:
        _, axis = max(free)
        spec[axis] = "fsdp"
    while spec and spec[-1] is None:
        spec.pop()
    return P(*spec)


def state_shardings(shapes: Any, mesh: Mesh) -> Any:
    """The sharding of every array of a state, from its shapes (`jax.eval_shape`)."""

    def sharding(path, leaf) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, partition_spec(name, leaf.shape, mesh.shape["fsdp"], mesh.shape["tensor"]))

    return jax.tree_util.tree_map_with_path(sharding, shapes)
