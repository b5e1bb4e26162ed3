"""Video outpainting in JAX: extend a video beyond its borders.

    import m3ddm_jax as m

    wide = m.outpaint(frames, aspect="16:9")

The public API is what `__all__` lists. Its modules are imported at the first use.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "outpaint": "m3ddm_jax.api.outpainting",
    "Outpainter": "m3ddm_jax.api.outpainting",
    "FrameSource": "m3ddm_jax.video",
    "sample_frames": "m3ddm_jax.scenes.scene",
}
"""Public name -> the module that defines it."""

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
