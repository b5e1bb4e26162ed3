"""A small U-Net that says what is to be added to frames that were made by other means. A design of this project."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from m3ddm_jax.models.layers import Conv, Dtype, GroupNorm

_PATCH = 2
_NUM_GROUPS = 8


class ResidualUNet(nn.Module):
    """Evidence on frames [N, H, W, in_channels] -> what is to be added to them; 0 everywhere before training.

    H and W must be multiples of `multiple`.

    Attributes:
      widths: channels of each level, multiples of 8, from the finest one, which has half the lines of the frames; every
        level has half the lines of the one above.
      out_channels: of what is added.
    """

    in_channels: int = 8
    out_channels: int = 3
    widths: Sequence[int] = (32, 64, 128, 128)
    dtype: Dtype = jnp.float32

    @property
    def multiple(self) -> int:
        return _PATCH * 2 ** (len(self.widths) - 1)

    @nn.compact
    def __call__(self, evidence: jax.Array) -> jax.Array:
        """evidence: float32 [N, H, W, in_channels] of about unit size. Returns float32 [N, H, W, out_channels]."""
        patches = {"p": _PATCH, "q": _PATCH}
        x = rearrange(evidence, "n (h p) (w q) c -> n h w (p q c)", **patches)
        x = Conv(self.widths[0], dtype=self.dtype, name="conv_in")(x)
        finer = []
        for level, width in enumerate(self.widths):
            if level:
                finer.append(x)
                x = Conv(width, stride=2, dtype=self.dtype, name=f"down_{level}")(x)
            x = _Block(width, self.dtype, name=f"block_{level}")(x)
        for level, skip in reversed(list(enumerate(finer))):
            x = Conv(self.widths[level], size=1, padding=0, dtype=self.dtype, name=f"narrow_{level}")(x)
            x = jnp.concatenate([jax.image.resize(x, (*skip.shape[:3], x.shape[-1]), "linear"), skip], axis=-1)
            x = _Block(self.widths[level], self.dtype, name=f"up_{level}")(x)
        x = nn.silu(GroupNorm(_NUM_GROUPS, dtype=self.dtype, name="norm_out")(x))
        zeros = nn.initializers.zeros
        x = Conv(_PATCH**2 * self.out_channels, dtype=self.dtype, kernel_init=zeros, name="conv_out")(x)
        return rearrange(x, "n h w (p q c) -> n (h p) (w q) c", **patches).astype(jnp.float32)


class _Block(nn.Module):
    """Two convolutions behind norms and SiLU beside a straight way: [N, H, W, C] -> [N, H, W, features]."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        straight = x
        if x.shape[-1] != self.features:
            straight = Conv(self.features, size=1, padding=0, dtype=self.dtype, name="straight")(x)
        for number in (1, 2):
            x = nn.silu(GroupNorm(_NUM_GROUPS, dtype=self.dtype, name=f"norm_{number}")(x))
            x = Conv(self.features, dtype=self.dtype, name=f"conv_{number}")(x)
        return straight + x
