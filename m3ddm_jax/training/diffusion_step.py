"""One update of a masked video diffusion model."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from m3ddm_jax.diffusion.schedule import Schedule
from m3ddm_jax.diffusion.targets import PREDICTIONS, add_noise, make_target, min_snr_weight
from m3ddm_jax.flow.region_fill import hide
from m3ddm_jax.losses.diffusion import diffusion_loss
from m3ddm_jax.models.autoencoder import reduce_mask
from m3ddm_jax.parallel.constrain import constrain
from m3ddm_jax.parallel.mesh import BATCH_AXES
from m3ddm_jax.training.ema import update_ema
from m3ddm_jax.training.state import TrainState
from m3ddm_jax.types import Latents, Variables, VideoBatch

"""What a network sees of an unknown pixel."""


@flax.struct.dataclass
class Draws:
    """What chance decides for each clip: timestep [B], noise [B, T, h, w, C], drop_local and drop_global bool [B]."""

    timestep: jax.Array
    noise: jax.Array
    drop_local: jax.Array
    drop_global: jax.Array


@flax.struct.dataclass
class Conditions:
    """What the network sees of a batch: latents and masked_latents [B, T, h, w, C], mask [B, T, h, w, 1],
    global_latents [B, G, h', w', C], fps [B]."""

    latents: jax.Array
    mask: jax.Array
    masked_latents: jax.Array
    global_latents: jax.Array
    fps: jax.Array


def to_unit_range(frames: jax.Array) -> jax.Array:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1.0


def encode_frames(codec: nn.Module, codec_variables: Variables, frames: jax.Array) -> Latents:
    """Frames [B, T, H, W, 3] in [-1, 1] -> the mean of their latents [B, T, h, w, C]."""
    flat = rearrange(frames, "b t h w c -> (b t) h w c")
    mean, _ = codec.apply(codec_variables, flat, method="encode")
    return rearrange(mean, "(b t) h w c -> b t h w c", b=frames.shape[0])


def decode_latents(codec: nn.Module, codec_variables: Variables, latents: Latents) -> jax.Array:
    """Latents [B, T, h, w, C] -> frames [B, T, H, W, 3] about [-1, 1], not clipped."""
    frames = codec.apply(codec_variables, rearrange(latents, "b t h w c -> (b t) h w c"), method="decode")
    return rearrange(frames, "(b t) h w c -> b t h w c", b=latents.shape[0])


def encode_batch(
    codec: nn.Module,
    codec_variables: Variables,
    batch: VideoBatch,
    drop_local: jax.Array,
    drop_global: jax.Array,
    unknown: str = "black",
) -> Conditions:
    """Latents of a batch of uint8 clips. A clip with drop_local is wholly unknown, one with drop_global has zeros as
    global latents (they still pass the encoder): the two null conditions of guidance. unknown: as in
    flow.region_fill.hide."""
    video = to_unit_range(batch["video"])
    mask = jnp.maximum(batch["mask"], drop_local[:, None, None, None, None].astype(batch["mask"].dtype))
    masked_video = hide(video, mask, unknown)
    global_latents = encode_frames(codec, codec_variables, to_unit_range(batch["global_frames"]))
    return Conditions(
        latents=encode_frames(codec, codec_variables, video),
        mask=reduce_mask(mask, codec.downscale, mode="max"),
        masked_latents=encode_frames(codec, codec_variables, masked_video),
        global_latents=jnp.where(drop_global[:, None, None, None, None], 0.0, global_latents),
        fps=batch["fps"],
    )


def make_diffusion_step(
    model: nn.Module,
    codec: nn.Module,
    schedule: Schedule,
    optimizer: optax.GradientTransformation,
    *,
    prediction: str,
    min_snr_gamma: float | None,
    known_weight: float,
    unknown: str,
    drop_local: float,
    drop_global: float,
    accumulate: int,
    ema_decay: float,
) -> Callable[[TrainState, VideoBatch, Variables], tuple[TrainState, dict[str, jax.Array]]]:
    """The pure function (state, batch without clip_id, frozen codec's variables) -> (state, metrics) for `jax.jit`.

    prediction: what the network predicts, and the space of the loss. min_snr_gamma: None weighs all timesteps alike.
    known_weight: weight of the error where the latents are known, 1 being the paper's. unknown: what stands in for
    unknown pixels (flow.region_fill.hide).
    drop_local, drop_global: probabilities of the null conditions. accumulate: micro-batches a batch is worked off in;
    all chance is drawn for the whole batch before, so it changes rounding alone.
    Metrics, float32: loss and grad_norm (before clipping).
    """

    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction {prediction!r} is unknown: one of {', '.join(PREDICTIONS)} is accepted")
    for name, probability in {"drop_local": drop_local, "drop_global": drop_global}.items():
        if not 0 <= probability <= 1:
            raise ValueError(f"{name} is {probability}: a probability, 0 to 1, is accepted")

    def draw(rng: jax.Array, batch: VideoBatch) -> Draws:
        timestep_key, noise_key, local_key, global_key = jax.random.split(rng, 4)
        clips, frames, height, width, _ = batch["video"].shape
        cells = (height // codec.downscale, width // codec.downscale)
        return Draws(
            timestep=jax.random.randint(timestep_key, (clips,), 0, schedule.num_timesteps),
            noise=constrain(jax.random.normal(noise_key, (clips, frames, *cells, model.latent_channels)), BATCH_AXES),
            drop_local=jax.random.bernoulli(local_key, drop_local, (clips,)),
            drop_global=jax.random.bernoulli(global_key, drop_global, (clips,)),
        )

    def loss_fn(params: Any, batch_stats: Any, inputs: Conditions, draws: Draws) -> jax.Array:
        alpha_cumprod = rearrange(jnp.asarray(schedule.alphas_cumprod)[draws.timestep], "b -> b 1 1 1 1")
        latents = inputs.latents
        output = model.apply(
            {"params": params, "batch_stats": batch_stats},
            add_noise(latents, draws.noise, alpha_cumprod),
            inputs.mask,
            inputs.masked_latents,
            timestep=draws.timestep,
            fps=inputs.fps,
            global_latents=inputs.global_latents,
        )
        target = make_target(prediction, latents, draws.noise, alpha_cumprod)
        weight = jnp.ones_like(alpha_cumprod)
        if min_snr_gamma is not None:
            weight = min_snr_weight(prediction, alpha_cumprod, min_snr_gamma)
        weight = weight * jnp.where(inputs.mask > 0, 1.0, known_weight)
        return diffusion_loss(output, target, weight)

    def loss_and_grad(state: TrainState, batch: VideoBatch, draws: Draws, codec_variables: Variables):
        inputs = encode_batch(codec, codec_variables, batch, draws.drop_local, draws.drop_global, unknown)
        return jax.value_and_grad(loss_fn)(state.params, state.batch_stats, inputs, draws)

    def train_step(state: TrainState, batch: VideoBatch, codec_variables: Variables):
        draws = draw(jax.random.fold_in(state.rng, state.step), batch)
        if accumulate == 1:
            loss, grads = loss_and_grad(state, batch, draws, codec_variables)
        else:
            loss, grads = _mean_over_micro_batches(
                lambda micro: loss_and_grad(state, *micro, codec_variables), (batch, draws), accumulate, state.params
            )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = update_ema(state.ema_params, params, state.step, ema_decay)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema_params=ema_params)
        return state, {"loss": loss, "grad_norm": optax.tree.norm(grads)}

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


def calibrated_batch_stats(
    model: nn.Module, codec: nn.Module, state: TrainState, global_frames: jax.Array, codec_variables: Variables
) -> Any:
    """BatchNorm's running statistics as one batch of global frames (uint8 [B, G, S, S, 3]) has them.

    They stay as they are from the first update on, so that training does not depend on how a batch is split.
    """
    global_latents = encode_frames(codec, codec_variables, to_unit_range(global_frames))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    _, updated = model.apply(variables, global_latents, method="calibrate", mutable=["batch_stats"])
    return updated["batch_stats"]
