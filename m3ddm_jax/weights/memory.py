"""How much memory there is, asked before weights take it."""

import os
import re
import resource
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_STATM = Path("/proc/self/statm")


def available_memory() -> int | None:
    """Bytes that this process may still take by what the system, its container and its own limit allow.

    None where the system does not say (it is Linux that does).
    """
    bounds = [bound for bound in (_system(), _container(), _process()) if bound is not None]
    return min(bounds, default=None)


def check_memory(what: str, needed: int) -> None:
    """Raise ValueError where `what` needs more bytes than are available, saying both."""
    available = available_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"the float32 weights of {what} need {needed / 1e9:.2f} GB of memory, {available / 1e9:.2f} GB are free"
        )


def _number(path: Path, pattern: str) -> int | None:
    try:
        found = re.search(pattern, path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def _system() -> int | None:
    kilobytes = _number(_MEMINFO, r"^MemAvailable:\s+(\d+) kB")
    return None if kilobytes is None else 1024 * kilobytes


def _container() -> int | None:
    limit, used = _number(_CGROUP / "memory.max", r"^(\d+)$"), _number(_CGROUP / "memory.stat", r"^anon (\d+)$")
    return None if limit is None or used is None else limit - used


def _process() -> int | None:
    pages = _number(_STATM, r"^(\d+)")
    if pages is None:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit - pages * os.sysconf("SC_PAGE_SIZE")
