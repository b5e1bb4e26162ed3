"""Sources of training video: shards of `data.prepare`, a folder of videos or frame folders, synthetic scenes."""

import collections
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds

from data import splits
from data.builders.clips import LENGTHS
from data.clips import VideoInfo
from data.encode import part_borders
from data.images import resize
from data.synthetic import scenes, toy_scenes
from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.container import Media
from m3ddm_jax.video.images import IMAGE_SUFFIXES, natural_key

KINDS = ("shards", "videos", "synthetic")
# of files that are videos, most of which libav reads; `data.prepare` tries files of any other name too
VIDEO_SUFFIXES = frozenset(
    {
        ".3g2",
        ".3gp",
        ".apng",
        ".asf",
        ".avi",
        ".divx",
        ".dv",
        ".f4v",
        ".flv",
        ".gif",
        ".ivf",
        ".m1v",
        ".m2t",
        ".m2ts",
        ".m2v",
        ".m4v",
        ".mjpeg",
        ".mjpg",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpe",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".nut",
        ".ogm",
        ".ogv",
        ".qt",
        ".rm",
        ".rmvb",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    }
)
SYNTHETIC_SCENES = 1_000_000
HELD_OUT_SCENES = 20_000
SYNTHETIC_FRAMES = 64
TOY_SCENES = "visits"
_READ_AT_ONCE = 1 << 24  # bytes


class Video(NamedTuple):
    """One opened video: read(indices, size=None) -> uint8 [n,h,w,3], the frames at `indices` scaled to size (h, w).

    part: the frames at which a clip of this record may begin, where other records have the rest of the video.
    """

    name: str
    info: VideoInfo
    read: Callable[..., np.ndarray]
    part: range | None = None


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
    """What a config says of a source: its kind, path, weight in the mixture, and the split of its videos."""

    kind: str
    path: str
    weight: float
    split: str = splits.TRAIN


class NoSuchSplit(ValueError):
    """A source has no video of a split."""


def open_source(kind: str, path: str | os.PathLike = "", *, lines: int = 256, split: str = splits.TRAIN) -> Source:
    """Opens a source by its kind.

    shards: a folder written by `data.prepare`. videos: a folder searched, in all its depth, for video files and for
    folders of images. synthetic: scenes drawn on the spot; `lines` pixels on their short side where path is
    empty, those of data.synthetic.toy_scenes where it is "visits".
    split: whose videos (data.splits); shards have those that `data.prepare` made.

    Raises ValueError for an unknown kind or split and for a path that holds no video, or names no scenes; NoSuchSplit
    where the source has no video of the split.
    """
    splits.check_split_name(split)
    if kind == "shards":
        return ShardSource(path, split)
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


class ShardSource:
    """Records of a TFDS data set in ArrayRecord files whose feature `video` holds encoded bytes.

    The video of a record is the whole shot that it is a part of: the parts of a shot follow one another. Data sets of
    earlier versions have no parts.
    """

    def __init__(self, path: str | os.PathLike, split: str = splits.TRAIN):
        try:
            builder = tfds.builder_from_directory(os.fspath(path))
            names = [name for name in builder.info.splits if split in (name, splits.ALL)]
            if names:
                self._open_records = functools.partial(builder.as_data_source, split="+".join(names))
                self._records = self._open_records()
                self._splits = [builder.info.splits[name] for name in names]
                self._lengths = _add_up((builder.info.metadata or {}).get(LENGTHS, {}), names)
        except Exception as error:  # the library raises many kinds, all of which mean the same here
            raise ValueError(f"{path} holds no shards written by data.prepare") from error
        if not names:
            raise NoSuchSplit(f"{path} has no split {split}: it is of an earlier version, or was prepared of one video")
        self._name = builder.info.name

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        return f"{self._name}/{index}"

    def open(self, index: int) -> Video:
        record = self._record(index)
        name, parts = record["name"].decode(), record.get("parts", 1)
        info = VideoInfo(record["num_frames"], record["fps"], record["height"], record["width"])
        if parts == 1:
            return Video(name, info, functools.partial(read_media, record["video"]))
        borders = part_borders(record["shot_frames"], parts)
        number = record["part"]
        read = functools.partial(self._read_shot, record, index, borders)
        info = info._replace(num_frames=record["shot_frames"])
        return Video(name, info, read, range(borders[number], borders[number + 1]))

    def _read_shot(
        self, record: dict, index: int, borders: list[int], indices: Sequence[int], size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """`read_media` of the whole shot that a record is a part of."""
        indices = np.asarray(indices)
        owners = np.searchsorted(borders, indices, side="right") - 1
        frames = np.empty((len(indices), *(size or (record["height"], record["width"])), 3), np.uint8)
        for number in np.unique(owners):
            sibling = record if number == record["part"] else self._record(index - record["part"] + int(number))
            if (sibling["shot"], sibling["part"]) != (record["shot"], number):
                raise ValueError(f"part {number} of the shot {record['shot'].decode()} is not where it belongs")
            own = owners == number
            frames[own] = read_media(sibling["video"], (indices[own] - borders[number]).tolist(), size)
        return frames

    def _record(self, index: int) -> dict:
        records = self._records
        try:
            return records[index]
        except RuntimeError as error:  # array_record's way to say that a file is damaged, or was not reached
            self._records = self._open_records()  # a reader that has failed once goes on failing
            raise ValueError(f"the record cannot be read: {error}") from error

    def check_storage(self, index: int) -> None:
        ends = np.cumsum([length for split in self._splits for length in split.shard_lengths])
        files = [file for split in self._splits for file in split.filepaths]
        read_through(files[int(np.searchsorted(ends, index, side="right"))])

    def lengths(self) -> Mapping[int, int] | None:
        return self._lengths


def _add_up(lengths: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> dict[int, int] | None:
    """The counts of the splits together; None where one has none."""
    if any(name not in lengths for name in names):
        return None
    total: collections.Counter[int] = collections.Counter()
    for name in names:
        total.update({int(frames): count for frames, count in lengths[name].items()})
    return dict(total)


def _scenes_of_split(split: str) -> range:
    """The numbers of the scenes of a split."""
    scenes_by_split = {
        splits.TRAIN: range(SYNTHETIC_SCENES),
        splits.VALIDATION: range(SYNTHETIC_SCENES, SYNTHETIC_SCENES + HELD_OUT_SCENES),
    }
    return scenes_by_split.get(split, range(SYNTHETIC_SCENES + HELD_OUT_SCENES))


class SyntheticSource:
    """Scenes of data.synthetic, by their seeds; their aspects are drawn between 9:16 and 16:9."""

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
        read = functools.partial(draw_frames, scenes.Scene(seed, height, width).frame)
        return Video(self.name(index), VideoInfo(SYNTHETIC_FRAMES, float(scenes.FPS), height, width), read)

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
        info = VideoInfo(toy_scenes.NUM_FRAMES, float(scenes.FPS), toy_scenes.SIDE, toy_scenes.SIDE)
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


def find_videos(root: pathlib.Path, *, any_name: bool = False) -> list[pathlib.Path]:
    """Returns what counts as a video below `root`, in natural order; what is hidden by a dot is not seen.

    That is every file with a name like a video's, or with any_name every file that is no image, and every folder that
    holds images and no file with a name like a video's. Raises ValueError where there is none, and where `root` is not
    a folder.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    files = visible_files(root)
    videos = {path for path in files if path.suffix.lower() in VIDEO_SUFFIXES}
    images = {path for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    folders = {path.parent for path in images} - {path.parent for path in videos}
    found = folders | (set(files) - images if any_name else videos)
    if not found:
        raise ValueError(f"{root} holds no video file and no folder of images")
    return sorted(found, key=natural_key)


def visible_files(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files below a folder, without those that are hidden by a dot at their or a folder's name."""
    paths = (path for path in root.rglob("*") if path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)]


def read_through(path: str | os.PathLike) -> None:
    """Reads a file to its end; raises OSError where that fails."""
    with open(path, "rb") as file:
        while file.read(_READ_AT_ONCE):
            pass


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
