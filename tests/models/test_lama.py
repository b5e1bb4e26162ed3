import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from safetensors.numpy import load_file

from m3ddm_jax.models.lama import FourierUnit, LaMa
from m3ddm_jax.weights.lama import lama_from_state_dict


def channels_last(x):
    return rearrange(x, "b c h w -> b h w c")


@pytest.fixture(scope="module")
def golden(goldens):
    """(apply with intermediates, variables, inputs, outputs)."""
    folder = goldens / "completion/lama_small"
    module, variables = lama_from_state_dict(load_file(folder / "weights.safetensors"))
    inputs, outputs = (dict(np.load(folder / f"{name}.npz")) for name in ("inputs", "outputs"))
    parts = {"model_1", "model_4", "model_5", "model_6", "model_9", "convg2g", "fu"}
    apply = jax.jit(functools.partial(module.apply, capture_intermediates=lambda part, _: part.name in parts))
    return apply, variables, inputs, outputs


@pytest.fixture(scope="module")
def predicted(golden):
    """(prediction, intermediates) of the golden's pictures."""
    apply, variables, inputs, _ = golden
    made, state = apply(variables, channels_last(inputs["image_a"]), channels_last(inputs["mask_a"]))
    return np.asarray(made), state["intermediates"]


def test_every_stage_equals_the_official_one(golden, predicted):
    expected, (made, inner) = golden[3], predicted
    spectral = inner["model_5"]["conv1"]["ffc"]["convg2g"]
    found = {
        "stem_l": inner["model_1"]["__call__"][0][0],
        "down_l": inner["model_4"]["__call__"][0][0],
        "down_g": inner["model_4"]["__call__"][0][1],
        "fourier_unit": spectral["fu"]["__call__"][0],
        "spectral": spectral["__call__"][0],
        "block0_l": inner["model_5"]["__call__"][0][0],
        "block0_g": inner["model_5"]["__call__"][0][1],
        "bottleneck": jnp.concatenate(inner["model_6"]["__call__"][0], -1),
        "up0": nn.relu(inner["model_9"]["__call__"][0]),
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, channels_last(expected[f"{name}_a"]), rtol=0, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(made, channels_last(expected["predicted_a"]), rtol=0, atol=2e-5)


def test_an_odd_width_is_transformed(golden):
    _, variables, _, outputs = golden
    scopes = [variables[kind]["model_5"]["conv1"]["ffc"]["convg2g"]["fu"] for kind in ("params", "batch_stats")]
    made = FourierUnit().apply(
        dict(zip(("params", "batch_stats"), scopes, strict=True)), channels_last(outputs["fourier_unit_in_b"])
    )
    np.testing.assert_allclose(made, channels_last(outputs["fourier_unit_b"]), rtol=0, atol=1e-4)


def test_any_size_is_predicted_as_by_the_official_command(golden):
    """61x75, padded by symmetric reflection; grey mask values count as unknown."""
    apply, variables, inputs, outputs = golden
    image, unknown = inputs["predict_image"] / np.float32(255), inputs["predict_mask"][..., None] > 0
    made = np.asarray(apply(variables, image[None], unknown[None])[0][0])
    composed = np.where(unknown, made, image)
    np.testing.assert_allclose(composed, outputs["predict_float"], rtol=0, atol=2e-5)
    difference = np.abs(np.clip(255 * composed, 0, 255).astype(np.uint8).astype(int) - outputs["predict_uint8"])
    assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3


def test_what_lies_under_the_mask_is_not_looked_at_and_the_rest_is(golden, predicted):
    """The mask's polarity: 1 is unknown."""
    apply, variables, inputs, _ = golden
    image, mask = channels_last(inputs["image_a"]), channels_last(inputs["mask_a"])
    hidden = apply(variables, np.where(mask > 0, np.float32(np.nan), image), mask)[0]
    np.testing.assert_array_equal(hidden, predicted[0])
    assert np.abs(apply(variables, image, 1 - mask)[0] - predicted[0]).max() > 0.05


@pytest.mark.parametrize("value", [0, 1])
def test_a_mask_of_nothing_or_all_is_no_trouble(golden, value):
    apply, variables, inputs, _ = golden
    image = channels_last(inputs["image_a"])
    made = np.asarray(apply(variables, image, np.full_like(image[..., :1], value))[0])
    assert np.isfinite(made).all() and made.min() >= 0 and made.max() <= 1


def test_bfloat16_stays_near(golden, predicted):
    _, variables, inputs, _ = golden
    module = LaMa(8, blocks=2, global_channels=48, dtype=jnp.bfloat16)
    made = jax.jit(module.apply)(variables, channels_last(inputs["image_a"]), channels_last(inputs["mask_a"]))
    assert made.dtype == jnp.float32 and np.abs(made - predicted[0]).mean() < 0.02


def test_other_shapes_are_rejected():
    with pytest.raises(ValueError, match=r"LaMa takes .* not \[1, 16, 16, 3\] and \[1, 16, 16, 3\]"):
        jax.eval_shape(LaMa(4).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 16, 16, 3)))


def test_the_coarsest_scale_of_the_official_refinement(golden, goldens):
    """Which is a plain forward."""
    outputs = np.load(goldens / "completion/lama_refine/outputs.npz")
    image, mask = (channels_last(outputs[f"scale0_{name}"]) for name in ("image", "mask"))
    composed = np.where(mask > 0, golden[0](golden[1], image, mask)[0], image)
    np.testing.assert_allclose(composed, channels_last(outputs["scale0_result"]), rtol=0, atol=2e-5)
