"""The process that does the jobs: it answers, keeps what is loaded, and is killed where a job is cancelled."""

import os
import signal
import time

import pytest

from m3ddm_jax.page.jobs import Cancelled
from m3ddm_jax.page.worker import Worker


def count(report):
    for done in range(1, 4):
        report(done, 3)
    return os.getpid()


def hang(report):
    report(1, 3)
    time.sleep(60)


def fail(report):
    raise ValueError("no such model")


def die(report):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.close()


def test_jobs_share_a_process_and_report(worker):
    seen = []
    process = worker.call(count, lambda *progress: seen.append(progress))
    assert seen[-1] == (3, 3)
    assert process != os.getpid()
    assert worker.call(count, lambda *_: None) == process


def test_a_job_that_fails_raises_and_leaves_the_process(worker):
    process = worker.call(count, lambda *_: None)
    with pytest.raises(ValueError, match="no such model"):
        worker.call(fail, lambda *_: None)
    assert worker.call(count, lambda *_: None) == process


def test_a_cancelled_job_ends_at_once(worker):
    def cancel(done, total):
        if done:
            raise Cancelled

    start = time.monotonic()
    with pytest.raises(Cancelled):
        worker.call(hang, cancel)
    assert time.monotonic() - start < 30
    assert worker.call(count, lambda *_: None)


def test_a_process_that_dies_is_reported_and_replaced(worker):
    with pytest.raises(ValueError, match="ended with status -9"):
        worker.call(die, lambda *_: None)
    assert worker.call(count, lambda *_: None)
