"""GlobalPaint's order: the key frames of every shot first, then the intervals between them, each from both its ends.

Published (GlobalPaint, arXiv 2601.06413, abstract): key frames first, then an interpolation model between completed
ends. How they are spaced, that they keep to shots, and levels between for long shots are designs of this project.
"""

import itertools
from collections.abc import Iterator, Sequence

from m3ddm_jax.pipelines.window_schedule import WINDOW, Level, Window, plan_windows


def plan_key_frames(num_frames: int, cuts: Sequence[int] = (), window: int = WINDOW) -> list[Level]:
    """Levels of windows of exactly `window` frames; every frame has one writer, and no window has two shots' frames.

    The first level makes each shot's key frames, its first and last among them, from nothing. Every other one makes
    frames between two that are made, its guides: evenly spaced ones at first where a shot is long, all in the end.
    Each level is one stage. Windows with fewer frames are filled up: those of the first level back and forth, others
    with their last guide.

    cuts: the first frame of every shot but the first one. Raises ValueError for no frames, a window under 3, or cuts
    that do not rise between 1 and num_frames - 1.
    """
    if window < 3:
        raise ValueError(f"a window has at least 3 frames, found {window}")
    levels: list[list[Window]] = []
    for first, last in _shots(num_frames, cuts):
        depth = next(depth for depth in itertools.count(1) if last - first <= (window - 1) ** depth)
        spans = [(first, last)]
        for level in range(depth):
            gap = (window - 1) ** (depth - 1 - level)
            keys_of_spans = [_spread(*span, gap) for span in spans]
            if level == len(levels):
                levels.append([])
            make = _from_nothing if level == 0 else _from_ends
            levels[level] += [make(keys, window) for keys in keys_of_spans if level == 0 or len(keys) > 2]
            pairs = itertools.chain.from_iterable(map(itertools.pairwise, keys_of_spans))
            spans = [(start, stop) for start, stop in pairs if stop - start > 1]
    return [[windows] for windows in levels]


def plan_sequence(num_frames: int, cuts: Sequence[int] = (), window: int = WINDOW) -> list[Level]:
    """One level in which clip follows clip, each guided by what the one before has made of its frames; what key frames
    are to be compared with. Arguments and errors as `plan_key_frames`."""
    stages = []
    for first, last in _shots(num_frames, cuts):
        for stage in plan_windows(last - first + 1, window, (1,))[0]:
            for planned in stage:
                frames = tuple(first + frame for frame in planned.frames)
                shifted = Window(1, frames, planned.guides, planned.writes)
                stages.append([shifted if len(frames) == window else _from_nothing(frames, window)])
    return [stages]


def _shots(num_frames: int, cuts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last frame of each shot."""
    edges = [0, *cuts, num_frames]
    if any(stop <= start for start, stop in itertools.pairwise(edges)):
        raise ValueError(f"cuts must rise between 1 and {num_frames - 1}, found {list(cuts)} in {num_frames} frame(s)")
    return ((start, stop - 1) for start, stop in itertools.pairwise(edges))


def _spread(first: int, last: int, gap: int) -> list[int]:
    """Frames from first to last, as far apart as each other up to one frame, and no further than `gap`."""
    parts = max(1, -(-(last - first) // gap))
    return sorted({first + (last - first) * part // parts for part in range(parts + 1)})


def _from_nothing(keys: Sequence[int], window: int) -> Window:
    there_and_back = [*keys, *keys[-2:0:-1]]
    frames = tuple(itertools.islice(itertools.cycle(there_and_back), window))
    return Window(_stride(keys), frames, (False,) * window, (True,) * len(keys) + (False,) * (window - len(keys)))


def _from_ends(keys: Sequence[int], window: int) -> Window:
    inner, filled = len(keys) - 2, window - len(keys)
    guides = (True, *(False,) * inner, *(True,) * (filled + 1))
    return Window(
        _stride(keys), (*keys, *keys[-1:] * filled), guides, (False, *(True,) * inner, *(False,) * (filled + 1))
    )


def _stride(keys: Sequence[int]) -> int:
    return max((stop - start for start, stop in itertools.pairwise(keys)), default=1)
