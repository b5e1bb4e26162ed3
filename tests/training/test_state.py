import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.parallel.mesh import make_mesh
from m3ddm_jax.training.optim import make_optimizer
from m3ddm_jax.training.state import abstract_state, init_state, load_state, shardings_of


def init(key):
    return nn.Dense(128).init(key, jnp.ones((1, 64)))


@pytest.fixture(scope="module")
def optimizer():
    return make_optimizer(1e-3, warmup_steps=1, weight_decay=0.0, clip_norm=1.0)


def made(optimizer, mesh):
    rng = jax.random.key(0)
    return init_state(init, optimizer, rng, abstract_state(init, optimizer, rng, mesh))


def kernels(state):
    return [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (64, 128)]


def test_parameters_moments_and_average_are_split_from_the_start(optimizer):
    state = made(optimizer, make_mesh(data=2, fsdp=4))
    assert len(kernels(state)) == 4  # parameter, two moments, average
    for kernel in kernels(state):
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(64, 32)}


def test_the_state_is_what_its_abstract_says(optimizer):
    mesh = make_mesh(data=2, fsdp=4)
    rng = jax.random.key(0)
    like = abstract_state(init, optimizer, rng, mesh)
    state = init_state(init, optimizer, rng, like)
    described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
    assert described == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), like)
    assert state.step == 0


def test_the_average_starts_as_the_parameters_in_memory_of_its_own(optimizer):
    state = made(optimizer, make_mesh(devices=jax.devices()[:1]))
    kernel, ema = state.params["kernel"], state.ema_params["kernel"]
    np.testing.assert_array_equal(kernel, ema)
    assert kernel.unsafe_buffer_pointer() != ema.unsafe_buffer_pointer()


def test_weights_from_the_host_take_their_places_in_a_state_that_is_fresh_otherwise(optimizer):
    mesh, rng = make_mesh(data=2, fsdp=4), jax.random.key(0)
    like = abstract_state(init, optimizer, rng, mesh)
    fresh = init_state(init, optimizer, rng, like)
    params = {"kernel": np.arange(64 * 128, dtype=np.float32).reshape(64, 128), "bias": np.ones(128, np.float32)}
    state = load_state({"params": params}, optimizer, rng, like)
    for found in (state.params, state.ema_params):
        jax.tree.map(np.testing.assert_array_equal, found, params)
    assert shardings_of(state) == shardings_of(like)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh.opt_state)
    assert (jax.random.key_data(state.rng) == jax.random.key_data(fresh.rng)).all() and state.step == 0


def test_a_mesh_does_not_change_the_initial_values(optimizer):
    one, eight = made(optimizer, make_mesh(devices=jax.devices()[:1])), made(optimizer, make_mesh(data=2, fsdp=4))
    np.testing.assert_array_equal(one.params["kernel"], eight.params["kernel"])
    assert jax.random.key_data(one.rng).tolist() == jax.random.key_data(eight.rng).tolist()
