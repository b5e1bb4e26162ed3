import json
import math

import pytest

from eval import report

NAN = float("nan")


def scores(value, region=None):
    region = value if region is None else region
    return {
        "whole": dict.fromkeys(report.METRICS, value),
        "region": dict.fromkeys(report.METRICS, region),
    }


@pytest.fixture
def result():
    clips = [{"name": "a", "frames": 2, **scores(20.0, NAN)}, {"name": "b", "frames": 3, **scores(30.0)}]
    region = {"name": "0.25", "clips": clips, "mean": report.mean_scores(clips)}
    return {"regions": [region, {**region, "name": "0.66"}], "mean": report.mean_scores([region["mean"]])}


def test_mean_is_over_what_exists():
    mean = report.mean_scores([scores(20.0, NAN), scores(30.0)])
    assert mean["whole"]["ssim"] == 25.0 and mean["region"]["ssim"] == 30.0
    assert math.isnan(report.mean_scores([scores(1.0, NAN)])["region"]["psnr_video"])


def test_json_is_valid_and_missing_values_are_null(tmp_path, result):
    path = tmp_path / "out.json"
    report.write_json(path, result)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads(path.read_text(), parse_constant=refuse)
    assert read["regions"][0]["clips"][0]["region"]["ssim"] is None
    assert read["mean"]["whole"]["psnr_video"] == 25.0
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]


def test_an_old_report_survives_a_failure(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(ValueError):
        report.write_json(path, {"infinite": float("inf")})
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"] and path.read_text() == "old"


def test_table_has_a_row_for_each_clip_and_mean(result):
    lines = report.table(result).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in lines}) == 1
    assert [row[:3] for row in cells[2:]] == [
        ["0.25", "a", "2"],
        ["0.25", "b", "3"],
        ["0.25", "mean", ""],
        ["0.66", "a", "2"],
        ["0.66", "b", "3"],
        ["0.66", "mean", ""],
        ["mean", "", ""],
    ]
    assert cells[2][3:] == ["20.00", "20.00", "20.0000", "-", "-", "-"]
