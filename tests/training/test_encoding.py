import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.models import registry
from m3ddm_jax.models.autoencoder import PatchCodec
from m3ddm_jax.training.encoding import (
    SAMPLED,
    Encoders,
    codec_identity,
    decode_latents,
    encode_batch,
    encode_frames,
    make_conditions,
)

PATCHES = PatchCodec(8, scale=2.0)


def make_batch(clips=2, frames=2, side=32):
    """Noise; the last 15 of 32 columns are to be generated."""
    rng = np.random.default_rng(0)
    mask = (np.arange(side) > side // 2).astype(np.uint8)
    return {
        "video": rng.integers(0, 256, (clips, frames, side, side, 3), np.uint8),
        "mask": np.broadcast_to(mask[:, None], (clips, frames, side, side, 1)),
        "global_frames": rng.integers(0, 256, (clips, 3, 48, 48, 3), np.uint8),
        "fps": np.full(clips, 12.0, np.float32),
    }


@pytest.fixture(scope="module")
def kl():
    """A KL autoencoder of random weights with its variables, and what it makes of a batch."""
    module = registry.build("autoencoder", block_out_channels=(4, 4, 4, 8), layers_per_block=1, norm_num_groups=2)
    rng = np.random.default_rng(1)
    shapes = registry.abstract_variables(module)
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    encode = jax.jit(functools.partial(encode_batch, Encoders(module)))
    return module, variables, encode({"autoencoder": variables}, make_batch())


@pytest.mark.parametrize("drop_local", [False, True])
@pytest.mark.parametrize("drop_global", [False, True])
def test_what_the_network_sees(drop_local, drop_global):
    batch = make_batch()
    drops = [jnp.array([False, drop]) for drop in (drop_local, drop_global)]
    seen = make_conditions(encode_batch(Encoders(PATCHES), {"autoencoder": {}}, batch), None, *drops)
    unit = batch["video"] / np.float32(127.5) - 1
    decoded = functools.partial(decode_latents, PATCHES, {})

    np.testing.assert_allclose(decoded(seen.latents), unit, atol=1e-6)
    np.testing.assert_array_equal(seen.fps, 12.0)
    # The last 15 of 32 columns are unknown: black in pixels; a cell that holds any of them is unknown.
    masked = np.where(batch["mask"] > 0, -1.0, unit)
    np.testing.assert_allclose(decoded(seen.masked_latents)[0], masked[0], atol=1e-6)
    np.testing.assert_array_equal(seen.mask[0, :, :, :2], 0.0)
    np.testing.assert_array_equal(seen.mask[0, :, :, 2:], 1.0)
    assert np.all(seen.mask[1] == 1) == drop_local
    assert np.allclose(decoded(seen.masked_latents)[1], -1.0) == drop_local
    global_latents = seen.guide["global_latents"]
    assert np.any(global_latents[0] != 0) and np.all(global_latents[1] == 0) == drop_global


def test_latents_are_scaled_and_the_patches_of_pixels_have_no_spread():
    frames = np.linspace(-1, 1, 2 * 16 * 16 * 3, dtype=np.float32).reshape(1, 2, 16, 16, 3)
    mean, std = encode_frames(PATCHES, {}, frames)
    assert mean.shape == (1, 2, 2, 2, 192) and float(jnp.max(mean)) == 2.0
    np.testing.assert_array_equal(std, 0.0)


def test_the_posterior_is_scaled_and_sampled_with_the_noise_given(kl):
    module, variables, encoded = kl
    frames = make_batch()["video"][0] / np.float32(127.5) - 1
    mean, logvar = jax.jit(functools.partial(module.apply, method="encode"))(variables, frames)
    # Two programs of one formula, of values near 1: rounding alone.
    np.testing.assert_allclose(encoded["latents_mean"][0], 0.18215 * mean, atol=1e-5)
    np.testing.assert_allclose(encoded["latents_std"][0], 0.18215 * np.exp(0.5 * logvar), rtol=1e-4)
    noise = {name: np.full(encoded[f"{name}_mean"].shape, 2.0, np.float32) for name in SAMPLED}
    seen, mean_seen = make_conditions(encoded, noise), make_conditions(encoded)
    for name, field in zip(SAMPLED, ("latents", "masked_latents", "global_latents"), strict=True):
        mean, sample = (parts.guide.get(field, getattr(parts, field, None)) for parts in (mean_seen, seen))
        np.testing.assert_array_equal(mean, encoded[f"{name}_mean"])
        drawn = encoded[f"{name}_mean"] + 2 * encoded[f"{name}_std"]
        np.testing.assert_allclose(sample, drawn, rtol=1e-6, atol=1e-6)
        assert float(jnp.min(encoded[f"{name}_std"])) > 0


def test_a_clip_that_is_wholly_unknown_is_what_a_black_one_is(kl):
    module, variables, encoded = kl
    hidden = make_batch() | {"mask": np.ones((2, 2, 32, 32, 1), np.uint8)}
    expected = jax.jit(functools.partial(encode_batch, Encoders(module)))({"autoencoder": variables}, hidden)
    noise = {name: np.ones(encoded[f"{name}_mean"].shape, np.float32) for name in SAMPLED}
    seen = make_conditions(encoded, noise, drop_local=jnp.array([True, False]))
    truth = make_conditions(expected, noise)
    np.testing.assert_allclose(seen.masked_latents[0], truth.masked_latents[0], atol=1e-5)
    np.testing.assert_array_equal(seen.mask[0], truth.mask[0])
    assert np.abs(seen.masked_latents[1] - truth.masked_latents[1]).max() > 0.01


def test_what_is_encoded_is_not_encoded_again(kl):
    module, variables, encoded = kl
    assert encode_batch(Encoders(module), {"autoencoder": variables}, encoded) is encoded


def test_an_identity_is_of_kind_hyper_parameters_and_weights(kl):
    module, variables, _ = kl
    assert codec_identity(PATCHES, {}) == {"kind": "patch_codec", "patch_size": 8, "scale": 2.0}
    identity = codec_identity(module, variables)
    assert identity["scale"] == 0.18215 and len(identity["weights"]) == 64
    assert codec_identity(module.clone(dtype=jnp.bfloat16), jax.device_put(variables)) == identity
    changed = jax.tree.map(np.copy, variables)
    changed["params"]["quant_conv"]["bias"][0] += 1e-6
    assert codec_identity(module, changed)["weights"] != identity["weights"]
