"""Noise schedules: how much of the signal is left at each timestep."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Schedule:
    """alphas_cumprod: float32 [N], the signal's share of the variance at timesteps 0..N-1, falling."""

    alphas_cumprod: np.ndarray

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)


def scaled_linear(num_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> np.ndarray:
    """alphas_cumprod [N] of betas linear in their square root: Stable Diffusion's and M3DDM's schedule."""
    betas = np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=np.float64) ** 2
    return np.cumprod(1 - betas)


def cosine(num_timesteps: int = 1000, offset: float = 0.008) -> np.ndarray:
    """alphas_cumprod [N] of the cosine schedule (Nichol and Dhariwal, 2021), betas at most 0.999."""

    def signal(share):
        return np.cos((share + offset) / (1 + offset) * np.pi / 2) ** 2

    steps = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    betas = np.minimum(1 - signal(steps[1:]) / signal(steps[:-1]), 0.999)
    return np.cumprod(1 - betas)


def rescale_zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """The same schedule shifted and scaled so that no signal is left at the end (Lin et al., 2024, alg. 1)."""
    roots = np.sqrt(alphas_cumprod)
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


def shift_snr(alphas_cumprod: np.ndarray, shift: float) -> np.ndarray:
    """The same schedule with its signal-to-noise ratio multiplied by shift ** 2.

    A shift below 1 adds the noise that large or redundant latents need (Hoogeboom et al., simple diffusion, 2023).
    """
    return alphas_cumprod * shift**2 / (alphas_cumprod * shift**2 + 1 - alphas_cumprod)


_SCHEDULES = {"scaled_linear": scaled_linear, "cosine": cosine}


def make_schedule(
    name: str, *, num_timesteps: int = 1000, zero_terminal_snr: bool = False, shift: float = 1.0
) -> Schedule:
    """The named schedule, "scaled_linear" or "cosine", shifted and brought to zero terminal SNR where asked for.

    Raises ValueError for another name, or a shift that is not positive.
    """
    if name not in _SCHEDULES:
        raise ValueError(f"schedule {name!r} is unknown: one of {', '.join(sorted(_SCHEDULES))} is accepted")
    if not shift > 0:
        raise ValueError(f"the schedule's shift must be positive, found {shift}")
    alphas_cumprod = shift_snr(_SCHEDULES[name](num_timesteps), shift)
    if zero_terminal_snr:
        alphas_cumprod = rescale_zero_terminal_snr(alphas_cumprod)
    if not (np.isfinite(alphas_cumprod).all() and alphas_cumprod[0] > 0):
        raise ValueError(f"the schedule's shift {shift} leaves no signal: numbers near 1 are accepted")
    return Schedule(alphas_cumprod.astype(np.float32))
