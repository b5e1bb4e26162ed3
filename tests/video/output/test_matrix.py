"""Container x codec x pixel format x timing, judged by the ffmpeg command."""

import json

import av
import numpy as np
import pytest

EVEN, UNEVEN = [0, 40, 80, 120, 160], [0, 40, 200, 210, 1000]
CASES = [
    (".mp4", "h264", "yuv420p", "yuv420p", EVEN),
    (".mp4", "h264", "yuv444p", "yuv444p", UNEVEN),
    (".mp4", "hevc", "yuv420p10le", "yuv420p10le", UNEVEN),
    (".mp4", "hevc", "yuv422p12le", "yuv422p12le", EVEN),
    (".mp4", "av1", "yuv420p10le", "yuv420p10le", UNEVEN),
    (".mp4", "vp9", "yuv420p", "yuv420p", UNEVEN),
    (".mov", "h264", "yuv422p", "yuv422p", UNEVEN),
    (".mov", "hevc", "yuv444p10le", "yuv444p10le", EVEN),
    (".mov", "prores", "yuv422p10le", "yuv422p10le", UNEVEN),
    (".mkv", "h264", "yuv420p10le", "yuv420p10le", UNEVEN),
    (".mkv", "av1", "yuv420p", "yuv420p", EVEN),
    (".mkv", "vp9", "yuv440p", "yuv440p", UNEVEN),
    (".mkv", "ffv1", "yuv422p10le", "yuv422p10le", UNEVEN),
    (".mkv", "ffv1", "yuv410p", "yuv410p", EVEN),
    (".mkv", "ffv1", "gray10le", "gray10le", UNEVEN),
    (".webm", "vp9", "yuv444p", "yuv444p", UNEVEN),
    (".webm", "av1", "yuv420p10le", "yuv420p10le", EVEN),
]


@pytest.mark.parametrize(("suffix", "codec", "pixel_format", "written", "ticks"), CASES)
def test_ffmpeg_sees_the_source(
    tmp_path, make_source, write_around, ffmpeg, ffprobe, suffix, codec, pixel_format, written, ticks
):
    def tag(stream):
        stream.codec_context.colorspace = 6
        stream.codec_context.color_range = 1

    source = make_source(tmp_path / "in.mkv", "ffv1", pixel_format, ticks=ticks, prepare=tag)
    path = tmp_path / f"out{suffix}"
    lowest = {"av1": 1, "prores": None, "ffv1": None}.get(codec, 0)
    assert write_around(source, path, codec=codec, quality=lowest).notes == []
    entries = "stream=codec_name,pix_fmt,width,height,color_space,color_range:frame=pts_time,pkt_pts_time"
    found = json.loads(ffprobe("-select_streams", "v:0", "-show_entries", entries, "-of", "json", path))
    (stream,) = found["streams"]
    assert (stream["codec_name"], stream["pix_fmt"]) == (codec, written)
    assert (stream["width"], stream["height"]) == (80, 56)
    if codec != "prores":
        assert (stream["color_space"], stream["color_range"]) == ("smpte170m", "tv")
    times = [float(frame.get("pts_time", frame.get("pkt_pts_time"))) for frame in found["frames"]]
    np.testing.assert_allclose(np.array(times) - times[0], np.array(ticks) / 1000, atol=0.0011)
    raw = ("-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", written, "-")
    dtype = np.uint8 if av.VideoFormat(written).components[0].bits <= 8 else np.uint16
    expected = np.frombuffer(ffmpeg("-i", tmp_path / "in.mkv", *raw), dtype).astype(int)
    shown = np.frombuffer(ffmpeg("-i", path, "-vf", "crop=64:48:8:4:exact=1", *raw), dtype).astype(int)
    error = np.abs(expected - shown).mean() / 2 ** av.VideoFormat(written).components[0].bits
    assert error <= {"ffv1": 0, "prores": 0.05}.get(codec, 0.02)
