"""Outpaint videos: `outpaint` for one call, `Outpainter` to reuse a loaded model."""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from m3ddm_jax.api.inputs import Video, is_path, open_video, read_file
from m3ddm_jax.api.targets import Mask, Target, plan_target
from m3ddm_jax.pipelines.base import OUTPAINTERS, make_outpainter, option_names
from m3ddm_jax.video import FrameSink, FrameSource
from m3ddm_jax.video.preview import Preview

Progress = Callable[[int, int], None]
"""Called with the number of finished frames and of all frames; what it raises ends the work."""

_AROUND = 48  # grey level around the source in a preview
_LOG = logging.getLogger(__name__)


def outpaint(
    video: Video,
    path: str | os.PathLike | None = None,
    *,
    aspect: str | float | None = None,
    size: Sequence[int] | None = None,
    pad: Sequence[int] | None = None,
    anchor: Sequence[float] | None = None,
    mask: Mask | None = None,
    method: str | None = None,
    model: str | os.PathLike | None = None,
    seed: int = 0,
    fps: float | None = None,
    stream: bool = False,
    progress: Progress | None = None,
    codec: str | None = None,
    quality: int | None = None,
    pixel_format: str | None = None,
    **options: Any,
) -> np.ndarray | Iterator[np.ndarray] | pathlib.Path:
    """Outpaint one video.

    The source's pixels stay exactly as they are; the canvas only grows, and its sides are even. One of `aspect`, `size`
    and `pad` is required, or a `mask`.

    >>> import m3ddm_jax as m
    >>> frames = m.sample_frames(4, height=64, width=64)
    >>> m.outpaint(frames, aspect="16:9", method="blur").shape
    (4, 64, 114, 3)

    Args:
      video: uint8 [T, H, W, 3], an iterable of uint8 frames [H, W, 3], a FrameSource, or the path of a video, an image
        or a folder of images.
      path: file or folder to write, with sound, tags, timing and colours of a file kept; nothing remains of it where
        the work fails.
      aspect: width / height as displayed, or "WIDTH:HEIGHT".
      size: (width, height) in pixels, both even.
      pad: (left, top, right, bottom), pixels to add.
      anchor: (x, y), where the source lies, from 0 (left, top) to 1 (right, bottom); else the centre.
      mask: what of the source is generated too: the path of an image, folder or video (white), or bool or uint8 [H, W]
        or [T, H, W] (not 0), of the source's size or the canvas's.
      method: a name of `m3ddm_jax.pipelines.base.OUTPAINTERS`; else the model's, isvi with a mask, otherwise lite.
      model: model folder, or hf:OWNER/NAME.
      seed: the same seed gives the same video.
      fps: frames per second of frames or a folder, else 24; a video file is sampled anew at this rate.
      stream: return an iterator of frames [H', W', 3] instead of an array.
      progress: called with (finished frames, all frames) after each chunk of frames.
      codec, quality, pixel_format: of the file that is written; by default those of docs/outputs.md.
      options: of the method, as its dataclass in `m3ddm_jax.pipelines.base` has them.

    Returns:
      uint8 [T, H', W', 3]; with `stream`, an iterator of its frames; with `path`, the path.

    Raises:
      ValueError, TypeError: what was found and what is accepted, with the name of the argument.

    The outpainter of the last call is cached: a call with the same method, model and options loads and compiles nothing
    for frames of the same size. `Outpainter` leaves that to you.
    """
    if method is None:
        method = default_method(model, options.get("preset"), mask)
    outpainter = _last_outpainter(_Key.of(method, model, options))
    return outpainter(
        video,
        path,
        aspect=aspect,
        size=size,
        pad=pad,
        anchor=anchor,
        mask=mask,
        seed=seed,
        fps=fps,
        stream=stream,
        progress=progress,
        codec=codec,
        quality=quality,
        pixel_format=pixel_format,
    )


class Outpainter:
    """A method with its options and its loaded model, for any number of videos.

    Programs that are compiled for one video are reused for others of the same size.

    >>> import m3ddm_jax as m
    >>> blur = m.Outpainter("blur")
    >>> [blur(m.sample_frames(2, side, side), aspect=2).shape for side in (32, 64)]
    [(2, 32, 64, 3), (2, 64, 128, 3)]

    method, model, options: as in `outpaint`; the default method is the model's, otherwise lite.
    Raises ValueError or TypeError for a method, model or option that cannot be used.
    """

    def __init__(self, method: str | None = None, model: str | os.PathLike | None = None, **options: Any):
        self.method = default_method(model, options.get("preset"), None) if method is None else method
        _check_keywords(options)
        self._outpaint = make_outpainter(self.method, model=model, **options)

    def __call__(
        self,
        video: Video,
        path: str | os.PathLike | None = None,
        *,
        aspect: str | float | None = None,
        size: Sequence[int] | None = None,
        pad: Sequence[int] | None = None,
        anchor: Sequence[float] | None = None,
        mask: Mask | None = None,
        seed: int = 0,
        fps: float | None = None,
        stream: bool = False,
        progress: Progress | None = None,
        codec: str | None = None,
        quality: int | None = None,
        pixel_format: str | None = None,
    ) -> np.ndarray | Iterator[np.ndarray] | pathlib.Path:
        """Outpaint one video; arguments, result and errors are those of `outpaint`."""
        if stream and path is not None:
            raise ValueError("`stream` returns frames and `path` writes them: one of both is accepted")
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"`seed` must be a whole number, 0 or more, found {seed!r}")
        target = {"aspect": aspect, "size": size, "pad": pad, "anchor": anchor, "mask": mask}
        target |= {"fps": fps, "codec": codec, "quality": quality, "pixel_format": pixel_format}

        def run(source: FrameSource) -> np.ndarray | Iterator[np.ndarray] | pathlib.Path:
            planned = plan_target(source, path, **target)
            if path is not None:
                self.write(source, planned, seed, progress)
                return pathlib.Path(path)
            chunks = self._chunks(source, planned, seed, progress)
            if stream:
                return (frame for frames, *_ in chunks for frame in frames)
            made = np.empty((len(source), planned.canvas.height, planned.canvas.width, 3), np.uint8)
            start = 0
            for frames, *_ in chunks:
                made[start : start + len(frames)] = frames
                start += len(frames)
            return made

        if is_path(video) and not stream:
            return read_file(video, run, fps)
        return run(open_video(video, fps))

    def write(self, source: FrameSource, target: Target, seed: int = 0, progress: Progress | None = None) -> int:
        """Outpaint a source to the file or folder of a target; returns the number of frames.

        Logs what is converted or left out. Raises ValueError where reading, outpainting or writing fails; nothing is
        left of the output then.
        """
        canvas, size = target.canvas, (target.canvas.height, target.canvas.width)
        with contextlib.ExitStack() as stack:
            preview = None
            if target.preview is not None:
                preview = stack.enter_context(Preview(target.preview, source.fps, len(source), *size))
            sink = FrameSink(target.path, source.fps, *size, source=source, box=canvas.box, asked=target.asked)
            stack.enter_context(sink)
            for note in sink.notes:
                _LOG.warning("%s", note)
            count = 0
            for frames, originals, masks in self._chunks(source, target, seed, progress):
                sink.write(frames, masks)
                if preview is not None:
                    preview.write(canvas.paste(np.full_like(frames, _AROUND), originals, masks), frames)
                count += len(frames)
        return count

    def _chunks(
        self, source: FrameSource, target: Target, seed: int, progress: Progress | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        """Canvas frames with the source in its place, uint8 [n, H', W', 3], the source's frames, and masks if any."""
        row, canvas, rng = OUTPAINTERS[self.method], target.canvas, None
        if row.stochastic:
            import jax  # takes a second that the other methods do without

            rng = jax.random.key(seed)
        masked = () if target.masks is None else (target.masks,)
        if masked and not row.masks:
            methods = ", ".join(name for name, other in OUTPAINTERS.items() if other.masks)
            raise ValueError(f"`mask` is accepted by {methods}, found `method` {self.method}")
        return self._pasted(self._outpaint(source, canvas, rng, *masked), source, target, progress)

    def _pasted(
        self, made: Iterator[np.ndarray], source: FrameSource, target: Target, progress: Progress | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        count = 0
        for frames in made:
            end = count + len(frames)
            originals, masks = source[count:end], None if target.masks is None else target.masks[count:end]
            yield target.canvas.paste(frames, originals, masks), originals, masks
            count = end
            if progress is not None:
                progress(count, len(source))


def _check_keywords(options: Iterable[str]) -> None:
    """Raise TypeError for a keyword that neither a method nor `outpaint` has, with the nearest one."""
    known = {name for method in OUTPAINTERS for name in option_names(method)}
    for name in sorted(set(options) - known):
        nearest = difflib.get_close_matches(name, [*inspect.signature(outpaint).parameters, *known], 1)
        raise TypeError(f"there is no argument `{name}`" + (f": did you mean `{nearest[0]}`?" if nearest else ""))


def default_method(model: Any, preset: str | None, mask: Any) -> str:
    """The method where none is named: that of the kinds of models in a folder, else what the options alone can mean."""
    if preset is not None:
        return "m3ddm"
    if model is not None:
        return _method_of(model, mask is not None) or "m3ddm"
    return "lite" if mask is None else "isvi"


def _method_of(model: Any, masks: bool) -> str | None:
    """The first method over the models in a folder, that accepts masks if asked; None if there is none."""
    from m3ddm_jax.weights import held_kinds, resolve

    accepted = {kind for row in OUTPAINTERS.values() for kind in row.kinds}
    held = set(held_kinds(resolve(model), accepted))
    fitting = [row for row in OUTPAINTERS if held and held <= set(OUTPAINTERS[row].kinds)]
    return next((name for name in fitting if OUTPAINTERS[name].masks or not masks), None)


@dataclasses.dataclass(frozen=True)
class _Key:
    """What tells one outpainter from another: method, options, and the files of a local model."""

    text: str
    arguments: dict[str, Any] = dataclasses.field(compare=False)

    @classmethod
    def of(cls, method: str, model: Any, options: dict[str, Any]) -> "_Key":
        arguments = {"method": method, "model": model, **options}
        models = [value for name, value in arguments.items() if name.endswith("model") and is_path(value)]
        files = [file for folder in models for file in sorted(pathlib.Path(folder).rglob("*"))]
        stamps = [(str(file), file.stat().st_mtime_ns) for file in files]
        return cls(repr((sorted(arguments.items()), stamps)), arguments)


@functools.lru_cache(maxsize=1)
def _last_outpainter(key: _Key) -> Outpainter:
    return Outpainter(**key.arguments)
