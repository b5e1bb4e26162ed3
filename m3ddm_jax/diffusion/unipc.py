"""UniPC's steps as matrices, order 2 with B(h) = expm1(h).

Source: UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models (Zhao et al., 2023).
"""

import numpy as np


def unipc_matrices(signal: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Matrices [S, 4, 5] of the steps between noise levels signal, sigma [S + 1], for a network asked for x0.

    State: the predicted sample, the corrected one before it, and the x0 of the last two steps, the latest first. Every
    step corrects the sample that it was evaluated at with its own x0, then predicts the next. The first step has
    nothing to correct; first and last are of first order.
    """
    steps = len(signal) - 1
    with np.errstate(divide="ignore"):
        level = np.log(signal) - np.log(sigma)
    matrices = np.zeros((steps, 4, 5))
    for i, matrix in enumerate(matrices):
        # Rows of the corrected sample over (sample, corrected one before, x0 before, x0 before that, x0).
        corrected = np.eye(5)[0] if i == 0 else _corrector(signal, sigma, level, i)
        second_order = 0 < i < steps - 1
        matrix[0] = _predictor(corrected, signal, sigma, level, i, second_order)
        matrix[1] = corrected
        matrix[[2, 3], [4, 2]] = 1
    return matrices


def _predictor(
    corrected: np.ndarray, signal: np.ndarray, sigma: np.ndarray, level: np.ndarray, i: int, second_order: bool
) -> np.ndarray:
    row = sigma[i + 1] / sigma[i] * corrected
    growth = signal[i + 1] * np.expm1(level[i] - level[i + 1])
    row[4] -= growth
    if second_order:
        inverse_ratio = _inverse_ratio(level, i)
        row[[2, 4]] -= growth * 0.5 * inverse_ratio * np.array([1, -1])
    return row


def _corrector(signal: np.ndarray, sigma: np.ndarray, level: np.ndarray, i: int) -> np.ndarray:
    """The sample of level i, corrected by the x0 found there; of first order in the second step."""
    h = level[i] - level[i - 1]
    growth = signal[i] * np.expm1(-h)
    row = np.zeros(5)
    row[1] = sigma[i] / sigma[i - 1]
    row[2] = -growth
    if i == 1:
        newest, of_oldest = 0.5, 0.0
    else:
        phi_1 = np.expm1(-h) / -h - 1
        first, second = phi_1 / np.expm1(-h), 2 * (phi_1 / -h - 0.5) / np.expm1(-h)
        inverse_ratio = _inverse_ratio(level, i - 1)
        # Solves newest + older = first, newest + older / inverse_ratio = second, for older and its share of change.
        older = (second - first) * inverse_ratio / (1 - inverse_ratio)
        newest, of_oldest = first - older, older * inverse_ratio
    row[4] -= growth * newest
    row[3] -= growth * of_oldest
    row[2] += growth * (newest + of_oldest)
    return row


def _inverse_ratio(level: np.ndarray, i: int) -> float:
    """The step from level i to the next one over the step back to the one before: 0 after a level without signal."""
    return (level[i + 1] - level[i]) / (level[i - 1] - level[i])
