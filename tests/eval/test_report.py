import json

import cv2
import numpy as np
import pytest

from eval import report
from eval.protocol import PRESETS

NAN = float("nan")


def scores(value, distance=True):
    areas = {area: {"psnr_video": value, "psnr_frame": value + 1, "ssim": value / 100} for area in ("whole", "region")}
    motion = {"flicker_ratio": 1.0, "seam_ratio": 0.5, "sharpness_ratio": NAN}
    return {**areas, "motion": motion, **({"distance": {"fvd": 2.5, "kvd": -0.25}} if distance else {})}


@pytest.fixture
def result():
    per_frame = {"region_mse": [0.01, 0.001], "region_ssim": [0.5, NAN]}
    values = {"a": 20.0, "b": NAN}
    clips = [{"name": k, "frames": 2, **scores(v, False), "per_frame": per_frame} for k, v in values.items()]
    run = {"seed": 0, "mean": scores(20.0), "intervals": {"fvd": [2.0, 3.0]}, "clips": clips}
    frames = [{"size": [256, 256], "boxes": [[32, 0, 224, 256]]}]
    region = {"name": "0.25", "frames": frames, "mean": scores(20.0), "std": None, "runs": [run]}
    facts = dict.fromkeys(("split", "networks", "frames", "method", "code", "jax"))
    return {
        **facts,
        "preset": PRESETS["strict"].describe(),
        "missing": {"lpips": "no weights: --lpips=FOLDER"},
        "seeds": [0],
        "mean": scores(25.0),
        "std": None,
        "regions": [region, {**region, "name": "0.66", "mean": scores(30.0)}],
    }


@pytest.fixture
def pictures():
    return {name: [np.zeros((20, 80, 3), np.uint8)] * 2 for name in ("0.25", "0.66")}


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_headline_is_the_presets(result):
    head, _, *rows = cells(report.table(result))
    assert head[:6] == ["region", "PSNR", "SSIM", "region PSNR", "region SSIM", "FVD"] and "LPIPS" not in head
    expected = [["0.25", "20.00", "0.2000"], ["0.66", "30.00", "0.3000"], ["mean", "25.00", "0.2500"]]
    assert [row[:3] for row in rows] == expected
    assert rows[0][head.index("sharpness")] == "-"
    result["preset"] = PRESETS["m3ddm_plus"].describe()
    assert cells(report.table(result))[2][1] == "21.00", "the mean of the frames' PSNR"


def test_one_region_needs_no_mean_and_seeds_show_their_deviation(result):
    result["regions"] = [{**result["regions"][0], "std": scores(0.5)}]
    rows = cells(report.table(result))[2:]
    assert len(rows) == 1 and rows[0][1] == "20.00 ± 0.50"


def test_the_page_says_everything(result):
    page = report.to_markdown(result, ["x.png"])
    for text in (
        "# strict: existing outputs",
        "columns 32|192|32, rows 0|256|0",
        "- no lpips: no weights: --lpips=FOLDER",
        "fvd: 95 % of choices of clips between 2 and 3",
        "bn_epsilon 0.001",
        "![x.png](x.png)",
        "| b ",
    ):
        assert text in page, text


def test_boxes_in_words():
    squares = {"size": [64, 48], "boxes": [[0, 0, 6, 6], [20, 0, 26, 6]]}
    assert report.describe_boxes(squares) == "2 squares of 6 pixels, generated"
    assert report.describe_boxes({"size": [64, 48], "boxes": []}) == "masks from files"


def test_all_files_and_nothing_else(tmp_path, result, pictures):
    names = report.write(tmp_path / "out.json", result, pictures)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert names[-1] == "out.json" and {"out.0.25.png", "out.0.66.png", "out.frames.png", "out.md"} < set(names)
    for name in names[:3]:
        assert cv2.imread(str(tmp_path / name)) is not None

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)
    assert read["mean"]["motion"]["sharpness_ratio"] is None and read["mean"]["whole"]["psnr_video"] == 25.0
    assert read["regions"][0]["runs"][0]["clips"][0]["per_frame"]["region_ssim"] == [0.5, None]


def test_an_old_report_survives_a_failure(tmp_path, result, pictures, monkeypatch):
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(ValueError):
        report.write(path, {**result, "infinite": float("inf")}, pictures)

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(report.pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        report.write(path, result, pictures)
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"] and path.read_text() == "old"


def test_paths_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "folder.json").mkdir()
    for path, message in (
        (tmp_path / "folder.json", "must be a file"),
        (tmp_path / "report.txt", r"ends in \.json"),
        (tmp_path / "nowhere" / "out.json", "folder does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            report.check_writable(path)
    report.check_writable(tmp_path / "out.json")
