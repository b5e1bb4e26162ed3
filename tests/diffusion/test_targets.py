import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ddm_jax.diffusion import targets
from m3ddm_jax.diffusion.schedule import make_schedule

X0, NOISE = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2, 3))
PAIRS = list(itertools.product(targets.PREDICTIONS, repeat=2))
LEVELS = st.tuples(st.floats(0.1, 0.99), st.floats(0.1, 0.99))


@given(level=LEVELS, pair=st.sampled_from(PAIRS))
def test_every_conversion_gives_the_other_target(level, pair):
    source, target = pair
    noisy = targets.add_noise(X0, NOISE, *level)
    prediction = targets.make_target(source, X0, NOISE, *level)
    converted = targets.convert(source, target, prediction, noisy, *level)
    # Dividing by the smaller factor (0.1) enlarges float32 rounding tenfold.
    np.testing.assert_allclose(converted, targets.make_target(target, X0, NOISE, *level), atol=1e-4)


@pytest.mark.parametrize("level", [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("pair", PAIRS)
def test_the_ends_of_a_schedule_are_finite(level, pair):
    assert np.isfinite(targets.convert(*pair, X0, NOISE, *level)).all()


@given(level=LEVELS, gamma=st.floats(0.5, 20), prediction=st.sampled_from(targets.PREDICTIONS))
def test_min_snr_weighs_the_same_x0_error_in_every_space(level, gamma, prediction):
    signal, sigma = level
    noisy = targets.add_noise(X0, NOISE, *level)
    exact = targets.make_target(prediction, X0, NOISE, *level)
    error = targets.convert(prediction, "x0", exact + 1.0, noisy, *level) - X0
    weight = float(targets.min_snr_weight(prediction, *level, gamma))
    expected = min((signal / sigma) ** 2, gamma) * float(np.mean(np.square(error)))
    assert weight == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("prediction", targets.PREDICTIONS)
def test_min_snr_is_finite_at_the_ends(prediction):
    ends = np.array([0.0, 1.0])
    assert np.isfinite(targets.min_snr_weight(prediction, ends, ends[::-1], 5.0)).all()


def test_a_prediction_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="'flow'.*epsilon, v_prediction, velocity, x0"):
        targets.make_target("flow", X0, NOISE, 0.5, 0.5)
    for schedule in (make_schedule("rectified_flow"), make_schedule("cosine", zero_terminal_snr=True)):
        with pytest.raises(ValueError, match="'epsilon' does not fit .* v_prediction, velocity, x0 is accepted"):
            targets.check_prediction("epsilon", schedule)
        assert targets.check_prediction("velocity", schedule) == "velocity"
    assert targets.check_prediction("epsilon", make_schedule("cosine")) == "epsilon"
