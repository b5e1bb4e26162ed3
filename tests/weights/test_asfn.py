import json

import jax
import numpy as np
import pytest

from m3ddm_jax.models.asfn import ASFN
from m3ddm_jax.weights.asfn import asfn_from_checkpoint
from m3ddm_jax.weights.checkpoint import Checkpoint


def named(goldens, name):
    """An official state dict's names and shapes, with numbers that take no memory."""
    shapes = json.loads((goldens / f"isvi/state_dicts/{name}.json").read_text())
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


@pytest.fixture
def full(goldens):
    return named(goldens, "asfn_cnum64_t2_r2_vanilla")


def test_the_published_names_map_with_nothing_left(full):
    module, variables = asfn_from_checkpoint(Checkpoint("asfn.tar", full, {"dataMin": -1}))
    assert module == ASFN()
    leaves = jax.tree.leaves(variables)
    assert len(leaves) == len(full)
    assert sum(leaf.size for leaf in leaves) == sum(tensor.size for tensor in full.values())


def test_variants_show_in_names_and_shapes(full):
    """Gated, without skips and residual blocks: a decoder of half the inputs, twice the convolutions."""
    tensors = {}
    for name, tensor in full.items():
        if "refineLayer" in name:
            continue
        if name.endswith(".0.conv.featureConv.weight"):
            tensor = tensor[:, tensor.shape[1] // 2 :]
        tensors[name] = tensor
        tensors[name.replace("featureConv", "gatingConv")] = tensor
    module, _ = asfn_from_checkpoint(Checkpoint("asfn.tar", tensors, {"dataMin": 0, "conv_type": "gated"}))
    assert module == ASFN(res_blocks=0, gated=True, skip_connection=False, signed=False)


def test_everything_that_does_not_fit_is_listed(full):
    del full["net.final.featureConv.bias"]
    full["net.encoder24.0.featureConv.bias"] = np.zeros(3, np.float32)
    message = (
        r"config\.json says cnum 32, the shapes say 64; missing final\.featureConv\.bias \[3\]; "
        r"encoder24\.0\.featureConv\.bias is \[3\], expected \[128\]$"
    )
    with pytest.raises(ValueError, match=message):
        asfn_from_checkpoint(Checkpoint("asfn.tar", full, {"cnum": 32}))
    with pytest.raises(ValueError, match="dataMin 1: -1 or 0 is accepted"):
        asfn_from_checkpoint(Checkpoint("asfn.tar", full, {"dataMin": 1}))


def test_refuses_other_networks():
    tensors = {"features.0.weight": np.zeros((64, 3, 7, 7), np.float32)}
    with pytest.raises(ValueError, match="asfn.tar is another network's: 0 of .* weights fit; missing decoder21"):
        asfn_from_checkpoint(Checkpoint("asfn.tar", tensors, {}))
