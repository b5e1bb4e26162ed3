import json

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from m3ddm_jax.models.igfc import IGFC
from m3ddm_jax.weights.checkpoint import Checkpoint, open_checkpoint
from m3ddm_jax.weights.igfc import igfc_from_checkpoint

CONFIG = {"use_residual": 0, "interval": 1}


def named(goldens, conv_type):
    """The official state dict's names and shapes, filled with ones."""
    shapes = json.loads((goldens / f"isvi/state_dicts/igfc_cnum48_res1_T3_{conv_type}.json").read_text())
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("conv_type", ["vanilla", "gated"])
def test_the_published_names_map_with_nothing_left(goldens, conv_type):
    tensors = named(goldens, conv_type)
    module, variables = igfc_from_checkpoint(Checkpoint("igfc.tar", tensors, CONFIG | {"conv_type": conv_type}))
    assert module == IGFC(gated=conv_type == "gated", use_residual=False, interval=1)
    used = [tensor for name, tensor in tensors.items() if not name.endswith(("weight_u", "weight_v"))]
    leaves = jax.tree.leaves(variables)
    assert len(leaves) == len(used)
    assert sum(leaf.size for leaf in leaves) == sum(tensor.size for tensor in used)


def test_spectral_norms_are_folded_as_pytorch_computes_them(goldens):
    torch.manual_seed(0)
    conv = torch.nn.utils.spectral_norm(torch.nn.Conv2d(192, 2, 1)).eval()
    tensors = named(goldens, "vanilla")
    tensors |= {f"net.recon4.featureConv.{name}": tensor.numpy() for name, tensor in conv.state_dict().items()}
    params = flatten_dict(igfc_from_checkpoint(Checkpoint("igfc.tar", tensors, CONFIG))[1]["params"], sep=".")
    conv(torch.zeros(1, 192, 1, 1))  # computes the kernel
    expected = np.moveaxis(conv.weight.detach().numpy(), (0, 1), (3, 2))
    np.testing.assert_allclose(params["recon4.featureConv.kernel"], expected, rtol=1e-5)
    # Matrices of ones with u and v of ones: divided by how many there are.
    np.testing.assert_allclose(params["recon2.featureConv.kernel"], 1 / (2 * 96), rtol=1e-6)
    np.testing.assert_array_equal(params["conv2.featureConv.kernel"], 1)


def test_a_folder_as_the_authors_ship_it(goldens, tmp_path):
    tensors = {name: torch.from_numpy(tensor) for name, tensor in named(goldens, "vanilla").items()}
    torch.save({"model_state_dict": tensors, "iteration": 3}, tmp_path / "000.tar")
    (tmp_path / "flow.yaml").write_text("model: model\ncnum: 48\nuse_residual: 1\ninterval: 5\nnum_frames: 3\n")
    module, _ = igfc_from_checkpoint(open_checkpoint(tmp_path, "IGFC"))
    assert module == IGFC(interval=5)


def test_what_a_config_alone_can_say_is_assumed_aloud(goldens):
    with pytest.warns(UserWarning, match="use_residual 1 and interval 3 are assumed"):
        module, _ = igfc_from_checkpoint(Checkpoint("igfc.tar", named(goldens, "vanilla"), {}))
    assert module == IGFC()


def test_everything_that_does_not_fit_is_listed(goldens):
    tensors = named(goldens, "vanilla")
    del tensors["net.recon4.featureConv.weight_u"], tensors["net.conv7.featureConv.bias"]
    message = (
        r"config\.json says num_frames 5, the shapes say 3; missing conv7\.featureConv\.bias \[24\]; "
        r"missing recon4\.featureConv\.weight \[2, 192, 1, 1\]; surplus recon4\.featureConv\.weight_orig .*; "
        r"surplus recon4\.featureConv\.weight_v \[192\]$"
    )
    with pytest.raises(ValueError, match=message):
        igfc_from_checkpoint(Checkpoint("igfc.tar", tensors, CONFIG | {"num_frames": 5}))
    for change, message in (
        ({"use_residual": 2}, "use_residual 2: 0 or 1 is accepted"),
        ({"interval": 0}, "interval 0: a whole number from 1 is accepted"),
    ):
        with pytest.raises(ValueError, match=message):
            igfc_from_checkpoint(Checkpoint("igfc.tar", tensors, CONFIG | change))


def test_refuses_other_networks():
    tensors = {"features.0.weight": np.zeros((64, 3, 7, 7), np.float32)}
    with pytest.raises(ValueError, match="igfc.tar is another network's: 0 of .* weights fit; missing conv1"):
        igfc_from_checkpoint(Checkpoint("igfc.tar", tensors, CONFIG))
