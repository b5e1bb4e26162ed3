import jax.numpy as jnp
import numpy as np

from m3ddm_jax.losses.diffusion import diffusion_loss


def test_mean_of_weighted_clip_errors():
    rng = np.random.default_rng(0)
    prediction, target = rng.standard_normal((2, 3, 2, 4, 4, 5)).astype(np.float32)
    weight = np.array([0.5, 2.0, 0.0], np.float32)
    expected = np.mean([w * np.mean((p - t) ** 2) for w, p, t in zip(weight, prediction, target, strict=True)])
    weight = weight.reshape(3, 1, 1, 1, 1)
    np.testing.assert_allclose(diffusion_loss(prediction, target, weight), expected, rtol=1e-6)


def test_cells_without_weight_do_not_count():
    rng = np.random.default_rng(0)
    prediction, target = rng.standard_normal((2, 1, 2, 4, 4, 5)).astype(np.float32)
    weight = rng.integers(0, 2, (1, 2, 4, 4, 1)).astype(np.float32)
    expected = np.mean(np.where(weight, prediction - target, 0) ** 2)
    np.testing.assert_allclose(diffusion_loss(prediction, target, weight), expected, rtol=1e-6)


def test_is_float32_whatever_comes_in():
    # 1 + 1/512 is no bfloat16: the difference would vanish if it were taken there.
    loss = diffusion_loss(jnp.ones((1, 4), jnp.bfloat16), jnp.full((1, 4), 1 + 1 / 512), jnp.ones(1, jnp.bfloat16))
    assert loss.dtype == jnp.float32 and loss > 0
