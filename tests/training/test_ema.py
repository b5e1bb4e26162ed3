import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.training.ema import ema_decay_at, update_ema


def test_warm_up_ends_at_the_decay():
    assert ema_decay_at(0, 0.9) == 0.0
    assert ema_decay_at(10, 0.9) == pytest.approx(0.5)
    assert ema_decay_at(1000, 0.9) == np.float32(0.9)


def test_closed_form():
    values = np.random.default_rng(0).standard_normal(40)
    ema = {"w": jnp.float32(1e6)}  # the first update forgets it wholly
    for step, value in enumerate(values):
        ema = update_ema(ema, {"w": jnp.float32(value)}, step, 0.7)
    decays = np.array([min(0.7, k / (k + 10)) for k in range(40)])
    # Value k enters with 1 - decay_k and is kept by every later decay.
    weights = (1 - decays) * np.append(np.cumprod(decays[:0:-1])[::-1], 1.0)
    assert weights.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(ema["w"], weights @ values, rtol=1e-5)


def test_stays_float32_under_bfloat16_parameters():
    ema = {"w": jnp.zeros((), jnp.float32)}
    for step in range(200_000, 200_050):
        ema = update_ema(ema, {"w": jnp.ones((), jnp.bfloat16)}, step, 0.9999)
    assert ema["w"].dtype == jnp.float32
    np.testing.assert_allclose(ema["w"], 1 - 0.9999**50, rtol=1e-3)
