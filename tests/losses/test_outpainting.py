from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.losses.adversarial import soft_labels
from m3ddm_jax.losses.outpainting import (
    OutpaintingWeights,
    feature_terms,
    flow_term,
    outpainting_loss,
    reconstruction_terms,
)


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_reconstruction_is_the_mean_error_of_each_side_of_the_mask():
    mask = jnp.zeros((1, 2, 4, 8, 1)).at[..., :2, :].set(1)
    prediction, truth = draw(0, 1, 2, 4, 8, 3), draw(1, 1, 2, 4, 8, 3)
    error = np.abs(prediction - truth)
    terms = jax.jit(reconstruction_terms)(prediction, truth, mask)
    np.testing.assert_allclose(terms["hole"], error[..., :2, :].mean(), rtol=1e-5)
    np.testing.assert_allclose(terms["valid"], error[..., 2:, :].mean(), rtol=1e-5)
    # The published code's form: the mean over all pixels, over the share of the masked ones.
    np.testing.assert_allclose(terms["hole"], np.mean(mask * error) / np.mean(mask), rtol=1e-5)


@pytest.mark.parametrize(("value", "absent"), [(0, "hole"), (1, "valid")])
def test_a_side_without_pixels_costs_nothing(value, absent):
    mask = jnp.full((1, 1, 4, 4, 1), value, jnp.uint8)
    truth = draw(1, 1, 1, 4, 4, 3)

    def term(prediction):
        return reconstruction_terms(prediction, truth, mask)[absent]

    loss, gradient = jax.jit(jax.value_and_grad(term))(draw(0, 1, 1, 4, 4, 3))
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def test_flows_are_compared_pair_by_pair():
    flows, targets = (draw(0, 1, 3, 4, 4, 2), draw(1, 1, 3, 4, 4, 2)), (draw(2, 1, 3, 4, 4, 2), draw(3, 1, 3, 4, 4, 2))
    expected = sum(np.abs(a - b).mean() for a, b in zip(flows, targets, strict=True))
    np.testing.assert_allclose(flow_term(flows, targets), expected, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda targets: flow_term(flows, targets)))(targets)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), gradient)


def features(seed, local_mask):
    sizes = ((8, 12), (4, 6))
    return {
        "features": {
            "global": tuple(draw(seed + i, 1, 2, *size, 3) for i, size in enumerate(sizes)),
            "local": (draw(seed + 2, 1, 2, 2, 4, 4, 5), draw(seed + 3, 1, 2, 2, 2, 2, 5)),
        },
        "local_mask": local_mask,
    }


MASK = jnp.zeros((1, 2, 16, 24, 1)).at[..., :8, :].set(1)
TUBE_MASK = jnp.zeros((1, 2, 2, 8, 8, 1)).at[..., :4, :].set(1)


def test_features_are_matched_under_their_masks():
    real, fake = features(0, TUBE_MASK), features(10, TUBE_MASK)
    terms = jax.jit(partial(feature_terms, floor=0.3, dilation=2))(real, fake, MASK)
    expected = []
    for level, cell in enumerate((2, 4)):
        # Columns 0..7 masked, grown to 0..9: five cells of 2 columns; two cells of 4, and half of the third.
        share = np.clip(10 / cell - np.arange(24 // cell), 0, 1)[:, None]
        weight = np.broadcast_to(0.3 + 0.7 * share, (1, 2, 16 // cell, 24 // cell, 3))
        error = np.abs(real["features"]["global"][level] - fake["features"]["global"][level])
        expected.append((weight * error).sum() / weight.sum())
    np.testing.assert_allclose(terms["feat_global"], np.mean(expected), rtol=1e-5)
    expected = []
    for level, side in enumerate((4, 2)):
        weight = np.broadcast_to(soft_labels(TUBE_MASK, side, side), fake["features"]["local"][level].shape)
        error = np.abs(real["features"]["local"][level] - fake["features"]["local"][level])
        expected.append((weight * error).sum() / weight.sum())
    np.testing.assert_allclose(terms["feat_local"], np.mean(expected), rtol=1e-5)


def test_no_gradient_passes_to_real_features_and_known_cells():
    real, fake = features(0, TUBE_MASK), features(10, TUBE_MASK)

    def total(real_features, fake_features):
        made = {**fake, "features": fake_features}
        return sum(feature_terms({**real, "features": real_features}, made, MASK).values())

    to_real, to_fake = jax.jit(jax.grad(total, (0, 1)))(real["features"], fake["features"])
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), to_real)
    np.testing.assert_array_equal(to_fake["local"][0][..., 2:, :], 0)
    assert np.abs(to_fake["local"][0][..., :2, :]).min() > 0
    assert all(np.abs(leaf).min() > 0 for leaf in to_fake["global"])


def test_without_masked_pixels_local_features_cost_nothing():
    empty = jnp.zeros_like(TUBE_MASK)
    real, fake = features(0, empty), features(10, empty)

    def local(fake_features):
        return feature_terms(real, {**fake, "features": fake_features}, jnp.zeros_like(MASK))["feat_local"]

    value, gradient = jax.jit(jax.value_and_grad(local))(fake["features"])
    assert value == 0
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), gradient)


TERMS = {name: 2.0**power for power, name in enumerate(OutpaintingWeights.__dataclass_fields__)}


def test_the_defaults_are_the_recipes():
    terms = {name: jnp.float32(value) for name, value in TERMS.items()}
    expected = 1 + 2 + 4 + 0.01 * (8 + 16) + 0.1 * (32 + 64)
    np.testing.assert_allclose(outpainting_loss(terms, OutpaintingWeights()), expected, rtol=1e-6)
    half = outpainting_loss(terms, OutpaintingWeights(), ramp=jnp.float32(0.5))
    np.testing.assert_allclose(half, 7 + (expected - 7) / 2, rtol=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_every_weight_is_its_terms(name):
    weights = OutpaintingWeights(**{other: 0.0 for other in TERMS} | {name: 3.0})
    assert outpainting_loss({name: jnp.float32(TERMS[name])}, weights) == 3 * TERMS[name]


def test_terms_must_be_those_that_have_weights():
    terms = {name: jnp.float32(1) for name in ("hole", "valid")}
    nothing = dict.fromkeys(TERMS, 0.0)
    assert outpainting_loss({}, OutpaintingWeights(**nothing)) == 0
    with pytest.raises(ValueError, match=r"terms \['flow'\] are missing"):
        outpainting_loss(terms, OutpaintingWeights(**nothing | {"hole": 1.0, "flow": 1.0}))
    with pytest.raises(ValueError, match=r"\['whole'\] unknown: those of hole, valid"):
        outpainting_loss({**terms, "whole": jnp.float32(1)}, OutpaintingWeights(**nothing))
