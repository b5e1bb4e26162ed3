"""Everything a training run carries from step to step."""

from collections.abc import Callable
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from m3ddm_jax.parallel.rules import state_shardings
from m3ddm_jax.types import Variables


class State(Protocol):
    """What the state of every family is: a flax.struct dataclass whose `step` is the updates made, an int32 scalar, and
    whose `params` are the network that the run is for. Fields whose names end in params or opt_state may be split
    over devices (parallel.rules)."""

    step: jax.Array
    params: Any


@flax.struct.dataclass
class TrainState:
    """step: int32 scalar, updates made, skipped ones among them. params, opt_state, ema_params: float32. rng: the key
    of the whole run."""

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
    return abstract(lambda key: create_state(init(key), optimizer, key), rng, mesh)


def abstract(create: Callable[[jax.Array], Any], rng: jax.Array, mesh: Mesh) -> Any:
    """Shape, dtype and sharding of every array of the state of any family that `create` (key -> state) makes."""
    shapes = jax.eval_shape(create, rng)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def init_state(
    init: Callable[[jax.Array], Variables],
    optimizer: optax.GradientTransformation,
    rng: jax.Array,
    abstract_state: TrainState,
) -> TrainState:
    """A fresh state that lies on its mesh from the start: nothing exists unsharded."""

    def create(key: jax.Array) -> TrainState:
        init_key, run_key = jax.random.split(key)
        return create_state(init(init_key), optimizer, run_key)

    # Written out, because without out_shardings the optimizer's moments would be replicated.
    return jax.jit(create, out_shardings=shardings_of(abstract_state))(rng)


def load_state(
    variables: Variables, optimizer: optax.GradientTransformation, rng: jax.Array, abstract_state: TrainState
) -> TrainState:
    """`init_state` with the parameters and BatchNorm statistics of a model on the host in place of random ones."""
    placed = {name: place(variables.get(name, {}), getattr(abstract_state, name)) for name in ("params", "batch_stats")}
    _, run_key = jax.random.split(rng)
    create = jax.jit(
        lambda variables, key: create_state(variables, optimizer, key),
        out_shardings=shardings_of(abstract_state),
        donate_argnums=0,
    )
    return create(placed, run_key)


def place(values: Any, abstract_tree: Any) -> Any:
    """A tree of arrays on the host at their places on the mesh, one array after the other.

    abstract_tree: the same tree of shapes with shardings, a part of what `abstract_state` gives.
    """

    def put(value: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.make_array_from_callback(value.shape, leaf.sharding, lambda index: value[index])

    return jax.tree.map(put, values, abstract_tree)


def layout_of(state: Any) -> Any:
    """Shape, dtype and sharding of every array of a state that is there."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def shardings_of(abstract_tree: Any) -> Any:
    """Where each array of a tree lies, as `jax.jit` takes it for `out_shardings`."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_tree)
