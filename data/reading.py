"""Reading frames of training videos: what a source opens, and how files and bytes are read."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from data.clips import VideoInfo
from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.container import Media

_READ_AT_ONCE = 1 << 24  # bytes


class Video(NamedTuple):
    """One opened video: read(indices, size=None) -> uint8 [n,h,w,3], the frames at `indices` scaled to size (h, w).

    part: the frames at which a clip of this record may begin, where other records have the rest of the video.
    """

    name: str
    info: VideoInfo
    read: Callable[..., np.ndarray]
    part: range | None = None


class NoSuchSplit(ValueError):
    """A source has no video of a split."""


def read_through(path: str | os.PathLike) -> None:
    """Reads a file to its end; raises OSError where that fails."""
    with open(path, "rb") as file:
        while file.read(_READ_AT_ONCE):
            pass


def describe(source: FrameSource) -> VideoInfo:
    """Returns what is known of an opened video."""
    return VideoInfo(len(source), source.fps, source.height, max(1, round(source.width * float(source.pixel_aspect))))


def read_frames(source: FrameSource, indices: Sequence[int], size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads frames of an indexed video, which stays as it is, in the order asked and with repeats.

    Returns uint8 [n,h,w,3], RGB, scaled to size (h, w), or else to square pixels. Raises ValueError for an index
    outside the video and for a frame that cannot be decoded.
    """
    info = describe(source)
    if not len(indices) or min(indices) < 0 or max(indices) >= info.num_frames:
        found = f"{min(indices)}..{max(indices)}" if len(indices) else "none"
        raise ValueError(f"frames {found} asked of a video of {info.num_frames} frames")
    reader = source.reopen()
    try:
        return reader.read(indices, size or (info.height, info.width))
    finally:
        reader.close()


def read_media(media: Media, indices: Sequence[int], size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads frames of a video file, or of the bytes of one, as `read_frames` does."""
    return read_frames(FrameSource(media, threads=1), indices, size)
