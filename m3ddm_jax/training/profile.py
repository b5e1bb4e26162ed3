"""A profiler's trace of a few updates."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

# Updates before the first that is traced, which compile and warm up, and how many are.
SKIPPED, TRACED = 10, 3


@contextlib.contextmanager
def profiled(step: Callable, folder: str, skipped: int = SKIPPED, traced: int = TRACED) -> Iterator[Callable]:
    """Within the context a step that writes `jax.profiler`'s trace of some of its calls to a folder; step itself
    without a folder.

    Raises OSError where the folder cannot be written.
    """
    if not folder:
        yield step
        return
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    calls, running = 0, False

    def stop() -> None:
        nonlocal running
        if running:
            jax.profiler.stop_trace()
            running = False

    def call(*arguments: Any) -> Any:
        nonlocal calls, running
        if calls == skipped:
            jax.profiler.start_trace(folder)
            running = True
        with jax.profiler.StepTraceAnnotation("step", step_num=calls):
            result = step(*arguments)
        calls += 1
        if calls == skipped + traced:
            jax.block_until_ready(result)
            stop()
        return result

    try:
        yield call
    finally:
        stop()
