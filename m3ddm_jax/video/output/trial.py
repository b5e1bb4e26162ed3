"""Trials: whether a container holds a track, found by writing a little of it to memory and reading that back."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.subtitles.subtitle import SubtitleSet

from m3ddm_jax.video.output.codecs import CODECS, Container
from m3ddm_jax.video.output.convert import CopiedTrack


def copies(template: av.stream.Stream, packets: Sequence[av.Packet], container: Container) -> bool:
    """Whether a container holds a track of sound or subtitles as it is."""
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=container.format) as output:
            track = CopiedTrack(template)
            track.add_to(output)
            for packet in _clones(packets):
                output.mux(track.convert(packet, 0.0))
        file.seek(0)
        with av.open(file) as written:
            return not packets or any(stream.type == template.type for stream in written.streams)
    except (av.error.FFmpegError, ValueError):
        return False


def holds_cover(template: av.stream.Stream, picture: bytes, container: Container) -> bool:
    """Whether a container holds a cover picture as a track beside the film."""
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=container.format) as output:
            film = add_tiny_stream(output, container, "video")
            cover = output.add_stream_from_template(template, opaque=True)
            cover.disposition = Disposition.attached_pic
            output.mux([cover_packet(cover, picture), *tiny_packets(film)])
        file.seek(0)
        with av.open(file) as written:
            return any(stream.disposition & Disposition.attached_pic for stream in written.streams)
    except (av.error.FFmpegError, ValueError):
        return False


def cover_packet(cover: av.stream.Stream, picture: bytes) -> av.Packet:
    """The packet of a cover picture's track."""
    packet = av.Packet(picture)
    packet.pts = packet.dts = 0
    packet.stream, packet.is_keyframe, packet.time_base = cover, True, Fraction(1, 90_000)
    return packet


def decodes(template: av.stream.Stream, packets: Sequence[av.Packet]) -> bool:
    """Whether any sound comes out of a track's packets."""
    found = False
    for packet in packets:
        with contextlib.suppress(av.error.FFmpegError):
            found = found or bool(template.codec_context.decode(packet))
    template.codec_context.flush_buffers()
    return found


def _clones(packets: Sequence[av.Packet]) -> Iterator[av.Packet]:
    for packet in packets:
        clone = av.Packet(bytes(packet))
        clone.pts, clone.dts, clone.duration = packet.pts, packet.dts, packet.duration
        clone.time_base, clone.is_keyframe = packet.time_base, packet.is_keyframe
        yield clone


def add_tiny_stream(output: av.container.OutputContainer, container: Container, kind: str) -> av.stream.Stream:
    """A stream of that kind, of the container's own codec."""
    if kind == "audio":
        return output.add_stream(container.sound, rate=48000, layout="mono")
    if kind == "subtitle":
        stream = output.add_stream(container.subtitles)
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        stream.codec_context.subtitle_header = b"[Script Info]\nScriptType: v4.00+\n"
        return stream
    codec = CODECS[container.defaults[0]]
    return output.add_stream(codec.encoder, rate=25, width=64, height=64)


def tiny_packets(stream: Any) -> list[av.Packet]:
    """A little of anything for a stream of `add_tiny_stream`."""
    if stream.type == "video":
        return [*stream.encode(av.VideoFrame(64, 64, "yuv420p")), *stream.encode(None)]
    if stream.type == "audio":
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 48000, 0
        return [*stream.encode(silence), *stream.encode(None)]
    packet = stream.codec_context.encode_subtitle(SubtitleSet.create(b"0,0,Default,,0,0,0,,-", 0, 100, 0))
    packet.time_base, packet.stream = Fraction(1, 1000), stream
    return [packet]
