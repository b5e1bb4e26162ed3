"""What other frames would lend to a hole: gradients of the right content, but of another light and sharpness.

That pairs of this kind are simulated is published with ISVI (Zhang et al., CVPR 2022); how is a design of this project.
"""

import cv2
import numpy as np

_GAIN, _GAMMA, _OFFSET = (0.8, 1.25), (0.8, 1.25), 0.08  # of contrast and light, each colour channel by itself
_BLURRED, _SHARPENED = 0.5, 0.2  # chances; never both
_SIGMA = (0.1, 2.0)
_COMPRESSED, _NOISY = 0.1, 0.1  # chances
_QUALITY, _NOISE = (40, 90), (0.004, 0.02)
_LARGEST_SHIFT = 2.0  # pixels by which flow may be wrong
_CELLS = 4  # along each side, between which it changes smoothly
_MOST_LENDERS = 3
_EMPTY_RIM = 0.5  # chance that nothing is lent to differences that only end in the hole


def lend_gradients(rng: np.random.Generator, frame: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Draws gradients as frames of other styles would lend them to a hole of a frame.

    frame: uint8 [H,W,3]. hole: [H,W,1], 1 = unknown. Returns float32 [2,H,W,3], differences to the pixel on the right
    and to the one below in -1..1, those of the frame itself outside of the hole. One to _MOST_LENDERS copies of the
    frame lend them, each to the part of the hole that is nearest to a point of its own.
    """
    image, inside = frame.astype(np.float32) / 255, hole[..., 0] > 0
    height, width = inside.shape
    gradients = _gradients(image)
    rows, columns = np.mgrid[:height, :width]
    points = rng.uniform((0, 0), (height, width), (rng.integers(1, _MOST_LENDERS + 1), 2))
    distances = [np.hypot(rows - down, columns - across) for down, across in points]
    nearest = np.argmin(distances, axis=0)
    lent = gradients.copy()
    for lender in range(len(points)):
        copy = _gradients(_misplaced(rng, _restyled(rng, image)))
        taken = inside & (nearest == lender)
        lent[:, taken] = copy[:, taken]
    if rng.random() < _EMPTY_RIM:
        lent[:, touching(inside) & ~inside] = 0
    return lent


def touching(hole: np.ndarray) -> np.ndarray:
    """Where a difference to the right or down begins or ends in a hole: bool [H,W] -> bool [H,W]."""
    touches = hole.copy()
    touches[:-1] |= hole[1:]
    touches[:, :-1] |= hole[:, 1:]
    return touches


def _gradients(image: np.ndarray) -> np.ndarray:
    gradients = np.zeros((2, *image.shape), np.float32)
    gradients[0, :, :-1] = np.diff(image, axis=1)
    gradients[1, :-1] = np.diff(image, axis=0)
    return gradients


def _restyled(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """An image in 0..1 in another light, of another sharpness, and perhaps compressed or noisy."""
    mean = image.mean(axis=(0, 1))
    image = (image - mean) * rng.uniform(*_GAIN, 3) + mean + rng.uniform(-_OFFSET, _OFFSET, 3)
    image = (np.clip(image, 0, 1) ** rng.uniform(*_GAMMA, 3)).astype(np.float32)
    sharpness, damage = rng.random(2)
    if sharpness < _BLURRED + _SHARPENED:
        blurred = cv2.GaussianBlur(image, (0, 0), rng.uniform(*_SIGMA))
        image = blurred if sharpness < _BLURRED else image + rng.uniform(0.2, 1) * (image - blurred)
    if damage < _COMPRESSED:
        pixels = np.clip(255 * image + 0.5, 0, 255).astype(np.uint8)
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(*_QUALITY))]
        _, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), quality)
        image = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).astype(np.float32) / 255
    elif damage < _COMPRESSED + _NOISY:
        image = image + rng.normal(0, rng.uniform(*_NOISE), image.shape).astype(np.float32)
    return np.clip(image, 0, 1)


def _misplaced(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """An image read at places that are off by a smooth field, whose fractions of pixels soften it."""
    height, width = image.shape[:2]
    cells = rng.uniform(-1, 1, (_CELLS, _CELLS, 2)).astype(np.float32) * _LARGEST_SHIFT * rng.random()
    # A corner of the square is farther off than allowed.
    shift = cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR) / np.sqrt(2).astype(np.float32)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return cv2.remap(
        image, columns + shift[..., 0], rows + shift[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
