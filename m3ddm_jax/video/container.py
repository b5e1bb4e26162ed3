"""Opening files for reading: the only place where libav opens what others made, and the choice of the video track."""

import contextlib
import os
import pathlib
import re
import threading
from collections.abc import Iterator
from typing import NamedTuple

import av
from av.stream import Disposition

from m3ddm_jax.files import containers

Media = str | os.PathLike | bytes

_NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails
_DUMP_LOCK = threading.Lock()  # PyAV has one log level for all threads


def open_container(media: Media, part: tuple[int, int] | None = None) -> av.container.InputContainer:
    """Open a file, or the bytes of one, for reading, as `files.containers.open_container`."""
    return containers.open_container(media, part)


def read_packets(container: av.container.InputContainer, *streams: av.stream.Stream) -> Iterator[av.Packet]:
    """Packets of some streams, of all where none is named, and an empty one of each at the end.

    A stream that begins in the middle of a recording is left out: PyAV raises IndexError in place of its empty packet.
    """
    with contextlib.suppress(IndexError):
        yield from container.demux(*streams)


def name_of(media: Media) -> str:
    """What error messages call a file."""
    return "the video" if isinstance(media, bytes) else os.fspath(media)


def read_bytes(media: Media, count: int, from_end: bool = False) -> bytes:
    """The first or the last `count` bytes of a file."""
    if isinstance(media, bytes):
        return media[-count:] if from_end else media[:count]
    with pathlib.Path(media).open("rb") as file:
        if from_end:
            file.seek(-min(count, file.seek(0, 2)), 2)
        return file.read(count)


def size_of(media: Media) -> int:
    """Bytes of a file."""
    return len(media) if isinstance(media, bytes) else os.stat(media).st_size


def choose_video(container: av.container.InputContainer, name: str) -> tuple[av.VideoStream, list[str]]:
    """The video track that players show, and notes about others: the default one, else the largest, else the first.

    Raises ValueError where there is none, cover pictures apart, or where its codec is unknown.
    """
    films = [stream for stream in container.streams.video if not stream.disposition & _NO_FILM]
    if not films:
        found = "only a cover picture" if container.streams.video else "none"
        raise ValueError(f"{name} has no video stream, found {found}")
    stream = max(films, key=_preference)
    if stream.codec_context is None:
        raise ValueError(f"{name} has a video stream of a codec that cannot be decoded")
    if len(films) == 1:
        return stream, []
    why = "the default one" if stream.disposition & Disposition.default else "the largest one"
    return stream, [f"{name}: uses video track {films.index(stream) + 1} of {len(films)}, {why}"]


def _preference(stream: av.VideoStream) -> tuple[bool, bool, int]:
    codec = stream.codec_context
    area = codec.width * codec.height if codec else 0
    return codec is not None, bool(stream.disposition & Disposition.default), area


class StreamFacts(NamedTuple):
    """What libav knows of a stream and PyAV has no attribute for.

    crop: pixels (left, right, top, bottom) that the container says to cut away. chroma_location: libav's name, or None.
    """

    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    chroma_location: str | None = None


def read_facts(container: av.container.InputContainer, stream: av.VideoStream) -> StreamFacts:
    """Read a stream's facts from libav's own description of the file."""
    with _DUMP_LOCK:
        before = av.logging.get_level()
        av.logging.set_libav_level(av.logging.VERBOSE)
        av.logging.set_level(av.logging.INFO)
        try:
            text = container.dumps_format()
        finally:
            av.logging.set_libav_level(av.logging.INFO)
            av.logging.set_level(before)
    described = re.split(r"^  Stream #0:", text, flags=re.MULTILINE)
    ours = next((part for part in described[1:] if re.match(rf"{stream.index}\b", part)), "")
    crop = re.search(r"^ +Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)$", ours, re.MULTILINE)
    location = re.search(r"\([^()]*\b(topleft|bottomleft|left|center|top|bottom)\)", ours.partition("\n")[0])
    return StreamFacts(
        tuple(map(int, crop.groups())) if crop else StreamFacts().crop, location.group(1) if location else None
    )
