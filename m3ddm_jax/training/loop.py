"""The training loop: order, stopping, and what it says on the way."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from m3ddm_jax.files.writing import write_file
from m3ddm_jax.measure.timing import compile_seconds
from m3ddm_jax.training.checkpoint import Checkpoints
from m3ddm_jax.training.state import State, layout_of

OnMetrics = Callable[[int, Mapping[str, float]], None]
"""(updates, metrics by name): a hook for a logger of one's own."""


@dataclasses.dataclass(frozen=True)
class Cadence:
    """In updates: how many in all, and every how many to report, save and evaluate (0: never).

    Raises ValueError for a number that is too small.
    """

    steps: int
    log_every: int
    save_every: int
    evaluate_every: int

    def __post_init__(self):
        for name, least in {"steps": 1, "log_every": 1, "save_every": 1, "evaluate_every": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: {least} or more is accepted")


class StopRequest:
    """SIGTERM as a question, asked before each update: within the context, the signal sets a flag instead of ending the
    process."""

    def __init__(self):
        self._requested = False

    def __enter__(self) -> "StopRequest":
        self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _note(self, *_) -> None:
        self._requested = True

    def __call__(self, step: int | None = None) -> bool:
        """step: the updates made, which matter to processes that stop together alone."""
        del step
        return self._requested


class Stuck(FloatingPointError):
    """Too many updates in a row were skipped."""


class MetricsLog:
    """Means over each `log_every` updates: a line on the terminal, one in metrics.jsonl, scalars for TensorBoard.

    Step time is the median of the interval, without saving and evaluating, so that compiling does not blur it; frames
    per second are those of the whole interval. `goodput` is the share of the interval's time that updates took,
    `goodput/ACTIVITY` that of each of ACTIVITIES. Waiting for input is that of the process that waits longest.

    What is not finite, as of updates that were skipped, counts in no mean. Parts of a metric, which have its name and a
    slash before their own, are left out on the terminal. Processes other than the first keep silent.
    """

    ACTIVITIES = ("waiting", "saving", "evaluating", "compiling")

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        start_step: int,
        cadence: Cadence,
        frames_per_step: int,
        on_metrics: OnMetrics | None = None,
    ):
        self._workdir = workdir
        self._on_metrics = on_metrics
        self._cadence = cadence
        self._frames_per_step = frames_per_step
        self._speaks = jax.process_index() == 0
        self._stack = contextlib.ExitStack()
        self._compiling = self._stack.enter_context(compile_seconds())
        self._begin(start_step)

    def _begin(self, step: int) -> None:
        """Whatever is known of updates after `step` is forgotten."""
        self._last = None
        if self._speaks:
            from tensorboardX import SummaryWriter  # imports torch where it is installed, which takes seconds

            path = self._workdir / "metrics.jsonl"
            kept = [values for values in read_metrics(path) if values["step"] <= step]
            write_file(path, "".join(json.dumps(values) + "\n" for values in kept))
            self._file = path.open("a")
            self._writer = SummaryWriter(str(self._workdir / "tensorboard"), purge_step=step + 1)
        self._begin_interval()

    def _begin_interval(self) -> None:
        self._pending: list[dict[str, float]] = []
        self._times: list[float] = []
        self._spent = dict.fromkeys(self.ACTIVITIES, 0.0)
        self._compiling.clear()
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def spending(self, activity: str) -> Iterator[None]:
        """Time within is spent on one of ACTIVITIES, but for compiling, instead of updates."""
        start, compiled = time.perf_counter(), sum(self._compiling)
        yield
        self._spent[activity] += time.perf_counter() - start - (sum(self._compiling) - compiled)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the metrics of update number `step` (the first is 1)."""
        now = time.perf_counter()
        if self._last is not None:
            self._times.append(now - self._last)
        self._last = now
        self._pending.append(dict(metrics))
        if step % self._cadence.log_every == 0 or step == self._cadence.steps:
            self._report(step)

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write down what was measured of the state after `step` updates, on a line of its own."""
        if self._speaks:
            self._write(step, metrics)

    def go_back(self, step: int, reason: str) -> None:
        """Say why the updates after `step` count no more, and forget them."""
        if self._speaks:
            print(f"{reason}; going back to step {step}", flush=True)
        self._close_files()
        self._begin(step)

    def skip_time(self) -> None:
        """What passed since the last update was not training: leave it out of the step time."""
        self._last = None

    def _report(self, step: int) -> None:
        columns = {name: [m[name] for m in self._pending if math.isfinite(m[name])] for name in self._pending[0]}
        means = {name: statistics.fmean(values) for name, values in columns.items() if values}
        if jax.process_count() > 1 and "input_wait_seconds" in means:
            waits = multihost_utils.process_allgather(np.float32(means["input_wait_seconds"]))
            means["input_wait_seconds"] = float(np.max(waits))
        if self._speaks:
            self._write(step, means | self._speed())
        self._begin_interval()

    def _speed(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._since
        spent = self._spent | {"compiling": sum(self._compiling)}
        speed = {"frames_per_second": self._frames_per_step * len(self._pending) / seconds}
        if self._times:
            speed["step_seconds"] = statistics.median(self._times)
        shares = {f"goodput/{activity}": min(1.0, spent[activity] / seconds) for activity in self.ACTIVITIES}
        return speed | {"goodput": max(0.0, 1.0 - sum(shares.values()))} | shares

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if self._on_metrics:
            self._on_metrics(step, values)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if "/" not in name)
        print(f"step {step}/{self._cadence.steps}  {shown}", flush=True)

    def add_picture(self, name: str, encoded: bytes, height: int, width: int, step: int) -> None:
        """A PNG or GIF file for TensorBoard; from the first process alone."""
        from tensorboardX.proto.summary_pb2 import Summary

        # add_video would need moviepy to encode what is encoded already.
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
        self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        self._stack.close()
        self._close_files()

    def _close_files(self) -> None:
        if self._speaks:
            self._file.close()
            self._writer.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line that was cut off is dropped, and so are damaged ones.

    A log with damaged lines is copied to a file next to it and reported in one line on stderr.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().decode(errors="replace").split("\n")[:-1]
    found = [_parse(line) for line in lines]
    if None in found:
        copy = path.with_name(f"{path.name}.damaged")
        write_file(copy, path.read_bytes())
        number = found.count(None)
        print(f"{path}: {number} damaged lines are left out, the file as it was is {copy}", file=sys.stderr, flush=True)
    return [values for values in found if values is not None]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    numbers = isinstance(values, dict) and all(type(value) in (int, float) for value in values.values())
    return values if numbers and type(values.get("step")) is int else None


def run(
    state: State,
    step_fn: Callable[[State, dict[str, jax.Array]], tuple[State, dict[str, jax.Array]]],
    batches: Iterator[dict[str, np.ndarray]],
    put: Callable[[dict[str, np.ndarray]], dict[str, jax.Array]],
    *,
    cadence: Cadence,
    checkpoints: Checkpoints,
    examples_seen: Callable[[], int],
    log: MetricsLog,
    evaluate: Callable[[State, int], Mapping[str, float]] | None,
    stop: Callable[[int], bool],
) -> State:
    """Train until `cadence.steps` updates are made or `stop(step)`, and save what was reached.

    batches: host batches, each with its `clip_id`; put: host batch -> global arrays of the rest; examples_seen: clips
    drawn so far; evaluate: called with the state and its step for metrics, which go with its checkpoint; None where
    nothing is held out. A state that was evaluated is saved.

    A step may skip an update, and say when it has skipped too many in a row (`recipes.base.Recipe`): training then goes
    back to the newest checkpoint, and on from there with the clips that come next. Raises FloatingPointError where
    there is none, or the same would be gone back to twice; and where a loss or a gradient is not finite and the update
    was made all the same. Nothing is saved after such an update.
    """
    abstract_state, gone_back_to = layout_of(state), None
    go_on = functools.partial(
        _go_on,
        step_fn=step_fn,
        batches=batches,
        put=put,
        cadence=cadence,
        checkpoints=checkpoints,
        examples_seen=examples_seen,
        log=log,
        evaluate=evaluate,
        stop=stop,
    )
    while True:
        try:
            return go_on(state)
        except Stuck as error:
            checkpoints.wait()
            newest, reason = checkpoints.latest_step(), str(error)
            if newest in (None, gone_back_to):
                raise
        # Out of the handler, which still held the state that is given up: there may be room for one alone.
        state, _ = checkpoints.restore(abstract_state)
        gone_back_to = int(state.step)
        log.go_back(gone_back_to, reason)


def _go_on(state: State, *, step_fn, batches, put, cadence, checkpoints, examples_seen, log, evaluate, stop) -> State:
    """`run`, which says what the arguments are, as far as it goes without going back; raises Stuck where it must."""
    start = int(state.step)
    pending = None
    for step in itertools.count(start):
        done = step >= cadence.steps or stop(step)
        saves = done or (step > start and step % cadence.save_every == 0)
        # 1. Evaluate the state as it stands.
        found = None
        if evaluate and cadence.evaluate_every and step > start and step % cadence.evaluate_every == 0:
            with log.spending("evaluating"):
                found, saves = evaluate(state, step), True
            log.skip_time()
        # 2. Save before the next batch is drawn, so that data and state are of one moment; never save unseen metrics,
        # and what may have to be given up only at the end.
        if saves:
            skipped = pending is not None and _check_and_log(log, *pending)
            pending = None
            if done or not skipped:
                with log.spending("saving"):
                    checkpoints.save(state, step, examples_seen(), found)
            log.skip_time()
        if done:
            return state
        # 3. The next batch.
        waited = time.perf_counter()
        with log.spending("waiting"):
            batch = next(batches)
        waited = time.perf_counter() - waited
        # 4. The step is only dispatched; meanwhile the metrics of the one before it are fetched.
        state, metrics = step_fn(state, put(batch))
        if pending:
            _check_and_log(log, *pending)
        pending = (step + 1, metrics | {"input_wait_seconds": waited}, batch["clip_id"])


def _check_and_log(log: MetricsLog, step: int, metrics: dict[str, Any], clip_ids: np.ndarray) -> bool:
    """Whether the update was skipped."""
    metrics = jax.device_get(metrics)  # all at once
    # jit hands metrics back in alphabetical order; the loss goes first.
    values = {name: float(metrics[name]) for name in sorted(metrics, key=lambda name: name != "loss")}
    clips = f"clips of its batch: {', '.join(map(str, clip_ids))}"
    stuck, skipped = values.pop("stuck", 0.0) > 0, values.get("skipped", 0.0) > 0
    if skipped:
        # From every process, which knows its own clips alone.
        found = ", ".join(f"{name} {values[name]:.4g}" for name in ("loss", "grad_norm"))
        print(f"step {step}: skipped, {found}; {clips}", flush=True)
    elif wrong := [name for name, value in values.items() if not math.isfinite(value)]:
        found = ", ".join(f"{name} {values[name]:.4g}" for name in wrong if "/" not in name)
        raise FloatingPointError(f"step {step}: {found}; {clips}")
    log.add(step, values)
    if stuck:
        raise Stuck(f"step {step}: too many updates in a row were skipped; {clips}")
    return skipped
