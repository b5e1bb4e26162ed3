"""What a job does: outpaint to a file, and prepare both videos for the browser."""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m3ddm_jax.api.outpainting import outpaint
from m3ddm_jax.page.jobs import Report
from m3ddm_jax.page.playback import playable
from m3ddm_jax.scenes.scene import FPS, sample_frames
from m3ddm_jax.video import FrameSink


@dataclasses.dataclass(frozen=True)
class Work:
    """A call of `outpaint`. folder: for its files. name: what the output's name ends in. arguments: keywords."""

    video: Path
    folder: Path
    name: str
    arguments: dict[str, Any]

    def __call__(self, report: Report) -> "Result":
        """Raises what `outpaint` and `report` raise."""
        path = self.folder / f"{self.video.stem}_{self.name}.mp4"
        with _collected_notes() as notes:
            outpaint(self.video, path, progress=report, **self.arguments)
        return Result(path, playable(self.video, self.folder), playable(path, self.folder), tuple(notes))


@dataclasses.dataclass(frozen=True)
class Result:
    """The output, source and output as a browser plays them, and what was converted or left out."""

    path: Path
    shown_source: Path
    shown_result: Path
    notes: tuple[str, ...]


def write_sample(path: Path) -> None:
    """Write the synthetic scene as a video."""
    frames = sample_frames()
    with FrameSink(path, FPS, *frames.shape[1:3]) as sink:
        sink.write(frames)


@contextlib.contextmanager
def _collected_notes() -> Iterator[list[str]]:
    """Lines that the library logs in this thread."""
    notes, here = [], threading.get_ident()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: notes.append(record.getMessage()) if record.thread == here else None
    logger = logging.getLogger("m3ddm_jax")
    logger.addHandler(handler)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)
