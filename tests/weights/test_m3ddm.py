import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from m3ddm_jax.models import registry
from m3ddm_jax.models.unet3d import M3DDMUNet
from m3ddm_jax.weights.checkpoint import Checkpoint
from m3ddm_jax.weights.m3ddm import m3ddm_from_checkpoint, variables_from_official
from m3ddm_jax.weights.names import COUNTER
from tests.weights.official import state_dict_from_variables

SMALL = M3DDMUNet(block_out_channels=(32, 64), attention_levels=(False, True), layers_per_block=1)


@pytest.fixture(scope="module")
def small():
    """Random variables of it and their official state dict."""
    rng = np.random.default_rng(0)
    shapes = registry.abstract_variables(SMALL)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return variables, state_dict_from_variables(variables)


def test_the_full_state_dict_is_that_of_the_full_model(goldens):
    """Names and layouts both ways, by shapes alone."""
    official = json.loads((goldens / "m3ddm/full_state_dict.json").read_text())["tensors"]
    # One element seen from everywhere: tensors of full size that take no memory.
    tensors = {name: np.broadcast_to(np.zeros((), dtype), shape) for name, (shape, dtype) in official.items()}
    with pytest.warns(UserWarning, match="8 heads and 32 groups"):
        module, variables = m3ddm_from_checkpoint(Checkpoint("it", tensors, {}))
    assert module == M3DDMUNet()
    expected = registry.abstract_variables(module)
    assert jax.tree.map(lambda leaf: leaf.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, dict(expected))


def test_the_golden_goes_and_comes_back(goldens):
    official = load_file(goldens / "m3ddm/unet_small/weights.safetensors")
    config = json.loads((goldens / "m3ddm/unet_small/config.json").read_text())
    module, variables = m3ddm_from_checkpoint(Checkpoint("it", official, config))
    assert (module.num_heads, module.norm_num_groups, module.frame_embedding_dim) == (4, 8, 320)
    back = state_dict_from_variables(variables)
    assert back.keys() == official.keys()
    for name, tensor in official.items():
        assert back[name].shape == tensor.shape
        assert name.endswith(COUNTER) or back[name].tobytes() == tensor.tobytes()


def test_there_and_back_bit_for_bit(small):
    variables, state_dict = small
    jax.tree.map(np.testing.assert_array_equal, variables_from_official(SMALL, state_dict), variables)
    halves = state_dict_from_variables(jax.tree.map(lambda leaf: leaf.astype(np.float16), variables))
    assert all(tensor.dtype == np.float16 for name, tensor in halves.items() if not name.endswith(COUNTER))


def test_the_shapes_show_all_but_heads_and_groups(small):
    with pytest.warns(UserWarning, match="8 heads and 32 groups are assumed"):
        assert m3ddm_from_checkpoint(Checkpoint("it", small[1], {}))[0] == SMALL
    config = {"attention_head_dim": 4, "norm_num_groups": 16}
    module, _ = m3ddm_from_checkpoint(Checkpoint("it", small[1], config))
    assert module == SMALL.clone(num_heads=4, norm_num_groups=16)


@pytest.mark.parametrize("name", ["conv_in.weight", "down_blocks.0.resnets.0.norm2.bias", "conv_out.spatial_conv.bias"])
def test_tensors_that_show_a_size_may_be_wrong_too(small, name):
    config = {"block_out_channels": [32, 64], "attention_head_dim": 8, "norm_num_groups": 32, "out_channels": 4}
    for wrong, problem in (({}, f"missing {name}"), ({name: np.zeros(7, np.float32)}, rf"{name} is \[7\]")):
        tensors = {key: tensor for key, tensor in small[1].items() if key != name} | wrong
        with pytest.raises(ValueError, match=problem):
            m3ddm_from_checkpoint(Checkpoint("it", tensors, config))


def test_levels_must_go_together(small):
    config = {"down_block_types": ["DownBlockP3D"] * 3}
    with pytest.raises(ValueError, match="2 block_out_channels and 3 down_block_types differ"):
        m3ddm_from_checkpoint(Checkpoint("it", small[1], config))
