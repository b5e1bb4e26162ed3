"""Training masks: which part of a clip is to be generated.

A mask is uint8, 1 = generate, 0 = known. What is known is a rectangle (the source on its canvas), and on some frames
everything, as on the guide frames of a coarse-to-fine schedule. Strategies, ratios and frame modes are those of the
M3DDM paper, section 3; beside them, moving objects hide parts inside of the frame, as in video inpainting.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from data.object_masks import draw_objects

DIRECTIONS = ("top", "bottom", "left", "right")
MIN_SIDE = 4
_CUTS = ("four", "single", "horizontal", "vertical", "random")
_FRAME_MODES = ("all_masked", "ends_known", "random_known", "both_known")


class Box(NamedTuple):
    """A rectangle of pixels, ends exclusive."""

    top: int
    bottom: int
    left: int
    right: int


class Mask(NamedTuple):
    """One draw: `mask` uint8 [T,H,W,1] and `box`, the rectangle that a source would have on this canvas.

    `box` is what the global frames may show. Where everything is masked it is the rectangle that another strategy would
    have left; where every frame has its own rectangle it is the first frame's; around masked objects the whole frame.
    """

    mask: np.ndarray
    box: Box


@dataclasses.dataclass(frozen=True)
class MaskSampler:
    """Draws masks; every probability is a weight relative to the others of its group.

    Strategies, in parts of a side of the frame, each axis and each draw with its own ratio uniform in
    [min_ratio, max_ratio]:
      four        all four sides; an axis gives `ratio` of its length, one half at each end
      single      one side, which gives `ratio` of its axis
      horizontal  left and right; `ratio` of the axis, one half at each end
      vertical    top and bottom, likewise
      random      any non-empty subset of the four sides, each with its own `ratio / 2`
      all         the whole frame: no condition at all, as guidance needs it
      objects     shapes that move over the clip (data.object_masks), on every frame whatever the frame mode
    multiple: what a side gives is a multiple of so many pixels, and at least that.
    Frame modes: all_masked (the mask on every frame), ends_known (the first frame, or the first and the last, known
    whole), random_known (each frame known whole with probability 0.5), both_known (the first and the last known whole).
    At least one frame is always masked.
    all_keeps_frames: frame modes apply to clips of the strategy `all` too, instead of hiding all of their frames; the
    paper is not clear about it.
    per_frame draws strategy and ratios anew for every frame instead of once a clip.

    Raises ValueError for negative weights, a group without weight, ratios outside 0 < min <= max < 1, a multiple below
    1, or objects together with per_frame.
    """

    four: float = 0.2
    single: float = 0.1
    horizontal: float = 0.175
    vertical: float = 0.175
    random: float = 0.1
    all: float = 0.25
    objects: float = 0.0
    min_ratio: float = 0.15
    max_ratio: float = 0.75
    all_masked: float = 0.3
    ends_known: float = 0.35
    random_known: float = 0.35
    both_known: float = 0.0
    all_keeps_frames: bool = False
    per_frame: bool = False
    multiple: int = 1

    def __post_init__(self):
        for group in (self._strategies(), self._frame_modes()):
            if min(group.values()) < 0 or sum(group.values()) <= 0:
                raise ValueError(f"mask weights must be non-negative and not all zero, found {group}")
        if not 0 < self.min_ratio <= self.max_ratio < 1:
            raise ValueError(f"mask ratios must satisfy 0 < min <= max < 1, found {self.min_ratio}, {self.max_ratio}")
        if self.multiple < 1:
            raise ValueError(f"mask multiple is {self.multiple}: 1 or more is accepted")
        if self.objects and self.per_frame:
            raise ValueError("mask strategy objects moves over a clip: with per_frame, a weight of 0 is accepted")

    def _strategies(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in (*_CUTS, "all", "objects")}

    def _frame_modes(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in _FRAME_MODES}

    def __call__(self, rng: np.random.Generator, num_frames: int, height: int, width: int) -> Mask:
        """Draws one Mask for a clip of num_frames frames; raises ValueError for a side shorter than MIN_SIDE, or one of
        which nothing might be left."""
        least = max(MIN_SIDE, 2 * self.multiple + 1)
        if num_frames < 1 or min(height, width) < least:
            raise ValueError(
                f"a mask needs at least 1 frame of {least}x{least} pixels, found {num_frames} of {height}x{width}"
            )
        strategies = np.array([_choose(rng, self._strategies()) for _ in range(num_frames if self.per_frame else 1)])
        if "objects" in strategies:
            return Mask(draw_objects(rng, num_frames, height, width), Box(0, height, 0, width))
        draws = [self._draw_frame(rng, strategy, height, width) for strategy in strategies]
        frames = np.stack([mask for mask, _ in draws])
        masked = draw_masked_frames(rng, num_frames, _choose(rng, self._frame_modes()))
        if not self.all_keeps_frames:
            masked = masked | (strategies == "all")
        return Mask(frames * masked[:, None, None, None].astype(np.uint8), draws[0][1])

    def _draw_frame(self, rng: np.random.Generator, strategy: str, height: int, width: int) -> tuple[np.ndarray, Box]:
        if strategy == "all":
            kept = {name: getattr(self, name) for name in _CUTS}
            hidden = _choose(rng, kept) if sum(kept.values()) > 0 else "four"
            return np.ones((height, width, 1), np.uint8), self._draw_box(rng, hidden, height, width)
        box = self._draw_box(rng, strategy, height, width)
        return box_mask(box, height, width), box

    def _draw_box(self, rng: np.random.Generator, strategy: str, height: int, width: int) -> Box:
        lengths = {"top": height, "bottom": height, "left": width, "right": width}
        shares = draw_shares(rng, strategy, self.min_ratio, self.max_ratio)
        cut = dict.fromkeys(DIRECTIONS, 0)
        for side, share in shares.items():
            cut[side] = max(1, int(lengths[side] * share / self.multiple)) * self.multiple
        return Box(cut["top"], height - cut["bottom"], cut["left"], width - cut["right"])


def draw_shares(rng: np.random.Generator, strategy: str, min_ratio: float, max_ratio: float) -> dict[str, float]:
    """Draws side -> part of that side's axis to generate, for a strategy of MaskSampler that cuts sides."""

    def ratio() -> float:
        return rng.uniform(min_ratio, max_ratio)

    if strategy == "single":
        return {DIRECTIONS[rng.integers(4)]: ratio()}
    if strategy == "random":
        subset = rng.integers(1, 16)
        return {side: ratio() / 2 for bit, side in enumerate(DIRECTIONS) if subset >> bit & 1}
    vertical, horizontal = DIRECTIONS[:2], DIRECTIONS[2:]
    axes = {"four": (vertical, horizontal), "horizontal": (horizontal,), "vertical": (vertical,)}
    if strategy not in axes:
        raise ValueError(f"unknown mask strategy {strategy!r}, known: {', '.join(_CUTS)}")
    return {side: share for axis in axes[strategy] for share in [ratio() / 2] for side in axis}


def draw_masked_frames(rng: np.random.Generator, num_frames: int, mode: str) -> np.ndarray:
    """Draws bool [T], True where the frame keeps its mask, for a frame mode of MaskSampler; at least one is True."""
    masked = np.ones(num_frames, bool)
    if mode == "ends_known":
        masked[0] = False
        if rng.random() < 0.5:
            masked[-1] = False
    elif mode == "random_known":
        masked = rng.random(num_frames) < 0.5
    elif mode == "both_known":
        masked[[0, -1]] = False
    elif mode != "all_masked":
        raise ValueError(f"unknown frame mode {mode!r}, known: {', '.join(_FRAME_MODES)}")
    if not masked.any():
        masked[rng.integers(num_frames)] = True
    return masked


def box_mask(box: Box, height: int, width: int) -> np.ndarray:
    """Returns uint8 [H,W,1]: 0 inside the box, 1 elsewhere."""
    mask = np.ones((height, width, 1), np.uint8)
    mask[box.top : box.bottom, box.left : box.right] = 0
    return mask


def _choose(rng: np.random.Generator, weights: dict[str, float]) -> str:
    names, values = zip(*weights.items(), strict=True)
    return str(rng.choice(names, p=np.array(values) / sum(values)))
