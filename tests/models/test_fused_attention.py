"""Kernels against all heads at once, on a CPU: splash as Pallas interprets it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.models.attention import attention
from m3ddm_jax.models.dense_attention import all_heads
from m3ddm_jax.models.fused_attention import splash
from m3ddm_jax.parallel import constrain
from m3ddm_jax.parallel.mesh import make_mesh

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


def draw(queries, keys, dtype="float32", width=40):
    seeds = jax.random.split(jax.random.key(0), 3)
    return [
        jax.random.normal(seed, (2, length, 2, width), dtype)
        for seed, length in zip(seeds, (queries, keys, keys), strict=True)
    ]


def results(form, arrays, **masks):
    """Output and gradients, in float32; the loss is a mean of products with fixed numbers of about 1."""

    def loss(query, key, value):
        out = form(query, key, value, **masks).astype(jnp.float32)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)), out

    gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return [np.asarray(x, np.float32) for x in (out, *gradients)]


def check(arrays, tolerance, **masks):
    found = results(functools.partial(splash, interpret=True), arrays, **masks)
    expected = results(all_heads, [x.astype(jnp.float32) for x in arrays], **masks)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= tolerance * max(np.abs(theirs).max(), 1)
    return found


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sizes", [(256, 128), (130, 200)])
def test_the_kernel_equals_plain_attention(sizes, dtype):
    check(draw(*sizes, dtype=dtype), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rows_without_a_key_are_zero(dtype):
    mask = np.arange(200) < np.array([[0], [77]])
    for x in check(draw(130, 200, dtype), TOLERANCE[dtype], key_mask=mask):
        assert not x[0].any() and x[1].any()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_segments_see_themselves_alone(dtype):
    segments = np.random.default_rng(0).integers(0, 4, (2, 130))
    check(draw(130, 130, dtype), TOLERANCE[dtype], segments=segments)
    mask = segments != 2  # a segment of which no key counts
    out, *_ = check(draw(130, 130, dtype), TOLERANCE[dtype], segments=segments, key_mask=mask)
    assert not out[~mask].any() and out[mask].any()


@pytest.mark.parametrize(
    ("sizes", "batch"), [({"data": 2, "fsdp": 2, "tensor": 2}, 4), ({"data": 2, "context": 4}, 2), ({"data": 8}, 8)]
)
def test_each_device_attends_for_its_own_part(sizes, batch, monkeypatch):
    """Clips over data and fsdp, heads over tensor, queries over context."""
    monkeypatch.setattr(constrain, "WIDE", 2 * 40)
    arrays = [jnp.concatenate([x] * (batch // 2)) for x in draw(128, 256)]
    mask = np.arange(256) < np.linspace(0, 200, batch, dtype=int)[:, None]
    expected = all_heads(*arrays, key_mask=mask)
    with jax.set_mesh(make_mesh(**sizes)):
        compiled = jax.jit(functools.partial(splash, interpret=True)).lower(*arrays, key_mask=mask)
        found = compiled.compile()(*arrays, key_mask=mask)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert "sdy.manual_computation" in compiled.as_text()


def test_rows_that_do_not_divide_are_attended_to_at_once():
    query, key, value = draw(256, 256)
    with jax.set_mesh(make_mesh(data=8)):
        with pytest.raises(ValueError, match="attention 'splash': found 2 rows: a multiple of the mesh's data x fsdp"):
            jax.eval_shape(functools.partial(attention, form="splash"), query, key, value)
        jax.eval_shape(attention, query, key, value)
