"""Outpainting on a laptop, without a trained model: real pixels as far as they are to be trusted, and a blur.

`isvi` without networks, on few lines, carries what other frames have seen. Its pixels and a blur of the source err in
ways of their own, so that their mean errs less than either; the less sure a pixel is, the more of the blur is in it.
Where none was carried, grain may be laid over. Adaptation to the source may correct all that. A design of this project.
"""

import dataclasses
import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines.adaptation import NEEDED, Adapter, Made
from m3ddm_jax.pipelines.compositing import Spread, soften
from m3ddm_jax.pipelines.grain import Grain
from m3ddm_jax.pipelines.isvi import Isvi
from m3ddm_jax.pipelines.options import CheckedSettings
from m3ddm_jax.pipelines.shots import source_cuts
from m3ddm_jax.types import FramesTHWC
from m3ddm_jax.video import FrameSource

_FEATHER = 1 / 48  # of the canvas's short side, by which shares of the blur are smoothed
_MEGABYTES = 192  # of isvi's windows; half of what it takes by itself


@dataclasses.dataclass(frozen=True)
class Settings(CheckedSettings):
    """How a video is outpainted.

    lines: shorter side, in pixels, at which real pixels are carried; a smaller canvas keeps its size.
    anchor: how much the colour of a carried pixel counts where the blend would lead it far from that.
    doubt: share of the blur in a carried pixel of confidence 0, which falls to none at 1.
    made_up: share of the blur where nothing was carried.
    grain: strength of the grain where `prefer` is sharp; 1 is that of the source's own texture.
    """

    lines: int = 240
    anchor: float = 0.05
    doubt: float = 0.5
    made_up: float = 0.25
    grain: float = 0.4


class Lite:
    """The `lite` Outpainter.

    prefer: the least error to be expected (faithful), or grain besides, where all is smooth (sharp). adapt: updates of
    a small network on each shot of the source itself, before it is made; 0: none. cache: folder where such networks are
    found again; None: they are not kept. settings: those that differ from `Settings`, by name. Raises ValueError for
    settings that do not fit.
    """

    def __init__(
        self,
        *,
        prefer: Literal["faithful", "sharp"] = "sharp",
        adapt: int = 0,
        cache: str | os.PathLike | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        self._settings = Settings.make(settings or {})
        self._sharp = prefer == "sharp"
        self._adapter = Adapter(self._make, adapt, cache, settings=self._settings) if adapt else None

    def __call__(self, source: FrameSource, canvas: Canvas, rng: None = None) -> Iterator[FramesTHWC]:
        """Yields canvas frames, uint8 [n, H, W, 3], in time order; the caller pastes the source's own pixels. Says on
        stderr if it was to adapt and could to no shot."""
        mask = canvas.mask()
        grain = Grain(canvas, self._settings.grain) if self._sharp else None
        starts = [0, *source_cuts(source)] if self._adapter else []
        shots = (range(*ends) for ends in itertools.pairwise([*starts, len(source)]))
        correction, adapted = None, False
        for index, made in enumerate(self._make(source, canvas)):
            if index in starts:
                correction = self._adapter(source, next(shots), canvas)
                adapted = adapted or correction is not None
            frame = made.frame if correction is None else made.frame + correction(made)
            if grain is not None:
                unknown = ((made.trust == 0) & (mask > 0)).astype(np.uint8)
                frame = grain(frame, made.carried[canvas.box].astype(np.uint8), unknown)
            yield np.clip(np.rint(frame), 0, 255).astype(np.uint8)[None]
        if self._adapter and not adapted:
            print(f"lite: nothing to adapt to: {NEEDED}", file=sys.stderr)

    def _make(self, source: FrameSource, canvas: Canvas) -> Iterator[Made]:
        """Every frame before it is corrected and has grain."""
        settings, blur = self._settings, Spread(canvas.mask())
        isvi = Isvi(settings={"lines": settings.lines, "megabytes": _MEGABYTES, "anchor": settings.anchor})
        for carried, trust in isvi.carry(source, canvas):
            carried = carried.astype(np.float32)
            blurred = blur(carried)
            share = np.where(trust > 0, settings.doubt * (1 - trust), settings.made_up)
            # No step where carrying ends.
            share = soften(share[..., 0], _FEATHER * min(canvas.height, canvas.width))[..., None]
            yield Made(carried + share * (blurred - carried), carried, blurred, trust)
