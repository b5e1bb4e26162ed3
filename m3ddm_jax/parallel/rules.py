"""How the arrays of a training state lie on a mesh: rules on path and shape, outside the models."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# What training keeps once a parameter, and what is therefore worth splitting, is in fields with names that end so
# (ema_params, discriminator_opt_state); all else is small and replicated.
_SPLIT = ("params", "opt_state")
# Below this many elements a gather costs more than the memory that splitting saves.
_MIN_SIZE = 4096


def partition_spec(path: str, shape: tuple[int, ...], fsdp: int) -> P:
    """Which axis of an array is split over fsdp devices: the longest that divides, the last of equals; none if small.

    path: where it stands in the state, joined by '/'.
    """
    size = 1
    for length in shape:
        size *= length
    if fsdp == 1 or size < _MIN_SIZE or not path.split("/")[0].endswith(_SPLIT):
        return P()
    candidates = [(length, axis) for axis, length in enumerate(shape) if length % fsdp == 0]
    if not candidates:
        return P()
    _, axis = max(candidates)
    return P(*(None,) * axis, "fsdp")


def state_shardings(shapes: Any, mesh: Mesh) -> Any:
    """The sharding of every array of a state, from its shapes (`jax.eval_shape`)."""

    def sharding(path, leaf) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, partition_spec(name, leaf.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(sharding, shapes)
