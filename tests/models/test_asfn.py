import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from m3ddm_jax.models.asfn import ASFN, StyleDiscriminator
from m3ddm_jax.models.discriminator import power_iteration
from m3ddm_jax.weights.asfn import asfn_from_checkpoint
from m3ddm_jax.weights.checkpoint import open_checkpoint
from m3ddm_jax.weights.discriminator import in_our_order
from m3ddm_jax.weights.names import take, targets

# float32 sums in another order, some twenty convolutions deep.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
STAGES = ("encoder12_2", "encoder24_1", "t1", "transferLayer_1", "refineLayer_1", "decoder42_1")


def channels_last(x):
    return rearrange(x, "b c h w -> b h w c")


@pytest.fixture(scope="module")
def golden(goldens):
    """(apply with intermediates, variables, gradients, mask, outputs)."""
    folder = goldens / "isvi/asfn_skip_tanh"
    module, variables = asfn_from_checkpoint(open_checkpoint(folder / "weights.safetensors", ""))
    inputs, outputs = (np.load(folder / f"{name}.npz") for name in ("inputs", "outputs"))
    apply = jax.jit(functools.partial(module.apply, capture_intermediates=lambda part, _: part.name in STAGES))
    return apply, variables, channels_last(inputs["image"]), channels_last(inputs["mask"]), dict(outputs)


def test_every_stage_equals_the_official_one(golden):
    apply, variables, gradients, mask, expected = golden
    out, state = apply(variables, gradients, mask)
    inner = state["intermediates"]
    stages = [inner[name]["__call__"][0] for name in STAGES if name != "t1"]
    stages.insert(2, inner["transferLayer_0"]["t1"]["__call__"][0])
    names = ("encoder12", "encoder24", "transferLayer_0_t1", "transferLayer", "refineLayer", "decoder42")
    for name, stage in zip(names, stages, strict=True):
        np.testing.assert_allclose(stage, channels_last(expected[f"mid_{name}"]), **TOLERANCE, err_msg=name)
    np.testing.assert_allclose(out, channels_last(expected["out"]), **TOLERANCE)


@pytest.mark.parametrize("known", [0, 1, 191, 192])
def test_an_image_with_nothing_to_fuse_comes_back_as_it_is(golden, known):
    """Of 192 cells, fewer than two known or fewer than two masked; its neighbour in the batch is worked on."""
    apply, variables, gradients, mask, expected = golden
    cells = (np.arange(192) >= known).astype(np.float32).reshape(12, 16, 1)
    masks = mask.copy()
    masks[0] = cells.repeat(4, axis=0).repeat(4, axis=1)
    out, _ = apply(variables, gradients, masks)
    np.testing.assert_array_equal(out[0], gradients[0])
    np.testing.assert_allclose(out[1], channels_last(expected["out"])[1], **TOLERANCE)


def test_gradients_are_finite_whatever_the_mask():
    module = ASFN(width=2, transfer_blocks=1, res_blocks=1, gated=True, skip_connection=False, signed=False)
    gradients = np.random.default_rng(0).normal(size=(3, 8, 12, 3)).astype(np.float32)
    mask = np.zeros((3, 8, 12, 1), np.float32)
    mask[1], mask[2, :, :4] = 1, 1

    @jax.jit
    def loss_and_gradients(variables):
        def loss(variables):
            out = module.apply(variables, gradients, mask)
            return jnp.square(out - 1).sum(), out

        return jax.value_and_grad(loss, has_aux=True)(variables)

    shapes, rng = jax.eval_shape(module.init, jax.random.key(0), gradients, mask), np.random.default_rng(1)
    variables = jax.tree.map(lambda x: rng.normal(scale=0.2, size=x.shape).astype(np.float32), shapes)
    (_, out), found = loss_and_gradients(variables)
    np.testing.assert_array_equal(out[:2], gradients[:2])
    assert np.all((out[2] > 0) & (out[2] < 1))
    leaves = jax.tree_util.tree_leaves_with_path(found["params"])
    assert all(np.all(np.isfinite(leaf)) for _, leaf in leaves)
    still = [jax.tree_util.keystr(path) for path, leaf in leaves if not np.any(leaf)]
    assert not still, still


def test_refuses_what_it_cannot_fuse():
    module = ASFN(width=2)

    def init(*shapes):
        jax.eval_shape(module.init, jax.random.key(0), *map(jnp.zeros, shapes))

    with pytest.raises(ValueError, match=r"gradients \[B, H, W, 3\], not \[1, 8, 8, 2\]"):
        init((1, 8, 8, 2), (1, 8, 8, 1))
    with pytest.raises(ValueError, match=r"the mask is \[1, 8, 4, 1\]: \[1, 8, 8, 1\], as the gradients"):
        init((1, 8, 8, 3), (1, 8, 4, 1))
    with pytest.raises(ValueError, match="gradients are 10x8: sides that are multiples of 4"):
        init((1, 8, 10, 3), (1, 8, 10, 1))


def from_official(tensors, width):
    """The official discriminator's state dict as variables, its u and v in `spectral`."""

    def name_of(path):
        _, conv, leaf = path.split(".")
        return f"{conv.replace('_', '.')}.weight_{'orig' if leaf == 'kernel' else leaf}"

    wanted = targets(StyleDiscriminator(width), name_of)
    return unflatten_dict(take("the discriminator", in_our_order(tensors), wanted), ".")


def test_discriminator_equals_the_official_one_in_evaluation_and_in_training(goldens):
    folder = goldens / "isvi/asfn_discriminator"
    tensors = load_file(folder / "weights.safetensors")
    module, variables = StyleDiscriminator(width=8), from_official(tensors, 8)
    gradients, expected = channels_last(np.load(folder / "inputs.npz")["x"]), np.load(folder / "outputs.npz")
    apply = jax.jit(module.apply)
    np.testing.assert_allclose(apply(variables, gradients), channels_last(expected["out"]), **TOLERANCE)

    updated = power_iteration(variables)
    np.testing.assert_allclose(apply(updated, gradients), channels_last(expected["out_train"]), **TOLERANCE)
    after = {name: expected.get(f"after_{name.replace('.', '_')}", tensor) for name, tensor in tensors.items()}
    wanted = from_official(after, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), updated["spectral"], wanted["spectral"])
    assert np.abs(wanted["spectral"]["conv_4"]["u"] - variables["spectral"]["conv_4"]["u"]).max() > 1e-3
