"""The optimizers."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import optax


def _has_decay(params: Any) -> Any:
    """Kernels are decayed; biases and the scales of norms are not."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def make_optimizer(
    learning_rate: float, *, warmup_steps: int, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """AdamW behind clipping by the global norm; the learning rate rises linearly over `warmup_steps`, then stays.

    It does not depend on the number of steps to come, so a run can be prolonged: the average of the parameters takes
    the place of a decay.
    """
    schedule = optax.linear_schedule(learning_rate / max(1, warmup_steps), learning_rate, max(1, warmup_steps - 1))
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=0.9, b2=0.999, weight_decay=weight_decay, mask=_has_decay),
    )


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
