"""Outpaint a video: python -m m3ddm_jax.outpaint IN OUT [--aspect=16:9 | --size=1280x720 | --pad=L,T,R,B] ...

IN is a video, an image or a folder of frames. OUT ends in .mp4, .mov, .mkv, .webm or .gif; in .png, .jpg or .webp for a
single image; or is a folder of PNG: with a slash at its end, without suffix, or there already. The canvas only grows,
and the source's pixels stay as they are. Several aspects (--aspect=16:9,9:16) write one OUT each, named by the aspect:
out_16x9.mp4. Sound, subtitles, chapters, tags, timing, depth and colour coding are kept where OUT can hold them; a line
on stderr names what is converted or left out. --mask=FILE marks in white what is generated too, or, without a larger
canvas, what alone is generated: an image for all frames, or a folder or video with one mask per frame, of the source's
size or of the canvas's. Exit code 0, or 2 with one line that says what is wrong.
"""

import functools
import pathlib
import time

import tqdm
from absl import flags

from m3ddm_jax import cli, method_flags
from m3ddm_jax.api.inputs import read_file
from m3ddm_jax.api.outpainting import Outpainter, default_method
from m3ddm_jax.api.targets import Target, parse_target, plan_target
from m3ddm_jax.files.places import check_apart
from m3ddm_jax.pipelines.base import OUTPAINTERS
from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.output.codecs import CODECS, IMAGES


def main(source_path: str, target_path: str) -> None:
    values = flags.FLAGS
    reading = {"deinterlace": not values.keep_interlaced, "strict": values.strict, "sdr": values.sdr}
    read_file(source_path, functools.partial(_outpaint, target_path), values.fps, **reading)


def _outpaint(target_path: str, source: FrameSource) -> None:
    values, options = flags.FLAGS, method_flags.read(flags.FLAGS)
    targets = _plan_targets(source, target_path)
    if values.adapt:
        options.setdefault("cache", str(cli.cache_folder("adapted")))
    written = [("output", target.path) for target in targets] + [("preview", target.preview) for target in targets]
    read = [("mask", values.mask), ("model", values.model), ("second model", values.interpolation_model)]
    check_apart([*written, ("cache", options.get("cache"))], [("input", source.path), *read])
    method = values.method or default_method(values.model, values.preset, values.mask)
    outpainter = Outpainter(method, **options)
    for target in targets:
        start = time.monotonic()
        with tqdm.tqdm(total=len(source), unit="frame", desc=target.path.name, disable=None) as bar:
            count = outpainter.write(source, target, values.seed, lambda done, _, bar=bar: bar.update(done - bar.n))
        seconds, size = time.monotonic() - start, f"{target.canvas.width}x{target.canvas.height}"
        print(f"{target.path}: {size}, {count} frames at {source.fps:g} fps, {seconds:.1f} s")


def _plan_targets(source: FrameSource, path: str) -> list[Target]:
    """The output of each aspect, or the only one."""
    values = flags.FLAGS
    aspects = list(dict.fromkeys((values.aspect or "").split(",")))
    target = parse_target({"size": values.size, "pad": values.pad, "anchor": values.anchor})
    target |= {name: values[name].value for name in ("mask", "fps", "codec", "quality", "pixel_format")}
    targets = []
    for aspect in aspects:
        name = "" if len(aspects) == 1 else f"_{aspect.replace(':', 'x')}"
        preview = values.preview and _renamed(values.preview, name)
        targets.append(plan_target(source, _renamed(path, name), aspect=aspect or None, preview=preview, **target))
    outputs = {target.path.resolve() for target in targets}
    for preview in (target.preview for target in targets if target.preview):
        if preview.resolve() in outputs:
            raise ValueError(f"the preview {preview} is the output")
    return targets


def _renamed(path: str, ending: str) -> str:
    """The path with an ending of its name, before the suffix."""
    if not ending:
        return path
    found = pathlib.Path(path)
    return str(found.with_name(f"{found.stem}{ending}{found.suffix}")) + "/" * path.endswith("/")


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
        "method", None, f"{', '.join(OUTPAINTERS)}; by default lite, m3ddm with --model, isvi with --mask."
    )
    method_flags.define()
    flags.DEFINE_integer("seed", 0, "The same seed gives the same video.", lower_bound=0)


if __name__ == "__main__":
    cli.enable_compilation_cache()
    _define_flags()
    cli.run("outpaint", main, "IN", "OUT")
