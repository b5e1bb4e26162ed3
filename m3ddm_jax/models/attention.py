"""attention(q, k, v): softmax attention over heads, in the form that is fastest for its size and platform."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

Dtype = jnp.dtype

# Scores a head (queries x keys) from which one head at a time beats all heads at once on a CPU: a head's scores then
# stay in cache. Measured crossing: between 256 x 256 and 512 x 784.
_LARGE_SCORES = 1 << 17
# Scores alive at a time in the one-head form: 16 MiB in float32.
_CHUNK_SCORES = 1 << 22


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Softmax attention without mask, scale 1/sqrt(D), softmax in float32.

    query: [B, T, heads, D]; key, value: [B, S, heads, D]. Returns [B, T, heads, D] in query's dtype.
    """
    if query.shape[1] * key.shape[1] < _LARGE_SCORES:
        return _all_heads(query, key, value)
    return jax.lax.platform_dependent(query, key, value, cpu=_head_by_head, default=_all_heads)


def _softmax_values(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """query [..., T, D] (already scaled), key and value [..., S, D] -> [..., T, D]; normalised after the product."""
    scores = jnp.einsum("...td,...sd->...ts", query, key, preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = jnp.einsum("...ts,...sd->...td", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)


def _all_heads(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    heads = query.shape[2]
    query = query * query.shape[-1] ** -0.5
    query, key, value = (rearrange(x, "b t n d -> (b n) t d") for x in (query, key, value))
    return rearrange(_softmax_values(query, key, value), "(b n) t d -> b t n d", n=heads)


def _head_by_head(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """One head (and one block of queries) at a time; scores are recomputed in the backward pass, never kept."""
    batch, num_queries, heads, width = query.shape
    blocks = _query_blocks(num_queries, key.shape[1])
    query = rearrange(query * width**-0.5, "b (m t) n d -> (b n) m t d", m=blocks)
    key, value = (rearrange(x, "b s n d -> (b n) s d") for x in (key, value))

    @jax.checkpoint
    def one_head(head):
        query_MxTxD, key_SxD, value_SxD = head
        return jax.lax.map(lambda block: _softmax_values(block, key_SxD, value_SxD), query_MxTxD)

    out = jax.lax.map(one_head, (query, key, value))
    return rearrange(out, "(b n) m t d -> b (m t) n d", b=batch, n=heads)


def _query_blocks(num_queries: int, num_keys: int) -> int:
    """The smallest number of equal query blocks whose scores fit the chunk."""
    wanted = -(-num_queries * num_keys // _CHUNK_SCORES)
    return next(blocks for blocks in range(wanted, num_queries + 1) if num_queries % blocks == 0)


class Attention(nn.Module):
    """Multi-head attention of tokens [B, T, C] on a context [B, S, D] (itself where none is given) -> [B, T, C].

    q, k, v without bias, output projection with bias and zero weights at the start. Source: M3DDM code,
    `CrossAttention`.
    """

    num_heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, context: jax.Array | None = None) -> jax.Array:
        channels = tokens.shape[-1]
        context = tokens if context is None else context

        def project(x, name):
            x = nn.Dense(channels, use_bias=False, dtype=self.dtype, name=name)(x)
            return rearrange(x, "b t (n d) -> b t n d", n=self.num_heads)

        out = attention(project(tokens, "to_q"), project(context, "to_k"), project(context, "to_v"))
        out = rearrange(out, "b t n d -> b t (n d)")
        return nn.Dense(channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="to_out_0")(out)


class GatedFeedForward(nn.Module):
    """Linear to 8C, split into value and gate, value * GELU(gate) (exact), linear back to C."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        channels = tokens.shape[-1]
        hidden = nn.Dense(8 * channels, dtype=self.dtype, name="net_0_proj")(tokens)
        value, gate = jnp.split(hidden, 2, axis=-1)
        return nn.Dense(channels, dtype=self.dtype, name="net_2")(value * nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
    """Self-attention, attention on a context (itself where none is given), feed-forward; each pre-normed and residual.

    tokens: [B, T, C]. With `frames` = F the tokens of F frames lie behind one another in T: the self-attention stays
    inside a frame, while the context [B, S, D] is shared by all of them and never repeated.
    """

    num_heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, context: jax.Array | None = None, frames: int = 1) -> jax.Array:
        def norm(name):
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)

        split = rearrange(norm("norm1")(tokens), "b (f t) c -> (b f) t c", f=frames)
        attended = Attention(self.num_heads, self.dtype, name="attn1")(split)
        tokens = tokens + rearrange(attended, "(b f) t c -> b (f t) c", f=frames)
        tokens = tokens + Attention(self.num_heads, self.dtype, name="attn2")(norm("norm2")(tokens), context)
        return tokens + GatedFeedForward(self.dtype, name="ff")(norm("norm3")(tokens))
