"""Stable Diffusion 1.5 -> ours: its KL autoencoder, and its 2D inpainting U-Net inflated into M3DDM's.

Names are today's diffusers names; those of the original single-file checkpoints, and of old diffusers versions, are
brought to them first.
"""

import re
from collections.abc import Collection, Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from m3ddm_jax.models import registry
from m3ddm_jax.models.kl_autoencoder import AutoencoderKL
from m3ddm_jax.models.unet3d import M3DDMUNet
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.checkpoint import Checkpoint, contradictions, read_sizes
from m3ddm_jax.weights.m3ddm import ASSUMED, FIXED, build_unet, unet_sizes
from m3ddm_jax.weights.names import count, size, take, targets

Tensors = Mapping[str, np.ndarray]

_VAE_PREFIX = "first_stage_model."
_VAE_FIELDS = {name: name for name in ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups")}
_VAE_ASSUMED = {"norm_num_groups": 32}
_VAE_FIXED = {
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "shift_factor": None,
}
# Training's discriminator and averages, which a checkpoint of the autoencoder alone may hold besides.
_VAE_LEFT = ("loss.", "model_ema.")
_VAE_RENAMES = (
    (r"\.(down|up)\.(\d+)\.block\.", r".\1_blocks.\2.resnets."),
    (r"\.(down|up)\.(\d+)\.(?:down|up)sample\.", r".\1_blocks.\2.\1samplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
    (r"\.attentions\.0\.norm\.", ".attentions.0.group_norm."),
    (r"\.attentions\.0\.(?:q|query)\.", ".attentions.0.to_q."),
    (r"\.attentions\.0\.(?:k|key)\.", ".attentions.0.to_k."),
    (r"\.attentions\.0\.(?:v|value)\.", ".attentions.0.to_v."),
    (r"\.attentions\.0\.(?:proj_out|proj_attn)\.", ".attentions.0.to_out.0."),
)

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
_NEW = re.compile(
    r"\.temporal_conv\.|fps_emb|^global_img_encoder\.|\.transformer_blocks2\.|\.temporal_position_embed_proj\."
    r"|\.attentions\.\d+\.(norm2|proj_in2|proj_out2)\.|\.transformer_blocks\.0\.attn2\.to_[kv]\."
)
# What of the 2D network is left: the keys and values of text.
_LEFT = re.compile(r"\.transformer_blocks\.0\.attn2\.to_[kv]\.weight")


def autoencoder_from_checkpoint(checkpoint: Checkpoint) -> tuple[AutoencoderKL, Variables]:
    """(module, variables) of Stable Diffusion's KL autoencoder, from its own checkpoint or that of a whole model.

    `scale` is config.json's scaling_factor, else 0.18215. Norms have as many groups as config.json says, else 32, with
    a warning. Raises ValueError that lists every missing, surplus and misshapen tensor, and what config.json has
    otherwise.
    """
    tensors = _autoencoder_tensors(checkpoint.tensors)
    levels = range(count(tensors, "encoder.down_blocks.{}."))
    widths = [size(tensors, f"encoder.down_blocks.{level}.resnets.0.norm2.bias") for level in levels]
    shown = {
        "block_out_channels": widths if all(widths) else None,
        "layers_per_block": count(tensors, "encoder.down_blocks.0.resnets.{}."),
        "latent_channels": size(tensors, "decoder.conv_in.weight", axis=1),
    }
    shown = {name: value for name, value in shown.items() if value}
    config = {**_VAE_ASSUMED, **shown, **checkpoint.config}
    scale = config.get("scaling_factor", AutoencoderKL.scale)
    if not isinstance(scale, int | float) or not scale > 0:
        raise ValueError(f"config.json says scaling_factor {scale!r}: a number above 0 is accepted")
    module = AutoencoderKL(**read_sizes(config, _VAE_FIELDS, AutoencoderKL), scale=float(scale))
    remarks = contradictions(checkpoint.config, shown, _VAE_FIXED)
    found = take(checkpoint.source, tensors, targets(module), remarks)
    checkpoint.warn_of(_VAE_ASSUMED)
    return module, unflatten_dict(found, sep=".")


def inflate_from_checkpoint(checkpoint: Checkpoint, seed: int = 0) -> tuple[M3DDMUNet, Variables]:
    """(module, variables) of M3DDM's U-Net, starting from Stable Diffusion's inpainting U-Net.

    What works inside frames is the 2D network's, its input channels in M3DDM's order; the rest is as M3DDM initialises
    it, drawn from `seed`: temporal convolutions are identities.
    Raises ValueError that lists every missing, surplus and misshapen tensor, and what config.json has otherwise.
    """
    tensors = _unet_tensors(checkpoint.tensors)
    shown = unet_sizes(tensors, "CrossAttn{}Block2D", "{}Block2D")
    shown["out_channels"] = size(tensors, "conv_out.bias") or M3DDMUNet.latent_channels
    said = {name: value for name, value in checkpoint.config.items() if name != "cross_attention_dim"}
    module = build_unet({**ASSUMED, **shown, **said})
    every = targets(module)
    new = {target.path for name, target in every.items() if _NEW.search(name)}
    wanted = {name.replace(".spatial_conv.", "."): target for name, target in every.items() if target.path not in new}
    kept = {name: tensor for name, tensor in tensors.items() if not _LEFT.search(name)}
    found = take(checkpoint.source, kept, wanted, contradictions(said, shown, FIXED))
    # Both see noisy latents first; the 2D network then the mask and the masked latents, M3DDM the mask last.
    mask = module.latent_channels
    order = [*range(mask), *range(mask + 1, 2 * mask + 1), mask]
    found["params.conv_in.kernel"] = found["params.conv_in.kernel"][..., order, :]
    checkpoint.warn_of(ASSUMED)
    return module, unflatten_dict({**found, **_initial(module, new, seed)}, sep=".")


def _initial(module: M3DDMUNet, paths: Collection[str], seed: int) -> dict[str, np.ndarray]:
    """Initial values of some of a module's weights; the others are never drawn."""

    def draw(key):
        values = flatten_dict(registry.init(module, key), sep=".")
        return {path: values[path] for path in paths}

    return jax.device_get(jax.jit(draw)(jax.random.key(seed)))


def _autoencoder_tensors(tensors: Tensors) -> Tensors:
    """The autoencoder's tensors of a checkpoint, by today's diffusers names."""
    tensors = {name: tensor for name, tensor in _part(tensors, _VAE_PREFIX).items() if not name.startswith(_VAE_LEFT)}
    last = count(tensors, "decoder.up.{}.") - 1

    def coarsest_first(name):
        return re.sub(r"^decoder\.up\.(\d+)", lambda found: f"decoder.up.{last - int(found[1])}", name)

    return {_rename(coarsest_first(name), _VAE_RENAMES): tensor for name, tensor in tensors.items()}


def _unet_tensors(tensors: Tensors) -> Tensors:
    """The 2D U-Net's tensors of a checkpoint, by diffusers names."""
    tensors = _part(tensors, _UNET_PREFIX)
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

    return {_rename(in_levels(name), _UNET_RENAMES): tensor for name, tensor in tensors.items()}


def _part(tensors: Tensors, prefix: str) -> Tensors:
    """One network out of a checkpoint of several, without its prefix; all where the prefix does not occur."""
    part = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return part or tensors


def _rename(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name
