import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ddm_jax.diffusion.guidance import BRANCHES, Guidance

SCALES = st.floats(0, 10)


def combine(guidance, values):
    weights = guidance.weights()
    return sum(weights.get(branch, 0) * value for branch, value in zip(BRANCHES, values, strict=True))


@given(local_scale=SCALES, global_scale=st.floats(1, 10, exclude_min=True), values=st.tuples(SCALES, SCALES, SCALES))
def test_weights_are_the_papers_formula(local_scale, global_scale, values):
    e00, e10, e11 = values
    expected = e00 + local_scale * (e10 - e00) + global_scale * (e11 - e10)
    assert combine(Guidance(local_scale, global_scale), values) == pytest.approx(expected, abs=1e-9)


@given(local_scale=SCALES, global_scale=st.floats(0, 1), values=st.tuples(SCALES, SCALES, SCALES))
def test_both_conditions_are_dropped_together_where_the_global_one_does_not_guide(local_scale, global_scale, values):
    e00, _, e11 = values
    expected = e00 + local_scale * (e11 - e00)
    assert combine(Guidance(local_scale, global_scale), values) == pytest.approx(expected, abs=1e-9)


def test_three_branches_equal_the_official_four():
    e00, e10, e01, e11 = np.random.default_rng(0).normal(size=(4, 50))
    # The official code's formula over its batch of four, of which it never uses the third.
    batch = np.stack([e00, e10, e01, e11])
    official = batch[0] + 2.0 * (batch[1] - batch[0]) + 4.0 * (batch[3] - batch[1])
    np.testing.assert_allclose(combine(Guidance(2.0, 4.0), (e00, e10, e11)), official, atol=1e-6)


def test_only_branches_that_count_run():
    assert Guidance().weights() == {(True, True): 1}
    assert set(Guidance(3, 3).weights()) == set(Guidance(2, 1).weights()) == {(False, False), (True, True)}
    assert set(Guidance(1, 4).weights()) == {(True, False), (True, True)}
    assert set(Guidance(2, 4).weights()) == set(BRANCHES)


def test_guidance_acts_inside_its_interval_only():
    guidance = Guidance(2, 4, interval=(0.2, 0.8))
    assert [guidance.acts(level) for level in (0.1, 0.2, 0.5, 0.8, 0.9)] == [False, True, True, True, False]
    assert not Guidance(1, 1).acts(0.5)
    with pytest.raises(ValueError, match="rising"):
        Guidance(interval=(0.5, 0.2))
