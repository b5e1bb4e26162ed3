"""DeepFill v1's PyTorch checkpoint, as video inpainting codes ship it -> our tree."""

from collections.abc import Mapping

import numpy as np
from flax.traverse_util import unflatten_dict

from m3ddm_jax.models.deepfill import DeepFill
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.names import size, take, targets, torch_name


def deepfill_from_state_dict(tensors: Mapping[str, np.ndarray]) -> tuple[DeepFill, Variables]:
    """(module, variables as numpy) of a state dict of DeepFill v1; its width is that of the shapes.

    Raises ValueError that lists every missing, surplus and misshapen tensor.
    """
    width = size(tensors, "stage_1.down.out.0.conv.0.bias")
    module = DeepFill(width) if width else DeepFill()
    found = take("the state dict of DeepFill", tensors, targets(module, _torch_name))
    return module, unflatten_dict(found, sep=".")


def _torch_name(path: str) -> str:
    return torch_name(path).replace("stage.", "stage_")
