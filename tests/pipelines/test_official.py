"""The official code's sampling of one window, from frames to frames, on its own outputs."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from m3ddm_jax.diffusion.guidance import Guidance
from m3ddm_jax.diffusion.schedule import make_schedule
from m3ddm_jax.diffusion.solvers import make_solver
from m3ddm_jax.models.autoencoder import from_latents, reduce_mask, to_latents
from m3ddm_jax.models.unet3d import M3DDMUNet
from m3ddm_jax.pipelines.sampler import Conditions, make_sampler
from m3ddm_jax.weights.m3ddm import variables_from_official


class LinearCodec(nn.Module):
    """The stand-in autoencoder of the reference outputs: mean colours of 8 x 8 pixels, mixed; and back."""

    scale: float = 0.18215
    temporal_factor: ClassVar[int] = 1

    def encode(self, x):
        cells = nn.avg_pool(x, (8, 8), (8, 8)) @ self.get_variable("params", "encoder").T
        return cells, jnp.full_like(cells, -jnp.inf)

    def decode(self, z):
        return (z @ self.get_variable("params", "decoder").T).repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture(scope="module")
def network(goldens):
    module = M3DDMUNet(block_out_channels=(32, 64, 64, 64), num_heads=4, norm_num_groups=8)
    return module, variables_from_official(module, load_file(goldens / "m3ddm/unet_small/weights.safetensors"))


@pytest.mark.parametrize(
    "case",
    [
        "full",
        pytest.param("local_only", marks=pytest.mark.slow),
    ],
)
def test_a_window_equals_the_official_one(goldens, network, case):
    golden = np.load(goldens / f"m3ddm/sampler/pipeline_{case}.npz")
    module, variables = network
    codec = LinearCodec()
    codec_variables = {"params": {"encoder": golden["Wenc"], "decoder": golden["Wdec"]}}

    def encode(frames):
        return np.array(to_latents(codec, codec_variables, frames))

    masked_latents = encode(np.moveaxis(golden["masked_frames"], 0, -1))
    frames = len(masked_latents)
    pixels = np.repeat(np.moveaxis(golden["mask"][0], 0, -1)[None], frames, axis=0)
    mask = np.array(reduce_mask(pixels, 8, "nearest"))
    guides = np.zeros(frames, bool)
    for frame, latents in zip(golden["guide_index"].astype(int), golden["guide_latents"], strict=True):
        masked_latents[frame], mask[frame], guides[frame] = np.moveaxis(latents, 0, -1), 0, True
    global_latents = encode(np.moveaxis(golden["global_frames"], 1, -1))[None]
    encode_context = functools.partial(jax.jit(functools.partial(module.apply, method="encode_context")), variables)
    conditions = Conditions(
        mask=mask[None],
        masked_latents=masked_latents[None],
        guides=guides[None],
        fps=np.float32(golden["fps"])[None],
        context=encode_context(global_latents),
        null_context=encode_context(np.zeros_like(global_latents)),
        black=encode(-np.ones((1, *pixels.shape[1:3], 3), np.float32))[0],
    )
    schedule = make_schedule("scaled_linear")
    solver = make_solver("plms", schedule, int(golden["steps"]))
    np.testing.assert_array_equal(solver.timesteps, golden["timesteps"])
    guidance = Guidance(float(golden["guidance_scale"]), float(golden["previous_guidance_scale"]))
    sample = make_sampler(module, schedule, solver, prediction="epsilon", guidance=guidance)

    guess = encode(np.moveaxis(golden["init_frames"], 0, -1))[None]
    latents = sample(variables, guess, np.moveaxis(golden["noise"], 1, -1), conditions)
    expected = np.moveaxis(golden["out_latents"], 1, -1)
    # Guided float32 predictions, step after step: the outputs' own scale is the measure.
    np.testing.assert_allclose(latents, expected, atol=1e-3 * np.abs(expected).max())
    images = np.clip(from_latents(codec, codec_variables, latents[0]) / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(images, golden["out_images"], atol=1e-3)
