"""The kinds of synthetic scene: each builds the parts of one, back to front, and says how its camera may move."""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from data import textures
from data.layers import Layer, Mover, Part, smooth_path


class World(NamedTuple):
    """Parts of a scene; reach of its camera: x, y in parts of the short side, angle in radians, zoom a logarithm."""

    parts: list[Part]
    reach_x: float
    reach_y: float
    reach_angle: float
    reach_zoom: float


def surface(rng: np.random.Generator, height: int, width: int) -> World:
    """A wall, a floor or a cloth filling the frame, with blobs of other textures gliding over it."""
    unit = min(height, width)
    reach = 0.35
    side = int(np.hypot(height, width) * 1.2 + 2 * reach * unit)
    parts: list[Part] = [
        Layer(textures.any_texture(rng, side, side, unit * 0.6), (width - side) / 2, (height - side) / 2)
    ]
    for _ in range(rng.integers(1, 5)):
        parts += blob(rng, height, width)
    return World(parts, reach, reach, 0.35, 0.18)


def blob(rng: np.random.Generator, height: int, width: int) -> list[Part]:
    """A smooth random shape with its own texture, and its shadow."""
    unit = min(height, width)
    size = int(unit * rng.uniform(0.2, 0.55))
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    radius = 1 + sum(rng.normal(0, 0.22 / order) * np.cos(order * angles + rng.uniform(0, 7)) for order in range(2, 6))
    radius *= 0.46 * size / radius.max()
    outline = np.stack([size / 2 + radius * np.cos(angles), size / 2 + radius * np.sin(angles)], axis=-1)
    alpha = np.zeros((size, size), np.uint8)
    cv2.fillPoly(alpha, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    alpha = alpha[..., None].astype(np.float32) / 255
    rows, columns = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    shade = np.clip(1.1 - 0.9 * (columns + rows) * float(rng.uniform(0, 0.7)), 0.3, 1.4)[..., None]
    colour = np.clip(textures.any_texture(rng, size, size, size * 0.6) * shade, 0, 1)
    x, y = (centred(smooth_path(rng, 0.6 * side, fastest=60), side / 2) for side in (width, height))
    turn = smooth_path(rng, rng.choice([0.0, 2.5]), 300, 120)
    shadow = np.concatenate([np.zeros((size, size, 3), np.float32), 0.5 * alpha], axis=-1)
    shadow = cv2.GaussianBlur(shadow, (0, 0), 0.04 * size)
    offset = 0.05 * size
    return [
        Mover(shadow, centred(x, offset), centred(y, offset), turn),
        Mover(np.concatenate([colour * alpha, alpha], axis=-1), x, y, turn),
    ]


def centred(path, centre: float):
    """Returns the path moved by `centre`."""
    return lambda time: centre + path(time)


WORLDS: tuple[tuple[Callable[[np.random.Generator, int, int], World], float], ...] = ((surface, 1.0),)
