"""Sources of training video, by kind: large files of videos, folders of videos or of images, synthetic scenes."""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from data import splits
from data.clips import VideoInfo
from data.images import resize
from data.reading import NoSuchSplit, Video, describe, read_frames, read_through
from data.shards import TarSource, open_shards
from data.synthetic import toy_scenes
from m3ddm_jax.scenes.scene import FPS, Scene
from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.container import Media
from m3ddm_jax.video.finding import VIDEO_SUFFIXES, find_videos

KINDS = ("shards", "webdataset", "videos", "synthetic")
SYNTHETIC_SCENES = 1_000_000
HELD_OUT_SCENES = 20_000
SYNTHETIC_FRAMES = 64
TOY_SCENES = "visits"


class Source(Protocol):
    """Videos by number."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Which video it is; needs no file."""

    def open(self, index: int) -> Video:
        """Raises ValueError where the video cannot be used, also while it is read."""

    def check_storage(self, index: int) -> None:
        """Read what a video is stored in. Raises OSError where the storage does not answer, whatever it holds."""

    def lengths(self) -> Mapping[int, int] | None:
        """How many records are of videos of how many frames, where that is known without opening them."""


class SourceSpec(NamedTuple):
    """A source as a config describes it: its kind, path, weight in the mixture, and the split of its videos."""

    kind: str
    path: str
    weight: float
    split: str = splits.TRAIN


def open_source(kind: str, path: str | os.PathLike = "", *, lines: int = 256, split: str = splits.TRAIN) -> Source:
    """Opens a source by its kind.

    shards: a folder written by `data.prepare`, as a whole or in parts, or a data set of data.builders. webdataset: a
    folder searched for tar files of videos. videos: a folder searched, in all its depth, for video files and for
    folders of images. synthetic: scenes drawn on the spot; `lines` pixels on their short side where path is empty,
    those of data.synthetic.toy_scenes where it is "visits". split: whose videos (data.splits); shards have splits of
    their own.

    Raises ValueError for an unknown kind or split and for a path that holds no video, or names no scenes; NoSuchSplit
    where the source has no video of the split.
    """
    splits.check_split_name(split)
    if kind == "shards":
        return open_shards(path, split)
    if kind == "webdataset":
        return TarSource(path, split, VIDEO_SUFFIXES)
    if kind == "videos":
        return FolderSource(path, split)
    if kind == "synthetic":
        if path not in ("", TOY_SCENES):
            raise ValueError(f"unknown synthetic scenes {path!r}, known: an empty path and {TOY_SCENES!r}")
        return ToySceneSource(split) if path else SyntheticSource(lines, split)
    raise ValueError(f"unknown source kind {kind!r}, known: {', '.join(KINDS)}")


class FolderSource:
    """The video files and frame folders below a folder, in natural order of their names."""

    def __init__(self, path: str | os.PathLike, split: str = splits.TRAIN):
        self._root = pathlib.Path(path)
        named = {video.relative_to(self._root).as_posix(): video for video in find_videos(self._root)}
        self._paths = [named[name] for name in splits.names_of_split(list(named), split)]
        if not self._paths:
            raise NoSuchSplit(f"{path} holds one video: none is of the split {split}")
        self._index = functools.lru_cache(maxsize=1024)(index_video)

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return self._paths[index].relative_to(self._root).as_posix()

    def open(self, index: int) -> Video:
        source = self._index(self._paths[index])
        return Video(self.name(index), describe(source), functools.partial(read_frames, source))

    def check_storage(self, index: int) -> None:
        path = self._paths[index]
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            read_through(file)

    def lengths(self) -> None:
        return None


def _scenes_of_split(split: str) -> range:
    """The numbers of the scenes of a split."""
    scenes_by_split = {
        splits.TRAIN: range(SYNTHETIC_SCENES),
        splits.VALIDATION: range(SYNTHETIC_SCENES, SYNTHETIC_SCENES + HELD_OUT_SCENES),
    }
    return scenes_by_split.get(split, range(SYNTHETIC_SCENES + HELD_OUT_SCENES))


class SyntheticSource:
    """Scenes of m3ddm_jax.scenes, by their seeds; their aspects are drawn between 9:16 and 16:9."""

    def __init__(self, lines: int, split: str = splits.TRAIN):
        self._lines = lines
        self._scenes = _scenes_of_split(split)

    def __len__(self) -> int:
        return len(self._scenes)

    def name(self, index: int) -> str:
        return f"synthetic/{self._scenes[index]}"

    def open(self, index: int) -> Video:
        seed = self._scenes[index]
        aspect = np.exp(np.random.default_rng([seed, 1]).uniform(-1, 1) * np.log(16 / 9))
        height, width = (round(self._lines * max(1.0, side)) for side in (1 / aspect, aspect))
        read = functools.partial(draw_frames, Scene(seed, height, width).frame)
        return Video(self.name(index), VideoInfo(SYNTHETIC_FRAMES, float(FPS), height, width), read)

    def check_storage(self, index: int) -> None:
        del index  # drawn on the spot

    def lengths(self) -> Mapping[int, int]:
        return {SYNTHETIC_FRAMES: len(self)}


class ToySceneSource:
    """Scenes of data.synthetic.toy_scenes, by their seeds."""

    def __init__(self, split: str = splits.TRAIN):
        self._scenes = _scenes_of_split(split)

    def __len__(self) -> int:
        return len(self._scenes)

    def name(self, index: int) -> str:
        return f"{TOY_SCENES}/{self._scenes[index]}"

    def open(self, index: int) -> Video:
        info = VideoInfo(toy_scenes.NUM_FRAMES, float(FPS), toy_scenes.SIDE, toy_scenes.SIDE)
        return Video(
            self.name(index), info, functools.partial(draw_frames, toy_scenes.make_scene(self._scenes[index]).frame)
        )

    def check_storage(self, index: int) -> None:
        del index  # drawn on the spot

    def lengths(self) -> Mapping[int, int]:
        return {toy_scenes.NUM_FRAMES: len(self)}


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
