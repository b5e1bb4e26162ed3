"""The official M3DDM checkpoint -> our tree, which keeps its names."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from m3ddm_jax.models.unet3d import M3DDMUNet
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.checkpoint import Checkpoint, contradictions, read_sizes
from m3ddm_jax.weights.names import count, size, take, targets

PIPELINE: dict[str, dict[str, Any]] = {
    "diffusion": {
        "schedule": "scaled_linear",
        "zero_terminal_snr": False,
        "shift": 1.0,
        "prediction": "epsilon",
        "unknown": "black",
    },
    "sample": {
        "canvas": "target",
        "lines": 256,
        "guess": "spread",
        "latent_mask": "max",
        "posterior": "mean",
        "global_frames": 16,
        "global_size": 256,
        "windows": "parallel",
        "num_frames": 16,
        "strides": (15, 5, 1),
        "noise": "frame",
        "noise_scale": 1.0,
        "strength": 1.0,
        "solver": "dpm++",
        "steps": 20,
        "guidance_local": 2.0,
        "guidance_global": 4.0,
        "guidance_interval": (0.0, 1.0),
        "clip": None,
        "seam": "matched",
    },
}
"""What pipeline.json of an M3DDM says: how the released network was trained, and how this project samples from it."""

# What shows in no shape.
ASSUMED = {"attention_head_dim": 8, "norm_num_groups": 32}
# Fields of diffusers' U-Net configs that have one value here.
FIXED = {
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
}
# Fields that are hyper-parameters here; attention_head_dim is the number of heads, whatever it is called.
_FIELDS = {
    "out_channels": "latent_channels",
    "block_out_channels": "block_out_channels",
    "layers_per_block": "layers_per_block",
    "attention_head_dim": "num_heads",
    "norm_num_groups": "norm_num_groups",
    "cross_attention_dim": "cross_attention_dim",
    "global_widths": "global_widths",
    "frame_embedding_dim": "frame_embedding_dim",
}
# Official layers whose kernels have taps of size 1 that ours have not, and where those lie.
_UNIT_TAPS = {
    "conv_in": (2,),
    "conv": (2,),
    "proj_in": (2, 3),
    "proj_out": (2, 3),
    "proj_in2": (2, 3, 4),
    "proj_out2": (2, 3, 4),
    "conv_shortcut": (2, 3, 4),
}


def m3ddm_from_checkpoint(checkpoint: Checkpoint) -> tuple[M3DDMUNet, Variables]:
    """(module, variables) of an official checkpoint; variables are views of its file.

    Sizes are those of the shapes, heads and groups those of config.json, else 8 and 32, with a warning.
    Raises ValueError that lists every missing, surplus and misshapen tensor, and what config.json has otherwise.
    """
    shown = _sizes(checkpoint.tensors)
    module = build_unet({**ASSUMED, **shown, **checkpoint.config})
    remarks = contradictions(checkpoint.config, shown, FIXED)
    found = take(checkpoint.source, checkpoint.tensors, targets(module), remarks)
    checkpoint.warn_of(ASSUMED)
    return module, unflatten_dict(found, sep=".")


def variables_from_official(module: M3DDMUNet, state_dict: Mapping[str, np.ndarray]) -> Variables:
    """Variables of `module` from an official state dict (names as diffusers writes them).

    Raises ValueError that lists every missing, surplus and misshapen tensor.
    """
    return unflatten_dict(take("the state dict", state_dict, targets(module)), sep=".")


def unet_sizes(tensors: Mapping[str, np.ndarray], attention_block: str, plain_block: str) -> dict[str, Any]:
    """The fields of a diffusers U-Net's config that its tensors' shapes show; another network's show few or none.

    attention_block, plain_block: what blocks with and without attention are called; {} stands for Down or Up.
    """

    def types(side):
        levels = range(count(tensors, f"{side}_blocks.{{}}."))
        attention = [count(tensors, f"{side}_blocks.{level}.attentions.{{}}.") > 0 for level in levels]
        return [(attention_block if here else plain_block).format(side.capitalize()) for here in attention]

    widths = [size(tensors, f"down_blocks.{level}.resnets.0.norm2.bias") for level in range(len(types("down")))]
    shown = {
        "in_channels": size(tensors, "conv_in.weight", 1),
        "block_out_channels": widths if all(widths) else None,
        "down_block_types": types("down"),
        "up_block_types": types("up"),
        "layers_per_block": count(tensors, "down_blocks.0.resnets.{}."),
    }
    return {name: value for name, value in shown.items() if value}


def _sizes(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    stage = "global_img_encoder.resnet_layer.{}."
    widths = [
        size(tensors, f"{stage.format(number)}layers.0.shortcut.normalization.bias")
        for number in range(count(tensors, stage))
    ]
    frame_mlp = "mid_block.attentions.0.temporal_position_embed_proj.linear_1.weight"
    shown = {
        **unet_sizes(tensors, "CrossAttn{}Block3D", "{}BlockP3D"),
        "out_channels": size(tensors, "conv_out.spatial_conv.bias"),
        "cross_attention_dim": size(tensors, "global_img_encoder.convolution.bias"),
        "global_widths": widths if all(widths) else None,
        "frame_embedding_dim": size(tensors, frame_mlp, axis=1),
    }
    return {name: value for name, value in shown.items() if value}


def build_unet(config: Mapping[str, Any]) -> M3DDMUNet:
    """The U-Net that a config in diffusers' words describes; what it leaves open is as published.

    Raises ValueError for values that make no network.
    """
    hyper = read_sizes(config, _FIELDS, M3DDMUNet)
    types = config.get("down_block_types", [])
    if not isinstance(types, list):
        raise ValueError(f"config.json says down_block_types {types!r}: a list of names is accepted")
    if types:
        hyper["attention_levels"] = tuple("CrossAttn" in str(name) for name in types)
    module = M3DDMUNet(**hyper)
    widths, heads, groups = module.block_out_channels, module.num_heads, module.norm_num_groups
    if len(widths) != len(module.attention_levels):
        raise ValueError(f"{len(widths)} block_out_channels and {len(module.attention_levels)} down_block_types differ")
    if any(width % heads or width % groups for width in widths):
        raise ValueError(f"levels of {list(widths)} channels do not divide into {heads} heads and {groups} groups")
    return module
