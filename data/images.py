"""Still images: finding, reading, scaling."""

import os
import pathlib
import re

import cv2
import numpy as np

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


def list_images(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the image files of a folder in natural order (frame2 before frame10)."""
    return sorted((path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES), key=natural_key)


def read_image(path: pathlib.Path) -> np.ndarray:
    """Reads an image as uint8 [H,W,3], RGB; raises ValueError where it cannot."""
    image = cv2.imread(os.fspath(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path.name} is not a readable image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scales uint8 [H,W,3] to size (height, width) whatever its aspect, averaging where it shrinks."""
    height, width = size
    shrinks = height <= frame.shape[0] and width <= frame.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(frame), (width, height), interpolation=interpolation)


def natural_key(path: pathlib.Path) -> list:
    """Sort key under which the numbers in names count as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.as_posix())]
