"""Softmax attention in plain JAX: all heads at once, or one head at a time."""

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

# Scores alive at a time in the one-head form: 16 MiB in float32.
_CHUNK_SCORES = 1 << 22


def all_heads(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    key_mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Attention of all heads at once; arguments and result as those of `models.attention.attention`."""
    # Clips and heads stay axes of their own: each may be split over devices.
    query = query * query.shape[-1] ** -0.5
    query, key, value = (rearrange(x, "b t n d -> b n t d") for x in (query, key, value))
    key_mask, segments = (None if x is None else x[:, None] for x in (key_mask, segments))
    mask = _pairs(key_mask, segments, segments)
    return rearrange(_softmax_values(query, key, value, mask, bias), "b n t d -> b t n d")


def head_by_head(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    key_mask: jax.Array | None = None,
    segments: jax.Array | None = None,
) -> jax.Array:
    """Attention of one head and one block of queries at a time; the backward pass recomputes scores.

    Arguments and result as those of `models.attention.attention`.
    """
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


def _per_head(of_keys: jax.Array | None, heads: int) -> jax.Array | None:
    return None if of_keys is None else repeat(of_keys, "b s -> (b n) s", n=heads)


def _query_blocks(num_queries: int, num_keys: int) -> int:
    """The smallest number of equal query blocks whose scores fit the chunk."""
    wanted = -(-num_queries * num_keys // _CHUNK_SCORES)
    return next(blocks for blocks in range(wanted, num_queries + 1) if num_queries % blocks == 0)
