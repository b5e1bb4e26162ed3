"""Flow between the frames of a shot, on the whole of a canvas: who estimates it, and who completes it.

Source: ISVI (Zhang et al., CVPR 2022) with RAFT and IGFC. The classical parts, which need no weights, are OpenCV's DIS,
and the camera's motion with a membrane over what differs from it.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import cv2
import jax
import numpy as np

from m3ddm_jax.flow.region_fill import fill_laplace
from m3ddm_jax.models.igfc import IGFC
from m3ddm_jax.models.raft import RAFT
from m3ddm_jax.pipelines.compositing import resize
from m3ddm_jax.pipelines.work_clip import WorkClip
from m3ddm_jax.types import Variables

_MARGIN = 4  # pixels at the edge of a frame whose flow is not trusted
_OBJECT_MARGIN = 8  # pixels around a mask inside of the frame, as published
_REDUCTION = 4  # pixels a cell in which flow beyond what is known is smoothed
_TOLERANCE = 1e-3  # of that: hundredths of a pixel
_GRID = 8  # pixels between those whose flow tells the camera's motion
_MIN_PIXELS = 16  # on the shorter side of a frame, of which OpenCV's DIS can tell flow
_ITERATIONS = 20  # of RAFT, as published
_DOUBLED_BELOW = 350  # lines; frames with fewer are doubled for RAFT, as published
_MULTIPLE = 8  # of pixels that IGFC takes


class Flows(NamedTuple):
    """From each of T frames to the next, and from the next back: float32 [T-1, h, w, 2], (dx, dy) in pixels."""

    forward: np.ndarray
    backward: np.ndarray


class Estimator(Protocol):
    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Flow float32 [h, w, 2] from a frame, uint8 [h, w, 3], to another; NaN where none can be told."""


class Completer(Protocol):
    """Tells flow where it is not known, which NaN says.

    offsets: which flows of the sequence `refine` looks at, counted from the one that it refines.
    """

    offsets: Sequence[int]

    def fill(self, flow: np.ndarray) -> np.ndarray:
        """A flow [h, w, 2] with something smooth in place of NaN, from itself alone."""

    def refine(self, filled: np.ndarray, unknown: np.ndarray, shifts: Sequence[int]) -> np.ndarray:
        """The middle one of filled flows [k, h, w, 2], better where it was unknown: bool [k, h, w, 1].

        shifts: by how many frames the middle is later than each.
        """


class Dis:
    """The `Estimator` of OpenCV: dense inverse search (Kroeger et al., ECCV 2016)."""

    def __init__(self):
        self._dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        if min(before.shape[:2]) < _MIN_PIXELS:
            return np.full((*before.shape[:2], 2), np.nan, np.float32)
        return self._dis.calc(*(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after)), None)


class Raft:
    """The `Estimator` of a RAFT; small frames are doubled for it. Raises ValueError for frames that are too small."""

    def __init__(self, module: RAFT, variables: Variables):
        def flow(variables, before, after):
            return module.apply(variables, before, after, iterations=_ITERATIONS, method="flow")

        self._variables, self._flow = jax.device_put(variables), jax.jit(flow)

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        height, width = before.shape[:2]
        scale = 2 if height < _DOUBLED_BELOW else 1
        size = (scale * width, scale * height)
        frames = (cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)[None] for frame in (before, after))
        flow = np.asarray(self._flow(self._variables, *frames))
        return resize(flow, height, width)[0] / scale


class CameraMotion:
    """The `Completer` without a network: the similarity nearest to what is known, and a membrane over the rest."""

    offsets = (0,)

    def fill(self, flow: np.ndarray) -> np.ndarray:
        known = np.isfinite(flow).all(-1)
        if not known.any():
            return flow
        height, width = known.shape
        camera = camera_motion(flow, known)
        rest = np.where(known[..., None], flow - camera, 0).astype(np.float32)
        cells = (-(-width // _REDUCTION), -(-height // _REDUCTION))
        rest, weight = (cv2.resize(x, cells, interpolation=cv2.INTER_AREA) for x in (rest, known.astype(np.float32)))
        mean = rest / np.maximum(weight, 1e-6)[..., None]
        smooth = np.asarray(fill_laplace(mean[None], weight[None, ..., None] == 0, _TOLERANCE))[0]
        continued = camera + cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.where(known[..., None], flow, continued).astype(np.float32)

    def refine(self, filled: np.ndarray, unknown: np.ndarray, shifts: Sequence[int]) -> np.ndarray:
        return filled[0]


class Igfc:
    """The `Completer` of an IGFC, over flows that a membrane fills first."""

    def __init__(self, module: IGFC, variables: Variables):
        middle = module.num_frames // 2
        self.offsets = [module.interval * (place - middle) for place in range(module.num_frames)]
        self._variables, self._apply = jax.device_put(variables), jax.jit(module.apply)

    def fill(self, flow: np.ndarray) -> np.ndarray:
        unknown = ~np.isfinite(flow).all(-1, keepdims=True)
        if unknown.all():
            return flow
        return np.asarray(fill_laplace(np.where(unknown, 0, flow)[None], unknown[None]))[0]

    def refine(self, filled: np.ndarray, unknown: np.ndarray, shifts: Sequence[int]) -> np.ndarray:
        _, height, width, _ = filled.shape
        middle = len(filled) // 2
        if not (unknown[middle].any() and np.isfinite(filled).all()):
            return filled[middle]
        beyond = [(0, 0), (0, -height % _MULTIPLE), (0, -width % _MULTIPLE), (0, 0)]
        flows, masks = (np.pad(x, beyond, "edge")[None] for x in (filled, unknown.astype(np.float32)))
        redrawn, *_ = self._apply(self._variables, flows, masks, np.float32(shifts))
        return np.where(unknown[middle], np.asarray(redrawn)[0, :height, :width], filled[middle])


class ShotFlows:
    """Completed flows between the frames of one shot of a clip; each is estimated and completed once."""

    def __init__(self, clip: WorkClip, shot: range, estimate: Estimator, complete: Completer):
        self._clip, self._shot, self._estimate, self._completer = clip, shot, estimate, complete
        self._filled: dict[tuple[int, bool], tuple[np.ndarray, np.ndarray]] = {}
        self._completed: dict[tuple[int, bool], np.ndarray] = {}

    def between(self, frames: range) -> Flows:
        """The flows between frames of the shot, at least two of them."""
        pairs = list(itertools.product(frames[:-1], (False, True)))
        for pair in pairs:
            if pair not in self._completed:
                self._completed[pair] = self._complete(*pair)
        return Flows(*(np.stack([self._completed[pair] for pair in pairs[back::2]]) for back in (False, True)))

    def forget(self, start: int) -> None:
        """Give up the flows before that of frame `start`."""
        reach = max(self._completer.offsets)
        for kept, first in ((self._completed, start), (self._filled, start - reach)):
            for pair in [pair for pair in kept if pair[0] < first]:
                del kept[pair]

    def _complete(self, index: int, back: bool) -> np.ndarray:
        # Backward flows are a sequence that goes back in time: the next one is that of the frame before.
        ahead = [-offset if back else offset for offset in self._completer.offsets]
        first, last = self._shot[0], self._shot[-1] - 1
        places = [_reflect(index + offset, first, last) for offset in ahead]
        filled, unknown = (np.stack(x) for x in zip(*(self._fill(place, back) for place in places), strict=True))
        return self._completer.refine(filled, unknown, [(place - index if back else index - place) for place in places])

    def _fill(self, index: int, back: bool) -> tuple[np.ndarray, np.ndarray]:
        pair = (index, back)
        if pair not in self._filled:
            before, after = self._clip.frame(index), self._clip.frame(index + 1)
            start, end = (after, before) if back else (before, after)
            flow = np.full((*start.mask.shape[:2], 2), np.nan, np.float32)
            box = self._clip.box
            flow[box] = self._estimate(np.ascontiguousarray(start.seen[box]), np.ascontiguousarray(end.seen[box]))
            flow[_untrusted(start.mask, box)] = np.nan
            unknown = ~np.isfinite(flow).all(-1, keepdims=True)
            self._filled[pair] = self._completer.fill(np.where(unknown, np.nan, flow)), unknown
        return self._filled[pair]


def _reflect(index: int, first: int, last: int) -> int:
    """An index within first to last, mirrored at either end, as often as it takes."""
    if first == last:
        return first
    period = 2 * (last - first)
    place = (index - first) % period
    return first + min(place, period - place)


def _untrusted(mask: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
    """Where flow is not to be trusted, bool [h, w]: under the mask [h, w, 1] and near to it, and beyond the box."""
    hidden = cv2.dilate(mask[..., 0][box], _cross(), iterations=_OBJECT_MARGIN)
    inset = max(0, min(_MARGIN, (min(hidden.shape) - _MIN_PIXELS) // 2))
    trusted = np.zeros(mask.shape[:2], bool)
    trusted[box][inset : hidden.shape[0] - inset, inset : hidden.shape[1] - inset] = True
    trusted[box] &= hidden == 0
    return ~trusted


def _cross() -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def camera_motion(flow: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The flow [h, w, 2] that the similarity nearest to a known flow has everywhere; zero where there is none."""
    place = np.stack(np.meshgrid(*(np.arange(side, dtype=np.float32) for side in flow.shape[1::-1])), -1)
    there = known[::_GRID, ::_GRID]
    start = place[::_GRID, ::_GRID][there]
    end = start + flow[::_GRID, ::_GRID][there]
    motion = None
    if len(start) > 1:
        motion, _ = cv2.estimateAffinePartial2D(start, end, method=cv2.RANSAC, ransacReprojThreshold=0.5)
    if motion is None:
        return np.zeros_like(place)
    return (place @ motion[:, :2].T + motion[:, 2] - place).astype(np.float32)
