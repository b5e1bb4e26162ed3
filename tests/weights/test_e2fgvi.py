import json

import jax
import numpy as np
import pytest

from m3ddm_jax.models.e2fgvi import E2FGVI
from m3ddm_jax.weights.e2fgvi import e2fgvi_from_state_dict


@pytest.fixture(scope="module")
def full(goldens):
    """The official state dict's names and shapes, with numbers that take no memory."""
    shapes = json.loads((goldens / "isvi/state_dicts/e2fgvi_hq_full.json").read_text())
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def test_the_published_network_maps_with_nothing_left(full):
    module, variables = e2fgvi_from_state_dict(full)
    assert module == E2FGVI()
    constants = ("valid_ind_rolled", "spynet.mean", "spynet.std")
    used = {name: tensor for name, tensor in full.items() if not name.endswith(constants)}
    leaves = jax.tree.leaves(variables)
    assert len(leaves) == len(used)
    assert sum(leaf.size for leaf in leaves) == sum(tensor.size for tensor in used.values())


def numbered(full, name):
    """The full state dict with one tensor that counts up."""
    shape = full[name].shape
    return {**full, name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape)}


def test_patches_become_channels_last(full):
    """The tokens' [channels, 7, 7] on either side of a matrix: row 1, column 2 of channel 3 of 128, or of 40."""
    ours, theirs = (1 * 7 + 2) * 128 + 3, 3 * 49 + 1 * 7 + 2
    params = e2fgvi_from_state_dict(numbered(full, "ss.embedding.weight"))[1]["params"]
    assert params["ss"]["embedding"]["kernel"][ours, 5] == 5 * 6272 + theirs
    params = e2fgvi_from_state_dict(numbered(full, "sc.embedding.weight"))[1]["params"]
    assert params["sc"]["embedding"]["kernel"][5, ours] == theirs * 512 + 5
    params = e2fgvi_from_state_dict(numbered(full, "sc.embedding.bias"))[1]["params"]
    assert params["sc"]["embedding"]["bias"][ours] == theirs
    params = e2fgvi_from_state_dict(numbered(full, "transformer.6.mlp.conv2.1.weight"))[1]["params"]
    assert params["transformer_6"]["mlp"]["conv2_1"]["kernel"][(1 * 7 + 2) * 40 + 3, 5] == 5 * 1960 + theirs


def test_passes_keep_apart(full):
    name = "feat_prop_module.deform_align.forward_.conv_offset.2.bias"
    params = e2fgvi_from_state_dict(numbered(full, name))[1]["params"]["feat_prop_module"]
    np.testing.assert_array_equal(params["forward_"]["deform_align"]["conv_offset_2"]["bias"], np.arange(128))
    assert not params["backward_"]["deform_align"]["conv_offset_2"]["bias"].any()


def test_everything_that_does_not_fit_is_listed(full):
    tensors = dict(full)
    del tensors["feat_prop_module.fusion.bias"]
    tensors["decoder.6.bias"] = np.zeros(4, np.float32)
    tensors["discriminator.conv.0.weight"] = np.zeros(2, np.float32)
    message = (
        r"missing feat_prop_module\.fusion\.bias \[128\]; surplus discriminator\.conv\.0\.weight \[2\]; "
        r"decoder\.6\.bias is \[4\], expected \[3\]$"
    )
    with pytest.raises(ValueError, match=message):
        e2fgvi_from_state_dict(tensors)


def test_refuses_other_networks():
    with pytest.raises(ValueError, match=r"E2FGVI-HQ is another network's: 0 of .* weights fit; missing decoder"):
        e2fgvi_from_state_dict({"features.0.weight": np.zeros((64, 3, 7, 7), np.float32)})
