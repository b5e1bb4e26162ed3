"""Sources of training video: shards of `data.prepare`, a folder of videos or frame folders, synthetic scenes."""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds

from data.clips import VideoInfo
from data.images import resize
from data.synthetic import toy_scenes
from m3ddm_jax.scenes.scene import FPS, Scene
from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.container import Media
from m3ddm_jax.video.finding import find_videos

KINDS = ("shards", "videos", "synthetic")
SYNTHETIC_SCENES = 1_000_000
SYNTHETIC_FRAMES = 64
TOY_SCENES = "visits"


class Video(NamedTuple):
    """One opened video: read(indices, size=None) -> uint8 [n,h,w,3], the frames at `indices` scaled to size (h, w)."""

    name: str
    info: VideoInfo
    read: Callable[..., np.ndarray]


class Source(Protocol):
    """Videos by number. `name` needs no file; `open` raises ValueError where the video cannot be used."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def open(self, index: int) -> Video: ...


def open_source(kind: str, path: str | os.PathLike = "", *, lines: int = 256) -> Source:
    """Opens a source by its kind.

    shards: a folder written by `data.prepare`. videos: a folder searched, in all its depth, for video files and for
    folders of images. synthetic: scenes drawn on the spot; `lines` pixels on their short side where path is
    empty, those of data.synthetic.toy_scenes where it is "visits".

    Raises ValueError for an unknown kind and for a path that holds no video, or names no scenes.
    """
    if kind == "shards":
        return ShardSource(path)
    if kind == "videos":
        return FolderSource(path)
    if kind == "synthetic":
        if path not in ("", TOY_SCENES):
            raise ValueError(f"unknown synthetic scenes {path!r}, known: an empty path and {TOY_SCENES!r}")
        return ToySceneSource() if path else SyntheticSource(lines)
    raise ValueError(f"unknown source kind {kind!r}, known: {', '.join(KINDS)}")


class FolderSource:
    """The video files and frame folders below a folder, in natural order of their names."""

    def __init__(self, path: str | os.PathLike):
        self._root = pathlib.Path(path)
        self._paths = find_videos(self._root)
        self._index = functools.lru_cache(maxsize=1024)(index_video)

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return self._paths[index].relative_to(self._root).as_posix()

    def open(self, index: int) -> Video:
        source = self._index(self._paths[index])
        return Video(self.name(index), describe(source), functools.partial(read_frames, source))


class ShardSource:
    """Records of a TFDS data set in ArrayRecord files whose feature `video` holds encoded bytes."""

    def __init__(self, path: str | os.PathLike):
        try:
            builder = tfds.builder_from_directory(os.fspath(path))
            self._records = builder.as_data_source(split="train")
        except Exception as error:  # the library raises many kinds, all of which mean the same here
            raise ValueError(f"{path} holds no shards written by data.prepare") from error
        self._name = builder.info.name

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        return f"{self._name}/{index}"

    def open(self, index: int) -> Video:
        try:
            record = self._records[index]
        except RuntimeError as error:  # array_record's way to say that a file is damaged
            raise ValueError(f"the record cannot be read: {error}") from error
        info = VideoInfo(record["num_frames"], record["fps"], record["height"], record["width"])
        return Video(record["name"].decode(), info, functools.partial(read_media, record["video"]))


class SyntheticSource:
    """Scenes of m3ddm_jax.scenes: record k is the scene of seed k, its aspect drawn between 9:16 and 16:9."""

    def __init__(self, lines: int):
        self._lines = lines

    def __len__(self) -> int:
        return SYNTHETIC_SCENES

    def name(self, index: int) -> str:
        return f"synthetic/{index}"

    def open(self, index: int) -> Video:
        aspect = np.exp(np.random.default_rng([index, 1]).uniform(-1, 1) * np.log(16 / 9))
        height, width = (round(self._lines * max(1.0, side)) for side in (1 / aspect, aspect))
        read = functools.partial(draw_frames, Scene(index, height, width).frame)
        return Video(self.name(index), VideoInfo(SYNTHETIC_FRAMES, float(FPS), height, width), read)


class ToySceneSource:
    """Scenes of data.synthetic.toy_scenes: record k is the scene of seed k."""

    def __len__(self) -> int:
        return SYNTHETIC_SCENES

    def name(self, index: int) -> str:
        return f"{TOY_SCENES}/{index}"

    def open(self, index: int) -> Video:
        info = VideoInfo(toy_scenes.NUM_FRAMES, float(FPS), toy_scenes.SIDE, toy_scenes.SIDE)
        return Video(self.name(index), info, functools.partial(draw_frames, toy_scenes.make_scene(index).frame))


def draw_frames(
    draw: Callable[[int], np.ndarray], indices: Sequence[int], size: tuple[int, int] | None = None
) -> np.ndarray:
    """Returns the frames that `draw` draws of a scene, as Video.read does."""
    frames = (draw(index) for index in indices)
    return np.stack([frame if size is None else resize(frame, size) for frame in frames])


def index_video(media: Media) -> FrameSource:
    """Opens a video to be read on one thread, and lets go of it: what is kept is where its frames are."""
    source = FrameSource(media, threads=1)
    source.close()
    return source


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
