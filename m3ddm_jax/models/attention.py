"""attention(q, k, v): softmax attention over heads, in the form that is fastest for its size and platform."""

import flax.linen as nn
import flax.struct
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


@flax.struct.dataclass
class KeysValues:
    """What attention asks of a context: keys and values [B, S, heads, D]."""

    keys: jax.Array
    values: jax.Array


class Attention(nn.Module):
    """Multi-head attention of tokens [B, T, features] on a context, themselves where none is given; same shape.

    context: tokens [B', S, D], or what `keys_values` made of them. B' may be less than B: clip i then takes context
    i modulo B', which is never repeated in memory.
    q, k, v without bias, output projection with bias and zero weights at the start. Source: M3DDM code,
    `CrossAttention`.
    """

    features: int
    num_heads: int
    dtype: Dtype = jnp.float32

    def setup(self):
        self.to_q = nn.Dense(self.features, use_bias=False, dtype=self.dtype)
        self.to_k = nn.Dense(self.features, use_bias=False, dtype=self.dtype)
        self.to_v = nn.Dense(self.features, use_bias=False, dtype=self.dtype)
        self.to_out_0 = nn.Dense(self.features, dtype=self.dtype, kernel_init=nn.initializers.zeros)

    def keys_values(self, context: jax.Array) -> KeysValues:
        """Keys and values of context tokens [B, S, D], for the calls that share them."""
        keys, values = (
            rearrange(project(context), "b s (n d) -> b s n d", n=self.num_heads) for project in (self.to_k, self.to_v)
        )
        return KeysValues(keys, values)

    def __call__(self, tokens: jax.Array, context: jax.Array | KeysValues | None = None) -> jax.Array:
        if not isinstance(context, KeysValues):
            context = self.keys_values(tokens if context is None else context)
        contexts = context.keys.shape[0]
        query = rearrange(self.to_q(tokens), "(r b) t (n d) -> b (r t) n d", b=contexts, n=self.num_heads)
        out = attention(query, context.keys, context.values)
        return self.to_out_0(rearrange(out, "b (r t) n d -> (r b) t (n d)", t=tokens.shape[1]))


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

    tokens: [B, T, features]. With `frames` = F the tokens of F frames lie behind one another in T: the self-attention
    stays inside a frame, while the context (as `Attention` takes it) is shared by all of them and never repeated.
    """

    features: int
    num_heads: int
    dtype: Dtype = jnp.float32

    def setup(self):
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(epsilon=1e-5, dtype=self.dtype) for _ in range(3))
        self.attn1, self.attn2 = (Attention(self.features, self.num_heads, self.dtype) for _ in range(2))
        self.ff = GatedFeedForward(self.dtype)

    def keys_values(self, context: jax.Array) -> KeysValues:
        """What the attention on a context asks of its tokens [B, S, D]."""
        return self.attn2.keys_values(context)

    def __call__(self, tokens: jax.Array, context: jax.Array | KeysValues | None = None, frames: int = 1) -> jax.Array:
        split = rearrange(self.norm1(tokens), "b (f t) c -> (b f) t c", f=frames)
        tokens = tokens + rearrange(self.attn1(split), "(b f) t c -> b (f t) c", f=frames)
        tokens = tokens + self.attn2(self.norm2(tokens), context)
        return tokens + self.ff(self.norm3(tokens))
