"""Images resized by bilinear interpolation, with either convention of corners."""

import jax
import numpy as np


def resize_bilinear(images: jax.Array, height: int, width: int, align_corners: bool) -> jax.Array:
    """Images [N, H, W, C] -> [N, height, width, C], not smoothed where they shrink.

    align_corners: the outermost pixel centres fall on one another; otherwise the outermost pixel edges do. What
    PyTorch's `interpolate` calls so.
    """
    return _resize_axis(_resize_axis(images, 1, height, align_corners), 2, width, align_corners)


def _resize_axis(images: jax.Array, axis: int, size: int, align_corners: bool) -> jax.Array:
    before = images.shape[axis]
    if size == before:
        return images
    if align_corners:
        positions = np.arange(size) * ((before - 1) / max(size - 1, 1))
    else:
        positions = np.clip((np.arange(size) + 0.5) * (before / size) - 0.5, 0, before - 1)
    below = np.minimum(positions.astype(np.int32), max(before - 2, 0))
    fraction = np.expand_dims(positions - below, tuple(range(1, images.ndim - axis))).astype(images.dtype)
    low, high = (images.take(np.minimum(below + step, before - 1), axis, mode="clip") for step in (0, 1))
    return low * (1 - fraction) + high * fraction
