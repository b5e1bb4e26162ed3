"""What --what=train reports of a run, which here is made up."""

import json
import pathlib
import runpy

import jax
import pytest

from configs import m3ddm_tiny
from m3ddm_jax import bench
from m3ddm_jax.benchmarks import plan, training
from m3ddm_jax.measure.chips import CHIPS, Chip
from m3ddm_jax.recipes import RECIPES
from m3ddm_jax.training.profile import profiled

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_a_run_is_reported_by_its_steady_steps(monkeypatch):
    seconds = [9.0, 8.0, 2.0, 2.5, 1.0, 2.0, 4.0]  # the first two warm up

    def train(config, workdir):
        assert config.train.profile == "traces"
        lines = [{"step_seconds": t, "frames_per_second": 16 / t, "input_wait_seconds": t / 10} for t in seconds]
        assert config.train.steps == len(lines)
        pathlib.Path(workdir, "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr(bench, "train", train)
    monkeypatch.setitem(CHIPS, "cpu", Chip(1e9, 2**30, 1e9))
    result = bench.measure_training(m3ddm_tiny.get_config(), 5, profile="traces")
    assert (result["step seconds p50"], result["frames_per_second"], result["input_wait_seconds"]) == (2.0, 8.0, 0.2)
    assert (result["step seconds p90"], result["clips_per_second"]) == (pytest.approx(3.4), 4.0)
    assert result["warm-up seconds"] == 17.0 and result["steps"] == 5
    assert result["devices"] == f"{jax.device_count()} x cpu" and result["peak MiB"] > 0
    # The codec has no weights: all operations are the network's own.
    assert result["TFLOP/s a device"] == pytest.approx(result["TFLOP a device"] / 2)
    assert result["MFU"] == pytest.approx(result["TFLOP/s a device"] * 1e12 / 1e9)
    assert result["MFU with frozen encoders"] == result["MFU"]


def test_plan_and_bench_mean_the_same_by_mfu(monkeypatch):
    """The same made-up operations in the same time."""
    monkeypatch.setitem(CHIPS, "cpu", Chip(1e9, 2**40, 1e9))
    counts = iter((8e9, 2e9))
    config = m3ddm_tiny.get_config()
    program = plan.make_program(config, jax.devices(), "train")
    monkeypatch.setattr(plan.PlannedProgram, "count", lambda *_: next(counts))
    planned = plan.operations(config, program)
    assert planned["MFU with frozen encoders"] == pytest.approx(0.4) and planned["MFU"] == pytest.approx(0.3)
    counted = {name: planned[name] for name in ("TFLOP", "TFLOP a device", "TFLOP of frozen encoders")}
    seconds = planned["seconds at 40% of the peak"]
    measured = training.summarise(config, counted, [seconds] * 3, moved=5e8)
    names = [name for name in planned if "MFU" in name or "TFLOP/s" in name]
    assert len(names) == 4 and all(measured[name] == pytest.approx(planned[name]) for name in names)
    # A device computes for a second at least, and moves bytes for half of one.
    assert (measured["seconds at least"], measured["seconds of memory"]) == (1.0, 0.5)


@pytest.fixture
def toy(monkeypatch):
    """The config of a recipe that compiles in a second."""
    recipe = runpy.run_path(str(ROOT / "tests" / "parallel" / "toy_recipe.py"))["ToyRecipe"]
    monkeypatch.setitem(RECIPES, "toy", recipe)
    config = m3ddm_tiny.get_config()
    config.recipe = "toy"
    return config


def test_batches_on_the_devices_need_no_clips(toy):
    result = training.measure_on_device(toy, 4)
    assert result["steps"] == 4 and result["step seconds p99"] >= result["step seconds p50"] > 0
    assert result["GiB moved a device"] > 0 and result["warm-up seconds"] > 0


@pytest.mark.slow
def test_a_profile_is_a_folder_that_tensorboard_reads(toy, tmp_path):
    training.measure_on_device(toy, 4, str(tmp_path))
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_a_trace_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), profiled(None, str(tmp_path / "file" / "trace")):
        pass


def test_a_trace_ends_with_what_is_traced(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    with profiled(events.append, str(tmp_path), skipped=1, traced=2) as step:
        for number in range(4):
            step(number)
    assert events == [0, "start", 1, 2, "stop", 3]
    with profiled(events.append, str(tmp_path), skipped=0) as step:
        step(4)
    assert events[-3:] == ["start", 4, "stop"]


def test_a_sweep_point_that_fails_is_a_row(toy):
    def measure(config):
        if config.train.batch_size == 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nand more")
        return {"steps": config.train.batch_size}

    rows = list(training.sweep(toy, "train.batch_size=2,4 model.dtype=float32,bfloat16", measure))
    assert [row["point"]["train.batch_size"] for row in rows] == [2, 2, 4, 4]
    assert rows[1]["result"] == {"steps": 2} and rows[1]["point"]["model.dtype"] == "bfloat16"
    assert rows[2]["error"] == "RESOURCE_EXHAUSTED: out of memory and more" and rows[2]["schema"] == training.SCHEMA
    for wrong in ("train.nothing=1", "train.batch_size", "train.batch_size=many"):
        with pytest.raises(ValueError, match=f"sweep over '{wrong}'"):
            training.points(toy, wrong)
