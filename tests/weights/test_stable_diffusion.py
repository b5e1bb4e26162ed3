"""diffusers' own classes and its own converter of single files are the references."""

import json

import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from m3ddm_jax.weights.checkpoint import Checkpoint
from m3ddm_jax.weights.stable_diffusion import autoencoder_from_checkpoint


def config_of(network):
    return json.loads(network.to_json_string())


def tensors_of(network):
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        scaling_factor=0.5,
    )


def assert_same(found, expected):
    assert found[0] == expected[0]
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])


def test_autoencoder_equals_diffusers(vae):
    module, variables = autoencoder_from_checkpoint(Checkpoint("it", tensors_of(vae), config_of(vae)))
    assert (module.block_out_channels, module.layers_per_block, module.scale) == ((8, 16, 16), 2, 0.5)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = vae.decode(vae.encode(x).latent_dist.mean).sample
    made = jax.jit(module.apply)(variables, np.moveaxis(x.numpy(), 1, -1))
    # float32 sums in another order.
    np.testing.assert_allclose(made, np.moveaxis(expected.numpy(), 1, -1), atol=2e-5)


# What the original code calls the parts of the attention.
LDM_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_vae(tensors, levels):
    """The names of the original autoencoder, part by part; its attention is made of 1x1 convolutions."""
    named = {}
    for name, tensor in tensors.items():
        side, _, rest = name.partition(".")
        part, _, rest = rest.partition(".")
        if part in ("down_blocks", "up_blocks"):
            level, what, number, rest = rest.split(".", 3)
            level = int(level) if part == "down_blocks" else levels - 1 - int(level)
            where = f"block.{number}" if what == "resnets" else f"{part.removesuffix('_blocks')}sample"
            name = f"{side}.{part.removesuffix('_blocks')}.{level}.{where}.{rest.replace('conv_s', 'nin_s')}"
        elif part == "mid_block":
            what, number, rest = rest.split(".", 2)
            if what == "resnets":
                name = f"{side}.mid.block_{int(number) + 1}.{rest}"
            else:
                layer, _, leaf = rest.rpartition(".")
                name = f"{side}.mid.attn_1.{LDM_ATTENTION[layer]}.{leaf}"
                tensor = tensor[..., None, None] if tensor.ndim == 2 else tensor
        named[name.replace("conv_norm_out", "norm_out")] = tensor
    return named


def test_original_autoencoders(vae):
    config, tensors = config_of(vae), tensors_of(vae)
    expected = autoencoder_from_checkpoint(Checkpoint("it", tensors, config))
    original = original_vae(tensors, levels=3)
    theirs = convert_ldm_vae_checkpoint({name: torch.from_numpy(x) for name, x in original.items()}, config)
    assert theirs.keys() == tensors.keys()
    training = {"loss.discriminator.main.0.weight": np.zeros(3), "model_ema.decay": np.zeros(())}
    assert_same(autoencoder_from_checkpoint(Checkpoint("it", original | training, config)), expected)
    whole = {f"first_stage_model.{name}": tensor for name, tensor in original.items()}
    whole |= {"model.diffusion_model.out.2.bias": np.zeros(4), "betas": np.zeros(1000)}
    assert_same(autoencoder_from_checkpoint(Checkpoint("it", whole, config)), expected)


def test_attention_names_of_old_diffusers_versions(vae):
    config, tensors = config_of(vae), tensors_of(vae)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in tensors.items():
        for new_part, old_part in old.items():
            name = name.replace(f".{new_part}.", f".{old_part}.")
        renamed[name] = tensor
    assert renamed.keys() != tensors.keys()
    expected = autoencoder_from_checkpoint(Checkpoint("it", tensors, config))
    assert_same(autoencoder_from_checkpoint(Checkpoint("it", renamed, config)), expected)


def test_the_scale_is_0_18215_where_no_config_says(vae):
    config = {"norm_num_groups": 4}
    assert autoencoder_from_checkpoint(Checkpoint("it", tensors_of(vae), config))[0].scale == 0.18215


def test_other_autoencoders_are_refused(vae):
    config, tensors = config_of(vae), tensors_of(vae)
    with pytest.raises(ValueError, match="config.json says shift_factor 0.1, computed here is only None"):
        autoencoder_from_checkpoint(Checkpoint("it", tensors, config | {"shift_factor": 0.1}))
    with pytest.raises(ValueError, match=r"latent_channels 16, the shapes say 4"):
        autoencoder_from_checkpoint(Checkpoint("it", tensors, config | {"latent_channels": 16}))
    with pytest.raises(ValueError, match=r"scaling_factor None: a number above 0 is accepted"):
        autoencoder_from_checkpoint(Checkpoint("it", tensors, config | {"scaling_factor": None}))
    del tensors["decoder.conv_norm_out.weight"]
    with pytest.raises(ValueError, match=r"missing decoder\.conv_norm_out\.weight \[8\]$"):
        autoencoder_from_checkpoint(Checkpoint("it", tensors, config))
