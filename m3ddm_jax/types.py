"""Names, shapes, ranges and dtypes of everything that crosses a module border.

Letters: B clips, T frames of a clip, G global frames, N clips x frames, H W pixels, h w latent cells, C channels.
"""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

import jax
import numpy as np

Array = jax.Array | np.ndarray

FramesTHWC = np.ndarray
"""uint8 RGB [T, H, W, 3]: what files hold and the public API takes and returns."""

Latents = Array
"""[B, T, h, w, C], scaled to about unit variance."""

Variables = dict[str, Any]
"""Linen collections: {"params": ..., "batch_stats": ...}."""


@runtime_checkable
class Denoiser(Protocol):
    """A Linen module that removes noise from the latents of masked clips: trained by the diffusion recipe, sampled by
    the latent pipelines.

    latent_channels: C below. size_multiple: of cells, what both sides of latents are multiples of. global_condition:
    what it is given of the whole video: latents of global frames ("latents"), patch tokens of an image encoder
    ("patches"), or nothing (None).
    """

    latent_channels: int
    size_multiple: int
    global_condition: Literal["latents", "patches"] | None

    def mesh_limits(self, num_frames: int) -> Mapping[str, int]:
        """Axis of the mesh -> number that its size must divide, for clips of num_frames latent frames: `context`
        splits frames, `tensor` splits heads and channels."""

    def encode_context(self, *conditions: Any) -> Any:
        """What `context=` takes, computed once a video: of global latents [B, G, h', w', C], of
        `global_tokens.Evidence`, or of nothing, which is the null condition of a model of patches."""

    def __call__(
        self, latents: Array, mask: Array, masked_latents: Array, *, timestep: Array, fps: Array, context: Any
    ) -> jax.Array:
        """The prediction, float32 [B, T, h, w, C].

        latents, masked_latents: [B, T, h, w, C]; mask: [B, T, h, w, 1], 1 = generate; timestep, fps: [B] or scalars;
        context: of B clips, or of fewer, which clips use in turn.
        """


@runtime_checkable
class Codec(Protocol):
    """A Linen module between pixels and latents, C channels, the sides reduced by spatial_factor f.

    temporal_factor: frames a latent frame. 1: encode and decode work on images, [N, H, W, 3] <-> [N, h, w, C]. k > 1:
    on clips, [N, T, H, W, 3] <-> [N, 1 + (T - 1) / k, h, w, C]: the first latent frame holds the first frame alone, and
    each other one the next k frames, so that T is k n + 1. scale: latents are scale * encoding.
    """

    spatial_factor: int
    temporal_factor: int
    latent_channels: int
    scale: float

    def encode(self, x: Array) -> tuple[jax.Array, jax.Array]:
        """Pixels in [-1, 1] -> (mean, logvar) of the encoding."""

    def decode(self, z: Array) -> jax.Array:
        """Encoding -> pixels about [-1, 1], not clipped."""


class VideoBatch(TypedDict):
    """One batch of masked clips as `data.pipeline` makes it.

    video: uint8 [B, T, H, W, 3]; the last of the T frames are references from elsewhere in the video, where a config
        asks for them.
    mask: uint8 [B, T, H, W, 1], 1 = generate, 0 = known.
    known: int32 [B, 4], top, bottom, left, right (ends exclusive) of the rectangle that a source would have.
    global_frames: uint8 [B, G, S, S, 3], that rectangle in frames spread over the whole video, stretched to a square or
        padded at the bottom or right.
    fps: float32 [B], frames per second of the source divided by the frame interval of the clip.
    clip_id: str [B], where each clip comes from; stays on the host.
    """

    video: Array
    mask: Array
    known: Array
    global_frames: Array
    fps: Array
    clip_id: np.ndarray
