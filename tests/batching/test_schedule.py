"""Jobs and workers that die: each job has one result, whatever happens."""

import pytest

from m3ddm_jax.batching.job import Job, Result
from m3ddm_jax.batching.schedule import MOST_TRIES, WorkerDied, run_jobs

JOBS = [Job(f"{index}.mp4", f"out/{index}.mp4", {}) for index in range(6)]


class Fake:
    """A worker that dies on the jobs that `deadly` counts, once for each count."""

    def __init__(self, deadly, start=None, late=()):
        self.job, self.deadly, self.start, self.late, self.stopped = None, deadly, start, late, False

    def begin(self, job):
        assert self.job is None and not self.stopped
        self.job = job

    def receive(self):
        if isinstance(self.start, Exception):
            raise self.start
        job, self.job = self.job, None
        if job is None:
            return self.start
        if self.deadly.get(job.video, 0) > 0:
            self.deadly[job.video] -= 1
            raise WorkerDied("killed")
        return Result(job.video, job.output, "skipped" if job.video in self.late else "done", frames=9)

    def stop(self):
        self.stopped = True


def run(count, deadly=(), make=None, **options):
    """The results, and the workers that were made."""
    made, left = [], dict(deadly)

    def make_worker():
        made.append(make() if make else Fake(left, **options))
        assert sum(not worker.stopped for worker in made) <= count
        return made[-1]

    try:
        return list(run_jobs(JOBS, make_worker, lambda workers: workers[-1:], count)), made
    finally:
        assert all(worker.stopped for worker in made)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_every_job_has_one_result(count):
    results, made = run(count)
    assert sorted(result.video for result in results) == [job.video for job in JOBS]
    assert {result.status for result in results} == {"done"} and len(made) <= min(count, len(JOBS))


@pytest.mark.parametrize("count", [1, 2])
def test_the_job_of_a_dead_worker_goes_to_another(count):
    results, made = run(count, {"1.mp4": 1, "4.mp4": MOST_TRIES - 1})
    assert sorted(result.video for result in results) == [job.video for job in JOBS]
    assert {result.status for result in results} == {"done"} and len(made) <= count + MOST_TRIES


def test_a_job_that_kills_its_workers_fails_alone():
    results, _ = run(2, {"2.mp4": 99})
    failed = [result for result in results if result.status == "failed"]
    assert [(result.video, result.error) for result in failed] == [("2.mp4", f"{MOST_TRIES} workers died: killed")]
    assert len(results) == len(JOBS)


def test_what_a_worker_finished_before_it_died_is_done():
    results, _ = run(1, {"3.mp4": 1}, late=("3.mp4", "5.mp4"))
    found = {result.video: result for result in results}
    assert found["3.mp4"].status == "done" and found["3.mp4"].notes
    assert found["5.mp4"].status == "skipped", "it was there before"


def test_workers_that_cannot_start_end_the_batch():
    with pytest.raises(ValueError, match="no such model"):
        run(2, make=lambda: Fake({}, start="no such model"))
    with pytest.raises(ValueError, match="3 workers in a row died while they started: gone"):
        run(2, make=lambda: Fake({}, start=WorkerDied("gone")))
