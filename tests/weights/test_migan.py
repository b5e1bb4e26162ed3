import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from m3ddm_jax.models.migan import MIGAN
from m3ddm_jax.weights.migan import migan_from_state_dict, read_migan


@pytest.fixture(scope="module")
def files(goldens):
    return goldens / "completion/files"


@pytest.fixture(scope="module")
def tiny(files):
    return load_file(files / "migan_tiny.safetensors")


def fixed(name, shape):
    """A filter as it is published; zeros for all else."""
    tensor = np.zeros(shape, np.float32)
    if name.endswith(".filter.weight"):
        tensor[:] = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / (16 if ".upsample." in name else 64)
    if name.endswith(".filter_const"):
        tensor[..., ::2, ::2] = 1
    return tensor


@pytest.mark.parametrize(
    ("side", "width", "parameters"), [(256, 128, 5_865_505 + 174_720 - 2 * 6), (512, 64, 5_893_158 + 699_008 - 2 * 7)]
)
def test_the_published_networks_map_with_nothing_left(goldens, side, width, parameters):
    """Learned parameters and noise; each noise has a strength, which is multiplied into it."""
    shapes = json.loads((goldens / f"completion/state_dicts/migan_{side}.json").read_text())
    module, variables = migan_from_state_dict({name: fixed(name, shape) for name, shape in shapes.items()})
    assert module == MIGAN(side, width)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters


@pytest.mark.parametrize(
    "name", ["migan_tiny.pt", "migan_tiny_traced.pt", "migan_tiny.onnx", "migan_tiny_pipeline.onnx"]
)
def test_every_published_layout_gives_the_same_weights(files, tiny, name):
    module, expected = migan_from_state_dict(tiny)
    found, variables = migan_from_state_dict(read_migan(files / name))
    assert found == module == MIGAN(16, 4, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=0), variables, expected)


def test_noise_is_not_transposed(tiny):
    _, variables = migan_from_state_dict(tiny)
    name = "synthesis.b16.conv2.noise"
    expected = tiny[f"{name}_const"] * tiny[f"{name}_strength"]
    np.testing.assert_array_equal(variables["params"]["synthesis"]["b16"]["conv2"]["noise"], expected)
    assert np.abs(expected - expected.T).max() > 0.01


def test_other_forms_of_the_network_are_rejected_with_a_reason(tiny):
    down = next(name for name in tiny if name.endswith("downsample.filter.weight"))
    with pytest.raises(ValueError, match="is another filter than the published one"):
        migan_from_state_dict({**tiny, down: 2 * tiny[down]})
    with pytest.raises(ValueError, match="MI-GAN's training form"):
        migan_from_state_dict({**tiny, "encoder.b16.conv1.conv1.w0": np.zeros(1)})
    with pytest.raises(ValueError, match="no MI-GAN: of 1 tensors none has a name such as encoder.b512"):
        migan_from_state_dict({"model.1.ffc.convl2l.weight": np.zeros(1)})
    with pytest.raises(ValueError, match=r"missing synthesis\.b16\.torgb\.bias \[3\]"):
        migan_from_state_dict({name: t for name, t in tiny.items() if name != "synthesis.b16.torgb.bias"})


@pytest.mark.parametrize("name", ["migan_tiny.onnx", "migan_tiny.pt", "migan_tiny_traced.pt"])
def test_a_file_that_is_cut_off_is_told_in_one_line(files, tmp_path, name):
    whole = (files / name).read_bytes()
    for share in (0.1, 0.5, 0.99):
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match="cannot be read") as error:
            read_migan(tmp_path / name)
        assert "\n" not in str(error.value)


def test_the_other_networks_files_are_told(files):
    with pytest.raises(ValueError, match="no MI-GAN: of "):
        migan_from_state_dict(read_migan(files / "lama_tiny_traced.pt"))
    with pytest.raises(ValueError, match=r"is no file of MI-GAN's: \.onnx, \.pt, \.safetensors are accepted"):
        read_migan(files / "tiny-lama.zip")
