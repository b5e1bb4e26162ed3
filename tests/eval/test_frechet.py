import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.frechet import bootstrap, frechet_distance, kernel_distance

METRICS = pytest.mark.parametrize("metric", [frechet_distance, kernel_distance])
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(2, 12)


def features(seed, clips, width=6, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal((clips, width))


def rotation(seed, width=6):
    return np.linalg.qr(features(seed, width, width))[0]


@pytest.fixture(scope="module")
def recipe(goldens):
    """Makes the features that the reference values are of."""
    spec = importlib.util.spec_from_file_location("recipe", goldens / "metrics" / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("nx", "ny"), [(1200, 1000), (450, 450), (150, 120), (50, 90), (16, 16)])
def test_reference_values(goldens, recipe, nx, ny):
    """Values in float64 from the same formulas; 1e-6 tells every other way to take the root of few clips apart."""
    expected = np.load(goldens / "metrics" / "frechet" / "outputs.npz")
    x, y = recipe.features(f"frechet/x{nx}", nx), recipe.features(f"frechet/y{ny}", ny)
    sums = [x.sum(), np.abs(x).sum(), y.sum(), np.abs(y).sum()]
    np.testing.assert_allclose(sums, expected[f"{nx}_{ny}/input_sums"], rtol=1e-10)
    for ddof, name in ((1, "unbiased"), (0, "biased")):
        assert frechet_distance(x, y, ddof) == pytest.approx(float(expected[f"{nx}_{ny}/{name}/nuclear"]), abs=1e-6)
    assert frechet_distance(x[:1], y[:1]) == pytest.approx(np.sum((x[0] - y[0]) ** 2), abs=1e-9)
    assert kernel_distance(x, y) == pytest.approx(float(expected[f"{nx}_{ny}/kvd_poly3_unbiased"]), abs=1e-6)


def test_one_dimension_has_the_closed_form():
    """(difference of means)^2 + (difference of standard deviations)^2, by N - 1 and by N."""
    x, y = features(0, 9, 1), features(1, 5, 1, scale=3.0) + 2
    for ddof in (0, 1):
        expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=ddof) - y.std(ddof=ddof)) ** 2
        assert frechet_distance(x, y, ddof) == pytest.approx(expected, abs=1e-12)


def test_kernel_distance_is_the_sum_over_pairs():
    x, y = features(2, 4), features(3, 5)

    def mean(a, b, same):
        return np.mean([(p @ q / 6 + 1) ** 3 for i, p in enumerate(a) for j, q in enumerate(b) if not same or i != j])

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-12)


@given(SEEDS, SIZES, SIZES)
def test_symmetric_and_blind_to_rotation_and_order(seed, n, m):
    x, y, turn = features(seed, n), features(seed + 1, m, scale=2.0), rotation(seed)
    for metric in (frechet_distance, kernel_distance):
        value = metric(x, y)
        for same in (metric(y, x), metric(x @ turn, y @ turn), metric(x[::-1], y)):
            assert same == pytest.approx(value, rel=1e-9, abs=1e-9)
    assert frechet_distance(x, y) >= 0


@given(SEEDS, SIZES)
def test_equal_sets_are_at_distance_zero_and_moved_ones_at_the_length_of_the_move(seed, n):
    x, move = features(seed, n), features(seed + 1, 1)[0]
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + move) == pytest.approx(move @ move, rel=1e-9, abs=1e-9)


def test_a_single_clip_leaves_the_means():
    x, y = features(4, 1), features(5, 7)
    assert frechet_distance(x, y) == pytest.approx(np.sum((x[0] - y.mean(0)) ** 2), abs=1e-12)


def test_few_clips_bias_the_frechet_distance_but_not_the_kernel_distance():
    """Independent sets of one law: the first falls with N, the second is zero within its spread at every N."""
    rng = np.random.default_rng(0)
    frechet, kernel = (
        [np.mean([m(*rng.standard_normal((2, n, 40))) for _ in range(20)]) for n in (10, 40, 160)]
        for m in (frechet_distance, kernel_distance)
    )
    assert frechet[0] > 1.5 * frechet[1] > 3 * frechet[2] > 0
    np.testing.assert_allclose(kernel, 0, atol=0.05)  # a single value at N = 10 spreads by 0.08


@METRICS
def test_the_interval_lies_around_the_value_and_narrows_with_clips(metric):
    """Plain quantiles of the draws of the Frechet distance would lie beyond the value: a draw is of fewer clips."""
    widths = []
    for clips in (12, 120):
        x = features(6, clips, 40)
        y = x + 0.5 * features(7, clips, 40) + 0.3
        low, high = bootstrap(metric, x, y, draws=100)
        assert low < metric(x, y) < high
        assert (low, high) == bootstrap(metric, x, y, draws=100) != bootstrap(metric, x, y, draws=100, seed=1)
        inner = bootstrap(metric, x, y, draws=100, level=0.5)
        assert low < inner[0] < inner[1] < high
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]


def test_the_interval_is_as_wide_as_distances_of_new_clips_spread():
    """A 95 % interval of a bell curve is 3.9 standard deviations wide; the bootstrap's own bias leaves it near."""
    rng = np.random.default_rng(1)

    def draw():
        x = rng.standard_normal((40, 20))
        return x, x + 0.5 * rng.standard_normal((40, 20)) + 0.3

    spread = np.std([frechet_distance(*draw()) for _ in range(200)])
    width = np.mean([np.diff(bootstrap(frechet_distance, *draw(), draws=50, seed=i)) for i in range(10)])
    assert 3 < width / spread < 6


def test_a_clip_keeps_its_output_in_the_interval():
    """Outputs equal to the truth are at zero whichever clips are drawn; drawn apart they would not be."""
    x = features(8, 10)
    np.testing.assert_allclose(bootstrap(frechet_distance, x, x.copy()), 0, atol=1e-9)


WITH_NAN = features(0, 3)
WITH_NAN[1, 2] = np.nan


@METRICS
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (features(0, 3), WITH_NAN, r"second features are not finite in 1 of 3 rows: \[1\]"),
        (np.full((2, 6), np.inf), features(0, 3), "first features are not finite in 2 of 2"),
        (features(0, 3), features(0, 3, 5), "same width, found 6 and 5"),
        (features(0, 0), features(0, 3), "first features are of 0 clips"),
        (features(0, 3), features(0, 3)[0], r"second features must be \[N,D\], found \[6\]"),
    ],
)
def test_refuses_what_has_no_distance(metric, x, y, message):
    with pytest.raises(ValueError, match=message):
        metric(x, y)


def test_refuses_too_few_clips():
    x = features(0, 3)
    with pytest.raises(ValueError, match="of 1 clips, at least 2"):
        kernel_distance(x[:1], x)
    with pytest.raises(ValueError, match="of 1 clips, at least 2"):
        bootstrap(frechet_distance, x[:1], x[:1])
    with pytest.raises(ValueError, match="same clips are needed in both sets, found 3 and 2"):
        bootstrap(frechet_distance, x, x[:2])
