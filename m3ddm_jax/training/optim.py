"""The optimizers."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from m3ddm_jax.models.globalpaint import NEW_PARAMETERS

Rate = Callable[[str, jax.Array], jax.Array | float]
"""(path of a parameter, joined by dots; updates before) -> factor of its learning rate."""

# What learns from the start in GlobalPaint's pretrained layers: where tokens look, and what sees the masked input.
_READY = re.compile(r"(^|\.)conv_in\.|\.attn[12]\.to_q\.")


def _has_decay(params: Any) -> Any:
    """Kernels are decayed; biases and the scales of norms are not."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def make_optimizer(
    learning_rate: float, *, warmup_steps: int, weight_decay: float, clip_norm: float, rate: Rate | None = None
) -> optax.GradientTransformation:
    """AdamW behind clipping by the global norm; the learning rate rises linearly over `warmup_steps`, then stays.

    It does not depend on the number of steps to come, so a run can be prolonged: the average of the parameters takes
    the place of a decay. rate: of single parameters, decay included; their moments are kept whatever it is.
    """
    schedule = optax.linear_schedule(learning_rate / max(1, warmup_steps), learning_rate, max(1, warmup_steps - 1))
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=0.9, b2=0.999, weight_decay=weight_decay, mask=_has_decay),
        *([] if rate is None else [_scale_by_rate(rate)]),
    )


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


def make_gan_optimizer(
    learning_rate: float,
    *,
    decay_at: int = 0,
    clip_norm: float | None = None,
    factors: Mapping[str, float] = MappingProxyType({}),
) -> optax.GradientTransformation:
    """Adam as GANs for video inpainting have it: no first moment, no weight decay (betas 0 and 0.99).

    decay_at: updates after which a tenth of the learning rate is left; 0: never. clip_norm: gradients are clipped by
    their global norm; None: not. factors: of the learning rate of single parts, by their name at the top of the
    parameters.
    """

    def scaled(updates: Any, params: Any = None) -> Any:
        del params
        return {name: optax.tree.scale(factors.get(name, 1.0), part) for name, part in updates.items()}

    return optax.chain(
        optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(b1=0.0, b2=0.99),
        optax.stateless(scaled),
        optax.scale_by_learning_rate(
            optax.piecewise_constant_schedule(learning_rate, {decay_at: 0.1} if decay_at else None)
        ),
    )
