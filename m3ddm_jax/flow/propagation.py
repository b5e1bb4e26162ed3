"""Pixels carried along flow from the frames that saw them to those that did not.

Source: the propagation of FGVC (Gao et al., ECCV 2020) as ISVI (Zhang et al., CVPR 2022) uses it, as dense maps.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from m3ddm_jax.flow.warping import round_trip

_SHARPNESS = 0.1  # pixels of error over which the weight of a direction falls to 1 / e
_LEAST = 1e-30  # confidence; less is none
_CUBIC = -0.6  # slope of the cubic kernel at 1 (Keys, IEEE Trans. ASSP 1981): a little sharper than Catmull-Rom's


class Propagated(NamedTuple):
    """What has been reached: values [B, T, H, W, C], those that nothing reaches as they were; unknown, bool
    [B, T, H, W, 1], what is left of the mask; confidence, float32 [B, T, H, W, 1]: of what was known as it was given, 0
    of what is unknown, between them exp(-error), error in pixels being how far flow there and back strayed at the worst
    step of the way."""

    values: jax.Array
    unknown: jax.Array
    confidence: jax.Array


class _Trails(NamedTuple):
    """Where pixels of a frame come from: a position in another frame, if they were found in one. [K] each."""

    found: jax.Array
    frame: jax.Array
    row: jax.Array
    column: jax.Array
    error_row: jax.Array
    error_column: jax.Array


@functools.partial(jax.jit, static_argnames="cubic")
def propagate_values(
    values: jax.Array,
    mask: jax.Array,
    flow_forward: jax.Array,
    flow_backward: jax.Array,
    max_error: float = jnp.inf,
    confidence: jax.Array | None = None,
    places: jax.Array | None = None,
    *,
    cubic: bool = False,
) -> Propagated:
    """Fills what is unknown with what flow leads to in earlier and in later frames, over any number of frames.

    values: [B, T, H, W, C], pixels or gradients, T from 2; what is under the mask is read only where a position between
    pixels lies at its edge, so that it should continue what is known. mask: [B, T, H, W, 1], 1 = unknown. flow_forward,
    flow_backward: [B, T-1, H, W, 2], (dx, dy) in pixels, from each frame to the next and from the next back, complete:
    a flow that is no number leads nowhere. max_error: pixels by which flow there and back may stray in a step.
    confidence: [B, T, H, W, 1] in 0..1, of what is known, 1 by default; what is carried from there is no surer.
    places: int [K], the pixels, counted row by row, that may be unknown in any frame; all by default. Time goes with K.
    cubic: whether values between pixels are interpolated by cubics, which keep detail, or linearly, as published.
    Where both directions find something, they are weighted by exp(-error / 0.1 pixels).
    Raises ValueError for fewer than two frames, and for flows that do not lie between them.
    """
    between = (*values.shape[:1], values.shape[1] - 1, *values.shape[2:4], 2)
    if values.shape[1] < 2 or flow_forward.shape != between or flow_backward.shape != between:
        found = f"{values.shape[1]} frames with flows {flow_forward.shape} and {flow_backward.shape}"
        raise ValueError(f"two frames or more are needed, with both flows {between}: found {found}")
    shape = (*values.shape[:-1], 1)
    confidence = jnp.ones(shape) if confidence is None else confidence.astype(jnp.float32)
    places = jnp.arange(shape[2] * shape[3]) if places is None else places
    read = _read_cubic if cubic else _read_linear
    one_clip = jax.vmap(functools.partial(_propagate_clip, read), in_axes=(0, 0, 0, 0, 0, None, None))
    unknown = jnp.broadcast_to(mask > 0, shape)
    return one_clip(values, unknown, confidence, flow_forward, flow_backward, max_error, places)


def _propagate_clip(read, values, unknown, confidence, flow_forward, flow_backward, max_error, places) -> Propagated:
    shape, size = unknown.shape, unknown.shape[1:3]
    values, unknown, confidence = (x.reshape(*x.shape[:1], -1, *x.shape[3:]) for x in (values, unknown, confidence))
    unknown, confidence = unknown[..., 0], confidence[..., 0]
    frames = jnp.arange(len(values))
    doubt = -jnp.log(jnp.maximum(confidence, _LEAST))
    there = unknown[:, places]
    flow_forward, flow_backward = (x.astype(jnp.float32) for x in (flow_forward, flow_backward))
    forward, backward = (x.reshape(len(x), -1, 2)[:, places] for x in (flow_forward, flow_backward))
    from_earlier = (frames[1:], frames[:-1], there[1:], unknown[:-1], doubt[:-1], backward, flow_forward)
    from_later = (frames[:-1], frames[1:], there[:-1], unknown[1:], doubt[1:], forward, flow_backward)
    earlier, found, error = _carry(values, from_earlier, max_error, places, size, read, reverse=False)
    found_earlier, error_earlier = (jnp.pad(x, ((1, 0), (0, 0))) for x in (found, error))
    later, found, error = _carry(values, from_later, max_error, places, size, read, reverse=True)
    found_later, error_later = (jnp.pad(x, ((0, 1), (0, 0))) for x in (found, error))

    # The share of one direction against the other; no error is so large that both weights vanish.
    share = jax.nn.sigmoid((error_later - error_earlier) / _SHARPNESS)
    share = jnp.where(found_earlier & found_later, share, found_earlier)
    found = found_earlier | found_later
    fused = share[..., None] * earlier + (1 - share[..., None]) * later
    error = share * error_earlier + (1 - share) * error_later
    reached = jnp.exp(-error)
    reached = jnp.where(found & (reached > 2 * _LEAST), reached, 0)
    kept = values[:, places]
    fused = jnp.where((there & found)[..., None], fused.astype(values.dtype), kept)
    return Propagated(
        values.at[:, places].set(fused).reshape(*shape[:3], -1),
        unknown.at[:, places].set(there & ~found).reshape(shape),
        confidence.at[:, places].set(jnp.where(there, reached, confidence[:, places])).reshape(shape),
    )


def _carry(
    values: jax.Array,
    steps: tuple,
    max_error: jax.Array,
    places: jax.Array,
    size: tuple[int, int],
    read: Callable[[jax.Array, _Trails, tuple[int, int]], jax.Array],
    reverse: bool,
):
    """In one direction: the values [T, K, C] of the places, filled, and of the T-1 steps what was found and its error,
    [K].

    values: [T, H * W, C]. steps: of each, the frame that is filled, the one beside it that was before, what is unknown
    in them (of the former, [K]), the errors that the latter starts with, the flow from the former, [K, 2], to the
    latter, and the one back. read: interpolates values.
    """
    num_pixels = size[0] * size[1]
    slots = jnp.zeros(num_pixels, jnp.int32).at[places].set(jnp.arange(len(places)))

    def step(carried, now):
        values, trails = carried
        frame, source, *masks, doubt, flow, opposite = now
        trails = _follow(trails, source, *masks, doubt, flow, opposite, max_error, places, slots)
        pixels = read(values, trails, size)
        filled = jnp.where(trails.found[..., None], pixels, values[frame, places])
        error = jnp.hypot(trails.error_row, trails.error_column)
        return (values.at[frame, places].set(filled), trails), (trails.found, error)

    nothing = jnp.zeros(len(places))
    trails = _Trails(nothing > 0, nothing.astype(jnp.int32), *[nothing] * 4)
    (values, _), (found, error) = jax.lax.scan(step, (values, trails), steps, reverse=reverse)
    return values[:, places], found, error


def _follow(
    trails: _Trails,
    source: jax.Array,
    unknown: jax.Array,
    unknown_in_source: jax.Array,
    doubt: jax.Array,
    flow: jax.Array,
    opposite: jax.Array,
    max_error: jax.Array,
    places: jax.Array,
    slots: jax.Array,
) -> _Trails:
    """The trails of a frame, from those of the frame `source` beside it. slots: which of the places a pixel is."""
    height, width, _ = opposite.shape
    row, column = places // width + flow[:, 1], places % width + flow[:, 0]
    strayed = round_trip(flow[None], opposite[None], row[None], column[None])[0]
    # Comparisons with what is no number fail.
    usable = unknown & (jnp.hypot(strayed[:, 0], strayed[:, 1]) < max_error) & _within(row, column, height, width)
    row, column = jnp.where(usable, row, 0), jnp.where(usable, column, 0)
    error_column, error_row = (jnp.where(usable, jnp.abs(strayed[:, i]), 0) for i in range(2))

    nearest_row, nearest_column = jnp.round(row), jnp.round(column)
    index = nearest_row.astype(jnp.int32) * width + nearest_column.astype(jnp.int32)
    # Of pixels that are no places, the trail of one is read that does not count: they are known.
    there = jax.tree.map(lambda x: x[slots[index]], trails)
    farther_row = there.row + (row - nearest_row)
    farther_column = there.column + (column - nearest_column)
    direct = usable & ~unknown_in_source[index]
    chained = usable & ~direct & there.found & _within(farther_row, farther_column, height, width)
    return _Trails(
        direct | chained,
        jnp.where(chained, there.frame, source),
        jnp.where(chained, farther_row, row),
        jnp.where(chained, farther_column, column),
        jnp.maximum(error_row, jnp.where(chained, there.error_row, doubt[index])),
        jnp.maximum(error_column, jnp.where(chained, there.error_column, 0)),
    )


def _within(row: jax.Array, column: jax.Array, height: int, width: int) -> jax.Array:
    """Whether the nearest pixel lies in the image, its last row and column left out as differences end there."""
    row, column = jnp.round(row), jnp.round(column)
    return (row >= 0) & (row < height - 1) & (column >= 0) & (column < width - 1)


def _read_linear(values: jax.Array, trails: _Trails, size: tuple[int, int]) -> jax.Array:
    """Values [T, H * W, C] where trails lead, bilinear, zero outside: [K, C]."""
    width = size[1]
    top, left = jnp.floor(trails.row), jnp.floor(trails.column)
    total = 0.0
    for down in (0, 1):
        for right in (0, 1):
            row, column = top + down, left + right
            share = (1 - jnp.abs(trails.row - row)) * (1 - jnp.abs(trails.column - column))
            # A position lies at most half a pixel beyond the first row and column, never beyond the last ones.
            share = jnp.where((row >= 0) & (column >= 0), share, 0)[..., None]
            row, column = (jnp.maximum(x, 0).astype(jnp.int32) for x in (row, column))
            total += share * values[trails.frame, row * width + column]
    return total


def _read_cubic(values: jax.Array, trails: _Trails, size: tuple[int, int]) -> jax.Array:
    """Values [T, H * W, C] where trails lead, by cubics (Keys 1981) over 4 x 4 pixels, the nearest ones beyond the end:
    [K, C]."""
    height, width = size
    top, left = jnp.floor(trails.row), jnp.floor(trails.column)
    total = 0.0
    for down in range(-1, 3):
        for right in range(-1, 3):
            row, column = top + down, left + right
            share = _cubic(trails.row - row) * _cubic(trails.column - column)
            row, column = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
            index = row.astype(jnp.int32) * width + column.astype(jnp.int32)
            total += share[..., None] * values[trails.frame, index]
    return total


def _cubic(distance: jax.Array) -> jax.Array:
    """Weight of a pixel at a distance of up to 2."""
    d = jnp.abs(distance)
    near = ((_CUBIC + 2) * d - (_CUBIC + 3)) * d * d + 1
    return jnp.where(d < 1, near, _CUBIC * (((d - 5) * d + 8) * d - 4))
