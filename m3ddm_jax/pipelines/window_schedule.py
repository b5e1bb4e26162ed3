"""In which order the frames of a long video are made: levels from coarse to fine, and the windows of each.

A level makes every s-th frame, s being its stride. A frame that an earlier window has made is a guide: the window sees
it whole, and writes only what is not made yet.
"""

import dataclasses
import itertools
from collections.abc import Sequence

WINDOW = 16
STRIDES = (15, 5, 1)


@dataclasses.dataclass(frozen=True)
class Window:
    """Frames that are sampled together, in time order.

    stride: of its level. frames: indices into the video. guides: which of them are made already when the window is
    sampled. writes: which of them the window makes.
    """

    stride: int
    frames: tuple[int, ...]
    guides: tuple[bool, ...]
    writes: tuple[bool, ...]


Level = list[list[Window]]
"""Stages that follow one another; the windows of one stage do not depend on each other and can be one batch."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Windows that are sampled at once.

    level: which one they are of. final: so many frames, from the first on, are made for good after it. needed: the
    first frame that a later batch has as a guide; the number of frames where none has.
    """

    windows: Sequence[Window]
    level: int
    final: int
    needed: int


def plan_windows(num_frames: int, window: int = WINDOW, strides: Sequence[int] = STRIDES) -> list[Level]:
    """Levels from coarse to fine in which every frame has exactly one writer.

    The coarsest level is that of the smallest stride at which one window covers the video, or else the largest; its
    windows form a chain, each guided by the one before. Windows of finer levels are guided by coarser levels alone, so
    each finer level is one stage. The first and the last frame belong to every level; a level's last window is moved
    back rather than cut short, and is shorter than `window` only where the whole level is.

    Raises ValueError for no frames, a window under 2, or strides that do not fall to 1 by whole factors.
    """
    if num_frames < 1:
        raise ValueError(f"a video has at least one frame, found {num_frames}")
    if window < 2:
        raise ValueError(f"a window has at least 2 frames, found {window}")
    falls = all(coarse > fine and coarse % fine == 0 for coarse, fine in zip(strides, strides[1:], strict=False))
    if not strides or strides[-1] != 1 or not falls:
        raise ValueError(f"strides must fall to 1, each a multiple of the next, found {tuple(strides)}")
    covering = [stride for stride in strides if num_frames - 1 <= (window - 1) * stride]
    coarsest = min(covering, default=strides[0])
    made: set[int] = set()
    levels = []
    for stride in (s for s in strides if s <= coarsest):
        windows = _plan_level(_keys(num_frames, stride), window, stride, made, chained=stride == coarsest)
        levels.append([[w] for w in windows] if stride == coarsest else [windows])
    return levels


def official_windows(num_frames: int) -> list[Level]:
    """The schedule of M3DDM's released code: three strides from 50 frames on, else one; windows strictly in sequence.

    Windows of 16 that share one frame, the last of a level filled up with the last frame of the video. Frames are made
    anew at each level; what is made first is the guide ever after. One frame alone gets no window.
    """
    made: set[int] = set()
    levels = []
    for stride in STRIDES if num_frames >= 50 else (1,):
        keys = list(range(0, num_frames, stride))
        level = []
        for start in range(0, num_frames // stride - 1, WINDOW - 1):
            chosen = keys[start : start + WINDOW]
            frames = (*chosen, *[num_frames - 1] * (WINDOW - len(chosen)))
            guides = tuple(frame in made for frame in frames)
            # a frame that is repeated is written once, where it stands first
            writes = tuple(frame not in frames[:place] for place, frame in enumerate(frames))
            level.append([Window(stride, frames, guides, writes)])
            made.update(frames)
        levels.append(level)
    return levels


def fill_windows(levels: Sequence[Level], temporal_factor: int) -> list[Level]:
    """The same windows with their last frame repeated up to k n + 1 frames; what is repeated is not written."""

    def fill(window: Window) -> Window:
        extra = -(len(window.frames) - 1) % temporal_factor
        return Window(
            window.stride,
            window.frames + window.frames[-1:] * extra,
            window.guides + window.guides[-1:] * extra,
            window.writes + (False,) * extra,
        )

    return [[[fill(window) for window in stage] for stage in level] for level in levels]


def latent_guides(window: Window, temporal_factor: int) -> tuple[bool, ...]:
    """Which latent frames of a window hold guides alone: the first one holds one frame, each other one k of them."""
    rest = window.guides[1:]
    groups = [rest[start : start + temporal_factor] for start in range(0, len(rest), temporal_factor)]
    return (window.guides[0], *map(all, groups))


def plan_batches(levels: Sequence[Level], size: int, num_frames: int) -> list[Batch]:
    """The windows of all levels in the order in which they are sampled, at most `size` of a stage at a time."""
    cut = [
        (stage[start : start + size], level)
        for level, stages in enumerate(levels)
        for stage in stages
        for start in range(0, len(stage), size)
    ]
    batches: list[Batch] = []
    final = needed = num_frames
    for windows, level in reversed(cut):
        batches.append(Batch(windows, level, final, needed))
        for window in windows:
            final = min([final, *itertools.compress(window.frames, window.writes)])
            needed = min([needed, *itertools.compress(window.frames, window.guides)])
    return batches[::-1]


def _keys(num_frames: int, stride: int) -> list[int]:
    """Every stride-th frame and the last one."""
    return sorted({*range(0, num_frames, stride), num_frames - 1})


def _plan_level(keys: list[int], window: int, stride: int, made: set[int], chained: bool) -> list[Window]:
    """Windows over the keys that share one frame with the next; adds all keys to `made`."""
    last = max(0, len(keys) - window)
    starts = sorted({*range(0, last, window - 1), last})
    known = set(made)  # what guides may show
    windows = []
    for start in starts:
        frames = tuple(keys[start : start + window])
        guides = tuple(frame in known for frame in frames)
        writes = tuple(frame not in made for frame in frames)
        made.update(frames)
        if chained:
            known.update(frames)
        if any(writes):
            windows.append(Window(stride, frames, guides, writes))
    return windows
