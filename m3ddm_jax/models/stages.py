"""The run through a denoising U-Net over video: levels, skips, contexts. What levels are made of is the network's."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from m3ddm_jax.models.layers import Downsample, Dtype, Upsample
from m3ddm_jax.parallel.constrain import is_wide

Context = tuple[tuple[Any, ...], ...]
"""What the cross-attentions of each transformer ask of a context (keys and values), by block and transformer: those of
the encoder, the middle one, those of the decoder."""


@flax.struct.dataclass
class BlockInputs:
    """What all blocks of a network are given besides the activation.

    resnet, transformer: further arguments of each resnet and, after the context, of each transformer.
    """

    resnet: tuple[jax.Array, ...]
    transformer: tuple[jax.Array, ...] = ()


def _of_layer(context: Any, layer: int) -> Any:
    return context[layer] if isinstance(context, tuple) else context


class Stage(nn.Module):
    """Resnets, each followed by a transformer where the level has attention, then a resampler ("down", "up" or None).

    A down stage (no `skips`) returns the activation and what it leaves for the decoder; an up stage takes one skip a
    resnet, the last one first, and returns the activation. resnet, transformer: what makes one. context: what all
    transformers attend to, or a tuple of what `keys_values` made of it for each of them.
    """

    num_layers: int
    resnet: Callable[[], nn.Module]
    transformer: Callable[[], nn.Module] | None
    resample: str | None
    dtype: Dtype = jnp.float32

    def setup(self):
        self.resnets = [self.resnet() for _ in range(self.num_layers)]
        self.attentions = [self.transformer() for _ in range(self.num_layers)] if self.transformer else []
        if self.resample == "down":
            self.downsamplers_0 = Downsample(self.dtype)
        if self.resample == "up":
            self.upsamplers_0 = Upsample(self.dtype)

    def keys_values(self, tokens: Any) -> tuple[Any, ...]:
        """What each transformer's cross-attention asks of context tokens."""
        return tuple(transformer.keys_values(tokens) for transformer in self.attentions)

    def __call__(self, x: jax.Array, conditions: BlockInputs, context: Any, skips: Sequence[jax.Array] | None = None):
        outputs = []
        for layer, resnet in enumerate(self.resnets):
            if skips is not None:
                x = jnp.concatenate([x, skips[-1 - layer]], axis=-1)
            x = resnet(x, *conditions.resnet)
            if self.attentions:
                x = self.attentions[layer](x, _of_layer(context, layer), *conditions.transformer)
            outputs.append(x)
        if self.resample == "down":
            x = self.downsamplers_0(x)
            outputs.append(x)
        if self.resample == "up":
            x = self.upsamplers_0(x)
        return x if skips is not None else (x, outputs)


class MiddleBlock(nn.Module):
    """Resnet, transformer, resnet on the coarsest level; arguments as those of `Stage`."""

    resnet: Callable[[], nn.Module]
    transformer: Callable[[], nn.Module]

    def setup(self):
        self.resnets = [self.resnet() for _ in range(2)]
        self.attentions = [self.transformer()]

    def keys_values(self, tokens: Any) -> tuple[Any, ...]:
        """As `Stage.keys_values`."""
        return tuple(transformer.keys_values(tokens) for transformer in self.attentions)

    def __call__(self, x: jax.Array, conditions: BlockInputs, context: Any) -> jax.Array:
        x = self.resnets[0](x, *conditions.resnet)
        x = self.attentions[0](x, _of_layer(context, 0), *conditions.transformer)
        return self.resnets[1](x, *conditions.resnet)


def make_blocks(
    widths: Sequence[int],
    attention_levels: Sequence[bool],
    layers_per_block: int,
    *,
    resnet: Callable[[int], nn.Module],
    transformer: Callable[[int], nn.Module],
    dtype: Dtype,
) -> tuple[list[Stage], MiddleBlock, list[Stage]]:
    """The encoder's stages, the middle, the decoder's stages; resnet and transformer make those of a level.

    Every level but the last halves the sides; the decoder has one layer more a level than the encoder.
    Raises ValueError where attention_levels are not as many as widths.
    """
    if len(widths) != len(attention_levels):
        raise ValueError(f"{len(widths)} widths of levels and {len(attention_levels)} attention_levels differ")
    last = len(widths) - 1

    def stage(level: int, num_layers: int, resample: str | None) -> Stage:
        make_transformer = partial(transformer, level) if attention_levels[level] else None
        return Stage(num_layers, partial(resnet, level), make_transformer, resample, dtype)

    down_blocks = [stage(level, layers_per_block, "down" if level < last else None) for level in range(last + 1)]
    mid_block = MiddleBlock(partial(resnet, last), partial(transformer, last))
    up_blocks = [stage(level, layers_per_block + 1, "up" if level else None) for level in reversed(range(last + 1))]
    return down_blocks, mid_block, up_blocks


def run_unet(
    down_blocks: Sequence[Stage],
    mid_block: MiddleBlock,
    up_blocks: Sequence[Stage],
    x: jax.Array,
    conditions: BlockInputs,
    context: Any,
) -> jax.Array:
    """Down, through the middle and up: [B, T, h, w, C] -> the same shape.

    context: tokens, of which each layer makes its own keys and values (which rematerialisation then need not keep), or
    a `Context`.
    """
    num_down, num_up = len(down_blocks), len(up_blocks)
    if not isinstance(context, tuple):
        context = (context,) * (num_down + 1 + num_up)
    skips = [x]
    for block, of_block in zip(down_blocks, context[:num_down], strict=True):
        x, outputs = block(x, conditions, of_block)
        skips += outputs
    x = mid_block(x, conditions, context[num_down])
    for block, of_block in zip(up_blocks, context[num_down + 1 :], strict=True):
        x = block(x, conditions, of_block, skips=skips[-block.num_layers :])
        skips = skips[: -block.num_layers]
    return x


def size_multiple(levels: int) -> int:
    """What both sides of latents are multiples of, in cells: each level but the last halves them."""
    return 2 ** (levels - 1)


def tensor_limit(widths: Sequence[int], attentions: Iterable[tuple[int, int]]) -> int:
    """What a mesh's axis `tensor` must divide: the heads of all wide attentions, (features, heads) each; 1 where no
    level is wide, because nothing is split then (parallel.constrain.WIDE)."""
    attentions = list(attentions)
    if not any(is_wide(features) for features in (*widths, *(features for features, _ in attentions))):
        return 1
    return math.gcd(*(heads for features, heads in attentions if is_wide(features)))


def attentions_of(
    widths: Sequence[int], attention_levels: Sequence[bool], num_heads: Sequence[int]
) -> list[tuple[int, int]]:
    """(features, heads) of a network's attentions by level; the middle block has one on the last."""
    return list(itertools.compress(zip(widths, num_heads, strict=True), (*attention_levels[:-1], True)))


def check_sides(latents: jax.Array, levels: int) -> None:
    """Raises ValueError where a side of latents [B, T, h, w, C] does not halve on the way down."""
    multiple = size_multiple(levels)
    if any(size % multiple for size in latents.shape[2:4]):
        raise ValueError(f"latents of {latents.shape[2:4]} cells: both sides must be multiples of {multiple}")
