"""One job at a time: the queue of outpaintings, with progress, the time that is left and cancelling."""

import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

Report = Callable[[int, int | None], None]


class Cancelled(Exception):
    """Raised inside a job that its user has cancelled."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a job stands.

    waiting_for: number of jobs before it. left: estimated seconds, None before the first frames.
    """

    state: Literal["waiting", "running", "stopping", "done", "failed", "cancelled"]
    waiting_for: int = 0
    done: int = 0
    total: int | None = None
    elapsed: float = 0.0
    left: float | None = None
    error: str = ""


class Job:
    """A call of `work(report)` in a `Queue`. report(done, total) raises Cancelled once `cancel` was called."""

    def __init__(self, work: Callable[[Report], Any], ahead: Callable[["Job"], int]):
        self._work, self._ahead = work, ahead
        self._cancel = threading.Event()
        self._start: float | None = None
        self._first: tuple[float, int] | None = None  # when the first frames came, and how many
        self._last = 0.0  # when the last ones came
        self._done, self._total = 0, None
        self.finished = threading.Event()
        self.result: Any = None
        self.error: Exception | None = None

    def cancel(self) -> None:
        """Ask the job to stop: at its next frames, or before it begins."""
        self._cancel.set()

    def run(self) -> None:
        self._start = time.monotonic()
        try:
            self._report(0, None)
            self.result = self._work(self._report)
        except Exception as error:
            self.error = error
        finally:
            self.finished.set()

    def _report(self, done: int, total: int | None) -> None:
        if self._cancel.is_set():
            raise Cancelled
        if done != self._done:
            self._last = time.monotonic()
            self._first = self._first or (self._last, done)
        self._done, self._total = done, total

    @property
    def progress(self) -> Progress:
        stopping = self._cancel.is_set()
        if self._start is None:
            return Progress("cancelled") if stopping else Progress("waiting", waiting_for=self._ahead(self))
        state = "stopping" if stopping else "running"
        if self.finished.is_set():
            state = "done" if self.error is None else "failed"
            state = "cancelled" if isinstance(self.error, Cancelled) else state
        elapsed = time.monotonic() - self._start
        return Progress(state, 0, self._done, self._total, elapsed, self._seconds_left(), str(self.error or ""))

    def _seconds_left(self) -> float | None:
        """By the rate since the first frames, before which programs are compiled and models loaded."""
        if not (self._first and self._total):
            return None
        begun, count = self._first
        if self._done == count:
            begun, count = self._start, 0
        rate = (self._done - count) / max(self._last - begun, 1e-6)
        return max(0.0, (self._total - self._done) / rate - (time.monotonic() - self._last))


class Queue:
    """Runs jobs one after another, in the order in which they were added."""

    def __init__(self):
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="outpaint")
        self._jobs: list[Job] = []

    def add(self, work: Callable[[Report], Any]) -> Job:
        job = Job(work, self._ahead)
        self._jobs = [other for other in self._jobs if not other.finished.is_set()] + [job]
        self._worker.submit(job.run)
        return job

    def close(self) -> None:
        """Cancel all jobs and wait for the one that runs."""
        for job in self._jobs:
            job.cancel()
        self._worker.shutdown()

    def _ahead(self, job: Job) -> int:
        jobs = self._jobs
        return sum(not other.finished.is_set() for other in jobs[: jobs.index(job)]) if job in jobs else 0
