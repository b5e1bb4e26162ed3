"""What is made of a source: the canvas, what is generated of it, and the file that holds it."""

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from m3ddm_jax.files.places import check_apart
from m3ddm_jax.geometry import CENTRE, Canvas, CanvasMasks, Masks
from m3ddm_jax.video import FrameSource, MaskSource
from m3ddm_jax.video.masks import ArrayMasks
from m3ddm_jax.video.output.codecs import NOTHING_ASKED, Asked
from m3ddm_jax.video.preview import check_preview
from m3ddm_jax.video.sink import check_writable

MAX_SIDE = 16384  # pixels; the encoders take no more

Mask = str | os.PathLike | np.ndarray
"""A file of masks (white is generated), or bool or uint8 [H, W] or [T, H, W], where generated not 0."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One output of a source.

    canvas: its size, and the source's place on it. masks: of the canvas's size, what of the source is generated too.
    path: file or folder, None for frames in memory. asked: codec, quality and pixel format. preview: file that shows
    source and result side by side.
    """

    canvas: Canvas
    masks: Masks | None = None
    path: pathlib.Path | None = None
    asked: Asked = NOTHING_ASKED
    preview: pathlib.Path | None = None


def plan_target(
    source: FrameSource,
    path: str | os.PathLike | None = None,
    *,
    aspect: str | float | None = None,
    size: Sequence[int] | None = None,
    pad: Sequence[int] | None = None,
    anchor: Sequence[float] | None = None,
    mask: Mask | None = None,
    fps: float | None = None,
    codec: str | None = None,
    quality: int | None = None,
    pixel_format: str | None = None,
    preview: str | os.PathLike | None = None,
) -> Target:
    """The output that the arguments of `outpaint` of the same names describe.

    fps: at which a file was sampled anew, and videos of masks are too. Reads no more than masks, and writes nothing.
    Raises ValueError for what cannot be made or written, TypeError for a path that is none.
    """
    canvas = make_canvas(source, aspect, size, pad, anchor, may_stay=mask is not None)
    masks = None if mask is None else _place_masks(source, mask, canvas, fps)
    if path is None:
        for name, value in (("codec", codec), ("quality", quality), ("pixel_format", pixel_format)):
            if value is not None:
                raise ValueError(f"`{name}` is of a file that is written, and there is no `path`")
        return Target(canvas, masks)
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`path` must be a path, found {type(path).__name__}")
    if preview is not None:
        preview = pathlib.Path(preview)
        check_preview(preview)
    mask_path = mask if isinstance(mask, str | os.PathLike) else None
    check_apart([("output", path), ("preview", preview)], [("input", source.path), ("mask", mask_path)])
    asked = Asked(codec, quality, pixel_format, os.fspath(path).endswith("/"))
    check_writable(path, asked, source)
    return Target(canvas, masks, pathlib.Path(path), asked, preview)


def make_canvas(
    source: FrameSource,
    aspect: str | float | None = None,
    size: Sequence[int] | None = None,
    pad: Sequence[int] | None = None,
    anchor: Sequence[float] | None = None,
    may_stay: bool = False,
) -> Canvas:
    """The canvas of an aspect, a size or a padding, one of which is required.

    aspect: width / height as displayed, or "WIDTH:HEIGHT". size: width and height in pixels. pad: pixels to add: left,
    top, right, bottom. anchor: where the source lies, x and y from 0 (left, top) to 1 (right, bottom).
    may_stay: where none is given, the canvas is the source, with another row or column where a side is odd.
    Raises ValueError for a canvas that is not larger than the source, or too large.
    """
    given = {name: value for name, value in (("aspect", aspect), ("size", size), ("pad", pad)) if value is not None}
    if len(given) > 1 or not (given or may_stay):
        found = " and ".join(f"`{name}`" for name in given) or "none"
        raise ValueError(f"one of `aspect`, `size` and `pad` is needed, found {found}")
    shape = (source.height, source.width)
    place = CENTRE if anchor is None else _numbers("anchor", anchor, 2, float, "(x, y) in 0..1")
    if pad is not None:
        if anchor is not None:
            raise ValueError("`pad` says where the source lies already: it accepts no `anchor`")
        canvas = Canvas.from_pad(*shape, *_numbers("pad", pad, 4, int, "(left, top, right, bottom) in pixels"))
    elif size is not None:
        width, height = _numbers("size", size, 2, int, "(width, height) in pixels")
        canvas = Canvas.from_size(*shape, height, width, place)
    elif aspect is not None:
        canvas = Canvas.from_aspect(*shape, _ratio(aspect) / float(source.pixel_aspect), place)
    else:
        canvas = Canvas.from_size(*shape, *(side + side % 2 for side in shape), place)
    if max(canvas.height, canvas.width) > MAX_SIDE:
        raise ValueError(f"a canvas of {canvas.width}x{canvas.height} is too large: {MAX_SIDE} is the longest side")
    return canvas


def parse_target(texts: dict[str, str | None]) -> dict[str, Any]:
    """Arguments of `plan_target` from texts as users type them, such as size "1280x720"; None and "" count as absent.

    Raises ValueError for a text that is not of the form.
    """
    parsed = {}
    for name, text in texts.items():
        if not text:
            continue
        pattern, kind, accepted = _TEXTS.get(name, (None, None, None))
        match = None if pattern is None else re.fullmatch(pattern, text)
        if pattern is not None and match is None:
            raise ValueError(f"`{name}` must be {accepted}, found {text!r}")
        parsed[name] = text if match is None else tuple(kind(group) for group in match.groups())
        if name == "aspect":
            parsed[name] = _ratio(text)
    return parsed


_NUMBER = r"(\d+\.?\d*|\.\d+)"
_TEXTS = {
    "size": (r"(\d+)x(\d+)", int, "WIDTHxHEIGHT such as 1280x720"),
    "pad": (",".join([r"(-?\d+)"] * 4), int, "left,top,right,bottom in pixels"),
    "anchor": (f"{_NUMBER},{_NUMBER}", float, "0..1,0..1 such as 0.5,0"),
}


def _ratio(aspect: Any) -> float:
    """Width / height of an aspect."""
    match = re.fullmatch(f"{_NUMBER}(?::{_NUMBER})?", str(aspect))
    width, height = (float(number or 1) for number in match.groups()) if match else (0.0, 1.0)
    ratio = width / height if height > 0 else 0.0
    if not 0 < ratio < math.inf:
        raise ValueError(f"`aspect` must be WIDTH:HEIGHT such as 16:9, or a positive number, found {aspect!r}")
    return ratio


def _numbers(name: str, values: Any, count: int, kind: type, accepted: str) -> tuple:
    """The values of an argument as numbers of a kind; raises ValueError for another number of them, or kind."""
    fits = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str) and len(values) == count
    if not fits or any(isinstance(value, str) or kind(value) != value for value in values):
        raise ValueError(f"`{name}` must be {accepted}, found {values!r}")
    return tuple(map(kind, values))


def _place_masks(source: FrameSource, mask: Mask, canvas: Canvas, fps: float | None) -> CanvasMasks:
    """Masks on a canvas.

    Raises ValueError for masks of another size than a canvas or the source, and where they leave the whole source as it
    is or nothing of it. No more masks are read than tell that.
    """
    if isinstance(mask, np.ndarray):
        masks = ArrayMasks(mask, len(source))
    else:
        is_file = source.path is not None and source.path.is_file()
        masks = MaskSource(mask, len(source), fps if is_file else None)
    placed, values = CanvasMasks(masks, canvas), set()
    for index in range(masks.count):
        values |= set(np.unique(placed[index : index + 1][:, *canvas.box]))
        if len(values) > 1:
            return placed
    where = "everywhere" if 1 in values else "nowhere"
    raise ValueError(f"the mask is white {where} on the source: white marks what is generated, the rest is known")
