"""Scaling of images."""

import cv2
import numpy as np


def resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scales uint8 [H,W,3] to size (height, width) whatever its aspect, averaging where it shrinks."""
    height, width = size
    shrinks = height <= frame.shape[0] and width <= frame.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(frame), (width, height), interpolation=interpolation)
