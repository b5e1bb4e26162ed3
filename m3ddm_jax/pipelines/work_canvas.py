"""The canvas at the resolution that a model works at: the target's own shape, or M3DDM's square."""

import math

import cv2
import numpy as np

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines import compositing
from m3ddm_jax.types import FramesTHWC


class WorkCanvas:
    """The target's own shape, its shorter side about `lines`.

    height, width: multiples of what the network needs, the shorter one about `lines` or the canvas's own if that is
    less. mask: uint8 [h, w, 1], 1 wherever a pixel holds anything unknown.
    """

    def __init__(self, canvas: Canvas, lines: int, multiple: int):
        short, long = sorted((canvas.height, canvas.width))
        short_side = max(multiple, math.ceil(min(lines, short) / multiple) * multiple)
        long_side = max(multiple, round(long * short_side / short / multiple) * multiple)
        portrait = canvas.height > canvas.width
        self.height, self.width = (long_side, short_side) if portrait else (short_side, long_side)
        self._canvas = canvas
        self.mask = self.reduce(canvas.mask()[None])[0]

    def reduce(self, masks: np.ndarray) -> np.ndarray:
        """Masks of the canvas, uint8 [T, H, W, 1], as `mask` is: uint8 [T, h, w, 1], 1 where anything is unknown."""
        shares = [
            cv2.resize(mask.astype(np.float32), (self.width, self.height), interpolation=cv2.INTER_AREA)
            for mask in masks
        ]
        return (np.stack(shares) > 1e-6).astype(np.uint8)[..., None]

    def place(self, frames: FramesTHWC) -> FramesTHWC:
        """Source frames as the work canvas holds them, uint8 [T, h, w, 3]; what unknown pixels hold means nothing."""
        canvas = self._canvas
        bottom = canvas.height - canvas.top - canvas.source_height
        right = canvas.width - canvas.left - canvas.source_width
        placed = np.empty((len(frames), self.height, self.width, 3), np.uint8)
        for target, frame in zip(placed, frames, strict=True):
            # The border is continued before the reduction, so that no unknown colour bleeds into a known pixel.
            extended = cv2.copyMakeBorder(frame, canvas.top, bottom, canvas.left, right, cv2.BORDER_REPLICATE)
            target[...] = compositing.resize(extended[None], self.height, self.width)[0]
        return placed

    def to_canvas(self, generated: np.ndarray, frames: FramesTHWC) -> np.ndarray:
        """Generated work frames, float32 [T, h, w, 3] in 0..255, at the canvas's size [T, H, W, 3]."""
        return compositing.resize(generated, self._canvas.height, self._canvas.width)


class SquareCanvas:
    """The square of M3DDM's released code: the source centred on it, everything around it unknown.

    It stands for the longer side of the target, scaled to `lines`; the target is cropped from it in the end. A target
    that is smaller keeps its size where the network can take it (the released code fails where it cannot).
    Attributes as `WorkCanvas`. Raises ValueError where `lines` is no multiple of what the network needs, or the source
    does not lie in the middle of the canvas.
    """

    def __init__(self, canvas: Canvas, lines: int, multiple: int):
        if lines % multiple:
            raise ValueError(f"a square canvas of {lines} lines: a multiple of {multiple} is needed")
        offsets = (2 * canvas.top + canvas.source_height, 2 * canvas.left + canvas.source_width)
        if abs(offsets[0] - canvas.height) > 1 or abs(offsets[1] - canvas.width) > 1:
            raise ValueError("a square canvas needs the source in the middle: no anchor and no one-sided padding")
        self._canvas = canvas
        aspect = canvas.aspect or canvas.width / canvas.height
        target = target_size(canvas.source_height, canvas.source_width, aspect)
        longest = max(target)
        side = int(longest) if longest < lines and longest % multiple == 0 else lines
        self.height = self.width = side
        self._box = square_box(canvas.source_height, canvas.source_width, *target, side)
        self._crop = square_crop(aspect, side)
        self.mask = np.ones((side, side, 1), np.uint8)
        self.mask[self._box] = 0

    def place(self, frames: FramesTHWC) -> FramesTHWC:
        """Source frames on the square, uint8 [T, h, w, 3], black around; scaled bilinearly without antialiasing."""
        rows, columns = self._box
        size = (columns.stop - columns.start, rows.stop - rows.start)
        placed = np.zeros((len(frames), self.height, self.width, 3), np.uint8)
        for target, frame in zip(placed, frames, strict=True):
            target[self._box] = cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
        return placed

    def to_canvas(self, generated: np.ndarray, frames: FramesTHWC) -> np.ndarray:
        """Generated frames, float32 [T, h, w, 3] in 0..255, with the source pasted on the square, cut to whole numbers
        and cropped, at the canvas's size: uint8 [T, H, W, 3]."""
        pasted = np.where(self.mask > 0, generated.astype(np.uint8), self.place(frames))
        return compositing.resize(pasted[:, *self._crop], self._canvas.height, self._canvas.width)


def target_size(height: int, width: int, aspect: float) -> tuple[float, float]:
    """Height and width to which a source is widened or heightened for an aspect (width / height)."""
    return (height, aspect * height) if width / height < aspect else (width / aspect, width)


def square_box(height: int, width: int, target_height: float, target_width: float, side: int) -> tuple[slice, slice]:
    """Rows and columns of a source on a square of `side` pixels that stands for the target's longer side."""
    scale = side / max(target_height, target_width)
    # Multiplied before it is cut: the released code's order, on which a pixel depends.
    box_height, box_width = (min(int(scale * length), side) for length in (height, width))
    top, left = (side - box_height) // 2, (side - box_width) // 2
    return slice(top, top + box_height), slice(left, left + box_width)


def square_crop(aspect: float, side: int) -> tuple[slice, slice]:
    """Rows and columns of the largest part of an aspect in the middle of a square of `side` pixels."""
    height, width = (side, int(side * aspect)) if aspect < 1 else (int(side / aspect), side)
    top, left = (side - height) // 2, (side - width) // 2
    return slice(top, top + height), slice(left, left + width)


def known_box(work: WorkCanvas) -> Canvas:
    """The work canvas with the box of what is known on it. Raises ValueError where that is no whole pixel."""
    rows, columns = (np.flatnonzero(~work.mask[..., 0].all(axis)) for axis in (1, 0))
    if not len(rows):
        raise ValueError(
            f"the source covers no pixel of the {work.width}x{work.height} that the model sees: more lines are needed"
        )
    return Canvas(work.height, work.width, len(rows), len(columns), int(rows[0]), int(columns[0]))
