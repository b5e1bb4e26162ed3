"""Everything adversarial training carries from step to step."""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from m3ddm_jax.training.state import TrainState, create_state
from m3ddm_jax.types import Variables

_ANCHORS = ("global_real", "global_fake", "local_real", "local_fake")


class Optimizers(NamedTuple):
    """What updates the generator, and what updates the discriminator."""

    generator: optax.GradientTransformation
    discriminator: optax.GradientTransformation


@flax.struct.dataclass
class GanState(TrainState):
    """A generator's TrainState and, beside it, what its discriminator has.

    step counts updates of the discriminator; the generator may start later. discriminator_params,
    discriminator_opt_state: float32. spectral: the unit vectors that its kernels' norms are estimated with
    (`models.discriminator.power_iteration`). discriminator_rate: float32 scalar, the factor its updates are scaled by.
    confident_steps: int32 scalar, for how many updates in a row it has been nearly always right. anchors: float32
    scalars, the running means of its logits by the names of `losses.adversarial.logit_metrics`.
    """

    discriminator_params: Any
    spectral: Any
    discriminator_opt_state: Any
    discriminator_rate: jax.Array
    confident_steps: jax.Array
    anchors: dict[str, jax.Array]


def create_gan_state(
    variables: Variables, discriminator_variables: Variables, optimizers: Optimizers, rng: jax.Array
) -> GanState:
    """The state before the first update, of the variables of both networks."""
    base = create_state(variables, optimizers.generator, rng)
    params = discriminator_variables["params"]
    return GanState(
        **{name: getattr(base, name) for name in TrainState.__dataclass_fields__},
        discriminator_params=params,
        spectral=discriminator_variables["spectral"],
        discriminator_opt_state=optimizers.discriminator.init(params),
        discriminator_rate=jnp.ones((), jnp.float32),
        confident_steps=jnp.zeros((), jnp.int32),
        anchors={name: jnp.zeros((), jnp.float32) for name in _ANCHORS},
    )
