import functools
import json
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from m3ddm_jax.models import lpips
from m3ddm_jax.models.lpips import LPIPS, mean_distance, upsampled_distance


@functools.cache
def untrained(net):
    """(module, variables) with untrained heads, which weigh all channels alike."""
    module, images = LPIPS(net), jnp.zeros((1, 32, 32, 3))
    return module, jax.jit(module.init)(jax.random.key(0), images, images)


def images(seed, height=35, width=40, count=2):
    return np.random.default_rng(seed).uniform(-1, 1, (count, height, width, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def compiled():
    """(net, variables, a, b) -> distance [N], its parts [N, 5], mean of the map [N]; one program a net and size."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(net, variables, a, b):
        distances = LPIPS(net).apply(variables, a, b, method="layer_distances")
        parts = jnp.stack([distance.mean((1, 2)) for distance in distances], axis=1)
        return mean_distance(distances), parts, upsampled_distance(distances, *a.shape[1:3]).mean((1, 2))

    return run


@pytest.mark.parametrize(
    "size", ["3x97x75", *(pytest.param(size, marks=pytest.mark.slow) for size in ("4x64x64", "2x128x160"))]
)
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_equals_the_package(goldens, compiled, net, size):
    """Outputs of the `lpips` package: its own heads on backbones that the recipe beside them draws."""
    folder = goldens / "metrics"
    recipe, expected = runpy.run_path(str(folder / "recipe.py")), np.load(folder / "lpips/outputs.npz")
    params = {}
    for row in json.loads((folder / "lpips/name_map.json").read_text())[net]:
        _, layer, leaf = row["name"].split("/")
        params.setdefault(layer.replace(".", "_"), {})[leaf] = recipe["weight"](row["name"], row["shape"])
    packaged = np.load(folder / "lpips/lin_v0.1.npz")
    heads = {f"lin{i}": {"kernel": packaged[f"{net}/lin{i}.model.1.weight"][0, :, 0]} for i in range(5)}
    a, b = (x / np.float32(127.5) - 1 for x in recipe["image_pair"](f"lpips/{size}", *map(int, size.split("x"))))
    distance, parts, map_mean = compiled(net, {"params": params | heads}, a, b)
    # float32 sums in another order; measured here: 2e-6, and 1e-5 in the smallest of the five parts.
    np.testing.assert_allclose(distance, expected[f"{net}/{size}/distance"], rtol=1e-4)
    np.testing.assert_allclose(parts, expected[f"{net}/{size}/per_layer"], rtol=1e-4)
    np.testing.assert_allclose(map_mean, expected[f"{net}/{size}/spatial_mean"], rtol=1e-4)
    ones = jax.tree.map(np.ones_like, heads)
    np.testing.assert_allclose(
        compiled(net, {"params": params | ones}, a, b)[0], expected[f"{net}/{size}/nolin_distance"], rtol=1e-4
    )


def test_a_distance():
    """Zero between identical images, positive and symmetric between others, larger for larger errors."""
    module, variables = untrained("alex")
    apply = jax.jit(module.apply)
    a, noise = images(0), images(1)
    assert np.all(apply(variables, a, a) == 0)
    near, far = apply(variables, a, a + 0.1 * noise), apply(variables, a, a + 0.5 * noise)
    assert np.all(near > 0) and np.all(near < far)
    # The two orders differ in nothing but where in the batch each image stands.
    np.testing.assert_allclose(apply(variables, a + 0.1 * noise, a), near, rtol=1e-5)


def test_the_map_shows_where_images_differ():
    module, variables = untrained("vgg")
    a = images(2, 48, 64, count=1)
    b = a.copy()
    b[:, :, :16] += 0.3
    difference = jax.jit(functools.partial(module.apply, method="distance_map"))(variables, a, b)
    assert difference.shape == (1, 48, 64)
    assert difference[0, :, :16].mean() > 3 * difference[0, :, 48:].mean()


def test_maps_are_enlarged_about_pixel_centres():
    rng = np.random.default_rng(3)
    maps = [rng.uniform(size=(2, *size)).astype(np.float32) for size in [(5, 7), (1, 2), (33, 40)]]
    expected = sum(torch.nn.functional.interpolate(torch.tensor(m)[:, None], (33, 40), mode="bilinear") for m in maps)
    np.testing.assert_allclose(upsampled_distance(maps, 33, 40), expected[:, 0], atol=1e-5)


@pytest.mark.parametrize("bias", [0.0, -1e3])
def test_gradients_are_finite_where_features_are_equal_or_zero(bias):
    """A bias far below zero leaves no feature at all: the length of every vector is zero."""
    module, variables = untrained("alex")
    variables = jax.tree.map(jnp.array, variables)
    variables["params"]["features_0"]["bias"] += bias
    gradient = jax.jit(jax.grad(lambda a, b: module.apply(variables, a, b).sum()))
    a, b = images(4, 31, 31, count=1), images(5, 31, 31, count=1)
    # Features of equal images are equal up to rounding.
    np.testing.assert_allclose(gradient(a, a), 0, atol=1e-6)
    assert np.all(np.isfinite(gradient(a, b))) and np.any(gradient(a, b) != 0) == (bias == 0)


def test_a_zero_vector_has_a_gradient():
    """Not only behind a ReLU, which drops what its backward pass is given where it was closed."""
    vectors = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(lpips._unit_vectors(vectors), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    assert np.all(np.isfinite(jax.grad(lambda x: lpips._unit_vectors(x)[:, 0].sum())(vectors)))


@pytest.mark.parametrize(("net", "side"), [("alex", 31), ("vgg", 16)])
def test_the_smallest_images(net, side):
    """At the smallest side the deepest map is one cell; below it the error says what is needed."""
    module, variables = untrained(net)

    def maps(height, width):
        image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
        return jax.eval_shape(functools.partial(module.apply, method="layer_distances"), variables, image, image)

    assert maps(side, side)[-1].shape == (1, 1, 1)
    for size in [(side - 1, 64), (64, side - 1)]:
        with pytest.raises(ValueError, match=f"LPIPS {net} needs {side} pixels or more a side, images are"):
            maps(*size)


def test_refuses_what_does_not_fit():
    module, variables = untrained("alex")
    with pytest.raises(ValueError, match=r"of one shape, not \[2, 35, 40, 3\] and \[2, 35, 36, 3\]"):
        module.apply(variables, images(0), images(0, width=36))
    with pytest.raises(ValueError, match="'squeeze' is unknown: one of alex, vgg is accepted"):
        LPIPS("squeeze").init(jax.random.key(0), images(0), images(0))
