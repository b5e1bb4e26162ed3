"""A quick stand-in for a perceptual distance, to choose between ways of filling a region."""

import cv2
import numpy as np

_SCALES = 3
_WINDOW = 2.0  # pixels of the Gaussian that gathers local statistics
_FLOOR = 4.0  # squared grey levels a pixel; weaker detail is not seen
_COLOUR = 16.0  # grey levels of colour that count as much as a factor of e in the energy of detail


def texture_distance(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """Returns how differently two images look over a region: 0 if they are equal, symmetric, no upper bound.

    Compares local statistics at three scales, each half the size: the energy of gradients as a ratio, so that a blur
    is far from what it was made of, and the mean colour. Detail need not lie at the same pixels.

    a, b: [h, w, 3] in 0..255. mask: [h, w, 1], nonzero = compared; an empty one gives 0.
    """
    a, b = a.astype(np.float32), b.astype(np.float32)
    weight = (mask[..., 0] > 0).astype(np.float32)
    if not weight.any():
        return 0.0
    total = 0.0
    for scale in range(_SCALES):
        if scale:
            a, b, weight = _halve(a), _halve(b), _halve(weight)
        detail = np.abs(np.log(_energy(a) + _FLOOR) - np.log(_energy(b) + _FLOOR))
        colour = np.abs(_local_mean(a) - _local_mean(b)).mean(-1) / _COLOUR
        total += float(np.average(detail + colour, weights=weight))
    return total / _SCALES


def _energy(image: np.ndarray) -> np.ndarray:
    """Local mean of the squared gradients [h, w] of an image [h, w, 3], summed over channels."""
    right, down = (cv2.Sobel(image, -1, *axis, ksize=3, scale=1 / 8) for axis in ((1, 0), (0, 1)))
    return _local_mean((right**2 + down**2).sum(-1))


def _local_mean(image: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), _WINDOW)


def _halve(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.resize(image, (-(-width // 2), -(-height // 2)), interpolation=cv2.INTER_AREA)
