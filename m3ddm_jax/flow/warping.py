"""Optical flow applied: images gathered and splatted along it, and how well two opposite flows agree."""

import jax
import jax.numpy as jnp
from einops import rearrange


def sample_bilinear(images: jax.Array, rows: jax.Array, columns: jax.Array, border: bool = False) -> jax.Array:
    """Images [N, H, W, C] at positions in pixels, rows and columns [N, ...] -> [N, ..., C] in the images' dtype.

    Beyond the outermost pixel centres, images fade to zero within a pixel and stay zero; with `border` they continue
    as they end. A position that is no number counts as one above or left of the image. Differentiable in everything,
    with finite gradients; those of positions far outside are zero.
    """
    if not border:
        images, rows, columns = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))), rows + 1, columns + 1
    _, height, width, _ = images.shape
    return _interpolate(images, _within(rows, height), _within(columns, width))


def _within(positions: jax.Array, side: int) -> jax.Array:
    return jnp.clip(jnp.nan_to_num(positions.astype(jnp.float32), nan=0.0), 0, side - 1)


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
    rows, columns = targets(flow)
    return sample_bilinear(images, rows, columns, border)


def splat(images: jax.Array, flow: jax.Array) -> jax.Array:
    """Images [N, H, W, C] carried along flow [N, H, W, 2], (dx, dy) in pixels: the transpose of `warp`; same shape.

    Each pixel is shared out bilinearly among the four around its target, and what meets there is added; where nothing
    comes, zero is. A pixel that does not have all four inside of the image, or whose flow is no number, is dropped as
    a whole. Differentiable in both. Source: forward warping of ISVI's flow completion (Zhang et al., CVPR 2022).
    """
    _, height, width, _ = images.shape
    rows, columns = targets(flow)
    # Comparisons with what is no number fail.
    kept = (rows >= 0) & (rows < height - 1) & (columns >= 0) & (columns < width - 1)
    rows, columns = jnp.where(kept, rows, 0), jnp.where(kept, columns, 0)
    neighbours = _Neighbours(jnp.zeros(images.shape, jnp.float32), rows, columns)
    parts = jnp.where(kept[..., None], images, 0).astype(jnp.float32)
    total = neighbours.pixels
    for n in range(4):
        total = neighbours.add(total, n, parts * neighbours.share(n)[..., None])
    return total.reshape(images.shape).astype(images.dtype)


def round_trip(flow: jax.Array, opposite: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """How far from its start a pixel ends that follows a flow and then the opposite one: [N, ..., 2] in pixels.

    flow: [N, ..., 2], (dx, dy), of some pixels of a frame or of all. rows, columns: [N, ...], where it takes them.
    opposite: [N, H, W, 2], from there back. Zero where they agree; beyond the image the opposite flow counts as zero.
    """
    return flow + sample_bilinear(opposite, rows, columns)


def targets(flow: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where a flow [N, H, W, 2], (dx, dy), takes each pixel: rows and columns [N, H, W], float32."""
    _, height, width, _ = flow.shape
    flow = flow.astype(jnp.float32)
    return jnp.arange(height)[:, None] + flow[..., 1], jnp.arange(width) + flow[..., 0]
