"""Generators for adversarial training: networks as functions from true frames and a mask to completed frames."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from m3ddm_jax.flow.region_fill import hide
from m3ddm_jax.losses.outpainting import flow_term
from m3ddm_jax.models.autoencoder import latent_mask
from m3ddm_jax.parallel.constrain import constrain
from m3ddm_jax.parallel.mesh import BATCH_AXES
from m3ddm_jax.training.diffusion_step import Loss
from m3ddm_jax.training.encoding import DenoiserInputs, decode_latents, encode_frames, encode_images, to_unit_range
from m3ddm_jax.types import Variables, VideoBatch

Generator = Callable[[Variables, jax.Array, jax.Array, int], tuple[jax.Array, dict[str, jax.Array]]]
"""(variables, frames, mask, num_local) -> (completed frames, its own loss terms by name).

frames: true ones [B, T, H, W, 3] in [-1, 1], of which the generator hides what the mask [B, T, H, W, 1] says, 1 =
generate; the first num_local follow one another in time. Completed frames: of the same shape, known pixels drawn anew.
"""

MakeGenerator = Callable[[VideoBatch, Variables, jax.Array], Generator]
"""(batch, frozen variables, rng) -> the generator of one step."""


def e2fgvi_generator(module: nn.Module, *, flow: bool) -> MakeGenerator:
    """E2FGVI as a generator; of what is unknown it sees 0.

    flow: whether it has the term "flow", of its flows between masked local frames beside those that a frozen flow
    network finds between the true ones. The frozen variables are then {"params": {"update_spynet": ...}}.
    """

    def make(batch: VideoBatch, frozen: Variables, rng: jax.Array) -> Generator:
        del batch, rng

        def generate(variables: Variables, frames: jax.Array, mask: jax.Array, num_local: int):
            masked_frames = jnp.where(mask > 0, 0.0, frames)
            made, flows = module.apply({"params": variables["params"]}, masked_frames, num_local=num_local)
            if not flow:
                return made, {}
            targets = module.apply(frozen, frames[:, :num_local], method="flows")
            return made, {"flow": flow_term(flows, targets)}

        return generate

    return make


def diffusion_generator(
    loss: Loss, codec: nn.Module, num_timesteps: int, *, unknown: str, drop_global: float, max_timestep: float
) -> MakeGenerator:
    """A masked video diffusion model as a generator: the clean latents that it predicts in one step, as pixels.

    loss: the model's, from `training.diffusion_step.make_diffusion_loss`; its value is the term "denoising". Timesteps
    are drawn from the first share `max_timestep` of the schedule: where hardly any signal is left, one step predicts a
    mean over all possible clips, which no discriminator should judge. unknown, drop_global: as in
    `training.diffusion_step`. The frozen variables are {"autoencoder": ...}.
    Raises ValueError for a max_timestep outside 0..1.
    """
    if not 0 < max_timestep <= 1:
        raise ValueError(f"max_timestep is {max_timestep}: a share of the schedule above 0, up to 1, is accepted")
    timesteps = max(1, round(max_timestep * num_timesteps))

    def make(batch: VideoBatch, frozen: Variables, rng: jax.Array) -> Generator:
        timestep_key, noise_key, drop_key, *posterior_keys = jax.random.split(rng, 6)
        clips = batch["fps"].shape

        def draw(moments: tuple[jax.Array, jax.Array], key: jax.Array) -> jax.Array:
            mean, std = moments
            return mean + std * _normal(key, mean)

        def generate(variables: Variables, frames: jax.Array, mask: jax.Array, num_local: int):
            del num_local  # all frames of a clip follow one another
            codec_variables = frozen["autoencoder"]
            moments = [encode_frames(codec, codec_variables, x) for x in (frames, hide(frames, mask, unknown))]
            moments.append(encode_images(codec, codec_variables, to_unit_range(batch["global_frames"])))
            latents, masked_latents, global_latents = map(draw, moments, posterior_keys)
            drop = rearrange(jax.random.bernoulli(drop_key, drop_global, clips), "b -> b 1 1 1 1")
            timestep = jax.random.randint(timestep_key, clips, 0, timesteps)
            guide = {"global_latents": jnp.where(drop, 0.0, global_latents)}
            cells = latent_mask(codec, mask)
            inputs = DenoiserInputs(latents, cells, masked_latents, batch["fps"], guide)
            denoising, clean = loss(variables, inputs, timestep, _normal(noise_key, latents))
            made = decode_latents(codec, frozen["autoencoder"], clean).astype(jnp.float32)
            return made, {"denoising": denoising}

        return generate

    return make


def _normal(key: jax.Array, array: Any) -> jax.Array:
    """Standard normal of an array's shape, split over the devices as a batch is."""
    return constrain(jax.random.normal(key, array.shape), BATCH_AXES)
