"""OpenCLIP's vision transformer, kept from seeing what is not observed, and the residual block of all CLIP towers.

Source: Learning Transferable Visual Models From Natural Language Supervision (Radford et al., ICML 2021) and its open
implementation `open_clip`, whose names the parameters follow. Which layer's tokens are read is IP-Adapter's practice.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from m3ddm_jax.models.attention import attention
from m3ddm_jax.models.layers import Dtype

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""What images in 0..1 are shifted by before CLIP sees them, a channel."""
STD = (0.26862954, 0.26130258, 0.27577711)
"""What they are divided by then."""


def quick_gelu(x: jax.Array) -> jax.Array:
    """The sigmoid form of GELU that OpenAI's towers were trained with."""
    return x * nn.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    """Self-attention, then an MLP, each pre-normed and residual: tokens [B, T, width] -> the same shape.

    attend: what makes values of query, key and value, all [B, T, heads, D]: there a tower's mask is.
    """

    width: int
    num_heads: int
    mlp_width: int
    quick_gelu: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, attend: Callable[..., jax.Array]) -> jax.Array:
        hidden = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_1")(tokens)
        packed = nn.Dense(3 * self.width, dtype=self.dtype, name="attn_in_proj")(hidden)
        query, key, value = rearrange(packed, "b t (k n d) -> k b t n d", k=3, n=self.num_heads)
        values = rearrange(attend(query, key, value), "b t n d -> b t (n d)")
        tokens = tokens + nn.Dense(self.width, dtype=self.dtype, name="attn_out_proj")(values)
        hidden = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_2")(tokens)
        hidden = nn.Dense(self.mlp_width, dtype=self.dtype, name="mlp_c_fc")(hidden)
        hidden = quick_gelu(hidden) if self.quick_gelu else nn.gelu(hidden, approximate=False)
        return tokens + nn.Dense(self.width, dtype=self.dtype, name="mlp_c_proj")(hidden)


class OpenCLIPVision(nn.Module):
    """Patch tokens that the last layer of an OpenCLIP vision tower is given; by default those of ViT-H/14.

    The last layer, the pooling and the projection behind it are never computed, and are no part of the parameters.

    Attributes:
      layers: of the tower, the last one included.
      quick_gelu: OpenAI's activation in place of the exact GELU.
    """

    image_size: int = 224
    patch_size: int = 14
    width: int = 1280
    layers: int = 32
    num_heads: int = 16
    mlp_width: int = 5120
    quick_gelu: bool = False
    dtype: Dtype = jnp.float32

    @property
    def num_patches(self) -> int:
        """P, row by row."""
        return (self.image_size // self.patch_size) ** 2

    @nn.compact
    def __call__(self, images: jax.Array, observed: jax.Array | None = None, *, ln_post: bool = False) -> jax.Array:
        """Tokens [N, P, width] of the patches of images [N, S, S, 3] in [-1, 1], S = image_size; zero where unobserved.

        observed: [N, P], not 0 where a patch is wholly observed; all are where none is given. Pixels of other patches
        are never read: not even nan there changes a bit of the tokens. An image may have no observed patch.
        ln_post: whether tokens go through the norm that follows the last layer.
        Raises ValueError for images and masks of other shapes.
        """
        observed = self._checked(images, observed)
        tokens = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_pre")(self._embed(images, observed))
        # The class token is seen everywhere, which also leaves a softmax something where no patch is observed.
        keys = jnp.pad(observed, ((0, 0), (1, 0)), constant_values=True)

        attend = functools.partial(attention, key_mask=keys)
        sizes = (self.width, self.num_heads, self.mlp_width, self.quick_gelu, self.dtype)
        for layer in range(self.layers - 1):
            tokens = ResidualAttentionBlock(*sizes, name=f"resblocks_{layer}")(tokens, attend)
        patches = tokens[:, 1:]
        normed = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_post")(patches)
        return jnp.where(observed[..., None], normed if ln_post else patches, 0)

    def _checked(self, images: jax.Array, observed: jax.Array | None) -> jax.Array:
        """The mask as bool [N, P]."""
        shape = (len(images), self.image_size, self.image_size, 3)
        if images.shape != shape:
            raise ValueError(f"images must be {list(shape)}, found {list(images.shape)}")
        if observed is None:
            return jnp.ones((len(images), self.num_patches), bool)
        if observed.shape != (len(images), self.num_patches):
            raise ValueError(f"observed must be {[len(images), self.num_patches]}, found {list(observed.shape)}")
        return observed != 0

    def _embed(self, images: jax.Array, observed: jax.Array) -> jax.Array:
        """Class and patch tokens with their positions [N, 1 + P, width]; unobserved patches are mean grey."""
        normalised = ((images.astype(jnp.float32) + 1) / 2 - jnp.array(MEAN)) / jnp.array(STD)
        size = {"p": self.patch_size, "q": self.patch_size}
        patches = rearrange(normalised, "n (i p) (j q) c -> n (i j) p q c", **size)
        patches = jnp.where(observed[..., None, None, None], patches, 0)
        embed = nn.DenseGeneral(self.width, axis=(-3, -2, -1), use_bias=False, dtype=self.dtype, name="conv1")
        initial = nn.initializers.normal(self.width**-0.5)
        class_token = self.param("class_embedding", initial, (self.width,)).astype(self.dtype)
        positions = self.param("positional_embedding", initial, (self.num_patches + 1, self.width))
        class_tokens = repeat(class_token, "d -> n 1 d", n=len(images))
        return jnp.concatenate([class_tokens, embed(patches)], axis=1) + positions.astype(self.dtype)
