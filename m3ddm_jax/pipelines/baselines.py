"""Outpainters that see one frame at a time: repeated edges, a blur, inpainting by OpenCV."""

import abc
from collections.abc import Iterator

import cv2
import numpy as np

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines.compositing import spread
from m3ddm_jax.video import FrameSource

CHUNK = 8  # frames that are held at a time
TELEA_RADIUS = 5  # pixels; M3DDM's first guess has the same


def blur_fill(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fills what is unknown with the nearest known pixels, fading into a wide blur.

    frames: uint8 [T,H,W,3]. mask: uint8 [H,W,1], 1 = unknown. Returns uint8 [T,H,W,3], known pixels unchanged.
    """
    return np.clip(np.rint(spread(frames, mask)), 0, 255).astype(np.uint8)


def inpaint_telea(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Inpaints what is unknown, frame by frame, by OpenCV's Telea with a radius of 5 pixels.

    frames: uint8 [T,H,W,3]. mask: uint8 [H,W,1], 1 = unknown. Returns uint8 [T,H,W,3], known pixels unchanged.
    """
    return np.stack([cv2.inpaint(frame, mask[..., 0], TELEA_RADIUS, cv2.INPAINT_TELEA) for frame in frames])


class _FrameByFrame(abc.ABC):
    def __call__(self, source: FrameSource, canvas: Canvas, rng: None = None) -> Iterator[np.ndarray]:
        """Yields canvas frames, uint8 [n,H,W,3], a few at a time."""
        for start in range(0, len(source), CHUNK):
            frames = source[start : start + CHUNK]
            blank = np.zeros((len(frames), canvas.height, canvas.width, 3), np.uint8)
            yield self.fill(canvas.paste(blank, frames), canvas)

    @abc.abstractmethod
    def fill(self, frames: np.ndarray, canvas: Canvas) -> np.ndarray:
        """Canvas frames, uint8 [n,H,W,3], with what lies outside the source's box filled."""


class Edge(_FrameByFrame):
    """Repeats the edge pixels outward."""

    def fill(self, frames: np.ndarray, canvas: Canvas) -> np.ndarray:
        rows, columns = (
            np.clip(np.arange(side), box.start, box.stop - 1)
            for box, side in zip(canvas.box, (canvas.height, canvas.width), strict=True)
        )
        return frames[:, rows[:, None], columns[None, :]]


class Blur(_FrameByFrame):
    """Repeats the edge pixels, fading into a wide blur."""

    def fill(self, frames: np.ndarray, canvas: Canvas) -> np.ndarray:
        return blur_fill(frames, canvas.mask())


class Telea(_FrameByFrame):
    """Inpaints each frame by itself (Telea, An Image Inpainting Technique Based on the Fast Marching Method, 2004)."""

    def fill(self, frames: np.ndarray, canvas: Canvas) -> np.ndarray:
        return inpaint_telea(frames, canvas.mask())
