"""Samplers as tables: a step's next state is a matrix times (state, prediction), worked out beforehand in float64.

All solvers differ in nothing but the numbers, so one scan serves all of them. They speak of noise levels as
`diffusion.schedule.Schedule` does: signal and sigma.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from m3ddm_jax.diffusion.schedule import Schedule
from m3ddm_jax.diffusion.unipc import unipc_matrices


@dataclasses.dataclass(frozen=True)
class Solver:
    """timesteps: int32 [S], where the network is evaluated, in this order. prediction: what it is asked for.

    matrices: float32 [S, K, K + 1], from K state tensors and the prediction to the next state. The state's first tensor
    is the sample; the others are what the method remembers, zeros at the start.
    noise: float32 [S, K], factor of fresh standard normal noise in each state tensor; None for a deterministic solver.
    """

    timesteps: np.ndarray
    prediction: str
    matrices: np.ndarray
    noise: np.ndarray | None = None

    def start(self, x: jax.Array) -> jax.Array:
        """The state [K, ...] before the first step from noisy latents x."""
        return jnp.zeros((self.matrices.shape[1], *x.shape), x.dtype).at[0].set(x)


def solver_step(
    matrix: jax.Array, state: jax.Array, prediction: jax.Array, noise: tuple[jax.Array, jax.Array] | None = None
) -> jax.Array:
    """The next state: one matrix [K, K + 1] of a solver times the state [K, ...] and the network's prediction [...].

    noise: of a stochastic solver, the step's factors [K] and fresh standard normal noise [...].
    """
    matrix = jnp.asarray(matrix)
    # At full precision: accelerators would round the factors of a plain product.
    kept = jnp.tensordot(matrix[:, :-1], state, axes=1, precision="highest")
    after = kept + jnp.tensordot(matrix[:, -1], prediction, axes=0, precision="highest")
    return after if noise is None else after + jnp.tensordot(*map(jnp.asarray, noise), axes=0, precision="highest")


def make_solver(name: str, schedule: Schedule, steps: int, strength: float = 1.0) -> Solver:
    """The solver of that name, one of SOLVERS, with `steps` evaluations of the network; all but plms end without noise.

    "ddim": Song et al., 2021, eta 0. "ancestral": the same with eta 1, which adds fresh noise in every step (DDPM, Ho
    et al., 2020). "euler": DDIM's step in terms of the velocity, on a rectified flow Euler's step along it. "dpm++":
    Lu et al., 2022, DPM-Solver++(2M), last step of first order. "unipc": Zhao et al., 2023, UniPC of order 2 with
    B(h) = expm1(h). "plms" (Liu et al., 2022): Stable Diffusion's PNDM scheduler as M3DDM's code runs it: entered at
    its second timestep, which it therefore uses for its first two calls; it ends with the schedule's least noise.
    strength: share of the noise levels that is run; 1 starts at the schedule's last level, as plms always does.
    Raises ValueError for another name, and for steps or a strength that do not fit.
    """
    if name not in SOLVERS:
        raise ValueError(f"solver {name!r} is unknown: one of {', '.join(SOLVERS)} is accepted")
    return _SOLVERS[name](schedule, steps, strength)


def _levels(schedule: Schedule, steps: int, strength: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(timesteps [S], signal [S + 1], sigma [S + 1]): evenly spaced timesteps down from strength * N - 1, and their
    noise levels with the clean one behind."""
    start = round(schedule.num_timesteps * strength)
    if not 1 <= steps <= start <= schedule.num_timesteps:
        raise ValueError(f"{steps} steps from strength {strength}: 1 to {start} steps fit, strength in 0..1")
    timesteps = np.round(np.arange(start, 0, -start / steps)).astype(np.int32)[:steps] - 1
    return timesteps, np.append(schedule.signal[timesteps], 1.0), np.append(schedule.sigma[timesteps], 0.0)


def _ddim(schedule: Schedule, steps: int, strength: float) -> Solver:
    timesteps, signal, sigma = _levels(schedule, steps, strength)
    ratio = sigma[1:] / sigma[:-1]
    # Keep the noise that belongs to the next level, put the predicted signal in place of the rest.
    matrices = np.stack([ratio, signal[1:] - ratio * signal[:-1]], axis=-1)
    return Solver(timesteps, "x0", matrices[:, None].astype(np.float32))


def _ancestral(schedule: Schedule, steps: int, strength: float) -> Solver:
    timesteps, signal, sigma = _levels(schedule, steps, strength)
    # The part of the signal that a level has of the level below; the posterior between both has the rest as noise.
    share = signal[:-1] / signal[1:]
    fresh = sigma[1:] * np.sqrt(np.maximum(0, 1 - np.square(share * sigma[1:] / sigma[:-1])))
    ratio = share * np.square(sigma[1:] / sigma[:-1])
    matrices = np.stack([ratio, signal[1:] - ratio * signal[:-1]], axis=-1)
    return Solver(timesteps, "x0", matrices[:, None].astype(np.float32), fresh[:, None].astype(np.float32))


def _euler(schedule: Schedule, steps: int, strength: float) -> Solver:
    timesteps, signal, sigma = _levels(schedule, steps, strength)
    total = signal + sigma
    change = sigma[1:] * signal[:-1] - signal[1:] * sigma[:-1]
    matrices = np.stack([total[1:], change], axis=-1) / total[:-1, None]
    return Solver(timesteps, "velocity", matrices[:, None].astype(np.float32))


def _dpm(schedule: Schedule, steps: int, strength: float) -> Solver:
    timesteps, signal, sigma = _levels(schedule, steps, strength)
    ratio = sigma[1:] / sigma[:-1]
    new_signal, extrapolation = signal[1:] - ratio * signal[:-1], _extrapolation(signal, sigma)
    # State: the sample and the previous step's x0.
    matrices = np.zeros((steps, 2, 3))
    matrices[:, 0] = np.stack([ratio, -new_signal * extrapolation, new_signal * (1 + extrapolation)], axis=-1)
    matrices[:, 1, 2] = 1
    return Solver(timesteps, "x0", matrices.astype(np.float32))


def _extrapolation(signal: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """How far DPM-Solver++(2M) goes beyond each step's x0, along its change since the previous step."""
    with np.errstate(divide="ignore"):
        step = np.diff(np.log(signal) - np.log(sigma))
    extrapolation = np.zeros(len(step))
    # Steps to and from infinity (no noise, no signal) stay of first order.
    inner = slice(1, len(step) - 1)
    if len(step) > 2:
        extrapolation[inner] = 0.5 * step[inner] / step[:-2]
    return extrapolation


def _unipc(schedule: Schedule, steps: int, strength: float) -> Solver:
    timesteps, signal, sigma = _levels(schedule, steps, strength)
    return Solver(timesteps, "x0", unipc_matrices(signal, sigma).astype(np.float32))


# Adams-Bashforth weights of the newest prediction and of those remembered, the latest first.
_ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _plms(schedule: Schedule, steps: int, strength: float) -> Solver:
    if strength != 1 or not 2 <= steps <= schedule.num_timesteps:
        accepted = f"2 to {schedule.num_timesteps} steps at strength 1 are accepted"
        raise ValueError(f"plms with {steps} steps at strength {strength}: {accepted}")
    interval = schedule.num_timesteps // steps
    spaced = np.arange(steps - 1)[::-1] * interval + 1
    timesteps = np.concatenate([spaced[:1], spaced]).astype(np.int32)
    if schedule.signal[timesteps[0] + interval] <= 0:
        raise ValueError(f"plms with {steps} steps starts where the schedule has no signal: use fewer steps")

    def transfer(timestep: int) -> tuple[float, float]:
        """Factors of the sample and of the predicted noise in a step down from a timestep."""
        below = max(timestep - interval, 0)
        keep = schedule.signal[below] / schedule.signal[timestep]
        return keep, schedule.sigma[below] - keep * schedule.sigma[timestep]

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


_SOLVERS: dict[str, Callable[[Schedule, int, float], Solver]] = {
    "ancestral": _ancestral,
    "ddim": _ddim,
    "dpm++": _dpm,
    "euler": _euler,
    "plms": _plms,
    "unipc": _unipc,
}

SOLVERS = tuple(_SOLVERS)
"""Names that `make_solver` accepts."""
