"""The command with the outpainters that need no model: what it writes, and which pixels."""

import os

import av
import numpy as np
import pytest

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.video import FrameSource
from tests.outpaint.helpers import line_of, run_process


def test_a_process_of_its_own_says_one_line_whatever_comes(folder, tmp_path):
    code, out, err = run_process(folder / "in.mp4", tmp_path / "out", "--aspect=16:9", "--method=mosaic")
    assert (code, len(out), err) == (0, 1, [])
    assert "even" in line_of(*run_process(folder / "in.mp4", tmp_path / "other", "--size=41x33", "--method=edge"))
    (tmp_path / "cut.mp4").write_bytes((folder / "in.mp4").read_bytes()[:-800])
    line = line_of(*run_process(tmp_path / "cut.mp4", tmp_path / "other", "--aspect=16:9", "--method=edge", "--strict"))
    assert "breaks off" in line and sorted(os.listdir(tmp_path)) == ["cut.mp4", "out"]
    code, _, err = run_process(tmp_path / "cut.mp4", tmp_path / "other", "--aspect=16:9", "--method=edge")
    found = len(FrameSource(tmp_path / "other"))
    assert code == 0 and len(err) == 1 and f"{found} frames came, at least 6 are expected" in err[0] and 0 < found < 6


@pytest.mark.parametrize("method", ["edge", "blur", "telea", "mosaic"])
@pytest.mark.parametrize("name", ["in.mp4", "frames"])
def test_known_pixels_are_exact(call, folder, tmp_path, method, name):
    code, out, err = call(folder / name, tmp_path / "out", "--aspect=16:9", f"--method={method}")
    assert code == 0 and err == []
    rate = "10 fps" if name == "in.mp4" else "24 fps"
    assert len(out) == 1 and all(word in out[0] for word in (str(tmp_path / "out"), "56x32", "6 frames", rate, " s"))
    written = FrameSource(tmp_path / "out")[:]
    canvas = Canvas.from_aspect(32, 40, 16 / 9)
    np.testing.assert_array_equal(written[:, *canvas.box], FrameSource(folder / name)[:])
    assert os.listdir(tmp_path) == ["out"]


def test_several_aspects_write_a_file_each(call, folder, tmp_path):
    code, out, err = call(folder / "in.mp4", tmp_path / "out.mkv", "--aspect=16:9,9:16,1:1", "--method=edge")
    assert code == 0 and err == [] and len(out) == 3
    sizes = {p.name: (FrameSource(p).width, FrameSource(p).height) for p in tmp_path.iterdir()}
    assert sizes == {"out_16x9.mkv": (56, 32), "out_9x16.mkv": (40, 72), "out_1x1.mkv": (40, 40)}
    assert all(FrameSource(path).fps == 10 and len(FrameSource(path)) == 6 for path in tmp_path.iterdir())


def test_pad_anchor_and_fps(call, folder, tmp_path):
    assert call(folder / "frames", tmp_path / "a", "--pad=2,4,6,0", "--method=edge")[0] == 0
    assert call(folder / "frames", tmp_path / "b", "--size=50x40", "--anchor=1,0.25", "--method=edge")[0] == 0
    assert call(folder / "frames", tmp_path / "c.mp4", "--aspect=1:1", "--fps=12.5", "--method=edge")[0] == 0
    source = FrameSource(folder / "frames")[:]
    np.testing.assert_array_equal(FrameSource(tmp_path / "a")[:][:, 4:36, 2:42], source)
    np.testing.assert_array_equal(FrameSource(tmp_path / "b")[:][:, 2:34, 10:50], source)
    assert FrameSource(tmp_path / "c.mp4").fps == 12.5


def test_sound_that_is_converted_or_lost_is_reported(call, folder, tmp_path):
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        video, sound = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=48000, layout="mono")
        video.height = video.width = 32
        video.pix_fmt = "yuv420p"
        for frame in np.zeros((10, 32, 32, 3), np.uint8):
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame)))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
        samples.sample_rate = 48000
        container.mux([*video.encode(None), *sound.encode(samples), *sound.encode(None)])
    code, out, err = call(tmp_path / "sound.mkv", tmp_path / "out.webm", "--aspect=16:9", "--method=edge")
    assert (code, len(out), err) == (0, 1, ["outpaint: out.webm: converted: audio 1 (aac) to opus"])
    code, out, err = call(tmp_path / "sound.mkv", tmp_path / "out.gif", "--aspect=16:9", "--method=edge")
    assert (code, len(out), err) == (0, 1, ["outpaint: out.gif: left out: sound"])
    code, out, err = call(tmp_path / "sound.mkv", tmp_path / "out.mp4", "--aspect=16:9", "--method=edge")
    assert (code, len(out), len(err)) == (0, 1, 0)


@pytest.mark.parametrize("name", ["with space.mp4", "10:30.mp4", "100%d.mp4", "%03d.mkv", "a.b.webm", "x'y\".mov"])
def test_names_are_taken_literally(call, folder, tmp_path, name):
    source = tmp_path / f"in {name.rpartition('.')[0]}.mp4"
    source.write_bytes((folder / "in.mp4").read_bytes())
    code, out, err = call(source, tmp_path / name, "--aspect=16:9", "--method=edge")
    assert (code, err) == (0, []) and len(FrameSource(tmp_path / name)) == 6
    assert sorted(os.listdir(tmp_path)) == sorted([source.name, name])


def test_outputs_by_name(call, refused, folder, tmp_path):
    flags = ("--aspect=16:9", "--method=edge")
    for name in ("frames.v2/", "plain", "plain/"):
        assert call(folder / "in.mp4", f"{tmp_path}/{name}", *flags)[0] == 0
    (tmp_path / "there.x").mkdir()
    assert call(folder / "in.mp4", tmp_path / "there.x", *flags)[0] == 0
    assert sorted(os.listdir(tmp_path)) == ["frames.v2", "plain", "there.x"]
    assert all(len(FrameSource(path)) == 6 for path in tmp_path.iterdir())
    for name, words in (
        ("out.mxf", "must end in .mp4, .mov, .mkv, .webm, .gif, .png, .jpg, .jpeg, .webp, or in / for a folder of PNG"),
        ("out.png", "an image holds one frame, the source has 6"),
    ):
        assert words in refused(folder / "in.mp4", tmp_path / name, *flags)
    assert "must be a file or a folder" in refused(folder / "in.mp4", "-", *flags)
    single = tmp_path / "plain" / "000000.png"
    for suffix in (".png", ".jpg", ".webp"):
        assert call(single, tmp_path / f"one{suffix}", "--pad=8,0,8,0", "--method=edge")[0] == 0
        assert FrameSource(tmp_path / f"one{suffix}").width == 72


def test_encodings_are_asked_for_by_flags(call, refused, folder, tmp_path):
    flags = ("--size=80x40", "--method=edge", "--codec=hevc", "--pixel-format=yuv422p10le", "--quality=30")
    assert call(folder / "in.mp4", tmp_path / "out.mp4", *flags)[0] == 0
    assert FrameSource(tmp_path / "out.mp4").pixel_format == "yuv422p10le"
    for flag, words in (
        ("--quality=52", "--quality must lie in 0..51 for h264, found 52"),
        ("--codec=ffv1", "--codec must be one of h264, hevc, av1, vp9 for .mp4, found 'ffv1'"),
        ("--pixel-format=rgb", "--pixel-format must be one of yuv420p"),
    ):
        assert words in refused(folder / "in.mp4", tmp_path / "other.mp4", *flags[:2], flag)
