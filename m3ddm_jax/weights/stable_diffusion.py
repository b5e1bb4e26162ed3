"""Stable Diffusion's KL autoencoder -> ours.

Names are today's diffusers names; those of the original single-file checkpoints, and of old diffusers versions, are
brought to them first.
"""

import re
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import unflatten_dict

from m3ddm_jax.models.kl_autoencoder import AutoencoderKL
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.checkpoint import Checkpoint, contradictions, read_sizes
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


def _autoencoder_tensors(tensors: Tensors) -> Tensors:
    """The autoencoder's tensors of a checkpoint, by today's diffusers names."""
    tensors = {name: tensor for name, tensor in part(tensors, _VAE_PREFIX).items() if not name.startswith(_VAE_LEFT)}
    last = count(tensors, "decoder.up.{}.") - 1

    def coarsest_first(name):
        return re.sub(r"^decoder\.up\.(\d+)", lambda found: f"decoder.up.{last - int(found[1])}", name)

    return {rename(coarsest_first(name), _VAE_RENAMES): tensor for name, tensor in tensors.items()}


def part(tensors: Tensors, prefix: str) -> Tensors:
    """One network out of a checkpoint of several, without its prefix; all where the prefix does not occur."""
    part = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return part or tensors


def rename(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    """A name after all replacements (pattern, replacement), one after the other."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name
