import json
import pathlib
import subprocess
import sys

import pytest

from configs import test as miniature
from m3ddm_jax import bench

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_forward_is_compared_with_the_convolution_of_the_same_run(monkeypatch, quick_compiles):
    monkeypatch.setattr(bench, "REPEATS", 1)
    result = bench.bench_forward(miniature.get_config())
    assert result["forward_in_convolutions"] == result["forward_seconds"] / result["convolution_seconds"] > 0


def test_forward_without_torch_reports_seconds_alone(monkeypatch, quick_compiles):
    monkeypatch.setattr(bench, "REPEATS", 1)
    monkeypatch.setattr(bench, "_torch_convolution", lambda: None)
    result = bench.bench_forward(miniature.get_config())
    assert result["forward_seconds"] > 0 and "no yardstick" in result["note"]
    assert "forward_in_convolutions" not in result


def test_a_failing_command_is_told_in_one_line():
    with pytest.raises(ValueError, match="data.synthetic failed: .*nowhere.txt"):
        bench.run_module("data.synthetic", "nowhere.txt")


def test_surroundings_are_plain_json():
    about = json.loads(json.dumps(bench.surroundings()))
    assert {"jax", "numpy"} <= about["versions"].keys() and about["processor"] and about["cores"] > 0


def test_table_has_a_line_a_number():
    assert bench.table({"seconds": 1.23456, "parameters": 7}) == "seconds     1.235\nparameters  7"


def test_command_refuses_bad_input_with_one_line():
    command = [sys.executable, "-m", "m3ddm_jax.bench", "--what=nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "forward" in done.stderr and done.stderr.count("\n") == 1
