import pytest

from m3ddm_jax.video.output.codecs import NOTHING_ASKED, Asked, choose_encoding, planar_format


@pytest.mark.parametrize(
    ("suffix", "native", "bits", "alpha", "codec", "chosen"),
    [
        (".mp4", None, 8, False, "h264", "yuv420p"),
        (".mp4", "yuvj420p", 8, False, "h264", "yuv420p"),
        (".mp4", "nv12", 8, False, "h264", "yuv420p"),
        (".mp4", "yuv444p", 8, False, "h264", "yuv444p"),
        (".mp4", "gray", 8, False, "h264", "yuv420p"),
        (".mp4", "gbrp", 8, False, "h264", "yuv444p"),
        (".mp4", "bgra", 8, True, "h264", "yuv420p"),
        (".mov", "yuv420p10le", 10, False, "hevc", "yuv420p10le"),
        (".mov", "yuva420p", 8, True, "prores", "yuva444p10le"),
        (".mkv", "yuv422p12le", 12, False, "hevc", "yuv422p12le"),
        (".mkv", "bgra", 8, True, "ffv1", "bgra"),
        (".mkv", "rgb48le", 16, False, "hevc", "yuv420p10le"),
        (".webm", "yuv444p", 8, False, "vp9", "yuv444p"),
        (".webm", "p010le", 10, False, "av1", "yuv420p10le"),
        (".webm", "bgra", 8, True, "vp9", "yuva420p"),
        (".gif", "yuv420p", 8, False, "gif", "pal8"),
        (".png", "pal8", 8, True, "png", "rgba"),
    ],
)
def test_default_codec_and_pixel_format(suffix, native, bits, alpha, codec, chosen):
    encoding = choose_encoding(suffix, NOTHING_ASKED, native, bits, alpha)
    assert (encoding.codec, encoding.pixel_format) == (codec, chosen)
    assert encoding.note is None or native == "rgb48le"
    assert encoding.alpha == (alpha and suffix != ".mp4")


@pytest.mark.parametrize(
    ("suffix", "native", "bits", "note"),
    [
        (".webm", "yuv444p10le", 10, "pixels of yuv444p10le become yuv420p10le"),
        (".png", "yuv420p10le", 10, "pixels of yuv420p10le become rgb24; `pixel_format` rgb48be keeps all bits"),
    ],
)
def test_lost_bits_and_chroma_are_reported(suffix, native, bits, note):
    assert choose_encoding(suffix, NOTHING_ASKED, native, bits).note == note


def test_what_is_asked():
    encoding = choose_encoding(".mkv", Asked("ffv1", pixel_format="yuv422p"), "yuv420p")
    assert (encoding.encoder, encoding.pixel_format) == ("ffv1", "yuv422p")
    assert choose_encoding(".mp4", Asked(quality=30), "yuv420p").options["crf"] == "30"
    for suffix, asked, words in (
        (".mp4", Asked("prores"), "`codec` must be one of h264, hevc, av1, vp9 for .mp4, found 'prores'"),
        (".png", Asked("h264"), "`codec` must not be given for an image"),
        (".mp4", Asked(quality=52), r"`quality` must lie in 0\.\.51 for h264, found 52"),
        (".webm", Asked("av1", quality=0), r"`quality` must lie in 1\.\.63 for av1, found 0"),
        (".mov", Asked("prores", quality=3), "prores has no quality to choose, found 3"),
        (".webm", Asked(pixel_format="yuv410p"), "`pixel_format` must be one of yuv420p, .* for vp9, found 'yuv410p'"),
    ):
        with pytest.raises(ValueError, match=words):
            choose_encoding(suffix, asked, "yuv420p")


def test_planar_formats():
    formats = ["yuv420p", "yuvj422p", "nv12", "p010le", "uyvy422", "yuv440p", "gray10le", "yuva444p12be"]
    expected = ["yuv420p", "yuv422p", "yuv420p", "yuv420p10le", "yuv422p", "yuv440p", "gray10le", "yuva444p12le"]
    assert [planar_format(name) for name in formats] == expected
    assert [planar_format(name) for name in ("rgb24", "gbrp", "pal8", "monob", "ya8")] == [None] * 5
