import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m3ddm_jax.training.optim import (
    AdamSettings,
    make_gan_optimizer,
    make_optimizer,
    scaled_to_batch,
    skip_spikes,
    skipped_in_a_row,
    staged_rate,
)


def updates(optimizer, grads, params, count):
    state, found = optimizer.init(params), []
    for _ in range(count):
        update, state = optimizer.update(grads, state, params)
        found.append(update)
    return found


def test_learning_rate_warms_up_and_stays():
    optimizer = make_optimizer(0.1, warmup_steps=4, weight_decay=0.0, clip_norm=1e9)
    params = {"bias": jnp.ones(3)}
    # With a constant gradient every AdamW update has the size of the learning rate.
    found = [-float(u["bias"][0]) for u in updates(optimizer, {"bias": jnp.ones(3)}, params, 7)]
    np.testing.assert_allclose(found, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1], rtol=1e-4)


def test_without_warm_up():
    optimizer = make_optimizer(0.1, warmup_steps=0, weight_decay=0.0, clip_norm=1e9)
    found = [-float(u["bias"][0]) for u in updates(optimizer, {"bias": jnp.ones(3)}, {"bias": jnp.ones(3)}, 2)]
    np.testing.assert_allclose(found, [0.1, 0.1], rtol=1e-4)


def test_kernels_decay_and_vectors_do_not():
    optimizer = make_optimizer(0.1, warmup_steps=1, weight_decay=0.5, clip_norm=1e9)
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    (update,) = updates(optimizer, jax.tree.map(jnp.zeros_like, params), params, 1)
    np.testing.assert_allclose(update["kernel"], -0.1 * 0.5, rtol=1e-5)
    np.testing.assert_allclose(update["scale"], 0.0)


def test_gradients_are_clipped_by_their_common_norm():
    params = {"a": jnp.zeros(()), "b": jnp.zeros(())}
    optimizer = make_optimizer(1.0, warmup_steps=1, weight_decay=0.0, clip_norm=1.0)
    state = optimizer.update({"a": jnp.float32(30.0), "b": jnp.float32(40.0)}, optimizer.init(params), params)[1]
    first_moment = optax.tree.get(state, "mu")
    # Norm 50 becomes 1; the first moment keeps a tenth of the gradient.
    np.testing.assert_allclose([first_moment["a"], first_moment["b"]], [0.06, 0.08], rtol=1e-5)


def test_pretrained_layers_wait_and_learn_slowly():
    transformer = {"attn1": {"to_q": {"kernel": 0.0}, "to_k": {"kernel": 0.0}}, "attn2": {"to_q": {"kernel": 0.0}}}
    transformer["attn2"] |= {"to_k_global": {"kernel": 0.0}, "gate": 0.0}
    params = {
        "conv_in": {"kernel": 0.0},
        "conv_out": {"kernel": 0.0},
        "mid_block": {"attentions_0": {"transformer_blocks_0": transformer, "est": {"temporal": {"to_q": 0.0}}}},
        "empty_prompt": 0.0,
        "global_extractor": {"norm_in": {"scale": 0.0}},
    }
    params = jax.tree.map(lambda _: jnp.ones((2, 2)), params)
    optimizer = make_optimizer(0.1, warmup_steps=0, weight_decay=0.5, clip_norm=1e9, rate=staged_rate(0.2, 2))
    found = updates(optimizer, params, params, 3)
    sizes = [jax.tree.map(lambda leaf: -float(leaf[0, 0]), update) for update in found]
    for number, size in enumerate(sizes):
        # With a constant gradient every update of AdamW has the size of the learning rate, and the decay half of it.
        waits = 0.0 if number < 2 else 0.2 * 0.15
        transformer = {
            "attn1": {"to_q": {"kernel": 0.2 * 0.15}, "to_k": {"kernel": waits}},
            "attn2": {"to_q": {"kernel": 0.2 * 0.15}, "to_k_global": {"kernel": 0.15}, "gate": 0.15},
        }
        expected = {
            "conv_in": {"kernel": 0.2 * 0.15},
            "conv_out": {"kernel": waits},
            "mid_block": {"attentions_0": {"transformer_blocks_0": transformer, "est": {"temporal": {"to_q": 0.15}}}},
            "empty_prompt": 0.0,
            "global_extractor": {"norm_in": {"scale": 0.15}},
        }
        # The float32 moments' bias corrections.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), size, expected)


def test_a_gans_optimizer_has_slower_parts_and_one_decay():
    optimizer = make_gan_optimizer(0.1, decay_at=2, factors={"flow": 0.25})
    params = {"flow": {"kernel": jnp.ones((2, 2))}, "rest": jnp.ones(2)}
    found = updates(optimizer, jax.tree.map(lambda x: 3 * x, params), params, 4)
    # With a constant gradient every update of Adam has the size of the learning rate.
    np.testing.assert_allclose([-float(u["rest"][0]) for u in found], [0.1, 0.1, 0.01, 0.01], rtol=1e-4)
    np.testing.assert_allclose(
        [-float(u["flow"]["kernel"][0, 0]) for u in found], [0.025, 0.025, 0.0025, 0.0025], rtol=1e-4
    )


def test_a_gans_optimizer_has_no_first_moment_and_clips_if_told_to():
    params = {"a": jnp.zeros(()), "b": jnp.zeros(())}
    optimizer = make_gan_optimizer(0.1)
    state = optimizer.init(params)
    _, state = optimizer.update({"a": jnp.float32(1.0), "b": jnp.float32(1.0)}, state, params)
    update, _ = optimizer.update({"a": jnp.float32(0.0), "b": jnp.float32(-1.0)}, state, params)
    np.testing.assert_allclose([update["a"], update["b"]], [0, 0.1], atol=1e-6)
    clipped = make_gan_optimizer(0.1, clip_norm=1.0)
    state = clipped.update({"a": jnp.float32(30.0), "b": jnp.float32(40.0)}, clipped.init(params), params)[1]
    second_moment = optax.tree.get(state, "nu")
    # Norm 50 becomes 1; the second moment keeps a hundredth of the squared gradient.
    np.testing.assert_allclose([second_moment["a"], second_moment["b"]], [0.0036, 0.0064], rtol=1e-5)


def run_of_norms(spike_factor, norms):
    """(parameters, optimizer's state) after each update of gradients of these norms, the first one among them."""
    optimizer = skip_spikes(make_optimizer(0.1, warmup_steps=4, weight_decay=0.5, clip_norm=1.0), spike_factor)
    params = {"kernel": jnp.ones((2, 2))}
    gradient = {"kernel": jnp.full((2, 2), 0.5)}  # of norm 1

    @jax.jit
    def run(norms):
        def one(carry, norm):
            params, state = carry
            update, state = optimizer.update(jax.tree.map(lambda x: norm * x, gradient), state, params)
            carry = optax.apply_updates(params, update), state
            return carry, carry

        return jax.lax.scan(one, (params, optimizer.init(params)), norms)[1]

    return run(jnp.array(norms, jnp.float32))


def at(number, run):
    return jax.tree.map(lambda x: x[number], run)


def test_a_spike_leaves_no_trace():
    norms = [1.0, *99 * [1.5], 0.5]
    spikes = norms[:3] + [np.nan, np.inf] + norms[3:100] + [8.0, 30.0, np.nan] + norms[100:]
    plain, spiky = run_of_norms(0.0, norms), run_of_norms(5.0, spikes)
    assert skipped_in_a_row(plain[1]) is None
    in_a_row = np.asarray(skipped_in_a_row(spiky[1]))
    # A large norm passes where 5 times the mean is larger; the counts begin anew with an update that is made.
    assert in_a_row[[2, 3, 4, 5]].tolist() == [0, 1, 2, 0]
    assert in_a_row[101:].tolist() == [0, 1, 2, 3, 0]
    params, state = at(-1, spiky)
    jax.tree.map(np.testing.assert_array_equal, (params, state.inner), at(-1, plain))
    jax.tree.map(np.testing.assert_array_equal, at(104, spiky)[0], at(101, spiky)[0])
    assert state.applied == len(norms) and 1.0 < state.mean_norm < 1.5


def test_norms_are_judged_when_enough_of_them_are_known():
    _, state = run_of_norms(2.0, 99 * [1.0] + [50.0, 50.0])
    # The hundredth is still applied, and raises the mean by little.
    assert skipped_in_a_row(state)[-2:].tolist() == [0, 1]
    assert at(-1, state).applied == 100 and 1.0 < at(-1, state).mean_norm < 7


def test_a_factor_that_skips_half_of_all_updates_is_refused():
    with pytest.raises(ValueError, match="spike_factor is 0.5: 0, which is off, or more than 1 is accepted"):
        skip_spikes(make_optimizer(0.1, warmup_steps=1, weight_decay=0.0, clip_norm=1.0), 0.5)


def test_rate_and_warm_up_grow_with_the_root_of_the_batch():
    assert scaled_to_batch(1e-4, 1000, 256, 0) == (1e-4, 1000)
    assert scaled_to_batch(1e-4, 1000, 256, 64) == (2e-4, 2000)
    assert scaled_to_batch(1e-4, 1000, 16, 64) == (5e-5, 500)
    with pytest.raises(ValueError, match="base_batch_size is -1: 0 or more"):
        scaled_to_batch(1e-4, 1000, 16, -1)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 0.025, 3: 0.1, 20: 0.1, 103: 0.1}),
        ("cosine", {0: 0.025, 3: 0.1, 4: 0.1, 54: 0.05, 104: 0.0}),
        ("rsqrt", {0: 0.025, 3: 0.1, 4: 0.1, 12: 0.1 * (4 / 12) ** 0.5, 100: 0.02}),
    ],
)
def test_schedules_follow_the_warmup(schedule, expected):
    adam = AdamSettings(schedule=schedule)
    optimizer = make_optimizer(0.1, warmup_steps=4, weight_decay=0.0, clip_norm=1.0, adam=adam, steps=104)
    assert {count: float(optimizer.learning_rate(count)) for count in expected} == pytest.approx(expected, abs=1e-6)


def test_betas_and_the_dtype_of_the_first_moment_are_chosen():
    adam = AdamSettings(b1=0.5, b2=0.75, first_moment="bfloat16")
    optimizer = make_optimizer(0.1, warmup_steps=0, weight_decay=0.0, clip_norm=1e9, adam=adam)
    params = {"w": jnp.ones((2, 2))}
    _, state = optimizer.update({"w": jnp.full((2, 2), 4.0)}, optimizer.init(params), params)
    first, second = (optax.tree.get(state, name)["w"] for name in ("mu", "nu"))
    assert (first.dtype, second.dtype) == (jnp.bfloat16, jnp.float32)
    assert (first == 2).all() and (second == 4).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "square"}, "schedule 'square' is unknown: one of constant, cosine, rsqrt"),
        ({"first_moment": "int8"}, "first_moment 'int8' is unknown: one of float32, bfloat16"),
        ({"b2": 1.0}, "b1 is 0.9 and b2 1.0: numbers from 0 to below 1"),
    ],
)
def test_settings_of_adam_that_are_not_accepted(change, message):
    with pytest.raises(ValueError, match=message):
        AdamSettings(**change)
