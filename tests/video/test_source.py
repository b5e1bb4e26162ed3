from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import Phase, given, settings

from m3ddm_jax.video import FrameSink, FrameSource, film
from m3ddm_jax.video.decoding import Stream


@pytest.fixture(scope="module", params=[".mp4", ".mkv", ".webm", ".ts", ".avi", ".gif"])
def video(request, tmp_path_factory, make_video, counted):
    """A file of 70 frames that has keyframes and frames stored out of order, and its frames read in one go."""
    path = tmp_path_factory.mktemp("videos") / f"video{request.param}"
    if request.param == ".gif":
        with FrameSink(path, 25, 48, 64) as sink:
            sink.write(counted(70))
    else:
        make_video(path, counted(70))
    return path, FrameSource(path)[:]


def test_frames_are_where_they_belong(video, counted):
    path, frames = video
    assert frames.shape == (70, 48, 64, 3) and frames.dtype == np.uint8
    assert np.abs(frames[:, 4:].astype(int) - counted(70)[:, 4:]).mean() < 4


@settings(max_examples=25, phases=[Phase.explicit, Phase.generate])  # shrinking would decode for minutes
@given(st.lists(st.integers(0, 69), max_size=12))
def test_random_access_equals_sequential_reading(video, indices):
    path, frames = video
    source = FrameSource(path)
    np.testing.assert_array_equal(source[indices], frames[indices])
    np.testing.assert_array_equal(source[10:14], frames[10:14])
    np.testing.assert_array_equal(source[::-23], frames[::-23])


def count_decoded(monkeypatch, decoded):
    frames = Stream.frames

    def counted(self):
        for frame in frames(self):
            decoded.append(1)
            yield frame

    monkeypatch.setattr(Stream, "frames", counted)


def test_sequential_reading_decodes_each_frame_once(video, monkeypatch):
    path, frames = video
    decoded = []
    count_decoded(monkeypatch, decoded)
    source = FrameSource(path)
    for start in range(0, 70, 16):
        source[max(0, start - 4) : start + 16]  # windows may overlap a little
    # Packets of AVI and GIF do not tell when frames are shown; those after MPEG-TS's last key frame tell if it is cut.
    opening = {".avi": 70, ".gif": 70, ".ts": 1 + 10}.get(path.suffix, 0)
    assert len(decoded) == 70 + opening


def test_going_back_in_mpegts_begins_at_a_key_frame(tmp_path, make_video, counted, monkeypatch):
    source = FrameSource(make_video(tmp_path / "a.ts", counted(70), gop=12))
    source[60:]
    decoded = []
    count_decoded(monkeypatch, decoded)
    source[[25]]
    assert len(decoded) <= 12


def test_two_read_the_same_file_from_places_of_their_own(video):
    path, frames = video
    source = FrameSource(path)
    ahead = source.reopen()
    assert (len(ahead), ahead.fps, ahead.path) == (70, source.fps, path)
    with ThreadPoolExecutor(1) as thread:
        for start in range(0, 70, 10):
            later = thread.submit(ahead.__getitem__, slice(start, start + 40))
            np.testing.assert_array_equal(source[start : start + 10], frames[start : start + 10])
            np.testing.assert_array_equal(later.result(), frames[start : start + 40])


def test_few_frames_are_kept(video):
    source = FrameSource(video[0])
    source[:]
    assert len(source._reader._cache) <= film.CACHE_FRAMES


def test_a_jump_decodes_from_the_nearest_keyframe(tmp_path, make_video, counted, monkeypatch):
    path = make_video(tmp_path / "long.mp4", counted(240), gop=12)
    decoded = []
    count_decoded(monkeypatch, decoded)
    source = FrameSource(path)
    source[[200]]
    source[[100]]
    assert len(decoded) < 40


def test_a_jump_in_a_counted_file_finds_its_keyframe(tmp_path, make_video, counted, monkeypatch):
    path = make_video(tmp_path / "long.avi", counted(240), gop=12)
    frames, decoded = FrameSource(path)[:], []
    source = FrameSource(path)
    count_decoded(monkeypatch, decoded)
    np.testing.assert_array_equal(source[[200]], frames[[200]])
    np.testing.assert_array_equal(source[[100]], frames[[100]])
    assert len(decoded) < 60


def test_properties_of_a_video(tmp_path, make_video, counted):
    source = FrameSource(make_video(tmp_path / "v.mp4", counted(12), fps=30000 / 1001))
    assert (len(source), source.height, source.width) == (12, 48, 64)
    assert source.fps == pytest.approx(30000 / 1001)
    np.testing.assert_allclose(source.timestamps, np.arange(12) * 1001 / 30000)


def test_one_frame(tmp_path, make_video, counted):
    source = FrameSource(make_video(tmp_path / "one.mp4", counted(1), fps=10))
    assert len(source) == 1 and source[:].shape == (1, 48, 64, 3) and source.fps == 10


def test_uneven_timestamps_are_kept(tmp_path, make_video, counted):
    ticks = [0, 40, 80, 200, 210, 500, 540, 1000]
    source = FrameSource(make_video(tmp_path / "uneven.mp4", counted(8), ticks=ticks))
    np.testing.assert_allclose(source.timestamps, np.array(ticks) / 1000, atol=1e-6)
    assert source.fps == pytest.approx(7)


def test_a_video_is_sampled_anew_at_another_rate(tmp_path, make_video, counted):
    path = make_video(tmp_path / "v.mp4", counted(24), fps=24)
    frames = FrameSource(path)[:]
    half, double = FrameSource(path, fps=12), FrameSource(path, fps=48)
    assert (len(half), len(double)) == (12, 48)
    np.testing.assert_array_equal(half[:], frames[::2])
    np.testing.assert_array_equal(double[:], np.repeat(frames, 2, axis=0))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_video_comes_upright(tmp_path, make_video, degrees):
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    frames[:, :24, :32] = 200
    path = make_video(tmp_path / "r.mp4", frames, prepare=lambda stream: stream.set_display_rotation(degrees))
    with av.open(str(path)) as container:
        turned = round(next(container.decode(video=0)).rotation) % 360
    source = FrameSource(path)
    expected = np.rot90(frames, turned // 90, axes=(1, 2))
    assert turned in (degrees, 360 - degrees)
    assert (source.height, source.width) == expected.shape[1:3]
    assert np.abs(source[:].astype(int) - expected).mean() < 3


def test_pixel_aspect(tmp_path, make_video, counted):
    def wide(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    assert float(FrameSource(make_video(tmp_path / "w.mp4", counted(2), prepare=wide)).pixel_aspect) == pytest.approx(
        4 / 3
    )


def test_a_folder_is_read_in_natural_order(tmp_path, counted):
    frames = counted(12)
    with FrameSink(tmp_path / "out", 24, 48, 64) as sink:
        sink.write(frames)
    folder = tmp_path / "named"
    folder.mkdir()
    for index in range(12):
        (tmp_path / "out" / f"{index:06d}.png").rename(folder / f"shot_{index}.png")
    (folder / "notes.txt").write_text("no image")
    source = FrameSource(folder)
    assert (len(source), source.fps) == (12, 24)
    np.testing.assert_array_equal(source[:], frames)
    np.testing.assert_array_equal(source[[11, 2]], frames[[11, 2]])
    assert FrameSource(folder, fps=30).fps == 30


def test_arrays(counted):
    frames = counted(5)
    source = FrameSource.from_array(frames, fps=8)
    assert (len(source), source.fps, source.height, source.width) == (5, 8, 48, 64)
    np.testing.assert_array_equal(source[1:4], frames[1:4])
    assert source[[]].shape == (0, 48, 64, 3)
    with pytest.raises(IndexError):
        source[[5]]
    with pytest.raises(ValueError, match="uint8"):
        FrameSource.from_array(frames.astype(np.float32))


def truncated(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".gif"])
@pytest.mark.parametrize("share", [0.97, 0.6])
def test_truncated_files(tmp_path, counted, suffix, share):
    rng = np.random.default_rng(0)
    path = tmp_path / f"cut{suffix}"
    with FrameSink(path, 24, 48, 64) as sink:
        sink.write(rng.integers(0, 256, (30, 48, 64, 3), np.uint8))
    assert len(FrameSource(path)) == 30
    truncated(path, share)
    with pytest.raises(ValueError, match="cut"):
        FrameSource(path)[:]


def test_what_is_no_video(tmp_path, counted):
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with av.open(str(tmp_path / "silent.mkv"), "w") as container:  # sound alone
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for name in ("missing.mp4", "text.mp4", "empty.mp4", "folder", "broken", "silent.mkv"):
        with pytest.raises(ValueError, match=name) as error:
            FrameSource(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="fps"):
        FrameSource(tmp_path / "folder", fps=0)


def test_changing_frame_sizes(tmp_path, make_video, counted):
    first = make_video(tmp_path / "a.ts", counted(10))
    second = make_video(tmp_path / "b.ts", counted(10, 64, 96))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(ValueError, match="changes its frame size from 64x48 to 96x64"):
        FrameSource(joined)[:]


def test_images_of_several_sizes(tmp_path, counted):
    for name, frames in (("small", counted(1)), ("large", counted(2, 64, 96))):
        with FrameSink(tmp_path / name, 24, *frames.shape[1:3]) as sink:
            sink.write(frames)
    (tmp_path / "small" / "000000.png").replace(tmp_path / "large" / "000000.png")
    with pytest.raises(ValueError, match="must all be 64x48"):
        FrameSource(tmp_path / "large")[:]
