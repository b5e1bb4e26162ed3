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

from m3ddm_jax import cli, outpaint_flags
from m3ddm_jax.api.inputs import read_file
from m3ddm_jax.api.outpainting import Outpainter, default_method
from m3ddm_jax.api.targets import Target, parse_target, plan_target
from m3ddm_jax.files.places import check_apart
from m3ddm_jax.video import FrameSource


def main(source_path: str, target_path: str) -> None:
    values = flags.FLAGS
    read_file(source_path, functools.partial(_outpaint, target_path), values.fps, **outpaint_flags.reading(values))


def _outpaint(target_path: str, source: FrameSource) -> None:
    values, options = flags.FLAGS, outpaint_flags.options(flags.FLAGS)
    targets = _plan_targets(source, target_path)
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
    target = parse_target({name: values[name].value for name in ("size", "pad", "anchor")})
    target |= {"mask": values.mask, "fps": values.fps, **outpaint_flags.encoding(values)}
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


if __name__ == "__main__":
    cli.enable_compilation_cache()
    outpaint_flags.define()
    flags.DEFINE_string(
        "preview", None, "Also writes source and result side by side: a .png of a few frames, or a video."
    )
    cli.run("outpaint", main, "IN", "OUT")
