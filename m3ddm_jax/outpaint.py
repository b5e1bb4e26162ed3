"""Outpaint a video: python -m m3ddm_jax.outpaint IN OUT [--aspect=16:9 | --size=1280x720 | --pad=L,T,R,B] ...

IN is a video, an image or a folder of frames. OUT ends in .mp4, .mov, .mkv, .webm or .gif; in .png, .jpg or .webp for a
single image; or is a folder of PNG: with a slash at its end, without suffix, or there already. The canvas only grows,
and the source's pixels stay as they are. Several aspects (--aspect=16:9,9:16) write one OUT each, named by the aspect:
out_16x9.mp4. Sound, subtitles, chapters, tags, timing, depth and colour coding are kept where OUT can hold them; a line
on stderr names what is converted or left out. --mask=FILE marks in white what is generated too, or, without a larger
canvas, what alone is generated: an image for all frames, or a folder or video with one mask per frame, of the source's
size or of the canvas's. Exit code 0, or 2 with one line that says what is wrong.
"""

import contextlib
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tqdm
from absl import flags

from m3ddm_jax import cli, method_flags
from m3ddm_jax.files.places import check_apart
from m3ddm_jax.geometry import CENTRE, Canvas, CanvasMasks, Masks
from m3ddm_jax.method_flags import make_outpainter
from m3ddm_jax.pipelines.base import OUTPAINTERS, Outpainter
from m3ddm_jax.video import FrameSink, FrameSource, MaskSource
from m3ddm_jax.video.errors import Damaged
from m3ddm_jax.video.output.codecs import CODECS, IMAGES, NOTHING_ASKED, Asked
from m3ddm_jax.video.preview import Preview, check_preview
from m3ddm_jax.video.sdr import to_sdr
from m3ddm_jax.video.sink import check_writable

MAX_SIDE = 16384  # pixels; the encoders take no more
_ENCODING_FLAGS = ("codec", "quality", "pixel_format")
_AROUND = 48  # grey level around the source in a preview

Target = tuple[pathlib.Path, Canvas]


def outpaint(
    source: FrameSource,
    outpainter: Outpainter,
    canvas: Canvas,
    path: pathlib.Path,
    rng: Any,
    masks: Masks | None = None,
    preview: pathlib.Path | None = None,
    asked: Asked = NOTHING_ASKED,
) -> int:
    """Outpaints a source to one file or folder, with progress on a terminal's stderr; returns the number of frames.

    masks: of the canvas's size, 1 where nothing of the source is shown; those that the outpainter was made with.
    preview: file that shows the source beside what is made of it, as `video.preview` says. asked: codec, quality and
    pixel format of the output.
    Raises ValueError where reading, outpainting or writing fails; nothing is left of the output then.
    """
    count, size = 0, (canvas.height, canvas.width)
    with contextlib.ExitStack() as stack:
        shower = None if preview is None else stack.enter_context(Preview(preview, source.fps, len(source), *size))
        sink = stack.enter_context(FrameSink(path, source.fps, *size, source=source, box=canvas.box, asked=asked))
        _report(sink.notes)
        with tqdm.tqdm(total=len(source), unit="frame", desc=path.name, disable=None) as progress:
            for frames in outpainter(source, canvas, rng):
                end = count + len(frames)
                originals, shown = source[count:end], None if masks is None else masks[count:end]
                made = canvas.paste(frames, originals, shown)
                sink.write(made, shown)
                if shower is not None:
                    shower.write(canvas.paste(np.full_like(made, _AROUND), originals, shown), made)
                progress.update(len(frames))
                count = end
    return count


def plan_targets(
    source: FrameSource,
    path: pathlib.Path,
    aspect: str | None = None,
    size: str | None = None,
    pad: str | None = None,
    anchor: str | None = None,
    mask: str | None = None,
    asked: Asked = NOTHING_ASKED,
) -> list[Target]:
    """The outputs that the flags of the same names ask for; raises ValueError for what cannot be made or written.

    With a mask alone the canvas is the source, with another row or column where a side is odd.
    """
    given = [name for name, value in (("aspect", aspect), ("size", size), ("pad", pad)) if value is not None]
    if len(given) > 1 or not (given or mask):
        found = " and ".join(f"--{name}" for name in given) or "none"
        raise ValueError(f"one of --aspect, --size and --pad is needed, found {found}")
    shape = (source.height, source.width)
    place = _parse(r"([\d.]+),([\d.]+)", anchor, float, "--anchor", "0..1,0..1 such as 0.5,0") if anchor else CENTRE
    if pad is not None:
        if anchor:
            raise ValueError("--pad says where the source lies already: it takes no --anchor")
        sides = _parse(r"(-?\d+),(-?\d+),(-?\d+),(-?\d+)", pad, int, "--pad", "left,top,right,bottom in pixels")
        targets = [(path, Canvas.from_pad(*shape, *sides))]
    elif size is not None:
        width, height = _parse(r"(\d+)x(\d+)", size, int, "--size", "WIDTHxHEIGHT such as 1280x720")
        targets = [(path, Canvas.from_size(*shape, height, width, place))]
    elif aspect is None:
        targets = [(path, Canvas.from_size(*shape, *(side + side % 2 for side in shape), place))]
    else:
        names = list(dict.fromkeys(aspect.split(",")))
        paths = [path] if len(names) == 1 else [path.with_name(_with_aspect(path, name)) for name in names]
        ratios = [_aspect_ratio(name) / float(source.pixel_aspect) for name in names]
        targets = [(p, Canvas.from_aspect(*shape, ratio, place)) for p, ratio in zip(paths, ratios, strict=True)]
    for target, canvas in targets:
        if max(canvas.height, canvas.width) > MAX_SIDE:
            raise ValueError(f"a canvas of {canvas.width}x{canvas.height} is too large: {MAX_SIDE} is the longest side")
        check_apart([("output", target)], [("input", source.path), ("mask", mask)])
        _check(target, asked, source)
    return targets


def _check(target: pathlib.Path, asked: Asked, source: FrameSource) -> None:
    """`check_writable`, whose errors name arguments where a user gave flags."""
    try:
        check_writable(target, asked, source)
    except ValueError as error:
        name, blank, rest = str(error).partition(" ")
        flag = f"--{name.replace('_', '-')}" if name in _ENCODING_FLAGS else name
        raise ValueError(flag + blank + rest) from None


def plan_previews(preview: str | None, path: pathlib.Path, targets: Sequence[Target]) -> dict[pathlib.Path, Any]:
    """The preview of each target, None where none is asked for; named by the aspect as the targets are if several.

    Raises ValueError for one that cannot be written, or is an output.
    """
    if preview is None:
        return {target: None for target, _ in targets}
    asked, previews = pathlib.Path(preview), {}
    for target, _ in targets:
        named = asked.with_name(f"{asked.stem}{target.stem.removeprefix(path.stem)}{asked.suffix}")
        check_preview(named)
        if named.resolve() in [other.resolve() for other, _ in targets]:
            raise ValueError(f"the preview {named} is the output")
        previews[target] = named
    return previews


def place_masks(masks: MaskSource, targets: Sequence[Target]) -> list[CanvasMasks]:
    """The masks on every target's canvas.

    Raises ValueError for masks of another size than a canvas or the source, and where they leave the whole source as it
    is or nothing of it. No more masks are read than tell that.
    """
    placed = [CanvasMasks(masks, canvas) for _, canvas in targets]
    for (_, canvas), on_canvas in zip(targets, placed, strict=True):
        values = set()
        for index in range(masks.count):
            values |= set(np.unique(on_canvas[index : index + 1][:, *canvas.box]))
            if len(values) > 1:
                break
        else:
            where = "everywhere" if 1 in values else "nowhere"
            raise ValueError(f"the mask is white {where} on the source: white is what is made anew, the rest is known")
    return placed


def default_method(model: str | None, preset: str | None, mask: str | None) -> str:
    """The method where none is named: that of the kinds of models in a folder, else what the options alone can mean."""
    if model is not None and preset is None:
        return _method_of(model, mask) or "m3ddm"
    if preset is not None:
        return "m3ddm"
    return "lite" if mask is None else "isvi"


def _method_of(model: str, mask: str | None) -> str | None:
    """The first method over the models that a folder holds, which takes masks if one is given; None for no such one."""
    from m3ddm_jax.weights import held_kinds, resolve

    accepted = {kind for row in OUTPAINTERS.values() for kind in row.kinds}
    held = set(held_kinds(resolve(model), accepted))
    fitting = [name for name, row in OUTPAINTERS.items() if held and held <= set(row.kinds)]
    return next((name for name in fitting if mask is None or hasattr(OUTPAINTERS[name].options, "mask")), None)


def _aspect_ratio(name: str) -> float:
    width, height = _parse(r"(\d+\.?\d*):(\d+\.?\d*)", name, float, "--aspect", "WIDTH:HEIGHT such as 16:9")
    if not (width > 0 and height > 0 and 0 < width / height < math.inf):
        raise ValueError(f"--aspect must be WIDTH:HEIGHT such as 16:9, found {name!r}")
    return width / height


def _with_aspect(path: pathlib.Path, aspect: str) -> str:
    return f"{path.stem}_{aspect.replace(':', 'x')}{path.suffix}"


def _parse(pattern: str, text: str, kind: Callable, flag: str, accepted: str) -> list:
    match = re.fullmatch(pattern, text)
    try:
        return [kind(group) for group in match.groups()]
    except (AttributeError, ValueError):
        raise ValueError(f"{flag} must be {accepted}, found {text!r}") from None


def enable_compilation_cache() -> None:
    """Enable JAX's persistent compilation cache: $JAX_COMPILATION_CACHE_DIR, or a folder next to other caches.

    Must come before jax is imported.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cli.cache_folder("programs")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def _report(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"outpaint: {note}", file=sys.stderr)


def main(source_path: str, target_path: str) -> None:
    strict = flags.FLAGS.strict
    try:
        _outpaint_file(source_path, target_path, "refuse" if strict else "note")
    except Damaged:
        if strict:
            raise
        _outpaint_file(source_path, target_path, "search")  # damage that only decoding showed


def _outpaint_file(source_path: str, target_path: str, damage: str) -> None:
    """`main`, with what FrameSource does about a damaged video."""
    values = flags.FLAGS
    source = FrameSource(source_path, values.fps, deinterlace=not values.keep_interlaced, damage=damage)
    if values.sdr:
        source = to_sdr(source)
    _report(source.notes)
    target = pathlib.Path(target_path)
    asked = Asked(values.codec, values.quality, values.pixel_format, target_path.endswith("/"))
    targets = plan_targets(source, target, values.aspect, values.size, values.pad, values.anchor, values.mask, asked)
    previews = plan_previews(values.preview, target, targets)
    options = method_flags.read(values)
    if values.adapt:
        options.setdefault("cache", str(cli.cache_folder("adapted")))
    written = [("output", path) for path, _ in targets] + [("preview", path) for path in previews.values()]
    read = [("mask", values.mask), ("model", values.model), ("second model", values.interpolation_model)]
    check_apart([*written, ("cache", options.get("cache"))], [("input", source.path), *read])
    masks = [None] * len(targets)
    if values.mask is not None:
        sampled = values.fps if source.path.is_file() else None
        masks = place_masks(MaskSource(values.mask, len(source), sampled), targets)
    method = values.method or default_method(values.model, values.preset, values.mask)
    rng = None
    if method in OUTPAINTERS and OUTPAINTERS[method].stochastic:
        import jax  # takes a second that the other methods do without

        rng = jax.random.key(values.seed)
    outpainter = None
    for (path, canvas), mask in zip(targets, masks, strict=True):
        if outpainter is None or mask is not None:  # masks lie on one canvas
            outpainter = make_outpainter(method, mask=mask, **options)
        start = time.monotonic()
        count = outpaint(source, outpainter, canvas, path, rng, mask, previews[path], asked)
        seconds = time.monotonic() - start
        print(f"{path}: {canvas.width}x{canvas.height}, {count} frames at {source.fps:g} fps, {seconds:.1f} s")


def _define_flags() -> None:
    flags.DEFINE_string("aspect", None, "Target aspect WIDTH:HEIGHT, or several with commas between: 16:9,9:16,1:1.")
    flags.DEFINE_string("size", None, "Target size WIDTHxHEIGHT in pixels, both even.")
    flags.DEFINE_string("pad", None, "Pixels to add: left,top,right,bottom.")
    flags.DEFINE_string(
        "anchor", None, "Where the source lies: x,y from 0 (left, top) to 1 (right, bottom); else 0.5,0.5."
    )
    flags.DEFINE_string(
        "mask", None, "Image, folder or video: what is white there is made anew too, by in2out and isvi."
    )
    flags.DEFINE_string(
        "preview", None, "Also writes source and result side by side: a .png of a few frames, or a video."
    )
    flags.DEFINE_float("fps", None, "Frames a second of a folder (else 24); a video is sampled anew at this rate.")
    flags.DEFINE_boolean("keep_interlaced", False, "Leave the fields of interlaced video as they are.")
    flags.DEFINE_boolean("strict", False, "Refuse a damaged video instead of outpainting the frames that it still has.")
    flags.DEFINE_boolean("sdr", False, "Convert HDR video, PQ or HLG, to 8-bit BT.709.")
    videos = [name for name in CODECS if name not in ("gif", *IMAGES.values())]
    flags.DEFINE_enum(
        "codec", None, videos, "Video codec; by default the one that docs/outputs.md lists for OUT's suffix."
    )
    flags.DEFINE_integer(
        "quality", None, "Constant quality: CRF, for JPEG 1 to 31 (lower is better), for WebP 0 to 100."
    )
    flags.DEFINE_string("pixel_format", None, "Pixel format of the output, such as yuv420p; by default the source's.")
    flags.DEFINE_string(
        "method", None, f"{', '.join(OUTPAINTERS)}; by default what --model is for, else isvi with --mask, else lite."
    )
    method_flags.define()
    flags.DEFINE_integer("seed", 0, "The same seed gives the same video.", lower_bound=0)


if __name__ == "__main__":
    enable_compilation_cache()
    _define_flags()
    cli.run("outpaint", main, "IN", "OUT")
