"""Outpaints on a laptop, without trained weights: propagates real pixels and completes the rest.

`isvi` without networks, on few lines, propagates what other frames have seen. A propagated pixel is mixed with a smooth
continuation of the source, the more the lower its confidence, because their errors differ. What no frame saw is
completed by patches of the source or a network (sharp), or continued smoothly (faithful). Adaptation to the source may
correct the faithful result. A design of this project.
"""

import dataclasses
import itertools
import logging
from collections.abc import Iterator
from typing import Literal

import numpy as np

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines.adaptation import NEEDED, Adapter, Made
from m3ddm_jax.pipelines.base import LiteOptions
from m3ddm_jax.pipelines.compositing import Spread, soften
from m3ddm_jax.pipelines.isvi import Isvi
from m3ddm_jax.pipelines.options import CheckedSettings, or_none
from m3ddm_jax.types import FramesTHWC
from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.shots import source_cuts

_LOG = logging.getLogger(__name__)
_FEATHER = 1 / 48  # of the canvas's short side, by which shares of the blur are smoothed
_OF_ISVI = ("lines", "anchor", "key_frames", "interpolation", "strip", "texture")  # settings
_MEGABYTES = 192  # of isvi's windows; half of what it takes by itself


@dataclasses.dataclass(frozen=True)
class LiteSettings(CheckedSettings):
    """How a video is outpainted; the defaults are those of "faithful".

    lines: shorter side, in pixels, at which real pixels are propagated; a smaller canvas keeps its size.
    anchor: how much the colour of a propagated pixel counts where the blend would lead it far from that.
    doubt: share of the smooth continuation in a propagated pixel of confidence 0, which falls to none at 1.
    made_up: share of the smooth continuation where nothing was propagated.
    key_frames: of a window of frames, that are completed at most; the others follow them. 0 completes none.
    interpolation: of propagated values between pixels; cubic keeps more detail than linear.
    strip, texture: as `IsviSettings` has them.
    """

    lines: int = 240
    anchor: float = 0.05
    doubt: float = 0.5
    made_up: float = 0.25
    key_frames: int = or_none(0)
    interpolation: Literal["linear", "cubic"] = "linear"
    strip: int = or_none(0)
    texture: Literal["network", "patches"] = "network"


_SHARP = {"lines": 256, "doubt": 0.25, "made_up": 0.0, "key_frames": 5, "interpolation": "cubic"}
"""What "sharp" sets otherwise."""


class Lite(LiteOptions):
    """The `lite` Outpainter. adapt requires "faithful", which completes no key frames; a model completes them.

    model: as `Isvi` takes it; "none" as None.
    Raises ValueError for options or settings that do not fit, and a model that cannot be loaded.
    """

    def __post_init__(self):
        prefer = self.prefer or ("faithful" if self.adapt else "sharp")
        if self.adapt and prefer == "sharp":
            raise ValueError("adapt goes with prefer='faithful', found 'sharp'")
        self._settings = LiteSettings.make({**(_SHARP if prefer == "sharp" else {}), **(self.settings or {})})
        shared = {name: getattr(self._settings, name) for name in _OF_ISVI}
        self._isvi = Isvi(self.model, settings={**shared, "megabytes": _MEGABYTES})
        self.models = {name: (folder, self._settings) for name, (folder, _) in self._isvi.models.items()}
        if self.models and not self._settings.key_frames:
            raise ValueError("a model completes key frames: it goes with prefer='sharp', or key_frames above 0")
        self._adapter = None
        if self.adapt:
            self._adapter = Adapter(self._make, self.adapt, self.cache or None, settings=self._settings)

    def __call__(self, source: FrameSource, canvas: Canvas, rng: None = None) -> Iterator[FramesTHWC]:
        """Yields canvas frames, uint8 [n, H, W, 3], in time order; the caller pastes the source's own pixels.

        Logs a line if no shot could be adapted to.
        """
        starts = [0, *source_cuts(source)] if self._adapter else []
        shots = (range(*ends) for ends in itertools.pairwise([*starts, len(source)]))
        correction, adapted = None, False
        for index, made in enumerate(self._make(source, canvas)):
            if index in starts:
                correction = self._adapter(source, next(shots), canvas)
                adapted = adapted or correction is not None
            frame = made.frame if correction is None else made.frame + correction(made)
            yield np.clip(np.rint(frame), 0, 255).astype(np.uint8)[None]
        if self._adapter and not adapted:
            _LOG.warning("lite: adaptation skipped: %s", NEEDED)

    def _make(self, source: FrameSource, canvas: Canvas) -> Iterator[Made]:
        """Every frame before it is corrected."""
        settings, blur = self._settings, Spread(canvas.mask())
        for carried, trust in self._isvi.carry(source, canvas):
            carried = carried.astype(np.float32)
            blurred = blur(carried)
            share = np.where(trust > 0, settings.doubt * (1 - trust), settings.made_up)
            # No step where propagation ends.
            share = soften(share[..., 0], _FEATHER * min(canvas.height, canvas.width))[..., None]
            yield Made(carried + share * (blurred - carried), carried, blurred, trust)
