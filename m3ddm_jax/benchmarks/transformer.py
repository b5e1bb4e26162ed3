"""One transformer of M3DDM's finest level, forward and backward, compiled for a device that need not be there."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from m3ddm_jax.measure.chips import GIB
from m3ddm_jax.models.attention import attention
from m3ddm_jax.models.unet3d import M3DDMUNet, SpatioTemporalTransformer
from m3ddm_jax.parallel.mesh import make_mesh, replicated

# Frames, rows and columns of latent cells of a clip.
CLIPS = {"256x256": (16, 32, 32), "512x896": (16, 64, 112)}
FORMS = ("dense", "auto")
# Tokens of M3DDM's 16 global frames.
_CONTEXT = 16 * 14 * 14


def measure(devices: Sequence[jax.Device], model: M3DDMUNet | None = None) -> dict[str, dict[str, Any]]:
    """By clip, part and form of attention: temporary MiB and GiB moved by the compiler's plan, and seconds to compile.

    Parts: the self-attention of cells, the cross-attention, the attention over frames, and the whole transformer with
    its projections and feed-forwards; in bfloat16, on one device. GiB moved counts arguments and results of a kernel
    once. Where a program does not fit, the row says so.
    """
    model = model or M3DDMUNet()
    return {
        f"{clip}, {part}, {form}": _compiled(function, arguments)
        for clip, volume in CLIPS.items()
        for form in FORMS
        for part, (function, arguments) in _parts(model, volume, form, devices[:1]).items()
    }


def _parts(
    model: M3DDMUNet, volume: tuple[int, int, int], form: str, devices: Sequence[jax.Device]
) -> dict[str, tuple[Callable, tuple]]:
    """What is compiled, by name: functions of arrays and the shapes of these."""
    placed = replicated(make_mesh(data=1, devices=devices))
    frames, height, width = volume
    cells, heads, features = height * width, model.num_heads, model.block_out_channels[0]

    def array(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

    def attend(rows: int, queries: int, keys: int) -> tuple[Callable, tuple]:
        query, key = (array(rows, length, heads, features // heads) for length in (queries, keys))
        return _with_gradients(lambda *args: attention(*args, form=form)), (query, query, key, key)

    module = SpatioTemporalTransformer(features, heads, model.norm_num_groups, jnp.bfloat16, attention=form)
    x, context = array(1, *volume, features), array(1, _CONTEXT, model.cross_attention_dim)
    variables = jax.tree.map(
        lambda leaf: array(*leaf.shape, dtype=leaf.dtype), jax.eval_shape(module.init, jax.random.key(0), x, context)
    )
    return {
        "self": attend(frames, cells, cells),
        "cross": attend(1, frames * cells, _CONTEXT),
        "frames": attend(cells, frames, frames),
        "transformer": (_with_gradients(module.apply), (x, variables, x, context)),
    }


def _with_gradients(function: Callable) -> Callable:
    """(the gradient at function's result, its arguments) -> the result and the gradients of all arguments."""

    def both(gradient: jax.Array, *arguments: Any) -> tuple[jax.Array, tuple]:
        out, backward = jax.vjp(function, *arguments)
        return out, backward(gradient)

    return both


def _compiled(function: Callable, arguments: tuple) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        compiled = jax.jit(function).lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        return {"MiB between": f"does not compile: {str(error).partition(chr(10))[0][:100]}"}
    moved = (compiled.cost_analysis() or {}).get("bytes accessed")
    return {
        "MiB between": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        "GiB moved": "not known" if moved is None else moved / GIB,
        "compile seconds": time.perf_counter() - start,
    }
