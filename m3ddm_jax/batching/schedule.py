"""Gives jobs to workers that may die, until each job has a result."""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from m3ddm_jax.batching.job import Job, Result

MOST_TRIES = 3
"""Workers that a job may be given to, if those before died with it."""
_MOST_STARTS = 3  # workers in a row that may die before they are ready


class WorkerDied(Exception):
    """A worker ended, or the machine that it ran on."""


class Worker(Protocol):
    """Something that does one job after the other, elsewhere. It starts when it is made."""

    def begin(self, job: Job) -> None:
        """Start with a job; only after `receive` has returned."""

    def receive(self) -> Result | str | None:
        """The next message of a worker that `wait` has returned: None once it is ready, a line if it cannot start,
        and the result of its job. Raises WorkerDied."""

    def stop(self) -> None:
        """End it, whatever it does."""


def run_jobs(
    jobs: Sequence[Job],
    make_worker: Callable[[], Worker],
    wait: Callable[[Sequence[Worker]], Sequence[Worker]],
    count: int,
) -> Iterator[Result]:
    """The result of each job, as it comes, from `count` workers at most.

    wait: returns those of the workers that have a message, at least one. The job of a worker that died goes to another
    one; MOST_TRIES workers that die with a job make it fail. An output that is there by then is done.
    Raises ValueError where workers cannot start.
    """
    waiting, tries = collections.deque(jobs), collections.Counter()
    begun: dict[Worker, Job | None] = {}  # None: it starts
    idle: list[Worker] = []
    deaths = 0
    try:
        while waiting or any(begun.values()):
            while waiting and idle:
                job, worker = waiting.popleft(), idle.pop()
                tries[job.output] += 1
                begun[worker] = job
                worker.begin(job)
            starting = sum(job is None for job in begun.values())
            for _ in range(min(count - len(begun) - len(idle), len(waiting) - starting)):
                begun[make_worker()] = None
            for worker in wait(list(begun)):
                job = begun.pop(worker)
                try:
                    answer = worker.receive()
                except WorkerDied as death:
                    worker.stop()
                    if job is None:
                        deaths += 1
                        if deaths == _MOST_STARTS:
                            raise ValueError(f"{deaths} workers in a row died while they started: {death}") from None
                    elif tries[job.output] < MOST_TRIES:
                        waiting.appendleft(job)
                    else:
                        yield Result(job.video, job.output, "failed", error=f"{MOST_TRIES} workers died: {death}")
                    continue
                if isinstance(answer, str):
                    worker.stop()
                    raise ValueError(answer)
                deaths = 0
                idle.append(worker)
                if answer is not None:
                    yield _as_done(answer) if tries[answer.output] > 1 else answer
    finally:
        for worker in [*begun, *idle]:
            worker.stop()


def _as_done(result: Result) -> Result:
    """The result of a later try: what it found finished, the first one made before it died."""
    if result.status != "skipped":
        return result
    return Result(result.video, result.output, "done", notes=("finished by a worker that died afterwards",))
