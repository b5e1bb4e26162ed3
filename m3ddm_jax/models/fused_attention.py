"""Softmax attention in one kernel that never writes its scores to memory: Pallas' splash on TPUs, cuDNN's on GPUs."""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec as P

from m3ddm_jax.parallel.constrain import attention_axes, on_each_device

# Tokens that splash works at together: a multiple of a TPU's 128 lanes; more of them outgrow its fast memory.
_LANES, _LARGEST_BLOCK = 128, 640
_CUDNN_DTYPES = (jnp.dtype("bfloat16"), jnp.dtype("float16"))
_CUDNN_WIDTH, _CUDNN_WIDTH_HOPPER = 128, 256
# The segment of padding, and of keys that do not count.
_NOWHERE = jnp.iinfo(jnp.int32).min


def splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    key_mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Attention by Pallas' kernel for TPUs; arguments and result as those of `models.attention.attention`.

    interpret: run the kernel without a TPU, slowly. Under a mesh each device attends for its own clips and heads.
    """
    batch, queries, heads, width = query.shape
    query_block, key_block = (_block(length) for length in (queries, key.shape[1]))
    query_ids, key_ids = _segment_ids(query, key, key_mask, segments, key_block)
    attend = functools.partial(_splash, query_block=query_block, key_block=key_block, interpret=interpret)
    # The partitioner cannot look into a kernel: each device runs it on its own clips, queries and heads.
    rows, of_queries, of_heads = attention_axes(batch, queries, heads, heads * width)
    out_spec, key_spec = P(rows, of_queries, of_heads), P(rows, None, of_heads)
    attend = on_each_device(attend, (out_spec, key_spec, key_spec, P(rows, of_queries), P(rows)), out_spec)
    out = attend(query * width**-0.5, key, value, query_ids, key_ids)
    if key_mask is None:
        return out
    # The kernel averages all values where no key counts.
    same = query_ids[:, :, None] == key_ids[:, None, :]
    return jnp.where(same.any(axis=-1)[..., None, None], out, 0)


def cudnn(query: jax.Array, key: jax.Array, value: jax.Array, *_) -> jax.Array:
    """Attention by cuDNN; arguments and result as those of `models.attention.attention`, without mask and segments."""
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def splash_needs(
    query: jax.Array, key: jax.Array, key_mask: jax.Array | None, segments: jax.Array | None, bias: jax.Array | None
) -> str | None:
    """What `splash` accepts, where that is not what it is given; None where it is."""
    del key, key_mask, segments
    if bias is not None:
        return "no bias is accepted"
    batch, queries, heads, width = query.shape
    if attention_axes(batch, queries, heads, heads * width) is None:
        return f"found {batch} rows: a multiple of the mesh's data x fsdp is accepted"
    return None


def cudnn_needs(
    query: jax.Array, key: jax.Array, key_mask: jax.Array | None, segments: jax.Array | None, bias: jax.Array | None
) -> str | None:
    """What `cudnn` accepts, where that is not what it is given; None where it is."""
    del key
    if key_mask is not None or segments is not None or bias is not None:
        return "neither mask, segments nor bias are accepted"
    if query.dtype not in _CUDNN_DTYPES:
        return f"found {query.dtype}: bfloat16 and float16 are accepted"
    widest = _CUDNN_WIDTH_HOPPER if _is_hopper() else _CUDNN_WIDTH
    if query.shape[-1] % 8 or query.shape[-1] > widest:
        return f"found heads {query.shape[-1]} wide: multiples of 8 up to {widest} are accepted"
    if not _has_cudnn():
        return "found no cuDNN: install jax[cuda12] or jax[cuda13]"
    return None


def _has_cudnn() -> bool:
    from jax._src.lib import cuda_versions  # what jax.nn.dot_product_attention asks, at every trace

    return cuda_versions is not None


def _is_hopper() -> bool:
    """Whether the GPUs of this process, if any, are of compute capability 9 or later."""
    found = jax.devices()[0]
    return found.platform == "gpu" and float(getattr(found, "compute_capability", 0)) >= 9


def _block(length: int) -> int:
    """Tokens a block: those that pad a length the least, and of these the most."""
    return min(range(_LANES, _LARGEST_BLOCK + 1, _LANES), key=lambda block: (-length % block, -block))


def _segment_ids(
    query: jax.Array, key: jax.Array, key_mask: jax.Array | None, segments: jax.Array | None, key_block: int
) -> tuple[jax.Array | None, jax.Array | None]:
    """int32 [B, T] and [B, S], a query sees keys of its own number; None twice where it sees all, without padding."""
    if key_mask is None and segments is None and key.shape[1] % key_block == 0:
        return None, None
    query_ids, key_ids = (
        jnp.zeros(x.shape[:2], jnp.int32) if segments is None else segments.astype(jnp.int32) for x in (query, key)
    )
    return query_ids, key_ids if key_mask is None else jnp.where(key_mask, key_ids, _NOWHERE)


def _splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_ids: jax.Array | None,
    key_ids: jax.Array | None,
    *,
    query_block: int,
    key_block: int,
    interpret: bool,
) -> jax.Array:
    """`splash` on one device, of a query that is scaled."""
    length, heads = query.shape[1:3]
    query, key, value = (
        rearrange(_padded(x, block), "b t n d -> b n t d")
        for x, block in ((query, query_block), (key, key_block), (value, key_block))
    )
    mask = splash_attention.MultiHeadMask([splash_attention.FullMask((query.shape[2], key.shape[2]))] * heads)
    attend = splash_attention.make_splash_mha_single_device(
        mask, block_sizes=_block_sizes(query_block, key_block), interpret=interpret
    )
    if query_ids is None:
        out = jax.vmap(attend)(query, key, value)
    else:
        ids = splash_attention.SegmentIds(_padded(query_ids, query_block), _padded(key_ids, key_block))
        out = jax.vmap(attend)(query, key, value, ids)
    return rearrange(out, "b n t d -> b t n d")[:, :length]


def _padded(x: jax.Array, block: int) -> jax.Array:
    """Tokens [B, T, ...] with T a multiple of a block: zeros behind them, _NOWHERE behind segments."""
    padding = [(0, 0), (0, -x.shape[1] % block)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, padding, constant_values=_NOWHERE if x.ndim == 2 else 0)


def _block_sizes(query_block: int, key_block: int) -> splash_attention.BlockSizes:
    # Tokens along the lanes: along them the 40 channels of a narrow head would be padded to 128.
    tokens_last = splash_attention.QKVLayout.SEQ_MINOR
    return splash_attention.BlockSizes(
        block_q=query_block,
        block_kv=key_block,
        block_q_dkv=query_block,
        block_kv_dkv=key_block,
        block_q_dq=query_block,
        block_kv_dq=key_block,
        q_layout=tokens_last,
        k_layout=tokens_last,
        v_layout=tokens_last,
    )
