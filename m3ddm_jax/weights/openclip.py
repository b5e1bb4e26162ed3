"""OpenCLIP checkpoints -> our vision tower; text towers and what follows the tokens that we read are left."""

import math
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from m3ddm_jax.files.opening import read_json
from m3ddm_jax.models.openclip import MEAN, STD, OpenCLIPVision
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.names import count, size, take, targets
from m3ddm_jax.weights.sources import find_file
from m3ddm_jax.weights.torch_files import read_state_dict

_NAMES = tuple(f"open_clip_{name}" for name in ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin"))
_CONFIG = "open_clip_config.json"
_PREFIX = "visual."
_BLOCK = "transformer.resblocks.{}."
# Of a checkpoint of both towers: the text tower and the scale of logits, whose names also hold those of `text.`.
_TEXT = re.compile(
    r"(text\.)?(transformer\.resblocks\.|token_embedding\.|positional_embedding$|ln_final\.|text_projection$)"
    r"|(text\.)?attn_mask$|logit_(scale|bias)$"
)
# Channels a head of published towers of such widths; 64 of all others.
_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def openclip_from_source(source: str | os.PathLike) -> tuple[OpenCLIPVision, Variables]:
    """(module, variables as numpy) of a weights file, a folder or hf:OWNER/NAME; errors: `openclip_from_state_dict`.

    An open_clip_config.json beside the weights is read.
    """
    path = find_file(source, _NAMES, [_CONFIG])
    return openclip_from_state_dict(str(path), read_state_dict(path), _read_config(path.with_name(_CONFIG)))


def openclip_from_state_dict(
    source: str, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None
) -> tuple[OpenCLIPVision, Variables]:
    """(module, variables as numpy) of open_clip's state dict, of both towers or of the vision tower alone.

    source: what to call it in messages. config: what open_clip_config.json holds, None where there is none. Sizes are
    those of the shapes; heads and activation show in none: where no config says them, published ones are assumed, with
    a warning.
    Raises ValueError that lists every missing, surplus and misshapen tensor, and what config has otherwise.
    """
    tensors = _vision_tensors(tensors)
    shown = _sizes(tensors)
    module = OpenCLIPVision(**shown, **_unseen(source, shown, config))
    tensors = {name: tensor for name, tensor in tensors.items() if not _is_behind(name, module.layers)}
    found = take(source, tensors, targets(module, _torch_name), _contradictions(module, config or {}))
    return module, unflatten_dict(found, sep=".")


def _vision_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All tensors but the text tower's, without the prefix; tables by position lie as `take` expects matrices."""
    if any(name.startswith(_PREFIX) for name in tensors):
        tensors = {name.removeprefix(_PREFIX): tensors[name] for name in tensors if not _TEXT.match(name)}
    return {name: tensor.T if name == "positional_embedding" else tensor for name, tensor in tensors.items()}


def _is_behind(name: str, layers: int) -> bool:
    """Whether a tensor of the vision tower is of what follows the tokens that the last layer is given."""
    return name == "proj" or name.startswith(_BLOCK.format(layers - 1))


def _sizes(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Hyper-parameters that the shapes show; what is missing is as in ViT-H/14, so that it is named as missing."""
    patch, positions = size(tensors, "conv1.weight", axis=3), size(tensors, "positional_embedding", axis=1)
    shown = {
        "image_size": patch * math.isqrt(positions - 1) if patch and positions else None,
        "patch_size": patch,
        "width": size(tensors, "conv1.weight"),
        "layers": count(tensors, _BLOCK),
        "mlp_width": size(tensors, _BLOCK.format(0) + "mlp.c_fc.bias"),
    }
    return {name: value for name, value in shown.items() if value}


def _unseen(source: str, shown: Mapping[str, int], config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Hyper-parameters that show in no shape."""
    width = shown.get("width", OpenCLIPVision.width)
    if config is None:
        head_width = _HEAD_WIDTHS.get(width, 64)
        assumed = f"heads of {head_width} channels and the exact GELU are assumed"
        warnings.warn(f"no {_CONFIG} beside {source} says otherwise: {assumed}", stacklevel=3)
    else:
        head_width = config["vision_cfg"].get("head_width", 64)
    if type(head_width) is not int or head_width < 1 or width % head_width:
        raise ValueError(f"{width} channels do not divide into heads of {head_width!r}")
    return {"num_heads": width // head_width, "quick_gelu": bool((config or {}).get("quick_gelu", False))}


def _contradictions(module: OpenCLIPVision, config: Mapping[str, Any]) -> list[str]:
    """What a config has otherwise than the shapes show it, or than it is computed here."""
    sizes = {name: getattr(module, name) for name in ("image_size", "patch_size", "width", "layers")}
    computed = {**sizes, "norm_kwargs": None, "act_kwargs": None, "mean": list(MEAN), "std": list(STD)}
    said = {**config.get("vision_cfg", {}), **config.get("preprocess_cfg", {})}
    return [
        f"{_CONFIG} says {name} {said[name]}, computed here is {value}"
        for name, value in computed.items()
        if said.get(name, value) != value
    ]


def _read_config(path: Path) -> dict[str, Any] | None:
    """What the model and its preprocessing are; None where there is no such file."""
    try:
        content = read_json(path)
        preprocessing = content.get("preprocess_cfg", {})
        config = {**content.get("model_cfg", content), "preprocess_cfg": {**preprocessing}}
        return {**config, "vision_cfg": {**config["vision_cfg"]}}
    except FileNotFoundError:
        return None
    except KeyError as error:
        raise ValueError(f"{path} has no {error}: it describes no OpenCLIP model") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _torch_name(path: str) -> str:
    """open_clip's name of our path: `params.resblocks_0.attn_in_proj.kernel` is in_proj_weight of its first block."""
    name = path.removeprefix("params.")
    name = re.sub(r"^resblocks_(\d+)\.(attn|mlp)_", r"transformer.resblocks.\1.\2.", name)
    name = re.sub(r"^resblocks_(\d+)\.", r"transformer.resblocks.\1.", name)
    name = re.sub(r"\w+$", lambda leaf: _LEAVES.get(leaf[0], leaf[0]), name)
    return name.replace("in_proj.", "in_proj_")
