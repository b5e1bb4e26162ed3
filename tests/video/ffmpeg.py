"""What judges reading: the ffmpeg command line, and the bytes of a frame as it writes them."""

import shutil
import subprocess
from fractions import Fraction

import av
import pytest


def raw_bytes(frame):
    """The samples of a frame as ffmpeg's raw video has them."""
    encoder = av.CodecContext.create("rawvideo", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, frame.format.name
    encoder.time_base, frame.pts = Fraction(1, 25), 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def ffmpeg_frames(path, pixel_format, size, *options):
    """Frames that ffmpeg decodes, as bytes; skips the test where it is not installed."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("nothing judges the frames: ffmpeg is not installed (apt-get install ffmpeg)")
    command = ["ffmpeg", "-v", "error", "-i", path, *options, "-an", "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", pixel_format, "-"]
    data = subprocess.run(list(map(str, command)), capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout
    assert len(data) % size == 0, f"{len(data)} bytes are no frames of {size}"
    return [data[start : start + size] for start in range(0, len(data), size)]


def native_frames(source, indices=None):
    """Frames of a source in its own pixel format, as bytes."""
    return [raw_bytes(source.native(index)) for index in (range(len(source)) if indices is None else indices)]
