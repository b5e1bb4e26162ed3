"""SPyNet: optical flow refined over a pyramid, a small network a level.

Source: Optical Flow Estimation using a Spatial Pyramid Network (Ranjan and Black, CVPR 2017).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from m3ddm_jax.flow.warping import warp
from m3ddm_jax.models.resampling import resize_bilinear

_LEVELS = 6
_MULTIPLE = 2 ** (_LEVELS - 1)
# Mean and deviation of ImageNet's colours.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class _Conv(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Conv(self.features, (7, 7), name="conv")(x)


class _Level(nn.Module):
    """What a level adds to the flow: [N, H, W, 8] of both images and the flow -> [N, H, W, 2]."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for layer, factor in enumerate((2, 4, 2, 1)):
            x = nn.relu(_Conv(factor * self.width, name=f"basic_module_{layer}")(x))
        return _Conv(2, name="basic_module_4")(x)


class SPyNet(nn.Module):
    """Flow from one image to another, in float32: images [N, H, W, 3] in [0, 1], any size -> [N, H, W, 2].

    Flow is (dx, dy) in pixels: where each pixel of `reference` lies in `other`. Source: as in the module's head.

    Attributes:
      width: of the narrowest hidden layer of a level; published: 16.
    """

    width: int = 16

    @nn.compact
    def __call__(self, reference: jax.Array, other: jax.Array) -> jax.Array:
        _, height, width, _ = reference.shape
        rows, columns = (-(-side // _MULTIPLE) * _MULTIPLE for side in (height, width))
        pyramid = []
        for images in (reference, other):
            images = resize_bilinear(images.astype(jnp.float32), rows, columns, align_corners=False)
            pyramid.append(_halved((images - jnp.array(_MEAN)) / jnp.array(_DEVIATION)))
        flow = jnp.zeros((reference.shape[0], rows // _MULTIPLE, columns // _MULTIPLE, 2))
        for level, (first, second) in enumerate(zip(*pyramid, strict=True)):
            if level > 0:
                flow = 2 * resize_bilinear(flow, *first.shape[1:3], align_corners=True)
            both = jnp.concatenate([first, warp(second, flow, border=True), flow], axis=-1)
            flow = flow + _Level(self.width, name=f"basic_module_{level}")(both)
        flow = resize_bilinear(flow, height, width, align_corners=False)
        return flow * jnp.array([width / columns, height / rows])


def _halved(images: jax.Array) -> list[jax.Array]:
    """The images at every level's size, the smallest first."""
    pyramid = [images]
    for _ in range(_LEVELS - 1):
        pyramid.append(nn.avg_pool(pyramid[-1], (2, 2), (2, 2)))
    return pyramid[::-1]
