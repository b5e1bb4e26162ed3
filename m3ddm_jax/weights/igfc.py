"""IGFC's official checkpoint -> our tree."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from m3ddm_jax.models.igfc import IGFC
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.checkpoint import Checkpoint, contradictions, read_sizes
from m3ddm_jax.weights.gated import network_tensors, read_choice, shared_hyper, shown_settings
from m3ddm_jax.weights.names import count, size, take, targets

# What shows in no shape; the values are those of the authors' next network of the kind.
_ASSUMED = {"use_residual": 1, "interval": 3}
_FIELDS = {"resBlocks": "res_blocks", "num_frames": "num_frames"}


def igfc_from_checkpoint(checkpoint: Checkpoint) -> tuple[IGFC, Variables]:
    """(module, variables as numpy) of an official checkpoint of IGFC; spectral norms are folded into their kernels.

    Sizes and the kind of convolutions are those of the shapes; use_residual and interval those of the config, else 1
    and 3, with a warning. Raises ValueError that lists every missing, surplus and misshapen tensor, and what the config
    has otherwise.
    """
    tensors, config = network_tensors(checkpoint.tensors), checkpoint.config
    shown = _shown(tensors)
    module = IGFC(
        **shared_hyper(shown),
        **{ours: shown[name] for name, ours in _FIELDS.items() if name in shown},
        **read_sizes({**_ASSUMED, **config}, {"interval": "interval"}, IGFC()),
        use_residual=read_choice(config, "use_residual", {0: False, 1: True}, _ASSUMED["use_residual"]),
    )
    found = take(checkpoint.source, tensors, targets(module), contradictions(config, shown, {}))
    checkpoint.warn_of(_ASSUMED)
    return module, unflatten_dict(found, sep=".")


def _shown(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the shapes say, by the names of the authors' configs; nothing of another network's."""
    shown = shown_settings(tensors, "conv1.1", channels=2)
    frames = size(tensors, "flowFuseLayer.temporal_selection.featureConv.bias") or IGFC.num_frames
    return {**shown, "resBlocks": count(tensors, "middleLayer.{}."), "num_frames": frames} if shown else {}
