"""What is not run on this machine, and why."""

import jax

from m3ddm_jax.measure.program import Program
from m3ddm_jax.weights.memory import available_memory

# A minute or two on two cores of a CPU; accelerators have no such bound.
_MOST_ON_CPU = 5 * 10**12
GIB = 2**30


def reason_to_skip(program: Program, operations: int) -> str | None:
    """Why a program of so many floating-point operations is better not run here: memory, or time; None where it can."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        available = available_memory()
    else:
        memory = device.memory_stats() or {}
        available = memory["bytes_limit"] - memory["bytes_in_use"] if "bytes_limit" in memory else None
    if available is not None and program.peak_bytes > available:
        return f"not run: {program.peak_bytes / GIB:.1f} GiB, {available / GIB:.1f} are free"
    if device.platform == "cpu" and operations > _MOST_ON_CPU:
        return f"not run: {operations / 10**12:.1f} TFLOP"
    return None
