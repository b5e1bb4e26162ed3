"""Outpainting by a masked 3D diffusion model, coarse to fine.

Source: M3DDM (Fan et al., ACM MM 2023), section 3. Guide frames keep their latents, every frame has one writer, windows
that do not depend on each other are one batch, and what coarse levels leave behind lies on disk.
"""

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from m3ddm_jax.diffusion.guidance import Guidance
from m3ddm_jax.diffusion.schedule import make_schedule
from m3ddm_jax.diffusion.solvers import make_solver, spaced_timesteps
from m3ddm_jax.flow.region_fill import hide
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.models.autoencoder import reduce_mask
from m3ddm_jax.pipelines import compositing
from m3ddm_jax.pipelines.hierarchy import Window, plan_windows
from m3ddm_jax.pipelines.sampler import Conditions, make_sampler, window_noise
from m3ddm_jax.types import FramesTHWC
from m3ddm_jax.video import FrameSource
from m3ddm_jax.weights import load_autoencoder, load_model, load_settings

DEFAULT_MODEL = Path(__file__).parents[1] / "assets" / "tiny"


class M3DDM:
    """The `m3ddm` Outpainter over a model folder.

    model: folder written by training's export or by convert; the embedded default where none is named. steps,
    local_scale, global_scale: in place of what the folder's pipeline.json says. windows_per_batch: independent windows
    that are sampled at once.
    Raises ValueError for a folder that is not a whole model, or settings that do not fit.
    """

    def __init__(
        self,
        model: str | os.PathLike | None = None,
        *,
        steps: int | None = None,
        local_scale: float | None = None,
        global_scale: float | None = None,
        windows_per_batch: int = 1,
    ):
        folder = Path(DEFAULT_MODEL if model is None else model)
        self._module, self._variables = load_model(folder)
        codec, codec_variables = load_autoencoder(folder)
        settings = load_settings(folder)
        try:
            diffusion, sample = settings["diffusion"], settings["sample"]
            self._lines, self._num_frames = sample["lines"], sample["num_frames"]
            self._strides = tuple(sample["strides"])
            self._noise_scale = sample["noise_scale"]
            self._global_frames, self._global_size = sample["global_frames"], sample["global_size"]
            self._hide = jax.jit(partial(hide, unknown=diffusion["unknown"]))
            schedule = make_schedule(
                diffusion["schedule"], zero_terminal_snr=diffusion["zero_terminal_snr"], shift=diffusion["shift"]
            )
            timesteps = spaced_timesteps(schedule.num_timesteps, steps or sample["steps"], sample["strength"])
            self._sample = make_sampler(
                self._module,
                schedule,
                make_solver(sample["solver"], schedule, timesteps),
                prediction=diffusion["prediction"],
                guidance=Guidance(
                    sample["guidance_local"] if local_scale is None else local_scale,
                    sample["guidance_global"] if global_scale is None else global_scale,
                    tuple(sample["guidance_interval"]),
                ),
                clip=sample["clip"],
            )
        except KeyError as error:
            raise ValueError(f"{folder / 'pipeline.json'} does not say {error}") from None
        self._downscale = codec.downscale
        self._multiple = codec.downscale * 2 ** (len(self._module.block_out_channels) - 1)
        self._windows_per_batch = windows_per_batch
        self._encode = jax.jit(lambda x: codec.apply(codec_variables, x, method="encode")[0])
        self._decode = jax.jit(lambda z: codec.apply(codec_variables, z, method="decode"))
        self._encode_context = jax.jit(partial(self._module.apply, method="encode_context"))

    def __call__(self, source: FrameSource, canvas: Canvas, rng: jax.Array) -> Iterator[FramesTHWC]:
        """Yields canvas frames, uint8 [n, H, W, 3], in time order; the caller pastes the source's own pixels."""
        work = _WorkCanvas(canvas, self._lines, self._multiple)
        context, null_context, black = self._encode_video(source, work)
        levels = plan_windows(len(source), self._num_frames, self._strides)
        total = sum(len(stage) for level in levels for stage in level)
        with (
            _LatentSpool(self._num_frames) as spool,
            tqdm(total=total, desc="windows", unit="window", leave=False, disable=None) as bar,
        ):
            for level in levels:
                finest = level is levels[-1]
                for windows in (batch for stage in level for batch in self._batches(stage)):
                    conditions, guess, noise = self._prepare(source, work, windows, spool, rng)
                    conditions = conditions.replace(context=context, null_context=null_context, black=black)
                    latents = np.asarray(self._sample(self._variables, guess, noise, conditions))
                    for window, window_latents in zip(windows, latents, strict=False):
                        spool.write(window, window_latents)
                    bar.update(len(windows))
                    if finest:
                        yield from self._finished(source, canvas, spool)

    def _batches(self, stage: Sequence[Window]) -> Iterator[Sequence[Window]]:
        for start in range(0, len(stage), self._windows_per_batch):
            yield stage[start : start + self._windows_per_batch]

    def _encode_video(self, source: FrameSource, work: "_WorkCanvas"):
        """Context tokens of the video's global frames and of none, and the latents of a black frame."""
        indices = np.linspace(0, len(source) - 1, self._global_frames).astype(int)
        side = self._global_size
        frames = np.stack([cv2.resize(source[[i]][0], (side, side), interpolation=cv2.INTER_AREA) for i in indices])
        global_latents = self._encode(_to_unit_range(frames))[None]
        black = self._encode(jnp.full((1, work.height, work.width, 3), -1.0))[0]
        context, null_context = (
            self._encode_context(self._variables, latents)
            for latents in (global_latents, jnp.zeros_like(global_latents))
        )
        return context, null_context, black

    def _prepare(
        self, source: FrameSource, work: "_WorkCanvas", windows: Sequence[Window], spool: "_LatentSpool", rng: jax.Array
    ):
        """Conditions, guess and noise [W, T, ...] of a batch of windows."""
        # One shape for all batches but a lone window: the last one repeats a window rather than compiling anew.
        count = self._windows_per_batch if len(windows) > 1 else 1
        padded = [windows[min(i, len(windows) - 1)] for i in range(count)]
        masks, masked, guesses, noises = [], [], [], []
        for window in padded:
            guess = work.place(source[list(window.frames)])
            mask = np.repeat(work.mask[None], len(window.frames), axis=0)
            masked_latents = np.array(self._encode(self._hide(_to_unit_range(guess), mask)))
            guess_latents = np.array(self._encode(_to_unit_range(guess)))
            latent_mask = np.array(reduce_mask(mask, self._downscale))
            for place, frame in enumerate(window.frames):
                if window.guides[place]:
                    masked_latents[place] = guess_latents[place] = spool.read(frame)
                    latent_mask[place] = 0
            masks.append(latent_mask)
            masked.append(masked_latents)
            guesses.append(guess_latents)
            noise = window_noise(rng, guess_latents.shape[1:], window.stride, window.frames)
            noises.append(np.float32(self._noise_scale) * noise)
        conditions = Conditions(
            mask=np.stack(masks),
            masked_latents=np.stack(masked),
            guides=np.array([window.guides for window in padded]),
            fps=np.array([source.fps / window.stride for window in padded], np.float32),
            context=None,
            null_context=None,
            black=None,
        )
        return conditions, np.stack(guesses), np.stack(noises)

    def _finished(self, source: FrameSource, canvas: Canvas, spool: "_LatentSpool") -> Iterator[FramesTHWC]:
        """The frames that are made and whose predecessors have all been given out."""
        start, stop = spool.take_finished()
        for first in range(start, stop, self._num_frames):
            indices = range(first, min(first + self._num_frames, stop))
            # Short chunks are filled up: one shape, one compile.
            latents = np.stack([spool.read(min(i, stop - 1)) for i in range(first, first + self._num_frames)])
            frames = np.asarray((self._decode(latents)[: len(indices)] + 1) * 127.5)
            frames = compositing.resize(np.clip(frames, 0, 255), canvas.height, canvas.width)
            yield compositing.match_seam(frames, source[first : indices[-1] + 1], canvas)


class _WorkCanvas:
    """The canvas at the resolution that the model works at.

    height, width: multiples of what the network needs, the shorter one about `lines` or the canvas's own if that is
    less. mask: uint8 [h, w, 1], 1 wherever a pixel holds anything unknown.
    """

    def __init__(self, canvas: Canvas, lines: int, multiple: int):
        short, long = sorted((canvas.height, canvas.width))
        short_side = max(multiple, math.ceil(min(lines, short) / multiple) * multiple)
        long_side = max(multiple, round(long * short_side / short / multiple) * multiple)
        portrait = canvas.height > canvas.width
        self.height, self.width = (long_side, short_side) if portrait else (short_side, long_side)
        self._canvas = canvas
        share = cv2.resize(canvas.mask().astype(np.float32), (self.width, self.height), interpolation=cv2.INTER_AREA)
        self.mask = (share > 1e-6).astype(np.uint8)[..., None]

    def place(self, frames: FramesTHWC) -> np.ndarray:
        """Source frames as the work canvas holds them: float32 [T, h, w, 3] in 0..255, unknown pixels being a blur."""
        canvas = self._canvas
        bottom = canvas.height - canvas.top - canvas.source_height
        right = canvas.width - canvas.left - canvas.source_width
        placed = np.empty((len(frames), self.height, self.width, 3), np.uint8)
        for target, frame in zip(placed, frames, strict=True):
            # The border is continued before the reduction, so that no unknown colour bleeds into a known pixel.
            extended = cv2.copyMakeBorder(frame, canvas.top, bottom, canvas.left, right, cv2.BORDER_REPLICATE)
            target[...] = compositing.resize(extended[None], self.height, self.width)[0]
        return compositing.spread(placed, self.mask)


class _LatentSpool:
    """Latents of the frames made so far, in a temporary file; memory does not grow with the video.

    window: frames of a window; what was given out longer ago than that no window needs, and its place is used again.
    """

    def __init__(self, window: int):
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._window = window
        self._places: dict[int, int] = {}
        self._free: list[int] = []
        self._given_out = 0
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> "_LatentSpool":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def write(self, window: Window, latents: np.ndarray) -> None:
        """Keep what a window writes of its latents [T, h, w, C]."""
        self._shape = latents.shape[1:]
        for frame, writes, frame_latents in zip(window.frames, window.writes, latents, strict=True):
            if writes:
                self._places[frame] = self._free.pop() if self._free else len(self._places)
                self._file.seek(self._places[frame] * frame_latents.nbytes)
                self._file.write(np.ascontiguousarray(frame_latents, np.float32))

    def read(self, frame: int) -> np.ndarray:
        size = 4 * math.prod(self._shape)
        self._file.seek(self._places[frame] * size)
        return np.frombuffer(self._file.read(size), np.float32).reshape(self._shape)

    def take_finished(self) -> tuple[int, int]:
        """The next run of frames, start and stop, that are all made; each frame is given out once."""
        start = self._given_out
        while self._given_out in self._places:
            self._given_out += 1
        for frame in [f for f in self._places if f < start - self._window]:
            self._free.append(self._places.pop(frame))
        return start, self._given_out


def _to_unit_range(frames: np.ndarray) -> np.ndarray:
    return frames.astype(np.float32) / 127.5 - 1
