"""What a report shows: a page of frames side by side, and curves over frames."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

_FONT, _INK, _PALE, _BOLD = cv2.FONT_HERSHEY_SIMPLEX, (40, 40, 40), (205, 205, 205), (190, 60, 20)
_STRIP_ASPECT = 2.7  # about, with its label
_MARGIN, _LABEL = 8, 18
_PANEL = (240, 640)  # height and width of the area that curves lie in
_LEFT, _TOP, _BOTTOM = 64, 32, 34


def encode_png(image: np.ndarray) -> bytes:
    """A PNG file of uint8 [h,w,3] RGB."""
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def draw_page(names: Sequence[str], strips: Sequence[np.ndarray]) -> np.ndarray:
    """The strips, uint8 [h,w,3] each, under their names, column after column of a page that is about square."""
    columns, count = [], math.ceil(math.sqrt(_STRIP_ASPECT * len(strips)))
    for start in range(0, len(strips), count):
        part = strips[start : start + count]
        width = max(strip.shape[1] for strip in part) + 2 * _MARGIN
        rows = []
        for name, strip in zip(names[start : start + count], part, strict=True):
            row = np.full((len(strip) + _LABEL + _MARGIN, width, 3), 255, np.uint8)
            _write(row, f"{name}: source, output, truth", (_MARGIN, _LABEL - 5))
            row[_LABEL : _LABEL + len(strip), _MARGIN : _MARGIN + strip.shape[1]] = strip
            rows.append(row)
        columns.append(np.concatenate(rows))
    height = max(len(column) for column in columns)
    return np.concatenate(
        [np.pad(column, ((0, height - len(column)), (0, 0), (0, 0)), constant_values=255) for column in columns], axis=1
    )


def draw_curves(panels: Sequence[tuple[str, Sequence[Sequence[float]]]]) -> np.ndarray:
    """One panel below the other, each with a pale curve a clip over its frames and, bold, the mean over clips.

    The mean is of those that have the frame, and ends where less than half of them do.

    panels: title and curves, which may differ in length and hold nan. uint8 [h,w,3].
    """
    return np.concatenate([_draw_panel(title, curves) for title, curves in panels])


def _draw_panel(title: str, curves: Sequence[Sequence[float]]) -> np.ndarray:
    height, width = _PANEL
    image = np.full((_TOP + height + _BOTTOM, _LEFT + width + 2 * _MARGIN, 3), 255, np.uint8)
    longest = max(len(curve) for curve in curves)
    values = np.full((len(curves), longest), np.nan)
    for row, curve in zip(values, curves, strict=True):
        row[: len(curve)] = curve
    counts = np.sum(~np.isnan(values), axis=0)
    mean = np.divide(
        np.nansum(values, axis=0), counts, out=np.full(longest, np.nan), where=counts * 2 >= max(len(curves), 1)
    )
    _write(image, f"{title}; bold: mean of {len(curves)} clips, while half of them last", (_LEFT, _TOP - 12))
    if not counts.any():
        return image
    ticks = _ticks(np.nanmin(values), np.nanmax(values))
    low, high = ticks[0], ticks[-1]

    def place(frame, value):
        return (
            int(_LEFT + width * frame / max(longest - 1, 1)),
            int(round(_TOP + height * (high - value) / (high - low))),
        )

    for tick in ticks:
        cv2.line(image, place(0, tick), place(longest - 1, tick), (238, 238, 238), 1)
        _write(image, f"{tick:.4g}", (8, place(0, tick)[1] + 4))
    for frame in sorted({int(frame) for frame in np.linspace(0, longest - 1, 6)}):
        _write(image, str(frame), (place(frame, low)[0] - 6, _TOP + height + 16))
    _write(image, "frame", (_LEFT + width // 2 - 20, _TOP + height + 30))
    for row in values:
        _draw_curve(image, row, place, _PALE, 1)
    _draw_curve(image, mean, place, _BOLD, 2)
    cv2.rectangle(image, (_LEFT, _TOP), (_LEFT + width, _TOP + height), _INK, 1)
    return image


def _draw_curve(image, values, place, colour, thickness):
    for frame in np.flatnonzero(~np.isnan(values)):
        before = frame - 1 if frame and not np.isnan(values[frame - 1]) else frame
        ends = place(before, values[before]), place(frame, values[frame])
        cv2.line(image, *ends, colour, thickness, cv2.LINE_AA)


def _ticks(low: float, high: float) -> np.ndarray:
    """Round numbers around [low, high], at most eight of them."""
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    power = 10 ** np.floor(np.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return np.arange(np.floor(low / step), np.ceil(high / step) + 1) * step


def _write(image, text, corner):
    cv2.putText(image, text, corner, _FONT, 0.42, _INK, 1, cv2.LINE_AA)
