import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.models import products


def draw(*shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), dtype)


def plain(name):
    """The same products as JAX differentiates them."""
    return {
        "matmul": lambda x, kernel: jnp.tensordot(x, kernel.astype(x.dtype), axes=1),
        "bias": lambda x, bias: x + bias.astype(x.dtype),
        "convolve": lambda x, kernel: products._convolve(x, kernel, 1, ((1, 1), (1, 1))),
        "strided": lambda x, kernel: products._convolve(x, kernel, 2, ((1, 1), (0, 1))),
    }[name]


CASES = {
    "matmul": (products.matmul, (2, 3, 4), (4, 2, 5)),
    "bias": (products.add_bias, (2, 3, 2, 5), (2, 5)),
    "convolve": (lambda x, kernel: products.convolve(x, kernel, 1, ((1, 1), (1, 1))), (2, 6, 5, 4), (3, 3, 4, 7)),
    "strided": (lambda x, kernel: products.convolve(x, kernel, 2, ((1, 1), (0, 1))), (2, 6, 7, 4), (3, 2, 4, 7)),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_plain_products(name):
    product, *shapes = CASES[name]
    arguments = [draw(*shape) for shape in shapes]
    out, backward = jax.vjp(product, *arguments)
    expected, plain_backward = jax.vjp(plain(name), *arguments)
    np.testing.assert_array_equal(out, expected)
    gradient = draw(*out.shape)
    for found, wanted in zip(backward(gradient), plain_backward(gradient), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_a_weight_never_was_bfloat16(name):
    """In compute dtype bfloat16 the sum over clips is float32, and so is what devices would exchange."""
    product, activation, weight = CASES[name]
    x, weight = draw(*activation, dtype=jnp.bfloat16), draw(*weight)

    def gradient(x, weight):
        return jax.grad(lambda weight: product(x, weight).astype(jnp.float32).sum())(weight)

    jaxpr = jax.make_jaxpr(gradient)(x, weight)
    made = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
    equation = made[jaxpr.jaxpr.outvars[0]]
    while equation.primitive.name in ("transpose", "reshape", "squeeze", "pjit", "jit"):
        if equation.primitive.name in ("pjit", "jit"):
            inner = equation.params["jaxpr"].jaxpr
            equation = {v: e for e in inner.eqns for v in e.outvars}[inner.outvars[0]]
        else:
            equation = made[equation.invars[0]]
    assert equation.primitive.name in ("dot_general", "conv_general_dilated", "reduce_sum")
    assert equation.outvars[0].aval.dtype == jnp.float32
    assert gradient(x, weight).dtype == jnp.float32
