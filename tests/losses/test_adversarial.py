import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.losses.adversarial import (
    adversarial_terms,
    discriminator_loss,
    hinge_fake,
    hinge_real,
    lecam_penalty,
    logit_metrics,
    r1_penalty,
    resize_mask,
    soft_labels,
    weighted_mean,
)


def outputs(seed, mask, cells=4):
    """Random logits as a discriminator with tubes of 64 pixels gives them; mask [B, N, T, 64, 64, 1]."""
    keys = jax.random.split(jax.random.key(seed), 3)
    clips, tubes, frames = mask.shape[:3]
    return {
        "global": jax.random.normal(keys[0], (clips, frames, 2, 3, 4)),
        "clip": jax.random.normal(keys[1], (clips,)),
        "local": jax.random.normal(keys[2], (clips, tubes, frames, cells, cells, 1)),
        "local_mask": mask,
    }


def half_masked(clips=2):
    """Left 32 of 64 columns masked in each of three tubes."""
    return jnp.zeros((clips, 3, 2, 64, 64, 1)).at[..., :32, :].set(1)


def test_hinge_equals_the_published_values(goldens):
    expected = np.load(goldens / "isvi/tpatchgan3d/outputs.npz")
    logits = expected["out"]
    np.testing.assert_allclose(hinge_real(logits).mean(), expected["hinge_d_real"], rtol=1e-6)
    np.testing.assert_allclose(hinge_fake(logits).mean(), expected["hinge_d_fake"], rtol=1e-6)
    fake = {**outputs(0, half_masked()), "global": jnp.asarray(logits)}
    terms = adversarial_terms(fake, clip_weight=0.0)
    np.testing.assert_allclose(terms["adv_global"], expected["hinge_g"], rtol=1e-5)


def test_masks_are_averaged_over_cells():
    mask = np.random.default_rng(0).integers(0, 2, (2, 12, 8, 1))
    exact = mask.reshape(2, 4, 3, 2, 4, 1).mean((2, 4))
    np.testing.assert_allclose(resize_mask(mask, 4, 2), exact, atol=1e-6)
    # Five cells of 12 rows are 2.4 rows each.
    uneven = resize_mask(np.arange(12.0).reshape(12, 1, 1), 5, 1)[:, 0, 0]
    np.testing.assert_allclose(uneven[:2], [(0 + 1 + 0.4 * 2) / 2.4, (0.6 * 2 + 3 + 0.8 * 4) / 2.4], rtol=1e-6)
    np.testing.assert_allclose(resize_mask(mask, 5, 3).mean(), mask.mean(), atol=1e-6)


def test_labels_are_soft_inside_and_zero_on_known_cells():
    labels = np.asarray(soft_labels(half_masked(), 4, 4))[0, 0, 0, :, :, 0]
    np.testing.assert_array_equal(labels[:, 2:], 0)
    # Sigma 1 over four cells: weights 1, e^-1/2, e^-2, e^-9/2 by distance, normalized in each row.
    weights = np.exp(-0.5 * np.arange(4) ** 2)
    outer = weights[:2].sum() / weights.sum()
    inner = weights[[1, 0]].sum() / weights[[1, 0, 1, 2]].sum()
    np.testing.assert_allclose(labels[:, :2], np.tile([outer, inner], (4, 1)), rtol=1e-5)
    np.testing.assert_allclose(soft_labels(jnp.ones((1, 64, 64, 1)), 4, 4), 1, rtol=1e-6)


def test_discriminator_loss_is_the_weighted_hinge():
    real, fake = outputs(0, half_masked()), outputs(1, half_masked())
    relu = lambda x: np.maximum(np.asarray(x), 0)  # noqa: E731
    labels = np.asarray(soft_labels(half_masked(), 4, 4))
    patches = relu(1 - real["global"]).mean() + relu(1 + fake["global"]).mean()
    clips = relu(1 - real["clip"]).mean() + relu(1 + fake["clip"]).mean()
    called_fake = (labels * relu(1 + fake["local"])).mean() / labels.mean()
    known = ((1 - labels) * relu(1 - fake["local"])).mean()
    expected_global = (patches + 0.3 * clips) / 2
    expected_local = (relu(1 - real["local"]).mean() + called_fake + 0.2 * known) / 2
    loss, halves = discriminator_loss(
        real, fake, global_weight=2.0, local_weight=3.0, clip_weight=0.3, known_weight=0.2
    )
    np.testing.assert_allclose(halves["global"], expected_global, rtol=1e-5)
    np.testing.assert_allclose(halves["local"], expected_local, rtol=1e-5)
    np.testing.assert_allclose(loss, 2 * expected_global + 3 * expected_local, rtol=1e-5)


@pytest.mark.parametrize("known_weight", [0.0, 0.1])
def test_known_patches_are_not_pushed_to_fake(known_weight):
    """A positive gradient lowers a logit: calls it fake."""
    mask = half_masked().at[:, 2].set(0).at[0, 1].set(1)
    real, fake = outputs(0, mask), outputs(1, mask)

    def loss(logits):
        return discriminator_loss(real, {**fake, "local": logits}, known_weight=known_weight)[0]

    gradient = np.asarray(jax.grad(loss)(fake["local"]))
    known = np.asarray(resize_mask(mask, 4, 4)) == 0
    assert known.sum() == 2 * 2 * 16 + 3 * 2 * 8
    assert gradient[known].max() <= 0
    assert (gradient[:, :2][known[:, :2]].min() < 0) == (known_weight > 0)
    assert gradient[~known].max() > 0
    # A tube that is known whole says nothing at all, and the generator gets nothing from known cells.
    np.testing.assert_array_equal(gradient[:, 2], 0)
    pull = jax.grad(lambda logits: adversarial_terms({**fake, "local": logits})["adv_local"])(fake["local"])
    np.testing.assert_array_equal(np.asarray(pull)[known], 0)
    assert np.asarray(pull)[~known].max() < 0


def test_the_generator_gets_the_labelled_mean():
    fake = outputs(0, half_masked())
    labels = np.asarray(soft_labels(half_masked(), 4, 4))
    terms = adversarial_terms(fake, clip_weight=0.25)
    np.testing.assert_allclose(terms["adv_local"], -(labels * fake["local"]).sum() / labels.sum(), rtol=1e-5)
    np.testing.assert_allclose(terms["adv_global"], -fake["global"].mean() - 0.25 * fake["clip"].mean(), rtol=1e-5)


def test_without_masked_pixels_the_local_loss_and_its_gradients_are_zero():
    mask = jnp.zeros_like(half_masked())
    real, fake = outputs(0, mask), outputs(1, mask)

    def local(real_logits, fake_logits):
        made = {**fake, "local": fake_logits}
        _, halves = discriminator_loss({**real, "local": real_logits}, made)
        return halves["local"] + adversarial_terms(made)["adv_local"]

    value, gradients = jax.value_and_grad(local, (0, 1))(real["local"], fake["local"])
    assert value == 0
    jax.tree.map(lambda gradient: np.testing.assert_array_equal(gradient, 0), gradients)


def test_everything_masked_is_plain_hinge():
    mask = jnp.ones_like(half_masked())
    real, fake = outputs(0, mask), outputs(1, mask)
    _, halves = discriminator_loss(real, fake)
    plain = (hinge_real(real["local"]).mean() + hinge_fake(fake["local"]).mean()) / 2
    np.testing.assert_allclose(halves["local"], plain, rtol=1e-5)


def test_r1_is_the_squared_gradient_of_what_is_linear():
    """Clip means of a * x and b * x, and c * sum(x): a gradient of (a + b) / n + c everywhere."""
    frames = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 3))
    n = frames[0].size

    def discriminate(x):
        return {"global": 2 * x, "local": 3 * x[:, None], "clip": 0.5 * x.sum((1, 2, 3, 4))}

    np.testing.assert_allclose(r1_penalty(discriminate, frames), n * (5 / n + 0.5) ** 2, rtol=1e-5)


def test_lecam_holds_the_logits_near_the_other_sides_means():
    real, fake = outputs(0, half_masked()), outputs(1, half_masked())
    anchors = {"global_real": 0.3, "global_fake": -0.2, "local_real": 0.1, "local_fake": 0.4}
    labels = np.broadcast_to(soft_labels(half_masked(), 4, 4), fake["local"].shape)
    expected = (
        np.mean(np.maximum(real["global"] + 0.2, 0) ** 2)
        + np.mean(np.maximum(0.3 - fake["global"], 0) ** 2)
        + np.mean(np.maximum(real["local"] - 0.4, 0) ** 2)
        + np.average(np.maximum(0.1 - fake["local"], 0) ** 2, weights=labels)
    )
    np.testing.assert_allclose(lecam_penalty(real, fake, anchors), expected, rtol=1e-5)
    # No tubes: the patches of the whole clip alone.
    without = [
        {**side, "local": side["local"][:, :0], "local_mask": side["local_mask"][:, :0]} for side in (real, fake)
    ]
    expected = np.mean(np.maximum(real["global"] + 0.2, 0) ** 2) + np.mean(np.maximum(0.3 - fake["global"], 0) ** 2)
    np.testing.assert_allclose(lecam_penalty(*without, anchors), expected, rtol=1e-5)


def test_metrics_show_who_runs_ahead():
    mask = half_masked()
    real, fake = outputs(0, mask), outputs(1, mask)
    sure = {"global": 2 * jnp.ones_like(real["global"]), "local": jnp.ones_like(real["local"])}
    metrics = logit_metrics({**real, **sure}, {**fake, **jax.tree.map(jnp.negative, sure)})
    expected = {"global_real": 2, "global_fake": -2, "global_accuracy": 1}
    expected |= {"local_real": 1, "local_fake": -1, "local_accuracy": 1}
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)
    # The same verdict on both is right half of the time.
    assert logit_metrics({**real, **sure}, {**fake, **sure})["local_accuracy"] == pytest.approx(0.5)
    empty = {**fake, "local_mask": jnp.zeros_like(mask)}
    assert logit_metrics({**real, "local_mask": empty["local_mask"]}, empty)["local_accuracy"] == 0


def test_weighted_mean_counts_channels_and_takes_zeros():
    values = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_allclose(weighted_mean(values, jnp.array([[1.0], [3.0]])), (1 + 3 * 4) / 4)
    assert weighted_mean(values, jnp.zeros((2, 1))) == 0
