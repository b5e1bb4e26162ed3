import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3ddm_jax.completion.patches import PatchSettings, complete
from m3ddm_jax.completion.scales import Source


def periodic(height, width, period=8):
    """A texture that repeats every `period` pixels both ways; no two places of a period look alike."""
    tile = np.random.default_rng(5).uniform(0, 255, (period, period, 3)).astype(np.float32)
    return np.tile(tile, (-(-height // period), -(-width // period), 1))[:height, :width]


def sides(height, width, left, right=0):
    mask = np.zeros((height, width, 1), np.uint8)
    mask[:, :left] = 1
    mask[:, width - right :] = 1
    return mask


def flat(image, mask):
    """The mean of what is known, as a smooth continuation."""
    known = np.broadcast_to(mask == 0, image.shape)
    mean = image[known].reshape(-1, 3).mean(0) if known.any() else np.zeros(3)
    return np.where(known, image, mean).astype(np.float32)


def run(image, mask, seed=3, **options):
    return complete(image, mask, smooth=flat(image, mask), seed=seed, **options)


HOLE = np.zeros((48, 56, 1), np.uint8)
HOLE[18:30, 20:34] = 1
CORNER = np.zeros((48, 56, 1), np.uint8)
CORNER[:12] = CORNER[:, 40:] = 1


@pytest.mark.parametrize(
    "mask",
    [sides(48, 56, 12, 12), sides(56, 48, 12, 12).swapaxes(0, 1), CORNER, HOLE],
    ids=["left-right", "top-bottom", "corner", "hole"],
)
def test_periodic_texture_is_continued(mask):
    image = periodic(*mask.shape[:2])
    made = run(np.where(mask, 0, image), mask).image
    assert np.abs(made - image)[mask[..., 0] > 0].mean() < 1
    # What the search starts from is far off.
    assert np.abs(flat(image, mask) - image)[mask[..., 0] > 0].mean() > 40


def test_dividing_line_is_continued():
    """Two textures, one above the other: no row of either holds the other's colours."""
    noise = np.random.default_rng(1).uniform(0, 40, (64, 96, 3)).astype(np.float32)
    image = noise + np.where(np.arange(64) < 30, 200, 0)[:, None, None].astype(np.float32)
    mask = sides(64, 96, 28, 28)
    smooth = np.broadcast_to(image[:, 28:-28].mean(1, keepdims=True), image.shape)
    made = complete(image, mask, smooth=smooth, seed=0).image
    assert made[:29].min() > 120 > made[31:].max()


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_patches_come_from_near_rows_or_columns(axis):
    """Red tells the row (column) that a patch comes from, as what the search starts from does not."""
    image = np.random.default_rng(1).uniform(0, 255, (64, 64, 3)).astype(np.float32)
    image[..., 0] = np.arange(64)[:, None] * 0.5
    mask = sides(64, 64, 20)
    image, mask = (x.swapaxes(0, axis) for x in (image, mask))
    astray = [
        np.abs(run(image, mask, settings=PatchSettings(layering=layering)).image - image)[mask[..., 0] > 0][:, 0].mean()
        for layering in (1e4, 0)
    ]
    assert astray[0] < 0.6 * astray[1]


def test_membrane_takes_the_step_at_the_border_away(monkeypatch):
    """The known pixels next to the border are brighter than most that can be copied."""
    image = np.random.default_rng(1).uniform(60, 70, (48, 64, 3)).astype(np.float32)
    image[:, 14:18] += 20
    image[:, 36:] -= 60
    steps = []
    for _ in range(2):
        made = run(image, sides(48, 64, 14)).image
        steps.append(abs(made[:, 13].mean() - made[:, 14].mean()))
        monkeypatch.setattr("m3ddm_jax.completion.patches.membrane", lambda values, given, free: np.zeros_like(values))
    assert steps[0] < 0.5 * steps[1]


def test_texture_keeps_its_contrast():
    image = np.random.default_rng(2).uniform(0, 255, (64, 64, 3)).astype(np.float32)
    mask = sides(64, 64, 20)
    made = run(image, mask).image
    assert made[:, :20].std() > 0.6 * image.std()


def test_one_colour_stays_one_colour():
    image = np.full((40, 50, 3), (13.7, 201.3, 99.1), np.float32)
    done = run(np.where(CORNER[:40, :50], 0, image), CORNER[:40, :50])
    np.testing.assert_array_equal(done.image, image)
    np.testing.assert_array_equal(done.confidence, 1)


def test_known_pixels_are_kept_and_hidden_ones_ignored():
    image = periodic(48, 56)
    hidden = np.where(HOLE, np.nan, image)
    done = complete(hidden, HOLE, smooth=flat(image, HOLE), seed=0)
    np.testing.assert_array_equal(np.where(HOLE, 0, done.image), np.where(HOLE, 0, image))
    np.testing.assert_array_equal(done.image, run(image, HOLE, seed=0).image)


def test_same_seed_same_image():
    image = np.random.default_rng(2).uniform(0, 255, (40, 70, 3)).astype(np.float32)
    mask = sides(40, 70, 20, 15)
    first, again, other = (run(image, mask, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.confidence, again.confidence)
    assert not np.array_equal(first.image, other.image)


def test_number_of_threads_does_not_matter(monkeypatch):
    image = np.random.default_rng(2).uniform(0, 255, (64, 64, 3)).astype(np.float32)
    made = []
    for threads in (1, 4):
        monkeypatch.setattr("os.cpu_count", lambda threads=threads: threads)
        made.append(run(image, sides(64, 64, 20)).image)
    np.testing.assert_array_equal(*made)


def test_what_is_not_allowed_is_not_copied():
    image = np.random.default_rng(4).uniform(0, 80, (48, 64, 3)).astype(np.float32)
    image[10:40, 26:44] = 255
    mask = sides(48, 64, 26)
    allowed = np.ones((48, 64), bool)
    assert run(image, mask).image[:, :26].max() > 200
    allowed[10:40, 26:44] = False
    assert run(image, mask, allowed=allowed).image[:, :26].max() <= 80


def test_confidence_is_low_beside_what_is_not_allowed():
    image, mask = periodic(48, 64), sides(48, 64, 20)
    allowed = np.ones((48, 64), bool)
    allowed[24:, 20:40] = False
    free, bound = run(image, mask).confidence, run(image, mask, allowed=allowed).confidence
    assert bound[40:, 14:20].mean() < 0.5 < 0.9 < free[40:, 14:20].mean()
    assert bound[:16, 14:20].mean() > 0.9


def test_other_sources_are_copied():
    """What another image shows at a place that continues this one is found, wherever its first pixel lies."""
    image = np.random.default_rng(4).uniform(0, 255, (40, 60, 3)).astype(np.float32)
    mask = sides(40, 60, 16)
    other = np.pad(image, ((4, 6), (7, 0), (0, 0)))
    allowed = np.pad(np.ones((40, 60), bool), ((4, 6), (7, 0)))
    source = Source(other, allowed, -4, -7)
    made = run(image, mask, sources=[source], settings=PatchSettings(rounds=(12,))).image
    assert np.abs(made - image).mean() < 0.25 * np.abs(run(image, mask).image - image).mean()


SHAPES = [(1, 1), (4, 40), (40, 4), (5, 5), (5, 300), (9, 7)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_small_images(shape):
    image = periodic(*shape)
    mask = sides(*shape, shape[1] // 3)
    done = run(image, mask)
    assert done.image.shape == image.shape and np.isfinite(done.image).all()
    np.testing.assert_array_equal(np.where(mask, 0, done.image), np.where(mask, 0, image))


@pytest.mark.parametrize("case", ["all unknown", "none allowed", "no whole patch"])
def test_smooth_continuation_where_nothing_can_be_copied(case):
    image, mask, allowed = periodic(40, 40), sides(40, 40, 10), np.ones((40, 40), bool)
    if case == "all unknown":
        mask[:] = 1
    elif case == "none allowed":
        allowed[:] = False
    else:
        mask[:, 4:] = 1
        mask[:, :4] = 0
    smooth = np.full_like(image, 77)
    done = complete(image, mask, smooth=smooth, seed=0, allowed=allowed)
    np.testing.assert_array_equal(done.image, np.where(mask, smooth, image))
    np.testing.assert_array_equal(done.confidence, 1 - mask)


def test_nothing_unknown():
    image = periodic(20, 20)
    done = run(image, np.zeros((20, 20, 1), bool))
    np.testing.assert_array_equal(done.image, image)
    np.testing.assert_array_equal(done.confidence, 1)


def test_confidence_tells_good_matches_from_poor_ones():
    mask = sides(48, 56, 16)
    regular = run(periodic(48, 56), mask).confidence
    random = run(np.random.default_rng(0).uniform(0, 255, (48, 56, 3)).astype(np.float32), mask).confidence
    hidden = mask > 0
    assert regular[hidden].mean() > 0.9 > 0.5 > random[hidden].mean()
    assert (regular[~hidden] == 1).all() and random.min() >= 0


@given(data=st.data(), height=st.integers(1, 70), width=st.integers(1, 70), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_any_size_and_mask(data, height, width, seed):
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 255, (height, width, 3)).astype(np.float32)
    mask = np.zeros((height, width, 1), np.uint8)
    for _ in range(data.draw(st.integers(0, 3))):
        top, left = rng.integers(height), rng.integers(width)
        mask[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] = 1
    allowed = rng.uniform(size=(height, width)) > data.draw(st.sampled_from([0, 0.01, 0.2]))
    done = run(image, mask, seed=seed, allowed=allowed)
    known = mask[..., 0] == 0
    assert np.isfinite(done.image).all() and done.image.dtype == done.confidence.dtype == np.float32
    assert done.confidence.shape == mask.shape
    assert done.confidence.min() >= 0 and done.confidence.max() <= 1
    np.testing.assert_array_equal(done.image[known], image[known])
    copied = image[known & allowed] if (known & allowed).any() else image
    made = done.image[~known & (done.confidence[..., 0] > 0)]
    assert not made.size or (copied.min() <= made.min() and made.max() <= copied.max())
