import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange
from safetensors.numpy import load_file

from m3ddm_jax.models.deepfill import DeepFill, _half_positions
from m3ddm_jax.weights.deepfill import deepfill_from_state_dict


def channels_last(x):
    return rearrange(x, "b c h w -> b h w c")


@pytest.fixture(scope="module")
def golden(goldens):
    """(apply with intermediates, variables, image, mask, outputs)."""
    folder = goldens / "isvi/deepfill_v1_dim8"
    module, variables = deepfill_from_state_dict(load_file(folder / "weights.safetensors"))
    inputs, outputs = (np.load(folder / f"{name}.npz") for name in ("inputs", "outputs"))
    parts = ("stage_1", "down_attn_branch", "CAttn")
    apply = jax.jit(functools.partial(module.apply, capture_intermediates=lambda part, _: part.name in parts))
    return apply, variables, channels_last(inputs["image"]), channels_last(inputs["mask"]), dict(outputs)


def test_every_stage_equals_the_official_one(golden):
    apply, variables, image, mask, expected = golden
    out, state = apply(variables, image, mask)
    inner = state["intermediates"]
    found = {
        "stage1": inner["stage_1"]["__call__"][0],
        "attn_in": inner["stage_2"]["down_attn_branch"]["__call__"][0],
        "attn_out": inner["stage_2"]["CAttn"]["__call__"][0],
        "stage2": out,
    }
    for name, value in found.items():
        # float32 sums in another order; the softmax multiplies their differences by ten.
        np.testing.assert_allclose(value, channels_last(expected[name]), rtol=1e-4, atol=1e-4, err_msg=name)


def test_what_lies_under_the_mask_is_not_looked_at(golden):
    apply, variables, image, mask, _ = golden
    other = np.where(mask > 0, np.float32(np.nan), image)
    np.testing.assert_array_equal(apply(variables, image, mask)[0], apply(variables, other, mask)[0])


@pytest.mark.parametrize("mask", [0, 1])
def test_a_mask_of_nothing_or_all_is_no_trouble(golden, mask):
    apply, variables, image, shape, _ = golden
    out, _ = apply(variables, image, np.full_like(shape, mask))
    assert np.all(np.isfinite(out))


@pytest.mark.parametrize("count", [12, 60, 108, 128])
def test_half_resolution_is_sampled_where_float32_says(count):
    grid = torch.arange(count, dtype=torch.float32) * 2 / count - 1
    grid = torch.stack([grid, torch.zeros(count)], dim=-1).reshape(1, 1, count, 2)
    numbers = torch.arange(2 * count, dtype=torch.float32).reshape(1, 1, 1, -1)
    sampled = torch.nn.functional.grid_sample(numbers, grid, "nearest", align_corners=False)
    np.testing.assert_array_equal(_half_positions(count), sampled.flatten().numpy())
    assert np.any(_half_positions(count) != 2 * np.arange(count)) == (count in (60, 108))


def test_refuses_what_it_cannot_fill():
    def init(*shapes):
        jax.eval_shape(DeepFill(2).init, jax.random.key(0), *map(jnp.zeros, shapes))

    with pytest.raises(ValueError, match=r"not \[1, 8, 8, 3\] and \[1, 8, 8, 3\]"):
        init((1, 8, 8, 3), (1, 8, 8, 3))
    with pytest.raises(ValueError, match="the image is 20x16: sides that are multiples of 8"):
        init((1, 16, 20, 3), (1, 16, 20, 1))
