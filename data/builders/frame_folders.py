"""What the builders of data sets of frame folders share: the features of a clip, and reading one as it is."""

import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from m3ddm_jax.video.images import list_images, read_image


def clip_features() -> tfds.features.FeaturesDict:
    """A clip: its frames and its object masks as the bytes of their files, nothing encoded anew.

    annotated: the number of the frame that each mask belongs to; pixels of a mask are the numbers of objects.
    """
    files = tfds.features.Sequence(tfds.features.Tensor(shape=(), dtype=np.object_))
    return tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(),
            "num_frames": np.int32,
            "height": np.int32,
            "width": np.int32,
            "frames": files,
            "masks": files,
            "annotated": tfds.features.Sequence(np.int32),
        }
    )


def read_clip(frames: pathlib.Path, masks: pathlib.Path | None) -> dict[str, Any]:
    """One clip of a folder of images, and of a folder of masks that are named like their frames, if there is any.

    Raises ValueError for a folder without images, and for masks that belong to no frame.
    """
    images = list_images(frames) if frames.is_dir() else []
    if not images:
        raise ValueError(f"{frames} holds no images")
    places = {image.stem: place for place, image in enumerate(images)}
    annotations = list_images(masks) if masks and masks.is_dir() else []
    strangers = [mask.name for mask in annotations if mask.stem not in places]
    if strangers:
        raise ValueError(f"{masks} has masks of no frame of {frames}: {', '.join(strangers)}")
    first = read_image(images[0]).frame
    return {
        "name": frames.name,
        "num_frames": len(images),
        "height": first.height,
        "width": first.width,
        "frames": [image.read_bytes() for image in images],
        "masks": [mask.read_bytes() for mask in annotations],
        "annotated": [places[mask.stem] for mask in annotations],
    }
