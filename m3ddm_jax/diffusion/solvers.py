"""Samplers as tables: a step's next state is a matrix times (state, prediction), worked out beforehand in float64.

DDIM without added noise, DPM-Solver++(2M) and PLMS differ in nothing but the numbers, so one scan serves all of them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from m3ddm_jax.diffusion.schedule import Schedule

SOLVERS = ("ddim", "dpm++", "plms")


@dataclasses.dataclass(frozen=True)
class Solver:
    """timesteps: int32 [S], where the network is asked, one after the other. prediction: what it is asked for.

    matrices: float32 [S, K, K + 1], from K state tensors and the prediction to the next state. The state's first tensor
    is the sample; the others are what the method remembers, zeros at the start.
    """

    timesteps: np.ndarray
    prediction: str
    matrices: np.ndarray

    def start(self, x: jax.Array) -> jax.Array:
        """The state [K, ...] before the first step from noisy latents x."""
        return jnp.zeros((self.matrices.shape[1], *x.shape), x.dtype).at[0].set(x)


def solver_step(matrix: jax.Array, state: jax.Array, prediction: jax.Array) -> jax.Array:
    """The next state: one matrix [K, K + 1] of a solver times the state [K, ...] and the network's prediction [...]."""
    matrix = jnp.asarray(matrix)
    # At full precision: accelerators would round the factors of a plain product.
    kept = jnp.tensordot(matrix[:, :-1], state, axes=1, precision="highest")
    return kept + jnp.tensordot(matrix[:, -1], prediction, axes=0, precision="highest")


def make_solver(name: str, schedule: Schedule, steps: int, strength: float = 1.0) -> Solver:
    """The solver of that name with `steps` evaluations of the network.

    "ddim" (Song et al., 2021, eta 0) and "dpm++" (Lu et al., 2022, DPM-Solver++(2M), last step of first order) end
    without noise. "plms" (Liu et al., 2022) is Stable Diffusion's PNDM scheduler as M3DDM's code runs it: entered at
    its second timestep, which it therefore takes for its first two calls. It ends with the schedule's least noise.
    strength: share of the noise levels that is run; 1 starts at pure noise, as plms always does.
    Raises ValueError for another name, and for steps or a strength that do not fit.
    """
    if name not in SOLVERS:
        raise ValueError(f"solver {name!r} is unknown: one of {', '.join(SOLVERS)} is accepted")
    if name == "plms":
        return _plms(schedule, steps, strength)
    timesteps = _trailing_timesteps(schedule.num_timesteps, steps, strength)
    alphas_cumprod = np.append(schedule.alphas_cumprod[timesteps].astype(np.float64), 1.0)
    signal, sigma = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)
    ratio = sigma[1:] / sigma[:-1]
    # First order: keep the noise that belongs to the next level, put the predicted signal in place of the rest.
    new_signal = signal[1:] - ratio * signal[:-1]
    extrapolation = _extrapolation(signal, sigma) if name == "dpm++" else np.zeros(steps)
    # State: the sample and the step before's x0.
    matrices = np.zeros((steps, 2, 3))
    matrices[:, 0] = np.stack([ratio, -new_signal * extrapolation, new_signal * (1 + extrapolation)], axis=-1)
    matrices[:, 1, 2] = 1
    return Solver(timesteps, "x0", matrices.astype(np.float32))


def _trailing_timesteps(num_timesteps: int, steps: int, strength: float) -> np.ndarray:
    """`steps` timesteps, evenly spaced down from strength * num_timesteps - 1, the last one where the noise ends."""
    start = round(num_timesteps * strength)
    if not 1 <= steps <= start <= num_timesteps:
        raise ValueError(f"{steps} steps from strength {strength}: 1 to {start} steps fit, strength in 0..1")
    return np.round(np.arange(start, 0, -start / steps)).astype(np.int32)[:steps] - 1


def _extrapolation(signal: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """How far DPM-Solver++(2M) goes beyond each step's x0, along its change since the step before."""
    with np.errstate(divide="ignore"):
        step = np.diff(np.log(signal) - np.log(sigma))
    extrapolation = np.zeros(len(step))
    # Steps to and from infinity (no noise, no signal) stay of first order.
    inner = slice(1, len(step) - 1)
    if len(step) > 2:
        extrapolation[inner] = 0.5 * step[inner] / step[:-2]
    return extrapolation


# Adams-Bashforth weights of the newest prediction and of those remembered, the latest first.
_ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _plms(schedule: Schedule, steps: int, strength: float) -> Solver:
    if strength != 1 or not 2 <= steps <= schedule.num_timesteps:
        accepted = f"2 to {schedule.num_timesteps} steps at strength 1 are accepted"
        raise ValueError(f"plms with {steps} steps at strength {strength}: {accepted}")
    interval = schedule.num_timesteps // steps
    spaced = np.arange(steps - 1)[::-1] * interval + 1
    timesteps = np.concatenate([spaced[:1], spaced]).astype(np.int32)
    alphas_cumprod = schedule.alphas_cumprod.astype(np.float64)

    def transfer(timestep: int) -> tuple[float, float]:
        """Factors of the sample and of the predicted noise in a step down from a timestep."""
        here, below = alphas_cumprod[timestep], alphas_cumprod[max(timestep - interval, 0)]
        denominator = here * np.sqrt(1 - below) + np.sqrt(here * (1 - here) * below)
        return np.sqrt(below / here), -(below - here) / denominator

    # State: the sample, the one that sampling began with, and the last three predictions, the latest first.
    matrices = np.zeros((steps, 5, 6))
    for call, (matrix, timestep) in enumerate(zip(matrices, timesteps, strict=True)):
        if call == 1:
            # Again from the beginning, one interval higher, with the mean of both predictions; it is not remembered.
            keep, change = transfer(timestep + interval)
            matrix[0, [1, 2, 5]] = keep, change / 2, change / 2
            matrix[[1, 2], [1, 2]] = 1
            continue
        weights = _ADAMS_BASHFORTH[min(max(call - 1, 0), 3)]
        keep, change = transfer(timestep)
        matrix[0, 0] = keep
        matrix[0, 5] = change * weights[0]
        matrix[0, 2 : 1 + len(weights)] = change * np.array(weights[1:])
        matrix[1, 0 if call == 0 else 1] = 1
        matrix[[2, 3, 4], [5, 2, 3]] = 1
    return Solver(timesteps, "epsilon", matrices.astype(np.float32))
