"""Which frame intervals the clips of sources can have: long ones need long videos."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from data.clips import longest_interval
from data.sources import Source

LOOKED_AT = 64  # videos of a source that does not know how long its videos are


def serving_share(sources: Sequence[Source], weights: Sequence[float], num_frames: int, interval: int) -> float:
    """Returns the share of clips whose videos are long enough for num_frames frames at an interval.

    Videos of a source that does not know their lengths are opened, LOOKED_AT of them. Raises ValueError where no video
    of any source has num_frames frames.
    """
    lengths = [source.lengths() or find_lengths(source, num_frames) for source in sources]
    if all(longest_interval(frames, num_frames) < 1 for found in lengths for frames in found):
        longest = max((frames for found in lengths for frames in found), default=0)
        raise ValueError(
            f"clips have {num_frames} frames (data.num_frames), the longest video of data.sources {longest}"
        )
    shares = [_share(found, num_frames, interval) for found in lengths]
    return sum(weight * share for weight, share in zip(weights, shares, strict=True)) / sum(weights)


def find_lengths(source: Source, enough: int) -> Mapping[int, int]:
    """Returns how many of a source's videos have how many frames: of LOOKED_AT spread over it, or of more of them where
    none has `enough`. Videos that cannot be opened are left out."""
    first = np.unique(np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(int)).tolist()
    counts: Counter[int] = Counter()
    for index in (*first, *sorted(set(range(len(source))) - set(first))):
        if index not in first and max(counts, default=0) >= enough:
            break
        try:
            counts[source.open(index).info.num_frames] += 1
        except (ValueError, OSError):
            continue
    return counts


def _share(lengths: Mapping[int, int], num_frames: int, interval: int) -> float:
    serving = sum(count for frames, count in lengths.items() if longest_interval(frames, num_frames) >= interval)
    return serving / max(1, sum(lengths.values()))
