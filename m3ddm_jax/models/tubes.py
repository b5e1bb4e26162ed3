"""Tubes: squares of pixels through all frames of a clip, drawn along the part that is to be generated.

IN2OUT's abstract says that a local goal is judged; that it is judged on tubes, and how these are drawn, is a design of
this project.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, reduce

_LEAST_SHARE = 0.5
_SEAM_SHARE = (0.4, 0.7)


class Tubes(NamedTuple):
    """Top left corners (row, column), int32, of the tubes of each clip.

    plain: [B, P, 2], tubes of a side given elsewhere. zoomed: [B, Q, 2], of twice that side, averaged down to it.
    """

    plain: jax.Array
    zoomed: jax.Array


def sample_tubes(key: jax.Array, mask: jax.Array, *, size: int = 64, plain: int = 6, zoomed: int = 2) -> Tubes:
    """Draw `plain` tubes of size x size pixels and `zoomed` ones of twice the side for every clip.

    mask: [B, T, H, W, 1], 1 = generate. Each tube starts from a pixel drawn uniformly from the masked ones, so that a
    strip gets tubes in proportion to its area, and lies as near to it (centre to pixel) as the masked share of the tube
    allows: at least 0.5; for every second tube, which is across the seam, a share drawn from 0.4 to 0.7. Where no tube
    over the pixel has that much, as on thin strips, the most that one has will do. Clips without masked pixels get
    tubes anywhere.

    Raises ValueError for frames that are smaller than a tube.
    """
    _check_size(mask, size, zoomed)
    plain_key, zoomed_key = jax.random.split(key)
    masked = (mask > 0).sum(axis=(1, 4), dtype=jnp.int32)
    frames = mask.shape[1]
    return Tubes(
        _draw_corners(plain_key, masked, frames, size, plain),
        _draw_corners(zoomed_key, masked, frames, 2 * size, zoomed),
    )


def cut_tubes(video: jax.Array, tubes: Tubes, size: int) -> jax.Array:
    """The tubes of video [B, T, H, W, C], plain ones first: [B, P + Q, T, size, size, C].

    Raises ValueError for frames that are smaller than a tube.
    """
    _check_size(video, size, tubes.zoomed.shape[1])
    parts = [_slice(video, tubes.plain, size)]
    if tubes.zoomed.shape[1]:
        wide = _slice(video, tubes.zoomed, 2 * size)
        parts.append(reduce(wide, "b q t (h i) (w j) c -> b q t h w c", "mean", i=2, j=2))
    return jnp.concatenate(parts, axis=1)


def _check_size(video: jax.Array, size: int, zoomed: int) -> None:
    side = 2 * size if zoomed else size
    height, width = video.shape[2:4]
    if min(height, width) < side:
        raise ValueError(
            f"frames of {height}x{width} hold no tube of {side}x{side}: {side} or more a side are accepted"
        )


def _slice(video: jax.Array, corners: jax.Array, side: int) -> jax.Array:
    frames, _, _, channels = video.shape[1:]

    def one(clip: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(clip, (0, corner[0], corner[1], 0), (frames, side, side, channels))

    return jax.vmap(jax.vmap(one, (None, 0)))(video, corners)


def _draw_corners(key: jax.Array, masked: jax.Array, frames: int, side: int, count: int) -> jax.Array:
    """Corners int32 [B, count, 2]; masked [B, H, W]: in how many of the frames a pixel is masked."""
    if count == 0:
        return jnp.zeros((len(masked), 0, 2), jnp.int32)
    keys = jax.random.split(key, (len(masked), count))
    across_seam = jnp.arange(count) % 2 == 1

    def of_clip(keys: jax.Array, masked: jax.Array) -> jax.Array:
        weight = jnp.where(masked.any(), masked, 1)
        share = _box_sums(masked, side) / (side * side * frames)
        return jax.vmap(_draw_corner, (0, 0, None, None, None))(keys, across_seam, weight, share, side)

    return jax.vmap(of_clip)(keys, masked)


def _box_sums(values: jax.Array, side: int) -> jax.Array:
    """Sums of all side x side boxes of [H, W], by top left corner: [H - side + 1, W - side + 1]."""
    sums = jnp.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]


def _draw_corner(key: jax.Array, across_seam: jax.Array, weight: jax.Array, share: jax.Array, side: int) -> jax.Array:
    """One corner [2]; weight [H, W]: of each pixel as the start; share: of masked pixels in each tube, by corner."""
    pixel_key, share_key = jax.random.split(key)
    running = weight.reshape(-1).cumsum()
    # Integers all along: no rounding can select a pixel of weight 0.
    pixel = jnp.searchsorted(running, jax.random.randint(pixel_key, (), 0, running[-1]), side="right")
    row, column = jnp.divmod(pixel, weight.shape[1])
    down = rearrange(row - jnp.arange(share.shape[0]), "h -> h 1")
    right = rearrange(column - jnp.arange(share.shape[1]), "w -> 1 w")
    covers = (down >= 0) & (down < side) & (right >= 0) & (right < side)

    # A shift by one pixel changes the share by at most 1 / side: an interval of that length is never jumped over.
    half = 0.5 / side
    wanted = jax.random.uniform(share_key, (), minval=_SEAM_SHARE[0] + half, maxval=_SEAM_SHARE[1] - half)
    least = jnp.where(across_seam, wanted - half, _LEAST_SHARE)
    least = jnp.minimum(least, jnp.max(share, where=covers, initial=0.0))
    most = jnp.where(across_seam, wanted + half, 1.0)
    excess = jnp.maximum(jnp.maximum(least - share, share - most), 0.0)
    distance = jnp.square(down - side // 2) + jnp.square(right - side // 2)
    nearest = jnp.argmin(jnp.where(excess <= excess.min(), distance, jnp.iinfo(jnp.int32).max))
    return jnp.stack(jnp.divmod(nearest, share.shape[1])).astype(jnp.int32)
