"""Stable Diffusion's inpainting U-Net, which sees single images -> M3DDM's and GlobalPaint's, which see videos.

Names are today's diffusers names; those of the original single-file checkpoints are brought to them first.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from m3ddm_jax.models import registry
from m3ddm_jax.models.globalpaint import NEW_PARAMETERS, GlobalPaintUNet
from m3ddm_jax.models.unet3d import M3DDMUNet
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.checkpoint import CONFIG, Checkpoint, contradictions, read_sizes
from m3ddm_jax.weights.m3ddm import ASSUMED, FIXED, build_unet, unet_sizes
from m3ddm_jax.weights.names import Target, size, take, targets, torch_name
from m3ddm_jax.weights.stable_diffusion import part, rename

Tensors = Mapping[str, np.ndarray]

_UNET_PREFIX = "model.diffusion_model."
_UNET_RENAMES = (
    (r"^time_embed\.0\.", "time_embedding.linear_1."),
    (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^input_blocks\.0\.0\.", "conv_in."),
    (r"^middle_block\.0\.", "mid_block.resnets.0."),
    (r"^middle_block\.1\.", "mid_block.attentions.0."),
    (r"^middle_block\.2\.", "mid_block.resnets.1."),
    (r"^out\.0\.", "conv_norm_out."),
    (r"^out\.2\.", "conv_out."),
    (r"\.in_layers\.0\.", ".norm1."),
    (r"\.in_layers\.2\.", ".conv1."),
    (r"\.emb_layers\.1\.", ".time_emb_proj."),
    (r"\.out_layers\.0\.", ".norm2."),
    (r"\.out_layers\.3\.", ".conv2."),
    (r"\.skip_connection\.", ".conv_shortcut."),
)
# What joins frames, sees their rate, or attends to global frames: nothing of it is in the 2D network.
_NEW_IN_M3DDM = re.compile(
    r"\.temporal_conv\.|fps_emb|^global_img_encoder\.|\.transformer_blocks2\.|\.temporal_position_embed_proj\."
    r"|\.attentions\.\d+\.(norm2|proj_in2|proj_out2)\.|\.transformer_blocks\.0\.attn2\.to_[kv]\."
)
# What M3DDM leaves of the 2D network: the keys and values of text.
_TEXT = re.compile(r"\.transformer_blocks\.0\.attn2\.to_[kv]\.weight")
_FIXED = {**FIXED, "dual_cross_attention": False, "only_cross_attention": False, "num_attention_heads": None}
# attention_head_dim is the number of heads, whatever it is called.
_FIELDS = {
    "out_channels": "latent_channels",
    "block_out_channels": "block_out_channels",
    "layers_per_block": "layers_per_block",
    "attention_head_dim": "num_heads",
    "norm_num_groups": "norm_num_groups",
    "cross_attention_dim": "text_dim",
}
# Of a head in Stable Diffusion 2, where 1.5 has a number of heads.
_HEAD_WIDTH = 64


def inflate_from_checkpoint(checkpoint: Checkpoint, seed: int = 0) -> tuple[M3DDMUNet, Variables]:
    """(module, variables) of M3DDM's U-Net, starting from Stable Diffusion's inpainting U-Net.

    What works inside frames is the 2D network's, its input channels in M3DDM's order; the rest is as M3DDM initialises
    it, drawn from `seed`: temporal convolutions are identities.
    Raises ValueError that lists every missing, surplus and misshapen tensor, and what config.json has otherwise.
    """
    tensors = unet_tensors(checkpoint.tensors)
    shown = unet_sizes(tensors, "CrossAttn{}Block2D", "{}Block2D")
    shown["out_channels"] = size(tensors, "conv_out.bias") or M3DDMUNet.latent_channels
    said = {name: value for name, value in checkpoint.config.items() if name != "cross_attention_dim"}
    module = build_unet({**ASSUMED, **shown, **said})
    every = targets(module)
    new = {target.path for name, target in every.items() if _NEW_IN_M3DDM.search(name)}
    wanted = {name.replace(".spatial_conv.", "."): target for name, target in every.items() if target.path not in new}
    kept = {name: tensor for name, tensor in tensors.items() if not _TEXT.search(name)}
    found = take(checkpoint.source, kept, wanted, contradictions(said, shown, FIXED))
    _reorder_inputs(found, module.latent_channels)
    checkpoint.warn_of(ASSUMED)
    return module, unflatten_dict({**found, **_initial(module, new, seed)}, sep=".")


def globalpaint_from_checkpoint(
    checkpoint: Checkpoint, empty_prompt: np.ndarray | None = None, seed: int = 0, **hyper
) -> tuple[GlobalPaintUNet, Variables]:
    """(module, variables) of GlobalPaint's U-Net, starting from Stable Diffusion's inpainting U-Net, 1.5 or 2.

    It makes of every frame what the 2D network makes of it: the rest, drawn from `seed`, adds nothing yet. Keys and
    values of global tokens begin as those of text. empty_prompt: [77, C], what the text encoder makes of no text; zeros
    where it is not given. hyper: of GlobalPaintUNet, what the 2D network does not have.
    Raises ValueError that lists every missing, surplus and misshapen tensor, and what config.json has otherwise.
    """
    tensors = unet_tensors(checkpoint.tensors)
    shown = unet_sizes(tensors, "CrossAttn{}Block2D", "{}Block2D")
    middle = "mid_block.attentions.0."
    shown |= {
        "out_channels": size(tensors, "conv_out.bias") or GlobalPaintUNet.latent_channels,
        "cross_attention_dim": size(tensors, f"{middle}transformer_blocks.0.attn2.to_k.weight", 1)
        or GlobalPaintUNet.text_dim,
    }
    assumed = dict(ASSUMED)
    if np.ndim(tensors.get(f"{middle}proj_in.weight")) == 2:
        assumed["attention_head_dim"] = [width // _HEAD_WIDTH for width in shown.get("block_out_channels", ())]
    module = _build_globalpaint({**assumed, **checkpoint.config, **shown}, hyper)
    shapes = {path: leaf.shape for path, leaf in flatten_dict(registry.abstract_variables(module), sep=".").items()}
    new = {path for path in shapes if NEW_PARAMETERS.search(path)}
    wanted = {torch_name(path): Target(path, shape) for path, shape in shapes.items() if path not in new}
    found = take(checkpoint.source, tensors, wanted, contradictions(checkpoint.config, shown, _FIXED))
    _reorder_inputs(found, module.latent_channels)
    found |= _initial(module, new, seed)
    found |= {path: found[path.replace("_global", "")] for path in new if "_global." in path}
    if empty_prompt is not None:
        if empty_prompt.shape != shapes["params.empty_prompt"]:
            raise ValueError(f"the empty prompt is {empty_prompt.shape}, expected {shapes['params.empty_prompt']}")
        found["params.empty_prompt"] = empty_prompt
    checkpoint.warn_of(assumed)
    return module, unflatten_dict(found, sep=".")


def _build_globalpaint(config: Mapping[str, Any], more: Mapping[str, Any]) -> GlobalPaintUNet:
    """The U-Net that a config in diffusers' words describes, and more of ours. Raises ValueError for values that make
    no network."""
    hyper = read_sizes(config, _FIELDS, GlobalPaintUNet)
    if "down_block_types" in config:
        hyper["attention_levels"] = tuple("CrossAttn" in name for name in config["down_block_types"])
    widths = hyper.get("block_out_channels", GlobalPaintUNet.block_out_channels)
    heads, groups = hyper["num_heads"], hyper["norm_num_groups"]
    heads = heads * len(widths) if len(heads) == 1 else heads
    if len(heads) != len(widths):
        raise ValueError(f"{CONFIG} says attention_head_dim {list(heads)}: one or {len(widths)} numbers are accepted")
    if any(width % number or width % groups for width, number in zip(widths, heads, strict=True)):
        raise ValueError(
            f"levels of {list(widths)} channels do not divide into {list(heads)} heads and {groups} groups"
        )
    return GlobalPaintUNet(**{**hyper, "num_heads": heads, "global_tokens_dim": hyper["text_dim"], **more})


def _reorder_inputs(found: dict[str, np.ndarray], channels: int) -> None:
    """Both see noisy latents first; the 2D network then the mask and the masked latents, ours the mask last."""
    order = [*range(channels), *range(channels + 1, 2 * channels + 1), channels]
    found["params.conv_in.kernel"] = found["params.conv_in.kernel"][..., order, :]


def _initial(module: nn.Module, paths: Collection[str], seed: int) -> dict[str, np.ndarray]:
    """Initial values of some of a module's weights; the others are never drawn."""

    def draw(key):
        values = flatten_dict(registry.init(module, key), sep=".")
        return {path: values[path] for path in paths}

    return jax.device_get(jax.jit(draw)(jax.random.key(seed)))


def unet_tensors(tensors: Tensors) -> Tensors:
    """The 2D U-Net's tensors of a checkpoint, by diffusers names."""
    tensors = part(tensors, _UNET_PREFIX)
    samplers = [re.match(r"input_blocks\.(\d+)\.0\.op\.", name) for name in tensors]
    # The first level's resnets lie between conv_in, number 0, and the first downsampler.
    layers = min((int(found[1]) - 1 for found in samplers if found), default=0)

    def in_levels(name):
        found = re.match(r"(input|output)_blocks\.(\d+)\.(\d)\.(op\.|conv\.)?(.*)", name)
        if not found or name.startswith("input_blocks.0."):
            return name
        side, number, part, sampler, rest = found.groups()
        direction = "down" if side == "input" else "up"
        level, layer = divmod(int(number) - (side == "input"), layers + 1)
        what = f"{direction}samplers.0.conv" if sampler else f"{('resnets', 'attentions')[int(part)]}.{layer}"
        return f"{direction}_blocks.{level}.{what}.{rest}"

    return {rename(in_levels(name), _UNET_RENAMES): tensor for name, tensor in tensors.items()}
