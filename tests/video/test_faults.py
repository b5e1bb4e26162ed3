"""Reading of small files that other tools get wrong (../shared/faults); skipped where they are missing."""

import pathlib

import av
import numpy as np
import pytest

from data import reading
from m3ddm_jax.video import FrameSource
from tests.video.ffmpeg import ffmpeg_frames, native_frames

FOLDER = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "faults" / "video"
NAMES = [
    "a_flac.mkv",
    "a_truehd.mkv",
    "al.gif",
    "cover_zero.mp4",
    "gray_tv_hevc.mp4",
    "h264b.avi",
    "hdr10.mp4",
    "hflip.mp4",
    "inter.mp4",
    "joined.ts",
    "joined_noaudio.ts",
    "multi.mkv",
    "o2.jpg",
    "pause.gif",
    "pause_loop.gif",
    "pq444.mp4",
    "sar.mp4",
    "two_aac_opus.mkv",
    "v.vob",
    "v.wmv",
    "vflip.mp4",
    "vlate.mp4",
]
QUADRANTS = {"hflip.mp4": (1, 0, 3, 2), "vflip.mp4": (2, 3, 0, 1), "o2.jpg": (1, 0, 3, 2)}
CORNERS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)])  # as they are stored, row by row


@pytest.fixture
def fault():
    """Function: the path of a file of the list."""
    if not FOLDER.is_dir():
        pytest.skip(f"the faulty files are not here: {FOLDER} is no folder")
    return lambda name: FOLDER / name


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_those_of_ffmpeg(fault, name):
    source = FrameSource(fault(name), deinterlace=False)
    frames = native_frames(source)
    assert frames == ffmpeg_frames(fault(name), source.pixel_format, len(frames[0]))
    order = np.random.default_rng(0).permutation(len(frames))[:10].tolist()
    assert native_frames(FrameSource(fault(name), deinterlace=False), order) == [frames[index] for index in order]


@pytest.mark.parametrize("name", [*NAMES, "al.webm", "crop.mkv"])
def test_training_sees_what_outpainting_sees(fault, name):
    frames = FrameSource(fault(name))[:]
    read = reading.read_media(fault(name), range(len(frames)), frames.shape[1:3])
    assert np.abs(read.astype(int) - frames).max() <= 1


def test_a_cover_is_no_video(fault):
    source = FrameSource(fault("cover_zero.mp4"))
    assert (len(source), source.fps, source.height, source.width) == (25, 25, 48, 64)
    with pytest.raises(ValueError, match="no video stream, found only a cover picture"):
        FrameSource(fault("audiocover.mp3"))


@pytest.mark.parametrize("name", QUADRANTS)
def test_flips_are_applied(fault, name):
    frame = FrameSource(fault(name))[:][0].astype(int)
    corners = [frame[y, x] for y in (8, -8) for x in (8, -8)]
    assert np.abs(corners - CORNERS[list(QUADRANTS[name])]).max() < 12


def test_frames_of_an_avi_are_in_display_order(fault):
    source = FrameSource(fault("h264b.avi"))
    luma = [np.frombuffer(source.native(index).planes[0], np.uint8)[0] for index in range(len(source))]
    assert luma == [16 + 4 * index for index in range(50)]
    np.testing.assert_allclose(source.timestamps, np.arange(50) / 25)


def test_cropping_of_the_container_is_applied(fault):
    source = FrameSource(fault("crop.mkv"))
    with av.open(str(fault("crop.mkv"))) as container:
        whole = next(container.decode(video=0)).to_ndarray(format="gray")
    assert (source.height, source.width) == (32, 64)
    luma = np.frombuffer(source.native(0).planes[0], np.uint8).reshape(-1, source.native(0).planes[0].line_size)
    with av.open(str(fault("crop.mkv"))) as container:
        plane = next(container.decode(video=0)).planes[0]
        stored = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[8:40, :64].copy()
    np.testing.assert_array_equal(luma[:32, :64], stored)
    assert whole.shape == (48, 64)


@pytest.mark.parametrize(("name", "loops"), [("pause.gif", None), ("pause_loop.gif", 0)])
def test_an_animation_keeps_its_last_pause_and_its_loops(fault, name, loops):
    source = FrameSource(fault(name))
    assert source.loops == loops and source.durations[-1] == pytest.approx(3)
    assert source.timestamps[-1] + source.durations[-1] == pytest.approx(3.92)


def test_hdr_is_described(fault):
    source = FrameSource(fault("hdr10.mp4"))
    colour = source.colour
    assert (source.pixel_format, source.bits) == ("yuv420p10le", 10)
    assert (colour.matrix, colour.primaries, colour.transfer, colour.full_range) == (9, 9, 16, False)
    assert colour.chroma_location == "topleft" and colour.hdr.content_light == (1000, 400)
    assert colour.hdr.luminance[1] == 1000 and len(colour.hdr.primaries) == 3
    other = FrameSource(fault("pq444.mp4")).colour
    assert (other.matrix, other.primaries, other.transfer) == (9, 9, 16)


def test_gray_of_limited_range(fault):
    source = FrameSource(fault("gray_tv_hevc.mp4"))
    assert not source.colour.full_range and (source[:].min(), source[:].max()) == (0, 255)
    luma = np.frombuffer(source.native(0).planes[0], np.uint8).reshape(48, -1)[:, :64]
    assert (luma.min(), luma.max()) == (16, 235)


@pytest.mark.parametrize("name", ["al.gif", "al.webm"])
def test_alpha(fault, name):
    source = FrameSource(fault(name))
    alpha = source.alpha(slice(0, 3))
    assert source.has_alpha and alpha.shape == (3, 48, 64, 1) and set(np.unique(alpha)) == {0, 255}


def test_colours_beside_alpha_are_those_of_ffmpeg(fault):
    size = 48 * 64 * 3 // 2  # ffmpeg's first choice of decoders leaves alpha out
    frames = [frame[:size] for frame in native_frames(FrameSource(fault("al.webm")))]
    assert frames == ffmpeg_frames(fault("al.webm"), "yuv420p", size)


def test_fields_are_made_whole_frames(fault):
    woven = FrameSource(fault("inter.mp4"), deinterlace=False)
    source = FrameSource(fault("inter.mp4"))
    assert (len(source), source.field_order, woven.field_order) == (25, 1, 2)
    assert len(source.notes) == 1 and "is interlaced" in source.notes[0] and not woven.notes

    def combs(frames):
        return np.abs(np.diff(frames.astype(int), 2, axis=1)).mean()

    frames = source[:]
    assert combs(frames) < 0.75 * combs(woven[:])
    np.testing.assert_array_equal(FrameSource(fault("inter.mp4"))[[20, 3]], frames[[20, 3]])


@pytest.mark.parametrize("name", ["joined.ts", "joined_noaudio.ts"])
def test_joined_recordings_are_one_video(fault, name):
    source = FrameSource(fault(name))
    np.testing.assert_allclose(source.timestamps, np.arange(150) / 25)
    first, second = source.clock.pieces
    assert source.clock.shift(1.48, 0) == pytest.approx(0)
    assert source.clock.shift(1.48, second.position) == pytest.approx(4)
    assert source.clock.shift(5.40, second.position - 1) == pytest.approx(3.92)
    assert source.clock.shift(1.48, second.position - 1) == pytest.approx(4), "sound before the pictures it belongs to"


def test_pixel_aspect_is_read(fault):
    assert FrameSource(fault("sar.mp4")).pixel_aspect.as_integer_ratio() == (64, 45)
