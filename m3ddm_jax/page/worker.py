"""A process that does the jobs: it keeps the loaded model between them, and is killed where one is cancelled."""

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from m3ddm_jax.page.jobs import Report

_EVERY = 0.1  # seconds between two looks at whether the job was cancelled


class Worker:
    """Calls functions in a process of its own, one at a time; the process starts with the first."""

    def __init__(self):
        self._process: multiprocessing.Process | None = None
        self._pipe: Connection | None = None

    def call(self, work: Callable[[Report], Any], report: Report) -> Any:
        """The result of work(report); work and result must be picklable.

        report is called here, at least ten times a second. Where it raises, the process is killed. Raises what the work
        raises, and ValueError where the process ends.
        """
        if self._process is None or not self._process.is_alive():
            self._start()
        try:
            self._pipe.send(work)
            answer = self._follow(report)
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            raise ValueError(f"the process that outpaints ended with status {code}: is there enough memory?") from None
        except BaseException:
            self.close()
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # gradio has threads, and jax must not be forked
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def _follow(self, report: Report) -> Any:
        """What the process answers; progress is reported on the way."""
        progress = (0, None)
        while True:
            report(*progress)
            if self._pipe.poll(_EVERY):
                kind, value = self._pipe.recv()
                if kind == "answer":
                    return value
                progress = value


def _serve(pipe: Connection) -> None:
    """The process: call what comes through the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the page kills this one
    while True:
        try:
            work = pipe.recv()
        except EOFError:
            return
        try:
            answer = work(lambda *progress: pipe.send(("progress", progress)))
        except Exception as error:
            answer = ValueError(str(error) or type(error).__name__)
        pipe.send(("answer", answer))
