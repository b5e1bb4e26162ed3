"""The page's layout, and what its controls do."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from m3ddm_jax.api.targets import make_canvas
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.page import views
from m3ddm_jax.page.controls import MethodControls
from m3ddm_jax.page.jobs import Queue
from m3ddm_jax.page.sessions import Session, Sessions
from m3ddm_jax.page.target import Video, draw
from m3ddm_jax.page.work import Work, write_sample
from m3ddm_jax.page.worker import Worker

STATIC = Path(__file__).parent / "static"
ASPECTS = ("16:9", "9:16", "1:1", "4:5", "4:3", "21:9")
PIXELS = "Pixels"
_EVERY = 0.4  # seconds between two looks at a job
_QUIET = {"show_progress": "hidden"}


class Page:
    """The page. folder: for its files. uploads: where Gradio puts what was dropped. blocks: what Gradio serves."""

    def __init__(self, folder: Path, uploads: Path):
        self._sample = folder / "sample.mp4"
        self._queue, self._worker = Queue(), Worker()
        self._sessions = Sessions(folder / "results", uploads)
        with gr.Blocks(title="Outpaint a video", analytics_enabled=False) as self.blocks:
            self._lay_out()
            self._connect()
            self.blocks.unload(self._leave)

    def close(self) -> None:
        """Cancel all jobs, and wait until none runs."""
        self._queue.close()
        self._worker.close()

    def _lay_out(self) -> None:
        gr.HTML(views.HEADING)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                self._file = gr.File(label="Video", height=150, elem_id="video")
                self._use_sample = gr.Button("Use the sample", size="sm", elem_id="sample")
                self._choice = gr.Radio([*ASPECTS, PIXELS], value=ASPECTS[0], label="Canvas", elem_id="choice")
                with gr.Row(visible=False) as self._pixels:
                    self._width = gr.Number(label="Width", precision=0, minimum=2, step=2, elem_id="width")
                    self._height = gr.Number(label="Height", precision=0, minimum=2, step=2, elem_id="height")
                with gr.Row():
                    about = {"minimum": 0, "maximum": 1, "value": 0.5, "step": 0.01}
                    self._x = gr.Slider(label="Left to right", elem_id="anchor-x", **about)
                    self._y = gr.Slider(label="Top to bottom", elem_id="anchor-y", **about)
                self._method = MethodControls()
            with gr.Column(scale=3, min_width=320):
                self._picture = _html("picture", views.EMPTY, "canvas.js")
                with gr.Row():
                    self._start = gr.Button("Outpaint", variant="primary", interactive=False, elem_id="start", scale=3)
                    self._cancel = gr.Button("Cancel", interactive=False, elem_id="cancel", scale=1, min_width=90)
                self._status = gr.HTML(elem_id="status")
        self._player = _html("player", "", "player.js")

    def _connect(self) -> None:
        target = [self._choice, self._width, self._height, self._x, self._y]
        drawn = [self._picture, self._start]
        self._use_sample.click(self._choose_sample, None, self._file)
        opened = self._file.change(self._open, self._file, [self._status, self._player], **_QUIET)
        opened.then(self._draw, target, drawn, **_QUIET)
        self._choice.change(self._propose_size, target, [self._pixels, self._width, self._height], **_QUIET)
        for control in target:
            control.change(self._draw, target, drawn, trigger_mode="always_last", **_QUIET)
        self._picture.select(self._move, [self._x, self._y], [self._x, self._y], **_QUIET)
        shown = [self._status, self._start, self._cancel, self._player]
        controls = [*target, *self._method.components]
        self._start.click(self._run, controls, shown, concurrency_limit=None, **_QUIET)
        self._cancel.click(self._stop, None, self._cancel, concurrency_limit=None, **_QUIET)

    def _session(self, request: gr.Request) -> Session:
        return self._sessions[request.session_hash]

    def _leave(self, request: gr.Request) -> None:
        self._sessions.end(request.session_hash)

    def _choose_sample(self) -> str:
        if not self._sample.exists():
            write_sample(self._sample)
        return str(self._sample)

    def _open(self, request: gr.Request, path: str | None) -> tuple[str, str]:
        """The status after a file was dropped: what it is, or why it cannot be read; and no player."""
        session, video = self._session(request), None
        try:
            if path is None:
                return "", ""
            video = Video.open(Path(path))
            return views.lines([video.facts(), *video.source.notes], Path(path)), ""
        except ValueError as error:
            self._sessions.delete_unused(Path(path))
            return views.problem(error, Path(path)), ""
        finally:
            self._sessions.set_video(session, video)

    def _draw(self, request: gr.Request, *target: Any) -> tuple[str, Any]:
        """The picture of the canvas, and whether it can be outpainted."""
        session = self._session(request)
        video = session.video
        if video is None:
            return views.EMPTY, gr.update(interactive=False)
        try:
            return draw(video, _canvas(video, *target)), gr.update(interactive=not session.is_busy)
        except ValueError as error:
            return views.problem(error), gr.update(interactive=False)

    def _propose_size(self, request: gr.Request, choice: str, width: float, height: float, *_: float) -> list[Any]:
        """Show the fields of a size in pixels; if they are empty, with the size of the first aspect."""
        video = self._session(request).video
        if choice == PIXELS and video is not None and not (width and height):
            canvas = make_canvas(video.source, aspect=ASPECTS[0])
            width, height = canvas.width, canvas.height
        return [gr.update(visible=choice == PIXELS), width, height]

    def _move(self, event: gr.EventData, x: float, y: float) -> list[float]:
        """The anchor after the source was dragged; an axis without room stays."""
        return [old if new is None else round(new, 2) for old, new in zip((x, y), event.anchor, strict=True)]

    def _run(
        self, request: gr.Request, choice: str, width: float, height: float, x: float, y: float, *controls: Any
    ) -> Iterator[dict[Any, Any]]:
        """Outpaint, and show how far it is; at the end the player, or one line about what went wrong."""
        session, target = self._session(request), (choice, width, height, x, y)
        video = session.video
        session.cancel()
        yield self._update("", busy=True)
        try:
            canvas = _canvas(video, *target)
            arguments = {**_arguments(*target), **self._method.read(*controls)}
        except ValueError as error:
            yield self._update(views.problem(error), busy=False)
            return
        name = f"{canvas.width}x{canvas.height}" if choice == PIXELS else choice.replace(":", "x")
        work = Work(video.path, session.empty_folder(), name, arguments)
        session.outpainted = video.path
        job = session.job = self._queue.add(functools.partial(self._worker.call, work))
        while not job.finished.wait(_EVERY) and job.progress.state != "cancelled":
            yield self._update(views.status(job.progress), busy=True)
        self._sessions.delete_unused(video.path)
        progress = job.progress
        if progress.state == "cancelled":
            session.empty_folder()
            yield self._update(views.status(progress), busy=False)
        elif progress.state == "failed":
            yield self._update(views.problem(job.error, video.path), busy=False)
        else:
            text = f"Done: {progress.done} frames in {progress.elapsed:.0f} s."
            status = views.lines([text, *job.result.notes], video.path)
            player = views.player(job.result, canvas, float(video.source.pixel_aspect))
            yield {**self._update(status, busy=False), self._player: player}

    def _update(self, status: str, busy: bool) -> dict[Any, Any]:
        return {
            self._status: status,
            self._start: gr.update(interactive=not busy),
            self._cancel: gr.update(interactive=busy),
            **({self._player: ""} if busy and not status else {}),
        }

    def _stop(self, request: gr.Request) -> Any:
        self._session(request).cancel()
        return gr.update(interactive=False)


def _arguments(choice: str, width: float | None, height: float | None, x: float, y: float) -> dict[str, Any]:
    """Arguments of `outpaint` from the controls."""
    size = {"size": (int(width or 0), int(height or 0))}
    return {**(size if choice == PIXELS else {"aspect": choice}), "anchor": (x, y)}


def _canvas(video: Video, *target: Any) -> Canvas:
    return make_canvas(video.source, **_arguments(*target))


def _html(name: str, value: str, script: str) -> gr.HTML:
    return gr.HTML(value, elem_id=name, js_on_load=(STATIC / script).read_text())
