"""attention(q, k, v): softmax attention over heads, in the form that is fastest for its size and platform."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange

from m3ddm_jax.models.dense_attention import all_heads, head_by_head
from m3ddm_jax.models.fused_attention import cudnn, cudnn_needs, splash, splash_needs
from m3ddm_jax.models.layers import Dense, Dtype, GroupNorm, per_frame
from m3ddm_jax.models.weight_gradients import add_bias, matmul
from m3ddm_jax.parallel.constrain import is_wide, split_features


@dataclasses.dataclass(frozen=True)
class _Form:
    """One way to compute attention.

    platforms: those it is the fastest on, by jax's names. queries, scores: from which number of queries, and of scores
    a head (queries x keys), it is; below, all heads at once are. needs: (query, key, key_mask, segments, bias) -> what
    it accepts, where that is something else.
    """

    compute: Callable
    platforms: tuple[str, ...]
    scores: int
    queries: int = 1
    needs: Callable[..., str | None] = lambda query, key, key_mask, segments, bias: None


def _no_bias(query, key, key_mask, segments, bias: jax.Array | None) -> str | None:
    return None if bias is None else "no bias is accepted"


_FORMS = {
    # A head's scores then stay in cache. Measured crossing: between 256 x 256 and 512 x 784.
    "by_head": _Form(head_by_head, ("cpu",), scores=1 << 17, needs=_no_bias),
    "splash": _Form(splash, ("tpu",), scores=1 << 16, queries=128, needs=splash_needs),
    "cudnn": _Form(cudnn, ("cuda",), scores=1 << 16, queries=128, needs=cudnn_needs),
}
ATTENTION = ("auto", "dense", *_FORMS)
"""auto: the fastest form for size and platform. dense: all heads at once. by_head: one head at a time, on CPUs. splash:
one kernel, on TPUs. cudnn: one kernel, on NVIDIA's GPUs. What is too small for a form to gain is dense in all of them.
"""


def check_attention(form: str, platform: str | None = None) -> None:
    """Raise ValueError for an unknown form, and for one that a platform (`device.platform`) does not have."""
    if form not in ATTENTION:
        raise ValueError(f"attention {form!r} is unknown: one of {', '.join(ATTENTION)} is accepted")
    if platform is None or form not in _FORMS:
        return
    names = {"gpu": ("cuda", "rocm")}.get(platform, (platform,))
    if not set(names) & set(_FORMS[form].platforms):
        fits = [name for name, other in _FORMS.items() if set(names) & set(other.platforms)]
        raise ValueError(f"attention {form!r} does not run on {platform}: {', '.join(('auto', 'dense', *fits))} do")


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    key_mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    bias: jax.Array | None = None,
    form: str = "auto",
) -> jax.Array:
    """Softmax attention, scale 1/sqrt(D), softmax in float32.

    query: [B, T, heads, D]; key, value: [B, S, heads, D]; key_mask: bool [B, S], the keys that count; segments: int
    [B, T], where keys and queries are the same places: a query sees the keys of its own segment alone; bias: [heads,
    T, S], added to the scores; form: one of ATTENTION, chosen when the program is lowered for a platform. Returns
    [B, T, heads, D] in query's dtype; 0 where no key counts. Raises ValueError where a form that is named does not fit.
    """
    check_attention(form)
    forms = {name: one for name, one in _FORMS.items() if form in ("auto", name) and _gains(one, query, key)}
    needs = {name: one.needs(query, key, key_mask, segments, bias) for name, one in forms.items()}
    if needs.get(form):
        raise ValueError(f"attention {form!r}: {needs[form]}; auto and dense fit")
    branches = {platform: one.compute for name, one in forms.items() if not needs[name] for platform in one.platforms}
    dense = functools.partial(all_heads, bias=bias)
    if not branches:
        return dense(query, key, value, key_mask, segments)
    return jax.lax.platform_dependent(query, key, value, key_mask, segments, **branches, default=dense)


def _gains(form: _Form, query: jax.Array, key: jax.Array) -> bool:
    return query.shape[1] >= form.queries and query.shape[1] * key.shape[1] >= form.scores


@flax.struct.dataclass
class KeysValues:
    """What attention asks of a context: keys and values [B, S, heads, D]."""

    keys: jax.Array
    values: jax.Array


class Attention(nn.Module):
    """Multi-head attention of tokens [B, T, features] on a context, themselves where none is given; same shape.

    context: tokens [B', S, D], or what `keys_values` made of them. B' may be less than B: clip i then takes context
    i modulo B', which is never repeated in memory.
    q, k, v without bias, output projection with bias and zero weights at the start; attention: one of ATTENTION.
    Source: M3DDM code, `CrossAttention`.
    """

    features: int
    num_heads: int
    dtype: Dtype = jnp.float32
    output_init: Callable = nn.initializers.zeros
    attention: str = "auto"

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
        out = attention(shared, context.keys, context.values, form=self.attention)
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
    cross_attention: Callable[..., nn.Module] = Attention
    attention: str = "auto"

    def setup(self):
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(epsilon=1e-5, dtype=self.dtype) for _ in range(3))
        options = {"dtype": self.dtype, "attention": self.attention}
        self.attn1 = Attention(self.features, self.num_heads, **options)
        self.attn2 = self.cross_attention(self.features, self.num_heads, **options)
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
    cross_attention: Callable[..., nn.Module] = Attention
    attention: str = "auto"

    def setup(self):
        self.norm = GroupNorm(self.num_groups, epsilon=1e-6, dtype=self.dtype)
        self.proj_in = Dense(self.features, dtype=self.dtype)
        self.transformer_blocks_0 = TransformerBlock(
            self.features, self.num_heads, self.dtype, self.cross_attention, self.attention
        )
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
