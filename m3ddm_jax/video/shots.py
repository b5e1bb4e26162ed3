"""Where a video cuts from one shot to the next."""

import cv2
import numpy as np

from m3ddm_jax.video.source import FrameSource

THUMBNAIL = (32, 32)
NEIGHBOURS = 6
SMALLEST_CUT = 12.0
CUT_RATIO = 3.0
SMALLEST_HISTOGRAM_CHANGE = 0.18

_BLOCK = 256
# Frames on either side of a cut that decide on it.
_MARGIN = NEIGHBOURS + 2


def find_cuts(thumbnails: np.ndarray) -> list[int]:
    """Returns the first frame of every shot but the first one.

    thumbnails: uint8 [T,h,w,3]. A cut is a jump of pixels and of colour histogram at once, several times larger than
    the changes around it (else it is fast motion), after which the picture stays changed (else it is a flash).
    PySceneDetect's AdaptiveDetector finds the same: all joins of 61 pairs of real clips and nothing else; its
    ContentDetector also finds 22 cuts that are none.
    """
    frames = thumbnails.astype(np.float32)
    if len(frames) < 2:
        return []
    change = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))  # change[t]: from frame t to t + 1
    histogram_change = np.abs(np.diff(_histograms(thumbnails), axis=0)).sum(axis=1) / 2
    cuts = []
    for before in range(len(change)):
        around = np.r_[change[max(0, before - NEIGHBOURS) : before], change[before + 1 : before + 1 + NEIGHBOURS]]
        usual = np.median(around) if len(around) else 0.0
        if change[before] < max(SMALLEST_CUT, CUT_RATIO * usual):
            continue
        if histogram_change[before] < SMALLEST_HISTOGRAM_CHANGE:
            continue
        earlier, later = frames[max(0, before - 1)], frames[min(len(frames) - 1, before + 2)]
        if np.abs(later - earlier).mean() > change[before] / 2:
            cuts.append(before + 1)
    return cuts


def _histograms(thumbnails: np.ndarray) -> np.ndarray:
    """Colour histograms of 4 x 4 x 4 bins that sum to 1: [T,h,w,3] -> float32 [T,64]."""
    bins = thumbnails // 64
    codes = (bins[..., 0].astype(np.int64) * 4 + bins[..., 1]) * 4 + bins[..., 2]
    codes = codes.reshape(len(codes), -1)
    counts = np.stack([np.bincount(frame, minlength=64) for frame in codes])
    return counts.astype(np.float32) / codes.shape[1]


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
