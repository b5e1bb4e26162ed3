"""The clips of a folder, the lists of names that splits are, and true frames at the size a protocol wants."""

import copy
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable

import cv2
import numpy as np

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.images import IMAGE_SUFFIXES
from m3ddm_jax.video.sink import FOREIGN_VIDEO, VIDEO_SUFFIXES

MANIFESTS = pathlib.Path(__file__).parent / "manifests"
RESIZES = ("crop", "squash", "native")
INTERPOLATIONS = {"area": (cv2.INTER_AREA, cv2.INTER_CUBIC), "linear": (cv2.INTER_LINEAR, cv2.INTER_LINEAR)}
"""name -> OpenCV's interpolation where frames shrink, and where they grow."""


def list_clips(folder: str | os.PathLike, images: bool = False) -> dict[str, pathlib.Path]:
    """The clips of a folder by name, in the order of their names: videos, folders of frames and, if asked, images.

    Raises ValueError where the folder is missing or holds no clip, or where two clips have one name.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    suffixes = {*VIDEO_SUFFIXES, *FOREIGN_VIDEO, *(IMAGE_SUFFIXES if images else ())}
    clips = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path.is_dir() or path.suffix.lower() in suffixes):
            continue
        name = path.name if path.is_dir() else path.stem
        if name in clips:
            raise ValueError(f"{path} and {clips[name]} have the same name")
        clips[name] = path
    if not clips:
        raise ValueError(f"{folder} holds no video and no folder of frames")
    return clips


def match(names, others: dict[str, pathlib.Path], folder) -> None:
    """Raises ValueError, naming them, for clips of the truth that have no counterpart in a folder, or the reverse."""
    missing, surplus = sorted(names - others.keys()), sorted(others.keys() - names)
    if missing or surplus:
        parts = [("lacks", missing), ("has beyond the truth", surplus)]
        raise ValueError(f"{folder} " + " and ".join(f"{verb} {', '.join(found)}" for verb, found in parts if found))


@dataclasses.dataclass(frozen=True)
class Split:
    """A list of clips that numbers are quoted for: its name, and the SHA-256 of the names, one a line."""

    name: str
    clips: tuple[str, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256("".join(f"{clip}\n" for clip in self.clips).encode()).hexdigest()


def read_split(split: str) -> Split:
    """A split by its name, one of eval/manifests, or by the path of a text file with a name a line.

    Raises ValueError for another name, and for a file without names or with one twice.
    """
    shipped = {path.stem: path for path in sorted(MANIFESTS.glob("*.txt"))}
    path = shipped.get(split, pathlib.Path(split))
    if not path.is_file():
        raise ValueError(f"split {split!r}: {', '.join(shipped)} or a text file of names is accepted")
    names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise ValueError(f"{path} names {'twice ' + ', '.join(twice) if twice else 'no clip'}")
    return Split(path.stem, tuple(sorted(names)))


def choose(clips: dict[str, pathlib.Path], split: str | None, folder) -> tuple[dict[str, pathlib.Path], Split]:
    """The clips of a split among those of a folder, and the split; without one, all of them.

    Raises ValueError, naming them, for clips that the folder lacks; others in it are left alone.
    """
    if split is None:
        return clips, Split("all", tuple(sorted(clips)))
    chosen = read_split(split)
    missing = [name for name in chosen.clips if name not in clips]
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} of {chosen.name}: {', '.join(missing)}")
    return {name: clips[name] for name in chosen.clips}, chosen


class View:
    """Frames of a source seen through a function: random access, nothing held."""

    def __init__(self, source, num_frames: int, height: int, width: int, transform: Callable[[np.ndarray], np.ndarray]):
        self.source, self.height, self.width, self.fps = source, height, width, source.fps
        self.transform, self._num_frames = transform, num_frames

    def reopen(self) -> "View":
        """The same frames, read independently, as `FrameSource.again`."""
        other = copy.copy(self)
        other.source = self.source.reopen()
        return other

    def __len__(self) -> int:
        return self._num_frames

    def __getitem__(self, key) -> np.ndarray:
        """uint8 [n,height,width,3] of a slice or a list of frame numbers."""
        numbers = range(len(self))
        return self.transform(self.source[list(numbers[key]) if isinstance(key, slice) else [numbers[i] for i in key]])


@dataclasses.dataclass(frozen=True)
class Fit:
    """How frames come to a protocol's size.

    crop: resized keeping the aspect until they cover it, then the middle; squash: both sides stretched; native: as they
    are, but for the last row or column of an odd side. interpolation: a name of INTERPOLATIONS.
    """

    resize: str
    size: tuple[int, int] | None = None  # height, width; None with native alone
    interpolation: str = "area"

    def __post_init__(self):
        if self.resize not in RESIZES or (self.size is None) != (self.resize == "native"):
            raise ValueError(f"resize {self.resize!r} to {self.size}: {', '.join(RESIZES)} is accepted, native alone")

    def target(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the frames that come out."""
        return self.size or (height - height % 2, width - width % 2)

    def view(self, source, max_frames: int | None = None) -> View:
        """A source's first frames, all by default, at this size."""
        num_frames = min(len(source), max_frames or len(source))
        return View(source, num_frames, *self.target(source.height, source.width), self)

    def __call__(self, frames: np.ndarray, nearest: bool = False) -> np.ndarray:
        """uint8 [n,h,w,C] -> [n,height,width,C]; nearest: for masks, no value in between."""
        old = frames.shape[1:3]
        new = self.target(*old)
        if self.resize == "native" or old == new:
            return frames[:, : new[0], : new[1]]
        scale = max(b / a for a, b in zip(old, new, strict=True))
        cover = tuple(max(b, round(a * scale)) for a, b in zip(old, new, strict=True))
        height, width = cover if self.resize == "crop" else new
        top, left = (height - new[0]) // 2, (width - new[1]) // 2
        shrinking, growing = INTERPOLATIONS[self.interpolation]
        interpolation = cv2.INTER_NEAREST if nearest else shrinking if scale < 1 else growing
        fitted = np.empty((len(frames), *new, frames.shape[-1]), np.uint8)
        for place, frame in zip(fitted, frames, strict=True):
            resized = cv2.resize(frame, (width, height), interpolation=interpolation).reshape(height, width, -1)
            place[:] = resized[top : top + new[0], left : left + new[1]]
        return fitted


def open_pair(truth: pathlib.Path, output: pathlib.Path, fit: Fit, max_frames: int | None) -> tuple[View, View]:
    """(true frames, output) of a clip that was outpainted elsewhere, at one size and of one length.

    An output of the protocol's size is compared with the truth brought to it, one of the truth's own with that.
    Raises ValueError for another size, or another length within the first `max_frames`.
    """
    true, made = FrameSource(truth), FrameSource(output)
    own, wanted, size = (true.height, true.width), fit.target(true.height, true.width), (made.height, made.width)
    if size not in (wanted, own):
        accepted = " or ".join(f"{w}x{h}" for h, w in dict.fromkeys((own, wanted)))
        raise ValueError(f"{output} is {size[1]}x{size[0]}, not {accepted}")
    as_they_are = Fit("squash", size)  # changes nothing
    views = (fit if size == wanted else as_they_are).view(true, max_frames), as_they_are.view(made, max_frames)
    if len(views[0]) != len(views[1]):
        raise ValueError(f"{output} has {len(made)} frames, its truth has {len(true)}")
    return views


def known_part(truth: View, canvas: Canvas) -> View:
    """The source that an outpainter is given: what of the truth lies inside the known box of the canvas."""
    rows, columns = canvas.box
    return View(truth, len(truth), canvas.source_height, canvas.source_width, lambda frames: frames[:, rows, columns])
