import dataclasses
import hashlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from eval import networks
from eval.frechet import frechet_distance
from eval.networks import Network, VideoFeatures
from eval.protocol import PRESETS
from m3ddm_jax.models import registry
from m3ddm_jax.models.i3d import I3D
from m3ddm_jax.models.lpips import LPIPS
from m3ddm_jax.weights import save_model

FVD, VFID = PRESETS["strict"].distance, PRESETS["inpaint50"].distance


def clips(count, frames=9, side=32, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, frames, side, side, 3), np.uint8))


def test_a_network_from_a_folder_and_what_is_said_of_it(tmp_path):
    module = LPIPS("alex")
    shapes = registry.abstract_variables(module)
    flat, restore = ravel_pytree(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    save_model(tmp_path / "lpips", module, jax.device_get(restore(flat)))
    network = networks.load_network(tmp_path / "lpips", "lpips")
    weights = (tmp_path / "lpips" / "weights.safetensors").read_bytes()
    assert network.about == {"kind": "lpips", "net": "alex", "sha256": hashlib.sha256(weights).hexdigest()}
    with pytest.raises(ValueError, match="holds a model of kind lpips: one of kind i3d is needed"):
        networks.load_network(tmp_path / "lpips", "i3d")
    with pytest.raises(ValueError, match="not a model folder"):
        networks.load_network(tmp_path / "nowhere", "i3d")


def test_networks_see_the_range_that_the_preset_says(i3d):
    grey = [np.full((9, 24, 24, 3), 51, np.uint8)]
    for lowest, expected in ((-1.0, -0.6), (0.0, 0.2)):
        features = VideoFeatures(i3d, dataclasses.replace(FVD, lowest=lowest))(grey)
        np.testing.assert_allclose(features, np.full((1, 9), expected), atol=1e-6)


def test_clips_that_were_seen_are_not_computed_again(i3d, monkeypatch):
    computed = []

    def extract(module, variables, video, **_):
        computed.append(len(video))
        return video.reshape(len(video), -1)[:, :3].astype(np.float32)

    monkeypatch.setattr(networks, "i3d_features", extract)
    features = VideoFeatures(i3d, FVD)
    a, b, c = clips(3)
    first = features([a, b, a])
    second = features([b, c, a])
    assert computed == [2, 1]
    for found, clip in zip([*first, *second], [a, b, a, b, c, a], strict=True):
        np.testing.assert_array_equal(found, clip.reshape(-1)[:3])
    features([*clips(1, 10), *clips(2, 11, seed=1)])
    assert computed[2:] in ([1, 2], [2, 1]), "one batch a shape"


def test_the_epsilon_is_the_presets():
    assert VideoFeatures(Network(I3D(), {}, {}), PRESETS["motia"].distance)._module.bn_epsilon == 1e-5


def test_vfid_features_do_not_depend_on_contrast():
    """Each clip's own statistics undo a scale of the input; running ones would not. Convolutions have no bias here."""
    module = I3D(num_classes=3)
    shapes = registry.abstract_variables(module)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return (rng.standard_normal(leaf.shape) * np.prod(leaf.shape[:-1]) ** -0.5).astype(np.float32)
        return np.full(leaf.shape, name in ("scale", "var"), np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    features = VideoFeatures(Network(module, variables, {}), dataclasses.replace(VFID, bn_epsilon=1e-12))
    bright = [clip // 2 * 2 for clip in clips(1)]
    found, scaled = features(bright)[0], features([clip // 2 for clip in bright])[0]
    assert found.shape == (1024,) and found.std() > 0.01
    np.testing.assert_allclose(scaled, found, atol=1e-3 * found.max())  # float32 through 20 layers


def test_own_statistics_are_of_each_clip_alone():
    norm = nn.BatchNorm(use_running_average=True, epsilon=0.1)
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 5, 6)).astype(np.float32) * [[[[[2.0]]]], [[[[7.0]]]]]
    variables = norm.init(jax.random.key(0), x)
    parameters = {"scale": jnp.full(6, 3.0), "bias": jnp.full(6, 0.5)}
    with nn.intercept_methods(networks.own_statistics):
        found = norm.apply({**variables, "params": parameters}, x)
    centred = x - x.mean(axis=(1, 2, 3), keepdims=True)
    expected = 3 * centred / np.sqrt(x.var(axis=(1, 2, 3), keepdims=True) + 0.1) + 0.5
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_distances_and_their_intervals():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((12, 5))
    output = truth + 0.3 * rng.standard_normal((12, 5))
    found = networks.video_distances(truth, output, FVD)
    assert found["values"]["fvd"] == pytest.approx(frechet_distance(truth, output))
    low, high = found["intervals"]["fvd"]
    assert low < found["values"]["fvd"] < high and found["intervals"].keys() == {"fvd", "kvd"}
    population = networks.video_distances(truth, output, dataclasses.replace(FVD, ddof=0))
    assert population["values"]["fvd"] < found["values"]["fvd"]


def test_a_single_clip_has_the_distance_of_the_means_alone():
    found = networks.video_distances(np.zeros((1, 4)), np.full((1, 4), 2.0), VFID)
    assert found == {"values": {"vfid": 16.0}, "intervals": {}}
