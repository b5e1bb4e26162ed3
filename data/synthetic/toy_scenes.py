"""Small scenes in which what lies beside the known part of a clip is told by other frames, or by none of the clip's.

Made for masks that leave the middle half of the columns known. Three things are to be told, each from more than the one
before: the ground, from the frame itself; where a block is that swings from border to border, and its colour, from the
clip; the colour of two blocks that rest at the borders, from the whole video, in which they once meet in the middle.
"""

import colorsys
import dataclasses

import numpy as np

from m3ddm_jax.scenes.textures import Colour

SIDE = 32
NUM_FRAMES = 64

_WIDTH = SIDE // 4
_SWINGING_ROWS, _VISITING_ROWS = slice(2, 14), slice(18, 30)
_MIDDLE = SIDE / 2
# How far from the middle a block swings, two rest, and these come when they visit it.
_SWING, _REST, _MET = SIDE / 2, SIDE / 2 - _WIDTH / 2, _WIDTH / 2
# Frames: so many that any 8 spread over the video show the visit.
_STAY, _TRAVEL = 20, 2


@dataclasses.dataclass(frozen=True)
class VisitScene:
    """One scene of SIDE x SIDE pixels: colours, sRGB in 0..1; period and phase of the swing in frames and radians;
    arrival: the frame from which the visitors are in the middle."""

    sky: Colour
    ground: Colour
    swinging_colour: Colour
    period: float
    phase: float
    visiting_colour: Colour
    arrival: int

    def nearness(self, index: int) -> float:
        """How far the visitors are from their rest at a frame: 0, at rest, to 1, in the middle."""
        away = max(self.arrival - index, index - (self.arrival + _STAY - 1), 0)
        return max(0.0, 1 - away / _TRAVEL)

    def frame(self, index: int) -> np.ndarray:
        """Draws a frame: uint8 [SIDE,SIDE,3], RGB."""
        down = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None, None]
        frame = np.repeat((1 - down) * np.float32(self.sky) + down * np.float32(self.ground), SIDE, axis=1)
        swing = _SWING * np.sin(2 * np.pi * index / self.period + self.phase)
        _draw_block(frame[_SWINGING_ROWS], _MIDDLE + swing, self.swinging_colour)
        apart = _REST + (_MET - _REST) * self.nearness(index)
        for column in (_MIDDLE - apart, _MIDDLE + apart):
            _draw_block(frame[_VISITING_ROWS], column, self.visiting_colour)
        return np.clip(255 * frame + 0.5, 0, 255).astype(np.uint8)


def make_scene(seed: int) -> VisitScene:
    """Draws a scene."""
    rng = np.random.default_rng(seed)

    def vivid() -> Colour:
        return colorsys.hsv_to_rgb(rng.uniform(), 0.9, 0.9)

    sky, ground = rng.uniform(0.3, 0.7, (2, 3))
    return VisitScene(
        sky=tuple(sky),
        ground=tuple(ground),
        swinging_colour=vivid(),
        period=rng.uniform(6, 8),
        phase=rng.uniform(0, 2 * np.pi),
        visiting_colour=vivid(),
        arrival=int(rng.integers(NUM_FRAMES - _STAY + 1)),
    )


def _draw_block(rows: np.ndarray, column: float, colour: Colour) -> None:
    """Puts a block around a column over rows of a frame, in place; the pixels at its ends are covered in part."""
    covered = np.clip(_WIDTH / 2 + 0.5 - np.abs(np.arange(SIDE, dtype=np.float32) + 0.5 - column), 0, 1)[:, None]
    rows += covered * (np.float32(colour) - rows)
