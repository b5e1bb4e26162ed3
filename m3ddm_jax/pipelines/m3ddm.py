"""Outpainting by a masked 3D diffusion model, coarse to fine.

Source: M3DDM (Fan et al., ACM MM 2023), section 3, and its official code. The default differs from that code where it
can be improved upon; `M3ddmSettings` names each difference, and the preset "official" takes them all back.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.models import registry
from m3ddm_jax.pipelines.base import M3ddmOptions
from m3ddm_jax.pipelines.carried_pixels import CarriedPixels
from m3ddm_jax.pipelines.denoiser import SampleSettings, WindowSampler, chosen_settings, load_pipeline
from m3ddm_jax.pipelines.latent_video import Devices, FrozenCodec, LatentVideo, Preparation, to_unit_range
from m3ddm_jax.pipelines.window_schedule import Level, official_windows, plan_windows
from m3ddm_jax.pipelines.work_canvas import SquareCanvas, WorkCanvas
from m3ddm_jax.types import Denoiser, FramesTHWC
from m3ddm_jax.video import FrameSource
from m3ddm_jax.weights import load_autoencoder, load_model, resolve

DEFAULT_MODEL = Path(__file__).parents[1] / "assets" / "tiny"


@dataclasses.dataclass(frozen=True)
class M3ddmSettings(SampleSettings):
    """How a model outpaints: the section `sample` of its pipeline.json. Beside what every latent model has:

    canvas: what it works on: the target's shape, its shorter side of about `lines` pixels; or the official square of
      `lines` x `lines` that the target is cropped from.
    guess: what sampling starts from in unknown pixels: the known ones spread outward, or OpenCV's inpainting (Telea).
    latent_mask: a latent cell is unknown where any of its pixels is (max), or where its first one is (nearest).
    posterior: latents are the autoencoder's mean, or a sample.
    global_size: how large a square the frames are stretched to that the model sees of the whole video.
    windows: finer levels are windows that do not wait for each other, guides are never made anew, fps is exact
      (parallel); or the official schedule: one after the other, filled up with the last frame, guides made anew, fps
      rounded down (sequential, always at strides 15, 5, 1 and 16 frames).
    strides: frames between two of a level.
    noise: depends on seed, level and frame (frame), or is the same tensor in every window (shared).
    """

    canvas: Literal["target", "square"]
    guess: Literal["spread", "telea"]
    latent_mask: Literal["max", "nearest"]
    posterior: Literal["mean", "sample"]
    global_size: int
    windows: Literal["parallel", "sequential"]
    strides: Sequence[int]
    noise: Literal["frame", "shared"]


PRESETS: dict[str, dict[str, Any]] = {
    "official": {
        "canvas": "square",
        "lines": 256,
        "guess": "telea",
        "latent_mask": "nearest",
        "posterior": "sample",
        "global_frames": 16,
        "global_size": 256,
        "windows": "sequential",
        "num_frames": 16,
        "noise": "shared",
        "noise_scale": 1.0,
        "strength": 1.0,
        "solver": "plms",
        "steps": 50,
        "guidance_local": 2.0,
        "guidance_global": 4.0,
        "guidance_interval": (0.0, 1.0),
        "clip": None,
        "seam": "hard",
    }
}
"""name -> the settings that it puts in place of a model's own."""


class M3DDM(M3ddmOptions):
    """The `m3ddm` Outpainter over a model folder, the embedded one by default.

    preset: a name of PRESETS; settings and steps come last.
    Raises ValueError for a folder that is not a whole model, an unknown preset, or settings that do not fit.
    """

    def __post_init__(self):
        folder = resolve(DEFAULT_MODEL if self.model is None else self.model)
        # GlobalPaint's has an outpainter of its own.
        accepted = [kind for kind in registry.kinds(Denoiser) if kind != "globalpaint"]
        network, variables = load_model(folder, kind=accepted)
        diffusion, own = load_pipeline(folder, "sample")
        self._settings = _choose_settings(own, self.preset, chosen_settings(self))
        if self.propagate and self._settings.canvas == "square":
            raise ValueError("`propagate` needs canvas=target: there is no room for what it finds on the square")
        self._global_condition = network.global_condition
        self.models = {"model": (folder, self._settings)}
        self._devices = Devices(self.windows)
        self._codec = FrozenCodec(*load_autoencoder(folder), self._devices, self.dtype, self._settings.posterior)
        self._denoiser = WindowSampler(network, variables, diffusion, self._settings, self._devices.mesh, self.dtype)

    def __call__(self, source: FrameSource, canvas: Canvas, rng: jax.Array) -> Iterator[FramesTHWC]:
        """Yields canvas frames, uint8 [n, H, W, 3], in time order; the caller pastes the source's own pixels."""
        settings = self._settings
        make_canvas = {"target": WorkCanvas, "square": SquareCanvas}[settings.canvas]
        work = make_canvas(canvas, settings.lines, self._codec.spatial_factor * self._denoiser.size_multiple)
        in_sequence = settings.windows == "sequential"
        preparation = Preparation(settings.guess, settings.latent_mask, settings.posterior, settings.noise, in_sequence)
        carried = CarriedPixels(source, canvas) if self.propagate else None
        video = LatentVideo(source, canvas, work, self._codec, self._devices, settings, rng, preparation, carried)
        contexts = self._devices.share(self._encode_contexts(source, rng))
        levels = self._plan(len(source))
        return video.outpaint(levels, [(self._denoiser, lambda windows: contexts)] * len(levels))

    def _plan(self, num_frames: int) -> list[Level]:
        # The official schedule makes nothing of a single frame.
        if self._settings.windows == "sequential" and num_frames > 1:
            return official_windows(num_frames)
        return plan_windows(num_frames, self._settings.num_frames, self._settings.strides)

    def _encode_contexts(self, source: FrameSource, rng: jax.Array) -> tuple[Any, Any]:
        """The network's context of the whole video, and that of none; the same for all windows."""
        if self._global_condition is None:
            context = self._denoiser.encode_context()
            return context, context
        indices = np.linspace(0, len(source) - 1, self._settings.global_frames).astype(int)
        side = self._settings.global_size
        frames = np.stack([_stretch(source[[i]][0], side) for i in indices])
        latents = self._codec.encode(to_unit_range(frames), rng, "global")[None]
        return self._denoiser.encode_context(latents), self._denoiser.encode_context(jnp.zeros_like(latents))


@partial(jax.jit, static_argnums=1)
def _stretch(frame: jax.Array, side: int) -> jax.Array:
    return jax.image.resize(frame.astype(jnp.float32), (side, side, 3), "linear")


def _choose_settings(own: Mapping[str, Any], preset: str | None, single: Mapping[str, Any]) -> M3ddmSettings:
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown: one of {', '.join(PRESETS)} is accepted")
    return M3ddmSettings.make({**own, **PRESETS.get(preset, {}), **single})
