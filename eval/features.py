"""I3D features of clips: which frames, how they are preprocessed, extraction in batches over devices, keeping by id."""

import dataclasses
import os
from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from m3ddm_jax.files.opening import read_npz
from m3ddm_jax.files.writing import new_file
from m3ddm_jax.types import Array, Variables

SIDE = 224
PRESETS = ("torch_resize", "tf_original", "shortside_crop")
SAMPLINGS = ("first", "uniform")
_DROPPED = -1


def sample_frames(num_frames: int, count: int, sampling: str = "first") -> np.ndarray:
    """Which `count` of a video's frames are looked at: int [count].

    sampling: "first", the first ones; "uniform", spread evenly from the first frame to the last.
    Raises ValueError for another sampling, and for a video of fewer frames.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"frame sampling {sampling!r}: {' or '.join(SAMPLINGS)} is accepted")
    if not 1 <= count <= num_frames:
        raise ValueError(f"{count} frames of a video that has {num_frames}: 1 to {num_frames} are accepted")
    frames = np.arange(count) if sampling == "first" else np.rint(np.linspace(0, num_frames - 1, count))
    return frames.astype(int)


def preprocess(video: Array, preset: str = "torch_resize") -> jax.Array:
    """What I3D sees: uint8 [N,T,H,W,3] -> float32 [N,T,224,224,3] in [-1,1].

    torch_resize: both axes stretched to 224, bilinear about pixel centres, no antialias (TATS, cd-fvd, StyleGAN-V).
    tf_original: the same about pixel corners, as TensorFlow 1 resizes (the code of the FVD paper).
    shortside_crop: as torch_resize but with the shorter side 224, the longer one in proportion and rounded up, then the
      middle square (VideoGPT, MOTIA). It cuts off what was generated left and right of a wide video.
    Raises ValueError for another preset, shape or dtype.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r}: one of {', '.join(PRESETS)} is accepted")
    if video.dtype != np.uint8 or video.ndim != 5 or video.shape[-1] != 3:
        raise ValueError(f"video must be uint8 [N,T,H,W,3], found {video.dtype} {list(video.shape)}")
    return _preprocess(video, preset)


@partial(jax.jit, static_argnames="preset")
def _preprocess(video: jax.Array, preset: str) -> jax.Array:
    shorter = min(video.shape[2:4])
    for axis in (2, 3):
        size = video.shape[axis]
        resized = -(-SIDE * size // shorter) if preset == "shortside_crop" else SIDE
        start = (resized - SIDE) // 2
        places = np.arange(start, start + SIDE) * (size / resized)
        if preset != "tf_original":
            places = np.maximum(places + 0.5 * size / resized - 0.5, 0.0)
        video = _interpolate(video, axis, places)
    return video * (2 / 255) - 1


def _interpolate(x: jax.Array, axis: int, places: np.ndarray) -> jax.Array:
    """x along one axis at fractional indices, linearly; the last index is held beyond the end."""
    below = places.astype(int)
    above = np.minimum(below + 1, x.shape[axis] - 1)
    fraction = np.expand_dims((places - below).astype(np.float32), tuple(range(1, x.ndim - axis)))
    low, high = (jnp.take(x, index, axis).astype(jnp.float32) for index in (below, above))
    return low + (high - low) * fraction


def i3d_features(
    module: nn.Module, variables: Variables, video: Array, *, preset: str = "torch_resize", batch_size: int = 4
) -> np.ndarray:
    """I3D's logits of clips: uint8 [N,T,H,W,3] -> float32 [N,num_classes]; Frechet and kernel distances compare them.

    Batches of `batch_size` clips, or as many more as it takes to give each of this host's devices equally many, are
    split over them; the last one is padded, so that a shape compiles once. Convolutions are full float32 on every
    device. Over several hosts each gives its own clips, N may differ, and `gather_features` joins the results.
    Raises ValueError as `preprocess`, and for fewer than nine frames.
    """
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("clips",), axis_types=(AxisType.Auto,), devices=devices)
    split = NamedSharding(mesh, P("clips"))
    variables = jax.device_put(variables, NamedSharding(mesh, P()))
    size = -(-min(batch_size, max(len(video), 1)) // len(devices)) * len(devices)
    features = [np.zeros((0, module.num_classes), np.float32)]
    for start in range(0, len(video), size):
        clips = video[start : start + size]
        padded = np.pad(clips, [(0, size - len(clips))] + [(0, 0)] * (clips.ndim - 1))
        logits = _apply(module, variables, preprocess(jax.device_put(padded, split), preset))
        features.append(np.asarray(logits)[: len(clips)])
    return np.concatenate(features)


@partial(jax.jit, static_argnames="module")
def _apply(module: nn.Module, variables: Variables, video: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return module.apply(variables, video)


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of clips by id: clip_ids str [N], values float32 [N,D]; row i is of clip i."""

    clip_ids: np.ndarray
    values: np.ndarray

    def save(self, path: str | os.PathLike) -> None:
        """Write an .npz file that `load` reads back; whole or not at all."""
        with new_file(path) as part, part.open("wb") as file:  # given a name, numpy would append a suffix to it
            np.savez(file, clip_ids=self.clip_ids, values=self.values)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Features":
        """Raises ValueError for a file that is missing or no file of features."""
        try:
            arrays = read_npz(path)
            return cls(arrays["clip_ids"], arrays["values"])
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path} holds no features: {error}") from None


def gather_features(features: Features, clip_ids: Sequence[str]) -> Features:
    """The features of all clips, in the order of `clip_ids`, from what every host has of them.

    features: this host's rows, in any order; rows of other ids (padding) and repeated ones are dropped.
    clip_ids: of all clips, equal on every host.
    Raises ValueError, naming them, for clips that no host has.
    """
    places = {clip_id: place for place, clip_id in enumerate(clip_ids)}
    rows = np.array([places.get(clip_id, _DROPPED) for clip_id in features.clip_ids], np.int32)
    # Only arrays of one shape travel: shorter ones are padded with rows to drop.
    padding = np.max(multihost_utils.process_allgather(np.int32(len(rows)))) - len(rows)
    rows = np.pad(rows, (0, padding), constant_values=_DROPPED)
    values = np.pad(features.values, ((0, padding), (0, 0)))
    rows, values = multihost_utils.process_allgather((rows, values), tiled=True)
    found, first = np.unique(rows, return_index=True)
    missing = [clip_id for place, clip_id in enumerate(clip_ids) if place not in found]
    if missing:
        raise ValueError(f"no features of {', '.join(missing)}")
    return Features(np.array(clip_ids), values[first[found != _DROPPED]])
