import jax
import numpy as np
import pytest

from m3ddm_jax.models.tubes import Tubes, cut_tubes, sample_tubes

HEIGHT, WIDTH, SIZE, DRAWS = 40, 72, 16, 10_000


def strips(left, right, top=0):
    mask = np.zeros((1, 2, HEIGHT, WIDTH, 1), np.uint8)
    mask[:, :, :, :left] = mask[:, :, :, WIDTH - right :] = mask[:, :, :top] = 1
    return mask


@pytest.fixture(scope="module")
def draw():
    """mask -> (corners [10000, 2] of plain tubes of 16 pixels, masked share of each)."""
    sample = jax.jit(lambda key, mask: sample_tubes(key, mask, size=SIZE, plain=DRAWS, zoomed=0).plain[0])

    def shares(mask, key=0):
        corners = np.asarray(sample(jax.random.key(key), mask))
        sums = np.pad(mask[0].mean((0, 3)).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        top, left = corners.T
        inside = sums[top + SIZE, left + SIZE] - sums[top, left + SIZE] - sums[top + SIZE, left] + sums[top, left]
        return corners, inside / SIZE**2

    return shares


@pytest.mark.parametrize(("left", "right"), [(20, 10), (24, 24), (12, 0)])
def test_strips_get_tubes_by_their_area_and_half_are_across_the_seam(draw, left, right):
    corners, share = draw(strips(left, right))
    plain, seam = share[::2], share[1::2]
    assert plain.min() >= 0.5 - 1e-6
    assert seam.min() >= 0.4 - 1e-6 and seam.max() <= 0.7 + 1e-6
    # A share is drawn from 0.4..0.7 less half a column (1/32) at each end, and met by the nearest of 7..11 columns.
    edges = np.clip((np.arange(7, 13) - 0.5) / SIZE, 0.4 + 1 / 32, 0.7 - 1 / 32)
    _, counts = np.unique(np.round(seam * SIZE), return_counts=True)
    # 5,000 draws: a standard error of at most 0.007, here and below.
    np.testing.assert_allclose(counts / len(seam), np.diff(edges) / np.ptp(edges), atol=0.03)
    for side in (corners[::2], corners[1::2]):
        on_the_left = np.mean(side[:, 1] < WIDTH // 2 - SIZE // 2)
        assert abs(on_the_left - left / (left + right)) < 0.03
    rows = np.unique(corners[:, 0])
    np.testing.assert_array_equal(rows, np.arange(HEIGHT - SIZE + 1))


def test_thin_strips_get_what_they_can_and_their_share_of_tubes(draw):
    corners, share = draw(strips(5, 20))
    on_the_left = corners[:, 1] < WIDTH // 2 - SIZE // 2
    np.testing.assert_allclose(share[on_the_left], 5 / 16, atol=1e-6)
    assert share[~on_the_left].min() >= 0.4 - 1e-6
    assert abs(on_the_left.mean() - 0.2) < 0.03


def test_corners_of_the_canvas_keep_the_shares(draw):
    _, share = draw(strips(14, 18, top=12))
    assert share[::2].min() >= 0.5 - 1e-6
    assert share[1::2].min() >= 0.4 - 1e-6 and share[1::2].max() <= 0.7 + 1e-6


@pytest.mark.parametrize("value", [0, 1])
def test_clips_without_seam_get_tubes_all_over(draw, value):
    corners, share = draw(np.full_like(strips(0, 0), value))
    np.testing.assert_allclose(share, value)
    assert corners.min() == 0
    np.testing.assert_array_equal(corners.max(0), [HEIGHT - SIZE, WIDTH - SIZE])


def test_masks_that_move_are_counted_over_all_frames(draw):
    """A pixel that is masked in one of two frames is half a masked pixel."""
    mask = strips(20, 20)
    mask[:, 1, :, :20] = 0
    corners, _ = draw(mask)
    on_the_left = np.mean(corners[1::2, 1] < WIDTH // 2 - SIZE // 2)
    assert abs(on_the_left - 1 / 3) < 0.03


def test_clips_and_keys_are_drawn_apart():
    mask = np.concatenate([strips(20, 0), strips(0, 20)] * 2)
    sample = jax.jit(lambda key: sample_tubes(key, mask, size=SIZE, plain=3, zoomed=2))
    tubes, again, other = jax.device_get([sample(jax.random.key(key)) for key in (0, 0, 1)])
    assert tubes.plain.shape == (4, 3, 2) and tubes.zoomed.shape == (4, 2, 2)
    assert tubes.plain.dtype == tubes.zoomed.dtype == np.int32
    assert np.all(tubes.plain[::2, :, 1] < 20) and np.all(tubes.plain[1::2, :, 1] > 20)
    assert np.all(tubes.zoomed >= 0) and np.all(tubes.zoomed <= [HEIGHT - 2 * SIZE, WIDTH - 2 * SIZE])
    jax.tree.map(np.testing.assert_array_equal, tubes, again)
    assert np.any(tubes.plain != other.plain)
    assert np.any(tubes.plain[0] != tubes.plain[2])


def test_tubes_are_cut_and_zoomed_ones_averaged():
    video = np.random.default_rng(0).normal(size=(2, 3, 20, 24, 4)).astype(np.float32)
    tubes = Tubes(np.array([[[0, 0], [12, 16]], [[1, 2], [3, 5]]]), np.array([[[4, 8]], [[0, 3]]]))
    cut = cut_tubes(video, tubes, 8)
    assert cut.shape == (2, 3, 3, 8, 8, 4)
    np.testing.assert_array_equal(cut[0, 1], video[0, :, 12:20, 16:24])
    np.testing.assert_array_equal(cut[1, 0], video[1, :, 1:9, 2:10])
    square = video[1, :, 0:16, 3:19]
    mean = (square[:, ::2, ::2] + square[:, 1::2, ::2] + square[:, ::2, 1::2] + square[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(cut[1, 2], mean, atol=1e-6)


def test_frames_must_hold_a_tube():
    mask = strips(20, 20)
    with pytest.raises(ValueError, match="40x72 hold no tube of 64x64"):
        sample_tubes(jax.random.key(0), mask, size=32, plain=1, zoomed=1)
    tubes = Tubes(np.zeros((1, 1, 2), np.int32), np.zeros((1, 0, 2), np.int32))
    assert cut_tubes(mask, tubes, 32).shape == (1, 1, 2, 32, 32, 1)
    with pytest.raises(ValueError, match="40x72 hold no tube of 41x41"):
        cut_tubes(mask, tubes, 41)
