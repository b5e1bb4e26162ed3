import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.models.remat import REMAT, rematerialised


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(x.shape[-1])(nn.silu(nn.Dense(3 * x.shape[-1])(x)))


def saved(remat, x):
    """What is kept between a block's forward and backward pass, by shape."""
    block = rematerialised(Block, remat)()
    variables = block.init(jax.random.key(0), x)
    _, backward = jax.eval_shape(
        lambda variables, x: jax.vjp(lambda v: jnp.sin(block.apply(v, x)), variables), variables, x
    )
    return [leaf.shape for leaf in jax.tree.leaves(backward) if leaf.ndim == 2 and leaf.shape[0] == len(x)]


def test_policies_keep_more_and_more():
    x = jnp.ones((5, 4))
    blocks, dots, everything = (saved(remat, x) for remat in ("blocks", "dots", "none"))
    assert (5, 12) not in blocks and (5, 12) in dots
    assert len(blocks) < len(dots) < len(everything)
    assert saved(True, x) == blocks and saved(False, x) == everything


@pytest.mark.parametrize("remat", REMAT)
def test_gradients_are_the_same(remat):
    x = jnp.arange(20.0).reshape(5, 4) / 20
    variables = Block().init(jax.random.key(0), x)

    def gradient(block):
        return jax.jit(jax.grad(lambda variables: jnp.sin(block.apply(variables, x)).sum()))(variables)

    expected = gradient(Block())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient(rematerialised(Block, remat)()), expected
    )


def test_another_policy_is_refused():
    with pytest.raises(ValueError, match="remat 'some' is unknown: one of none, blocks, dots, offload is accepted"):
        rematerialised(Block, "some")
