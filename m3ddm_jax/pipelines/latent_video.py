"""A source on a work canvas in latents: what outpainting by latent diffusion does with any plan and any denoiser.

Windows are prepared (conditions, guess, noise), sampled on the devices in batches, kept on disk as latents, decoded and
shown. Which windows there are, which denoiser samples them and what it knows of the whole video is each system's own.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from m3ddm_jax.flow.region_fill import BLACK
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.models.autoencoder import decode_tiled, reduce_mask, to_latents
from m3ddm_jax.parallel.mesh import BATCH_AXES, make_mesh, replicated
from m3ddm_jax.pipelines import compositing
from m3ddm_jax.pipelines.baselines import inpaint_telea
from m3ddm_jax.pipelines.carried_pixels import CarriedPixels
from m3ddm_jax.pipelines.denoiser import Denoiser, SampleSettings
from m3ddm_jax.pipelines.hierarchy import Level, Window, plan_batches
from m3ddm_jax.pipelines.latent_spool import LatentSpool
from m3ddm_jax.pipelines.options import computing_in
from m3ddm_jax.pipelines.sampler import Conditions
from m3ddm_jax.pipelines.work_canvas import SquareCanvas, WorkCanvas
from m3ddm_jax.types import FramesTHWC, Variables
from m3ddm_jax.video import FrameSource

Contexts = Callable[[Sequence[Window]], tuple[Any, Any]]
"""windows -> what the denoiser knows of their whole video, and of none: contexts as sampler.Conditions has them."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How windows are prepared; the choices that are no default are those of M3DDM's released code.

    guess, latent_mask, posterior, noise: as in m3ddm.Settings. in_sequence: guides do not enter the guess, and fps is
    rounded down.
    """

    guess: Literal["spread", "telea"] = "spread"
    latent_mask: Literal["max", "nearest"] = "max"
    posterior: Literal["mean", "sample"] = "mean"
    noise: Literal["frame", "shared"] = "frame"
    in_sequence: bool = False


class Devices:
    """Where windows are sampled.

    windows: so many that do not wait for each other are sampled at once; one a device by default (on CPUs one).
    mesh: the devices that they are spread over.
    """

    def __init__(self, windows: int | None = None):
        devices = jax.devices()
        self.windows = windows or (1 if devices[0].platform == "cpu" else len(devices))
        self.mesh = make_mesh(devices=devices[: min(self.windows, len(devices))])

    def share(self, arrays: Any) -> Any:
        """Arrays on every device."""
        return jax.device_put(arrays, replicated(self.mesh))

    def split(self, arrays: Any) -> Any:
        """Arrays [W, ...] of W windows, in equal parts on the devices, or where that cannot be on all of them alike."""
        count = len(jax.tree.leaves(arrays)[0])
        parts = PartitionSpec(BATCH_AXES if count % self.mesh.size == 0 else None)
        return jax.device_put(arrays, NamedSharding(self.mesh, parts))


class Codec:
    """A frozen autoencoder.

    posterior: latents are its mean, or a sample. downscale: pixels a side of a latent cell.
    """

    def __init__(self, module: nn.Module, variables: Variables, devices: Devices, dtype: str, posterior: str = "mean"):
        self.downscale = module.downscale
        self._module = computing_in(dtype, module)
        self._variables = devices.share(variables)
        self._drawn = posterior == "sample"
        self._to_latents = jax.jit(to_latents, static_argnums=0)

    def encode(self, frames: jax.Array, rng: jax.Array, *place: Any) -> jax.Array:
        """Latents of frames [N, H, W, 3] in [-1, 1]; where they are drawn, `place` tells one draw from another."""
        key = jax.random.fold_in(rng, zlib.crc32(repr(place).encode())) if self._drawn else None
        return self._to_latents(self._module, self._variables, frames, key)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Frames, float32 [N, H, W, 3] in 0..255, of latents [N, h, w, C]."""
        return np.clip((decode_tiled(self._module, self._variables, latents) + 1) * 127.5, 0, 255)


class LatentVideo:
    """One source that is outpainted to one canvas.

    work: the canvas that networks see, its sides multiples of what they need. carried: pixels that are known besides
    the source's, where work is a `WorkCanvas`; they come back as they are.
    """

    def __init__(
        self,
        source: FrameSource,
        canvas: Canvas,
        work: WorkCanvas | SquareCanvas,
        codec: Codec,
        devices: Devices,
        settings: SampleSettings,
        rng: jax.Array,
        preparation: Preparation = Preparation(),
        carried: CarriedPixels | None = None,
    ):
        self._source, self._canvas, self._work = source, canvas, work
        self._codec, self._devices, self._rng = codec, devices, rng
        self._num_frames, self._seam = settings.num_frames, settings.seam
        self._preparation, self._carried = preparation, carried
        self._black = codec.encode(jnp.full((1, work.height, work.width, 3), BLACK), rng, "black")[0]

    def outpaint(self, levels: Sequence[Level], denoisers: Sequence[tuple[Denoiser, Contexts]]) -> Iterator[FramesTHWC]:
        """Yields canvas frames, uint8 [n, H, W, 3], in time order, as soon as a chunk of them is made for good.

        levels: the plan. denoisers: who samples each level, and what is known to it of the whole video.
        """
        batches = plan_batches(levels, self._devices.windows, len(self._source))
        total = sum(len(batch.windows) for batch in batches)
        done = 0
        with LatentSpool() as spool, tqdm(total=total, desc="windows", unit="window", leave=False, disable=None) as bar:
            for batch in batches:
                self._make(batch.windows, *denoisers[batch.level], spool)
                bar.update(len(batch.windows))
                # Whole chunks, as long as there are more frames to come: a shorter one takes as long to decode.
                while done < batch.final and (
                    batch.final == len(self._source) or batch.final - done >= self._num_frames
                ):
                    stop = min(done + self._num_frames, batch.final)
                    yield self._show(done, stop, spool)
                    done = stop
                spool.forget(min(done, batch.needed))

    def _make(self, windows: Sequence[Window], denoiser: Denoiser, contexts: Contexts, spool: LatentSpool) -> None:
        """Sample a batch of windows, and keep what they write."""
        # One shape for all batches but a lone window: the last one repeats a window rather than compiling anew.
        count = self._devices.windows if len(windows) > 1 else 1
        padded = [windows[min(i, len(windows) - 1)] for i in range(count)]
        prepared = [self._prepare(window, denoiser, spool) for window in windows]
        prepared += prepared[-1:] * (count - len(windows))
        inputs = self._devices.split(jax.tree.map(lambda *parts: np.stack(parts), *prepared))
        context, null_context = contexts(padded)
        conditions = Conditions(
            **inputs["conditions"],
            context=context,
            null_context=null_context,
            black=self._devices.share(self._black),
        )
        latents = np.asarray(denoiser.sample(conditions, inputs["guess"], **inputs["noise"]))
        for window, window_latents in zip(windows, latents, strict=False):
            for frame, writes, frame_latents in zip(window.frames, window.writes, window_latents, strict=True):
                if writes:
                    spool.write(frame, frame_latents)

    def _prepare(self, window: Window, denoiser: Denoiser, spool: LatentSpool) -> dict[str, Any]:
        """Conditions (what one window has of its own), guess and noise [T, h, w, C]."""
        choices, rng = self._preparation, self._rng
        frames, mask = self._known(window.frames)
        fill = {"spread": compositing.spread, "telea": inpaint_telea}[choices.guess]
        guess = to_unit_range(np.concatenate([fill(f[None], m) for f, m in zip(frames, mask, strict=True)]))
        place = (window.stride, window.frames[0])
        guess_latents = np.array(self._codec.encode(guess, rng, "guess", *place))
        masked_latents = np.array(self._codec.encode(denoiser.hide(guess, mask), rng, "masked", *place))
        latent_mask = np.array(reduce_mask(mask, self._codec.downscale, choices.latent_mask))
        for i, frame in enumerate(window.frames):
            if window.guides[i]:
                masked_latents[i] = spool.first(frame)
                latent_mask[i] = 0
                if not choices.in_sequence:
                    guess_latents[i] = masked_latents[i]
        fps = self._source.fps / window.stride
        shared = choices.noise == "shared"
        drawn_for = (0, tuple(range(len(frames)))) if shared else (window.stride, window.frames)
        return {
            "conditions": {
                "mask": latent_mask,
                "masked_latents": masked_latents,
                "guides": np.array(window.guides),
                "fps": np.float32(np.floor(fps) if choices.in_sequence else fps),
            },
            "guess": guess_latents,
            "noise": denoiser.draw(rng, guess_latents.shape[1:], *drawn_for),
        }

    def _known(self, indices: Sequence[int]) -> tuple[FramesTHWC, np.ndarray]:
        """Frames of the work canvas, uint8 [T, h, w, 3], and what is unknown of each, uint8 [T, h, w, 1]."""
        work = self._work
        if self._carried is None:
            frames = work.place(self._source[list(indices)])
            return frames, np.repeat(work.mask[None], len(frames), axis=0)
        frames, masks = self._carried[indices]
        return compositing.resize(frames, work.height, work.width), work.reduce(masks)

    def _show(self, start: int, stop: int, spool: LatentSpool) -> FramesTHWC:
        """Canvas frames of `start` to `stop`, at most a window's number."""
        # Short chunks are filled up: one shape, one compile.
        latents = np.stack([spool.last(min(i, stop - 1)) for i in range(start, start + self._num_frames)])
        originals = self._source[start:stop]
        frames = self._work.to_canvas(self._codec.decode(latents)[: stop - start], originals)
        if self._carried is None:
            return self._match(frames, self._canvas.paste(frames, originals), self._canvas.mask()[None])
        known, masks = self._carried[range(start, stop)]
        return np.where(masks > 0, self._match(frames, known, masks), known)

    def _match(self, frames: np.ndarray, known: np.ndarray, masks: np.ndarray) -> FramesTHWC:
        if self._seam == "matched":
            return compositing.match_known(frames, known, masks)
        return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def to_unit_range(frames: np.ndarray) -> np.ndarray:
    """0..255 -> float32 in [-1, 1]."""
    return frames.astype(np.float32) / 127.5 - 1
