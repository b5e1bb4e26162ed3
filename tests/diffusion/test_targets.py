import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ddm_jax.diffusion import targets

X0, NOISE = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2, 3))


@given(
    alpha_cumprod=st.floats(0.01, 0.99), pair=st.sampled_from(list(itertools.product(targets.PREDICTIONS, repeat=2)))
)
def test_every_conversion_gives_the_other_target(alpha_cumprod, pair):
    source, target = pair
    noisy = targets.add_noise(X0, NOISE, alpha_cumprod)
    prediction = targets.make_target(source, X0, NOISE, alpha_cumprod)
    converted = targets.convert(source, target, prediction, noisy, alpha_cumprod)
    # Dividing by the smaller root (0.1) enlarges float32 rounding tenfold.
    np.testing.assert_allclose(converted, targets.make_target(target, X0, NOISE, alpha_cumprod), atol=1e-4)


@pytest.mark.parametrize("alpha_cumprod", [0.0, 1.0])
@pytest.mark.parametrize("pair", list(itertools.product(targets.PREDICTIONS, repeat=2)))
def test_the_ends_of_a_schedule_are_finite(alpha_cumprod, pair):
    assert np.isfinite(targets.convert(*pair, X0, NOISE, alpha_cumprod)).all()


@given(alpha_cumprod=st.floats(0.001, 0.999), gamma=st.floats(0.5, 20))
def test_min_snr_weighs_the_same_x0_error_in_every_space(alpha_cumprod, gamma):
    snr = alpha_cumprod / (1 - alpha_cumprod)
    # An x0 error of 1 is an epsilon error of sqrt(SNR) and a v error of sqrt(SNR + 1).
    for prediction, scale in (("x0", 1), ("epsilon", snr), ("v_prediction", snr + 1)):
        weight = float(targets.min_snr_weight(prediction, alpha_cumprod, gamma))
        assert weight * scale == pytest.approx(min(snr, gamma), rel=1e-3)


@pytest.mark.parametrize("prediction", targets.PREDICTIONS)
def test_min_snr_is_finite_at_the_ends(prediction):
    assert np.isfinite(targets.min_snr_weight(prediction, np.array([0.0, 1.0]), 5.0)).all()


def test_unknown_prediction_is_named():
    with pytest.raises(ValueError, match="'flow'.*epsilon, v_prediction, x0"):
        targets.make_target("flow", X0, NOISE, 0.5)
