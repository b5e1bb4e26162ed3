import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ddm_jax.flow.region_fill import BLACK, fill_laplace, fill_smoothly, hide


def draw(height=8, width=12):
    return np.random.default_rng(0).uniform(-1, 1, (2, 3, height, width, 3)).astype(np.float32)


def box(height, width, top, bottom, left, right):
    mask = np.ones((height, width, 1), np.uint8)
    mask[top:bottom, left:right] = 0
    return mask


@given(edges=st.tuples(st.integers(0, 3), st.integers(4, 8), st.integers(0, 5), st.integers(6, 12)))
def test_known_pixels_stay_and_unknown_ones_lie_between_them(edges):
    frames, mask = draw(), box(8, 12, *edges)
    filled = np.asarray(fill_smoothly(frames, mask))
    known = np.broadcast_to(mask == 0, frames.shape)
    np.testing.assert_array_equal(filled[known], frames[known])
    assert filled.min() >= frames[known].min() - 1e-5 and filled.max() <= frames[known].max() + 1e-5


@pytest.mark.parametrize("unknown", ["black", "filled"])
def test_nothing_hidden_is_left(unknown):
    mask = box(8, 12, 0, 8, 3, 9)
    first, other = draw(), draw()
    other = np.where(mask > 0, 0.123, other)
    np.testing.assert_array_equal(hide(first, mask, unknown), hide(other, mask, unknown))


def test_one_colour_is_continued():
    mask = box(16, 16, 4, 12, 4, 12)
    np.testing.assert_allclose(fill_smoothly(np.full((1, 16, 16, 3), 0.3, np.float32), mask), 0.3, atol=1e-6)


def test_black_where_nothing_is_known_and_unchanged_where_all_is():
    frames = draw()
    np.testing.assert_array_equal(hide(frames, np.ones((8, 12, 1)), "filled"), np.full_like(frames, BLACK))
    np.testing.assert_array_equal(hide(frames, np.zeros((8, 12, 1)), "filled"), frames)


def test_near_pixels_count_more_than_far_ones():
    frames = np.zeros((1, 8, 16, 3), np.float32)
    frames[:, :, 8:] = 1
    mask = box(8, 16, 0, 8, 2, 14)
    filled = np.asarray(fill_smoothly(frames, mask))
    assert filled[..., :2, :].max() < 0.5 < filled[..., -2:, :].min()


def test_another_word_is_named():
    with pytest.raises(ValueError, match="'grey'.*black, filled"):
        hide(draw(), np.ones((8, 12, 1)), "grey")


def test_a_membrane_over_a_slope_goes_on_straight_between_and_level_beyond():
    slope = np.broadcast_to(np.arange(12, dtype=np.float32)[:, None], (2, 8, 12, 1))
    mask = np.zeros((1, 8, 12, 1), np.uint8)
    mask[:, :, 4:7] = mask[:, :, 10:] = 1
    filled = fill_laplace(np.where(mask > 0, np.nan, slope), mask)
    # 1e-6 of what there was to fill.
    np.testing.assert_allclose(filled, np.minimum(slope, 9), atol=5e-5)


def test_a_membrane_over_nothing_is_zero_and_no_hole_changes_nothing():
    frames = draw()[:, 0]
    np.testing.assert_array_equal(fill_laplace(frames, np.ones((1, 8, 12, 1))), 0)
    np.testing.assert_array_equal(fill_laplace(frames, np.zeros((1, 8, 12, 1))), frames)


def test_golden_region_fill(goldens):
    folder = goldens / "isvi" / "regionfill_object"
    inputs, outputs = np.load(folder / "inputs.npz"), np.load(folder / "outputs.npz")
    filled = fill_laplace(inputs["u"][None, ..., None], inputs["mask"][None, ..., None])[0, ..., 0]
    # The reference solves in float64, of values about 2.
    np.testing.assert_allclose(filled, outputs["filled"], rtol=1e-5)
