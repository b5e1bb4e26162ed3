"""Focal transformer blocks on overlapping patches: soft split, focal windows, fusion feed-forward, soft composition.

Source: Focal Self-attention for Local-Global Interactions in Vision Transformers (Yang et al., NeurIPS 2021),
FuseFormer (Liu et al., ICCV 2021), and E2FGVI (Li et al., CVPR 2022), which joined them.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from m3ddm_jax.models.layers import Conv, Dense, Dtype

STRIDE = 3
"""Cells of a feature map from one patch to the next."""
PATCH = 7
"""Cells a side of a patch."""
_PADDING = 3


def unfold(features: jax.Array) -> jax.Array:
    """Feature maps [N, 3 i, 3 j, C] -> the patches around them [N, i, j, 49 * C], row by row, zero outside."""
    windows = _windows(_windows(features, axis=1), axis=3)
    return rearrange(windows, "n i p j q c -> n i j (p q c)")


def fold(patches: jax.Array) -> jax.Array:
    """Patches [N, i, j, 49 * C] -> the sums of what they have at each cell [N, 3 i, 3 j, C]: transposed `unfold`."""
    batch, rows, columns, size = patches.shape
    features = jax.ShapeDtypeStruct((batch, STRIDE * rows, STRIDE * columns, size // PATCH**2), patches.dtype)
    return jax.linear_transpose(unfold, features)(patches)[0]


def _windows(x: jax.Array, axis: int) -> jax.Array:
    """[..., 3 n, ...] -> [..., n, 7, ...]: put together from blocks of a stride, so that nothing is read in steps."""
    count = x.shape[axis] // STRIDE
    padding = [(0, 0)] * x.ndim
    padding[axis] = (_PADDING, _PADDING)
    x = jnp.pad(x, padding)
    blocks = x.reshape(*x.shape[:axis], -1, STRIDE, *x.shape[axis + 1 :])
    shifted = [jax.lax.slice_in_dim(blocks, block, block + count, axis=axis) for block in range(3)]
    return jax.lax.slice_in_dim(jnp.concatenate(shifted, axis + 1), 0, PATCH, axis=axis + 1)


class SoftSplit(nn.Module):
    """Feature maps [N, 3 i, 3 j, C] -> a token for each patch [N, i, j, features]."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        return Dense(self.features, dtype=self.dtype, name="embedding")(unfold(features.astype(self.dtype)))


class SoftComposition(nn.Module):
    """Tokens [N, i, j, D] -> patches, summed where they overlap, then convolved [N, 3 i, 3 j, features]."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        patches = Dense(PATCH**2 * self.features, dtype=self.dtype, name="embedding")(tokens)
        return Conv(self.features, dtype=self.dtype, name="bias_conv")(fold(patches))


class FusionFeedForward(nn.Module):
    """Tokens [N, i, j, D] -> same shape, by way of the patches that they stand for, averaged where these overlap.

    channels: of a cell of a hidden patch.
    """

    channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        patches = Dense(PATCH**2 * self.channels, dtype=self.dtype, name="conv1_0")(tokens)
        covered = fold(jnp.ones((1, *tokens.shape[1:3], PATCH**2), self.dtype))
        # Before the patches are cut out again there are five times fewer numbers to go through; GELU(0) is 0.
        hidden = unfold(nn.gelu(fold(patches) / covered, approximate=False))
        return Dense(tokens.shape[-1], dtype=self.dtype, name="conv2_1")(hidden)


class FocalAttention(nn.Module):
    """Attention of each window's tokens, over all frames, to those in and around it and to windows as a whole.

    tokens: [B, T, rows i, columns j, features] for windows of [rows, columns]; pooled: [B, T, i, j, features], a token
    a window. Returns the shape of tokens. Around the border tokens continue on the other side; pooled windows, as many
    around each window as it has tokens, do not.
    """

    features: int
    num_heads: int
    window: Sequence[int]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, pooled: jax.Array) -> jax.Array:
        batch, frames, *grid, _ = pooled.shape
        sides = dict(zip("pq", self.window, strict=True))
        qkv = Dense(3 * self.features, dtype=self.dtype, name="qkv")
        query, *near = jnp.split(qkv(tokens), 3, axis=-1)
        _, *far = jnp.split(qkv(pooled), 3, axis=-1)
        query = rearrange(query, "b t (i p) (j q) (n d) -> (b i j) (t p q) n d", n=self.num_heads, **sides)
        key, value = (self._context(*maps) for maps in zip(near, far, strict=True))
        # A token that counts twice has twice the weight; one that is not there has none.
        bias = repeat(jnp.log(context_counts(self.window, grid)), "w k -> (b w) 1 1 (t k)", b=batch, t=frames)
        out = jax.nn.dot_product_attention(query, key, value, bias)
        out = rearrange(out, "(b i j) (t p q) n d -> b t (i p) (j q) (n d)", b=batch, t=frames, i=grid[0], **sides)
        return Dense(self.features, dtype=self.dtype, name="proj")(out)

    def _context(self, near: jax.Array, far: jax.Array) -> jax.Array:
        """What each window attends to, [B i j, T k, heads, D], of maps of tokens and of pooled windows."""
        for axis, side in zip((2, 4), self.window, strict=True):
            count, margin = far.shape[axis], side // 2
            windows = np.arange(count)[:, None]
            around = (windows * side + np.arange(-margin, side + margin)) % (count * side)
            near = jnp.take(near, around, axis, mode="clip")
            far = jnp.take(far, np.clip(windows + np.arange(-margin, side - margin), 0, count - 1), axis, mode="clip")
        both = [rearrange(x, "b t i p j q c -> b i j t (p q) c") for x in (near, far)]
        both = jnp.concatenate(both, axis=4)
        return rearrange(both, "b i j t k (n d) -> (b i j) (t k) n d", n=self.num_heads)


def context_counts(window: Sequence[int], grid: Sequence[int]) -> np.ndarray:
    """How many times each of a grid of windows attends to each part of its context: float32 [windows, k].

    First the tokens in the window and half a window around it, row by row: its own once, those around as often as the
    four windows that lie half a window off in both directions have them, which is twice where two overlap. Then the
    pooled windows around, as many as a window has tokens, row by row: once, or 0 where the grid has ended.
    """
    rows, columns = window
    margins = above, left = rows // 2, columns // 2
    near = np.zeros((rows + 2 * above, columns + 2 * left))
    for row in (0, 2 * above):
        for column in (0, 2 * left):
            near[row : row + rows, column : column + columns] += 1
    near[above : above + rows, left : left + columns] = 1

    there = []
    for count, side, margin in zip(grid, window, margins, strict=True):
        index = np.arange(count)[:, None] + np.arange(-margin, side - margin)
        there.append((index >= 0) & (index < count))
    far = rearrange(np.einsum("ip,jq->ijpq", *there), "i j p q -> (i j) (p q)")
    near = np.broadcast_to(near.ravel(), (len(far), near.size))
    return np.concatenate([near, far], axis=1).astype(np.float32)


class FocalBlock(nn.Module):
    """Focal attention and fusion feed-forward on tokens [B, T, i, j, D], each pre-normed and residual; same shape."""

    num_heads: int
    window: Sequence[int]
    ffn_channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        features, (rows, columns) = tokens.shape[-1], self.window
        normed = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm1")(tokens)
        windows = rearrange(normed, "b t (i p) (j q) c -> b t i j c (p q)", p=rows, q=columns)
        pooled = Dense(1, dtype=self.dtype, name="pool_layers_0")(windows)[..., 0]
        attention = FocalAttention(features, self.num_heads, self.window, self.dtype, name="attn")
        tokens = tokens + attention(normed, pooled)

        normed = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm2")(tokens)
        feed_forward = FusionFeedForward(self.ffn_channels, self.dtype, name="mlp")
        hidden = feed_forward(rearrange(normed, "b t i j c -> (b t) i j c"))
        return tokens + rearrange(hidden, "(b t) i j c -> b t i j c", b=tokens.shape[0])
