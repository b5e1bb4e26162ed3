from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from m3ddm_jax.measure.flops import count_flops
from m3ddm_jax.models import est
from m3ddm_jax.parallel.mesh import make_mesh

CHANNELS, HEADS = 16, 2


def volume(*sizes, batch=2, seed=0):
    return jax.random.normal(jax.random.key(seed), (batch, *sizes, CHANNELS))


def drawn(module, *args, seed=1):
    """Variables of which none is zero: what starts at zero would hide what depends on what."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


def run(module, variables, *args):
    return jax.jit(module.apply)(variables, *args)


def seconds_of(x, fps=8.0):
    return jnp.broadcast_to(jnp.arange(x.shape[1]) / fps, x.shape[:2])


MODULES = {
    "residual": est.TemporalResidual(4),
    "temporal": est.TemporalAttention(HEADS),
    "window": est.WindowAttention3D(HEADS, (2, 2, 2), shifted=True),
    "whole": est.EnhancedSpaceTime(HEADS, window=(2, 2, 2)),
}


def arguments(module, x):
    timed = isinstance(module, est.TemporalAttention | est.EnhancedSpaceTime)
    return (x, seconds_of(x)) if timed else (x,)


@pytest.mark.parametrize("name", MODULES)
def test_is_the_identity_at_the_start_and_learns(name):
    module, x = MODULES[name], volume(3, 5, 2)
    args = arguments(module, x)
    variables = module.init(jax.random.key(0), *args)
    apply = jax.jit(module.apply)
    np.testing.assert_array_equal(apply(variables, *args), x)
    variables = drawn(module, *args)
    assert np.abs(apply(variables, *args) - x).max() > 0.1
    target = volume(3, 5, 2, seed=5)
    grads = jax.jit(jax.grad(lambda v: jnp.sum(target * module.apply(v, *args))))(variables)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 1e-6, path


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 2), (1, 7, 4)])
def test_any_size_and_bfloat16_stay_finite(sizes):
    module = est.EnhancedSpaceTime(HEADS, window=(2, 4, 4), dtype=jnp.bfloat16)
    args = arguments(module, 100 * volume(*sizes, batch=1))
    out = jax.jit(module.apply)(drawn(module, *args), *args)
    assert out.shape == args[0].shape and np.isfinite(out).all()


def full_attention(variables, x):
    """Attention over the whole volume by the window's own weights, written out without windows or rotary positions."""
    params = variables["params"]

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale

    tokens = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    tokens = (tokens * params["norm"]["scale"] + params["norm"]["bias"]).reshape(x.shape[0], -1, CHANNELS)
    query, key, value = (
        (tokens @ params[name]["kernel"]).reshape(*tokens.shape[:2], HEADS, -1) for name in ("to_q", "to_k", "to_v")
    )
    query, key = norm(query, params["norm_q"]["scale"]), norm(key, params["norm_k"]["scale"])
    scores = np.einsum("bqnd,bknd->bnqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    out = np.einsum("bnqk,bknd->bqnd", weights, value).reshape(tokens.shape)
    return x + (out @ params["to_out_0"]["kernel"] + params["to_out_0"]["bias"]).reshape(x.shape)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_window_as_large_as_the_volume_is_full_attention(shifted, monkeypatch):
    monkeypatch.setattr(est, "rotate", lambda x, angles: x)  # without positions
    x = volume(2, 3, 4)
    module = est.WindowAttention3D(HEADS, (8, 8, 8), shifted)
    variables = drawn(module, x)
    expected = full_attention(variables, np.asarray(x))
    # float32 sums in another order.
    np.testing.assert_allclose(run(module, variables, x), expected, atol=1e-5)


def test_rotary_positions_see_differences_alone():
    angles = est.axial_angles((4, 6, 6), 64)
    assert angles.shape == (4, 6, 6, 32)
    # 16, 24 and 24 of 64 channels turn along frames, rows and columns.
    moving = [np.abs(np.diff(angles, axis=axis)).max(axis=(0, 1, 2)) > 0 for axis in range(3)]
    assert [row.sum() for row in moving] == [8, 12, 12]
    np.testing.assert_array_equal(sum(moving), 1)
    query, key = (jax.random.normal(jax.random.key(n), (64,)) for n in range(2))
    turned = [est.rotate(jnp.broadcast_to(x, (1, 4, 6, 6, 1, 64)), angles)[0, :, :, :, 0] for x in (query, key)]
    product = jnp.einsum("thwd,ijkd->thwijk", *turned)
    np.testing.assert_allclose(product[:-1, :-2, 1:, :-1, :-2, 1:], product[1:, 2:, :-1, 1:, 2:, :-1], atol=1e-4)
    assert np.abs(product[0, 0, 0] - product[0, 0, 0, 0, 0, 0]).max() > 1
    with pytest.raises(ValueError, match="5 channels wide"):
        est.axial_angles((1, 1, 1), 5)


def test_shifting_by_padding_equals_shifting_by_rolling_inside():
    """Swin rolls the volume by half a window; only the windows across the border, which the roll wraps, differ."""
    x = volume(4, 8, 6)
    plain = est.WindowAttention3D(HEADS, (2, 4, 2), False)
    variables = drawn(plain, x)
    shift = (1, 2, 1)
    rolled = jnp.roll(run(plain, variables, jnp.roll(x, [-s for s in shift], (1, 2, 3))), shift, (1, 2, 3))
    made = run(plain.clone(shifted=True), variables, x)
    inside = np.s_[:, 1:-1, 2:-2, 1:-1]
    np.testing.assert_allclose(made[inside], rolled[inside], atol=1e-5)
    assert np.abs(made - rolled).max() > 0.1


def test_shifted_windows_are_those_of_a_padded_volume():
    """Windows from half a window before the volume, cut off at its borders; each is attention over the cells it has."""
    window, volume_ = (2, 4, 3), (3, 7, 3)
    x = volume(*volume_)
    module = est.WindowAttention3D(HEADS, window, True)
    variables = drawn(module, x)
    made = run(module, variables, x)
    borders = [[0, 1, 3], [0, 2, 6, 7], [0, 3]]  # the last axis holds one window, which is not shifted
    for corner in np.ndindex(2, 3, 1):
        cells = (slice(None), *(slice(*axis[n : n + 2]) for axis, n in zip(borders, corner, strict=True)))
        alone = run(module.clone(shifted=False), variables, x[cells])
        np.testing.assert_allclose(made[cells], alone, atol=1e-5)


def test_shifting_costs_nothing():
    shape = jax.ShapeDtypeStruct((1, 8, 16, 16, CHANNELS), jnp.float32)
    plain = est.WindowAttention3D(HEADS, (4, 4, 4))
    variables = jax.eval_shape(plain.init, jax.random.key(0), shape)
    counts = [count_flops(plain.clone(shifted=shifted).apply, variables, shape).total for shifted in (False, True)]
    assert counts[0] == counts[1]


def test_nothing_wraps_around_and_nothing_leaves_its_window():
    x = volume(4, 4, 4, batch=1)
    module = est.WindowAttention3D(HEADS, (2, 2, 2), True)
    variables = drawn(module, x)
    changed = np.abs(run(module, variables, x) - run(module, variables, x.at[0, 0, 0, 0].add(1))).max(axis=(0, -1))
    assert changed[0, 0, 0] > 0
    assert changed.sum() == changed[0, 0, 0]  # the corner is a window of one cell
    changed = np.abs(run(module, variables, x) - run(module, variables, x.at[0, 1, 1, 1].add(1))).max(axis=(0, -1))
    np.testing.assert_array_equal(np.argwhere(changed > 0), np.indices((2, 2, 2)).reshape(3, -1).T + 1)


def test_windows_do_not_know_their_place():
    """Permuted windows give permuted results: rotary positions count differences."""
    x = volume(2, 2, 6)
    module = est.WindowAttention3D(HEADS, (2, 2, 2), False)
    variables = drawn(module, x)
    order = np.array([4, 5, 0, 1, 2, 3])
    np.testing.assert_allclose(
        run(module, variables, x[:, :, :, order]), run(module, variables, x)[:, :, :, order], atol=1e-5
    )


def test_padding_counts_for_nothing():
    """A ragged volume's last window is attention over the cells that it has."""
    x = volume(1, 1, 5)
    module = est.WindowAttention3D(HEADS, (1, 1, 4))
    variables = drawn(module, x)
    alone = run(module, variables, x[:, :, :, 4:])
    np.testing.assert_allclose(run(module, variables, x)[:, :, :, 4:], alone, atol=1e-5)


def test_time_is_in_seconds():
    """Every second frame of a clip is that clip at half the rate."""
    x = volume(6, 1, 1)
    module = est.TemporalAttention(HEADS)
    variables = drawn(module, x, seconds_of(x))
    sparse = run(module, variables, x[:, ::2], seconds_of(x, fps=30)[:, ::2])
    np.testing.assert_allclose(run(module, variables, x[:, ::2], seconds_of(x[:, ::2], fps=15)), sparse, atol=1e-5)
    assert np.abs(sparse - run(module, variables, x[:, ::2], seconds_of(x[:, ::2], fps=30))).max() > 1e-2


def test_eight_devices_agree_with_one():
    module, x = est.EnhancedSpaceTime(HEADS, window=(2, 2, 2)), volume(3, 4, 5, batch=8)
    args = (x, seconds_of(x))
    variables = drawn(module, *args)
    expected = jax.jit(module.apply)(variables, *args)
    mesh = make_mesh(data=2, fsdp=4)
    with jax.set_mesh(mesh):
        spread = jax.device_put(args, NamedSharding(mesh, P(("data", "fsdp"))))
        made = jax.jit(module.apply)(variables, *spread)
        text = jax.jit(module.apply).lower(variables, *spread).compile().as_text()
    np.testing.assert_allclose(made, expected, atol=1e-5)
    assert made.sharding.spec == P(("data", "fsdp"))
    assert "all-gather" not in text and "all-to-all" not in text


def test_unknown_choices_are_named():
    x = volume(1, 1, 1)
    with pytest.raises(ValueError, match="mode '3d'.*1d\\+3d"):
        jax.eval_shape(partial(est.EnhancedSpaceTime(HEADS, "3d").init, jax.random.key(0)), x, seconds_of(x))
