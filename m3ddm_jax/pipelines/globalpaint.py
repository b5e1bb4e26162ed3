"""Outpainting by key frames first and the intervals between them next, shot by shot, guided by what the shot shows.

Source: GlobalPaint (Pan et al., arXiv 2601.06413): the two stages and their models, global tokens of the observed
regions. The plan, what a model sees of a shot, and how both models are joined are designed here.
"""

import bisect
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.models import registry
from m3ddm_jax.models.global_tokens import observe
from m3ddm_jax.models.globalpaint import TextAndVideo
from m3ddm_jax.models.observed_crop import crop_observed
from m3ddm_jax.models.stages import Context
from m3ddm_jax.pipelines.base import GlobalpaintOptions
from m3ddm_jax.pipelines.carried_pixels import CarriedPixels
from m3ddm_jax.pipelines.denoiser import SampleSettings, WindowSampler, chosen_settings, load_pipeline
from m3ddm_jax.pipelines.key_frames import plan_key_frames, plan_sequence
from m3ddm_jax.pipelines.latent_video import Devices, FrozenCodec, LatentVideo, to_unit_range
from m3ddm_jax.pipelines.options import computing_in
from m3ddm_jax.pipelines.window_schedule import Window
from m3ddm_jax.pipelines.work_canvas import WorkCanvas
from m3ddm_jax.types import FramesTHWC
from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.shots import source_cuts
from m3ddm_jax.weights import load_autoencoder, load_image_encoder, load_model, resolve

KEY_FRAMES, INTERPOLATION = "key_frames", "interpolation"
"""What a model is for: the `stage` of its pipeline.json."""
_A_MODEL = {KEY_FRAMES: "a key_frames", INTERPOLATION: "an interpolation"}


@dataclasses.dataclass(frozen=True)
class GlobalpaintSettings(SampleSettings):
    """How the model of one stage outpaints: the section `sample` of its pipeline.json.

    lines, num_frames, global_frames, which here are of a shot, and seam are the key-frame model's for both.
    """


class GlobalPaint(GlobalpaintOptions):
    """The `globalpaint` Outpainter over the folders of a key-frame model and of an interpolation model.

    settings, steps: for both models in place of their own.
    Raises ValueError for a folder that is missing, too many, not whole or of the wrong kind, models in latents of
    different autoencoders, and settings that do not fit.
    """

    def __post_init__(self):
        _check_folders(self.model, self.interpolation_model, self.sequential)
        self._devices = Devices(self.windows)
        named = {"model": (self.model, KEY_FRAMES), "interpolation_model": (self.interpolation_model, INTERPOLATION)}
        stages = {
            option: _Stage(folder, stage, f"`{option}`", chosen_settings(self), self._devices, self.dtype)
            for option, (folder, stage) in named.items()
            if folder is not None
        }
        self.models = {option: (stage.folder, stage.settings) for option, stage in stages.items()}
        self._stages = list(stages.values())
        _check_same_autoencoder(self._stages)
        self._codec = FrozenCodec(*self._stages[0].autoencoder, self._devices, self.dtype)

    def __call__(self, source: FrameSource, canvas: Canvas, rng: jax.Array) -> Iterator[FramesTHWC]:
        """Yields canvas frames, uint8 [n, H, W, 3], in time order; the caller pastes the source's own pixels."""
        settings = self._stages[0].settings
        multiple = self._codec.spatial_factor * max(stage.denoiser.size_multiple for stage in self._stages)
        work = WorkCanvas(canvas, settings.lines, multiple)
        cuts = source_cuts(source)
        plan = plan_sequence if len(self._stages) == 1 else plan_key_frames
        levels = plan(len(source), cuts, settings.num_frames)
        shots = [0, *cuts, len(source)]
        painters = [
            (stage.denoiser, _ShotContexts(source, canvas, shots, settings.global_frames, stage, self._devices))
            for stage in self._stages
        ]
        carried = CarriedPixels(source, canvas) if self.propagate else None
        video = LatentVideo(source, canvas, work, self._codec, self._devices, settings, rng, carried=carried)
        return video.outpaint(levels, [painters[min(level, 1)] for level in range(len(levels))])


class _Stage:
    """The model of one stage: folder, settings, denoiser, autoencoder, and what it sees shots through, if anything."""

    def __init__(
        self,
        model: str | os.PathLike,
        stage: str,
        option: str,
        single: Mapping[str, Any],
        devices: Devices,
        dtype: str,
    ):
        self.folder = resolve(model)
        network, variables = load_model(self.folder, kind="globalpaint")
        diffusion, own, found = load_pipeline(self.folder, "sample", "stage")
        if found != stage:
            is_ = _A_MODEL.get(found, f"a {found!r}")
            raise ValueError(f"{self.folder} is {is_} model: {option} accepts {_A_MODEL[stage]} one")
        if network.global_guidance:
            encoder, encoder_variables = load_image_encoder(self.folder)
            if encoder.width != network.patch_width:
                found = f"an image encoder of width {encoder.width}"
                raise ValueError(f"{self.folder} holds {found}: its model takes one of {network.patch_width}")
            self.image_encoder = computing_in(dtype, encoder), encoder_variables
        else:
            self.image_encoder = None
            # With tokens and without is the same to it: one branch does for both.
            single = {**single, "guidance_global": 1.0}
        self.settings = GlobalpaintSettings.make({**own, **single})
        self.autoencoder = load_autoencoder(self.folder)
        self.denoiser = WindowSampler(network, variables, diffusion, self.settings, devices.mesh, dtype)


class _ShotContexts:
    """What a stage's denoiser knows of the shots that windows are of: `latent_video.Contexts`.

    shots: the first frame of each, and the number of frames. A shot is looked at once a level: windows come shot by
    shot, and what those of a batch need is kept.
    """

    def __init__(
        self,
        source: FrameSource,
        canvas: Canvas,
        shots: Sequence[int],
        global_frames: int,
        stage: _Stage,
        devices: Devices,
    ):
        self._source, self._canvas, self._shots, self._global_frames = source, canvas, shots, global_frames
        self._stage, self._devices = stage, devices
        self._null = devices.share(stage.denoiser.encode_context())
        self._of_shot = functools.lru_cache(maxsize=devices.windows)(self._encode_shot)

    def __call__(self, windows: Sequence[Window]) -> tuple[Context, Context]:
        if self._stage.image_encoder is None:
            return self._null, self._null
        contexts = [self._of_shot(bisect.bisect(self._shots, window.frames[0]) - 1) for window in windows]
        return jax.tree.map(self._join, *contexts, is_leaf=lambda part: isinstance(part, TextAndVideo)), self._null

    def _join(self, *layers: TextAndVideo) -> TextAndVideo:
        """A layer's keys and values for windows: those of the text once, those of a shot for each."""
        videos = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *(layer.video for layer in layers))
        return TextAndVideo(self._devices.share(layers[0].text), self._devices.split(videos))

    def _encode_shot(self, shot: int) -> Context:
        """The context of one shot: what frames spread over it show, the first and the last among them."""
        encoder, variables = self._stage.image_encoder
        first, last = self._shots[shot], self._shots[shot + 1] - 1
        frames, places = np.unique(np.linspace(first, last, self._global_frames).astype(int), return_inverse=True)
        squares = jnp.stack([_to_square(self._source[[frame]], encoder.image_size) for frame in frames])[places]
        rows, columns = self._canvas.box
        box = np.array([[rows.start, rows.stop, columns.start, columns.stop]])
        size = self._canvas.height, self._canvas.width
        # The encoder's weights stay on the host between shots: memory is the denoisers'.
        return self._stage.denoiser.encode_context(_observe(encoder, variables, squares[None], box, size))


_observe = jax.jit(observe, static_argnums=(0, 4))


@functools.partial(jax.jit, static_argnums=1)
def _to_square(frame: jax.Array, side: int) -> jax.Array:
    """A whole frame, uint8 [1, H, W, 3], in the upper left of a square, float32 [side, side, 3] in [-1, 1]."""
    _, height, width, _ = frame.shape
    return crop_observed(to_unit_range(frame)[None], np.array([[0, height, 0, width]]), side)[0, 0]


def _check_folders(model: Any, interpolation_model: Any, sequential: bool) -> None:
    if model is None:
        raise ValueError("globalpaint needs the folder of a key_frames model: `model`")
    if sequential and interpolation_model is not None:
        raise ValueError("`sequential` runs the key_frames model alone: it accepts no `interpolation_model`")
    if not sequential and interpolation_model is None:
        raise ValueError("globalpaint needs `interpolation_model`, or `sequential`, which does without one")


def _check_same_autoencoder(stages: Sequence[_Stage]) -> None:
    """Raises ValueError where latents of one stage mean nothing to another."""
    first, *others = stages
    module, variables = first.autoencoder
    for other in others:
        other_module, other_variables = other.autoencoder
        same = registry.describe(module) == registry.describe(other_module)
        if not (same and jax.tree.all(jax.tree.map(np.array_equal, variables, other_variables))):
            raise ValueError(
                f"{first.folder} and {other.folder} hold different autoencoders: both models must share one"
            )
