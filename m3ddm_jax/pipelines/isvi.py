"""Outpainting by real pixels: gradients are carried along flow from frames that saw a place to those that did not.

Source: ISVI (Zhang et al., CVPR 2022) and FGVC (Gao et al., ECCV 2020), with classical parts where they have networks:
DIS flow, continued by the camera's motion and a membrane over what differs from it, and a blur where nothing leads.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m3ddm_jax.flow.least_squares import Edges, differences
from m3ddm_jax.flow.poisson import blend, gradient_mask, unresolved
from m3ddm_jax.flow.propagation import propagate
from m3ddm_jax.flow.region_fill import fill_laplace
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines.compositing import match_seam, spread
from m3ddm_jax.pipelines.options import CheckedSettings
from m3ddm_jax.pipelines.work_canvas import WorkCanvas, known_box
from m3ddm_jax.types import FramesTHWC
from m3ddm_jax.video import FrameSource

_MARGIN = 4  # pixels at the edge of a frame whose flow is not trusted
_REDUCTION = 4  # pixels a cell in which flow beyond a frame is smoothed
_GRID = 8  # pixels between those whose flow tells the camera's motion
_MIN_PIXELS = 16  # on the shorter side of a frame, of which OpenCV's DIS can tell flow
_AT_A_TIME = 4  # frames that are blended together


@dataclasses.dataclass(frozen=True)
class Settings(CheckedSettings):
    """How real pixels are carried.

    lines: shorter side, in pixels, at which they are; a smaller canvas keeps its size.
    megabytes: of gradients that a window of frames has; half of a window overlaps with the ones beside it. A process
      holds about seven times as many.
    max_error: pixels by which flow there and back may stray in a step from one frame to the next.
    """

    lines: int = 480
    megabytes: int = 384
    max_error: float = 2.0


class Isvi:
    """The `isvi` Outpainter without networks.

    model: "none", there being no other. settings: those that differ from `Settings`, by name.
    Raises ValueError for another model, or settings that do not fit.
    """

    def __init__(self, model: str = "none", *, settings: Mapping[str, Any] | None = None):
        if model != "none":
            raise ValueError(f"isvi works without networks, by --model=none: found {model!r}")
        self._settings = Settings.make(settings or {})

    def __call__(self, source: FrameSource, canvas: Canvas, rng: None = None) -> Iterator[FramesTHWC]:
        """Yields canvas frames, uint8 [n, H, W, 3], in time order; the caller pastes the source's own pixels."""
        start = 0
        for frames, _, work in self.carry(source, canvas):
            originals = source[start : start + len(frames)]
            start += len(frames)
            yield match_seam(work.to_canvas(frames, originals), originals, canvas)

    def carry(self, source: FrameSource, canvas: Canvas) -> Iterator[tuple[np.ndarray, np.ndarray, WorkCanvas]]:
        """Yields frames of the work canvas, float32 [n, h, w, 3] in 0..255, how far each pixel is a real one,
        float32 [n, h, w, 1] in 0..1 (1 known, 0 made up), and the work canvas.

        Raises ValueError where nothing of the source is left on the work canvas.
        """
        work = WorkCanvas(canvas, self._settings.lines, multiple=2)
        box = known_box(work)
        bytes_per_frame = work.height * work.width * 6 * 4
        size = max(2, (self._settings.megabytes << 20) // bytes_per_frame)
        for window, emitted in plan_windows(len(source), size):
            known = work.place(source[window.start : window.stop])[:, *box.box]
            frames, confidence = _fill(known, box, self._settings.max_error)
            kept = slice(emitted.start - window.start, emitted.stop - window.start)
            yield frames[kept], confidence[kept], work


def plan_windows(num_frames: int, size: int) -> list[tuple[range, range]]:
    """Windows of at most `size` frames that overlap by half, and the frames amid each that are taken from it."""
    starts = range(0, max(1, num_frames - size + size // 2), max(1, size // 2))
    windows = [range(start, min(start + size, num_frames)) for start in starts]
    borders = [(after.start + before.stop) // 2 for before, after in itertools.pairwise(windows)]
    taken = itertools.starmap(range, itertools.pairwise([0, *borders, num_frames]))
    return list(zip(windows, taken, strict=True))


def _fill(known: FramesTHWC, box: Canvas, max_error: float) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a canvas whose box is known, float32 [T, h, w, 3] in 0..255, and their confidence [T, h, w, 1]."""
    mask = box.mask()
    blank = np.zeros((len(known), *mask.shape[:2], 3), np.uint8)
    frames = spread(box.paste(blank, known), mask)
    if len(known) < 2 or min(known.shape[1:3]) < _MIN_PIXELS or not mask.any():
        return frames, np.broadcast_to(1.0 - mask, (*frames.shape[:3], 1)).astype(np.float32)
    forward, backward = _flows(known, box)
    missing = np.broadcast_to(gradient_mask(mask), (*frames.shape[:3], 1))
    gradients = rearrange(jnp.stack(differences(frames)), "way t h w c -> t h w (way c)")
    carried = propagate(gradients[None], missing[None], forward[None], backward[None], max_error)
    del gradients, forward, backward
    values, unknown, confidence = (np.asarray(x[0]) for x in carried)
    for start in range(0, len(frames), _AT_A_TIME):
        part = slice(max(0, min(start, len(frames) - _AT_A_TIME)), start + _AT_A_TIME)
        frames[part] = _blend(frames[part], mask, values[part], unknown[part])
    return frames, np.where(mask > 0, confidence, 1)


def _blend(frames: np.ndarray, mask: np.ndarray, gradients: np.ndarray, missing: np.ndarray) -> np.ndarray:
    right, down = rearrange(gradients, "t h w (way c) -> way t h w c", way=2)
    blended = np.clip(blend(frames, mask[None], Edges(right, down), missing), 0, 255)
    lost = np.asarray(unresolved(np.broadcast_to(mask, missing.shape), missing)).astype(np.uint8)
    return np.concatenate([spread(frame[None], holes) for frame, holes in zip(blended, lost, strict=True)])


def _flows(known: FramesTHWC, box: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Flow from each frame to the next and back, float32 [T-1, h, w, 2] on the whole canvas."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in known]
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    pairs = list(itertools.pairwise(grey))
    return (
        np.stack([_complete(estimator.calc(before, after, None), box) for before, after in pairs]),
        np.stack([_complete(estimator.calc(after, before, None), box) for before, after in pairs]),
    )


def _complete(flow: np.ndarray, box: Canvas) -> np.ndarray:
    """Flow [h, w, 2] of a canvas's box on the whole of it: the camera's motion, and a membrane over what differs."""
    inset = max(0, min(_MARGIN, (min(flow.shape[:2]) - _MIN_PIXELS) // 2))
    inner = flow[inset : flow.shape[0] - inset, inset : flow.shape[1] - inset]
    rows, columns = np.mgrid[: box.height, : box.width].astype(np.float32)
    place = np.stack([columns, rows], -1)
    top, left = box.top + inset, box.left + inset
    known = (slice(top, top + inner.shape[0]), slice(left, left + inner.shape[1]))
    camera = _camera_motion(place[known], inner, place)
    rest, weight = np.zeros((box.height, box.width, 2), np.float32), np.zeros((box.height, box.width), np.float32)
    rest[known], weight[known] = inner - camera[known], 1
    cells = (-(-box.width // _REDUCTION), -(-box.height // _REDUCTION))
    rest, weight = (cv2.resize(x, cells, interpolation=cv2.INTER_AREA) for x in (rest, weight))
    mean = rest / np.maximum(weight, 1e-6)[..., None]
    filled = np.asarray(fill_laplace(mean[None], weight[None, ..., None] == 0))[0]
    completed = camera + cv2.resize(filled, (box.width, box.height), interpolation=cv2.INTER_LINEAR)
    completed[known] = inner
    return completed


def _camera_motion(place: np.ndarray, flow: np.ndarray, everywhere: np.ndarray) -> np.ndarray:
    """The flow that the similarity nearest to a known flow has everywhere; zero where there is none."""
    start = place[::_GRID, ::_GRID].reshape(-1, 2)
    end = start + flow[::_GRID, ::_GRID].reshape(-1, 2)
    motion, _ = cv2.estimateAffinePartial2D(start, end, method=cv2.RANSAC, ransacReprojThreshold=0.5)
    if motion is None:
        return np.zeros_like(everywhere)
    return (everywhere @ motion[:, :2].T + motion[:, 2] - everywhere).astype(np.float32)
