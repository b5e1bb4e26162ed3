"""The video on the page, and a picture of where it lies on the canvas."""

import base64
import dataclasses
import html
from pathlib import Path

import cv2

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.video import FrameSource

_LONGEST = 960  # pixels of a side of the picture's frame


@dataclasses.dataclass(frozen=True)
class Video:
    """A video that was dropped on the page. picture: its first frame as a data URI."""

    path: Path
    source: FrameSource
    picture: str

    @classmethod
    def open(cls, path: Path) -> "Video":
        """Raises ValueError for what is no readable video."""
        source = FrameSource(path, damage="note")
        scale = min(1.0, _LONGEST / max(source.height, source.width))
        size = max(1, round(source.height * scale)), max(1, round(source.width * scale))
        first = source.read([0], size)[0]
        source.close()
        encoded = cv2.imencode(".jpg", first[..., ::-1])[1].tobytes()
        return cls(path, source, f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}")

    def facts(self) -> str:
        """Size, length and rate, for people."""
        source = self.source
        seconds = source.timestamps[-1] + source.durations[-1]
        return f"{self.path.name}: {source.width}x{source.height}, {len(source)} frames, {seconds:.1f} s"


def draw(video: Video, canvas: Canvas) -> str:
    """An SVG picture of the canvas: the first frame in its place, and hatching where pixels are generated.

    `static/canvas.js` lets the frame be dragged. The room that it has is in the attributes.
    """
    stretch = float(video.source.pixel_aspect)
    width, left, inner = (value * stretch for value in (canvas.width, canvas.left, canvas.source_width))
    mark, words = max(width, canvas.height) / 300, html.escape(describe(canvas))
    return (
        f'<svg class="canvas" viewBox="0 0 {width:g} {canvas.height}" role="img" aria-label="{words}"'
        f' data-room-x="{width - inner:g}" data-room-y="{canvas.height - canvas.source_height}">'
        f'<defs><pattern id="hatch" width="{8 * mark:g}" height="{8 * mark:g}" patternUnits="userSpaceOnUse"'
        f' patternTransform="rotate(45)"><rect class="ground" width="100%" height="100%"/>'
        f'<rect class="line" width="{3 * mark:g}" height="100%"/></pattern></defs>'
        f'<rect width="100%" height="100%" fill="url(#hatch)"/>'
        f'<image class="source" href="{video.picture}" x="{left:g}" y="{canvas.top}" width="{inner:g}"'
        f' height="{canvas.source_height}" preserveAspectRatio="none"/></svg>'
        f'<p class="sizes">{words}. Drag the video to move it.</p>'
    )


def describe(canvas: Canvas) -> str:
    """Sizes of source and canvas, and the pixels that are added on each side."""
    right = canvas.width - canvas.left - canvas.source_width
    bottom = canvas.height - canvas.top - canvas.source_height
    sides = {"left": canvas.left, "right": right, "top": canvas.top, "bottom": bottom}
    added = ", ".join(f"{pixels} {side}" for side, pixels in sides.items() if pixels)
    sizes = f"{canvas.source_width}x{canvas.source_height} to {canvas.width}x{canvas.height}"
    return f"{sizes}, adds {added}" if added else f"{sizes}, adds nothing"
