import os
import pathlib

import av
import numpy as np
import pytest

from m3ddm_jax.video import FrameSink, FrameSource
from m3ddm_jax.video import sink as sink_module


def sound_of(path):
    """(seconds, bytes) of all packets of the first audio stream."""
    with av.open(str(path)) as container:
        packets = container.demux(audio=0)
        return [(float(p.pts * p.time_base), bytes(p)) for p in packets if p.size]


def copy(source, path, frames=None):
    frames = source[:] if frames is None else frames
    with FrameSink(path, source.fps, *frames.shape[1:3], source=source) as sink:
        for start in range(0, len(frames), 5):
            sink.write(frames[start : start + 5])
    return sink


def test_a_folder_of_png_is_lossless(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 34, 62, 3), np.uint8)
    with FrameSink(tmp_path / "out", 24, 34, 62) as sink:
        sink.write(frames)
    assert sorted(os.listdir(tmp_path / "out")) == [f"{i:06d}.png" for i in range(4)]
    np.testing.assert_array_equal(FrameSource(tmp_path / "out")[:], frames)
    with FrameSink(tmp_path / "out", 24, 34, 62) as sink:  # once more: a former output is replaced, nothing stays
        sink.write(frames[:2])
    np.testing.assert_array_equal(FrameSource(tmp_path / "out")[:], frames[:2])


@pytest.mark.parametrize("fps", [8, 24, 25, 30000 / 1001, 60])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".gif", ".MP4"])
def test_frames_and_rate_are_kept(tmp_path, counted, suffix, fps):
    frames = counted(20)
    path = tmp_path / f"out{suffix}"
    copy(FrameSource.from_array(frames, fps), path)
    source = FrameSource(path)
    assert len(source) == 20
    # a gif counts in hundredths of a second
    assert source.fps == pytest.approx(fps, rel=0.02 if suffix == ".gif" else 1e-4)
    np.testing.assert_allclose(source.timestamps, np.arange(20) / fps, atol=0.011 if suffix == ".gif" else 0.001)
    assert np.abs(source[:].astype(int) - frames).mean() < 6
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_uneven_timestamps_are_kept(tmp_path, make_video, counted, suffix):
    ticks = [0, 40, 80, 200, 210, 500, 540, 1000]
    source = FrameSource(make_video(tmp_path / "uneven.mp4", counted(8), ticks=ticks))
    copy(source, tmp_path / f"out{suffix}")
    np.testing.assert_allclose(FrameSource(tmp_path / f"out{suffix}").timestamps, np.array(ticks) / 1000, atol=0.001)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_sound_is_copied_as_it_is(tmp_path, make_video, counted, suffix):
    path = make_video(tmp_path / "sound.mp4", counted(48), tone="aac")
    source = FrameSource(path)
    sink = copy(source, tmp_path / f"out{suffix}", np.zeros((48, 60, 80, 3), np.uint8))
    before, after = sound_of(path), sound_of(tmp_path / f"out{suffix}")
    assert sink.lost_sound is None
    assert [data for _, data in after] == [data for _, data in before]
    begin = FrameSource(tmp_path / f"out{suffix}").start_time
    moments = np.array([moment for moment, _ in after]) - begin
    np.testing.assert_allclose(moments, [moment - source.start_time for moment, _ in before], atol=0.002)


@pytest.mark.parametrize(
    ("codec", "suffix", "kept"), [("aac", ".webm", 0), ("libopus", ".webm", 1), ("aac", ".gif", 0)]
)
def test_sound_that_the_container_cannot_hold(tmp_path, make_video, counted, codec, suffix, kept):
    source = FrameSource(make_video(tmp_path / "sound.mkv", counted(24), tone=codec))
    sink = copy(source, tmp_path / f"out{suffix}")
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert len(container.streams.audio) == kept
    assert (sink.lost_sound is None) == bool(kept)
    if not kept:
        assert codec in sink.lost_sound and "\n" not in sink.lost_sound
    assert len(FrameSource(tmp_path / f"out{suffix}")) == 24


def test_pixel_aspect_is_kept(tmp_path, make_video, counted):
    def wide(stream):
        stream.codec_context.sample_aspect_ratio = sink_module.Fraction(4, 3)

    source = FrameSource(make_video(tmp_path / "w.mp4", counted(2), prepare=wide))
    copy(source, tmp_path / "out.mp4")
    assert FrameSource(tmp_path / "out.mp4").pixel_aspect == source.pixel_aspect == sink_module.Fraction(4, 3)


@pytest.mark.parametrize("name", ["out.mp4", "out.gif", "out"])
def test_a_failure_leaves_nothing(tmp_path, counted, name):
    with pytest.raises(RuntimeError), FrameSink(tmp_path / name, 24, 48, 64) as sink:
        sink.write(counted(3))
        raise RuntimeError
    with pytest.raises(ValueError, match="no frames"), FrameSink(tmp_path / name, 24, 48, 64):
        pass
    with pytest.raises(ValueError, match="are needed"), FrameSink(tmp_path / name, 24, 48, 64) as sink:
        sink.write(counted(3, 48, 62))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "out"])
def test_a_failure_keeps_what_was_there(tmp_path, counted, name):
    with FrameSink(tmp_path / name, 24, 48, 64) as sink:
        sink.write(counted(3))
    with pytest.raises(RuntimeError), FrameSink(tmp_path / name, 24, 48, 64) as sink:
        sink.write(counted(5))
        raise RuntimeError
    assert len(FrameSource(tmp_path / name)) == 3
    assert os.listdir(tmp_path) == [name]


def test_what_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.png").touch()
    for name, reason in (
        ("out.avi", "must end in .mp4, .mov, .mkv, .webm, .gif"),
        ("out.png", "must end in"),
        ("nowhere/out.mp4", "there is no folder"),
        ("folder.mp4", "it is a folder"),
        ("file", "it is a file"),
        ("mine", "holds other things, such as holiday.png"),
    ):
        with pytest.raises(ValueError, match=reason):
            FrameSink(tmp_path / name, 24, 48, 64)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.mp4", "mine"]


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="/dev/full is not here: nothing is always full")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".gif"])
def test_a_full_disk(tmp_path, monkeypatch, suffix):
    """The file beside the output is a link to a device that is always full."""
    monkeypatch.setattr(sink_module, "_remove", lambda path: None)
    part = tmp_path / f".out{suffix}.part"
    part.symlink_to("/dev/full")
    frames = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), np.uint8)
    with (
        pytest.raises(ValueError, match=f"cannot write .*out{suffix}: No space left"),
        FrameSink(tmp_path / f"out{suffix}", 24, 48, 64) as sink,
    ):
        sink.write(frames)
    assert not (tmp_path / f"out{suffix}").exists()
