import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from safetensors.numpy import load_file

from m3ddm_jax.models.migan import MIGAN
from m3ddm_jax.weights.migan import migan_from_state_dict

LEVELS = (64, 32, 16, 8, 4)


def channels_last(x):
    return rearrange(x, "b c h w -> b h w c")


@pytest.fixture(scope="module")
def golden(goldens):
    """(apply with intermediates, variables, inputs, outputs)."""
    folder = goldens / "completion/migan_small"
    module, variables = migan_from_state_dict(load_file(folder / "weights.safetensors"))
    inputs, outputs = (dict(np.load(folder / f"{name}.npz")) for name in ("inputs", "outputs"))
    parts = {f"b{side}" for side in LEVELS} | {"conv1", "encoder"}
    apply = jax.jit(functools.partial(module.apply, capture_intermediates=lambda part, _: part.name in parts))
    return apply, variables, inputs, outputs


def arguments(inputs, suffix=""):
    """Image in -1..1 and mask, 1 = unknown, of a golden whose mask is 255 where it is known."""
    return inputs[f"image{suffix}"] / np.float32(127.5) - 1, np.float32(inputs[f"mask{suffix}"] < 255)[..., None]


@pytest.fixture(scope="module")
def made(golden):
    """(output, intermediates) of the golden's pictures."""
    apply, variables, inputs, _ = golden
    output, state = apply(variables, *arguments(inputs))
    return np.asarray(output), state["intermediates"]


def test_every_level_equals_the_official_one(golden, made):
    (_, _, inputs, expected), (output, inner) = golden, made
    encoder, synthesis = inner["encoder"], inner["synthesis"]
    found = {f"feat_{side}": encoder[f"b{side}"]["__call__"][0][0] for side in LEVELS}
    found |= {
        "encoded": encoder["__call__"][0][0],
        "image_4": synthesis["b4"]["__call__"][0][1],
        "synthesis_b8": synthesis["b8"]["__call__"][0][0],
        "synthesis_b8_conv1": synthesis["b8"]["conv1"]["__call__"][0],
        "output": output,
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, channels_last(expected[name]), rtol=0, atol=5e-5, err_msg=name)
    image, mask = arguments(inputs)
    composed = np.where(mask > 0, output, image)
    np.testing.assert_allclose(composed, channels_last(expected["composed"]), rtol=0, atol=5e-5)
    difference = np.abs(
        np.clip(composed * 127.5 + 127.5, 0, 255).astype(np.uint8).astype(int) - expected["composed_uint8"]
    )
    assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3


def test_the_image_of_every_level_equals_the_official_one(golden, made):
    """Each is what its level adds to the doubled one of the level below."""
    expected, synthesis = golden[3], made[1]["synthesis"]
    image = channels_last(expected["image_4"])
    for side in (8, 16, 32, 64):
        doubled = np.stack([_doubled(picture) for picture in image])
        image = doubled + synthesis[f"b{side}"]["__call__"][0][1]
        np.testing.assert_allclose(image, channels_last(expected[f"image_{side}"]), rtol=0, atol=5e-5)


def _doubled(image):
    """Bilinear, half-pixel centres, zeros outside."""
    near = np.kron(np.eye(len(image)), [[0.75], [0.75]])
    far = np.kron(np.eye(len(image), k=-1), [[0.25], [0]]) + np.kron(np.eye(len(image), k=1), [[0], [0.25]])
    return np.einsum("ai,bj,ijc->abc", near + far, near + far, image)


def test_a_wide_picture_repeats_the_noise(golden):
    apply, variables, inputs, outputs = golden
    output = apply(variables, *arguments(inputs, "_wide"))[0]
    np.testing.assert_allclose(output, channels_last(outputs["output_wide"]), rtol=0, atol=5e-5)


def test_sides_that_are_no_multiples_are_continued(golden):
    apply, variables, inputs, _ = golden
    image, mask = (x[:, :41, :50] for x in arguments(inputs))
    fill = [(0, 0), (0, 7), (0, 14), (0, 0)]
    whole = apply(variables, *(np.pad(x, fill, "symmetric") for x in (image, mask)))[0]
    np.testing.assert_allclose(apply(variables, image, mask)[0], whole[:, :41, :50], rtol=0, atol=1e-5)


def test_what_lies_under_the_mask_is_not_looked_at_and_the_rest_is(golden, made):
    """The mask's polarity: 1 is unknown, unlike in the published code."""
    apply, variables, inputs, _ = golden
    image, mask = arguments(inputs)
    hidden = apply(variables, np.where(mask > 0, np.float32(np.nan), image), mask)[0]
    np.testing.assert_array_equal(hidden, made[0])
    assert np.abs(apply(variables, image, 1 - mask)[0] - made[0]).max() > 0.05


@pytest.mark.parametrize("value", [0, 1])
def test_a_mask_of_nothing_or_all_is_no_trouble(golden, value):
    apply, variables, inputs, _ = golden
    image, mask = arguments(inputs)
    assert np.isfinite(apply(variables, image, np.full_like(mask, value))[0]).all()


def test_what_is_no_network_is_rejected():
    def init(module, *shapes):
        jax.eval_shape(module.init, jax.random.key(0), *map(jnp.zeros, shapes))

    with pytest.raises(ValueError, match=r"MI-GAN takes .* not \[1, 16, 16, 4\] and \[1, 16, 16, 1\]"):
        init(MIGAN(16, 4, 8), (1, 16, 16, 4), (1, 16, 16, 1))
    with pytest.raises(ValueError, match="resolution is 48: a power of 2 from 8 is accepted"):
        init(MIGAN(48, 4, 8), (1, 16, 16, 3), (1, 16, 16, 1))


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_the_network_of_the_official_pipeline(golden, goldens, name):
    """Its input is [mask - 0.5, image], 1 = known."""
    outputs = np.load(goldens / "completion/migan_pipeline/outputs.npz")
    x = channels_last(outputs[f"x_{name}"])
    made = golden[0](golden[1], *(np.repeat(part, 2, axis=0) for part in (x[..., 1:], 0.5 - x[..., :1])))[0][:1]
    np.testing.assert_allclose(made, channels_last(outputs[f"network_{name}"]), rtol=0, atol=5e-5)
