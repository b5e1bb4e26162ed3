import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.models.discriminator import HierarchicalDiscriminator
from m3ddm_jax.models.tubes import Tubes
from m3ddm_jax.weights.discriminator import with_tpatchgan


def shapes_of(width):
    module = HierarchicalDiscriminator(width)
    corners = jnp.zeros((1, 1, 2), jnp.int32)
    arguments = jnp.zeros((1, 1, 128, 128, 3)), jnp.zeros((1, 1, 128, 128, 1)), Tubes(corners, corners)
    return jax.eval_shape(module.init, jax.random.key(0), *arguments)


def tensors_of(width, rng):
    """A state dict as PyTorch's spectral norm writes it."""
    widths, tensors = (3, width, 2 * width, 4 * width, 4 * width, 4 * width), {}
    for level, (into, out) in enumerate(zip(widths, widths[1:], strict=False)):
        kernel = rng.normal(size=(out, into, 3, 5, 5)).astype(np.float32)
        u = rng.normal(size=out).astype(np.float32)
        v = np.einsum("oithw,o->ithw", kernel, u).reshape(-1)
        name = f"conv.{2 * level}.weight"
        tensors |= {f"{name}_orig": kernel, f"{name}_u": u, f"{name}_v": v}
    last = rng.normal(size=(widths[-1], widths[-1], 3, 5, 5)).astype(np.float32)
    return tensors | {"conv.10.weight": last, "conv.10.bias": rng.normal(size=widths[-1]).astype(np.float32)}


def test_every_published_tensor_has_a_place(goldens):
    shapes = json.loads((goldens / "isvi/state_dicts/tpatchgan3d_nf32.json").read_text())
    blank = shapes_of(32)
    found = with_tpatchgan(blank, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, blank)
    filled = [leaf for leaf in jax.tree.leaves(found) if isinstance(leaf, np.ndarray)]
    assert len(filled) == len(shapes)
    parameters = [leaf for leaf in jax.tree.leaves(found["params"]) if isinstance(leaf, np.ndarray)]
    assert sum(leaf.size for leaf in parameters) == 4_461_728


def test_vectors_turn_with_their_kernels():
    tensors = tensors_of(2, np.random.default_rng(0))
    found = with_tpatchgan(shapes_of(2), tensors)
    for level in range(5):
        conv = f"conv_{2 * level}"
        kernel, state = found["params"]["global_branch"][conv]["kernel"], found["spectral"]["global_branch"][conv]
        np.testing.assert_array_equal(kernel[1, 2, 3], tensors[f"conv.{2 * level}.weight_orig"][:, :, 1, 2, 3].T)
        # Made so that v is the kernel times u; float32 sums of up to 8 terms.
        np.testing.assert_allclose(kernel.reshape(state["v"].size, -1) @ state["u"], state["v"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["params"]["global_branch"]["conv_10"]["bias"], tensors["conv.10.bias"])


def test_what_does_not_fit_is_listed():
    tensors = tensors_of(2, np.random.default_rng(0))
    tensors["conv.12.bias"] = tensors.pop("conv.10.bias")
    tensors["conv.0.weight_v"] = np.zeros(7, np.float32)
    message = (
        r"missing conv\.10\.bias \[8\]; surplus conv\.12\.bias \[8\]; conv\.0\.weight_v is \[7\], expected \[225\]"
    )
    with pytest.raises(ValueError, match=message):
        with_tpatchgan(shapes_of(2), tensors)
    with pytest.raises(ValueError, match=r"conv\.0\.weight_orig is \[3, 3, 3, 5, 5\], expected \[2, 3, 3, 5, 5\]"):
        with_tpatchgan(shapes_of(2), tensors_of(3, np.random.default_rng(0)))
