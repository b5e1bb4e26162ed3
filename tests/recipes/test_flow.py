"""Training of flow completion as a run: resume, export, pictures, where flow comes from and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common, isvi_flow, isvi_flow_tiny
from m3ddm_jax import train as trainer
from m3ddm_jax.models import registry
from m3ddm_jax.parallel.mesh import make_mesh
from m3ddm_jax.recipes import base
from m3ddm_jax.recipes.flow import FlowRecipe, flow_picture
from m3ddm_jax.weights import load_model, save_model


def make_config(change=lambda config: None):
    """The tiny config, smaller: three flows between 4 frames of 16 x 16 pixels."""
    config = isvi_flow_tiny.get_config()
    config.model.update(width=4, interval=1)
    config.data.update(num_frames=4, buckets=((16, 16),))
    config.train.update(steps=4, batch_size=2, log_every=1, save_every=2, evaluate_every=2, evaluate_batches=1)
    config.mesh.update(data=1)
    change(config)
    return config


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
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
    assert jax.random.key_data(again.rng).tolist() == jax.random.key_data(state.rng).tolist()
    jax.tree.map(np.testing.assert_array_equal, again.replace(rng=0), state.replace(rng=0))
    lines = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert all(line["endpoint_error_filled"] > 0 for line in lines if "loss" in line)


def test_the_exported_folder_is_the_averaged_network(straight):
    workdir, state = straight
    module, variables = load_model(workdir / "model")
    assert registry.describe(module)[0] == "igfc" and variables.keys() == {"params"}
    jax.tree.map(np.testing.assert_array_equal, variables["params"], jax.device_get(state.ema_params))


def test_pictures_are_of_the_middle_flow(straight):
    _, state = straight
    recipe = FlowRecipe(make_config())
    batch = next(iter(recipe.dataset(0)))
    del batch["clip_id"]
    made, truth, unknown, *_ = jax.jit(recipe.complete)(state, batch, {})
    assert made.shape == truth.shape == (2, 1, 16, 16, 3) and made.dtype == np.uint8
    np.testing.assert_array_equal(unknown, batch["mask"][:, 1:2] > 0)
    np.testing.assert_array_equal(np.where(unknown, 0, made), np.where(unknown, 0, truth))
    assert np.any(made != truth)


def test_colours_are_linear_in_flow():
    flow = np.array([[0.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 2.0]], np.float32)
    picture = np.asarray(flow_picture(flow, 2.0)).astype(int)
    assert picture[0].tolist() == [127] * 3
    assert picture[1].tolist() == [255, 63, 63] and picture[2].tolist() == [63, 159, 159]
    assert picture[3].tolist() == [127, 237, 17]
    assert np.isfinite(flow_picture(flow, 0.0)).all()


@pytest.fixture(scope="module")
def raft_folder(tmp_path_factory):
    """A slim RAFT with random weights."""
    folder, module = tmp_path_factory.mktemp("raft"), registry.build("raft", width=4, small=True)
    rng = np.random.default_rng(0)
    shapes = registry.abstract_variables(module)
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), dict(shapes))
    save_model(folder, module, variables)
    return str(folder)


def test_a_frozen_raft_tells_the_flow_of_clips_that_have_none(raft_folder):
    config = make_config(lambda c: c.flow.update(raft=raft_folder, iterations=2))
    config.data.update(sources=({"kind": "synthetic", "path": "", "weight": 1.0},), buckets=((128, 128),))
    recipe = FlowRecipe(config)
    assert recipe.frozen.keys() == {"estimator"} and recipe.fixed["estimator"]["kind"] == "raft"
    batch = next(iter(recipe.dataset(0)))
    assert "flow" not in batch
    del batch["clip_id"]
    mesh = make_mesh(data=1, devices=jax.devices()[:1])
    state = recipe.abstract_state(jax.random.key(0), mesh)
    after, metrics = jax.eval_shape(recipe.step, state, batch, recipe.frozen)
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, state)
    assert {"ternary", "endpoint_error_filled"} <= metrics.keys()


def test_kernels_begin_wide_enough_for_rectifiers(monkeypatch):
    plain = {"params": {"kernel": np.ones((3, 3, 2, 4)), "bias": np.ones(4)}, "other": np.ones((2, 2))}
    monkeypatch.setattr(registry, "init", lambda module, key: plain)
    wide = base.init_for_relu(None, jax.random.key(0))
    np.testing.assert_allclose(wide["params"]["kernel"], 2**0.5)
    np.testing.assert_array_equal(wide["params"]["bias"], 1)
    np.testing.assert_array_equal(wide["other"], 1)


def sources(*kinds):
    return {"sources": tuple({"kind": kind, "path": "", "weight": 1.0} for kind in kinds)}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.data.update(sources("videos")), "flow.raft is empty and data.sources are of the kind videos"),
        (lambda c: c.data.update(sources("motion", "videos")), "flow.raft is empty and .* the kind videos"),
        (
            lambda c: c.flow.update(raft="somewhere"),
            "flow.raft is 'somewhere' and sources of the kind motion",
        ),
        (lambda c: c.data.update(num_frames=5), "data.num_frames is 5: 4 are accepted, for 3 flows"),
        (lambda c: c.data.update(references=1), "data.references is 1"),
        (lambda c: c.data.update(buckets=((16, 20),)), r"bucket \(16, 20\): sides that are multiples of 8"),
        (lambda c: c.train.update(accumulate=2), "accumulate is 2"),
        (lambda c: c.train.update(spike_factor=0.5), "spike_factor is 0.5: 0, which is off, or more than 1"),
        (lambda c: c.flow.weights.update(hole=-1.0), "'hole': -1.0.*0 or more is accepted"),
        (lambda c: c.flow.weights.update(holes=1.0), "flow.weights are .*holes.*: those of hole, valid"),
        (lambda c: c.flow.update(surplus=1), "has surplus that is not known"),
        (
            lambda c: c.__setattr__("model", ConfigDict({"kind": "asfn"})),
            "kind 'asfn' does not fit .*: igfc",
        ),
    ],
)
def test_values_that_do_not_fit_are_refused_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        FlowRecipe(make_config(change))


def test_a_folder_of_another_network_tells_no_flow(tmp_path):
    module = registry.build("asfn", width=4)
    shapes = registry.abstract_variables(module)
    save_model(tmp_path, module, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), dict(shapes)))
    config = make_config(lambda c: c.flow.update(raft=str(tmp_path)))
    config.data.update(sources("videos"))
    with pytest.raises(ValueError, match="holds a model of kind asfn: one of kind raft is needed"):
        FlowRecipe(config)


def test_configs_are_whole_and_the_full_size_is_the_published_network():
    full = isvi_flow.get_config()
    base.check_config(full, common.flow(), built=("model",))
    count = sum(leaf.size for leaf in jax.tree.leaves(registry.abstract_variables(base.build_model(full.model))))
    assert 3.80e6 < count < 3.82e6
    assert (full.train.learning_rate, full.train.batch_size, full.train.steps) == (1e-4, 4, 280_000)
    assert (full.train.decay_every, full.data.buckets, full.data.num_frames) == (120_000, ((256, 256),), 8)
    FlowRecipe(isvi_flow_tiny.get_config())
