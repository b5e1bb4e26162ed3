"""What a source has besides its picture: sound, subtitles, cover pictures, fonts, tags and chapters, for an output."""

from collections.abc import Iterator
from fractions import Fraction

import av
from av.stream import Disposition

from m3ddm_jax.video.container import choose_video, open_container, read_packets
from m3ddm_jax.video.output.codecs import Container
from m3ddm_jax.video.output.convert import CopiedTrack, SoundTrack, TextTrack
from m3ddm_jax.video.output.recordings import split_recordings
from m3ddm_jax.video.output.tags import Label, fit_labels, kept_tags
from m3ddm_jax.video.output.trial import copies, cover_packet, decodes, holds_cover
from m3ddm_jax.video.source import FrameSource

_SAMPLE_PACKETS = 8  # of each track, by which it is judged
_LONGEST_SEARCH = 4000  # packets
_IMAGE_TYPES = {"mjpeg": "jpeg", "png": "png", "bmp": "bmp", "gif": "gif"}
_TEXT = {"srt", "subrip", "ass", "ssa", "webvtt", "mov_text", "text", "eia_608", "microdvd", "sami", "subviewer"}


class Tracks:
    """The tracks of a source beside its picture, each copied, converted or left out by itself.

    source: read from a file. container: of the output. lead: seconds by which sound begins before the picture; on the
    output's clock all that is written comes so much later. options: of the muxer. notes: what is converted or left out.
    """

    def __init__(self, source: FrameSource, container: Container):
        self._source, self._container = source, container
        self._converted, self._dropped, self._counts = [], [], {}
        self._tracks: dict[int, CopiedTrack | SoundTrack | TextTrack] = {}
        self._labels: dict[int, Label] = {}
        self._pictures: list[av.stream.Stream] = []
        self._attachments: list[av.stream.Stream] = []
        self._input = open_container(source.path)
        self._picture_index = choose_video(self._input, source.path.name)[0].index
        self._parts = split_recordings(source)
        self._samples = _first_packets(self._input, self._picture_index)
        for stream in self._input.streams:
            self._decide(stream)
        self.lead = self._find_lead()
        self._fit_tags()
        self._packets = self._convert_packets()

    @property
    def notes(self) -> list[str]:
        lines = (("converted", self._converted), ("left out", self._dropped))
        return [f"{what}: {', '.join(items)}" for what, items in lines if items]

    def add_to(self, output: av.container.OutputContainer, picture: av.stream.Stream) -> None:
        """Adds the streams behind the picture's, and all tags; before the output's first packet."""
        output.metadata.update(self._metadata)
        output.set_chapters(self._chapters)
        self._picture.put_on(picture, self._container)
        for index, track in self._tracks.items():
            self._labels[index].put_on(track.add_to(output), self._container)
        for stream in self._attachments:
            output.add_stream_from_template(stream)
        self._covers = []
        for stream in self._pictures:
            data = bytes(self._samples[stream.index][0])
            kind = _IMAGE_TYPES[stream.codec_context.name]
            if self._container.format == "matroska":
                output.add_attachment(f"cover.{kind}", f"image/{kind}", data)
                continue
            cover = output.add_stream_from_template(stream, opaque=True)
            cover.disposition = Disposition.attached_pic
            self._covers.append((cover, data))

    def write(self, output: av.container.OutputContainer, until: float | None = None) -> None:
        """Writes the packets up to a moment of the output, in seconds, so that tracks lie side by side; else all."""
        for cover, picture in self._covers:
            output.mux(cover_packet(cover, picture))
        self._covers = []
        for moment, packets in self._packets:
            output.mux(packets)
            if until is not None and moment > until:
                return

    def close(self) -> None:
        self._input.close()

    def _decide(self, stream: av.stream.Stream) -> None:
        kind, name = stream.type, self._name(stream)
        if kind == "video" and stream.index == self._picture_index:
            self._picture = Label.of(stream, "the picture")
        elif kind == "video" and stream.disposition & Disposition.attached_pic:
            self._decide_picture(stream)
        elif kind == "audio":
            self._decide_sound(stream, name)
        elif kind == "subtitle":
            self._decide_subtitles(stream, name)
        elif kind == "attachment" and self._container.format == "matroska":
            self._attachments.append(stream)
        elif kind == "data" and self._is_of_tags(stream):
            pass
        elif kind != "video":  # of several pictures one is chosen where the source is read
            self._dropped.append(name)

    def _is_of_tags(self, stream: av.stream.Stream) -> bool:
        """Whether a track holds the timecode or the chapters, as MP4 has them; both are written as tags."""
        if stream.metadata.get("timecode"):
            return True
        is_first = not any(s.type == "data" and s.name == "bin_data" for s in list(self._input.streams)[: stream.index])
        return stream.name == "bin_data" and is_first and bool(self._input.chapters())

    def _name(self, stream: av.stream.Stream) -> str:
        """Such as `audio 2 (eng, truehd)`."""
        kind = "subtitles" if stream.type == "subtitle" else stream.type
        self._counts[kind] = self._counts.get(kind, 0) + 1
        codec = stream.codec_context.name if stream.codec_context is not None else getattr(stream, "name", None)
        language = stream.metadata.get("language")
        told = [text for text in (language if language != "und" else None, codec) if text]
        return f"{kind} {self._counts[kind]}" + (f" ({', '.join(told)})" if told else "")

    def _decide_picture(self, stream: av.stream.Stream) -> None:
        codec = stream.codec_context.name if stream.codec_context is not None else None
        for packet in self._samples[stream.index][:1]:
            attached = self._container.format == "matroska"
            if codec in _IMAGE_TYPES and (attached or holds_cover(stream, bytes(packet), self._container)):
                self._pictures.append(stream)
                return
        self._dropped.append(f"cover picture ({codec})")

    def _decide_sound(self, stream: av.stream.Stream, name: str) -> None:
        packets = self._samples[stream.index]
        if stream.codec_context is not None and packets:
            if self._parts == [None] and copies(stream, packets, self._container):
                self._keep(stream, CopiedTrack(stream), name)
                return
            if decodes(stream, packets):
                self._keep(stream, SoundTrack(stream, self._container.sound), name)
                self._converted.append(f"{name} to {self._container.sound.removeprefix('lib')}")
                return
        self._dropped.append(name)

    def _decide_subtitles(self, stream: av.stream.Stream, name: str) -> None:
        codec = stream.codec_context.name if stream.codec_context is not None else None
        if codec is not None and copies(stream, self._samples[stream.index], self._container):
            self._keep(stream, CopiedTrack(stream), name)
        elif codec in _TEXT:
            self._keep(stream, TextTrack(stream, self._container.subtitles), name)
            self._converted.append(f"{name} to {self._container.subtitles}")
        else:
            self._dropped.append(name)

    def _keep(self, stream: av.stream.Stream, track: CopiedTrack | SoundTrack | TextTrack, name: str) -> None:
        self._tracks[stream.index], self._labels[stream.index] = track, Label.of(stream, name)

    def _find_lead(self) -> float:
        starts = [
            self._source.clock.shift(_audible_start(self._samples[index][0]), self._samples[index][0].pos)
            for index in self._tracks
            if self._input.streams[index].type == "audio"
        ]
        return max(0.0, -min(starts, default=0.0))

    def _fit_tags(self) -> None:
        self._metadata = kept_tags(self._input.metadata)
        self._chapters = [self._moved(chapter) for chapter in self._input.chapters()]
        labels = [self._picture, *self._labels.values()]
        self.options, lost = fit_labels(self._container, self._metadata, self._chapters, labels, bool(self._pictures))
        self._dropped += lost

    def _moved(self, chapter: dict) -> dict:
        """A chapter on the output's clock, in milliseconds."""
        moments = (self._source.clock.shift(float(chapter[key] * chapter["time_base"])) for key in ("start", "end"))
        start, end = (max(0, round(1000 * (moment + self.lead))) for moment in moments)
        return {**chapter, "start": start, "end": max(start, end), "time_base": Fraction(1, 1000)}

    def _convert_packets(self) -> Iterator[tuple[float, list[av.Packet]]]:
        """(moment on the output's clock, packets) of all tracks, in the order of the source's file."""
        for part in self._parts:
            with open_container(self._source.path, part) as container:
                yield from self._convert_part(container, 0 if part is None else part[0])
        for track in self._tracks.values():
            yield float("inf"), track.finish()

    def _convert_part(self, container: av.container.InputContainer, start: int) -> Iterator[tuple[float, list]]:
        tracks = {stream.index: self._tracks[index] for stream, index in self._streams_in(container)}
        positions = dict.fromkeys(tracks, start)
        for packet in read_packets(container, *(container.streams[index] for index in tracks)) if tracks else ():
            ticks = packet.dts if packet.dts is not None else packet.pts
            if ticks is None or not packet.size:
                continue
            seconds, index = float(ticks * packet.time_base), packet.stream_index
            if packet.pos is not None:  # of several packets that are stored as one, the first has it
                positions[index] = start + packet.pos
            moment = self._source.clock.shift(seconds, positions[index]) + self.lead
            yield moment, tracks[index].convert(packet, moment - seconds)

    def _streams_in(self, container: av.container.InputContainer) -> Iterator[tuple[av.stream.Stream, int]]:
        """The streams of a recording, each with the index of the track that it goes on with, by their order."""
        for kind in ("audio", "subtitle"):
            first = [stream.index for stream in self._input.streams if stream.type == kind]
            here = [stream for stream in container.streams if stream.type == kind]
            yield from ((stream, index) for stream, index in zip(here, first, strict=False) if index in self._tracks)


def left_behind(source: FrameSource) -> list[str]:
    """A line for the sound, subtitles and chapters that images and GIF leave out; none for a source without."""
    with open_container(source.path) as container:
        kinds = [stream.type for stream in container.streams]
        names = {"audio": "sound", "subtitle": "subtitles"}
        found = [name for kind, name in names.items() if kind in kinds] + ["chapters"] * bool(container.chapters())
    return [f"left out: {', '.join(found)}"] if found else []


def _first_packets(container: av.container.InputContainer, picture: int) -> dict[int, list[av.Packet]]:
    """Up to so many packets of each stream but the picture's as a track is judged by."""
    streams = [s for s in container.streams if s.type in ("audio", "subtitle", "video") and s.index != picture]
    found = {stream.index: [] for stream in streams}
    waiting = {stream.index for stream in streams if stream.type != "subtitle"}  # subtitles may come much later
    for number, packet in enumerate(read_packets(container, *streams) if waiting else ()):
        timed = packet.dts is not None or packet.pts is not None
        if packet.size and (timed or packet.stream.type == "video"):
            packets = found[packet.stream_index]
            if len(packets) < _SAMPLE_PACKETS:
                packets.append(packet)
            if len(packets) == _SAMPLE_PACKETS or packet.stream.type == "video":
                waiting.discard(packet.stream_index)
        if not waiting or number >= _LONGEST_SEARCH:
            break
    return found


def _audible_start(packet: av.Packet) -> float:
    """Seconds at which a packet's sound begins, behind the samples that a decoder leaves out."""
    moment = packet.pts if packet.pts is not None else packet.dts
    skipped = 0
    if packet.has_sidedata("skip_samples"):
        skipped = int.from_bytes(bytes(packet.get_sidedata("skip_samples"))[:4], "little")
    return float(moment * packet.time_base) + skipped / packet.stream.codec_context.sample_rate
