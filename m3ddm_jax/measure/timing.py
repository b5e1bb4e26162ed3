"""Wall-clock timing of callables that may return JAX arrays."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of repeated calls of one function, in the order they ran."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Slowest minus fastest call as a fraction of the median: how far the machine was from quiet."""
        return (max(self.seconds) - min(self.seconds)) / self.median


@contextlib.contextmanager
def compile_seconds() -> Iterator[list[float]]:
    """Within the context, a list that grows by the seconds of each program that is compiled."""
    seconds = []

    def note(event: str, duration: float, **_) -> None:
        if event.endswith("backend_compile_duration"):
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def time_together(functions: Mapping[str, Callable[[], Any]], repeats: int = 5) -> dict[str, Timing]:
    """Times functions in turn, a b a b ..., so that a change of load meets all of them alike.

    Each runs once untimed first (compilation, caches) and every result is waited for, so asynchronous dispatch does not
    look like speed. Raises ValueError unless repeats is positive.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    for function in functions.values():
        jax.block_until_ready(function())
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}
