"""Prepares training data: a folder of videos or frame folders becomes ArrayRecord shards of short clips.

    python -m data.prepare SOURCE OUT [--short-side=256] [--min-seconds=2] [--max-seconds=4] [--crf=18] [--threads=N]

Every video is split at its cuts; black bars are cropped away; shots in which nothing moves and shots that are too short
or too small are left out, and so are files that cannot be read. What remains is cut to clips of equal length, scaled
once and re-encoded with a key frame every 12 frames. OUT holds a TFDS data set and `report.json`: what was made, what
was skipped and why. It must not exist before, and appears when all is done.
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
import tempfile
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import app, flags, logging

from data import shots, sources
from data.builders.clips import Clips
from data.decode import VideoInfo
from data.encode import EncodedClip, encode_video

SMALLEST_SIDE = 64
SAMPLES = 12


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

    Raises ValueError where `out` exists and where nothing usable is found; nothing is left behind then.
    """
    settings, source, out = settings or PrepareSettings(), pathlib.Path(source), pathlib.Path(out)
    if out.exists():
        raise ValueError(f"{out} exists already")
    paths = sources.find_videos(source)
    results = _map_ordered(lambda path: prepare_video(path, source, settings), paths, num_threads)
    skipped: list[Skipped] = []
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
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
        builder = Clips(itertools.chain([first], clips), data_dir=beside)
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
        made = pathlib.Path(builder.data_dir)
        (made / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        shutil.move(made, out)
    return report


def prepare_video(
    path: pathlib.Path, root: pathlib.Path, settings: PrepareSettings
) -> tuple[list[EncodedClip], list[Skipped]]:
    """Turns a video below `root` into encoded clips and a list of what was left out; a bad video is all left out."""
    name = path.relative_to(root).as_posix()
    clips, skipped = [], []
    try:
        info = sources.probe_path(path)
        thumbnails = np.stack(list(sources.stream_path(path, shots.THUMBNAIL)))[: info.num_frames]
        borders = [0, *shots.find_cuts(thumbnails), len(thumbnails)]
        for first, last in itertools.pairwise(borders):
            if shots.is_still(thumbnails[first:last]):
                skipped.append(Skipped(name, (first, last), "nothing moves"))
            elif last - first < settings.min_seconds * info.fps - 0.5:
                skipped.append(Skipped(name, (first, last), f"shorter than {settings.min_seconds:g} s"))
            else:
                made = list(encode_shot(path, name, info, (first, last), settings))
                clips += made
                if not made:
                    skipped.append(Skipped(name, (first, last), f"smaller than {SMALLEST_SIDE} pixels"))
    except (ValueError, OSError) as error:
        return [], [Skipped(name, None, f"unreadable: {error}")]
    return clips, skipped


def encode_shot(
    path: pathlib.Path, name: str, info: VideoInfo, shot: tuple[int, int], settings: PrepareSettings
) -> Iterator[EncodedClip]:
    """Cuts the frames first..last of a video to clips of equal length without black bars; none of a tiny picture."""
    first, last = shot
    samples = np.linspace(first, last - 1, min(SAMPLES, last - first)).astype(int).tolist()
    picture = shots.find_picture(sources.read_path(path, samples, packets=info.packets))
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
        frames = sources.read_path(path, range(start, end), size, info.packets)
        frames = frames[:, top : top + height, left : left + width]
        encoded = encode_video(frames, info.fps, crf=settings.crf)
        yield EncodedClip(encoded, f"{name}/{start}", end - start, info.fps, height, width)


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


def main(arguments: list[str]) -> None:
    """Runs `prepare` for the command line; exits 2 with one line where it cannot."""
    options = flags.FLAGS
    logging.set_verbosity(logging.WARNING)
    tfds.disable_progress_bar()  # of its own; ours counts videos
    try:
        if len(arguments) != 3:
            raise ValueError(f"SOURCE and OUT are needed, found {arguments[1:]}")
        settings = PrepareSettings(
            *(options[name].value for name in ("short-side", "min-seconds", "max-seconds", "crf"))
        )
        with contextlib.redirect_stdout(None):  # tfds speaks of downloads there
            report = prepare(*arguments[1:], settings, options.threads)
    except (ValueError, OSError) as error:
        print(f"data.prepare: {error}", file=sys.stderr)
        sys.exit(2)
    for entry in report["skipped"]:
        frames = "" if entry["frames"] is None else f" frames {entry['frames'][0]}..{entry['frames'][1] - 1}"
        print(f"skipped {entry['video']}{frames}: {entry['reason']}")
    print(f"{report['clips']} clips, {report['seconds']} s, of {report['videos']} videos written to {arguments[2]}")


if __name__ == "__main__":
    defaults = PrepareSettings()
    flags.DEFINE_integer("short-side", defaults.short_side, "Largest short side of a clip, in pixels.")
    flags.DEFINE_float("min-seconds", defaults.min_seconds, "Shots shorter than this are left out.")
    flags.DEFINE_float("max-seconds", defaults.max_seconds, "Shots longer than this become several clips.")
    flags.DEFINE_integer("crf", defaults.crf, "H.264 quality: 0 is lossless, 51 the worst.", 0, 51)
    flags.DEFINE_integer("threads", os.cpu_count() or 1, "Videos prepared at once.", lower_bound=1)
    app.run(main)
