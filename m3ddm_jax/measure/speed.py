"""What a time means: operations a second, their share of a chip's peak (MFU), and what the chip allows at best."""

import statistics
from collections.abc import Sequence

from m3ddm_jax.measure.chips import CHIPS, GIB

TERA = 10**12


def speed(network: float, encoders: float, seconds: float, devices: int, kind: str) -> dict[str, float]:
    """TFLOP/s of one device and, where its kind is known, MFU: the share of its peak.

    network, encoders: operations of all devices together, of what is trained or sampled and of frozen networks. Each
    number is there without frozen networks and with them.
    """
    result = {}
    for name, operations in {"": network, " with frozen encoders": network + encoders}.items():
        rate = operations / devices / seconds
        result[f"TFLOP/s a device{name}"] = rate / TERA
        if chip := CHIPS.get(kind):
            result[f"MFU{name}"] = rate / chip.flops
    return result


def roofline(operations: float, moved: float | None, kind: str) -> dict[str, float]:
    """GiB that a program moves on a device and, where its kind is known, the seconds that it takes at least.

    operations, moved: of one device; moved: bytes by the compiler's plan, None where it has none. A kernel's arguments
    and results count once there.
    """
    result = {} if moved is None else {"GiB moved a device": moved / GIB}
    if moved is not None and (chip := CHIPS.get(kind)):
        result["seconds of arithmetic"] = operations / chip.flops
        result["seconds of memory"] = moved / chip.bandwidth
        result["seconds at least"] = max(result["seconds of arithmetic"], result["seconds of memory"])
    return result


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99 of step times, of at least one."""
    if len(seconds) == 1:
        return {f"step seconds p{part}": seconds[0] for part in (50, 90, 99)}
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"step seconds p{part}": cuts[part - 1] for part in (50, 90, 99)}
