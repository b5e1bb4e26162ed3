"""The official E2FGVI-HQ checkpoint -> our tree."""

import re
from collections.abc import Mapping

import numpy as np
from einops import rearrange
from flax.traverse_util import unflatten_dict

from m3ddm_jax.models.e2fgvi import E2FGVI
from m3ddm_jax.models.focal import PATCH
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.names import count, size, take, targets, torch_name

# Constants that are computed here: which tokens around a window are its neighbours, ImageNet's colours.
_UNUSED = re.compile(r"transformer\.\d+\.attn\.valid_ind_rolled$|update_spynet\.(mean|std)$")
# Layers whose output or input is a patch: [channels, rows, columns] there, channels last here.
_TO_PATCHES = re.compile(r"(sc\.embedding|mlp\.conv1_0)\.")
_FROM_PATCHES = re.compile(r"(ss\.embedding|mlp\.conv2_1)\.kernel$")


def e2fgvi_from_state_dict(tensors: Mapping[str, np.ndarray]) -> tuple[E2FGVI, Variables]:
    """(module, variables as numpy) of an official state dict of E2FGVI-HQ; its sizes are those of the shapes.

    Heads and windows show in no shape: they are the published ones. Raises ValueError that lists every missing, surplus
    and misshapen tensor.
    """
    module = E2FGVI(**_sizes(tensors))
    used = {name: tensor for name, tensor in tensors.items() if not _UNUSED.match(name)}
    found = take("the state dict of E2FGVI-HQ", used, targets(module, _torch_name))
    return module, unflatten_dict({path: _channels_last(path, tensor) for path, tensor in found.items()}, sep=".")


def _sizes(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Hyper-parameters that the shapes show; what is missing is as published, so that it is named as missing."""
    align = "feat_prop_module.deform_align.backward_.conv_offset.6.bias"
    shown = {
        "width": (size(tensors, "encoder.layers.0.bias"), 1),
        "flow_width": (size(tensors, "update_spynet.basic_module.0.basic_module.3.conv.bias"), 1),
        "hidden": (size(tensors, "ss.embedding.bias"), 1),
        "depth": (count(tensors, "transformer.{}."), 1),
        "ffn_channels": (size(tensors, "transformer.0.mlp.conv1.0.bias"), PATCH**2),
        "deform_groups": (size(tensors, align), 27),
    }
    return {name: length // unit for name, (length, unit) in shown.items() if length and length >= unit}


def _torch_name(path: str) -> str:
    name = torch_name(path).replace("decoder.layers.", "decoder.")
    return re.sub(r"\.(backward_|forward_)\.(deform_align|backbone)\.", r".\2.\1.", name)


def _channels_last(path: str, tensor: np.ndarray) -> np.ndarray:
    """A weight whose patches are [channels, rows, columns] -> [rows, columns, channels]; others as they are."""
    if _TO_PATCHES.search(path):
        return rearrange(tensor, "... (c p q) -> ... (p q c)", p=PATCH, q=PATCH)
    if _FROM_PATCHES.search(path):
        return rearrange(tensor, "(c p q) o -> (p q c) o", p=PATCH, q=PATCH)
    return tensor
