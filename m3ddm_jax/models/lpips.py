"""LPIPS v0.1, the learned perceptual distance of image pairs, on AlexNet or VGG-16.

Source: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., CVPR 2018) and its `lpips`
package. Convolutions are named by their place in torchvision's `features`, heads as in the package.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

# The package's constants: what [-1, 1] is shifted and divided by, and what keeps a unit vector finite.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class _Conv(NamedTuple):
    """A convolution and its ReLU; `index` is its place in torchvision's `features`."""

    index: int
    features: int
    size: int = 3
    stride: int = 1
    padding: int = 1


class _Stage(NamedTuple):
    """A max-pool of stride 2 (window 0: none), then convolutions; features are compared after the last of them."""

    pool: int
    convs: tuple[_Conv, ...]


class _Backbone(NamedTuple):
    smallest_side: int  # that leaves every pool something to see
    stages: tuple[_Stage, ...]


def _vgg_stage(features: int, *indices: int) -> _Stage:
    return _Stage(2 if indices[0] else 0, tuple(_Conv(index, features) for index in indices))


_BACKBONES = {
    "alex": _Backbone(
        31,
        (
            _Stage(0, (_Conv(0, 64, size=11, stride=4, padding=2),)),
            _Stage(3, (_Conv(3, 192, size=5, padding=2),)),
            _Stage(3, (_Conv(6, 384),)),
            _Stage(0, (_Conv(8, 256),)),
            _Stage(0, (_Conv(10, 256),)),
        ),
    ),
    "vgg": _Backbone(
        16,
        (
            _vgg_stage(64, 0, 2),
            _vgg_stage(128, 5, 7),
            _vgg_stage(256, 10, 12, 14),
            _vgg_stage(512, 17, 19, 21),
            _vgg_stage(512, 24, 26, 28),
        ),
    ),
}


class LPIPS(nn.Module):
    """Perceptual distance: squared differences of unit feature vectors at five depths, weighted by learned heads.

    Everything is float32; on accelerators run it under `jax.default_matmul_precision("highest")` where the number is
    reported. As a loss it has finite gradients everywhere, identical and black images included.

    Attributes:
      net: "alex" or "vgg" (VGG-16).
    """

    net: str = "alex"

    @property
    def smallest_side(self) -> int:
        """Pixels that images must have on a side. Raises ValueError for an unknown net."""
        if self.net not in _BACKBONES:
            raise ValueError(f"LPIPS net {self.net!r} is unknown: one of {', '.join(_BACKBONES)} is accepted")
        return _BACKBONES[self.net].smallest_side

    @nn.compact
    def layer_distances(self, a: jax.Array, b: jax.Array) -> list[jax.Array]:
        """Distance at each cell of each of the five depths.

        a, b: RGB [N, H, W, 3] in [-1, 1], H and W at least 31 (alex) or 16 (vgg) -> five maps float32 [N, h, w].
        Raises ValueError for another net, other shapes and smaller images.
        """
        smallest_side = self.smallest_side
        stages = _BACKBONES[self.net].stages
        if a.shape != b.shape or a.ndim != 4 or a.shape[-1] != 3:
            raise ValueError(f"LPIPS compares two [N, H, W, 3] of one shape, not {list(a.shape)} and {list(b.shape)}")
        if min(a.shape[1:3]) < smallest_side:
            size = f"{a.shape[2]}x{a.shape[1]}"
            raise ValueError(f"LPIPS {self.net} needs {smallest_side} pixels or more a side, images are {size}")
        x = (jnp.concatenate([a, b]).astype(jnp.float32) - jnp.array(_SHIFT)) / jnp.array(_SCALE)
        distances = []
        for depth, (pool, convs) in enumerate(stages):
            if pool:
                x = nn.max_pool(x, (pool, pool), strides=(2, 2))
            for index, features, size, stride, padding in convs:
                conv = nn.Conv(features, (size, size), stride, padding, name=f"features_{index}")
                x = nn.relu(conv(x))
            unit_a, unit_b = jnp.split(_unit_vectors(x), 2)
            # Untrained heads weigh all channels alike, which is a distance already.
            head = nn.Dense(1, use_bias=False, kernel_init=nn.initializers.ones, name=f"lin{depth}")
            distances.append(head(jnp.square(unit_a - unit_b))[..., 0])
        return distances

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Distance of images [N, H, W, 3] in [-1, 1] -> float32 [N], 0 where identical; errors: `layer_distances`."""
        return mean_distance(self.layer_distances(a, b))

    def distance_map(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Distance around each pixel: [N, H, W, 3] in [-1, 1] -> float32 [N, H, W]; errors: `layer_distances`."""
        return upsampled_distance(self.layer_distances(a, b), *a.shape[1:3])


def mean_distance(layer_distances: Sequence[jax.Array]) -> jax.Array:
    """The published distance: the mean of each depth's map [N, h, w], summed over depths -> [N]."""
    return sum(distance.mean((1, 2)) for distance in layer_distances)


def upsampled_distance(layer_distances: Sequence[jax.Array], height: int, width: int) -> jax.Array:
    """Each depth's map [N, h, w] enlarged bilinearly (half-pixel centres) and summed over depths -> [N, height, width].

    Its mean differs from `mean_distance` in the fourth or fifth digit, since borders weigh more.
    """
    size = (len(layer_distances[0]), height, width)
    return sum(jax.image.resize(distance, size, "linear", antialias=False) for distance in layer_distances)


def _unit_vectors(x: jax.Array) -> jax.Array:
    """Vectors [..., C] divided by their length; zero stays zero, with a finite gradient."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    is_zero = squared == 0
    # The root's gradient at zero is infinite, and times 0 it is nan: zeros must not even enter it.
    length = jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squared)))
    return x / (length + _EPSILON)
