"""Operations of a masked video diffusion model on one window, counted and not run."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from m3ddm_jax.diffusion.guidance import Guidance
from m3ddm_jax.diffusion.solvers import make_solver
from m3ddm_jax.measure.flops import count_flops
from m3ddm_jax.models import registry
from m3ddm_jax.pipelines.denoiser import make_diffusion
from m3ddm_jax.pipelines.m3ddm import PRESETS
from m3ddm_jax.recipes.base import build_model

TERA = 10**12
_OFFICIAL_BRANCHES = 4  # an evaluation, of which one is thrown away


def measure(config: ConfigDict) -> dict[str, Any]:
    """TFLOP of the U-Net on a window of the config's sample section, square and as many lines high as that says.

    Beside it the same window by the official schedule: four branches an evaluation, each of which encodes the global
    frames anew and makes keys and values of them for every frame. Raises ValueError for another model than M3DDM's.
    """
    if config.model.kind != "m3ddm":
        raise ValueError(f"the model is of kind {config.model.kind}: m3ddm is accepted; --what=models counts others")
    sample, model = config.sample, build_model(config.model)
    variables, global_latents = registry.abstract_variables(model), abstract_global_latents(config, model)
    branch = count_flops(*branch_of(config, model, variables))
    tokens = count_flops(partial(model.apply, method="context_tokens"), variables, global_latents)
    context = count_flops(partial(model.apply, method="encode_context"), variables, global_latents)
    guidance = make_guidance(config)
    branches = guidance.weights()
    contexts = {global_given for _, global_given in branches}
    evaluation = len(branches) * branch.total
    window = branches_a_window(config) * branch.total
    official_branch = branch.total + tokens.total + sample.num_frames * (context.total - tokens.total)
    official = _OFFICIAL_BRANCHES * official_branch
    official_window = PRESETS["official"]["steps"] * official
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "frames of a window": f"{sample.num_frames} of {sample.lines}x{sample.lines}",
        "global frames": f"{sample.global_frames} of {sample.global_size}x{sample.global_size}",
        "TFLOP a branch": branch.total / TERA,
        "TFLOP a branch: convolutions": branch.convolution / TERA,
        "TFLOP a branch: matrix products": branch.matmul / TERA,
        "TFLOP of contexts, once a video": len(contexts) * context.total / TERA,
        "branches an evaluation": len(branches),
        "TFLOP an evaluation": evaluation / TERA,
        "evaluations a window": len(_noise_levels(config)),
        "TFLOP a window": window / TERA,
        "official TFLOP a branch": official_branch / TERA,
        "official TFLOP an evaluation": official / TERA,
        "official TFLOP a window": official_window / TERA,
        "official / ours, an evaluation": official / evaluation,
        "official / ours, a window": official_window / window,
    }


def make_guidance(config: ConfigDict) -> Guidance:
    """As the config's sample section has it."""
    sample = config.sample
    return Guidance(sample.guidance_local, sample.guidance_global, tuple(sample.guidance_interval))


def branches_a_window(config: ConfigDict) -> int:
    """Forward passes of the network that a window of the config's sample section takes, guidance's among them."""
    guidance = make_guidance(config)
    return sum(len(guidance.weights()) if guidance.acts(level) else 1 for level in _noise_levels(config))


def _noise_levels(config: ConfigDict) -> Any:
    sample, schedule = config.sample, make_diffusion(config.diffusion).schedule
    return make_solver(sample.solver, schedule, sample.steps, sample.strength).timesteps / schedule.num_timesteps


def branch_of(config: ConfigDict, model: nn.Module, variables: Any) -> tuple[Callable, Any, Any, Any, Any]:
    """A diffusion model's forward pass on a window of the config's sample section: a function, and its arguments.

    These are variables and the shapes of latents, mask and what `encode_context` makes of one video.
    """

    def branch(variables, latents, mask, context):
        return model.apply(variables, latents, mask, latents, timestep=0, fps=8.0, context=context)

    frames, lines = config.sample.num_frames, config.sample.lines
    latents = _latents(config, frames, lines, model.latent_channels)
    encode_context = partial(model.apply, method="encode_context")
    seen = (abstract_global_latents(config, model),) if config.model.kind == "m3ddm" else ()
    return (
        branch,
        variables,
        latents,
        _latents(config, frames, lines, 1),
        jax.eval_shape(encode_context, variables, *seen),
    )


def abstract_global_latents(config: ConfigDict, model: nn.Module) -> jax.ShapeDtypeStruct:
    """Of a video's global frames, as the config's sample section has them."""
    return _latents(config, config.sample.global_frames, config.sample.global_size, model.latent_channels)


def _latents(config: ConfigDict, frames: int, side: int, channels: int) -> jax.ShapeDtypeStruct:
    side //= config.autoencoder.get("patch_size", 8)  # all but the patch codec reduce by 8
    return jax.ShapeDtypeStruct((1, frames, side, side, channels), jnp.float32)
