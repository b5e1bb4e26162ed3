"""Decoding forward from the start of a file or from a keyframe: frames in the order in which they are shown."""

import collections
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import av
import numpy as np

from m3ddm_jax.video.container import open_container, read_packets
from m3ddm_jax.video.probe import Probe


class Stream:
    """The film of a file, opened at its start, with its decoder.

    threads: how many decode, 0 for as many as there are cores. container: one that is open and at its start already.
    tolerant: pass over frames of damaged packets, and over those that the decoder had to make up.
    """

    def __init__(
        self,
        probe: Probe,
        threads: int = 0,
        container: av.container.InputContainer | None = None,
        tolerant: bool = False,
    ):
        self._tolerant = tolerant
        self._container = container or open_container(probe.media)
        self._stream = self._container.streams[probe.stream_index]
        self.codec = self._stream.codec_context
        if probe.decoder is not None:
            self.codec = av.CodecContext.create(probe.decoder, "r")
            self.codec.extradata = self._stream.codec_context.extradata
        self.codec.thread_type, self.codec.thread_count = "AUTO", threads

    @property
    def pixel_aspect(self):
        """Width / height of a stored pixel, or None where it is not said."""
        return self._stream.sample_aspect_ratio

    def seek(self, tick: int) -> None:
        """Go on at a keyframe at or before a time."""
        self._container.seek(tick, stream=self._stream)
        self.codec.flush_buffers()

    def frames(self) -> Iterator[av.VideoFrame]:
        """Frames from here on; what cannot be decoded before the first of them is passed over."""
        begun, damaged = False, set()
        for packet in read_packets(self._container, self._stream):
            if not packet.size and packet.dts is not None:
                continue  # Theora repeats a frame by an empty packet; that at the end has no time
            if self._tolerant and packet.is_corrupt:
                damaged.add(packet.pts)
            try:
                decoded = self.codec.decode(packet)
            except av.error.InvalidDataError:
                if begun and not self._tolerant:
                    raise
                continue  # a recording begins anywhere
            begun = begun or bool(decoded)
            if self._tolerant:
                decoded = [frame for frame in decoded if not frame.is_corrupt and frame.pts not in damaged]
            yield from decoded

    def close(self) -> None:
        """Close the file."""
        self._container.close()


class Mark(NamedTuple):
    """A key frame: its index, and the tick at which the file can be searched for it."""

    index: int
    tick: int


class Listing:
    """The frames of a film in the order in which they are shown, found by decoding all of them.

    times, durations: in ticks; a time is None where it is not known. interlaced, transparent: whether any frame is.
    marks: key frames by their fingerprints, for those that no other key frame shares. corrupt: indices of frames that
    the decoder had to make up in part.
    """

    def __init__(self, frames: Iterable[av.VideoFrame]):
        shown, stored, self.durations = [], [], []
        self.interlaced = self.transparent = False
        self.corrupt: list[int] = []
        found = collections.defaultdict(list)
        for index, frame in enumerate(frames):
            tick = frame.pts if frame.pts is not None else frame.dts
            if frame.key_frame and tick is not None:
                found[fingerprint(frame)].append(Mark(index, tick))
            shown.append(frame.pts)
            stored.append(frame.dts)
            self.durations.append(frame.duration or 0)
            self.interlaced |= frame.interlaced_frame
            if frame.is_corrupt:
                self.corrupt.append(index)
            self.transparent = self.transparent or is_transparent(frame)
        # as libav does: decoders give frames in order, so the times that run backwards less often are right
        self.times = min(shown, stored, key=_faults)
        self.marks = {key: marks[0] for key, marks in found.items() if len(marks) == 1}


def fingerprint(frame: av.VideoFrame) -> int:
    """A checksum of a frame's first plane."""
    return zlib.crc32(frame.planes[0])


def is_transparent(frame: av.VideoFrame) -> bool:
    """Whether a frame has alpha; one of a GIF or with a palette, whether any of its pixels makes use of it."""
    if frame.format.name in ("bgra", "pal8"):
        plane = frame.planes[-1 if frame.format.name == "pal8" else 0]
        return bool((np.frombuffer(plane, np.uint8)[3::4] < 255).any())
    return has_alpha(frame.format)


def has_alpha(pixel_format: av.VideoFormat) -> bool:
    """Whether a format has a component for alpha; palettes do not count."""
    return any(component.is_alpha for component in pixel_format.components)


def _faults(times: list[int | None]) -> int:
    faults, last = 0, None
    for time in times:
        faults += time is None or (last is not None and time <= last)
        last = time if time is not None else last
    return faults
