"""A source on a work canvas in latents: what outpainting by latent diffusion does with any plan and any denoiser.

Windows are prepared (conditions, guess, noise), sampled on the devices in batches, cached on disk, decoded and shown.
Which windows there are, which denoiser samples them and what it knows of the whole video is each system's own.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from m3ddm_jax.flow.region_fill import BLACK
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.models.autoencoder import decode_tiled, latent_frames, latent_mask, to_latents
from m3ddm_jax.parallel.mesh import BATCH_AXES, make_mesh, replicated
from m3ddm_jax.pipelines import compositing
from m3ddm_jax.pipelines.baselines import inpaint_telea
from m3ddm_jax.pipelines.carried_pixels import CarriedPixels
from m3ddm_jax.pipelines.denoiser import SampleSettings, WindowSampler
from m3ddm_jax.pipelines.latent_cache import LatentCache
from m3ddm_jax.pipelines.options import computing_in
from m3ddm_jax.pipelines.sampler import Conditions
from m3ddm_jax.pipelines.window_schedule import Level, Window, fill_windows, latent_guides, plan_batches
from m3ddm_jax.pipelines.work_canvas import SquareCanvas, WorkCanvas
from m3ddm_jax.types import Codec, FramesTHWC, Variables
from m3ddm_jax.video import FrameSource

Contexts = Callable[[Sequence[Window]], tuple[Any, Any]]
"""windows -> what the denoiser knows of their whole video, and of none: contexts as sampler.Conditions has them."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How windows are prepared; the choices that are no default are those of M3DDM's released code.

    guess, latent_mask, posterior, noise: as in m3ddm.M3ddmSettings. in_sequence: guides do not enter the guess, and fps
    is rounded down.
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


class FrozenCodec:
    """A trained `types.Codec` on the devices.

    posterior: latents are its mean, or a sample. spatial_factor, temporal_factor: as in `types.Codec`.
    """

    def __init__(self, module: Codec, variables: Variables, devices: Devices, dtype: str, posterior: str = "mean"):
        self.spatial_factor, self.temporal_factor = module.spatial_factor, module.temporal_factor
        self._module = computing_in(dtype, module)
        self._variables = devices.share(variables)
        self._stochastic = posterior == "sample"
        self._to_latents = jax.jit(to_latents, static_argnums=0)

    def encode(self, images: jax.Array, rng: jax.Array, *place: Any) -> jax.Array:
        """Latents [N, h, w, C] of images [N, H, W, 3] in [-1, 1]; samples of the posterior depend on `place`."""
        key = jax.random.fold_in(rng, zlib.crc32(repr(place).encode())) if self._stochastic else None
        return self._to_latents(self._module, self._variables, images, key)

    def encode_clip(self, frames: jax.Array, rng: jax.Array, *place: Any) -> jax.Array:
        """Latents [T', h, w, C] of a clip [T, H, W, 3] in [-1, 1]; as `encode`."""
        if self.temporal_factor == 1:
            return self.encode(frames, rng, *place)
        return self.encode(frames[None], rng, *place)[0]

    def latent_frames(self, num_frames: int) -> int:
        """As `models.autoencoder.latent_frames`."""
        return latent_frames(self._module, num_frames)

    def reduce_mask(self, mask: np.ndarray, mode: str) -> np.ndarray:
        """The mask [T, H, W, 1] of a clip in latent cells, float32 [T', h, w, 1]."""
        return np.array(latent_mask(self._module, mask, mode))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """The clip, float32 [T, H, W, 3] in 0..255, of latents [T', h, w, C]."""
        return np.clip((decode_tiled(self._module, self._variables, latents) + 1) * 127.5, 0, 255)


class LatentVideo:
    """One source that is outpainted to one canvas.

    work: the canvas that networks see, its sides multiples of what they need. carried: pixels that are known besides
    the source's, where work is a `WorkCanvas`; they come back as they are.

    What a window makes of a frame is cached as latents; of a codec with a temporal factor, whose latents belong to
    their window, as pixels of the work canvas, which other windows encode again.
    Raises ValueError for a number of frames a window that the codec does not take.
    """

    def __init__(
        self,
        source: FrameSource,
        canvas: Canvas,
        work: WorkCanvas | SquareCanvas,
        codec: FrozenCodec,
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
        codec.latent_frames(settings.num_frames)
        self._caches_pixels = codec.temporal_factor > 1
        self._encode_black = functools.cache(self._encode_black)

    def outpaint(
        self, levels: Sequence[Level], denoisers: Sequence[tuple[WindowSampler, Contexts]]
    ) -> Iterator[FramesTHWC]:
        """Yields canvas frames, uint8 [n, H, W, 3], in time order, as soon as a chunk of them is made for good.

        levels: the plan. denoisers: who samples each level, and what is known to it of the whole video.
        """
        levels = fill_windows(levels, self._codec.temporal_factor)
        batches = plan_batches(levels, self._devices.windows, len(self._source))
        total = sum(len(batch.windows) for batch in batches)
        done = 0
        with LatentCache() as cache, tqdm(total=total, desc="windows", unit="window", leave=False, disable=None) as bar:
            for batch in batches:
                self._make(batch.windows, *denoisers[batch.level], cache)
                bar.update(len(batch.windows))
                # Whole chunks, as long as there are more frames to come: a shorter one takes as long to decode.
                while done < batch.final and (
                    batch.final == len(self._source) or batch.final - done >= self._num_frames
                ):
                    stop = min(done + self._num_frames, batch.final)
                    yield self._show(done, stop, cache)
                    done = stop
                cache.forget(min(done, batch.needed))

    def _make(self, windows: Sequence[Window], denoiser: WindowSampler, contexts: Contexts, cache: LatentCache) -> None:
        """Sample a batch of windows, and keep what they write."""
        # One shape for all batches but a lone window: the last one repeats a window rather than compiling anew.
        count = self._devices.windows if len(windows) > 1 else 1
        padded = [windows[min(i, len(windows) - 1)] for i in range(count)]
        prepared = [self._prepare(window, denoiser, cache) for window in windows]
        prepared += prepared[-1:] * (count - len(windows))
        inputs = self._devices.split(jax.tree.map(lambda *parts: np.stack(parts), *prepared))
        context, null_context = contexts(padded)
        conditions = Conditions(
            **inputs["conditions"],
            context=context,
            null_context=null_context,
            black=self._devices.share(self._encode_black(len(windows[0].frames))),
        )
        latents = np.asarray(denoiser.sample(conditions, inputs["guess"], **inputs["noise"]))
        for window, window_latents in zip(windows, latents, strict=False):
            made = self._codec.decode(window_latents) if self._caches_pixels else window_latents
            for frame, writes, of_frame in zip(window.frames, window.writes, made, strict=True):
                if writes:
                    cache.write(frame, of_frame)

    def _encode_black(self, num_frames: int) -> jax.Array:
        """Latents of black frames, [1, h, w, C], or of a clip of them where the codec takes clips."""
        count = num_frames if self._caches_pixels else 1
        black = jnp.full((count, self._work.height, self._work.width, 3), BLACK)
        return self._codec.encode_clip(black, self._rng, "black")

    def _prepare(self, window: Window, denoiser: WindowSampler, cache: LatentCache) -> dict[str, Any]:
        """Conditions (what one window has of its own), guess and noise [T, h, w, C]."""
        choices, rng, factor = self._preparation, self._rng, self._codec.temporal_factor
        frames, mask = self._known(window.frames)
        guides = latent_guides(window, factor)
        if self._caches_pixels:
            for place in np.flatnonzero(window.guides):
                frames[place] = np.rint(cache.first(window.frames[place]))
                mask[place] = 0
        fill = {"spread": compositing.spread, "telea": inpaint_telea}[choices.guess]
        guess = to_unit_range(np.concatenate([fill(f[None], m) for f, m in zip(frames, mask, strict=True)]))
        place = (window.stride, window.frames[0])
        guess_latents = np.array(self._codec.encode_clip(guess, rng, "guess", *place))
        masked_latents = np.array(self._codec.encode_clip(denoiser.hide(guess, mask), rng, "masked", *place))
        cells = self._codec.reduce_mask(mask, choices.latent_mask)
        if not self._caches_pixels:
            for i in np.flatnonzero(guides):
                masked_latents[i] = cache.first(window.frames[i])
                cells[i] = 0
                if not choices.in_sequence:
                    guess_latents[i] = masked_latents[i]
        fps = self._source.fps / window.stride
        shared = choices.noise == "shared"
        drawn_for = (0, tuple(range(len(guides)))) if shared else (window.stride, window.frames[::factor])
        return {
            "conditions": {
                "mask": cells,
                "masked_latents": masked_latents,
                "guides": np.array(guides),
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

    def _show(self, start: int, stop: int, cache: LatentCache) -> FramesTHWC:
        """Canvas frames of `start` to `stop`, at most a window's number."""
        if self._caches_pixels:
            made = np.stack([cache.last(i) for i in range(start, stop)])
        else:
            # Short chunks are filled up: one shape, one compile.
            latents = np.stack([cache.last(min(i, stop - 1)) for i in range(start, start + self._num_frames)])
            made = self._codec.decode(latents)[: stop - start]
        originals = self._source[start:stop]
        frames = self._work.to_canvas(made, originals)
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
