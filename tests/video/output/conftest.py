"""Small sources of any codec, pixel format and timing, and canvases around them."""

import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest

from m3ddm_jax.video import FrameSink, FrameSource
from m3ddm_jax.video.output.codecs import Asked

_LOSSLESS = {"libx264": {"qp": "0"}, "libx265": {"x265-params": "lossless=1:log-level=none"}}


@pytest.fixture(scope="session")
def planes_of():
    """Function (frame): uint8 or uint16 [h,w] of each plane of a planar frame."""
    return _planes_of


@pytest.fixture(scope="session")
def noise():
    """Function (width, height, pixel_format, seed): a frame of random RGB in a pixel format."""
    return _noise


def _planes_of(frame):
    dtype = np.uint8 if frame.format.components[0].bits <= 8 else np.uint16
    return [np.frombuffer(plane, dtype).reshape(plane.height, -1)[:, : plane.width].copy() for plane in frame.planes]


def _noise(width, height, pixel_format, seed=0):
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    return av.VideoFrame.from_ndarray(rgb, format="rgba").reformat(format=pixel_format)


@pytest.fixture(scope="session")
def make_source():
    """Function (path, codec, pixel_format, ...): a video of 5 frames of noise, 64x48; returns its FrameSource.

    ticks: timestamps in ms. prepare: called with the stream. options: of the encoder.
    """

    def make(path, codec="ffv1", pixel_format="yuv420p", size=(64, 48), ticks=None, prepare=None, options=None):
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25, options=options or _LOSSLESS.get(codec, {}))
            (stream.width, stream.height), stream.pix_fmt = size, pixel_format
            if ticks is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            if prepare:
                prepare(stream)
            for index in range(5 if ticks is None else len(ticks)):
                frame = _noise(*size, pixel_format, index)
                if ticks is not None:
                    frame.pts, frame.time_base = ticks[index], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return FrameSource(path)

    return make


@pytest.fixture(scope="session")
def write_around():
    """Function (source, path, pad, masks, **asked): writes the source on a grey canvas with `pad` pixels on each side
    (left, top, right, bottom); returns the sink."""

    def write(source, path, pad=(8, 4, 8, 4), masks=None, **asked):
        left, top, right, bottom = pad
        box = (slice(top, top + source.height), slice(left, left + source.width))
        size = (source.height + top + bottom, source.width + left + right)
        with FrameSink(path, source.fps, *size, source=source, box=box, asked=Asked(**asked)) as sink:
            for index in range(len(source)):
                canvas = np.full((1, *size, 3), 90, np.uint8)
                canvas[:, *box] = source[index : index + 1]
                sink.write(canvas, masks)
        return sink

    return write


@pytest.fixture(scope="session")
def ffmpeg():
    """Function (*arguments): stdout of the ffmpeg command."""
    return _tool("ffmpeg")


@pytest.fixture(scope="session")
def ffprobe():
    """Function (*arguments): stdout of the ffprobe command, as text."""
    run = _tool("ffprobe")
    return lambda *arguments: run(*arguments).decode()


def _tool(name):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed: nothing judges what is written")

    def run(*arguments):
        command = [name, "-v", "error", *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout

    return run
