import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jax.test_util import check_grads

from m3ddm_jax.flow.warping import round_trip, sample_bilinear, splat, targets, warp

SHAPE = (2, 7, 10, 3)
WARP, SPLAT = jax.jit(warp, static_argnames="border"), jax.jit(splat)
FLOWS = arrays.arrays(np.float32, (*SHAPE[:3], 2), elements=st.floats(-12, 12, width=32))


def images(height=7, width=10, seed=0):
    return np.random.default_rng(seed).normal(size=(2, height, width, 3)).astype(np.float32)


def constant(dx, dy):
    return np.broadcast_to(np.float32([dx, dy]), (*SHAPE[:3], 2))


def shifted(x, dx, dy, mode):
    """What lies dx to the right and dy below each pixel."""
    padded = np.pad(x, ((0, 0), (9, 9), (12, 12), (0, 0)), mode)
    return padded[:, 9 + dy : 16 + dy, 12 + dx : 22 + dx]


@settings(max_examples=20)
@given(st.integers(-12, 12), st.integers(-9, 9))
def test_whole_pixels_shift(dx, dy):
    flow = constant(dx, dy)
    np.testing.assert_array_equal(WARP(images(), flow), shifted(images(), dx, dy, "constant"))
    np.testing.assert_array_equal(WARP(images(), flow, border=True), shifted(images(), dx, dy, "edge"))
    # A splat puts where a warp takes from; what needs cells of the last row and column and beyond is dropped.
    kept = images()
    rows, columns = (np.asarray(x) for x in targets(flow))
    kept[(rows < 0) | (rows >= 6) | (columns < 0) | (columns >= 9)] = 0
    np.testing.assert_array_equal(SPLAT(images(), flow), shifted(kept, -dx, -dy, "constant"))


def test_no_flow_is_the_identity():
    nowhere = constant(0, 0)
    np.testing.assert_array_equal(WARP(images(), nowhere), images())
    np.testing.assert_array_equal(SPLAT(images(), nowhere)[:, :-1, :-1], images()[:, :-1, :-1])
    np.testing.assert_array_equal(round_trip(nowhere, nowhere, *targets(nowhere)), nowhere)


@settings(max_examples=20)
@given(FLOWS)
def test_a_splat_keeps_the_weight_of_what_it_does_not_drop(flow):
    rows, columns = (np.asarray(x) for x in targets(flow))
    kept = (rows >= 0) & (rows < 6) & (columns >= 0) & (columns < 9)
    # Sums of up to 70 float32 shares.
    np.testing.assert_allclose(
        SPLAT(np.ones(SHAPE, np.float32), flow).sum((1, 2))[:, 0], kept.sum((1, 2)), rtol=1e-5, atol=1e-5
    )


@settings(max_examples=20)
@given(FLOWS)
def test_a_splat_is_the_transpose_of_a_warp_where_nothing_is_dropped(flow):
    rows, columns = targets(flow)
    kept = ((rows >= 0) & (rows < 6) & (columns >= 0) & (columns < 9))[..., None]
    x, y = images(seed=1), images(seed=2)
    # Sums of 420 products of about 1.
    np.testing.assert_allclose((SPLAT(x, flow) * y).sum(), (x * kept * WARP(y, flow)).sum(), rtol=1e-4, atol=1e-4)


@settings(max_examples=20)
@given(FLOWS, st.sampled_from([np.nan, np.inf, -np.inf]))
def test_flow_that_is_no_number_reads_nothing_and_goes_nowhere(flow, worst):
    flow = np.where(flow > 6, worst, flow)
    for made in (WARP(images(), flow), WARP(images(), flow, border=True), SPLAT(images(), flow)):
        assert np.isfinite(made).all()
    lost = np.isnan(flow).any(-1)
    assert (np.asarray(WARP(images(), flow))[lost] == 0).all()


def test_golden_forward_warp(goldens):
    inputs, outputs = (np.load(goldens / "isvi" / "forward_warp" / f"{name}.npz") for name in ("inputs", "outputs"))
    made = splat(np.moveaxis(inputs["im0"], 1, -1), inputs["flow"])
    # Sums in another order.
    np.testing.assert_allclose(made, np.moveaxis(outputs["im1"], 1, -1), rtol=1e-5, atol=1e-6)


def test_golden_consistency(goldens):
    inputs, outputs = (np.load(goldens / "isvi" / "consist_check" / f"{name}.npz") for name in ("inputs", "outputs"))
    flow, opposite = inputs["flowB"][None], inputs["flowF"][None]
    strayed = np.asarray(round_trip(flow, opposite, *targets(flow)))[0]
    # Flows of about 2 pixels at positions up to 40, in float32.
    np.testing.assert_allclose(strayed, outputs["uv"], atol=2e-5)
    np.testing.assert_allclose(np.hypot(*np.moveaxis(strayed, -1, 0)), outputs["diff"], atol=2e-5)


def smooth_flow(seed):
    """At positions that no small step takes across a pixel centre."""
    rng = np.random.default_rng(seed)
    return (rng.integers(-2, 3, (2, 4, 5, 2)) + rng.uniform(0.2, 0.8, (2, 4, 5, 2))).astype(np.float32)


@pytest.mark.parametrize("move", [warp, lambda x, flow: warp(x, flow, border=True), splat])
def test_gradients_are_differences(move):
    # What a step of 0.03 in everything at once leaves of third order is below this.
    limits = {"atol": 2e-2, "rtol": 2e-2, "eps": 0.03}
    check_grads(move, (images(4, 5), smooth_flow(2)), 1, modes="rev", **limits)


@pytest.mark.parametrize("move", [warp, splat])
@pytest.mark.parametrize("far", [1e30, np.nan])
def test_gradients_of_what_lies_far_outside_are_zero(move, far):
    gradients = jax.grad(lambda x, flow: move(x, flow).sum(), (0, 1))(images(), jnp.full((2, 7, 10, 2), far))
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(("border", "name"), [(False, "zeros"), (True, "border")])
def test_samples_as_pytorch_does(border, name):
    """Inside, across every border, on the outermost centres, and far away."""
    rng = np.random.default_rng(1)
    x = images(5, 8)
    rows, columns = rng.uniform(-3, 8, (2, 40)), rng.uniform(-3, 11, (2, 40))
    rows[:, :4], columns[:, :4] = [-1, 0, 4, 5], [-1, 0, 7, 8]
    rows[:, 4:6], columns[:, 4:6] = [1e9, -1e9], [2, -1e9]
    grid = np.stack([columns / 7 * 2 - 1, rows / 4 * 2 - 1], axis=-1)[:, None].astype(np.float32)
    expected = torch.nn.functional.grid_sample(
        torch.tensor(np.moveaxis(x, -1, 1)), torch.tensor(grid), padding_mode=name, align_corners=True
    )
    sampled = sample_bilinear(x, rows, columns, border)
    # float32 interpolation weights, rounded otherwise.
    np.testing.assert_allclose(sampled, np.moveaxis(expected.numpy(), 1, -1)[:, 0], rtol=1e-5, atol=1e-5)
