"""What is particular to training a diffusion model; tests/test_train.py has whole runs of it."""

import functools
import json

import flax
import jax
import numpy as np
import pytest

from configs import m3ddm_tiny
from m3ddm_jax.models import registry
from m3ddm_jax.parallel.mesh import make_mesh, put_batch
from m3ddm_jax.recipes.diffusion import DiffusionRecipe
from m3ddm_jax.training.encoding import encode_batch
from m3ddm_jax.training.state import TrainState, shardings_of
from m3ddm_jax.training.validation import side_by_side
from m3ddm_jax.weights import load_model, load_settings, save_model

pytestmark = pytest.mark.usefixtures("quick_init")


def changed(change=lambda config: None):
    """The test config with a network of one level: a second takes long to compile."""
    config = m3ddm_tiny.get_config()
    config.model.update(block_out_channels=(32,), attention_levels=(False,))
    change(config)
    return config


def begin(config):
    """The state before the first update, and how it should lie on the mesh."""
    recipe, mesh = DiffusionRecipe(config), make_mesh(data=2, fsdp=4)
    rng = jax.random.key(0)
    with jax.set_mesh(mesh):
        like = recipe.abstract_state(rng, mesh)
        return recipe.begin(rng, like, put_batch(mesh, next(iter(recipe.dataset(0)))), recipe.frozen), like


@pytest.fixture(scope="module")
def network():
    """The test config's network and random numbers as its weights."""
    module = DiffusionRecipe(changed()).model
    rng = np.random.default_rng(0)
    shapes = registry.abstract_variables(module)
    return module, jax.tree.map(lambda leaf: rng.uniform(0.1, 0.2, leaf.shape).astype(np.float32), dict(shapes))


def test_a_new_run_starts_from_a_model_folder(network, tmp_path):
    module, variables = network
    folder = str(tmp_path / "model")
    save_model(folder, module, variables)
    state, like = begin(changed(lambda c: c.train.update(init_from=folder)))
    for params in (state.params, state.ema_params):
        jax.tree.map(np.testing.assert_array_equal, params, variables["params"])
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, variables["batch_stats"])
    assert shardings_of(state) == shardings_of(like)
    assert int(state.step) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    with pytest.raises(ValueError, match="model .* does not fit the config: num_heads is 2 there and 4 here"):
        begin(changed(lambda c: (c.train.update(init_from=folder), c.model.update(num_heads=4))))
    with pytest.raises(ValueError, match="nowhere is not a model folder"):
        begin(changed(lambda c: c.train.update(init_from="nowhere")))


def test_statistics_that_a_model_folder_never_had_set_are_calibrated(network, tmp_path):
    module, variables = network
    stats = flax.traverse_util.path_aware_map(
        lambda path, leaf: np.full_like(leaf, path[-1] == "var"), variables["batch_stats"]
    )
    save_model(tmp_path / "model", module, variables | {"batch_stats": stats})
    state, like = begin(changed(lambda c: c.train.update(init_from=str(tmp_path / "model"))))
    assert all(np.any(leaf != 0) and np.any(leaf != 1) for leaf in jax.tree.leaves(state.batch_stats))
    assert shardings_of(state) == shardings_of(like)


def test_previews_show_what_is_known_what_is_made_and_the_truth(network):
    recipe = DiffusionRecipe(changed())
    batch = next(iter(recipe.dataset(0)))
    del batch["clip_id"]
    _, variables = network
    trained = jax.tree.map(lambda leaf: leaf / 2, variables["params"])
    state = TrainState(0, trained, variables["batch_stats"], {}, variables["params"], None)

    @jax.jit
    def preview(*arguments):
        completion = recipe.complete(*arguments)
        return side_by_side(completion), completion.errors

    shown, losses = preview(state, batch, recipe.frozen)
    shown = np.asarray(shown)
    assert {"loss", "loss_ema", "loss/0-249", "loss_ema/750-999"} <= losses.keys() and len(losses) == 10
    # Of random weights, the smaller ones are less wrong.
    assert all(
        0 < value < losses[name.replace("loss", "loss_ema")] for name, value in losses.items() if "ema" not in name
    )
    assert shown.shape == (8, 2, 32, 96, 3) and shown.dtype == np.uint8
    known, made, truth = np.split(shown, 3, axis=3)
    np.testing.assert_array_equal(truth, batch["video"])
    np.testing.assert_array_equal(known, np.where(batch["mask"], 0, truth))
    np.testing.assert_array_equal(np.where(batch["mask"], 0, made), known)
    assert np.any(made != truth)
    # Of latents the truth is what the codec makes of them, and a cell is known or not as a whole.
    encoded = jax.jit(functools.partial(encode_batch, recipe.encoders))(recipe.frozen, batch)
    shown, of_latents = preview(state, encoded, recipe.frozen)
    # Rounded otherwise, in another program.
    np.testing.assert_allclose(of_latents["loss"], losses["loss"], rtol=1e-4)
    shown = np.asarray(shown)
    known, made, decoded = np.split(shown, 3, axis=3)
    assert np.abs(decoded.astype(int) - truth).max() <= 1  # of 255, by truncation
    cells = batch["mask"].reshape(8, 2, 4, 8, 4, 8).max(axis=(3, 5)).repeat(8, axis=2).repeat(8, axis=3)[..., None]
    np.testing.assert_array_equal(known, np.where(cells, 0, decoded))
    np.testing.assert_array_equal(np.where(cells, 0, made), known)


def test_the_exported_folder_says_how_it_outpaints(network, tmp_path):
    config = changed(lambda c: c.train.update(export_dtype="float16"))
    recipe, (_, variables) = DiffusionRecipe(config), network
    recipe.export(tmp_path / "model", TrainState(0, {}, variables["batch_stats"], {}, variables["params"], None))
    module, found = load_model(tmp_path / "model")
    assert module == recipe.model
    rounded = jax.tree.map(lambda leaf: leaf.astype(np.float16), variables["params"])
    jax.tree.map(np.testing.assert_array_equal, found["params"], rounded)
    jax.tree.map(np.testing.assert_array_equal, found["batch_stats"], variables["batch_stats"])
    settings = {"diffusion": config.diffusion.to_dict(), "sample": config.sample.to_dict()}
    assert load_settings(tmp_path / "model") == json.loads(json.dumps(settings))


def test_the_codec_computes_as_the_model_does(tmp_path):
    codec = registry.build("autoencoder", block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)
    shapes = registry.abstract_variables(codec)
    save_model(tmp_path / "codec", codec, jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes))
    config = m3ddm_tiny.get_config(str(tmp_path / "codec"))
    full = DiffusionRecipe(config)
    config.model.dtype = "bfloat16"
    half = DiffusionRecipe(config)
    assert half.model.dtype == half.encoders.autoencoder.dtype == jax.numpy.bfloat16
    assert half.fixed == full.fixed and "weights" in full.fixed["autoencoder"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.data.update(buckets=((32, 36),)), r"bucket \(32, 36\): both sides must be multiples of 8"),
        (lambda c: c.data.update(global_size=36), "global_size is 36: a multiple of 8"),
        (lambda c: c.data.update(references=2), "references is 2: a diffusion model has none"),
        (lambda c: c.model.update(latent_channels=4), "the model has 4 latent channels, the codec 192"),
        (lambda c: c.diffusion.update(schedule="square"), "schedule 'square' is unknown"),
        (lambda c: c.sample.update(solver="guess"), "guess"),
        (lambda c: c.train.update(spike_factor=0.5), "spike_factor is 0.5: 0, which is off, or more than 1"),
        (lambda c: c.train.update(base_batch_size=-1), "base_batch_size is -1: 0 or more"),
        (
            lambda c: c.mesh.update(context=3),
            "mesh.context is 3: .* a divisor of 2 is accepted",
        ),
        (
            lambda c: c.mesh.update(tensor=2),
            "mesh.tensor is 2: for this model and its clips 1 is accepted, it splits nothing",
        ),
        (
            lambda c: (c.model.update(block_out_channels=(1024,)), c.mesh.update(tensor=4)),
            "mesh.tensor is 4: for this model and its clips a divisor of 2 is accepted",
        ),
    ],
)
def test_values_that_do_not_fit_are_refused_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        DiffusionRecipe(changed(change))


def test_devices_that_are_left_for_tensor_are_counted_when_the_mesh_is_there():
    config = changed(lambda c: (c.model.update(block_out_channels=(1024,)), c.mesh.update(data=1, tensor=-1)))
    with pytest.raises(ValueError, match="mesh.tensor is 8: .* a divisor of 2"):
        DiffusionRecipe(config).abstract_state(jax.random.key(0), make_mesh(data=1, tensor=-1))


def test_a_mesh_may_split_what_the_heads_of_wide_levels_divide():
    levels = {"attention_levels": (False, True, False)}
    m3ddm = registry.build("m3ddm", block_out_channels=(8, 1024, 2048), num_heads=4, **levels)
    assert m3ddm.mesh_limits(6) == {"context": 6, "tensor": 4}
    assert m3ddm.clone(block_out_channels=(8, 16, 32)).mesh_limits(6)["tensor"] == 1
    # Levels without attention may be split into any number of parts: 0 is a multiple of all.
    assert m3ddm.clone(block_out_channels=(1024, 16, 32)).mesh_limits(6)["tensor"] == 0
    widths = {"block_out_channels": (1024, 2048), "attention_levels": (True, False), "num_heads": (8, 6)}
    globalpaint = registry.build("globalpaint", **widths, extractor_width=1024, extractor_heads=5)
    assert globalpaint.mesh_limits(6) == {"context": 1, "tensor": 1}
    assert globalpaint.clone(global_guidance=False).mesh_limits(6) == {"context": 1, "tensor": 2}


def test_the_rate_follows_the_batch():
    changes = {"learning_rate": 1e-3, "warmup_steps": 1, "weight_decay": 0.0, "base_batch_size": 2}  # of 8
    optimizer = DiffusionRecipe(changed(lambda c: c.train.update(changes))).optimizer
    params, sizes = {"w": np.ones(3, np.float32)}, []
    state = optimizer.init(params)
    for _ in range(2):
        update, state = optimizer.update(params, state, params)
        sizes.append(-float(update["w"][0]))
    # With a constant gradient every update of Adam has the size of the rate: twice as high, after twice as many.
    np.testing.assert_allclose(sizes, [1e-3, 2e-3], rtol=1e-4)
