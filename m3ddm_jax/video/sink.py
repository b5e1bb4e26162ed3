"""Writing: a video file with the source's tracks, clock and colours, an image, or a folder of PNG."""

import contextlib
import os
import pathlib
import re

import numpy as np

from m3ddm_jax.files.places import MARKER, check_replaceable, mark
from m3ddm_jax.files.writing import new_file, new_folder, resolve
from m3ddm_jax.video.errors import reraise_as
from m3ddm_jax.video.output.codecs import CONTAINERS, IMAGES, NOTHING_ASKED, Asked, Encoding, choose_encoding
from m3ddm_jax.video.output.composition import Box
from m3ddm_jax.video.output.movie import MovieWriter
from m3ddm_jax.video.output.pictures import FolderWriter, GifWriter, ImageEncoder, ImageWriter
from m3ddm_jax.video.output.tracks import left_behind
from m3ddm_jax.video.source import FrameSource

VIDEO_SUFFIXES = tuple(CONTAINERS)
FOREIGN_VIDEO = {".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".3gp", ".y4m"}
PNG_NAME = re.compile(r"[0-9]{6,}\.png")
_BACKDROP = 0  # grey level behind transparent pixels where an output has no alpha
_RGB = {"rgb24", "rgba", "bgra", "pal8", "yuvj444p"}  # of outputs that are made from the RGB frames alone


class FrameSink:
    """Writes canvas frames, uint8 [n,H,W,3], to `path`; to be used in a `with` block.

    path: as `output_kind` reads it: a video, an image, or a folder of PNG named 000000.png on. fps: frames per second.
    height and width: of the canvas, even. source: the one whose timing, colours, pixel aspect and other tracks are
    kept. box: rows and columns of the source on the canvas; in a video its own samples are placed there as they were
    decoded. asked: codec, quality and pixel format. notes: lines for what is converted or left out.

    Everything is written beside `path` and renamed at the end; where that fails, or an exception leaves the block,
    nothing remains. Raises ValueError for a path or an encoding that cannot be written, a full disk, or frames of
    another shape.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        fps: float,
        height: int,
        width: int,
        source: FrameSource | None = None,
        box: Box | None = None,
        asked: Asked = NOTHING_ASKED,
    ):
        self.path = pathlib.Path(path)
        self._shape, self._count = (height, width, 3), 0
        suffix = check_writable(path, asked, source)
        self._source, self._box = source, box
        self._encoding = _encoding(suffix, asked, source)
        self._samples = source.reopen() if source is not None and box is not None else None
        self._is_folder = suffix is None
        with reraise_as(f"cannot write {self.path}"), contextlib.ExitStack() as stack:
            if self._samples is not None:
                stack.callback(self._samples.close)
            self._part = stack.enter_context(new_folder(self.path) if self._is_folder else new_file(self.path))
            self._writer = self._open(suffix, fps, (height, width))
            self.notes = self._find_notes(suffix)
            self._placing = stack.pop_all()

    def _open(self, suffix: str | None, fps: float, size: tuple[int, int]):
        box = self._box if self._places_samples else None
        if suffix == ".gif":
            return GifWriter(self._part, fps, size, self._source, self._has_alpha)
        if suffix in CONTAINERS:
            return MovieWriter(self._part, suffix, self._encoding, fps, size, self._source, box)
        encoder = ImageEncoder(self._encoding, self._source, size, box)
        return FolderWriter(self._part, encoder) if suffix is None else ImageWriter(self._part, encoder)

    def _find_notes(self, suffix: str | None) -> list[str]:
        notes = list(getattr(self._writer, "notes", ()))
        if self._source is not None and self._source.path is not None and self._source.path.is_file():
            notes += left_behind(self._source) if suffix not in CONTAINERS or suffix == ".gif" else []
        if self._encoding.note is not None:
            notes.append(self._encoding.note)
        if self._flattens:
            notes.append("transparent pixels lie on black: this output has no alpha")
        return [f"{self.path.name}: {note}" for note in notes]

    @property
    def _has_alpha(self) -> bool:
        return self._samples is not None and self._samples.has_alpha

    @property
    def _flattens(self) -> bool:
        return self._has_alpha and not self._encoding.alpha

    @property
    def _places_samples(self) -> bool:
        return self._samples is not None and self._encoding.pixel_format not in _RGB and not self._flattens

    def write(self, frames: np.ndarray, masks: np.ndarray | None = None) -> None:
        """Appends frames uint8 [n,H,W,3]; masks: uint8 [n,H,W,1], 1 where they are shown in the source's place too."""
        if frames.shape[1:] != self._shape or frames.dtype != np.uint8:
            raise ValueError(f"uint8 frames of {self._shape} are needed, found {frames.dtype} {frames.shape[1:]}")
        with reraise_as(f"cannot write {self.path}"):
            for number, frame in enumerate(frames):
                mask = None if masks is None else masks[number]
                native = self._samples.native(self._count) if self._places_samples else None
                self._writer.write(self._with_alpha(frame, mask), self._count, native, mask)
                self._count += 1

    def _with_alpha(self, frame: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """The frame with the source's alpha in its place and 255 elsewhere, or flattened where the output has none."""
        if not self._has_alpha:
            return frame
        alpha = np.full((*frame.shape[:2], 1), 255, np.uint8)
        alpha[self._box] = self._samples.alpha(slice(self._count, self._count + 1))[0]
        if mask is not None:
            alpha[mask != 0] = 255
        if self._encoding.alpha:
            return np.concatenate([frame, alpha], axis=-1)
        weight = alpha / np.float32(255)
        return np.rint(frame * weight + _BACKDROP * (1 - weight)).astype(np.uint8)

    def __enter__(self) -> "FrameSink":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is not None:
            self._writer.abandon()
            self._placing.__exit__(kind, error, trace)
            return
        with reraise_as(f"cannot write {self.path}"), self._placing:
            if not self._count:
                self._writer.abandon()
                raise ValueError(f"there are no frames to write to {self.path}")
            self._writer.finish()
            if self._is_folder:
                mark(self._part)
                _check_folder(self.path)  # it may have been made in the meantime


def output_suffix(path: str | os.PathLike, folder: bool = False) -> str | None:
    """The suffix of a video or image in lower case, or None for a folder of PNG.

    A folder is a text with a slash at the end, a folder that is there, or a name without suffix.
    Raises ValueError for `-` and for a suffix that is not written.
    """
    if os.fspath(path) == "-":
        raise ValueError("cannot write to -: the output must be a file or a folder")
    found = pathlib.Path(path)
    suffix = found.suffix.lower()
    if folder or os.fspath(path).endswith(("/", os.sep)) or not suffix:
        return None
    if suffix in CONTAINERS or suffix in IMAGES:
        return suffix
    if found.is_dir():
        return None
    accepted = ", ".join([*CONTAINERS, *IMAGES])
    raise ValueError(f"cannot write {suffix}: {found} must end in {accepted}, or in / for a folder of PNG")


def check_writable(
    path: str | os.PathLike, asked: Asked = NOTHING_ASKED, source: FrameSource | None = None
) -> str | None:
    """Returns `output_suffix`.

    Raises ValueError where a FrameSink could not write or would destroy something else than a former output.
    """
    suffix = output_suffix(path, asked.folder)
    path = pathlib.Path(path)
    folder = resolve(path).parent if path.is_symlink() else path.parent
    if not folder.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {folder}")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"cannot write {path}: it is a pipe, socket or device")
    if suffix is not None:
        if path.is_dir():
            raise ValueError(f"cannot write {path}: it is a folder")
        if suffix in IMAGES and source is not None and len(source) != 1:
            raise ValueError(f"cannot write {path}: an image holds one frame, the source has {len(source)}")
    elif path.is_dir():
        _check_folder(path)
    elif path.exists():
        raise ValueError(f"cannot write {path}: it is a file and no folder")
    _encoding(suffix, asked, source)
    return suffix


def _encoding(suffix: str | None, asked: Asked, source: FrameSource | None) -> Encoding:
    if source is None:
        return choose_encoding(suffix or ".png", asked, None)
    return choose_encoding(suffix or ".png", asked, source.pixel_format, source.bits, source.has_alpha)


def _check_folder(path: pathlib.Path) -> None:
    """Raises ValueError for a folder that is no former output."""
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    strangers = [name for name in names if name != MARKER and not PNG_NAME.fullmatch(name)]
    if strangers:
        raise ValueError(f"cannot write {path}: the folder holds other things, such as {strangers[0]}")
    check_replaceable(path)
