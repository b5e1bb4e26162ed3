"""Files on which tools of this kind fail, through the command, judged by ffmpeg; what is written is looked at here."""

import pathlib

import av
import numpy as np
import pytest

from m3ddm_jax.video import FrameSource

FAULTS = pathlib.Path(__file__).resolve().parents[4] / "shared" / "faults" / "video"
pytestmark = pytest.mark.skipif(not FAULTS.is_dir(), reason=f"the faulty files are not here: {FAULTS}")
NAMES = sorted(path.name for path in FAULTS.glob("*") if path.name != "audiocover.mp3")


@pytest.fixture
def outpaint(run_module, tmp_path):
    """Function (name, output, *flags): outpaints a faulty file; returns the output's path and the lines of stderr."""

    def run(name, output, *flags):
        arguments = (FAULTS / name, tmp_path / output, "--pad=8,0,8,0", "--method=edge", *flags)
        done = run_module("m3ddm_jax.outpaint", *arguments)
        assert done.returncode == 0, done.stderr
        return tmp_path / output, [line.removeprefix("outpaint: ") for line in done.stderr.splitlines()]

    return run


def streams_of(path, kind="audio"):
    with av.open(str(path)) as container:
        streams = [stream for stream in container.streams if stream.type == kind]
        return [(s.codec_context.codec.canonical_name, s.metadata.get("language")) for s in streams]


@pytest.mark.parametrize("name", NAMES)
def test_lossless_video_shows_the_frames_of_ffmpeg(outpaint, ffmpeg, tmp_path, name):
    """In the source's box, in the pixel format that is written."""
    path, _ = outpaint(name, "out.mkv", "--codec=ffv1", "--keep-interlaced")
    made = FrameSource(path, deinterlace=False)
    width, height = made.width - 16, FrameSource(FAULTS / name).height
    alpha = ["-c:v", "libvpx-vp9"] if name == "al.webm" else []
    raw = ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt"]
    native = "rgb24" if made.pixel_format in ("bgr0", "bgra") else made.pixel_format
    ranges = "scale=in_range=full:out_range=full," if name == "o2.jpg" else ""
    cropped = f"crop={width}:{height}," if name == "crop.mkv" else ""  # ffmpeg before version 7 leaves that out
    expected = ffmpeg(*alpha, "-i", FAULTS / name, "-map", "0:V:0", "-vf", f"{cropped}{ranges}null", *raw, native, "-")
    found = ffmpeg("-i", path, "-vf", f"crop={width}:{height}:8:0", *raw, native, "-")
    assert len(found) == len(expected) > 0
    assert found == expected


@pytest.mark.parametrize("name", NAMES)
def test_png_shows_the_frames_of_the_source(outpaint, name):
    path, _ = outpaint(name, "frames/")
    source, made = FrameSource(FAULTS / name), FrameSource(path)
    assert len(made) == len(source)
    np.testing.assert_array_equal(made[:][:, : source.height, 8 : 8 + source.width], source[:])


@pytest.mark.parametrize(
    ("name", "output", "codecs", "note"),
    [
        ("a_flac.mkv", "out.mov", ["aac"], "converted: audio 1 (flac) to aac"),
        ("a_truehd.mkv", "out.mp4", ["aac"], "converted: audio 1 (truehd) to aac"),
        ("two_aac_opus.mkv", "out.webm", ["opus", "opus"], "converted: audio 1 (aac) to opus"),
        ("v.wmv", "out.mkv", ["aac"], "converted: audio 1 (wmav2) to aac"),
        ("joined.ts", "out.mp4", ["aac"], "converted: audio 1 (mp2) to aac"),  # the second recording has AAC
        ("joined.ts", "out.webm", ["opus"], "converted: audio 1 (mp2) to opus"),
        ("cover_zero.mp4", "out.mp4", ["aac"], None),
        ("vlate.mp4", "out.mkv", ["aac"], None),
    ],
)
def test_sound_is_kept(outpaint, name, output, codecs, note):
    path, lines = outpaint(name, output)
    assert [codec for codec, _ in streams_of(path)] == codecs
    assert lines == ([] if note is None else [f"{output}: {note}"])


def test_joined_recordings_have_their_sound_in_place(outpaint):
    path, _ = outpaint("joined.ts", "out.mkv")
    with av.open(str(path)) as container:
        times = [float(packet.pts * packet.time_base) for packet in container.demux(audio=0) if packet.size]
    assert times[0] < 0.05 and times[-1] > 5.8 and np.diff(times).min() > 0 and np.diff(times).max() < 0.2


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_sound_before_the_picture_stays(outpaint, suffix):
    path, _ = outpaint("vlate.mp4", f"out{suffix}")
    with av.open(str(path)) as container:
        starts = {stream.type: float(stream.start_time * stream.time_base) for stream in container.streams}
    assert starts["video"] - starts["audio"] == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize(("suffix", "german"), [(".mp4", "deu"), (".mov", "ger"), (".mkv", "deu"), (".webm", "deu")])
def test_languages_and_subtitles_are_kept(outpaint, suffix, german):
    path, lines = outpaint("multi.mkv", f"out{suffix}")
    assert [language for _, language in streams_of(path)] == [german, "eng"]
    assert len(streams_of(path, "subtitle")) == 1 and len(lines) == (suffix != ".mkv")
    with av.open(str(path)) as container:
        assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["One", "Two"]
        assert container.metadata["title"] == "Mein Film"


@pytest.mark.parametrize(("name", "pixel_format"), [("hdr10.mp4", "yuv420p10le"), ("pq444.mp4", "yuv444p10le")])
def test_hdr_stays_hdr(outpaint, name, pixel_format):
    path, lines = outpaint(name, "out.mp4")
    source, made = FrameSource(FAULTS / name), FrameSource(path)
    assert lines == [] and made.pixel_format == pixel_format
    assert (made.colour.matrix, made.colour.transfer, made.colour.primaries) == (9, 16, 9)
    assert made.colour.hdr == source.colour.hdr


def test_hdr_becomes_sdr_on_request(outpaint):
    path, lines = outpaint("hdr10.mp4", "out.mp4", "--sdr")
    made = FrameSource(path)
    assert lines == ["HDR is converted to SDR: 8-bit BT.709"] and made.bits == 8
    assert (made.colour.matrix, made.colour.transfer, made.colour.primaries) == (1, 1, 1)


def test_pixel_aspect_is_kept_in_webm(outpaint):
    path, _ = outpaint("sar.mp4", "out.webm")
    assert float(FrameSource(path).pixel_aspect) == pytest.approx(64 / 45, rel=0.005)


@pytest.mark.parametrize("name", ["pause.gif", "pause_loop.gif"])
def test_gif_keeps_its_length_and_loops(outpaint, name):
    path, _ = outpaint(name, "out.gif")
    source, made = FrameSource(FAULTS / name), FrameSource(path)
    assert made.durations.sum() == pytest.approx(3.92, abs=0.001)
    assert made.loops == source.loops == (0 if "loop" in name else None)


@pytest.mark.parametrize("name", ["al.gif", "al.webm"])
@pytest.mark.parametrize("output", ["out.webm", "out.gif", "out.mov", "out.mkv", "out/"])
def test_alpha_is_kept(outpaint, name, output):
    path, lines = outpaint(name, output)
    source, made = FrameSource(FAULTS / name), FrameSource(path)
    assert lines == [] and made.has_alpha
    error = made.alpha([0])[:, :, 8 : 8 + source.width].astype(int) - source.alpha([0])
    assert np.abs(error).mean() < (40 if output == "out.gif" and name == "al.webm" else 6)


def test_alpha_is_composited_with_a_line(outpaint):
    _, lines = outpaint("al.gif", "out.mp4")
    assert lines == ["out.mp4: transparent pixels lie on black: this output has no alpha"]


def test_grey_keeps_its_range(outpaint, ffmpeg):
    path, _ = outpaint("gray_tv_hevc.mp4", "out.mp4", "--quality=1")
    luma = np.frombuffer(ffmpeg("-i", path, "-vf", "crop=64:48:8:0,extractplanes=y", "-f", "rawvideo", "-"), np.uint8)
    assert abs(int(luma.min()) - 16) <= 2 and abs(int(luma.max()) - 235) <= 2
