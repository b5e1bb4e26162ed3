import av
import numpy as np
import pytest

from m3ddm_jax.video.colour import Colour
from m3ddm_jax.video.output.composition import Composer


def boxed(height, width, top, left):
    return slice(top, top + height), slice(left, left + width)


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
@pytest.mark.parametrize(
    "pixel_format",
    [
        "yuv420p",
        "yuv422p",
        "yuv444p",
        "yuv440p",
        "yuv411p",
        "yuv420p10le",
        "yuv444p12le",
        "yuva420p",
        "gray",
        "gray10le",
    ],
)
def test_known_samples_are_exact(noise, planes_of, pixel_format, size):
    height, width = size
    native, box = noise(width, height, pixel_format), boxed(height, width, 4, 8)
    channels = 4 if "yuva" in pixel_format else 3
    canvas = np.full((64, 96, channels), 200, np.uint8)
    composed = Composer(pixel_format, Colour(), 64, 96, box).compose(canvas, native)
    assert (composed.format.name, composed.width, composed.height) == (pixel_format, 96, 64)
    plain = Composer(pixel_format, Colour(), 64, 96).compose(canvas)
    for plane, known, around in zip(planes_of(composed), planes_of(native), planes_of(plain), strict=True):
        down, across = 64 // len(plane), 96 // plane.shape[1]
        place = boxed(*known.shape, 4 // down, 8 // across)
        np.testing.assert_array_equal(plane[place], known)
        outside = np.ones(plane.shape, bool)
        outside[place] = False
        np.testing.assert_array_equal(plane[outside], around[outside])


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le", "yuv422p"])
def test_luma_is_exact_at_odd_offsets(noise, planes_of, pixel_format):
    native = noise(64, 48, pixel_format)
    composer = Composer(pixel_format, Colour(), 64, 96, boxed(48, 64, 3, 5))
    composed = composer.compose(np.zeros((64, 96, 3), np.uint8), native)
    np.testing.assert_array_equal(planes_of(composed)[0][3:51, 5:69], planes_of(native)[0])


def test_colours_are_kept_at_odd_offsets(planes_of):
    """A plain colour has the same chroma wherever it lies."""
    native = av.VideoFrame.from_ndarray(np.full((48, 64, 3), (200, 60, 40), np.uint8)).reformat(format="yuv420p10le")
    composer = Composer("yuv420p10le", Colour(), 64, 96, boxed(48, 64, 3, 5))
    composed = composer.compose(np.full((64, 96, 3), 128, np.uint8), native)
    for plane, known in zip(planes_of(composed)[1:], planes_of(native)[1:], strict=True):
        assert np.abs(plane[4:22, 5:32].astype(int) - known[0, 0]).max() <= 1


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p"])
def test_masked_pixels_are_generated(noise, planes_of, pixel_format):
    native, box = noise(64, 48, pixel_format), boxed(48, 64, 4, 8)
    mask = np.zeros((64, 96, 1), np.uint8)
    mask[11:20, 20:31] = 1
    canvas = np.full((64, 96, 3), 200, np.uint8)
    composed = Composer(pixel_format, Colour(), 64, 96, box).compose(canvas, native, mask)
    plain = Composer(pixel_format, Colour(), 64, 96).compose(canvas)
    for plane, known, generated in zip(planes_of(composed), planes_of(native), planes_of(plain), strict=True):
        step = 64 // len(plane)
        hidden = mask[..., 0].reshape(64 // step, step, 96 // step, step).any(axis=(1, 3))
        np.testing.assert_array_equal(plane[hidden], generated[hidden])
        inside = hidden[4 // step :, 8 // step :][: len(known), : known.shape[1]]
        part = plane[4 // step :, 8 // step :][: len(known), : known.shape[1]]
        np.testing.assert_array_equal(part[~inside], known[~inside])


@pytest.mark.parametrize(("full_range", "white"), [(False, (235, 940)), (True, (255, 1023))])
def test_generated_pixels_keep_the_range(planes_of, full_range, white):
    for pixel_format, level in zip(("yuv420p", "yuv420p10le"), white, strict=True):
        composer = Composer(pixel_format, Colour(full_range=full_range), 32, 32)
        luma, *chroma = planes_of(composer.compose(np.full((32, 32, 3), 255, np.uint8)))
        assert np.abs(luma.astype(int) - level).max() <= 1
        assert all(np.abs(plane.astype(int) - (128 if level < 256 else 512)).max() <= 1 for plane in chroma)


@pytest.mark.parametrize(("native", "written"), [("gray", "yuv420p"), ("gray10le", "yuv420p10le"), ("gray", "yuv444p")])
def test_grey_keeps_its_luma_in_colour_formats(noise, planes_of, native, written):
    frame = noise(64, 48, native)
    composed = Composer(written, Colour(), 64, 96, boxed(48, 64, 4, 8)).compose(np.zeros((64, 96, 3), np.uint8), frame)
    np.testing.assert_array_equal(planes_of(composed)[0][4:52, 8:72], planes_of(frame)[0])


def test_generated_grey_has_the_range_of_video(planes_of):
    (luma,) = planes_of(Composer("gray", Colour(), 32, 32).compose(np.full((32, 32, 3), 255, np.uint8)))
    assert luma.min() == luma.max() == 235
