"""TFDS builder of YouTube-VOS, from the folders that its authors' archives unpack to."""

import os
import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from data.builders.frame_folders import clip_features, read_clip

SPLITS = ("train", "valid", "test", "train_all_frames", "valid_all_frames", "test_all_frames")
"""Folders of the archives, each a split: every fifth frame, or all of them."""


class YoutubeVos(tfds.core.GeneratorBasedBuilder):
    """Builds the data set "youtube_vos", of those SPLITS that are there, in ArrayRecord files.

    root: the folder with SPLIT/JPEGImages/CLIP/00000.jpg and, where there are masks, SPLIT/Annotations/CLIP/00000.png.
    The 508 clips of the 2018 test set that papers score are the split test_all_frames.
    Raises ValueError for a root without any split; building does for a clip without frames.
    Source: Xu et al., YouTube-VOS: A Large-Scale Video Object Segmentation Benchmark (2018); youtube-vos.org.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # looking for checksum files beside this one takes a package that tfds does not require

    def __init__(self, root: str | os.PathLike, *, data_dir: str | os.PathLike):
        self._roots = {split: pathlib.Path(root, split) for split in SPLITS}
        self._roots = {split: path for split, path in self._roots.items() if (path / "JPEGImages").is_dir()}
        if not self._roots:
            raise ValueError(f"{root} is not YouTube-VOS as it is unpacked: none of {', '.join(SPLITS)} has JPEGImages")
        super().__init__(data_dir=os.fspath(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, features=clip_features(), description="YouTube-VOS: clips, and masks of their objects."
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(path) for split, path in self._roots.items()}

    def _generate_examples(self, root: pathlib.Path) -> Iterator[tuple[str, dict]]:
        for frames in sorted(path for path in (root / "JPEGImages").iterdir() if path.is_dir()):
            yield frames.name, read_clip(frames, root / "Annotations" / frames.name)
