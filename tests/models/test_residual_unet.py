import jax
import jax.numpy as jnp
import numpy as np

from m3ddm_jax.models import registry
from m3ddm_jax.models.residual_unet import ResidualUNet

NETWORK = ResidualUNet(in_channels=5, out_channels=2, widths=(8, 16))


def test_nothing_is_added_before_training_and_gradients_reach_the_last_layer():
    variables = registry.init(NETWORK, jax.random.key(0))
    evidence = jax.random.normal(jax.random.key(1), (2, 3 * NETWORK.multiple, NETWORK.multiple, 5))

    @jax.jit
    def run(variables):
        added = NETWORK.apply(variables, evidence)
        return added, jax.grad(lambda variables: jnp.sum(jnp.square(NETWORK.apply(variables, evidence) - 1)))(variables)

    added, gradients = run(variables)
    assert added.shape == (2, 12, 4, 2) and added.dtype == jnp.float32
    assert not added.any()
    assert np.abs(gradients["params"]["conv_out"]["kernel"]).max() > 0


def test_the_default_is_one_and_a_half_million_parameters_in_six_megabytes():
    variables = registry.abstract_variables(ResidualUNet())
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 1_589_292
    assert ResidualUNet().multiple == 16
