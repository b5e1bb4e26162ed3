"""Prepares training data: a folder of videos or frame folders becomes ArrayRecord shards of short clips.

    python -m data.prepare SOURCE OUT [--short-side=256] [--min-seconds=2] [--max-seconds=4] [--crf=18] [--threads=N]

Whatever m3ddm_jax.outpaint reads is accepted, whatever its name. Every video is split at its cuts; black bars are
cropped away; shots in which nothing moves and shots that are too short or too small are left out, and so are files that
cannot be read. What remains is cut to clips of equal length, scaled once and re-encoded with a key frame every 12
frames. OUT holds a TFDS data set and `report.json`: what was made, what was skipped and why, a line for each file. It
must not exist before, and appears when all is done.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import flags

from data import shots, sources
from data.builders.clips import Clips
from data.clips import VideoInfo
from data.encode import SRGB_VIDEO, EncodedClip, encode_video
from data.masks import Box
from m3ddm_jax import cli
from m3ddm_jax.files.locking import Lock
from m3ddm_jax.files.places import check_apart
from m3ddm_jax.files.writing import new_folder, resolve
from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.colour import UNSPECIFIED, Colour
from m3ddm_jax.video.finding import find_videos, visible_files
from m3ddm_jax.video.images import IMAGE_SUFFIXES
from m3ddm_jax.video.shots import THUMBNAIL, find_cuts

SMALLEST_SIDE = 64
SAMPLES = 12
READ_AT_ONCE = 64  # frames, as thumbnails


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """What clips are made: lengths in seconds; short_side in pixels, at most; crf is H.264 quality, lower is better.

    Raises ValueError for settings that contradict one another.
    """

    short_side: int = 256
    min_seconds: float = 2.0
    max_seconds: float = 4.0
    crf: int = 18

    def __post_init__(self):
        if self.short_side < SMALLEST_SIDE:
            raise ValueError(f"the short side must be at least {SMALLEST_SIDE} pixels, found {self.short_side}")
        if not 0 < 2 * self.min_seconds <= self.max_seconds:
            raise ValueError(
                f"the longest clip must be at least twice the shortest: {self.max_seconds} s, {self.min_seconds} s"
            )


@dataclasses.dataclass(frozen=True)
class Skipped:
    """What was left out: a video, the frames of it (end exclusive; None for all of them), and why."""

    video: str
    frames: tuple[int, int] | None
    reason: str


def prepare(
    source: str | os.PathLike, out: str | os.PathLike, settings: PrepareSettings | None = None, num_threads: int = 2
) -> dict:
    """Writes the shards of all videos below `source` to the new folder `out`; returns the report.

    Raises ValueError where `out` exists, lies in `source` or is being prepared already, and where nothing usable is
    found; nothing is left behind then.
    """
    settings, source, out = settings or PrepareSettings(), pathlib.Path(source), resolve(out)
    check_apart([("output", out)], [("source", source)])
    if out.exists():
        raise ValueError(f"{out} exists already")
    paths = find_videos(source, any_name=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with Lock(out.with_name(f".{out.name}.lock"), f"the output {out}"):
        return _prepare(source, paths, out, settings, num_threads)


def _prepare(
    source: pathlib.Path, paths: list[pathlib.Path], out: pathlib.Path, settings: PrepareSettings, num_threads: int
) -> dict:
    results = _map_ordered(lambda path: prepare_video(path, source, settings), paths, num_threads)
    skipped = _stray_images(source, paths)
    seconds: list[float] = []

    def usable_clips() -> Iterator[EncodedClip]:
        for clips, left_out in tqdm.tqdm(results, total=len(paths), unit="video"):
            skipped.extend(left_out)
            seconds.extend(clip.num_frames / clip.fps for clip in clips)
            yield from clips

    clips = usable_clips()
    first = next(clips, None)
    if first is None:
        reasons = collections.Counter(entry.reason for entry in skipped).most_common(3)
        found = "; ".join(f"{reason} ({count} x)" for reason, count in reasons)
        raise ValueError(f"nothing usable in {source}: {found}")
    with new_folder(out, replace=False) as made:
        builder = Clips(itertools.chain([first], clips), data_dir=made)
        try:
            builder.download_and_prepare()
        except RuntimeError as error:  # array_record's way to say that a file cannot be written
            raise OSError(f"cannot write {out}: {error}") from error
        report = {
            "videos": len(paths),
            "clips": len(seconds),
            "seconds": round(sum(seconds), 2),
            "skipped": [dataclasses.asdict(entry) for entry in skipped],
            "settings": dataclasses.asdict(settings),
        }
        # The data set itself is what is wanted, not the folders that TFDS puts around it.
        for path in pathlib.Path(builder.data_dir).iterdir():
            path.rename(made / path.name)
        shutil.rmtree(made / builder.name)
        (made / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def prepare_video(
    path: pathlib.Path, root: pathlib.Path, settings: PrepareSettings
) -> tuple[list[EncodedClip], list[Skipped]]:
    """Turns a video below `root` into encoded clips and a list of what was left out; a bad video is all left out."""
    name = path.relative_to(root).as_posix()
    clips, skipped = [], []
    try:
        video = FrameSource(path, threads=1)
        info = sources.describe(video)
        starts = range(0, len(video), READ_AT_ONCE)
        parts = (range(start, min(start + READ_AT_ONCE, len(video))) for start in starts)
        thumbnails = np.concatenate([video.read(part, THUMBNAIL) for part in parts])
        kept = []
        for shot in itertools.pairwise([0, *find_cuts(thumbnails), len(thumbnails)]):
            first, last = shot
            if shots.is_still(thumbnails[first:last]):
                skipped.append(Skipped(name, shot, "nothing moves"))
            elif last - first < settings.min_seconds * info.fps - 0.5:
                skipped.append(Skipped(name, shot, f"shorter than {settings.min_seconds:g} s"))
            else:
                kept.append((shot, _find_picture(video, info, shot)))
        for shot, picture in kept:  # apart from the loop above: reading runs forward, and goes back once
            made = list(encode_shot(video, name, shot, picture, settings))
            clips += made
            if not made:
                skipped.append(Skipped(name, shot, f"smaller than {SMALLEST_SIDE} pixels"))
    except (ValueError, OSError) as error:
        return [], [Skipped(name, None, f"unreadable: {error}")]
    return clips, skipped


def encode_shot(
    video: FrameSource, name: str, shot: tuple[int, int], picture: Box, settings: PrepareSettings
) -> Iterator[EncodedClip]:
    """Cuts the frames first..last of a video to clips of equal length without black bars; none of a tiny picture.

    picture: what is left of upright frames with square pixels without their bars.
    """
    info, (first, last) = sources.describe(video), shot
    shortest = min(picture.bottom - picture.top, picture.right - picture.left)
    if shortest < SMALLEST_SIDE:
        return
    scale = min(1.0, settings.short_side / shortest)
    size = (round(info.height * scale), round(info.width * scale))
    top, left = math.ceil(picture.top * scale), math.ceil(picture.left * scale)
    height = (min(round(picture.bottom * scale), size[0]) - top) // 2 * 2
    width = (min(round(picture.right * scale), size[1]) - left) // 2 * 2
    count = math.ceil((last - first) / (settings.max_seconds * info.fps) - 1e-6)
    borders = np.linspace(first, last, count + 1).round().astype(int).tolist()
    for start, end in itertools.pairwise(borders):
        frames = video.read(range(start, end), size)[:, top : top + height, left : left + width]
        encoded = encode_video(frames, info.fps, crf=settings.crf, colour=_colour_of(video))
        yield EncodedClip(encoded, f"{name}/{start}", end - start, info.fps, height, width)


def _find_picture(video: FrameSource, info: VideoInfo, shot: tuple[int, int]) -> Box:
    first, last = shot
    samples = np.linspace(first, last - 1, min(SAMPLES, last - first)).astype(int).tolist()
    return shots.find_picture(video.read(samples, (info.height, info.width)))


def _colour_of(video: FrameSource) -> Colour:
    """How clips are coded: as their video where that says something, limited-range BT.709 else."""
    colour = video.colour
    if UNSPECIFIED in (colour.primaries, colour.transfer):
        return SRGB_VIDEO
    return Colour(colour.matrix, False, colour.primaries, colour.transfer)


def _stray_images(root: pathlib.Path, videos: list[pathlib.Path]) -> list[Skipped]:
    """The images that belong to no folder of frames."""
    images = {path for path in visible_files(root) if path.suffix.lower() in IMAGE_SUFFIXES}
    strays = sorted(path.relative_to(root).as_posix() for path in images if path.parent not in videos)
    return [Skipped(name, None, "an image beside videos") for name in strays]


def _map_ordered(function: Callable, items: Iterable, num_threads: int) -> Iterator:
    """Maps in threads, in order, never more than two results a thread ahead of who takes them."""
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def main(source: str, out: str) -> None:
    """Runs `prepare` for the command line, and prints what was made and skipped."""
    tfds.disable_progress_bar()  # of its own; ours counts videos
    options = flags.FLAGS
    settings = PrepareSettings(options.short_side, options.min_seconds, options.max_seconds, options.crf)
    with contextlib.redirect_stdout(None):  # tfds speaks of downloads there
        report = prepare(source, out, settings, options.threads)
    for entry in report["skipped"]:
        frames = "" if entry["frames"] is None else f" frames {entry['frames'][0]}..{entry['frames'][1] - 1}"
        print(f"skipped {entry['video']}{frames}: {entry['reason']}")
    print(f"{report['clips']} clips, {report['seconds']} s, of {report['videos']} videos written to {out}")


if __name__ == "__main__":
    defaults = PrepareSettings()
    flags.DEFINE_integer("short_side", defaults.short_side, "Largest short side of a clip, in pixels.")
    flags.DEFINE_float("min_seconds", defaults.min_seconds, "Shots shorter than this are left out.")
    flags.DEFINE_float("max_seconds", defaults.max_seconds, "Shots longer than this become several clips.")
    flags.DEFINE_integer("crf", defaults.crf, "H.264 quality: 0 is lossless, 51 the worst.", 0, 51)
    flags.DEFINE_integer("threads", os.cpu_count() or 1, "Videos prepared at once.", lower_bound=1)
    cli.run("data.prepare", main, "SOURCE", "OUT")
