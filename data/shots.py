"""What a shot shows: where its picture has black bars, whether anything moves."""

import numpy as np

from data.masks import Box

BLACK = 24
STILL_RANGE = 6.0


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
