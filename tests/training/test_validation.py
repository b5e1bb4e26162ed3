from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.training.encoding import DenoiserInputs
from m3ddm_jax.training.validation import (
    Completion,
    completion_metrics,
    completion_sums,
    losses_by_timestep,
    side_by_side,
)


def completion(rng, noise=0, shape=(2, 3, 8, 10, 3), unknown_columns=4):
    truth = rng.integers(40, 200, shape, np.uint8)
    unknown = np.zeros((*shape[:-1], 1), bool)
    unknown[..., :unknown_columns, :] = True
    made = np.where(unknown, truth + noise, 255 - truth).astype(np.uint8)
    return Completion(made, truth, unknown)


def validate(batches):
    return completion_metrics([completion_sums(batch) for batch in batches])


def test_an_even_error_of_unknown_pixels_is_all_that_counts():
    batches = [completion(np.random.default_rng(seed), noise=10) for seed in range(2)]
    metrics = validate(batches)
    assert metrics["validation_psnr"] == pytest.approx(20 * np.log10(255 / 10), abs=1e-4)
    assert metrics["validation_sharpness"] == pytest.approx(1, abs=1e-5)


def test_a_blur_is_told_by_its_steps():
    batch = completion(np.random.default_rng(0))
    flat = np.where(batch.unknown, 128, batch.truth).astype(np.uint8)
    half = np.where(batch.unknown, (batch.truth.astype(int) + 128) // 2, batch.truth).astype(np.uint8)
    assert validate([batch._replace(made=flat)])["validation_sharpness"] == 0
    assert validate([batch._replace(made=half)])["validation_sharpness"] == pytest.approx(0.5, abs=0.02)


def test_batches_add_up_as_one():
    first, second = (completion(np.random.default_rng(seed), noise=seed + 3) for seed in range(2))
    both = Completion(*(np.concatenate(parts) for parts in zip(first[:3], second[:3], strict=True)))
    apart, together = validate([first, second]), validate([both])
    assert apart == pytest.approx(together, rel=1e-5)


def test_nothing_unknown_and_nothing_wrong_are_finite():
    batch = completion(np.random.default_rng(0))
    assert validate([batch])["validation_psnr"] == pytest.approx(100)
    metrics = validate([completion(np.random.default_rng(0), unknown_columns=0)])
    assert metrics == {"validation_psnr": pytest.approx(100), "validation_sharpness": 1.0}


def test_further_errors_are_means_over_batches():
    batches = [completion(np.random.default_rng(0))._replace(errors={"of_flow": np.float32(e)}) for e in (1, 4)]
    assert validate(batches)["validation_of_flow"] == pytest.approx(2.5)


def test_pictures_stand_side_by_side():
    batch = completion(np.random.default_rng(0), noise=9)
    known, made, truth = np.split(np.asarray(side_by_side(batch)), 3, axis=3)
    np.testing.assert_array_equal(made, batch.made)
    np.testing.assert_array_equal(truth, batch.truth)
    np.testing.assert_array_equal(known, np.where(batch.unknown, 0, batch.truth))


def test_losses_are_of_both_weights_by_bins_of_timesteps():
    state = SimpleNamespace(params={"w": jnp.float32(1)}, ema_params={"w": jnp.float32(2)}, batch_stats={})
    latents = jnp.zeros((5, 2, 3, 3, 4))
    inputs = DenoiserInputs(latents, latents[..., :1], latents, jnp.ones(5), {})
    seen = {
        "weighted": lambda variables, _, timestep, noise: (variables["params"]["w"] * timestep.mean(), None),
        "spread": lambda variables, _, timestep, noise: (jnp.ptp(timestep).astype(float), None),
        "noise": lambda variables, _, timestep, noise: (jnp.square(noise).mean(), None),
    }
    measure = jax.jit(lambda: {name: losses_by_timestep(loss, state, inputs, 1000) for name, loss in seen.items()})
    found = jax.tree.map(float, measure())
    bins = {"0-249": 125.0, "250-499": 375.0, "500-749": 625.0, "750-999": 875.0}
    raw = {"loss": 500.0, **{f"loss/{name}": middle for name, middle in bins.items()}}
    averaged = {name.replace("loss", "loss_ema"): 2 * value for name, value in raw.items()}
    assert found["weighted"] == pytest.approx(raw | averaged)
    # Clips are at timesteps of their own, each with the noise that it has in all bins.
    assert set(found["spread"].values()) == {200.0}
    (power,) = set(found["noise"].values())
    assert power == pytest.approx(1, abs=0.2)  # of 360 numbers
