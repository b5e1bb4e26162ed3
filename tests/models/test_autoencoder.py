import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ddm_jax.models.autoencoder import PatchCodec, reduce_mask


@given(patch=st.sampled_from([1, 2, 4]), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_decode_inverts_encode_exactly(patch, rows, columns):
    x = np.random.default_rng(0).uniform(-1, 1, (2, rows * patch, columns * patch, 3)).astype(np.float32)
    codec = PatchCodec(patch)
    mean, logvar = codec.apply({}, x, method="encode")
    assert mean.shape == logvar.shape == (2, rows, columns, codec.latent_channels)
    np.testing.assert_array_equal(codec.apply({}, mean, method="decode"), x)


def test_a_cell_holds_the_pixels_of_its_patch():
    x = np.zeros((1, 4, 6, 3), np.float32)
    x[0, 2, 5] = 1
    mean, _ = PatchCodec(2).apply({}, x, method="encode")
    assert np.argwhere(mean[0].any(-1)).tolist() == [[1, 2]]


def test_sizes_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="patches of 8"):
        PatchCodec(8).apply({}, np.zeros((1, 12, 16, 3)), method="encode")


@given(box=st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 12), st.integers(0, 12)))
def test_no_latent_cell_with_an_unknown_pixel_is_called_known(box):
    top, bottom, left, right = min(box[:2]), max(box[:2]), min(box[2:]), max(box[2:])
    mask = np.ones((1, 8, 12, 1), np.uint8)
    mask[:, top:bottom, left:right] = 0
    cells = np.asarray(reduce_mask(mask, 4))
    for row in range(2):
        for column in range(3):
            patch = mask[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert cells[0, row, column, 0] == patch.max()


def test_nearest_takes_the_first_pixel_of_a_cell():
    mask = jax.random.bernoulli(jax.random.key(0), 0.5, (2, 3, 8, 8, 1))
    np.testing.assert_array_equal(reduce_mask(mask, 4, "nearest"), mask[:, :, ::4, ::4].astype(np.float32))
    with pytest.raises(ValueError, match="'max' or 'nearest'"):
        reduce_mask(mask, 4, "mean")
