"""GlobalPaint's two savings: windows instead of attention to all of a clip, few global tokens instead of M3DDM's."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from m3ddm_jax.benchmarks.limits import reason_to_skip
from m3ddm_jax.measure import timing
from m3ddm_jax.measure.flops import count_flops
from m3ddm_jax.measure.program import compile_program, random_arrays
from m3ddm_jax.models.attention import attention
from m3ddm_jax.models.est import WindowAttention3D
from m3ddm_jax.models.globalpaint import GlobalPaintUNet

REPEATS = 3
GIGA = 10**9
_LONG = 10**12  # operations of the largest one from which all of a level are timed once
CLIPS = ((16, 256, 256), (16, 512, 896))
_DOWNSCALE = 8  # of latents
# M3DDM's global frames leave 14 x 14 tokens each.
TOKENS = {"64 tokens": 64, "3,136 tokens": 16 * 14 * 14}


def measure(model: GlobalPaintUNet | None = None, clips: Sequence[tuple[int, int, int]] = CLIPS) -> dict[str, Any]:
    """By clip (frames, height, width in pixels) and level of a GlobalPaint: GFLOP, and seconds of those that can run.

    Windows and full attention are a `WindowAttention3D` with windows of the model's size, plain and shifted, and with
    one window over the whole clip; the projections (of queries, keys, values and output) are the same in all of them,
    and apart in operations, not in seconds. Tokens are queries of all frames on the keys and values of so many global
    tokens, which are computed once a video. What would need more memory than there is, or too long, says so.
    """
    model = model or GlobalPaintUNet()
    result = {}
    for frames, height, width in clips:
        size = f"{width}x{height}x{frames}"
        for level, channels in enumerate(model.block_out_channels):
            cells = [side // _DOWNSCALE // 2**level for side in (height, width)]
            row = f"{size}, {cells[1]}x{cells[0]} cells, {channels} wide"
            result[row] = _of_level(model, level, (frames, *cells))
    return result


def _of_level(model: GlobalPaintUNet, level: int, volume: tuple[int, int, int]) -> dict[str, Any]:
    channels, heads = model.block_out_channels[level], model.num_heads[level]
    shape = (1, *volume, channels)
    operations, seconds, calls = {}, {}, {}

    def add(name: str, function: Callable, *shapes: Any, projections: int = 0) -> None:
        operations[name] = count_flops(function, *shapes).total - projections
        program = compile_program(function, *shapes)
        seconds[name] = reason_to_skip(program, operations[name])
        if seconds[name] is None:
            calls[name] = functools.partial(program.call, *random_arrays(shapes))

    projections = operations["projections"] = 8 * channels * math.prod(shape)
    for name, window, shifted in (
        ("windows", model.est_window, False),
        ("shifted windows", model.est_window, True),
        ("full", volume, False),
    ):
        module = WindowAttention3D(heads, tuple(window), shifted)
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        add(name, module.apply, variables, x, projections=projections)
    for name, count in TOKENS.items():
        queries, keys = (
            jax.ShapeDtypeStruct((1, length, heads, channels // heads), jnp.float32)
            for length in (math.prod(volume), count)
        )
        add(name, attention, queries, keys, keys)
    repeats = 1 if max((operations[name] for name in calls), default=0) > _LONG else REPEATS
    seconds |= {name: time.median for name, time in timing.time_together(calls, repeats).items()}
    result = {f"{name}: GFLOP": count / GIGA for name, count in operations.items()}
    return result | {f"{name}: seconds": value for name, value in seconds.items()}
