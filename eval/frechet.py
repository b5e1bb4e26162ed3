"""Distances between two sets of features, one row a clip: Frechet (FVD), kernel (KVD), and their interval over clips.

All in float64. Features are [N,D], one row a clip; ValueError is raised where they are not finite, differ in D, or are
of too few clips.
"""

from collections.abc import Callable

import numpy as np


def frechet_distance(x: np.ndarray, y: np.ndarray, ddof: int = 1) -> float:
    """Frechet distance of the Gaussians fitted to two sets: |mx - my|^2 + tr Sx + tr Sy - 2 tr (Sx Sy)^(1/2).

    x: [N,D]; y: [M,D]. Covariances divide by N - ddof: 1 is unbiased, 0 the population's (StyleGAN-V). Where a set is
    a single clip there is no covariance, and the distance is that of the means.
    With S = A'A the last trace is the nuclear norm of Ax Ay', which takes no root of a singular matrix and so is exact
    for fewer clips than dimensions. Few clips bias the distance upwards: compare at equal N alone.
    Source: Dowson and Landau (1982); Unterthiner et al., Towards Accurate Generative Models of Video (2018).
    """
    x, y = _pair(x, y)
    distance = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
    if min(len(x), len(y)) > 1:
        a, b = _covariance_factor(x, ddof), _covariance_factor(y, ddof)
        overlap = np.sum(np.linalg.svd(a @ b.T, compute_uv=False))
        distance += np.sum(a**2) + np.sum(b**2) - 2 * overlap
    return max(float(distance), 0.0)  # rounding leaves equal sets a hair beside zero


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy under the kernel (a.b / D + 1)^3 (KVD on I3D features).

    x: [N,D]; y: [M,D]; two clips or more each. For independent sets of one law it is zero on average whatever N and M,
    hence often negative; sets that depend on each other clip by clip, equal ones above all, come out a little lower.
    Source: Gretton et al., A Kernel Two-Sample Test (2012); Binkowski et al., Demystifying MMD GANs (2018).
    """
    x, y = _pair(x, y, least=2)
    return _mean_off_diagonal(_kernel(x, x)) + _mean_off_diagonal(_kernel(y, y)) - 2 * float(np.mean(_kernel(x, y)))


def bootstrap(
    metric: Callable[[np.ndarray, np.ndarray], float],
    x: np.ndarray,
    y: np.ndarray,
    *,
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """(low, high) of a distance: how far it moves with the choice of clips, at the N that there is.

    x, y: [N,D], row i of both from the same clip: clips are drawn with replacement, each with its truth and its output,
    since drawing the two apart would lose what they share and widen the interval several times. A draw repeats
    clips and so acts like fewer of them, which moves distances upwards by more than their spread; the interval is
    therefore the quantiles of the draws moved by (value of the clips as they are - mean of the draws).
    Raises ValueError for fewer than two clips, or other numbers of them in x than in y.
    """
    x, y = _pair(x, y, least=2)
    if len(x) != len(y):
        raise ValueError(f"the same clips are needed in both sets, found {len(x)} and {len(y)}")
    rng = np.random.default_rng(seed)
    values = [metric(x[rows], y[rows]) for rows in rng.integers(len(x), size=(draws, len(x)))]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) + metric(x, y) - np.mean(values)
    return float(low), float(high)


def _pair(x: np.ndarray, y: np.ndarray, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Both sets in float64. Raises ValueError for sets that are no [N,D], not finite, too small, or of other widths."""
    x, y = (np.asarray(features, np.float64) for features in (x, y))
    for name, features in (("first", x), ("second", y)):
        if features.ndim != 2:
            raise ValueError(f"the {name} features must be [N,D], found {list(features.shape)}")
        if len(features) < least:
            raise ValueError(f"the {name} features are of {len(features)} clips, at least {least} needed")
        wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if wrong.size:
            raise ValueError(f"the {name} features are not finite in {wrong.size} of {len(features)} rows: {wrong[:8]}")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features must have the same width, found {x.shape[1]} and {y.shape[1]}")
    return x, y


def _covariance_factor(features: np.ndarray, ddof: int) -> np.ndarray:
    """A [min(N,D),D] whose A'A is the covariance."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - ddof)
    return np.linalg.qr(centred, mode="r") if len(centred) > centred.shape[1] else centred


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_off_diagonal(matrix: np.ndarray) -> float:
    n = len(matrix)
    return float((np.sum(matrix) - np.trace(matrix)) / (n * (n - 1)))
