"""One video of a batch: what is to be done, what does it, and what became of it."""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from m3ddm_jax.api.inputs import read_file
from m3ddm_jax.api.outpainting import Outpainter, default_method
from m3ddm_jax.api.targets import plan_target
from m3ddm_jax.video import FrameSource


@dataclasses.dataclass(frozen=True)
class Job:
    """A video, its output and the arguments of `plan_target` that are its own."""

    video: str
    output: str
    target: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a job: a line of the report. notes: lines on what was converted or left out."""

    video: str
    output: str
    status: Literal["done", "failed", "skipped"]
    frames: int = 0
    seconds: float = 0.0
    error: str | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """What all jobs share.

    method: None for the default. options: of the method. encoding: codec, quality and pixel_format. reading: keywords
    of `read_file`.
    """

    method: str | None
    options: Mapping[str, Any]
    seed: int = 0
    fps: float | None = None
    encoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reading: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def method_for(self, target: Mapping[str, Any]) -> str:
        """The method for a job with this target."""
        return self.method or default_method(self.options.get("model"), self.options.get("preset"), target.get("mask"))


class Runner:
    """Outpaints one video after the other, with each method's model loaded once.

    methods: that are loaded at once; raises ValueError where one cannot be.
    """

    def __init__(self, settings: BatchSettings, methods: tuple[str, ...]):
        self._settings = settings
        self._outpainters = {method: Outpainter(method, **settings.options) for method in methods}

    def __call__(self, job: Job) -> Result:
        """Do a job. A video that fails is a result too; an output that is there already is not made again."""
        if os.path.exists(job.output):
            return Result(job.video, job.output, "skipped")
        start, notes = time.monotonic(), []
        try:
            pathlib.Path(job.output).parent.mkdir(parents=True, exist_ok=True)
            use, reading = functools.partial(self._outpaint, job), self._settings.reading
            with _collecting(notes):
                frames = read_file(job.video, use, self._settings.fps, **reading)
            result = Result(job.video, job.output, "done", frames)
        except Exception as error:  # whatever it is, the other videos go on
            result = Result(job.video, job.output, "failed", error=_in_a_line(error))
        return dataclasses.replace(result, seconds=round(time.monotonic() - start, 3), notes=tuple(notes))

    def _outpaint(self, job: Job, source: FrameSource) -> int:
        settings = self._settings
        target = plan_target(source, job.output, fps=settings.fps, **job.target, **settings.encoding)
        return self._outpainters[settings.method_for(job.target)].write(source, target, settings.seed)


def _in_a_line(error: Exception) -> str:
    """What an error says, with its type where it is none that the library raises for bad input."""
    text = " ".join(str(error).split())
    return text if text and isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def _collecting(lines: list[str]) -> Iterator[None]:
    """Append what the library logs to a list instead: it may be another machine that shows it."""
    logger, handler = logging.getLogger("m3ddm_jax"), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before
