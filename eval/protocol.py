"""What is compared with what: presets, the clips of a folder, the truth at a protocol's size, the generated region."""

import dataclasses
import pathlib
from collections.abc import Callable

import cv2
import numpy as np

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.sink import FOREIGN_VIDEO, VIDEO_SUFFIXES
from m3ddm_jax.video.source import IMAGE_SUFFIXES

MaskReader = Callable[[int, int], np.ndarray]
"""(start, stop) -> uint8 [H,W,1] for all frames alike or [n,H,W,1]; 1 in the generated region."""


@dataclasses.dataclass(frozen=True)
class Preset:
    """A protocol that numbers are quoted under.

    size: side in pixels of the square that the truth is brought to before anything is masked; ratios: generated
    fractions of the width, half on each side, whose mean is the headline. In all presets known pixels are replaced by
    the truth before scoring, and every frame counts.
    """

    name: str
    version: int
    size: int
    ratios: tuple[float, ...]


PRESETS = {preset.name: preset for preset in [Preset("strict", version=1, size=256, ratios=(0.25, 0.66))]}


def list_clips(folder: str | pathlib.Path, images: bool = False) -> dict[str, pathlib.Path]:
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


def match(truth: dict[str, pathlib.Path], others: dict[str, pathlib.Path], folder) -> None:
    """Raises ValueError, naming them, for clips of the truth that have no counterpart in a folder, or the reverse."""
    missing, surplus = sorted(truth.keys() - others.keys()), sorted(others.keys() - truth.keys())
    if missing or surplus:
        parts = [("lacks", missing), ("has beyond the truth", surplus)]
        raise ValueError(f"{folder} " + " and ".join(f"{verb} {', '.join(names)}" for verb, names in parts if names))


class View:
    """Frames of a source seen through a function: random access, nothing held."""

    def __init__(self, source, num_frames: int, height: int, width: int, transform: Callable[[np.ndarray], np.ndarray]):
        self.source, self.height, self.width, self.fps = source, height, width, source.fps
        self._num_frames, self._transform = num_frames, transform

    def __len__(self) -> int:
        return self._num_frames

    def __getitem__(self, key) -> np.ndarray:
        """uint8 [n,height,width,3] of a slice or a list of frame numbers."""
        numbers = range(len(self))
        return self._transform(self.source[list(numbers[key]) if isinstance(key, slice) else [numbers[i] for i in key]])


def first_frames(source, max_frames: int | None) -> View:
    """The first frames of a source as they are, or all of them."""
    num_frames = min(len(source), max_frames or len(source))
    return View(source, num_frames, source.height, source.width, lambda frames: frames)


def to_square(source, size: int) -> View:
    """A source resized keeping its aspect and centre-cropped to size x size."""
    scale = size / min(source.height, source.width)
    height, width = (max(size, round(side * scale)) for side in (source.height, source.width))
    top, left = (height - size) // 2, (width - size) // 2
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC

    def transform(frames):
        square = np.empty((len(frames), size, size, 3), np.uint8)
        for place, frame in zip(square, frames, strict=True):
            resized = cv2.resize(frame, (width, height), interpolation=interpolation)
            place[:] = resized[top : top + size, left : left + size]
        return square

    return View(source, len(source), size, size, transform)


def known_part(truth, canvas: Canvas) -> View:
    """The source that an outpainter is given: what of the truth lies inside the known box of the canvas."""
    rows, columns = canvas.box
    return View(truth, len(truth), canvas.source_height, canvas.source_width, lambda frames: frames[:, rows, columns])


@dataclasses.dataclass(frozen=True)
class Border:
    """A generated region around a known box: a fraction of the width, half on each side, or pixels on each side."""

    name: str
    ratio: float = 0.0
    pad: tuple[int, int, int, int] | None = None  # left, top, right, bottom

    def sides(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Generated pixels left, top, right and bottom in frames of this size; a ratio's are rounded down.

        Raises ValueError where nothing is known or nothing is generated.
        """
        side = int(round(width * self.ratio / 2, 6))
        left, top, right, bottom = self.pad or (side, 0, side, 0)
        known_width, known_height = max(0, width - left - right), max(0, height - top - bottom)
        if not known_width * known_height or not left + top + right + bottom:
            known = f"{known_width}x{known_height} of {width}x{height} pixels would be known"
            raise ValueError(f"region {self.name}: {known}; some must be known and some generated")
        return left, top, right, bottom

    def canvas(self, height: int, width: int) -> Canvas:
        """The canvas that an outpainter gets for frames of this size; raises ValueError as sides, and for odd sizes."""
        left, top, right, bottom = self.sides(height, width)
        return Canvas.from_pad(height - top - bottom, width - left - right, left, top, right, bottom)

    def masks(self, clip: str, num_frames: int, height: int, width: int) -> MaskReader:
        """Masks of a clip; raises ValueError as sides."""
        left, top, right, bottom = self.sides(height, width)
        mask = np.ones((height, width, 1), np.uint8)
        mask[top : height - bottom, left : width - right] = 0
        return lambda start, stop: mask


@dataclasses.dataclass(frozen=True)
class MaskFolder:
    """Generated regions, white in files named like the clips: an image, or as many frames as the clip has."""

    name: str
    files: dict[str, pathlib.Path]

    def masks(self, clip: str, num_frames: int, height: int, width: int) -> MaskReader:
        """Raises ValueError where a file is no mask of this clip's size and length."""
        path = self.files[clip]
        if path.suffix.lower() in IMAGE_SUFFIXES:
            image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            if image is None:
                raise ValueError(f"{path} is no image")
            _check_size(path, image.shape, (height, width))
            mask = (image[..., None] >= 128).astype(np.uint8)
            return lambda start, stop: mask
        source = FrameSource(path)
        _check_size(path, (source.height, source.width), (height, width))
        if len(source) < num_frames:
            raise ValueError(f"{path} has {len(source)} masks for {num_frames} frames")
        return lambda start, stop: (source[start:stop][..., :1] >= 128).astype(np.uint8)


def _check_size(path: pathlib.Path, found: tuple[int, int], wanted: tuple[int, int]) -> None:
    if found != wanted:
        raise ValueError(f"{path} is {found[1]}x{found[0]}, its clip is {wanted[1]}x{wanted[0]}")


def parse_regions(
    ratio: str | None, pad: str | None, masks: str | None, truth: str | pathlib.Path
) -> list[Border | MaskFolder]:
    """Regions as a user names them: ratios "0.25,0.66", pixels "LEFT,TOP,RIGHT,BOTTOM" or a folder of masks.

    Raises ValueError for several of them at once, for other numbers, and for masks that lack a clip of the truth.
    """
    if sum(value is not None for value in (ratio, pad, masks)) > 1:
        raise ValueError("one of ratio, pad and masks is accepted, not several")
    if ratio is not None:
        values = _numbers(float, ratio)
        if not values or not all(0 < value < 1 for value in values):
            raise ValueError(f"ratio {ratio!r}: fractions between 0 and 1 are accepted")
        return [Border(f"{value:g}", ratio=value) for value in values]
    if pad is not None:
        values = _numbers(int, pad)
        if len(values) != 4 or min(values) < 0:
            raise ValueError(f"pad {pad!r}: LEFT,TOP,RIGHT,BOTTOM in pixels is accepted")
        return [Border(f"pad {pad}", pad=tuple(values))]
    if masks is not None:
        files = list_clips(masks, images=True)
        match(list_clips(truth), files, masks)
        return [MaskFolder("masks", files)]
    return []


def _numbers(kind: type, text: str) -> list:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        return []
