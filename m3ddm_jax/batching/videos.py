"""The list of a batch: a folder, a pattern or a table of videos, and where the result of each goes."""

import csv
import glob
import io
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from m3ddm_jax.api.targets import parse_target
from m3ddm_jax.batching.job import Job
from m3ddm_jax.files.places import check_apart
from m3ddm_jax.video.finding import find_videos
from m3ddm_jax.video.sink import VIDEO_SUFFIXES

COLUMNS = ("video", "aspect", "size", "pad", "anchor", "mask")
REPORT = "report.jsonl"
_TARGETS = ("aspect", "size", "pad")


def list_jobs(sources: str, out: str, usual: Mapping[str, str | None]) -> list[Job]:
    """The videos of a folder, a pattern such as "clips/*.mp4" or a table (.csv), in natural or their given order.

    A table has a line of COLUMNS, of which `video` is required; its paths are relative to the table. usual: aspect,
    size, pad, anchor and mask of videos that have none of their own, as texts. A video is written to `out` under its
    name, those of a folder under their path in it.
    Raises ValueError for no video, a line of a table that is not of the form, and two videos of one name.
    """
    parse_target(usual)
    if sources.lower().endswith(".csv"):
        rows = _read_table(pathlib.Path(sources), usual)
    else:
        rows = [(f"{path}", path, name, usual) for path, name in _find(sources)]
    jobs, places = [], {}
    for where, video, name, texts in rows:
        try:
            job = Job(str(video), str(_output(pathlib.Path(out), video, name)), _target(texts))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if job.output in places:
            raise ValueError(f"{places[job.output]} and {job.video} would both be written to {job.output}")
        places[job.output] = job.video
        jobs.append(job)
    check_apart([("output", out)], [("source", sources if os.path.isdir(sources) else None)])
    return jobs


def _find(sources: str) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Videos, and their names below the output folder."""
    if os.path.isdir(sources):
        root = pathlib.Path(sources)
        return [(path, path.relative_to(root)) for path in find_videos(root)]
    paths = [pathlib.Path(path) for path in sorted(glob.glob(sources, recursive=True))]
    if not paths:
        raise ValueError(f"there is no file, folder or table {sources}")
    return [(path, pathlib.Path(path.name)) for path in paths]


def _read_table(path: pathlib.Path, usual: Mapping[str, str | None]) -> list[tuple[str, pathlib.Path, Any, Any]]:
    """A line of each video: where it stands in the table, its path, its name and its texts."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    reader, rows = csv.reader(io.StringIO(text)), []
    header = [name.strip() for name in next(reader, [])]
    if "video" not in header or set(header) - set(COLUMNS) or len(set(header)) < len(header):
        raise ValueError(f"{path} line 1: columns must be video and any of {', '.join(COLUMNS[1:])}, found {header}")
    for cells in reader:
        where = f"{path} line {reader.line_num}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise ValueError(f"{where}: {len(header)} cells are needed, found {len(cells)}")
        row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        if not row["video"]:
            raise ValueError(f"{where}: no video is named")
        video = path.parent / row.pop("video")
        if row.get("mask"):
            row["mask"] = str(path.parent / row["mask"])
        rows.append((where, video, pathlib.Path(video.name), _with_usual(row, usual)))
    if not rows:
        raise ValueError(f"{path} names no video")
    return rows


def _with_usual(row: Mapping[str, str], usual: Mapping[str, str | None]) -> dict[str, str | None]:
    """The texts of a line, and the usual ones where it has none; a size replaces the usual aspect, and so on."""
    own = {name: text for name, text in row.items() if text}
    sized = any(name in own for name in _TARGETS)
    left = {name: text for name, text in usual.items() if not (sized and name in _TARGETS)}
    if "pad" in own:
        left["anchor"] = None
    return {**left, **own}


def _target(texts: Mapping[str, str | None]) -> dict[str, Any]:
    target = parse_target(texts)
    if not any(name in target for name in (*_TARGETS, "mask")):
        raise ValueError("one of `aspect`, `size`, `pad` and `mask` is needed, found none")
    return target


def _output(out: pathlib.Path, video: pathlib.Path, name: pathlib.Path) -> pathlib.Path:
    """Where the result of a video goes: its own kind of file if that can be written, otherwise .mp4; a folder of PNG
    for a folder of images."""
    if video.is_dir():
        return out / (name if name.name else video.resolve().name)
    return out / (name if name.suffix.lower() in VIDEO_SUFFIXES else name.with_suffix(".mp4"))
