"""One update of a network that gives lent gradients the style of their frame, and of its discriminator: ISVI's ASFN.

Source: Inertia-Guided Flow Completion and Style Fusion for Video Inpainting (Zhang et al., CVPR 2022), whose training
is not public: that there are a reconstruction and a hinge loss on gradient fields is; weights and order are not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from einops import rearrange, repeat

from m3ddm_jax.flow.least_squares import differences
from m3ddm_jax.losses.adversarial import hinge_fake, hinge_real, weighted_mean
from m3ddm_jax.models.asfn import ASFN
from m3ddm_jax.models.discriminator import power_iteration
from m3ddm_jax.training.gan_state import GanState, Optimizers
from m3ddm_jax.training.gan_step import composite
from m3ddm_jax.training.update import apply_update, joined
from m3ddm_jax.types import Variables, VideoBatch

Metrics = dict[str, jax.Array]


class StyleTask(NamedTuple):
    """Gradient fields of one frame each, B of those along x and y in turns, in -1..1 and blue first, as the published
    weights see colours: lent and truth float32 [2B, H, W, 3], mask float32 [2B, H, W, 1], 1 = lent by other frames."""

    lent: jax.Array
    truth: jax.Array
    mask: jax.Array


def make_style_tasks(batch: VideoBatch) -> StyleTask:
    """Of clips of one frame, with the gradients `lent` [B, 2, H, W, 3] to them (data.style_augmentation)."""
    frames = batch["video"][:, 0].astype(jnp.float32) / 255
    truth = jnp.stack(differences(frames), axis=1)
    lent, truth = (rearrange(x[..., ::-1], "b way h w c -> (b way) h w c") for x in (batch["lent"], truth))
    return StyleTask(lent, truth, repeat(batch["mask"][:, 0].astype(jnp.float32), "b h w c -> (b way) h w c", way=2))


def hole_error(gradients: jax.Array, task: StyleTask) -> jax.Array:
    """Mean absolute error of gradients [2B, H, W, 3] under the mask; 0 without one."""
    return weighted_mean(jnp.abs(gradients - task.truth), task.mask)


def make_style_step(
    model: ASFN,
    discriminator: nn.Module,
    optimizers: Optimizers,
    *,
    reconstruction: float,
    adversarial: float,
    ema_decay: float,
    spike_patience: int,
) -> Callable[[GanState, VideoBatch, Variables], tuple[GanState, Metrics]]:
    """The pure function (state, batch without clip_id, frozen variables) -> (state, metrics) for `jax.jit`.

    reconstruction, adversarial: weights of the errors, those in the hole and those outside alike, and of what the
    discriminator finds of gradients with the known ones pasted. It is updated after the network, on the same ones. The
    state's guard and anchors stay as they begin. ema_decay, spike_patience: of `training.update.apply_update`.
    Metrics, float32: `loss`, its terms `hole`, `valid` and `adversarial`; `hole_lent`, the error of what was lent;
    `discriminator_loss`, and the mean logits `real` and `fake`; those of `training.update.apply_update`.
    """

    def train_step(state: GanState, batch: VideoBatch, frozen: Variables) -> tuple[GanState, Metrics]:
        del frozen
        task = make_style_tasks(batch)

        def judge(params: Any, spectral: Any, gradients: jax.Array) -> jax.Array:
            return discriminator.apply({"params": params, "spectral": spectral}, gradients)

        def objective(params: Any) -> tuple[jax.Array, tuple[jax.Array, Metrics]]:
            made = model.apply({"params": params}, task.lent, task.mask)
            pasted = composite(made, task.truth, task.mask)
            terms = {
                "hole": hole_error(made, task),
                "valid": weighted_mean(jnp.abs(made - task.truth), 1 - task.mask),
                "adversarial": -jnp.mean(judge(state.discriminator_params, state.spectral, pasted)),
            }
            loss = reconstruction * (terms["hole"] + terms["valid"]) + adversarial * terms["adversarial"]
            return loss, (pasted, terms | {"loss": loss})

        (_, (pasted, metrics)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        metrics["hole_lent"] = hole_error(task.lent, task)
        updated, of_model = apply_update(
            state, gradients, optimizers.generator, spike_patience=spike_patience, ema_decay=ema_decay
        )
        updated, of_discriminator = _update_discriminator(
            updated, judge, task.truth, pasted, optimizers.discriminator, spike_patience
        )
        return updated.replace(step=state.step + 1), metrics | joined(of_model, of_discriminator)

    return train_step


def _update_discriminator(
    state: GanState,
    judge: Callable[[Any, Any, jax.Array], jax.Array],
    truth: jax.Array,
    fake: jax.Array,
    optimizer: optax.GradientTransformation,
    spike_patience: int,
) -> tuple[GanState, Metrics]:
    """The state with the discriminator one update on, and how it did before."""
    params = state.discriminator_params
    spectral = power_iteration({"params": params, "spectral": state.spectral})["spectral"]

    def objective(params: Any) -> tuple[jax.Array, Metrics]:
        real_logits, fake_logits = judge(params, spectral, truth), judge(params, spectral, fake)
        loss = (jnp.mean(hinge_real(real_logits)) + jnp.mean(hinge_fake(fake_logits))) / 2
        return loss, {"discriminator_loss": loss, "real": jnp.mean(real_logits), "fake": jnp.mean(fake_logits)}

    (_, metrics), gradients = jax.value_and_grad(objective, has_aux=True)(params)
    state, of_update = apply_update(
        state,
        gradients,
        optimizer,
        spike_patience=spike_patience,
        network="discriminator_",
        more={"spectral": spectral},
    )
    return state, metrics | of_update
