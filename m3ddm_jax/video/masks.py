"""Masks of a video's frames, from files (white on black) and arrays: one for all frames, or one for each."""

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
        _check_count(str(path), self.count, num_frames)
        self.height, self.width = self._source.height, self._source.width
        self._num_frames = num_frames
        self._single = _white(self._source[:]) if self.count == 1 else None

    def __getitem__(self, frames: slice) -> np.ndarray:
        if self._single is None:
            return _white(self._source[frames])
        count = len(range(self._num_frames)[frames])
        return np.broadcast_to(self._single, (count, *self._single.shape[1:]))


class ArrayMasks:
    """Masks as MaskSource has them, from a bool or uint8 array [H, W] or [T, H, W], not 0 where generated."""

    def __init__(self, masks: np.ndarray, num_frames: int):
        if masks.dtype not in (np.bool_, np.uint8) or masks.ndim not in (2, 3) or 0 in masks.shape:
            found = f"{masks.dtype} {list(masks.shape)}"
            raise ValueError(f"`mask` must be bool or uint8 [H, W] or [T, H, W], found {found}")
        self._masks = masks if masks.ndim == 3 else masks[None]
        self.count, self.height, self.width = self._masks.shape
        self._num_frames = num_frames
        _check_count("`mask`", self.count, num_frames)

    def __getitem__(self, frames: slice) -> np.ndarray:
        count = len(range(self._num_frames)[frames])
        chosen = self._masks[frames] if self.count == self._num_frames else self._masks
        return np.broadcast_to(chosen != 0, (count, self.height, self.width)).astype(np.uint8)[..., None]


def _check_count(name: str, count: int, num_frames: int) -> None:
    if count not in (1, num_frames):
        raise ValueError(f"{name} has {count} masks for {num_frames} frames: one for all or one for each is needed")


def _white(frames: np.ndarray) -> np.ndarray:
    """uint8 [n,h,w,1] of frames uint8 [n,h,w,3]."""
    return (frames >= HALF).any(-1, keepdims=True).astype(np.uint8)
