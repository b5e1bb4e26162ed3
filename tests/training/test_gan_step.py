import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m3ddm_jax.losses.outpainting import OutpaintingWeights
from m3ddm_jax.models import registry
from m3ddm_jax.models.discriminator import HierarchicalDiscriminator, power_iteration
from m3ddm_jax.parallel.mesh import make_mesh, put_batch, replicated
from m3ddm_jax.training.gan_state import Optimizers, create_gan_state
from m3ddm_jax.training.gan_step import AdversarialSettings, composite, guarded_rate, make_gan_step, ramp_at
from m3ddm_jax.training.optim import make_gan_optimizer, skip_spikes
from m3ddm_jax.training.state import abstract, shardings_of

pytestmark = pytest.mark.usefixtures("quick_init")

FRAMES, LOCAL, SIDE = 3, 2, 32
DISCRIMINATOR = HierarchicalDiscriminator(width=2, tube_size=16)
OPTIMIZERS = Optimizers(
    skip_spikes(make_gan_optimizer(1e-3, clip_norm=1.0), 5.0), skip_spikes(make_gan_optimizer(1e-3), 5.0)
)
WARMUP = 2
SETTINGS = AdversarialSettings(
    ema_decay=0.999,
    weights=OutpaintingWeights(flow=0.0),
    plain_tubes=2,
    zoomed_tubes=1,
    discriminator_warmup=WARMUP,
    ramp_steps=4,
    guard_steps=2,
)


class Toy(nn.Module):
    """One convolution over a frame with its unknown pixels at 0."""

    @nn.compact
    def __call__(self, frames):
        return nn.tanh(nn.Conv(3, (5, 5))(frames))


def make_generator(batch, frozen, rng):
    def generate(variables, frames, mask, num_local):
        assert num_local == LOCAL
        return Toy().apply({"params": variables["params"]}, jnp.where(mask > 0, 0.0, frames)), {}

    return generate


def make_batch(clips=4, masked=12, frames=FRAMES):
    """Noise of another brightness in each clip; the last `masked` of the columns are to be generated."""
    video = np.random.default_rng(0).integers(0, 256, (clips, frames, SIDE, SIDE, 3), np.uint8)
    mask = (np.arange(SIDE) >= SIDE - masked).astype(np.uint8)
    return {
        "video": video // np.arange(1, clips + 1, dtype=np.uint8).reshape(-1, 1, 1, 1, 1),
        "mask": np.array(np.broadcast_to(mask[:, None], (clips, frames, SIDE, SIDE, 1))),
    }


def create(key):
    generator_key, discriminator_key, run_key = jax.random.split(key, 3)
    variables = Toy().init(generator_key, jnp.zeros((1, SIDE, SIDE, 3)))
    return create_gan_state(variables, registry.init(DISCRIMINATOR, discriminator_key), OPTIMIZERS, run_key)


def make_step(**changed):
    settings = dataclasses.replace(SETTINGS, **changed)
    options = {"num_local": LOCAL, "settings": settings, "spike_patience": 2}
    return make_gan_step(make_generator, DISCRIMINATOR, OPTIMIZERS, **options)


@pytest.fixture(scope="module")
def initial(quick_init):
    return jax.jit(create)(jax.random.key(0))


@pytest.fixture(scope="module")
def step():
    return jax.jit(make_step())


def at(state, step):
    return state.replace(step=jnp.int32(step))


GENERATORS = ("params", "opt_state", "ema_params")


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def kernels(tree):
    """Without biases: as long as the hinge is linear, real and fake ones pull them alike."""
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim > 1]


def differs(a, b):
    return [bool(np.any(np.asarray(x) != np.asarray(y))) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]


def test_the_discriminator_starts_alone(initial, step):
    state, metrics = step(initial, make_batch(), {})
    for name in GENERATORS:
        assert_equal(getattr(state, name), getattr(initial, name))
    assert state.step == 1 and metrics["ramp"] == 0
    assert all(differs(kernels(state.discriminator_params), kernels(initial.discriminator_params)))
    assert metrics["grad_norm"] > 0
    # The first update of the generator is that of a fresh optimizer, and its average takes it whole.
    state, metrics = step(at(state, WARMUP), make_batch(), {})
    assert all(differs(state.params, initial.params))
    assert_equal(state.ema_params, state.params)
    assert optax.tree.get(state.opt_state, "count", filtering=lambda path, _: "Adam" in str(path)) == 1
    np.testing.assert_allclose(metrics["ramp"], 0.25)


def test_the_ramp_rises_in_equal_steps():
    ramp = jax.vmap(functools.partial(ramp_at, settings=SETTINGS))(jnp.arange(8))
    np.testing.assert_allclose(ramp, [0, 0, 0.25, 0.5, 0.75, 1, 1, 1])
    at_once = dataclasses.replace(SETTINGS, discriminator_warmup=0, ramp_steps=0)
    assert ramp_at(jnp.int32(0), at_once) == 1


NOTHING = OutpaintingWeights(**dict.fromkeys(OutpaintingWeights.__dataclass_fields__, 0.0))


@pytest.fixture(scope="module")
def unweighted(initial):
    """One update of a T-PatchGAN, without clip logit, beside a generator whose terms have no weight."""
    return jax.jit(make_step(weights=NOTHING, clip_weight=0.0))(at(initial, 6), make_batch(), {})


def test_each_side_learns_from_its_own_loss_alone(initial, unweighted):
    """A generator whose terms have no weight stays while the discriminator learns from its frames; and whatever the
    generator's loss is, the discriminator goes where its own takes it."""
    state, metrics = unweighted
    assert_equal(state.params, initial.params)
    assert metrics["loss"] == 0 and metrics["grad_norm"] == 0
    weights = dataclasses.replace(NOTHING, adv_global=5.0)
    pushed, metrics = jax.jit(make_step(weights=weights, clip_weight=0.0))(at(initial, 6), make_batch(), {})
    assert all(differs(pushed.params, initial.params))
    np.testing.assert_allclose(metrics["loss"], 5 * metrics["adv_global"], rtol=1e-6)
    # Sums in another order, behind Adam's division by the root of the squared gradient.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, pushed.discriminator_params, state.discriminator_params)


def test_ablations_are_a_matter_of_weights(initial, unweighted):
    """T-PatchGAN alone: no tubes, no clip logit, no features; what they would teach stays as it is."""
    state, metrics = unweighted
    before, after = (dict(s.discriminator_params["global_branch"]) for s in (initial, state))
    assert_equal(after.pop("clip_head"), before.pop("clip_head"))
    assert all(differs(kernels(after), kernels(before)))
    assert_equal(state.discriminator_params["local_branch"], initial.discriminator_params["local_branch"])
    assert metrics["discriminator_local"] == 0 and metrics["discriminator_global"] > 0
    assert not {"adv_local", "feat_global", "feat_local", "feature_to_hole"} & metrics.keys()


def test_known_pixels_of_fakes_are_the_truths():
    truth, made = jax.random.normal(jax.random.key(0), (2, 1, 2, 4, 4, 3))
    mask = jnp.zeros((1, 2, 4, 4, 1)).at[..., :2, :].set(1)
    fake = composite(made, truth, mask)
    np.testing.assert_array_equal(fake[..., 2:, :], truth[..., 2:, :])
    np.testing.assert_array_equal(fake[..., :2, :], made[..., :2, :])


def test_nothing_is_judged_where_everything_is_known(initial, step):
    state, metrics = step(at(initial, 6), make_batch(masked=0), {})
    assert all(np.isfinite(value) for value in metrics.values())
    for name in ("hole", "adv_local", "feat_local", "discriminator_local", "local_accuracy", "feature_to_hole"):
        assert metrics[name] == 0, name
    # What is known is the truth in both: the global features are the same.
    assert metrics["feat_global"] == 0
    assert_equal(
        state.discriminator_params["local_branch"],
        initial.discriminator_params["local_branch"],
    )


def test_spectral_vectors_take_one_step(initial, step):
    state, _ = step(initial, make_batch(), {})
    once = power_iteration({"params": initial.discriminator_params, "spectral": initial.spectral})["spectral"]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), state.spectral, once)
    assert all(differs(*(s.spectral["local_branch"]["conv_0"]["u"] for s in (state, initial))))


def test_the_guard_halves_the_rate_of_a_discriminator_that_is_too_sure(initial, step):
    rates, state = [], initial
    for accuracy in (0.96, 0.96, 0.96, 0.5, 0.96, 0.96):
        rate, count = guarded_rate(state, jnp.float32(accuracy), SETTINGS.guard_steps)
        state = state.replace(discriminator_rate=rate, confident_steps=count)
        rates.append(float(rate))
    assert rates == [1, 0.5, 0.5, 0.5, 0.5, 0.25]
    halved = initial.replace(discriminator_rate=jnp.float32(0.5))
    whole, _ = step(initial, make_batch(), {})
    half, metrics = step(halved, make_batch(), {})
    assert metrics["discriminator_rate"] == 0.5
    moved = [jax.tree.map(jnp.subtract, s.discriminator_params, initial.discriminator_params) for s in (whole, half)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a / 2, atol=1e-7), *moved)


def test_options_add_their_penalties_to_the_discriminators_loss(initial, unweighted):
    lecam, r1 = 0.5, 2.0
    anchors = {name: jnp.float32(0.1) for name in initial.anchors}
    step = make_step(weights=NOTHING, clip_weight=0.0, lecam=lecam, r1=r1)

    @jax.jit
    def losses(*arguments):
        """Without the updates: the compiler leaves the gradients out."""
        state, metrics = step(*arguments)
        return state.anchors, {name: metrics[name] for name in ("discriminator_loss", "lecam", "r1", *anchors)}

    moved, metrics = losses(at(initial.replace(anchors=anchors), 6), make_batch(), {})
    added = metrics["discriminator_loss"] - unweighted[1]["discriminator_loss"]
    assert metrics["r1"] > 0 and metrics["lecam"] > 0
    np.testing.assert_allclose(added, r1 / 2 * metrics["r1"] + lecam * metrics["lecam"], rtol=1e-3)
    # Six updates on, the average keeps 6 / 16 of what it was.
    for name, anchor in moved.items():
        np.testing.assert_allclose(anchor, 6 / 16 * 0.1 + 10 / 16 * metrics[name], rtol=1e-5)


def test_the_generator_learns_to_fill_and_metrics_name_every_term(initial, step):
    state, batch = at(initial, 6), make_batch()
    _, first = step(state, batch, {})
    assert {"loss", "hole", "valid", "adv_global", "adv_local", "feat_global", "feat_local"} <= first.keys()
    assert 0 < first["feature_to_hole"] < 1
    for _ in range(30):
        state, last = step(state, batch, {})
    assert last["hole"] + last["valid"] < 0.9 * (first["hole"] + first["valid"])


def test_each_side_skips_its_own_updates(initial, step):
    start = at(initial, 6)
    _, metrics = step(start, make_batch(), {})
    assert (metrics["skipped"], metrics["stuck"]) == (0, 0)
    # Frames that are not numbers are in both losses; two in a row are too many.
    broken = start.replace(params=jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), start.params))
    after = broken
    for stuck in (0, 1):
        after, metrics = step(after, make_batch(), {})
        assert (metrics["skipped"], metrics["stuck"]) == (1, stuck)
    assert after.step == 8
    kept = "discriminator_params", "spectral", "discriminator_rate", "confident_steps", "anchors", *GENERATORS[::2]
    for name in kept:
        assert_equal(getattr(after, name), getattr(broken, name))
    # A norm far above the generator's: the discriminator alone goes on.
    settled = start.opt_state._replace(applied=jnp.int32(100), mean_norm=jnp.float32(1e-9))
    after, metrics = step(start.replace(opt_state=settled), make_batch(), {})
    assert np.isfinite(metrics["loss"]) and (metrics["skipped"], metrics["stuck"]) == (1, 0)
    assert_equal(after.params, start.params)
    assert all(differs(kernels(after.discriminator_params), kernels(start.discriminator_params)))


def test_a_mesh_changes_nothing_but_where_things_lie(initial, step):
    mesh = make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])
    like = abstract(create, jax.random.key(0), mesh)
    shardings = shardings_of(like)
    jitted = jax.jit(make_step(), donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    with jax.set_mesh(mesh):
        placed = jax.device_put(jax.tree.map(jnp.copy, initial), shardings)  # the step takes its memory
        state, metrics = jitted(at(placed, 6), put_batch(mesh, make_batch()), {})
    _, expected = step(at(initial, 6), make_batch(), {})
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert shardings_of(state) == shardings


def test_what_does_not_fit_is_named(initial):
    step = make_step()
    with pytest.raises(ValueError, match="clips have 1 frames: 2 or more"):
        jax.eval_shape(step, initial, make_batch(frames=1), {})
    small = {name: value[:, :, :24] for name, value in make_batch().items()}
    with pytest.raises(ValueError, match="24x32 hold no tube of 32x32"):
        jax.eval_shape(step, initial, small, {})
    with pytest.raises(ValueError, match="'r1': -1.0"):
        make_step(r1=-1.0)
    with pytest.raises(ValueError, match="guard_steps 1 or more"):
        make_step(guard_steps=0)
    with pytest.raises(ValueError, match="plain_tubes is 0"):
        make_step(plain_tubes=0)
