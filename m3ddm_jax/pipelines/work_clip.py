"""A source on its work canvas, frame by frame, with what is hidden of each: the border, and what masks say."""

import functools
from typing import NamedTuple

import numpy as np

from m3ddm_jax.geometry import Masks
from m3ddm_jax.pipelines.compositing import spread
from m3ddm_jax.pipelines.work_canvas import WorkCanvas, known_box
from m3ddm_jax.video import FrameSource


class WorkFrame(NamedTuple):
    """seen: uint8 [h, w, 3], the source's frame with its edge repeated beyond it, and with the objects that the mask
    hides; continued: the same, but what is hidden continues what is known; mask: uint8 [h, w, 1], 1 = generate."""

    seen: np.ndarray
    continued: np.ndarray
    mask: np.ndarray


class WorkClip:
    """The frames of a source as a work canvas holds them; the last `keep` that were asked for are kept.

    masks: of the size of the canvas that the work canvas stands for, or None where its border alone is to be generated.
    box: rows and columns that hold nothing but the source's pixels. near: rows and columns, int [m] and [n], that
    something hidden may lie in or beside; all of them where masks may hide anything.
    Raises ValueError where nothing of the source is left on the work canvas.
    """

    def __init__(self, source: FrameSource, work: WorkCanvas, masks: Masks | None, keep: int):
        self._source, self._work, self._masks = source, work, masks
        self.box = known_box(work).box
        self.near = _lines_near(work.mask if masks is None else np.ones_like(work.mask))
        self.frame = functools.lru_cache(maxsize=keep)(self._read)

    def __len__(self) -> int:
        return len(self._source)

    def _read(self, index: int) -> WorkFrame:
        seen = self._work.place(self._source[[index]])[0]
        if self._masks is None:
            return WorkFrame(seen, seen, self._work.mask)
        mask = np.maximum(self._work.reduce(self._masks[index : index + 1])[0], self._work.mask)
        if np.array_equal(mask, self._work.mask):
            return WorkFrame(seen, seen, mask)
        continued = spread(np.where(mask > 0, 0, seen)[None], mask)[0]
        return WorkFrame(seen, np.clip(np.rint(continued), 0, 255).astype(np.uint8), mask)


def _lines_near(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns that a mask [h, w, 1] lies in or beside."""
    lines = (mask[..., 0].any(axis) for axis in (1, 0))
    return tuple(np.flatnonzero(np.convolve(line, [1, 1, 1], "same")) for line in lines)
