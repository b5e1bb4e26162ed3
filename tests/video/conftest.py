"""Small videos made on the spot."""

from fractions import Fraction

import av
import numpy as np
import pytest

ENCODERS = {
    ".mp4": "libx264",
    ".mov": "libx264",
    ".mkv": "libx264",
    ".ts": "libx264",
    ".webm": "libvpx-vp9",
    ".avi": "mpeg4",
}


def write_video(path, frames, fps=24, ticks=None, tone=None, gop=12, prepare=None, pix_fmt="yuv420p"):
    """Writes uint8 [n,h,w,3] frames; ticks: timestamps in ms; tone: an audio codec; prepare: called with the stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(ENCODERS[path.suffix], rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.gop_size = gop
        if ENCODERS[path.suffix] == "libx264":
            stream.options = {"crf": "10", "preset": "veryfast", "bf": "2"}
        if ticks is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if prepare:
            prepare(stream)
        sound = container.add_stream(tone, rate=48000, layout="mono") if tone else None
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if ticks is not None:
                picture.pts, picture.time_base = ticks[index], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        if sound:
            _write_tone(container, sound, len(frames) / fps)
    return path


def _write_tone(container, stream, seconds):
    wave = np.sin(2 * np.pi * 440 * np.arange(int(48000 * seconds)) / 48000)
    size = stream.codec_context.frame_size or 1024
    for start in range(0, len(wave) - size, size):
        samples = (wave[None, start : start + size] * 20000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


@pytest.fixture(scope="session")
def make_video():
    return write_video


@pytest.fixture(scope="session")
def counted():
    """Frames whose grey value tells their index, with a moving bar: uint8 [n,h,w,3]."""

    def make(num_frames, height=48, width=64):
        frames = np.zeros((num_frames, height, width, 3), np.uint8)
        for index in range(num_frames):
            frames[index] = 30 + (index * 37) % 200
            frames[index, :, (index * 3) % (width - 4) :][:, :4] = 255
        return frames

    return make
