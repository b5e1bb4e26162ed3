"""Between frames and latents: the one place that scales them, the codec without parameters, masks in latent space.

A codec is a module with `encode(frames) -> (mean, logvar)`, `decode(encoding) -> frames`, `scale` and `downscale`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce

from m3ddm_jax.models.kl_autoencoder import AutoencoderKL, decode_by_rows
from m3ddm_jax.types import Variables


class PatchCodec(nn.Module):
    """Parameter-free codec: each patch of pixels becomes the channels of one latent cell (space to depth), exactly.

    Attributes:
      patch_size: pixels a side of a patch.
      scale: latents = scale * encoding, so that natural video has about unit variance; nothing in here applies it.
    """

    patch_size: int = 8
    scale: float = 2.0

    @property
    def downscale(self) -> int:
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


def latent_moments(codec: nn.Module, variables: Variables, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of the latents of frames [N, H, W, 3] in [-1, 1]: float32 [N, H/f, W/f, C] each.

    Latents have about unit variance over a video; the deviation is that of the encoder's posterior. Errors as the
    codec's `encode`.
    """
    mean, logvar = codec.apply(variables, frames, method="encode")
    return codec.scale * mean, codec.scale * jnp.exp(logvar / 2)


def to_latents(codec: nn.Module, variables: Variables, frames: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Latents of frames, as `latent_moments` takes them: their mean, or with a key a sample of the posterior."""
    mean, std = latent_moments(codec, variables, frames)
    return mean if key is None else mean + std * jax.random.normal(key, mean.shape, mean.dtype)


def from_latents(codec: nn.Module, variables: Variables, latents: jax.Array) -> jax.Array:
    """Frames [N, h f, w f, 3] of latents [N, h, w, C], about [-1, 1], not clipped."""
    return codec.apply(variables, latents / codec.scale, method="decode")


def decode_tiled(codec: nn.Module, variables: Variables, latents: jax.Array, tile: int = 2**14) -> np.ndarray:
    """`from_latents` in bounded device memory, on the host: the same frames up to rounding. Not for use under jit.

    tile: latent cells that are decoded at a time; Stable Diffusion's autoencoder takes about 230 KB a cell in float32,
    3.8 GB for the default. Frames of no more cells are decoded whole, as many at once as fit; a larger one of a KL
    autoencoder is decoded in bands of rows (`decode_by_rows` says what that costs).
    """
    count, height, width, _ = latents.shape
    variables = jax.device_put(variables)
    if height * width > tile and isinstance(codec, AutoencoderKL):
        rows = max(1, tile // width)
        frames = [decode_by_rows(codec, variables, z[None] / codec.scale, rows) for z in latents]
    else:
        decode = jax.jit(from_latents, static_argnums=0)
        # Equal groups: one program.
        group = next(n for n in range(min(count, max(1, tile // (height * width))), 0, -1) if count % n == 0)
        frames = [jax.device_get(decode(codec, variables, latents[i : i + group])) for i in range(0, count, group)]
    return np.concatenate(frames)


def reduce_mask(mask: jax.Array, factor: int, mode: str = "max") -> jax.Array:
    """A pixel mask [..., H, W, 1] in latent cells: float32 [..., H/factor, W/factor, 1], 1 = generate.

    mode "max": a cell that holds any unknown pixel is unknown, so that nothing unknown is ever called known;
    "nearest": the cell's first pixel decides, as in the official M3DDM code.
    Raises ValueError for another mode.
    """
    if mode == "nearest":
        return mask[..., ::factor, ::factor, :].astype(jnp.float32)
    if mode != "max":
        raise ValueError(f"mask mode {mode!r}: 'max' or 'nearest' is accepted")
    return reduce(mask, "... (h p) (w q) c -> ... h w c", "max", p=factor, q=factor).astype(jnp.float32)
