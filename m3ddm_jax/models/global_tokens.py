"""What frames of a video show, seen by a vision tower and distilled into a few tokens by two levels of resamplers.

Source: the resampler is Flamingo's (Alayrac et al., NeurIPS 2022); GlobalPaint (Pan et al., 2026) says that features of
the observed regions of all frames become compact tokens, not how. The two levels and their sizes are designed here.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from m3ddm_jax.models.attention import attention
from m3ddm_jax.models.layers import Dense, Dtype, EmbeddingMLP
from m3ddm_jax.models.observed_crop import patch_places
from m3ddm_jax.models.openclip import OpenCLIPVision
from m3ddm_jax.types import Variables


@flax.struct.dataclass
class Evidence:
    """What a vision tower sees of F frames of B videos.

    patch_tokens: [B, F, P, D]. coordinates: float32 [B, P, 2], the patches' centres on the canvas, (x, y) in 0..1.
    observed: bool [B, P], which patches lie wholly in the known rectangle, the same in all frames of a video.
    times: float32 [B, F], when in the video, 0..1.
    """

    patch_tokens: jax.Array
    coordinates: jax.Array
    observed: jax.Array
    times: jax.Array


def observe(
    encoder: OpenCLIPVision, variables: Variables, squares: jax.Array, boxes: jax.Array, canvas_size: tuple[int, int]
) -> Evidence:
    """What a frozen vision tower sees of frames spread evenly over each of B videos, first and last included.

    squares: float [B, F, S, S, 3] in [-1, 1], S the tower's image_size: known rectangles with their aspect at the upper
    left (as `observed_crop.crop_observed` makes them). boxes: int [B, 4], those rectangles on a canvas of canvas_size
    (height, width). Raises ValueError for squares of another size.
    """
    clips, frames = squares.shape[:2]
    observed, coordinates = patch_places(boxes, canvas_size, encoder.image_size, encoder.patch_size)
    images = rearrange(squares, "b f h w c -> (b f) h w c")
    tokens = encoder.apply(variables, images, repeat(observed, "b p -> (b f) p", f=frames))
    times = repeat(jnp.linspace(0, 1, frames), "f -> b f", b=clips)
    return Evidence(rearrange(tokens, "(b f) p d -> b f p d", b=clips), coordinates, observed, times)


def fourier_features(positions: jax.Array, octaves: int) -> jax.Array:
    """Sines and cosines of positions [..., K] in 0..1 -> float32 [..., 2 * octaves * K].

    The longest wave is 2, so that both ends of the range differ; each octave halves it.
    """
    angles = positions.astype(jnp.float32)[..., None] * (np.pi * 2.0 ** np.arange(octaves, dtype=np.float32))
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return rearrange(waves, "... k w -> ... (k w)")


class ResamplerBlock(nn.Module):
    """Latents [B, N, width] attend to a context [B, S, width] and themselves, then pass an MLP; both residual.

    key_mask: bool [B, S], the tokens of the context that count. Where none does, latents see themselves alone.
    """

    width: int
    num_heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, latents: jax.Array, context: jax.Array, key_mask: jax.Array) -> jax.Array:
        queries = self._norm("norm_latents", latents)
        sources = jnp.concatenate([self._norm("norm_context", context), queries], axis=1)
        key_mask = jnp.pad(key_mask, ((0, 0), (0, latents.shape[1])), constant_values=True)
        query, key, value = (
            rearrange(self._dense(name, self.width, tokens, bias=False), "b t (n d) -> b t n d", n=self.num_heads)
            for name, tokens in (("to_q", queries), ("to_k", sources), ("to_v", sources))
        )
        values = rearrange(attention(query, key, value, key_mask=key_mask), "b t n d -> b t (n d)")
        latents = latents + self._dense("to_out", self.width, values)
        hidden = nn.gelu(self._dense("mlp_in", 4 * self.width, self._norm("norm_mlp", latents)), approximate=False)
        return latents + self._dense("mlp_out", self.width, hidden)

    def _norm(self, name: str, tokens: jax.Array) -> jax.Array:
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)(tokens)

    def _dense(self, name: str, features: int, tokens: jax.Array, bias: bool = True) -> jax.Array:
        return Dense(features, use_bias=bias, dtype=self.dtype, name=name)(tokens)


class Resampler(nn.Module):
    """A context [B, S, width] of any length, key_mask bool [B, S] -> [B, num_queries, width]."""

    num_queries: int
    depth: int
    width: int
    num_heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, context: jax.Array, key_mask: jax.Array) -> jax.Array:
        queries = self.param("queries", nn.initializers.normal(self.width**-0.5), (self.num_queries, self.width))
        latents = repeat(queries, "n d -> b n d", b=len(context)).astype(self.dtype)
        for layer in range(self.depth):
            block = ResamplerBlock(self.width, self.num_heads, self.dtype, name=f"blocks_{layer}")
            latents = block(latents, context, key_mask)
        return latents


class GlobalTokens(nn.Module):
    """GlobalPaint's extractor: patch tokens of any number of frames -> a fixed number of tokens a video.

    Attributes:
      patch_width: of the patch tokens, as the vision tower makes them.
      features: of the tokens that come out, the width of a denoiser's context.
      frame_tokens, frame_depth: queries and blocks of the resampler that all frames share.
      video_tokens, video_depth: those of the one that sees all frames' tokens.
      octaves: waves a coordinate, which tell patches of 2 ** -octaves of the canvas apart.
    """

    patch_width: int = 1280
    features: int = 768
    width: int = 1024
    num_heads: int = 16
    frame_tokens: int = 16
    frame_depth: int = 2
    video_tokens: int = 64
    video_depth: int = 4
    octaves: int = 6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, evidence: Evidence) -> jax.Array:
        """Tokens [B, video_tokens, features]; the number of frames may differ between calls.

        Frames are a set: their order is in their times alone. What is not observed changes no bit. A video of nothing
        else gives tokens that depend on parameters alone. Raises ValueError for patch tokens of another width.
        """
        found = evidence.patch_tokens.shape[-1]
        if found != self.patch_width:
            raise ValueError(f"patch tokens must be {self.patch_width} wide, found {found}")
        frames = self._distil_frames(evidence)
        when = fourier_features(evidence.times[..., None], self.octaves)
        when = EmbeddingMLP(self.width, name="time_embedding")(when).astype(self.dtype)
        frames = rearrange(frames + when[:, :, None], "b f n d -> b (f n) d")
        seen = evidence.observed.any(axis=-1, keepdims=True)
        distil = self._resampler("video_resampler", self.video_tokens, self.video_depth)
        tokens = distil(frames, jnp.broadcast_to(seen, frames.shape[:2]))
        tokens = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm_out")(tokens)
        return Dense(self.features, dtype=self.dtype, name="proj_out")(tokens)

    def _distil_frames(self, evidence: Evidence) -> jax.Array:
        """[B, F, frame_tokens, width], each of its own frame's observed patches."""
        clips, frames = evidence.patch_tokens.shape[:2]
        # A weight of 0 would not keep a value out that is not finite.
        patch_tokens = jnp.where(evidence.observed[:, None, :, None], evidence.patch_tokens, 0).astype(self.dtype)
        patches = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm_in")(patch_tokens)
        patches = Dense(self.width, dtype=self.dtype, name="proj_in")(patches)
        places = fourier_features(evidence.coordinates, self.octaves).astype(self.dtype)
        places = Dense(self.width, use_bias=False, dtype=self.dtype, name="place_in")(places)
        distil = self._resampler("frame_resampler", self.frame_tokens, self.frame_depth)
        patches = rearrange(patches + places[:, None], "b f p d -> (b f) p d")
        tokens = distil(patches, repeat(evidence.observed, "b p -> (b f) p", f=frames))
        return rearrange(tokens, "(b f) n d -> b f n d", b=clips)

    def _resampler(self, name: str, num_queries: int, depth: int) -> Resampler:
        return Resampler(num_queries, depth, self.width, self.num_heads, self.dtype, name=name)
