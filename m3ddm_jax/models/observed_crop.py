"""The observed rectangle of a canvas as a vision transformer sees it: resized into the upper left corner of a square.

Boxes are int [..., 4]: top, bottom, left and right in pixels of the canvas, bottom and right excluded. They may be
traced. The longer side of a box takes the whole side of the square, the other its proportion.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat


def crop_observed(frames: jax.Array, boxes: jax.Array, side: int) -> jax.Array:
    """The boxes [B, 4] of frames [B, F, H, W, C], resized, and zeros around them: float [B, F, side, side, C].

    Linear interpolation, smoothed where it shrinks. No pixel outside a box has any part in it.
    """
    start, length, size = _rows_and_columns(boxes, side)
    rows, columns = (
        _resize_weights(start[:, axis], length[:, axis], size[:, axis], frames.shape[2 + axis], side)
        for axis in range(2)
    )
    return jnp.einsum("brh,bfhwc,bsw->bfrsc", rows, frames, columns)


def patch_places(
    boxes: jax.Array, canvas_size: tuple[int, int], side: int, patch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Which patches of the square lie wholly inside boxes [..., 4], and where on the canvas their centres are.

    canvas_size: height and width in pixels. side, patch_size: of the square and its patches.
    Returns observed, bool [..., P], and coordinates, float32 (x, y) in 0..1 [..., P, 2], P row by row; those of other
    patches mean nothing. Where the shorter side of a box takes less than a patch, none is observed.
    """
    start, length, size = (x[..., None] for x in _rows_and_columns(boxes, side))
    patches = np.arange(side // patch_size)
    inside = (patches + 1) * patch_size <= size
    centres = start + (patches + 0.5) * patch_size * (length / size)
    y, x = jnp.moveaxis(jnp.clip(centres / np.array(canvas_size)[:, None], 0, 1), -2, 0)
    coordinates = jnp.stack(
        [repeat(x, "... j -> ... (i j)", i=len(patches)), repeat(y, "... i -> ... (i j)", j=len(patches))], axis=-1
    )
    observed = inside[..., 0, :, None] & inside[..., 1, None, :]
    return rearrange(observed, "... i j -> ... (i j)"), coordinates.astype(jnp.float32)


def _rows_and_columns(boxes: jax.Array, side: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Start and length of boxes on the canvas, and their size in the square, each int [..., 2]: rows, then columns.

    Sizes are rounded, halves up, and at least 1.
    """
    ends = rearrange(jnp.asarray(boxes), "... (sides ends) -> ends ... sides", sides=2)
    length = ends[1] - ends[0]
    longer = jnp.maximum(length.max(axis=-1, keepdims=True), 1)
    return ends[0], length, jnp.maximum((2 * side * length + longer) // (2 * longer), 1)


def _resize_weights(start: jax.Array, length: jax.Array, size: jax.Array, pixels: int, side: int) -> jax.Array:
    """What each of `side` places takes of each pixel of an axis of the canvas: [B, side, pixels].

    start, length, size: int [B]. Rows sum to 1; those from `size` on are 0.
    """
    start, length, size = (x[:, None, None] for x in (start, length, size))
    step = length / size
    centres = (np.arange(side)[:, None] + 0.5) * step
    positions = np.arange(pixels) - start + 0.5
    weights = jnp.maximum(1 - jnp.abs(positions - centres) / jnp.maximum(step, 1), 0)
    weights = jnp.where((positions > 0) & (positions < length), weights, 0)
    total = jnp.maximum(weights.sum(axis=-1, keepdims=True), jnp.finfo(weights.dtype).tiny)
    return jnp.where(np.arange(side)[:, None] < size, weights / total, 0)
