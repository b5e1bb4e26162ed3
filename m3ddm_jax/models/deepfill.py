"""DeepFill v1: image inpainting, coarse first, then refined with what similar patches around the hole look like.

Source: Generative Image Inpainting with Contextual Attention (Yu et al., CVPR 2018).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce

from m3ddm_jax.models.image_completion import check_picture

_MULTIPLE = 8
_SHORTEST = 1e-4  # length that a patch is divided by
_SHARPNESS = 10.0  # of the attention's softmax

# Of each convolution of a stack: its place there, the multiple of the network's width that it has, and its stride or
# dilation. Places in between are those of parts without weights.
_DOWN = ((0, 1, 1), (1, 2, 2), (2, 2, 1), (3, 4, 2), (4, 4, 1), (5, 4, 1))
_DOWN_CONV = ((0, 1, 1), (1, 1, 2), (2, 2, 1), (3, 2, 2), (4, 4, 1), (5, 4, 1))
_DOWN_ATTENTION = ((0, 1, 1), (1, 1, 2), (2, 2, 1), (3, 4, 2), (4, 4, 1), (5, 4, 1))
_DILATIONS = (2, 4, 8, 16)
_UP_STAGES = (((0, 4), (1, 4)), ((3, 2), (4, 2)), ((6, 1), (7, 0.5)))


def _conv(features: int, name: str, size: int = 3, stride: int = 1, dilation: int = 1) -> nn.Conv:
    """Convolution with zero padding; a strided one sees the pixel itself and those to the right and below."""
    reach = dilation * (size // 2)
    padding = (reach, reach) if stride == 1 else (0, 1)
    return nn.Conv(features, (size, size), stride, (padding, padding), kernel_dilation=dilation, name=name)


class _Down(nn.Module):
    """Images [N, H, W, 5] -> features [N, H/4, W/4, 4 * width]; last: the last activation."""

    width: int
    layers: Sequence[tuple[int, int, int]]
    last: Callable[[jax.Array], jax.Array] = nn.elu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for place, factor, stride in self.layers:
            size = 5 if place == 0 else 3
            # In the files, a strided convolution comes after the padding, the others come first.
            name = f"out_{place}_conv_{stride - 1}"
            x = _conv(factor * self.width, name, size=size, stride=stride)(x)
            x = self.last(x) if place == self.layers[-1][0] else nn.elu(x)
        return x


class _Atrous(nn.Module):
    """Features [N, h, w, C] seen from farther and farther away; same shape."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for place, dilation in enumerate(_DILATIONS):
            x = nn.elu(_conv(x.shape[-1], f"out_{place}_conv_0", dilation=dilation)(x))
        return x


class _Up(nn.Module):
    """Features [N, h, w, C] -> images [N, 4h, 4w, 3] in [-1, 1]."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for stage, layers in enumerate(_UP_STAGES):
            if stage > 0:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
            for place, factor in layers:
                x = nn.elu(_conv(int(factor * self.width), f"out_{place}_conv_0")(x))
        return jnp.clip(_conv(3, "out_8_conv_0")(x), -1, 1)


class _Coarse(nn.Module):
    """A first guess: image and mask -> image [N, H, W, 3]."""

    width: int

    @nn.compact
    def __call__(self, image: jax.Array, mask: jax.Array) -> jax.Array:
        x = _Down(self.width, _DOWN, name="down")(_with_mask(image, mask))
        return _Up(self.width, name="up")(_Atrous(name="atrous")(x))


class _Refinement(nn.Module):
    """A second one, of the image with the first one pasted: image and mask -> image [N, H, W, 3]."""

    width: int

    @nn.compact
    def __call__(self, image: jax.Array, mask: jax.Array) -> jax.Array:
        x = _with_mask(image, mask)
        near = _Atrous(name="atrous")(_Down(self.width, _DOWN_CONV, name="down_conv_branch")(x))
        far = _Down(self.width, _DOWN_ATTENTION, nn.relu, name="down_attn_branch")(x)
        far = ContextualAttention(name="CAttn")(far, mask[:, ::_MULTIPLE, ::_MULTIPLE])
        return _Up(self.width, name="up")(jnp.concatenate([near, far], axis=-1))


def _with_mask(image: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.concatenate([image, jnp.ones_like(mask), mask], axis=-1)


class ContextualAttention(nn.Module):
    """Features rebuilt from patches of themselves that lie outside of the hole, the more alike the more of each.

    features: [N, h, w, C], even sides; mask: [N, h/2, w/2, 1], 1 = hole. Returns [N, h, w, C].
    """

    @nn.compact
    def __call__(self, features: jax.Array, mask: jax.Array) -> jax.Array:
        x = jax.vmap(_rebuilt)(features, mask)
        for place in range(2):
            x = nn.elu(_conv(x.shape[-1], f"out_{place}_conv_0")(x))
        return x


def _rebuilt(features: jax.Array, mask: jax.Array) -> jax.Array:
    """The attention on one image, without weights: [h, w, C], [h/2, w/2, 1] -> [h, w, C]."""
    height, width = (side // 2 for side in features.shape[:2])
    # The published code samples every second pixel at positions that rounding may move by one.
    half = features[_half_positions(height)][:, _half_positions(width)]
    seen = rearrange(_patches(half, 3, 1), "i j p q c -> (i j) (p q c)")
    length = jnp.linalg.norm(seen, axis=-1, keepdims=True)
    similarity = jnp.matmul(seen, (seen / jnp.maximum(length, _SHORTEST)).T, precision="highest")
    similarity = _agreeing_with_neighbours(similarity, height, width)

    known = reduce(_patches(mask, 3, 1), "i j p q 1 -> (i j)", "max") == 0
    attention = jax.nn.softmax(_SHARPNESS * jnp.where(known, similarity, 0), axis=-1)
    attention = jnp.where(known, attention, 0)
    pasted = jnp.einsum("pn,nabc->pabc", attention, rearrange(_patches(features, 4, 2), "i j a b c -> (i j) a b c"))
    return _overlapping_sum(rearrange(pasted, "(i j) a b c -> i j a b c", i=height)) / 4


def _half_positions(count: int) -> np.ndarray:
    """Which pixels of 2 * count are taken: 2i, or one before where float32 says so."""
    grid = np.float32(2) * np.arange(count, dtype=np.float32) / np.float32(count) - np.float32(1)
    positions = ((grid + np.float32(1)) * np.float32(2 * count) - np.float32(1)) / np.float32(2)
    return np.maximum(np.rint(positions).astype(np.int32), 0)


def _patches(image: jax.Array, size: int, stride: int) -> jax.Array:
    """Patches of an image [H, W, C] with a border of one zero -> [H/stride, W/stride, size, size, C]."""
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    rows, columns = (stride * np.arange(side // stride)[:, None] + np.arange(size) for side in image.shape[:2])
    return rearrange(padded[rows][:, :, columns], "i p j q c -> i j p q c")


def _overlapping_sum(patches: jax.Array) -> jax.Array:
    """The inverse way of `_patches`: [h, w, 4, 4, C], two pixels apart -> [2h, 2w, C], sums where they overlap."""
    quarters = rearrange(patches, "i j (a p) (b q) c -> a b i j p q c", a=2, b=2)
    total = sum(
        jnp.pad(quarters[a, b], ((a, 1 - a), (b, 1 - b), (0, 0), (0, 0), (0, 0))) for a in range(2) for b in range(2)
    )
    return rearrange(total, "i j p q c -> (i p) (j q) c")[1:-1, 1:-1]


def _agreeing_with_neighbours(similarity: jax.Array, height: int, width: int) -> jax.Array:
    """Similarity [places, patches] plus that of the neighbours of both in reading order; along rows, then columns."""

    def with_neighbours(x):
        padded = jnp.pad(x, 1)
        return padded[:-2, :-2] + x + padded[2:, 2:]

    def transposed(x, rows):
        return rearrange(x, "(i j) (k l) -> (j i) (l k)", i=rows, k=rows)

    return transposed(with_neighbours(transposed(with_neighbours(similarity), height)), width)


class DeepFill(nn.Module):
    """DeepFill v1, both stages, in float32.

    Attributes:
      width: of the narrowest layer but two.
    """

    width: int = 32

    @nn.compact
    def __call__(self, image: jax.Array, mask: jax.Array) -> jax.Array:
        """Images [N, H, W, 3] in [-1, 1] -> float32 images of the same shape, what was known drawn anew.

        mask: [N, H, W, 1], 1 = hole; what the image has there is not looked at. The published weights see BGR.
        Raises ValueError for other shapes, and where H or W is no multiple of 8.
        """
        check_picture("DeepFill", image, mask)
        if any(side % _MULTIPLE for side in image.shape[1:3]):
            size = f"{image.shape[2]}x{image.shape[1]}"
            raise ValueError(f"the image is {size}: sides that are multiples of {_MULTIPLE} are accepted")
        hole = mask > 0
        image, mask = image.astype(jnp.float32), hole.astype(jnp.float32)
        coarse = _Coarse(self.width, name="stage_1")(jnp.where(hole, 0, image), mask)
        return _Refinement(self.width, name="stage_2")(jnp.where(hole, coarse, image), mask)
