"""Workers of a batch as processes of this machine."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from m3ddm_jax.batching.devices import Devices
from m3ddm_jax.batching.job import BatchSettings, Job, Result, Runner
from m3ddm_jax.batching.schedule import WorkerDied, run_jobs


def run_in_processes(
    jobs: Sequence[Job], settings: BatchSettings, methods: tuple[str, ...], count: int, devices: Devices
) -> Iterator[Result]:
    """As `schedule.run_jobs`, in `count` processes. GPUs, if asked for, are those of the process alone."""
    free = set(range(count))  # numbers of processes, which say whose GPUs they have

    def make_worker() -> "_Process":
        number = min(free)
        free.remove(number)
        return _Process(settings, methods, devices.environment(number), lambda: free.add(number))

    return run_jobs(jobs, make_worker, _wait, count)


class _Process:
    """A `schedule.Worker`. on_stop: called once it has ended."""

    def __init__(
        self,
        settings: BatchSettings,
        methods: tuple[str, ...],
        environment: dict[str, str],
        on_stop: Callable[[], None],
    ):
        self._on_stop = on_stop
        context = multiprocessing.get_context("spawn")  # a fork of a process that runs jax may hang
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, settings, methods, environment), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, job: Job) -> None:
        with contextlib.suppress(OSError):  # it died, which `receive` finds
            self.connection.send(job)

    def receive(self) -> Result | str | None:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise WorkerDied(f"a process ended with {self._process.exitcode}") from None

    def stop(self) -> None:
        self.connection.close()
        self._process.terminate()
        self._process.join()
        self._on_stop()


def _wait(workers: Sequence[_Process]) -> list[_Process]:
    by_connection = {worker.connection: worker for worker in workers}
    return [by_connection[ready] for ready in multiprocessing.connection.wait(list(by_connection))]


def _serve(
    connection: multiprocessing.connection.Connection,
    settings: BatchSettings,
    methods: tuple[str, ...],
    environment: dict[str, str],
) -> None:
    """A process's work: says that it is ready, then answers each job with its result."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # leaves nothing half-written
    os.environ.update(environment)
    try:
        try:
            run = Runner(settings, methods)
        except (ValueError, OSError) as error:
            connection.send(str(error))
            return
        connection.send(None)
        while True:
            connection.send(run(connection.recv()))
    except (EOFError, OSError):
        pass  # the parent is gone
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
