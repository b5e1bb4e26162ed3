"""One update of a network that completes flow: ISVI's IGFC.

Source: Inertia-Guided Flow Completion and Style Fusion for Video Inpainting (Zhang et al., CVPR 2022), whose training
is not public; `losses.flow` says where the terms are from.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from m3ddm_jax.flow.region_fill import fill_laplace
from m3ddm_jax.losses.adversarial import weighted_mean
from m3ddm_jax.losses.flow import completion_terms
from m3ddm_jax.models.igfc import IGFC
from m3ddm_jax.training.state import TrainState
from m3ddm_jax.training.update import apply_update
from m3ddm_jax.types import Variables, VideoBatch

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class FlowWeights:
    """Of the terms of `losses.flow.completion_terms`; of those that are 0, the ternary one is not computed.

    Raises ValueError for one below 0.
    """

    hole: float = 1.0
    valid: float = 1.0
    smooth_first: float = 1.0
    smooth_second: float = 1.0
    ternary: float = 0.01
    quarter: float = 1.0
    half: float = 1.0

    def __post_init__(self):
        wrong = {name: value for name, value in vars(self).items() if value < 0}
        if wrong:
            raise ValueError(f"{wrong}: 0 or more is accepted")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FlowTask:
    """What is to be completed, and what tells how well that was done; B clips, T flows, the middle one to be completed.

    filled: [B, T, H, W, 2], (dx, dy) in pixels to the frame after, as a membrane over what is known. masks:
    [B, T, H, W, 1], 1 = unknown. truth: [B, H, W, 2] and mask: [B, H, W, 1], the middle ones. images: [B, H, W, 3] in
    [0, 1], the frame that the middle flow starts from and the one where it ends.
    """

    filled: jax.Array
    masks: jax.Array
    truth: jax.Array
    images: tuple[jax.Array, jax.Array]

    @property
    def mask(self) -> jax.Array:
        return self.masks[:, self.masks.shape[1] // 2]

    @property
    def middle(self) -> jax.Array:
        """What was filled of the middle flow: [B, H, W, 2]."""
        return self.filled[:, self.filled.shape[1] // 2]


def make_flow_tasks(
    batch: VideoBatch,
    interval: int,
    estimate: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    reverse: jax.Array | None = None,
) -> FlowTask:
    """The flows of every interval-th frame of clips to the frame after it, and the frames' masks.

    estimate: (images, the frames after) [N, H, W, 3] in 0..255 -> flow [N, H, W, 2], for clips that come without
    `flow`. reverse: bool [B], which of these are to be seen from their end.
    """
    video, masks = batch["video"], batch["mask"].astype(jnp.float32)
    if reverse is not None:
        turn = rearrange(reverse, "b -> b 1 1 1 1")
        video, masks = (jnp.where(turn, x[:, ::-1], x) for x in (video, masks))
    starts, ends = video[:, :-1:interval], video[:, 1::interval]
    masks, count = masks[:, :-1:interval], starts.shape[1]
    if estimate is None:
        flows = batch["flow"]
    else:
        pairs = (rearrange(x, "b t h w c -> (b t) h w c").astype(jnp.float32) for x in (starts, ends))
        flows = rearrange(estimate(*pairs), "(b t) h w c -> b t h w c", t=count)
    filled = fill_laplace(*(rearrange(x, "b t h w c -> (b t) h w c") for x in (flows, masks)))
    images = tuple(x[:, count // 2].astype(jnp.float32) / 255 for x in (starts, ends))
    filled = rearrange(filled, "(b t) h w c -> b t h w c", t=count)
    return jax.lax.stop_gradient(FlowTask(filled, masks, flows[:, count // 2], images))


def complete_flow(model: IGFC, variables: Variables, task: FlowTask) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the network returns for tasks of flows that are `model.interval` frames apart."""
    shifts = model.interval * (model.num_frames // 2 - np.arange(model.num_frames))
    return model.apply(variables, task.filled, task.masks, shifts)


def endpoint_error(flow: jax.Array, task: FlowTask) -> jax.Array:
    """Mean distance in pixels between where flow [B, H, W, 2] and true flow end, under the mask; 0 without one."""
    distance = jnp.linalg.norm(flow.astype(jnp.float32) - task.truth, axis=-1, keepdims=True)
    return weighted_mean(distance, task.mask)


def make_flow_step(
    model: IGFC,
    optimizer: optax.GradientTransformation,
    *,
    weights: FlowWeights,
    ema_decay: float,
    spike_patience: int,
    estimator: nn.Module | None = None,
    iterations: int = 0,
) -> Callable[[TrainState, VideoBatch, Variables], tuple[TrainState, Metrics]]:
    """The pure function (state, batch without clip_id, frozen variables) -> (state, metrics) for `jax.jit`.

    estimator: a `models.raft.RAFT`, whose flow after so many iterations counts as true; its variables are
    {"estimator": ...}, and every other clip is seen from its end. None: batches have `flow`. ema_decay, spike_patience:
    of `training.update.apply_update`.
    Metrics, float32: `loss` and each of its terms; `endpoint_error` and that of the membrane alone,
    `endpoint_error_filled`, in pixels under the mask before the update; those of `training.update.apply_update`.
    """

    def train_step(state: TrainState, batch: VideoBatch, frozen: Variables) -> tuple[TrainState, Metrics]:
        estimate, reverse = make_estimate(estimator, iterations, frozen), None
        if estimate is not None:
            key = jax.random.fold_in(state.rng, state.step)
            reverse = jax.random.bernoulli(key, shape=batch["video"].shape[:1])
        task = make_flow_tasks(batch, model.interval, estimate, reverse)

        def objective(params: Any) -> tuple[jax.Array, Metrics]:
            flows = complete_flow(model, {"params": params}, task)
            terms = completion_terms(flows, task.truth, task.mask, task.images if weights.ternary else None)
            loss = sum(getattr(weights, name) * term for name, term in terms.items())
            return loss, terms | {"endpoint_error": endpoint_error(flows[0], task)}

        (loss, metrics), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        metrics |= {"loss": loss, "endpoint_error_filled": endpoint_error(task.middle, task)}
        state, of_update = apply_update(state, gradients, optimizer, spike_patience=spike_patience, ema_decay=ema_decay)
        return state.replace(step=state.step + 1), metrics | of_update

    return train_step


def make_estimate(
    estimator: nn.Module | None, iterations: int, frozen: Variables
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """How flow is told between images, as `make_flow_tasks` takes it; None without an estimator."""
    if estimator is None:
        return None
    return lambda *images: estimator.apply(frozen["estimator"], *images, iterations=iterations, method="flow")
