"""What --what=train reports of a run, which here is made up."""

import json
import pathlib

import jax
import pytest

from configs import m3ddm_tiny
from m3ddm_jax import bench
from m3ddm_jax.measure.chips import CHIPS, Chip


def test_a_run_is_reported_by_its_steady_steps(monkeypatch):
    seconds = [9.0, 8.0, 2.0, 2.5, 1.0, 2.0, 4.0]  # the first two warm up

    def train(config, workdir):
        lines = [{"step_seconds": t, "frames_per_second": 16 / t, "input_wait_seconds": t / 10} for t in seconds]
        assert config.train.steps == len(lines)
        pathlib.Path(workdir, "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr(bench, "train", train)
    monkeypatch.setitem(CHIPS, "cpu", Chip(1e9, 2**30, 1e9))
    result = bench.measure_training(m3ddm_tiny.get_config())
    assert (result["step_seconds"], result["frames_per_second"], result["input_wait_seconds"]) == (2.0, 8.0, 0.2)
    assert (result["step_spread"], result["clips_per_second"]) == (1.5, 4.0)
    assert result["devices"] == f"{jax.device_count()} x cpu" and result["peak MiB"] > 0
    # The codec has no weights: all operations are the network's own.
    assert result["TFLOP/s a device"] == pytest.approx(result["TFLOP a device"] / 2)
    assert result["MFU"] == pytest.approx(result["TFLOP/s a device"] * 1e12 / 1e9)
