import pytest

from m3ddm_jax.benchmarks import outpaint


def test_a_failing_command_is_told_in_one_line():
    with pytest.raises(ValueError, match="data.synthetic failed: .*nowhere.txt"):
        outpaint.run_module("data.synthetic", "nowhere.txt")
