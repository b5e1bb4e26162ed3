"""Refines LaMa's prediction from coarse to fine: features are optimised until each scale agrees with the one before.

Source: Feature Refinement to Improve High Resolution Image Inpainting (Kulshreshtha et al. 2022, arXiv 2206.13644).
"""

import functools
import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax

from m3ddm_jax.models.lama import LaMa
from m3ddm_jax.types import Variables

_MULTIPLE = 8  # of which sides are
_LITTLE = 1e-8
_RATE = 2e-3
_MOST_SCALES = 3
# Of the element that holes are eroded by, rows from the middle outwards: OpenCV's ellipse of 15x15 before version 5.
_WIDTHS = (15, 15, 15, 13, 13, 11, 9, 1)
_BLUR = np.exp(-(np.arange(-2, 3) ** 2) / 2)


def refine(
    module: LaMa, variables: Variables, image: np.ndarray, mask: np.ndarray, iterations: int, min_side: int
) -> np.ndarray:
    """The completed image, float32 [h, w, 3] in 0..1; known pixels unchanged.

    image: float32 [h, w, 3] in 0..1. mask: float32 [h, w, 1], 1 = unknown. iterations: forwards a scale but the
    coarsest, whose short side is about min_side; an image that is hardly larger has one scale, which is not refined.
    """
    scales = [(jnp.asarray(image), jnp.asarray(mask))]
    halvings = round(max(0.0, math.log2(min(image.shape[:2]) / min_side)))
    for _ in range(min(halvings, _MOST_SCALES - 1)):
        finer, hole = scales[-1]
        scales.append((_halved(_blurred(finer)), (_halved(_blurred(hole)) >= _LITTLE).astype(jnp.float32)))
    result = None
    for picture, hole in reversed(scales):
        result = _refine_scale(module, variables, picture, hole, result, iterations)
    return np.asarray(result)


def _refine_scale(
    module: LaMa, variables: Variables, image: jax.Array, mask: jax.Array, coarse: jax.Array | None, iterations: int
) -> jax.Array:
    """The completed image of a scale; coarse: that of half the size, None at the coarsest."""
    fill = [*((0, -side % _MULTIPLE) for side in image.shape[:2]), (0, 0)]
    padded, hole = (jnp.pad(x, fill, mode="reflect") for x in (image, mask))
    features = _encode(module, variables, padded, hole)
    if coarse is None:
        made = _decode(module, variables, features)
    else:
        inner = _eroded(np.asarray(_halved(mask) >= 1 - _LITTLE))
        # Of the picture without its padding, if anything of it is compared.
        compared = image.shape[:2] if inner.any() else None
        optimizer, known = optax.adam(_RATE), hole < _LITTLE
        state = optimizer.init(features)
        for step in range(iterations):
            change, made = _gradient(module, compared, features, variables, padded, known, coarse, inner)
            if step < iterations - 1:
                updates, state = optimizer.update(change, state)
                features = optax.apply_updates(features, updates)
    return jnp.where(mask > 0, made[: image.shape[0], : image.shape[1]], image)


@functools.partial(jax.jit, static_argnums=0)
def _encode(module: LaMa, variables: Variables, image: jax.Array, hole: jax.Array) -> tuple[jax.Array, jax.Array]:
    return module.apply(variables, image[None], hole[None], method="encode")


@functools.partial(jax.jit, static_argnums=0)
def _decode(module: LaMa, variables: Variables, features: tuple[jax.Array, jax.Array]) -> jax.Array:
    return module.apply(variables, *features, method="decode")[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
@functools.partial(jax.grad, argnums=2, has_aux=True)
def _gradient(
    module: LaMa,
    compared: tuple[int, int] | None,
    features: tuple[jax.Array, jax.Array],
    variables: Variables,
    image: jax.Array,
    known: jax.Array,
    coarse: jax.Array,
    inner: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Gradient, by the features, of the error on known pixels and against the coarser result, and the prediction.

    compared: size of what is compared with the coarser result; None for nothing. inner: bool [h / 2, w / 2, 1], the
    pixels that are.
    """
    made = _decode(module, variables, features)
    error = _mean(jnp.abs(made - image), known)
    if compared is not None:
        small = _halved(_blurred(made[: compared[0], : compared[1]]))
        error += _mean(jnp.abs(small - coarse), inner)
    return error, made


def _mean(x: jax.Array, where: np.ndarray | jax.Array) -> jax.Array:
    """Of [h, w, 3] over pixels [h, w, 1]."""
    return jnp.where(where, x, 0).sum() / (x.shape[-1] * where.sum())


def _blurred(x: jax.Array) -> jax.Array:
    """[h, w, C] under a Gaussian of 1 pixel, 5x5."""
    for axis in (0, 1):
        fill = [(0, 0)] * 3
        fill[axis] = (2, 2)
        wide, taps = jnp.pad(x, fill, mode="reflect"), _BLUR / _BLUR.sum()
        x = sum(float(tap) * jax.lax.slice_in_dim(wide, i, i + x.shape[axis], axis=axis) for i, tap in enumerate(taps))
    return x


def _halved(x: jax.Array) -> jax.Array:
    """[h, w, C] -> [h // 2, w // 2, C], bilinear."""
    return jax.image.resize(x, (x.shape[0] // 2, x.shape[1] // 2, x.shape[2]), "linear", antialias=False)


def _eroded(mask: np.ndarray) -> np.ndarray:
    """bool [h, w, 1] without what is near the edge of it; the image's border does not erode."""
    rows = [_WIDTHS[abs(row)] // 2 for row in range(-7, 8)]
    element = np.array([[abs(column) <= reach for column in range(-7, 8)] for reach in rows], np.uint8)
    return cv2.erode(mask.astype(np.uint8), element)[: mask.shape[0], :, None] > 0
