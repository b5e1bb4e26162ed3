"""Files with fewer frames than they should have; libav reads them without a word."""

import re
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

from m3ddm_jax.video.container import Media, read_bytes, size_of

_GIF_FRAME = re.compile(rb"\x21\xf9\x04.{4}\x00[\x2c\x21]", re.DOTALL)
_PACED = {"matroska", "mpegts", "mpeg", "flv", "ogg"}  # containers in which nothing but a gap tells of a lost frame
_STEADY = 0.95  # share of equal steps above which a longer one is a gap
_LONGEST_GAP = 10.0  # seconds
_TS_PACKET = 188  # bytes


class Expected(NamedTuple):
    """How many frames a file should have at least, what says so, and how many of its packets libav calls corrupt."""

    frames: int
    by: str
    corrupt: int = 0


def describe_damage(name: str, found: int, expected: Expected) -> str:
    """A line with both counts."""
    counts = f"{found} frames came, at least {expected.frames} are expected by {expected.by}"
    return f"{name} is damaged or breaks off: {counts}"


def expected_frames(
    media: Media,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    pts: list[int | None],
    empty: int,
    end: float,
    tail: int,
    corrupt: int,
    is_cut: bool,
) -> Expected | None:
    """What a file with signs of damage should hold; None for one without.

    pts: of the packets that were found. empty: how many more were without content, which stand for the frame before.
    end: seconds at which the last packet of the file ends. tail: byte at which the last one of the video ends. corrupt:
    how many of the video libav calls so. is_cut: whether it calls the last packet of the file so.
    """
    count, form = len(pts), container.format.name.split(",")[0]
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    length = _length(container, stream)
    # a cut file may hold fewer frames than announced, so may one with an edit list: that ends when it should
    if stream.frames > count + empty and (form == "avi" or end < (container.duration or 0) / av.time_base - 0.1):
        return Expected(stream.frames, "its header")
    if form == "gif":
        begun = len(_GIF_FRAME.findall(read_bytes(media, size_of(media))))
        if begun > count or not read_bytes(media, 16, from_end=True).rstrip(b"\0").endswith(b";"):
            return Expected(max(begun, count + 1), "the frames that begin in it")
    if form == "yuv4mpegpipe" and tail < size_of(media):
        return Expected(count + 1, "the bytes at its end")
    gaps = _lost_in_gaps(pts, float(stream.time_base)) if form in _PACED else 0
    if gaps:
        return Expected(count + gaps, "the gaps between its frames")
    if rate > 0 and 0 < round(end * rate) < round(length * rate) - 1:
        return Expected(max(count + 1, round(length * rate)), "its duration")
    if corrupt:
        return Expected(max(count, stream.frames), "its packets", corrupt)
    if is_cut or _segment_is_cut(media, form) or (form == "mpegts" and size_of(media) % _TS_PACKET):
        return Expected(max(count + 1, stream.frames), "its end, which is cut off")
    return None


def _length(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Seconds that the video should last; 0 where nothing says it, as sound may last longer."""
    told = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    if told:
        return int(told[1]) * 3600 + int(told[2]) * 60 + float(Fraction(told[3]))
    if container.format.name.split(",")[0] in ("matroska", "flv") and len(container.streams) == 1:
        return (container.duration or 0) / av.time_base
    return 0.0


def _lost_in_gaps(pts: list[int | None], tick: float) -> int:
    """Frames that are missing between others that come at a constant rate; 0 where they do not, or none is."""
    if None in pts or len(pts) < 8:
        return 0
    steps = np.diff(np.sort(np.array(pts, np.int64)) * tick)
    usual = float(np.median(steps))
    near = np.abs(steps - usual) <= 1.01 * max(tick, 0.001)
    if usual <= 0 or near.mean() < _STEADY:
        return 0
    # Two frames at one time make up for a gap: libav gives some pictures of MPEG-PS their neighbour's time.
    odd = steps[(steps < 0.4 * usual) | (steps > 1.6 * usual) & (steps <= _LONGEST_GAP)]
    return max(0, int(np.sum(np.rint(odd / usual) - 1)))


def _segment_is_cut(media: Media, container_format: str) -> bool:
    """Whether Matroska's own end lies beyond the end of the file."""
    if container_format != "matroska":
        return False
    head = read_bytes(media, 4096)
    # EBML: an identifier, then a length whose leading zeros say how many bytes it has; all ones mean "unknown"
    segment = head.find(b"\x18\x53\x80\x67")
    if segment < 0 or segment + 12 > len(head):
        return False
    width = 9 - head[segment + 4].bit_length()
    length = int.from_bytes(head[segment + 4 : segment + 4 + width]) & ((1 << 7 * width) - 1)
    return length != (1 << 7 * width) - 1 and segment + 4 + width + length > size_of(media)
