import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from safetensors.numpy import load_file

from m3ddm_jax.models.e2fgvi import E2FGVI, FeaturePropagation, GroupedConv
from m3ddm_jax.weights.e2fgvi import e2fgvi_from_state_dict

TINY = E2FGVI(width=4, flow_width=4, hidden=8, depth=1, num_heads=2, window=(2, 2), ffn_channels=1, deform_groups=2)
STAGES = {
    "encoder": ("encoder", "(b t) c h w -> (b t) h w c"),
    "feat_prop": ("feat_prop_module", "b t c h w -> b t h w c"),
    "softsplit": ("ss", "b t i j c -> (b t) i j c"),
    "block0": ("transformer_0", "b t i j c -> b t i j c"),
    "block1": ("transformer_1", "b t i j c -> b t i j c"),
    "softcomp": ("sc", "(b t) c h w -> (b t) h w c"),
}


def test_every_stage_equals_the_official_one(goldens):
    folder = goldens / "isvi/e2fgvi_hq_slim8"
    module, variables = e2fgvi_from_state_dict(load_file(folder / "weights.safetensors"))
    inputs, expected = np.load(folder / "inputs.npz"), np.load(folder / "outputs.npz")
    frames = rearrange(inputs["masked_frames"], "b t c h w -> b t h w c")
    modules = {name for name, _ in STAGES.values()}
    apply = functools.partial(module.apply, num_local=3, capture_intermediates=lambda part, _: part.name in modules)
    (out, flows), state = jax.jit(apply)(variables, frames)
    found = {stage: state["intermediates"][name]["__call__"][0] for stage, (name, _) in STAGES.items()}
    wanted = {stage: rearrange(expected[stage], layout, b=1) for stage, (_, layout) in STAGES.items()}
    for name, flow in zip(("flow_f", "flow_b"), flows, strict=True):
        found[name], wanted[name] = flow, rearrange(expected[name], "b t xy h w -> b t h w xy")
    found["out"], wanted["out"] = out, rearrange(expected["out"], "(b t) c h w -> b t h w c", b=1)
    for stage, value in found.items():
        # float32 sums in another order, through some forty layers.
        np.testing.assert_allclose(value, wanted[stage], atol=1e-4, rtol=1e-5, err_msg=stage)


def frames(seed=0, width=48):
    return np.random.default_rng(seed).uniform(-1, 1, (2, 4, 24, width, 3)).astype(np.float32)


def random_variables(module, *arguments, **options):
    """What an initialisation might give, of the same size all through the network, without compiling one."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(module.init, **options), jax.random.key(0), *arguments)
    return jax.tree.map(
        lambda x: rng.normal(scale=np.prod(x.shape[:-1]) ** -0.5, size=x.shape).astype(np.float32), shapes
    )


@pytest.fixture(scope="module")
def tiny():
    """(apply, variables) of the tiny network, for two clips of three local frames and a reference."""
    return jax.jit(functools.partial(TINY.apply, num_local=3)), random_variables(TINY, frames(), num_local=3)


def test_clips_of_a_batch_do_not_meet(tiny):
    apply, variables = tiny
    clips = frames()
    out, flows = apply(variables, clips)
    assert out.shape == clips.shape and out.dtype == jnp.float32 and np.abs(out).max() <= 1
    assert flows[0].shape == flows[1].shape == (2, 2, 6, 12, 2)
    clips[1] = frames(seed=1)[1]
    other, other_flows = apply(variables, clips)
    for before, after in zip((out, *flows), (other, *other_flows), strict=True):
        np.testing.assert_array_equal(before[0], after[0])
        assert np.abs(before[1] - after[1]).max() > 1e-3


def test_references_matter_to_frames_but_not_to_flow(tiny):
    apply, variables = tiny
    clips = frames()
    (first, flows), (second, other_flows) = (
        apply(variables, x) for x in (clips, np.concatenate([clips[:, :3], 0 * clips[:, 3:]], axis=1))
    )
    jax.tree.map(np.testing.assert_array_equal, flows, other_flows)
    assert np.abs(first[:, :3] - second[:, :3]).max() > 1e-3


def test_local_frames_alone_are_those_of_all(tiny):
    apply, variables = tiny
    clip = frames()
    (made, flows), (local, its_flows) = (
        apply(variables, clip),
        jax.jit(functools.partial(TINY.apply, num_local=3, local_only=True))(variables, clip),
    )
    assert local.shape == clip[:, :3].shape
    # Convolutions of fewer frames may sum in another order.
    # Two programs: float32 rounds differently, of flows of a dozen pixels, by which features are displaced.
    np.testing.assert_allclose(local, made[:, :3], rtol=1e-6, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-5), flows, its_flows)


@pytest.mark.parametrize("groups", [1, 4])
def test_groups_are_convolved_alike_on_every_platform(groups):
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 8)).astype(np.float32)
    module = GroupedConv(12, groups)
    plain = nn.Conv(12, (3, 3), feature_group_count=groups)
    variables = random_variables(module, x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, jax.eval_shape(plain.init, jax.random.key(0), x)
    )

    def of(module):
        return jax.jit(jax.value_and_grad(lambda v, x: jnp.sum(jnp.sin(module.apply(v, x))), argnums=(0, 1)))

    found, expected = of(module)(variables, x), of(plain)(variables, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    traced = jax.jit(module.apply).trace(variables, x)
    counts = {"cpu": groups, "cuda": 1, "tpu": 1}
    for platform, count in counts.items():
        assert traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution") == count


def test_flow_of_frames_alone_is_that_of_the_call(tiny):
    apply, variables = tiny
    clip = frames()
    alone = jax.jit(functools.partial(TINY.apply, method="flows"))(variables, clip[:, :3])
    # Two programs, as above.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-5)
    jax.tree.map(close, apply(variables, clip)[1], alone)


@pytest.mark.slow
def test_every_weight_has_a_finite_gradient(tiny):
    """Of unknown pixels as they come, too: whole frames of zeros, and flow between them."""
    _, variables = tiny
    clip = frames() * (np.arange(48) < 24)[:, None]
    clip[:, 1] = 0

    @jax.jit
    def gradients(variables):
        def loss(variables):
            out, flows = TINY.apply(variables, clip, num_local=3)
            return jnp.square(out - frames(seed=3)).sum() + sum(jnp.square(flow - 1).sum() for flow in flows)

        return jax.grad(loss)(variables)

    leaves = jax.tree_util.tree_leaves_with_path(gradients(variables)["params"])
    assert all(np.all(np.isfinite(gradient)) for _, gradient in leaves)
    # The first of conv_offset's layers wait for the last, which starts at zero.
    still = [jax.tree_util.keystr(path) for path, gradient in leaves if not np.any(gradient)]
    assert all("conv_offset" in name for name in still), still


@pytest.fixture(scope="module")
def propagation():
    """(run, features, flows): run(fix_flow_index, features, flows) on the same random weights."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, 4, 6, 7, 4)).astype(np.float32)
    flows = tuple(rng.normal(size=(1, 3, 6, 7, 2)).astype(np.float32) for _ in range(2))
    variables = random_variables(FeaturePropagation(4, 2), features, flows)

    @functools.partial(jax.jit, static_argnums=0)
    def run(fix_flow_index, features, flows):
        return FeaturePropagation(4, 2, fix_flow_index).apply(variables, features, flows)

    return run, features, flows


def test_the_flow_index_matters_where_motion_changes(propagation):
    run, features, (forward, backward) = propagation
    published, fixed = (run(fix, features, (forward, backward)) for fix in (False, True))
    assert np.abs(published - fixed).max() > 1e-2
    reversed_flow = run(False, features, (forward[:, ::-1], backward))
    np.testing.assert_allclose(reversed_flow, fixed, atol=1e-6)
    constant = np.broadcast_to(forward[:, :1], forward.shape)
    same = [run(fix, features, (constant, backward)) for fix in (False, True)]
    np.testing.assert_array_equal(*same)


def test_refuses_what_it_cannot_complete():
    def init(frames, num_local):
        jax.eval_shape(functools.partial(TINY.init, num_local=num_local), jax.random.key(0), frames)

    with pytest.raises(ValueError, match=r"frames \[B, T, H, W, 3\], not \[4, 24, 48, 3\]"):
        init(frames()[0], 2)
    for num_local in (1, 5):
        with pytest.raises(ValueError, match=f"{num_local} of 4 frames are local: 2 or more"):
            init(frames(), num_local)
    with pytest.raises(ValueError, match=r"60x24: widths that are multiples of 24 and heights .* of 24 are"):
        init(frames(width=60), 2)
    init(frames()[:, :2], 2)
    assert E2FGVI().size_multiple == (60, 108)
