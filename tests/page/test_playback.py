"""Videos that browsers do not play are copied as H.264 of 8 bits."""

import numpy as np
import pytest

from m3ddm_jax.page.playback import playable
from m3ddm_jax.video import FrameSink, FrameSource
from m3ddm_jax.video.output.codecs import Asked


def write(path, **asked):
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8)
    with FrameSink(path, 24, 64, 96, asked=Asked(**asked)) as sink:
        sink.write(frames)
    return path


@pytest.mark.parametrize(("name", "codec"), [("in.mp4", "h264"), ("in.webm", "vp9")])
def test_a_video_that_browsers_play_is_shown_itself(tmp_path, name, codec):
    path = write(tmp_path / name, codec=codec, pixel_format="yuv420p")
    assert playable(path, tmp_path) == path


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("in.mp4", {"codec": "hevc", "pixel_format": "yuv420p10le"}),
        ("in.mkv", {"codec": "ffv1"}),
        ("in.mp4", {"codec": "h264", "pixel_format": "yuv444p"}),
    ],
)
def test_others_are_copied(tmp_path, name, asked):
    path = write(tmp_path / name, **asked)
    copy = playable(path, tmp_path)
    assert copy != path and playable(copy, tmp_path) == copy
    assert len(FrameSource(copy)) == 3
