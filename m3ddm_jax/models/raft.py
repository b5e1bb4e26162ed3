"""RAFT: optical flow, refined again and again by what all-pairs correlations say around its present end.

Source: RAFT: Recurrent All-Pairs Field Transforms for Optical Flow (Teed and Deng, ECCV 2020), basic and small model.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from m3ddm_jax.models.resampling import resize_bilinear

_DOWNSCALE = 8  # of the feature maps
_LEVELS = 4  # of the correlation pyramid
_SMALLEST = _DOWNSCALE * 2**_LEVELS  # side that leaves the coarsest level two cells
_EPSILON = 1e-5

Hidden = tuple[jax.Array, jax.Array]
"""The recurrent unit's state [B, h, w, C], and the flow so far [B, h, w, 2] in cells."""


def _conv(features: int, size: int | tuple[int, int], name: str, stride: int = 1) -> nn.Conv:
    size = (size, size) if isinstance(size, int) else size
    return nn.Conv(features, size, stride, [(taps // 2, taps // 2) for taps in size], name=name)


def _normalized(x: jax.Array, norm: str, name: str) -> jax.Array:
    """norm: "batch", by its running statistics; "instance", without parameters; or "none"."""
    if norm == "batch":
        return nn.BatchNorm(use_running_average=True, epsilon=_EPSILON, name=name)(x)
    if norm == "instance":
        return (x - x.mean((1, 2), keepdims=True)) * jax.lax.rsqrt(x.var((1, 2), keepdims=True) + _EPSILON)
    return x


class _Block(nn.Module):
    """Residual block [N, H, W, C] -> [N, H/stride, W/stride, features]: two convolutions, or a bottleneck of three."""

    features: int
    stride: int
    norm: str
    bottleneck: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner = self.features // 4
        layers = [(self.features, 3, self.stride), (self.features, 3, 1)]
        if self.bottleneck:
            layers = [(inner, 1, 1), (inner, 3, self.stride), (self.features, 1, 1)]
        y = x
        for number, (features, size, stride) in enumerate(layers, start=1):
            y = _conv(features, size, f"conv{number}", stride)(y)
            y = nn.relu(_normalized(y, self.norm, f"norm{number}"))
        if self.stride > 1:
            x = _conv(self.features, 1, "downsample_0", self.stride)(x)
            x = _normalized(x, self.norm, f"norm{len(layers) + 1}")
        return nn.relu(x + y)


class Encoder(nn.Module):
    """Images [N, H, W, 3] in [-1, 1] -> features [N, H/8, W/8, features]; width: of the first layers."""

    width: int
    features: int
    norm: str
    small: bool

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = _conv(self.width, 7, "conv1", stride=2)(images)
        x = nn.relu(_normalized(x, self.norm, "norm1"))
        steps = (2, 4, 6) if self.small else (2, 3, 4)
        for stage, halves in enumerate(steps, start=1):
            for block in range(2):
                stride = 2 if stage > 1 and block == 0 else 1
                name = f"layer{stage}_{block}"
                x = _Block(halves * self.width // 2, stride, self.norm, self.small, name=name)(x)
        return _conv(self.features, 1, "conv2")(x)


class _MotionEncoder(nn.Module):
    """Looked-up correlations [B, h, w, K] and flow -> what they say about motion [B, h, w, C], flow as the last two."""

    width: int
    small: bool

    @nn.compact
    def __call__(self, correlations: jax.Array, flow: jax.Array) -> jax.Array:
        c = self.width
        if self.small:
            looked_up = nn.relu(_conv(3 * c, 1, "convc1")(correlations))
        else:
            looked_up = nn.relu(_conv(4 * c, 1, "convc1")(correlations))
            looked_up = nn.relu(_conv(3 * c, 3, "convc2")(looked_up))
        moving = nn.relu(_conv(2 * c, 7, "convf1")(flow))
        moving = nn.relu(_conv(c, 3, "convf2")(moving))
        joined = jnp.concatenate([looked_up, moving], axis=-1)
        motion = nn.relu(_conv(5 * c // 2 if self.small else 2 * c - 2, 3, "conv")(joined))
        return jnp.concatenate([motion, flow], axis=-1)


class _ConvGRU(nn.Module):
    """Convolutional gated recurrent unit: a pass a kernel, of these sizes and names."""

    passes: Sequence[tuple[str, tuple[int, int]]]

    @nn.compact
    def __call__(self, hidden: jax.Array, x: jax.Array) -> jax.Array:
        for suffix, size in self.passes:
            conv = partial(_conv, hidden.shape[-1], size)
            both = jnp.concatenate([hidden, x], axis=-1)
            update, reset = (nn.sigmoid(conv(f"conv{gate}{suffix}")(both)) for gate in "zr")
            candidate = nn.tanh(conv(f"convq{suffix}")(jnp.concatenate([reset * hidden, x], axis=-1)))
            hidden = (1 - update) * hidden + update * candidate
        return hidden


class _Head(nn.Module):
    """Two convolutions, ReLU between; names and the second's size as the published ones."""

    hidden: int
    features: int
    size: int = 3
    names: tuple[str, str] = ("conv1", "conv2")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first, second = self.names
        return _conv(self.features, self.size, second)(nn.relu(_conv(self.hidden, 3, first)(x)))


class _UpdateBlock(nn.Module):
    """One refinement; and how a flow is enlarged after the last one."""

    width: int
    small: bool

    def setup(self):
        passes = [("", (3, 3))] if self.small else [("1", (1, 5)), ("2", (5, 1))]
        self.encoder = _MotionEncoder(self.width, self.small)
        self.gru = _ConvGRU(passes)
        self.flow_head = _Head(4 * self.width, 2)
        if not self.small:
            self.mask = _Head(4 * self.width, 9 * _DOWNSCALE**2, size=1, names=("0", "2"))

    def __call__(self, state: Hidden, context: jax.Array, correlations: jax.Array) -> Hidden:
        hidden, flow = state
        motion = self.encoder(correlations, flow)
        hidden = self.gru(hidden, jnp.concatenate([context, motion], axis=-1))
        return hidden, flow + self.flow_head(hidden)

    def enlarge(self, state: Hidden) -> jax.Array:
        """Flow [N, h, w, 2] in cells -> [N, 8h, 8w, 2] in pixels: mixed from nine cells each, or bilinear."""
        hidden, flow = state
        flow = _DOWNSCALE * flow
        _, height, width, _ = flow.shape
        if self.small:
            return resize_bilinear(flow, _DOWNSCALE * height, _DOWNSCALE * width, align_corners=True)
        shares = rearrange(0.25 * self.mask(hidden), "n h w (k p q) -> n h w k p q", k=9, p=_DOWNSCALE)
        padded = jnp.pad(flow, ((0, 0), (1, 1), (1, 1), (0, 0)))
        around = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        shares, around = nn.softmax(shares, axis=3), jnp.stack(around, axis=3)
        mixed = jnp.einsum("nhwkpq,nhwkc->nhpwqc", shares, around, precision="highest")
        return rearrange(mixed, "n h p w q c -> n (h p) (w q) c")


def _correlation_pyramid(first: jax.Array, second: jax.Array) -> list[jax.Array]:
    """How much each cell of one feature map [B, h, w, C] is like each of another: [B, h, w, h', w'], h' halving."""
    levels = []
    for _ in range(_LEVELS):
        dots = jnp.einsum("bijc,bklc->bijkl", first, second, precision="highest")
        levels.append(dots * first.shape[-1] ** -0.5)
        # The mean of correlations is the correlation with the mean.
        second = nn.avg_pool(second, (2, 2), (2, 2))
    return levels


def _look_up(pyramid: Sequence[jax.Array], flow: jax.Array, radius: int) -> jax.Array:
    """Correlations around where a flow [B, h, w, 2] ends, at every level: [B, h, w, levels * (2 radius + 1)**2].

    Read bilinearly, zero outside, as products with two matrices a cell: for accelerators much quicker than to gather.
    """
    _, height, width, _ = flow.shape
    columns, rows = flow[..., 0] + jnp.arange(width), flow[..., 1] + jnp.arange(height)[:, None]
    offsets = jnp.arange(-radius, radius + 1, dtype=jnp.float32)

    def shares(centres, side):
        distance = (centres[..., None] + offsets)[..., None] - jnp.arange(side)
        return jnp.maximum(1 - jnp.abs(distance), 0)

    found = []
    for level, correlations in enumerate(pyramid):
        down, right = (
            shares(centres / 2**level, side)
            for centres, side in zip((rows, columns), correlations.shape[3:], strict=True)
        )
        window = jnp.einsum("bijkl,bijyk->bijyl", correlations, down, precision="highest")
        window = jnp.einsum("bijyl,bijxl->bijxy", window, right, precision="highest")
        # The published code goes through windows column by column.
        found.append(rearrange(window, "b i j x y -> b i j (x y)"))
    return jnp.concatenate(found, axis=-1)


class RAFT(nn.Module):
    """RAFT, in float32; the defaults are the published basic model.

    Attributes:
      width: of the first convolution; published: 64, and 32 of the small model.
      small: the small model.
    """

    width: int = 64
    small: bool = False

    def setup(self):
        features = 4 * self.width
        norms = ("instance", "none" if self.small else "batch")
        self.fnet = Encoder(self.width, features, norms[0], self.small)
        self.cnet = Encoder(self.width, sum(self._state_widths), norms[1], self.small)
        self.update_block = _UpdateBlock(self.width, self.small)

    @property
    def _state_widths(self) -> tuple[int, int]:
        """Of the hidden state and of the context."""
        return (3 * self.width, 2 * self.width) if self.small else (2 * self.width, 2 * self.width)

    def __call__(self, image1: jax.Array, image2: jax.Array, *, iterations: int = 12) -> list[jax.Array]:
        """Flow from one image to another after each refinement; `flow` gives the last alone, in less time and memory.

        image1, image2: [B, H, W, 3] in 0..255. Returns `iterations` of float32 [B, H, W, 2], (dx, dy) in pixels: where
        each pixel of image1 lies in image2. Images continue at their borders up to multiples of 8. Raises ValueError
        for other shapes, images too small for the pyramid, and no iteration.
        """
        states, crop = self._refined(image1, image2, iterations)
        hidden, flow = (rearrange(x, "i b h w c -> (i b) h w c") for x in states[1])
        flows = crop(self.update_block.enlarge((hidden, flow)))
        return list(rearrange(flows, "(i b) h w xy -> i b h w xy", i=iterations))

    def flow(self, image1: jax.Array, image2: jax.Array, *, iterations: int = 12) -> jax.Array:
        """The last of what a call returns: float32 [B, H, W, 2]. Errors as there."""
        states, crop = self._refined(image1, image2, iterations)
        return crop(self.update_block.enlarge(states[0]))

    def _refined(self, image1: jax.Array, image2: jax.Array, iterations: int):
        """((the last state, all of them stacked), what cuts the padding off an enlarged flow)."""
        _check(image1.shape, image2.shape, iterations)
        _, height, width, _ = image1.shape
        missing = (-height % _DOWNSCALE, -width % _DOWNSCALE)
        (top, _), (left, _) = padding = [(pixels // 2, pixels - pixels // 2) for pixels in missing]
        images = jnp.concatenate([image1, image2]).astype(jnp.float32)
        images = 2 * jnp.pad(images, [(0, 0), *padding, (0, 0)], mode="edge") / 255 - 1

        first, second = jnp.split(self.fnet(images), 2)
        pyramid = _correlation_pyramid(first, second)
        hidden, context = jnp.split(self.cnet(jnp.split(images, 2)[0]), self._state_widths[:1], axis=-1)
        state = jnp.tanh(hidden), jnp.zeros((*first.shape[:3], 2))
        refine = nn.scan(
            RAFT._refine,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=nn.broadcast,
            length=iterations,
        )
        states = refine(self, state, nn.relu(context), pyramid)
        return states, lambda flow: flow[:, top : top + height, left : left + width]

    def _refine(self, state: Hidden, context: jax.Array, pyramid: Sequence[jax.Array]) -> tuple[Hidden, Hidden]:
        # Gradients go through what a refinement adds, not through where it looks: so was RAFT trained.
        hidden, flow = state
        flow = jax.lax.stop_gradient(flow)
        correlations = _look_up(pyramid, flow, radius=3 if self.small else 4)
        state = self.update_block((hidden, flow), context, correlations)
        return state, state


def _check(first: tuple[int, ...], second: tuple[int, ...], iterations: int) -> None:
    if first != second or len(first) != 4 or first[-1] != 3:
        raise ValueError(f"RAFT takes two images [B, H, W, 3] of one shape, not {list(first)} and {list(second)}")
    if min(first[1:3]) <= _SMALLEST - _DOWNSCALE:
        raise ValueError(
            f"images are {first[2]}x{first[1]}: RAFT's correlation pyramid takes sides of more than "
            f"{_SMALLEST - _DOWNSCALE} pixels"
        )
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}: 1 or more are accepted")
