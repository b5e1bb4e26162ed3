"""Videos in large files: TFDS data sets in ArrayRecord files, and tar files of videos (WebDataset)."""

import collections
import contextlib
import functools
import os
import pathlib
import tarfile
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds

from data import splits
from data.builders.clips import LENGTHS
from data.clips import VideoInfo
from data.encode import part_borders
from data.reading import NoSuchSplit, Video, describe, read_frames, read_media, read_through
from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.images import ImageReader, natural_key
from m3ddm_jax.video.timeline import DEFAULT_FPS

# The splits of the data sets of data.builders, by ours: what is not here, as test, is for nobody to train on.
_ROLES = {
    splits.TRAIN: (splits.TRAIN, "train_all_frames"),
    splits.VALIDATION: (splits.VALIDATION, "val", "valid", "valid_all_frames"),
}


class ShardSource:
    """Records of a TFDS data set in ArrayRecord files: of `data.prepare`, whose feature `video` holds encoded bytes, or
    of data.builders (DAVIS, YouTube-VOS), whose feature `frames` holds image files.

    The video of a record is the whole shot that it is a part of: the parts of a shot follow one another. Data sets of
    earlier versions have no parts.
    """

    def __init__(self, path: str | os.PathLike, split: str = splits.TRAIN):
        try:
            builder = tfds.builder_from_directory(os.fspath(path))
            names = [name for name in builder.info.splits if split == splits.ALL or name in _ROLES[split]]
            if names:
                self._open_records = functools.partial(builder.as_data_source, split="+".join(names))
                self._records = self._open_records()
                self._splits = [builder.info.splits[name] for name in names]
                self._lengths = _add_up((builder.info.metadata or {}).get(LENGTHS, {}), names)
        except Exception as error:  # the library raises many kinds, all of which mean the same here
            raise ValueError(f"{path} holds no shards written by data.prepare") from error
        if not names:
            raise NoSuchSplit(f"{path} has no split {split}: it is of an earlier version, or was prepared of one video")
        self._name = f"{builder.info.name}/{pathlib.Path(path).name}"

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        return f"{self._name}/{index}"

    def open(self, index: int) -> Video:
        record = self._record(index)
        name, parts = record["name"].decode(), record.get("parts", 1)
        if "frames" in record:
            reader = ImageReader(record["frames"], DEFAULT_FPS)
            info = VideoInfo(record["num_frames"], DEFAULT_FPS, record["height"], record["width"])
            return Video(name, info, functools.partial(_read_images, reader))
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


def _read_images(reader: ImageReader, indices: Sequence[int], size: tuple[int, int] | None = None) -> np.ndarray:
    return np.stack([reader.read(index, size) for index in indices])


def _add_up(lengths: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> dict[int, int] | None:
    """The counts of the splits together; None where one has none."""
    if any(name not in lengths for name in names):
        return None
    total: collections.Counter[int] = collections.Counter()
    for name in names:
        total.update({int(frames): count for frames, count in lengths[name].items()})
    return dict(total)


def shard_name(number: int, count: int) -> str:
    """The folder of a part of a data set that `data.prepare --shard` makes."""
    return f"{number:05d}-of-{count:05d}"


def shard_folders(path: str | os.PathLike) -> list[pathlib.Path]:
    """The parts of a data set that was made in parts, those without clips left out; none where it was made as a whole.

    Raises ValueError where some are missing.
    """
    parts = sorted(pathlib.Path(path).glob("?????-of-?????"))
    if not parts:
        return []
    count = int(parts[0].name[-5:])
    missing = [number for number in range(count) if not pathlib.Path(path, shard_name(number, count)).is_dir()]
    if missing or len(parts) != count:
        raise ValueError(
            f"{path} has {len(parts)} parts, of {count}: data.prepare --shard=I/{count} makes those that are missing, "
            f"{', '.join(map(str, missing[:8])) or 'none'}"
        )
    return [part for part in parts if (part / "dataset_info.json").exists()]


class ChainedSource:
    """Several data sets, one after the other."""

    def __init__(self, sources: Sequence[ShardSource]):
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])

    def _find(self, index: int) -> tuple[ShardSource, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[number], index - int(self._ends[number - 1] if number else 0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        source, place = self._find(index)
        return source.name(place)

    def open(self, index: int) -> Video:
        source, place = self._find(index)
        return source.open(place)

    def check_storage(self, index: int) -> None:
        source, place = self._find(index)
        source.check_storage(place)

    def lengths(self) -> Mapping[int, int] | None:
        total: collections.Counter[int] = collections.Counter()
        for source in self._sources:
            total.update(source.lengths() or {})
        return dict(total)


def open_shards(path: str | os.PathLike, split: str) -> ShardSource | ChainedSource:
    """The videos of a split of a data set, made as a whole or in parts. Raises as `open_source`."""
    folders = shard_folders(path)
    if not folders:
        return ShardSource(path, split)
    opened = []
    for folder in folders:
        with contextlib.suppress(NoSuchSplit):
            opened.append(ShardSource(folder, split))
    if not opened:
        raise NoSuchSplit(f"{path} has no split {split}: no video of its name is in it")
    return ChainedSource(opened)


class TarSource:
    """The video files in the tar files below a folder, in natural order of the tar files: a WebDataset.

    A video is a member with a name like a video's; others, such as captions, are not looked at. A member is read as a
    whole, by its place in the tar file, which must not be compressed.
    """

    def __init__(self, path: str | os.PathLike, split: str, suffixes: frozenset[str]):
        root = pathlib.Path(path)
        members: dict[str, tuple[pathlib.Path, int, int]] = {}
        for file in sorted(root.rglob("*.tar"), key=natural_key):
            name = file.relative_to(root).as_posix()
            try:
                with tarfile.open(file, "r:") as archive:
                    for member in archive:
                        if member.isfile() and pathlib.Path(member.name).suffix.lower() in suffixes:
                            members[f"{name}/{member.name}"] = (file, member.offset_data, member.size)
            except tarfile.TarError as error:
                raise ValueError(f"{file} is no tar file that can be read: {error}") from error
        if not members:
            raise ValueError(f"{path} holds no tar file with videos")
        self._names = splits.names_of_split(list(members), split)
        self._members = [members[name] for name in self._names]
        if not self._names:
            raise NoSuchSplit(f"{path} holds one video: none is of the split {split}")

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def open(self, index: int) -> Video:
        file, start, size = self._members[index]
        with open(file, "rb") as archive:
            archive.seek(start)
            video = FrameSource(archive.read(size), threads=1)
        return Video(self.name(index), describe(video), functools.partial(read_frames, video))

    def check_storage(self, index: int) -> None:
        read_through(self._members[index][0])

    def lengths(self) -> None:
        return None
