import av
import numpy as np
import pytest

from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.clock import Clock, Piece


def test_one_piece_shifts_all_times():
    assert Clock((Piece(0.7, 4.7, -0.7),)).shift(0.2) == pytest.approx(-0.5)


def test_positions_tell_pieces_apart():
    clock = Clock((Piece(1, 5, -1, 0, 800), Piece(1, 3, 3, 1000, 1900)))
    assert clock.shift(2, 100) == 1 and clock.shift(2, 1500) == 5
    assert clock.shift(4.9, 900) == pytest.approx(3.9)
    assert clock.shift(0.98, 990) == pytest.approx(3.98), "sound may come before the pictures of its piece"


@pytest.mark.parametrize("offset", [0, 100, -50])
def test_a_jumping_clock_runs_on(tmp_path, make_video, counted, offset):
    first = make_video(tmp_path / "a.ts", counted(20), fps=25)
    ticks = [200_000 + offset * 1000 + 40 * index for index in range(15)]
    second = make_video(tmp_path / "b.ts", counted(35)[20:], fps=25, ticks=ticks)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    source = FrameSource(joined)
    assert len(source) == 35 and source.fps == pytest.approx(25)
    np.testing.assert_allclose(source.timestamps, np.arange(35) / 25, atol=1e-6)
    assert np.abs(source[:][:, 4:].astype(int) - counted(35)[:, 4:]).mean() < 5
    np.testing.assert_array_equal(source[[30, 3]], source[:][[30, 3]])


@pytest.mark.parametrize(
    ("suffix", "encoder", "pixel_format"),
    [(".mkv", "ffv1", "yuv420p"), (".mov", "prores_ks", "yuv422p10le"), (".webm", "libvpx-vp9", "yuv420p")],
)
def test_the_last_frame_of_a_slideshow_keeps_its_duration(tmp_path, counted, suffix, encoder, pixel_format):
    path = tmp_path / f"slides{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=1)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pixel_format
        packets = []
        for index, picture in enumerate(counted(3)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index
            packets += stream.encode(frame)
        for packet in [*packets, *stream.encode(None)]:
            packet.duration = round((7 if packet.pts == 2 else 1) / packet.time_base)
            container.mux(packet)
    source = FrameSource(path)
    assert source.durations.tolist() == pytest.approx([1, 1, 7])
    assert len(FrameSource(path, fps=2)) == 18
