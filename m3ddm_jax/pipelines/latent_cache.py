"""Latents of the frames made so far, on disk: memory does not grow with the video."""

import math
import tempfile

import numpy as np


class LatentCache:
    """A temporary file of frames' latents; a context manager that closes it.

    A frame may be made more than once: what is made first guides later windows, what is made last is shown.
    """

    def __init__(self):
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._first: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._free: list[int] = []
        self._places = 0
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> "LatentCache":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def write(self, frame: int, latents: np.ndarray) -> None:
        """Keep a frame's latents [h, w, C]; of what was kept before, the first version alone stays."""
        self._shape = latents.shape
        if self._last.get(frame) != self._first.get(frame):
            self._free.append(self._last[frame])
        place = self._take_place()
        self._file.seek(place * self._size)
        self._file.write(np.ascontiguousarray(latents, np.float32))
        self._first.setdefault(frame, place)
        self._last[frame] = place

    def first(self, frame: int) -> np.ndarray:
        """The latents that were made first of a frame, float32 [h, w, C]."""
        return self._read(self._first[frame])

    def last(self, frame: int) -> np.ndarray:
        """The latents that were made last of a frame."""
        return self._read(self._last[frame])

    def forget(self, stop: int) -> None:
        """Give up the frames before `stop`; their places are used again."""
        for frame in [frame for frame in self._first if frame < stop]:
            self._free.extend({self._first.pop(frame), self._last.pop(frame)})

    @property
    def _size(self) -> int:
        return 4 * math.prod(self._shape)

    def _take_place(self) -> int:
        if self._free:
            return self._free.pop()
        self._places += 1
        return self._places - 1

    def _read(self, place: int) -> np.ndarray:
        self._file.seek(place * self._size)
        return np.frombuffer(self._file.read(self._size), np.float32).reshape(self._shape)
