import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.models import attention, dense_attention
from m3ddm_jax.models.dense_attention import all_heads, head_by_head


def plain(query, key, value):
    scores = jnp.einsum("btnd,bsnd->bnts", query, key) / np.sqrt(query.shape[-1])
    return jnp.einsum("bnts,bsnd->btnd", jax.nn.softmax(scores), value)


def draw(queries, keys, batch=2, heads=3, width=4):
    shapes = [(batch, n, heads, width) for n in (queries, keys, keys)]
    return [
        jax.random.normal(key, shape) for key, shape in zip(jax.random.split(jax.random.key(0), 3), shapes, strict=True)
    ]


@pytest.mark.parametrize("form", [all_heads, head_by_head, attention.attention])
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
    monkeypatch.setattr(dense_attention, "_CHUNK_SCORES", 20)
    query, key, value = draw(12, 7)
    assert dense_attention._query_blocks(12, 7) == 6
    np.testing.assert_allclose(head_by_head(query, key, value), plain(query, key, value), atol=1e-6)


@pytest.fixture
def all_large(monkeypatch):
    """Every form gains at every size."""
    for name, form in attention._FORMS.items():
        monkeypatch.setitem(attention._FORMS, name, dataclasses.replace(form, scores=1, queries=1))


@pytest.mark.usefixtures("all_large")
def test_large_scores_go_head_by_head():
    query, key, value = draw(6, 5)
    out = jax.jit(attention.attention)(query, key, value)
    np.testing.assert_allclose(out, plain(query, key, value), atol=1e-6)


def test_huge_scores_stay_finite():
    query, key, value = draw(4, 4)
    assert np.isfinite(attention.attention(1e4 * query, 1e4 * key, value)).all()


@pytest.mark.parametrize("form", [all_heads, head_by_head, attention.attention])
def test_keys_that_do_not_count_change_nothing(form):
    query, key, value = draw(5, 7)
    mask = np.arange(7) < np.array([[3], [7]])
    out = form(query, key, value, key_mask=mask)
    np.testing.assert_allclose(out[:1], plain(query[:1], key[:1, :3], value[:1, :3]), atol=1e-6)
    np.testing.assert_allclose(out[1:], plain(query[1:], key[1:], value[1:]), atol=1e-6)
    garbage = np.where(mask[..., None, None], key, 1e30)
    np.testing.assert_array_equal(form(query, garbage, value, key_mask=mask), out)


@pytest.mark.parametrize("form", [all_heads, head_by_head, attention.attention])
def test_segments_see_themselves_alone(form, monkeypatch):
    monkeypatch.setattr(dense_attention, "_CHUNK_SCORES", 16)
    query, key, value = draw(8, 8)
    segments = np.array([[0, 1, 0, 1, 1, 0, 0, 1], [2, 2, 2, 2, 2, 2, 2, 7]])
    mask = np.array([[True] * 8, [True] * 4 + [False] * 3 + [True]])
    out = form(query, key, value, segments=segments, key_mask=mask)
    for clip, (row, counts) in enumerate(zip(segments, mask, strict=True)):
        for segment in set(row):
            queries, keys = row == segment, (row == segment) & counts
            alone = plain(query[clip : clip + 1, queries], key[clip : clip + 1, keys], value[clip : clip + 1, keys])
            np.testing.assert_allclose(out[clip, queries], alone[0], atol=1e-6)


@pytest.mark.parametrize("form", [all_heads, head_by_head])
def test_where_no_key_counts_is_zero(form):
    arrays = draw(5, 7)
    mask = np.array([[False] * 7, [True] * 7])

    def loss(query, key, value):
        return jnp.sum(form(query, key, value, key_mask=mask) ** 2)

    assert not form(*arrays, key_mask=mask)[0].any()
    for grad in jax.grad(loss, argnums=(0, 1, 2))(*arrays):
        assert not grad[0].any() and grad[1].any() and np.isfinite(grad).all()


@pytest.mark.parametrize("large", [False, True])
def test_a_bias_is_added_to_the_scores(large, request):
    if large:
        request.getfixturevalue("all_large")
    query, key, value = draw(5, 7)
    bias = jax.random.normal(jax.random.key(1), (3, 5, 7))
    scores = jnp.einsum("btnd,bsnd->bnts", query, key) / np.sqrt(query.shape[-1]) + bias
    expected = jnp.einsum("bnts,bsnd->btnd", jax.nn.softmax(scores), value)
    np.testing.assert_allclose(attention.attention(query, key, value, bias=bias), expected, atol=1e-6)


def lowered_for(platform, *sizes, dtype="bfloat16", **options):
    """The program of forward and backward pass, as a platform that need not be here gets it."""
    arrays = [jax.ShapeDtypeStruct((2, n, 2, 40), dtype) for n in (sizes[0], sizes[1], sizes[1])]

    def loss(*args):
        return attention.attention(*args, **options).astype(jnp.float32).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


def test_tpus_get_a_kernel_where_scores_are_many():
    """Forward, gradients of queries, and of keys and values."""
    assert lowered_for("tpu", 256, 512).count("@tpu_custom_call") == 3
    assert "@tpu_custom_call" not in lowered_for("tpu", 16, 16)
    assert "@tpu_custom_call" not in lowered_for("tpu", 256, 512, form="dense")
    assert lowered_for("tpu", 256, 512, form="splash").count("@tpu_custom_call") == 3
    assert "@tpu_custom_call" not in lowered_for("cpu", 256, 512)


def test_forms_that_do_not_fit_say_what_does():
    query, key, value = (x[..., :4] for x in draw(256, 512))
    with pytest.raises(ValueError, match="attention 'magic' is unknown: one of auto, dense, by_head, splash, cudnn"):
        attention.attention(query, key, value, form="magic")
    with pytest.raises(ValueError, match="attention 'cudnn': found float32: bfloat16 and float16 are accepted; auto"):
        attention.attention(query, key, value, form="cudnn")
    with pytest.raises(ValueError, match="attention 'splash': no bias is accepted; auto and dense fit"):
        attention.attention(query, key, value, bias=jnp.zeros((3, 256, 512)), form="splash")
    with pytest.raises(ValueError, match="attention 'splash' does not run on cpu: auto, dense, by_head do"):
        attention.check_attention("splash", "cpu")
    with pytest.raises(ValueError, match="attention 'by_head' does not run on gpu: auto, dense, cudnn do"):
        attention.check_attention("by_head", "gpu")
    for form, platform in (("auto", "cpu"), ("dense", "tpu"), ("cudnn", "gpu"), ("splash", "tpu")):
        attention.check_attention(form, platform)


def test_a_cudnn_kernel_needs_its_widths(monkeypatch):
    monkeypatch.setattr("m3ddm_jax.models.fused_attention._has_cudnn", lambda: True)
    query, key, value = (jnp.zeros((1, length, 2, 160), "bfloat16") for length in (256, 512, 512))
    with pytest.raises(ValueError, match="found heads 160 wide: multiples of 8 up to 128 are accepted"):
        attention.attention(query, key, value, form="cudnn")
    monkeypatch.setattr("m3ddm_jax.models.fused_attention._has_cudnn", lambda: False)
    query, key, value = (x[..., :40] for x in (query, key, value))
    with pytest.raises(ValueError, match=r"found no cuDNN: install jax\[cuda12\] or jax\[cuda13\]"):
        attention.attention(query, key, value, form="cudnn")
