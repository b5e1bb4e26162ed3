"""Blocks shared by the networks: sinusoids, embedding MLP, group norm, pseudo-3D convolution, resampling."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from m3ddm_jax.models.weight_gradients import add_bias, convolve, matmul
from m3ddm_jax.parallel.constrain import channel_parts, split_parts

Dtype = jnp.dtype


class Dense(nn.Module):
    """Linear map of [..., C] to [..., features] in compute dtype; the gradient of its float32 weights is float32."""

    features: int
    use_bias: bool = True
    dtype: Dtype = jnp.float32
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        x = matmul(x.astype(self.dtype), kernel)
        return add_bias(x, self.param("bias", nn.initializers.zeros, (self.features,))) if self.use_bias else x


def sinusoidal_embedding(positions: jax.Array, dim: int, max_period: float) -> jax.Array:
    """Sinusoids of positions [...] -> float32 [..., dim], cosines first, frequencies max_period ** (-i / half).

    Source: M3DDM code, `Timesteps` with flip_sin_to_cos and no frequency shift.
    """
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(float(max_period)) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class EmbeddingMLP(nn.Module):
    """Linear, SiLU, Linear on an embedding [..., D] -> [..., features], in float32."""

    features: int

    @nn.compact
    def __call__(self, embedding: jax.Array) -> jax.Array:
        hidden = nn.silu(nn.Dense(self.features, name="linear_1")(embedding))
        return nn.Dense(self.features, name="linear_2")(hidden)


class GroupNorm(nn.Module):
    """Group normalisation of [B, ..., C] with one mean and variance a group over every axis between, in float32.

    The statistics are reduced a channel first and folded into one scale and shift a channel, so that the activation is
    read twice and written once. What the axes between are decides the meaning: frames folded into B give per-frame
    statistics, [B, T, H, W, C] gives clip-level ones.
    """

    num_groups: int
    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        if channels % self.num_groups:
            raise ValueError(f"{channels} channels do not divide into {self.num_groups} groups")
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        axes = tuple(range(1, x.ndim - 1))
        x_float = x.astype(jnp.float32)

        def group_mean(per_channel_BxC):
            grouped = rearrange(per_channel_BxC, "b (g c) -> b g c", g=self.num_groups)
            mean = jnp.broadcast_to(grouped.mean(axis=-1, keepdims=True), grouped.shape)
            return rearrange(mean, "b g c -> b (g c)")

        mean = group_mean(x_float.mean(axes))
        centre = jnp.expand_dims(mean, axes)
        # Two passes: E[x^2] - E[x]^2 loses the digits that deep activations with large means need.
        variance = group_mean(jnp.square(x_float - centre).mean(axes))
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        shift = bias - mean * factor
        return (x_float * jnp.expand_dims(factor, axes) + jnp.expand_dims(shift, axes)).astype(self.dtype)


def per_frame(layer: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """layer of every frame of [B, T, H, W, C] by itself, as a batch of frames."""
    frames = layer(rearrange(x, "b t h w c -> (b t) h w c"))
    return rearrange(frames, "(b t) h w c -> b t h w c", b=x.shape[0])


def identity_kernel(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
    """Dirac initialiser: the middle tap (or the only matrix) of a kernel [..., C_in, C_out] is the identity."""
    del key
    kernel = jnp.zeros(shape, dtype)
    middle = tuple(size // 2 for size in shape[:-2])
    return kernel.at[middle].set(jnp.eye(*shape[-2:], dtype=dtype))


class TemporalConv(nn.Module):
    """1-D convolution over frames, kernel 3, zero padding 1, on [B, T, H, W, C] -> [B, T, H, W, features].

    Three shifted matrix products: faster than a convolution on CPU, quick to compile everywhere. Starts as identity.
    Where `tensor` splits the channels, a device adds up its share of all three before devices add up theirs.
    """

    features: int
    dtype: Dtype = jnp.float32
    kernel_init: Callable = identity_kernel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, parts = x.astype(self.dtype), channel_parts(x.shape[-1], self.features)
        if parts == 1:
            return add_bias(_taps(x, kernel), bias)
        x = split_parts(rearrange(x, "b t h w (p c) -> p b t h w c", p=parts))
        shares = jax.vmap(_taps)(x, rearrange(kernel, "k (p c) o -> p k c o", p=parts))
        return add_bias(jax.lax.reduce_sum(shares, [0]), bias)


def _taps(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, T, H, W, C] and a kernel [3, C, O] -> the shifted products' sum [B, T, H, W, O]."""
    before, here, after = (matmul(x, kernel[tap]) for tap in range(3))
    return here + _shifted(before, 1) + _shifted(after, -1)


def _shifted(x: jax.Array, frames: int) -> jax.Array:
    """[B, T, H, W, C] so many frames later; zeros come in, and what passes the end is gone."""
    # One operation: where frames are split, a device sends those of its border to the next, and no more.
    padding = [(frames, -frames, 0) if axis == 1 else (0, 0, 0) for axis in range(x.ndim)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), padding)


class Conv(nn.Module):
    """Convolution of pictures [N, H, W, C] with a square kernel, `padding` zeros around them: [N, h, w, features]."""

    features: int
    size: int = 3
    stride: int = 1
    padding: int = 1
    use_bias: bool = True
    dtype: Dtype = jnp.float32
    kernel_init: Callable = nn.initializers.lecun_normal()
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        padding = ((self.padding, self.padding),) * 2
        x = convolve(x.astype(self.dtype), kernel, self.stride, padding, self.dilation)
        return add_bias(x, self.param("bias", nn.initializers.zeros, (self.features,))) if self.use_bias else x


class FrameConv(Conv):
    """`Conv` of each frame: [B, T, H, W, C] -> [B, T, H/stride, W/stride, features]."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return per_frame(super().__call__, x)


class Pseudo3DConv(nn.Module):
    """3x3 convolution a frame, then a temporal one, no activation between. Source: M3DDM code, `Pseudo3DConv`."""

    features: int
    dtype: Dtype = jnp.float32
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = FrameConv(self.features, dtype=self.dtype, kernel_init=self.kernel_init, name="spatial_conv")(x)
        return TemporalConv(self.features, dtype=self.dtype, name="temporal_conv")(x)


class Downsample(nn.Module):
    """Halve height and width of [B, T, H, W, C] by a strided 3x3 convolution."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return FrameConv(x.shape[-1], stride=2, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Double height and width of [B, T, H, W, C] by nearest neighbours, then a 3x3 convolution."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.repeat(2, axis=2).repeat(2, axis=3)
        return FrameConv(x.shape[-1], dtype=self.dtype, name="conv")(x)
