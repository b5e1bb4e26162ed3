"""Training of style fusion as a run: resume, export, pictures, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import isvi_style, isvi_style_tiny
from m3ddm_jax import train as trainer
from m3ddm_jax.models import registry
from m3ddm_jax.parallel.mesh import make_mesh
from m3ddm_jax.recipes.style import StyleRecipe
from m3ddm_jax.training.state import shardings_of
from m3ddm_jax.weights import load_model

pytestmark = pytest.mark.usefixtures("quick_init")


def make_config(change=lambda config: None):
    """The tiny config, smaller: frames of 16 x 16 pixels."""
    config = isvi_style_tiny.get_config()
    config.model.update(width=4)
    config.discriminator.update(width=2)
    config.data.update(buckets=((16, 16),))
    config.train.update(steps=4, batch_size=2, log_every=1, save_every=2, evaluate_every=2, evaluate_batches=1)
    config.mesh.update(data=1)
    change(config)
    return config


@pytest.fixture(scope="module")
def straight(quick_init, tmp_path_factory):
    """4 updates in one run, with checkpoints after 2 and 4."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    return workdir, trainer.train(make_config(), workdir, jax.devices()[:1])


@pytest.mark.slow
def test_two_and_two_updates_are_four_bitwise(straight, tmp_path):
    workdir, state = straight
    resumed = tmp_path / "run"
    shutil.copytree(workdir, resumed, ignore=shutil.ignore_patterns("model"))
    shutil.rmtree(resumed / "checkpoints" / "4")
    again = trainer.train(make_config(), resumed, jax.devices()[:1])
    jax.tree.map(np.testing.assert_array_equal, again.replace(rng=0), state.replace(rng=0))
    lines = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert all(line["hole_lent"] > 0 for line in lines if "loss" in line)


def test_the_exported_folder_is_the_averaged_network_and_the_next_run_may_start_from_it(straight):
    workdir, state = straight
    module, variables = load_model(workdir / "model")
    assert registry.describe(module)[0] == "asfn" and variables.keys() == {"params"}
    jax.tree.map(np.testing.assert_array_equal, variables["params"], jax.device_get(state.ema_params))
    recipe = StyleRecipe(make_config(lambda c: c.train.update(init_from=str(workdir / "model"))))
    mesh = make_mesh(data=2, fsdp=4)
    with jax.set_mesh(mesh):
        like = recipe.abstract_state(jax.random.key(0), mesh)
        begun = recipe.begin(jax.random.key(0), like, {}, {})
    assert shardings_of(begun) == shardings_of(like) and begun.step == 0
    jax.tree.map(np.testing.assert_array_equal, begun.params, variables["params"])


def test_pictures_are_of_both_fields(straight):
    _, state = straight
    recipe = StyleRecipe(make_config())
    batch = next(iter(recipe.dataset(0)))
    del batch["clip_id"]
    made, truth, unknown, *_ = jax.jit(recipe.complete)(state, batch, {})
    assert made.shape == truth.shape == (2, 2, 16, 16, 3) and made.dtype == np.uint8
    np.testing.assert_array_equal(unknown, np.repeat(batch["mask"] > 0, 2, axis=1))
    np.testing.assert_array_equal(np.where(unknown, 0, made), np.where(unknown, 0, truth))
    right = np.diff(batch["video"][:, 0].astype(np.float32) / 255, axis=2)
    expected = np.clip((4 * right + 1) * 127.5, 0, 255)
    np.testing.assert_allclose(truth[:, 0, :, :-1], expected, atol=1.001)  # bytes are rounded down


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.data.update(num_frames=2), "data.num_frames is 2: .*1 is accepted"),
        (lambda c: c.data.update(references=1), "data.references is 1"),
        (lambda c: c.data.update(buckets=((16, 18),)), r"bucket \(16, 18\): sides that are multiples of 4"),
        (lambda c: c.train.update(accumulate=2), "accumulate is 2"),
        (lambda c: c.train.update(spike_factor=0.5), "spike_factor is 0.5: 0, which is off, or more than 1"),
        (lambda c: c.style.update(surplus=1), "has surplus that is not known"),
        (lambda c: c.__setattr__("model", ConfigDict({"kind": "igfc"})), "kind 'igfc' .*: asfn is accepted"),
        (
            lambda c: c.__setattr__("discriminator", ConfigDict({"kind": "asfn"})),
            "kind 'asfn' .*: style_discriminator is accepted",
        ),
    ],
)
def test_values_that_do_not_fit_are_refused_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        StyleRecipe(make_config(change))


def test_configs_are_whole():
    full = isvi_style.get_config()
    StyleRecipe(full)
    assert (full.train.learning_rate, full.train.batch_size, full.data.buckets) == (1e-4, 8, ((256, 256),))
    StyleRecipe(isvi_style_tiny.get_config())
