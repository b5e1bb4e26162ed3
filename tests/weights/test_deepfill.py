import json

import jax
import numpy as np
import pytest

from m3ddm_jax.models.deepfill import DeepFill
from m3ddm_jax.weights.deepfill import deepfill_from_state_dict


@pytest.fixture(scope="module")
def full(goldens):
    """The official state dict's names and shapes, with numbers that take no memory."""
    shapes = json.loads((goldens / "isvi/state_dicts/deepfill_v1_dim32.json").read_text())
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def test_the_published_network_maps_with_nothing_left(full):
    module, variables = deepfill_from_state_dict(full)
    assert module == DeepFill()
    leaves = jax.tree.leaves(variables)
    assert len(leaves) == len(full)
    assert sum(leaf.size for leaf in leaves) == sum(tensor.size for tensor in full.values())


def test_everything_that_does_not_fit_is_listed(full):
    tensors = dict(full)
    del tensors["stage_2.CAttn.out.1.conv.0.bias"]
    tensors["stage_1.down.out.1.conv.0.bias"] = tensors.pop("stage_1.down.out.1.conv.1.bias")
    tensors["stage_2.up.out.8.conv.0.bias"] = np.zeros(4, np.float32)
    message = (
        r"missing stage_1\.down\.out\.1\.conv\.1\.bias \[64\]; missing stage_2\.CAttn\.out\.1\.conv\.0\.bias \[128\]; "
        r"surplus stage_1\.down\.out\.1\.conv\.0\.bias \[64\]; "
        r"stage_2\.up\.out\.8\.conv\.0\.bias is \[4\], expected \[3\]$"
    )
    with pytest.raises(ValueError, match=message):
        deepfill_from_state_dict(tensors)


def test_refuses_other_networks():
    with pytest.raises(ValueError, match="DeepFill is another network's: 0 of .* weights fit; missing stage_1"):
        deepfill_from_state_dict({"features.0.weight": np.zeros((64, 3, 7, 7), np.float32)})
