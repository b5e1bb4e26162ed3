"""The device mesh, and how a batch lies on it."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from m3ddm_jax.parallel.constrain import BATCH_AXES

AXES = ("data", "fsdp", "tensor", "context")


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    context: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh with the axes data, fsdp, tensor, context over all devices (or those given).

    One size may be -1: the devices that the others leave. Where devices are those of several slices, which a slower
    network joins, `data` alone reaches over them: gradients cross it once an update.
    Raises ValueError where the sizes do not fill the devices, or the slices do not divide `data`.
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
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if shape[0] % slices:
        raise ValueError(f"mesh {written} on {slices} slices: data is {shape[0]}, a multiple of {slices} is accepted")
    if slices == 1:
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        inside, between = (shape[0] // slices, *shape[1:]), (slices, *(1,) * len(shape[1:]))
        placed = mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True)
    # Auto is written out: the default may become Explicit, which convolutions do not know.
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def process_part(mesh: Mesh, process: int) -> tuple[int, int]:
    """(index, count): which of so many contiguous parts of a batch a process holds, as those do that it shares clips
    with.

    Raises ValueError where processes share some of their clips alone.
    """
    held: dict[int, set[int]] = {}
    for part, devices in enumerate(mesh.devices.reshape(batch_shards(mesh), -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(part)
    parts = sorted({tuple(sorted(of_process)) for of_process in held.values()})
    if sum(map(len, parts)) != batch_shards(mesh) or len(set(map(len, parts))) > 1:
        written = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        raise ValueError(f"mesh {written}: of {len(held)} processes some share a part of their clips, all or none do")
    return parts.index(tuple(sorted(held[process]))), len(parts)


def check_batch_size(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raise ValueError where a global batch does not split evenly over micro-batches and devices.

    Where frames are split too, a device works at the frames of one clip at a time.
    """
    parts = batch_shards(mesh) * accumulate
    if batch_size < 1 or accumulate < 1 or batch_size % parts:
        raise ValueError(
            f"a batch of {batch_size} clips does not divide into {accumulate} micro-batch(es) on "
            f"data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']} devices: a multiple of {parts} is accepted"
        )
    if mesh.shape["context"] > 1 and batch_size != parts:
        raise ValueError(
            f"frames are split over context={mesh.shape['context']}, and {batch_size // parts} clips of a micro-batch "
            f"meet on a device: train.accumulate={batch_size // batch_shards(mesh)}, one clip each, is accepted"
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
