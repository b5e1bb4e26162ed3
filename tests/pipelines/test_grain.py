import numpy as np

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines.grain import Grain

CANVAS = Canvas.from_pad(64, 48, 40, 0, 8, 0)  # wider than what can be mirrored in one go
MASK = CANVAS.mask()
SHOWN = np.random.default_rng(0).integers(110, 130, (64, 48, 1)).astype(np.uint8).repeat(3, axis=-1)
FRAME = np.full((64, 96, 3), 120, np.float32)


def grain(shown=SHOWN, gain=1.0, mask=MASK):
    return Grain(CANVAS, gain)(FRAME, shown, mask) - FRAME


def test_grain_is_laid_where_nothing_is_known_alone():
    made = Grain(CANVAS, 1.0)(FRAME, SHOWN, MASK)
    assert made.shape == FRAME.shape and made.dtype == np.float32
    np.testing.assert_array_equal(np.where(MASK, 0, made), np.where(MASK, 0, FRAME))
    far = made[:, :30]
    assert 1 < far.std() < SHOWN.std()
    np.testing.assert_allclose(far.mean(axis=(0, 1)), 120, atol=0.5)  # colours stay
    np.testing.assert_allclose(far[..., 0], far[..., 1])  # and so do hues


def test_it_is_as_strong_as_the_texture_beside_it_and_grows_with_gain():
    np.testing.assert_allclose(2 * grain(gain=0.5), grain(), atol=1e-4)
    half_as_strong = (120 + (SHOWN.astype(int) - 120) // 2).astype(np.uint8)
    assert 0.35 < grain(half_as_strong)[:, :30].std() / grain()[:, :30].std() < 0.65
    # A source that is smooth on its left has grain on its right alone.
    smooth = SHOWN.copy()
    smooth[:, :36] = 120
    uneven = grain(smooth)
    assert uneven[:, 10:36].std() < 0.5 * uneven[:, 90:].std()


def test_edges_are_no_texture():
    striped = np.where(np.arange(48)[None, :, None] % 8 < 4, 0, 255).astype(np.uint8)
    assert grain(np.broadcast_to(striped, (64, 48, 3)).copy())[:, :30].std() < 13


def test_it_begins_softly():
    assert np.abs(grain()[:, 39]).mean() < 0.7 * np.abs(grain()[:, 20:30]).mean()


def test_it_stands_still_and_no_texture_gives_none():
    np.testing.assert_array_equal(grain(), grain())
    np.testing.assert_allclose(grain(np.full_like(SHOWN, 120)), 0, atol=1e-4)
    np.testing.assert_array_equal(grain(mask=np.zeros_like(MASK)), np.zeros_like(FRAME))
