"""A command as a process: it cleans up after itself when a signal ends it, and nobody needs to read what it prints."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

_ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def cleaning_up(name: str) -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the block as an exception does, so that nothing half-written remains, with a line on
    stderr and status 128 + signal. A signal that is ignored, as under nohup, still is; so are further ones."""

    def end(number: int, _: Any) -> None:
        for other in replaced:
            signal.signal(other, signal.SIG_IGN)
        print(f"{name}: ended by {signal.Signals(number).name}", file=sys.stderr)
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDING}
    replaced = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in replaced:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def without_reader() -> Iterator[None]:
    """Drop what is printed in the block once it can no longer be: a full disk or a closed pipe behind stdout."""
    stdout = sys.stdout
    sys.stdout = stdout and _Lenient(stdout)
    try:
        yield
    finally:
        if sys.stdout:
            sys.stdout.flush()
        sys.stdout = stdout


class _Lenient:
    """A text stream that drops what it cannot write."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            with contextlib.suppress(OSError, ValueError):  # what is buffered would fail again when the process ends
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
