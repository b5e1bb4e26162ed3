"""What may be outpainted: files, arrays, and iterables of frames, as a FrameSource."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

import numpy as np

from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.errors import Damaged
from m3ddm_jax.video.sdr import to_sdr
from m3ddm_jax.video.timeline import DEFAULT_FPS, check_rate

Video = str | os.PathLike | np.ndarray | FrameSource | Iterable[np.ndarray]
"""A video file, an image or a folder of images by its path, or frames: uint8 [T, H, W, 3], or an iterable of uint8
[H, W, 3]."""

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


def is_path(video: Video) -> bool:
    """Whether a video is given by its path."""
    return isinstance(video, str | os.PathLike)


def read_file(
    path: str | os.PathLike,
    use: Callable[[FrameSource], T],
    fps: float | None = None,
    *,
    deinterlace: bool = True,
    strict: bool = False,
    sdr: bool = False,
) -> T:
    """use(source) of a file, called again where damage shows that only decoding finds.

    fps, deinterlace: as in FrameSource. strict: raise Damaged instead of leaving out frames that cannot be decoded.
    sdr: convert HDR to 8-bit BT.709. Logs what FrameSource notes. Raises ValueError for what cannot be read.
    """

    def open_file(damage: Literal["refuse", "note", "search"]) -> FrameSource:
        source = FrameSource(path, fps, deinterlace=deinterlace, damage=damage)
        return _noted(to_sdr(source) if sdr else source)

    try:
        return use(open_file("refuse" if strict else "note"))
    except Damaged:
        if strict:
            raise
    return use(open_file("search"))


def open_video(video: Video, fps: float | None = None) -> FrameSource:
    """A video as a FrameSource.

    fps: frames per second; frames and folders have 24 where none is given, a file is sampled anew at the rate.
    Iterables are written to a temporary file, so that memory does not grow with their length.
    Raises ValueError for what cannot be read, and frames of another dtype or shape; TypeError for what is no video.
    """
    if is_path(video):
        return _noted(FrameSource(video, fps, damage="note"))
    if isinstance(video, FrameSource):
        if fps is not None:
            raise ValueError("`fps` of a FrameSource is given when it is made")
        return video
    if fps is not None:
        check_rate("`fps`", fps)
    frames = np.asarray(video) if hasattr(video, "__array__") else _spool(video)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"`video` must be uint8 [T, H, W, 3] in 0..255, found {_described(frames)}")
    if 0 in frames.shape:
        raise ValueError(f"`video` has no frames or no pixels, found {_described(frames)}")
    return FrameSource.from_array(frames, DEFAULT_FPS if fps is None else fps)


def _spool(frames: Iterable[np.ndarray]) -> np.ndarray:
    """uint8 [T, H, W, 3] of frames [H, W, 3], in a temporary file that ends with the array."""
    if isinstance(frames, bytes) or not isinstance(frames, Iterable):
        accepted = "a path, a uint8 array [T, H, W, 3] or an iterable of uint8 frames [H, W, 3]"
        raise TypeError(f"`video` must be {accepted}, found {type(frames).__name__}")
    shape, count = None, 0
    with tempfile.TemporaryFile() as file:
        for frame in map(np.asarray, frames):
            shape = shape or frame.shape
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape != shape or shape[-1] != 3 or 0 in shape:
                accepted = "uint8 [H, W, 3]" if not count else f"uint8 {list(shape)} like the first"
                raise ValueError(f"frame {count} of `video` must be {accepted}, found {_described(frame)}")
            file.write(np.ascontiguousarray(frame))
            count += 1
        if not count:
            raise ValueError("`video` has no frames")
        file.flush()
        return np.memmap(file, np.uint8, "r", shape=(count, *shape))


def _described(frames: np.ndarray) -> str:
    return f"{frames.dtype} {list(frames.shape)}"


def _noted(source: FrameSource) -> FrameSource:
    for note in source.notes:
        _LOG.warning("%s", note)
    return source
