"""How numbers are shown, and what they belong to: versions, machine, load."""

import contextlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
from typing import Any

import jax


def surroundings() -> dict[str, Any]:
    """Versions, machine and load that numbers belong to."""
    packages = ("jax", "jaxlib", "flax", "numpy", "torch", "av", "grain")
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(name)},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "load": os.getloadavg(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(result: dict[str, Any]) -> str:
    """One line a number; rows of numbers by column, {row: {column: number}}, as one Markdown table."""
    if all(isinstance(value, dict) for value in result.values()):
        return _markdown(result)
    width = max(map(len, result))
    return "\n".join(f"{name.ljust(width)}  {_shown(value)}" for name, value in result.items())


def _markdown(rows: dict[str, dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(_shown(row.get(column, "")) for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
