"""The whole trainer on synthetic clips: resume, stopping, what it leaves behind and what it refuses."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import test as test_config
from m3ddm_jax import train as trainer
from m3ddm_jax.weights import load_autoencoder, load_model, load_settings

ROOT = pathlib.Path(__file__).resolve().parents[1]


def make_config(devices=1, **train):
    config = test_config.get_config()
    config.train.update(train)
    config.mesh.update({1: {"data": 1, "fsdp": 1}, 8: {"data": 2, "fsdp": 4}}[devices])
    return config


def run(workdir, steps, devices=1):
    return trainer.train(make_config(devices, steps=steps, save_every=2), workdir, jax.devices()[:devices])


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def assert_bitwise(a, b):
    plain = (jax.tree.map(lambda x: jax.random.key_data(x) if x.dtype == a.rng.dtype else x, tree) for tree in (a, b))
    jax.tree.map(np.testing.assert_array_equal, *plain)


@pytest.fixture(scope="module", params=[1, 8])
def straight(request, quick_compiles, tmp_path_factory):
    """(devices, workdir, state) of 4 updates in one run, with checkpoints after 2 and 4."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    return request.param, workdir, run(workdir, 4, request.param)


def halved(workdir, target):
    """The run as it was when it had made and saved 2 updates."""
    shutil.copytree(workdir, target, ignore=shutil.ignore_patterns("model"))
    shutil.rmtree(target / "checkpoints" / "4")
    return target


def test_two_and_two_updates_are_four_bitwise(straight, tmp_path):
    devices, workdir, state = straight
    resumed = halved(workdir, tmp_path / "run")
    assert_bitwise(run(resumed, 4, devices), state)
    assert losses(resumed) == losses(workdir) and list(losses(workdir)) == [1, 2, 3, 4]
    files = [folder / "model" / "weights.safetensors" for folder in (workdir, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("straight", [8], indirect=True)
def test_a_run_of_eight_devices_goes_on_with_one(straight, tmp_path):
    _, workdir, _ = straight
    resumed = halved(workdir, tmp_path / "run")
    run(resumed, 4, devices=1)
    np.testing.assert_allclose(list(losses(resumed).values()), list(losses(workdir).values()), rtol=1e-4)


def test_the_exported_folder_is_the_averaged_model(straight):
    _, workdir, state = straight
    module, variables = load_model(workdir / "model")
    jax.tree.map(np.testing.assert_array_equal, variables["params"], jax.device_get(state.ema_params))
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], jax.device_get(state.batch_stats))
    assert module.block_out_channels == (16, 32)
    assert load_autoencoder(workdir / "model")[0].downscale == 8
    settings = load_settings(workdir / "model")
    assert settings["diffusion"]["prediction"] == "v_prediction" and settings["sample"]["num_frames"] == 2
    # Calibrated once before the first update: nothing is left of the initial 0 and 1.
    means = [np.asarray(leaf) for leaf in jax.tree.leaves(variables["batch_stats"])]
    assert all(np.any(leaf != 0) and np.any(leaf != 1) for leaf in means)


def test_a_checkpoint_of_another_network_is_refused(straight, tmp_path):
    devices, workdir, _ = straight
    config = make_config(devices, steps=5)
    config.model.num_heads = 4
    with pytest.raises(ValueError, match="model.num_heads is 2 there and 4 here"):
        trainer.train(config, workdir, jax.devices()[:devices])


def test_a_loss_that_is_not_finite_stops_and_names_the_clips(quick_compiles, tmp_path, monkeypatch):
    put, calls = trainer.put_batch, []

    def put_badly(mesh, batch):
        calls.append(batch)
        bad = len(calls) == 4  # the first is for calibration
        return put(mesh, batch | {"fps": batch["fps"] * np.float32(np.nan)} if bad else batch)

    monkeypatch.setattr(trainer, "put_batch", put_badly)
    with pytest.raises(FloatingPointError, match=r"step 3: loss nan, .*clips of its batch: synthetic/\d+@"):
        trainer.train(make_config(steps=9, save_every=3), tmp_path / "run", jax.devices()[:1])
    assert list(losses(tmp_path / "run")) == [1, 2]
    assert not [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]


def command(workdir, *overrides):
    overrides = ["--config.mesh.data=2", "--config.mesh.fsdp=4", *overrides]
    return [sys.executable, "-m", "m3ddm_jax.train", "--config=configs/test.py", f"--workdir={workdir}", *overrides]


def test_sigterm_finishes_the_step_saves_exports_and_exits_0(quick_compiles, tmp_path):
    workdir = tmp_path / "run"
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": quick_compiles, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    process = subprocess.Popen(
        command(workdir, "--config.train.steps=1000000"),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 2/"):
            break
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    (saved,) = [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert int(saved) == max(losses(workdir)) >= 2
    load_model(workdir / "model")


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["--config.train.learning_rat=1"], "learning_rat"),
        (["--config=configs/nowhere.py"], "there is no config file configs/nowhere.py"),
        (["--config.train.batch_size=6", "--config.train.accumulate=4"], "a batch of 6 clips does not divide"),
    ],
)
def test_a_bad_config_is_one_line_and_exit_2(tmp_path, overrides, said):
    workdir = tmp_path / "run"
    done = subprocess.run(command(workdir, *overrides), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not workdir.exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.train.update(steps=0), "steps is 0"),
        (lambda c: c.mesh.update(data=3), "does not fill 1 device"),
        (lambda c: c.model.update(dtype="float7"), "dtype 'float7' is unknown"),
        (lambda c: c.train.update(export_dtype="float7"), "export_dtype 'float7' is unknown"),
        (lambda c: c.model.update(kind="gan"), "model kind 'gan' is unknown"),
        (lambda c: c.diffusion.update(schedule="square"), "schedule 'square' is unknown"),
        (lambda c: c.diffusion.update(prediction="y"), "prediction 'y' is unknown"),
        (lambda c: c.train.update(drop_local=1.5), "drop_local is 1.5"),
        (lambda c: c.data.update(buckets=((32, 40),)), r"bucket \(32, 40\): both sides must be multiples of 16"),
        (lambda c: c.data.update(sources=({"kind": "videos", "path": "nowhere", "weight": 1.0},)), "nowhere"),
        (lambda c: c.__delitem__("sample"), "no section sample"),
        (lambda c: c.train.update(surplus=1), "has surplus that is not known"),
    ],
)
def test_values_that_do_not_fit(tmp_path, change, message):
    config = make_config()
    change(config)
    with pytest.raises(ValueError, match=message):
        trainer.train(config, tmp_path / "run", jax.devices()[:1])
    assert not (tmp_path / "run").exists()


def test_a_data_position_survives_another_batch_size():
    assert trainer.steps_drawn(24, 8) == 3
    with pytest.raises(ValueError, match="has seen 24 clips: batches of 16 do not divide"):
        trainer.steps_drawn(24, 16)
