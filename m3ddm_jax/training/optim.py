"""The optimizer."""

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
