"""The optimizers."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from m3ddm_jax.models.globalpaint import NEW_PARAMETERS
from m3ddm_jax.training.ema import update_ema

Rate = Callable[[str, jax.Array], jax.Array | float]
"""(path of a parameter, joined by dots; updates before) -> factor of its learning rate."""

# What learns from the start in GlobalPaint's pretrained layers: where tokens look, and what sees the masked input.
_READY = re.compile(r"(^|\.)conv_in\.|\.attn[12]\.to_q\.")
SCHEDULES, MOMENT_DTYPES = ("constant", "cosine", "rsqrt"), ("float32", "bfloat16")
# Norms are compared with their mean once so many are in it, and it reaches back over about a hundred.
_SETTLED, _NORM_DECAY = 100, 0.99


def _has_decay(params: Any) -> Any:
    """Kernels are decayed; biases and the scales of norms are not."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


class Scheduled(NamedTuple):
    """An optax.GradientTransformation, and its learning rate by the number of updates that it applied."""

    init: optax.TransformInitFn
    update: optax.TransformUpdateFn
    learning_rate: optax.Schedule


def current_rate(optimizer: optax.GradientTransformation | Scheduled, opt_state: Any) -> jax.Array | None:
    """The learning rate of the next update; None of an optimizer that does not tell."""
    if not isinstance(optimizer, Scheduled):
        return None
    (_, count), *_ = optax.tree.get_all_with_path(opt_state, "count")
    return jnp.asarray(optimizer.learning_rate(count), jnp.float32)


@dataclasses.dataclass(frozen=True)
class AdamSettings:
    """Adam, and its learning rate after the warm-up.

    schedule: "constant", which depends on no number of steps to come, so that a run can be prolonged: the average of
    the parameters takes the place of a decay; "cosine" falls to 0 at the last step; "rsqrt" falls with the root of the
    number of updates. first_moment: dtype of the first moment.

    Raises ValueError for what is not accepted.
    """

    b1: float = 0.9
    b2: float = 0.999
    schedule: str = "constant"
    first_moment: str = "float32"

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r} is unknown: one of {', '.join(SCHEDULES)} is accepted")
        if self.first_moment not in MOMENT_DTYPES:
            found, accepted = self.first_moment, ", ".join(MOMENT_DTYPES)
            raise ValueError(f"first_moment {found!r} is unknown: one of {accepted} is accepted")
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise ValueError(f"b1 is {self.b1} and b2 {self.b2}: numbers from 0 to below 1 are accepted")


def make_optimizer(
    learning_rate: float,
    *,
    warmup_steps: int,
    weight_decay: float,
    clip_norm: float,
    rate: Rate | None = None,
    adam: AdamSettings | None = None,
    steps: int = 0,
) -> Scheduled:
    """AdamW behind clipping by the global norm; the learning rate rises linearly over `warmup_steps`.

    rate: of single parameters, decay included; their moments are kept whatever it is. steps: of the run, for the
    cosine schedule.
    """
    adam = adam or AdamSettings()
    warmup = max(1, warmup_steps)
    rising = optax.linear_schedule(learning_rate / warmup, learning_rate, max(1, warmup - 1))
    after = {
        "constant": rising,
        "cosine": optax.cosine_decay_schedule(learning_rate, max(1, steps - warmup)),
        "rsqrt": lambda count: learning_rate * (warmup / (warmup + jnp.maximum(count, 0))) ** 0.5,
    }[adam.schedule]
    schedule = rising if adam.schedule == "constant" else optax.join_schedules([rising, after], [warmup])
    chained = optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(
            schedule,
            b1=adam.b1,
            b2=adam.b2,
            mu_dtype=adam.first_moment,
            weight_decay=weight_decay,
            mask=_has_decay,
        ),
        *([] if rate is None else [_scale_by_rate(rate)]),
    )
    return Scheduled(*chained, schedule)


def scaled_to_batch(
    learning_rate: float, warmup_steps: int, batch_size: int, base_batch_size: int
) -> tuple[float, int]:
    """(learning rate, warm-up) for batches of another size than the one they were found at; 0: they are as they are.

    Both have the factor sqrt(batch_size / base_batch_size), so the rate rises by as much an update. For Adam, whose
    updates forget how large a gradient is, the root keeps their noise (Malladi et al., On the SDEs and Scaling Rules
    for Adaptive Gradient Algorithms, 2022). Raises ValueError for a base below 0.
    """
    if base_batch_size < 0:
        raise ValueError(f"base_batch_size is {base_batch_size}: 0 or more is accepted")
    factor = math.sqrt(batch_size / base_batch_size) if base_batch_size else 1.0
    return factor * learning_rate, round(factor * warmup_steps)


class SpikeState(NamedTuple):
    """inner: the optimizer's. mean_norm: float32, the running mean of the norms of gradients that were applied;
    applied: int32, how many those are; in_a_row: int32, updates skipped since the last of them."""

    inner: Any
    mean_norm: jax.Array
    applied: jax.Array
    in_a_row: jax.Array


def skip_spikes(optimizer: optax.GradientTransformation, factor: float) -> optax.GradientTransformation:
    """The optimizer without the updates of spikes, which leave no trace in its state either; itself for a factor of 0.

    Spikes are gradients whose global norm is not finite, or above `factor` times the running mean of those that were
    applied, once these are 100. Raises ValueError for a factor that is neither 0 nor above 1.
    """
    if factor == 0:
        return optimizer
    if not factor > 1:
        raise ValueError(f"spike_factor is {factor}: 0, which is off, or more than 1 is accepted")

    def init(params: Any) -> SpikeState:
        return SpikeState(
            optimizer.init(params), *(jnp.zeros((), dtype) for dtype in (jnp.float32, jnp.int32, jnp.int32))
        )

    def update(gradients: Any, state: SpikeState, params: Any = None) -> tuple[Any, SpikeState]:
        norm = optax.tree.norm(gradients)
        too_large = (state.applied >= _SETTLED) & (norm > factor * state.mean_norm)
        spike = too_large | ~jnp.isfinite(norm)
        updates, inner = optimizer.update(gradients, state.inner, params)
        mean_norm = update_ema(state.mean_norm, norm, state.applied, _NORM_DECAY)
        after = SpikeState(inner, mean_norm, optax.safe_increment(state.applied), jnp.zeros_like(state.in_a_row))
        kept = state._replace(in_a_row=optax.safe_increment(state.in_a_row))
        updates = jax.tree.map(lambda update: jnp.where(spike, 0, update), updates)
        return updates, jax.tree.map(lambda old, new: jnp.where(spike, old, new), kept, after)

    return optimizer._replace(init=init, update=update)


def skipped_in_a_row(opt_state: Any) -> jax.Array | None:
    """How many updates the optimizer has skipped by now, an int32 scalar, 0 after one that it applied; None where it
    skips none."""
    return opt_state.in_a_row if isinstance(opt_state, SpikeState) else None


def staged_rate(pretrained_rate: float, frozen_steps: int) -> Rate:
    """The rates of GlobalPaint's parameters, new ones among those of an image network.

    New layers have 1. Pretrained ones have pretrained_rate, the input convolution and the attentions' queries from the
    start, all others after frozen_steps updates. The empty prompt, which a frozen text encoder made, has 0.
    """

    def rate(path: str, updates: jax.Array) -> jax.Array | float:
        if path.endswith("empty_prompt"):
            return 0.0
        if NEW_PARAMETERS.search(path):
            return 1.0
        return pretrained_rate if _READY.search(path) else jnp.where(updates < frozen_steps, 0.0, pretrained_rate)

    return rate


def _scale_by_rate(rate: Rate) -> optax.GradientTransformation:
    def init(params: Any) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates: Any, state: optax.ScaleByScheduleState, params: Any = None):
        del params
        scaled = jax.tree.map_with_path(
            lambda path, leaf: leaf * rate(jax.tree_util.keystr(path, simple=True, separator="."), state.count), updates
        )
        return scaled, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def make_stepped_optimizer(learning_rate: float, *, decay_every: int, clip_norm: float) -> Scheduled:
    """Adam (betas 0.9 and 0.999) behind clipping by the global norm; after every `decay_every` updates a tenth of the
    learning rate is left; 0: it stays."""
    constant = optax.constant_schedule(learning_rate)
    rate = optax.exponential_decay(learning_rate, decay_every, 0.1, staircase=True) if decay_every else constant
    adam = optax.adam(rate if decay_every else learning_rate, b1=0.9, b2=0.999)
    return Scheduled(*optax.chain(optax.clip_by_global_norm(clip_norm), adam), rate)


def make_gan_optimizer(
    learning_rate: float,
    *,
    decay_at: int = 0,
    clip_norm: float | None = None,
    factors: Mapping[str, float] = MappingProxyType({}),
) -> Scheduled:
    """Adam as GANs for video inpainting have it: no first moment, no weight decay (betas 0 and 0.99).

    decay_at: updates after which a tenth of the learning rate is left; 0: never. clip_norm: gradients are clipped by
    their global norm; None: not. factors: of the learning rate of single parts, by their name at the top of the
    parameters.
    """

    def scaled(updates: Any, params: Any = None) -> Any:
        del params
        return {name: optax.tree.scale(factors.get(name, 1.0), part) for name, part in updates.items()}

    schedule = optax.piecewise_constant_schedule(learning_rate, {decay_at: 0.1} if decay_at else None)
    chained = optax.chain(
        optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(b1=0.0, b2=0.99),
        optax.stateless(scaled),
        optax.scale_by_learning_rate(schedule),
    )
    return Scheduled(*chained, schedule)
