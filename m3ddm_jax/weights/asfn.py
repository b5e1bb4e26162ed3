"""The official ASFN checkpoint -> our tree."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from m3ddm_jax.models.asfn import ASFN
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.checkpoint import Checkpoint, contradictions
from m3ddm_jax.weights.gated import network_tensors, read_choice, shared_hyper, shown_settings
from m3ddm_jax.weights.names import count, size, take, targets

# What shows in no shape: gradients have both signs.
_ASSUMED = {"dataMin": -1}
_FIELDS = {"transferBlocks": "transfer_blocks", "resBlocks": "res_blocks", "skip_connection": "skip_connection"}


def asfn_from_checkpoint(checkpoint: Checkpoint) -> tuple[ASFN, Variables]:
    """(module, variables as numpy) of an official checkpoint of ASFN.

    Sizes and the kind of convolutions are those of the shapes; the range is the config's dataMin, -1 or 0, else -1,
    with a warning. Raises ValueError that lists every missing, surplus and misshapen tensor, and what the config has
    otherwise.
    """
    tensors, config = network_tensors(checkpoint.tensors), checkpoint.config
    shown = _shown(tensors)
    module = ASFN(
        **shared_hyper(shown),
        **{ours: shown[name] for name, ours in _FIELDS.items() if name in shown},
        signed=read_choice(config, "dataMin", {-1: True, 0: False}, _ASSUMED["dataMin"]),
    )
    found = take(checkpoint.source, tensors, targets(module), contradictions(config, shown, {}))
    checkpoint.warn_of(_ASSUMED)
    return module, unflatten_dict(found, sep=".")


def _shown(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the shapes say, by the names of the authors' configs; nothing of another network's."""
    shown = shown_settings(tensors, "encoder12.1", channels=3)
    if not shown:
        return {}
    return {
        **shown,
        "transferBlocks": count(tensors, "transferLayer.{}."),
        "resBlocks": count(tensors, "refineLayer.{}."),
        "skip_connection": size(tensors, "decoder42.0.conv.featureConv.weight", axis=1) != 4 * shown["cnum"],
    }
