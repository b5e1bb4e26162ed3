"""Closed forms, and XLA's own count of the same programs."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from m3ddm_jax.measure.flops import Flops, count_flops
from m3ddm_jax.models import registry
from m3ddm_jax.models.unet3d import M3DDMUNet


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


SQUARE = array(8, 8)
PRODUCT = Flops(matmul=2 * 8**3)


def convolve(x, kernel, stride=1, padding="SAME", dilation=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def test_products_of_matrices():
    assert count_flops(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), array(5, 2, 3), array(5, 7, 3)) == Flops(
        matmul=2 * 5 * 2 * 3 * 7
    )
    assert count_flops(jnp.dot, array(3), array(3)) == Flops(matmul=6)
    assert count_flops(lambda a: jnp.sin(a) + a.sum(), array(100)) == Flops()


def test_nothing_is_allocated():
    huge = array(10**6, 10**6)
    assert count_flops(jnp.matmul, huge, huge).total == 2 * 10**18


@pytest.mark.parametrize(
    "shape, kernel, options, outputs",
    [
        ((2, 8, 8, 3), (3, 3, 3, 5), {}, 64),
        ((2, 8, 8, 3), (3, 3, 3, 5), {"padding": "VALID"}, 36),
        ((2, 9, 9, 3), (3, 3, 3, 5), {"stride": 2, "padding": ((1, 1), (1, 1))}, 25),
        ((2, 8, 8, 6), (3, 3, 2, 9), {"groups": 3}, 64),
        ((2, 8, 8, 3), (3, 3, 3, 5), {"dilation": 2}, 64),
    ],
)
def test_convolutions_count_every_tap(shape, kernel, options, outputs):
    found = count_flops(lambda x, k: convolve(x, k, **options), array(*shape), array(*kernel))
    assert found.convolution == found.total == 2 * 2 * outputs * 9 * kernel[2] * kernel[3]
    assert (found.padding == 0) == (options.get("padding") == "VALID")


def test_padding_is_told_apart():
    found = count_flops(convolve, array(1, 8, 8, 1), array(3, 3, 1, 1))
    assert found == Flops(convolution=2 * 24**2, padding=2 * (24**2 - 22**2))


def test_holes_of_a_transposed_convolution_do_not_count():
    def double(x, kernel):
        return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    # Two of four taps an axis meet an input.
    found = count_flops(double, array(1, 8, 8, 3), array(4, 4, 3, 5))
    assert found.convolution == 2 * 16**2 * 2**2 * 3 * 5


@pytest.mark.parametrize("options", [{}, {"padding": "VALID"}, {"stride": 2}, {"groups": 3}, {"dilation": 2}])
def test_gradients_cost_the_function_twice_more(options):
    groups = options.get("groups", 1)
    arguments = array(2, 8, 8, 6), array(3, 3, 6 // groups, 9)

    def loss(x, kernel):
        return jnp.square(convolve(x, kernel, **options)).sum()

    once, both = count_flops(loss, *arguments), count_flops(jax.value_and_grad(loss, (0, 1)), *arguments)
    # The gradient of a convolution pads in its own way.
    assert both.convolution - both.padding == 3 * (once.convolution - once.padding)


def test_loops_count_as_often_as_they_run():
    def inner(x):
        return jax.lax.fori_loop(0, 3, lambda _, y: y @ x, x)

    assert count_flops(inner, SQUARE) == 3 * PRODUCT
    assert count_flops(lambda xs: jax.lax.map(inner, xs), array(5, 8, 8)) == 15 * PRODUCT


def test_loops_of_unknown_length_are_refused_where_they_hold_products():
    def until(body):
        return lambda x: jax.lax.while_loop(lambda y: y.sum() < 9, body, x)

    assert count_flops(until(jnp.sin), SQUARE) == Flops()
    with pytest.raises(ValueError, match="while loop of unknown length.*fixed length"):
        count_flops(until(lambda y: y @ y), SQUARE)


def test_what_is_rematerialised_counts_again():
    def loss(block):
        return jax.value_and_grad(lambda w, x: jnp.square(block(w, x)).sum(), (0, 1))

    def block(w, x):
        return jnp.tanh(x @ w)

    assert count_flops(loss(block), SQUARE, SQUARE) == 3 * PRODUCT
    assert count_flops(loss(jax.checkpoint(block)), SQUARE, SQUARE) == 4 * PRODUCT


def test_calls_are_looked_into():
    @jax.custom_vjp
    def with_vjp(x):
        return x @ x

    with_vjp.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x + x @ g + x @ x,))
    with_jvp = jax.custom_jvp(lambda x: x @ x)
    with_jvp.defjvps(lambda tangent, out, x: tangent)
    for function in (jax.jit(lambda x: x @ x), with_vjp, with_jvp):
        assert count_flops(function, SQUARE) == PRODUCT
    assert count_flops(jax.grad(lambda x: with_vjp(x).sum()), SQUARE) == 4 * PRODUCT


def test_of_branches_the_costliest_counts():
    def branch(index, x):
        return jax.lax.switch(index, [lambda y: y, lambda y: y @ y @ y, lambda y: y @ y], x)

    assert count_flops(branch, jax.ShapeDtypeStruct((), jnp.int32), SQUARE) == 2 * PRODUCT


@pytest.mark.parametrize("differentiate", [False, True])
def test_of_platforms_the_default_counts(differentiate):
    def loss(x):
        return jax.lax.platform_dependent(x, cpu=lambda y: (y @ y @ y).sum(), default=lambda y: jnp.square(y @ y).sum())

    assert count_flops(jax.value_and_grad(loss) if differentiate else loss, SQUARE) == (1 + 2 * differentiate) * PRODUCT


def test_kernels_of_other_platforms_are_not_looked_into():
    def kernel(x_ref, out_ref):
        out_ref[...] = x_ref[...] @ x_ref[...]

    fused = pl.pallas_call(kernel, out_shape=SQUARE)
    assert count_flops(lambda x: jax.lax.platform_dependent(x, tpu=fused, default=lambda x: x @ x), SQUARE) == PRODUCT


def test_shards_count_together():
    mesh = jax.make_mesh((4, 2), ("rows", "other"))
    rows, all_of_it = P("rows"), P()
    product = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, all_of_it), out_specs=rows, axis_names={"rows"})
    assert count_flops(product, SQUARE, SQUARE) == PRODUCT


def test_kernels_are_refused():
    def kernel(x_ref, out_ref):
        out_ref[...] = x_ref[...] @ x_ref[...]

    with pytest.raises(ValueError, match="pallas_call hides its products"):
        count_flops(pl.pallas_call(kernel, out_shape=SQUARE), SQUARE)


def check_with_xla(function, *arguments):
    """XLA counts elementwise operations too, a few in a thousand here, and padding not at all; compiled loops once."""
    found = count_flops(function, *arguments)
    xla = jax.jit(function).lower(*arguments).cost_analysis()["flops"]
    assert found.total - found.padding == pytest.approx(xla, rel=0.02)


@pytest.mark.parametrize("remat", [False, True])
def test_equals_the_count_of_xla(remat):
    def network(params, x):
        x = jnp.tanh(convolve(x, params[0], stride=2))
        x = jnp.tanh(convolve(x, params[1]))
        return jnp.tanh(x.reshape(x.shape[0], -1) @ params[2]) @ params[3]

    network = jax.checkpoint(network) if remat else network
    params = (array(3, 3, 128, 256), array(3, 3, 256, 128), array(64 * 128, 512), array(512, 256))
    x = array(4, 16, 16, 128)
    check_with_xla(network, params, x)
    check_with_xla(jax.value_and_grad(lambda *args: jnp.square(network(*args)).sum(), (0, 1)), params, x)


@pytest.mark.slow
def test_equals_the_count_of_xla_of_a_wide_unet():
    model = M3DDMUNet(block_out_channels=(320, 640), attention_levels=(False, False), layers_per_block=1)
    variables = registry.abstract_variables(model)
    latents, mask = array(1, 4, 16, 16, 4), array(1, 4, 16, 16, 1)

    def loss(variables, latents, mask, global_latents):
        conditions = {"timestep": 0, "fps": 0, "global_latents": global_latents}
        return jnp.square(model.apply(variables, latents, mask, latents, **conditions)).mean()

    check_with_xla(jax.value_and_grad(loss), variables, latents, mask, array(1, 2, 12, 12, 4))
