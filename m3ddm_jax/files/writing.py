"""Files and folders that appear whole or not at all: a temporary name beside their place, then one rename.

Temporary names say which process they belong to, `.NAME.PLACE-PID-RANDOM.part`, so that two writers never share one and
the leftovers of a process that was killed are removed by the next one that writes to the folder.
"""

import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<place>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}\.(?P<kind>part|old)", re.S)
_ABANDONED = 24 * 3600.0  # seconds without a change, where it is not known whether the writer is alive
_LONGEST_NAME = 120  # bytes of a name that are kept in a temporary one
_SYNC_THREADS = 16  # of a folder: file systems commit them together


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path, which becomes `path` at the end of the block; where an exception leaves it, nothing remains.

    A link is followed: what it leads to is replaced.
    """
    path = resolve(path)
    with _temporary(path) as part:
        yield part
        _sync(part)
        part.replace(path)
        _sync(path.parent)


def write_file(path: str | os.PathLike, content: bytes | str) -> None:
    """Write a file at once, as `new_file`."""
    with new_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, *, replace: bool = True) -> Iterator[Path]:
    """A new, empty folder under a temporary name, which becomes `path` at the end of the block, as `new_file`.

    replace: whether a folder that is there by then gives way. It is moved aside first and removed last: a process that
    is killed in between leaves one of both, which `recover` puts back. Raises FileExistsError where it may not.
    """
    path = resolve(path)
    recover(path)
    with _temporary(path) as part:
        part.mkdir()
        yield part
        _sync_tree(part)
        old = _temporary_name(path, "old")
        with alone(path.parent):
            if path.exists():
                if not replace:
                    raise FileExistsError(f"{path} exists already")
                path.rename(old)
            part.rename(path)
        _sync(path.parent)
        remove(old)


def bring_along(old: Path, new: Path, besides: Sequence[str] = ()) -> None:
    """Have a new folder hold what an old one does and it does not: as links to the same files, else as copies.

    besides: names of entries that are left.
    """
    for entry in old.iterdir() if old.is_dir() else ():
        target = new / entry.name
        if os.path.lexists(target) or entry.name in besides:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, target, symlinks=True, copy_function=_link)
        elif entry.is_symlink():
            target.symlink_to(os.readlink(entry))
        else:
            _link(entry, target)


def recover(path: str | os.PathLike) -> None:
    """Put a folder back that a killed process had moved aside and not replaced yet; call it before such a folder is
    read."""
    path = resolve(path)
    if path.exists() or not path.parent.is_dir():
        return
    with contextlib.suppress(OSError), alone(path.parent):
        aside = [entry for entry in _leftovers(path.parent, path.name) if entry.name.endswith(".old")]
        if aside and not path.exists():
            max(aside, key=lambda entry: entry.stat().st_ctime).rename(path)


def clean(folder: Path) -> None:
    """Remove what processes that are dead have left in a folder.

    Those of this machine are known to be dead by their number; what others left counts as abandoned after a day.
    """
    with contextlib.suppress(OSError):
        for entry in _leftovers(folder):
            original = folder / _LEFTOVER.fullmatch(entry.name)["name"]
            if entry.name.endswith(".part") or original.exists():
                remove(entry)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; one that is not there, or cannot be removed, is left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def resolve(path: str | os.PathLike) -> Path:
    """The path with all links followed. Raises ValueError where they lead in a circle."""
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be resolved: {error}") from None


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Have no other process be in such a block of the same folder; where the file system has no locks, nothing."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@functools.cache
def place() -> str:
    """Tells apart where process numbers are of one kind: a machine, and a container's own numbers on it."""
    numbers = os.readlink("/proc/self/ns/pid") if os.path.islink("/proc/self/ns/pid") else ""
    return hashlib.sha256(f"{socket.gethostname()} {numbers}".encode()).hexdigest()[:8]


def is_alive(pid: int) -> bool:
    """Whether a process of this place runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    clean(path.parent)
    part = _temporary_name(path, "part")
    try:
        yield part
    finally:
        remove(part)


def _temporary_name(path: Path, kind: str) -> Path:
    name = path.name.encode()[:_LONGEST_NAME].decode(errors="ignore")
    return path.with_name(f".{name}.{place()}-{os.getpid()}-{secrets.token_hex(4)}.{kind}")


def _leftovers(folder: Path, name: str | None = None) -> list[Path]:
    """Entries of a folder that no living process will come back to, of all names or one."""
    found = []
    for entry in os.scandir(folder):
        match = _LEFTOVER.fullmatch(entry.name)
        if not match or name not in (None, match["name"]):
            continue
        path = Path(entry.path)
        is_dead = match["place"] == place() and not is_alive(int(match["pid"]))
        if is_dead or time.time() - _last_change(path) > _ABANDONED:
            found.append(path)
    return found


def _last_change(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    times = [os.lstat(path).st_ctime]
    for file in files:
        with contextlib.suppress(OSError):
            times.append(os.lstat(file).st_mtime)
    return max(times)


def _link(source: str | os.PathLike, target: str | os.PathLike) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _sync_tree(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if not path.is_symlink()]
    with concurrent.futures.ThreadPoolExecutor(_SYNC_THREADS) as pool:
        list(pool.map(_sync, [*files, folder]))


def _sync(path: Path) -> None:
    """Have a file's or folder's content on the disk; where the file system knows no such thing, nothing."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if path.is_file():
            raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(handle)
