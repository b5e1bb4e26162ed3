"""What is learnt of a video file from its packets, before any pixel is decoded."""

import dataclasses
import struct
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np

from m3ddm_jax.video.container import (
    Media,
    StreamFacts,
    choose_video,
    name_of,
    open_container,
    read_bytes,
    read_facts,
    read_packets,
)
from m3ddm_jax.video.damage import Expected, expected_frames

# containers that store when each frame is shown, and codecs whose packets hold one frame each
_TIMED_FORMATS = {"mov", "matroska", "mpegts", "flv"}
_ONE_FRAME_CODECS = {"h264", "hevc", "av1", "vp9", "png", "ffv1", "qtrle"}
_INDEXED_FORMATS = {"mov", "matroska", "avi", "nut", "mxf"}  # of which that holds for all codecs without other frames
CLOCKS_JUMP = {"mpegts", "mpeg"}  # containers of recordings, in which clocks start anew
_NEAR_A_JOIN = 8  # packets or frames
_SHORTEST_JUMP = 0.25  # seconds back; a shorter step back comes of damage
LONGEST_GAP = 10.0  # seconds; a longer step of such a clock is a new clock, as for ffmpeg
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # libav's own leave alpha out
PROGRESSIVE_ORDERS = (0, 1)  # libav's AVFieldOrder: not said, and progressive
# what stands before the number of plays that libav does not tell, and how that is written
_LOOPS = {"gif": (b"NETSCAPE2.0\x03\x01", "<H"), "apng": (b"acTL", ">4xI")}
_LOOPS_WITHIN = 1 << 20  # bytes from the start of the file


@dataclasses.dataclass(frozen=True)
class Packets:
    """A stream's packets in the order of the file; times in ticks, None where there is none.

    discards: whether an edit list cuts any of them away; those are left out here.
    """

    pts: list[int | None]
    dts: list[int | None]
    durations: list[int]
    keys: list[bool]
    positions: list[int | None]
    discards: bool = False


@dataclasses.dataclass(frozen=True)
class Probe:
    """A video file, and the stream of it that is the film.

    media: as it was given. format: libav's name of the container, the first of several. decoder: libav's name of the
    decoder that is needed in place of its first choice, or None. tick: seconds of a timestamp's unit. start: seconds on
    the file's clock at which the stream begins. end: at which its last frame does, where that is not what the last
    packet says, or None. rates: frames per second that the file announces, the likeliest first.
    field_order: libav's AVFieldOrder. loops: how often an animation is repeated, 0 for ever, None where it is not.
    is_image: whether the file is a single picture. expected: where the file shows signs of damage, how many frames it
    should have.
    """

    media: Media
    name: str
    format: str
    stream_index: int
    codec: str
    decoder: str | None
    intra_only: bool
    tick: Fraction
    start: float
    end: float | None
    rates: tuple[float, ...]
    packets: Packets
    facts: StreamFacts
    field_order: int
    loops: int | None
    is_image: bool
    notes: tuple[str, ...]
    expected: Expected | None

    @property
    def has_reliable_times(self) -> bool:
        """Whether every packet is one frame, which is shown at the packet's own time."""
        packets = self.packets
        whole = self.format in _INDEXED_FORMATS and self.intra_only
        timed = self.format in _TIMED_FORMATS and self.codec in _ONE_FRAME_CODECS
        if self.field_order not in PROGRESSIVE_ORDERS or not (whole or timed):
            return False
        if None in packets.pts or len(set(packets.pts)) < len(packets.pts):
            return False
        steps = np.diff(np.array([dts for dts in packets.dts if dts is not None], np.int64))
        if self.format in CLOCKS_JUMP and (steps * float(self.tick) > LONGEST_GAP).any():
            return False
        return bool((steps > 0).all())


def probe(media: Media) -> tuple[Probe, av.container.InputContainer]:
    """Reads the packets of a file; also returns the container, which has come to its end.

    Raises ValueError for a file that has no video.
    """
    name = name_of(media)
    container = open_container(media)
    stream, notes = choose_video(container, name)
    codec, form = stream.codec_context, container.format.name.split(",")[0]
    packets, *signs = _read_packets(container, stream, name)
    expected = expected_frames(media, container, stream, packets.pts, *signs)
    has_alpha = stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) == "1"
    found = Probe(
        media=media,
        name=name,
        format=form,
        stream_index=stream.index,
        codec=codec.codec.canonical_name,
        decoder=_ALPHA_DECODERS.get(codec.codec.canonical_name) if has_alpha else None,
        intra_only=codec.codec.intra_only,
        tick=stream.time_base,
        start=float((stream.start_time or 0) * stream.time_base),
        end=_end_of(stream, packets) if form == "mov" else None,
        rates=tuple(float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate),
        packets=packets,
        facts=read_facts(container, stream),
        field_order=int(codec.field_order),
        loops=_read_loops(media, form),
        is_image=form.endswith("_pipe") or form == "image2",
        notes=tuple(notes),
        expected=expected,
    )
    return found, container


def _read_packets(
    container: av.container.InputContainer, stream: av.VideoStream, name: str
) -> tuple[Packets, int, float, int, int, bool]:
    """The packets; how many are empty, when the last of the file ends, at which byte the last of the stream does,
    how many of the stream are corrupt, and whether the last of the file is."""
    packets = Packets([], [], [], [], [])
    corrupt, is_cut, discards, empty, end, tail = [], False, False, 0, 0.0, 0
    for packet in read_packets(container):
        if not packet.size:
            empty += packet.stream_index == stream.index and packet.dts is not None
            continue
        is_cut = packet.is_corrupt
        pts, dts = packet.pts, packet.dts
        if dts is not None or pts is not None:
            end = max(end, float(((pts if pts is not None else dts) + (packet.duration or 0)) * packet.time_base))
        discards |= packet.stream_index == stream.index and packet.is_discard
        if packet.stream_index == stream.index and not packet.is_discard:
            if packet.is_corrupt:
                corrupt.append(len(packets.pts))
            packets.pts.append(pts)
            packets.dts.append(dts)
            packets.durations.append(packet.duration or 0)
            packets.keys.append(packet.is_keyframe)
            packets.positions.append(packet.pos)
            tail = (packet.pos or 0) + packet.size
    if not packets.pts:
        raise ValueError(f"{name} has no frames")
    packets = dataclasses.replace(packets, discards=discards)
    corrupt = far_from_joins(corrupt, packets.dts, float(stream.time_base))
    return packets, empty, end, tail, len(corrupt), is_cut


def far_from_joins(indices: Sequence[int], times: Sequence[int | None], tick: float) -> list[int]:
    """Those of the indices of packets or frames that are not near a join of recordings, where the clock starts anew.

    times: of all packets or frames in ticks, ascending but for joins, None where there is none.
    """
    seconds = np.array([np.nan if time is None else time for time in times]) * tick
    steps = np.diff(seconds)
    joins = np.flatnonzero((steps < -_SHORTEST_JUMP) | (steps > LONGEST_GAP)) + 1
    return [index for index in indices if np.abs(joins - index).min(initial=_NEAR_A_JOIN) >= _NEAR_A_JOIN]


def _end_of(stream: av.VideoStream, packets: Packets) -> float | None:
    """Seconds at which the last frame ends: mp4 has durations in the order of decoding, which B-frames change."""
    reorders = None not in packets.pts and packets.pts != sorted(packets.pts)
    if not reorders or packets.discards or stream.duration is None:
        return None
    return float(((stream.start_time or 0) + stream.duration) * stream.time_base)


def _read_loops(media: Media, container_format: str) -> int | None:
    if container_format not in _LOOPS:
        return None
    mark, layout = _LOOPS[container_format]
    _, found, after = read_bytes(media, _LOOPS_WITHIN).partition(mark)
    if len(after) < struct.calcsize(layout):
        return None
    return struct.unpack_from(layout, after)[0]
