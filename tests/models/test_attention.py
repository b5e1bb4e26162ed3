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
    np.testing.assert_allclose(form(query, key, value), plain(query, key, value), atol=1e-6)
    grad = jax.grad(lambda *args: jnp.sum(form(*args) ** 2), argnums=(0, 1, 2))(query, key, value)
    expected = jax.grad(lambda *args: jnp.sum(plain(*args) ** 2), argnums=(0, 1, 2))(query, key, value)
    for ours, theirs in zip(grad, expected, strict=True):
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
