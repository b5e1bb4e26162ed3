"""Masks of things that move over a video: random shapes with smooth outlines that glide and turn steadily."""

import numpy as np

AREA_SHARES = (0.05, 0.3)  # of a clip's pixels, what the shapes hide
MAX_SHAPES = 3
MARGIN = 0.2  # of the sides, what centres keep away from the border
MAX_SPEED = 0.03  # sides a frame
MAX_TURN = 0.1  # radians a frame
WAVES = (2, 3, 4, 5)  # of an outline, each up to MAX_WAVE / number of the radius; their sum stays below 1
MAX_WAVE = 0.6


def draw_objects(rng: np.random.Generator, num_frames: int, height: int, width: int) -> np.ndarray:
    """Draws uint8 [T,H,W,1], 1 = hidden: one to MAX_SHAPES shapes, which hide a share of the clip's pixels uniform in
    AREA_SHARES, and something of every frame."""
    share = rng.uniform(*AREA_SHARES)
    count = int(rng.integers(1, MAX_SHAPES + 1))
    shapes = [_relative_distance(rng, num_frames, height, width) for _ in range(count)]
    distance = np.minimum.reduce(shapes)
    # All shapes grow alike until they hide the share that was drawn.
    size = np.maximum(np.quantile(distance, share), distance.min(axis=(1, 2), keepdims=True))
    return (distance <= size)[..., None].astype(np.uint8)


def _relative_distance(rng: np.random.Generator, num_frames: int, height: int, width: int) -> np.ndarray:
    """Draws a moving shape: float32 [T,H,W], how far pixels are from its centre by its radius in their direction."""
    time = np.arange(num_frames)
    place = rng.uniform(MARGIN, 1 - MARGIN, 2) + time[:, None] * rng.uniform(-MAX_SPEED, MAX_SPEED, 2)
    down, right = (_reflected(place, MARGIN, 1 - MARGIN) * (height, width)).T
    angle = rng.uniform(0, 2 * np.pi) + time * rng.uniform(-MAX_TURN, MAX_TURN)
    # Complex numbers, so that powers of a direction are the waves of an outline.
    rows, columns = np.mgrid[:height, :width] + 0.5
    offset = (columns + 1j * rows - (right + 1j * down)[:, None, None]).astype(np.complex64)
    length = np.abs(offset)
    direction = offset / np.maximum(length, 1e-6) * np.exp(-1j * angle).astype(np.complex64)[:, None, None]
    radius = np.ones_like(length)
    for number in WAVES:
        wave = rng.uniform(0, MAX_WAVE / number) * np.exp(1j * rng.uniform(0, 2 * np.pi))
        radius += (direction**number * np.complex64(wave)).real
    return length / (radius * np.float32(rng.uniform(0.5, 1)))


def _reflected(place: np.ndarray, low: float, high: float) -> np.ndarray:
    """A straight way that turns back at both ends of an interval."""
    span = high - low
    return high - np.abs((place - low) % (2 * span) - span)
