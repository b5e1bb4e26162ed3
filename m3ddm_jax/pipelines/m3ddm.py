"""Outpainting by a masked 3D diffusion model, coarse to fine.

Source: M3DDM (Fan et al., ACM MM 2023), section 3, and its official code. The default differs from that code where it
can be improved upon; `Settings` names each difference, and the preset "official" takes them all back.
"""

import dataclasses
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from m3ddm_jax.diffusion.guidance import Guidance
from m3ddm_jax.diffusion.schedule import Schedule, make_schedule
from m3ddm_jax.diffusion.solvers import make_solver
from m3ddm_jax.flow.region_fill import BLACK, hide
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.models.autoencoder import decode_tiled, reduce_mask, to_latents
from m3ddm_jax.parallel.mesh import BATCH_AXES, make_mesh, replicated
from m3ddm_jax.pipelines import compositing
from m3ddm_jax.pipelines.baselines import inpaint_telea
from m3ddm_jax.pipelines.hierarchy import Level, Window, official_windows, plan_windows
from m3ddm_jax.pipelines.latent_spool import LatentSpool
from m3ddm_jax.pipelines.options import CheckedSettings, computing_in
from m3ddm_jax.pipelines.sampler import Conditions, make_sampler, window_noise
from m3ddm_jax.pipelines.work_canvas import SquareCanvas, WorkCanvas
from m3ddm_jax.types import FramesTHWC
from m3ddm_jax.video import FrameSource
from m3ddm_jax.weights import load_autoencoder, load_model, load_settings, resolve

DEFAULT_MODEL = Path(__file__).parents[1] / "assets" / "tiny"


@dataclasses.dataclass(frozen=True)
class Settings(CheckedSettings):
    """How a model outpaints: the section `sample` of its pipeline.json.

    canvas: what it works on: the target's shape, its shorter side of about `lines` pixels; or the official square of
      `lines` x `lines` that the target is cropped from.
    guess: what sampling starts from in unknown pixels: the known ones spread outward, or OpenCV's inpainting (Telea).
    latent_mask: a latent cell is unknown where any of its pixels is (max), or where its first one is (nearest).
    posterior: latents are the autoencoder's mean, or a sample.
    global_frames, global_size: how many frames the model sees of the whole video, stretched to how large a square.
    windows: finer levels are windows that do not wait for each other, guides are never made anew, fps is exact
      (parallel); or the official schedule: one after the other, filled up with the last frame, guides made anew, fps
      rounded down (sequential, always at strides 15, 5, 1 and 16 frames).
    num_frames, strides: frames of a window; frames between two of a level.
    noise: depends on seed, level and frame (frame), or is the same tensor in every window (shared).
    noise_scale: of the noise that sampling starts from; below 1 towards the mean of what is likely.
    strength: share of the noise levels that is run; 1 starts at pure noise.
    solver, steps: as in diffusion.solvers.make_solver.
    guidance_local, guidance_global, guidance_interval: as in diffusion.guidance.Guidance.
    clip: bound of the predicted latents, if any.
    seam: the generated side's colours are made to meet the source's and fade out into what was generated (matched), or
      stay as they are (hard).
    """

    canvas: Literal["target", "square"]
    lines: int
    guess: Literal["spread", "telea"]
    latent_mask: Literal["max", "nearest"]
    posterior: Literal["mean", "sample"]
    global_frames: int
    global_size: int
    windows: Literal["parallel", "sequential"]
    num_frames: int
    strides: Sequence[int]
    noise: Literal["frame", "shared"]
    noise_scale: float
    strength: float
    solver: str
    steps: int
    guidance_local: float
    guidance_global: float
    guidance_interval: tuple[float, float]
    clip: float | None
    seam: Literal["matched", "hard"]


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


class M3DDM:
    """The `m3ddm` Outpainter over a model folder.

    model: folder written by training's export or by convert, or hf:OWNER/NAME; the embedded default if None.
    preset: "official" for the released code's pipeline. settings: single ones, by name, that come last. steps: one of
    them that is wanted often. dtype: in what the networks compute, float32 or bfloat16. windows: so many that do not
    wait for each other are sampled at once, spread over the devices; one a device by default (on CPUs one).
    Raises ValueError for a folder that is not a whole model, an unknown preset, or settings that do not fit.
    """

    def __init__(
        self,
        model: str | os.PathLike | None = None,
        *,
        preset: str | None = None,
        settings: Mapping[str, Any] | None = None,
        steps: int | None = None,
        dtype: str = "float32",
        windows: int | None = None,
    ):
        folder = resolve(DEFAULT_MODEL if model is None else model)
        stored = load_settings(folder)
        try:
            diffusion = stored["diffusion"]
            schedule = make_schedule(
                diffusion["schedule"], zero_terminal_snr=diffusion["zero_terminal_snr"], shift=diffusion["shift"]
            )
            unknown, prediction, own = diffusion["unknown"], diffusion["prediction"], stored["sample"]
        except KeyError as error:
            raise ValueError(f"{folder / 'pipeline.json'} does not say {error}") from None
        self._settings = _choose_settings(own, preset, {**(settings or {}), **({"steps": steps} if steps else {})})
        module, variables = load_model(folder)
        codec, codec_variables = load_autoencoder(folder)
        module, codec = (computing_in(dtype, network) for network in (module, codec))

        devices = jax.devices()
        windows = windows or (1 if devices[0].platform == "cpu" else len(devices))
        self._windows = windows
        self._mesh = make_mesh(devices=devices[: min(windows, len(devices))])
        self._variables, codec_variables = jax.device_put((variables, codec_variables), replicated(self._mesh))
        self._downscale = codec.downscale
        self._multiple = codec.downscale * 2 ** (len(module.block_out_channels) - 1)
        self._hide = jax.jit(partial(hide, unknown=unknown))
        self._codec, self._codec_variables = codec, codec_variables
        self._to_latents = jax.jit(partial(to_latents, codec))
        self._encode_context = jax.jit(partial(module.apply, method="encode_context"))
        self._sample = _make_sampler(module, schedule, prediction, self._settings)

    def __call__(self, source: FrameSource, canvas: Canvas, rng: jax.Array) -> Iterator[FramesTHWC]:
        """Yields canvas frames, uint8 [n, H, W, 3], in time order; the caller pastes the source's own pixels."""
        settings = self._settings
        make_canvas = {"target": WorkCanvas, "square": SquareCanvas}[settings.canvas]
        work = make_canvas(canvas, settings.lines, self._multiple)
        video = self._encode_video(source, work, rng)
        levels = self._plan(len(source))
        total = sum(len(stage) for level in levels for stage in level)
        with LatentSpool() as spool, tqdm(total=total, desc="windows", unit="window", leave=False, disable=None) as bar:
            done = 0
            for level in levels:
                batches = [batch for stage in level for batch in self._batches(stage)]
                for place, windows in enumerate(batches):
                    self._make(source, work, video, windows, spool, rng)
                    bar.update(len(windows))
                    if level is levels[-1]:
                        # What the next window begins with, it may still make anew.
                        stop = batches[place + 1][0].frames[0] if place + 1 < len(batches) else len(source)
                        yield from self._show(source, canvas, work, spool, done, stop)
                        done = max(done, stop)
                        spool.forget(done - settings.num_frames)

    def _plan(self, num_frames: int) -> list[Level]:
        # The official schedule makes nothing of a single frame.
        if self._settings.windows == "sequential" and num_frames > 1:
            return official_windows(num_frames)
        return plan_windows(num_frames, self._settings.num_frames, self._settings.strides)

    def _batches(self, stage: Sequence[Window]) -> Iterator[Sequence[Window]]:
        for start in range(0, len(stage), self._windows):
            yield stage[start : start + self._windows]

    def _encode_video(self, source: FrameSource, work: WorkCanvas | SquareCanvas, rng: jax.Array) -> dict[str, Any]:
        """What all windows share, by its name in Conditions: contexts, and the latents of a black frame."""
        indices = np.linspace(0, len(source) - 1, self._settings.global_frames).astype(int)
        side = self._settings.global_size
        stretch = jax.jit(lambda frame: jax.image.resize(frame.astype(jnp.float32), (side, side, 3), "linear"))
        frames = np.stack([stretch(source[[i]][0]) for i in indices])
        global_latents = self._encode(_to_unit_range(frames), rng, "global")[None]
        black = self._encode(jnp.full((1, work.height, work.width, 3), BLACK), rng, "black")[0]
        context, null_context = (
            self._encode_context(self._variables, latents)
            for latents in (global_latents, jnp.zeros_like(global_latents))
        )
        return {"context": context, "null_context": null_context, "black": black}

    def _encode(self, frames: jax.Array, rng: jax.Array, *place: Any) -> jax.Array:
        """Latents of frames [N, H, W, 3] in [-1, 1]; where they are drawn, `place` tells one draw from another."""
        drawn = self._settings.posterior == "sample"
        key = jax.random.fold_in(rng, zlib.crc32(repr(place).encode())) if drawn else None
        return self._to_latents(self._codec_variables, frames, key)

    def _make(
        self,
        source: FrameSource,
        work: WorkCanvas | SquareCanvas,
        video: dict[str, Any],
        windows: Sequence[Window],
        spool: LatentSpool,
        rng: jax.Array,
    ) -> None:
        """Sample a batch of windows, and keep what they write."""
        # One shape for all batches but a lone window: the last one repeats a window rather than compiling anew.
        count = self._windows if len(windows) > 1 else 1
        padded = [windows[min(i, len(windows) - 1)] for i in range(count)]
        per_window = [self._prepare(source, work, window, spool, rng) for window in padded]
        per_window = jax.tree.map(lambda *parts: np.stack(parts), *per_window)
        # Windows lie on the devices in equal parts, or on all of them alike.
        parts = PartitionSpec(BATCH_AXES if count % self._mesh.size == 0 else None)
        inputs = jax.device_put(per_window, NamedSharding(self._mesh, parts))
        video = jax.device_put(video, replicated(self._mesh))
        conditions = Conditions(**inputs["conditions"], **video)
        latents = np.asarray(self._sample(self._variables, inputs["guess"], inputs["noise"], conditions))
        for window, window_latents in zip(windows, latents, strict=False):
            for frame, writes, frame_latents in zip(window.frames, window.writes, window_latents, strict=True):
                if writes:
                    spool.write(frame, frame_latents)

    def _prepare(
        self,
        source: FrameSource,
        work: WorkCanvas | SquareCanvas,
        window: Window,
        spool: LatentSpool,
        rng: jax.Array,
    ) -> dict[str, Any]:
        """Conditions (what one window has of its own), guess and noise [T, h, w, C]."""
        settings = self._settings
        frames = work.place(source[list(window.frames)])
        mask = np.repeat(work.mask[None], len(frames), axis=0)
        fill = {"spread": compositing.spread, "telea": inpaint_telea}[settings.guess]
        guess = _to_unit_range(fill(frames, work.mask))
        place = (window.stride, window.frames[0])
        guess_latents = np.array(self._encode(guess, rng, "guess", *place))
        masked_latents = np.array(self._encode(self._hide(guess, mask), rng, "masked", *place))
        latent_mask = np.array(reduce_mask(mask, self._downscale, settings.latent_mask))
        for i, frame in enumerate(window.frames):
            if window.guides[i]:
                masked_latents[i] = spool.first(frame)
                latent_mask[i] = 0
                if settings.windows == "parallel":
                    guess_latents[i] = masked_latents[i]
        fps = source.fps / window.stride
        if settings.noise == "shared":
            noise = window_noise(rng, guess_latents.shape[1:], 0, tuple(range(len(frames))))
        else:
            noise = window_noise(rng, guess_latents.shape[1:], window.stride, window.frames)
        return {
            "conditions": {
                "mask": latent_mask,
                "masked_latents": masked_latents,
                "guides": np.array(window.guides),
                "fps": np.float32(fps if settings.windows == "parallel" else np.floor(fps)),
            },
            "guess": guess_latents,
            "noise": np.float32(settings.noise_scale) * noise,
        }

    def _show(
        self,
        source: FrameSource,
        canvas: Canvas,
        work: WorkCanvas | SquareCanvas,
        spool: LatentSpool,
        start: int,
        stop: int,
    ) -> Iterator[FramesTHWC]:
        """Canvas frames of `start` to `stop`, a window's number at a time."""
        size = self._settings.num_frames
        for first in range(start, stop, size):
            last = min(first + size, stop)
            # Short chunks are filled up: one shape, one compile.
            latents = np.stack([spool.last(min(i, stop - 1)) for i in range(first, first + size)])
            decoded = decode_tiled(self._codec, self._codec_variables, latents)[: last - first]
            frames = (decoded + 1) * 127.5
            originals = source[first:last]
            frames = work.to_canvas(np.clip(frames, 0, 255), originals)
            if self._settings.seam == "matched":
                yield compositing.match_seam(frames, originals, canvas)
            else:
                yield np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def _choose_settings(own: Mapping[str, Any], preset: str | None, single: Mapping[str, Any]) -> Settings:
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown: one of {', '.join(PRESETS)} is accepted")
    return Settings.make({**own, **PRESETS.get(preset, {}), **single})


def _make_sampler(module: nn.Module, schedule: Schedule, prediction: str, settings: Settings) -> Callable:
    """The sampler that the settings describe."""
    return make_sampler(
        module,
        schedule,
        make_solver(settings.solver, schedule, settings.steps, settings.strength),
        prediction=prediction,
        guidance=Guidance(settings.guidance_local, settings.guidance_global, tuple(settings.guidance_interval)),
        clip=settings.clip,
    )


def _to_unit_range(frames: np.ndarray) -> np.ndarray:
    return frames.astype(np.float32) / 127.5 - 1
