"""Where the source lies on the canvas: aspects, sizes, paddings and anchors, masks, and the exact paste."""

import dataclasses
import math
from typing import Protocol

import numpy as np

CENTRE = (0.5, 0.5)


class Masks(Protocol):
    """Masks of a video's frames: masks[start:stop] is uint8 [n, height, width, 1], 1 = generate, 0 = known."""

    height: int
    width: int

    def __getitem__(self, frames: slice) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Canvas:
    """A canvas of even sides, in pixels, and the source's place on it; the source keeps its own resolution.

    top and left count from the canvas's upper left corner. aspect: the exact one (width / height) that was asked for,
    which even sides meet as nearly as they can; None where none was.
    Raises ValueError for odd or empty sides, and for a source that does not lie wholly on the canvas.
    """

    height: int
    width: int
    source_height: int
    source_width: int
    top: int
    left: int
    aspect: float | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self):
        if min(self.source_height, self.source_width) < 1:
            raise ValueError(f"the source has no pixels: its size is {self.source_width}x{self.source_height}")
        if self.height < self.source_height or self.width < self.source_width:
            raise ValueError(
                f"the canvas only grows: {self.width}x{self.height} is smaller than"
                f" the source's {self.source_width}x{self.source_height}"
            )
        if self.height % 2 or self.width % 2:
            raise ValueError(f"the sides of the canvas must be even, found {self.width}x{self.height}")
        if not (0 <= self.top <= self.height - self.source_height and 0 <= self.left <= self.width - self.source_width):
            raise ValueError(f"the source does not lie on the canvas: {self}")

    @classmethod
    def from_size(
        cls, source_height: int, source_width: int, height: int, width: int, anchor: tuple[float, float] = CENTRE
    ) -> "Canvas":
        """Canvas of a given size; anchor (x, y) in 0..1 says where the source lies: 0 left or top, 1 right or bottom.

        Raises ValueError for an anchor outside 0..1, an odd side, or a size smaller than the source's.
        """
        if not all(0 <= a <= 1 for a in anchor):
            raise ValueError(f"the anchor must lie in 0..1, found {anchor[0]:g},{anchor[1]:g}")
        # A canvas that is too small gets offset 0 here and is refused with its sizes.
        left = max(0, math.floor((width - source_width) * anchor[0]))
        top = max(0, math.floor((height - source_height) * anchor[1]))
        return cls(height, width, source_height, source_width, top, left)

    @classmethod
    def from_aspect(
        cls, source_height: int, source_width: int, aspect: float, anchor: tuple[float, float] = CENTRE
    ) -> "Canvas":
        """Smallest canvas of even sides that holds the source at the nearest such aspect (width / height).

        Raises ValueError for an aspect that is not positive and finite, or an anchor outside 0..1.
        """
        if not (0 < aspect < math.inf):
            raise ValueError(f"the aspect must be positive, found {aspect}")
        height, width = source_height + source_height % 2, source_width + source_width % 2
        if source_width / source_height < aspect:
            width = max(width, 2 * round(height * aspect / 2))
        else:
            height = max(height, 2 * round(width / aspect / 2))
        canvas = cls.from_size(source_height, source_width, height, width, anchor)
        return dataclasses.replace(canvas, aspect=aspect)

    @classmethod
    def from_pad(cls, source_height: int, source_width: int, left: int, top: int, right: int, bottom: int) -> "Canvas":
        """Canvas that adds so many pixels on each side; raises ValueError for a negative number or an odd canvas."""
        if min(left, top, right, bottom) < 0:
            raise ValueError(f"the canvas only grows: no padding may be negative, found {left},{top},{right},{bottom}")
        height, width = source_height + top + bottom, source_width + left + right
        return cls(height, width, source_height, source_width, top, left)

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the source: frames[:, *canvas.box] of THWC frames."""
        return slice(self.top, self.top + self.source_height), slice(self.left, self.left + self.source_width)

    def mask(self) -> np.ndarray:
        """uint8 [H,W,1]: 1 = generate, 0 = known."""
        mask = np.ones((self.height, self.width, 1), np.uint8)
        mask[self.box] = 0
        return mask

    def masks(self, holes: np.ndarray) -> np.ndarray:
        """uint8 [T,H,W,1]: `mask` of frames in which holes of the source, uint8 [T,h,w,1], are generated too."""
        return self.paste(np.ones((len(holes), self.height, self.width, 1), np.uint8), holes)

    def paste(self, frames: np.ndarray, source_frames: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """The canvas frames [T,H,W,C] with the source frames [T,h,w,C] in their place, exactly; dtype of `frames`.

        masks: uint8 [T,H,W,1], 1 where the canvas frames stay as they are inside the source's place too.
        Raises ValueError for shapes that do not fit the canvas.
        """
        expected = (
            (len(frames), self.height, self.width, frames.shape[-1]),
            (len(frames), self.source_height, self.source_width, frames.shape[-1]),
        )
        if (frames.shape, source_frames.shape) != expected:
            raise ValueError(f"shapes {expected} are needed, found {(frames.shape, source_frames.shape)}")
        pasted = frames.copy()
        pasted[:, *self.box] = source_frames
        return pasted if masks is None else np.where(masks, frames, pasted)


class CanvasMasks:
    """The masks of a source's frames on a canvas, `Masks` of the canvas's size: its border is 1 on all of them.

    masks: of the source's size, or of the canvas's own. Raises ValueError for masks of another size.
    """

    def __init__(self, masks: Masks, canvas: Canvas):
        self.height, self.width = canvas.height, canvas.width
        self._masks, self._canvas = masks, canvas
        size, source_size = (masks.height, masks.width), (canvas.source_height, canvas.source_width)
        self._on_source = size == source_size
        if size not in (source_size, (canvas.height, canvas.width)):
            found, *accepted = (f"{w}x{h}" for h, w in (size, source_size, (canvas.height, canvas.width)))
            one_of = " or ".join(dict.fromkeys(accepted))
            raise ValueError(f"the masks are {found}: {one_of} is accepted, the source's size or the canvas's")

    def __getitem__(self, frames: slice) -> np.ndarray:
        masks = self._masks[frames]
        return self._canvas.masks(masks if self._on_source else masks[:, *self._canvas.box])
