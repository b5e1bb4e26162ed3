"""What a FrameSource reads from: properties of a video, and one frame by its index."""

import abc
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from m3ddm_jax.video.clock import Clock
from m3ddm_jax.video.colour import Colour

PROGRESSIVE = 1  # libav's AVFieldOrder


class Reader(abc.ABC):
    """Properties and frames of a video; the properties are those of FrameSource."""

    fps: float
    height: int
    width: int
    timestamps: np.ndarray
    durations: np.ndarray
    pixel_aspect = Fraction(1)
    clock = Clock()
    colour = Colour()
    loops: int | None = None
    field_order = PROGRESSIVE
    pixel_format: str | None = None
    bits = 8
    has_alpha = False
    notes: tuple[str, ...] = ()

    @abc.abstractmethod
    def read(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """uint8 [h,w,3], RGB, of the frame of that index in the file, scaled to size (h, w) where one is given."""

    def native(self, index: int) -> av.VideoFrame | None:
        """The frame of that index in the pixel format of the file, upright; None where there is none."""
        return None

    def alpha(self, index: int) -> np.ndarray:
        """uint8 [h,w,1], 255 where the frame is opaque."""
        frame = self.native(index)
        if frame is None or not self.has_alpha:
            return np.full((self.height, self.width, 1), 255, np.uint8)
        return VideoReformatter().reformat(frame, format="rgba").to_ndarray()[..., 3:]

    def reopen(self) -> "Reader":
        """One that reads the same, and shares nothing with this one that reading changes."""
        return self

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what reading holds; the next read opens the file again."""


class ArrayReader(Reader):
    """Frames uint8 [n,h,w,3] in memory."""

    def __init__(self, frames: np.ndarray, fps: float):
        self._frames = frames
        self._reformatter = VideoReformatter()
        self.fps, self.timestamps = fps, np.arange(len(frames)) / fps
        self.durations = np.full(len(frames), 1 / fps)
        self.height, self.width = frames.shape[1:3]

    def read(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        frame = self._frames[index]
        if size is None:
            return frame.copy()
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        return self.colour.to_rgb(picture, self._reformatter, size)
