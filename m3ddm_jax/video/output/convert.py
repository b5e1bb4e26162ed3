"""One track of a source for an output: its packets copied, its sound encoded again, or its text written another way."""

import contextlib
import math
from fractions import Fraction

import av
from av.subtitles.subtitle import SubtitleSet

_BITS_A_CHANNEL = {"aac": 96_000, "libopus": 64_000}  # a second
_RATES = {"aac": (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)}
_USUAL_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
_MILLISECOND = Fraction(1, 1000)


class CopiedTrack:
    """Packets as they are, with the codec tag of the new container."""

    def __init__(self, template: av.stream.Stream):
        self._template = template
        self._last = None

    def add_to(self, output: av.container.OutputContainer) -> av.stream.Stream:
        self.stream = output.add_stream_from_template(self._template, opaque=True)
        return self.stream

    def convert(self, packet: av.Packet, offset: float) -> list[av.Packet]:
        """The packet `offset` seconds later, and after the one before it."""
        dts = packet.dts if packet.dts is not None else packet.pts
        if dts is None:
            return []
        ticks = round(offset / packet.time_base)
        if self._last is not None and dts + ticks <= self._last:  # joined recordings overlap a little
            ticks = self._last + math.ceil(_MILLISECOND / packet.time_base) - dts
        self._last = packet.dts = dts + ticks
        if packet.pts is not None:
            packet.pts += ticks
        packet.stream = self.stream
        return [packet]

    def finish(self) -> list[av.Packet]:
        return []


class SoundTrack:
    """Sound decoded and encoded again; gaps become silence, and what overlaps is left out."""

    def __init__(self, template: av.stream.Stream, encoder: str):
        self._template, self._encoder, self._decoder = template.codec_context, encoder, None
        self._graph, self._shape, self._end, self._offset = None, None, None, 0.0

    def add_to(self, output: av.container.OutputContainer) -> av.stream.Stream:
        layout, rate = _encodable(self._encoder, self._template)
        self.stream = output.add_stream(self._encoder, rate=rate, layout=layout)
        self.stream.bit_rate = _BITS_A_CHANNEL[self._encoder] * self.stream.codec_context.channels
        self.stream.codec_context.time_base = Fraction(1, rate)
        return self.stream

    def convert(self, packet: av.Packet, offset: float) -> list[av.Packet]:
        encoded = []
        if packet.stream.codec_context is not self._decoder:  # the first one, or the next of joined recordings
            encoded += self._drain()
            self._decoder = packet.stream.codec_context
        self._offset = offset
        with contextlib.suppress(av.error.InvalidDataError):  # as players do: a damaged packet becomes silence
            for frame in self._decoder.decode(packet):
                encoded += self._encode(frame, offset)
        return encoded

    def finish(self) -> list[av.Packet]:
        encoded = self._drain()
        if self._graph is not None:
            self._graph.push(None)
            encoded += self._pull()
        return encoded + self.stream.encode(None)

    def _drain(self) -> list[av.Packet]:
        """What is left in the decoder."""
        encoded = []
        for frame in self._decoder.decode(None) if self._decoder is not None else ():
            encoded += self._encode(frame, self._offset)
        return encoded

    def _encode(self, frame: av.AudioFrame, offset: float) -> list[av.Packet]:
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        tick, encoded = Fraction(1, frame.sample_rate), []
        start = self._end if frame.pts is None else float(frame.pts * frame.time_base) + offset
        if self._shape != shape:
            if self._graph is not None:
                self._graph.push(None)
                encoded += self._pull()
            if start is None or (self._end is not None and start < self._end):  # sound of before, which is there
                start = self._end
            self._graph, self._shape = self._resampler(frame), shape
        if start is None:
            return encoded
        frame.pts, frame.time_base = round(start / tick), tick
        self._end = start + frame.samples / frame.sample_rate
        self._graph.push(frame)
        return encoded + self._pull()

    def _resampler(self, frame: av.AudioFrame) -> av.filter.Graph:
        graph, codec = av.filter.Graph(), self.stream.codec_context
        source = graph.add_abuffer(
            format=frame.format,
            layout=frame.layout,
            sample_rate=frame.sample_rate,
            time_base=Fraction(1, frame.sample_rate),
        )
        steady = graph.add("aresample", "async=1:min_hard_comp=0.05")
        wanted = f"sample_rates={codec.sample_rate}:sample_fmts={codec.format.name}:channel_layouts={codec.layout.name}"
        graph.link_nodes(source, steady, graph.add("aformat", wanted), graph.add("abuffersink")).configure()
        return graph

    def _pull(self) -> list[av.Packet]:
        encoded = []
        with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                encoded += self.stream.encode(self._graph.pull())
        return encoded


class TextTrack:
    """Subtitles of text written another way."""

    def __init__(self, template: av.stream.Stream, encoder: str):
        self._decoder, self._encoder = template.codec_context, encoder

    def add_to(self, output: av.container.OutputContainer) -> av.stream.Stream:
        self._decoder.open(strict=False)
        self.stream = output.add_stream(self._encoder)
        self.stream.codec_context.subtitle_header = self._decoder.subtitle_header
        self.stream.time_base = self.stream.codec_context.time_base = _MILLISECOND
        return self.stream

    def convert(self, packet: av.Packet, offset: float) -> list[av.Packet]:
        if packet.pts is None or (subtitles := self._decoder.decode2(packet)) is None or not len(subtitles):
            return []
        start = max(0, round((float(packet.pts * packet.time_base) + offset) / _MILLISECOND))
        length = round(packet.duration * packet.time_base / _MILLISECOND) if packet.duration else 0
        length = length or subtitles.end_display_time
        first, *others = [subtitle.ass for subtitle in subtitles]
        # text is what comes after eight commas
        text = b"\\N".join([first, *(other.split(b",", 8)[-1] for other in others)])
        written = self.stream.codec_context.encode_subtitle(SubtitleSet.create(text, 0, length, start))
        written.pts = written.dts = start
        written.duration, written.time_base, written.stream = length, _MILLISECOND, self.stream
        return [written]

    def finish(self) -> list[av.Packet]:
        return []


def _encodable(encoder: str, decoder: av.CodecContext) -> tuple[str, int]:
    """The layout and sample rate of the sound where the encoder has them, or the nearest ones."""
    rates = _RATES.get(encoder, (48000,))
    rate = decoder.sample_rate if decoder.sample_rate in rates else 48000
    for layout in (decoder.layout.name, _USUAL_LAYOUTS.get(decoder.channels, "stereo")):
        with contextlib.suppress(av.error.FFmpegError, ValueError):
            codec = av.CodecContext.create(encoder, "w")
            codec.sample_rate, codec.layout, codec.time_base = rate, layout, Fraction(1, rate)
            codec.format = codec.codec.audio_formats[0]
            codec.open()
            return layout, rate
    return "stereo", rate
