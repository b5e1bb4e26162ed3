"""Writing: a video file with the source's sound, clock and colours, or a folder of PNG."""

import contextlib
import pathlib
import re
import shutil
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from m3ddm_jax.video.colour import FULL, LIMITED, Colour
from m3ddm_jax.video.errors import reraise_as
from m3ddm_jax.video.source import IMAGE_SUFFIXES, FrameSource

# suffix -> (container, encoder, its options)
_H264 = ("libx264", {"crf": "16", "preset": "medium"})
_VP9 = ("libvpx-vp9", {"crf": "20", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"})
VIDEO_SUFFIXES = {
    ".mp4": ("mp4", *_H264),
    ".mov": ("mov", *_H264),
    ".mkv": ("matroska", *_H264),
    ".webm": ("webm", *_VP9),
    ".gif": ("gif", "gif", {}),
}
# other people's formats: a folder of such a name is not what was meant
FOREIGN_VIDEO = {".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".3gp", ".y4m"}
FOREIGN_SUFFIXES = FOREIGN_VIDEO | IMAGE_SUFFIXES
CLOCK = 90_000  # ticks a second of a video whose frames do not come at a constant rate
PNG_NAME = re.compile(r"[0-9]{6,}\.png")


class FrameSink:
    """Writes canvas frames, uint8 [n,H,W,3], to `path`; to be used in a `with` block.

    A path that ends in .mp4, .mov, .mkv, .webm or .gif is a video, any other a folder of PNG named 000000.png on. fps:
    frames per second. height and width: of the canvas, even. source: the one whose sound is copied as it is and whose
    timestamps, colour coding and pixel aspect are kept. lost_sound: why sound was left out, or None.

    Everything is written beside `path` and renamed at the end; where that fails, or an exception leaves the block,
    nothing remains. Raises ValueError for a path that cannot be written, a full disk, or frames of another shape.
    """

    def __init__(
        self, path: str | pathlib.Path, fps: float, height: int, width: int, source: FrameSource | None = None
    ):
        self.path = pathlib.Path(path)
        self._shape = (height, width, 3)
        self._count = 0
        check_writable(self.path)
        self._part = self.path.with_name(f".{self.path.name}.part")
        with reraise_as(f"cannot write {self.path}"):
            _remove(self._part)
            if self.path.suffix.lower() in VIDEO_SUFFIXES:
                self._writer = _VideoWriter(self._part, self.path.suffix.lower(), fps, height, width, source)
            else:
                self._writer = _PngWriter(self._part)
        self.lost_sound = self._writer.lost_sound

    def write(self, frames: np.ndarray) -> None:
        """Appends frames uint8 [n,H,W,3]."""
        if frames.shape[1:] != self._shape or frames.dtype != np.uint8:
            raise ValueError(f"uint8 frames of {self._shape} are needed, found {frames.dtype} {frames.shape[1:]}")
        with reraise_as(f"cannot write {self.path}"):
            for frame in frames:
                self._writer.write(frame, self._count)
                self._count += 1

    def __enter__(self) -> "FrameSink":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if error is not None:
                self._writer.abandon()
                return
            if not self._count:
                self._writer.abandon()
                raise ValueError(f"there are no frames to write to {self.path}")
            with reraise_as(f"cannot write {self.path}"):
                self._writer.finish()
                if self.path.is_dir():
                    shutil.rmtree(self.path)
                self._part.rename(self.path)
        finally:
            _remove(self._part)


def check_writable(path: pathlib.Path) -> None:
    """Raises ValueError where a FrameSink could not write or would destroy something else than a former output."""
    suffix = path.suffix.lower()
    if suffix in FOREIGN_SUFFIXES:
        accepted = ", ".join(VIDEO_SUFFIXES)
        raise ValueError(f"cannot write {suffix}: {path} must end in {accepted}, or without suffix for a folder of PNG")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    if suffix in VIDEO_SUFFIXES:
        if path.is_dir():
            raise ValueError(f"cannot write {path}: it is a folder")
    elif path.is_dir():
        strangers = [entry.name for entry in path.iterdir() if not PNG_NAME.fullmatch(entry.name)]
        if strangers:
            raise ValueError(f"cannot write {path}: the folder holds other things, such as {strangers[0]}")
    elif path.exists():
        raise ValueError(f"cannot write {path}: it is a file and no folder")


class _PngWriter:
    lost_sound = None

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        folder.mkdir()

    def write(self, frame: np.ndarray, index: int) -> None:
        encoder = av.CodecContext.create("png", "w")
        encoder.height, encoder.width, encoder.pix_fmt = *frame.shape[:2], "rgb24"
        encoder.time_base, encoder.thread_count = Fraction(1, 1), 1
        encoder.options = {"compression_level": "1", "pred": "up"}  # five times as fast as the default, and 6 % larger
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        packets = [*encoder.encode(picture), *encoder.encode(None)]
        (self._folder / f"{index:06d}.png").write_bytes(b"".join(map(bytes, packets)))

    def finish(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class _VideoWriter:
    def __init__(
        self, path: pathlib.Path, suffix: str, fps: float, height: int, width: int, source: FrameSource | None
    ):
        self._path = path
        self._format, self._encoder, self._options = VIDEO_SUFFIXES[suffix]
        self._rate = Fraction(fps).limit_denominator(100_000)
        self._size = (height, width)
        self._source = source
        self._colour = source.colour if source else Colour()
        self._times = _uneven_times(source, fps)
        self._sound: Iterator[tuple[float, av.Packet]] = iter(())
        self.lost_sound = None
        self._input = _open_sound(source)
        self._open()
        try:
            self._begin()
        except (av.error.FFmpegError, ValueError):
            if self._input is None:
                self.abandon()
                raise
            codecs = ", ".join(sorted({stream.codec_context.name for stream in self._input.streams.audio}))
            self.lost_sound = f"{suffix} cannot hold the sound of {source.path} ({codecs}): it is left out"
            self.abandon()
            self._input = None
            self._open()
            self._begin()
        self._filters = self._make_filters()

    def _open(self) -> None:
        options = {"movflags": "+faststart"} if self._format in ("mp4", "mov") else {}
        self._output = av.open(f"file:{self._path}", "w", format=self._format, options=options)

    def _begin(self) -> None:
        """Adds the streams and writes the header."""
        self._stream = self._add_video_stream()
        if self._input is not None:
            streams = {s.index: self._output.add_stream_from_template(s) for s in self._input.streams.audio}
            self._sound = _sound_packets(self._input, streams, self._source.start_time)
        self._output.start_encoding()

    def _add_video_stream(self):
        stream = self._output.add_stream(self._encoder, rate=self._rate, options=self._options)
        stream.height, stream.width = self._size
        stream.pix_fmt = "pal8" if self._encoder == "gif" else "yuv420p"
        codec = stream.codec_context
        codec.time_base = 1 / self._rate if self._times is None else Fraction(1, CLOCK)
        if self._encoder != "gif":
            codec.color_range = FULL if self._colour.full_range else LIMITED
            codec.colorspace = self._colour.matrix
            codec.color_primaries, codec.color_trc = self._colour.primaries, self._colour.transfer
            if self._source is not None:
                codec.sample_aspect_ratio = self._source.pixel_aspect
        return stream

    def _make_filters(self) -> av.filter.Graph:
        graph = av.filter.Graph()
        height, width = self._size
        time_base = self._stream.codec_context.time_base
        source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=time_base)
        sink = graph.add("buffersink")
        if self._encoder == "gif":
            # one palette a frame, so that no pass over the whole video is needed
            split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
            use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
            source.link_to(split)
            split.link_to(use, 0, 0)
            split.link_to(palette, 1, 0)
            palette.link_to(use, 0, 1)
            use.link_to(sink)
        else:
            scale, pixels = graph.add(*self._colour.to_yuv_filter()), graph.add("format", "yuv420p")
            source.link_to(scale)
            scale.link_to(pixels)
            pixels.link_to(sink)
        graph.configure()
        return graph

    def write(self, frame: np.ndarray, index: int) -> None:
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        time_base = self._stream.codec_context.time_base
        picture.time_base = time_base
        picture.pts = index if self._times is None else round(self._times[index] / time_base)
        self._filters.push(picture)
        self._copy_sound(until=float(picture.pts * time_base))
        self._output.mux(self._stream.encode(self._filters.pull()))

    def _copy_sound(self, until: float | None = None) -> None:
        """Copies the packets up to a moment, so that sound and picture lie side by side in the file."""
        for moment, packet in self._sound:
            self._output.mux(packet)
            if until is not None and moment > until:
                return

    def finish(self) -> None:
        self._copy_sound()
        self._output.mux(self._stream.encode(None))
        self._output.close()
        if self._input is not None:
            self._input.close()

    def abandon(self) -> None:
        # what is in the file is thrown away in any case
        with contextlib.suppress(av.error.FFmpegError, OSError):
            self._output.close()
        if self._input is not None:
            self._input.close()


def _uneven_times(source: FrameSource | None, fps: float) -> np.ndarray | None:
    """Seconds at which the frames are shown, or None where they come at a constant rate."""
    if source is None or np.allclose(source.timestamps, np.arange(len(source)) / fps, atol=1e-6):
        return None
    return source.timestamps


def _open_sound(source: FrameSource | None):
    """The source's file, opened once more, or None where it has no sound."""
    if source is None or source.path is None or not source.path.is_file():
        return None
    container = av.open(f"file:{source.path}")
    if container.streams.audio:
        return container
    container.close()
    return None


def _sound_packets(container, streams: dict, start_time: float) -> Iterator[tuple[float, av.Packet]]:
    """(seconds, packet) of all audio streams, on a clock that begins with the first frame of the video."""
    for packet in container.demux(*container.streams.audio):
        if packet.dts is None:
            continue
        shift = round(Fraction(start_time) / packet.time_base)
        moment = float((packet.dts - shift) * packet.time_base)
        packet.dts -= shift
        if packet.pts is not None:
            packet.pts -= shift
        packet.stream = streams[packet.stream.index]
        yield moment, packet


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
