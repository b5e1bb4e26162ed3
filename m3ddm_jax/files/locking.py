"""A folder or file that one process works on at a time, and who that is."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path

from m3ddm_jax.files.writing import place

_BEAT = 10.0  # seconds between signs of life
_SILENCE = 45.0  # seconds without one after which a process of another machine counts as dead


class Locked(ValueError):
    """Another process holds the lock."""


class Lock:
    """A lock file that names its holder (host, process); to be used in a `with` block.

    A process that dies gives its lock up: on one machine at once, as the system drops the lock with the process. A
    holder on another machine is given `silence` seconds for a sign of life. Raises Locked, which says who holds it.
    what: names in the message what is locked.
    """

    def __init__(self, path: str | os.PathLike, what: str, silence: float = _SILENCE):
        self._path, self._what, self._silence = Path(path), what, silence

    def __enter__(self) -> "Lock":
        while True:
            self._file = open(self._path, "a+b")  # noqa: SIM115, closed at the end of the block
            try:
                self._take()
            except BaseException:
                self._file.close()
                raise
            if self._is_in_place():
                break
            self._file.close()  # removed by who held it before
        self._file.truncate(0)
        self._file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "place": place()}).encode())
        self._file.flush()
        self._done = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        with contextlib.suppress(OSError):
            self._path.unlink()
        self._file.close()

    def _take(self) -> None:
        has_locks = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(self._refusal(self._holder())) from None
        except OSError:
            has_locks = False  # of this file system: signs of life are what there is
        holder = self._holder()
        if holder and not (has_locks and holder.get("place") == place()) and self._lives():
            raise Locked(self._refusal(holder))

    def _is_in_place(self) -> bool:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._file.fileno()))

    def _holder(self) -> dict:
        self._file.seek(0)
        try:
            holder = json.loads(self._file.read(1000) or b"{}")
        except (ValueError, RecursionError):
            return {}
        return holder if isinstance(holder, dict) else {}

    def _refusal(self, holder: dict) -> str:
        who = f"process {holder.get('pid', '?')} on {holder.get('host', 'this machine')}"
        return f"{self._what} is in use by {who}: wait for it, stop it or name another (lock file {self._path})"

    def _lives(self) -> bool:
        before, end = self._last_beat(), time.monotonic() + self._silence
        while time.monotonic() < end:
            time.sleep(min(1.0, self._silence / 10))
            if self._last_beat() != before:
                return True
        return False

    def _last_beat(self) -> int | None:
        try:
            with open(self._path, "rb") as file:  # opened anew: shared file systems look at the server then
                return os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return None

    def _beat(self) -> None:
        while not self._done.wait(_BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._file.fileno())
