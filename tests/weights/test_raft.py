import json

import jax
import numpy as np
import pytest

from m3ddm_jax.models.raft import RAFT
from m3ddm_jax.weights.raft import raft_from_state_dict


@pytest.fixture(scope="module")
def full(goldens):
    """The official state dict's names and shapes, with numbers that take no memory."""
    shapes = json.loads((goldens / "isvi/state_dicts/raft_basic_full.json").read_text())
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_published_network_maps_with_nothing_left(full, prefix):
    module, variables = raft_from_state_dict({prefix + name: tensor for name, tensor in full.items()})
    assert module == RAFT()
    # A shortcut's norm is there under two names; counters are BatchNorm's.
    used = {name: x for name, x in full.items() if ".downsample.1." not in name and "num_batches" not in name}
    leaves = jax.tree.leaves(variables)
    assert len(leaves) == len(used)
    assert sum(leaf.size for leaf in leaves) == sum(tensor.size for tensor in used.values())
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 5_257_536


def test_running_statistics_find_their_norm(full):
    tensors = {**full, "cnet.layer2.0.norm3.running_mean": np.arange(96, dtype=np.float32)}
    found = raft_from_state_dict(tensors)[1]["batch_stats"]["cnet"]["layer2_0"]["norm3"]["mean"]
    np.testing.assert_array_equal(found, np.arange(96))


def test_everything_that_does_not_fit_is_listed(full):
    tensors = dict(full)
    del tensors["update_block.gru.convz1.bias"]
    tensors["update_block.mask.2.bias"] = np.zeros(4, np.float32)
    tensors["epe.weight"] = np.zeros(2, np.float32)
    message = (
        r"missing update_block\.gru\.convz1\.bias \[128\]; surplus epe\.weight \[2\]; "
        r"update_block\.mask\.2\.bias is \[4\], expected \[576\]$"
    )
    with pytest.raises(ValueError, match=message):
        raft_from_state_dict(tensors)


def test_refuses_other_networks():
    with pytest.raises(ValueError, match="RAFT is another network's: 0 of .* weights fit; missing cnet"):
        raft_from_state_dict({"features.0.weight": np.zeros((64, 3, 7, 7), np.float32)})
