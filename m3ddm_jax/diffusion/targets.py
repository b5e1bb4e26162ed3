"""What a network predicts: noise, v, the velocity or the clean latents; how to make each, and each from another.

A noise level is the pair (signal, sigma) of a `diffusion.schedule.Schedule`; both broadcast against the latents:
[B, 1, 1, 1, 1] for [B, T, h, w, C], or scalars.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from m3ddm_jax.diffusion.schedule import Schedule

PREDICTIONS = ("epsilon", "v_prediction", "velocity", "x0")
"""epsilon: the noise. v_prediction: signal noise - sigma x0. velocity: noise - x0. x0: the clean latents."""

# Keeps divisions finite where a schedule's end holds no signal, or its start no noise.
_SMALLEST = 1e-4


def add_noise(x0: jax.Array, noise: jax.Array, signal: jax.Array, sigma: jax.Array) -> jax.Array:
    """signal x0 + sigma noise."""
    return signal * x0 + sigma * noise


# What divides these predictions on the way to x0: 1 where variance is preserved, 1 on a rectified flow.
_SCALE: dict[str, Callable] = {
    "v_prediction": lambda signal, sigma: jnp.square(signal) + jnp.square(sigma),
    "velocity": lambda signal, sigma: signal + sigma,
}


def _from_v(p, noisy, signal, sigma):
    scale = _SCALE["v_prediction"](signal, sigma)
    return (signal * noisy - sigma * p) / scale, (sigma * noisy + signal * p) / scale


def _from_velocity(p, noisy, signal, sigma):
    scale = _SCALE["velocity"](signal, sigma)
    return (noisy - sigma * p) / scale, (noisy + signal * p) / scale


# prediction -> (x0, noise) from (prediction, noisy, signal, sigma); and back.
_TO_PAIR: dict[str, Callable] = {
    "epsilon": lambda p, noisy, signal, sigma: ((noisy - sigma * p) / jnp.maximum(signal, _SMALLEST), p),
    "v_prediction": _from_v,
    "velocity": _from_velocity,
    "x0": lambda p, noisy, signal, sigma: (p, (noisy - signal * p) / jnp.maximum(sigma, _SMALLEST)),
}
_FROM_PAIR: dict[str, Callable] = {
    "epsilon": lambda x0, noise, signal, sigma: noise,
    "v_prediction": lambda x0, noise, signal, sigma: signal * noise - sigma * x0,
    "velocity": lambda x0, noise, signal, sigma: noise - x0,
    "x0": lambda x0, noise, signal, sigma: x0,
}


def _known(prediction: str) -> str:
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction {prediction!r} is unknown: one of {', '.join(PREDICTIONS)} is accepted")
    return prediction


def check_prediction(prediction: str, schedule: Schedule) -> str:
    """The prediction; raises ValueError for an unknown one, or one that says nothing at a timestep of the schedule."""
    if _known(prediction) == "epsilon" and schedule.ends_without_signal:
        others = ", ".join(name for name in PREDICTIONS if name != "epsilon")
        raise ValueError(
            f"prediction 'epsilon' does not fit a schedule whose last timestep has no signal, where noise says nothing "
            f"of the clean latents: one of {others} is accepted"
        )
    return prediction


def make_target(prediction: str, x0: jax.Array, noise: jax.Array, signal: jax.Array, sigma: jax.Array) -> jax.Array:
    """What a network of this prediction type should return for add_noise(x0, noise, signal, sigma)."""
    return _FROM_PAIR[_known(prediction)](x0, noise, signal, sigma)


def convert(
    source: str, target: str, prediction: jax.Array, noisy: jax.Array, signal: jax.Array, sigma: jax.Array
) -> jax.Array:
    """A prediction of type `source` about `noisy`, as one of type `target`."""
    if _known(source) == _known(target):
        return prediction
    return _FROM_PAIR[target](*_TO_PAIR[source](prediction, noisy, signal, sigma), signal, sigma)


def min_snr_weight(prediction: str, signal: jax.Array, sigma: jax.Array, gamma: float) -> jax.Array:
    """Loss weight min(SNR, gamma) of the x0 error, in the space of the prediction's own error (Hang et al., 2023).

    SNR is (signal / sigma)^2. Finite at all levels; 0 where no signal is left, except for epsilon: use no weight with
    a schedule that ends without signal.
    """
    power, noise_power = (jnp.square(jnp.asarray(root, jnp.float32)) for root in (signal, sigma))
    match _known(prediction):
        case "epsilon":
            return jnp.minimum(1.0, gamma * noise_power / jnp.maximum(power, 1e-12))
        case "x0":
            return jnp.minimum(power / jnp.maximum(noise_power, 1e-12), gamma)
        case _:
            return jnp.minimum(power, gamma * noise_power) / jnp.square(_SCALE[prediction](signal, sigma))
