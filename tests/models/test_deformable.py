import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from jax.test_util import check_grads

from m3ddm_jax.models.deformable import DeformableAlignment, deformable_conv


def inputs(seed=0, groups=2, side=3, height=5, width=6, batch=2, channels=4, out=3):
    """(images, offsets, modulation, kernel); no offset lies on a whole number of pixels, or within 0.2 of one."""
    rng = np.random.default_rng(seed)
    shape = (batch, height, width, groups, side**2)
    return tuple(
        x.astype(np.float32)
        for x in (
            rng.normal(size=(batch, height, width, channels)),
            rng.integers(-2, 3, (*shape, 2)) + rng.uniform(0.2, 0.8, (*shape, 2)),
            rng.uniform(size=shape),
            rng.normal(size=(side, side, channels, out)),
        )
    )


def test_equals_the_reference(goldens):
    golden, expected = (np.load(goldens / f"isvi/dcnv2/{name}.npz") for name in ("inputs", "outputs"))
    out = jax.jit(deformable_conv)(
        rearrange(golden["x"], "n c h w -> n h w c"),
        rearrange(golden["offset"], "n (g k xy) h w -> n h w g k xy", g=16, xy=2),
        rearrange(golden["mask"], "n (g k) h w -> n h w g k", g=16),
        rearrange(golden["weight"], "o i p q -> p q i o"),
    )
    # float32 sums in another order.
    np.testing.assert_allclose(out + golden["bias"], rearrange(expected["out"], "n c h w -> n h w c"), atol=1e-5)


@pytest.mark.parametrize("side", [1, 3, 5])
def test_without_offsets_it_is_a_convolution(side):
    images, offsets, modulation, kernel = inputs(side=side)
    out = deformable_conv(images, 0 * offsets, 0 * modulation + 1, kernel)
    plain = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(out, plain, atol=1e-4)


def test_gradients_are_differences():
    """Of images, offsets, modulation and kernel: linear in each where no tap crosses a pixel centre."""
    run = jax.jit(deformable_conv)
    check_grads(run, inputs(height=3, width=4, channels=2, out=2), 1, modes="rev", atol=2e-2, rtol=2e-2, eps=0.03)


@pytest.mark.parametrize("offset", [0.0, -1.0, 1e30, -1e30])
def test_gradients_are_finite_everywhere(offset):
    """On pixel centres, on borders, and beyond all of them, where the result is zero."""
    images, offsets, modulation, kernel = inputs()
    arguments = (images, jnp.full_like(offsets, offset), modulation, kernel)
    out, gradients = jax.value_and_grad(lambda *x: deformable_conv(*x).sum(), (0, 1, 2, 3))(*arguments)
    assert np.isfinite(out) and (out == 0) == (abs(offset) > 10)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_memory_stays_below_nine_times_the_images():
    """At the published proportions; also in the backward pass, where offsets and their gradients are a third of it."""
    images, *others = inputs(batch=1, height=40, width=40, channels=128, out=64, groups=8)
    backward = jax.jit(lambda *x: jax.vjp(deformable_conv, *x[:-1])[1](x[-1]))
    cotangent = np.zeros((1, 40, 40, 64), np.float32)
    for program, arguments in ((jax.jit(deformable_conv), ()), (backward, (cotangent,))):
        analysis = program.lower(images, *others, *arguments).compile().memory_analysis()
        # 4.3 and 8.9 times, with XLA's usual optimizations, without which nothing is fused.
        assert analysis.temp_size_in_bytes < 9 * images.nbytes


@pytest.fixture(scope="module")
def alignment():
    """(apply, variables) of a module as it starts: no offsets yet, modulation 1/2; states [1, 6, 7, 4]."""
    module, state, flow = DeformableAlignment(4, 2), np.zeros((1, 6, 7, 4)), np.zeros((1, 6, 7, 2))
    shapes = jax.eval_shape(module.init, jax.random.key(0), state, state, state, flow, flow)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    variables["params"]["conv_offset_6"] = jax.tree.map(np.zeros_like, variables["params"]["conv_offset_6"])
    return jax.jit(module.apply), variables


@pytest.mark.parametrize("which", [0, 1])
def test_each_half_of_the_groups_follows_its_own_flow(alignment, which):
    """A frame that a whole-pixel flow shifts gives what the shifted frame gives without, where no border is near."""
    apply, variables = alignment
    current, *states = np.zeros((3, 1, 6, 7, 4), np.float32)
    flows = np.zeros((2, 1, 6, 7, 2), np.float32)
    states[which] = np.random.default_rng(0).normal(size=(1, 6, 7, 4)).astype(np.float32)
    flows[which] = [1, -2]
    moved = apply(variables, *states, current, *flows)
    states[which] = np.roll(states[which], (2, -1), (1, 2))
    still = apply(variables, *states, current, *(0 * flows))
    np.testing.assert_allclose(moved[:, 3:-1, 1:-2], still[:, 3:-1, 1:-2], atol=1e-5)
    assert np.abs(still).max() > 0.1


def test_offsets_are_trained_from_the_first_step(alignment):
    apply, variables = alignment
    rng = np.random.default_rng(1)
    states = rng.normal(size=(3, 1, 6, 7, 4)).astype(np.float32)
    flows = rng.uniform(0.1, 0.9, (2, 1, 6, 7, 2)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda v: jnp.square(apply(v, *states, *flows)).sum()))(variables)["params"]
    assert np.abs(gradient["conv_offset_6"]["kernel"]).max() > 0
