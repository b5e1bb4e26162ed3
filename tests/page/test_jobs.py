"""The queue of the page: one job at a time, progress, cancelling."""

import threading

import pytest

from m3ddm_jax.page.jobs import Queue


@pytest.fixture
def queue():
    queue = Queue()
    yield queue
    queue.close()


class Steps:
    """A job that reports a frame for each call of `step`, four in all."""

    def __init__(self):
        self.gate, self.reported = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, report):
        for done in range(1, 5):
            self.gate.acquire()
            try:
                report(done, 4)
            finally:
                self.reported.release()
        return "made"

    def step(self):
        self.gate.release()
        assert self.reported.acquire(timeout=10)


def test_progress_of_a_job(queue):
    steps = Steps()
    job = queue.add(steps)
    steps.step()
    steps.step()
    progress = job.progress
    assert (progress.state, progress.done, progress.total) == ("running", 2, 4)
    assert progress.left >= 0
    steps.step()
    steps.step()
    assert job.finished.wait(10)
    assert (job.progress.state, job.progress.left, job.result) == ("done", 0, "made")


def test_jobs_run_one_at_a_time_in_order(queue):
    first, second = Steps(), Steps()
    jobs = [queue.add(first), queue.add(second), queue.add(lambda report: None)]
    first.step()
    assert [job.progress.state for job in jobs] == ["running", "waiting", "waiting"]
    assert [job.progress.waiting_for for job in jobs] == [0, 1, 2]
    for _ in range(3):
        first.step()
    second.step()
    assert [job.progress.state for job in jobs] == ["done", "running", "waiting"]
    for _ in range(3):
        second.step()
    assert jobs[2].finished.wait(10)


def test_a_running_job_is_cancelled_at_its_next_frames(queue):
    steps = Steps()
    job = queue.add(steps)
    steps.step()
    job.cancel()
    assert job.progress.state == "stopping"
    steps.step()
    assert job.finished.wait(10)
    assert job.progress.state == "cancelled"
    assert job.result is None


def test_a_waiting_job_is_cancelled_at_once(queue):
    steps, ran = Steps(), []
    queue.add(steps)
    job = queue.add(ran.append)
    job.cancel()
    assert job.progress.state == "cancelled"
    for _ in range(4):
        steps.step()
    assert job.finished.wait(10)
    assert not ran


def test_a_job_that_fails_keeps_its_error(queue):
    def fail(report):
        raise ValueError("no")

    job = queue.add(fail)
    assert job.finished.wait(10)
    assert (job.progress.state, job.progress.error) == ("failed", "no")
