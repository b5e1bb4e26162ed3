"""Reading: any frame of a video file or of a folder of images, in bounded memory."""

import abc
import collections
import copy
import math
import pathlib
import re
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from m3ddm_jax.video.colour import Colour
from m3ddm_jax.video.errors import reraise_as

DEFAULT_FPS = 24.0
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
CACHE_BYTES = 64 << 20
CACHE_FRAMES = 32


class FrameSource:
    """Frames of a video, by index: source[i:j] and source[[i, j, ...]] are uint8 [n,h,w,3], RGB.

    path: a video file, or a folder of images in natural order of their names; None for an array. fps: frames per
    second; a folder has 24 where none is given, and a video is sampled anew at the rate that is given. height and
    width: of the upright frame. pixel_aspect: width / height of one pixel. timestamps: seconds [n] from the first frame
    on. start_time: seconds on the file's clock at that frame. colour: how the file codes colours.

    Memory is bounded: reading on decodes forward, reading back starts again at a keyframe, and a few decoded frames are
    kept. Raises ValueError for what cannot be read: nothing there, no video, no frames, frames of several sizes, a file
    that breaks off.
    """

    def __init__(self, path: str | pathlib.Path, fps: float | None = None):
        self.path = pathlib.Path(path)
        if fps is not None and not (0 < fps < math.inf):
            raise ValueError(f"fps must be positive, found {fps:g}")
        if self.path.is_dir():
            self._begin(_ImageReader(self.path, fps or DEFAULT_FPS))
        elif self.path.is_file():
            self._begin(_VideoReader(self.path))
            if fps is not None:
                self._resample(fps)
        else:
            raise ValueError(f"there is no file or folder {self.path}")

    @classmethod
    def from_array(cls, frames: np.ndarray, fps: float = DEFAULT_FPS) -> "FrameSource":
        """Frames uint8 [n,h,w,3] that are in memory already."""
        if frames.ndim != 4 or not len(frames) or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"frames must be uint8 [n,h,w,3], found {frames.dtype} {list(frames.shape)}")
        source = cls.__new__(cls)
        source.path = None
        source._begin(_ArrayReader(frames, fps))
        return source

    def _begin(self, reader: "_Reader") -> None:
        self._reader = reader
        self._shown = range(len(reader.timestamps))  # which frame of the file each of ours is
        self.fps, self.timestamps, self.start_time = reader.fps, reader.timestamps, reader.start_time
        self.height, self.width, self.pixel_aspect = reader.height, reader.width, reader.pixel_aspect
        self.colour = reader.colour

    def _resample(self, fps: float) -> None:
        """Takes the frame that is shown at each tick of `fps`."""
        length = self.timestamps[-1] + 1 / self.fps
        ticks = np.arange(max(1, round(length * fps))) / fps
        # a tick that falls on a frame shows it, whatever the last digit says
        self._shown = np.maximum(0, np.searchsorted(self.timestamps, ticks + 1e-6, "right") - 1).tolist()
        self.fps, self.timestamps = fps, ticks

    def reopen(self) -> "FrameSource":
        """The same frames, read independently: for another thread, or from another place on."""
        other = copy.copy(self)
        other._reader = self._reader.reopen()
        return other

    def __len__(self) -> int:
        return len(self._shown)

    def __getitem__(self, key: slice | Sequence[int]) -> np.ndarray:
        """uint8 [n,h,w,3] of a slice or of any indices; raises IndexError for one outside the video."""
        indices = [self._shown[i] for i in (range(len(self))[key] if isinstance(key, slice) else key)]
        frames = np.empty((len(indices), self.height, self.width, 3), np.uint8)
        for place in np.argsort(indices, kind="stable"):
            frames[place] = self._reader.read(indices[place])
        return frames


class _Reader(abc.ABC):
    """What a FrameSource stands on: properties of the video, and one frame by index."""

    fps: float
    height: int
    width: int
    timestamps: np.ndarray
    pixel_aspect = Fraction(1)
    start_time = 0.0
    colour = Colour()

    @abc.abstractmethod
    def read(self, index: int) -> np.ndarray:
        """uint8 [h,w,3] of the frame of that index in the file."""

    def reopen(self) -> "_Reader":
        """One that reads the same, and shares nothing with this one that reading changes."""
        return self


class _ArrayReader(_Reader):
    def __init__(self, frames: np.ndarray, fps: float):
        self._frames = frames
        self.fps, self.timestamps = fps, np.arange(len(frames)) / fps
        self.height, self.width = frames.shape[1:3]

    def read(self, index: int) -> np.ndarray:
        return self._frames[index]


class _ImageReader(_Reader):
    def __init__(self, folder: pathlib.Path, fps: float):
        names = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
        self._paths = sorted(names, key=_natural)
        if not self._paths:
            raise ValueError(f"the folder {folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self.fps, self.timestamps = fps, np.arange(len(self._paths)) / fps
        self.height, self.width = _read_image(self._paths[0]).shape[:2]

    def read(self, index: int) -> np.ndarray:
        path = self._paths[index]
        image = _read_image(path)
        if image.shape[:2] != (self.height, self.width):
            found = f"{image.shape[1]}x{image.shape[0]}"
            raise ValueError(f"frames must all be {self.width}x{self.height} like {self._paths[0]}, {path} is {found}")
        return image


def _read_image(path: pathlib.Path) -> np.ndarray:
    with reraise_as(f"{path} is no readable image"), av.open(f"file:{path}") as container:
        frame = next(container.decode(_video_stream(container, path)), None)
        if frame is None:
            raise ValueError(f"{path} is no readable image")
        colour = Colour.of(frame, container.streams.video[0].codec_context)
        return np.rot90(colour.to_rgb(frame, VideoReformatter()), _quarter_turns(frame))


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise turns that bring a frame upright."""
    return round(frame.rotation / 90) % 4


def _natural(path: pathlib.Path) -> list:
    """frame_2 before frame_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", path.name)]


class _VideoReader(_Reader):
    """One decoder that runs forward and goes back to keyframes; the frames it passed last are kept undecoded to RGB."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._container = None
        self._reformatter = VideoReformatter()
        self._cache: collections.OrderedDict[int, av.VideoFrame] = collections.OrderedDict()
        with reraise_as(f"{path} is no readable video"):
            self._index()
            self._restart()
            first = next(self._decoder, None)
            if first is None:
                raise ValueError(f"{path} has no frames that can be decoded")
            self._describe(first)
            self._take(first)

    def _index(self) -> None:
        """Learns from the packets alone how many frames there are, when each is shown and where decoding can begin."""
        with av.open(f"file:{self._path}") as container:
            stream = _video_stream(container, self._path)
            times, keys, corrupt, end = [], [], False, 0.0
            for packet in container.demux():
                if not packet.size:
                    continue
                corrupt = packet.is_corrupt  # of the last one: a file that ends within a packet
                if packet.dts is not None or packet.pts is not None:
                    moment = (packet.pts if packet.pts is not None else packet.dts) + (packet.duration or 0)
                    end = max(end, float(moment * packet.time_base))
                if packet.stream_index == stream.index and not packet.is_discard:
                    times.append(packet.pts)
                    keys.append(packet.is_keyframe)
            if not times:
                raise ValueError(f"{self._path} has no frames")
            # a cut file may hold fewer frames than announced, so may one with an edit list: that ends when it should
            missing = len(times) < stream.frames and end < (container.duration or 0) / av.time_base - 0.1
            if corrupt or missing or _ends_early(self._path, container.format.name):
                raise ValueError(f"{self._path} breaks off: it is truncated or damaged")
            self._order(times, keys, container.format.name)
            rates = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
            self._set_times(rates, float(stream.time_base))

    def reopen(self) -> "_VideoReader":
        other = copy.copy(self)
        other._container, other._reformatter, other._cache = None, VideoReformatter(), collections.OrderedDict()
        with reraise_as(f"{self._path} cannot be decoded"):
            other._restart()
        return other

    def _order(self, times: list[int | None], keys: list[bool], container_format: str) -> None:
        # without timestamps, or with the same ones twice as in joined files, frames are counted
        self._counted = None in times or len(set(times)) < len(times)
        if self._counted:
            times, keys = range(len(times)), [True] + [False] * (len(times) - 1)
        elif container_format == "gif":
            keys = [True] + [False] * (len(times) - 1)  # its frames build on one another
        order = np.argsort(times, kind="stable")
        self._ticks = np.array(times, np.int64)[order]
        self._keyframes = np.flatnonzero(np.array(keys)[order])

    def _set_times(self, rates: list[float], tick: float) -> None:
        """A constant rate where one explains the timestamps to a tick, or else the mean rate and the timestamps."""
        count = len(self._ticks)
        if not self._counted:
            self.start_time = float(self._ticks[0] * tick)
            self.timestamps = (self._ticks - self._ticks[0]) * tick
        for rate in rates or [DEFAULT_FPS]:
            steady = np.arange(count) / rate
            if self._counted or np.abs(self.timestamps - steady).max() <= 1.01 * max(tick, 0.001):
                self.fps, self.timestamps = rate, steady
                return
        length = self.timestamps[-1]
        self.fps = (count - 1) / length if length > 0 else DEFAULT_FPS

    def _describe(self, frame: av.VideoFrame) -> None:
        self._shape = (frame.height, frame.width)
        self._turns = _quarter_turns(frame)
        self.height, self.width = self._shape[::-1] if self._turns % 2 else self._shape
        aspect = self._stream.sample_aspect_ratio or Fraction(1)
        self.pixel_aspect = 1 / aspect if self._turns % 2 else aspect
        self.colour = Colour.of(frame, self._stream.codec_context)
        size = sum(plane.buffer_size for plane in frame.planes)
        self._cache_frames = max(2, min(CACHE_FRAMES, CACHE_BYTES // size))

    def _restart(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = av.open(f"file:{self._path}")
        self._stream = _video_stream(self._container, self._path)
        self._stream.thread_type = "AUTO"
        self._begin(0)

    def _begin(self, index: int) -> None:
        self._decoder = self._container.decode(self._stream)
        self._next = self._begun = index  # the frame that comes next, the frame where decoding began

    def read(self, index: int) -> np.ndarray:
        with reraise_as(f"{self._path} cannot be decoded"):
            frame = self._cache[index] if index in self._cache else self._decode(index)
            return np.rot90(self.colour.to_rgb(frame, self._reformatter), self._turns)

    def _decode(self, index: int) -> av.VideoFrame:
        """Decodes up to the frame; where the stream leaves it out, the frame that is shown at its time."""
        keyframe = int(self._keyframes[self._keyframes <= index].max(initial=0))
        if index < self._next or keyframe > self._next:
            self._seek(keyframe)
        shown = self._cache.get(index - 1)
        for frame in self._decoder:
            position = self._take(frame)
            if position < index:
                shown = frame
            elif position > index and shown is None and self._begun > 0:
                break
            else:
                found = frame if position == index or shown is None else shown
                self._keep(index, found)
                return found
        if self._begun > 0:
            self._keyframes = self._keyframes[:0]  # decoding began behind the keyframe: this container cannot seek
            self._restart()
            return self._decode(index)
        raise ValueError(f"{self._path} breaks off: frame {index} of {len(self._ticks)} cannot be decoded")

    def _seek(self, keyframe: int) -> None:
        if keyframe == 0:
            self._restart()
            return
        self._container.seek(int(self._ticks[keyframe]), stream=self._stream)
        self._begin(keyframe)

    def _take(self, frame: av.VideoFrame) -> int:
        """Keeps a frame that the decoder has just given, and says which one it is."""
        position = self._next
        if not self._counted and frame.pts is not None:
            position = int(np.searchsorted(self._ticks, frame.pts, "right")) - 1
        if (frame.height, frame.width) != self._shape:
            before, after = (f"{w}x{h}" for h, w in (self._shape, (frame.height, frame.width)))
            raise ValueError(f"{self._path} changes its frame size from {before} to {after} at frame {position}")
        self._next = position + 1
        self._keep(position, frame)
        return position

    def _keep(self, index: int, frame: av.VideoFrame) -> None:
        self._cache[index] = frame
        self._cache.move_to_end(index)
        while len(self._cache) > self._cache_frames:
            self._cache.popitem(last=False)


def _video_stream(container, path: pathlib.Path):
    if not container.streams.video:
        raise ValueError(f"{path} has no video stream")
    return container.streams.video[0]


def _ends_early(path: pathlib.Path, container_format: str) -> bool:
    """Whether a container's own end lies beyond the end of the file; libav reads such a file without a word."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if container_format == "gif":
            file.seek(-min(size, 16), 2)
            return not file.read().rstrip(b"\0").endswith(b";")
        if "matroska" not in container_format:
            return False
        file.seek(0)
        head = file.read(4096)
    # EBML: an identifier, then a length whose leading zeros say how many bytes it has; all ones mean "unknown"
    segment = head.find(b"\x18\x53\x80\x67")
    if segment < 0 or segment + 12 > len(head):
        return False
    width = 9 - head[segment + 4].bit_length()
    length = int.from_bytes(head[segment + 4 : segment + 4 + width]) & ((1 << 7 * width) - 1)
    return length != (1 << 7 * width) - 1 and segment + 4 + width + length > size
