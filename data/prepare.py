"""Prepares training data: a folder of videos or frame folders becomes ArrayRecord shards of short clips.

    python -m data.prepare SOURCE OUT [--short-side=256] [--min-seconds=2] [--max-seconds=S] [--crf=18] [--threads=N]
        [--shard=I/N]

Whatever m3ddm_jax.outpaint reads is accepted, whatever its name. Every video is split at its cuts; black bars are
cropped away; shots in which nothing moves and shots that are too short or too small are left out, and so are files that
cannot be read. What remains is scaled once and re-encoded with a key frame every 12 frames; a shot that is longer than
452 frames, or --max-seconds, is stored in parts of equal length. Whole videos, 2 % of them and at least one, go to the
split `validation` (data.splits), all others to `train`.

OUT holds a TFDS data set and `report.json`: what was made, what was skipped and why, a line for each file. It
must not exist before, and appears when all is done. With --shard=I/N it is a folder in OUT for part I of N, from 0, of
the videos: parts may be made by several machines, and a part that is there already is left as it is.
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
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import flags

from data import reading, shots, splits
from data.builders.clips import Clips
from data.clips import VideoInfo
from data.encode import SRGB_VIDEO, EncodedClip, encode_video, part_borders
from data.masks import Box
from data.shards import shard_name
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
READ_AT_ONCE = 64  # frames
# The shortest part of a shot that is longer than this is half of it: 16 frames at an interval of 15.
LONGEST_PART = 2 * (15 * 15 + 1)


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """What clips are made: lengths in seconds; short_side in pixels, at most; crf is H.264 quality, lower is better.

    max_seconds: None: LONGEST_PART frames at the rate of each video.

    Raises ValueError for settings that contradict one another.
    """

    short_side: int = 256
    min_seconds: float = 2.0
    max_seconds: float | None = None
    crf: int = 18

    def __post_init__(self):
        if self.short_side < SMALLEST_SIDE:
            raise ValueError(f"the short side must be at least {SMALLEST_SIDE} pixels, found {self.short_side}")
        if not self.min_seconds > 0 or self.max_seconds is not None and self.max_seconds < 2 * self.min_seconds:
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
    source: str | os.PathLike,
    out: str | os.PathLike,
    settings: PrepareSettings | None = None,
    num_threads: int = 2,
    shard: tuple[int, int] | None = None,
) -> dict:
    """Writes the shards of all videos below `source` to the new folder `out`; returns the report.

    shard: (i, n): of part i of n of the videos alone (data.splits.part_of); where it has no clips, `out` holds the
    report alone. Raises ValueError where `out` exists, lies in `source` or is being prepared already, and where nothing
    usable is found; nothing is left behind then.
    """
    settings, source, out = settings or PrepareSettings(), pathlib.Path(source), resolve(out)
    check_apart([("output", out)], [("source", source)])
    if out.exists():
        raise ValueError(f"{out} exists already")
    paths = find_videos(source, any_name=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with Lock(out.with_name(f".{out.name}.lock"), f"the output {out}"):
        return _prepare(source, paths, out, settings, num_threads, shard)


def _prepare(
    source: pathlib.Path,
    paths: list[pathlib.Path],
    out: pathlib.Path,
    settings: PrepareSettings,
    num_threads: int,
    shard: tuple[int, int] | None,
) -> dict:
    with tqdm.tqdm(unit="video") as bar:
        work = _Preparation(source, paths, settings, num_threads, shard, bar)
        made_by_split = work.by_split()
        if not made_by_split and shard:
            with new_folder(out, replace=False) as made:
                return _write_report(made, work)
        if not made_by_split:
            reasons = collections.Counter(entry.reason for entry in work.skipped).most_common(3)
            found = "; ".join(f"{reason} ({count} x)" for reason, count in reasons)
            raise ValueError(f"nothing usable in {source}: {found}")
        with new_folder(out, replace=False) as made:
            builder = Clips(made_by_split, data_dir=made)
            try:
                builder.download_and_prepare()
            except RuntimeError as error:  # array_record's way to say that a file cannot be written
                raise OSError(f"cannot write {out}: {error}") from error
            # The data set itself is what is wanted, not the folders that TFDS puts around it.
            for path in pathlib.Path(builder.data_dir).iterdir():
                path.rename(made / path.name)
            shutil.rmtree(made / builder.name)
            return _write_report(made, work)


def _write_report(folder: pathlib.Path, work: "_Preparation") -> dict:
    report = work.report()
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


class _Preparation:
    """The videos of a folder, which become clips as they are asked for. skipped: what was left out so far."""

    def __init__(
        self,
        source: pathlib.Path,
        paths: list[pathlib.Path],
        settings: PrepareSettings,
        num_threads: int,
        shard: tuple[int, int] | None,
        bar: tqdm.tqdm,
    ):
        self._source, self._settings, self._num_threads, self._bar = source, settings, num_threads, bar
        named = {path.relative_to(source).as_posix(): path for path in paths}
        self._whole = shard is None
        number, count = shard or (0, 1)
        self._paths = {name: path for name, path in named.items() if splits.part_of(name, count) == number}
        bar.total = len(self._paths)
        self._made: dict[str, list[tuple[str, int, float]]] = {}
        self.skipped = _stray_images(source, paths) if number == 0 else []

    def by_split(self) -> dict[str, Iterator[EncodedClip]]:
        """Split -> its clips; empty where there are none at all, without validation where one video alone has any.

        Validation has the first video that has clips, in the order of data.splits, and all that are held out by name;
        of a part of the videos those that are held out by name alone.
        """
        if not self._whole:
            return self._by_name()
        order = splits.by_hash(self._paths)
        lead = None
        while order and lead is None:
            lead = next(self._prepare([order.pop(0)]), None)
        held_out, left = {name for name in order if splits.is_held_out(name)}, set(order)
        training = self._prepare([name for name in self._paths if name in left and name not in held_out])
        first = next(training, None)
        if first is None:
            training, held_out = self._prepare(sorted(held_out)), set()
            first = next(training, None)
        if first is None:
            return {splits.TRAIN: self._noted(splits.TRAIN, [lead])} if lead else {}
        validation = itertools.chain([lead], self._prepare(sorted(held_out)))
        return {
            splits.TRAIN: self._noted(splits.TRAIN, itertools.chain([first], training)),
            splits.VALIDATION: self._noted(splits.VALIDATION, validation),
        }

    def _by_name(self) -> dict[str, Iterator[EncodedClip]]:
        found = {}
        for split in (splits.TRAIN, splits.VALIDATION):
            names = [name for name in self._paths if splits.is_held_out(name) == (split == splits.VALIDATION)]
            videos = self._prepare(names)
            if (first := next(videos, None)) is not None:
                found[split] = self._noted(split, itertools.chain([first], videos))
        return found

    def _prepare(self, names: Sequence[str]) -> Iterator[tuple[str, list[EncodedClip]]]:
        """(name, clips) of those videos that have any."""
        prepared = _map_ordered(
            lambda name: prepare_video(self._paths[name], self._source, self._settings), names, self._num_threads
        )
        for name, (clips, left_out) in zip(names, prepared, strict=True):
            self._bar.update()
            self.skipped.extend(left_out)
            if clips:
                yield name, clips

    def _noted(self, split: str, videos: Iterable[tuple[str, list[EncodedClip]]]) -> Iterator[EncodedClip]:
        made = self._made.setdefault(split, [])
        for name, clips in videos:
            made.append((name, len(clips), sum(clip.num_frames / clip.fps for clip in clips)))
            yield from clips

    def report(self) -> dict:
        """What was made and left out, once all clips were taken."""
        made = [entry for entries in self._made.values() for entry in entries]
        return {
            "videos": len(self._paths),
            "clips": sum(count for _, count, _ in made),
            "seconds": round(sum(seconds for *_, seconds in made), 2),
            "validation": {
                "videos": [name for name, *_ in self._made.get(splits.VALIDATION, [])],
                "clips": sum(count for _, count, _ in self._made.get(splits.VALIDATION, [])),
            },
            "skipped": [dataclasses.asdict(entry) for entry in self.skipped],
            "settings": dataclasses.asdict(self._settings),
        }


def prepare_video(
    path: pathlib.Path, root: pathlib.Path, settings: PrepareSettings
) -> tuple[list[EncodedClip], list[Skipped]]:
    """Turns a video below `root` into encoded clips and a list of what was left out; a bad video is all left out."""
    name = path.relative_to(root).as_posix()
    clips, skipped = [], []
    try:
        video = FrameSource(path, threads=1)
        info = reading.describe(video)
        thumbnails = np.concatenate([video.read(block, THUMBNAIL) for block in _blocks(range(len(video)))])
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
    """Encodes the frames first..last of a video without black bars, in parts of equal length; none of a tiny picture.

    picture: what is left of upright frames with square pixels without their bars.
    """
    info, (first, last) = reading.describe(video), shot
    shortest = min(picture.bottom - picture.top, picture.right - picture.left)
    if shortest < SMALLEST_SIDE:
        return
    scale = min(1.0, settings.short_side / shortest)
    size = (round(info.height * scale), round(info.width * scale))
    top, left = math.ceil(picture.top * scale), math.ceil(picture.left * scale)
    height = (min(round(picture.bottom * scale), size[0]) - top) // 2 * 2
    width = (min(round(picture.right * scale), size[1]) - left) // 2 * 2
    longest = LONGEST_PART if settings.max_seconds is None else settings.max_seconds * info.fps
    parts = math.ceil((last - first) / longest - 1e-6)
    for part, (start, end) in enumerate(itertools.pairwise(part_borders(last - first, parts))):
        blocks = _blocks(range(first + start, first + end))
        frames = (
            frame[top : top + height, left : left + width] for block in blocks for frame in video.read(block, size)
        )
        encoded = encode_video(frames, info.fps, crf=settings.crf, colour=_colour_of(video))
        yield EncodedClip(
            encoded,
            name=f"{name}/{first + start}",
            num_frames=end - start,
            fps=info.fps,
            height=height,
            width=width,
            shot=f"{name}/{first}",
            part=part,
            parts=parts,
            shot_frames=last - first,
        )


def _blocks(frames: range) -> Iterator[range]:
    """The frames in blocks that are read at once."""
    return (frames[start : start + READ_AT_ONCE] for start in range(0, len(frames), READ_AT_ONCE))


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


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "I/N". Raises ValueError where it is no part of a whole."""
    number, slash, count = text.partition("/")
    if not slash or not (number.isdecimal() and count.isdecimal()) or not int(number) < int(count) <= 99999:
        raise ValueError(f"--shard must be I/N with I from 0 to N - 1, such as 0/8, found {text!r}")
    return int(number), int(count)


def main(source: str, out: str) -> None:
    """Runs `prepare` for the command line, and prints what was made and skipped."""
    tfds.disable_progress_bar()  # of its own; ours counts videos
    options = flags.FLAGS
    seconds = options.min_seconds, options.max_seconds
    settings = PrepareSettings(options.short_side, *seconds, options.crf)
    shard = options.shard and parse_shard(options.shard)
    if shard:
        out = os.path.join(out, shard_name(*shard))
        if os.path.exists(out):
            print(f"{out} is there already")
            return
    with contextlib.redirect_stdout(None):  # tfds speaks of downloads there
        report = prepare(source, out, settings, options.threads, shard)
    for entry in report["skipped"]:
        frames = "" if entry["frames"] is None else f" frames {entry['frames'][0]}..{entry['frames'][1] - 1}"
        print(f"skipped {entry['video']}{frames}: {entry['reason']}")
    if not shard and not report["validation"]["clips"]:
        print("data.prepare: one video alone has clips: none is held out for validation", file=sys.stderr)
    held_out = f"{report['validation']['clips']} of them for validation"
    print(f"{report['clips']} clips, {held_out}, {report['seconds']} s, of {report['videos']} videos written to {out}")


if __name__ == "__main__":
    defaults = PrepareSettings()
    flags.DEFINE_integer("short_side", defaults.short_side, "Largest short side of a clip, in pixels.")
    flags.DEFINE_float("min_seconds", defaults.min_seconds, "Shots shorter than this are left out.")
    flags.DEFINE_float(
        "max_seconds", None, f"Shots longer than this are stored in parts; {LONGEST_PART} frames by default."
    )
    flags.DEFINE_integer("crf", defaults.crf, "H.264 quality: 0 is lossless, 51 the worst.", 0, 51)
    flags.DEFINE_string("shard", None, "I/N: part I of N of the videos, from 0, to a folder of OUT.")
    flags.DEFINE_integer("threads", os.cpu_count() or 1, "Videos prepared at once.", lower_bound=1)
    cli.run("data.prepare", main, "SOURCE", "OUT")
