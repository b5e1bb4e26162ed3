"""Sources of training video: shards of `data.prepare`, a folder of videos or frame folders, synthetic scenes."""

import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds

from data import decode
from data.decode import DEFAULT_FPS, PacketIndex, VideoInfo
from data.images import IMAGE_SUFFIXES, list_images, natural_key, read_image, resize
from data.synthetic import scenes, toy_scenes

KINDS = ("shards", "videos", "synthetic")
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif"})
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
        self._probe = functools.lru_cache(maxsize=1024)(probe_path)

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return self._paths[index].relative_to(self._root).as_posix()

    def open(self, index: int) -> Video:
        path = self._paths[index]
        info = self._probe(path)
        return Video(self.name(index), info, functools.partial(read_path, path, packets=info.packets))


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
        return Video(record["name"].decode(), info, functools.partial(decode.decode_clip, record["video"]))


class SyntheticSource:
    """Scenes of data.synthetic: record k is the scene of seed k, its aspect drawn between 9:16 and 16:9."""

    def __init__(self, lines: int):
        self._lines = lines

    def __len__(self) -> int:
        return SYNTHETIC_SCENES

    def name(self, index: int) -> str:
        return f"synthetic/{index}"

    def open(self, index: int) -> Video:
        aspect = np.exp(np.random.default_rng([index, 1]).uniform(-1, 1) * np.log(16 / 9))
        height, width = (round(self._lines * max(1.0, side)) for side in (1 / aspect, aspect))
        read = functools.partial(draw_frames, scenes.Scene(index, height, width).frame)
        return Video(self.name(index), VideoInfo(SYNTHETIC_FRAMES, float(scenes.FPS), height, width), read)


class ToySceneSource:
    """Scenes of data.synthetic.toy_scenes: record k is the scene of seed k."""

    def __len__(self) -> int:
        return SYNTHETIC_SCENES

    def name(self, index: int) -> str:
        return f"{TOY_SCENES}/{index}"

    def open(self, index: int) -> Video:
        info = VideoInfo(toy_scenes.NUM_FRAMES, float(scenes.FPS), toy_scenes.SIDE, toy_scenes.SIDE)
        return Video(self.name(index), info, functools.partial(draw_frames, toy_scenes.make_scene(index).frame))


def draw_frames(
    draw: Callable[[int], np.ndarray], indices: Sequence[int], size: tuple[int, int] | None = None
) -> np.ndarray:
    """Returns the frames that `draw` draws of a scene, as Video.read does."""
    frames = (draw(index) for index in indices)
    return np.stack([frame if size is None else resize(frame, size) for frame in frames])


def find_videos(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns what counts as a video below `root`, in natural order.

    That is every video file, and every folder that holds images and no video file. Raises ValueError where there
    is none, and where `root` is not a folder.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    files = [path for path in root.rglob("*") if path.is_file()]
    videos = {path for path in files if path.suffix.lower() in VIDEO_SUFFIXES}
    folders = {path.parent for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    found = videos | (folders - {path.parent for path in videos})
    if not found:
        raise ValueError(f"{root} holds no video file and no folder of images")
    return sorted(found, key=natural_key)


def probe_path(path: pathlib.Path) -> VideoInfo:
    """Returns what decode.probe does, for a video file or for a folder of images (DEFAULT_FPS frames per second)."""
    if not path.is_dir():
        return decode.probe(path)
    images = list_images(path)
    if not images:
        raise ValueError("the folder holds no images")
    return VideoInfo(len(images), DEFAULT_FPS, *read_image(images[0]).shape[:2])


def read_path(
    path: pathlib.Path,
    indices: Sequence[int],
    size: tuple[int, int] | None = None,
    packets: PacketIndex | None = None,
) -> np.ndarray:
    """Returns the frames at `indices` of a video file or a folder of images: uint8 [n,h,w,3], scaled to size (h, w)."""
    if not path.is_dir():
        return decode.decode_clip(path, indices, size, packets)
    images = list_images(path)
    if not all(0 <= index < len(images) for index in indices):
        raise ValueError(f"frames {min(indices)}..{max(indices)} asked of a folder of {len(images)} images")
    frames = [read_image(images[index]) for index in indices]
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError("the frame size changes")
    return np.stack([frame if size is None else resize(frame, size) for frame in frames])


def stream_path(path: pathlib.Path, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Reads all frames of a video file or a folder of images: yields uint8 [h,w,3], scaled to size (h, w)."""
    if not path.is_dir():
        yield from decode.stream_frames(path, size)
        return
    for image in list_images(path):
        yield resize(read_image(image), size)
