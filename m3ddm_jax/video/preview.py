"""What was given beside what was made of it, to look at: a contact sheet or a video."""

import os
import pathlib

import cv2
import numpy as np

from m3ddm_jax.files.writing import write_file
from m3ddm_jax.video.errors import reraise_as
from m3ddm_jax.video.sink import VIDEO_SUFFIXES, FrameSink, check_writable

_SHOWN = 4  # frames of a contact sheet
_LONGEST = 640  # pixels of a side of a frame on it


class Preview:
    """Writes frames as they were given, and to their right what was made of them; to be used in a `with` block.

    A path that ends in .png is a contact sheet of a few frames over the whole video, one that ends in .mp4, .mov, .mkv,
    .webm or .gif a video of all. num_frames: how many will come. height, width: of a frame, even. Nothing is left where
    an exception leaves the block. Raises ValueError for a path that cannot be written.
    """

    def __init__(self, path: str | os.PathLike, fps: float, num_frames: int, height: int, width: int):
        self._path, self._count, self._rows = pathlib.Path(path), 0, []
        check_preview(self._path)
        self._sink = None
        if self._path.suffix.lower() in VIDEO_SUFFIXES:
            self._sink = FrameSink(self._path, fps, height, 2 * width)
        shown = np.linspace(0, num_frames - 1, 2 * _SHOWN + 1)[1::2]
        self._shown = set(shown.astype(int).tolist())
        self._scale = min(1.0, _LONGEST / max(height, width))

    def write(self, given: np.ndarray, made: np.ndarray) -> None:
        """The next frames, uint8 [n,H,W,3] each."""
        pairs = np.concatenate([given, made], axis=2)
        if self._sink is not None:
            self._sink.write(pairs)
            return
        for index, pair in enumerate(pairs, start=self._count):
            if index in self._shown:
                row = cv2.resize(pair, None, fx=self._scale, fy=self._scale, interpolation=cv2.INTER_AREA)
                self._rows.append(row)
        self._count += len(pairs)

    def __enter__(self) -> "Preview":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._sink is not None:
            self._sink.__exit__(kind, error, trace)
        elif error is None:
            sheet = np.concatenate(self._rows)[..., ::-1]
            with reraise_as(f"cannot write {self._path}"):
                write_file(self._path, cv2.imencode(".png", sheet)[1].tobytes())


def check_preview(path: pathlib.Path) -> None:
    """Raises ValueError where a Preview could not be written."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        check_writable(path)
    elif path.suffix.lower() != ".png":
        raise ValueError(f"a preview must end in .png or {', '.join(VIDEO_SUFFIXES)}, found {path}")
    elif path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder")
    elif not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
