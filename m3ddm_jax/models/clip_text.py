"""CLIP's text transformer as Stable Diffusion conditions on it: the tokens behind the final norm.

Source: Learning Transferable Visual Models From Natural Language Supervision (Radford et al., ICML 2021); what is
computed is transformers' `CLIPTextModel`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import repeat

from m3ddm_jax.models.attention import attention
from m3ddm_jax.models.openclip import ResidualAttentionBlock


class CLIPText(nn.Module):
    """Token ids [B, T] -> float32 [B, T, width], T up to max_length; by default the tower of Stable Diffusion 1.5."""

    vocab_size: int = 49408
    max_length: int = 77
    width: int = 768
    layers: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    quick_gelu: bool = True

    @nn.compact
    def __call__(self, token_ids: jax.Array) -> jax.Array:
        initial = nn.initializers.normal(0.02)
        embeddings = self.param("token_embedding", initial, (self.vocab_size, self.width))
        positions = self.param("position_embedding", initial, (self.max_length, self.width))
        length = token_ids.shape[1]
        tokens = embeddings[token_ids] + positions[:length]
        future = jnp.triu(jnp.full((length, length), -jnp.inf), 1)
        attend = functools.partial(attention, bias=repeat(future, "t s -> n t s", n=self.num_heads))
        for layer in range(self.layers):
            block = ResidualAttentionBlock(
                self.width, self.num_heads, self.mlp_width, self.quick_gelu, name=f"layers_{layer}"
            )
            tokens = block(tokens, attend)
        return nn.LayerNorm(epsilon=1e-5, name="final_layer_norm")(tokens)
