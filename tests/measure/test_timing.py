import jax
import jax.numpy as jnp
import pytest

from m3ddm_jax.measure import timing


def test_functions_take_turns_after_one_untimed_call_each():
    calls = []
    result = timing.time_together({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert "".join(calls) == "abababab"
    assert {name: len(t.seconds) for name, t in result.items()} == {"a": 3, "b": 3}


def test_waits_for_arrays():
    class Result:
        waited = 0

        def block_until_ready(self):
            Result.waited += 1
            return self

    timing.time_together({"a": lambda: {"x": Result(), "y": jnp.ones(3), "z": None}}, repeats=2)
    assert Result.waited == 3


def test_median_and_spread():
    assert timing.Timing((1.0, 2.0, 4.0)).median == 2.0
    assert timing.Timing((1.0, 2.0, 4.0)).spread == 1.5


def test_refuses_no_repeats():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        timing.time_together({}, repeats=0)


def test_compiling_is_timed_and_running_is_not():
    function, x = jax.jit(lambda x: x * 3 + 1), jnp.ones(5)
    with timing.compile_seconds() as seconds:
        function(x)
        assert len(seconds) == 1 and seconds[0] > 0
        function(x)
    assert len(seconds) == 1
    jax.jit(lambda x: x - 7)(x)
    assert len(seconds) == 1
