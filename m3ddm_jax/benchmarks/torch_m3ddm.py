"""M3DDM's arithmetic stated in PyTorch as one would write it there: what the U-Net's speed is measured by."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from flax.traverse_util import flatten_dict

from m3ddm_jax.models.unet3d import M3DDMUNet
from m3ddm_jax.types import Variables

_TIMESTEP_PERIOD, _FPS_PERIOD, _FRAME_PERIOD = 1000.0, 30.0, 1000.0


class PlainM3DDM:
    """The network of a module and its variables, less what encodes global frames; on a device, in a dtype.

    Embeddings stay float32. Activations are [B * T, C, H, W], channels last in memory.
    """

    def __init__(self, module: M3DDMUNet, variables: Variables, device: str, dtype: torch.dtype):
        self._module, self._device, self._dtype = module, device, dtype
        self._weights = {
            path: self._placed(path, torch.tensor(leaf.__array__()))
            for path, leaf in flatten_dict(variables["params"], sep="/").items()
            if not path.startswith("global_img_encoder")
        }

    def _placed(self, path: str, weight: torch.Tensor) -> torch.Tensor:
        name = path.rpartition("/")[2]
        if name == "kernel":  # [*taps, in, out] -> [out, in, *taps]
            weight = weight.movedim((-1, -2), (0, 1)).contiguous()
        embeds = "embedding/" in path or "embed_proj/" in path
        weight = weight.to(self._device, torch.float32 if embeds else self._dtype)
        return weight.to(memory_format=torch.channels_last) if weight.ndim == 4 else weight

    @torch.inference_mode()
    def __call__(
        self,
        latents: torch.Tensor,
        mask: torch.Tensor,
        masked_latents: torch.Tensor,
        timestep: torch.Tensor,
        fps: torch.Tensor,
        context: torch.Tensor,
    ) -> torch.Tensor:
        """As the module's call, with context tokens [B, S, D]."""
        module, self._frames = self._module, latents.shape[1]
        width, last = module.block_out_channels[0], len(module.block_out_channels) - 1
        embeddings = (
            self._embedding("time_embedding", timestep, width, _TIMESTEP_PERIOD),
            self._embedding("fps_embedding", fps, width, _FPS_PERIOD),
        )
        context = context.to(self._dtype)
        x = rearrange(torch.cat([latents, masked_latents, mask], -1), "b t h w c -> (b t) c h w")
        x = self._conv("conv_in", x.to(self._dtype, memory_format=torch.channels_last))
        skips = [x]
        for level in range(last + 1):
            name = f"down_blocks_{level}"
            for layer in range(module.layers_per_block):
                x = self._layer(name, layer, x, embeddings, context, module.attention_levels[level])
                skips.append(x)
            if level < last:
                x = self._conv(f"{name}/downsamplers_0/conv", x, stride=2)
                skips.append(x)
        x = self._layer("mid_block", 0, x, embeddings, context, True)
        x = self._resnet("mid_block/resnets_1", x, embeddings)
        for block, level in enumerate(reversed(range(last + 1))):
            name = f"up_blocks_{block}"
            for layer in range(module.layers_per_block + 1):
                x = torch.cat([x, skips.pop()], 1)
                x = self._layer(name, layer, x, embeddings, context, module.attention_levels[level])
            if level:
                x = self._conv(f"{name}/upsamplers_0/conv", F.interpolate(x, scale_factor=2.0, mode="nearest"))
        x = self._pseudo_3d("conv_out", F.silu(self._clip_norm("conv_norm_out", x, 1e-5)))
        return rearrange(x.float(), "(b t) c h w -> b t h w c", t=self._frames)

    def _layer(self, name: str, layer: int, x, embeddings, context, attends: bool) -> torch.Tensor:
        x = self._resnet(f"{name}/resnets_{layer}", x, embeddings)
        return self._transformer(f"{name}/attentions_{layer}", x, context) if attends else x

    def _of(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self._weights[f"{name}/kernel"], self._weights.get(f"{name}/bias")

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, *self._of(name))

    def _conv(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        return F.conv2d(x, *self._of(name), stride=stride, padding=1)

    def _pseudo_3d(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = self._conv(f"{name}/spatial_conv", x)
        return self._over_frames(x, lambda x: F.conv1d(x, *self._of(f"{name}/temporal_conv"), padding=1))

    def _over_frames(self, x: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """function of the frames of each cell, [B * H * W, C, T]."""
        height, frames = x.shape[2], self._frames
        cells = function(rearrange(x, "(b t) c h w -> (b h w) c t", t=frames))
        return rearrange(cells, "(b h w) c t -> (b t) c h w", h=height, b=x.shape[0] // frames)

    def _norm(self, name: str, x: torch.Tensor, epsilon: float) -> torch.Tensor:
        scale, bias = (self._weights[f"{name}/{part}"] for part in ("scale", "bias"))
        return F.group_norm(x, self._module.norm_num_groups, scale, bias, epsilon)

    def _clip_norm(self, name: str, x: torch.Tensor, epsilon: float) -> torch.Tensor:
        clips = self._norm(name, rearrange(x, "(b t) c h w -> b c t h w", t=self._frames), epsilon)
        return rearrange(clips, "b c t h w -> (b t) c h w")

    def _embedding(self, name: str, positions: torch.Tensor, width: int, period: float) -> torch.Tensor:
        half = width // 2
        frequencies = torch.exp(-math.log(period) * torch.arange(half, device=self._device) / half)
        angles = positions.float()[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], -1)
        return self._linear(f"{name}/linear_2", F.silu(self._linear(f"{name}/linear_1", waves)))

    def _resnet(self, name: str, x: torch.Tensor, embeddings: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        hidden = self._pseudo_3d(f"{name}/conv1", F.silu(self._clip_norm(f"{name}/norm1", x, 1e-5)))
        for part, embedding in zip(("time_emb_proj", "fps_emb_proj"), embeddings, strict=True):
            condition = self._linear(f"{name}/{part}", F.silu(embedding).to(self._dtype))
            hidden = hidden + condition.repeat_interleave(self._frames, 0)[..., None, None]
        hidden = self._pseudo_3d(f"{name}/conv2", F.silu(self._clip_norm(f"{name}/norm2", hidden, 1e-5)))
        if x.shape[1] != hidden.shape[1]:
            x = rearrange(
                self._linear(f"{name}/conv_shortcut", rearrange(x, "n c h w -> n h w c")), "n h w c -> n c h w"
            )
        return x + hidden

    def _transformer(self, name: str, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        height, frames = x.shape[2], self._frames
        tokens = rearrange(self._norm(f"{name}/norm", x, 1e-6), "n c h w -> n (h w) c")
        tokens = self._block(f"{name}/transformer_blocks_0", self._linear(f"{name}/proj_in", tokens), context)
        x = x + rearrange(self._linear(f"{name}/proj_out", tokens), "n (h w) c -> n c h w", h=height)
        places = torch.arange(frames, device=self._device)
        dim = self._module.frame_embedding_dim
        when = self._embedding(f"{name}/temporal_position_embed_proj", places, dim, _FRAME_PERIOD).to(self._dtype)

        def over_time(cells: torch.Tensor) -> torch.Tensor:
            tokens = self._linear(f"{name}/proj_in2", cells.transpose(1, 2)) + when
            tokens = self._block(f"{name}/transformer_blocks2_0", tokens, None)
            return self._linear(f"{name}/proj_out2", tokens).transpose(1, 2)

        return x + self._over_frames(self._clip_norm(f"{name}/norm2", x, 1e-6), over_time)

    def _block(self, name: str, tokens: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        normed = self._layer_norm(f"{name}/norm1", tokens)
        tokens = tokens + self._attention(f"{name}/attn1", normed, normed)
        normed = self._layer_norm(f"{name}/norm2", tokens)
        if context is None:
            tokens = tokens + self._attention(f"{name}/attn2", normed, normed)
        else:
            clips = rearrange(normed, "(b t) p c -> b (t p) c", b=len(context))
            found = self._attention(f"{name}/attn2", clips, context)
            tokens = tokens + found.reshape(tokens.shape)
        value, gate = self._linear(f"{name}/ff/net_0_proj", self._layer_norm(f"{name}/norm3", tokens)).chunk(2, -1)
        return tokens + self._linear(f"{name}/ff/net_2", value * F.gelu(gate))

    def _layer_norm(self, name: str, tokens: torch.Tensor) -> torch.Tensor:
        scale, bias = (self._weights[f"{name}/{part}"] for part in ("scale", "bias"))
        return F.layer_norm(tokens, tokens.shape[-1:], scale, bias, 1e-5)

    def _attention(self, name: str, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            rearrange(self._linear(f"{name}/to_{part}", x), "b t (n d) -> b n t d", n=self._module.num_heads)
            for part, x in (("q", tokens), ("k", context), ("v", context))
        )
        found = F.scaled_dot_product_attention(query, key, value)
        return self._linear(f"{name}/to_out_0", rearrange(found, "b n t d -> b t (n d)"))
