"""E2FGVI-HQ: video inpainting by flow, propagated features and focal transformers, in one network.

Source: Towards An End-to-End Framework for Flow-Guided Video Inpainting (Li et al., CVPR 2022), high-quality variant.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from m3ddm_jax.flow.warping import warp
from m3ddm_jax.models.deformable import DeformableAlignment
from m3ddm_jax.models.focal import STRIDE, FocalBlock, SoftComposition, SoftSplit
from m3ddm_jax.models.layers import Conv, Dense, Dtype
from m3ddm_jax.models.remat import rematerialised
from m3ddm_jax.models.resampling import resize_bilinear
from m3ddm_jax.models.spynet import SPyNet
from m3ddm_jax.models.weight_gradients import add_bias, convolve

_DOWNSCALE = 4  # of the feature maps
# Of each layer of the encoder: width as a multiple of the network's, stride, and groups of the layers that see the
# fourth one's output once more.
_PLAIN_LAYERS = ((1, 2), (1, 1), (2, 2), (4, 1), (6, 1))
_GROUPED_LAYERS = ((8, 2), (6, 4), (4, 8), (2, 1))
_SKIPPED_LAYER = 3

Flows = tuple[jax.Array, jax.Array]
"""float32 [B, T-1, h, w, 2] each, (dx, dy) in pixels: from each frame to the next, and from the next back to it."""


class GroupedConv(nn.Module):
    """3x3 convolution, padding 1, of each group of channels by itself: [N, H, W, C] -> [N, H, W, features].

    On CPU it is a convolution a group: XLA's grouped one takes several times as long there, with the same result.
    """

    features: int
    groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel_shape = (3, 3, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), kernel_shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        conv = functools.partial(convolve, stride=1, padding=((1, 1), (1, 1)))

        def apart(x: jax.Array, kernel: jax.Array) -> jax.Array:
            parts = zip(*(jnp.split(array, self.groups, axis=-1) for array in (x, kernel)), strict=True)
            return jnp.concatenate([conv(*part) for part in parts], axis=-1)

        together = functools.partial(conv, groups=self.groups)
        return add_bias(jax.lax.platform_dependent(x.astype(self.dtype), kernel, cpu=apart, default=together), bias)


class Encoder(nn.Module):
    """Images [N, H, W, 3] -> feature maps [N, H/4, W/4, 2 * width]."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.astype(self.dtype)
        for layer, (factor, stride) in enumerate(_PLAIN_LAYERS):
            x = Conv(factor * self.width, stride=stride, dtype=self.dtype, name=f"layers_{2 * layer}")(x)
            x = nn.leaky_relu(x, 0.2)
            if layer == _SKIPPED_LAYER:
                skipped = x
        for layer, (factor, groups) in enumerate(_GROUPED_LAYERS, start=len(_PLAIN_LAYERS)):
            parts = [rearrange(part, "n h w (g c) -> n h w g c", g=groups) for part in (skipped, x)]
            x = rearrange(jnp.concatenate(parts, axis=-1), "n h w g c -> n h w (g c)")
            x = GroupedConv(factor * self.width, groups, self.dtype, name=f"layers_{2 * layer}")(x)
            x = nn.leaky_relu(x, 0.2)
        return x


class Decoder(nn.Module):
    """Feature maps [N, h, w, 2 * width] -> images float32 [N, 4h, 4w, 3] in [-1, 1]."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(Conv, dtype=self.dtype)
        x = nn.leaky_relu(conv(2 * self.width, name="layers_0_conv")(_doubled(x)), 0.2)
        x = nn.leaky_relu(conv(self.width, name="layers_2")(x), 0.2)
        x = nn.leaky_relu(conv(self.width, name="layers_4_conv")(_doubled(x)), 0.2)
        return jnp.tanh(conv(3, name="layers_6")(x).astype(jnp.float32))


def _doubled(x: jax.Array) -> jax.Array:
    return resize_bilinear(x, 2 * x.shape[1], 2 * x.shape[2], align_corners=True)


class PropagationPass(nn.Module):
    """What each frame takes over from the two before it, in the order in which the frames come.

    inputs: [T, B, h, w, C'], of which the first `features` channels are the frame's own; flows: float32
    [T-1, B, h, w, 2], from each frame but the first to that before it. Returns [T, B, h, w, features].
    """

    features: int
    deform_groups: int
    dtype: Dtype = jnp.float32

    def setup(self):
        self.deform_align = DeformableAlignment(self.features, self.deform_groups, self.dtype)
        self.backbone_0 = Conv(self.features, dtype=self.dtype)
        self.backbone_2 = Conv(self.features, dtype=self.dtype)

    def __call__(self, inputs: jax.Array, flows: jax.Array) -> jax.Array:
        nothing = jnp.zeros((*inputs.shape[1:-1], self.features), inputs.dtype)
        two_steps = flows[1:] + jax.vmap(warp)(flows[:-1], flows[1:])
        two_steps = jnp.concatenate([jnp.zeros_like(flows[:1]), two_steps])
        scan = nn.scan(PropagationPass._step, variable_broadcast="params", split_rngs={"params": False})
        first = self._refined(inputs[0], nothing)
        _, rest = scan(self, (first, nothing), (inputs[1:], flows, two_steps))
        return jnp.concatenate([first[None], rest])

    def _step(self, states, frame):
        previous, before = states
        current, flow, flow_before = frame
        aligned = self.deform_align(previous, before, current[..., : self.features], flow, flow_before)
        state = self._refined(current, aligned)
        return (state, previous), state

    def _refined(self, current: jax.Array, state: jax.Array) -> jax.Array:
        hidden = nn.leaky_relu(self.backbone_0(jnp.concatenate([current, state], axis=-1)), 0.1)
        return state + self.backbone_2(hidden)


class FeaturePropagation(nn.Module):
    """Features [B, T, h, w, features] of consecutive frames and their flows -> the same, joined backward and forward.

    fix_flow_index: see E2FGVI.
    """

    features: int
    deform_groups: int
    fix_flow_index: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, flows: Flows) -> jax.Array:
        forward_flows, backward_flows = (rearrange(flow, "b t h w xy -> t b h w xy") for flow in flows)
        frames = rearrange(features, "b t h w c -> t b h w c")
        if self.fix_flow_index:
            forward_flows = forward_flows[::-1]
        backward = PropagationPass(self.features, self.deform_groups, self.dtype, name="backward_")
        from_behind = backward(frames[::-1], forward_flows)[::-1]
        forward = PropagationPass(self.features, self.deform_groups, self.dtype, name="forward_")
        from_before = forward(jnp.concatenate([frames, from_behind], axis=-1), backward_flows)
        fused = Dense(self.features, dtype=self.dtype, name="fusion")
        joined = fused(jnp.concatenate([from_behind, from_before], axis=-1))
        return features + rearrange(joined, "t b h w c -> b t h w c")


class E2FGVI(nn.Module):
    """E2FGVI-HQ; the defaults are the published model.

    Attributes:
      width: of the narrowest layer; feature maps have twice as many channels.
      flow_width: of SPyNet's narrowest hidden layer.
      hidden: width of a token.
      depth, num_heads: of the transformer.
      window: tokens of an attention window, vertically and horizontally.
      ffn_channels: of a cell of the feed-forward's hidden patches.
      deform_groups: groups of channels that an alignment moves together; even.
      fix_flow_index: whether the backward pass takes each frame's own flow. The published network takes them in the
        order of the clip, while it goes through the frames from the last to the first, and its weights know no other;
        the two agree where motion is constant.
      dtype: compute dtype; parameters, flow, offsets, softmax and norms stay float32.
      remat: what the transformer's blocks keep for the backward pass, one of `models.remat.REMAT`.
    """

    width: int = 64
    flow_width: int = 16
    hidden: int = 512
    depth: int = 8
    num_heads: int = 4
    window: Sequence[int] = (5, 9)
    ffn_channels: int = 40
    deform_groups: int = 16
    fix_flow_index: bool = False
    dtype: Dtype = jnp.float32
    remat: str | bool = "none"

    def setup(self):
        features, dtype = 2 * self.width, self.dtype
        self.encoder = Encoder(self.width, dtype)
        self.update_spynet = SPyNet(self.flow_width)
        self.feat_prop_module = FeaturePropagation(features, self.deform_groups, self.fix_flow_index, dtype)
        self.ss = SoftSplit(self.hidden, dtype)
        block = rematerialised(FocalBlock, self.remat)
        self.transformer = [
            block(self.num_heads, tuple(self.window), self.ffn_channels, dtype) for _ in range(self.depth)
        ]
        self.sc = SoftComposition(features, dtype)
        self.decoder = Decoder(self.width, dtype)

    @property
    def size_multiple(self) -> tuple[int, int]:
        """What height and width of the frames must be multiples of: 60 and 108 with the published windows."""
        rows, columns = self.window
        return _DOWNSCALE * STRIDE * rows, _DOWNSCALE * STRIDE * columns

    def __call__(
        self, masked_frames: jax.Array, *, num_local: int, local_only: bool = False
    ) -> tuple[jax.Array, Flows]:
        """Complete frames, and the flow between the local ones.

        masked_frames: [B, T, H, W, 3] in [-1, 1], 0 where unknown; the first num_local (2 to T) follow one another in
        time, the others are references from anywhere. Returns all frames, or with local_only the local ones, float32
        [B, T, H, W, 3] in [-1, 1], what was known drawn anew, and the flows of the local frames at a quarter of the
        size, in pixels of that size.
        Raises ValueError for other shapes and numbers, and where H or W is no multiple of `size_multiple`.
        """
        self._check(masked_frames.shape, num_local)
        batch = masked_frames.shape[0]
        flows = self.flows(masked_frames[:, :num_local])
        features = self.encoder(rearrange(masked_frames, "b t h w c -> (b t) h w c"))
        features = rearrange(features, "(b t) h w c -> b t h w c", b=batch)
        local = self.feat_prop_module(features[:, :num_local], flows)
        features = jnp.concatenate([local, features[:, num_local:]], axis=1)

        tokens = self.ss(rearrange(features, "b t h w c -> (b t) h w c"))
        tokens = rearrange(tokens, "(b t) i j c -> b t i j c", b=batch)
        for block in self.transformer:
            tokens = block(tokens)
        if local_only:
            features, tokens = local, tokens[:, :num_local]
        features, tokens = (rearrange(x, "b t i j c -> (b t) i j c") for x in (features, tokens))
        frames = self.decoder(features + self.sc(tokens))
        return rearrange(frames, "(b t) h w c -> b t h w c", b=batch), flows

    def flows(self, frames: jax.Array) -> Flows:
        """Flow between consecutive frames [B, T, H, W, 3] in [-1, 1], T from 2, estimated at a quarter of their size.

        H and W: multiples of 4. Of true frames, it is what the flow between masked ones should be.
        """
        batch, _, height, width, _ = frames.shape
        small = rearrange((frames.astype(jnp.float32) + 1) / 2, "b t h w c -> (b t) h w c")
        small = resize_bilinear(small, height // _DOWNSCALE, width // _DOWNSCALE, align_corners=True)
        small = rearrange(small, "(b t) h w c -> b t h w c", b=batch)
        earlier, later = (rearrange(x, "b t h w c -> (b t) h w c") for x in (small[:, :-1], small[:, 1:]))
        flow = self.update_spynet(jnp.concatenate([earlier, later]), jnp.concatenate([later, earlier]))
        forward, backward = rearrange(flow, "(way b t) h w xy -> way b t h w xy", way=2, b=batch)
        return forward, backward

    def _check(self, shape: Sequence[int], num_local: int) -> None:
        if len(shape) != 5 or shape[-1] != 3:
            raise ValueError(f"E2FGVI completes frames [B, T, H, W, 3], not {list(shape)}")
        if not 2 <= num_local <= shape[1]:
            raise ValueError(f"{num_local} of {shape[1]} frames are local: 2 or more, and no more than there are")
        if any(side % multiple for side, multiple in zip(shape[2:4], self.size_multiple, strict=True)):
            rows, columns = self.size_multiple
            raise ValueError(
                f"frames are {shape[3]}x{shape[2]}: widths that are multiples of {columns} and heights that are "
                f"multiples of {rows} are accepted"
            )
