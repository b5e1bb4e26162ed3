import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ddm_jax.models.observed_crop import crop_observed, patch_places

SIDE, PATCH = 32, 8
CANVAS = (90, 160)


@functools.cache
def compiled():
    return jax.jit(lambda boxes: patch_places(boxes, CANVAS, SIDE, PATCH))


@st.composite
def boxes(draw, height=CANVAS[0], width=CANVAS[1]):
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return top, draw(st.integers(top + 1, height)), left, draw(st.integers(left + 1, width))


@given(boxes(), boxes())
def test_patches_lie_where_their_pixels_come_from(first, second):
    """One by one, in plain numbers."""
    pair = first, second
    observed, coordinates = compiled()(jnp.array(pair))
    assert observed.shape == (2, 16) and np.all((coordinates >= 0) & (coordinates <= 1))
    for (top, bottom, left, right), seen, places in zip(pair, np.asarray(observed), coordinates, strict=True):
        longer = max(bottom - top, right - left)
        rows, columns = (max(1, math.floor(SIDE * n / longer + 0.5)) for n in (bottom - top, right - left))
        for number, (whole, (x, y)) in enumerate(zip(seen, places, strict=True)):
            i, j = divmod(number, SIDE // PATCH)
            assert whole == ((i + 1) * PATCH <= rows and (j + 1) * PATCH <= columns)
            if whole:
                # float32 coordinates of at most 160 pixels.
                assert x * CANVAS[1] == pytest.approx(left + (j + 0.5) * PATCH / columns * (right - left), abs=1e-3)
                assert y * CANVAS[0] == pytest.approx(top + (i + 0.5) * PATCH / rows * (bottom - top), abs=1e-3)
                assert left < x * CANVAS[1] < right and top < y * CANVAS[0] < bottom


def test_a_square_is_seen_whole_and_a_narrow_strip_not_at_all():
    observed, coordinates = compiled()(jnp.array([(10, 80, 40, 110), (0, 6, 0, 160), (20, 20, 30, 30)]))
    np.testing.assert_array_equal(observed.sum(1), [16, 0, 0])
    assert np.all(np.isfinite(coordinates))


def test_leading_axes_are_free():
    box = jnp.array([5, 50, 20, 110])
    observed, coordinates = patch_places(box, CANVAS, SIDE, PATCH)
    assert observed.shape == (16,) and coordinates.shape == (16, 2)
    stacked = patch_places(jnp.tile(box, (2, 3, 1)), CANVAS, SIDE, PATCH)
    np.testing.assert_array_equal(stacked[0], np.tile(observed, (2, 3, 1)))
    np.testing.assert_array_equal(stacked[1], np.tile(coordinates, (2, 3, 1, 1)))


def frames_of(seed, count=2):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 2, *CANVAS, 3)).astype(np.float32)


BOXES = np.array([(10, 80, 40, 150), (3, 30, 100, 111)])


def test_a_crop_is_what_resizing_it_gives():
    """Shrunk and enlarged; jax's own resize needs the sizes beforehand."""
    frames = frames_of(0)
    crops = jax.jit(crop_observed, static_argnums=2)(frames, BOXES, SIDE)
    assert crops.shape == (2, 2, SIDE, SIDE, 3)
    for clip, crop, (top, bottom, left, right) in zip(frames, crops, BOXES, strict=True):
        longer = max(bottom - top, right - left)
        rows, columns = (math.floor(SIDE * n / longer + 0.5) for n in (bottom - top, right - left))
        expected = jax.image.resize(clip[:, top:bottom, left:right], (2, rows, columns, 3), "linear")
        # float32 weights.
        np.testing.assert_allclose(crop[:, :rows, :columns], expected, atol=1e-5)
        assert np.all(crop[:, rows:] == 0) and np.all(crop[:, :, columns:] == 0)


def test_no_pixel_outside_has_a_part_in_it():
    frames, outside = frames_of(1), np.ones((2, 1, *CANVAS, 1), bool)
    for hidden, (top, bottom, left, right) in zip(outside, BOXES, strict=True):
        hidden[:, top:bottom, left:right] = False
    crop = jax.jit(crop_observed, static_argnums=2)
    expected = crop(frames, BOXES, SIDE)
    np.testing.assert_array_equal(crop(np.where(outside, frames_of(2), frames), BOXES, SIDE), expected)
    gradient = jax.jit(jax.grad(lambda x: jnp.square(crop(x, BOXES, SIDE)).sum()))(frames)
    assert np.all(np.where(outside, gradient, 0) == 0) and np.any(gradient != 0)
