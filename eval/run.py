"""Score outpainted clips against the truth.

    python -m eval.run --truth=DIR --outputs=DIR --preset=strict --report=OUT.json     outputs that exist
    python -m eval.run --truth=DIR --method=blur --preset=strict --report=OUT.json     outputs made now

Both folders hold videos or folders of frames with the same names. Where several ratios are scored, as the preset does,
each has a subfolder of outputs: 0.25/, 0.66/. Outputs have the size of the truth, or are the preset's squares: then the
truth is resized and centre-cropped to them. With --method the truth is brought to the square, its known part is
outpainted, and what comes out is kept under --outputs where that is given.
"""

import contextlib
import dataclasses
import pathlib
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from tqdm import tqdm

from eval import image_metrics, protocol, report
from m3ddm_jax.outpaint import make_outpainter
from m3ddm_jax.pipelines.base import OUTPAINTERS
from m3ddm_jax.video import FrameSink, FrameSource

CHUNK = 16  # frames of a clip that are held at a time


@dataclasses.dataclass(frozen=True)
class Pair:
    """A clip to score: its truth, consecutive chunks of what came out for it, and the mask of what was generated."""

    name: str
    truth: protocol.View
    chunks: Iterator[np.ndarray]
    masks: protocol.MaskReader


def existing_pairs(clips, folder: pathlib.Path, region, preset: protocol.Preset, max_frames: int | None):
    """Yields a Pair for each clip of the truth, with the output of the same name in a folder.

    Raises ValueError where names, sizes or lengths do not fit.
    """
    outputs = protocol.list_clips(folder)
    protocol.match(clips, outputs, folder)
    for name, path in clips.items():
        truth, output = (protocol.first_frames(FrameSource(p), max_frames) for p in (path, outputs[name]))
        size, square = (output.height, output.width), (preset.size, preset.size)
        if size == square:
            truth = protocol.to_square(truth, preset.size)
        if size != (truth.height, truth.width):
            accepted = f"{truth.width}x{truth.height} or {preset.size}x{preset.size}"
            raise ValueError(f"{outputs[name]} is {output.width}x{output.height}, not {accepted}")
        if len(output) != len(truth):
            raise ValueError(f"{outputs[name]} has {len(output)} frames, its truth has {len(truth)}")
        chunks = (output[start : start + CHUNK] for start in range(0, len(output), CHUNK))
        yield Pair(name, truth, chunks, region.masks(name, len(truth), *size))


def outpainted_pairs(clips, outpainter, region: protocol.Border, preset: protocol.Preset, max_frames, seed: int):
    """Yields a Pair for each clip, whose chunks are outpainted from the known part of the truth as they are drawn.

    The random key of a clip depends on the seed and on the clip's name alone.
    """
    for name, path in clips.items():
        truth = protocol.to_square(protocol.first_frames(FrameSource(path), max_frames), preset.size)
        canvas = region.canvas(truth.height, truth.width)
        rng = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        chunks = outpainter(protocol.known_part(truth, canvas), canvas, rng)
        yield Pair(name, truth, chunks, region.masks(name, len(truth), truth.height, truth.width))


def score_pair(pair: Pair, sink: FrameSink | None = None) -> image_metrics.FrameScores:
    """Scores frames as they come, known pixels replaced by the truth; a sink gets the frames that were scored.

    Raises ValueError where not as many frames come as the truth has.
    """
    parts, done = [], 0
    for chunk in pair.chunks:
        stop = done + len(chunk)
        truth, mask = pair.truth[done:stop], pair.masks(done, stop)
        output = np.where(mask != 0, chunk, truth)
        parts.append(image_metrics.score_frames(truth, output, mask))
        if sink is not None:
            sink.write(output)
        done = stop
    if done != len(pair.truth):
        raise ValueError(f"{pair.name}: {done} frames came out for {len(pair.truth)}")
    return image_metrics.FrameScores.concatenate(parts)


def score_region(name: str, pairs: Iterator[Pair], count: int, keep: pathlib.Path | None) -> dict[str, Any]:
    """The scores of every clip for one region, and their mean; scored frames are kept where a folder is given."""
    rows = []
    for pair in tqdm(pairs, name, count, unit="clip"):
        truth = pair.truth
        size = {"frames": len(truth), "height": truth.height, "width": truth.width}
        with contextlib.ExitStack() as stack:
            sink = None
            if keep:
                keep.mkdir(parents=True, exist_ok=True)
                sink = stack.enter_context(FrameSink(keep / pair.name, truth.fps, truth.height, truth.width))
            scores = score_pair(pair, sink)
        per_frame = {field: values.tolist() for field, values in dataclasses.asdict(scores).items()}
        rows.append({"name": pair.name, **size, **image_metrics.summarize(scores), "per_frame": per_frame})
    return {"name": name, "clips": rows, "mean": report.mean_scores(rows)}


def evaluate(
    truth: str | pathlib.Path,
    outputs: str | pathlib.Path | None = None,
    *,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    preset: str = "strict",
    regions: Sequence[protocol.Border | protocol.MaskFolder] = (),
    max_frames: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The report on a folder of true clips: on outputs in a folder, or on those that a method makes now.

    options: keyword arguments of the method; regions: what is generated, by default the preset's ratios.
    Raises ValueError for folders, clips or regions that do not fit together.
    """
    chosen = protocol.PRESETS[preset]
    clips = protocol.list_clips(truth)
    regions = regions or [protocol.Border(f"{ratio:g}", ratio=ratio) for ratio in chosen.ratios]
    outpainter = make_outpainter(method, **(options or {})) if method else None
    results = []
    for region in regions:
        folder = outputs and pathlib.Path(outputs, region.name if len(regions) > 1 else "")
        if outpainter:
            pairs = outpainted_pairs(clips, outpainter, region, chosen, max_frames, seed)
        else:
            pairs = existing_pairs(clips, folder, region, chosen, max_frames)
        results.append(score_region(region.name, pairs, len(clips), folder if outpainter else None))
    return {
        "preset": dataclasses.asdict(chosen),
        "frames": f"first {max_frames}" if max_frames else "all",
        "method": {"name": method, **(options or {}), "seed": seed} if method else None,
        "regions": results,
        "mean": report.mean_scores([result["mean"] for result in results]),
    }


def main(argv: Sequence[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    values = flags.FLAGS
    try:
        if len(argv) > 1:
            raise ValueError(f"unknown argument {argv[1]!r}")
        if not values.method and not values.outputs:
            raise ValueError("--outputs or --method is needed")
        if values.method and values.masks:
            raise ValueError("--method outpaints around a box: --ratio or --pad, not --masks")
        if values.report and not pathlib.Path(values.report).resolve().parent.is_dir():
            raise ValueError(f"--report: the folder of {values.report} does not exist")
        options = {name: values[name].value for name in ("model", "steps") if values[name].value is not None}
        result = evaluate(
            values.truth,
            values.outputs,
            method=values.method,
            options=options,
            preset=values.preset,
            regions=protocol.parse_regions(values.ratio, values.pad, values.masks, values.truth),
            max_frames=values.frames,
            seed=values.seed,
        )
        if values.report:
            report.write_json(values.report, result)
    except (ValueError, OSError) as error:
        _fail(error)
    print(report.table(result))


def _define_flags() -> None:
    flags.DEFINE_string("truth", None, "Folder of true clips: videos or folders of frames.")
    flags.DEFINE_string("outputs", None, "Folder of outpainted clips; with --method, where to keep them.")
    flags.DEFINE_enum("method", None, sorted(OUTPAINTERS), "Outpaint the clips with this method.")
    flags.DEFINE_string("model", None, "Model folder of the method.")
    flags.DEFINE_integer("steps", None, "Sampling steps of the method.")
    flags.DEFINE_integer("seed", 0, "Seed of the method.")
    flags.DEFINE_enum("preset", "strict", sorted(protocol.PRESETS), "Protocol.")
    flags.DEFINE_string("ratio", None, "Generated fractions of the width, half on each side: 0.25,0.66.")
    flags.DEFINE_string("pad", None, "Generated border in pixels instead: LEFT,TOP,RIGHT,BOTTOM.")
    flags.DEFINE_string("masks", None, "Folder of masks instead, white where generated, named like the clips.")
    flags.DEFINE_integer("frames", None, "Use only so many frames from the start of each clip.", lower_bound=1)
    flags.DEFINE_string("report", None, "JSON file to write.")
    flags.mark_flag_as_required("truth")


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _fail(error)


def _fail(error: Exception) -> None:
    print(f"eval.run: {str(error).splitlines()[0]}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    _define_flags()
    app.run(main, flags_parser=_parse_flags)
