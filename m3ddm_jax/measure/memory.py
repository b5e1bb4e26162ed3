"""Peak resident memory of this process and of a command run as its child."""

import dataclasses
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class ChildRun:
    """What a finished command took: exit status, wall-clock seconds, peak resident bytes, and its standard error."""

    returncode: int
    seconds: float
    peak_bytes: int
    stderr: str


def peak_rss() -> int:
    """Peak resident bytes of this process since it began."""
    return _high_water_mark("self") or _ru_maxrss(resource.RUSAGE_SELF)


def run_child(arguments: Sequence[str], poll_seconds: float = 0.02, **popen) -> ChildRun:
    """Runs a command to its end and returns what it took; standard output is discarded.

    Linux keeps a high-water mark for each process, which is polled: getrusage would report at least the size of the
    parent, because a forked child starts out as its copy. Elsewhere getrusage has to do.
    """
    start = time.perf_counter()
    peak = 0
    # A file and not a pipe for standard error: a talkative child never has to wait for us.
    with tempfile.TemporaryFile("w+", errors="replace") as stderr:
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": stderr}
        child = subprocess.Popen(arguments, **quiet, **popen)
        while child.poll() is None:
            peak = max(peak, _high_water_mark(str(child.pid)))
            time.sleep(poll_seconds)
        seconds = time.perf_counter() - start
        stderr.seek(0)
        return ChildRun(child.returncode, seconds, peak or _ru_maxrss(resource.RUSAGE_CHILDREN), stderr.read())


def _high_water_mark(process: str) -> int:
    try:
        status = pathlib.Path("/proc", process, "status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _ru_maxrss(who: int) -> int:
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
