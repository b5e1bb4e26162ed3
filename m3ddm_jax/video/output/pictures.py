"""Writing images: a folder of PNG, a single PNG, JPEG or WebP, and GIF, whose colours are chosen frame by frame."""

import contextlib
import pathlib
from fractions import Fraction

import av
import numpy as np

from m3ddm_jax.video.colour import FULL, SMPTE170M, Colour
from m3ddm_jax.video.output.codecs import Encoding
from m3ddm_jax.video.output.composition import Box, Composer
from m3ddm_jax.video.output.movie import Timing
from m3ddm_jax.video.source import FrameSource

_LOOPING = {".gif", ".png", ".apng", ".webp"}  # sources that say how often they play


class ImageEncoder:
    """Bytes of one image a canvas frame."""

    def __init__(self, encoding: Encoding, source: FrameSource | None, size: tuple[int, int], box: Box | None = None):
        self._encoding, self._size = encoding, size
        self._jpeg = encoding.codec == "jpeg"
        # JFIF has one meaning of YUV.
        colour = Colour(SMPTE170M, True) if self._jpeg or source is None else source.colour
        self._composer = Composer(encoding.pixel_format, colour, *size, box)

    def encode(self, frame: np.ndarray, native: av.VideoFrame | None, mask: np.ndarray | None) -> bytes:
        picture = self._composer.compose(frame, native, mask)
        encoder = av.CodecContext.create(self._encoding.encoder, "w")
        (encoder.height, encoder.width), encoder.pix_fmt = self._size, self._encoding.pixel_format
        encoder.time_base, encoder.thread_count = Fraction(1, 1), 1
        options = dict(self._encoding.options)
        if self._jpeg:
            encoder.color_range = FULL
            encoder.qmin = encoder.qmax = int(options.pop("qscale"))
        encoder.options = options
        return b"".join(map(bytes, [*encoder.encode(picture), *encoder.encode(None)]))


class FolderWriter:
    """Fills a folder with PNG named 000000.png on."""

    def __init__(self, folder: pathlib.Path, encoder: ImageEncoder):
        self._folder, self._encoder = folder, encoder

    def write(self, frame: np.ndarray, index: int, native: av.VideoFrame | None, mask: np.ndarray | None) -> None:
        (self._folder / f"{index:06d}.png").write_bytes(self._encoder.encode(frame, native, mask))

    def finish(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class ImageWriter:
    """A single image."""

    def __init__(self, path: pathlib.Path, encoder: ImageEncoder):
        self._path, self._encoder = path, encoder

    def write(self, frame: np.ndarray, index: int, native: av.VideoFrame | None, mask: np.ndarray | None) -> None:
        if index:
            raise ValueError("an image holds one frame, found more")
        self._path.write_bytes(self._encoder.encode(frame, native, mask))

    def finish(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class GifWriter:
    """A GIF with one palette a frame, so that no pass over the whole video is needed."""

    def __init__(self, path: pathlib.Path, fps: float, size: tuple[int, int], source: FrameSource | None, alpha: bool):
        self._timing = Timing(fps, source)
        options = {"loop": str(_loops(source))}
        if source is not None:
            options["final_delay"] = str(min(65535, max(1, round(100 * float(source.durations[-1])))))
        self._output = av.open(f"file:{path}", "w", format="gif", options=options)
        self._stream = self._output.add_stream("gif", rate=self._timing.rate)
        (self._stream.height, self._stream.width), self._stream.pix_fmt = size, "pal8"
        self._stream.codec_context.time_base = self._timing.time_base
        self._filters = self._make_filters(size, alpha)

    def _make_filters(self, size: tuple[int, int], alpha: bool) -> av.filter.Graph:
        graph = av.filter.Graph()
        pixels = av.VideoFormat("rgba" if alpha else "rgb24")
        source = graph.add_buffer(height=size[0], width=size[1], format=pixels, time_base=self._timing.time_base)
        split = graph.add("split")
        palette = graph.add("palettegen", f"stats_mode=single:reserve_transparent={int(alpha)}")
        use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
        source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(palette, 1, 0)
        palette.link_to(use, 0, 1)
        use.link_to(graph.add("buffersink"))
        graph.configure()
        return graph

    def write(self, frame: np.ndarray, index: int, native: av.VideoFrame | None, mask: np.ndarray | None) -> None:
        pixels = "rgba" if frame.shape[-1] == 4 else "rgb24"
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=pixels)
        picture.time_base, picture.pts = self._timing.time_base, self._timing.ticks(index)
        self._filters.push(picture)
        self._output.mux(self._stream.encode(self._filters.pull()))

    def finish(self) -> None:
        self._output.mux(self._stream.encode(None))
        self._output.close()

    def abandon(self) -> None:
        # what is in the file is thrown away in any case
        with contextlib.suppress(av.error.FFmpegError, OSError):
            self._output.close()


def _loops(source: FrameSource | None) -> int:
    """The GIF muxer's number of repeats: -1 plays once, 0 for ever. APNG and WebP count plays."""
    suffix = source.path.suffix.lower() if source is not None and source.path is not None else ""
    if suffix not in _LOOPING or not source.path.is_file():
        return 0
    if source.loops is None:
        return -1
    return source.loops if suffix == ".gif" or source.loops == 0 else (source.loops - 1 or -1)
