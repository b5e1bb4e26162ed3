"""Frames as players show them, by libavfilter: fields made whole frames, cropping, rotation and flips."""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import SideData, SideDataContainer, Type

TOP_FIRST, BOTTOM_FIRST = (2, 5), (3, 4)  # libav's AVFieldOrder by the field that is shown first


class Orientation(NamedTuple):
    """What brings a stored picture upright: first its rows become columns, then it is mirrored."""

    transpose: bool = False
    hflip: bool = False
    vflip: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> "Orientation":
        """That of a frame's display matrix, which EXIF orientations become too; angles between are left alone."""
        data = side_data(frame, Type.DISPLAYMATRIX)
        if data is None:
            return cls()
        across, down, _, across_rows, down_rows = np.frombuffer(data, np.int32)[:5].tolist()
        if abs(across) + abs(down_rows) > abs(down) + abs(across_rows):
            return cls(False, across < 0, down_rows < 0)
        return cls(True, across_rows < 0, down < 0)

    def filters(self) -> list[tuple[str, str]]:
        """(name, arguments) of libavfilter's filters."""
        if self.transpose:
            kinds = {(True, False): "clock", (False, True): "cclock", (False, False): "cclock_flip"}
            return [("transpose", f"dir={kinds.get((self.hflip, self.vflip), 'clock_flip')}")]
        return [("hflip", "")] * self.hflip + [("vflip", "")] * self.vflip


def side_data(frame: av.VideoFrame, kind: Type) -> SideData | None:
    """A frame's side data of one kind, or None."""
    container = SideDataContainer.__new__(SideDataContainer)
    try:
        container.__init__(frame)
    except ValueError:  # PyAV stops at a kind that it does not know, such as EXIF, and has those before it
        for index in range(len(container) - 1):
            if container[index].type == kind:
                return container[index]
        return None
    return container.get(kind)


class Filters:
    """A chain of libavfilter's filters for frames of one size and format."""

    def __init__(self, frame: av.VideoFrame, filters: Sequence[tuple[str, str]]):
        self._graph = av.filter.Graph()
        source = self._graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
        )
        chain = [self._graph.add(name, arguments or None) for name, arguments in filters]
        self._graph.link_nodes(source, *chain, self._graph.add("buffersink")).configure()

    def push(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """Put in a frame, or None at the end; yields those that are done."""
        self._graph.vpush(frame)
        while True:
            try:
                yield self._graph.vpull()
            except (BlockingIOError, EOFError):
                return


def filter_frames(frames: Iterable[av.VideoFrame], filters: Sequence[tuple[str, str]]) -> Iterator[av.VideoFrame]:
    """Frames of one size and format through filters that give a frame for each."""
    graph = None
    for frame in frames:
        graph = graph or Filters(frame, filters)
        yield from graph.push(frame)
    if graph is not None:
        yield from graph.push(None)


class Upright:
    """Cuts frames as the container says, (left, right, top, bottom) pixels, and brings them upright."""

    def __init__(self, crop: tuple[int, int, int, int], orientation: Orientation):
        left, right, top, bottom = crop
        cut = [("crop", f"w=iw-{left + right}:h=ih-{top + bottom}:x={left}:y={top}")] if any(crop) else []
        self._filters = cut + orientation.filters()
        self._graphs: dict[tuple, Filters] = {}

    def apply(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame as players show it, in its own pixel format where libavfilter can turn that."""
        if not self._filters:
            return frame
        kind = (frame.width, frame.height, frame.format.name)
        if kind not in self._graphs:
            self._graphs[kind] = Filters(frame, self._filters)
        (upright,) = self._graphs[kind].push(frame)
        return upright

    def __copy__(self) -> "Upright":
        other = Upright.__new__(Upright)
        other._filters, other._graphs = self._filters, {}
        return other


def deinterlace_filters(flagged: bool, field_order: int) -> list[tuple[str, str]]:
    """Filters that make one whole frame of each pair of fields.

    flagged: whether the frames themselves say which of them are interlaced; otherwise all are, in the stream's order.
    """
    if flagged:
        return [("bwdif", "mode=send_frame:parity=auto:deint=interlaced")]
    parity = "bff" if field_order in BOTTOM_FIRST else "tff"
    return [("bwdif", f"mode=send_frame:parity={parity}:deint=all")]
