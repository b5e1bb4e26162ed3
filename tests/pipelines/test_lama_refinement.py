import numpy as np
import pytest
from einops import rearrange
from safetensors.numpy import load_file

from m3ddm_jax.pipelines.lama_refinement import refine
from m3ddm_jax.weights.lama import lama_from_state_dict


@pytest.mark.slow
def test_equals_the_official_refinement(goldens):
    """Three scales of six iterations. Adam divides by the gradient's size, so that round-off grows."""
    folder = goldens / "completion/lama_refine"
    network = lama_from_state_dict(load_file(folder.parent / "lama_small/weights.safetensors"))
    inputs, outputs = (np.load(folder / f"{name}.npz") for name in ("inputs", "outputs"))
    image, mask = (rearrange(inputs[name], "1 c h w -> h w c") for name in ("image", "mask"))
    made = refine(*network, image, mask, iterations=6, min_side=32)
    np.testing.assert_allclose(made, rearrange(outputs["result"], "1 c h w -> h w c"), rtol=0, atol=1e-3)
    unrefined = refine(*network, image, mask, iterations=6, min_side=128)
    np.testing.assert_allclose(unrefined, rearrange(outputs["unrefined"], "1 c h w -> h w c"), rtol=0, atol=2e-5)
    assert np.abs(made - unrefined).max() > 0.01
