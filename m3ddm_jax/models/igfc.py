"""IGFC: flow under a mask completed from the flows before and after it, which motion's inertia carries to its time.

Source: Inertia-Guided Flow Completion and Style Fusion for Video Inpainting (Zhang et al., CVPR 2022).
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from m3ddm_jax.flow.warping import splat
from m3ddm_jax.models.gated import ConvBlock, ResidualBlock, UpsampledConv, doubled
from m3ddm_jax.models.layers import Dtype
from m3ddm_jax.models.resampling import resize_bilinear

_DOWNSCALE = 4  # of the feature maps
_MULTIPLE = 2 * _DOWNSCALE  # the attention halves them once more


class SpatialAttention(nn.Module):
    """How much a reference tells at each cell: target and reference [N, h, w, C] -> [N, h, w, 1], of any sign."""

    gated: bool = False
    use_bias: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, target: jax.Array, reference: jax.Array) -> jax.Array:
        conv = partial(ConvBlock, gated=self.gated, use_bias=self.use_bias, dtype=self.dtype)
        features = target.shape[-1]
        shrunk = [conv(features // 4, 1, name=f"shrink{i}")(x) for i, x in ((1, target), (2, reference))]
        x = conv(features // 4 * 3, name="conv1")(jnp.concatenate(shrunk, axis=-1))
        x = conv(features, stride=2, name="conv2")(x)
        x = conv(features, name="conv3")(x)
        x = conv(features // 2, name="conv4")(x)
        x = UpsampledConv(features // 4, doubled, conv, name="conv5")(x)
        return conv(1, activate=False, name="conv6")(x)


class FlowFusion(nn.Module):
    """What all times know of the target: references [B, T, h, w, C], the target's own among them -> [B, h, w, C].

    target: [B, h, w, C]; it stays where mask [B, h, w, 1] is 0.
    """

    gated: bool = False
    use_bias: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, target: jax.Array, references: jax.Array, mask: jax.Array) -> jax.Array:
        options = {"gated": self.gated, "use_bias": self.use_bias, "dtype": self.dtype}
        frames = references.shape[1]
        targets = jnp.broadcast_to(target[:, None], references.shape)
        targets, flat = (rearrange(x, "b t h w c -> (b t) h w c") for x in (targets, references))
        told = SpatialAttention(**options, name="spa")(targets, flat)
        told = rearrange(told, "(b t) h w 1 -> b h w t", t=frames)
        weights = ConvBlock(frames, 1, **options, name="temporal_selection")(told)
        fused = jnp.einsum("bhwt,bthwc->bhwc", weights, references)
        return mask * fused + (1 - mask) * target


class IGFC(nn.Module):
    """Inertia-guided flow completion, of the flow in the middle of `num_frames`.

    Attributes:
      width: of the widest feature maps; those at a quarter of the size have four times as many channels.
      num_frames: flows it is given, an odd number.
      interval: how many frames apart these are in the video, for who picks them.
      res_blocks: residual blocks of the encoder.
      gated: whether convolutions are gated.
      pass_mask: whether the encoder sees the masks.
      use_residual: what it finds is added to the flow that it was given.
      use_bias: of all convolutions but those of residual blocks, which have one.
      dtype: compute dtype; parameters and flows are float32.
    """

    width: int = 48
    num_frames: int = 3
    interval: int = 3
    res_blocks: int = 1
    gated: bool = False
    pass_mask: bool = True
    use_residual: bool = True
    use_bias: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, flows: jax.Array, masks: jax.Array, shifts: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The middle flow completed, and first guesses at it at a quarter and at half of the size.

        flows: [B, T, H, W, 2], (dx, dy) in pixels to the frame after, smoothly filled where masks [B, T, H, W, 1] are
        1. shifts: [T] or [B, T], by how many frames the middle is later than each; by default they follow one another.
        Returns float32 [B, H, W, 2], all of it drawn anew, in pixels; [B, H/4, W/4, 2] and [B, H/2, W/2, 2].
        Raises ValueError for another number of flows, other shapes, and where H or W is no multiple of 8.
        """
        self._check(flows.shape, masks.shape)
        options = {"gated": self.gated, "use_bias": self.use_bias, "dtype": self.dtype}
        conv, up = partial(ConvBlock, **options), partial(UpsampledConv, upsample=doubled)
        c, middle = self.width, self.num_frames // 2
        flows, masks = flows.astype(jnp.float32), masks.astype(jnp.float32)

        x = jnp.concatenate([flows, masks], axis=-1) if self.pass_mask else flows
        x = rearrange(x, "b t h w c -> (b t) h w c").astype(self.dtype)
        half = conv(2 * c, stride=2, name="conv2")(conv(c, 5, reflect=True, name="conv1_1")(x))
        quarter = conv(4 * c, stride=2, name="conv4")(conv(2 * c, name="conv3")(half))
        x = quarter
        for block in range(self.res_blocks):
            x = ResidualBlock(self.dtype, name=f"middleLayer_{block}")(x)
        half, quarter, x = (rearrange(y, "(b t) h w c -> b t h w c", t=self.num_frames) for y in (half, quarter, x))

        carried = self._carried(x, flows, shifts)
        hole = masks[:, middle, ::_DOWNSCALE, ::_DOWNSCALE].astype(self.dtype)
        x = FlowFusion(**options, name="flowFuseLayer")(x[:, middle], carried, hole)
        for layer, dilation in enumerate((8, 4, 2, 1), start=1):
            x = conv(4 * c, dilation=dilation, name=f"dilate_conv{layer}")(x)
        flow_quarter = conv(2, 1, name="recon4")(x)
        x = up(2 * c, conv=conv, name="deconv1")(jnp.concatenate([x, quarter[:, middle]], axis=-1))
        x = conv(2 * c, name="conv6")(conv(2 * c, name="conv5")(x))
        flow_half = conv(2, 1, name="recon2")(x)
        x = up(c, conv=conv, name="deconv2")(jnp.concatenate([x, half[:, middle]], axis=-1))
        flow = conv(2, activate=False, name="final")(conv(c // 2, name="conv7")(x)).astype(jnp.float32)
        if self.use_residual:
            flow = flow + flows[:, middle]
        return flow, flow_quarter.astype(jnp.float32), flow_half.astype(jnp.float32)

    def _carried(self, features: jax.Array, flows: jax.Array, shifts: jax.Array | None) -> jax.Array:
        """Features [B, T, h, w, C] where inertia brings them at the middle's time: each goes on along its own flow."""
        batch, frames, height, width, _ = features.shape
        if shifts is None:
            shifts = frames // 2 - jnp.arange(frames)
        shifts = jnp.broadcast_to(jnp.asarray(shifts, jnp.float32), (batch, frames))
        flat = rearrange(flows, "b t h w xy -> (b t) h w xy")
        small = resize_bilinear(flat, height, width, align_corners=False) / _DOWNSCALE
        motion = rearrange(shifts, "b t -> (b t) 1 1 1") * small
        carried = splat(rearrange(features, "b t h w c -> (b t) h w c"), motion)
        carried = rearrange(carried, "(b t) h w c -> b t h w c", t=frames)
        # The middle stays as it is, whereas a splat along zero flow would drop the last row and column.
        return carried.at[:, frames // 2].set(features[:, frames // 2])

    def _check(self, flows: tuple[int, ...], masks: tuple[int, ...]) -> None:
        if self.num_frames % 2 == 0:
            raise ValueError(f"num_frames is {self.num_frames}: odd numbers are accepted")
        if len(flows) != 5 or flows[-1] != 2 or flows[1] != self.num_frames:
            raise ValueError(f"flows are {list(flows)}: [B, {self.num_frames}, H, W, 2] are accepted")
        if masks != (*flows[:-1], 1):
            raise ValueError(f"masks are {list(masks)}: {[*flows[:-1], 1]}, as the flows, are accepted")
        if any(side % _MULTIPLE for side in flows[2:4]):
            raise ValueError(f"flows are {flows[3]}x{flows[2]}: sides that are multiples of {_MULTIPLE} are accepted")
