"""Training both stages of GlobalPaint by the diffusion recipe: what learns when, what is left, what is refused."""

import functools
import json
import pathlib
import shutil
from typing import NamedTuple

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import globalpaint_interp_tiny, globalpaint_key_tiny
from data.latents import LatentFolder
from m3ddm_jax import precompute
from m3ddm_jax import train as trainer
from m3ddm_jax.models import registry
from m3ddm_jax.models.globalpaint import NEW_PARAMETERS
from m3ddm_jax.parallel.mesh import make_mesh, put_batch
from m3ddm_jax.pipelines.globalpaint import GlobalpaintSettings
from m3ddm_jax.recipes.diffusion import DiffusionRecipe
from m3ddm_jax.training.checkpoint import Checkpoints
from m3ddm_jax.training.encoding import encode_batch, make_conditions
from m3ddm_jax.training.state import TrainState
from m3ddm_jax.weights import load_autoencoder, load_image_encoder, load_model, load_settings, save_model

pytestmark = pytest.mark.usefixtures("quick_init")


def shrunk(config, **train):
    """The tiny config at a size of which nothing is worth seeing."""
    config.model.update(block_out_channels=(16,), attention_levels=(False,), num_heads=(2,), est_window=(2, 2, 2))
    config.model.update(num_global_tokens=3, global_tokens_dim=8, patch_width=8, extractor_width=8)
    config.model.update(frame_tokens=2, extractor_depths=(1, 1))
    config.image_encoder.update(image_size=32, width=8, layers=2, mlp_width=16)
    config.data.update(num_frames=3, buckets=((32, 32),), global_frames=2, global_size=32)
    config.sample.update(lines=32, num_frames=3, global_frames=2, steps=2, guidance_interval=(0.0, 1.0))
    config.train.update(steps=4, log_every=1, save_every=2, evaluate_every=0, warmup_steps=1)
    config.train.update(train)
    return config


def key_config(**train):
    return shrunk(globalpaint_key_tiny.get_config(), **train)


def changed(change, config=None):
    config = config or key_config()
    change(config)
    return config


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model folder of random numbers, of which no gate is shut, as (folder, variables)."""
    module = DiffusionRecipe(key_config()).model
    rng = np.random.default_rng(0)
    shapes = registry.abstract_variables(module)
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
    folder = tmp_path_factory.mktemp("start") / "model"
    save_model(folder, module, variables)
    return str(folder), variables


class Runs(NamedTuple):
    """Four updates in one run, and as it was when it had made two, also as a folder."""

    straight: TrainState
    second: TrainState
    workdir: pathlib.Path
    halved: pathlib.Path


@pytest.fixture(scope="module")
def config_of_runs(start):
    return key_config(init_from=start[0], frozen_steps=2, pretrained_rate=0.1, drop_global=0.5, weight_decay=0.0)


@pytest.fixture(scope="module")
def runs(quick_init, config_of_runs, tmp_path_factory):
    root, config = tmp_path_factory.mktemp("runs"), config_of_runs
    straight = trainer.train(config, root / "run", jax.devices()[:1])
    shutil.copytree(root / "run", root / "halved", ignore=shutil.ignore_patterns("model"))
    shutil.rmtree(root / "halved" / "checkpoints" / "4")
    recipe, mesh = DiffusionRecipe(config), make_mesh(devices=jax.devices()[:1])
    facts = {"fixed": recipe.fixed, "config": config.to_dict(), "mesh": mesh}
    checkpoints = Checkpoints(root / "halved" / "checkpoints", keep=3, **facts)
    second, _ = checkpoints.restore(recipe.abstract_state(jax.random.key(0), mesh))
    checkpoints.close()
    return Runs(straight, second, root / "run", root / "halved")


def moved(params, before):
    """By path, whether a parameter is another than before."""
    params, before = (flatten_dict(jax.device_get(tree), sep=".") for tree in (params, before["params"]))
    return {path: bool(np.any(params[path] != before[path])) for path in before}


def test_new_layers_learn_at_once_and_pretrained_ones_when_they_may(runs, start):
    early, late = moved(runs.second.params, start[1]), moved(runs.straight.params, start[1])
    ready = {path for path in early if "conv_in." in path or path.endswith(("attn1.to_q.kernel", "attn2.to_q.kernel"))}
    learning = {path for path in early if NEW_PARAMETERS.search(path) or path in ready}
    assert len(ready) == 4 and len(learning) < len(early) - 20
    assert {path for path in early if early[path]} == learning - {"empty_prompt"}
    assert {path for path in late if not late[path]} == {"empty_prompt"}
    # Some clips are told of the whole video, others are not.
    assert early["null_tokens"] and early["global_extractor.proj_out.kernel"]


@pytest.mark.slow
def test_a_run_goes_on_as_if_it_had_not_stopped(runs, config_of_runs):
    resumed = trainer.train(config_of_runs, runs.halved, jax.devices()[:1])
    plain = (
        jax.tree.map(lambda x: jax.random.key_data(x) if x.dtype == runs.straight.rng.dtype else x, state)
        for state in (resumed, runs.straight)
    )
    jax.tree.map(np.testing.assert_array_equal, *plain)
    lines = [json.loads(line) for line in (runs.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)


def test_the_exported_folder_is_whole_and_the_other_stage_starts_from_it(runs):
    folder = runs.workdir / "model"
    module, variables = load_model(folder)
    recipe = DiffusionRecipe(key_config())
    assert module == recipe.model
    jax.tree.map(np.testing.assert_array_equal, variables["params"], jax.device_get(runs.straight.ema_params))
    assert load_autoencoder(folder)[0] == recipe.encoders.autoencoder
    encoder, encoder_variables = load_image_encoder(folder)
    assert encoder == recipe.encoders.image_encoder
    jax.tree.map(np.testing.assert_array_equal, encoder_variables, recipe.frozen["image_encoder"])
    settings = load_settings(folder)
    assert settings["stage"] == "key_frames" and settings["diffusion"]["prediction"] == "x0"
    assert GlobalpaintSettings(**settings["sample"]).num_frames == 3

    config = shrunk(globalpaint_interp_tiny.get_config(), init_from=str(folder))
    config.image_encoder = {"folder": str(folder / "image_encoder")}
    other, mesh = DiffusionRecipe(config), make_mesh(devices=jax.devices()[:1])
    assert other.fixed == recipe.fixed | {"stage": "interpolation"}
    with jax.set_mesh(mesh):
        like = other.abstract_state(jax.random.key(0), mesh)
        state = other.begin(jax.random.key(0), like, {}, other.frozen)
    jax.tree.map(np.testing.assert_array_equal, state.params, variables["params"])
    masked = next(iter(other.dataset(0)))["mask"].any(axis=(2, 3, 4))
    assert not masked[:, [0, 2]].any() and masked[:, 1].all()


def test_what_is_shown_keeps_what_is_known(runs):
    recipe = DiffusionRecipe(key_config())
    batch = next(iter(recipe.dataset(1)))
    del batch["clip_id"]
    shown = jax.jit(recipe.complete)(runs.straight, batch, recipe.frozen)
    np.testing.assert_array_equal(shown.truth, batch["video"])
    np.testing.assert_array_equal(np.where(batch["mask"], 0, shown.made), np.where(batch["mask"], 0, batch["video"]))
    assert np.any(shown.made != batch["video"])


def test_precomputed_evidence_is_what_the_encoder_sees(tmp_path):
    config = key_config()
    assert not precompute.precompute(config, tmp_path / "out", 4, batch_size=4, devices=jax.devices()[:1])
    records = LatentFolder(tmp_path / "out").bucket((32, 32))
    dtypes = {name: records[0][name].dtype for name in ("patch_tokens", "coordinates", "observed", "times")}
    assert dtypes == {"patch_tokens": np.float16, "coordinates": np.float32, "observed": bool, "times": np.float32}
    assert records[0].keys() & {"global_mean", "global_frames"} == set()

    recipe = DiffusionRecipe(config)
    batch = next(iter(precompute.make_clips(config, (32, 32), 4)))
    del batch["clip_id"]
    seen = jax.jit(lambda batch: make_conditions(encode_batch(recipe.encoders, recipe.frozen, batch)))(batch)
    config.data.sources = ({"kind": "latents", "path": str(tmp_path / "out"), "weight": 1.0},)
    stored = next(iter(DiffusionRecipe(config).dataset(0)))
    names = stored.pop("clip_id").tolist()
    order = np.array([names.index(records[place]["clip_id"]) for place in range(4)])
    loaded = jax.tree.map(lambda x: x[order], make_conditions(stored))
    # Half precision rounds by 1 in 2048.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), loaded, seen)


def test_without_global_guidance_there_is_no_image_encoder():
    recipe = DiffusionRecipe(changed(lambda c: c.model.update(global_guidance=False)))
    assert recipe.frozen.keys() == {"autoencoder"} and "image_encoder" not in recipe.fixed
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        like = recipe.abstract_state(jax.random.key(0), mesh)
        batch = put_batch(mesh, next(iter(recipe.dataset(0))))
        _, metrics = jax.eval_shape(recipe.step, like, batch, recipe.frozen)
    assert {name for name in metrics if "/" not in name} == {
        "loss",
        "grad_norm",
        "update_norm",
        "param_norm",
        "learning_rate",
    }
    assert not any("global" in name for name in metrics)


def test_random_image_encoders_follow_from_their_seed():
    first, again, other = (
        DiffusionRecipe(changed(lambda c, seed=seed: c.image_encoder.update(seed=seed))).fixed["image_encoder"]
        for seed in (0, 0, 1)
    )
    assert first == again and first["weights"] != other["weights"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(stage="middle"), "stage 'middle' is unknown: key_frames and interpolation are accepted"),
        (lambda c: c.__delitem__("stage"), "no section stage"),
        (lambda c: c.__delitem__("image_encoder"), "no section image_encoder"),
        (lambda c: c.data.update(global_fit="stretch"), "global_fit is 'stretch' and global_size 32: .* 'pad' and 32"),
        (lambda c: c.data.update(global_size=64), "global_fit is 'pad' and global_size 64: .* 'pad' and 32"),
        (lambda c: c.model.update(patch_width=9), "patch_width is 9, the image encoder's width 8"),
        (
            lambda c: c.__setitem__("image_encoder", {"kind": "patch_codec"}),
            "kind .patch_codec. does not fit this recipe: openclip",
        ),
        (lambda c: c.__setitem__("image_encoder", {"folder": "nowhere"}), "nowhere is not a model folder"),
        (lambda c: c.train.__delitem__("frozen_steps"), "section train lacks frozen_steps"),
        (lambda c: c.model.update(kind="e2fgvi"), "model kind 'e2fgvi' does not fit this recipe: globalpaint or m3ddm"),
    ],
)
def test_what_does_not_fit_is_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        DiffusionRecipe(changed(change))
    assert "\n" not in str(error.value)
