"""The whole trainer on synthetic clips and on latents: resume, stopping, what it leaves behind and what it refuses."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from configs import m3ddm_tiny
from m3ddm_jax import precompute
from m3ddm_jax import train as trainer
from m3ddm_jax.models import registry
from m3ddm_jax.training.state import State
from m3ddm_jax.weights import load_autoencoder, load_model, load_settings, save_model

pytestmark = pytest.mark.usefixtures("quick_init")

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def whole_shards():
    """Replicated arrays are written whole: Orbax compiles a program for each part that a replica would write.

    tests/training/test_checkpoint.py saves from eight devices in parts.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ocp.type_handlers.get_type_handler(jax.Array), "_use_replica_parallel", False)
        yield


def save_codec(folder, seed=0):
    """A KL autoencoder of few and random weights."""
    module = registry.build("autoencoder", block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)
    rng = np.random.default_rng(seed)
    shapes = registry.abstract_variables(module)
    save_model(folder, module, jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes))


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec") / "autoencoder"
    save_codec(folder)
    return str(folder)


# A network of one level: a second takes long to compile.
SIZES = {"block_out_channels": (32,), "attention_levels": (False,)}


def make_config(codec, devices=1, latents=None, **train):
    config = m3ddm_tiny.get_config(codec)
    config.model.update(SIZES)
    config.train.update(train)
    config.mesh.update({1: {"data": 1, "fsdp": 1}, 8: {"data": 2, "fsdp": 4}}[devices])
    if latents:
        config.data.sources = ({"kind": "latents", "path": latents, "weight": 1.0},)
    return config


@pytest.fixture(scope="module")
def latents(codec, tmp_path_factory):
    """A folder of the latents of 24 clips."""
    folder = tmp_path_factory.mktemp("latents") / "folder"
    config = make_config(codec)
    assert not precompute.precompute(config, folder, 24, batch_size=8, examples_per_shard=8, devices=jax.devices()[:1])
    return str(folder)


def run(config, workdir):
    return trainer.train(config, workdir, jax.devices()[: config.mesh.data * config.mesh.fsdp])


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def assert_bitwise(a, b):
    plain = (jax.tree.map(lambda x: jax.random.key_data(x) if x.dtype == a.rng.dtype else x, tree) for tree in (a, b))
    jax.tree.map(np.testing.assert_array_equal, *plain)


class Run(NamedTuple):
    config: ConfigDict
    workdir: pathlib.Path
    state: State


@pytest.fixture(scope="module")
def pixels(quick_init, codec, tmp_path_factory):
    """`straight` from random weights."""
    workdir, config = tmp_path_factory.mktemp("pixels") / "run", make_config(codec, save_every=2)
    return Run(config, workdir, run(config, workdir))


ON_EIGHT = pytest.param("latents, 8 devices", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["pixels, 1 device", ON_EIGHT])
def straight(request, pixels, codec, tmp_path_factory):
    """4 updates in one run, with checkpoints after 2 and 4; that of latents starts from what the other one exported."""
    if request.param == "pixels, 1 device":
        return pixels
    workdir = tmp_path_factory.mktemp("latents") / "run"
    init_from = str(pixels.workdir / "model")
    config = make_config(codec, 8, request.getfixturevalue("latents"), save_every=2, init_from=init_from)
    config.train.update(evaluate_every=2, evaluate_batches=1, evaluate_metrics=("ssim",))
    config.data.validation = ({"kind": "synthetic", "path": "", "weight": 1.0, "split": "validation"},)
    return Run(config, workdir, run(config, workdir))


def halved(workdir, target):
    """The run as it was when it had made and saved 2 updates."""
    shutil.copytree(workdir, target, ignore=shutil.ignore_patterns("model"))
    shutil.rmtree(target / "checkpoints" / "4")
    return target


def changed(config, change):
    config = config.copy_and_resolve_references()
    change(config)
    return config


def test_two_and_two_updates_are_four_bitwise(straight, tmp_path):
    config, workdir, state = straight
    resumed = halved(workdir, tmp_path / "run")
    # A run that goes on looks for no weights to start from; that of latents does so with worker processes.
    workers = 2 if config.train.evaluate_every else 0
    change = changed(config, lambda c: (c.train.update(init_from="nowhere"), c.data.update(workers=workers)))
    assert_bitwise(run(change, resumed), state)
    assert losses(resumed) == losses(workdir) and list(losses(workdir)) == [1, 2, 3, 4]
    files = [folder / "model" / "weights.safetensors" for folder in (workdir, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("straight", [ON_EIGHT], indirect=True)
def test_a_run_of_eight_devices_goes_on_with_one(straight, tmp_path):
    resumed = halved(straight.workdir, tmp_path / "run")
    change = changed(straight.config, lambda c: (c.mesh.update(data=1, fsdp=1), c.train.update(evaluate_every=0)))
    run(change, resumed)
    np.testing.assert_allclose(list(losses(resumed).values()), list(losses(straight.workdir).values()), rtol=1e-4)


def test_the_exported_folder_is_the_averaged_model(straight):
    _, workdir, state = straight
    module, variables = load_model(workdir / "model")
    jax.tree.map(np.testing.assert_array_equal, variables["params"], jax.device_get(state.ema_params))
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], jax.device_get(state.batch_stats))
    assert module.block_out_channels == SIZES["block_out_channels"]
    assert load_autoencoder(workdir / "model")[0].latent_channels == 4
    settings = load_settings(workdir / "model")
    assert settings["diffusion"]["prediction"] == "epsilon" and settings["sample"]["num_frames"] == 2
    # Calibrated once before the first update: nothing is left of the initial 0 and 1.
    means = [np.asarray(leaf) for leaf in jax.tree.leaves(variables["batch_stats"])]
    assert all(np.any(leaf != 0) and np.any(leaf != 1) for leaf in means)


def test_a_checkpoint_of_another_network_is_refused(straight, codec, tmp_path):
    with pytest.raises(ValueError, match="model.num_heads is 2 there and 4 here"):
        run(changed(straight.config, lambda c: c.model.update(num_heads=4)), straight.workdir)
    save_codec(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="autoencoder.weights is [0-9a-f]{64} there and [0-9a-f]{64} here"):
        run(make_config(str(tmp_path / "other")), straight.workdir)


def test_a_loss_that_is_not_finite_stops_and_names_the_clips(codec, tmp_path, monkeypatch):
    put, calls = trainer.put_batch, []

    def put_badly(mesh, batch):
        calls.append(batch)
        bad = len(calls) == 4  # the first is for calibration
        return put(mesh, batch | {"fps": batch["fps"] * np.float32(np.nan)} if bad else batch)

    monkeypatch.setattr(trainer, "put_batch", put_badly)
    with pytest.raises(FloatingPointError, match=r"step 3: loss nan, .*clips of its batch: synthetic/\d+@"):
        run(make_config(codec, steps=9, save_every=3), tmp_path / "run")
    assert list(losses(tmp_path / "run")) == [1, 2]
    assert not [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]


def command(codec, workdir, *overrides):
    overrides = ["--config.mesh.data=2", "--config.mesh.fsdp=4", *overrides]
    overrides += [f"--config.model.{name}={value}" for name, value in SIZES.items()]  # those of `straight`
    command = [
        sys.executable,
        "-m",
        "m3ddm_jax.train",
        f"--config=configs/m3ddm_tiny.py:{codec}",
        f"--workdir={workdir}",
    ]
    return [*command, *overrides]


def test_sigterm_finishes_the_step_saves_exports_and_exits_0(codec, latents, pixels, tmp_path):
    workdir = tmp_path / "run"
    sources = f"({{'kind': 'latents', 'path': '{latents}', 'weight': 1.0}},)"
    init_from = f"--config.train.init_from={pixels.workdir / 'model'}"
    process = subprocess.Popen(
        command(codec, workdir, f"--config.data.sources={sources}", "--config.train.steps=1000000", init_from),
        cwd=ROOT,
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
        (["--config.train.batch_size=6", "--config.train.accumulate=4"], "a batch of 6 clips does not divide"),
        (["--config.data.sources=({'kind':'latents','path':'nowhere','weight':1.0},)"], "nowhere holds no precomputed"),
    ],
)
def test_a_bad_config_is_one_line_and_exit_2(run_module, codec, tmp_path, monkeypatch, overrides, said):
    workdir = tmp_path / "run"
    monkeypatch.chdir(ROOT)
    done = run_module(*command(codec, workdir, *overrides)[2:])
    assert done.returncode == 2
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not workdir.exists()


def test_a_process_of_its_own_says_so_too(codec, tmp_path):
    refused = command(codec, tmp_path / "run", "--config=configs/nowhere.py")
    done = subprocess.run(refused, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "train: there is no config file configs/nowhere.py\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(recipe="magic"), "recipe 'magic' is unknown: one of .*diffusion.* is accepted"),
        (lambda c: c.__delitem__("recipe"), "recipe None is unknown"),
        (lambda c: c.train.update(steps=0), "steps is 0"),
        (lambda c: c.mesh.update(data=3), "does not fill 1 device"),
        (lambda c: c.model.update(dtype="float7"), "dtype 'float7' is unknown"),
        (lambda c: c.train.update(export_dtype="float7"), "export_dtype 'float7' is unknown"),
        (lambda c: c.model.update(kind="gan"), "model kind 'gan' does not fit this recipe"),
        (lambda c: c.diffusion.update(schedule="square"), "schedule 'square' is unknown"),
        (lambda c: c.diffusion.update(prediction="y"), "prediction 'y' is unknown"),
        (lambda c: c.train.update(drop_local=1.5), "drop_local is 1.5"),
        (lambda c: c.data.update(buckets=((32, 40),)), r"bucket \(32, 40\): both sides must be multiples of 16"),
        (lambda c: c.data.update(global_size=36), "global_size is 36: a multiple of 8"),
        (lambda c: c.data.update(sources=({"kind": "videos", "path": "nowhere", "weight": 1.0},)), "nowhere"),
        (lambda c: c.__delitem__("sample"), "no section sample"),
        (lambda c: c.train.optimizer.update(schedule="square"), "train.optimizer: schedule 'square' is unknown"),
        (lambda c: c.train.update(evaluate_metrics=("niqe",)), "evaluate_metrics has niqe: of ssim, lpips, fvd any"),
        (
            lambda c: c.data.update(validation=({"kind": "synthetic", "path": "", "weight": 1.0, "split": "train"},)),
            "data.validation and data.sources share videos: synthetic '', split train, and synthetic '', split train",
        ),
        (lambda c: c.data.update(num_frames=65), r"clips have 65 frames \(data.num_frames\), the longest video .* 64"),
        (lambda c: c.train.update(surplus=1), "has surplus that is not known"),
    ],
)
def test_values_that_do_not_fit(tmp_path, change, message):
    config = m3ddm_tiny.get_config()
    config.mesh.update(data=1)
    change(config)
    with pytest.raises(ValueError, match=message):
        trainer.train(config, tmp_path / "run", jax.devices()[:1])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.data.masks.update(four=0.5), "masks.four is 0.2 there and 0.5 here"),
        (lambda c: c.data.update(buckets=((32, 48),)), r"buckets is \[\[32, 32\]\] there and \[\[32, 48\]\] here"),
        (lambda c: c.diffusion.update(unknown="filled"), "unknown is black there and filled here"),
        (lambda c: c.autoencoder.update(folder="other"), "autoencoder.weights is .* there and .* here"),
        (
            lambda c: c.data.update(sources=(*c.data.sources, {"kind": "synthetic", "path": "", "weight": 1.0})),
            "latents and pixels cannot be mixed in one run",
        ),
    ],
)
def test_latents_that_do_not_fit(codec, latents, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    save_codec("other", seed=1)
    config = make_config(codec, latents=latents)
    change(config)
    with pytest.raises(ValueError, match=message):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_data_position_survives_another_batch_size():
    assert trainer.steps_drawn(24, 8) == 3
    with pytest.raises(ValueError, match="has seen 24 clips: batches of 16 do not divide"):
        trainer.steps_drawn(24, 16)


def test_a_workdir_is_one_run_s(codec, tmp_path):
    """A second run is refused before it touches anything."""
    workdir = tmp_path / "run"
    with trainer.locked(str(workdir)), pytest.raises(ValueError, match="is in use by process .*lock file"):
        run(make_config(codec), workdir)
    assert list(workdir.iterdir()) == []


def test_a_workdir_in_a_source_is_refused(codec, tmp_path):
    config = make_config(codec)
    with config.unlocked():
        config.data.sources = [ConfigDict({"kind": "videos", "path": str(tmp_path), "weight": 1.0})]
    with pytest.raises(ValueError, match="the workdir .* lies in the source"):
        run(config, tmp_path / "run")
