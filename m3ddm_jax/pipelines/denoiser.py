"""A model folder's denoiser: what it was trained for, how it is sampled, and both at work on the devices."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
from jax.sharding import Mesh

from m3ddm_jax.checked import accepted_instead
from m3ddm_jax.diffusion.guidance import Guidance
from m3ddm_jax.diffusion.schedule import Schedule, make_schedule
from m3ddm_jax.diffusion.solvers import make_solver
from m3ddm_jax.diffusion.targets import PREDICTIONS
from m3ddm_jax.flow.region_fill import UNKNOWN, hide
from m3ddm_jax.models import registry
from m3ddm_jax.parallel.mesh import replicated
from m3ddm_jax.pipelines.options import CheckedSettings, at_most, computing_in
from m3ddm_jax.pipelines.sampler import Conditions, make_sampler
from m3ddm_jax.types import Latents, Variables
from m3ddm_jax.weights import load_model, load_settings


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
    """What a model was trained for: the schedule of its noise, what it predicts, how unknown pixels are hidden."""

    schedule: Schedule
    prediction: str
    unknown: str


_DIFFUSION = {
    "schedule": str,
    "zero_terminal_snr": bool,
    "shift": float,
    "prediction": Literal[PREDICTIONS],
    "unknown": Literal[UNKNOWN],
}
"""What pipeline.json says of a model's diffusion, and of what type."""
_SECTIONS = {"sample": dict, "stage": str}


def load_kind(folder: Path, kind: str) -> tuple[nn.Module, Variables]:
    """(module, variables) of a model folder of that kind; raises ValueError for another, else as load_model."""
    module, variables = load_model(folder)
    found, _ = registry.describe(module)
    if found != kind:
        raise ValueError(f"{folder} holds a model of kind {found}: one of kind {kind} is needed")
    return module, variables


def load_pipeline(folder: Path, *names: str) -> tuple[Any, ...]:
    """What a model folder's pipeline.json says: its Diffusion, then the values of the names.

    Raises ValueError where there is none, or where it does not say something.
    """
    stored, path = load_settings(folder), folder / "pipeline.json"
    try:
        said = stored["diffusion"]
        if not isinstance(said, dict):
            raise ValueError(f"its diffusion is {said!r:.100}: values by name are accepted")
        for name, kind in _DIFFUSION.items():
            if accepted := accepted_instead(kind, said[name]):
                raise ValueError(f"its {name} is {said[name]!r:.100}: {accepted} is accepted")
        schedule = make_schedule(said["schedule"], zero_terminal_snr=said["zero_terminal_snr"], shift=said["shift"])
        found = [stored[name] for name in names]
        for name, value in zip(names, found, strict=True):
            if not isinstance(value, _SECTIONS[name]):
                raise ValueError(f"its {name} is {value!r:.100}: a {_SECTIONS[name].__name__} is accepted")
        return Diffusion(schedule, said["prediction"], said["unknown"]), *found
    except KeyError as error:
        raise ValueError(f"{path} does not say {error}") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None


class Denoiser:
    """A network on all devices of a mesh, and its sampler.

    multiple: of cells that both sides of its latents are. noise_scale: of the settings.
    Raises ValueError for settings that do not fit, or a dtype that is neither float32 nor bfloat16.
    """

    def __init__(
        self,
        network: nn.Module,
        variables: Variables,
        diffusion: Diffusion,
        settings: SampleSettings,
        mesh: Mesh,
        dtype: str,
    ):
        network = computing_in(dtype, network)
        self.multiple = 2 ** (len(network.block_out_channels) - 1)
        self.noise_scale = settings.noise_scale
        self._variables = jax.device_put(variables, replicated(mesh))
        self._hide = jax.jit(partial(hide, unknown=diffusion.unknown))
        self._encode_context = jax.jit(partial(network.apply, method="encode_context"))
        self._sample = make_sampler(
            network,
            diffusion.schedule,
            make_solver(settings.solver, diffusion.schedule, settings.steps, settings.strength),
            prediction=diffusion.prediction,
            guidance=Guidance(settings.guidance_local, settings.guidance_global, tuple(settings.guidance_interval)),
            clip=settings.clip,
        )

    def hide(self, frames: jax.Array, mask: jax.Array) -> jax.Array:
        """Frames [T, H, W, 3] in [-1, 1] without their unknown pixels, as the network was trained to see them."""
        return self._hide(frames, mask)

    def encode_context(self, *conditions: Any) -> Any:
        """What its attention asks of a whole video, as the network's method of that name takes it."""
        return self._encode_context(self._variables, *conditions)

    def sample(self, guess: Latents, noise: Latents, conditions: Conditions) -> Latents:
        """Latents [W, T, h, w, C] of W windows, from a guess and noise of that shape."""
        return self._sample(self._variables, guess, noise, conditions)
