"""A report of scores: the JSON file and the table."""

import json
import math
import os
import pathlib
from typing import Any

from eval.image_metrics import mean_of_existing

AREAS = ("whole", "region")
METRICS = ("psnr_video", "psnr_frame", "ssim")


def mean_scores(scores: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Mean of {"whole", "region"} -> {metric: value} over clips or ratios, each value over those that have it."""
    return {area: {name: mean_of_existing([s[area][name] for s in scores]) for name in METRICS} for area in AREAS}


def write_json(path: str | pathlib.Path, report: dict[str, Any]) -> None:
    """Writes a report, values that do not exist as null; beside the file first, then renamed."""
    path = pathlib.Path(path)
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_text(json.dumps(_without_nan(report), indent=1, allow_nan=False) + "\n")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table: a row a clip, the mean of each region, and the mean of those."""
    head = ["region", "clip", "frames", *(f"{area} {name}" for area in AREAS for name in METRICS)]
    rows = []
    for region in report["regions"]:
        rows += [[region["name"], clip["name"], str(clip["frames"]), *_cells(clip)] for clip in region["clips"]]
        rows.append([region["name"], "mean", "", *_cells(region["mean"])])
    if len(report["regions"]) > 1:
        rows.append(["mean", "", "", *_cells(report["mean"])])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [head, *rows]]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(scores: dict[str, dict[str, float]]) -> list[str]:
    values = [(scores[area][name], 4 if name == "ssim" else 2) for area in AREAS for name in METRICS]
    return ["-" if math.isnan(value) else f"{value:.{digits}f}" for value, digits in values]


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
