"""A model folder's denoiser: the diffusion that it was trained for, how it is sampled, and both on the devices."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from m3ddm_jax.checked import accepted_instead
from m3ddm_jax.diffusion.guidance import Guidance
from m3ddm_jax.diffusion.schedule import Schedule, make_schedule
from m3ddm_jax.diffusion.solvers import Solver, make_solver
from m3ddm_jax.diffusion.targets import PREDICTIONS, check_prediction
from m3ddm_jax.flow.region_fill import UNKNOWN, hide
from m3ddm_jax.parallel.mesh import replicated
from m3ddm_jax.pipelines.base import DiffusionOptions
from m3ddm_jax.pipelines.options import CheckedSettings, at_most, computing_in
from m3ddm_jax.pipelines.sampler import Conditions, make_sampler, window_noise
from m3ddm_jax.types import Denoiser, Latents, Variables
from m3ddm_jax.weights import load_settings

_FRESH = 2**31
"""Keys of the noise that is drawn within steps start here: no stride is as large."""


@dataclasses.dataclass(frozen=True)
class SampleSettings(CheckedSettings):
    """How every latent model outpaints: in the section `sample` of its pipeline.json.

    lines: the shorter side of what it works on, in pixels.
    global_frames: how many frames it sees of the whole of a video.
    num_frames: frames of a window.
    noise_scale: of the noise that sampling starts from; below 1 towards the mean of what is likely.
    strength: share of the noise levels that is run; 1 starts at pure noise.
    solver, steps: as in diffusion.solvers.make_solver.
    guidance_local, guidance_global, guidance_interval: as in diffusion.guidance.Guidance.
    clip: bound of the predicted latents, if any.
    seam: the generated side's colours are made to meet the source's and fade out into what was generated (matched), or
      stay as they are (hard).
    """

    lines: int = at_most(4096)
    global_frames: int = at_most(1024)
    num_frames: int = at_most(1024)
    noise_scale: float
    strength: float
    solver: str
    steps: int = at_most(10_000)
    guidance_local: float
    guidance_global: float
    guidance_interval: tuple[float, float]
    clip: float | None
    seam: Literal["matched", "hard"]


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """What a model was trained for: the schedule of its noise, what it predicts, how unknown pixels are hidden.

    Raises ValueError for a prediction that does not fit the schedule.
    """

    schedule: Schedule
    prediction: str
    unknown: str

    def __post_init__(self):
        check_prediction(self.prediction, self.schedule)


_DIFFUSION = {
    "schedule": str,
    "zero_terminal_snr": bool,
    "shift": float,
    "prediction": Literal[PREDICTIONS],
    "unknown": Literal[UNKNOWN],
}
"""What pipeline.json says of a model's diffusion, and of what type."""
_SECTIONS = {"sample": dict, "stage": str}


def make_diffusion(section: Mapping[str, Any]) -> Diffusion:
    """The Diffusion of a section `diffusion`, of a config or of a pipeline.json.

    Raises KeyError for a missing field, ValueError for an unknown schedule or a prediction that does not fit it.
    """
    schedule = make_schedule(
        section["schedule"], zero_terminal_snr=section["zero_terminal_snr"], shift=section["shift"]
    )
    return Diffusion(schedule, section["prediction"], section["unknown"])


def make_solver_of(diffusion: Diffusion, settings: SampleSettings) -> Solver:
    """The solver that settings name, over the schedule that a model was trained for."""
    return make_solver(settings.solver, diffusion.schedule, settings.steps, settings.strength)


def make_sampler_of(network: Denoiser, diffusion: Diffusion, settings: SampleSettings) -> Callable[..., Latents]:
    """The sampler of a trained network as its settings have it; see `sampler.make_sampler`."""
    return make_sampler(
        network,
        diffusion.schedule,
        make_solver_of(diffusion, settings),
        prediction=diffusion.prediction,
        guidance=Guidance(settings.guidance_local, settings.guidance_global, tuple(settings.guidance_interval)),
        clip=settings.clip,
    )


def chosen_settings(options: DiffusionOptions) -> dict[str, Any]:
    """The settings that options of a method take the place of, by name."""
    steps = {} if options.steps is None else {"steps": options.steps}
    return {**(options.settings or {}), **steps}


def load_pipeline(folder: Path, *names: str) -> tuple[Any, ...]:
    """The Diffusion of a model folder's pipeline.json, then the values of the names.

    Raises ValueError where there is none, where a field is missing, or where schedule and prediction do not fit.
    """
    stored, path = load_settings(folder), folder / "pipeline.json"
    try:
        section = stored["diffusion"]
        if not isinstance(section, dict):
            raise ValueError(f"its diffusion is {section!r:.100}: values by name are accepted")
        for name, kind in _DIFFUSION.items():
            if accepted := accepted_instead(kind, section[name]):
                raise ValueError(f"its {name} is {section[name]!r:.100}: {accepted} is accepted")
        found = [stored[name] for name in names]
        for name, value in zip(names, found, strict=True):
            if not isinstance(value, _SECTIONS[name]):
                raise ValueError(f"its {name} is {value!r:.100}: a {_SECTIONS[name].__name__} is accepted")
        return make_diffusion(section), *found
    except KeyError as error:
        raise ValueError(f"{path} does not say {error}") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None


class WindowSampler:
    """A denoiser on all devices of a mesh, and its sampler.

    size_multiple: of latent cells, what both sides of its windows are multiples of.
    Raises ValueError for settings that do not fit, or a dtype that is neither float32 nor bfloat16.
    """

    def __init__(
        self,
        network: Denoiser,
        variables: Variables,
        diffusion: Diffusion,
        settings: SampleSettings,
        mesh: Mesh,
        dtype: str,
    ):
        network = computing_in(dtype, network)
        self.size_multiple = network.size_multiple
        self._noise_scale = settings.noise_scale
        self._fresh = settings.steps if make_solver_of(diffusion, settings).noise is not None else 0
        self._variables = jax.device_put(variables, replicated(mesh))
        self._hide = jax.jit(partial(hide, unknown=diffusion.unknown))
        self._encode_context = jax.jit(partial(network.apply, method="encode_context"))
        self._sample = make_sampler_of(network, diffusion, settings)

    def hide(self, frames: jax.Array, mask: jax.Array) -> jax.Array:
        """Frames [T, H, W, 3] in [-1, 1] without their unknown pixels, as the network was trained to see them."""
        return self._hide(frames, mask)

    def encode_context(self, *conditions: Any) -> Any:
        """What its attention asks of a whole video, as the network's method of that name takes it."""
        return self._encode_context(self._variables, *conditions)

    def draw(self, rng: jax.Array, shape: tuple[int, ...], stride: int, frames: tuple[int, ...]) -> dict[str, Any]:
        """The noise of a window, for `sample`: where sampling starts [T, *shape] and, of a stochastic solver, that of
        its S steps [S, T, *shape]."""
        noise = {"noise": np.float32(self._noise_scale) * window_noise(rng, shape, stride, frames)}
        if self._fresh:
            keys = [jax.random.fold_in(rng, _FRESH + step) for step in range(self._fresh)]
            noise["step_noise"] = np.stack([window_noise(key, shape, stride, frames) for key in keys])
        return noise

    def sample(
        self, conditions: Conditions, guess: Latents, noise: Latents, step_noise: Latents | None = None
    ) -> Latents:
        """Latents [W, T, h, w, C] of W windows, from a guess and noise of that shape, and [W, S, T, h, w, C]."""
        if step_noise is not None:
            step_noise = step_noise.swapaxes(0, 1)
        return self._sample(self._variables, guess, noise, conditions, step_noise)
