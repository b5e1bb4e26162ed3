"""Which pixels of a clip are generated: a border, squares, or masks from files."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Protocol

import numpy as np

from eval.clips import View, list_clips, match
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.images import IMAGE_SUFFIXES

MaskReader = Callable[[int, int], np.ndarray]
"""(start, stop) -> uint8 [H,W,1] for all frames alike or [n,H,W,1]; 1 in the generated region."""


class Region(Protocol):
    """The generated pixels of every clip."""

    name: str

    def masks(self, clip: str, truth: View) -> MaskReader:
        """Masks of a clip at the size of its true frames; raises ValueError where there are none that fit."""

    def boxes(self, height: int, width: int) -> list[list[int]]:
        """The rectangles that masks consist of, [left, top, right, bottom] with right and bottom excluded: the known
        one of a border, the generated ones of squares; empty where masks come from files."""


@dataclasses.dataclass(frozen=True)
class Border:
    """A generated region around a known box: a fraction of the width, half on each side, or pixels on each side."""

    name: str
    ratio: float = 0.0
    pad: tuple[int, int, int, int] | None = None  # left, top, right, bottom

    def sides(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Generated pixels left, top, right and bottom in frames of this size; a ratio's are rounded down.

        Raises ValueError where nothing is known or nothing is generated.
        """
        side = int(round(width * self.ratio / 2, 6))
        left, top, right, bottom = self.pad or (side, 0, side, 0)
        known_width, known_height = max(0, width - left - right), max(0, height - top - bottom)
        if not known_width * known_height or not left + top + right + bottom:
            known = f"{known_width}x{known_height} of {width}x{height} pixels would be known"
            raise ValueError(f"region {self.name}: {known}; some must be known and some generated")
        return left, top, right, bottom

    def canvas(self, height: int, width: int) -> Canvas:
        """The canvas that an outpainter gets for frames of this size; raises ValueError as sides, and for odd sizes."""
        left, top, right, bottom = self.sides(height, width)
        return Canvas.from_pad(height - top - bottom, width - left - right, left, top, right, bottom)

    def boxes(self, height: int, width: int) -> list[list[int]]:
        left, top, right, bottom = self.sides(height, width)
        return [[left, top, width - right, height - bottom]]

    def masks(self, clip: str, truth: View) -> MaskReader:
        left, top, right, bottom = self.boxes(truth.height, truth.width)[0]
        mask = np.ones((truth.height, truth.width, 1), np.uint8)
        mask[top:bottom, left:right] = 0
        return lambda start, stop: mask


@dataclasses.dataclass(frozen=True)
class Squares:
    """Generated squares at rest on an even grid, their side a fraction of the height, rounded down."""

    name: str
    columns: int
    rows: int
    side: float

    def boxes(self, height: int, width: int) -> list[list[int]]:
        side = int(round(height * self.side, 6))
        tops, lefts = (
            ((2 * np.arange(count) + 1) * length // (2 * count) - side // 2).tolist()
            for count, length in ((self.rows, height), (self.columns, width))
        )
        return [[left, top, left + side, top + side] for top in tops for left in lefts]

    def masks(self, clip: str, truth: View) -> MaskReader:
        mask = np.zeros((truth.height, truth.width, 1), np.uint8)
        for left, top, right, bottom in self.boxes(truth.height, truth.width):
            mask[top:bottom, left:right] = 1
        return lambda start, stop: mask


@dataclasses.dataclass(frozen=True)
class MaskFolder:
    """Generated regions, white in files named like the clips: an image, or as many frames as the clip has.

    They have the size of the scored frames, or that of the truth as it is: then they are resized as the truth is.
    """

    name: str
    files: dict[str, pathlib.Path]

    def boxes(self, height: int, width: int) -> list[list[int]]:
        return []

    def masks(self, clip: str, truth: View) -> MaskReader:
        path = self.files[clip]
        if path.suffix.lower() in IMAGE_SUFFIXES:
            mask = _fitted(path, FrameSource(path)[:1], truth)[0]
            return lambda start, stop: mask
        source = FrameSource(path)
        if len(source) < len(truth):
            raise ValueError(f"{path} has {len(source)} masks for {len(truth)} frames")
        _fitted(path, source[:1], truth)  # says now what it would say later
        return lambda start, stop: _fitted(path, source[start:stop], truth)


def _fitted(path: pathlib.Path, masks: np.ndarray, truth: View) -> np.ndarray:
    """uint8 0 or 1 [n,H,W,1], at the size of the truth, of white on black [n,h,w,C]."""
    masks = (masks[..., :1] >= 128).astype(np.uint8)
    size, wanted, own = masks.shape[1:3], (truth.height, truth.width), (truth.source.height, truth.source.width)
    if size == own != wanted:
        return truth.transform(masks, nearest=True)
    if size != wanted:
        raise ValueError(f"{path} is {size[1]}x{size[0]}, its clip is {wanted[1]}x{wanted[0]}")
    return masks


def parse_regions(ratio: str | None, pad: str | None, masks: str | os.PathLike | None, clips) -> list[Region]:
    """Regions as a user names them: ratios "0.25,0.66", pixels "LEFT,TOP,RIGHT,BOTTOM" or a folder of masks.

    clips: the names that masks must have. Raises ValueError for several of them at once, for other numbers, and for
    masks that lack a clip or are of others.
    """
    if sum(value is not None for value in (ratio, pad, masks)) > 1:
        raise ValueError("one of ratio, pad and masks is accepted, not several")
    if ratio is not None:
        values = _numbers(float, ratio)
        if not values or not all(0 < value < 1 for value in values):
            raise ValueError(f"ratio {ratio!r}: fractions between 0 and 1 are accepted")
        return [Border(f"{value:g}", ratio=value) for value in values]
    if pad is not None:
        values = _numbers(int, pad)
        if len(values) != 4 or min(values) < 0:
            raise ValueError(f"pad {pad!r}: LEFT,TOP,RIGHT,BOTTOM in pixels is accepted")
        return [Border(f"pad-{pad}", pad=tuple(values))]
    if masks is not None:
        files = list_clips(masks, images=True)
        match(set(clips), files, masks)
        return [MaskFolder("masks", files)]
    return []


def _numbers(kind: type, text: str) -> list:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        return []
