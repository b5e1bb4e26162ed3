import importlib.util
import os
import pathlib
import socket
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

from eval import features
from eval.features import Features, gather_features, i3d_features, preprocess, sample_frames
from m3ddm_jax.models import registry
from m3ddm_jax.models.i3d import I3D


def clips(count=3, frames=2, height=20, width=26, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, frames, height, width, 3), np.uint8)


def test_first_and_uniform_frames():
    assert sample_frames(40, 4).tolist() == [0, 1, 2, 3]
    assert sample_frames(40, 4, "uniform").tolist() == [0, 13, 26, 39]
    assert sample_frames(40, 16, "uniform").tolist() == np.rint(np.linspace(0, 39, 16)).tolist()
    assert sample_frames(16, 16, "uniform").tolist() == list(range(16))


@pytest.mark.parametrize(("count", "sampling"), [(17, "first"), (17, "uniform"), (0, "first"), (4, "random")])
def test_frames_that_cannot_be_sampled(count, sampling):
    with pytest.raises(ValueError, match="accepted"):
        sample_frames(16, count, sampling)


@pytest.mark.parametrize(
    ("preset", "reference"),
    [
        ("torch_resize", "torch_bilinear_224"),
        ("tf_original", "tf1_legacy_bilinear_224"),
        ("shortside_crop", "videogpt_shortside_centercrop"),
    ],
)
@pytest.mark.parametrize("case", ["2x64x64", "2x90x120", "2x256x256", "2x240x432"])
def test_preprocessing_equals_the_reference(goldens, preset, reference, case):
    spec = importlib.util.spec_from_file_location("recipe", goldens / "metrics/recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    frames, _ = recipe.image_pair(f"resize/{case}", *map(int, case.split("x")))
    expected = np.load(goldens / "metrics/resize/outputs.npz")[f"{case}/{reference}"]
    found = (np.asarray(preprocess(frames[None], preset))[0] + 1) * 127.5
    # Grey levels; the reference's positions are rounded to float32.
    np.testing.assert_allclose(found[:, ::16, ::16], expected, atol=2e-3)


def test_square_video_differs_only_where_tensorflow_resizes():
    video = clips(1, 1, 64, 64)
    torch_like, tf, cropped = (np.asarray(preprocess(video, preset)) for preset in features.PRESETS)
    np.testing.assert_array_equal(torch_like, cropped)
    assert np.abs(torch_like - tf).max() > 0.1


def test_the_crop_keeps_the_middle_of_tall_video():
    video = np.zeros((1, 1, 448, 224, 3), np.uint8)
    video[:, :, 112:336] = 255
    assert (np.asarray(preprocess(video, "shortside_crop")) == 1).all()


def test_preprocessing_spans_minus_one_to_one_and_leaves_224_alone():
    video = clips(1, 1, 224, 224)
    for preset in features.PRESETS:
        found = np.asarray(preprocess(video, preset))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, video / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("video", "preset", "message"),
    [
        (clips(), "stretch", "torch_resize, tf_original, shortside_crop"),
        (clips() / 255, "torch_resize", r"uint8 \[N,T,H,W,3\], found float64"),
        (clips()[0], "torch_resize", r"found uint8 \[2, 20, 26, 3\]"),
    ],
)
def test_preprocessing_refuses_what_it_does_not_know(video, preset, message):
    with pytest.raises(ValueError, match=message):
        preprocess(video, preset)


class Means(nn.Module):
    """Stands in for I3D where what counts is which clip goes where: its logits are means of a clip's colours."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, video):
        return video.mean(axis=(1, 2, 3)) * self.param("scale", nn.initializers.ones, (3,))


MEANS = {"params": {"scale": np.array([1.0, 2.0, 3.0], np.float32)}}


@pytest.mark.parametrize("count", [1, 8, 11])
def test_batches_over_devices_give_each_clip_its_own_features(count):
    assert len(jax.local_devices()) == 8
    video = clips(count)
    expected = np.asarray(preprocess(video)).mean(axis=(1, 2, 3)) * [1, 2, 3]
    found = i3d_features(Means(), MEANS, video, batch_size=3)
    assert found.dtype == np.float32 and found.shape == (count, 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    cropped = i3d_features(Means(), MEANS, video, preset="shortside_crop")
    assert np.abs(cropped - found).max() > 1e-3


def test_no_clips_have_no_features():
    assert i3d_features(Means(), MEANS, clips(0)).shape == (0, 3)


@pytest.mark.slow
def test_i3d_on_eight_devices_gives_the_serial_numbers():
    module = I3D(num_classes=5)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        fan_in = np.prod(leaf.shape[:-1])
        value = rng.normal(0, np.sqrt(2 / fan_in), leaf.shape) if leaf.ndim > 1 else rng.uniform(0.5, 1.5, leaf.shape)
        return value.astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, registry.abstract_variables(module))
    video = clips(2, 9, 40, 40)
    found = i3d_features(module, variables, video)
    serial = jax.jit(module.apply)(variables, jax.device_put(preprocess(video), jax.devices()[0]))
    # float32 sums in another order.
    np.testing.assert_allclose(found, serial, rtol=1e-4, atol=2e-4)
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="8 frames .* accepts 9 frames or more"):
        i3d_features(I3D(), {"params": {}}, clips(1, 8))


def test_features_are_kept(tmp_path):
    kept = Features(np.array(["bear", "kite-surf"]), np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32))
    kept.save(tmp_path / "features")
    read = Features.load(tmp_path / "features")
    assert read.clip_ids.tolist() == ["bear", "kite-surf"]
    assert read.values.dtype == np.float32
    np.testing.assert_array_equal(read.values, kept.values)
    assert [path.name for path in tmp_path.iterdir()] == ["features"]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut", b"text"])
def test_files_without_features_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "features").write_bytes(content)
    with pytest.raises(ValueError, match="features holds no features"):
        Features.load(tmp_path / "features")


def test_other_arrays_are_no_features(tmp_path):
    np.savez(tmp_path / "other.npz", logits=np.zeros(3))
    with pytest.raises(ValueError, match="holds no features"):
        Features.load(tmp_path / "other.npz")


def test_gathering_orders_by_id_and_drops_padding():
    values = np.array([[3.0], [1.0], [9.0], [2.0], [9.0]], np.float32)
    rows = Features(np.array(["c", "a", "", "b", "a"]), values)
    gathered = gather_features(rows, ["a", "b", "c"])
    assert gathered.clip_ids.tolist() == ["a", "b", "c"]
    assert gathered.values.tolist() == [[1.0], [2.0], [3.0]]


def test_clips_without_features_are_named():
    rows = Features(np.array(["a", ""]), np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="no features of b, c$"):
        gather_features(rows, ["a", "b", "c"])


HOST = """
import sys, jax, numpy as np
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from eval.features import Features, gather_features
ids, values = [(["c", "a", ""], [[3.0], [1.0], [9.0]]), (["b"], [[2.0]])][jax.process_index()]
gathered = gather_features(Features(np.array(ids), np.array(values, np.float32)), ["a", "b", "c"])
print(gathered.clip_ids.tolist(), gathered.values.tolist())
"""


def test_hosts_gather_what_each_of_them_has():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    root = pathlib.Path(__file__).resolve().parents[2]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(root)}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, address, str(index)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for index in range(2)
    ]
    printed = [host.communicate(timeout=120)[0].strip().splitlines()[-1] for host in hosts]
    assert printed == ["['a', 'b', 'c'] [[1.0], [2.0], [3.0]]"] * 2
