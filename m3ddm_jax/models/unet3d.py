"""M3DDM's masked 3D U-Net and its global-frame encoder.

Source: Hierarchical Masked 3D Diffusion Model for Video Outpainting (Fan et al., ACM MM 2023) and its official code,
whose parameter names the tree keeps (`a.0.b` is `a_0/b` here).
"""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from m3ddm_jax.models.attention import KeysValues, SpatialTransformer, TransformerBlock
from m3ddm_jax.models.layers import (
    Conv,
    Dense,
    Dtype,
    EmbeddingMLP,
    FrameConv,
    GroupNorm,
    Pseudo3DConv,
    identity_kernel,
    sinusoidal_embedding,
)
from m3ddm_jax.models.remat import rematerialised
from m3ddm_jax.models.stages import (
    BlockInputs,
    Context,
    attentions_of,
    check_sides,
    make_blocks,
    run_unet,
    size_multiple,
    tensor_limit,
)
from m3ddm_jax.models.weight_gradients import add_bias
from m3ddm_jax.parallel.constrain import cells_to_frames, frames_to_cells, join_frames, split_frames

_TIMESTEP_PERIOD = 1000.0
_FPS_PERIOD = 30.0
_FRAME_PERIOD = 1000.0
_ENCODER_STRIDES = (1, 1, 2, 1, 1)


class ResnetBlock(nn.Module):
    """Residual block of two pseudo-3D convolutions with timestep and fps embeddings [B, D] added between.

    x: [B, T, H, W, C] -> [B, T, H, W, features]; group norms are clip-level.
    """

    features: int
    num_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, time_embedding: jax.Array, fps_embedding: jax.Array) -> jax.Array:
        x = split_frames(x)
        hidden = nn.silu(GroupNorm(self.num_groups, dtype=self.dtype, name="norm1")(x))
        hidden = Pseudo3DConv(self.features, self.dtype, name="conv1")(hidden)
        condition = Dense(self.features, dtype=self.dtype, name="time_emb_proj")(nn.silu(time_embedding))
        condition += Dense(self.features, dtype=self.dtype, name="fps_emb_proj")(nn.silu(fps_embedding))
        hidden += condition[:, None, None, None]
        hidden = nn.silu(GroupNorm(self.num_groups, dtype=self.dtype, name="norm2")(hidden))
        hidden = Pseudo3DConv(self.features, self.dtype, name="conv2")(hidden)
        if x.shape[-1] != self.features:
            x = Dense(self.features, dtype=self.dtype, name="conv_shortcut")(x)
        return split_frames(x + hidden)


class SpatioTemporalTransformer(SpatialTransformer):
    """A transformer over the cells of each frame with cross-attention, then one over the frames of each cell.

    x: [B, T, H, W, features]; context, shared by all frames: as `models.attention.Attention` takes it. Group norms: per
    frame in the spatial half, clip-level in the temporal one.
    """

    frame_embedding_dim: int = 320

    def setup(self):
        super().setup()
        features, dtype = self.features, self.dtype
        self.temporal_position_embed_proj = EmbeddingMLP(features)
        self.norm2 = GroupNorm(self.num_groups, epsilon=1e-6, dtype=dtype)
        self.proj_in2 = Dense(features, dtype=dtype, kernel_init=identity_kernel)
        self.transformer_blocks2_0 = TransformerBlock(features, self.num_heads, dtype, attention=self.attention)
        self.proj_out2 = Dense(features, dtype=dtype, kernel_init=identity_kernel)

    def __call__(self, x: jax.Array, context: jax.Array | KeysValues) -> jax.Array:
        return self.time(split_frames(self.space(x, context)))

    def time(self, x: jax.Array) -> jax.Array:
        """The half between frames, with its residual; where frames are split over devices, it splits cells instead."""
        batch, frames, height, _, _ = x.shape
        frame_embedding = sinusoidal_embedding(jnp.arange(frames), self.frame_embedding_dim, _FRAME_PERIOD)
        frame_embedding = self.temporal_position_embed_proj(frame_embedding)
        tokens = frames_to_cells(rearrange(split_frames(self.norm2(x)), "b f h w c -> b f (h w) c"))
        tokens = self.proj_in2(rearrange(tokens, "b f p c -> (b p) f c"))
        tokens = self.transformer_blocks2_0(add_bias(tokens, frame_embedding))
        tokens = self.proj_out2(tokens)
        tokens = cells_to_frames(rearrange(tokens, "(b p) f c -> b f p c", b=batch))
        return x + split_frames(rearrange(tokens, "b f (h w) c -> b f h w c", h=height))


class ConvNormLayer(nn.Module):
    """Convolution without bias, then BatchNorm in float32: [N, h, w, C] -> [N, h/stride, w/stride, features].

    BatchNorm uses running statistics, in training too; with `calibrate` it sets them from this batch instead.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, calibrate: bool) -> jax.Array:
        size, padding = self.kernel_size, self.kernel_size // 2
        x = Conv(self.features, size, self.stride, padding, False, self.dtype, name="convolution")(x)
        norm = nn.BatchNorm(use_running_average=not calibrate, momentum=0.0, epsilon=1e-5, name="normalization")
        return norm(x.astype(jnp.float32)).astype(self.dtype)


class BottleneckLayer(nn.Module):
    """ResNet bottleneck: 1x1 to features/4, 3x3, 1x1 to features; a 1x1 shortcut where the stage begins."""

    features: int
    stride: int
    shortcut: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, calibrate: bool) -> jax.Array:
        narrow = self.features // 4
        hidden = nn.relu(ConvNormLayer(narrow, dtype=self.dtype, name="layer_0")(x, calibrate))
        hidden = nn.relu(ConvNormLayer(narrow, 3, self.stride, dtype=self.dtype, name="layer_1")(hidden, calibrate))
        hidden = ConvNormLayer(self.features, dtype=self.dtype, name="layer_2")(hidden, calibrate)
        if self.shortcut:
            x = ConvNormLayer(self.features, 1, self.stride, dtype=self.dtype, name="shortcut")(x, calibrate)
        return nn.relu(x + hidden)


class GlobalFrameEncoder(nn.Module):
    """Latents of global frames [N, h, w, C] -> features [N, h/2 - 2, w/2 - 2, features]; five stages of two layers."""

    widths: Sequence[int]
    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, calibrate: bool = False) -> jax.Array:
        for stage, (width, stride) in enumerate(zip(self.widths, _ENCODER_STRIDES, strict=True)):
            for layer in range(2):
                x = BottleneckLayer(
                    width,
                    stride=stride if layer == 0 else 1,
                    shortcut=layer == 0,
                    dtype=self.dtype,
                    name=f"resnet_layer_{stage}_layers_{layer}",
                )(x, calibrate)
        return Conv(self.features, padding=0, dtype=self.dtype, name="convolution")(x)


class M3DDMUNet(nn.Module):
    """M3DDM's denoising U-Net; the defaults are the published model, 1,299,279,320 parameters.

    Attributes:
      latent_channels: channels of the latents, C below.
      block_out_channels: width of each level; every level but the last halves the size.
      attention_levels: which levels have transformers; the decoder mirrors it.
      layers_per_block: resnets a level in the encoder; the decoder has one more.
      num_heads, norm_num_groups: of every attention, of every group norm.
      cross_attention_dim: width of a context token.
      global_widths: widths of the global-frame encoder's five stages.
      frame_embedding_dim: width of the frame index's sinusoid.
      dtype: compute dtype; parameters, norms, softmax and embeddings stay float32.
      remat: what resnets and transformers keep for the backward pass, one of `models.remat.REMAT`.
      attention: the form of attention, one of `models.attention.ATTENTION`.
    """

    latent_channels: int = 4
    block_out_channels: Sequence[int] = (320, 640, 1280, 1280)
    attention_levels: Sequence[bool] = (True, True, True, False)
    layers_per_block: int = 2
    num_heads: int = 8
    norm_num_groups: int = 32
    cross_attention_dim: int = 320
    global_widths: Sequence[int] = (8, 16, 32, 64, 128)
    frame_embedding_dim: int = 320
    dtype: Dtype = jnp.float32
    remat: str | bool = "none"
    attention: str = "auto"
    global_condition: ClassVar[str] = "latents"

    @property
    def size_multiple(self) -> int:
        """Of latent cells, what both sides are multiples of."""
        return size_multiple(len(self.block_out_channels))

    @nn.nowrap
    def mesh_limits(self, num_frames: int) -> dict[str, int]:
        """As `types.Denoiser.mesh_limits`: temporal layers exchange frames that are split over `context`."""
        widths, heads = self.block_out_channels, (self.num_heads,) * len(self.block_out_channels)
        attentions = attentions_of(widths, self.attention_levels, heads)
        return {"context": num_frames, "tensor": tensor_limit(widths, attentions)}

    def setup(self):
        widths = tuple(self.block_out_channels)
        groups, dtype = self.norm_num_groups, self.dtype
        resnet, transformer = (rematerialised(block, self.remat) for block in (ResnetBlock, SpatioTemporalTransformer))
        self.time_embedding = EmbeddingMLP(4 * widths[0])
        self.fps_embedding = EmbeddingMLP(4 * widths[0])
        self.conv_in = FrameConv(widths[0], dtype=dtype)
        self.down_blocks, self.mid_block, self.up_blocks = make_blocks(
            widths,
            self.attention_levels,
            self.layers_per_block,
            resnet=lambda level: resnet(widths[level], groups, dtype),
            transformer=lambda level: transformer(
                widths[level],
                self.num_heads,
                groups,
                dtype,
                attention=self.attention,
                frame_embedding_dim=self.frame_embedding_dim,
            ),
            dtype=dtype,
        )
        self.conv_norm_out = GroupNorm(self.norm_num_groups, dtype=self.dtype)
        self.conv_out = Pseudo3DConv(self.latent_channels, dtype=self.dtype)
        self.global_img_encoder = GlobalFrameEncoder(self.global_widths, self.cross_attention_dim, dtype=self.dtype)

    def encode_context(self, global_latents: jax.Array) -> Context:
        """What `context=` takes, computed once a video: each cross-attention's keys and values of the global frames.

        global_latents: [B, G, h, w, C], h and w at least 5 -> arrays [B, G * (h/2 - 2) * (w/2 - 2), heads, D] by block
        and transformer.
        """
        tokens = self.context_tokens(global_latents)
        return tuple(block.keys_values(tokens) for block in (*self.down_blocks, self.mid_block, *self.up_blocks))

    def context_tokens(self, global_latents: jax.Array, calibrate: bool = False) -> jax.Array:
        """Tokens [B, G * (h/2 - 2) * (w/2 - 2), cross_attention_dim] of global latents [B, G, h, w, C].

        Raises ValueError where h or w is less than 5.
        """
        if min(global_latents.shape[2:4]) < 5:
            raise ValueError(f"global latents of {global_latents.shape[2:4]} cells are too small: 5 or more a side")
        frames = rearrange(split_frames(global_latents), "b g h w c -> (b g) h w c")
        features = self.global_img_encoder(frames, calibrate)
        features = rearrange(features, "(b g) h w c -> b (g h w) c", b=global_latents.shape[0])
        return join_frames(features).astype(self.dtype)

    def calibrate(self, global_latents: jax.Array) -> jax.Array:
        """As `context_tokens`, but sets the BatchNorm statistics from this batch (mutable=["batch_stats"])."""
        return self.context_tokens(global_latents, calibrate=True)

    def __call__(
        self,
        latents: jax.Array,
        mask: jax.Array,
        masked_latents: jax.Array,
        *,
        timestep: jax.Array,
        fps: jax.Array,
        global_latents: jax.Array | None = None,
        context: Context | jax.Array | None = None,
    ) -> jax.Array:
        """Predict the diffusion target of noisy latents.

        latents, masked_latents: [B, T, h, w, C]; mask: [B, T, h, w, 1], 1 = generate; timestep, fps: [B] or scalars;
        global_latents: [B, G, h', w', C], or context: what `encode_context` or `context_tokens` returned, for B clips
        or for fewer that clips share (clip i takes i modulo their number). Returns float32 [B, T, h, w, C].
        Raises ValueError where h or w is no multiple of 2 ** (levels - 1), or not exactly one context is given.
        """
        check_sides(latents, len(self.block_out_channels))
        if (global_latents is None) == (context is None):
            raise ValueError("give exactly one of global_latents and context")
        if context is None:
            context = self.context_tokens(global_latents)
        batch = latents.shape[0]
        width = self.block_out_channels[0]
        timestep, fps = (jnp.broadcast_to(jnp.asarray(x), (batch,)) for x in (timestep, fps))
        time_embedding = self.time_embedding(sinusoidal_embedding(timestep, width, _TIMESTEP_PERIOD))
        fps_embedding = self.fps_embedding(sinusoidal_embedding(fps, width, _FPS_PERIOD))
        conditions = BlockInputs(resnet=(time_embedding, fps_embedding))
        inputs = split_frames(jnp.concatenate([latents, masked_latents, mask], axis=-1))
        x = self.conv_in(inputs.astype(self.dtype))
        x = run_unet(self.down_blocks, self.mid_block, self.up_blocks, x, conditions, context)
        x = nn.silu(self.conv_norm_out(x))
        return self.conv_out(x).astype(jnp.float32)
