"""Container x codec x pixel format x timing: files made on the spot, judged by plain decoding and by ffmpeg."""

from fractions import Fraction

import av
import numpy as np
import pytest

from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.container import open_container
from tests.video.ffmpeg import ffmpeg_frames, native_frames, raw_bytes

NUM_FRAMES = 25
# suffix, encoder, pixel format, container format, encoder's options
CASES = [
    (".mp4", "libx264", "yuv420p", None, {"bf": "3"}),
    (".mp4", "libx264", "yuv444p10le", None, {"bf": "3"}),
    (".mkv", "libx264", "yuv422p", None, {"bf": "3", "g": "8", "x264-params": "open-gop=1"}),
    (".ts", "libx264", "yuv420p", None, {"bf": "3", "g": "8", "x264-params": "open-gop=1"}),
    (".mkv", "libx264", "yuv420p", None, {"bf": "0", "x264-params": "intra-refresh=1:keyint=8"}),
    (".avi", "libx264", "yuv420p", None, {"bf": "3", "g": "8"}),
    (".flv", "libx264", "yuv420p", None, {"bf": "2"}),
    (".h264", "libx264", "yuv420p", "h264", {"bf": "2"}),
    (".mkv", "libx265", "yuv420p10le", None, {"x265-params": "log-level=none:keyint=8:open-gop=1"}),
    (".webm", "libvpx-vp9", "yuv420p", None, {"lag-in-frames": "10"}),
    (".webm", "libvpx", "yuv420p", None, {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "100k"}),
    (".mpg", "mpeg2video", "yuv420p", None, {"bf": "2", "g": "8"}),
    (".vob", "mpeg2video", "yuv420p", "dvd", {"bf": "2", "g": "8"}),
    (".ts", "mpeg2video", "yuv420p", None, {"bf": "2", "g": "8"}),
    (".avi", "mpeg4", "yuv420p", None, {"bf": "2", "g": "8"}),
    (".mp4", "mpeg4", "yuv420p", None, {"bf": "2", "g": "8"}),
    (".wmv", "wmv2", "yuv420p", "asf", {}),
    (".flv", "flv", "yuv420p", None, {}),
    (".avi", "mjpeg", "yuvj420p", None, {}),
    (".mov", "prores_ks", "yuv422p10le", None, {}),
    (".mov", "qtrle", "argb", None, {}),
    (".avi", "rawvideo", "yuv420p", None, {}),
    (".y4m", "wrapped_avframe", "yuv420p", "yuv4mpegpipe", {}),
    *[(".mkv", "ffv1", name, None, {}) for name in ("yuv410p", "yuv411p", "yuv440p", "gray", "gray10le", "gbrp10le")],
    (".mkv", "ffv1", "yuva420p", None, {}),
    (".apng", "apng", "rgb24", None, {}),
    (".gif", "gif", "rgb8", None, {}),
]


def frames_of(pixel_format):
    """Frames of noise that brightens by 6 a frame."""
    noise = np.random.default_rng(0).integers(0, 60, (NUM_FRAMES, 48, 64, 3))
    for index, picture in enumerate(noise):
        frame = av.VideoFrame.from_ndarray((picture + 6 * index).astype(np.uint8), format="rgb24")
        frame = frame.reformat(format=pixel_format)
        frame.pts = index
        yield frame


def make_file(path, encoder, pixel_format, container_format=None, options=None, ticks=None):
    """Writes the frames at 25 per second, or at `ticks` in ms."""
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(encoder, rate=25, options=dict(options or {}))
        stream.height, stream.width, stream.pix_fmt = 48, 64, pixel_format
        if ticks:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, frame in enumerate(frames_of(pixel_format)):
            if ticks:
                frame.pts, frame.time_base = ticks[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[1]}-{case[2]}{case[0]}")
def made(request, tmp_path_factory):
    """A file, and the bytes of its frames as decoding in order gives them."""
    suffix, encoder, *rest = request.param
    if encoder not in av.codecs_available and encoder != "wrapped_avframe":
        pytest.skip(f"PyAV has no encoder {encoder}")
    path = make_file(tmp_path_factory.mktemp("made") / f"video{suffix}", encoder, *rest)
    with open_container(path) as container:
        return path, [raw_bytes(frame) for frame in container.decode(video=0)]


def test_frames_are_those_of_decoding_in_order(made):
    path, frames = made
    source = FrameSource(path)
    assert len(source) == len(frames)
    assert native_frames(source) == frames
    assert source.pixel_format == source.native(0).format.name and len(source[:]) == len(frames)


def test_frames_are_those_of_ffmpeg(made):
    path, frames = made
    source = FrameSource(path)
    assert native_frames(source) == ffmpeg_frames(path, source.pixel_format, len(frames[0]))


def test_random_access_gives_the_same_frames(made):
    path, frames = made
    source = FrameSource(path)
    order = np.random.default_rng(1).permutation(len(frames))[:8].tolist() + [0, len(frames) - 1]
    assert native_frames(source, order) == [frames[index] for index in order]
    np.testing.assert_array_equal(source[order], FrameSource(path)[:][order])


def test_frames_come_at_25_a_second(made):
    path, frames = made
    source = FrameSource(path)
    np.testing.assert_allclose(source.timestamps, np.arange(len(frames)) / source.fps, atol=1e-6)
    if path.suffix != ".h264":  # which has no clock
        assert source.fps == pytest.approx(25, abs=0.1)
        assert source.timestamps[-1] + source.durations[-1] == pytest.approx(len(frames) / 25, abs=0.002)


def test_bytes_of_a_file_are_read_as_the_file_is(made):
    path, frames = made
    source = FrameSource(path.read_bytes(), threads=1)
    assert source.path is None and native_frames(source) == frames


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_uneven_timing(tmp_path, suffix):
    ticks = np.cumsum([40, 33, 17, 80, 40] * 5).tolist()
    encoder = "libvpx-vp9" if suffix == ".webm" else "libx264"
    source = FrameSource(make_file(tmp_path / f"uneven{suffix}", encoder, "yuv420p", ticks=ticks))
    np.testing.assert_allclose(source.timestamps, (np.array(ticks) - ticks[0]) / 1000, atol=1e-6)
    assert source.clock.shift(ticks[3] / 1000) == pytest.approx(source.timestamps[3], abs=0.002)
    np.testing.assert_allclose(source.durations[:-1], np.diff(ticks) / 1000, atol=1e-6)
