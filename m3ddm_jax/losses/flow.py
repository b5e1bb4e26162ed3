"""Losses of flow completion; all are float32 scalars. Flow is (dx, dy) in pixels, masks are 1 where it was completed.

That there are these four is published with ISVI (Zhang et al., CVPR 2022); their definitions are those of the code of
the same authors' Flow-Guided Transformer (ECCV 2022). What the coarse flows pay is a choice of this project.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from m3ddm_jax.flow.warping import sample_bilinear, targets
from m3ddm_jax.losses.adversarial import weighted_mean
from m3ddm_jax.models.resampling import resize_bilinear

_GRAY = (0.299, 0.587, 0.110)  # as the published code has it
_CONTRAST = 0.81  # squared difference in gray levels that counts half of the most
_HAMMING = 0.1
_CONSISTENCY = 50.0
# Steps (down, right) along which second differences are taken.
_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))


def completion_terms(
    flows: Sequence[jax.Array], truth: jax.Array, mask: jax.Array, images: tuple[jax.Array, jax.Array] | None = None
) -> dict[str, jax.Array]:
    """What a completed flow pays: {"hole", "valid", "smooth_first", "smooth_second", "quarter", "half"[, "ternary"]}.

    flows: as `models.igfc.IGFC` returns them, [B, H, W, 2] and those at a quarter and at half of the size. truth:
    [B, H, W, 2]; mask: [B, H, W, 1]. images: [B, H, W, 3] in [0, 1], the frame that truth starts from and the one where
    it ends; without them there is no "ternary". "quarter" and "half" are the mean absolute error of the coarse flows.
    """
    flow, *coarse = flows
    mask = mask.astype(jnp.float32)
    error = jnp.abs(flow - truth)
    completed = mask * flow + (1 - mask) * truth
    first, second = smoothness(completed, mask)
    terms = {
        "hole": weighted_mean(error, mask),
        "valid": weighted_mean(error, 1 - mask),
        "smooth_first": first,
        "smooth_second": second,
    }
    for name, small in zip(("quarter", "half"), coarse, strict=True):
        height, width = small.shape[1:3]
        scale = jnp.array([width / truth.shape[2], height / truth.shape[1]])
        wanted = scale * resize_bilinear(truth, height, width, align_corners=False)
        terms[name] = jnp.mean(jnp.abs(small - wanted))
    if images is not None:
        terms["ternary"] = ternary(completed, truth, mask, *images)
    return terms


def smoothness(flow: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How much flow [B, H, W, 2] changes under the mask [B, H, W, 1]: by first and by second differences.

    First ones to the right and down, second ones along both axes and both diagonals, beyond the image zero; a
    generalized Charbonnier penalty of each, averaged over pixels and directions, summed over dx and dy.
    """
    flow = flow.astype(jnp.float32)
    after = {step: _shifted(flow, *step) for step in _DIRECTIONS}
    first = [after[step] - flow for step in _DIRECTIONS[:2]]
    second = [after[down, right] - 2 * flow + _shifted(flow, -down, -right) for down, right in _DIRECTIONS]
    return tuple(2 * jnp.mean(mask * _charbonnier(jnp.stack(differences))) for differences in (first, second))


def _shifted(x: jax.Array, down: int, right: int) -> jax.Array:
    """What lies one step away: [B, H, W, C] of the same shape, zero beyond the image."""
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]


def _charbonnier(x: jax.Array) -> jax.Array:
    return (jnp.square(x) + 1e-6) ** 0.45


def ternary(
    flow: jax.Array,
    truth: jax.Array,
    mask: jax.Array,
    image: jax.Array,
    next_image: jax.Array,
) -> jax.Array:
    """How unlike an image the next one looks that flow brings back to it, under the mask, where true flow explains it.

    flow, truth: [B, H, W, 2]; mask: [B, H, W, 1]; images: [B, H, W, 3] in [0, 1]. Compared are census transforms, which
    do not know brightness. The published code takes corners of pixels for their centres, so that images shrink by a
    pixel; here they do not.
    """
    brought = _brought_back(next_image, flow)
    squared = jnp.square(_census(image) - _census(brought))
    distance = jnp.sum(squared / (_HAMMING + squared), axis=-1, keepdims=True)
    unexplained = jnp.sum(jnp.abs(image - _brought_back(next_image, truth)), -1, keepdims=True)
    return weighted_mean(distance * jnp.exp(-_CONSISTENCY * jnp.square(unexplained)), mask)


def _brought_back(images: jax.Array, flow: jax.Array) -> jax.Array:
    return sample_bilinear(images, *targets(flow))


def _census(images: jax.Array) -> jax.Array:
    """By how much each of nine pixels is brighter than the one in the middle: [B, H, W, 3] -> [B, H, W, 9] in -1..1."""
    gray = 255 * jnp.sum(images.astype(jnp.float32) * jnp.array(_GRAY), axis=-1, keepdims=True)
    around = [_shifted(gray, down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    difference = jnp.concatenate(around, axis=-1) - gray
    return difference * jax.lax.rsqrt(_CONTRAST + jnp.square(difference))
