"""Everything a training run carries from step to step."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from m3ddm_jax.parallel.rules import state_shardings
from m3ddm_jax.types import Variables


@flax.struct.dataclass
class TrainState:
    """step: int32 scalar, updates applied. params, opt_state, ema_params: float32. rng: the key of the whole run."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any
    rng: jax.Array


def create_state(variables: Variables, optimizer: optax.GradientTransformation, rng: jax.Array) -> TrainState:
    """The state before the first update; the average starts as a copy of the parameters."""
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params),
        rng=rng,
    )


def abstract_state(
    init: Callable[[jax.Array], Variables], optimizer: optax.GradientTransformation, rng: jax.Array, mesh: Mesh
) -> TrainState:
    """Shape, dtype and sharding of every array of the state that `init` (key -> variables) leads to."""
    shapes = jax.eval_shape(lambda key: create_state(init(key), optimizer, key), rng)
    shardings = state_shardings(shapes, mesh)
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
    )


def init_state(
    init: Callable[[jax.Array], Variables], optimizer: optax.GradientTransformation, rng: jax.Array, like: TrainState
) -> TrainState:
    """A fresh state that lies on its mesh from the start: nothing exists unsharded. like: from `abstract_state`."""
    # Written out, because without out_shardings the optimizer's moments would be replicated.
    out_shardings = jax.tree.map(lambda leaf: leaf.sharding, like)

    def create(key: jax.Array) -> TrainState:
        init_key, run_key = jax.random.split(key)
        return create_state(init(init_key), optimizer, run_key)

    return jax.jit(create, out_shardings=out_shardings)(rng)
