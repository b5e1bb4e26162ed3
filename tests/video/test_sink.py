import os
import pathlib
from fractions import Fraction

import av
import numpy as np
import pytest

from m3ddm_jax.files import writing
from m3ddm_jax.files.places import MARKER
from m3ddm_jax.video import FrameSink, FrameSource
from m3ddm_jax.video.output.codecs import NOTHING_ASKED, Asked


def sound_of(path):
    """(seconds, bytes) of all packets of the first audio stream."""
    with av.open(str(path)) as container:
        packets = container.demux(audio=0)
        return [(float(p.pts * p.time_base), bytes(p)) for p in packets if p.size]


def copy(source, path, frames=None, asked=NOTHING_ASKED):
    frames = source[:] if frames is None else frames
    with FrameSink(path, source.fps, *frames.shape[1:3], source=source, asked=asked) as sink:
        for start in range(0, len(frames), 5):
            sink.write(frames[start : start + 5])
    return sink


def test_a_folder_of_png_is_lossless(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 34, 62, 3), np.uint8)
    with FrameSink(tmp_path / "out", 24, 34, 62) as sink:
        sink.write(frames)
    assert sorted(os.listdir(tmp_path / "out")) == [MARKER, *(f"{i:06d}.png" for i in range(4))]
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
    assert sink.notes == []
    assert [data for _, data in after] == [data for _, data in before]
    begin = -FrameSource(tmp_path / f"out{suffix}").clock.shift(0.0)
    moments = np.array([moment for moment, _ in after]) - begin
    np.testing.assert_allclose(moments, [source.clock.shift(moment) for moment, _ in before], atol=0.002)


@pytest.mark.parametrize(
    ("codec", "suffix", "written", "note"),
    [
        ("aac", ".webm", "opus", "converted: audio 1 (aac) to opus"),
        ("libopus", ".webm", "opus", None),
        ("flac", ".mov", "aac", "converted: audio 1 (flac) to aac"),
        ("flac", ".mkv", "flac", None),
        ("aac", ".gif", None, "left out: sound"),
    ],
)
def test_sound_that_the_container_cannot_hold_is_converted(tmp_path, make_video, counted, codec, suffix, written, note):
    source = FrameSource(make_video(tmp_path / "sound.mkv", counted(24), tone=codec))
    sink = copy(source, tmp_path / f"out{suffix}")
    assert sink.notes == ([] if note is None else [f"out{suffix}: {note}"])
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert [stream.codec_context.codec.canonical_name for stream in container.streams.audio] == (
            [] if written is None else [written]
        )
        samples = sum(frame.samples for frame in container.decode(audio=0)) if written else 48000
    assert samples == pytest.approx(48000, abs=3000)
    assert len(FrameSource(tmp_path / f"out{suffix}")) == 24


@pytest.mark.parametrize("aspect", [Fraction(4, 3), Fraction(3, 4)])
@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "h264"), (".mov", "h264"), (".mkv", "h264"), (".mkv", "ffv1"), (".webm", "vp9")]
)
def test_pixel_aspect_is_kept(tmp_path, make_video, counted, suffix, codec, aspect):
    def wide(stream):
        stream.codec_context.sample_aspect_ratio = aspect

    source = FrameSource(make_video(tmp_path / "w.mp4", counted(2, 48, 60), prepare=wide))
    copy(source, tmp_path / f"out{suffix}", asked=Asked(codec=codec))
    assert FrameSource(tmp_path / f"out{suffix}").pixel_aspect == source.pixel_aspect == aspect


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
    (tmp_path / "away.mp4").symlink_to(tmp_path / "nowhere" / "out.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    for name, reason in (
        ("out.avi", "must end in .mp4, .mov, .mkv, .webm, .gif"),
        ("out.mxf", "must end in .*, or in / for a folder of PNG"),
        ("-", "must be a file or a folder"),
        ("mine/", "holds other things"),
        ("nowhere/out.mp4", "there is no folder"),
        ("away.mp4", "there is no folder .*nowhere"),
        ("pipe.mp4", "it is a pipe, socket or device"),
        ("folder.mp4", "it is a folder"),
        ("file", "it is a file"),
        ("mine", "holds other things, such as holiday.png"),
    ):
        with pytest.raises(ValueError, match=reason):
            FrameSink(f"{tmp_path}/{name}" if name != "-" else name, 24, 48, 64)
    assert sorted(os.listdir(tmp_path)) == ["away.mp4", "file", "folder.mp4", "mine", "pipe.mp4"]


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="/dev/full is not here: nothing is always full")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".gif"])
def test_a_full_disk(tmp_path, monkeypatch, suffix):
    """The file beside the output is a link to a device that is always full."""
    part = tmp_path / f".out{suffix}.part"
    part.symlink_to("/dev/full")
    monkeypatch.setattr(writing, "_temporary_name", lambda path, kind: part)
    frames = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), np.uint8)
    with (
        pytest.raises(ValueError, match=f"cannot write .*out{suffix}: No space left"),
        FrameSink(tmp_path / f"out{suffix}", 24, 48, 64) as sink,
    ):
        sink.write(frames)
    assert not (tmp_path / f"out{suffix}").exists()
