import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import m3ddm_tiny
from m3ddm_jax.models import registry
from m3ddm_jax.parallel.mesh import make_mesh, put_batch, replicated
from m3ddm_jax.recipes.diffusion import DiffusionRecipe
from m3ddm_jax.training.diffusion_step import calibrated_batch_stats, has_initial_batch_stats
from m3ddm_jax.training.encoding import encode_batch, encode_frames
from m3ddm_jax.training.state import init_state, shardings_of

CONFIG = m3ddm_tiny.get_config()
CONFIG.model.update(block_out_channels=(32,), attention_levels=(False,))  # one level: a second takes long to compile
RECIPE = DiffusionRecipe(CONFIG)
CONFIG.train.update(spike_factor=5.0, spike_patience=2)
SKIPPING = DiffusionRecipe(CONFIG)


def make_batch(clips=8, frames=2, side=32):
    """Colour ramps that differ by clip; the last 15 of 32 columns are to be generated."""
    ramps = np.linspace(0, 1, side)[:, None, None] * np.random.default_rng(0).uniform(0, 255, (clips, 1, 1, 1, 3))
    mask = (np.arange(side) > side // 2).astype(np.uint8)
    return {
        "video": np.broadcast_to(ramps, (clips, frames, side, side, 3)).astype(np.uint8),
        "mask": np.broadcast_to(mask[:, None], (clips, frames, side, side, 1)),
        "global_frames": np.random.default_rng(1).integers(0, 256, (clips, 2, 48, 48, 3), np.uint8),
        "fps": np.full(clips, 12.0, np.float32),
    }


class Trainer:
    """A recipe's step as `train` compiles it, on a mesh, from the same initial state as every other."""

    def __init__(self, mesh, recipe):
        self.mesh = mesh
        with jax.set_mesh(mesh):
            rng = jax.random.key(0)
            init = functools.partial(registry.init, recipe.model)
            self.like = recipe.abstract_state(rng, mesh)
            self.state = init_state(init, recipe.optimizer, rng, self.like)
        self.batch = put_batch(mesh, make_batch())
        out_shardings = (shardings_of(self.like), replicated(mesh))
        self.jitted = jax.jit(recipe.step, donate_argnums=0, out_shardings=out_shardings)

    def fresh(self):
        """The initial state in memory of its own, which a step may take."""

        def copy(x):
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(copy(jax.random.key_data(x)))
            return jax.device_put(np.array(x), x.sharding)

        return jax.tree.map(copy, self.state)

    def step(self, state, **changed):
        with jax.set_mesh(self.mesh):
            return self.jitted(state, self.batch | changed, RECIPE.frozen)


@pytest.fixture(scope="module")
def one():
    """With the policy that skips updates, which changes nothing where it skips none."""
    return Trainer(make_mesh(devices=jax.devices()[:1]), SKIPPING)


@pytest.fixture(scope="module")
def eight():
    return Trainer(make_mesh(data=2, fsdp=4), RECIPE)


def gradients(state):
    """After one update the first moment is a tenth of the clipped gradient."""
    return jax.tree.map(lambda x: 10 * x, optax.tree.get(state.opt_state, "mu"))


def assert_close(a, b, tolerance=1e-5):
    scale = float(optax.tree.norm(b)) / np.sqrt(len(jax.tree.leaves(b)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=tolerance * scale), a, b)


def test_eight_devices_agree_with_one(one, eight):
    (state_1, metrics_1), (state_8, metrics_8) = one.step(one.fresh()), eight.step(eight.fresh())
    np.testing.assert_allclose(metrics_8["loss"], metrics_1["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics_8["grad_norm"], metrics_1["grad_norm"], rtol=1e-5)
    assert_close(gradients(state_8), gradients(state_1))


def test_accumulation_changes_nothing(one):
    config = CONFIG.copy_and_resolve_references()
    config.train.accumulate = 4
    state_1, metrics_1 = one.step(one.fresh())
    with jax.set_mesh(one.mesh):
        state_4, metrics_4 = jax.jit(DiffusionRecipe(config).step)(one.state, one.batch, RECIPE.frozen)
    np.testing.assert_allclose(metrics_4["loss"], metrics_1["loss"], rtol=1e-5)
    assert_close(gradients(state_4), gradients(state_1))


@contextlib.contextmanager
def compiled_programs():
    seen = []

    def note(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield seen
    jax.monitoring.unregister_event_duration_listener(note)


def test_what_a_step_returns_lies_as_it_did_and_compiles_once(eight):
    state, _ = eight.step(eight.fresh())
    with compiled_programs() as seen:
        for _ in range(2):
            state, _ = eight.step(state)
        assert not seen
        jax.jit(lambda x: x + 1)(state.step)
        assert seen
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, eight.like)
    split = [leaf for leaf in jax.tree.leaves(state) if leaf.size >= 4096]
    trees = (
        state.params,
        state.ema_params,
        optax.tree.get(state.opt_state, "mu"),
        optax.tree.get(state.opt_state, "nu"),
    )
    assert len(split) == sum(leaf.size >= 4096 for tree in trees for leaf in jax.tree.leaves(tree)) > 20
    for leaf in split:
        assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // 4}


def test_loss_falls_on_one_batch_and_statistics_stay(one):
    state, first = one.step(one.fresh())
    for _ in range(40):
        state, _ = one.step(state)
    assert int(state.step) == 41
    # The draws follow from the step alone: back at step 0, the same noise and timesteps.
    state, last = one.step(state.replace(step=jnp.zeros_like(state.step)))
    assert last["loss"] < 0.7 * first["loss"]
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, one.state.batch_stats)


def test_each_step_draws_anew_and_repeatably(one):
    later = one.fresh()
    later = later.replace(step=later.step + 1)
    losses = [float(one.step(state)[1]["loss"]) for state in (one.fresh(), one.fresh(), later)]
    assert losses[0] == losses[1] != losses[2]


def test_norms_of_parts_make_up_the_whole(one):
    _, metrics = one.step(one.fresh())
    parts = {name: float(norm) for name, norm in metrics.items() if name.startswith("grad_norm/")}
    assert {name.removeprefix("grad_norm/") for name in parts} == set(one.state.params)
    np.testing.assert_allclose(np.sqrt(sum(norm**2 for norm in parts.values())), metrics["grad_norm"], rtol=1e-5)


def test_a_skipped_update_changes_nothing_but_the_step(one):
    state, metrics = one.step(one.fresh())
    assert (metrics["skipped"], metrics["stuck"]) == (0, 0)
    kept = jax.device_get((state.params, state.ema_params, state.opt_state.inner))
    state, metrics = one.step(state, **put_batch(one.mesh, {"fps": np.full(8, np.nan, np.float32)}))
    assert np.isnan(metrics["loss"]) and (metrics["skipped"], metrics["stuck"]) == (1, 0)
    # A norm far above those that came before; two in a row are too many here.
    settled = state.opt_state._replace(applied=np.int32(100), mean_norm=np.asarray(state.opt_state.mean_norm / 1000))
    settled = jax.device_put(settled, shardings_of(one.like.opt_state))
    state, metrics = one.step(state.replace(opt_state=settled))
    assert np.isfinite(metrics["loss"]) and (metrics["skipped"], metrics["stuck"]) == (1, 1)
    assert int(state.step) == 3
    found = jax.device_get((state.params, state.ema_params, state.opt_state.inner))
    jax.tree.map(np.testing.assert_array_equal, found, kept)


def test_latents_train_as_the_pixels_they_were_made_of(one):
    encoded = jax.jit(functools.partial(encode_batch, RECIPE.encoders))(RECIPE.frozen, make_batch())
    kept = {"mask": np.uint8, "fps": np.float32}
    stored = {name: np.asarray(value, kept.get(name, np.float16)) for name, value in encoded.items()}
    # Of the loss alone: the compiler leaves the backward pass out.
    loss = jax.jit(lambda *arguments: SKIPPING.step(*arguments)[1]["loss"])
    with jax.set_mesh(one.mesh):
        latent_loss = loss(one.state, put_batch(one.mesh, stored), RECIPE.frozen)
    # Half precision rounds latents by 1 in 2048, and the loss is a mean over 100,000 of them.
    np.testing.assert_allclose(latent_loss, one.step(one.fresh())[1]["loss"], rtol=1e-4)


def test_calibration_sets_the_statistics_and_nothing_else(one):
    frames = make_batch()["global_frames"] / np.float32(127.5) - 1
    calibrate = jax.jit(functools.partial(calibrated_batch_stats, RECIPE.model))
    global_latents, _ = encode_frames(RECIPE.encoders.autoencoder, {}, frames)
    stats = calibrate(one.state, global_latents)
    assert jax.tree.map(jnp.shape, stats) == jax.tree.map(jnp.shape, one.state.batch_stats)
    calibrated = one.state.replace(batch_stats=stats)
    assert has_initial_batch_stats(one.state) and not has_initial_batch_stats(calibrated)
    again = calibrate(calibrated, global_latents)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), again, stats)
