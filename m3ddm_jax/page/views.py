"""Parts of the page that are HTML."""

import html
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.page.jobs import Progress
from m3ddm_jax.page.work import Result

HEADING = (
    "<h1>Outpaint a video</h1>"
    "<p>Give a video a wider, taller or larger frame. Every pixel of it stays as it is."
    " Everything runs on this machine, and nothing is sent elsewhere.</p>"
)
EMPTY = '<div class="empty"><p>Drop a video on the left, or use the sample.</p></div>'
_TALLEST = 440  # pixels of the result in the player


def problem(error: Exception, path: Path | None = None) -> str:
    """One line about what is wrong, without the folder of the user's file."""
    return f'<p class="problem" role="alert">{_line(str(error) or type(error).__name__, path)}</p>'


def lines(texts: Sequence[str], path: Path | None = None) -> str:
    """A line, and smaller ones for what the user should know besides."""
    first, *others = texts
    notes = "".join(f'<p class="note">{_line(text, path)}</p>' for text in others)
    return f"<p>{_line(first, path)}</p>{notes}"


def status(progress: Progress) -> str:
    """A job's state: its place in the queue, or a bar with frames and seconds."""
    if progress.state == "waiting":
        count = progress.waiting_for
        return f"<p>Waiting for {count} other video{'s' if count != 1 else ''}.</p><progress></progress>"
    if progress.state == "cancelled":
        return "<p>Cancelled.</p>"
    if progress.state == "stopping":
        return "<p>Cancelling.</p><progress></progress>"
    if not progress.done:
        text = f"Starting, {progress.elapsed:.0f} s. The first frames take longest."
        return f"<p>{text}</p><progress></progress>"
    left = "" if progress.left is None else f", about {progress.left:.0f} s left"
    bar = f'<progress value="{progress.done}" max="{progress.total}"></progress>'
    return f"<p>Frame {progress.done} of {progress.total}{left}</p>{bar}"


def player(result: Result, canvas: Canvas, pixel_aspect: float) -> str:
    """Source and result side by side at one scale, with one bar of controls; `static/player.js` moves both."""
    widest = (canvas.source_width + canvas.width) * pixel_aspect / canvas.height * _TALLEST
    figures = (
        _figure("source", "Source", result.shown_source, canvas.source_width, " muted"),
        _figure("result", "Result", result.shown_result, canvas.width, ""),
    )
    return (
        f'<div class="player" style="max-width: {widest:.0f}px">{"".join(figures)}</div>'
        '<div class="bar"><button class="play" type="button">Play</button>'
        '<input class="seek" type="range" min="0" max="1" step="0.001" value="0" aria-label="Position">'
        '<span class="time"></span>'
        f'<a class="download" href="{_address(result.path)}" download="{html.escape(result.path.name)}">Download</a>'
        "</div>"
    )


def _figure(kind: str, caption: str, path: Path, width: int, attributes: str) -> str:
    return (
        f'<figure style="flex: {width} 1 0"><video class="{kind}" src="{_address(path)}" preload="auto" loop'
        f" playsinline{attributes}></video><figcaption>{caption}</figcaption></figure>"
    )


def _address(path: Path) -> str:
    """Where Gradio serves a file."""
    return f"gradio_api/file={quote(str(path))}"


def _line(text: str, path: Path | None) -> str:
    if path is not None:
        text = text.replace(str(path), path.name)
    return html.escape(" ".join(text.replace("`", "").split()))
