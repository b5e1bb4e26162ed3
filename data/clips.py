"""From a video to a training clip: which frames, which crop, which global frames and references."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from data.images import resize
from data.masks import Box

SMALLEST_CROP = 0.4
FLIP_PROBABILITY = 0.5
GLOBAL_FITS = ("stretch", "pad")


class VideoInfo(NamedTuple):
    """What is known of a video before its pixels are read.

    height and width are those of an upright frame with square pixels; fps is the mean rate in frames per second.
    """

    num_frames: int
    fps: float
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class ClipPlan:
    """All random choices of one clip; nothing is decoded yet.

    indices: the clip's frames; global_indices: frames over the whole video. size: (height, width) to which whole frames
    are scaled; crop: the clip's rectangle in them; flip: mirror left and right. fps: of the clip, frames per second.
    reference_indices: further frames, cut as the clip is.
    """

    indices: tuple[int, ...]
    global_indices: tuple[int, ...]
    size: tuple[int, int]
    crop: Box
    flip: bool
    interval: int
    fps: float
    reference_indices: tuple[int, ...] = ()


def plan_clip(
    info: VideoInfo,
    rng: np.random.Generator,
    *,
    num_frames: int,
    bucket: tuple[int, int],
    global_frames: int,
    max_interval: int,
    references: int = 0,
    part: range | None = None,
) -> ClipPlan:
    """Draws a clip of num_frames frames of bucket = (height, width) pixels.

    The frame interval is uniform in 1..max_interval, as far as the video is long enough (`longest_interval`). The clip
    begins in `part`, by default anywhere, or earlier where it would not end in the video. The crop has the bucket's
    aspect; its side, relative to the largest that fits, is uniform between 1 and SMALLEST_CROP (random resized crop)
    but never so small that pixels would be invented, and its place is uniform; half of the clips are mirrored.
    References are any other frames of the video.
    """
    longest = max(1, longest_interval(info.num_frames, num_frames))
    interval = int(rng.integers(1, min(max_interval, longest) + 1))
    part = part or range(info.num_frames)
    last_start = max(0, info.num_frames - (num_frames - 1) * interval - 1)
    start = int(rng.integers(min(part.start, last_start), min(part.stop - 1, last_start) + 1))
    fit = max(bucket[0] / info.height, bucket[1] / info.width)  # scale at which the largest crop is the bucket
    zoom = rng.uniform(min(1.0, max(SMALLEST_CROP, fit)), 1.0)
    size = tuple(
        max(side, round(length * fit / zoom)) for side, length in zip(bucket, (info.height, info.width), strict=True)
    )
    top, left = (int(rng.integers(0, length - side + 1)) for length, side in zip(size, bucket, strict=True))
    indices = clip_indices(start, num_frames, interval, info.num_frames)
    return ClipPlan(
        indices=indices,
        global_indices=global_indices(info.num_frames, global_frames),
        size=size,
        crop=Box(top, top + bucket[0], left, left + bucket[1]),
        flip=bool(rng.random() < FLIP_PROBABILITY),
        interval=interval,
        fps=info.fps / interval,
        reference_indices=draw_references(rng, references, indices, info.num_frames),
    )


def longest_interval(video_frames: int, num_frames: int) -> int:
    """Returns the largest frame interval of a clip of num_frames frames of a video; 0 where it is too short for any."""
    return (video_frames - 1) // (num_frames - 1) if num_frames > 1 else video_frames


def clip_indices(start: int, num_frames: int, interval: int, video_frames: int) -> tuple[int, ...]:
    """Returns the frames start, start + interval, ...; past the end of a short video they run back and forth."""
    period = max(1, 2 * (video_frames - 1))
    steps = ((start + interval * step) % period for step in range(num_frames))
    return tuple(min(step, period - step) if video_frames > 1 else 0 for step in steps)


def global_indices(video_frames: int, global_frames: int) -> tuple[int, ...]:
    """Returns `global_frames` frames spread over the whole video, int(linspace(0, N-1, G)): M3DDM paper, section 3."""
    return tuple(int(index) for index in np.linspace(0, video_frames - 1, global_frames))


def draw_references(rng: np.random.Generator, count: int, clip: Sequence[int], video_frames: int) -> tuple[int, ...]:
    """Draws `count` different frames of a video, in order, that are not the clip's; as far as it has so many."""
    if not count:
        return ()
    others = sorted(set(range(video_frames)) - set(clip))
    frames = others if len(others) >= count else range(video_frames)
    return tuple(sorted(rng.choice(frames, count, replace=len(frames) < count).tolist()))


def fitted_size(height: int, width: int, size: int) -> tuple[int, int]:
    """The (height, width) of a rectangle whose longer side is scaled to `size`: what of a padded global frame shows it,
    from the top left. Halves are rounded up, as where patches of it are placed."""
    longer = max(height, width)
    return tuple(max(1, (2 * size * side + longer) // (2 * longer)) for side in (height, width))


def fit_square(frame: np.ndarray, size: int, fit: str) -> np.ndarray:
    """Scales uint8 [h,w,3] to [size,size,3]: stretched ("stretch"), or to `fitted_size` with black at the bottom or
    right ("pad"). Raises ValueError for another fit."""
    if fit not in GLOBAL_FITS:
        raise ValueError(f"global fit {fit!r} is unknown: one of {', '.join(GLOBAL_FITS)} is accepted")
    if fit == "stretch":
        return resize(frame, (size, size))
    height, width = fitted_size(*frame.shape[:2], size)
    return np.pad(resize(frame, (height, width)), ((0, size - height), (0, size - width), (0, 0)))


def cut_clip(
    plan: ClipPlan,
    read: Callable[[Sequence[int], tuple[int, int]], np.ndarray],
    known: Box,
    global_size: int,
    global_fit: str = "stretch",
) -> tuple[np.ndarray, np.ndarray]:
    """Reads the frames of a plan and cuts them.

    read: (indices, size) -> uint8 [n,h,w,3]. known: the rectangle of the clip that a source would have. The global
    frames show that rectangle alone, made a square (`fit_square`), as at inference they show the source alone: with
    more in them the network would learn to copy from them what a user's source does not hold.

    Returns (video uint8 [T+R,H,W,3], the clip's frames and then its references; global frames uint8 [G,S,S,3]).
    """
    shown = (*plan.indices, *plan.reference_indices)
    indices = sorted({*shown, *plan.global_indices})
    place = {index: position for position, index in enumerate(indices)}
    crop = plan.crop
    frames = read(indices, plan.size)[:, crop.top : crop.bottom, crop.left : crop.right]
    if plan.flip:
        frames = frames[:, :, ::-1]
    seen = frames[:, known.top : known.bottom, known.left : known.right]
    squares = {index: fit_square(seen[place[index]], global_size, global_fit) for index in set(plan.global_indices)}
    video = frames[[place[index] for index in shown]]
    return video, np.stack([squares[index] for index in plan.global_indices])
