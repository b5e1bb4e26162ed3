"""attention(q, k, v): softmax attention over heads, in the form that is fastest for its size and platform."""

from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from m3ddm_jax.models.layers import Dense, Dtype, GroupNorm, per_frame
from m3ddm_jax.models.weight_gradients import add_bias, matmul
from m3ddm_jax.parallel.constrain import is_wide, split_features

# Scores a head (queries x keys) from which one head at a time beats all heads at once on a CPU: a head's scores then
# stay in cache. Measured crossing: between 256 x 256 and 512 x 784.
_LARGE_SCORES = 1 << 17
# Scores alive at a time in the one-head form: 16 MiB in float32.
_CHUNK_SCORES = 1 << 22


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    key_mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention, scale 1/sqrt(D), softmax in float32.

    query: [B, T, heads, D]; key, value: [B, S, heads, D]; key_mask: bool [B, S], the keys that count; segments: int
    [B, T], where keys and queries are the same places: a query sees the keys of its own segment alone; bias: [heads,
    T, S], added to the scores. Returns [B, T, heads, D] in query's dtype; 0 where no key counts.
    """
    if bias is not None or query.shape[1] * key.shape[1] < _LARGE_SCORES:
        return _all_heads(query, key, value, key_mask, segments, bias)
    return jax.lax.platform_dependent(query, key, value, key_mask, segments, cpu=_head_by_head, default=_all_heads)


def _pairs(
    key_mask: jax.Array | None, query_segments: jax.Array | None, key_segments: jax.Array | None
) -> jax.Array | None:
    """Which keys count for which queries: bool [..., T or 1, S] of [..., S], [..., T] and [..., S]; None for all."""
    if query_segments is None:
        return None if key_mask is None else key_mask[..., None, :]
    same = query_segments[..., :, None] == key_segments[..., None, :]
    return same if key_mask is None else same & key_mask[..., None, :]


def _softmax_values(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, bias: jax.Array | None = None
) -> jax.Array:
    """query [..., T, D] (already scaled), key and value [..., S, D], mask [..., T or 1, S] -> [..., T, D].

    Normalised after the product.
    """
    scores = jnp.einsum("...td,...sd->...ts", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores += bias
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    peak = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    if mask is not None:
        peak = jnp.maximum(peak, jnp.finfo(peak.dtype).min)
    weights = jnp.exp(scores - peak)
    total = weights.sum(axis=-1, keepdims=True)
    if mask is not None:
        # The key of the highest score adds 1, so that only a sum over no key is less.
        total = jnp.maximum(total, 1)
    out = jnp.einsum("...ts,...sd->...td", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (out / total).astype(value.dtype)


def _all_heads(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    key_mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    # Clips and heads stay axes of their own: each may be split over devices.
    query = query * query.shape[-1] ** -0.5
    query, key, value = (rearrange(x, "b t n d -> b n t d") for x in (query, key, value))
    key_mask, segments = (None if x is None else x[:, None] for x in (key_mask, segments))
    mask = _pairs(key_mask, segments, segments)
    return rearrange(_softmax_values(query, key, value, mask, bias), "b n t d -> b t n d")


def _head_by_head(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    key_mask: jax.Array | None = None,
    segments: jax.Array | None = None,
) -> jax.Array:
    """One head (and one block of queries) at a time; scores are recomputed in the backward pass, never kept."""
    batch, num_queries, heads, width = query.shape
    blocks = _query_blocks(num_queries, key.shape[1])
    query = rearrange(query * width**-0.5, "b (m t) n d -> (b n) m t d", m=blocks)
    key, value = (rearrange(x, "b s n d -> (b n) s d") for x in (key, value))
    segments = _per_head(segments, heads)
    query_segments = None if segments is None else rearrange(segments, "b (m t) -> b m t", m=blocks)

    @jax.checkpoint
    def one_head(head):
        query_MxTxD, query_segments_MxT, key_SxD, value_SxD, mask_S, key_segments_S = head

        def one_block(block):
            query_TxD, query_segments_T = block
            return _softmax_values(query_TxD, key_SxD, value_SxD, _pairs(mask_S, query_segments_T, key_segments_S))

        return jax.lax.map(one_block, (query_MxTxD, query_segments_MxT))

    out = jax.lax.map(one_head, (query, query_segments, key, value, _per_head(key_mask, heads), segments))
    return rearrange(out, "(b n) m t d -> b (m t) n d", b=batch, n=heads)


def _per_head(of_keys: jax.Array | None, heads: int) -> jax.Array | None:
    return None if of_keys is None else repeat(of_keys, "b s -> (b n) s", n=heads)


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
    output_init: Callable = nn.initializers.zeros

    def setup(self):
        self.to_q = Dense(self.features, use_bias=False, dtype=self.dtype)
        self.to_k = Dense(self.features, use_bias=False, dtype=self.dtype)
        self.to_v = Dense(self.features, use_bias=False, dtype=self.dtype)
        self.to_out_0 = Dense(self.features, dtype=self.dtype, kernel_init=self.output_init)

    def keys_values(self, context: jax.Array) -> KeysValues:
        """Keys and values of context tokens [B, S, D], for the calls that share them."""
        return KeysValues(self.split_heads(self.to_k(context)), self.split_heads(self.to_v(context)))

    def split_heads(self, tokens: jax.Array) -> jax.Array:
        """[B, S, features] -> [B, S, heads, D]."""
        return rearrange(tokens, "b s (n d) -> b s n d", n=self.num_heads)

    def attend(self, query: jax.Array, context: KeysValues) -> jax.Array:
        """What each query [B, T, heads, D] finds in the contexts, which clips take in turn; same shape."""
        shared = rearrange(query, "(r b) t n d -> b (r t) n d", b=context.keys.shape[0])
        out = attention(shared, context.keys, context.values)
        return rearrange(out, "b (r t) n d -> (r b) t n d", t=query.shape[1])

    def project(self, values: jax.Array) -> jax.Array:
        """The output [B, T, features] of what all heads found [B, T, heads, D]."""
        return self.to_out_0(rearrange(values, "b t n d -> b t (n d)"))

    def __call__(self, tokens: jax.Array, context: jax.Array | KeysValues | None = None) -> jax.Array:
        if not isinstance(context, KeysValues):
            context = self.keys_values(tokens if context is None else context)
        return self.project(self.attend(self.split_heads(self.to_q(tokens)), context))


class GatedProjection(nn.Module):
    """Two linear maps of [..., C] to [..., features], behind one another in one kernel: the value and its gate."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], 2 * self.features))
        bias = self.param("bias", nn.initializers.zeros, (2 * self.features,))
        kernel, bias = (rearrange(weight, "... (p c) -> ... p c", p=2) for weight in (kernel, bias))
        if is_wide(x.shape[-1]):
            kernel = split_features(kernel)
        both = add_bias(matmul(x.astype(self.dtype), kernel), bias)
        return both[..., 0, :], both[..., 1, :]


class GatedFeedForward(nn.Module):
    """Linear to 8C, split into value and gate, value * GELU(gate) (exact), linear back to C."""

    dtype: Dtype = jnp.float32
    output_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        channels = tokens.shape[-1]
        value, gate = GatedProjection(4 * channels, self.dtype, name="net_0_proj")(tokens)
        output = Dense(channels, dtype=self.dtype, kernel_init=self.output_init, name="net_2")
        return output(value * nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
    """Self-attention, attention on a context (itself where none is given), feed-forward; each pre-normed and residual.

    tokens: [B, T, features]. With `frames` = F the tokens of F frames lie behind one another in T: the self-attention
    stays inside a frame, while the context is shared by all of them and never repeated. cross_attention makes what
    attends to the context, which is as it takes it.
    """

    features: int
    num_heads: int
    dtype: Dtype = jnp.float32
    cross_attention: Callable[[int, int, Dtype], nn.Module] = Attention

    def setup(self):
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(epsilon=1e-5, dtype=self.dtype) for _ in range(3))
        self.attn1 = Attention(self.features, self.num_heads, self.dtype)
        self.attn2 = self.cross_attention(self.features, self.num_heads, self.dtype)
        self.ff = GatedFeedForward(self.dtype)

    def keys_values(self, context: jax.Array) -> KeysValues:
        """What the attention on a context asks of its tokens [B, S, D]."""
        return self.attn2.keys_values(context)

    def __call__(self, tokens: jax.Array, context: jax.Array | KeysValues | None = None, frames: int = 1) -> jax.Array:
        split = rearrange(self.norm1(tokens), "b (f t) c -> (b f) t c", f=frames)
        tokens = tokens + rearrange(self.attn1(split), "(b f) t c -> b (f t) c", f=frames)
        tokens = tokens + self.attn2(self.norm2(tokens), context)
        return tokens + self.ff(self.norm3(tokens))


class SpatialTransformer(nn.Module):
    """A transformer over the cells of each frame with cross-attention, residual: [B, T, H, W, features] -> the same.

    The group norm is per frame; the context, shared by all frames, is as `cross_attention` takes it.
    """

    features: int
    num_heads: int
    num_groups: int
    dtype: Dtype = jnp.float32
    cross_attention: Callable[[int, int, Dtype], nn.Module] = Attention

    def setup(self):
        self.norm = GroupNorm(self.num_groups, epsilon=1e-6, dtype=self.dtype)
        self.proj_in = Dense(self.features, dtype=self.dtype)
        self.transformer_blocks_0 = TransformerBlock(self.features, self.num_heads, self.dtype, self.cross_attention)
        self.proj_out = Dense(self.features, dtype=self.dtype)

    def keys_values(self, tokens):
        """What the cross-attention asks of context tokens."""
        return self.transformer_blocks_0.keys_values(tokens)

    def space(self, x: jax.Array, context) -> jax.Array:
        """The transformer over cells, with its residual."""
        frames, height = x.shape[1:3]
        tokens = self.proj_in(rearrange(per_frame(self.norm, x), "b f h w c -> b (f h w) c"))
        tokens = self.proj_out(self.transformer_blocks_0(tokens, context, frames))
        return x + rearrange(tokens, "b (f h w) c -> b f h w c", f=frames, h=height)
