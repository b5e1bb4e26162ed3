"""TFDS builder of DAVIS 2017, from the folders that its authors' archives unpack to."""

import os
import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from data.builders.frame_folders import clip_features, read_clip

SPLITS = ("train", "val")


class Davis(tfds.core.GeneratorBasedBuilder):
    """Builds the data set "davis", splits "train" and "val" (together: 90 clips), in ArrayRecord files.

    root: the folder DAVIS, with ImageSets/2017/{train,val}.txt, JPEGImages/RESOLUTION/CLIP/00000.jpg and, where there
    are masks, Annotations/RESOLUTION/CLIP/00000.png. resolution: 480p or Full-Resolution.
    Raises ValueError for a root without that resolution or without lists; building does for a clip without frames.
    Source: Pont-Tuset et al., The 2017 DAVIS Challenge on Video Object Segmentation; davischallenge.org.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # looking for checksum files beside this one takes a package that tfds does not require

    def __init__(self, root: str | os.PathLike, *, data_dir: str | os.PathLike, resolution: str = "480p"):
        root = pathlib.Path(root)
        self._frames, self._masks = root / "JPEGImages" / resolution, root / "Annotations" / resolution
        self._lists = {split: root / "ImageSets" / "2017" / f"{split}.txt" for split in SPLITS}
        missing = [str(path) for path in (self._frames, *self._lists.values()) if not path.exists()]
        if missing:
            raise ValueError(f"{root} is not DAVIS 2017 as it is unpacked, it lacks {', '.join(missing)}")
        super().__init__(data_dir=os.fspath(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, features=clip_features(), description="DAVIS 2017: clips, and masks of their objects."
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(path.read_text().split()) for split, path in self._lists.items()}

    def _generate_examples(self, names: list[str]) -> Iterator[tuple[str, dict]]:
        for name in names:
            yield name, read_clip(self._frames / name, self._masks / name)
