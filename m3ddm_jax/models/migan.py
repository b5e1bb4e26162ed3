"""MI-GAN: a small image inpainting network of depthwise separable convolutions.

Source: MI-GAN: A Simple Baseline for Image Inpainting on Mobile Devices (Sargsyan et al., ICCV 2023), the form for
inference.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from m3ddm_jax.models.image_completion import check_picture, padded_to

_COARSEST = 4  # pixels of a side at the lowest level, of an image of the network's own size
_BOUND = 256.0  # of features


def _activated(x: jax.Array) -> jax.Array:
    return jnp.clip(nn.leaky_relu(x, 0.2) * 2**0.5, -_BOUND, _BOUND)


def _halved(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H/2, W/2, C]: the filter 1 3 3 1, zeros outside."""
    for axis in (1, 2):
        rest = [(0, 0)] * x.ndim
        rest[axis] = (1, 1)
        taps = [jax.lax.slice_in_dim(jnp.pad(x, rest), i, i + x.shape[axis] - 1, 2, axis) for i in range(4)]
        x = (taps[0] + 3 * (taps[1] + taps[2]) + taps[3]) / 8
    return x


def _doubled(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, 2H, 2W, C]: bilinear, zeros outside."""
    for axis in (1, 2):
        rest = [(0, 0)] * x.ndim
        rest[axis] = (1, 1)
        wide, length = jnp.pad(x, rest), x.shape[axis]
        before, after = (jax.lax.slice_in_dim(wide, i, i + length, 1, axis) for i in (0, 2))
        pair = jnp.stack([(before + 3 * x) / 4, (3 * x + after) / 4], axis + 1)
        x = pair.reshape(*x.shape[:axis], 2 * length, *x.shape[axis + 1 :])
    return x


class _Depthwise(nn.Module):
    """A 3x3 filter a channel, as nine products: a grouped convolution takes 10 to 19 times as long on XLA's CPU."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        height, width, channels = x.shape[1:]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 1, channels)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,)).astype(self.dtype)
        wide = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = (kernel[i, j, 0] * wide[:, i : i + height, j : j + width] for i in range(3) for j in range(3))
        return sum(taps, bias)


class _Separable(nn.Module):
    """Depthwise and pointwise convolution, each activated, between or after which the sides change.

    noise: side of the fixed noise that is added; 0 adds none.
    """

    features: int
    noise: int = 0
    half: bool = False
    double: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _activated(_Depthwise(self.dtype, name="conv1")(x))
        if self.half:
            x = _halved(x)
        x = nn.Dense(self.features, use_bias=False, dtype=self.dtype, name="conv2")(x)
        if self.double:
            x = _doubled(x)
        if self.noise:
            noise = self.param("noise", nn.initializers.zeros, (self.noise, self.noise))
            repeats = [-(-side // self.noise) for side in x.shape[1:3]]
            x += jnp.tile(noise, repeats)[: x.shape[1], : x.shape[2], None].astype(self.dtype)
        return _activated(x)


class _EncoderLevel(nn.Module):
    """Features -> those that the synthesis of this level adds, and those of the next level."""

    features: int
    following: int | None
    first: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.first:
            x = _activated(nn.Dense(self.features, dtype=self.dtype, name="fromrgb")(x))
        kept = _Separable(self.features, dtype=self.dtype, name="conv1")(x)
        following = self.following or self.features
        half = self.following is not None
        return kept, _Separable(following, half=half, dtype=self.dtype, name="conv2")(kept)


class _SynthesisLevel(nn.Module):
    """Features of the level below and those that its encoder kept -> features, and what they add to the image."""

    features: int
    noise: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
        double = self.noise > 0
        x = _Separable(self.features, self.noise, double=double, dtype=self.dtype, name="conv1")(x)
        x = _Separable(self.features, self.noise, dtype=self.dtype, name="conv2")(x + kept)
        return x, nn.Dense(3, dtype=self.dtype, name="torgb")(x)


class _Encoder(nn.Module):
    """Input [N, H, W, 4] -> features of the lowest level, and those that each level keeps.

    widths: channels by side of the level, largest side first.
    """

    widths: tuple[tuple[int, int], ...]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        kept = []
        for place, (side, features) in enumerate(self.widths):
            following = self.widths[place + 1][1] if side > _COARSEST else None
            level = _EncoderLevel(features, following, place == 0, self.dtype, name=f"b{side}")
            stays, x = level(x)
            kept.append(stays)
        return x, kept


class _Synthesis(nn.Module):
    """Features of the lowest level, and those that each level kept -> image [N, H, W, 3]; widths as `_Encoder`."""

    widths: tuple[tuple[int, int], ...]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, kept: list[jax.Array]) -> jax.Array:
        image = None
        for (side, features), stays in zip(reversed(self.widths), reversed(kept), strict=True):
            noise = side if side > _COARSEST else 0
            x, added = _SynthesisLevel(features, noise, self.dtype, name=f"b{side}")(x, stays)
            image = (_doubled(image) if noise else 0) + added.astype(jnp.float32)
        return image


class MIGAN(nn.Module):
    """The generator of MI-GAN; the published ones have the defaults, or resolution 256.

    Attributes:
      resolution: side of the square images that it was trained on, a power of 2.
      width: channels at full size; twice as many at each level below, `most_channels` at most.
      dtype: of convolutions; the image that comes out is float32.
    """

    resolution: int = 512
    width: int = 64
    most_channels: int = 512
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, mask: jax.Array) -> jax.Array:
        """Images [N, H, W, 3] in -1..1, RGB, of any size -> float32 images of the same shape, not clipped.

        Only what is unknown is meaningful in them. Sides that are no multiples of resolution / 4 are continued by
        symmetric reflection; the fixed noise is repeated (of this project: the published network is for one size).

        mask: [N, H, W, 1], 1 = unknown; what the image has there is not looked at. Raises ValueError for other shapes.
        """
        check_picture("MI-GAN", image, mask)
        if self.resolution < 2 * _COARSEST or self.resolution & (self.resolution - 1):
            raise ValueError(f"resolution is {self.resolution}: a power of 2 from {2 * _COARSEST} is accepted")
        height, width = image.shape[1:3]
        multiple = self.resolution // _COARSEST
        hole = mask > 0
        x = jnp.concatenate([0.5 - hole, jnp.where(hole, 0, image)], -1).astype(self.dtype)
        sides = [self.resolution >> level for level in range(multiple.bit_length())]
        widths = tuple((side, min(self.width * self.resolution // side, self.most_channels)) for side in sides)
        features, kept = _Encoder(widths, self.dtype, name="encoder")(padded_to(x, multiple, multiple))
        return _Synthesis(widths, self.dtype, name="synthesis")(features, kept)[:, :height, :width]
