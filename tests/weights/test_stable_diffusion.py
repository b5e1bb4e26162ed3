"""diffusers' own classes and its own converter of single files are the references."""

import json

import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from m3ddm_jax.weights import stable_diffusion
from m3ddm_jax.weights.checkpoint import Checkpoint
from m3ddm_jax.weights.stable_diffusion import autoencoder_from_checkpoint, inflate_from_checkpoint

pytestmark = pytest.mark.usefixtures("quick_compiles")


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


def make_unet(**levels):
    torch.manual_seed(0)
    shape = {"in_channels": 9, "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2}
    return UNet2DConditionModel(out_channels=4, cross_attention_dim=12, **shape, **levels).eval()


@pytest.fixture(scope="module")
def unet():
    return make_unet(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
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


# What the original code calls the parts of a block, and what it calls those of diffusers.
LDM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
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


def original_unet(tensors, layers):
    """The names of the original U-Net; blocks are numbered through, conv_in being the first."""
    simple = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    named = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        module, _, leaf = name.rpartition(".")
        if module in simple:
            name = f"{simple[module]}.{leaf}"
        else:
            level, what, number, rest = rest.split(".", 3) if part != "mid_block" else ("", *rest.split(".", 2))
            if what == "resnets":
                layer, _, leaf = rest.rpartition(".")
                rest = f"{LDM_RESNET[layer]}.{leaf}"
            if part == "mid_block":
                name = f"middle_block.{1 if what == 'attentions' else 2 * int(number)}.{rest}"
            elif part == "down_blocks":
                first = 1 + int(level) * (layers + 1)
                if what == "downsamplers":
                    name = f"input_blocks.{first + layers}.0.{rest.replace('conv', 'op')}"
                else:
                    name = f"input_blocks.{first + int(number)}.{int(what == 'attentions')}.{rest}"
            else:
                first = int(level) * (layers + 1)
                attention = any(other.startswith(f"up_blocks.{level}.attentions.") for other in tensors)
                if what == "upsamplers":
                    name = f"output_blocks.{first + layers}.{1 + attention}.{rest}"
                else:
                    name = f"output_blocks.{first + int(number)}.{int(what == 'attentions')}.{rest}"
        named[name] = tensor
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


@pytest.fixture(scope="module")
def inflated(unet):
    return inflate_from_checkpoint(Checkpoint("it", tensors_of(unet), config_of(unet)))


def silence(variables, *layers):
    """The variables with zeros in layers of these names."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.zeros_like(leaf) if any(name in jax.tree_util.keystr(path) for name in layers) else leaf,
        variables,
    )


def test_every_frame_is_what_the_2d_network_makes_of_it(unet, inflated):
    """The whole network, what is new and what text does being switched off, at the timestep that both embed alike."""
    module, variables = inflated
    variables = silence(variables, "attn2']['to_out", "fps_emb_proj", "proj_out2")
    state_dict = unet.state_dict()
    text = {name: torch.zeros_like(tensor) for name, tensor in state_dict.items() if ".attn2.to_out." in name}
    x = torch.randn(1, 9, 8, 12)
    with torch.no_grad():
        expected = torch.func.functional_call(
            unet, state_dict | text, (x, 0), {"encoder_hidden_states": torch.zeros(1, 3, 12)}
        ).sample
    x, expected = (np.moveaxis(tensor.numpy(), 1, -1) for tensor in (x, expected))
    # Two frames of the same content have the statistics of one.
    latents, mask, masked = (np.stack([part, part], axis=1) for part in np.split(x, [4, 5], axis=-1))
    made = jax.jit(module.apply)(
        variables, latents, mask, masked, timestep=0, fps=7.0, global_latents=np.ones((1, 1, 6, 6, 4), np.float32)
    )
    np.testing.assert_allclose(made, np.stack([expected, expected], axis=1), atol=1e-5)


def test_what_is_new_starts_as_m3ddm_does(inflated):
    module, variables = inflated
    assert (module.num_heads, module.cross_attention_dim) == (2, 320)
    params = variables["params"]
    transformer = params["mid_block"]["attentions_0"]
    np.testing.assert_array_equal(params["conv_out"]["temporal_conv"]["kernel"], np.eye(4) * [[[0]], [[1]], [[0]]])
    np.testing.assert_array_equal(transformer["proj_in2"]["kernel"], np.eye(16))
    assert not transformer["transformer_blocks2_0"]["attn1"]["to_out_0"]["kernel"].any()
    assert transformer["transformer_blocks_0"]["attn2"]["to_k"]["kernel"].std() == pytest.approx(320**-0.5, rel=0.1)
    normalization = variables["batch_stats"]["global_img_encoder"]["resnet_layer_0_layers_0"]["layer_0"]
    np.testing.assert_array_equal(normalization["normalization"]["var"], 1)


def test_original_unets():
    unet = make_unet(
        block_out_channels=(8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    config, tensors = config_of(unet), tensors_of(unet)
    original = {f"model.diffusion_model.{n}": x for n, x in original_unet(tensors, layers=1).items()}
    theirs = convert_ldm_unet_checkpoint({name: torch.from_numpy(x) for name, x in original.items()}, dict(config))
    assert theirs.keys() == tensors.keys()
    ours = stable_diffusion._unet_tensors(original | {"first_stage_model.quant_conv.bias": np.zeros(8)})
    assert ours.keys() == tensors.keys()
    assert all(ours[name] is original_tensor for name, original_tensor in tensors.items())


def test_unets_that_cannot_be_inflated(unet):
    config, tensors = config_of(unet), tensors_of(unet)
    plain = tensors | {"conv_in.weight": tensors["conv_in.weight"][:, :4]}
    with pytest.raises(ValueError, match=r"conv_in\.weight is \[8, 4, 3, 3\], expected \[8, 9, 3, 3\]"):
        inflate_from_checkpoint(Checkpoint("it", plain, config))
    more = tensors | {"add_embedding.linear_1.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(ValueError, match=r"surplus add_embedding\.linear_1\.weight \[2, 2\]"):
        inflate_from_checkpoint(Checkpoint("it", more, config))
    with pytest.raises(ValueError, match="computed here is only 1e-05"):
        inflate_from_checkpoint(Checkpoint("it", tensors, config | {"norm_eps": 1e-6}))
