import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.models.spynet import SPyNet


@pytest.fixture(scope="module")
def spynet():
    """(apply, variables) of a network whose weights are all zero, for images of 33 x 20."""
    module, images = SPyNet(width=1), jnp.zeros((1, 33, 20, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), images, images)
    return jax.jit(module.apply), jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)


def random_images(seed, count=1):
    return np.random.default_rng(seed).uniform(size=(count, 33, 20, 3)).astype(np.float32)


@pytest.mark.parametrize("level", range(6))
def test_what_a_level_finds_doubles_with_each_finer_one(spynet, level):
    """A constant flow at a level, brought from the 64 x 32 pixels that the network sees back to 33 x 20."""
    apply, variables = spynet
    params = dict(variables["params"])
    found = {"conv": {**params[f"basic_module_{level}"]["basic_module_4"]["conv"], "bias": jnp.array([0.5, -0.25])}}
    params[f"basic_module_{level}"] = {**params[f"basic_module_{level}"], "basic_module_4": found}
    flow = apply({"params": params}, random_images(0), random_images(1))
    expected = 2 ** (5 - level) * np.array([0.5 * 20 / 32, -0.25 * 33 / 64])
    np.testing.assert_allclose(flow, np.broadcast_to(expected, (1, 33, 20, 2)), rtol=1e-5)


def test_two_pyramids_are_compared(spynet):
    """A level that copies the difference of the images' red: zero for equal ones, and the sign says which is which."""
    apply, variables = spynet
    params = jax.tree.map(np.array, variables["params"])
    finest = params["basic_module_5"]
    # Two ReLUs carry the positive and the negative part.
    finest["basic_module_0"]["conv"]["kernel"][3, 3, 0] = [1, -1]
    finest["basic_module_0"]["conv"]["kernel"][3, 3, 3] = [-1, 1]
    for layer in (1, 2):
        finest[f"basic_module_{layer}"]["conv"]["kernel"][3, 3, :2, :2] = np.eye(2)
    finest["basic_module_3"]["conv"]["kernel"][3, 3, 0, 0] = 1
    finest["basic_module_4"]["conv"]["kernel"][3, 3, 0, 0] = 1
    a = np.zeros((1, 33, 20, 3), np.float32)
    brighter = a + np.float32([0.229, 0, 0])
    assert np.all(apply({"params": params}, a, a) == 0)
    np.testing.assert_allclose(apply({"params": params}, brighter, a)[..., 0], 20 / 32, rtol=1e-5)
    assert np.all(apply({"params": params}, a, brighter) == 0)
