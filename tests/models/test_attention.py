import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.models import attention


def plain(query, key, value):
    scores = jnp.einsum("btnd,bsnd->bnts", query, key) / np.sqrt(query.shape[-1])
    return jnp.einsum("bnts,bsnd->btnd", jax.nn.softmax(scores), value)


def draw(queries, keys, batch=2, heads=3, width=4):
    shapes = [(batch, n, heads, width) for n in (queries, keys, keys)]
    return [
        jax.random.normal(key, shape) for key, shape in zip(jax.random.split(jax.random.key(0), 3), shapes, strict=True)
    ]


@pytest.mark.parametrize("form", [attention._all_heads, attention._head_by_head, attention.attention])
@pytest.mark.parametrize("sizes", [(1, 1), (5, 7), (12, 3)])
def test_every_form_equals_plain_softmax(form, sizes):
    query, key, value = draw(*sizes)

    def compute(form):
        """Values and gradients of their squares' sum."""

        def loss(*args):
            out = form(*args)
            return jnp.sum(out**2), out

        gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(query, key, value)
        return out, gradients

    (out, gradients), (expected_out, expected) = compute(form), compute(plain)
    np.testing.assert_allclose(out, expected_out, atol=1e-6)
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_blocks_of_queries_change_nothing(monkeypatch):
    monkeypatch.setattr(attention, "_CHUNK_SCORES", 20)
    query, key, value = draw(12, 7)
    assert attention._query_blocks(12, 7) == 6
    np.testing.assert_allclose(attention._head_by_head(query, key, value), plain(query, key, value), atol=1e-6)


def test_large_scores_go_head_by_head(monkeypatch):
    monkeypatch.setattr(attention, "_LARGE_SCORES", 1)
    query, key, value = draw(6, 5)
    out = jax.jit(attention.attention)(query, key, value)
    np.testing.assert_allclose(out, plain(query, key, value), atol=1e-6)


def test_huge_scores_stay_finite():
    query, key, value = draw(4, 4)
    assert np.isfinite(attention.attention(1e4 * query, 1e4 * key, value)).all()


@pytest.mark.parametrize("form", [attention._all_heads, attention._head_by_head, attention.attention])
def test_keys_that_do_not_count_change_nothing(form):
    query, key, value = draw(5, 7)
    mask = np.arange(7) < np.array([[3], [7]])
    out = form(query, key, value, key_mask=mask)
    np.testing.assert_allclose(out[:1], plain(query[:1], key[:1, :3], value[:1, :3]), atol=1e-6)
    np.testing.assert_allclose(out[1:], plain(query[1:], key[1:], value[1:]), atol=1e-6)
    garbage = np.where(mask[..., None, None], key, 1e30)
    np.testing.assert_array_equal(form(query, garbage, value, key_mask=mask), out)


@pytest.mark.parametrize("form", [attention._all_heads, attention._head_by_head, attention.attention])
def test_segments_see_themselves_alone(form, monkeypatch):
    monkeypatch.setattr(attention, "_CHUNK_SCORES", 16)
    query, key, value = draw(8, 8)
    segments = np.array([[0, 1, 0, 1, 1, 0, 0, 1], [2, 2, 2, 2, 2, 2, 2, 7]])
    mask = np.array([[True] * 8, [True] * 4 + [False] * 3 + [True]])
    out = form(query, key, value, segments=segments, key_mask=mask)
    for clip, (row, counts) in enumerate(zip(segments, mask, strict=True)):
        for segment in set(row):
            queries, keys = row == segment, (row == segment) & counts
            alone = plain(query[clip : clip + 1, queries], key[clip : clip + 1, keys], value[clip : clip + 1, keys])
            np.testing.assert_allclose(out[clip, queries], alone[0], atol=1e-6)


@pytest.mark.parametrize("form", [attention._all_heads, attention._head_by_head])
def test_where_no_key_counts_is_zero(form):
    arrays = draw(5, 7)
    mask = np.array([[False] * 7, [True] * 7])

    def loss(query, key, value):
        return jnp.sum(form(query, key, value, key_mask=mask) ** 2)

    assert not form(*arrays, key_mask=mask)[0].any()
    for grad in jax.grad(loss, argnums=(0, 1, 2))(*arrays):
        assert not grad[0].any() and grad[1].any() and np.isfinite(grad).all()


def test_a_bias_is_added_to_the_scores(monkeypatch):
    query, key, value = draw(5, 7)
    bias = jax.random.normal(jax.random.key(1), (3, 5, 7))
    scores = jnp.einsum("btnd,bsnd->bnts", query, key) / np.sqrt(query.shape[-1]) + bias
    expected = jnp.einsum("bnts,bsnd->btnd", jax.nn.softmax(scores), value)
    for large in (1 << 17, 1):
        monkeypatch.setattr(attention, "_LARGE_SCORES", large)
        np.testing.assert_allclose(attention.attention(query, key, value, bias=bias), expected, atol=1e-6)
