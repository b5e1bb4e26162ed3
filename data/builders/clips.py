"""TFDS builder of short encoded clips in ArrayRecord files, which need no TensorFlow to be written or read."""

import collections
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds

from data.encode import EncodedClip

LENGTHS = "shot_frames"
"""The metadata that counts the records of each split by the frames of their shots: {split: {frames: records}}."""
_KEY_BYTES, _PART_BYTES = 16, 3


class Clips(tfds.core.GeneratorBasedBuilder):
    """Builds the data set "clips" from EncodedClips of distinct names: split -> clips.

    Shots are shuffled; the parts of one follow one another. After `download_and_prepare()` the data set lies in
    `data_dir/clips/1.1.0`.
    """

    VERSION = tfds.core.Version("1.1.0")
    code_path = (
        None  # no checksum files lie beside this one, and looking for them takes a package tfds does not require
    )

    def __init__(self, splits: Mapping[str, Iterable[EncodedClip]], *, data_dir: str | os.PathLike):
        self._splits = splits
        super().__init__(data_dir=os.fspath(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "video": tfds.features.Tensor(shape=(), dtype=np.object_),  # bytes; the Video feature needs TensorFlow
            "name": tfds.features.Text(),
            "num_frames": np.int32,
            "fps": np.float32,
            "height": np.int32,
            "width": np.int32,
            "shot": tfds.features.Text(),
            "part": np.int32,
            "parts": np.int32,
            "shot_frames": np.int32,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            description="Short clips of one shot each, encoded as H.264 with frequent key frames.",
            disable_shuffling=True,  # our keys shuffle
            metadata=tfds.core.MetadataDict({LENGTHS: {}}),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split, clips) for split, clips in self._splits.items()}

    def _generate_examples(self, split: str, clips: Iterable[EncodedClip]) -> Iterator[tuple[int, dict]]:
        lengths = collections.Counter()
        for clip in clips:
            lengths[clip.shot_frames] += 1
            yield _key(clip), clip._asdict()
        self.info.metadata[LENGTHS][split] = {str(frames): lengths[frames] for frames in sorted(lengths)}


def _key(clip: EncodedClip) -> int:
    """Where a clip lies among the others: at random by its shot, then by its part; as TFDS makes keys of names, which
    it sorts in memory by their first bits."""
    shot = hashlib.sha256(clip.shot.encode()).digest()[: _KEY_BYTES - _PART_BYTES]
    return int.from_bytes(shot + clip.part.to_bytes(_PART_BYTES))
