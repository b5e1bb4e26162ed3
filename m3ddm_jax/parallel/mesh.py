"""The device mesh, and how a batch lies on it."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor", "context")
BATCH_AXES = ("data", "fsdp")


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    context: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh with the axes data, fsdp, tensor, context over all devices (or those given).

    One size may be -1: the devices that the others leave. Raises ValueError where the sizes do not fill the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, tensor, context]
    written = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh {written}: sizes are 1 or more, and one of them may be -1 (the rest of the devices)")
    known = math.prod(size for size in sizes if size != -1)
    if len(devices) % known or (-1 not in sizes and known != len(devices)):
        raise ValueError(f"mesh {written} does not fill {len(devices)} device(s)")
    shape = tuple(len(devices) // known if size == -1 else size for size in sizes)
    # Auto is written out: the default has become Explicit, which convolutions do not know.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raise ValueError where a global batch does not split evenly over micro-batches and devices."""
    parts = batch_shards(mesh) * accumulate
    if batch_size < 1 or accumulate < 1 or batch_size % parts:
        raise ValueError(
            f"a batch of {batch_size} clips does not divide into {accumulate} micro-batch(es) on "
            f"data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']} devices: a multiple of {parts} is accepted"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays, split along the first axis over data and fsdp, from this process's rows of a batch.

    Strings, such as clip ids, stay behind.
    """
    sharding = NamedSharding(mesh, P(BATCH_AXES))
    numbers = {name: value for name, value in batch.items() if value.dtype.kind != "U"}
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in numbers.items()}
