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


def _batch_norm(dtype: Dtype, name: str | None = None) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=True, epsilon=_EPSILON, dtype=dtype, name=name)


def _activated(x: jax.Array, dtype: Dtype, name: str) -> jax.Array:
    return nn.relu(_batch_norm(dtype, name)(x))


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

    def setup(self):
        # Names count the places of the published Sequential, parts without weights among them.
        def add(place: int, part: nn.Module) -> str:
            setattr(self, f"model_{place}", part)
            return f"model_{place}"

        down = range(1, self.downsamplings + 1)
        front = [add(1, _Unit(self.width, size=7, dtype=self.dtype))]
        for level in down:
            far = self.global_channels if level == self.downsamplings else 0
            front.append(add(level + 1, _Unit(self._channels(level) - far, far, stride=2, dtype=self.dtype)))
        self._front, place = tuple(front), self.downsamplings + 2
        self._blocks = tuple(add(place + index, _Block(self.dtype)) for index in range(self.blocks))
        place += self.blocks + 1
        up = []
        for level in reversed(range(self.downsamplings)):
            options = {"transpose_kernel": True, "dtype": self.dtype}
            conv = nn.ConvTranspose(self._channels(level), (3, 3), (2, 2), ((1, 2), (1, 2)), **options)
            up.append((add(place, conv), add(place + 1, _batch_norm(self.dtype))))
            place += 3
        self._up = tuple(up)
        self._last = add(place + 1, nn.Conv(3, (7, 7), padding="VALID", dtype=self.dtype))

    def __call__(self, image: jax.Array, mask: jax.Array) -> jax.Array:
        """Images [N, H, W, 3] in 0..1, RGB, of any size -> float32 images of the same shape, the prediction everywhere.

        mask: [N, H, W, 1], 1 = unknown; what the image has there is not looked at. Sides that are no multiples of
        2 ** downsamplings are continued by symmetric reflection. Raises ValueError for other shapes.
        """
        return self.decode(*self.encode(image, mask))[:, : image.shape[1], : image.shape[2]]

    def encode(self, image: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Local and global features before the blocks, of arguments as `__call__` takes them."""
        check_picture("LaMa", image, mask)
        hole, multiple = mask > 0, 2**self.downsamplings
        x = jnp.concatenate([jnp.where(hole, 0, image), hole], -1).astype(self.dtype)
        near, far = padded_to(x, multiple, _LEAST * multiple), None
        for name in self._front:
            near, far = getattr(self, name)(near, far)
        return near, far

    def decode(self, near: jax.Array, far: jax.Array) -> jax.Array:
        """The prediction of features that `encode` returns, of the padded size."""
        for name in self._blocks:
            near, far = getattr(self, name)(near, far)
        x = jnp.concatenate([near, far], -1)
        for conv, norm in self._up:
            x = nn.relu(getattr(self, norm)(getattr(self, conv)(x)))
        return nn.sigmoid(getattr(self, self._last)(_reflected(x, 3)).astype(jnp.float32))

    def _channels(self, level: int) -> int:
        return min(self.most_channels, self.width * 2**level)
