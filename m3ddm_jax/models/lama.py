"""LaMa: image inpainting whose blocks see the whole picture through its Fourier transform.

Source: Resolution-robust Large Mask Inpainting with Fourier Convolutions (Suvorov et al., WACV 2022).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.typing import Dtype

from m3ddm_jax.models.image_completion import check_picture, padded_to

_LEAST = 2  # pixels of a side in the blocks, which reflect one
_EPSILON = 1e-5  # of BatchNorm


def _reflected(x: jax.Array, reach: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")


def _activated(x: jax.Array, dtype: Dtype, name: str) -> jax.Array:
    return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=_EPSILON, dtype=dtype, name=name)(x))


class FourierUnit(nn.Module):
    """A dense layer on each frequency of [N, h, w, C]; same shape. The transforms are computed in float32."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, channels = x.shape[1:3], x.shape[-1]
        spectrum = jnp.fft.rfft2(x.astype(jnp.float32), axes=(1, 2), norm="ortho")
        parts = rearrange(jnp.stack([spectrum.real, spectrum.imag], -1), "n h w c p -> n h w (c p)")
        parts = nn.Dense(2 * channels, use_bias=False, dtype=self.dtype, name="conv_layer")(parts)
        parts = _activated(parts, self.dtype, "bn").astype(jnp.float32)
        spectrum = jax.lax.complex(parts[..., ::2], parts[..., 1::2])
        return jnp.fft.irfft2(spectrum, size, axes=(1, 2), norm="ortho").astype(self.dtype)


class SpectralTransform(nn.Module):
    """Features [N, h, w, C] -> the same shape, each of which depends on the whole picture."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        half = nn.Dense(x.shape[-1] // 2, use_bias=False, dtype=self.dtype, name="conv1_0")(x)
        half = _activated(half, self.dtype, "conv1_1")
        half = half + FourierUnit(self.dtype, name="fu")(half)
        return nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name="conv2")(half)


class _Convolutions(nn.Module):
    """Local and global features -> `near` local and `far` global ones, before normalisation."""

    near: int
    far: int
    size: int
    stride: int
    dtype: Dtype

    @nn.compact
    def __call__(self, near: jax.Array, far: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        def conv(x: jax.Array, features: int, name: str) -> jax.Array:
            taps, strides = (self.size, self.size), (self.stride, self.stride)
            layer = nn.Conv(features, taps, strides, "VALID", use_bias=False, dtype=self.dtype, name=name)
            return layer(_reflected(x, self.size // 2))

        to_near = conv(near, self.near, "convl2l")
        to_far = conv(near, self.far, "convl2g") if self.far else None
        if far is not None:
            to_near += conv(far, self.near, "convg2l")
            to_far += SpectralTransform(self.dtype, name="convg2g")(far)
        return to_near, to_far


class _Unit(nn.Module):
    """Convolutions, BatchNorm and ReLU of local and global features; no global ones are None."""

    near: int
    far: int = 0
    size: int = 3
    stride: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, near: jax.Array, far: jax.Array | None = None) -> tuple[jax.Array, jax.Array | None]:
        ffc = _Convolutions(self.near, self.far, self.size, self.stride, self.dtype, name="ffc")
        near, far = ffc(near, far)
        return _activated(near, self.dtype, "bn_l"), None if far is None else _activated(far, self.dtype, "bn_g")


class _Block(nn.Module):
    """Local and global features plus what two units make of them; same shapes."""

    dtype: Dtype

    @nn.compact
    def __call__(self, near: jax.Array, far: jax.Array) -> tuple[jax.Array, jax.Array]:
        made = near, far
        for name in ("conv1", "conv2"):
            made = _Unit(near.shape[-1], far.shape[-1], dtype=self.dtype, name=name)(*made)
        return near + made[0], far + made[1]


class LaMa(nn.Module):
    """The generator of LaMa with Fourier convolutions; big-lama has the defaults, lama-fourier 9 blocks.

    Attributes:
      width: channels at full size; twice as many after each downsampling, `most_channels` at most.
      global_channels: of the features in the blocks.
      dtype: of convolutions; the image that comes out is float32.
    """

    width: int = 64
    downsamplings: int = 3
    blocks: int = 18
    global_channels: int = 384
    most_channels: int = 1024
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, mask: jax.Array) -> jax.Array:
        """Images [N, H, W, 3] in 0..1, RGB, of any size -> float32 images of the same shape, the prediction everywhere.

        mask: [N, H, W, 1], 1 = unknown; what the image has there is not looked at. Sides that are no multiples of
        2 ** downsamplings are continued by symmetric reflection. Raises ValueError for other shapes.
        """
        check_picture("LaMa", image, mask)
        height, width = image.shape[1:3]
        multiple = 2**self.downsamplings
        hole = mask > 0
        x = jnp.concatenate([jnp.where(hole, 0, image), hole], -1).astype(self.dtype)
        near, far = padded_to(x, multiple, _LEAST * multiple), None

        near, far = _Unit(self.width, size=7, dtype=self.dtype, name="model_1")(near)
        for level in range(1, self.downsamplings + 1):
            to_far = self.global_channels if level == self.downsamplings else 0
            to_near = self._channels(level) - to_far
            near, far = _Unit(to_near, to_far, stride=2, dtype=self.dtype, name=f"model_{level + 1}")(near)
        place = self.downsamplings + 2  # in the published Sequential, whose parts without weights count
        for index in range(self.blocks):
            near, far = _Block(self.dtype, name=f"model_{place + index}")(near, far)

        x, place = jnp.concatenate([near, far], -1), place + self.blocks + 1
        for level in reversed(range(self.downsamplings)):
            options = {"transpose_kernel": True, "dtype": self.dtype, "name": f"model_{place}"}
            x = nn.ConvTranspose(self._channels(level), (3, 3), (2, 2), ((1, 2), (1, 2)), **options)(x)
            x, place = _activated(x, self.dtype, f"model_{place + 1}"), place + 3
        x = nn.Conv(3, (7, 7), padding="VALID", dtype=self.dtype, name=f"model_{place + 1}")(_reflected(x, 3))
        return nn.sigmoid(x.astype(jnp.float32))[:, :height, :width]

    def _channels(self, level: int) -> int:
        return min(self.most_channels, self.width * 2**level)
