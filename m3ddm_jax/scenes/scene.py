"""Synthetic video: procedural scenes under a moving camera, with objects moving through them.

Any frame of a scene can be drawn alone, and a scene never ends: all motion is smooth and bounded, so that what leaves
the frame comes back.
"""

import numpy as np

from m3ddm_jax.scenes.layers import Camera, smooth_path
from m3ddm_jax.scenes.worlds import WORLDS

FPS = 24
MIN_SIDE = 16


class Scene:
    """One scene, fixed by its seed; height and width in pixels. Raises ValueError for a side under MIN_SIDE."""

    def __init__(self, seed: int, height: int, width: int):
        if min(height, width) < MIN_SIDE:
            raise ValueError(f"a scene needs at least {MIN_SIDE}x{MIN_SIDE} pixels, found {height}x{width}")
        rng = np.random.default_rng(seed)
        builders, weights = zip(*WORLDS, strict=True)
        world = builders[rng.choice(len(builders), p=weights)](rng, height, width)
        unit, moves = min(height, width), rng.random(4) < 0.75  # a camera may also stand still in some ways
        reach = np.array([world.reach_x * unit, world.reach_y * unit, world.reach_angle, world.reach_zoom])
        paths = [smooth_path(rng, amplitude) for amplitude in reach * moves * rng.uniform(0.3, 1, 4)]
        self._camera = Camera(*paths, height, width)
        self._parts = world.parts
        self._size = (height, width)
        self._light = smooth_path(rng, rng.uniform(0, 0.08), 300, 60)

    def frame(self, index: int) -> np.ndarray:
        """Draws the frame at a time counted in frames: uint8 [H,W,3], RGB."""
        frame = np.zeros((*self._size, 3), np.float32)
        view = self._camera.view(index)
        for part in self._parts:
            part.draw(frame, view)
        frame *= 255 * (1 + self._light(index))
        return np.clip(frame + 0.5, 0, 255).astype(np.uint8)


def sample_frames(num_frames: int = 48, height: int = 512, width: int = 512, seed: int = 17) -> np.ndarray:
    """The first frames of the scene of a seed, at FPS frames per second: uint8 [T,H,W,3], RGB.

    Raises ValueError for a side under MIN_SIDE, and for no frames.
    """
    if num_frames < 1:
        raise ValueError(f"`num_frames` must be at least 1, found {num_frames}")
    drawn = Scene(seed, height, width)
    return np.stack([drawn.frame(index) for index in range(num_frames)])
