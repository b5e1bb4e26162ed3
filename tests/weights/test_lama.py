import json
import shutil
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from m3ddm_jax.models.lama import LaMa
from m3ddm_jax.weights.lama import lama_from_state_dict, read_lama


@pytest.fixture(scope="module")
def files(goldens):
    return goldens / "completion/files"


@pytest.fixture(scope="module")
def tiny(files):
    """The tensors of the tiny network, whose prefix is the checkpoint's."""
    return load_file(files / "lama_tiny.safetensors")


@pytest.mark.parametrize(
    ("name", "blocks", "parameters"), [("lama_big", 18, 50_975_875), ("lama_fourier", 9, 27_048_835)]
)
def test_the_published_networks_map_with_nothing_left(goldens, name, blocks, parameters):
    shapes = json.loads((goldens / f"completion/state_dicts/{name}_generator.json").read_text())
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    module, variables = lama_from_state_dict(tensors)
    assert module == LaMa(blocks=blocks)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    counters = [name for name in shapes if name.endswith("num_batches_tracked")]
    assert len(jax.tree.leaves(variables)) == len(shapes) - len(counters)


@pytest.mark.parametrize("name", ["tiny-lama.zip", "lama_tiny_traced.pt", "lama_tiny.safetensors"])
def test_every_published_layout_gives_the_same_weights(files, tiny, name):
    module, expected = lama_from_state_dict(tiny)
    found, variables = lama_from_state_dict(*read_lama(files / name))
    assert found == module == LaMa(4, blocks=1, global_channels=24)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_an_unpacked_folder_and_its_checkpoint_are_read(files, tiny, tmp_path):
    with zipfile.ZipFile(files / "tiny-lama.zip") as archive:
        archive.extractall(tmp_path)
    for source in (tmp_path / "tiny-lama", tmp_path / "tiny-lama/models/best.ckpt"):
        tensors, config = read_lama(source)
        assert config["ngf"] == 4
        assert all(name.startswith("generator.") for name in tensors)  # nothing else of the training is read
        jax.tree.map(np.testing.assert_array_equal, lama_from_state_dict(tensors, config), lama_from_state_dict(tiny))


def test_a_tensor_of_another_shape_is_named(tiny):
    name = next(name for name in tiny if name.endswith("convg2g.conv2.weight"))
    with pytest.raises(ValueError, match=r"convg2g\.conv2\.weight is \[24, 12, 3, 3\], expected"):
        lama_from_state_dict({**tiny, name: np.zeros((24, 12, 3, 3), np.float32)})


def test_other_forms_of_the_network_are_rejected_with_a_reason(tiny):
    first = next(name for name in tiny if name.endswith("model.1.ffc.convl2l.weight"))
    prefix, zero = first.removesuffix("model.1.ffc.convl2l.weight"), np.zeros((1, 1), np.float32)
    cases = {
        "model.5.conv1.ffc.gate.weight": r"has gates \(ffc.gate\)",
        "model.5.conv1.ffc.convg2g.lfu.bn.weight": "has local Fourier units",
        "model.5.conv1.ffc.convg2g.fu.se.fc.weight": "has squeeze and excitation",
        "model.9.conv1.ffc.convl2l.weight": r"residual blocks at \[5, 9\]",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message):
            lama_from_state_dict({**tiny, prefix + name: zero})
    with pytest.raises(ValueError, match="no generator of LaMa with Fourier"):
        lama_from_state_dict({"generator.model.1.weight": zero})
    with pytest.raises(ValueError, match="add_out_act True: sigmoid is accepted"):
        lama_from_state_dict(tiny, {"add_out_act": True})


def test_bad_files_are_told_in_one_line(files, tmp_path):
    whole = (files / "tiny-lama.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.pt").write_bytes((files / "lama_tiny_traced.pt").read_bytes()[:1000])
    (tmp_path / "a.onnx").write_bytes(b"")
    save_file({"encoder.b16.fromrgb.weight": np.zeros(1, np.float32)}, tmp_path / "migan.safetensors")
    shutil.copy(files / "migan_tiny.pt", tmp_path / "migan.pt")
    cases = {
        "cut.zip": "cut.zip cannot be read",
        "cut.pt": "cut.pt cannot be read, is it cut off, or older than PyTorch 1.6",
        "a.onnx": r"is no file of LaMa's: \.zip, \.ckpt, \.pt, \.safetensors are accepted",
        "none.zip": "none.zip does not exist",
        "migan.safetensors": "no generator of LaMa",
        "migan.pt": "no generator of LaMa",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            lama_from_state_dict(*read_lama(tmp_path / name))
        assert "\n" not in str(error.value)
