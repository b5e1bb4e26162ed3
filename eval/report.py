"""A report of scores: the JSON file, the same as Markdown, and pictures beside it; all of them or none."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from eval.image_metrics import psnr
from eval.pictures import draw_curves, draw_page, encode_png
from m3ddm_jax.files.writing import new_file

_DIGITS = {"psnr_video": 2, "psnr_frame": 2, "colour_shift": 2, "known_error": 0, "fvd": 2, "vfid": 3, "bmse": 5}
_DIGITS |= {"warping_error": 6, "warping_error_truth": 6}
_CURVES = {"region_mse": "PSNR, dB", "region_ssim": "SSIM", "region_lpips": "LPIPS"}


def headline(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The numbers that a preset is quoted with: their short names, and (group, metric) in a mean."""
    preset, mean = report["preset"], report["mean"]
    wanted = {
        "PSNR": ("whole", f"psnr_{preset['psnr']}"),
        "SSIM": ("whole", "ssim"),
        "LPIPS": ("whole", "lpips"),
        "region PSNR": ("region", f"psnr_{preset['psnr']}"),
        "region SSIM": ("region", "ssim"),
        "region LPIPS": ("region", "lpips"),
        preset["distance"]["name"].upper(): ("distance", preset["distance"]["name"]),
        "KVD": ("distance", "kvd"),
        "flicker": ("motion", "flicker_ratio"),
        "seam": ("motion", "seam_ratio"),
        "sharpness": ("motion", "sharpness_ratio"),
    }
    return {label: path for label, path in wanted.items() if path[1] in mean.get(path[0], {})}


def table(report: dict[str, Any]) -> str:
    """The headline as a Markdown table: a row a region, and their mean; with three seeds, plus or minus a deviation."""
    columns = headline(report)
    rows = [[region["name"], *_cells(region, columns.values())] for region in report["regions"]]
    if len(rows) > 1:
        rows.append(["mean", *_cells(report, columns.values())])
    return _markdown([["region", *columns], *rows])


def to_markdown(report: dict[str, Any], pictures: list[str]) -> str:
    """The report as a page: what was measured, the headline, every metric of every clip (first seed), pictures."""
    preset = report["preset"]
    facts = {
        "preset": f"{preset['name']}, version {preset['version']}",
        "settings": _inline({name: value for name, value in preset.items() if name not in ("name", "version")}),
        **{name: _inline(report[name]) for name in ("split", "frames", "networks", "method", "seeds", "code", "jax")},
        **{f"no {name}": reason for name, reason in report["missing"].items()},
    }
    lines = [f"# {preset['name']}: {(report['method'] or {}).get('name', 'existing outputs')}", "", table(report), ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    for region in report["regions"]:
        first = region["runs"][0]
        lines += ["", f"## {region['name']}", ""]
        for size in region["frames"]:
            lines.append(f"- frames {size['size'][0]}x{size['size'][1]}: {describe_boxes(size)}")
        for name, (low, high) in first["intervals"].items():
            lines.append(f"- {name}: 95 % of choices of clips between {low:.4g} and {high:.4g}")
        lines += ["", _clip_table(first)]
    lines += ["", *(f"![{name}]({name})" for name in pictures)]
    return "\n".join(lines) + "\n"


def describe_boxes(frames: dict[str, Any]) -> str:
    """The generated region in pixels, of frames {"size": [width, height], "boxes": ...} of a report."""
    (width, height), boxes = frames["size"], frames["boxes"]
    if not boxes:
        return "masks from files"
    if len(boxes) > 1:
        return f"{len(boxes)} squares of {boxes[0][2] - boxes[0][0]} pixels, generated"
    left, top, right, bottom = boxes[0]
    across, down = f"{left}|{right - left}|{width - right}", f"{top}|{bottom - top}|{height - bottom}"
    return f"columns {across}, rows {down} (generated|known|generated)"


def _clip_table(run: dict[str, Any]) -> str:
    groups = {group: list(values) for group, values in run["clips"][0].items() if isinstance(values, dict)}
    paths = [(group, name) for group, names in groups.items() if group != "per_frame" for name in names]
    head = ["clip", "frames", *(name if group == "motion" else f"{group} {name}" for group, name in paths)]
    rows = [[clip["name"], str(clip["frames"]), *_cells({"mean": clip}, paths)] for clip in run["clips"]]
    return _markdown([head, *rows, ["mean", "", *_cells(run, paths)]])


def _cells(scores: dict[str, Any], paths) -> list[str]:
    """Numbers of scores["mean"], with those of scores["std"] where there are any."""
    cells = []
    for group, name in paths:
        digits, value = _DIGITS.get(name, 4), scores["mean"][group][name]
        cell = "-" if math.isnan(value) else f"{value:.{digits}f}"
        if scores.get("std") and not math.isnan(value):
            cell += f" ± {scores['std'][group][name]:.{digits}f}"
        cells.append(cell)
    return cells


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_inline(item)}" for name, item in value.items())
    return "none" if value is None else str(value)


def check_writable(path: str | os.PathLike) -> None:
    """Raises ValueError where a report could not be written."""
    path = pathlib.Path(path)
    if path.is_dir() or path.suffix != ".json":
        raise ValueError(f"the report {path} must be a file that ends in .json")
    if not path.resolve().parent.is_dir():
        raise ValueError(f"the report {path} cannot be written: its folder does not exist")
    if not os.access(path.resolve().parent, os.W_OK):
        raise ValueError(f"the report {path} cannot be written: its folder is read-only")


def write(path: str | os.PathLike, report: dict[str, Any], pictures: dict[str, list[np.ndarray]]) -> list[str]:
    """Writes NAME.json, NAME.md, NAME.REGION.png (a row a clip) and NAME.frames.png; returns the names of the files.

    Values that do not exist are null. All is written beside first, then renamed.
    """
    path = pathlib.Path(path)
    stem = path.name.removesuffix(".json")
    images = {f"{stem}.{region['name']}.png": draw_page(*_strips(region, pictures)) for region in report["regions"]}
    images[f"{stem}.frames.png"] = draw_curves(list(_panels(report)))
    files = {name: encode_png(image) for name, image in images.items()}
    files[f"{stem}.md"] = to_markdown(report, list(images)).encode()
    files[path.name] = (json.dumps(_without_nan(report), indent=1, allow_nan=False) + "\n").encode()
    with contextlib.ExitStack() as stack:
        for name, data in reversed(files.items()):  # all are written before the first is renamed, the JSON is the last
            stack.enter_context(new_file(path.with_name(name))).write_bytes(data)
    return list(files)


def _strips(region: dict[str, Any], pictures: dict[str, list[np.ndarray]]) -> tuple[list[str], list[np.ndarray]]:
    return [clip["name"] for clip in region["runs"][0]["clips"]], pictures[region["name"]]


def _panels(report: dict[str, Any]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """(title, curves over frames, one a clip) of each region and metric, first seed."""
    for region in report["regions"]:
        clips = [clip["per_frame"] for clip in region["runs"][0]["clips"]]
        for metric, title in _CURVES.items():
            if metric in clips[0]:
                show = psnr if metric == "region_mse" else np.asarray
                yield f"{region['name']}, generated region: {title}", [show(clip[metric]) for clip in clips]


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
