"""What every outpainter is, and the table of their names."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from m3ddm_jax.geometry import Canvas, Masks
from m3ddm_jax.pipelines.baselines import Blur, Edge, Telea
from m3ddm_jax.pipelines.mosaic import Mosaic
from m3ddm_jax.video import FrameSource


class Outpainter(Protocol):
    """Makes a video larger than it is, in memory that does not grow with its length.

    One that is made with a `mask` (geometry.Masks of the canvas's size) generates what that says, and is for that
    canvas and video alone.
    """

    def __call__(self, source: FrameSource, canvas: Canvas, rng: Any) -> Iterator[np.ndarray]:
        """Yields canvas frames, uint8 [n,H,W,3], in time order; the caller pastes the source and writes.

        rng: a jax random key; an outpainter without chance takes None.
        """


@runtime_checkable
class OverModels(Protocol):
    """What outpainters that stand on model folders tell besides.

    models: option that names a folder -> the local folder, and the settings (a dataclass) that are used of it.
    """

    models: Mapping[str, tuple[Path, Any]]


def _lite(
    prefer: str | None = None, adapt: int = 0, cache: str | None = None, settings: Mapping[str, Any] | None = None
) -> Outpainter:
    from m3ddm_jax.pipelines.lite import Lite  # brings jax, which the classical ones can do without

    prefer = prefer or ("faithful" if adapt else "sharp")
    return Lite(prefer=prefer, adapt=adapt, cache=cache, settings=settings)


def _m3ddm(
    model: str | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    steps: int | None = None,
    dtype: str = "float32",
    windows: int | None = None,
    propagate: bool = False,
) -> Outpainter:
    from m3ddm_jax.pipelines.m3ddm import M3DDM

    return M3DDM(
        model, preset=preset, settings=settings, steps=steps, dtype=dtype, windows=windows, propagate=propagate
    )


def _globalpaint(
    model: str | None = None,
    interpolation_model: str | None = None,
    sequential: bool = False,
    settings: Mapping[str, Any] | None = None,
    steps: int | None = None,
    dtype: str = "float32",
    windows: int | None = None,
    propagate: bool = False,
) -> Outpainter:
    from m3ddm_jax.pipelines.globalpaint import GlobalPaint

    return GlobalPaint(
        model,
        interpolation_model=interpolation_model,
        sequential=sequential,
        settings=settings,
        steps=steps,
        dtype=dtype,
        windows=windows,
        propagate=propagate,
    )


def _in2out(
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    mask: Masks | None = None,
) -> Outpainter:
    from m3ddm_jax.pipelines.in2out import In2Out

    return In2Out(model, settings=settings, dtype=dtype, mask=mask)


def _isvi(model: str | None = None, settings: Mapping[str, Any] | None = None, mask: Masks | None = None) -> Outpainter:
    from m3ddm_jax.pipelines.isvi import NONE, Isvi

    return Isvi(model or NONE, settings=settings, mask=mask)


OUTPAINTERS: dict[str, Callable[..., Outpainter]] = {
    "lite": _lite,
    "m3ddm": _m3ddm,
    "globalpaint": _globalpaint,
    "in2out": _in2out,
    "isvi": _isvi,
    "edge": Edge,
    "blur": Blur,
    "telea": Telea,
    "mosaic": Mosaic,
}
"""name -> what makes the outpainter; only those that stand on a model take options."""

DRAWN = frozenset({"m3ddm", "globalpaint"})
"""Names of those that draw from a random key; the others take None."""
