"""How activations lie on the mesh: what code inside a jitted function may call, models included."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")
"""The axes of the mesh that clips are split over."""

WIDE = 1024
"""Channels of a level from which splitting its products over `tensor` saves more than its sums between devices cost."""

# The compiler decides, from what lies around.
_ANY = P.UNCONSTRAINED


def constrain(x: jax.Array, *spec: str | tuple[str, ...] | None) -> jax.Array:
    """x with its leading axes split over named axes of the mesh in force (`jax.set_mesh`); x itself without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*spec))


def split_clips(x: jax.Array) -> jax.Array:
    """Clips, or their frames [clips * T, ...], split over the axes of the mesh that clips are split over.

    Said beside every product with a weight that is split over `fsdp`: else the compiler may split the product as the
    weight is, and give every device all clips for that. x itself where clips do not divide, or frames are split too.
    """
    if math.prod(map(_parts, BATCH_AXES)) == 1 or x.ndim < 2 or not _clips_divide(x):
        return x
    return constrain(x, BATCH_AXES, *(_ANY,) * (x.ndim - 1))


def summed_over_clips(function: Callable[..., jax.Array], x: jax.Array) -> Callable[..., jax.Array] | None:
    """function (of arrays as long as x) on each device's own clips, and the sum of its results over devices, as
    `function` has their dtype; None where clips do not divide, or frames are split too."""
    axes = tuple(axis for axis in BATCH_AXES if _parts(axis) > 1)
    if not _clips_divide(x):
        return None
    if not axes:
        return function

    def summed(*arrays: jax.Array) -> jax.Array:
        return jax.lax.psum(function(*arrays), axes)

    # Products of wide levels stay split over `tensor` as the compiler has them.
    return jax.shard_map(summed, in_specs=P(axes), out_specs=P(), axis_names=set(axes), check_vma=False)


def _clips_divide(x: jax.Array) -> bool:
    """Whether each device of the axes of clips has clips of its own, as many as others, and whole ones."""
    return _parts("context") == 1 and x.shape[0] % math.prod(map(_parts, BATCH_AXES)) == 0


def split_frames(x: jax.Array) -> jax.Array:
    """Clips [B, T, ...], their frames split over `context`."""
    return _split(x, 1, "context")


def frames_to_cells(x: jax.Array) -> jax.Array:
    """Clips [B, T, cells, C] from frames split over `context` to cells split: all frames of a cell come together."""
    return _split(split_frames(x), 2, "context")


def cells_to_frames(x: jax.Array) -> jax.Array:
    """The way back from `frames_to_cells`."""
    # Both sides are said, here and there, lest the compiler splits rows and columns around, and exchanges those.
    return split_frames(_split(x, 2, "context"))


def join_frames(x: jax.Array) -> jax.Array:
    """What frames were made into, [B, tokens, C], whole on every device of `context`."""
    if _parts("context") == 1:
        return x
    return constrain(x, _ANY, None, None)


def is_wide(features: int) -> bool:
    """Whether products of a level of so many channels are split over `tensor`."""
    return features >= WIDE


def split_features(kernel: jax.Array) -> jax.Array:
    """A kernel [C, ..., features] of a wide level, its features split over `tensor`."""
    return _split(kernel, kernel.ndim - 1, "tensor", others=None)


def channel_parts(channels: int, features: int) -> int:
    """Into how many parts `tensor` splits the channels of a product of a wide level, each device's share of a sum."""
    parts = _parts("tensor")
    return parts if is_wide(features) and channels % parts == 0 else 1


def split_parts(x: jax.Array) -> jax.Array:
    """Parts [parts, ...], one on each device of `tensor`."""
    return _split(x, 0, "tensor")


def attention_axes(rows: int, queries: int, heads: int, features: int) -> tuple[Any, Any, Any] | None:
    """The mesh axes that an attention's rows, queries and heads are split over; None where its rows do not divide.

    rows: clips, or their frames [clips * T]. features: of the level; heads of a wide level are split over `tensor`.
    """
    context, tensor = _parts("context"), _parts("tensor")
    clips = tuple(axis for axis in BATCH_AXES if _parts(axis) > 1)
    of_heads = "tensor" if tensor > 1 and is_wide(features) and heads % tensor == 0 else None
    parts = math.prod(map(_parts, clips))
    if rows % parts:
        return None
    if context > 1 and rows % (parts * context) == 0:
        return (*clips, "context"), None, of_heads
    return clips or None, "context" if context > 1 and queries % context == 0 else None, of_heads


def on_each_device(function: Callable, in_specs: tuple[P, ...], out_specs: P) -> Callable:
    """function run by each device on its own part of the arrays; function itself where the mesh has one device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _split(x: jax.Array, axis: int, name: str, others: object = _ANY) -> jax.Array:
    """x with one axis split over one of the mesh; x itself where that does not divide it, or is of one device."""
    parts = _parts(name)
    if parts == 1 or x.shape[axis] % parts:
        return x
    return constrain(x, *(name if k == axis else others for k in range(x.ndim)))


def _parts(name: str) -> int:
    return jax.sharding.get_abstract_mesh().shape.get(name, 1)
