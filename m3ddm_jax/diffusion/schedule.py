"""Noise schedules: the signal and the noise of every timestep, x_t = signal[t] x0 + sigma[t] noise."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Schedule:
    """signal, sigma: float64 [N], factors of the clean latents and of the noise at timesteps 0..N-1.

    signal falls and sigma rises. A variance-preserving schedule has signal^2 + sigma^2 = 1, a rectified flow has
    signal + sigma = 1; nothing else tells them apart.
    Raises ValueError for tables of different lengths.
    """

    signal: np.ndarray
    sigma: np.ndarray

    def __post_init__(self):
        if np.ndim(self.signal) != 1 or np.shape(self.signal) != np.shape(self.sigma):
            raise ValueError(
                f"signal and sigma have shapes {np.shape(self.signal)} and {np.shape(self.sigma)}: two tables [N] of "
                "the same length are accepted"
            )

    @property
    def num_timesteps(self) -> int:
        return len(self.signal)

    @property
    def ends_without_signal(self) -> bool:
        """Whether the last timestep is pure noise (zero terminal SNR)."""
        return bool(self.signal[-1] <= 0)


def variance_preserving(alphas_cumprod: np.ndarray) -> Schedule:
    """The schedule whose signal has the share alphas_cumprod [N] of the variance."""
    # Rounded to float32, in which published models were trained.
    share = np.asarray(alphas_cumprod, np.float32).astype(np.float64)
    return Schedule(np.sqrt(share), np.sqrt(1 - share))


def rectified_flow(num_timesteps: int = 1000, shift: float = 1.0) -> Schedule:
    """The straight path from data to noise (Liu et al., Flow Straight and Fast, 2023): signal = 1 - sigma.

    Timestep t has sigma (t + 1) / N, so the last one is pure noise. shift: factor of signal / sigma; the shift k of
    Stable Diffusion 3, sigma = k s / (1 + (k - 1) s), is 1 / k here.
    """
    sigma = np.arange(1, num_timesteps + 1, dtype=np.float64) / num_timesteps
    signal = shift * (1 - sigma)
    total = signal + sigma
    return Schedule(signal / total, sigma / total)


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
    """The same schedule with signal / sigma multiplied by shift, its signal-to-noise ratio by shift ** 2.

    A shift below 1 adds the noise that large or redundant latents need (Hoogeboom et al., simple diffusion, 2023).
    """
    return alphas_cumprod * shift**2 / (alphas_cumprod * shift**2 + 1 - alphas_cumprod)


_VARIANCE_PRESERVING = {"scaled_linear": scaled_linear, "cosine": cosine}

SCHEDULES = (*_VARIANCE_PRESERVING, "rectified_flow")
"""Names that `make_schedule` accepts."""


def make_schedule(
    name: str, *, num_timesteps: int = 1000, zero_terminal_snr: bool = False, shift: float = 1.0
) -> Schedule:
    """The schedule of that name, one of SCHEDULES.

    shift: factor of signal / sigma; below 1 every timestep has more noise. zero_terminal_snr: leaves no signal at the
    last timestep; a rectified flow never does.
    Raises ValueError for another name, or a shift that is not positive.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r} is unknown: one of {', '.join(sorted(SCHEDULES))} is accepted")
    if not shift > 0:
        raise ValueError(f"the schedule's shift must be positive, found {shift}")
    if name == "rectified_flow":
        return rectified_flow(num_timesteps, shift)
    alphas_cumprod = shift_snr(_VARIANCE_PRESERVING[name](num_timesteps), shift)
    if zero_terminal_snr:
        alphas_cumprod = rescale_zero_terminal_snr(alphas_cumprod)
    if not (np.isfinite(alphas_cumprod).all() and alphas_cumprod[0] > 0):
        raise ValueError(f"the schedule's shift {shift} leaves no signal: numbers near 1 are accepted")
    return variance_preserving(alphas_cumprod)
