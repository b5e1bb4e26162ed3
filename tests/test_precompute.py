"""Encoding clips ahead of training: what the shards hold, going on after a stop, and what is refused."""

import functools
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import m3ddm_tiny
from data.latents import LatentFolder
from m3ddm_jax import precompute as entry
from m3ddm_jax.files.writing import place
from m3ddm_jax.models import registry
from m3ddm_jax.recipes.diffusion import DiffusionRecipe
from m3ddm_jax.training.encoding import encode_batch
from m3ddm_jax.weights import save_model

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUCKETS = ((16, 24), (16, 16))


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """Folder of a KL autoencoder of few and random weights."""
    module = registry.build("autoencoder", block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)
    rng = np.random.default_rng(0)
    shapes = registry.abstract_variables(module)
    folder = tmp_path_factory.mktemp("codec") / "autoencoder"
    save_model(folder, module, jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes))
    return str(folder)


def make_config(codec):
    config = m3ddm_tiny.get_config(codec)
    config.data.update(buckets=BUCKETS, global_size=16)
    return config


@pytest.fixture
def config(codec):
    return make_config(codec)


def precompute(config, out, examples=9, **more):
    options = {"examples_per_shard": 4, "devices": jax.devices()[:2]} | more
    return entry.precompute(config, str(out), examples, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(codec, tmp_path_factory):
    """Nine examples: 4 and 1 of 16 x 24 pixels, 4 of 16 x 16."""
    out = tmp_path_factory.mktemp("latents") / "folder"
    assert precompute(make_config(codec), out) == []
    return out


def test_the_shards_hold_what_the_autoencoder_makes_of_the_pipelines_clips(whole, config):
    names = [f"16x24-0000{index}-of-00002.array_record" for index in range(2)] + ["16x16-00000-of-00001.array_record"]
    assert sorted(os.listdir(whole)) == sorted([*names, "latents.json"])
    recipe = DiffusionRecipe(config)
    encode = jax.jit(functools.partial(encode_batch, recipe.encoders))
    folder = LatentFolder(whole)
    for bucket, first, count in ((BUCKETS[0], 0, 5), (BUCKETS[1], 8, 4)):
        records = folder.bucket(bucket)
        assert len(records) == count
        iterator = iter(entry.make_clips(config, bucket, 1))
        iterator.set_state({"next_index": first})
        for index, batch in enumerate(itertools.islice(iterator, count)):
            assert records[index]["clip_id"] == batch["clip_id"][0]
            encoded = encode(recipe.frozen, {name: batch[name] for name in batch if name != "clip_id"})
            assert records[index].keys() == encoded.keys() | {"clip_id"}
            for name, value in encoded.items():
                expected = {"mask": np.uint8, "fps": np.float32}.get(name, np.float16)
                assert records[index][name].dtype == expected
                # Half precision rounds by 1 in 2048.
                np.testing.assert_allclose(records[index][name], value[0], rtol=1e-3, atol=1e-4, err_msg=name)
    shape = (2, *(side // 2 for side in BUCKETS[1]), 4)
    assert records[0]["latents_mean"].shape == records[0]["masked_std"].shape == shape
    assert records[0]["global_mean"].shape == (2, 8, 8, 4) and records[0]["black_mean"].shape == (1, *shape[1:])


def test_a_stop_and_a_second_run_make_the_same_folder_bit_for_bit(whole, config, tmp_path):
    out, asked = tmp_path / "out", itertools.count()
    missing = precompute(config, out, stop=lambda: next(asked) == 4)  # in the middle of the last shard
    assert [shard.name[:11] for shard in missing] == ["16x16-00000"]
    assert len(os.listdir(out)) == 3, "nothing half-written"
    leftover = out / f".{missing[0].name}.{place()}-{2**22}-00000000.part"
    leftover.write_bytes(b"what a killed process leaves")
    assert precompute(config, out) == []
    assert contents(out) == contents(whole)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert precompute(config, out) == []
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_batch_and_devices_change_nothing_but_rounding(whole, config, tmp_path):
    precompute(config, tmp_path / "out", batch_size=4, devices=jax.devices()[:1])
    for bucket in BUCKETS:
        one, other = (LatentFolder(folder).bucket(bucket) for folder in (whole, tmp_path / "out"))
        for index in range(len(one)):
            assert one[index]["clip_id"] == other[index]["clip_id"]
            np.testing.assert_allclose(one[index]["masked_mean"], other[index]["masked_mean"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "change, more, message",
    [
        (lambda c: c.train.update(seed=1), {}, "folder .* does not fit the config: seed is 0 there and 1 here"),
        (lambda c: c.data.masks.update(all=0.0), {}, "masks.all is 0.25 there and 0.0 here"),
        (lambda c: None, {"examples": 10}, "examples is 9 there and 10 here"),
        (lambda c: None, {"examples": 1}, "1 examples in shards of 4 for 2 buckets: too few"),
        (lambda c: None, {"batch_size": 6}, r"batch of 6 clips: a multiple of 2 \(devices\) that divides 4"),
        (lambda c: c.data.update(buckets=((16, 18),)), {}, r"bucket \(16, 18\): both sides must be multiples of 4"),
        (lambda c: c.autoencoder.update(folder="nowhere"), {}, "nowhere is not a model folder"),
        (
            lambda c: c.data.update(sources=({"kind": "latents", "path": "out", "weight": 1.0},)),
            {},
            "the config's clips are latents already",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(whole, config, change, more, message):
    before = contents(whole)
    change(config)
    with pytest.raises(ValueError, match=message):
        precompute(config, whole, **more)
    assert contents(whole) == before


def command(codec, out, *overrides):
    options = ["--config.data.global_size=16", f"--out={out}", *overrides]
    return [sys.executable, "-m", "m3ddm_jax.precompute", f"--config=configs/m3ddm_tiny.py:{codec}", *options]


def test_sigterm_leaves_whole_shards_and_exits_0(codec, tmp_path):
    out = tmp_path / "deep" / "out"
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command(codec, out, "--examples=100000"), **options)
    while process.poll() is None and not (out / "latents.json").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert f"shards are missing in {out}: the same command goes on" in said
    assert all(path.name == "latents.json" or path.name.startswith("32x32-") for path in out.iterdir())


@pytest.mark.parametrize(
    "out, options, said",
    [
        ("file/out", ["--examples=4"], "file"),
        ("out", ["--examples=4", "--config.data.sources=({'kind':'videos','path':'no','weight':1.0},)"], "no is not a"),
        ("out", ["--examples=4", "--config.data.buckets=((32,33),)"], "bucket (32, 33): both sides"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(run_module, codec, tmp_path, monkeypatch, out, options, said):
    (tmp_path / "file").touch()
    monkeypatch.chdir(ROOT)
    done = run_module(*command(codec, tmp_path / out, *options)[2:])
    assert done.returncode == 2
    assert said in done.stderr and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("precompute: ")
    assert os.listdir(tmp_path) == ["file"]


def test_a_process_of_its_own_exits_with_2(codec, tmp_path):
    refused = command(codec, tmp_path / "out", "--examples=0")
    done = subprocess.run(refused, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert done.stderr.startswith("precompute: ") and "--examples" in done.stderr and done.stderr.count("\n") == 1
