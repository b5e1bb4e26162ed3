"""The official M3DDM checkpoint's names and layouts -> our tree."""

import re
from collections.abc import Mapping

import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from m3ddm_jax.models import registry
from m3ddm_jax.models.unet3d import M3DDMUNet
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.store import check_names

_LEAVES = {"running_mean": "mean", "running_var": "var", "bias": "bias"}


def official_to_ours(name: str) -> str | None:
    """Our path (joined by '.') of an official parameter name; None for buffers that carry nothing."""
    *scopes, leaf = re.sub(r"\.(\d+)", r"_\1", name).split(".")
    if leaf == "num_batches_tracked":
        return None
    module = ".".join(scopes).replace(".layers_", "_layers_").replace("net_0.proj", "net_0_proj")
    is_norm = re.search(r"norm\d*$|normalization$|conv_norm_out$", module)
    collection = "batch_stats" if leaf.startswith("running_") else "params"
    leaf = _LEAVES.get(leaf) or ("scale" if is_norm else "kernel")
    return f"{collection}.{module}.{leaf}"


def _channels_last(tensor: np.ndarray) -> np.ndarray:
    """[out, in, *taps] -> [*taps, in, out]; vectors as they are."""
    return tensor if tensor.ndim < 2 else rearrange(tensor, "o i ... -> ... i o")


def variables_from_official(module: M3DDMUNet, state_dict: Mapping[str, np.ndarray]) -> Variables:
    """Variables of `module` from an official state dict (names as diffusers writes them).

    Raises ValueError that lists every missing, surplus and misshapen tensor, under our names.
    """
    expected = flatten_dict(registry.abstract_variables(module), sep=".")
    found = {}
    for name, tensor in state_dict.items():
        path = official_to_ours(name)
        if path is None:
            continue
        tensor = _channels_last(np.asarray(tensor))
        target = expected.get(path)
        # 1x1 convolutions are dense layers here, 1x3x3 ones act on single frames: only taps of size 1 may go.
        if target is not None and _without_ones(tensor.shape) == _without_ones(target.shape):
            tensor = tensor.reshape(target.shape)
        found[path] = tensor
    check_names("the state dict", {n: v.shape for n, v in found.items()}, {n: v.shape for n, v in expected.items()})
    return unflatten_dict(found, sep=".")


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
