"""Between pixels and latents: the one place that scales them, the codec without parameters, masks in latent space.

All functions take any `types.Codec`. Pixels are images [N, H, W, 3], or clips [N, T, H, W, 3], whose latents have
`latent_frames` frames.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce, repeat

from m3ddm_jax.models.kl_autoencoder import AutoencoderKL, decode_by_rows
from m3ddm_jax.types import Array, Codec, Variables


class PatchCodec(nn.Module):
    """Parameter-free codec: each patch of pixels becomes the channels of one latent cell (space to depth), exactly.

    Attributes:
      patch_size: pixels a side of a patch.
      scale: latents = scale * encoding, so that natural video has about unit variance; nothing in here applies it.
    """

    patch_size: int = 8
    scale: float = 2.0

    temporal_factor: ClassVar[int] = 1

    @property
    def spatial_factor(self) -> int:
        """Pixels a side of a latent cell."""
        return self.patch_size

    @property
    def latent_channels(self) -> int:
        return 3 * self.patch_size**2

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x: [N, H, W, 3] in [-1, 1] -> (mean, logvar), both [N, H/p, W/p, 3 p p]; logvar is -inf (nothing is drawn).

        Raises ValueError where H or W is no multiple of the patch size p.
        """
        if x.shape[1] % self.patch_size or x.shape[2] % self.patch_size:
            raise ValueError(f"frames of {x.shape[1:3]} pixels do not divide into patches of {self.patch_size}")
        mean = rearrange(x, "n (h p) (w q) c -> n h w (p q c)", p=self.patch_size, q=self.patch_size)
        return mean, jnp.full_like(mean, -jnp.inf)

    def decode(self, z: jax.Array) -> jax.Array:
        """z: [N, h, w, 3 p p] -> [N, h p, w p, 3]; the inverse of `encode`'s mean, not clipped."""
        return rearrange(z, "n h w (p q c) -> n (h p) (w q) c", p=self.patch_size, q=self.patch_size)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.decode(self.encode(x)[0])


def latent_frames(codec: Codec, num_frames: int) -> int:
    """Number of latent frames of a clip. Raises ValueError where the codec does not accept this number of frames."""
    factor = codec.temporal_factor
    if (num_frames - 1) % factor:
        near = 1 + factor * round((num_frames - 1) / factor)
        raise ValueError(f"clips have {num_frames} frames: this codec takes {factor} n + 1, such as {near}")
    return 1 + (num_frames - 1) // factor


def _apply(codec: Codec, variables: Variables, x: jax.Array, method: str) -> Any:
    """What a method returns for images [N, ...] or clips [N, T, ...], whichever of both the codec works on."""
    takes_clips = codec.temporal_factor > 1
    if takes_clips and x.ndim == 4:
        return jax.tree.map(lambda y: y[:, 0], codec.apply(variables, x[:, None], method=method))
    if x.ndim == 5 and not takes_clips:
        outputs = codec.apply(variables, rearrange(x, "n t h w c -> (n t) h w c"), method=method)
        return jax.tree.map(lambda y: rearrange(y, "(n t) h w c -> n t h w c", n=x.shape[0]), outputs)
    return codec.apply(variables, x, method=method)


def latent_moments(codec: Codec, variables: Variables, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of the latents of images or clips in [-1, 1]: float32, [N, h, w, C] of images each.

    Latents have about unit variance over a video; the deviation is that of the encoder's posterior. Errors as the
    codec's `encode`.
    """
    mean, logvar = _apply(codec, variables, frames, "encode")
    return codec.scale * mean, codec.scale * jnp.exp(logvar / 2)


def to_latents(codec: Codec, variables: Variables, frames: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Latents of frames, as `latent_moments` takes them: their mean, or with a key a sample of the posterior."""
    mean, std = latent_moments(codec, variables, frames)
    return mean if key is None else mean + std * jax.random.normal(key, mean.shape, mean.dtype)


def from_latents(codec: Codec, variables: Variables, latents: jax.Array) -> jax.Array:
    """Images [N, H, W, 3] of latents [N, h, w, C], or clips of latents [N, T, h, w, C]: about [-1, 1], not clipped."""
    return _apply(codec, variables, latents / codec.scale, "decode")


_from_latents = jax.jit(from_latents, static_argnums=0)


def decode_tiled(codec: Codec, variables: Variables, latents: jax.Array, tile: int = 2**14) -> np.ndarray:
    """Frames [T', H, W, 3] of one clip's latents [T, h, w, C], on the host, in bounded device memory: those of
    `from_latents` up to rounding. Not for use under jit.

    tile: latent cells that are decoded at a time; Stable Diffusion's autoencoder takes about 230 KB a cell in float32,
    3.8 GB for the default. Frames of no more cells are decoded whole, as many at once as fit; a larger one of a KL
    autoencoder is decoded in bands of rows (`decode_by_rows` says what that costs). A video codec decodes a clip whole.
    """
    count, height, width, _ = latents.shape
    variables = jax.device_put(variables)
    if codec.temporal_factor > 1:
        return jax.device_get(_from_latents(codec, variables, latents[None]))[0]
    if height * width > tile and isinstance(codec, AutoencoderKL):
        rows = max(1, tile // width)
        frames = [decode_by_rows(codec, variables, z[None] / codec.scale, rows) for z in latents]
    else:
        # Equal groups: one program.
        group = next(n for n in range(min(count, max(1, tile // (height * width))), 0, -1) if count % n == 0)
        frames = [
            jax.device_get(_from_latents(codec, variables, latents[i : i + group])) for i in range(0, count, group)
        ]
    return np.concatenate(frames)


def reduce_mask(mask: Array, factor: int, mode: str = "max", temporal_factor: int = 1) -> jax.Array:
    """A pixel mask [..., T, H, W, 1] in latent cells: float32 [..., T', H/factor, W/factor, 1], 1 = generate.

    mode "max": a cell that holds any unknown pixel is unknown, so that nothing unknown is ever called known;
    "nearest": the cell's first pixel decides, as in the official M3DDM code. temporal_factor: as in `types.Codec`.
    Raises ValueError for another mode.
    """
    if temporal_factor > 1:
        rest = reduce(mask[..., 1:, :, :, :], "... (t k) h w c -> ... t h w c", "max", k=temporal_factor)
        mask = jnp.concatenate([mask[..., :1, :, :, :], rest], axis=-4)
    if mode == "nearest":
        return mask[..., ::factor, ::factor, :].astype(jnp.float32)
    if mode != "max":
        raise ValueError(f"mask mode {mode!r}: 'max' or 'nearest' is accepted")
    return reduce(mask, "... (h p) (w q) c -> ... h w c", "max", p=factor, q=factor).astype(jnp.float32)


def pixel_mask(codec: Codec, mask: Array) -> jax.Array:
    """A mask [B, T, h, w, 1] in latent cells, of the pixels [B, T', H, W, 1] that the cells stand for."""
    factor, repeats = codec.temporal_factor, codec.spatial_factor
    mask = jnp.concatenate([mask[:, :1], jnp.repeat(mask[:, 1:], factor, axis=1)], axis=1)
    return repeat(mask, "b t h w c -> b t (h p) (w q) c", p=repeats, q=repeats)


def latent_mask(codec: Codec, mask: Array, mode: str = "max") -> jax.Array:
    """`reduce_mask` by a codec's factors."""
    return reduce_mask(mask, codec.spatial_factor, mode, codec.temporal_factor)
