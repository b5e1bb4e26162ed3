"""Processes that train together: how they find each other, agree, stop after the same update, and end where one of them
is gone or stands still."""

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

START_SECONDS, STALL_SECONDS = 300, 3600
# After so long without a sign of life a process counts as dead, and the others are ended.
_HEARTBEAT_SECONDS = 100
_NAMED = 4


class Deadline:
    """A context that ends the process so many seconds after it, or the last `extend`, began: with a line on stderr,
    where each thread stands if `traces` says so, and status 2, without cleaning up, which would wait for others."""

    def __init__(self, seconds: float, line: str, *, traces: bool = False):
        self._seconds, self._line, self._traces = seconds, line, traces

    def __enter__(self) -> "Deadline":
        self._start()
        return self

    def __exit__(self, *_) -> None:
        self._timer.cancel()

    def extend(self) -> None:
        self._timer.cancel()
        self._start()

    def _start(self) -> None:
        self._timer = threading.Timer(self._seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        print(self._line, file=sys.stderr, flush=True)
        if self._traces:
            faulthandler.dump_traceback(all_threads=True)
        os._exit(2)


class Disagreement(ValueError):
    """Raised in all processes alike."""


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
    """Where processes train together, what fails in one ends it with a line on stderr and status 2, on the spot: to
    clean up would wait for the others, which wait for it. What all raise alike passes, and all of a single process."""
    try:
        yield
    except (Disagreement, FloatingPointError):
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if not isinstance(error, (ValueError, OSError, jax.errors.JaxRuntimeError)):
            traceback.print_exc()
        gone = "is another gone? " if isinstance(error, jax.errors.JaxRuntimeError) else ""
        said = " ".join(str(error).split()) or type(error).__name__
        print(f"train: process {jax.process_index()}: {gone}{said}", file=sys.stderr, flush=True)
        os._exit(2)


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    seconds: int = START_SECONDS,
) -> None:
    """Join the other processes of a run; to be called before anything else of JAX.

    coordinator: HOST:PORT at which process 0 waits for the others, with how many there are and which this one is, from
    0; its devices are all that it sees. Without them, as Cloud TPU, SLURM, Open MPI or Kubernetes say.
    seconds: for all to come; then the process ends with one line and status 2.
    Raises ValueError where the three are not given together or do not fit, or nothing says who the others are.
    """
    explicit = (coordinator, num_processes, process_id)
    if len({value is None for value in explicit}) > 1:
        raise ValueError(f"coordinator, number of processes and process id go together: found {explicit}")
    where = f"at {coordinator}" if coordinator else "where the environment says"
    try:
        # JAX's own limit would abort the process with a trace of itself.
        with Deadline(seconds, f"train: after {seconds} s not all processes of the run have met {where}"):
            jax.distributed.initialize(
                *explicit,
                cluster_detection_method="deactivate" if coordinator else None,
                initialization_timeout=2 * seconds + 60,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            )
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"the processes of the run cannot meet {where}: {reason}") from None


@contextlib.contextmanager
def agreement() -> Iterator[dict[str, str]]:
    """What is filled in here, name -> hash, must be alike in all processes, and what fails in one fails in all.

    Raises Disagreement in every process, the same everywhere, that says what differs in which processes, or which
    failed why (by ValueError or OSError). Does nothing where there is one process alone.
    """
    hashes: dict[str, str] = {}
    failure = None
    try:
        yield hashes
    except (ValueError, OSError) as error:
        if jax.process_count() == 1:
            raise
        failure = f"{error}"
    if jax.process_count() > 1:
        told = gather_text(json.dumps({"host": socket.gethostname(), "failure": failure, "hashes": hashes}))
        if found := disagreement([json.loads(text) for text in told]):
            raise Disagreement(found)


def disagreement(told: Sequence[Mapping]) -> str | None:
    """What the processes, in order, do not agree in, from the host, failure and hashes of each; None where they do."""
    names = [f"{number} ({process['host']})" for number, process in enumerate(told)]
    if failed := [(name, process["failure"]) for name, process in zip(names, told, strict=True) if process["failure"]]:
        (first, reason), others = failed[0], [name for name, _ in failed[1:]]
        return f"process {first}: {reason}" + (f"; others fail too: {_listed(others)}" if others else "")
    differences = []
    for what in told[0]["hashes"]:
        found = [process["hashes"][what] for process in told]
        usual, _ = Counter(found).most_common(1)[0]
        if odd := [name for name, value in zip(names, found, strict=True) if value != usual]:
            differences.append(f"{what} differs on {_listed(odd)}")
    return f"the processes disagree: {'; '.join(differences)}" if differences else None


def gather_text(text: str) -> list[str]:
    """What each process, in order, calls this with."""
    mine = np.frombuffer(text.encode(), np.uint8)
    longest = multihost_utils.process_allgather(np.int32(len(mine))).max()
    rows = multihost_utils.process_allgather(np.pad(mine, (0, longest - len(mine))))
    return [row.tobytes().rstrip(b"\0").decode() for row in rows]


class AgreedStop:
    """SIGTERM to any process as a question that all answer alike: asked before each update, it is yes in all of them
    before the same one. `start` has the signal noted from the beginning of the process on.

    heard: called each time it is asked.
    """

    def __init__(self, heard: Callable[[], None]):
        self._heard = heard

    def __call__(self, step: int) -> bool:
        """step: the updates made, alike in all."""
        self._heard()
        return multihost_utils.reached_preemption_sync_point(step)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
