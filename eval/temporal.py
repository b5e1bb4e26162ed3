"""How generated pixels behave in time and at the border to the known ones, measured against the truth.

A value that does not exist (a single frame has no flicker, a frame without known pixels no border, a truth that stands
still no ratio to it) is nan here and null in a report, as in `eval.image_metrics`.
"""

from collections.abc import Callable, Iterator

import cv2
import numpy as np

from eval.image_metrics import check_frames, divide

Flow = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(first, second), uint8 [H,W,3] each -> float [H,W,2]: by how many pixels (dx, dy) each pixel of the first frame has
moved in the second."""

SCORES = ("flicker_ratio", "seam_ratio", "sharpness_ratio", "colour_shift", "warping_error", "warping_error_truth")
BAND = 8  # pixels beyond the border whose colour is compared
_SMALLEST_FLOW = 32  # side in pixels; OpenCV's estimator reads outside of much smaller frames


def dis_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Optical flow without weights, as `Flow` says: OpenCV's dense inverse search, preset medium.

    Source: Kroeger et al., Fast Optical Flow using Dense Inverse Search (2016).
    """
    height, width = first.shape[:2]
    below, right = (max(0, _SMALLEST_FLOW - side) for side in (height, width))
    grey = [
        cv2.copyMakeBorder(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), 0, below, 0, right, cv2.BORDER_REPLICATE)
        for frame in (first, second)
    ]
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)[:height, :width]


FLOWS: dict[str, Flow] = {"dis": dis_flow}
"""Flow estimators that need nothing but the frames, by the name to quote a warping error with."""


class TemporalScores:
    """Scores of the generated region of one clip, taken chunk by chunk in time order; between chunks one frame is kept.

    flow: estimates motion in the true frames; without one there is no warping error. band: pixels, see colour_shift.

    With y the output, x the truth, sums over all frames and channels:

    flicker_ratio: sum of |y(p,t+1) - y(p,t)| over pixels p generated in both frames, divided by the same of x. 1 is
        right; below 1 moves too little, 0 stands still.
    seam_ratio: sum of |y(p) - y(q)| over neighbours p generated, q known, divided by the same of x. 1 is right; more is
        a visible seam, less a smear.
    sharpness_ratio: sum of |y(p) - y(q)| over neighbours p, q both generated, divided by the same of x. 1 is right;
        less is blurred, more is noisy.
    colour_shift: |mean of y - x|, in levels of 0..255, of a channel in the band of generated pixels that have a known
        one at most `band` pixels to their left, right, top or bottom, these four apart; mean over channels, frames and
        the four, by their pixels. 0 is right.
    warping_error: see that function; mean over pairs of frames, along the motion of x, where that is visible. Right is
        warping_error_truth, the same of x, which is not 0: light changes and no flow is exact.
    """

    def __init__(self, flow: Flow | None = None, band: int = BAND):
        if band < 1:
            raise ValueError(f"the band must be at least 1 pixel wide, found {band}")
        self._flow, self._band = flow, band
        self._sums = {name: np.zeros(2) for name in SCORES}  # numerator and denominator
        self._last = None

    def update(self, truth: np.ndarray, output: np.ndarray, mask: np.ndarray) -> None:
        """Adds the next frames.

        truth, output: uint8 [T,H,W,3]; mask: [H,W,1] or [T,H,W,1], non-zero in the generated region. The seam is that
        of the output as it is: paste known pixels first where they count as pasted.
        Raises ValueError for shapes or dtypes that do not fit, also those of the frames before.
        """
        masks = check_frames(truth, output, mask)[..., 0]
        if self._last and self._last[0].shape != truth.shape[1:]:
            raise ValueError(f"frames {list(truth.shape[1:])} follow frames {list(self._last[0].shape)}")
        for frame in zip(truth, output, masks, strict=True):
            self._add_frame(*frame)
            if self._last:
                self._add_change(*self._last, *frame)
            self._last = frame
        if self._last:
            self._last = tuple(part.copy() for part in self._last)  # a view would keep the whole chunk

    def result(self) -> dict[str, float]:
        """The scores of the frames so far, by the names of SCORES."""
        return {name: float(divide(*sums)) for name, sums in self._sums.items()}

    def _add_frame(self, truth, output, mask):
        self._sums["seam_ratio"] += [_steps(frame, mask, np.not_equal) for frame in (output, truth)]
        self._sums["sharpness_ratio"] += [_steps(frame, mask, np.logical_and) for frame in (output, truth)]
        for band in _bands(mask, self._band):
            shift = np.sum(output[band], axis=0, dtype=np.int64) - np.sum(truth[band], axis=0, dtype=np.int64)
            self._sums["colour_shift"] += [np.sum(np.abs(shift)), truth[band].size]

    def _add_change(self, truth, output, mask, next_truth, next_output, next_mask):
        both = mask & next_mask
        self._sums["flicker_ratio"] += [
            _change(a[both], b[both]) for a, b in ((output, next_output), (truth, next_truth))
        ]
        if self._flow is None:
            return
        forward, backward = self._flow(truth, next_truth), self._flow(next_truth, truth)
        where = mask & visible(forward, backward)
        if where.any():
            self._sums["warping_error"] += [warping_error(output, next_output, forward, where), 1]
            self._sums["warping_error_truth"] += [warping_error(truth, next_truth, forward, where), 1]


def max_known_error(truth: np.ndarray, output: np.ndarray, mask: np.ndarray) -> float:
    """Largest |output - truth| of the pixels that were known, in levels of 0..255; 0 is right, nan if none was known.

    truth, output: uint8 [T,H,W,C], as a method returns them, nothing pasted; mask: [H,W,1] or [T,H,W,1], zero where
    known. Raises ValueError for shapes or dtypes that do not fit.
    """
    known = ~check_frames(truth, output, mask)[..., 0]
    return float(np.max(_distance(truth[known], output[known]))) if known.any() else float("nan")


def warping_error(first: np.ndarray, second: np.ndarray, forward: np.ndarray, where: np.ndarray) -> float:
    """Mean of (second(p + forward(p)) - first(p))^2 over the pixels p of a mask and the channels, values in [0, 1].

    first, second: uint8 [H,W,C]; forward: float [H,W,2], (dx, dy) in pixels; where: bool [H,W], not empty, only pixels
    that stay inside the frame, as `visible` finds them. Second is sampled bilinearly.
    Source: Lai et al., Learning Blind Video Temporal Consistency (2018); here of the generated pixels alone.
    """
    warped = _sample(second, *_targets(forward)[:, where])
    return float(np.mean(((warped - first[where]) / 255.0) ** 2))


def visible(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Pixels of a frame that are seen again in the next one, bool [H,W].

    forward, backward: float [H,W,2], flows f from the frame to the next and b back, (dx, dy) in pixels. A pixel p is
    left out where p + f lies outside the frame, where |f + b(p + f)|^2 > 0.01 (|f|^2 + |b(p + f)|^2) + 0.5 (occluded),
    and where |grad f|^2 > 0.01 |f|^2 + 0.002 (a boundary of motion). Source: Sundaram et al., Dense Point
    Trajectories by GPU-accelerated Large Displacement Optical Flow (2010).
    Raises ValueError for flows that are not [H,W,2] alike.
    """
    if forward.ndim != 3 or forward.shape[-1] != 2 or forward.shape != backward.shape:
        raise ValueError(f"two flows [H,W,2] are needed, found {list(forward.shape)} and {list(backward.shape)}")
    height, width = forward.shape[:2]
    columns, rows = targets = _targets(forward)
    seen = (columns >= 0) & (columns <= width - 1) & (rows >= 0) & (rows <= height - 1)
    there, back = forward[seen], _sample(backward, *targets[:, seen])
    seen[seen] = _squared(there + back) <= 0.01 * (_squared(there) + _squared(back)) + 0.5
    gradient = sum(_squared(np.diff(forward, axis=axis, append=forward.take([-1], axis))) for axis in (0, 1))
    return seen & (gradient <= 0.01 * _squared(forward) + 0.002)


def _distance(a, b):
    """|a - b| of uint8, in uint8."""
    return np.maximum(a, b) - np.minimum(a, b)


def _change(a, b):
    return np.sum(_distance(a, b), dtype=np.int64)


def _steps(frame, mask, chosen):
    """Sum of |difference| over horizontal and vertical neighbours, those whose two values of the mask are `chosen`."""
    beside = chosen(mask[:, 1:], mask[:, :-1])
    below = chosen(mask[1:], mask[:-1])
    return _change(frame[:, 1:][beside], frame[:, :-1][beside]) + _change(frame[1:][below], frame[:-1][below])


def _bands(mask: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """For each of four directions the pixels of a mask [H,W] with a pixel outside of it at most `width` further on."""
    known = (~mask).astype(np.uint8)
    line = np.ones((1, width + 1), np.uint8)
    for kernel in (line, line.T):
        for anchor in ((0, 0), (kernel.shape[1] - 1, kernel.shape[0] - 1)):
            yield mask & (cv2.dilate(known, kernel, anchor=anchor) > 0)


def _targets(forward):
    """Where the pixels of a frame go: (columns, rows) [2,H,W] of a flow [H,W,2]."""
    rows, columns = np.indices(forward.shape[:2])
    return np.stack([columns + forward[..., 0], rows + forward[..., 1]])


def _sample(image, columns, rows):
    """Bilinear values [K,C] of an image [H,W,C] at points inside of it; columns, rows: float [K]."""
    left, top = columns.astype(np.int64), rows.astype(np.int64)
    right, bottom = np.minimum(left + 1, image.shape[1] - 1), np.minimum(top + 1, image.shape[0] - 1)
    across, down = (columns - left)[:, None], (rows - top)[:, None]
    upper = (1 - across) * image[top, left] + across * image[top, right]
    lower = (1 - across) * image[bottom, left] + across * image[bottom, right]
    return (1 - down) * upper + down * lower


def _squared(vectors):
    return np.sum(vectors**2, axis=-1)
