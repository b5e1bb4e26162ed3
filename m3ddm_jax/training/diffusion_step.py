"""One update of a masked video diffusion model."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from m3ddm_jax.diffusion.schedule import Schedule
from m3ddm_jax.diffusion.targets import add_noise, check_prediction, convert, make_target, min_snr_weight
from m3ddm_jax.losses.diffusion import diffusion_loss
from m3ddm_jax.parallel.constrain import constrain
from m3ddm_jax.parallel.mesh import BATCH_AXES
from m3ddm_jax.training.encoding import SAMPLED, DenoiserInputs, Encoders, LatentBatch, encode_batch, make_conditions
from m3ddm_jax.training.state import TrainState
from m3ddm_jax.training.update import apply_update
from m3ddm_jax.types import Latents, Variables, VideoBatch

Loss = Callable[[Variables, DenoiserInputs, jax.Array, jax.Array], tuple[jax.Array, Latents]]
"""(variables of a network, its inputs, timestep [B], noise [B, T, h, w, C]) -> (loss, a float32 scalar; the clean
latents [B, T, h, w, C] that it predicts)."""


@flax.struct.dataclass
class Draws:
    """What chance decides for each clip: timestep [B]; noise [B, T, h, w, C]; drop_local and drop_global, bool [B] or
    None where nothing is dropped; posterior, the `noise` of `training.encoding.make_conditions`."""

    timestep: jax.Array
    noise: jax.Array
    drop_local: jax.Array | None
    drop_global: jax.Array | None
    posterior: dict[str, jax.Array]


def make_diffusion_loss(
    model: nn.Module, schedule: Schedule, *, prediction: str, min_snr_gamma: float | None, known_weight: float
) -> Loss:
    """The denoising loss of a network, a mean over clips.

    prediction: what it predicts, and the space of the loss. min_snr_gamma: None weighs all timesteps alike.
    known_weight: weight of the error where the latents are known, 1 being the paper's. Raises ValueError for a
    prediction that does not fit the schedule.
    """
    check_prediction(prediction, schedule)
    levels = np.stack([schedule.signal, schedule.sigma]).astype(np.float32)

    def loss(
        variables: Variables, inputs: DenoiserInputs, timestep: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, Latents]:
        level = rearrange(jnp.asarray(levels)[:, timestep], "level b -> level b 1 1 1 1")
        latents = inputs.latents
        noisy = add_noise(latents, noise, *level)
        output = model.apply(
            variables,
            noisy,
            inputs.mask,
            inputs.masked_latents,
            timestep=timestep,
            fps=inputs.fps,
            **inputs.guide,
        )
        target = make_target(prediction, latents, noise, *level)
        weight = jnp.where(inputs.mask > 0, 1.0, known_weight)
        if min_snr_gamma is not None:
            weight = weight * min_snr_weight(prediction, *level, min_snr_gamma)
        clean = convert(prediction, "x0", output.astype(jnp.float32), noisy, *level)
        return diffusion_loss(output, target, weight), clean

    return loss


def make_diffusion_step(
    loss: Loss,
    encoders: Encoders,
    num_timesteps: int,
    optimizer: optax.GradientTransformation,
    *,
    unknown: str,
    drop_local: float,
    drop_global: float,
    accumulate: int,
    ema_decay: float,
    spike_patience: int,
) -> Callable[[TrainState, VideoBatch | LatentBatch, Variables], tuple[TrainState, dict[str, jax.Array]]]:
    """The pure function (state, batch without clip_id, the encoders' variables) -> (state, metrics) for `jax.jit`.

    The batch holds clips, which are encoded in the step, or what the encoders made of them; either way all latents that
    the network sees are samples of the autoencoder's posterior, drawn in the step.

    unknown: what stands in for unknown pixels (flow.region_fill.hide). drop_local, drop_global: probabilities of the
    null conditions. accumulate: micro-batches a batch is worked off in; all chance is drawn for the whole batch before,
    so it changes rounding alone. ema_decay, spike_patience: of `training.update.apply_update`.
    Metrics, float32: loss; those of `training.update.apply_update`.
    Raises ValueError for numbers that mean nothing.
    """
    for name, probability in {"drop_local": drop_local, "drop_global": drop_global}.items():
        if not 0 <= probability <= 1:
            raise ValueError(f"{name} is {probability}: a probability, 0 to 1, is accepted")

    encode = functools.partial(encode_batch, encoders, unknown=unknown)

    def draw(rng: jax.Array, encoded: LatentBatch) -> Draws:
        timestep_key, noise_key, local_key, global_key, posterior_key = jax.random.split(rng, 5)
        clips = encoded["fps"].shape

        def normal(key: jax.Array, name: str) -> jax.Array:
            return constrain(jax.random.normal(key, encoded[f"{name}_mean"].shape), BATCH_AXES)

        sampled = [name for name in SAMPLED if f"{name}_mean" in encoded]
        posterior_keys = jax.random.split(posterior_key, len(sampled))
        return Draws(
            timestep=jax.random.randint(timestep_key, clips, 0, num_timesteps),
            noise=normal(noise_key, "latents"),
            drop_local=jax.random.bernoulli(local_key, drop_local, clips) if drop_local else None,
            drop_global=jax.random.bernoulli(global_key, drop_global, clips) if drop_global else None,
            posterior={name: normal(key, name) for name, key in zip(sampled, posterior_keys, strict=True)},
        )

    def loss_and_grad(state: TrainState, batch: VideoBatch | LatentBatch, draws: Draws, frozen: Variables):
        encoded = encode(frozen, batch)
        inputs = make_conditions(encoded, draws.posterior, draws.drop_local, draws.drop_global)

        def loss_of(params: Any) -> jax.Array:
            variables = {"params": params, "batch_stats": state.batch_stats}
            value, _ = loss(variables, inputs, draws.timestep, draws.noise)
            return value

        return jax.value_and_grad(loss_of)(state.params)

    def train_step(state: TrainState, batch: VideoBatch | LatentBatch, frozen: Variables):
        shapes = jax.eval_shape(encode, frozen, batch)
        draws = draw(jax.random.fold_in(state.rng, state.step), shapes)
        if accumulate == 1:
            mean_loss, grads = loss_and_grad(state, batch, draws, frozen)
        else:
            mean_loss, grads = _mean_over_micro_batches(
                lambda micro: loss_and_grad(state, *micro, frozen), (batch, draws), accumulate, state.params
            )
        state, metrics = apply_update(state, grads, optimizer, spike_patience=spike_patience, ema_decay=ema_decay)
        return state.replace(step=state.step + 1), {"loss": mean_loss, **metrics}

    return train_step


def _mean_over_micro_batches(loss_and_grad: Callable, batch: Any, count: int, params: Any) -> tuple[jax.Array, Any]:
    """Mean loss and float32 gradients of `count` equal parts of a batch, worked off one after the other."""
    # Clip k goes to part k modulo count: each part takes rows of every device, and none moves.
    parts = jax.tree.map(lambda x: constrain(rearrange(x, "(b n) ... -> n b ...", n=count), None, BATCH_AXES), batch)
    zeros = (jnp.zeros(()), jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params))

    def add(total, part):
        return jax.tree.map(jnp.add, total, loss_and_grad(part)), None

    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / count, total)


def has_initial_batch_stats(state: TrainState) -> bool:
    """Whether there are running statistics of BatchNorm, and as they are initialised: mean 0 and variance 1."""
    leaves = jax.tree_util.tree_leaves_with_path(state.batch_stats)
    return bool(leaves) and all(np.all(np.asarray(leaf) == (path[-1].key == "var")) for path, leaf in leaves)


def calibrated_batch_stats(model: nn.Module, state: TrainState, global_latents: Latents) -> Any:
    """BatchNorm's running statistics as the global latents [B, G, h, w, C] of one batch have them.

    They stay as they are from the first update on, so that training does not depend on how a batch is split.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    _, updated = model.apply(variables, global_latents, method="calibrate", mutable=["batch_stats"])
    return updated["batch_stats"]
