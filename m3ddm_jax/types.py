"""Names, shapes, ranges and dtypes of everything that crosses a module border.

Letters: B clips, T frames of a clip, G global frames, N clips x frames, H W pixels, h w latent cells, C channels.
"""

from typing import Any, TypedDict

import jax
import numpy as np

Array = jax.Array | np.ndarray

FramesTHWC = np.ndarray
"""uint8 RGB [T, H, W, 3]: what files hold and the public API takes and returns."""

VideoBTHWC = Array
"""float RGB [B, T, H, W, 3] in [-1, 1]: what networks see."""

MaskBTHW1 = Array
"""[B, T, H, W, 1], 1 = generate, 0 = known."""

Latents = Array
"""[B, T, h, w, C], scaled to about unit variance."""

Variables = dict[str, Any]
"""Linen collections: {"params": ..., "batch_stats": ...}."""


class VideoBatch(TypedDict):
    """One batch of masked clips as `data.pipeline` makes it.

    video: uint8 [B, T, H, W, 3].
    mask: uint8 [B, T, H, W, 1], 1 = generate, 0 = known.
    global_frames: uint8 [B, G, S, S, 3], frames spread over the whole video, stretched to a square.
    fps: float32 [B], frames per second of the source divided by the frame interval of the clip.
    clip_id: str [B], where each clip comes from; stays on the host.
    """

    video: Array
    mask: Array
    global_frames: Array
    fps: Array
    clip_id: np.ndarray
