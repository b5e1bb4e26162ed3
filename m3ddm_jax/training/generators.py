"""Generators for adversarial training: networks as functions from true frames and a mask to completed frames."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from m3ddm_jax.diffusion.schedule import Schedule
from m3ddm_jax.diffusion.targets import PREDICTIONS, add_noise, convert, make_target, min_snr_weight
from m3ddm_jax.flow.region_fill import hide
from m3ddm_jax.losses.diffusion import diffusion_loss
from m3ddm_jax.losses.outpainting import flow_term
from m3ddm_jax.models.autoencoder import reduce_mask
from m3ddm_jax.parallel.constrain import constrain
from m3ddm_jax.parallel.mesh import BATCH_AXES
from m3ddm_jax.training.encoding import decode_latents, encode_frames, to_unit_range
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
    model: nn.Module,
    codec: nn.Module,
    schedule: Schedule,
    *,
    prediction: str,
    min_snr_gamma: float | None,
    known_weight: float,
    unknown: str,
    drop_global: float,
    max_timestep: float,
) -> MakeGenerator:
    """A masked video diffusion model as a generator: its clean latents, told in one step from noisy ones, as pixels.

    Timesteps are drawn from the first share `max_timestep` of the schedule: where hardly any signal is left, one step
    tells a mean over all that could be, which no discriminator should judge. It has the term "denoising", the loss of
    `training.diffusion_step`, which says what the other arguments are. The frozen variables are {"autoencoder": ...}.
    Raises ValueError for another prediction, and a max_timestep outside 0..1.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction {prediction!r} is unknown: one of {', '.join(PREDICTIONS)} is accepted")
    if not 0 < max_timestep <= 1:
        raise ValueError(f"max_timestep is {max_timestep}: a share of the schedule above 0, up to 1, is accepted")
    timesteps = max(1, round(max_timestep * schedule.num_timesteps))

    def make(batch: VideoBatch, frozen: Variables, rng: jax.Array) -> Generator:
        timestep_key, noise_key, drop_key, *posterior_keys = jax.random.split(rng, 6)
        clips = batch["fps"].shape

        def encode(pictures: jax.Array, key: jax.Array) -> jax.Array:
            mean, std = encode_frames(codec, frozen["autoencoder"], pictures)
            return mean + std * _normal(key, mean)

        def generate(variables: Variables, frames: jax.Array, mask: jax.Array, num_local: int):
            del num_local  # all frames of a clip follow one another
            seen = (frames, hide(frames, mask, unknown), to_unit_range(batch["global_frames"]))
            latents, masked_latents, global_latents = map(encode, seen, posterior_keys)
            drop = rearrange(jax.random.bernoulli(drop_key, drop_global, clips), "b -> b 1 1 1 1")
            timestep = jax.random.randint(timestep_key, clips, 0, timesteps)
            alpha_cumprod = rearrange(jnp.asarray(schedule.alphas_cumprod)[timestep], "b -> b 1 1 1 1")
            noise, cells = _normal(noise_key, latents), reduce_mask(mask, codec.downscale)
            noisy = add_noise(latents, noise, alpha_cumprod)
            output = model.apply(
                variables,
                noisy,
                cells,
                masked_latents,
                timestep=timestep,
                fps=batch["fps"],
                global_latents=jnp.where(drop, 0.0, global_latents),
            )
            weight = jnp.where(cells > 0, 1.0, known_weight)
            if min_snr_gamma is not None:
                weight = weight * min_snr_weight(prediction, alpha_cumprod, min_snr_gamma)
            target = make_target(prediction, latents, noise, alpha_cumprod)
            clean = convert(prediction, "x0", output.astype(jnp.float32), noisy, alpha_cumprod)
            made = decode_latents(codec, frozen["autoencoder"], clean).astype(jnp.float32)
            return made, {"denoising": diffusion_loss(output, target, weight)}

        return generate

    return make


def _normal(key: jax.Array, like: Any) -> jax.Array:
    """Standard normal of an array's shape, split over the devices as a batch is."""
    return constrain(jax.random.normal(key, like.shape), BATCH_AXES)
