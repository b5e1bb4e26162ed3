"""Bilinear interpolation: resizing with either convention of corners, reading images at real positions, warping."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange


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


def sample_bilinear(images: jax.Array, rows: jax.Array, columns: jax.Array, border: bool = False) -> jax.Array:
    """Images [N, H, W, C] at positions in pixels, rows and columns [N, ...] -> [N, ..., C] in the images' dtype.

    Beyond the outermost pixel centres, images fade to zero within a pixel and stay zero; with `border` they continue
    as they end. Differentiable in everything, with finite gradients; those of positions far outside are zero.
    """
    if not border:
        images, rows, columns = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))), rows + 1, columns + 1
    _, height, width, _ = images.shape
    rows = jnp.clip(rows.astype(jnp.float32), 0, height - 1)
    columns = jnp.clip(columns.astype(jnp.float32), 0, width - 1)
    return _interpolate(images, rows, columns)


@jax.custom_vjp
def _interpolate(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """As `sample_bilinear`, for positions inside of the images."""
    neighbours = _Neighbours(images, rows, columns)
    return sum(neighbours.read(n) * neighbours.share(n)[..., None] for n in range(4)).astype(images.dtype)


def _interpolate_forward(*arguments):
    return _interpolate(*arguments), arguments


def _interpolate_backward(arguments, cotangent):
    """Neighbours one after another in a loop, which keeps what one of them adds no longer than it is needed."""
    images, *_ = arguments
    neighbours = _Neighbours(*arguments)
    cotangent = cotangent.astype(jnp.float32)

    def add(n, gradients):
        d_pixels, d_down, d_right = gradients
        d_share = (neighbours.read(n) * cotangent).sum(-1)
        along_rows, along_columns = neighbours.slopes(n)
        d_pixels = neighbours.add(d_pixels, n, cotangent * neighbours.share(n)[..., None])
        return d_pixels, d_down + d_share * along_rows, d_right + d_share * along_columns

    nothing = jnp.zeros(cotangent.shape[:-1])
    gradients = (jnp.zeros(neighbours.pixels.shape), nothing, nothing)
    d_pixels, d_rows, d_columns = jax.lax.fori_loop(0, 4, add, gradients)
    return d_pixels.reshape(images.shape).astype(images.dtype), d_rows, d_columns


_interpolate.defvjp(_interpolate_forward, _interpolate_backward)


class _Neighbours:
    """The four pixels around each position, numbered row by row; n may be traced. One beyond a border has no weight."""

    def __init__(self, images, rows, columns):
        _, height, self._width, _ = images.shape
        top = jnp.minimum(jnp.floor(rows), max(height - 2, 0))
        left = jnp.minimum(jnp.floor(columns), max(self._width - 2, 0))
        self.pixels = rearrange(images, "n h w c -> n (h w) c")
        self._first = top.astype(jnp.int32) * self._width + left.astype(jnp.int32)
        self._down, self._right = rows - top, columns - left

    def read(self, n):
        return jax.vmap(lambda pixels, i: pixels.at[i].get(mode="clip"))(self.pixels, self._index(n))

    def add(self, total, n, parts):
        add = jax.vmap(lambda total, i, part: total.at[i].add(part, mode="clip"))
        return add(total, self._index(n), parts)

    def _index(self, n):
        return self._first + (n // 2 * self._width + n % 2)

    def share(self, n):
        """The weight of a neighbour: less the farther away it is."""
        return jnp.abs(1 - n // 2 - self._down) * jnp.abs(1 - n % 2 - self._right)

    def slopes(self, n):
        """How the weight changes with rows and with columns."""
        row, column = n // 2, n % 2
        return (2 * row - 1) * jnp.abs(1 - column - self._right), (2 * column - 1) * jnp.abs(1 - row - self._down)


def warp(images: jax.Array, flow: jax.Array, border: bool = False) -> jax.Array:
    """Images [N, H, W, C] read at each pixel plus its flow [N, H, W, 2], (dx, dy) in pixels; same shape.

    border: as in `sample_bilinear`.
    """
    _, height, width, _ = images.shape
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    return sample_bilinear(images, rows + flow[..., 1], columns + flow[..., 0], border)
