"""Reading: any frame of a video file or of images, in bounded memory."""

import copy
import pathlib
from collections.abc import Sequence
from typing import Literal

import av
import numpy as np

from m3ddm_jax.video.container import Media, name_of
from m3ddm_jax.video.damage import describe_damage
from m3ddm_jax.video.errors import Damaged, reraise_as
from m3ddm_jax.video.film import FilmReader
from m3ddm_jax.video.images import IMAGE_SUFFIXES, ImageReader, list_images
from m3ddm_jax.video.probe import probe
from m3ddm_jax.video.reader import ArrayReader, Reader
from m3ddm_jax.video.timeline import DEFAULT_FPS, check_rate

_MOST_FRAMES = 10_000_000  # of a video that is sampled anew


class FrameSource:
    """Frames of a video, by index: source[i:j] and source[[i, j, ...]] are uint8 [n,h,w,3], RGB.

    media: a video file or an image, the bytes of one, or a folder of images in natural order of their names. fps:
    frames per second; images have 24 where none is given, a video is sampled anew at the rate that is given.
    deinterlace: make whole frames of the fields of interlaced video. threads: that decode, 0 for one for each core.
    damage: a video with signs of damage is refused, or read as far as it goes with a note; or it is searched for
    damage that shows in decoding alone, which takes as long as decoding all of it.

    Attributes:
      path: of the file or folder, None for bytes and arrays.
      height, width: of the upright frame, without what the container says to cut away.
      pixel_aspect: width / height of one pixel.
      timestamps, durations: seconds [n] from the first frame on, and seconds [n] for which each is shown.
      clock: from times on the file's clock to these.
      loops: how often an animation is repeated, 0 for ever, None where it plays once.
      pixel_format, bits: libav's name of the frames' format, None for arrays, and the most bits of its components.
      has_alpha: whether frames have transparent pixels.
      field_order: libav's AVFieldOrder of the frames; progressive unless `deinterlace` is False.
      colour: how the file codes colours.
      notes: a line each on what was chosen or changed in reading, for the user.

    Memory is bounded: reading on decodes forward, reading back starts again at a keyframe, and a few decoded frames are
    kept. Raises ValueError for what cannot be read: nothing there, no video, no frames, frames of several sizes, and
    Damaged, also while frames are read, for a file that breaks off or is damaged.
    """

    def __init__(
        self,
        media: Media,
        fps: float | None = None,
        *,
        deinterlace: bool = True,
        threads: int = 0,
        damage: Literal["refuse", "note", "search"] = "refuse",
    ):
        if fps is not None:
            check_rate("fps", fps)
        self.path = None if isinstance(media, bytes) else pathlib.Path(media)
        if self.path is not None and self.path.is_dir():
            images = list_images(self.path)
            if not images:
                raise ValueError(f"the folder {self.path} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
            self._begin(ImageReader(images, fps or DEFAULT_FPS))
            return
        if self.path is not None and not self.path.is_file():
            raise ValueError(f"there is no file or folder {self.path}")
        with reraise_as(f"{name_of(media)} is no readable video"):
            probed, container = probe(media)
        if probed.is_image:
            container.close()
            self._begin(ImageReader([media], fps or DEFAULT_FPS))
            return
        if probed.expected is not None and damage == "refuse":
            container.close()
            whole = len(probed.packets.pts) - probed.expected.corrupt
            raise Damaged(describe_damage(probed.name, whole, probed.expected))
        tolerant = damage == "search" or probed.expected is not None
        self._begin(FilmReader(probed, container, deinterlace, threads, tolerant))
        if fps is not None:
            self._resample(fps)

    @classmethod
    def from_array(cls, frames: np.ndarray, fps: float = DEFAULT_FPS) -> "FrameSource":
        """Frames uint8 [n,h,w,3] that are in memory already."""
        if frames.ndim != 4 or not len(frames) or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"frames must be uint8 [n,h,w,3], found {frames.dtype} {list(frames.shape)}")
        source = cls.__new__(cls)
        source.path = None
        source._begin(ArrayReader(frames, fps))
        return source

    def _begin(self, reader: Reader) -> None:
        self._reader = reader
        self._shown = range(len(reader.timestamps))  # which frame of the file each of ours is
        self.fps, self.timestamps, self.durations = reader.fps, reader.timestamps, reader.durations
        self.clock, self.loops, self.notes = reader.clock, reader.loops, list(reader.notes)
        self.height, self.width, self.pixel_aspect = reader.height, reader.width, reader.pixel_aspect
        self.pixel_format, self.bits, self.has_alpha = reader.pixel_format, reader.bits, reader.has_alpha
        self.field_order, self.colour = reader.field_order, reader.colour

    def _resample(self, fps: float) -> None:
        """Takes the frame that is shown at each tick of `fps`."""
        length = self.timestamps[-1] + self.durations[-1]
        if length * fps > _MOST_FRAMES:
            raise ValueError(f"{length:g} s at {fps:g} frames per second: {_MOST_FRAMES:,} frames are accepted")
        ticks = np.arange(max(1, round(length * fps))) / fps
        # a tick that falls on a frame shows it, whatever the last digit says
        self._shown = np.maximum(0, np.searchsorted(self.timestamps, ticks + 1e-6, "right") - 1).tolist()
        self.fps, self.timestamps, self.durations = fps, ticks, np.full(len(ticks), 1 / fps)

    def reopen(self) -> "FrameSource":
        """The same frames, read independently: for another thread, or from another place on."""
        other = copy.copy(self)
        other._reader = self._reader.reopen()
        return other

    def through(self, reader: Reader) -> "FrameSource":
        """The same video, whose frames and properties a reader gives that reads this one."""
        other = copy.copy(self)
        other._begin(reader)
        return other

    def close(self) -> None:
        """Give back the opened file and the frames that are kept; the next read opens it again."""
        self._reader.close()

    def __len__(self) -> int:
        return len(self._shown)

    def __getitem__(self, key: slice | Sequence[int]) -> np.ndarray:
        """uint8 [n,h,w,3] of a slice or of any indices; raises IndexError for one outside the video."""
        return self.read(range(len(self))[key] if isinstance(key, slice) else key)

    def read(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> np.ndarray:
        """uint8 [n,h,w,3] of any indices, scaled to size (h, w) where one is given; raises IndexError as slices do."""
        shown = [self._shown[index] for index in indices]
        if len(shown) == 1:
            return self._reader.read(shown[0], size)[None]
        frames = np.empty((len(shown), *(size or (self.height, self.width)), 3), np.uint8)
        for place in np.argsort(shown, kind="stable"):
            frames[place] = self._reader.read(shown[place], size)
        return frames

    def native(self, index: int) -> av.VideoFrame | None:
        """The frame of source[[index]] as it was decoded, in `pixel_format`, upright and without cut borders.

        None for arrays, and for an image of a folder that is of another format than the first.
        """
        return self._reader.native(self._shown[index])

    def alpha(self, key: slice | Sequence[int]) -> np.ndarray:
        """uint8 [n,h,w,1] of a slice or of any indices: 0 where a frame is transparent, 255 where it is opaque."""
        indices = range(len(self))[key] if isinstance(key, slice) else key
        return np.stack([self._reader.alpha(self._shown[index]) for index in indices])
