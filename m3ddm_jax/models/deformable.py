"""Modulated deformable convolution (DCNv2) and the alignment of propagated features that is built on it.

Source: Deformable ConvNets v2 (Zhu et al., CVPR 2019); BasicVSR++ (Chan et al., CVPR 2022) for its guidance by flow.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from m3ddm_jax.flow.warping import sample_bilinear, warp
from m3ddm_jax.models.layers import Conv, Dtype
from m3ddm_jax.models.weight_gradients import add_bias, matmul

_TAPS = 3
_LARGEST_OFFSET = 10.0  # pixels that an alignment may add to the flow


def deformable_conv(images: jax.Array, offsets: jax.Array, modulation: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution whose taps are moved and weighted at every pixel; same size, no bias.

    images: [N, H, W, G * c], G groups of channels that move together. offsets: [N, H, W, G, taps, 2] as (dy, dx) in
    pixels, added to each tap's own place, taps row by row; modulation: [N, H, W, G, taps]. kernel: [k, k, G * c, out],
    k odd. Zero outside of the images. Returns [N, H, W, out] in the images' dtype, summed in float32.
    One tap is read at a time, in the backward pass once more: memory grows by a few times the images, not by k * k.
    """
    batch, height, width, _ = images.shape
    side, groups = kernel.shape[0], offsets.shape[3]
    # A frame of zeros, once for all taps, makes what lies outside zero.
    grid = jnp.mgrid[:side, :side].reshape(2, -1, 1, 1, 1) - side // 2 + 1
    rows, columns = rearrange(offsets, "n h w g k xy -> xy k (n g) h w") + grid
    taps = {
        "rows": rows + jnp.arange(height)[:, None],
        "columns": columns + jnp.arange(width),
        "modulation": rearrange(modulation, "n h w g k -> k (n g) h w 1").astype(images.dtype),
        "kernel": rearrange(kernel, "p q c o -> (p q) c o"),
    }
    images = jnp.pad(rearrange(images, "n h w (g c) -> (n g) h w c", g=groups), ((0, 0), (1, 1), (1, 1), (0, 0)))

    @jax.checkpoint
    def of_tap(images, tap):
        sampled = sample_bilinear(images, tap["rows"], tap["columns"], border=True) * tap["modulation"]
        return matmul(rearrange(sampled, "(n g) h w c -> n h w (g c)", n=batch), tap["kernel"], jnp.float32)

    def add_tap(total, tap):
        return total + of_tap(images, tap), None

    total, _ = jax.lax.scan(add_tap, jnp.zeros((batch, height, width, kernel.shape[-1])), taps)
    return total.astype(images.dtype)


class DeformableAlignment(nn.Module):
    """Features of the two frames before, brought to this one by a deformable convolution that flow guides.

    previous, before: [N, H, W, C] of the last frame and of that before it; current: [N, H, W, C]; flow, flow_before:
    float32 [N, H, W, 2], (dx, dy) in pixels from this frame to each of them. Returns [N, H, W, C]. The first half of
    the groups moves the last frame, the second half that before it. Offsets are float32 whatever `dtype` is.
    """

    features: int
    groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        previous: jax.Array,
        before: jax.Array,
        current: jax.Array,
        flow: jax.Array,
        flow_before: jax.Array,
    ) -> jax.Array:
        condition = [warp(previous, flow), current, warp(before, flow_before), flow, flow_before]
        hidden = jnp.concatenate([x.astype(self.dtype) for x in condition], axis=-1)
        for layer in (0, 2, 4):
            hidden = Conv(self.features, dtype=self.dtype, name=f"conv_offset_{layer}")(hidden)
            hidden = nn.leaky_relu(hidden, 0.1)
        # Starts as a plain convolution of what the flow finds, every tap at half its weight.
        moves = Conv(3 * _TAPS**2 * self.groups, kernel_init=nn.initializers.zeros, name="conv_offset_6")
        offsets, modulation = jnp.split(moves(hidden.astype(jnp.float32)), [2 * _TAPS**2 * self.groups], axis=-1)
        offsets = rearrange(
            _LARGEST_OFFSET * jnp.tanh(offsets), "n h w (half g k xy) -> n h w half g k xy", half=2, k=_TAPS**2, xy=2
        )
        flows = jnp.stack([flow, flow_before], axis=3)[..., None, None, ::-1]
        offsets = rearrange(offsets + flows, "n h w half g k xy -> n h w (half g) k xy")
        modulation = rearrange(nn.sigmoid(modulation), "n h w (g k) -> n h w g k", k=_TAPS**2)

        kernel_init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", kernel_init, (_TAPS, _TAPS, 2 * self.features, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        both = jnp.concatenate([previous, before], axis=-1).astype(self.dtype)
        return add_bias(deformable_conv(both, offsets, modulation, kernel), bias)
