"""The official RAFT checkpoints, basic and small -> our tree."""

import re
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import unflatten_dict

from m3ddm_jax.models.raft import RAFT
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.names import size, take, targets

_PREFIX = "module."  # of weights that were saved from several devices
# The second name of the norm in a shortcut.
_UNUSED = re.compile(r".*\.downsample\.1\.")


def raft_from_state_dict(tensors: Mapping[str, np.ndarray]) -> tuple[RAFT, Variables]:
    """(module, variables as numpy) of an official state dict of RAFT; its width and model are those of the shapes.

    Raises ValueError that lists every missing, surplus and misshapen tensor.
    """
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if not _UNUSED.match(name)}
    small = "update_block.gru.convz.weight" in tensors
    width = size(tensors, "fnet.conv1.bias") or (32 if small else 64)
    found = take("the state dict of RAFT", tensors, targets(RAFT(width, small)))
    return RAFT(width, small), unflatten_dict(found, sep=".")
