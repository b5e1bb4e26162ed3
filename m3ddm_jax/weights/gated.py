"""What the checkpoints of IGFC and ASFN have in common: names, spectral norms, and the authors' words for sizes."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from einops import rearrange

from m3ddm_jax.weights.names import size

_PREFIX = "net."
_NORMALIZED = re.compile(r"(.*weight)_orig")


def network_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without what stands before all names, and with spectral norms folded into their kernels.

    A kernel `weight_orig` that has its `weight_u` and `weight_v` becomes `weight`, divided by the singular value that
    these estimate; others stay, to be named as surplus.
    """
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    for found in filter(None, map(_NORMALIZED.fullmatch, list(tensors))):
        names = [found[0], f"{found[1]}_u", f"{found[1]}_v"]
        kernel, u, v = (tensors.get(name) for name in names)
        if u is None or v is None or v.shape != kernel[0].reshape(-1).shape or u.shape != kernel.shape[:1]:
            continue
        for name in names:
            del tensors[name]
        matrix = rearrange(kernel, "o ... -> o (...)").astype(np.float64)
        tensors[found[1]] = (kernel / (u @ matrix @ v)).astype(kernel.dtype)
    return tensors


def shown_settings(tensors: Mapping[str, np.ndarray], first: str, channels: int) -> dict[str, Any]:
    """What the first block's shapes say, by the names of the authors' configs; nothing where it is missing.

    channels: of the network's input without the mask.
    """
    kernel = f"{first}.featureConv.weight"
    if size(tensors, kernel, axis=1) is None:
        return {}
    return {
        "cnum": size(tensors, kernel),
        "in_channel": size(tensors, kernel, axis=1),
        "PASSMASK": size(tensors, kernel, axis=1) > channels,
        "use_bias": f"{first}.featureConv.bias" in tensors,
        "conv_type": "gated" if f"{first}.gatingConv.weight" in tensors else "vanilla",
    }


def shared_hyper(shown: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that both networks have, of what `shown_settings` gave."""
    if not shown:
        return {}
    return {
        "width": shown["cnum"],
        "pass_mask": shown["PASSMASK"],
        "use_bias": shown["use_bias"],
        "gated": shown["conv_type"] == "gated",
    }


def read_choice(config: Mapping[str, Any], name: str, meanings: Mapping[int, bool], default: int) -> bool:
    """What a config's number means, or the default's where there is none. Raises ValueError for other numbers."""
    value = config.get(name, default)
    if not isinstance(value, int) or value not in meanings:
        raise ValueError(f"the config says {name} {value!r}: {' or '.join(map(str, meanings))} is accepted")
    return meanings[value]
