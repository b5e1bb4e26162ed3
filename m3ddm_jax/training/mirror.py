"""A run's folder in a bucket: checkpoints go there directly, all else is written on this machine and copied."""

import os
import pathlib

from etils import epath


class Mirror:
    """What a folder of this machine holds, in a folder that may be a bucket's (gs://BUCKET/RUN).

    local: begins with the files `names` as they are there, those that are.
    """

    def __init__(self, remote: str | os.PathLike, local: str | os.PathLike, names: tuple[str, ...] = ()):
        self._remote, self._local = epath.Path(remote), pathlib.Path(local)
        self._sent: dict[pathlib.Path, tuple[int, int]] = {}
        for name in names:
            if (self._remote / name).exists():
                (self._local / name).write_bytes((self._remote / name).read_bytes())

    def publish(self) -> None:
        """Copy the files that are new, or have changed since the last time."""
        for path in sorted(self._local.rglob("*")):
            stamp = (path.stat().st_mtime_ns, path.stat().st_size)
            if path.is_file() and self._sent.get(path) != stamp:
                target = self._remote / path.relative_to(self._local)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
                self._sent[path] = stamp


def is_remote(folder: str | os.PathLike) -> bool:
    """Whether a folder is a bucket's."""
    return "://" in os.fspath(folder)
