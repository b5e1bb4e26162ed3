"""An evaluation from true clips to a report: every region, seed and clip, going on where it was stopped."""

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from eval.clips import Split, View, known_part, list_clips, match, open_pair
from eval.lpips import FrameLPIPS
from eval.networks import Network, VideoFeatures, video_distances
from eval.protocol import Preset
from eval.regions import Border, Region
from eval.score_cache import ScoreCache, clip_sha256, code_commit, code_sha256, fingerprint
from eval.scores import CHUNK, ClipScores, Pair, clip_summary, deviation, mean_scores, score_clip
from eval.temporal import BAND
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.video import FrameSink, FrameSource

ENOUGH_SEEDS = 3  # for a standard deviation
FLOW = "dis"


@dataclasses.dataclass(frozen=True)
class Method:
    """What outpaints: an Outpainter, and all that tells it from others in plain values."""

    outpainter: Any
    about: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is evaluated.

    clips: true clips by name, those of the split. outputs: folder of outpainted clips, or, with a method, where to keep
    them; several regions lie in subfolders of their names, several seeds in subfolders seed0, seed1, ... around those.
    max_frames: so many of each clip, all by default; a preset may take fewer. lpips, i3d: without them those metrics
    are missing. optional: "lpips" or "i3d", networks that are left out where they do not fit the clips; others raise.
    absent: why a network is not there, by its name. score_cache: folder for the scores of finished clips, if any.
    """

    preset: Preset
    clips: dict[str, pathlib.Path]
    split: Split
    regions: tuple[Region, ...]
    outputs: pathlib.Path | None = None
    method: Method | None = None
    seeds: tuple[int, ...] = (0,)
    max_frames: int | None = None
    lpips: Network | None = None
    i3d: Network | None = None
    optional: frozenset[str] = frozenset()
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)
    score_cache: pathlib.Path | None = None

    @property
    def frames(self) -> int | None:
        limits = [limit for limit in (self.preset.frames, self.max_frames) if limit]
        return min(limits, default=None)

    def folder(self, region: Region, seed: int) -> pathlib.Path | None:
        """Where the outputs of a region and seed lie."""
        if self.outputs is None:
            return None
        by_seed = f"seed{seed}" if len(self.seeds) > 1 else ""
        return self.outputs / by_seed / (region.name if len(self.regions) > 1 else "")

    def numbers(self, length: int):
        """The frames that the distance between clips takes; none without its network."""
        return self.preset.distance.frame_numbers(length) if self.i3d else ()


def evaluate(task: Task) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """(report, pictures of the first seed's clips by region); everything is checked before anything is scored.

    Raises ValueError for a preset without regions, for folders, clips or regions that do not fit together, and for
    clips too short.
    """
    task, sizes = _check(task)
    scoring = _Scoring(task)
    regions, pictures = [], {}
    for region in task.regions:
        runs = []
        for seed in task.seeds:
            scores = scoring.run(region, seed)
            runs.append({"seed": seed, **_summary(task, scores)})
            pictures.setdefault(region.name, [clip.picture for clip in scores.values()])
        frames = [{"size": [w, h], "boxes": region.boxes(h, w)} for h, w in sorted(sizes[region.name])]
        means = [run["mean"] for run in runs]
        regions.append({"name": region.name, "frames": frames, **_over_seeds(means), "runs": runs})
    by_seed = [mean_scores([region["runs"][i]["mean"] for region in regions]) for i in range(len(task.seeds))]
    return {**_facts(task), **_over_seeds(by_seed), "regions": regions}, pictures


def _check(task: Task) -> tuple[Task, dict[str, set[tuple[int, int]]]]:
    """The task without the optional networks that do not fit, and the sizes (height, width) of frames by region.

    Raises ValueError as `evaluate`, for all clips.
    """
    if not task.regions:
        raise ValueError(f"preset {task.preset.name} generates what masks say: masks are needed")
    sizes, unfit = {}, {}
    for region in task.regions:
        for seed in task.seeds:
            paths = _outputs(task, region, seed)
            for name in task.clips:
                pair = _open(task, name, paths.get(name), region, seed)
                size = pair.truth.height, pair.truth.width
                sizes.setdefault(region.name, set()).add(size)
                for network, reason in _unfit(task, len(pair.truth), size):
                    if network not in task.optional:
                        raise ValueError(f"{name} {reason}")
                    unfit.setdefault(network, f"{name} {reason}")
    left_out = dict.fromkeys(unfit)
    return dataclasses.replace(task, absent={**task.absent, **unfit}, **left_out), sizes


def _unfit(task: Task, length: int, size: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """(network, reason) of those that cannot judge a clip of that length and size (height, width)."""
    try:
        task.numbers(length)
    except ValueError as error:
        yield "i3d", f"has only {error}"
    if task.lpips and task.preset.view is None:
        least = task.lpips.module.smallest_side
        if min(size) < least:
            yield "lpips", f"is {size[1]}x{size[0]}, lpips needs sides of at least {least} pixels"


def _outputs(task: Task, region: Region, seed: int) -> dict[str, pathlib.Path]:
    """The existing outputs of the clips by name; none where a method makes them."""
    if task.method:
        return {}
    folder = task.folder(region, seed)
    paths = list_clips(folder)
    if task.split.name != "all":
        paths = {name: path for name, path in paths.items() if name in task.clips}
    match(task.clips.keys(), paths, folder)
    return paths


def _open(task: Task, name: str, output: pathlib.Path | None, region: Region, seed: int) -> Pair:
    """The clip of that name with its output, or with what outpaints it as chunks are drawn.

    The random key of a clip depends on the seed and on the clip's name alone.
    """
    preset = task.preset
    if task.method is None:
        truth, made = open_pair(task.clips[name], output, preset.fit, task.frames)
        chunks = (made[start : start + CHUNK] for start in range(0, len(made), CHUNK))
    else:
        if not isinstance(region, Border):
            raise ValueError(f"a method outpaints around a box, not {region.name}: outputs are needed")
        truth = preset.fit.view(FrameSource(task.clips[name]), task.frames)
        canvas = region.canvas(truth.height, truth.width)
        rng = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        chunks = _pasted(task.method.outpainter, known_part(truth, canvas), canvas, rng)
    return Pair(name, truth, chunks, region.masks(name, truth))


def _pasted(outpainter: Any, source: View, canvas: Canvas, rng: jax.Array) -> Iterator[np.ndarray]:
    """What comes out with the source's pixels in their place, as it is written to files."""
    done = 0
    for frames in outpainter(source, canvas, rng):
        stop = done + len(frames)
        yield canvas.paste(frames, source[done:stop]) if stop <= len(source) else frames  # too many: refused later
        done = stop


class _Scoring:
    """Scores clips with the networks of a task; batches of I3D and LPIPS are split over the devices."""

    def __init__(self, task: Task):
        self._task = task
        self._kept, self._sha256 = ScoreCache(task.score_cache), functools.cache(clip_sha256)
        self._code = code_sha256() if task.score_cache else ""
        self._lpips = task.lpips and FrameLPIPS(task.lpips.module, task.lpips.variables)
        self._features = task.i3d and VideoFeatures(task.i3d, task.preset.distance)
        # Truth and output of so many clips at once give every device a clip.
        self._together = -(-jax.local_device_count() // 2)

    def run(self, region: Region, seed: int) -> dict[str, ClipScores]:
        """The scores of every clip by name, for one region and seed."""
        task = self._task
        paths, scores, fresh = _outputs(task, region, seed), {}, {}
        for name in tqdm(task.clips, region.name, unit="clip", disable=None):
            key = self._key(name, paths.get(name), region, seed)
            found = self._kept.load(f"{name}.{region.name}.{seed}", key)
            keep = task.folder(region, seed) if task.method else None
            if found and (keep is None or (keep / name).is_dir()):
                scores[name] = found
                continue
            fresh[name] = (key, *self._score(_open(task, name, paths.get(name), region, seed), keep))
            if len(fresh) == self._together:
                scores |= self._finish(fresh, region, seed)
                fresh = {}
        scores |= self._finish(fresh, region, seed)
        return {name: scores[name] for name in task.clips}

    def _score(self, pair: Pair, keep: pathlib.Path | None) -> tuple[ClipScores, dict[str, np.ndarray]]:
        numbers = self._task.numbers(len(pair.truth))
        if keep is None:
            return score_clip(pair, self._task.preset, self._lpips, numbers)
        keep.mkdir(parents=True, exist_ok=True)
        with FrameSink(keep / pair.name, pair.truth.fps, pair.truth.height, pair.truth.width) as sink:
            return score_clip(pair, self._task.preset, self._lpips, numbers, sink)

    def _finish(self, fresh: dict[str, tuple], region: Region, seed: int) -> dict[str, ClipScores]:
        """Scores with their features, and kept."""
        features: Iterator[np.ndarray] = iter(())
        if self._features:
            features = iter(self._features([frames[side] for _, _, frames in fresh.values() for side in frames]))
        finished = {}
        for name, (key, scores, frames) in fresh.items():
            of_clip = {side: next(features) for side in frames} if self._features else {}
            finished[name] = dataclasses.replace(scores, features=of_clip)
            self._kept.save(f"{name}.{region.name}.{seed}", key, finished[name])
        return finished

    def _key(self, name: str, output: pathlib.Path | None, region: Region, seed: int) -> str:
        """What the scores of a clip depend on; not worked out where nothing is kept."""
        task = self._task
        if task.score_cache is None:
            return ""
        masks = getattr(region, "files", {}).get(name)
        return fingerprint(
            code=self._code,
            jax=jax.__version__,
            preset=task.preset.describe(),
            frames=task.frames,
            truth=self._sha256(task.clips[name]),
            output=output and self._sha256(output),
            region=self._sha256(masks) if masks else dataclasses.asdict(region),
            method=task.method and [task.method.about, seed],
            networks=_networks(task),
        )


def _summary(task: Task, scores: dict[str, ClipScores]) -> dict[str, Any]:
    """The rows of all clips of a run, their mean, and the distance between all true and all generated ones."""
    rows, summaries = [], []
    for name, clip in scores.items():
        summary, length = clip_summary(clip), len(clip.per_frame["whole_mse"])
        per_frame = {metric: values.tolist() for metric, values in clip.per_frame.items()}
        height, width = clip.size
        rows.append({"name": name, "frames": length, "size": [width, height], **summary, "per_frame": per_frame})
        summaries.append(summary)
    weights = [row["frames"] for row in rows] if task.preset.average == "frames" else None
    mean, intervals = mean_scores(summaries, weights), {}
    if task.i3d:
        truth, output = (np.stack([clip.features[side] for clip in scores.values()]) for side in ("truth", "output"))
        distances = video_distances(truth, output, task.preset.distance)
        mean["distance"], intervals = distances["values"], distances["intervals"]
    return {"mean": mean, "intervals": intervals, "clips": rows}


def _over_seeds(means: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over the seeds, and from three on their standard deviation."""
    return {"mean": mean_scores(means), "std": deviation(means) if len(means) >= ENOUGH_SEEDS else None}


def _networks(task: Task) -> dict[str, Any]:
    return {"lpips": task.lpips and task.lpips.about, "i3d": task.i3d and task.i3d.about}


def _facts(task: Task) -> dict[str, Any]:
    """What a reader must know to compare the numbers with others."""
    distance = task.preset.distance.name
    needs = {"lpips": ("lpips", task.lpips), distance: ("i3d", task.i3d), "kvd": ("i3d", task.i3d)}
    return {
        "preset": task.preset.describe(),
        "split": {"name": task.split.name, "clips": len(task.split.clips), "sha256": task.split.sha256},
        "frames": f"first {task.frames}" if task.frames else "all",
        "networks": _networks(task),
        "missing": {
            metric: task.absent.get(name, "no weights") for metric, (name, found) in needs.items() if not found
        },
        "flow": FLOW,
        "colour_band": BAND,
        "method": task.method and task.method.about,
        "seeds": list(task.seeds),
        "code": code_commit(),
        "jax": {"version": jax.__version__, "devices": f"{jax.device_count()} {jax.devices()[0].platform}"},
    }
