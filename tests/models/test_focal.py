import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange
from safetensors.numpy import load_file

from m3ddm_jax.models.focal import FocalAttention, FusionFeedForward, context_counts, fold, unfold


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_patches_are_cut_as_pytorch_cuts_them():
    x = random(2, 12, 15, 3)
    expected = torch.nn.functional.unfold(torch.tensor(np.moveaxis(x, -1, 1)), 7, stride=3, padding=3)
    expected = rearrange(expected.numpy(), "n (c pq) (i j) -> n i j (pq c)", c=3, i=4)
    np.testing.assert_array_equal(unfold(x), expected)


def test_patches_are_summed_as_pytorch_sums_them():
    patches = random(2, 4, 5, 49 * 3)
    columns = rearrange(patches, "n i j (pq c) -> n (c pq) (i j)", c=3)
    expected = torch.nn.functional.fold(torch.tensor(columns), (12, 15), 7, stride=3, padding=3)
    # float32 sums of up to nine numbers in another order.
    np.testing.assert_allclose(fold(patches), np.moveaxis(expected.numpy(), 1, -1), atol=1e-5)


def test_feed_forward_equals_its_definition():
    """Fold, divide by how many patches cover a cell, unfold, GELU: the order in which the paper's code has it."""
    module, tokens = FusionFeedForward(channels=2), random(2, 3, 4, 5)
    variables = module.init(jax.random.key(0), tokens)
    variables = jax.tree.map(lambda x: x + 0.1 * random(*x.shape), variables)
    first, second = variables["params"]["conv1_0"], variables["params"]["conv2_1"]
    hidden = fold(tokens @ first["kernel"] + first["bias"]) / fold(jnp.ones((1, 3, 4, 49)))
    expected = jax.nn.gelu(unfold(hidden), approximate=False) @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(module.apply(variables, tokens), expected, atol=1e-5)


def rolled_validity(rows, columns):
    """[4, rows, columns]: which tokens of four windows, half a window off in both directions, lie outside of it."""
    above, left = rows // 2, columns // 2
    row, column = np.mgrid[:rows, :columns]
    return np.stack(
        [
            (row + down * above < 0) | (row + down * above >= rows) | (column + right * left < 0)
            | (column + right * left >= columns)
            for down, right in itertools.product((1, -1), (1, -1))
        ]
    )  # fmt: skip


def test_neighbours_are_those_of_the_checkpoint(goldens):
    weights = load_file(goldens / "isvi/e2fgvi_hq_slim8/weights.safetensors")
    np.testing.assert_array_equal(weights["transformer.0.attn.valid_ind_rolled"], np.flatnonzero(rolled_validity(5, 9)))


def naive_attention(params, tokens, pooled, heads, window):
    """Every query of every window on its own, neighbours gathered from rolled maps, as the specification words it."""
    (rows, columns), (above, left) = window, (side // 2 for side in window)
    batch, frames, height, width, features = tokens.shape
    grid_rows, grid_columns = height // rows, width // columns

    def project(x):
        return np.split(x @ params["qkv"]["kernel"] + params["qkv"]["bias"], 3, axis=-1)

    (query, *near), (_, *far) = project(tokens), project(pooled)
    shifts = [(-above * down, -left * right) for down, right in itertools.product((1, -1), (1, -1))]
    out = np.zeros_like(tokens)
    for b, i, j in np.ndindex(batch, grid_rows, grid_columns):
        window_at = (b, slice(None), slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
        contexts = []
        for near_map, far_map in zip(near, far, strict=True):
            parts = [near_map[window_at].reshape(-1, features)]
            for shift, valid in zip(shifts, rolled_validity(rows, columns), strict=True):
                parts.append(np.roll(near_map, shift, (2, 3))[window_at][:, valid].reshape(-1, features))
            for p, q in itertools.product(range(i - above, i - above + rows), range(j - left, j - left + columns)):
                if 0 <= p < grid_rows and 0 <= q < grid_columns:
                    parts.append(far_map[b, :, p, q])
            contexts.append(np.concatenate(parts))
        split = [rearrange(x, "t (n d) -> n t d", n=heads) for x in (query[window_at].reshape(-1, features), *contexts)]
        scores = np.einsum("ntd,nsd->nts", split[0], split[1]) * (features // heads) ** -0.5
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("nts,nsd->ntd", weights / weights.sum(-1, keepdims=True), split[2])
        out[window_at] = rearrange(mixed, "n (t p q) d -> t p q (n d)", p=rows, q=columns, t=frames)
    return out @ params["proj"]["kernel"] + params["proj"]["bias"]


@pytest.mark.parametrize(
    ("window", "grid"), [((5, 9), (2, 1)), ((3, 5), (3, 2)), ((2, 4), (2, 3)), ((1, 1), (2, 2)), ((3, 3), (1, 1))]
)
def test_attention_equals_its_definition(window, grid):
    """Also on grids of several windows in both directions, and where one window is all there is."""
    module = FocalAttention(features=8, num_heads=2, window=window)
    tokens = random(2, 2, *(side * count for side, count in zip(window, grid, strict=True)), 8)
    pooled = random(2, 2, *grid, 8, seed=1)
    variables = jax.tree.map(lambda x: 2 * np.array(x), module.init(jax.random.key(0), tokens, pooled))
    out = module.apply(variables, tokens, pooled)
    np.testing.assert_allclose(
        out, naive_attention(variables["params"], tokens, pooled, 2, window), rtol=1e-5, atol=1e-5
    )


def test_counts_of_a_single_window():
    counts = context_counts((5, 9), (1, 1))
    near, far = np.split(counts[0], [9 * 17])
    # Its 45 tokens, and 30 of each of the four windows around it.
    assert near.sum() == 45 + 4 * 30 and np.all(near >= 1)
    assert far.sum() == 1 and far[22] == 1
