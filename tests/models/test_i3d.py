import importlib.util
import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.models import registry
from m3ddm_jax.models.i3d import I3D, Conv3D, max_pool
from m3ddm_jax.weights.i3d import i3d_from_state_dict

# float32 sums in another order, 57 convolutions deep, on logits of magnitude 20.
TOLERANCE = {"rtol": 1e-4, "atol": 2e-4}


@pytest.fixture(scope="module")
def golden(goldens):
    """(recipe of the inputs, variables of its weights, reference outputs)."""
    spec = importlib.util.spec_from_file_location("recipe", goldens / "metrics/recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    rows = json.loads((goldens / "metrics/i3d/name_map.json").read_text())["tensors"]
    weights = {row["tf"]: recipe.weight(row["tf"], row["shape"]) for row in rows}
    return recipe, i3d_from_state_dict(weights)[1], np.load(goldens / "metrics/i3d/outputs.npz")


def make_video(recipe, case):
    """The video of a case such as "9x33x35", one clip."""
    return recipe.video(f"i3d/input/1x{case}", 1, *map(int, case.split("x")))


def compute_end_points(module, variables, video):
    return jax.jit(partial(module.apply, end_points=True))(variables, video)


def check_statistics(points, expected, case):
    for name, value in points.items():
        assert value.shape == tuple(expected[f"{case}/shape/{name}"]), name
        value = np.asarray(value, np.float64)
        statistics = [value.mean(), value.std(ddof=1), np.abs(value).max()]
        np.testing.assert_allclose(statistics, expected[f"{case}/stats/{name}"], rtol=1e-4, err_msg=name)


# Odd sides, whose padding is asymmetric, and sides that come down to one cell.
@pytest.mark.parametrize(
    "case", ["9x33x35", *(pytest.param(case, marks=pytest.mark.slow) for case in ("8x32x32", "7x30x41"))]
)
def test_equals_the_reference_layer_by_layer(golden, case):
    recipe, variables, expected = golden
    points = compute_end_points(I3D(), variables, make_video(recipe, case))
    check_statistics(points, expected, f"small_{case}")
    for name in ("MaxPool3d_3a_3x3", "MaxPool3d_4a_3x3", "Mixed_4f", "MaxPool3d_5a_2x2", "Mixed_5c"):
        np.testing.assert_allclose(points[name], expected[f"small_{case}/{name}"], **TOLERANCE, err_msg=name)


@pytest.mark.slow
def test_logits_equal_the_reference_and_tell_epsilons_apart(golden):
    recipe, variables, expected = golden
    video = make_video(recipe, "9x224x224")

    @jax.jit
    def apply(bn_epsilon, variables, video):
        return I3D(bn_epsilon=bn_epsilon).apply(variables, video)

    logits = apply(I3D().bn_epsilon, variables, video)
    np.testing.assert_allclose(logits, expected["n1_t9/logits"], **TOLERANCE)
    other = apply(1e-5, variables, video)
    np.testing.assert_allclose(other, expected["n1_t9/logits_videogpt_eps1e-5"], **TOLERANCE)
    assert np.abs(other - logits).max() > 0.1


def test_the_tree_is_the_published_one():
    abstract = registry.abstract_variables(I3D())
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == 12_711_824


@pytest.mark.parametrize(("size", "stride"), [(7, 2), (3, 1), (1, 1)])
def test_convolution_equals_the_three_dimensional_one(size, stride):
    keys = jax.random.split(jax.random.key(0), 2)
    video = jax.random.normal(keys[0], (2, 5, 8, 9, 3))
    ours = Conv3D(4, size, stride, use_bias=True)
    variables = ours.init(keys[1], video)
    variables["params"]["bias"] += 0.5
    reference = nn.Conv(4, (size,) * 3, (stride,) * 3, "SAME")
    np.testing.assert_allclose(ours.apply(variables, video), reference.apply(variables, video), atol=1e-5)


@pytest.mark.parametrize(
    ("window", "strides"),
    [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)), ((3, 3, 3), (1, 1, 1))],
)
def test_max_pool_equals_flax_below_zero_too(window, strides):
    x = jax.random.normal(jax.random.key(0), (2, 5, 8, 9, 3)) - 5
    np.testing.assert_array_equal(max_pool(x, window, strides), nn.max_pool(x, window, strides, "SAME"))


@pytest.mark.parametrize("shape", [(1, 8, 224, 224, 3), (1, 16, 224, 192, 3)])
def test_video_too_small_for_the_last_pool_is_refused(shape):
    with pytest.raises(ValueError, match="9 frames or more, of 193x193 pixels or more"):
        jax.eval_shape(I3D().init, jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 9, 224, 224, 3), (1, 24, 256, 320, 3)])
def test_every_other_size_gives_one_row_a_clip(shape):
    module = I3D(dtype=jnp.bfloat16)
    logits = jax.eval_shape(module.apply, registry.abstract_variables(module), jax.ShapeDtypeStruct(shape, jnp.float32))
    assert (logits.shape, logits.dtype) == ((shape[0], 400), jnp.float32)
