"""Stable Diffusion's KL autoencoder (f8), and its decoder in bands of rows for frames that do not fit the device.

Source: High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., CVPR 2022). Parameter names are
those of diffusers' AutoencoderKL (`a.0.b` is `a_0/b` here).
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce, repeat

from m3ddm_jax.models.attention import attention
from m3ddm_jax.models.layers import Dtype, GroupNorm
from m3ddm_jax.types import Variables

_EPSILON = 1e-6

Moments = tuple[jax.Array, jax.Array]
"""Mean and variance of every row and channel of a frame, float32 [N, H, C] each."""


def row_moments(x: jax.Array) -> Moments:
    """Moments of [N, H, W, C]. Those of bands of rows, put together, are exactly those of the frame."""
    x = x.astype(jnp.float32)
    return x.mean(axis=2), x.var(axis=2)


class NormSiLU(nn.Module):
    """Group normalisation a frame, then SiLU, in float32; [N, H, W, C] -> the same in dtype.

    `moments` are the whole frame's, for an x that is a band of its rows; without them x is the whole frame.
    """

    num_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, moments: Moments | None = None) -> jax.Array:
        channels = x.shape[-1]
        if channels % self.num_groups:
            raise ValueError(f"{channels} channels do not divide into {self.num_groups} groups")
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def pool(per_row_NxHxC):
            grouped = reduce(per_row_NxHxC, "n h (g c) -> n 1 g", "mean", g=self.num_groups)
            return repeat(grouped, "n 1 g -> n 1 (g c)", c=channels // self.num_groups)

        row_mean, row_variance = row_moments(x) if moments is None else moments
        mean = pool(row_mean)
        # The variance of a group is that within its rows plus that between them.
        variance = pool(row_variance + jnp.square(row_mean - mean))
        factor = scale * jax.lax.rsqrt(variance + _EPSILON)
        shift = bias - mean * factor
        return nn.silu(x.astype(jnp.float32) * factor[:, None] + shift[:, None]).astype(self.dtype)


class ResnetBlock(nn.Module):
    """Residual block of two 3x3 convolutions: [N, H, W, in_features] -> [N, H, W, features].

    `first` and `second` are its halves, each with one norm, whose moments may be given, and one convolution.
    """

    in_features: int
    features: int
    num_groups: int
    dtype: Dtype = jnp.float32

    def setup(self):
        self.norm1, self.norm2 = (NormSiLU(self.num_groups, self.dtype) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv(self.features, (3, 3), dtype=self.dtype) for _ in range(2))
        if self.in_features != self.features:
            self.conv_shortcut = nn.Dense(self.features, dtype=self.dtype)

    def first(self, x: jax.Array, moments: Moments | None = None) -> jax.Array:
        return self.conv1(self.norm1(x, moments))

    def second(self, hidden: jax.Array, x: jax.Array, moments: Moments | None = None) -> jax.Array:
        shortcut = x if self.in_features == self.features else self.conv_shortcut(x)
        return shortcut + self.conv2(self.norm2(hidden, moments))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(self.first(x), x)


class AttentionBlock(nn.Module):
    """Residual self-attention of one head over the cells of a frame, [N, H, W, C] -> [N, H, W, C]."""

    num_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, x.shape[-1], dtype=self.dtype)
        normed = GroupNorm(self.num_groups, _EPSILON, self.dtype, name="group_norm")(x)
        query, key, value = (dense(name=name)(normed) for name in ("to_q", "to_k", "to_v"))
        key, value = (rearrange(cells, "n h w c -> n (h w) 1 c") for cells in (key, value))
        # A row of queries at a time: the scores of all at once would outgrow every other activation.
        out = jax.lax.map(lambda row: attention(row, key, value), rearrange(query, "n h w c -> h n w 1 c"))
        return x + dense(name="to_out_0")(rearrange(out, "h n w 1 c -> n h w c"))


class MiddleBlock(nn.Module):
    """Resnet, attention, resnet on the coarsest level."""

    features: int
    num_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        resnet = partial(ResnetBlock, self.features, self.features, self.num_groups, self.dtype)
        x = resnet(name="resnets_0")(x)
        x = AttentionBlock(self.num_groups, self.dtype, name="attentions_0")(x)
        return resnet(name="resnets_1")(x)


class Downsample(nn.Module):
    """Halve height and width of [N, H, W, C] by a strided 3x3 convolution, padded below and to the right alone."""

    features: int
    dtype: Dtype = jnp.float32

    def setup(self):
        self.conv = nn.Conv(self.features, (3, 3), strides=2, padding=((0, 1), (0, 1)), dtype=self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


class Upsample(nn.Module):
    """Double height and width of [N, H, W, C] by nearest neighbours, then a 3x3 convolution."""

    features: int
    dtype: Dtype = jnp.float32

    def setup(self):
        self.conv = nn.Conv(self.features, (3, 3), dtype=self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x.repeat(2, axis=1).repeat(2, axis=2))


class Level(nn.Module):
    """Resnets, then "down" or "up" sampling where `resample` says so."""

    in_features: int
    features: int
    num_layers: int
    resample: str | None
    num_groups: int
    dtype: Dtype = jnp.float32

    def setup(self):
        inputs = [self.in_features] + [self.features] * (self.num_layers - 1)
        self.resnets = [ResnetBlock(width, self.features, self.num_groups, self.dtype) for width in inputs]
        self.downsamplers = [Downsample(self.features, self.dtype)] if self.resample == "down" else []
        self.upsamplers = [Upsample(self.features, self.dtype)] if self.resample == "up" else []

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


def _levels(widths: Sequence[int], num_layers: int, resample: str, num_groups: int, dtype: Dtype) -> list[Level]:
    """A level a width, in the order in which they are run; all but the last resample."""
    steps = [resample] * (len(widths) - 1) + [None]
    inputs = [widths[0], *widths[:-1]]
    return [Level(a, b, num_layers, step, num_groups, dtype) for a, b, step in zip(inputs, widths, steps, strict=True)]


class Encoder(nn.Module):
    """Frames [N, H, W, 3] -> [N, H/f, W/f, features]."""

    features: int
    widths: Sequence[int]
    layers_per_block: int
    num_groups: int
    dtype: Dtype = jnp.float32

    def setup(self):
        self.conv_in = nn.Conv(self.widths[0], (3, 3), dtype=self.dtype)
        self.down_blocks = _levels(self.widths, self.layers_per_block, "down", self.num_groups, self.dtype)
        self.mid_block = MiddleBlock(self.widths[-1], self.num_groups, self.dtype)
        self.conv_norm_out = NormSiLU(self.num_groups, self.dtype)
        self.conv_out = nn.Conv(self.features, (3, 3), dtype=self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(self.conv_norm_out(self.mid_block(x)))


class Decoder(nn.Module):
    """Latents [N, h, w, C] -> frames [N, h f, w f, 3]: `middle`, the up blocks (one resnet more a level), `finish`."""

    widths: Sequence[int]
    layers_per_block: int
    num_groups: int
    dtype: Dtype = jnp.float32

    def setup(self):
        self.conv_in = nn.Conv(self.widths[-1], (3, 3), dtype=self.dtype)
        self.mid_block = MiddleBlock(self.widths[-1], self.num_groups, self.dtype)
        self.up_blocks = _levels(self.widths[::-1], self.layers_per_block + 1, "up", self.num_groups, self.dtype)
        self.conv_norm_out = NormSiLU(self.num_groups, self.dtype)
        self.conv_out = nn.Conv(3, (3, 3), dtype=self.dtype)

    def middle(self, z: jax.Array) -> jax.Array:
        return self.mid_block(self.conv_in(z))

    def finish(self, x: jax.Array, moments: Moments | None = None) -> jax.Array:
        return self.conv_out(self.conv_norm_out(x, moments)).astype(jnp.float32)

    def __call__(self, z: jax.Array) -> jax.Array:
        x = self.middle(z)
        for block in self.up_blocks:
            x = block(x)
        return self.finish(x)


class AutoencoderKL(nn.Module):
    """Stable Diffusion's autoencoder; the defaults are version 1.5's, 83,653,863 parameters.

    Attributes:
      block_out_channels: width of each level; every level but the last halves the size.
      layers_per_block: resnets a level in the encoder; the decoder has one more.
      latent_channels: channels of the latents, C below.
      norm_num_groups: groups of every norm.
      scale: latents = scale * encoding, so that they have about unit variance; nothing in here applies it.
      dtype: compute dtype; parameters, norms and softmax stay float32.
    """

    block_out_channels: Sequence[int] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    scale: float = 0.18215
    dtype: Dtype = jnp.float32

    temporal_factor: ClassVar[int] = 1

    @property
    def spatial_factor(self) -> int:
        """Pixels a side of a latent cell, f below."""
        return 2 ** (len(self.block_out_channels) - 1)

    def setup(self):
        blocks = (tuple(self.block_out_channels), self.layers_per_block, self.norm_num_groups, self.dtype)
        self.encoder = Encoder(2 * self.latent_channels, *blocks)
        self.decoder = Decoder(*blocks)
        self.quant_conv = nn.Dense(2 * self.latent_channels, dtype=self.dtype)
        self.post_quant_conv = nn.Dense(self.latent_channels, dtype=self.dtype)

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x: [N, H, W, 3] in [-1, 1] -> (mean, logvar) of the encoding, float32 [N, H/f, W/f, C]; logvar in [-30, 20].

        Raises ValueError where H or W is no multiple of f.
        """
        if x.shape[1] % self.spatial_factor or x.shape[2] % self.spatial_factor:
            raise ValueError(f"frames of {x.shape[1:3]} pixels: multiples of {self.spatial_factor} are accepted")
        mean, logvar = jnp.split(self.quant_conv(self.encoder(x)).astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, z: jax.Array) -> jax.Array:
        """z: encoding [N, h, w, C] -> frames float32 [N, h f, w f, 3], about [-1, 1], not clipped."""
        return self.decoder(self.post_quant_conv(z))

    def decode_middle(self, z: jax.Array) -> jax.Array:
        """The part of `decode` that is global in space: z [N, h, w, C] -> what the first up block takes."""
        return self.decoder.middle(self.post_quant_conv(z))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.decode(self.encode(x)[0])


def decode_by_rows(codec: AutoencoderKL, variables: Variables, z: jax.Array, rows: int) -> np.ndarray:
    """`decode` for frames that do not fit the device: z [N, h, w, C] -> [N, h f, w f, 3], equal up to rounding.

    The middle block sees the frame whole. From there on every convolution runs on bands of `rows` rows of latent cells
    (2 rows, 4 rows, ... on the finer levels) with the one row above and below that it reaches; a band leaves its rows'
    moments too, so that the next norm knows the whole frame's. A band computes two rows more than it keeps (the last
    one as many as make it as large as the others); nothing else is computed twice.
    The device holds the middle block's activations, at the latents' size, and one band's. The host holds the rest: up
    to 2 KB a pixel in float32 for Stable Diffusion's, every activation of which goes to the device once or twice.
    """
    decoder = codec.bind(variables).decoder
    x, *moments = jax.device_get(_run(codec, "decode_middle", variables, [z], {}))
    for level, block in enumerate(decoder.up_blocks):
        run = partial(_run_by_rows, rows=rows * 2**level)
        for resnet in block.resnets:
            hidden, *hidden_moments = run(resnet, "first", [x], moments=moments)
            x, *moments = run(resnet, "second", [hidden, x], moments=hidden_moments)
        for upsampler in block.upsamplers:
            x, *moments = run(upsampler, "__call__", [x])
    return run(decoder, "finish", [x], moments=moments)[0]


@partial(jax.jit, static_argnums=(0, 1))
def _run(module: nn.Module, method: str, variables: Variables, arrays: list, whole: dict) -> tuple[jax.Array, ...]:
    """A method's output and its moments."""
    out = module.apply(variables, *arrays, **whole, method=method)
    return out, *row_moments(out)


def _run_by_rows(layer: nn.Module, method: str, arrays: list[np.ndarray], *, rows: int, **whole) -> list[np.ndarray]:
    """What `_run` gives for a bound layer, on the host; arrays [N, H, W, C] enter by bands, `whole` as it is.

    A band's outermost rows lack their neighbours and are cut off, so a method may reach one row up and down.
    """
    module, variables = layer.unbind()
    height = arrays[0].shape[1]
    # All bands are of one size, for one program: the last one reaches further up instead of being shorter.
    size = min(height, rows + 2)
    results = []
    for first in range(0, height, rows):
        last, start = min(first + rows, height), min(max(first - 1, 0), height - size)
        band = jax.device_get(_run(module, method, variables, [x[:, start : start + size] for x in arrays], whole))
        factor = band[0].shape[1] // size
        results = results or [np.empty((len(x), factor * height, *x.shape[2:]), x.dtype) for x in band]
        for result, part in zip(results, band, strict=True):
            result[:, factor * first : factor * last] = part[:, factor * (first - start) : factor * (last - start)]
    return results
