"""Writing a video file: frames encoded with the source's timing and colours, next to the source's other tracks."""

import contextlib
import os
import pathlib
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
from av.codec.context import Flags

from m3ddm_jax.video.colour import FULL, LIMITED, Colour, Hdr
from m3ddm_jax.video.output.codecs import CONTAINERS, Encoding
from m3ddm_jax.video.output.composition import Box, Composer
from m3ddm_jax.video.output.tracks import Tracks
from m3ddm_jax.video.source import FrameSource

CLOCK = 90_000  # ticks a second of a video whose frames do not come at a constant rate
_INTERLACED_CODECS = {"h264", "prores"}
_PROGRESSIVE = 1  # libav's AVFieldOrder; higher values are orders of fields
_STEREO = bytes.fromhex("53b88101")  # Matroska's StereoMode: left_right
_DISPLAY_WIDTH = bytes.fromhex("54b0")
_HEAD = 1 << 16  # bytes of a file, in which its tracks are described
_LEAST_HEVC_WIDTH = 64  # libx265 writes beyond its memory for frames of 48 and of 40 pixels


class MovieWriter:
    """A video file. source: the one whose timing, colours, pixel aspect and other tracks are kept."""

    def __init__(
        self,
        path: pathlib.Path,
        suffix: str,
        encoding: Encoding,
        fps: float,
        size: tuple[int, int],
        source: FrameSource | None = None,
        box: Box | None = None,
    ):
        container = CONTAINERS[suffix]
        self._path, self._size, self._encoding, self._source = path, size, encoding, source
        self._colour = source.colour if source else Colour()
        self._tracks = None
        if source is not None and container.sound is not None and source.path is not None and source.path.is_file():
            self._tracks = Tracks(source, container)
        self.notes = self._tracks.notes if self._tracks else []
        self._timing = Timing(fps, source, self._tracks.lead if self._tracks else 0.0)
        self._composer = Composer(encoding.pixel_format, self._colour, *size, box)
        self._aspect = source.pixel_aspect if source is not None else Fraction(1)
        self._writes_aspect = container.format in ("matroska", "webm") and self._aspect != 1
        self._writes_aspect &= encoding.codec not in ("h264", "hevc")  # they keep it in their stream
        options = {}
        if container.format in ("mp4", "mov"):
            options["movflags"] = "+faststart" + (self._tracks.options.get("movflags", "") if self._tracks else "")
        if self._writes_aspect:
            options["write_crc32"] = "0"  # the file is changed at the end
        self._output = av.open(f"file:{path}", "w", format=container.format, options=options)
        try:
            self._begin()
        except BaseException:
            self.abandon()
            raise

    def _begin(self) -> None:
        self._stream = self._add_picture()
        if self._tracks is not None:
            self._tracks.add_to(self._output, self._stream)
        if self._writes_aspect:
            self._stream.metadata["stereo_mode"] = "left_right"
        self._output.start_encoding()

    def _add_picture(self) -> av.VideoStream:
        encoding, colour = self._encoding, self._colour
        height, width = self._size
        if encoding.encoder == "libx265" and width < _LEAST_HEVC_WIDTH:
            raise ValueError(
                f"frames of {width}x{height} are too narrow for hevc, which needs {_LEAST_HEVC_WIDTH} pixels: "
                "`codec` h264 and av1 accept them"
            )
        options = encoding.options | _hdr_options(encoding.codec, colour.hdr)
        if colour.chroma_location is not None:
            options["chroma_sample_location"] = colour.chroma_location
        if encoding.encoder == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # it prints what it does
        stream = self._output.add_stream(encoding.encoder, rate=self._timing.rate, options=options)
        stream.height, stream.width = self._size
        stream.pix_fmt = encoding.pixel_format
        codec = stream.codec_context
        codec.time_base = self._timing.time_base
        codec.color_range = FULL if colour.full_range else LIMITED
        codec.colorspace = colour.matrix
        codec.color_primaries, codec.color_trc = colour.primaries, colour.transfer
        codec.sample_aspect_ratio = self._aspect
        if encoding.codec == "hevc" and self._output.format.name in ("mp4", "mov"):
            codec.codec_tag = "hvc1"  # the tag that QuickTime plays
        if self._source is not None and self._source.field_order > _PROGRESSIVE:
            codec.field_order = self._source.field_order
            if encoding.codec in _INTERLACED_CODECS:
                codec.flags |= Flags.interlaced_dct
        return stream

    def write(self, frame: np.ndarray, index: int, native: av.VideoFrame | None, mask: np.ndarray | None) -> None:
        picture = self._composer.compose(frame, native, mask)
        picture.time_base, picture.pts = self._timing.time_base, self._timing.ticks(index)
        if self._tracks is not None:
            self._tracks.write(self._output, until=float(picture.pts * self._timing.time_base))
        self._mux(self._stream.encode(picture))

    def _mux(self, packets: Iterable[av.Packet]) -> None:
        for packet in packets:
            packet.duration = self._timing.length(packet.pts)
            self._output.mux(packet)

    def finish(self) -> None:
        self._mux(self._stream.encode(None))
        if self._tracks is not None:
            self._tracks.write(self._output)
            self._tracks.close()
        self._output.close()
        if self._writes_aspect:
            _set_display_width(self._path, round(self._size[1] * self._aspect))

    def abandon(self) -> None:
        # what is in the file is thrown away in any case
        with contextlib.suppress(av.error.FFmpegError, OSError):
            self._output.close()
        if self._tracks is not None:
            self._tracks.close()


class Timing:
    """When each frame of an output is shown, in ticks of its time base.

    Frames at a constant rate count in frames, others in CLOCK; lead: seconds before the first frame.
    """

    def __init__(self, fps: float, source: FrameSource | None, lead: float = 0.0):
        self.rate = Fraction(fps).limit_denominator(100_000)
        self.time_base, self._starts, self._lengths = 1 / self.rate, None, {}
        if source is None:
            return
        steady = np.allclose(source.timestamps, np.arange(len(source)) / fps, atol=1e-6)
        steady = steady and abs(source.durations[-1] - 1 / fps) < 1e-3 and not lead
        if not steady:
            self.time_base = Fraction(1, CLOCK)
            self._starts = np.rint((source.timestamps + lead) * CLOCK).astype(int).tolist()
            lengths = np.rint(np.asarray(source.durations) * CLOCK).astype(int).tolist()
            self._lengths = dict(zip(self._starts, lengths, strict=True))

    def ticks(self, index: int) -> int:
        return index if self._starts is None else self._starts[index]

    def length(self, ticks: int) -> int:
        """Ticks for which the frame of that time is shown."""
        return self._lengths.get(ticks, 1)


def _hdr_options(codec: str, hdr: Hdr | None) -> dict[str, str]:
    """Options by which an encoder writes mastering metadata into its stream; also what keeps it from printing."""
    quiet = {"hevc": {"x265-params": "log-level=none"}}.get(codec, {})
    if hdr is None or codec not in ("h264", "hevc", "av1"):
        return quiet
    names = {
        "h264": ("mastering-display", "cll"),
        "hevc": ("master-display", "max-cll"),
        "av1": ("mastering-display", "content-light"),
    }
    display, light = names[codec]
    parts = []
    if hdr.primaries is not None and hdr.luminance is not None:
        parts.append(f"{display}={_mastering_display(hdr, whole=codec != 'av1')}")
    if hdr.content_light is not None:
        parts.append(f"{light}={hdr.content_light[0]},{hdr.content_light[1]}")
    if not parts:
        return quiet
    key = {"h264": "x264-params", "hevc": "x265-params", "av1": "svtav1-params"}[codec]
    return {key: ":".join([value for value in quiet.values()] + parts)}


def _mastering_display(hdr: Hdr, whole: bool) -> str:
    """G(x,y)B(x,y)R(x,y)WP(x,y)L(most,least): whole numbers of SMPTE ST 2086's units, or the values themselves."""
    red, green, blue = hdr.primaries

    def told(pair: tuple[Fraction, Fraction], unit: int) -> str:
        values = (str(round(value * unit)) if whole else f"{float(value):.5f}" for value in pair)
        return f"({','.join(values)})"

    points = [
        f"{name}{told(pair, 50_000)}" for name, pair in (("G", green), ("B", blue), ("R", red), ("WP", hdr.white))
    ]
    return "".join(points) + f"L{told(hdr.luminance[::-1], 10_000)}"


def _set_display_width(path: pathlib.Path, width: int) -> None:
    """Gives a Matroska file its pixel aspect, which PyAV cannot hand to the muxer.

    The muxer has written a stereo mode with DisplayWidth and DisplayHeight. The first two elements give way to one
    DisplayWidth of the same number of bytes: EBML's numbers may begin with zeros.
    """
    with path.open("r+b") as file:
        head = file.read(_HEAD)
        place = head.find(_STEREO + _DISPLAY_WIDTH)
        if place < 0:
            raise ValueError("the muxer wrote no display size")
        count = len(_STEREO) + head[place + 6] - 0x80
        file.seek(place)
        file.write(_DISPLAY_WIDTH + bytes([0x80 | count]) + width.to_bytes(count, "big"))
