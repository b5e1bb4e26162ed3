"""GlobalPaint's denoiser: the inpainting U-Net of Stable Diffusion, joined over frames and guided by global tokens.

Source: GlobalPaint (Pan et al., 2026): a pretrained image inpainting network, enhanced space-time modules, global
tokens in cross-attention. Its sizes and formulas are unpublished and designed here. What works inside frames keeps
diffusers' parameter names (`a.0.b` is `a_0/b` here).
"""

import re
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange

from m3ddm_jax.models.attention import Attention, KeysValues, SpatialTransformer
from m3ddm_jax.models.est import EnhancedSpaceTime, TemporalResidual
from m3ddm_jax.models.global_tokens import Evidence, GlobalTokens
from m3ddm_jax.models.layers import Dense, Dtype, EmbeddingMLP, FrameConv, GroupNorm, per_frame, sinusoidal_embedding
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

_TIMESTEP_PERIOD = 10_000.0
_FPS_PERIOD = 30.0
# A rate of 0, as that of a still, would make times of its frames infinite.
_LEAST_FPS = 1e-3
_PROMPT_TOKENS = 77

NEW_PARAMETERS = re.compile(
    r"\.temporal\.|\.est\.|\.to_[kv]_global\.|\.gate$"
    r"|(^|\.)(fps_embedding|null_tokens|empty_prompt|global_extractor)(\.|$)"
)
"""What the image network lacks, by paths joined by dots: what joins frames, the clip's rate, the tokens of a prompt and
of a video, and what makes and reads these."""


@flax.struct.dataclass
class TextAndVideo:
    """What the denoiser attends to: tokens [B, S, D] of a text and of a video, or a layer's keys and values of both."""

    text: jax.Array | KeysValues
    video: jax.Array | KeysValues


class DecoupledAttention(Attention):
    """Attention on a text, and beside it, through a gate a head that starts shut, on the tokens of a video.

    context: a TextAndVideo, both parts as `Attention` takes its context. Source: IP-Adapter (Ye et al., 2023) for the
    keys and values apart, Flamingo (Alayrac et al., NeurIPS 2022) for the gate.
    """

    # Behind a gate that is shut, an output that starts at zero would leave both without a gradient.
    output_init: Callable = nn.initializers.lecun_normal()

    def setup(self):
        super().setup()
        self.to_k_global = Dense(self.features, use_bias=False, dtype=self.dtype)
        self.to_v_global = Dense(self.features, use_bias=False, dtype=self.dtype)
        self.gate = self.param("gate", nn.initializers.zeros, (self.num_heads,))

    def keys_values(self, context: TextAndVideo) -> TextAndVideo:
        """Keys and values of both parts, for the calls that share them."""
        keys, values = (self.split_heads(layer(context.video)) for layer in (self.to_k_global, self.to_v_global))
        return TextAndVideo(super().keys_values(context.text), KeysValues(keys, values))

    def __call__(self, tokens: jax.Array, context: TextAndVideo) -> jax.Array:
        if not isinstance(context.text, KeysValues):
            context = self.keys_values(context)
        query = self.split_heads(self.to_q(tokens))
        # Rounded behind the product: the gate's gradient is then summed over clips in float32.
        video = (jnp.tanh(self.gate)[:, None] * self.attend(query, context.video)).astype(self.dtype)
        return self.project(self.attend(query, context.text) + video)


class VideoResnetBlock(nn.Module):
    """Residual block a frame with the timestep's embedding [B, D], then, where `temporal`, a convolution over frames.

    x: [B, T, H, W, C] -> [B, T, H, W, features]; group norms are per frame.
    """

    features: int
    num_groups: int
    temporal: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, time_embedding: jax.Array) -> jax.Array:
        def norm_silu(name: str, x: jax.Array) -> jax.Array:
            return nn.silu(per_frame(GroupNorm(self.num_groups, dtype=self.dtype, name=name), x))

        hidden = FrameConv(self.features, dtype=self.dtype, name="conv1")(norm_silu("norm1", x))
        condition = Dense(self.features, dtype=self.dtype, name="time_emb_proj")(nn.silu(time_embedding))
        hidden += rearrange(condition, "b c -> b 1 1 1 c")
        hidden = FrameConv(self.features, dtype=self.dtype, name="conv2")(norm_silu("norm2", hidden))
        if x.shape[-1] != self.features:
            x = Dense(self.features, dtype=self.dtype, name="conv_shortcut")(x)
        x = x + hidden
        return TemporalResidual(self.num_groups, self.dtype, name="temporal")(x) if self.temporal else x


class VideoTransformer(SpatialTransformer):
    """A spatial transformer, then an enhanced space-time module; seconds: [B, T], when each frame is shown."""

    space_time: Callable[[], nn.Module] | None = None

    def setup(self):
        super().setup()
        self.est = self.space_time()

    def __call__(self, x: jax.Array, context, seconds: jax.Array) -> jax.Array:
        return self.est(self.space(x, context), seconds)


class GlobalPaintUNet(nn.Module):
    """GlobalPaint's denoising U-Net; the defaults are Stable Diffusion 1.5's widths.

    At the start it makes of every frame what the image network makes of it, exactly, whatever `est` and the tokens are.

    Attributes:
      latent_channels: channels of the latents, C below.
      block_out_channels: width of each level; every level but the last halves the size.
      attention_levels: which levels have transformers; the decoder mirrors it.
      layers_per_block: resnets a level in the encoder; the decoder has one more.
      num_heads: of every attention, by level; Stable Diffusion 2 has (5, 10, 20, 20).
      norm_num_groups: of every group norm.
      text_dim: width of a text's tokens; 1024 in Stable Diffusion 2.
      est: what joins frames: "off", nothing; "1d", convolution and attention over frames; "1d+3d", windows besides.
      est_window: frames, rows and columns of a window, as in `est.EnhancedSpaceTime`.
      est_feed_forward: whether one follows the windows, on all levels but the first.
      global_guidance: whether what the whole video shows is distilled into global tokens, and attended to.
      num_global_tokens, global_tokens_dim: N and D of global tokens [B, N, D].
      patch_width: of the vision tower's tokens, which they are made of; ViT-H/14 has 1280.
      extractor_width, extractor_heads, frame_tokens: of what makes them, as `GlobalTokens` takes them.
      extractor_depths: blocks of its two levels, those for a frame and those for a video.
      dtype: compute dtype; parameters, norms, softmax and embeddings stay float32.
      remat: what resnets and transformers keep for the backward pass, one of `models.remat.REMAT`.
      attention: the form of attention in transformers and windows, one of `models.attention.ATTENTION`.
    """

    latent_channels: int = 4
    block_out_channels: Sequence[int] = (320, 640, 1280, 1280)
    attention_levels: Sequence[bool] = (True, True, True, False)
    layers_per_block: int = 2
    num_heads: Sequence[int] = (8, 8, 8, 8)
    norm_num_groups: int = 32
    text_dim: int = 768
    est: str = "1d+3d"
    est_window: Sequence[int] = (8, 8, 8)
    est_feed_forward: bool = True
    global_guidance: bool = True
    num_global_tokens: int = 64
    global_tokens_dim: int = 768
    patch_width: int = 1280
    extractor_width: int = 1024
    extractor_heads: int = 16
    frame_tokens: int = 16
    extractor_depths: Sequence[int] = (2, 4)
    dtype: Dtype = jnp.float32
    remat: str | bool = "none"
    attention: str = "auto"

    @property
    def size_multiple(self) -> int:
        """Of latent cells, what both sides are multiples of."""
        return size_multiple(len(self.block_out_channels))

    @property
    def global_condition(self) -> str | None:
        """What it is given of the whole video."""
        return "patches" if self.global_guidance else None

    @nn.nowrap
    def mesh_limits(self, num_frames: int) -> dict[str, int]:
        """As `types.Denoiser.mesh_limits`; frames are not split."""
        attentions = attentions_of(self.block_out_channels, self.attention_levels, self.num_heads)
        if self.global_guidance:
            attentions.append((self.extractor_width, self.extractor_heads))
        return {"context": 1, "tensor": tensor_limit(self.block_out_channels, attentions)}

    def setup(self):
        width = self.block_out_channels[0]
        if len(self.num_heads) != len(self.block_out_channels):
            raise ValueError(
                f"{len(self.block_out_channels)} widths of levels and {len(self.num_heads)} num_heads differ"
            )
        self.time_embedding = EmbeddingMLP(4 * width)
        self.fps_embedding = Dense(4 * width, kernel_init=nn.initializers.zeros)
        self.conv_in = FrameConv(width, dtype=self.dtype)
        self.down_blocks, self.mid_block, self.up_blocks = make_blocks(
            self.block_out_channels,
            self.attention_levels,
            self.layers_per_block,
            resnet=self._resnet,
            transformer=self._transformer,
            dtype=self.dtype,
        )
        self.conv_norm_out = GroupNorm(self.norm_num_groups, dtype=self.dtype)
        self.conv_out = FrameConv(self.latent_channels, dtype=self.dtype)
        self.empty_prompt = self.param("empty_prompt", nn.initializers.zeros, (_PROMPT_TOKENS, self.text_dim))
        if self.global_guidance:
            tokens_shape = (self.num_global_tokens, self.global_tokens_dim)
            self.null_tokens = self.param("null_tokens", nn.initializers.normal(0.02), tokens_shape)
            frame_depth, video_depth = self.extractor_depths
            self.global_extractor = GlobalTokens(
                patch_width=self.patch_width,
                features=self.global_tokens_dim,
                width=self.extractor_width,
                num_heads=self.extractor_heads,
                frame_tokens=self.frame_tokens,
                frame_depth=frame_depth,
                video_tokens=self.num_global_tokens,
                video_depth=video_depth,
                dtype=self.dtype,
            )

    @nn.nowrap
    def _resnet(self, level: int) -> nn.Module:
        block = rematerialised(VideoResnetBlock, self.remat)
        return block(self.block_out_channels[level], self.norm_num_groups, self.est != "off", self.dtype)

    @nn.nowrap
    def _transformer(self, level: int) -> nn.Module:
        block = rematerialised(VideoTransformer, self.remat)
        heads = self.num_heads[level]
        return block(
            self.block_out_channels[level],
            heads,
            self.norm_num_groups,
            self.dtype,
            cross_attention=DecoupledAttention if self.global_guidance else Attention,
            attention=self.attention,
            space_time=partial(
                EnhancedSpaceTime,
                heads,
                self.est,
                self.est_feed_forward and level > 0,
                self.est_window,
                self.dtype,
                self.attention,
            ),
        )

    def encode_context(self, evidence: Evidence | None = None, text_context: jax.Array | None = None) -> Context:
        """What `context=` takes, computed once a video: each cross-attention's keys and values.

        Arguments as those of the call; without evidence it is the null condition.
        """
        tokens = self._context_tokens(evidence, text_context)
        return tuple(block.keys_values(tokens) for block in (*self.down_blocks, self.mid_block, *self.up_blocks))

    def _context_tokens(
        self, evidence: Evidence | None, text_context: jax.Array | None, drop_global: jax.Array | None = None
    ) -> TextAndVideo | jax.Array:
        text = (self.empty_prompt[None] if text_context is None else text_context).astype(self.dtype)
        if not self.global_guidance:
            if evidence is not None:
                raise ValueError("this network has no global guidance: it takes no evidence")
            return text
        if evidence is None:
            return TextAndVideo(text, self.null_tokens[None].astype(self.dtype))
        dropped = False if drop_global is None else drop_global[:, None, None]
        video = jnp.where(dropped, self.null_tokens, self.global_extractor(evidence))
        return TextAndVideo(text, video.astype(self.dtype))

    def __call__(
        self,
        latents: jax.Array,
        mask: jax.Array,
        masked_latents: jax.Array,
        *,
        timestep: jax.Array,
        fps: jax.Array,
        evidence: Evidence | None = None,
        text_context: jax.Array | None = None,
        drop_global: jax.Array | None = None,
        context: Context | None = None,
    ) -> jax.Array:
        """Predict the diffusion target of noisy latents.

        latents, masked_latents: [B, T, h, w, C]; mask: [B, T, h, w, 1], 1 = generate; timestep, fps (frames a second of
        the clip as it is given): [B] or scalars; evidence: what a vision tower sees of B videos, else the learned null
        condition, which clips of drop_global, bool [B], have too; text_context: [B, S, text_dim], else the empty
        prompt's; or context: what `encode_context` made of both. Contexts may be fewer than clips: clip i takes i
        modulo their number.
        Returns float32 [B, T, h, w, C].
        Raises ValueError where h or w is no multiple of 2 ** (levels - 1), for patch tokens of another width, and where
        both a context and what it is made of are given.
        """
        check_sides(latents, len(self.block_out_channels))
        if context is None:
            context = self._context_tokens(evidence, text_context, drop_global)
        elif any(given is not None for given in (evidence, text_context, drop_global)):
            raise ValueError("give either context or evidence, text_context and drop_global")
        batch, frames = latents.shape[:2]
        width = self.block_out_channels[0]
        timestep, fps = (jnp.broadcast_to(jnp.asarray(x), (batch,)) for x in (timestep, fps))
        embedding = self.time_embedding(sinusoidal_embedding(timestep, width, _TIMESTEP_PERIOD))
        embedding += self.fps_embedding(sinusoidal_embedding(fps, width, _FPS_PERIOD))
        seconds = jnp.arange(frames) / jnp.maximum(fps, _LEAST_FPS)[:, None]
        x = self.conv_in(jnp.concatenate([latents, masked_latents, mask], axis=-1).astype(self.dtype))
        conditions = BlockInputs(resnet=(embedding,), transformer=(seconds,))
        x = run_unet(self.down_blocks, self.mid_block, self.up_blocks, x, conditions, context)
        x = nn.silu(per_frame(self.conv_norm_out, x))
        return self.conv_out(x).astype(jnp.float32)
