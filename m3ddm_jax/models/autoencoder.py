"""Codecs between pixels and latents, and what a pixel mask is in latent space."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce


class PatchCodec(nn.Module):
    """Parameter-free codec: each patch of pixels becomes the channels of one latent cell (space to depth), exactly.

    Attributes:
      patch_size: pixels a side of a patch.
      scale: latents = scale * pixels, so that natural video has about unit variance.
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
        mean = self.scale * rearrange(x, "n (h p) (w q) c -> n h w (p q c)", p=self.patch_size, q=self.patch_size)
        return mean, jnp.full_like(mean, -jnp.inf)

    def decode(self, z: jax.Array) -> jax.Array:
        """z: [N, h, w, 3 p p] -> [N, h p, w p, 3]; the inverse of `encode`'s mean, not clipped."""
        x = rearrange(z, "n h w (p q c) -> n (h p) (w q) c", p=self.patch_size, q=self.patch_size)
        return x / self.scale

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.decode(self.encode(x)[0])


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
