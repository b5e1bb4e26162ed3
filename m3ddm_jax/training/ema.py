"""Exponential moving average of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

_WARM_UP = 10.0


def ema_decay_at(step: jax.Array, decay: float) -> jax.Array:
    """Decay of the update that follows `step` earlier ones: min(decay, step / (step + 10)).

    The first decay is 0, so the average never holds anything of the initial parameters (no bias to divide out), and
    while it warms up it reaches back over about a tenth of the updates made so far.
    """
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, step / (step + _WARM_UP))


def update_ema(ema_params: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """The average after an update that followed `step` earlier ones; float32, whatever the parameters are."""
    return optax.incremental_update(optax.tree.cast(params, jnp.float32), ema_params, 1.0 - ema_decay_at(step, decay))
