import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from m3ddm_jax.models.igfc import IGFC
from m3ddm_jax.weights.checkpoint import open_checkpoint
from m3ddm_jax.weights.igfc import igfc_from_checkpoint

# float32 sums in another order, some twenty convolutions deep.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
TINY = IGFC(width=4, num_frames=3)


@pytest.fixture(scope="module")
def golden(goldens):
    """(module, variables, apply with intermediates, inputs channels last, outputs)."""
    folder = goldens / "isvi/igfc_vanilla"
    module, variables = igfc_from_checkpoint(open_checkpoint(folder / "weights.safetensors", ""))
    inputs = {name: rearrange(x, "b c t h w -> b t h w c") for name, x in np.load(folder / "inputs.npz").items()}
    parts = {"middleLayer_0", "flowFuseLayer", "spa", "temporal_selection", "dilate_conv4"}
    apply = jax.jit(functools.partial(module.apply, capture_intermediates=lambda part, _: part.name in parts))
    return apply, variables, inputs, dict(np.load(folder / "outputs.npz"))


def channels_last(x):
    return rearrange(x, "b c h w -> b h w c")


def test_every_stage_equals_the_official_one(golden):
    apply, variables, inputs, expected = golden
    flows, state = apply(variables, inputs["flows"], inputs["masks"], jnp.array([3, 0, -3]))
    found = dict(zip(("flow", "f4", "f2"), flows, strict=True))
    inner = jax.tree.map(lambda x: x[0], state["intermediates"], is_leaf=lambda x: isinstance(x, tuple))
    fusion = inner["flowFuseLayer"]
    found["mid_flowFuseLayer"] = fusion["__call__"]
    found["mid_flowFuseLayer_temporal_selection"] = fusion["temporal_selection"]["__call__"]
    # The official network goes through frames one after another: what it left are the last one's.
    found["mid_flowFuseLayer_spa"] = fusion["spa"]["__call__"][2::3]
    found["mid_middleLayer"] = inner["middleLayer_0"]["__call__"][2::3]
    found["mid_dilate_conv4"] = inner["dilate_conv4"]["__call__"]
    for name, value in found.items():
        np.testing.assert_allclose(value, channels_last(expected[name]), **TOLERANCE, err_msg=name)


def test_by_default_flows_follow_one_another(golden):
    apply, variables, inputs, expected = golden
    (flow, _, _), _ = apply(variables, inputs["flows"], inputs["masks"], jnp.array([1, 0, -1]))
    np.testing.assert_allclose(flow, channels_last(expected["flow_default_shift"]), **TOLERANCE)


def test_all_variants_take_their_frames_and_give_gradients():
    """Gated, five frames, without mask, residual and bias; shifts of each clip, all the default ones."""
    module = IGFC(width=4, num_frames=5, res_blocks=2, gated=True, pass_mask=False, use_residual=False, use_bias=False)
    rng = np.random.default_rng(0)
    flows = rng.normal(size=(2, 5, 8, 16, 2)).astype(np.float32)
    masks = np.ones((2, 5, 8, 16, 1), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), flows, masks)
    variables = jax.tree.map(lambda x: rng.normal(scale=0.2, size=x.shape).astype(np.float32), shapes)

    @jax.jit
    def run(variables, flows):
        def loss(variables):
            outputs = module.apply(variables, flows, masks)
            return sum(jnp.square(flow).sum() for flow in outputs), outputs

        return jax.value_and_grad(loss, has_aux=True)(variables)

    (_, outputs), gradients = run(variables, flows)
    assert [flow.shape for flow in outputs] == [(2, 8, 16, 2), (2, 2, 4, 2), (2, 4, 8, 2)]
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.all(np.isfinite(gradient)) and np.any(gradient), jax.tree_util.keystr(path)
    assert "bias" not in variables["params"]["conv2"]["featureConv"]


def test_inertia_carries_features_along_their_own_flow():
    """A feature at cell (2, 3) of a flow of 4 pixels a frame to the right, two frames before the middle."""
    features = np.zeros((1, 3, 6, 8, 1), np.float32)
    features[0, :, 2, 3] = 1
    flows = np.broadcast_to(np.float32([4, 0]), (1, 3, 24, 32, 2))
    carried = np.asarray(IGFC(num_frames=3)._carried(features, flows, np.array([[2, 0, -2]])))
    assert [np.argwhere(frame[..., 0]).tolist() for frame in carried[0]] == [[[2, 5]], [[2, 3]], [[2, 1]]]
    by_default = np.asarray(IGFC(num_frames=3)._carried(features, flows, None))
    assert [np.argwhere(frame[..., 0]).tolist() for frame in by_default[0]] == [[[2, 4]], [[2, 3]], [[2, 2]]]


def test_refuses_what_it_cannot_complete():
    def init(module, *shapes):
        jax.eval_shape(module.init, jax.random.key(0), *map(jnp.zeros, shapes))

    with pytest.raises(ValueError, match=r"flows are \[1, 5, 8, 8, 2\]: \[B, 3, H, W, 2\] are accepted"):
        init(TINY, (1, 5, 8, 8, 2), (1, 5, 8, 8, 1))
    with pytest.raises(ValueError, match=r"masks are \[1, 1, 8, 8, 1\]: \[1, 3, 8, 8, 1\], as the flows"):
        init(TINY, (1, 3, 8, 8, 2), (1, 1, 8, 8, 1))
    with pytest.raises(ValueError, match="flows are 12x8: sides that are multiples of 8"):
        init(TINY, (1, 3, 8, 12, 2), (1, 3, 8, 12, 1))
    with pytest.raises(ValueError, match="num_frames is 4: odd numbers"):
        init(IGFC(width=4, num_frames=4), (1, 4, 8, 8, 2), (1, 4, 8, 8, 1))
