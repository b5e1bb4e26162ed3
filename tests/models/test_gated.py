import jax
import numpy as np
import torch
from einops import rearrange
from torch.nn import functional

from m3ddm_jax.models.gated import ConvBlock, ResidualBlock

X = np.random.default_rng(0).normal(size=(2, 9, 12, 3)).astype(np.float32)
# float32 sums in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def torch_conv(x, params, **options):
    kernel = torch.from_numpy(np.array(rearrange(params["kernel"], "h w i o -> o i h w")))
    bias = torch.from_numpy(np.array(params["bias"])) if "bias" in params else None
    return functional.conv2d(x, kernel, bias, **options)


def channels_first(x):
    return torch.from_numpy(np.array(rearrange(x, "b h w c -> b c h w")))


def initialized(module):
    """(what the module makes of X, its parameters with biases that are not zero)."""
    params = module.init(jax.random.key(0), X)["params"]
    params = jax.tree.map(lambda x: x + 0.1, params)
    return module.apply({"params": params}, X), params


def test_gates_weigh_what_comes_out():
    found, params = initialized(ConvBlock(4, stride=2, gated=True))
    conv, gate = (
        torch_conv(channels_first(X), params[f"{part}Conv"], stride=2, padding=1) for part in ("feature", "gating")
    )
    expected = functional.leaky_relu(conv, 0.2) * torch.sigmoid(gate)
    np.testing.assert_allclose(channels_first(found), expected, **TOLERANCE)


def test_dilated_without_activation_and_bias():
    found, params = initialized(ConvBlock(4, dilation=3, activate=False, use_bias=False))
    expected = torch_conv(channels_first(X), params["featureConv"], dilation=3, padding=3)
    np.testing.assert_allclose(channels_first(found), expected, **TOLERANCE)


def test_images_may_continue_mirrored():
    found, params = initialized(ConvBlock(4, kernel_size=5, reflect=True))
    padded = functional.pad(channels_first(X), (2, 2, 2, 2), mode="reflect")
    expected = functional.leaky_relu(torch_conv(padded, params["featureConv"]), 0.2)
    np.testing.assert_allclose(channels_first(found), expected, **TOLERANCE)


def test_a_residual_block_adds():
    found, params = initialized(ResidualBlock())
    hidden = functional.leaky_relu(torch_conv(channels_first(X), params["conv1"], padding=1), 0.2)
    expected = channels_first(X) + torch_conv(hidden, params["conv2"], padding=1)
    np.testing.assert_allclose(channels_first(found), expected, **TOLERANCE)
