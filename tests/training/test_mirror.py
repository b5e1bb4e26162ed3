import json
import os
import pathlib
import runpy

import fsspec
import jax
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from configs import m3ddm_tiny
from m3ddm_jax import train as trainer
from m3ddm_jax.recipes import RECIPES
from m3ddm_jax.training.mirror import Mirror, is_remote


class Bucket(MemoryFileSystem):
    """What answers for gs:// here: a store in memory that counts what is written."""

    protocol = ("gcs", "gs")
    store: dict = {}
    pseudo_dirs = [""]
    written: list[str] = []

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("gs://"))

    def _open(self, path, mode="rb", **options):
        if "w" in mode:
            self.written.append(path)
        return super()._open(path, mode, **options)


@pytest.fixture
def bucket():
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    Bucket.store.clear()
    Bucket.written.clear()
    return Bucket


def test_what_changed_goes_to_the_bucket_and_what_is_there_comes_back(bucket, tmp_path):
    remote, local, later = "gs://bucket/run", tmp_path / "local", tmp_path / "later"
    for folder in (local, later):
        folder.mkdir()
    mirror = Mirror(remote, local, names=("metrics.jsonl",))
    assert not list(local.iterdir())
    (local / "metrics.jsonl").write_text("one\n")
    (local / "model").mkdir()
    (local / "model" / "weights.safetensors").write_bytes(b"\0\1")
    mirror.publish()
    assert epath.Path(remote, "model", "weights.safetensors").read_bytes() == b"\0\1"
    bucket.written.clear()
    (local / "metrics.jsonl").write_text("one\ntwo\n")
    mirror.publish()
    assert bucket.written == ["/bucket/run/metrics.jsonl"]
    Mirror(remote, later, names=("metrics.jsonl", "nothing"))
    assert [path.name for path in later.iterdir()] == ["metrics.jsonl"]
    assert (later / "metrics.jsonl").read_text() == "one\ntwo\n"


def test_folders_of_buckets_are_told_apart(tmp_path):
    assert is_remote("gs://bucket/run") and not is_remote(tmp_path) and not is_remote("run")


class NoCheckpoints:
    """Stands in for checkpoints, which need a real bucket."""

    def __init__(self, folder, *, on_save, **_):
        assert os.fspath(folder) == "gs://bucket/trained/checkpoints"
        self._beside = on_save

    def latest_step(self):
        return None

    best_step = latest_step

    def save(self, *_):
        self._beside()

    def wait(self):
        pass

    close = wait


def test_what_a_run_leaves_goes_to_its_bucket(bucket, monkeypatch):
    toy = pathlib.Path(__file__).resolve().parents[1] / "parallel" / "toy_recipe.py"
    monkeypatch.setitem(RECIPES, "toy", runpy.run_path(str(toy))["ToyRecipe"])
    monkeypatch.setattr(trainer, "Checkpoints", NoCheckpoints)
    config = m3ddm_tiny.get_config()
    config.update_from_flattened_dict({"recipe": "toy", "train.steps": 3, "train.save_every": 1, "train.batch_size": 1})
    trainer.train(config, "gs://bucket/trained", jax.devices()[:1])
    there = epath.Path("gs://bucket/trained")
    assert (there / "model" / "weights.npz").exists()
    lines = (there / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert [path.name.startswith("events") for path in (there / "tensorboard").iterdir()] == [True]
    # With each checkpoint, and where nothing has changed not again.
    assert bucket.written.count("/bucket/trained/metrics.jsonl") == 3
