"""Video in and out: frames by index from files and folders, and files and folders from frames."""

from m3ddm_jax.video.masks import MaskSource
from m3ddm_jax.video.sink import FrameSink
from m3ddm_jax.video.source import FrameSource

__all__ = ["FrameSink", "FrameSource", "MaskSource"]
