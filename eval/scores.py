"""The scores of one clip, taken chunk by chunk, and how clips, regions and seeds are summed up."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from eval.clips import View
from eval.image_metrics import FrameScores, mean_of_existing, score_frames, summarize
from eval.lpips import FrameLPIPS
from eval.protocol import Preset, middle_square
from eval.regions import MaskReader
from eval.temporal import TemporalScores, dis_flow, max_known_error
from m3ddm_jax.video import FrameSink

CHUNK = 16  # frames of a clip that are held at a time
AREAS = ("whole", "region")
_FRAME_FIELDS = [field.name for field in dataclasses.fields(FrameScores)]
_PICTURE_LINES = 144
_HIDDEN = 128  # grey of what a picture's source does not show
_BLUR_SIGMA, _BLUR_RADIUS = 5, 20


@dataclasses.dataclass(frozen=True)
class Pair:
    """A clip to score: its truth, consecutive chunks of what came out for it, and the mask of what was generated."""

    name: str
    truth: View
    chunks: Iterator[np.ndarray]
    masks: MaskReader


@dataclasses.dataclass(frozen=True)
class ClipScores:
    """Scores of one clip.

    per_frame: float64 [T] each: the fields of FrameScores, whole_bmse, and with LPIPS whole_lpips and region_lpips.
    motion: the names of temporal.SCORES, and known_error. features: float32 [D] of "truth" and "output", or nothing.
    size: (height, width). picture: uint8 [h,w,3], the middle frame's source on the canvas, output and truth abreast.
    """

    per_frame: dict[str, np.ndarray]
    motion: dict[str, float]
    features: dict[str, np.ndarray]
    size: tuple[int, int]
    picture: np.ndarray


def score_clip(
    pair: Pair, preset: Preset, lpips: FrameLPIPS | None, numbers: Sequence[int], sink: FrameSink | None = None
) -> tuple[ClipScores, dict[str, np.ndarray]]:
    """Scores frames as they come; returns the scores, still without features, and the frames to take those of.

    numbers: which frames of "truth" and "output" are returned, uint8 [len(numbers),H,W,3] each. A sink gets the frames
    that were scored.
    Raises ValueError where not as many frames come as the truth has, and for frames of another size or kind, such as
    floating-point ones that hold nan.
    """
    length = len(pair.truth)
    clip = _Clip(preset, lpips, sorted({*numbers, length // 2}))
    done = 0
    for chunk in pair.chunks:
        stop = done + len(chunk)
        if stop > length:
            raise ValueError(f"{pair.name}: more frames came out than the {length} of its truth")
        try:
            output = clip.update(done, pair.truth[done:stop], chunk, pair.masks(done, stop))
        except ValueError as error:
            raise ValueError(f"{pair.name}, counted from frame {done}: {error}") from None
        if sink is not None:
            sink.write(output)
        done = stop
    if done != length:
        raise ValueError(f"{pair.name}: {done} frames came out for {length}")
    truth, output, mask = clip.shown[length // 2]
    size = (pair.truth.height, pair.truth.width)
    scores = ClipScores(clip.per_frame(), clip.motion(), {}, size, _picture(truth, output, mask))
    sampled = {
        side: np.stack([clip.shown[i][place] for i in numbers]) if len(numbers) else np.empty(0, np.uint8)
        for place, side in enumerate(("truth", "output"))
    }
    return scores, sampled


class _Clip:
    """What is known of a clip so far; `shown` has (truth, output, mask) of the frames that are asked for."""

    def __init__(self, preset: Preset, lpips: FrameLPIPS | None, wanted: Sequence[int]):
        self._preset, self._lpips, self._wanted = preset, lpips, set(wanted)
        self._temporal, self._known_error = TemporalScores(dis_flow), np.nan
        self._parts: list[dict[str, np.ndarray]] = []
        self.shown: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def update(self, start: int, truth: np.ndarray, made: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Adds frames from number `start` on; returns them as they were scored."""
        self._known_error = np.fmax(self._known_error, max_known_error(truth, made, mask))
        output = np.where(mask != 0, made, truth) if self._preset.paste else made
        self._temporal.update(truth, output, mask)
        self._parts.append(self._score(truth, output, mask))
        masks = np.broadcast_to(mask, (*truth.shape[:3], 1))
        for i in self._wanted & set(range(start, start + len(truth))):
            self.shown[i] = tuple(frames[i - start].copy() for frames in (truth, output, masks))
        return output

    def _score(self, truth: np.ndarray, output: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        preset = self._preset
        if preset.view:
            masks = mask[None] if mask.ndim == 3 else mask
            truth, output = (middle_square(frames, preset.view) for frames in (truth, output))
            mask = (middle_square(255 * (masks != 0).astype(np.uint8), preset.view) >= 128).astype(np.uint8)
            mask = mask[0] if len(mask) == 1 else mask
        found = dataclasses.asdict(score_frames(truth, output, mask, ssim=preset.ssim))
        found |= {name: metric(truth, output, mask) for name, metric in FRAME_METRICS.items()}
        if self._lpips:
            whole, region = self._lpips(truth, output, mask)
            if preset.lpips == "map":
                whole = self._lpips(truth, output, np.ones((*truth.shape[1:3], 1), np.uint8))[1]
            found |= {"whole_lpips": whole, "region_lpips": region}
        return found

    def per_frame(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}

    def motion(self) -> dict[str, float]:
        return {**self._temporal.result(), "known_error": float(self._known_error)}


def blur_error(frames: np.ndarray) -> np.ndarray:
    """Mean squared difference to its own blur of each frame, values in [0, 1]; low is blurred already. float64 [T].

    frames: uint8 [T,H,W,3]. The blur is Gaussian, sigma 5, over rows, columns and, as in M3DDM+'s code, channels.
    """
    kernel = cv2.getGaussianKernel(2 * _BLUR_RADIUS + 1, _BLUR_SIGMA)
    channels = np.zeros((3, 3))
    for channel in range(3):
        for offset, weight in enumerate(kernel[:, 0], start=channel - _BLUR_RADIUS):
            place = offset % 6  # mirrored at both ends: 0 1 2 2 1 0 0 1 ...
            channels[channel, min(place, 5 - place)] += weight
    errors = []
    for frame in frames:
        values = frame.astype(np.float32) / 255
        blurred = cv2.sepFilter2D(values, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT) @ channels.T
        errors.append(np.mean((values - blurred) ** 2))
    return np.array(errors, np.float64)


FRAME_METRICS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "whole_bmse": lambda truth, output, mask: blur_error(output),
}
"""AREA_NAME, the area one of AREAS -> (truth, output uint8 [n,H,W,3], mask [H,W,1] or [n,H,W,1]) -> float64 [n]. A new
metric of single frames is one file and one row; its mean over frames is in reports."""


def _picture(truth: np.ndarray, output: np.ndarray, mask: np.ndarray) -> np.ndarray:
    source = np.where(mask != 0, np.uint8(_HIDDEN), truth)
    height, width = truth.shape[:2]
    lines = min(_PICTURE_LINES, height)
    size = (max(1, round(width * lines / height)), lines)
    gap = np.full((lines, 4, 3), 255, np.uint8)
    small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in (source, output, truth)]
    return np.concatenate([small[0], gap, small[1], gap, small[2]], axis=1)


def clip_summary(scores: ClipScores) -> dict[str, dict[str, float]]:
    """{"whole", "region", "motion"} -> {metric: value}; nan for what does not exist."""
    summary = summarize(FrameScores(*(scores.per_frame[name] for name in _FRAME_FIELDS)))
    for name, values in scores.per_frame.items():
        if name not in _FRAME_FIELDS:
            area, metric = name.split("_", 1)
            summary[area][metric] = mean_of_existing(values)
    return {**summary, "motion": scores.motion}


def mean_scores(scores: Sequence[dict[str, Any]], weights: Sequence[float] | None = None) -> dict[str, Any]:
    """Mean of nested dicts of numbers, each number over those that have it; nan where none has."""
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)

    def mean(values):
        if isinstance(values[0], dict):
            return {name: mean([value[name] for value in values]) for name in values[0]}
        existing = ~np.isnan(values)
        return float(np.average(np.asarray(values)[existing], weights=weights[existing])) if existing.any() else np.nan

    return mean(list(scores))


def deviation(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Standard deviation (over n - 1) of nested dicts of numbers, number by number; nan where one has none."""

    def spread(values):
        if isinstance(values[0], dict):
            return {name: spread([value[name] for value in values]) for name in values[0]}
        return float(np.std(values, ddof=1))

    return spread(list(scores))
