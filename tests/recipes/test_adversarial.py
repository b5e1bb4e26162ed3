"""Adversarial training as a run: resume, export, preview, what it starts from and what it refuses."""

import json
import pathlib
import shutil
from typing import NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common, in2out, in2out_tiny, m3ddm_adversarial, m3ddm_tiny
from m3ddm_jax import train as trainer
from m3ddm_jax.models import registry
from m3ddm_jax.parallel.mesh import make_mesh, put_batch
from m3ddm_jax.recipes import base
from m3ddm_jax.recipes.adversarial import AdversarialRecipe
from m3ddm_jax.training.gan_state import GanState
from m3ddm_jax.training.state import shardings_of
from m3ddm_jax.training.validation import side_by_side
from m3ddm_jax.weights import load_model, save_model

pytestmark = pytest.mark.usefixtures("quick_init")


def make_config(change=lambda config: None):
    """The tiny config, smaller: 2 frames and 1 reference of 24 x 24 pixels; the generator learns from update 2 on."""
    config = in2out_tiny.get_config()
    config.model.update(width=4, hidden=8, depth=1, window=(2, 2), ffn_channels=1, deform_groups=2)
    config.discriminator.update(width=2)
    config.adversarial.update(plain_tubes=1, zoomed_tubes=0, discriminator_warmup=1, ramp_steps=2)
    config.data.update(num_frames=2, references=1, buckets=((24, 24),))
    config.train.update(steps=4, batch_size=2, log_every=1, save_every=2, evaluate_every=0)
    config.mesh.update(data=1)
    change(config)
    return config


def save_random(folder, module, low, high, seed=0):
    """A model folder with weights drawn uniformly; returns them."""
    rng = np.random.default_rng(seed)
    shapes = registry.abstract_variables(module)
    variables = jax.tree.map(lambda leaf: rng.uniform(low, high, leaf.shape).astype(np.float32), dict(shapes))
    save_model(folder, module, variables)
    return variables


@pytest.fixture(scope="module")
def from_folder(tmp_path_factory):
    """A config whose generator starts from a folder, with the flow network in there as the frozen one; its weights."""
    config, folder = make_config(), str(tmp_path_factory.mktemp("start") / "model")
    variables = save_random(folder, base.build_model(config.model), -0.1, 0.1)
    config.train.init_from = folder
    config.adversarial.weights.flow = 1.0
    return config, variables


class Run(NamedTuple):
    config: ConfigDict
    workdir: pathlib.Path
    state: GanState


@pytest.fixture(scope="module")
def straight(quick_init, from_folder, tmp_path_factory):
    """4 updates in one run, with checkpoints after 2 and 4."""
    workdir, (config, _) = tmp_path_factory.mktemp("straight") / "run", from_folder
    return Run(config, workdir, trainer.train(config, workdir, jax.devices()[:1]))


@pytest.mark.slow
def test_two_and_two_updates_are_four_bitwise(straight, tmp_path):
    config, workdir, state = straight
    resumed = tmp_path / "run"
    shutil.copytree(workdir, resumed, ignore=shutil.ignore_patterns("model"))
    shutil.rmtree(resumed / "checkpoints" / "4")
    again = trainer.train(config, resumed, jax.devices()[:1])
    assert jax.random.key_data(again.rng).tolist() == jax.random.key_data(state.rng).tolist()
    jax.tree.map(np.testing.assert_array_equal, again.replace(rng=0), state.replace(rng=0))
    assert state.step == 4
    lines = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    assert [line["ramp"] for line in lines] == [0, 0.5, 1, 1] and all(line["flow"] > 0 for line in lines)


def test_the_exported_folder_is_the_averaged_generator(straight):
    module, variables = load_model(straight.workdir / "model")
    assert registry.describe(module)[0] == "e2fgvi" and variables.keys() == {"params"}
    jax.tree.map(np.testing.assert_array_equal, variables["params"], jax.device_get(straight.state.ema_params))


def test_previews_show_what_is_known_what_is_made_and_the_truth(straight):
    recipe = AdversarialRecipe(straight.config)
    batch = next(iter(recipe.dataset(0)))
    del batch["clip_id"]
    completion = jax.jit(recipe.complete)(straight.state, batch, {})
    known, made, truth = np.split(np.asarray(side_by_side(completion)), 3, axis=3)
    video, mask = batch["video"][:, :2], batch["mask"][:, :2]
    np.testing.assert_array_equal(truth, video)
    np.testing.assert_array_equal(known, np.where(mask, 0, video))
    np.testing.assert_array_equal(np.where(mask, 0, made), known)
    assert np.any(made != truth)


def begin(config):
    recipe, mesh = AdversarialRecipe(config), make_mesh(data=2, fsdp=4)
    rng = jax.random.key(0)
    with jax.set_mesh(mesh):
        like = recipe.abstract_state(rng, mesh)
        state = recipe.begin(rng, like, {}, recipe.frozen)
    assert shardings_of(state) == shardings_of(like)
    return recipe, state


def test_a_run_starts_from_a_model_folder_whose_flow_network_stays_frozen(from_folder, tmp_path):
    config, variables = from_folder
    recipe, state = begin(config)
    for params in (state.params, state.ema_params):
        jax.tree.map(np.testing.assert_array_equal, params, variables["params"])
    assert recipe.frozen["params"].keys() == {"update_spynet"}
    jax.tree.map(
        np.testing.assert_array_equal,
        recipe.frozen["params"]["update_spynet"],
        variables["params"]["update_spynet"],
    )
    other = config.copy_and_resolve_references()
    other.train.init_from = str(tmp_path / "other")
    save_random(other.train.init_from, recipe.model, -0.1, 0.1, seed=1)
    assert AdversarialRecipe(other).fixed["flow"] != recipe.fixed["flow"]
    other.train.init_from = ""
    with pytest.raises(ValueError, match="weights.flow is above 0 and train.init_from is empty"):
        AdversarialRecipe(other)


def diffusion_config(folder):
    """The tiny diffusion model in pixels of 8 x 8, on clips of 32 x 32."""
    config, tiny = common.adversarial_diffusion(), m3ddm_tiny.get_config()
    for section in ("model", "data", "sample"):
        config[section] = tiny[section]
    config.model.update(latent_channels=192, block_out_channels=(32,), attention_levels=(False,))
    config.autoencoder = ConfigDict({"kind": "patch_codec", "patch_size": 8, "scale": 2.0})
    config.discriminator.update(width=2, tube_size=16, dtype="float32")
    config.adversarial.update(plain_tubes=1, zoomed_tubes=1)
    config.train.update(batch_size=8, init_from=folder)
    return config


def test_a_diffusion_model_is_fine_tuned_and_exported_as_one(tmp_path):
    config = diffusion_config(str(tmp_path / "model"))
    variables = save_random(tmp_path / "model", base.build_model(config.model), 0.05, 0.1)
    recipe, state = begin(config)
    jax.tree.map(np.testing.assert_array_equal, state.params, variables["params"])
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, variables["batch_stats"])
    batch = next(iter(recipe.dataset(0)))
    with jax.set_mesh(make_mesh(data=2, fsdp=4)):
        batch = put_batch(make_mesh(data=2, fsdp=4), batch)
        after, metrics = jax.eval_shape(recipe.step, state, batch, recipe.frozen)
    assert jax.tree.map(jax.numpy.shape, after) == jax.tree.map(jax.numpy.shape, state)
    assert {"denoising", "feat_global", "adv_local"} <= metrics.keys()
    recipe.export(tmp_path / "export", state)
    found, exported = load_model(tmp_path / "export")
    assert found == recipe.model
    jax.tree.map(np.testing.assert_array_equal, exported["params"], variables["params"])
    config.train.init_from = ""
    with pytest.raises(ValueError, match="a diffusion model is only fine-tuned"):
        begin(config)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.data.update(buckets=((24, 32),)), r"bucket \(24, 32\): multiples of 24 and 24 are accepted"),
        (lambda c: c.discriminator.update(tube_size=32), r"bucket \(24, 24\) holds no tube of 32x32"),
        (lambda c: c.adversarial.update(zoomed_tubes=1), r"bucket \(24, 24\) holds no tube of 32x32"),
        (lambda c: c.train.update(accumulate=2), "accumulate is 2: .*1 is accepted"),
        (lambda c: c.train.update(spike_factor=0.5), "spike_factor is 0.5: 0, which is off, or more than 1"),
        (lambda c: c.adversarial.weights.update(feet_local=1.0), "adversarial.weights are .*feet_local"),
        (lambda c: c.adversarial.update(surplus=1), "has surplus that is not known"),
        (lambda c: c.model.update(kind="lpips"), "model kind 'lpips' does not fit this recipe: e2fgvi or m3ddm"),
        (lambda c: c.discriminator.update(dtype="float7"), "dtype 'float7' is unknown"),
    ],
)
def test_values_that_do_not_fit_are_refused_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        AdversarialRecipe(make_config(change))


def test_a_diffusion_model_has_no_references(tmp_path):
    config = diffusion_config("")
    config.data.references = 1
    with pytest.raises(ValueError, match="references is 1"):
        AdversarialRecipe(config)


def test_configs_are_whole_and_the_full_size_is_the_published_networks():
    for config in (in2out_tiny.get_config(), in2out.get_config()):
        config.adversarial.weights.flow = 0.0  # the folder of its flow network is not here
        recipe = AdversarialRecipe(config)
    count = sum(leaf.size for leaf in jax.tree.leaves(registry.abstract_variables(recipe.model)))
    assert count == 41_117_887  # all tensors of the released checkpoint but constants
    base.check_config(m3ddm_adversarial.get_config(), common.adversarial_diffusion(), built=("model", "autoencoder"))
