"""What a video file keeps of its source: samples, depth, colours, HDR metadata, fields and timing."""

from fractions import Fraction

import av
import numpy as np
import pytest

from m3ddm_jax.video import FrameSink, FrameSource
from m3ddm_jax.video.colour import Hdr
from m3ddm_jax.video.output.codecs import Asked

X265 = "log-level=none:hdr10=1:repeat-headers=1"
DISPLAY = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):max-cll=1000,400"
HDR = Hdr(
    ((Fraction(17, 25), Fraction(8, 25)), (Fraction(53, 200), Fraction(69, 100)), (Fraction(3, 20), Fraction(3, 50))),
    (Fraction(3127, 10000), Fraction(329, 1000)),
    (Fraction(1, 10000), Fraction(1000)),
    (1000, 400),
)


def tag_as(transfer, full_range=False):
    def prepare(stream):
        codec = stream.codec_context
        codec.colorspace, codec.color_primaries, codec.color_trc = 9, 9, transfer
        codec.color_range = 2 if full_range else 1

    return prepare


def frames_of(path):
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize("pad", [(8, 4, 8, 4), (8, 0, 8, 0)])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "gray", "yuva420p", "bgra"])
def test_lossless_output_has_the_source_samples(tmp_path, make_source, write_around, planes_of, pixel_format, pad):
    source = make_source(tmp_path / "in.mkv", "ffv1", pixel_format)
    assert write_around(source, tmp_path / "out.mkv", pad, codec="ffv1").notes == []
    before, after = frames_of(tmp_path / "in.mkv"), frames_of(tmp_path / "out.mkv")
    assert [frame.format.name for frame in after] == [pixel_format] * 5
    for known, frame in zip(before, after, strict=True):
        if pixel_format == "bgra":
            np.testing.assert_array_equal(
                frame.to_ndarray()[pad[1] : pad[1] + 48, pad[0] : pad[0] + 64], known.to_ndarray()
            )
            continue
        for plane, sample in zip(planes_of(frame), planes_of(known), strict=True):
            top, left = pad[1] * len(sample) // 48, pad[0] * sample.shape[1] // 64
            part = plane[top : top + len(sample), left : left + sample.shape[1]]
            np.testing.assert_array_equal(part, sample)


@pytest.mark.parametrize(
    ("suffix", "codec", "written"),
    [(".mp4", None, "hevc"), (".mov", None, "hevc"), (".mkv", "h264", "h264"), (".webm", None, "av1")],
)
def test_hdr_metadata_is_kept(tmp_path, make_source, write_around, suffix, codec, written):
    options = {"x265-params": f"{X265}:{DISPLAY}"}
    source = make_source(tmp_path / "in.mp4", "libx265", "yuv420p10le", prepare=tag_as(16), options=options)
    assert source.colour.hdr == HDR
    assert write_around(source, tmp_path / f"out{suffix}", codec=codec).notes == []
    made = FrameSource(tmp_path / f"out{suffix}")
    assert (made.pixel_format, made.colour.matrix, made.colour.transfer, made.colour.primaries) == (
        "yuv420p10le", 9, 16, 9,
    )  # fmt: skip
    for found, expected in zip(
        (*made.colour.hdr.primaries, made.colour.hdr.white), (*HDR.primaries, HDR.white), strict=True
    ):
        np.testing.assert_allclose(np.array(found, float), np.array(expected, float), atol=1e-4)
    np.testing.assert_allclose(np.array(made.colour.hdr.luminance, float), [0.0001, 1000], rtol=0.3)
    assert made.colour.hdr.content_light == (1000, 400)
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name == written


@pytest.mark.parametrize(("transfer", "pixel_format"), [(18, "yuv420p10le"), (16, "yuv444p10le"), (14, "yuv422p10le")])
def test_deep_colour_is_kept(tmp_path, make_source, write_around, transfer, pixel_format):
    source = make_source(tmp_path / "in.mkv", "libx265", pixel_format, prepare=tag_as(transfer))
    write_around(source, tmp_path / "out.mp4", quality=0)
    made = FrameSource(tmp_path / "out.mp4")
    assert (made.pixel_format, made.bits) == (pixel_format, 10)
    assert (made.colour.matrix, made.colour.transfer, made.colour.primaries) == (9, transfer, 9)
    assert np.abs(made[:][:, 4:52, 8:72].astype(int) - source[:]).mean() < 5


def test_asked_codec_quality_and_pixel_format(tmp_path, make_source, write_around):
    source = make_source(tmp_path / "in.mkv", "ffv1", "yuv444p")
    write_around(source, tmp_path / "fine.mp4", codec="hevc", quality=10)
    write_around(source, tmp_path / "rough.mp4", codec="hevc", quality=40, pixel_format="yuv420p")
    assert FrameSource(tmp_path / "fine.mp4").pixel_format == "yuv444p"
    assert FrameSource(tmp_path / "rough.mp4").pixel_format == "yuv420p"
    assert (tmp_path / "rough.mp4").stat().st_size < (tmp_path / "fine.mp4").stat().st_size / 2
    with av.open(str(tmp_path / "fine.mp4")) as container:
        assert container.streams.video[0].codec_context.codec_tag == "hvc1"


def test_frames_too_narrow_for_hevc_are_refused_before_they_are_written(tmp_path):
    with pytest.raises(
        ValueError, match="frames of 48x32 are too narrow for hevc, which needs 64 pixels: `codec` h264"
    ):
        FrameSink(tmp_path / "out.mp4", 24.0, 32, 48, asked=Asked(codec="hevc", pixel_format="yuv420p10le"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("suffix", "pixel_format"), [(".mov", "yuva444p10le"), (".mkv", "yuva420p"), (".webm", "yuva420p")]
)
def test_alpha_is_kept(tmp_path, make_source, write_around, suffix, pixel_format):
    source = make_source(tmp_path / "in.mkv", "ffv1", "yuva420p")
    assert source.has_alpha and write_around(source, tmp_path / f"out{suffix}").notes == []
    made = FrameSource(tmp_path / f"out{suffix}")
    assert made.has_alpha
    alpha = made.alpha(slice(0, 2))
    assert alpha[:, :4].min() >= 254 and alpha[:, :, :8].min() >= 254, "what is generated is opaque"
    assert np.abs(alpha[:, 4:52, 8:72].astype(int) - source.alpha(slice(0, 2))).mean() < 4


def test_alpha_is_flattened_on_black_where_it_cannot_be_kept(tmp_path, make_source, write_around):
    source = make_source(tmp_path / "in.mkv", "ffv1", "bgra")
    sink = write_around(source, tmp_path / "out.mp4", quality=1, pixel_format="yuv444p")
    assert sink.notes == ["out.mp4: transparent pixels lie on black: this output has no alpha"]
    expected = source[:] * (source.alpha(slice(0, 5)) / 255)
    assert np.abs(FrameSource(tmp_path / "out.mp4")[:][:, 4:52, 8:72] - expected).mean() < 3


@pytest.mark.parametrize(("field_order", "codec"), [(2, "h264"), (3, "h264"), (3, "ffv1")])
def test_kept_fields_are_tagged(tmp_path, make_source, write_around, field_order, codec):
    def interlace(stream):
        stream.codec_context.flags |= av.codec.context.Flags.interlaced_dct
        stream.codec_context.options = {"x264-params": f"{'tff' if field_order == 2 else 'bff'}=1:qp=0"}

    make_source(tmp_path / "in.mp4", "libx264", "yuv420p", prepare=interlace, options={"preset": "veryfast"})
    source = FrameSource(tmp_path / "in.mp4", deinterlace=False)
    assert source.field_order == field_order
    write_around(source, tmp_path / "out.mkv", codec=codec)
    assert FrameSource(tmp_path / "out.mkv", deinterlace=False).field_order == field_order


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_uneven_timing_is_kept_to_the_last_frame(tmp_path, make_source, write_around, ffprobe, suffix):
    ticks = [0, 40, 200, 210, 1000]
    source = make_source(tmp_path / "in.mkv", "libx264", ticks=ticks)
    source.durations[-1] = 2.5
    write_around(source, tmp_path / f"out{suffix}")
    np.testing.assert_allclose(FrameSource(tmp_path / f"out{suffix}").timestamps, np.array(ticks) / 1000, atol=0.001)
    length = ffprobe("-show_entries", "format=duration", "-of", "csv=p=0", tmp_path / f"out{suffix}")
    assert float(length) == pytest.approx(3.5, abs=0.002)
