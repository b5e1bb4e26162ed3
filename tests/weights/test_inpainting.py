"""diffusers' own class and its own converter of single files are the references."""

import json

import jax
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from m3ddm_jax.weights import inpainting
from m3ddm_jax.weights.checkpoint import Checkpoint
from m3ddm_jax.weights.inpainting import globalpaint_from_checkpoint, inflate_from_checkpoint


def config_of(network):
    return json.loads(network.to_json_string())


def tensors_of(network):
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def make_unet(**changed):
    torch.manual_seed(0)
    shape = {"in_channels": 9, "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2}
    return UNet2DConditionModel(out_channels=4, cross_attention_dim=12, **{**shape, **changed}).eval()


@pytest.fixture(scope="module")
def unet():
    return make_unet(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


# What the original code calls the parts of a block.
LDM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


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
    ours = inpainting.unet_tensors(original | {"first_stage_model.quant_conv.bias": np.zeros(8)})
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


@pytest.fixture(scope="module")
def second():
    """Of Stable Diffusion 2's kind: heads of one width, linear projections; 64 channels a head where none says."""
    return make_unet(
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=[1, 2],
        use_linear_projection=True,
        norm_num_groups=32,
    )


# Of what GlobalPaint has besides; the tests are of the other parts.
EXTRACTOR = {"patch_width": 6, "extractor_width": 8, "extractor_heads": 2, "extractor_depths": (1, 1)}
PROMPT = np.random.default_rng(0).normal(size=(77, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def globalpaint(second):
    return globalpaint_from_checkpoint(Checkpoint("it", tensors_of(second), config_of(second)), PROMPT, **EXTRACTOR)


def test_globalpaint_sees_the_mask_last(second, globalpaint):
    tensors = tensors_of(second)
    module, variables = globalpaint
    kernel = variables["params"]["conv_in"]["kernel"]
    latents, mask, masked = np.split(np.moveaxis(tensors["conv_in.weight"], (2, 3, 1, 0), (0, 1, 2, 3)), [4, 5], axis=2)
    np.testing.assert_array_equal(kernel, np.concatenate([latents, masked, mask], axis=2))
    assert (module.num_heads, module.text_dim, module.global_tokens_dim) == ((1, 2), 12, 12)
    assert module.attention_levels == (True, False)
    assert {name: getattr(module, name) for name in EXTRACTOR} == EXTRACTOR


def test_what_is_new_in_globalpaint_starts_silent(second, globalpaint):
    params = globalpaint[1]["params"]
    transformer = params["mid_block"]["attentions_0"]
    attention = transformer["transformer_blocks_0"]["attn2"]
    np.testing.assert_array_equal(attention["to_k_global"]["kernel"], attention["to_k"]["kernel"])
    np.testing.assert_array_equal(attention["to_v_global"]["kernel"], attention["to_v"]["kernel"])
    assert not attention["gate"].any() and not transformer["est"]["temporal"]["attn"]["to_out_0"]["kernel"].any()
    assert not params["mid_block"]["resnets_0"]["temporal"]["conv"]["kernel"].any()
    assert transformer["est"]["windows"]["to_q"]["kernel"].std() > 0.01
    np.testing.assert_array_equal(params["empty_prompt"], PROMPT)
    with pytest.raises(ValueError, match=r"empty prompt is \(77, 8\), expected \(77, 12\)"):
        globalpaint_from_checkpoint(Checkpoint("it", tensors_of(second), config_of(second)), PROMPT[:, :8], **EXTRACTOR)


def test_heads_of_64_channels_are_assumed_for_linear_projections(second):
    with pytest.warns(UserWarning, match=r"\[1, 2\] heads and 32 groups are assumed"):
        module, _ = globalpaint_from_checkpoint(Checkpoint("it", tensors_of(second), {}), **EXTRACTOR)
    assert module.num_heads == (1, 2)


def test_unets_that_globalpaint_cannot_use(second):
    config, tensors = config_of(second), tensors_of(second)
    for change, problem in [
        ({"attention_head_dim": [1, 2, 4]}, "one or 2 numbers are accepted"),
        ({"attention_head_dim": 3}, "do not divide"),
        ({"cross_attention_dim": 7}, "cross_attention_dim 7, the shapes say 12"),
        ({"only_cross_attention": True}, "only_cross_attention True, computed here is only False"),
    ]:
        with pytest.raises(ValueError, match=problem):
            globalpaint_from_checkpoint(Checkpoint("it", tensors, config | change))
    more = tensors | {"add_embedding.linear_1.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(ValueError, match=r"surplus add_embedding\.linear_1\.weight \[2, 2\]"):
        globalpaint_from_checkpoint(Checkpoint("it", more, config))
