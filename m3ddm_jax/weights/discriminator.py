"""Weights of the T-PatchGAN of E2FGVI and ProPainter -> the global branch of the hierarchical discriminator."""

from collections.abc import Mapping

import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from m3ddm_jax.types import Variables
from m3ddm_jax.weights.names import Target, take, torch_name

_BRANCH = "global_branch.conv_"


def with_tpatchgan(variables: Variables, tensors: Mapping[str, np.ndarray]) -> Variables:
    """The variables of a discriminator with all convolutions of its global branch, and their u and v, from a file.

    variables: of `models.discriminator.HierarchicalDiscriminator`; what the file knows nothing of stays, the clip logit
    and all that is local. tensors: by PyTorch's names, spectral norms as `weight_orig`, `weight_u` and `weight_v`.
    Raises ValueError for missing, surplus and misshapen tensors: all of them are listed.
    """
    ours = flatten_dict(variables, sep=".")
    paths = [path for path in ours if _BRANCH in path]
    wanted = {_name(path, ours): Target(path, ours[path].shape) for path in paths}
    found = take("the state dict of a T-PatchGAN", in_our_order(tensors), wanted)
    return unflatten_dict({**ours, **found}, sep=".")


def _name(path: str, ours: Mapping[str, object]) -> str:
    """PyTorch's name of `params.global_branch.conv_0.kernel`, `spectral.global_branch.conv_0.u` and their like."""
    collection, branch, conv, leaf = path.split(".")
    if collection == "spectral":
        return f"{conv.replace('_', '.')}.weight_{leaf}"
    normalized = leaf == "kernel" and f"spectral.{branch}.{conv}.u" in ours
    return torch_name(f"params.{conv}.{leaf}") + ("_orig" if normalized else "")


def in_our_order(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors with each v, a vector over [in, *taps] of its kernel, as one over [*taps, in]."""
    reordered = dict(tensors)
    for name, vector in tensors.items():
        kernel = tensors.get(name.removesuffix("_v") + "_orig")
        if name.endswith("weight_v") and kernel is not None and vector.size == kernel[0].size:
            reordered[name] = rearrange(vector.reshape(kernel.shape[1:]), "i ... -> (... i)")
    return reordered
