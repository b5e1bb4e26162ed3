"""What a network predicts: noise, v or the clean latents; how to make each, and each from another.

`alpha_cumprod` broadcasts against the latents: [B, 1, 1, 1, 1] for [B, T, h, w, C], or a scalar.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

PREDICTIONS = ("epsilon", "v_prediction", "x0")

# Keeps divisions finite where a schedule's end holds no signal, or its start no noise.
_SMALLEST = 1e-4


def _roots(alpha_cumprod: jax.Array) -> tuple[jax.Array, jax.Array]:
    alpha_cumprod = jnp.asarray(alpha_cumprod, jnp.float32)
    return jnp.sqrt(alpha_cumprod), jnp.sqrt(1 - alpha_cumprod)


def add_noise(x0: jax.Array, noise: jax.Array, alpha_cumprod: jax.Array) -> jax.Array:
    """sqrt(acp) x0 + sqrt(1 - acp) noise."""
    signal, sigma = _roots(alpha_cumprod)
    return signal * x0 + sigma * noise


# prediction -> (x0, noise) from (prediction, noisy, signal, sigma); and back.
_TO_PAIR: dict[str, Callable] = {
    "epsilon": lambda p, noisy, signal, sigma: ((noisy - sigma * p) / jnp.maximum(signal, _SMALLEST), p),
    "v_prediction": lambda p, noisy, signal, sigma: (signal * noisy - sigma * p, sigma * noisy + signal * p),
    "x0": lambda p, noisy, signal, sigma: (p, (noisy - signal * p) / jnp.maximum(sigma, _SMALLEST)),
}
_FROM_PAIR: dict[str, Callable] = {
    "epsilon": lambda x0, noise, signal, sigma: noise,
    "v_prediction": lambda x0, noise, signal, sigma: signal * noise - sigma * x0,
    "x0": lambda x0, noise, signal, sigma: x0,
}


def _known(prediction: str) -> str:
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction {prediction!r} is unknown: one of {', '.join(PREDICTIONS)} is accepted")
    return prediction


def make_target(prediction: str, x0: jax.Array, noise: jax.Array, alpha_cumprod: jax.Array) -> jax.Array:
    """What a network of this prediction type should say of add_noise(x0, noise, alpha_cumprod)."""
    return _FROM_PAIR[_known(prediction)](x0, noise, *_roots(alpha_cumprod))


def convert(source: str, target: str, prediction: jax.Array, noisy: jax.Array, alpha_cumprod: jax.Array) -> jax.Array:
    """A prediction of type `source` about `noisy`, as one of type `target`."""
    if _known(source) == _known(target):
        return prediction
    roots = _roots(alpha_cumprod)
    return _FROM_PAIR[target](*_TO_PAIR[source](prediction, noisy, *roots), *roots)


def min_snr_weight(prediction: str, alpha_cumprod: jax.Array, gamma: float) -> jax.Array:
    """Loss weight min(SNR, gamma) of the x0 error, in the space of the prediction's own error (Hang et al., 2023).

    epsilon: min(SNR, gamma) / SNR; v: min(SNR, gamma) / (SNR + 1); x0: min(SNR, gamma). Finite for acp in 0..1. It is 0
    for v and x0 where no signal is left: leave it off with a zero-terminal-SNR schedule.
    """
    alpha_cumprod = jnp.asarray(alpha_cumprod, jnp.float32)
    noise_share = gamma * (1 - alpha_cumprod)
    match _known(prediction):
        case "epsilon":
            return jnp.minimum(1.0, noise_share / jnp.maximum(alpha_cumprod, 1e-12))
        case "v_prediction":
            return jnp.minimum(alpha_cumprod, noise_share)
        case _:
            return jnp.minimum(alpha_cumprod / jnp.maximum(1 - alpha_cumprod, 1e-12), gamma)
