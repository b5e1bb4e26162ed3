"""Kernels against all heads at once, on a CPU: splash as Pallas interprets it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.models.dense_attention import all_heads
from m3ddm_jax.models.fused_attention import splash

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
