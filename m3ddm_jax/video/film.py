"""Frames of a video file by index: a decoder that runs forward and goes back to keyframes, and what it passed last."""

import collections
import copy
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from m3ddm_jax.video.colour import MATRICES, UNSPECIFIED, Colour, is_yuv
from m3ddm_jax.video.damage import Expected, describe_damage
from m3ddm_jax.video.decoding import Listing, Mark, Stream, fingerprint, has_alpha, is_transparent
from m3ddm_jax.video.errors import Damaged, reraise_as
from m3ddm_jax.video.probe import PROGRESSIVE_ORDERS, Packets, Probe, far_from_joins
from m3ddm_jax.video.reader import Reader
from m3ddm_jax.video.timeline import timeline_of
from m3ddm_jax.video.upright import Orientation, Upright, deinterlace_filters, filter_frames

CACHE_BYTES = 64 << 20
CACHE_FRAMES = 32
_SOUGHT = {"avi", "mpeg", "mpegts", "mov", "matroska", "asf", "flv", "mxf"}  # containers that can go to a time
_TRIES = 3  # key frames that are looked at after that
_REWOUND = {"mov", "matroska"}  # containers whose start a seek is sure to find


class FilmReader(Reader):
    """Frames of a video file that `probe` has read.

    deinterlace: make whole frames of fields. tolerant: find the frames by decoding all, and leave out those that cannot
    be; a note says how many are missing. threads: that decode, 0 for as many as there are cores. container: the
    opened file, at its end. Frames are found by time where the packets tell their times. Otherwise they are counted,
    and going back looks for a key frame that is known by its fingerprint, or starts again at the first frame. Raises
    ValueError for a file without frames, and for one that breaks off.
    """

    def __init__(
        self,
        probe: Probe,
        container: av.container.InputContainer,
        deinterlace: bool,
        threads: int,
        tolerant: bool = False,
    ):
        self._probe, self._threads, self._tolerant = probe, threads, tolerant
        self._marks: dict[int, Mark] = {}
        self._forget()
        with reraise_as(f"{probe.name} is no readable video"):
            self._stream = _rewound(probe, threads, container, tolerant)
            frames = self._stream.frames()
            first = next(frames, None)
            if first is None:
                raise ValueError(f"{probe.name} has no frames that can be decoded")
            from_start = itertools.chain([first], frames)
            listing = None
            is_reliable = (
                probe.has_reliable_times and first.pts == min(probe.packets.pts) and not first.interlaced_frame
            )
            if is_reliable and not tolerant:
                times, durations = self._order_packets()
            else:
                listing = self._list(from_start)
                self._marks = listing.marks if probe.format in _SOUGHT and not tolerant else {}
                self._ticks = None
                self._keyframes = np.array(sorted(mark.index for mark in self._marks.values()), int)
                times, durations = listing.times, listing.durations
            self._describe(first, times, durations, listing, deinterlace)
            self._probe = dataclasses.replace(probe, packets=Packets([], [], [], [], []))  # no longer needed, and large
            if listing:
                self.close()
            else:
                self._begin(0, from_start)
        if listing is None and probe.format == "mpegts":
            self._check_end()

    def _list(self, frames: Iterator[av.VideoFrame]) -> Listing:
        """All frames. Raises Damaged where they cannot be decoded, or not wholly, unless that is tolerated."""
        name = self._probe.name
        try:
            listing = Listing(frames)
        except av.error.InvalidDataError as error:
            raise Damaged(f"{name} is damaged: not all of its frames can be decoded") from error
        corrupt = far_from_joins(listing.corrupt, listing.times, float(self._probe.tick))
        if corrupt and not self._tolerant:
            raise Damaged(f"{name} is damaged: frame {corrupt[0]} cannot be decoded wholly")
        return listing

    def _check_end(self) -> None:
        """Decode the last frames. Raises Damaged where one is incomplete, by which alone a cut recording is known."""
        self.native(len(self.timestamps) - 1)
        self.close()

    def _order_packets(self) -> tuple[list[int], np.ndarray]:
        """Times and durations of the frames, from the packets; notes where decoding can begin."""
        packets = self._probe.packets
        order = np.argsort(packets.pts, kind="stable")
        self._ticks = np.array(packets.pts, np.int64)[order]
        self._sought = self._ticks
        if self._probe.format == "mpegts":  # libav searches it by the times of decoding; others have an index
            dts = [shown if dts is None else dts for shown, dts in zip(packets.pts, packets.dts, strict=True)]
            self._sought = np.array(dts, np.int64)[order]
        self._keyframes = np.flatnonzero(np.array(packets.keys)[order])
        return self._ticks.tolist(), np.array(packets.durations)[order]

    def _describe(
        self,
        first: av.VideoFrame,
        times: list[int | None],
        durations: Sequence[int],
        listing: Listing | None,
        deinterlace: bool,
    ) -> None:
        probe = self._probe
        timeline = timeline_of(probe, times, durations)
        self.fps, self.timestamps, self.durations = timeline.fps, timeline.timestamps, timeline.durations
        self.clock, self.loops = timeline.clock, probe.loops
        notes = list(probe.notes)
        found = len(self.timestamps)
        wanted = probe.expected or Expected(len(probe.packets.pts), "its packets")
        if self._tolerant and found < wanted.frames:
            notes.append(describe_damage(probe.name, found, wanted))
        flagged = listing is not None and listing.interlaced
        self._fields = []
        if flagged or probe.field_order not in PROGRESSIVE_ORDERS:
            if deinterlace:
                self._fields = deinterlace_filters(flagged, probe.field_order)
                notes.append(f"{probe.name} is interlaced: each pair of fields is made a whole frame (bwdif)")
            else:
                self.field_order = 0 if probe.field_order in PROGRESSIVE_ORDERS else probe.field_order
        orientation = Orientation.of(first)
        self._upright = Upright(probe.facts.crop, orientation)
        upright = self._upright.apply(first)
        self.height, self.width, self.pixel_format = upright.height, upright.width, upright.format.name
        self.bits = max(component.bits for component in upright.format.components)
        self.has_alpha = listing.transparent if listing else has_alpha(first.format) or is_transparent(first)
        aspect = self._stream.pixel_aspect or Fraction(1)
        self.pixel_aspect = 1 / aspect if orientation.transpose else aspect
        self.colour = Colour.of(first, self._stream.codec, probe.facts.chroma_location)
        if is_yuv(first.format) and int(first.colorspace) not in (*MATRICES, UNSPECIFIED):
            notes.append(
                f"{probe.name}: matrix {first.colorspace} of H.273 is not known, {self.colour.matrix} is assumed"
            )
        self.notes = tuple(notes)
        self._shape, size = (first.height, first.width), sum(plane.buffer_size for plane in first.planes)
        self._cache_frames = max(2, min(CACHE_FRAMES, CACHE_BYTES // size))

    def reopen(self) -> "FilmReader":
        other = copy.copy(self)
        other._stream = None
        other._upright = copy.copy(self._upright)
        other._forget()
        return other

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._forget()

    def _forget(self) -> None:
        self._stream, self._frames, self._next = None, iter(()), 0
        self._reformatter = VideoReformatter()
        self._cache: collections.OrderedDict[int, av.VideoFrame] = collections.OrderedDict()

    def read(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        return self.colour.to_rgb(self.native(index), self._reformatter, size)

    def native(self, index: int) -> av.VideoFrame:
        with reraise_as(f"{self._probe.name} cannot be decoded"):
            try:
                frame = self._cache[index] if index in self._cache else self._decode(index)
            except av.error.InvalidDataError as error:
                raise Damaged(f"{self._probe.name} is damaged: frame {index} cannot be decoded") from error
            return self._upright.apply(frame)

    def _decode(self, index: int) -> av.VideoFrame:
        """Decodes up to the frame; where the stream leaves it out, the frame that is shown at its time."""
        latest = index - bool(self._fields)  # a filter of fields needs the frame before
        keyframe = int(self._keyframes[self._keyframes <= latest].max(initial=0))
        if self._stream is None or index < self._next or keyframe > self._next:
            self._go_to(keyframe)
        shown = self._cache.get(index - 1)
        for position, frame in self._frames:
            self._keep(position, frame)
            if position < index:
                shown = frame
            elif position > index and shown is None and self._begun > 0:
                break
            elif position > index and self._ticks is not None:
                raise Damaged(f"{self._probe.name} is damaged: frame {index} cannot be decoded")
            else:
                found = frame if position == index or shown is None else shown
                self._keep(index, found)
                return found
        if self._begun > 0:
            self._keyframes = self._keyframes[:0]  # decoding began behind the keyframe: this container cannot seek
            self._go_to(0)
            return self._decode(index)
        raise Damaged(f"{self._probe.name} breaks off: frame {index} of {len(self.timestamps)} cannot be decoded")

    def _go_to(self, keyframe: int) -> None:
        if self._stream is None or keyframe == 0:
            if self._stream is not None:
                self._stream.close()
            self._stream = Stream(self._probe, self._threads, tolerant=self._tolerant)
        if keyframe == 0:
            self._begin(0, self._stream.frames())
        elif self._ticks is not None:
            self._stream.seek(int(self._sought[keyframe]))
            self._begin(keyframe, self._stream.frames())
        else:
            self._look_for(keyframe)

    def _look_for(self, keyframe: int) -> None:
        """Go on at a key frame that is known by its fingerprint, at or before the one asked for, or at the start."""
        self._stream.seek(next(mark.tick for mark in self._marks.values() if mark.index == keyframe))
        frames, tries = self._stream.frames(), 0
        for frame in frames:
            if frame.key_frame:
                mark = self._marks.get(fingerprint(frame))
                if mark is not None and mark.index <= keyframe:
                    self._begin(mark.index, itertools.chain([frame], frames))
                    return
                tries += 1
            if tries == _TRIES:
                break
        self._keyframes = self._keyframes[self._keyframes != keyframe]
        self._go_to(0)

    def _begin(self, index: int, frames: Iterator[av.VideoFrame]) -> None:
        first = index
        if self._fields:
            frames = filter_frames(frames, self._fields)
            first += index > 0
        self._frames = self._numbered(first, frames)
        self._next = self._begun = index

    def _numbered(self, first: int, frames: Iterator[av.VideoFrame]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames with their indices; those that come before the first are not decoded from all that they need."""
        for frame in frames:
            position = self._next
            if self._ticks is not None and frame.pts is not None:
                position = int(np.searchsorted(self._ticks, frame.pts, "right")) - 1
            if (frame.height, frame.width) != self._shape:
                before, after = (f"{w}x{h}" for h, w in (self._shape, (frame.height, frame.width)))
                name = self._probe.name
                raise ValueError(f"{name} changes its frame size from {before} to {after} at frame {position}")
            self._next = position + 1
            if position < first:
                continue
            if frame.is_corrupt and self._ticks is not None:
                raise Damaged(f"{self._probe.name} is damaged: frame {position} cannot be decoded wholly")
            yield position, frame

    def _keep(self, index: int, frame: av.VideoFrame) -> None:
        self._cache[index] = frame
        self._cache.move_to_end(index)
        while len(self._cache) > self._cache_frames:
            self._cache.popitem(last=False)


def _rewound(probe: Probe, threads: int, container: av.container.InputContainer, tolerant: bool) -> Stream:
    """The film at its start: of the container that has been read already, where a seek is sure to find that."""
    if probe.format in _REWOUND and None not in probe.packets.pts:
        stream = Stream(probe, threads, container, tolerant)
        try:
            stream.seek(min(probe.packets.pts))
            return stream
        except av.error.FFmpegError:
            pass
    container.close()
    return Stream(probe, threads, tolerant=tolerant)
