import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ddm_jax.diffusion.guidance import BRANCHES, Guidance

SCALES = st.floats(0, 10)


@given(local_scale=SCALES, global_scale=SCALES, values=st.tuples(SCALES, SCALES, SCALES))
def test_weights_are_the_papers_formula(local_scale, global_scale, values):
    e00, e10, e11 = values
    weights = Guidance(local_scale, global_scale).weights()
    combined = sum(weights.get(branch, 0) * value for branch, value in zip(BRANCHES, values, strict=True))
    assert combined == pytest.approx(e00 + local_scale * (e10 - e00) + global_scale * (e11 - e10), abs=1e-9)


def test_only_branches_that_count_run():
    assert Guidance().weights() == {(True, True): 1}
    assert set(Guidance(3, 3).weights()) == {(False, False), (True, True)}
    assert set(Guidance(1, 4).weights()) == {(True, False), (True, True)}
    assert set(Guidance(2, 4).weights()) == set(BRANCHES)


def test_guidance_acts_inside_its_interval_only():
    guidance = Guidance(2, 4, interval=(0.2, 0.8))
    assert [guidance.acts(level) for level in (0.1, 0.2, 0.5, 0.8, 0.9)] == [False, True, True, True, False]
    assert not Guidance(1, 1).acts(0.5)
    with pytest.raises(ValueError, match="rising"):
        Guidance(interval=(0.5, 0.2))
