import numpy as np
import pytest

from m3ddm_jax.models.unet3d import M3DDMUNet
from m3ddm_jax.weights.m3ddm import official_to_ours, variables_from_official


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        ("conv_in.weight", "params.conv_in.kernel"),
        ("conv_norm_out.weight", "params.conv_norm_out.scale"),
        ("down_blocks.1.resnets.0.norm2.bias", "params.down_blocks_1.resnets_0.norm2.bias"),
        (
            "mid_block.attentions.0.transformer_blocks2.0.ff.net.0.proj.weight",
            "params.mid_block.attentions_0.transformer_blocks2_0.ff.net_0_proj.kernel",
        ),
        (
            "global_img_encoder.resnet_layer.2.layers.1.layer.0.normalization.running_var",
            "batch_stats.global_img_encoder.resnet_layer_2_layers_1.layer_0.normalization.var",
        ),
        ("global_img_encoder.resnet_layer.0.layers.0.shortcut.normalization.num_batches_tracked", None),
    ],
)
def test_names(official, ours):
    assert official_to_ours(official) == ours


def test_missing_and_surplus_tensors_are_listed():
    module = M3DDMUNet(block_out_channels=(32,), attention_levels=(False,))
    with pytest.raises(ValueError, match=r"missing params\.conv_in\.bias.*surplus params\.nothing\.kernel"):
        variables_from_official(module, {"nothing.weight": np.zeros((2, 2))})
