"""Outpainting on a laptop, without a trained model: real pixels as far as they are to be trusted, and a blur.

`isvi` without networks, on few lines, carries what other frames have seen. Its pixels and a blur of the source err in
ways of their own, so that their mean errs less than either; the less sure a pixel is, the more of the blur is in it.
Where none was carried, grain may be laid over. A design of this project.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import cv2
import numpy as np

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines.compositing import spread
from m3ddm_jax.pipelines.grain import Grain
from m3ddm_jax.pipelines.isvi import Isvi
from m3ddm_jax.pipelines.options import CheckedSettings
from m3ddm_jax.types import FramesTHWC
from m3ddm_jax.video import FrameSource

_FEATHER = 1 / 48  # of the canvas's short side, by which shares of the blur are smoothed
_MEGABYTES = 192  # of isvi's windows; half of what it takes by itself


@dataclasses.dataclass(frozen=True)
class Settings(CheckedSettings):
    """How a video is outpainted.

    lines: shorter side, in pixels, at which real pixels are carried; a smaller canvas keeps its size.
    doubt: share of the blur in a carried pixel of confidence 0, which falls to none at 1.
    made_up: share of the blur where nothing was carried.
    grain: strength of the grain where `prefer` is sharp; 1 is that of the source's own texture.
    """

    lines: int = 240
    doubt: float = 0.5
    made_up: float = 0.25
    grain: float = 0.4


class Lite:
    """The `lite` Outpainter.

    prefer: the least error to be expected (faithful), or grain besides, where all is smooth (sharp). settings: those
    that differ from `Settings`, by name. Raises ValueError for settings that do not fit.
    """

    def __init__(self, *, prefer: Literal["faithful", "sharp"] = "sharp", settings: Mapping[str, Any] | None = None):
        self._settings = Settings.make(settings or {})
        self._sharp = prefer == "sharp"

    def __call__(self, source: FrameSource, canvas: Canvas, rng: None = None) -> Iterator[FramesTHWC]:
        """Yields canvas frames, uint8 [n, H, W, 3], in time order; the caller pastes the source's own pixels."""
        settings, mask = self._settings, canvas.mask()
        grain = Grain(canvas, settings.grain) if self._sharp else None
        start = 0
        for carried, confidence in Isvi(settings={"lines": settings.lines, "megabytes": _MEGABYTES}).carry(
            source, canvas
        ):
            for frame, trust in zip(carried, confidence, strict=True):
                shown = source[start : start + 1]
                start += 1
                blurred = spread(canvas.paste(frame[None], shown), mask)[0]
                share = np.where(trust > 0, settings.doubt * (1 - trust), settings.made_up)
                # No step where carrying ends.
                share = cv2.GaussianBlur(share, (0, 0), _FEATHER * min(canvas.height, canvas.width))[..., None]
                made = frame + share * (blurred - frame)
                if grain is not None:
                    made = grain(made, shown[0], ((trust == 0) & (mask > 0)).astype(np.uint8))
                yield np.clip(np.rint(made), 0, 255).astype(np.uint8)[None]
