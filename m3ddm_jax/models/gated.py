"""Blocks of ISVI's networks: convolutions that may gate what they give, and residual pairs; no norms.

Source: Inertia-Guided Flow Completion and Style Fusion for Video Inpainting (Zhang et al., CVPR 2022).
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from m3ddm_jax.models.layers import Conv, Dtype


class ConvBlock(nn.Module):
    """Convolution of [N, H, W, C] -> [N, H/stride, W/stride, features], LeakyReLU, and perhaps a gate.

    Attributes:
      reflect: the image continues mirrored at its border, not with zeros.
      activate: whether there is a LeakyReLU.
      gated: the sigmoid of a second convolution of the input weighs what comes out (Free-form image inpainting with
        gated convolution, Yu et al., ICCV 2019).
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    reflect: bool = False
    activate: bool = True
    gated: bool = False
    use_bias: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        reach = self.dilation * (self.kernel_size // 2)
        if self.reflect:
            x = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
        conv = partial(
            Conv,
            self.features,
            self.kernel_size,
            self.stride,
            0 if self.reflect else reach,
            self.use_bias,
            self.dtype,
            dilation=self.dilation,
        )
        out = conv(name="featureConv")(x)
        if self.activate:
            out = nn.leaky_relu(out, 0.2)
        return out * nn.sigmoid(conv(name="gatingConv")(x)) if self.gated else out


class UpsampledConv(nn.Module):
    """Images [N, H, W, C] enlarged by `upsample`, then a 3x3 convolution, made by `conv(features, name=)`."""

    features: int
    upsample: Callable[[jax.Array], jax.Array]
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.features, name="conv")(self.upsample(x))


class ResidualBlock(nn.Module):
    """x plus two 3x3 convolutions of it, a LeakyReLU between: [N, H, W, C] -> the same shape."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(Conv, x.shape[-1], dtype=self.dtype)
        return x + conv(name="conv2")(nn.leaky_relu(conv(name="conv1")(x), 0.2))


def doubled(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, 2H, 2W, C], by nearest neighbours."""
    return x.repeat(2, axis=1).repeat(2, axis=2)
