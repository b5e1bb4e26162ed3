import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.measure.peak_memory import equations, peak


def count(aval):
    return float(aval.size)


def peak_of(function, *shapes):
    return peak(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)), count)


def test_values_count_from_their_making_to_their_last_use():
    def chain(x):
        for _ in range(5):
            x = jnp.sin(x)
        return x

    assert peak_of(chain, (10,)) == 20  # one and the next; the argument is aside
    assert peak_of(lambda x: jnp.sin(x) @ jnp.cos(x), (10,)) == 21
    assert peak_of(jax.jit(chain), (10,)) == 20  # what is called counts once

    def scanned(x):
        return jax.lax.scan(lambda carry, _: (chain(carry), carry), x, length=3)

    assert peak_of(scanned, (10,)) == 40  # three are stacked, and one is left


def test_of_platforms_one_counts():
    def function(x):
        return jax.lax.platform_dependent(x, tpu=lambda x: x + x, default=lambda x: jnp.outer(x, x).sum(axis=0))

    jaxpr = jax.make_jaxpr(function)(jnp.zeros(10))
    assert peak(jaxpr, count, "tpu") < 30 and peak(jaxpr, count, "cuda") == peak(jaxpr, count) >= 100
    assert [eqn.primitive.name for eqn, _ in equations(jaxpr)].count("reduce_sum") == 1


@pytest.mark.parametrize("rematerialised, most", [(False, 8), (True, 6)])
def test_what_a_gradient_keeps(rematerialised, most):
    """Of four layers of which each would keep two values, or the one that goes in."""

    def layer(x):
        return jnp.sin(jnp.sin(x))

    def loss(x):
        for _ in range(4):
            x = (jax.checkpoint(layer) if rematerialised else layer)(x)
        return x.sum()

    found = peak_of(jax.grad(loss), (100,)) / 100
    assert most <= found <= most + 3


def test_operations_of_loops_come_as_often_as_they_run():
    def function(x):
        x, _ = jax.lax.scan(lambda x, _: (jax.jit(jnp.sin)(x), None), x, length=7)
        return jnp.sin(x)

    found = [times for eqn, times in equations(jax.make_jaxpr(function)(1.0)) if eqn.primitive.name == "sin"]
    assert sorted(found) == [1, 7]
