import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m3ddm_jax.training.optim import make_optimizer, skip_spikes
from m3ddm_jax.training.state import TrainState
from m3ddm_jax.training.update import apply_update, joined

RATE, DECAY = 0.5, 0.9


def make_state(optimizer, step=20):
    params = {"w": jnp.ones(3)}
    return TrainState(jnp.int32(step), params, {}, optimizer.init(params), {"w": jnp.zeros(3)}, None)


def update(state, optimizer, grad=1.0, **options):
    grads = {"w": jnp.full(3, grad)}
    return apply_update(state, grads, optimizer, **{"spike_patience": 2, "ema_decay": DECAY} | options)


def test_parameters_and_average_move_and_the_step_stays():
    optimizer = optax.sgd(RATE)
    state, metrics = update(make_state(optimizer), optimizer)
    np.testing.assert_allclose(state.params["w"], 0.5)
    keep = 20 / 30  # the average warms up
    np.testing.assert_allclose(state.ema_params["w"], (1 - keep) * 0.5, rtol=1e-6)
    assert int(state.step) == 20
    norms = {"grad_norm": 3**0.5, "update_norm": RATE * 3**0.5, "param_norm": 3**0.5}
    assert metrics == pytest.approx(norms | {f"{name}/w": norm for name, norm in norms.items()})


def test_the_learning_rate_is_that_of_the_update():
    optimizer = skip_spikes(make_optimizer(0.1, warmup_steps=4, weight_decay=0.0, clip_norm=1.0), 5.0)
    state, rates = make_state(optimizer), []
    for grad in (1.0, np.nan, 1.0, 1.0):
        state, metrics = update(state, optimizer, grad)
        rates.append(float(metrics["learning_rate"]))
    assert rates == pytest.approx([0.025, 0.05, 0.05, 0.075]), "a skipped update moves no schedule"
    _, metrics = update(state, optimizer, network="", rate=jnp.float32(0.5))
    assert metrics["learning_rate"] == pytest.approx(0.05)


def test_nothing_moves_before_the_beginning():
    optimizer = optax.sgd(RATE, momentum=0.9)
    before, after = (update(make_state(optimizer, step), optimizer, begin=20)[0] for step in (19, 20))
    assert (before.params["w"] == 1).all() and (before.ema_params["w"] == 0).all()
    assert (optax.tree.get(before.opt_state, "trace")["w"] == 0).all()
    # The average counts from the beginning, and forgets the initial parameters.
    np.testing.assert_allclose(after.ema_params["w"], after.params["w"])


def test_a_skipped_update_keeps_all_fields_and_is_counted():
    optimizer = skip_spikes(optax.sgd(RATE), 5.0)
    state = make_state(optimizer)
    for stuck in (0, 1):
        state, metrics = update(state, optimizer, np.nan, more={"step": jnp.int32(99)})
        assert (metrics["skipped"], metrics["stuck"]) == (1, stuck)
    assert (state.params["w"] == 1).all() and (state.ema_params["w"] == 0).all() and int(state.step) == 20
    state, metrics = update(state, optimizer, rate=jnp.float32(0.1), more={"step": jnp.int32(99)})
    assert (metrics["skipped"], metrics["stuck"]) == (0, 0) and int(state.step) == 99
    np.testing.assert_allclose(state.params["w"], 0.95)


def test_a_step_of_two_networks_is_skipped_where_one_is():
    first = {"grad_norm": jnp.float32(1), "skipped": jnp.float32(0), "stuck": jnp.float32(1)}
    second = {"discriminator_grad_norm": jnp.float32(2), "skipped": jnp.float32(1), "stuck": jnp.float32(0)}
    found = {name: float(value) for name, value in joined(first, second).items()}
    assert found == {"grad_norm": 1, "discriminator_grad_norm": 2, "skipped": 1, "stuck": 1}
    assert joined({"grad_norm": 1}, {"discriminator_grad_norm": 2}).keys() == {"grad_norm", "discriminator_grad_norm"}
