"""Outpainting by a video inpainting network that follows flow: E2FGVI, as IN2OUT fine-tunes it.

Source: In2Out (arXiv 2508.00418), and the windows of E2FGVI's released code. The paper's own inference is not known:
two passes over wide borders, and references whose number does not grow with the video, are this project's choice.
"""

import dataclasses
import functools
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from m3ddm_jax.geometry import Canvas, Masks
from m3ddm_jax.models.e2fgvi import E2FGVI
from m3ddm_jax.pipelines.base import In2outOptions
from m3ddm_jax.pipelines.compositing import match_seam
from m3ddm_jax.pipelines.options import CheckedSettings, computing_in
from m3ddm_jax.pipelines.work_canvas import WorkCanvas, known_box
from m3ddm_jax.pipelines.work_clip import WorkClip
from m3ddm_jax.types import FramesTHWC, Variables
from m3ddm_jax.video import FrameSource
from m3ddm_jax.weights import load_model, resolve

KnownFrames = Callable[[Sequence[int]], tuple[FramesTHWC, np.ndarray]]
"""Frames by index: uint8 [n, h, w, 3] of the box of a work canvas in which they are known, and uint8 [n, h, w, 1], 1 in
holes of that."""

_WIDENING = 4  # pixels by which the network sees less around holes, as in E2FGVI's released code; none around a border


@dataclasses.dataclass(frozen=True)
class In2outSettings(CheckedSettings):
    """How the network outpaints.

    lines: shorter side, in pixels, of what the network sees and makes; a smaller canvas keeps its size.
    neighbours: frames on either side that a window sees in full; the next window lies so many frames further.
    references, reference_stride: at most so many frames from the rest of the video, of every so many-th one.
    two_passes_above: unknown share of the canvas's width or height above which the border grows in two passes, the
      second of which takes the first one's half as known; 1 for one pass always.
    seam: the generated side's colours are made to meet those that are known and fade out into what was generated
      (matched), or stay as they are (hard).
    """

    lines: int = 240
    neighbours: int = 5
    references: int = 8
    reference_stride: int = 10
    two_passes_above: float = 0.5
    seam: Literal["matched", "hard"] = "matched"


@dataclasses.dataclass(frozen=True)
class InpaintingWindow:
    """Frames that the network sees together: consecutive ones, which it makes, and references from elsewhere."""

    local: tuple[int, ...]
    references: tuple[int, ...]


class In2Out(In2outOptions):
    """The `in2out` Outpainter over a model folder of kind e2fgvi.

    Raises ValueError for no folder, one that holds no such model, or settings that do not fit.
    """

    def __post_init__(self):
        self._settings = In2outSettings.make(self.settings or {})
        if self.model is None:
            raise ValueError(
                "in2out needs a model folder: `python -m m3ddm_jax.convert e2fgvi SOURCE FOLDER` makes one of E2FGVI-HQ"
            )
        folder = resolve(self.model)
        module, variables = load_model(folder, kind="e2fgvi")
        self.models = {"model": (folder, self._settings)}
        self._variables = jax.device_put(variables)
        complete = functools.partial(_complete, computing_in(self.dtype, module))
        self._complete = jax.jit(complete, static_argnames="num_local")

    def __call__(
        self, source: FrameSource, canvas: Canvas, rng: None = None, masks: Masks | None = None
    ) -> Iterator[FramesTHWC]:
        """Yields canvas frames, uint8 [n, H, W, 3], in time order; the caller pastes the source's own pixels.

        Raises ValueError where the source is so small on the canvas that nothing of it is left on the work canvas.
        """
        settings = self._settings
        work = WorkCanvas(canvas, settings.lines, multiple=2)
        windows = plan_inpainting_windows(
            len(source), settings.neighbours, settings.references, settings.reference_stride
        )
        start = 0
        for generated in self._grow(source, canvas, masks, work, windows):
            shown = slice(start, start + len(generated))
            start = shown.stop
            originals, holes = source[shown], None if masks is None else masks[shown]
            yield self._match(work.to_canvas(generated.astype(np.float32), originals), originals, canvas, holes)

    def _grow(
        self,
        source: FrameSource,
        canvas: Canvas,
        masks: Masks | None,
        work: WorkCanvas,
        windows: Sequence[InpaintingWindow],
    ) -> Iterator[FramesTHWC]:
        """Whole frames of the work canvas, in one pass or two."""
        whole = known_box(work)
        kept = 2 * len(windows[0].local + windows[0].references)  # windows overlap
        known = functools.partial(_read_known, WorkClip(source, work, masks, kept), whole)
        if not _is_wide(canvas, self._settings.two_passes_above):
            yield from self._outpaint(known, whole, windows)
            return
        half, rest = halve(whole)
        with tempfile.TemporaryFile() as file:
            shown = tqdm(windows, desc="first pass", unit="window", leave=False, disable=None)
            for frames in self._outpaint(known, half, shown):
                file.write(frames)
            yield from self._outpaint(functools.partial(_read_spooled, file, half), rest, windows)

    def _outpaint(
        self, known: KnownFrames, canvas: Canvas, windows: Iterable[InpaintingWindow]
    ) -> Iterator[FramesTHWC]:
        """Whole frames, uint8 [n, h, w, 3], of a canvas that the network sees, what is known among them."""
        start = 0
        for redrawn in average(self._redraw(known, canvas, windows)):
            frames, holes = known(range(start, start + len(redrawn)))
            start += len(redrawn)
            masks = canvas.masks(holes)
            yield canvas.paste(self._match(redrawn, frames, canvas, masks), frames, masks)

    def _redraw(
        self, known: KnownFrames, canvas: Canvas, windows: Iterable[InpaintingWindow]
    ) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        """The local frames of each window, and what the network makes of them: float32 [n, h, w, 3] in 0..255."""
        begun = None
        for window in windows:
            frames, holes = known(window.local + window.references)
            placed = canvas.paste(np.zeros((len(frames), canvas.height, canvas.width, 3), np.uint8), frames)
            masks = canvas.masks(_widen(holes))
            redrawn = self._complete(self._variables, placed, masks, num_local=len(window.local))
            if begun:  # fetched once the device has the next one to work on
                yield begun[0], np.asarray(begun[1])
            begun = window.local, redrawn
        yield begun[0], np.asarray(begun[1])

    def _match(self, generated: np.ndarray, frames: FramesTHWC, canvas: Canvas, masks: np.ndarray | None) -> FramesTHWC:
        if self._settings.seam == "matched":
            return match_seam(generated, frames, canvas, masks)
        return np.clip(np.rint(generated), 0, 255).astype(np.uint8)


def plan_inpainting_windows(
    num_frames: int, neighbours: int, references: int, reference_stride: int
) -> list[InpaintingWindow]:
    """Windows in time order that hold every frame, all with as many local frames and as many references.

    A window has 2 * neighbours + 1 local frames, or those that there are (a single one twice); the last one is moved
    back rather than cut short. References are spread evenly over every reference_stride-th frame that is not local;
    where too few are left, some come twice.
    """
    size = 2 * neighbours + 1
    if num_frames <= size:
        return [InpaintingWindow(tuple(range(num_frames)) if num_frames > 1 else (0, 0), ())]
    last = num_frames - size
    grid = range(0, num_frames, reference_stride)
    count = min(references, max(1, len(grid) - size // reference_stride))
    windows = []
    for start in sorted({*range(0, last, neighbours), last}):
        local = range(start, start + size)
        others = [i for i in grid if i not in local] or [i for i in range(num_frames) if i not in local]
        # the middles of `count` equal parts
        chosen = tuple(others[(2 * part + 1) * len(others) // (2 * count)] for part in range(count))
        windows.append(InpaintingWindow(tuple(local), chosen))
    return windows


def average(redrawn: Iterable[tuple[Sequence[int], np.ndarray]]) -> Iterator[np.ndarray]:
    """Frames in time order, [n, h, w, 3], each as soon as no later window can hold it.

    redrawn: indices and frames [n, h, w, 3] of windows that follow one another. A frame that comes again is the mean of
    what was there and what comes, as in E2FGVI's released code.
    """
    means: dict[int, np.ndarray] = {}
    for indices, frames in redrawn:
        done = [means.pop(index) for index in sorted(means) if index < indices[0]]
        if done:
            yield np.stack(done)
        for index, frame in zip(indices, frames, strict=True):
            means[index] = (means[index] + frame) / 2 if index in means else frame
    yield np.stack([means[index] for index in sorted(means)])


def halve(canvas: Canvas) -> tuple[Canvas, Canvas]:
    """Two canvases for two passes: the source with half of its border around it, and that with the other half."""
    height, top = _halve_side(canvas.height, canvas.source_height, canvas.top)
    width, left = _halve_side(canvas.width, canvas.source_width, canvas.left)
    half = Canvas(height, width, canvas.source_height, canvas.source_width, canvas.top - top, canvas.left - left)
    return half, Canvas(canvas.height, canvas.width, height, width, top, left)


def _halve_side(side: int, source: int, offset: int) -> tuple[int, int]:
    """An even length with half of the border along one side, and where it begins."""
    begin, end = offset // 2, (offset + source + side) // 2
    if (end - begin) % 2:
        begin, end = (begin - 1, end) if begin else (begin, end + 1)
    return end - begin, begin


def _is_wide(canvas: Canvas, share: float) -> bool:
    return canvas.width - canvas.source_width > share * canvas.width or (
        canvas.height - canvas.source_height > share * canvas.height
    )


def _read_known(clip: WorkClip, canvas: Canvas, indices: Sequence[int]) -> tuple[FramesTHWC, np.ndarray]:
    """Frames of a source in the box of a canvas that the network sees, and their holes."""
    known = [clip.frame(index) for index in indices]
    frames, masks = np.stack([frame.seen for frame in known]), np.stack([frame.mask for frame in known])
    return frames[:, *canvas.box], masks[:, *canvas.box]


def _read_spooled(file: io.BufferedRandom, canvas: Canvas, indices: Sequence[int]) -> tuple[FramesTHWC, np.ndarray]:
    """Frames of a canvas, of those that a file holds one after the other; nothing of them is unknown."""
    frames = np.empty((len(indices), canvas.height, canvas.width, 3), np.uint8)
    for frame, index in zip(frames, indices, strict=True):
        file.seek(index * frame.nbytes)
        file.readinto(frame)
    return frames, np.zeros((*frames.shape[:3], 1), np.uint8)


def _widen(holes: np.ndarray) -> np.ndarray:
    """Holes, uint8 [n, h, w, 1], that reach so many pixels further."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    return np.stack([cv2.dilate(hole, cross, iterations=_WIDENING) for hole in holes])[..., None]


def _complete(module: E2FGVI, variables: Variables, frames: jax.Array, masks: jax.Array, num_local: int) -> jax.Array:
    """What the network makes of the local ones of frames uint8 [T, h, w, 3], float32 [num_local, h, w, 3] in 0..255.

    masks: [T, h, w, 1]. Sizes that the network cannot take are continued by mirror images to the right and below.
    """
    height, width = frames.shape[1:3]
    known = jnp.where(masks > 0, 0.0, frames.astype(jnp.float32) / 127.5 - 1)
    beyond = [(0, -side % multiple) for side, multiple in zip((height, width), module.size_multiple, strict=True)]
    masked_frames = jnp.pad(known, [(0, 0), *beyond, (0, 0)], mode="symmetric")
    redrawn, _ = module.apply(variables, masked_frames[None], num_local=num_local, local_only=True)
    return (redrawn[0, :, :height, :width] + 1) * 127.5
