import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads

from m3ddm_jax.models.resampling import resize_bilinear, sample_bilinear, warp

pytestmark = pytest.mark.usefixtures("quick_compiles")

# float32 interpolation weights, rounded otherwise.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def channels_first(x):
    return torch.tensor(np.moveaxis(x, -1, 1))


def channels_last(x):
    return np.moveaxis(x.numpy(), 1, -1)


def images(height=7, width=10, channels=3, seed=0):
    return np.random.default_rng(seed).normal(size=(2, height, width, channels)).astype(np.float32)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(14, 20), (3, 25), (7, 4), (1, 1)])
def test_resizes_as_pytorch_does(size, align_corners):
    resized = resize_bilinear(images(), *size, align_corners=align_corners)
    expected = torch.nn.functional.interpolate(
        channels_first(images()), size, mode="bilinear", align_corners=align_corners
    )
    np.testing.assert_allclose(resized, channels_last(expected), **TOLERANCE)


@pytest.mark.parametrize("align_corners", [True, False])
def test_a_single_pixel_becomes_constant(align_corners):
    pixel = images(1, 1)
    resized = resize_bilinear(pixel, 4, 6, align_corners=align_corners)
    np.testing.assert_array_equal(resized, np.broadcast_to(pixel, (2, 4, 6, 3)))


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
        channels_first(x), torch.tensor(grid), padding_mode=name, align_corners=True
    )
    sampled = sample_bilinear(x, rows, columns, border)
    np.testing.assert_allclose(sampled, channels_last(expected)[:, 0], **TOLERANCE)


def test_warping_by_whole_pixels_shifts():
    x = images()
    flow = np.broadcast_to(np.float32([2, -1]), (2, 7, 10, 2))
    shifted = np.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)))[:, :7, 2:]
    np.testing.assert_array_equal(warp(x, flow), shifted)
    continued = np.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), mode="edge")[:, :7, 2:]
    np.testing.assert_array_equal(warp(x, flow, border=True), continued)


@pytest.mark.parametrize("border", [False, True])
def test_gradients_are_differences(border):
    """Of images and of flow, at positions that no small step takes across a pixel centre."""
    x = images(4, 5)
    rng = np.random.default_rng(2)
    flow = rng.integers(-2, 3, (2, 4, 5, 2)) + rng.uniform(0.2, 0.8, (2, 4, 5, 2))
    # What a step of 0.03 in everything at once leaves of third order is below this.
    check_grads(
        lambda x, flow: warp(x, flow, border),
        (x, flow.astype(np.float32)),
        1,
        modes="rev",
        atol=2e-2,
        rtol=2e-2,
        eps=0.03,
    )


def test_gradients_far_outside_are_zero_and_finite():
    flow = jnp.full((2, 7, 10, 2), 1e30)
    gradients = jax.grad(lambda x, flow: warp(x, flow).sum(), (0, 1))(images(), flow)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)
