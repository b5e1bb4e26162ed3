"""Samplers as tables: each step is x' = a x + b x0 + c x0_before, with a, b, c worked out beforehand in float64.

DDIM without added noise and DPM-Solver++(2M) differ in nothing but the numbers, so one scan serves both.
"""

import dataclasses

import jax
import numpy as np

from m3ddm_jax.diffusion.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Solver:
    """timesteps: int32 [S], falling; coefficients: float32 [S, 3], of x, of x0 and of the step before's x0."""

    timesteps: np.ndarray
    coefficients: np.ndarray


def spaced_timesteps(num_timesteps: int, steps: int, strength: float = 1.0) -> np.ndarray:
    """`steps` timesteps, evenly spaced down from strength * num_timesteps - 1 ("trailing": the last one is where the
    noise ends).

    strength: share of the noise levels that is run; 1 starts at pure noise. Raises ValueError where they do not fit.
    """
    start = round(num_timesteps * strength)
    if not 1 <= steps <= start <= num_timesteps:
        raise ValueError(f"{steps} steps from strength {strength}: 1 to {start} steps fit, strength in 0..1")
    return np.round(np.arange(start, 0, -start / steps)).astype(np.int32)[:steps] - 1


def make_solver(name: str, schedule: Schedule, timesteps: np.ndarray) -> Solver:
    """The table of "ddim" (Song et al., 2021, eta 0) or "dpm++" (Lu et al., 2022, DPM-Solver++(2M), last step of
    first order, ends without noise) over falling timesteps. Raises ValueError for another name."""
    if name not in ("ddim", "dpm++"):
        raise ValueError(f"solver {name!r} is unknown: one of ddim, dpm++ is accepted")
    alphas_cumprod = np.append(schedule.alphas_cumprod[timesteps].astype(np.float64), 1.0)
    signal, sigma = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)
    ratio = sigma[1:] / sigma[:-1]
    # First order: keep the noise that belongs to the next level, put the predicted signal in place of the rest.
    x, x0, before = ratio, signal[1:] - ratio * signal[:-1], np.zeros_like(ratio)
    if name == "dpm++":
        with np.errstate(divide="ignore"):
            half_log_snr = np.log(signal) - np.log(sigma)
        step = np.diff(half_log_snr)
        # Steps to and from infinity (no noise, no signal) stay of first order.
        inner = slice(1, len(timesteps) - 1)
        extrapolation = np.zeros_like(x0)
        extrapolation[inner] = 0.5 * step[inner] / step[:-2] if len(timesteps) > 2 else 0.0
        x0, before = x0 * (1 + extrapolation), -x0 * extrapolation
    return Solver(np.asarray(timesteps, np.int32), np.stack([x, x0, before], axis=-1).astype(np.float32))


def solver_step(coefficients: jax.Array, x: jax.Array, x0: jax.Array, x0_before: jax.Array) -> jax.Array:
    """One step down with one row [3] of a solver's table."""
    return coefficients[0] * x + coefficients[1] * x0 + coefficients[2] * x0_before
