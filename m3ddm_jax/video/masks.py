"""Masks that files hold: white on black, an image for all frames or one mask a frame."""

import pathlib

import numpy as np

from m3ddm_jax.video.source import FrameSource

HALF = 128  # what is as bright, in its brightest channel, is white


class MaskSource:
    """Masks of a video, by slice: masks[i:j] is uint8 [n,h,w,1], 1 where the file is white, 0 where it is black.

    path: an image, a folder of images in natural order of their names, or a video; one mask serves for all frames.
    num_frames: of the masked video. fps: the rate at which that is sampled anew, and a video of masks with it.
    height and width: of the masks. count: of masks in the file. Memory is bounded as a FrameSource's is.

    Raises ValueError for what cannot be read, and for another number of masks than one or num_frames.
    """

    def __init__(self, path: str | pathlib.Path, num_frames: int, fps: float | None = None):
        self._source = FrameSource(path)
        if fps is not None and len(self._source) > 1:
            self._source = FrameSource(path, fps)
        self.count = len(self._source)
        if self.count not in (1, num_frames):
            needed = "one for all or one for each is needed"
            raise ValueError(f"{path} has {self.count} masks for {num_frames} frames: {needed}")
        self.height, self.width = self._source.height, self._source.width
        self._num_frames = num_frames
        self._single = _white(self._source[:]) if self.count == 1 else None

    def __getitem__(self, frames: slice) -> np.ndarray:
        if self._single is None:
            return _white(self._source[frames])
        count = len(range(self._num_frames)[frames])
        return np.broadcast_to(self._single, (count, *self._single.shape[1:]))


def _white(frames: np.ndarray) -> np.ndarray:
    """uint8 [n,h,w,1] of frames uint8 [n,h,w,3]."""
    return (frames >= HALF).any(-1, keepdims=True).astype(np.uint8)
