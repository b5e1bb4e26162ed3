"""Enhanced space-time modules: what joins the frames of a network that works on each of them alone.

Every module is residual and its output starts at zero, so that at the start it is the identity, exactly.
Source: GlobalPaint (Pan et al., 2026), which names 1-D temporal layers and 3-D windowed attention; windows are those of
Video Swin Transformer (Liu et al., CVPR 2022), without its way around the border.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from m3ddm_jax.models.attention import Attention, GatedFeedForward, attention
from m3ddm_jax.models.layers import Dense, Dtype, GroupNorm, TemporalConv, per_frame, sinusoidal_embedding

MODES = ("off", "1d", "1d+3d")

# Sinusoids of time count thirtieths of a second: at 30 frames a second they are those of the frame's index.
_TICKS_A_SECOND = 30.0
_TIME_PERIOD = 10_000.0
# Windows are a few tokens long: the lowest frequencies of longer sequences would be idle.
_ROPE_BASE = 100.0
_WINDOW = "b (i t) (j h) (k w) n d -> (b i j k) (t h w) n d"


class TemporalResidual(nn.Module):
    """Group norm a frame, SiLU, convolution over 3 frames, residual: [B, T, H, W, C] -> the same."""

    num_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.silu(per_frame(GroupNorm(self.num_groups, dtype=self.dtype, name="norm"), x))
        return x + TemporalConv(x.shape[-1], self.dtype, nn.initializers.zeros, name="conv")(hidden)


class TemporalAttention(nn.Module):
    """Each cell attends to itself in every frame, residual: [B, T, H, W, C] -> the same.

    seconds: [B, T], when each frame is shown; models of different frame rates share its meaning.
    """

    num_heads: int
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, seconds: jax.Array) -> jax.Array:
        batch, _, height, _, channels = x.shape
        times = sinusoidal_embedding(seconds * _TICKS_A_SECOND, channels, _TIME_PERIOD).astype(self.dtype)
        normed = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        tokens = rearrange(normed + rearrange(times, "b t c -> b t 1 1 c"), "b t h w c -> (b h w) t c")
        tokens = Attention(channels, self.num_heads, self.dtype, attention=self.attention, name="attn")(tokens)
        return x + rearrange(tokens, "(b h w) t c -> b t h w c", b=batch, h=height)


class WindowAttention3D(nn.Module):
    """Attention inside windows of a volume, residual: [B, T, H, W, C] -> the same, for any T, H, W.

    A window is clipped to the axes that it exceeds. With `shifted` the windows lie half a window further along the
    axes that hold several of them, and are cut off at the borders: nothing wraps around.

    Attributes:
      window: frames, rows and columns of a window.
      attention: the form of attention, one of `models.attention.ATTENTION`.
    """

    num_heads: int
    window: Sequence[int] = (8, 8, 8)
    shifted: bool = False
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        volume, channels = x.shape[1:4], x.shape[-1]
        window = tuple(min(sizes) for sizes in zip(self.window, volume, strict=True))
        tokens = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)

        def heads(name: str) -> jax.Array:
            projected = Dense(channels, use_bias=False, dtype=self.dtype, name=name)(tokens)
            return rearrange(projected, "b t h w (n d) -> b t h w n d", n=self.num_heads)

        # Normed queries and keys keep bfloat16 scores in range.
        query = nn.RMSNorm(dtype=self.dtype, name="norm_q")(heads("to_q"))
        key = nn.RMSNorm(dtype=self.dtype, name="norm_k")(heads("to_k"))
        value = heads("to_v")
        angles = axial_angles(volume, query.shape[-1])
        query, key = rotate(query, angles), rotate(key, angles)
        shifts = window_shifts(volume, window) if self.shifted else (0, 0, 0)
        out = attention(
            *(_to_windows(part, window, shifts) for part in (query, key, value)),
            segments=_segments(x.shape[:4], window, shifts),
            form=self.attention,
        )
        out = rearrange(_from_windows(out, volume, window, shifts), "b t h w n d -> b t h w (n d)")
        return x + Dense(channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="to_out_0")(out)


class EnhancedSpaceTime(nn.Module):
    """Temporal attention, then a pair of window attentions (plain, shifted) and a feed-forward.

    x: [B, T, H, W, C]; seconds: [B, T], when each frame is shown -> [B, T, H, W, C].

    Attributes:
      mode: "1d", temporal attention alone, or "1d+3d".
      feed_forward: whether one follows the windows.
      window, attention: as in `WindowAttention3D`.
    """

    num_heads: int
    mode: str = "1d+3d"
    feed_forward: bool = True
    window: Sequence[int] = (8, 8, 8)
    dtype: Dtype = jnp.float32
    attention: str = "auto"

    def setup(self):
        if self.mode not in MODES:
            raise ValueError(f"space-time mode {self.mode!r} is unknown: one of {', '.join(MODES)} is accepted")
        if self.mode != "off":
            self.temporal = TemporalAttention(self.num_heads, self.dtype, self.attention)
        if self.mode == "1d+3d":
            self.windows, self.shifted_windows = (
                WindowAttention3D(self.num_heads, self.window, shifted, self.dtype, self.attention)
                for shifted in (False, True)
            )
            if self.feed_forward:
                self.norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)
                self.ff = GatedFeedForward(self.dtype, nn.initializers.zeros)

    def __call__(self, x: jax.Array, seconds: jax.Array) -> jax.Array:
        if self.mode == "off":
            return x
        joined = self.temporal(x, seconds)
        if self.mode == "1d":
            return joined
        return self._space_time(joined)

    def _space_time(self, x: jax.Array) -> jax.Array:
        x = self.shifted_windows(self.windows(x))
        return x + self.ff(self.norm(x)) if self.feed_forward else x


def axial_angles(volume: Sequence[int], width: int) -> jax.Array:
    """Rotary angles [T, H, W, width/2] of the places in a volume, each pair of channels turning along one axis.

    Rows and columns have 3/8 of the pairs each, frames the rest: 16, 24 and 24 of 64 channels.
    Raises ValueError for a width that cannot serve three axes.
    """
    if width % 2 or width < 6:
        raise ValueError(f"heads are {width} channels wide: rotary positions take an even number from 6")
    pairs = width // 2
    space = 3 * pairs // 8
    places = jnp.indices(volume, dtype=jnp.float32)
    counts = (pairs - 2 * space, space, space)
    angles = [
        place[..., None] * _ROPE_BASE ** (-jnp.arange(count) / count)
        for place, count in zip(places, counts, strict=True)
    ]
    return jnp.concatenate(angles, axis=-1)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """x [B, T, H, W, heads, D], its halves being the pairs' two parts, turned by angles [T, H, W, D/2], in float32."""
    cos, sin = (rearrange(part, "t h w d -> t h w 1 d") for part in (jnp.cos(angles), jnp.sin(angles)))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.astype(x.dtype)


def window_shifts(volume: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
    """By how much shifted windows lie further along each axis: half a window where there are several."""
    return tuple(length // 2 if size > length else 0 for size, length in zip(volume, window, strict=True))


def _to_windows(x: jax.Array, window: tuple[int, ...], shifts: tuple[int, ...]) -> jax.Array:
    """[B, T, H, W, heads, D] -> [B * windows, places, heads, D].

    Axes are padded to whole windows. What a shift cuts off before the first window is the end of the last one.
    """
    t, h, w = window
    padding = _padding(x.shape[1:4], window)
    x = jnp.roll(jnp.pad(x, ((0, 0), *padding, (0, 0), (0, 0))), [-shift for shift in shifts], (1, 2, 3))
    return rearrange(x, _WINDOW, t=t, h=h, w=w)


def _from_windows(
    windows: jax.Array, volume: Sequence[int], window: tuple[int, ...], shifts: tuple[int, ...]
) -> jax.Array:
    """The inverse of `_to_windows`."""
    t, h, w = window
    i, j, k = (
        (size + behind) // length
        for size, length, (_, behind) in zip(volume, window, _padding(volume, window), strict=True)
    )
    source, target = reversed(_WINDOW.split(" -> "))
    x = jnp.roll(rearrange(windows, f"{source} -> {target}", i=i, j=j, k=k, t=t, h=h, w=w), shifts, (1, 2, 3))
    return x[(slice(None), *map(slice, volume))]


def _padding(volume: Sequence[int], window: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple((0, -size % length) for size, length in zip(volume, window, strict=True))


def _segments(shape: tuple[int, ...], window: tuple[int, ...], shifts: tuple[int, ...]) -> jax.Array | None:
    """Which places of each window lie together in the volume: int [B * windows, places]; None where all do.

    Padding is a segment of its own. Each axis tells apart what a shift has cut off (a bit an axis).
    """
    batch, *volume = shape
    padding = _padding(volume, window)
    if not (any(shifts) or any(map(any, padding))):
        return None
    segments = np.zeros(volume, np.int32)
    for axis, shift in enumerate(shifts):
        segments[(slice(None),) * axis + (slice(shift),)] |= 1 << axis
    segments = np.roll(np.pad(segments, padding, constant_values=8), [-shift for shift in shifts], (0, 1, 2))
    t, h, w = window
    segments = rearrange(segments, "(i t) (j h) (k w) -> (i j k) (t h w)", t=t, h=h, w=w)
    return repeat(jnp.asarray(segments), "windows places -> (b windows) places", b=batch)
