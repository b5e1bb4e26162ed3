import numpy as np
import pytest

from m3ddm_jax.models.unet3d import M3DDMUNet
from m3ddm_jax.weights.names import Target, count, size, take, targets, torch_name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("params.conv_in.kernel", "conv_in.weight"),
        ("params.conv_norm_out.scale", "conv_norm_out.weight"),
        ("params.time_embedding.linear_1.bias", "time_embedding.linear_1.bias"),
        ("params.down_blocks_1.resnets_0.norm2.bias", "down_blocks.1.resnets.0.norm2.bias"),
        (
            "params.mid_block.attentions_0.transformer_blocks2_0.ff.net_0_proj.kernel",
            "mid_block.attentions.0.transformer_blocks2.0.ff.net.0.proj.weight",
        ),
        (
            "batch_stats.global_img_encoder.resnet_layer_2_layers_1.layer_0.normalization.var",
            "global_img_encoder.resnet_layer.2.layers.1.layer.0.normalization.running_var",
        ),
    ],
)
def test_names(path, name):
    assert torch_name(path) == name


def test_no_two_weights_have_one_name():
    module = M3DDMUNet(block_out_channels=(32, 64), attention_levels=(True, False))
    wanted = targets(module)
    assert len({target.path for target in wanted.values()}) == len(wanted) > 500


def test_kernels_come_channels_last_with_or_without_unit_taps():
    matrix, kernel = np.arange(6.0).reshape(3, 2), np.arange(54.0).reshape(3, 2, 3, 3)
    wanted = {"a": Target("a", (2, 3)), "b": Target("b", (3, 3, 2, 3)), "c": Target("c", (1, 1, 2, 3))}
    found = take("it", {"a": matrix[..., None, None], "b": kernel[:, :, None], "c": matrix}, wanted)
    np.testing.assert_array_equal(found["a"], matrix.T)
    np.testing.assert_array_equal(found["b"], kernel.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(found["c"], matrix.T[None, None])
    assert all(np.shares_memory(found[name], tensor) for name, tensor in (("b", kernel), ("c", matrix)))


def test_a_single_channel_is_no_unit_tap():
    with pytest.raises(ValueError, match=r"a is \[1, 3, 1\], expected \[3, 1\]"):
        take("it", {"a": np.zeros((1, 3, 1))}, {"a": Target("a", (1, 3))})


def test_counters_are_passed_over_and_integers_are_not():
    wanted = {"a": Target("a", (2,))}
    assert take("it", {"a": np.ones(2), "n.num_batches_tracked": np.array(3)}, wanted).keys() == {"a"}
    with pytest.raises(ValueError, match="it holds a as int8"):
        take("it", {"a": np.ones(2, np.int8)}, wanted)


def test_remarks_are_problems_too():
    with pytest.raises(ValueError, match="1 of 1 weights fit; the config says otherwise"):
        take("it", {"a": np.ones(2)}, {"a": Target("a", (2,))}, ["the config says otherwise"])


def test_size():
    tensors = {"a": np.zeros((2, 3))}
    assert [size(tensors, "a"), size(tensors, "a", 1), size(tensors, "a", 2), size(tensors, "b")] == [2, 3, None, None]


def test_count():
    tensors = dict.fromkeys(["a.0.b.1.x", "a.0.b.0.x", "a.2.b.0.x", "c.a.5.x"])
    assert [count(tensors, "a.{}."), count(tensors, "a.0.b.{}."), count(tensors, "b.{}.")] == [3, 2, 0]
