import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines.compositing import match_seam, resize, spread

PADS = st.tuples(*[st.sampled_from([0, 7, 20])] * 4).filter(any)


def smooth_frames(height, width, num_frames=1, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 190, (num_frames, 6, 6, 3)).astype(np.float32)
    return np.clip(resize(coarse, height, width), 0, 255)


def canvas_of(pad, height=41, width=33):
    left, top, right, bottom = pad
    return Canvas.from_pad(
        height, width, left, top, right + (width + left + right) % 2, bottom + (height + top + bottom) % 2
    )


@settings(max_examples=40)
@given(PADS, st.sampled_from(["shift", "gain"]))
def test_a_shift_of_colour_leaves_no_seam(pad, kind):
    canvas = canvas_of(pad)
    whole = smooth_frames(canvas.height, canvas.width, seed=sum(pad))
    source = np.rint(whole[:, *canvas.box]).astype(np.uint8)
    generated = whole * 0.8 if kind == "gain" else whole * 0.88 + 30
    pasted = canvas.paste(match_seam(generated, source, canvas), source).astype(np.float32)
    for axis in (1, 2):
        box = canvas.box[axis - 1]
        for inner, outer in ((box.start, box.start - 1), (box.stop - 1, box.stop)):
            if not 0 <= outer < pasted.shape[axis]:
                continue
            rows = canvas.box[2 - axis]
            pick = lambda frames, place, axis=axis, rows=rows: np.moveaxis(frames, axis, 0)[place][:, rows]  # noqa: E731
            step = pick(pasted, outer) - pick(pasted, inner)
            expected = pick(whole, outer) - pick(whole, inner)
            assert np.abs(step - expected).max() < 7, "one pixel further the scene goes on"
            assert np.abs((step - expected).mean()) < 2


def test_the_correction_fades_with_the_distance():
    canvas = Canvas.from_pad(64, 64, 0, 0, 192, 0)
    generated = np.full((1, 64, 256, 3), 100, np.uint8)
    matched = match_seam(generated, np.full((1, 64, 64, 3), 140, np.uint8), canvas)[0, 32, :, 0].astype(int)
    assert (matched[:64] == 100).all(), "the box is left to the paste"
    assert matched[64] == 140
    assert (np.diff(matched[64:]) <= 0).all()
    assert abs(matched[72] - 115.3) < 2, "1 / e after an eighth of the short side"
    assert matched[-1] == 100


def test_nothing_to_correct_changes_nothing():
    canvas = canvas_of((10, 10, 10, 10))
    generated = np.random.default_rng(0).integers(0, 256, (2, canvas.height, canvas.width, 3), np.uint8)
    matched = match_seam(generated, generated[:, *canvas.box], canvas)
    np.testing.assert_array_equal(matched, generated)
    full = Canvas.from_size(40, 40, 40, 40)
    np.testing.assert_array_equal(
        match_seam(generated[:, :40, :40], generated[:, :40, :40], full), generated[:, :40, :40]
    )


def test_a_hole_is_matched_from_its_rim_and_shows_nothing_of_the_source():
    canvas = Canvas.from_pad(96, 96, 0, 0, 32, 0)
    source = np.full((3, 96, 96, 3), 140, np.uint8)
    masks = np.repeat(canvas.mask()[None], 3, axis=0)
    masks[0, 40:72, 20:52] = masks[1, 8:40, 30:62] = masks[2] = 1
    other = np.where(masks[:, *canvas.box], 3, source).astype(np.uint8)
    generated = np.full((3, 96, 128, 3), 100, np.uint8)
    matched = match_seam(generated, source, canvas, masks)
    np.testing.assert_array_equal(matched, match_seam(generated, other, canvas, masks))
    for frame, (top, left) in zip(matched, [(40, 20), (8, 30)], strict=False):
        hole = frame[
            top : top + 32,
            left : left + 32,
            :,
        ].astype(int)[..., 0]
        assert (hole[[0, -1]] == 140).all() and (hole[:, [0, -1]] == 140).all()
        assert hole[16, 16] < 115, "and fades towards the middle"
        assert (frame[:, 96] == 140).all(), "as at the border"
    assert (matched[2] == 100).all(), "where nothing is known there is nothing to meet"


def test_masks_of_the_border_alone_change_nothing():
    canvas = canvas_of((10, 0, 10, 6))
    whole = smooth_frames(canvas.height, canvas.width, num_frames=2)
    source = np.rint(whole[:, *canvas.box]).astype(np.uint8)
    masks = np.repeat(canvas.mask()[None], 2, axis=0)
    matched = match_seam(whole * 0.8, source, canvas)
    np.testing.assert_array_equal(match_seam(whole * 0.8, source, canvas, masks), matched)


@given(PADS)
def test_spreading_keeps_the_known_and_looks_at_nothing_else(pad):
    canvas = canvas_of(pad)
    mask = canvas.mask()
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (2, canvas.height, canvas.width, 3)).astype(np.float32)
    other = np.where(mask, rng.integers(0, 256, frames.shape), frames)
    filled = spread(frames, mask)
    np.testing.assert_array_equal(filled[:, *canvas.box], frames[:, *canvas.box])
    np.testing.assert_array_equal(filled, spread(other, mask))
    assert filled.min() >= frames[:, *canvas.box].min() - 1e-3 and filled.max() <= frames[:, *canvas.box].max() + 1e-3


def test_spreading_begins_with_the_edge_and_ends_in_a_blur():
    canvas = Canvas.from_pad(128, 64, 0, 0, 192, 0)
    stripes = np.tile(np.where(np.arange(128)[:, None] % 4 < 2, 0.0, 200.0)[None, :, :, None], (1, 1, 256, 3))
    filled = spread(stripes, canvas.mask())[0, :, :, 0]
    np.testing.assert_array_equal(filled[:, 64], stripes[0, :, 64, 0])
    contrast = filled[32:96].std(axis=0)
    assert contrast[64] > 90 and contrast[80] < 20 and contrast[-1] < 1
    assert abs(filled[64, -1] - 100) < 3


def test_one_colour_and_masks_without_border():
    grey = np.full((1, 32, 32, 3), 77, np.uint8)
    mask = np.ones((32, 32, 1), np.uint8)
    np.testing.assert_array_equal(spread(grey, mask), grey)
    np.testing.assert_array_equal(spread(grey, 1 - mask), grey)
    mask[5, 9] = 0
    np.testing.assert_allclose(spread(grey, mask), grey, atol=1e-3)


@pytest.mark.parametrize("size", [(10, 12), (40, 48), (10, 48), (31, 37)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resize(size, dtype):
    frames = np.full((2, 20, 24, 3), 200, dtype)
    scaled = resize(frames, *size)
    assert scaled.shape == (2, *size, 3) and scaled.dtype == dtype
    np.testing.assert_allclose(scaled, 200, atol=1e-3)
    assert resize(frames[..., :1], *size).shape == (2, *size, 1)


def test_shrinking_takes_means():
    checks = (np.indices((16, 16)).sum(0) % 2 * 200).astype(np.uint8)
    scaled = resize(np.repeat(checks[None, :, :, None], 3, axis=3), 4, 4)
    np.testing.assert_array_equal(scaled, 100)
