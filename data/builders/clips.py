"""TFDS builder of short encoded clips in ArrayRecord files, which need no TensorFlow to be written or read."""

import os
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow_datasets as tfds

from data.encode import EncodedClip


class Clips(tfds.core.GeneratorBasedBuilder):
    """Builds the data set "clips", of the one split "train", from EncodedClips of distinct names.

    After `download_and_prepare()` the data set lies in `data_dir/clips/1.0.0`.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = (
        None  # no checksum files lie beside this one, and looking for them takes a package tfds does not require
    )

    def __init__(self, clips: Iterable[EncodedClip] = (), *, data_dir: str | os.PathLike):
        self._clips = clips
        super().__init__(data_dir=os.fspath(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "video": tfds.features.Tensor(shape=(), dtype=np.object_),  # bytes; the Video feature needs TensorFlow
            "name": tfds.features.Text(),
            "num_frames": np.int32,
            "fps": np.float32,
            "height": np.int32,
            "width": np.int32,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            description="Short clips of one shot each, encoded as H.264 with frequent key frames.",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        for clip in self._clips:
            yield clip.name, clip._asdict()
