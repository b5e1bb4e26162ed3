"""Our trees in the names and layouts of the official M3DDM checkpoint."""

import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict

from m3ddm_jax.types import Variables
from m3ddm_jax.weights.m3ddm import _UNIT_TAPS
from m3ddm_jax.weights.names import COUNTER, torch_name


def channels_first(tensor: np.ndarray) -> np.ndarray:
    """[*taps, in, out] -> [out, in, *taps]; vectors as they are."""
    return tensor if tensor.ndim < 2 else rearrange(tensor, "... i o -> o i ...")


def state_dict_from_variables(variables: Variables) -> dict[str, np.ndarray]:
    """The official state dict of our variables: its names and layouts, the dtypes that they have.

    The inverse of `variables_from_official`, bit for bit; BatchNorm's counters, which nothing is computed from, are 0.
    """
    state_dict = {}
    for path, value in flatten_dict(variables, sep=".").items():
        name = torch_name(path)
        *_, layer, leaf = name.split(".")
        tensor = channels_first(np.asarray(value))
        if leaf == "weight":
            tensor = np.expand_dims(tensor, _UNIT_TAPS.get(layer, ()))
        state_dict[name] = np.ascontiguousarray(tensor)
        if leaf == "running_mean":
            state_dict[name.replace(leaf, COUNTER)] = np.zeros((), np.int64)
    return state_dict
