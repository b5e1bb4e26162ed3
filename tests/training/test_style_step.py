import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m3ddm_jax.models import registry
from m3ddm_jax.models.asfn import StyleDiscriminator
from m3ddm_jax.training.gan_state import Optimizers, create_gan_state
from m3ddm_jax.training.optim import skip_spikes
from m3ddm_jax.training.style_step import StyleTask, hole_error, make_style_step, make_style_tasks

pytestmark = pytest.mark.usefixtures("quick_init")

SIDE = 16
DISCRIMINATOR = StyleDiscriminator(width=2)
OPTIMIZERS = Optimizers(*(skip_spikes(optax.sgd(rate), 5.0) for rate in (1.0, 1e-2)))


class Gain:
    """A network in little: it makes what is lent as strong as it has learnt."""

    def apply(self, variables, gradients, mask):
        return jnp.where(mask > 0, variables["params"]["gain"] * gradients, gradients)


MODEL = Gain()


@pytest.fixture(scope="module")
def batch():
    """Two frames; to the first is lent what is half as strong, to the second nothing."""
    rng = np.random.default_rng(0)
    video, mask = rng.integers(0, 255, (2, 1, SIDE, SIDE, 3), np.uint8), np.zeros((2, 1, SIDE, SIDE, 1), np.uint8)
    mask[:, :, :, :6] = 1
    image = video[:, 0].astype(np.float32) / 255
    right = np.diff(image, axis=2, append=image[:, :, -1:])
    down = np.diff(image, axis=1, append=image[:, -1:])
    truth = np.stack([right, down], axis=1)
    lent = np.where(mask > 0, truth * np.array([0.5, 0.0]).reshape(2, 1, 1, 1, 1), truth)
    return {"video": video, "mask": mask, "lent": lent.astype(np.float32)}


@pytest.fixture(scope="module")
def step():
    options = {"reconstruction": 2.0, "adversarial": 0.5, "ema_decay": 0.9, "spike_patience": 2}
    return jax.jit(make_style_step(MODEL, DISCRIMINATOR, OPTIMIZERS, **options))


def begin():
    discriminator = jax.jit(registry.init, static_argnums=0)(DISCRIMINATOR, jax.random.key(0))
    return create_gan_state({"params": {"gain": jnp.ones(())}}, discriminator, OPTIMIZERS, jax.random.key(1))


def test_tasks_are_fields_of_both_directions_blue_first(batch):
    task = make_style_tasks(batch)
    assert task.lent.shape == task.truth.shape == (4, SIDE, SIDE, 3)
    np.testing.assert_array_equal(task.mask, batch["mask"][[0, 0, 1, 1], 0])
    image = batch["video"][1, 0].astype(np.float32)[..., ::-1] / 255
    np.testing.assert_allclose(task.truth[2, :, :-1], np.diff(image, axis=1), atol=1e-6)
    np.testing.assert_allclose(task.truth[3, :-1], np.diff(image, axis=0), atol=1e-6)
    assert not task.truth[2, :, -1].any() and not task.truth[3, -1].any()
    known = np.broadcast_to(task.mask == 0, task.truth.shape)
    np.testing.assert_allclose(task.lent[known], task.truth[known], atol=1e-6)
    np.testing.assert_allclose(task.lent[:2], np.where(known[:2], 1, 0.5) * task.truth[:2], atol=1e-6)


def test_the_error_counts_in_the_hole_alone():
    truth = jnp.zeros((2, 4, 4, 3))
    mask = jnp.zeros((2, 4, 4, 1)).at[0, 0, :2].set(1)
    task = StyleTask(truth, truth, mask)
    assert hole_error(truth + jnp.where(mask > 0, 0.25, 7.0), task) == pytest.approx(0.25)
    assert hole_error(truth + 7, task._replace(mask=jnp.zeros_like(mask))) == 0


def test_an_update_is_of_both_networks_by_their_own_losses(batch, step):
    state = begin()
    after, metrics = step(state, batch, {})
    task = make_style_tasks(batch)
    made = MODEL.apply({"params": state.params}, task.lent, task.mask)
    judge = {"params": state.discriminator_params, "spectral": state.spectral}
    pasted = jnp.where(task.mask > 0, made, task.truth)
    adversarial = -float(jax.jit(DISCRIMINATOR.apply)(judge, pasted).mean())
    assert metrics["hole"] == pytest.approx(float(hole_error(made, task)), rel=1e-3)
    assert metrics["valid"] < 1e-6  # colours divided by 255, there and here
    assert metrics["adversarial"] == pytest.approx(adversarial, abs=1e-5)
    assert metrics["hole_lent"] == pytest.approx(float(hole_error(task.lent, task)), rel=1e-5)
    assert metrics["loss"] == pytest.approx(2 * float(metrics["hole"]) + 0.5 * adversarial, rel=1e-3)
    real, fake = metrics["real"], metrics["fake"]
    # Logits of a random network are small, so that no hinge is at its end.
    assert metrics["discriminator_loss"] == pytest.approx(1 + float(fake - real) / 2, rel=1e-3)
    for name in ("params", "discriminator_params", "spectral"):
        changed = jax.tree.map(lambda new, old: bool((new != old).any()), getattr(after, name), getattr(state, name))
        assert any(jax.tree.leaves(changed)), name
    jax.tree.map(np.testing.assert_array_equal, after.ema_params, after.params)
    assert after.step == 1 and after.discriminator_rate == 1 and after.confident_steps == 0


def test_it_learns_what_what_is_lent_lacks(batch, step):
    """Half of what it should be in one frame, all of nothing in the other: the gain that is right is 2."""
    state, errors = begin(), []
    for _ in range(25):
        state, metrics = step(state, batch, {})
        errors.append(float(metrics["hole"]))
    assert state.params["gain"] == pytest.approx(2, abs=0.25)
    assert errors[-1] < 0.75 * errors[0]


@pytest.mark.parametrize("value", [0, 1])
def test_masks_without_a_hole_or_without_anything_known_are_finite(batch, step, value):
    after, metrics = step(begin(), batch | {"mask": np.full_like(batch["mask"], value)}, {})
    assert all(np.isfinite(found) for found in metrics.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after.params, after.discriminator_params)))
    if value == 0:
        assert metrics["hole"] == metrics["hole_lent"] == 0


def test_each_network_skips_its_own_updates(batch, step):
    before, metrics = step(begin(), batch, {})
    assert (metrics["skipped"], metrics["stuck"]) == (0, 0)
    # What is lent goes through the network to its discriminator.
    after, metrics = step(before, batch | {"lent": np.full_like(batch["lent"], np.nan)}, {})
    assert (metrics["skipped"], metrics["stuck"], after.step) == (1, 0, 2)
    for name in ("params", "ema_params", "discriminator_params", "spectral"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    # A norm far above the discriminator's: the network alone goes on, and two in a row are too many.
    settled = before.discriminator_opt_state._replace(
        applied=jnp.int32(100), mean_norm=jnp.float32(1e-9), in_a_row=jnp.int32(1)
    )
    after, metrics = step(before.replace(discriminator_opt_state=settled), batch, {})
    assert np.isfinite(metrics["loss"]) and (metrics["skipped"], metrics["stuck"]) == (1, 1)
    assert after.params["gain"] != before.params["gain"]
    jax.tree.map(np.testing.assert_array_equal, after.discriminator_params, before.discriminator_params)
