"""Decoding with PyAV: chosen frames of a video file, or of the bytes of one, as RGB arrays."""

import io
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

DEFAULT_FPS = 24.0

Encoded = bytes | str | os.PathLike


class PacketIndex(NamedTuple):
    """The frames of a stream in display order, read from its packets.

    timestamps int64 [num_frames] in the stream's time base; keyframes int64: the indices at which decoding can begin.
    """

    timestamps: np.ndarray
    keyframes: np.ndarray


class VideoInfo(NamedTuple):
    """What is known of a video before its pixels are read.

    height and width are those of an upright frame with square pixels; fps is the mean rate in frames per second;
    packets is None for what is not an encoded stream.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    packets: PacketIndex | None = None


def probe(source: Encoded) -> VideoInfo:
    """Reads the packets and the first frame of a video, decoding no other; raises ValueError for an unusable one."""
    with _opened(source) as container:
        stream = _video_stream(container)
        packets = _index_packets(container, stream)
        first = next(container.decode(stream), None)
        if first is None:
            raise ValueError("the video has no frames")
        height, width = _upright_size(first, stream)
        fps = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        return VideoInfo(len(packets.timestamps), fps, height, width, packets)


def decode_clip(
    source: Encoded,
    indices: Sequence[int],
    size: tuple[int, int] | None = None,
    packets: PacketIndex | None = None,
) -> np.ndarray:
    """Decodes the frames at `indices`, in that order and with repeats, on the calling thread alone.

    Decoding runs forward and jumps to a keyframe where that saves frames. The frames are scaled to size (height, width)
    where one is given; `packets`, where an earlier probe found them, saves a pass over the file.

    Returns uint8 [n,h,w,3], RGB. Raises ValueError for an index outside the video, a frame that cannot be decoded, or a
    frame size that changes on the way.
    """
    wanted = sorted(set(indices))
    decoded, shape = {}, None
    reformatter = VideoReformatter()
    with _opened(source) as container:
        stream = _video_stream(container)
        if packets is None:
            packets = _index_packets(container, stream)
        if not wanted or wanted[0] < 0 or wanted[-1] >= len(packets.timestamps):
            raise ValueError(f"frames {wanted[:1]}..{wanted[-1:]} asked of a video of {len(packets.timestamps)} frames")
        for index, frame in _frames_at(container, stream, wanted, packets):
            shape = shape or (frame.height, frame.width)
            if (frame.height, frame.width) != shape:
                raise ValueError(f"the frame size changes from {shape} to {(frame.height, frame.width)}")
            size = size or _upright_size(frame, stream)
            decoded[index] = _to_rgb(frame, size, reformatter)
    return np.stack([decoded[index] for index in indices])


def stream_frames(source: Encoded, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Decodes a whole video, frame by frame: yields uint8 [h,w,3] of size (h, w); raises ValueError as decode_clip."""
    reformatter = VideoReformatter()
    with _opened(source) as container:
        for frame in container.decode(_video_stream(container)):
            yield _to_rgb(frame, size, reformatter)


def _index_packets(container, stream) -> PacketIndex:
    """Reads all packets of the stream and rewinds; keeps none of their data."""
    packets = [
        (packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.size and not packet.is_discard
    ]
    if not packets:
        raise ValueError("the video has no frames")
    if any(pts is None for pts, _ in packets):
        raise ValueError("the video has no timestamps")
    container.seek(0, stream=stream)
    timestamps, is_keyframe = np.array(sorted(packets), np.int64).T
    return PacketIndex(timestamps, np.flatnonzero(is_keyframe))


def _frames_at(container, stream, wanted: list[int], packets: PacketIndex) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields (index, frame) for each index of the ascending list `wanted`."""
    frames = container.decode(stream)
    position = 0  # index of the frame that the decoder gives next
    for index in wanted:
        keyframe = packets.keyframes[packets.keyframes <= index].max(initial=0)
        if keyframe > position:
            container.seek(int(packets.timestamps[keyframe]), stream=stream)
            frames, position = container.decode(stream), keyframe
        for frame in frames:
            if frame.pts >= packets.timestamps[index]:
                position = index + 1
                yield index, frame
                break
        else:
            raise ValueError(f"frame {index} of {len(packets.timestamps)} cannot be decoded")


def _upright_size(frame: av.VideoFrame, stream) -> tuple[int, int]:
    height, width = frame.height, round(frame.width * float(stream.sample_aspect_ratio or 1))
    return (width, height) if frame.rotation % 180 else (height, width)


def _to_rgb(frame: av.VideoFrame, size: tuple[int, int], reformatter: VideoReformatter) -> np.ndarray:
    turns = round(frame.rotation / 90) % 4
    height, width = size[::-1] if turns % 2 else size
    # AREA averages what it shrinks
    rgb = reformatter.reformat(frame, width, height, "rgb24", interpolation=Interpolation.AREA).to_ndarray()
    return np.rot90(rgb, turns)


class _opened:
    """A PyAV container whose errors come out as ValueError with one line."""

    def __init__(self, source: Encoded):
        self._source = io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)

    def __enter__(self):
        try:
            self._container = av.open(self._source)
        except (av.error.FFmpegError, OSError) as error:
            raise ValueError(f"not a readable video: {error}") from error
        return self._container

    def __exit__(self, kind, error, trace):
        self._container.close()
        if isinstance(error, av.error.FFmpegError):
            raise ValueError(f"the video cannot be decoded: {error}") from error


def _video_stream(container):
    if not container.streams.video:
        raise ValueError("the file has no video stream")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    return stream
