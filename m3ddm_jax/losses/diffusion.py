"""The denoising loss."""

import jax
import jax.numpy as jnp


def diffusion_loss(prediction: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean of the weighted squared error in the space of the target: a float32 scalar.

    prediction, target: [B, T, h, w, C]; weight: broadcasts against them, [B, 1, 1, 1, 1] for each clip (min-SNR) or
    [B, T, h, w, 1] for each cell.
    """
    error = jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32))
    return jnp.mean(weight.astype(jnp.float32) * error)
