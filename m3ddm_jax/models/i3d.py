"""Inception I3D, the network behind the Frechet video distance.

Source: Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset (Carreira and Zisserman, CVPR 2017); modules
are named as its TensorFlow variables are. Windows are padded as TensorFlow's SAME: the odd one comes after.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from m3ddm_jax.models.layers import Dtype

MIN_FRAMES = 9
"""Fewer leave less than the two frames that the last pool takes."""
_MIN_SIDE = 193
_LAST_POOL = (2, 7, 7)


def _taps(x: jax.Array, axis: int, size: int, stride: int, fill: float) -> list[jax.Array]:
    """What each tap of a SAME-padded window sees along one axis: `size` arrays, shifted against each other."""
    length = -(-x.shape[axis] // stride)
    reach = (length - 1) * stride + 1
    total = max(reach - 1 + size - x.shape[axis], 0)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (total // 2, total - total // 2)
    x = jnp.pad(x, padding, constant_values=fill)
    return [jax.lax.slice_in_dim(x, tap, tap + reach, stride, axis) for tap in range(size)]


def max_pool(x: jax.Array, window: Sequence[int], strides: Sequence[int]) -> jax.Array:
    """SAME max pooling over (T, H, W) of [N, T, H, W, C].

    One axis after the other, as maxima of shifted arrays: several times faster on CPU than XLA's window reduction.
    """
    for axis, (size, stride) in enumerate(zip(window, strides, strict=True), start=1):
        x = functools.reduce(jnp.maximum, _taps(x, axis, size, stride, -jnp.inf))
    return x


class Conv3D(nn.Module):
    """SAME convolution with a cubic kernel: [N, T, H, W, C] -> [N, T/stride, H/stride, W/stride, features].

    The kernel's temporal taps become channels of one 2-D convolution: on CPU that is up to five times faster than XLA's
    3-D one, which has no quick way for strides and few channels.
    """

    features: int
    kernel_size: int
    stride: int
    use_bias: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, stride = self.kernel_size, self.stride
        kernel = self.param("kernel", nn.initializers.he_normal(), (size, size, size, x.shape[-1], self.features))
        taps = jnp.concatenate(_taps(x.astype(self.dtype), 1, size, stride, 0.0), axis=-1)
        kernel = rearrange(kernel.astype(self.dtype), "t h w i o -> h w (t i) o")
        if size == 1:
            out = jnp.einsum("nthwi,io->nthwo", taps, kernel[0, 0])
        else:
            out = jax.lax.conv_general_dilated(
                rearrange(taps, "n t h w c -> (n t) h w c"),
                kernel,
                window_strides=(stride, stride),
                padding="SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            out = rearrange(out, "(n t) h w c -> n t h w c", n=len(x))
        if self.use_bias:
            out += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return out


class Unit3D(nn.Module):
    """Convolution, BatchNorm by its running statistics in float32, ReLU; or, without bn_epsilon, one with bias alone.

    Shapes as Conv3D.
    """

    features: int
    kernel_size: int
    stride: int
    bn_epsilon: float | None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        plain = self.bn_epsilon is None
        x = Conv3D(self.features, self.kernel_size, self.stride, use_bias=plain, dtype=self.dtype, name="conv")(x)
        if plain:
            return x
        norm = nn.BatchNorm(use_running_average=True, epsilon=self.bn_epsilon, dtype=jnp.float32, name="bn")
        return nn.relu(norm(x)).astype(self.dtype)


class Branch(nn.Module):
    """Units of stride 1, one after the other; units: (name, features, kernel size) of each."""

    units: Sequence[tuple[str, int, int]]
    bn_epsilon: float | None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for name, features, size in self.units:
            x = Unit3D(features, size, 1, self.bn_epsilon, self.dtype, name=name)(x)
        return x


class Mixed(nn.Module):
    """Inception block: four branches on [N, T, H, W, C], concatenated.

    widths: of the 1x1x1 branch; of a 1x1x1 and a 3x3x3 in each of the next two; of the 1x1x1 behind a pool.
    """

    widths: Sequence[int]
    bn_epsilon: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        w = self.widths
        pooled = max_pool(x, (3, 3, 3), (1, 1, 1))
        branches = [
            (x, [("Conv3d_0a_1x1", w[0], 1)]),
            (x, [("Conv3d_0a_1x1", w[1], 1), ("Conv3d_0b_3x3", w[2], 3)]),
            (x, [("Conv3d_0a_1x1", w[3], 1), ("Conv3d_0b_3x3", w[4], 3)]),
            (pooled, [("Conv3d_0b_1x1", w[5], 1)]),
        ]
        outputs = [
            Branch(units, self.bn_epsilon, self.dtype, name=f"Branch_{i}")(source)
            for i, (source, units) in enumerate(branches)
        ]
        return jnp.concatenate(outputs, axis=-1)


# Layer by layer: a unit's features, kernel size and stride; a pool's window and strides; a block's widths.
_TRUNK = {
    "Conv3d_1a_7x7": (Unit3D, 64, 7, 2),
    "MaxPool3d_2a_3x3": (max_pool, (1, 3, 3), (1, 2, 2)),
    "Conv3d_2b_1x1": (Unit3D, 64, 1, 1),
    "Conv3d_2c_3x3": (Unit3D, 192, 3, 1),
    "MaxPool3d_3a_3x3": (max_pool, (1, 3, 3), (1, 2, 2)),
    "Mixed_3b": (Mixed, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (Mixed, (128, 128, 192, 32, 96, 64)),
    "MaxPool3d_4a_3x3": (max_pool, (3, 3, 3), (2, 2, 2)),
    "Mixed_4b": (Mixed, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (Mixed, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (Mixed, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (Mixed, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (Mixed, (256, 160, 320, 32, 128, 128)),
    "MaxPool3d_5a_2x2": (max_pool, (2, 2, 2), (2, 2, 2)),
    "Mixed_5b": (Mixed, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (Mixed, (384, 192, 384, 48, 128, 128)),
}


class I3D(nn.Module):
    """Video [N, T, 224, 224, 3] in [-1, 1] -> logits float32 [N, num_classes], averaged over time.

    Attributes:
      num_classes: of the data set it was trained on; 400 for Kinetics-400, whose logits are the features of FVD.
      bn_epsilon: 1e-3 as in the original; 1e-5 in the code of VideoGPT, TATS and MOTIA, which moves their numbers.
      dtype: compute dtype; norms and the mean are float32. FVD wants float32 and matmul precision "highest".
    """

    num_classes: int = 400
    bn_epsilon: float = 1e-3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, video: jax.Array, end_points: bool = False) -> jax.Array | dict[str, jax.Array]:
        """Logits; or, with `end_points`, what each layer up to Mixed_5c gives, by name, for video of any size.

        Raises ValueError for video that is too short or too small for the last pool; larger video gives the mean over
        places, too.
        """
        if not end_points and (video.shape[1] < MIN_FRAMES or min(video.shape[2:4]) < _MIN_SIDE):
            raise ValueError(
                f"video of {video.shape[1]} frames of {video.shape[3]}x{video.shape[2]} pixels: I3D accepts "
                f"{MIN_FRAMES} frames or more, of {_MIN_SIDE}x{_MIN_SIDE} pixels or more"
            )
        x = video.astype(self.dtype)
        points = {}
        for name, (layer, *args) in _TRUNK.items():
            x = layer(x, *args) if layer is max_pool else layer(*args, self.bn_epsilon, self.dtype, name=name)(x)
            points[name] = x
        if end_points:
            return points
        x = nn.avg_pool(x, _LAST_POOL)
        classifier = [("Conv3d_0c_1x1", self.num_classes, 1)]
        logits = Branch(classifier, bn_epsilon=None, dtype=self.dtype, name="Logits")(x)
        return logits.astype(jnp.float32).mean(axis=(1, 2, 3))
