"""From a video to a training clip: which frames, which crop, which global frames."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from data.decode import VideoInfo
from data.images import resize
from data.masks import Box

SMALLEST_CROP = 0.4
FLIP_PROBABILITY = 0.5


@dataclasses.dataclass(frozen=True)
class ClipPlan:
    """All random choices of one clip; nothing is decoded yet.

    indices: the clip's frames; global_indices: frames over the whole video. size: (height, width) to which whole frames
    are scaled; crop: the clip's rectangle in them; flip: mirror left and right. fps: of the clip, frames per second.
    """

    indices: tuple[int, ...]
    global_indices: tuple[int, ...]
    size: tuple[int, int]
    crop: Box
    flip: bool
    interval: int
    fps: float


def plan_clip(
    info: VideoInfo,
    rng: np.random.Generator,
    *,
    num_frames: int,
    bucket: tuple[int, int],
    global_frames: int,
    max_interval: int,
) -> ClipPlan:
    """Draws a clip of num_frames frames of bucket = (height, width) pixels.

    The frame interval is uniform in 1..max_interval, as far as the video is long enough. The crop has the bucket's
    aspect; its side, relative to the largest that fits, is uniform between 1 and SMALLEST_CROP (random resized crop)
    but never so small that pixels would be invented, and its place is uniform; half of the clips are mirrored.
    """
    longest = max(1, (info.num_frames - 1) // max(1, num_frames - 1))
    interval = int(rng.integers(1, min(max_interval, longest) + 1))
    span = (num_frames - 1) * interval + 1
    start = int(rng.integers(0, max(0, info.num_frames - span) + 1))
    fit = max(bucket[0] / info.height, bucket[1] / info.width)  # scale at which the largest crop is the bucket
    zoom = rng.uniform(min(1.0, max(SMALLEST_CROP, fit)), 1.0)
    size = tuple(
        max(side, round(length * fit / zoom)) for side, length in zip(bucket, (info.height, info.width), strict=True)
    )
    top, left = (int(rng.integers(0, length - side + 1)) for length, side in zip(size, bucket, strict=True))
    return ClipPlan(
        indices=clip_indices(start, num_frames, interval, info.num_frames),
        global_indices=global_indices(info.num_frames, global_frames),
        size=size,
        crop=Box(top, top + bucket[0], left, left + bucket[1]),
        flip=bool(rng.random() < FLIP_PROBABILITY),
        interval=interval,
        fps=info.fps / interval,
    )


def clip_indices(start: int, num_frames: int, interval: int, video_frames: int) -> tuple[int, ...]:
    """Returns the frames start, start + interval, ...; past the end of a short video they run back and forth."""
    period = max(1, 2 * (video_frames - 1))
    steps = ((start + interval * step) % period for step in range(num_frames))
    return tuple(min(step, period - step) if video_frames > 1 else 0 for step in steps)


def global_indices(video_frames: int, global_frames: int) -> tuple[int, ...]:
    """Returns `global_frames` frames spread over the whole video, int(linspace(0, N-1, G)): M3DDM paper, section 3."""
    return tuple(int(index) for index in np.linspace(0, video_frames - 1, global_frames))


def cut_clip(
    plan: ClipPlan, read: Callable[[Sequence[int], tuple[int, int]], np.ndarray], known: Box, global_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Reads the frames of a plan and cuts them.

    read: (indices, size) -> uint8 [n,h,w,3]. known: the rectangle of the clip that a source would have. The global
    frames show that rectangle alone, stretched to a square, as at inference they show the source alone: with more in
    them the network would learn to copy from them what a user's source does not hold.

    Returns (video uint8 [T,H,W,3], global frames uint8 [G,S,S,3]).
    """
    indices = sorted({*plan.indices, *plan.global_indices})
    place = {index: position for position, index in enumerate(indices)}
    crop = plan.crop
    frames = read(indices, plan.size)[:, crop.top : crop.bottom, crop.left : crop.right]
    if plan.flip:
        frames = frames[:, :, ::-1]
    seen = frames[:, known.top : known.bottom, known.left : known.right]
    squares = {index: resize(seen[place[index]], (global_size, global_size)) for index in set(plan.global_indices)}
    video = frames[[place[index] for index in plan.indices]]
    return video, np.stack([squares[index] for index in plan.global_indices])
