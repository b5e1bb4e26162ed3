"""Grain for what is smooth because nothing is known of it: as strong as the source's own texture, mirrored there.

Mirrored texture itself would show ghosts of what is in the picture; grain that is alike in strength shows nothing.
"""

import cv2
import numpy as np

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines.compositing import soften

# Lengths are parts of the canvas's short side.
_GRAIN = 1 / 320  # blur of the noise
_COARSEST = 1 / 100  # what is coarser than such a blur is no texture
_AROUND = 1 / 16  # blur of its strength
_REACH = 1 / 32  # from what is known to full strength: near it the continued pixels have texture of their own
_STRONGEST = 12.0  # levels of 0..255; edges are no texture


class Grain:
    """Lays grain over frames of a canvas. gain: of its strength, 1 being the source's texture's."""

    def __init__(self, canvas: Canvas, gain: float):
        self._canvas, self._gain = canvas, gain
        self._short = min(canvas.height, canvas.width)
        noise = np.random.default_rng(0).standard_normal((canvas.height, canvas.width)).astype(np.float32)
        noise = cv2.GaussianBlur(noise, (0, 0), max(0.4, self._short * _GRAIN))
        self._noise = noise / noise.std()

    def __call__(self, frame: np.ndarray, shown: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        """frame: float32 [H, W, 3] in 0..255. shown: the source's frame, uint8 [h, w, 3]. unknown: uint8 [H, W, 1], 1
        where nothing is known. Returns float32 [H, W, 3], the same where anything is known."""
        canvas = self._canvas
        bottom = canvas.height - canvas.top - canvas.source_height
        right = canvas.width - canvas.left - canvas.source_width
        grey = cv2.cvtColor(shown, cv2.COLOR_RGB2GRAY).astype(np.float32)
        texture = np.abs(grey - cv2.GaussianBlur(grey, (0, 0), self._short * _COARSEST))
        mirrored = cv2.copyMakeBorder(
            np.minimum(texture, _STRONGEST), canvas.top, bottom, canvas.left, right, cv2.BORDER_REFLECT_101
        )
        strength = self._gain * soften(mirrored, self._short * _AROUND)
        distance = cv2.distanceTransform(unknown, cv2.DIST_L2, 5)
        strength *= np.minimum(distance / (self._short * _REACH), 1)
        return frame + (strength * self._noise)[..., None]
