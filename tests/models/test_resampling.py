import numpy as np
import pytest
import torch

from m3ddm_jax.models.resampling import resize_bilinear

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
