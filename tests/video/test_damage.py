import re
from fractions import Fraction

import av
import numpy as np
import pytest

from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.errors import Damaged

CODECS = {
    "matroska": ("libx264", "yuv420p"),
    "webm": ("libvpx-vp9", "yuv420p"),
    "mpegts": ("libx264", "yuv420p"),
    "mpeg": ("mpeg2video", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "gif": ("gif", "rgb8"),
    "yuv4mpegpipe": ("wrapped_avframe", "yuv420p"),
    "mp4": ("libx264", "yuv420p"),
}
COUNT = 48


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Container -> bytes of a video of 48 different frames, 24 a second."""
    rng, videos, folder = np.random.default_rng(0), {}, tmp_path_factory.mktemp("videos")
    frames = [(rng.integers(0, 64, (48, 64, 3)) + 3 * index).astype(np.uint8) for index in range(COUNT)]
    for name, (codec, pixels) in CODECS.items():
        path = folder / name
        with av.open(
            str(path), "w", format=name, options={"movflags": "+faststart"} if name == "mp4" else {}
        ) as container:
            stream = container.add_stream(codec, rate=24, options={"g": "8"})
            stream.height, stream.width, stream.pix_fmt = 48, 64, pixels
            if name == "mpeg":
                stream.bit_rate = 2_000_000  # pictures of several packets
            for index, frame in enumerate(frames):
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)
                picture.pts, picture.time_base = index, Fraction(1, 24)
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        videos[name] = path.read_bytes()
    return videos


def read(data):
    """The frames as outpaint reads them, and the notes."""
    try:
        source = FrameSource(data, damage="note")
        return source[:], source.notes
    except Damaged:
        source = FrameSource(data, damage="search")
        return source[:], source.notes


def cut(data, name):
    return data[: int(0.6 * len(data)) + 1]


def cut_between_packets(data, name):
    """Without the last packet of a picture in MPEG-TS: a flag in the second byte tells where one begins."""
    starts = [at for at in range(0, int(0.7 * len(data)), 188) if data[at + 1 : at + 3] == b"\x41\x00"]
    return data[: starts[-1] - 188]


def blanked(data, name):
    start = int(0.5 * len(data))
    return data[:start] + bytes(800) + data[start + 800 :]


@pytest.mark.parametrize("name", CODECS)
def test_a_whole_video_has_no_note(videos, name):
    source = FrameSource(videos[name])
    assert len(source) == COUNT and source.notes == []
    np.testing.assert_array_equal(FrameSource(videos[name], damage="search")[:], source[:])


@pytest.mark.parametrize(
    "damage, name",
    [(cut, name) for name in CODECS]
    + [(blanked, name) for name in ("matroska", "webm", "mpegts", "mpeg", "gif")]
    + [(cut_between_packets, "mpegts")],
)
def test_a_damaged_video_is_read_as_far_as_it_goes_with_both_counts(videos, damage, name):
    data = damage(videos[name], name)
    frames, notes = read(data)
    (note,) = notes
    counts = re.search(r"(\d+) frames came, at least (\d+) are expected", note)
    assert int(counts[1]) == len(frames) < int(counts[2]) <= COUNT and "\n" not in note
    whole = FrameSource(videos[name])[:]
    if damage is cut and name not in ("matroska", "mpegts"):  # the last frame before a cut may be a part of itself
        np.testing.assert_array_equal(frames[:-1], whole[: len(frames) - 1])
    with pytest.raises(Damaged) as refused:
        FrameSource(data)[:]
    if counts := re.search(r"(\d+) frames came, at least (\d+) are expected", str(refused.value)):
        assert int(counts[1]) < int(counts[2])


def test_recordings_that_are_joined_within_a_picture_have_no_note(videos):
    whole = videos["mpeg"]
    source = FrameSource(whole + whole[len(whole) // 3 :])
    assert len(source) > COUNT and source.notes == []


def test_a_track_that_begins_in_the_middle_is_passed_over(make_video, counted, tmp_path):
    data = make_video(tmp_path / "a.ts", counted(120)).read_bytes()
    start = [at for at in range(0, len(data), 188) if data[at + 1 : at + 3] == b"\x41\x00"][-1]
    stranger = data[start : start + 1] + b"\x43" + data[start + 2 : start + 188]  # as of another track
    assert len(FrameSource(data[:start] + stranger + data[start:], damage="note")) == 120


def test_frames_are_neither_doubled_nor_made_up(videos):
    frames, _ = read(blanked(videos["mpegts"], "mpegts"))
    brightness = frames.astype(float).mean((1, 2, 3))
    assert (np.diff(brightness) > 0.5).all(), "every frame is brighter than the one before"


@pytest.mark.parametrize("rate", ["1:1000000000", "1000000000:1", "0:1", "1:0", "2147483647:1"])
def test_impossible_rates_are_one_line(rate):
    frame = b"FRAME\n" + bytes(16 * 16 * 3 // 2)
    data = f"YUV4MPEG2 W16 H16 F{rate} Ip A1:1 C420jpeg\n".encode() + 3 * frame
    try:
        fps = FrameSource(data).fps
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert 1e-3 <= fps <= 1e5


@pytest.mark.parametrize("fps", [1e-9, 1e308, -1, 0, float("nan"), float("inf")])
def test_rates_that_are_asked_for_are_bounded(videos, fps):
    with pytest.raises(ValueError, match="fps must be 0.001 to 100000 frames per second"):
        FrameSource(videos["mp4"], fps)
