"""Training masks: which part of a clip is to be generated.

A mask is uint8, 1 = generate, 0 = known. What is known is a rectangle (the source on its canvas), and on some frames
everything, as on the guide frames of a coarse-to-fine schedule. Strategies, ratios and frame modes are those of the
M3DDM paper, section 3.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

DIRECTIONS = ("top", "bottom", "left", "right")
MIN_SIDE = 4


class Box(NamedTuple):
    """A rectangle of pixels, ends exclusive."""

    top: int
    bottom: int
    left: int
    right: int


class Mask(NamedTuple):
    """One draw: `mask` uint8 [T,H,W,1] and `box`, the rectangle that a source would have on this canvas.

    `box` is what the global frames may show. Where everything is masked it is the rectangle that another strategy would
    have left; where every frame has its own rectangle it is the first frame's.
    """

    mask: np.ndarray
    box: Box


@dataclasses.dataclass(frozen=True)
class MaskSampler:
    """Draws masks; every probability is a weight relative to the others of its group.

    Strategies, in parts of a side of the frame, each axis and each draw with its own ratio uniform in
    [min_ratio, max_ratio]:
      four    all four sides; an axis gives `ratio` of its length, one half at each end
      single  one side, which gives `ratio` of its axis
      double  left and right, or top and bottom; `ratio` of the axis, one half at each end
      random  any non-empty subset of the four sides, each with its own `ratio / 2`
      all     the whole frame
    Frame modes: all_masked (the mask on every frame), ends_known (the first frame, or the first and the last, known
    whole), random_known (each frame known whole with probability 0.5). At least one frame is always masked.
    per_frame draws strategy and ratios anew for every frame instead of once a clip.

    Raises ValueError for negative weights, a group without weight, or ratios outside 0 < min <= max < 1.
    """

    four: float = 0.2
    single: float = 0.1
    double: float = 0.35
    random: float = 0.1
    all: float = 0.25
    min_ratio: float = 0.15
    max_ratio: float = 0.75
    all_masked: float = 0.3
    ends_known: float = 0.35
    random_known: float = 0.35
    per_frame: bool = False

    def __post_init__(self):
        for group in (self._strategies(), self._frame_modes()):
            if min(group.values()) < 0 or sum(group.values()) <= 0:
                raise ValueError(f"mask weights must be non-negative and not all zero, found {group}")
        if not 0 < self.min_ratio <= self.max_ratio < 1:
            raise ValueError(f"mask ratios must satisfy 0 < min <= max < 1, found {self.min_ratio}, {self.max_ratio}")

    def _strategies(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("four", "single", "double", "random", "all")}

    def _frame_modes(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("all_masked", "ends_known", "random_known")}

    def __call__(self, rng: np.random.Generator, num_frames: int, height: int, width: int) -> Mask:
        """Draws one Mask for a clip of num_frames frames; raises ValueError for a side shorter than MIN_SIDE."""
        if num_frames < 1 or min(height, width) < MIN_SIDE:
            raise ValueError(
                f"a mask needs at least 1 frame of {MIN_SIDE}x{MIN_SIDE} pixels, found {num_frames} of {height}x{width}"
            )
        draws = [self._draw_frame(rng, height, width) for _ in range(num_frames if self.per_frame else 1)]
        frames = np.stack([mask for mask, _ in draws])
        masked = draw_masked_frames(rng, num_frames, _choose(rng, self._frame_modes()))
        return Mask(frames * masked[:, None, None, None].astype(np.uint8), draws[0][1])

    def _draw_frame(self, rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, Box]:
        strategy = _choose(rng, self._strategies())
        if strategy == "all":
            kept = {name: weight for name, weight in self._strategies().items() if name != "all"}
            hidden = _choose(rng, kept) if sum(kept.values()) > 0 else "four"
            return np.ones((height, width, 1), np.uint8), self._draw_box(rng, hidden, height, width)
        box = self._draw_box(rng, strategy, height, width)
        return box_mask(box, height, width), box

    def _draw_box(self, rng: np.random.Generator, strategy: str, height: int, width: int) -> Box:
        lengths = {"top": height, "bottom": height, "left": width, "right": width}
        shares = draw_shares(rng, strategy, self.min_ratio, self.max_ratio)
        cut = {side: max(1, int(lengths[side] * shares[side])) if side in shares else 0 for side in DIRECTIONS}
        return Box(cut["top"], height - cut["bottom"], cut["left"], width - cut["right"])


def draw_shares(rng: np.random.Generator, strategy: str, min_ratio: float, max_ratio: float) -> dict[str, float]:
    """Draws side -> part of that side's axis to generate, for a strategy of MaskSampler other than "all"."""

    def ratio() -> float:
        return rng.uniform(min_ratio, max_ratio)

    if strategy == "single":
        return {DIRECTIONS[rng.integers(4)]: ratio()}
    if strategy == "random":
        subset = rng.integers(1, 16)
        return {side: ratio() / 2 for bit, side in enumerate(DIRECTIONS) if subset >> bit & 1}
    axes = [DIRECTIONS[:2], DIRECTIONS[2:]]
    if strategy == "double":
        axes = [axes[rng.integers(2)]]
    elif strategy != "four":
        raise ValueError(f"unknown mask strategy {strategy!r}, known: four, single, double, random")
    return {side: share for axis in axes for share in [ratio() / 2] for side in axis}


def draw_masked_frames(rng: np.random.Generator, num_frames: int, mode: str) -> np.ndarray:
    """Draws bool [T], True where the frame keeps its mask, for a frame mode of MaskSampler; at least one is True."""
    masked = np.ones(num_frames, bool)
    if mode == "ends_known":
        masked[0] = False
        if rng.random() < 0.5:
            masked[-1] = False
    elif mode == "random_known":
        masked = rng.random(num_frames) < 0.5
    elif mode != "all_masked":
        raise ValueError(f"unknown frame mode {mode!r}, known: all_masked, ends_known, random_known")
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
