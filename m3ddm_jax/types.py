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
