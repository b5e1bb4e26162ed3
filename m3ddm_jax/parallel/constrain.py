"""The one sharding helper that code inside a jitted function may call."""

import jax
from jax.sharding import PartitionSpec as P


def constrain(x: jax.Array, *spec: str | tuple[str, ...] | None) -> jax.Array:
    """x with its leading axes split over named axes of the mesh in force (`jax.set_mesh`); x itself without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*spec))
