"""Variants of the smallest config, trained and compared; and what is refused before any of them is trained."""

import json
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import in2out_tiny, m3ddm_tiny
from m3ddm_jax import ablate
from m3ddm_jax.ablate import Trained
from m3ddm_jax.models import registry
from m3ddm_jax.recipes.diffusion import DiffusionRecipe
from m3ddm_jax.weights import save_model

ROOT = pathlib.Path(__file__).resolve().parents[1]


def make_config(**train):
    config = m3ddm_tiny.get_config()
    config.train.update(steps=2, batch_size=2, evaluate_every=1, evaluate_batches=1, evaluate_metrics=(), **train)
    small = {"block_out_channels": (8,), "attention_levels": (False,)}
    config.variants = ConfigDict({"plain": {}, "small": {"model": small}})
    return config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config that starts from weights for the variant `small`: random ones take long to compile."""
    module = DiffusionRecipe(ablate.make_variants(make_config(), ["small"])["small"]).model
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("start") / "model"
    shapes = registry.abstract_variables(module)
    save_model(folder, module, jax.tree.map(lambda leaf: rng.uniform(0.1, 0.2, leaf.shape).astype(np.float32), shapes))
    return make_config(init_from=str(folder))


@pytest.fixture(scope="module")
def compared(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    return folder, ablate.ablate(config, str(folder), ["small"], devices=jax.devices()[:1])


def test_a_variant_is_trained_in_its_folder_and_told_of(compared):
    folder, trained = compared
    assert list(trained) == ["small"] and trained["small"].parameters == 177_464
    report = json.loads((folder / "ablation.json").read_text())
    assert report["config"]["train"]["steps"] == 2 and "variants" not in report["config"]
    run, written = trained["small"], report["variants"]["small"]
    assert (folder / "small" / "model" / "weights.safetensors").is_file()
    lines = [json.loads(line) for line in (folder / "small" / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert run.curves["loss"] == losses and [step for step, _ in losses] == [1, 2]
    assert [step for step, _ in run.curves["validation_psnr"]] == [1, 2]
    assert written["parameters"] == run.parameters and written["curves"]["loss"] == [list(x) for x in losses]
    assert written["differs"] == {"model": {"block_out_channels": [8], "attention_levels": [False]}}


def test_what_is_trained_is_only_read_again(compared, config):
    folder, trained = compared
    found = ablate.ablate(config, str(folder), ["small"], devices=jax.devices()[:1])
    assert found == trained


def test_a_variant_that_is_stopped_is_the_last(monkeypatch, tmp_path):
    started = []

    def stopped(config, workdir, devices):
        started.append(pathlib.Path(workdir).name)
        return types.SimpleNamespace(step=1, params={})

    monkeypatch.setattr(ablate, "train", stopped)
    assert ablate.ablate(make_config(), str(tmp_path)) is None
    assert started == ["plain"] and not list(tmp_path.iterdir())


def test_the_best_are_marked_and_the_loss_is_not():
    def run(psnr, sharpness, loss):
        curves = {"validation_psnr": psnr, "validation_sharpness": sharpness, "loss": loss}
        return Trained(1234, {name: [(2, 0.0), (4, value)] for name, value in curves.items()})

    trained = {"a": run(20.5, 1.3, 0.1), "b": run(19.0, 0.9, 0.2)}
    assert ablate.format_table(trained).splitlines() == [
        "variant  parameters  validation_psnr  validation_sharpness    loss",
        "      a       1,234          20.500*                1.300   0.1000",
        "      b       1,234          19.000                 0.900*  0.2000",
    ]
    assert ablate.format_curve(trained, "validation_psnr").splitlines() == [
        "validation_psnr",
        "step       a       b",
        "   2   0.000   0.000",
        "   4  20.500  19.000",
    ]


def test_variants_of_in2out_are_those_of_the_adversarial_goal():
    config = in2out_tiny.get_config()
    variants = ablate.make_variants(config)
    assert list(variants) == ["B", "C", "D", "E", "F"]
    names = ("adv_local", "feat_local", "feat_global")
    told = {
        name: (variant.adversarial.clip_weight, *(variant.adversarial.weights[weight] for weight in names))
        for name, variant in variants.items()
    }
    assert told == {
        "B": (0.0, 0.0, 0.0, 0.0),
        "C": (0.5, 0.0, 0.0, 0.0),
        "D": (0.5, 0.01, 0.0, 0.0),
        "E": (0.5, 0.01, 0.1, 0.0),
        "F": (0.5, 0.01, 0.1, 0.1),
    }
    assert all(variant.adversarial.weights.adv_global > 0 for variant in variants.values())
    assert config == in2out_tiny.get_config()


@pytest.mark.parametrize(
    "change, names, said",
    [
        (lambda c: c.__delattr__("variants"), [], "no section variants"),
        (lambda c: None, ["plain", "huge"], "variants huge are unknown: those of plain, small are accepted"),
        (lambda c: c.train.update(evaluate_every=0), [], "evaluate_every is 0: 1 to 2, the steps"),
        (lambda c: c.train.update(evaluate_every=3), [], "evaluate_every is 3: 1 to 2, the steps"),
        (
            lambda c: c.data.update(sources=({"kind": "synthetic", "path": "", "weight": 1.0, "split": "all"},)),
            [],
            "variant plain: no source holds clips out to compare variants by",
        ),
        (lambda c: c.variants.plain.update({"model": {"depht": 3}}), [], "variant plain: .*depht"),
        (lambda c: c.variants.plain.update({"train": {"steps": "many"}}), [], "variant plain: .*many"),
        (lambda c: c.variants.small.update({"data": {"buckets": ((36, 36),)}}), [], "variant small: bucket"),
    ],
)
def test_what_cannot_be_compared_is_said_before_the_first_is_trained(change, names, said):
    config = make_config()
    change(config)
    with pytest.raises(ValueError, match=said):
        ablate.make_variants(config, names)


def test_a_wrong_command_is_one_line_and_exit_2(tmp_path):
    command = [sys.executable, "-m", "m3ddm_jax.ablate", "--config=configs/in2out_tiny.py", f"--workdir={tmp_path}"]
    done = subprocess.run([*command, "--variants=B,G"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "ablate: variants G are unknown: those of B, C, D, E, F are accepted\n"
    assert not list(tmp_path.iterdir())
