from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from m3ddm_jax.models.discriminator import GlobalBranch, HierarchicalDiscriminator, power_iteration
from m3ddm_jax.models.tubes import Tubes
from m3ddm_jax.weights.discriminator import with_tpatchgan

# float32 sums in another order, six convolutions deep; the outputs are of the order of 0.1.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def golden(goldens):
    folder = goldens / "isvi/tpatchgan3d"
    tensors = load_file(folder / "weights.safetensors")
    shapes = jax.eval_shape(GlobalBranch(8).init, jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3)))
    blank = {collection: {"global_branch": tree} for collection, tree in shapes.items()}

    def variables(tensors):
        found = with_tpatchgan(blank, tensors)
        found = {collection: tree["global_branch"] for collection, tree in found.items()}
        found["params"]["clip_head"] = {"kernel": np.ones((32, 1), np.float32), "bias": np.ones(1, np.float32)}
        found["spectral"]["clip_head"] = {"u": np.ones(1, np.float32), "v": np.full(32, 32**-0.5, np.float32)}
        return found

    frames = np.moveaxis(np.load(folder / "inputs.npz")["x"], 2, -1)
    return variables, tensors, frames, dict(np.load(folder / "outputs.npz")), jax.jit(GlobalBranch(8).apply)


def test_equals_the_published_tpatchgan(golden):
    variables, tensors, frames, expected, apply = golden
    logits, clip, features = apply(variables(tensors), frames)
    for level, feature in enumerate(features):
        before = np.moveaxis(expected[f"preact_{2 * level}"], 1, -1)
        np.testing.assert_allclose(feature, np.where(before > 0, before, 0.2 * before), **TOLERANCE)
    np.testing.assert_allclose(logits, np.moveaxis(expected["out"], 2, -1), **TOLERANCE)
    # A kernel of ones has the singular value sqrt(32): the sum of the means over it, and the bias.
    np.testing.assert_allclose(clip, features[-1].mean((1, 2, 3)).sum(-1) / 32**0.5 + 1, rtol=1e-5)


def test_a_power_iteration_is_the_published_training_step(golden):
    variables, tensors, frames, expected, apply = golden
    updated = power_iteration(variables(tensors))
    after = {name: expected.get(f"after_{name.replace('.', '_')}", tensor) for name, tensor in tensors.items()}
    found, wanted = updated["spectral"], variables(after)["spectral"]
    assert np.abs(wanted["conv_0"]["u"] - variables(tensors)["spectral"]["conv_0"]["u"]).max() > 1e-3
    for conv in (f"conv_{2 * level}" for level in range(5)):
        for name in ("u", "v"):
            np.testing.assert_allclose(found[conv][name], wanted[conv][name], **TOLERANCE)
    logits, _, _ = apply(updated, frames)
    np.testing.assert_allclose(logits, np.moveaxis(expected["out_train"], 2, -1), **TOLERANCE)


MODULE = HierarchicalDiscriminator(width=2, tube_size=16)
TUBES = Tubes(np.array([[[0, 0], [20, 30]]], np.int32), np.array([[[8, 4]]], np.int32))


def inputs(batch=1):
    frames = jax.random.uniform(jax.random.key(1), (batch, 2, 40, 56, 3), minval=-1)
    mask = jnp.zeros((batch, 2, 40, 56, 1), jnp.uint8).at[..., :12, :].set(1)
    return frames, mask, jax.tree.map(lambda corners: np.repeat(corners, batch, axis=0), TUBES)


@pytest.fixture(scope="module")
def tiny():
    return jax.jit(MODULE.init)(jax.random.key(0), *inputs()), jax.jit(MODULE.apply)


def test_shapes_and_the_mask_that_the_local_branch_sees(tiny):
    variables, apply = tiny
    frames, mask, tubes = inputs(batch=2)
    out = apply(variables, frames, mask, tubes)
    assert out["global"].shape == (2, 2, 1, 1, 8)
    assert out["clip"].shape == (2,)
    assert out["local"].shape == (2, 3, 2, 1, 1, 1)
    assert [x.shape[2:] for x in out["features"]["global"]] == [
        (19, 27, 2),
        (10, 14, 4),
        (5, 7, 8),
        (3, 4, 8),
        (2, 2, 8),
    ]
    assert [x.shape[1:] for x in out["features"]["local"]] == [
        (3, 2, side, side, width) for side, width in ((8, 2), (4, 4), (2, 8), (1, 8))
    ]
    assert out["local_mask"].shape == (2, 3, 2, 16, 16, 1)
    # Columns 0..11 are masked: 12 of 16 in the first tube, none in the second, 8 of 32 in the zoomed one.
    np.testing.assert_allclose(out["local_mask"].mean((0, 2, 3, 4, 5)), [0.75, 0, 0.25])
    alone = apply(variables, *jax.tree.map(lambda x: x[1:], (frames, mask, tubes)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1:], b, atol=1e-5), out, alone)


def test_the_local_branch_sees_its_tubes_alone(tiny):
    variables, _ = tiny
    frames, mask, tubes = inputs()

    def realness(frames, name):
        return jnp.sum(MODULE.apply(variables, frames, mask, tubes)[name])

    gradient = jax.jit(jax.grad(realness), static_argnums=1)
    seen = np.any(np.asarray(gradient(frames, "local")) != 0, axis=(0, 1, 4))
    inside = np.zeros((40, 56), bool)
    for top, left, side in ((0, 0, 16), (20, 30, 16), (8, 4, 32)):
        inside[top : top + side, left : left + side] = True
    assert not seen[~inside].any()
    assert seen[inside].mean() > 0.9
    assert np.any(np.asarray(gradient(frames, "clip")) != 0, axis=(0, 1, 4)).mean() > 0.9


def test_the_mask_is_the_local_branchs_alone(tiny):
    variables, apply = tiny
    frames, mask, tubes = inputs()
    out, other = apply(variables, frames, mask, tubes), apply(variables, frames, 1 - mask, tubes)
    np.testing.assert_array_equal(out["global"], other["global"])
    np.testing.assert_array_equal(out["clip"], other["clip"])
    assert np.all(out["local"] != other["local"])


def test_power_iterations_find_the_largest_singular_value(tiny):
    variables, apply = tiny
    kernel = np.asarray(variables["params"]["local_branch"]["conv_4"]["kernel"]).reshape(-1, 8)
    updated = jax.jit(partial(jax.lax.fori_loop, 0, 200, lambda _, v: power_iteration(v)))(variables)
    state = updated["spectral"]["local_branch"]["conv_4"]
    # The power method's error falls with the ratio of the two largest singular values.
    np.testing.assert_allclose(state["v"] @ kernel @ state["u"], np.linalg.norm(kernel, 2), rtol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, updated["params"], variables["params"])
    args = inputs()
    doubled = {**updated, "params": jax.tree.map(lambda x: 2 * x if x.ndim > 1 else x, updated["params"])}
    # Normalized kernels do not know their scale.
    np.testing.assert_allclose(apply(doubled, *args)["local"], apply(updated, *args)["local"], rtol=1e-4, atol=1e-6)


def test_applying_it_leaves_the_vectors_and_gradients_reach_all_parameters(tiny):
    variables, _ = tiny
    args = inputs()

    def total(params):
        out, kept = MODULE.apply({**variables, "params": params}, *args, mutable=["spectral"])
        return jnp.sum(out["global"] ** 2) + jnp.sum(out["clip"] ** 2) + jnp.sum(out["local"] ** 2), kept

    gradients, kept = jax.jit(jax.grad(total, has_aux=True))(variables["params"])
    jax.tree.map(np.testing.assert_array_equal, kept["spectral"], variables["spectral"])
    assert all(np.abs(gradient).max() > 0 for gradient in jax.tree.leaves(gradients))


def test_a_shared_trunk_judges_the_clip_without_tubes():
    module = MODULE.clone(shared_trunk=True)
    frames, mask, _ = inputs()
    variables = jax.jit(module.init)(jax.random.key(0), frames, mask)
    assert set(variables["params"]) == {"global_branch", "local_head"}
    out = jax.jit(module.apply)(variables, frames, mask)
    assert out["local"].shape == (1, 1, 2, 3, 4, 1)
    assert len(out["features"]["local"]) == 4
    np.testing.assert_array_equal(out["features"]["local"][3][:, 0], out["features"]["global"][3])
    np.testing.assert_array_equal(out["local_mask"][:, 0], mask)


def test_bfloat16_gives_float32_logits_near_those_of_float32(tiny):
    variables, apply = tiny
    args = inputs()
    half = jax.jit(MODULE.clone(dtype=jnp.bfloat16).apply)(variables, *args)
    full = apply(variables, *args)
    for name in ("global", "clip", "local"):
        assert half[name].dtype == jnp.float32
        # bfloat16 keeps 8 bits, through six convolutions.
        np.testing.assert_allclose(half[name], full[name], atol=0.05 * np.abs(full[name]).max() + 1e-3)


def test_what_it_needs_is_named(tiny):
    variables, _ = tiny
    frames, mask, tubes = inputs()
    with pytest.raises(ValueError, match="needs tubes"):
        MODULE.apply(variables, frames, mask)
    with pytest.raises(ValueError, match="tube_size is 24: multiples of 16"):
        MODULE.clone(tube_size=24).apply(variables, frames, mask, tubes)
    with pytest.raises(ValueError, match="24x56 hold no tube of 32x32"):
        MODULE.apply(variables, frames[:, :, :24], mask[:, :, :24], tubes)
