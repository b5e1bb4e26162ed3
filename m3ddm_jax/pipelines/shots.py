"""Where a source cuts from one shot to the next."""

import cv2
import numpy as np

from data.shots import NEIGHBOURS, THUMBNAIL, find_cuts
from m3ddm_jax.video import FrameSource

_BLOCK = 256
# Frames on either side of a cut that decide on it.
_MARGIN = NEIGHBOURS + 2


def source_cuts(source: FrameSource) -> list[int]:
    """The first frame of every shot of a source but the first one; reads the source once, in blocks."""
    cuts = []
    for start in range(0, len(source), _BLOCK):
        first, last = max(0, start - _MARGIN), min(len(source), start + _BLOCK + _MARGIN)
        found = (first + cut for cut in find_cuts(_thumbnails(source[first:last])))
        cuts += [cut for cut in found if start <= cut < start + _BLOCK]
    return cuts


def _thumbnails(frames: np.ndarray) -> np.ndarray:
    height, width = THUMBNAIL
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])
