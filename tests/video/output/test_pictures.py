"""Images and GIF: alpha, durations and loops."""

import av
import numpy as np
import pytest

from m3ddm_jax.video import FrameSink, FrameSource


def write_gif(path, delays, loop, transparent=False):
    """A GIF whose frames are shown for so many hundredths of a second; loop as in its file, -1 for none."""
    options = {"loop": str(loop), "final_delay": str(delays[-1])}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("gif", rate=100, width=32, height=24)
        stream.pix_fmt = "rgb8"
        if transparent:
            stream.pix_fmt = "pal8"
        for index, start in enumerate(np.cumsum([0, *delays[:-1]]).tolist()):
            rgb = np.full((24, 32, 3), 40 * index, np.uint8)
            rgb[:, index : index + 8] = (250, 20, 90)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="rgb8")
            if transparent:
                frame = av.VideoFrame(32, 24, "pal8")
                pixels = np.full((24, frame.planes[0].line_size), index + 1, np.uint8)
                pixels[:, :8] = 0
                frame.planes[0].update(pixels.tobytes())
                palette = np.full((256, 4), 255, np.uint8)
                palette[0] = 0
                frame.planes[1].update(palette.tobytes())
            frame.pts = start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return FrameSource(path)


@pytest.mark.parametrize(("loop", "read"), [(-1, None), (0, 0), (3, 3)])
def test_gif_keeps_loops_and_its_last_duration(tmp_path, write_around, loop, read):
    source = write_gif(tmp_path / "in.gif", [4, 10, 250], loop)
    assert source.loops == read
    assert write_around(source, tmp_path / "out.gif").notes == []
    made = FrameSource(tmp_path / "out.gif")
    assert made.loops == read
    np.testing.assert_allclose(made.durations, [0.04, 0.1, 2.5], atol=0.001)


def test_video_becomes_a_gif_that_loops_for_ever(tmp_path, make_source, write_around):
    write_around(make_source(tmp_path / "in.mkv"), tmp_path / "out.gif")
    assert FrameSource(tmp_path / "out.gif").loops == 0


def test_gif_becomes_a_video_of_its_length(tmp_path, write_around, ffprobe):
    source = write_gif(tmp_path / "in.gif", [4, 10, 250], 0)
    for name in ("out.mp4", "out.webm", "out.mkv"):
        write_around(source, tmp_path / name)
        length = ffprobe("-show_entries", "format=duration", "-of", "csv=p=0", tmp_path / name)
        assert float(length) == pytest.approx(2.64, abs=0.002)


def test_transparency_is_kept(tmp_path, make_source, write_around):
    source = make_source(tmp_path / "in.mkv", "ffv1", "bgra")
    for name in ("out.gif", "out"):
        assert write_around(source, tmp_path / name).notes == []
        made = FrameSource(tmp_path / name)
        alpha, original = made.alpha(slice(0, 5)), source.alpha(slice(0, 5))
        assert alpha[:, :4].min() == 255 and made.has_alpha
        if name == "out":
            np.testing.assert_array_equal(alpha[:, 4:52, 8:72], original)
            np.testing.assert_array_equal(made[:][:, 4:52, 8:72], source[:])
        else:
            np.testing.assert_array_equal(alpha[:, 4:52, 8:72] > 0, original >= 128)


def test_masked_pixels_are_opaque(tmp_path, make_source, write_around):
    source = make_source(tmp_path / "in.mkv", "ffv1", "bgra")
    masks = np.zeros((1, 56, 80, 1), np.uint8)
    masks[:, 10:30, 20:50] = 1
    write_around(source, tmp_path / "out", masks=masks)
    alpha = FrameSource(tmp_path / "out").alpha(slice(0, 1))
    assert alpha[masks == 1].min() == 255
    assert alpha[:, 4:52, 8:72].min() < 20


@pytest.mark.parametrize(("suffix", "error"), [(".png", 0), (".jpg", 6), (".jpeg", 6), (".webp", 6)])
def test_single_images(tmp_path, suffix, error):
    ramp = np.stack(np.meshgrid(np.arange(64) * 3, np.arange(48) * 4), axis=-1).astype(np.uint8)
    frames = np.concatenate([ramp, ramp[..., :1] // 2 + 30], axis=-1)[None]
    with FrameSink(tmp_path / f"out{suffix}", 24, 48, 64) as sink:
        sink.write(frames)
    made = FrameSource(tmp_path / f"out{suffix}")
    assert len(made) == 1
    assert np.abs(made[:].astype(int) - frames).mean() <= error
    with (
        pytest.raises(ValueError, match="an image holds one frame"),
        FrameSink(tmp_path / f"two{suffix}", 24, 48, 64) as sink,
    ):
        sink.write(np.concatenate([frames, frames]))
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]
    with pytest.raises(ValueError, match="an image holds one frame, the source has 2"):
        FrameSink(tmp_path / f"two{suffix}", 24, 48, 64, source=FrameSource.from_array(np.concatenate([frames] * 2)))


def test_all_bits_in_png(tmp_path, make_source, write_around):
    source = make_source(tmp_path / "in.mkv", "ffv1", "gbrp10le")
    sink = write_around(source, tmp_path / "eight")
    assert sink.notes == ["eight: pixels of gbrp10le become rgb24; `pixel_format` rgb48be keeps all bits"]
    assert write_around(source, tmp_path / "all", pixel_format="rgb48be").notes == []
    made = FrameSource(tmp_path / "all")
    assert made.bits == 16
    known = source.native(0).reformat(format="rgb48le").to_ndarray()
    written = made.native(0).reformat(format="rgb48le").to_ndarray()[4:52, 8:72]
    assert np.abs(known.astype(int) - written).max() <= 64
