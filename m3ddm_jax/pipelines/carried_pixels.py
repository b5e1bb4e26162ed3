"""Pixels that other frames have seen, on disk, for outpainters that take them as known."""

import tempfile
from collections.abc import Sequence

import cv2
import numpy as np
from tqdm import tqdm

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines.isvi import Isvi
from m3ddm_jax.types import FramesTHWC
from m3ddm_jax.video import FrameSource

CONFIDENCE = 0.8
"""A carried pixel of more is known: flow there and back strayed by less than a quarter of a pixel on its whole way."""

_SPECK = 9  # pixels; islands of known ones that are narrower are left to the model, whose cells are about as wide


class CarriedPixels:
    """A source on its canvas with the pixels that `isvi` without networks carries into the border, frame by frame.

    They are found when it is made, and kept in a temporary file, so that memory does not grow with the video.
    carried[i, j, ...]: frames uint8 [n, H, W, 3], and uint8 [n, H, W, 1], 1 where they are not known.
    """

    def __init__(self, source: FrameSource, canvas: Canvas):
        self._shape = (canvas.height, canvas.width, 3)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with this object)
        with tqdm(total=len(source), desc="propagation", unit="frame", leave=False, disable=None) as progress:
            for frame, trust in Isvi(settings={"key_frames": 0}).carry(source, canvas):
                self._file.write(frame)
                self._file.write(np.packbits(_unknown(trust, canvas)))
                progress.update()

    def __getitem__(self, indices: Sequence[int]) -> tuple[FramesTHWC, np.ndarray]:
        height, width, channels = self._shape
        size, bits = height * width * channels, -(-height * width // 8)
        frames = np.empty((len(indices), *self._shape), np.uint8)
        masks = np.empty((len(indices), height, width, 1), np.uint8)
        for frame, mask, index in zip(frames, masks, indices, strict=True):
            self._file.seek(index * (size + bits))
            self._file.readinto(frame)
            packed = np.frombuffer(self._file.read(bits), np.uint8)
            mask[...] = np.unpackbits(packed, count=height * width).reshape(mask.shape)
        return frames, masks


def _unknown(confidence: np.ndarray, canvas: Canvas) -> np.ndarray:
    """uint8 [H, W, 1] of a frame's confidence, float32 [H, W, 1]."""
    trusted = (confidence[..., 0] > CONFIDENCE).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (_SPECK, _SPECK))
    return np.minimum(1 - cv2.morphologyEx(trusted, cv2.MORPH_OPEN, kernel)[..., None], canvas.mask())
