"""Workers of a batch as actors of a Ray cluster (pip install "m3ddm-jax[ray]")."""

import contextlib
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, Sequence

from m3ddm_jax.batching.devices import Devices
from m3ddm_jax.batching.job import BatchSettings, Job, Result, Runner
from m3ddm_jax.batching.schedule import WorkerDied, run_jobs

_PATIENCE = 10.0  # seconds for an address to answer
_PASSED_ON = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "JAX_PLATFORMS")


def run_on_ray(
    jobs: Sequence[Job],
    settings: BatchSettings,
    methods: tuple[str, ...],
    address: str,
    count: int | None,
    devices: Devices,
) -> Iterator[Result]:
    """As `schedule.run_jobs`, in `count` actors, by default one a node, of the cluster at an address.

    The nodes need this package, and the same files under the same paths.
    Raises ValueError where Ray is not installed, or there is no cluster at the address.
    """
    with _connected(address) as ray:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        actor = ray.remote(max_restarts=0, max_task_retries=0, **devices.ray_options())(_Actor)

        def wait(workers: Sequence[_RayWorker]) -> list[_RayWorker]:
            by_call = {worker.call: worker for worker in workers}
            ready, _ = ray.wait(list(by_call), num_returns=1)
            return [by_call[call] for call in ready]

        make_worker = lambda: _RayWorker(ray, actor.remote(settings, methods, os.getcwd()))  # noqa: E731
        yield from run_jobs(jobs, make_worker, wait, count or len(nodes))


class _Actor:
    """What runs on the cluster: `Runner`, made by a call of its own, whose errors are answers."""

    def __init__(self, settings: BatchSettings, methods: tuple[str, ...], folder: str):
        self._settings, self._methods, self._folder = settings, methods, folder

    def start(self) -> str | None:
        try:
            os.chdir(self._folder)  # that paths are relative to
            self._run = Runner(self._settings, self._methods)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    def run(self, job: Job) -> Result:
        return self._run(job)


class _RayWorker:
    """A `schedule.Worker`. call: the reference of what it does."""

    def __init__(self, ray, actor):
        self._ray, self._actor = ray, actor
        self.call = actor.start.remote()

    def begin(self, job: Job) -> None:
        self.call = self._actor.run.remote(job)

    def receive(self) -> Result | str | None:
        try:
            return self._ray.get(self.call)
        except self._ray.exceptions.RayError as error:
            raise WorkerDied(str(error).strip().splitlines()[0]) from None

    def stop(self) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actor)


def _check_reachable(address: str) -> None:
    """Raise ValueError where nothing answers at HOST:PORT: Ray itself would try for a minute."""
    match = re.fullmatch(r"(?:ray://)?\[?([^\[\]]+)\]?:(\d+)", address)
    if match is None:
        if address != "auto":
            raise ValueError(f"`ray` must be HOST:PORT, ray://HOST:PORT or auto, found {address!r}")
        return
    try:
        socket.create_connection((match[1], int(match[2])), _PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, error) from None


def _unreachable(address: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())
    return ValueError(f"there is no Ray cluster at `ray` {address}: {reason:.300}")


@contextlib.contextmanager
def _connected(address: str) -> Iterator:
    """The module ray, connected to a cluster, without reports of usage; what it prints goes to stderr."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ValueError('`ray` needs the extra ray: pip install "m3ddm-jax[ray]"') from None
    _check_reachable(address)
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        ray.init(address, runtime_env={"env_vars": environment}, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError, AssertionError) as error:
        raise _unreachable(address, error) from None
    with contextlib.redirect_stdout(sys.stderr):  # Ray reports lost nodes on stdout
        try:
            yield ray
        finally:
            ray.shutdown()
