"""Values continued as a membrane, which spreads differences at a border so that no seam is left.

Source: Poisson Image Editing (Perez et al., SIGGRAPH 2003).
"""

import numpy as np

from m3ddm_jax.completion import kernels
from m3ddm_jax.completion.scales import places_of, reduce_known

_SWEEPS = 24  # at each scale
_FACTOR = np.float32(1.7)  # of over-relaxation
_SMALLEST = 4  # pixels of the short side of the coarsest scale, at least


def membrane(values: np.ndarray, given: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Continues values over free pixels, float32 [h, w, 3]: each is about the mean of its neighbours.

    values: float32 [h, w, 3], read where given. given, free: bool [h, w]; pixels that are neither are 0 and count as no
    neighbours. Coarser scales are solved first.
    """
    height, width = free.shape
    start = np.where(given[..., None], values, 0).astype(np.float32)
    if not given.any():
        return start
    if min(height, width) >= 2 * _SMALLEST:
        coarse_values, coarse_given = reduce_known(start, given)
        coarse_free = reduce_known(start, free)[1] & ~coarse_given
        coarse = membrane(coarse_values, coarse_given, coarse_free)
        enlarged = coarse.repeat(2, 0).repeat(2, 1)[:height, :width]
        start = np.where(free[..., None], enlarged, start)
    flat = np.ascontiguousarray(start).reshape(height, -1)
    kernels.relax(flat, given | free, places_of(free), _SWEEPS, _FACTOR)
    return flat.reshape(height, width, 3)
