import re
from functools import partial

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3ddm_jax.models import kl_autoencoder
from m3ddm_jax.models.autoencoder import PatchCodec, decode_tiled, from_latents, latent_moments, reduce_mask, to_latents
from m3ddm_jax.models.kl_autoencoder import AutoencoderKL


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


def shapes_of(module):
    frames = jnp.zeros((1, module.spatial_factor, module.spatial_factor, 3))
    return jax.eval_shape(lambda: module.init(jax.random.key(0), frames))


def drawn(shape, rng):
    """A weight of any kind: kernels keep the variance, norms and biases are not what they are born as."""
    if len(shape) == 1:
        return rng.normal(0.5, 0.3, shape)
    return rng.normal(0, (shape[-1] / np.prod(shape)) ** 0.5, shape)


def variables_of(reference: torch.nn.Module) -> dict:
    """A torch module's parameters under the names and in the layout of ours."""
    params = {}
    for name, tensor in reference.state_dict().items():
        *scopes, leaf = re.sub(r"\.(\d+)", r"_\1", name).split(".")
        array = tensor.numpy()
        if array.shape[2:] == (1, 1):
            array = array[..., 0, 0]
        if leaf == "weight":
            leaf = "kernel" if array.ndim > 1 else "scale"
        target = params
        for scope in scopes:
            target = target.setdefault(scope, {})
        target[leaf] = np.moveaxis(array, (0, 1), (-1, -2)) if array.ndim > 1 else array
    return {"params": params}


@pytest.mark.parametrize("layers", [1, 2])
def test_equals_diffusers(layers):
    reference = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        layers_per_block=layers,
        norm_num_groups=4,
    ).eval()
    rng = np.random.default_rng(layers)
    with torch.no_grad():
        for parameter in reference.parameters():
            # Kernels are [out, in, ...] there.
            values = drawn(parameter.shape[1:] + parameter.shape[:1], rng)
            parameter.copy_(torch.from_numpy(np.moveaxis(values, -1, 0)))
        # The first norms see variances of the order of their epsilon.
        for network in (reference.encoder, reference.decoder):
            network.conv_in.weight *= 1e-3
            network.conv_in.bias *= 1e-3
        # Of the four log variances one is below and one is above what is kept.
        reference.quant_conv.bias[4:6] = torch.tensor([-100.0, 100.0])
    module, variables = AutoencoderKL((8, 16, 16), layers, norm_num_groups=4), variables_of(reference)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, shapes_of(module))

    x = rng.uniform(-1, 1, (2, 24, 40, 3)).astype(np.float32)
    z = rng.normal(size=(2, 6, 10, 4)).astype(np.float32)
    with torch.no_grad():
        posterior = reference.encode(torch.from_numpy(np.moveaxis(x, -1, 1))).latent_dist
        decoded = reference.decode(torch.from_numpy(np.moveaxis(z, -1, 1))).sample
    mean, logvar = jax.jit(partial(module.apply, method="encode"))(variables, x)
    ours = {"mean": mean, "logvar": logvar, "decoded": from_latents(module, variables, module.scale * z)}
    theirs = {"mean": posterior.mean, "logvar": posterior.logvar, "decoded": decoded}
    for name, expected in theirs.items():
        # float32 sums in another order, some thirty layers deep.
        np.testing.assert_allclose(ours[name], np.moveaxis(expected.numpy(), 1, -1), atol=5e-5, rtol=5e-5, err_msg=name)


def test_the_defaults_are_stable_diffusion():
    module = AutoencoderKL()
    assert module.spatial_factor == 8
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(module))) == 83_653_863


@pytest.fixture(scope="module")
def tiny():
    """(module, variables, latents) of an autoencoder with two levels; the latents are 13 rows high and 9 wide."""
    module = AutoencoderKL((8, 16), layers_per_block=1, norm_num_groups=4)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: drawn(leaf.shape, rng).astype(np.float32), shapes_of(module))
    return module, variables, rng.normal(size=(2, 13, 9, 4)).astype(np.float32)


# 117 cells a frame: bands of five rows, the last one shorter, and of one row.
@pytest.mark.parametrize("tile", [45, 5])
def test_bands_of_rows_equal_the_whole_frame(tiny, tile):
    whole = jax.jit(from_latents, static_argnums=0)(*tiny)
    banded = decode_tiled(*tiny, tile=tile)
    # Rounding alone: activations are of the order of one.
    np.testing.assert_allclose(banded, whole, atol=1e-5)


def test_every_norm_sees_the_whole_frame(tiny):
    """What the test above could not tell if the frames were too uniform: cut apart they decode to something else."""
    module, variables, latents = tiny
    whole = decode_tiled(module, variables, latents)
    top = decode_tiled(module, variables, latents[:, :8])
    assert np.abs(top[:, :4] - whole[:, :4]).max() > 0.01


def test_a_higher_frame_asks_no_more_of_the_device(tiny, monkeypatch):
    module, variables, _ = tiny
    run = kl_autoencoder._run

    def largest_band(height):
        sizes = []

        def measure(layer, method, variables, arrays, whole):
            outputs = jax.eval_shape(lambda *args: run(layer, method, *args), variables, arrays, whole)
            if layer is not module:
                sizes.append(sum(array.size for array in [*arrays, outputs[0]]))
            return [np.zeros(out.shape, out.dtype) for out in outputs]

        monkeypatch.setattr(kl_autoencoder, "_run", measure)
        assert decode_tiled(module, variables, np.zeros((1, height, 9, 4)), tile=45).shape == (1, 2 * height, 18, 3)
        return max(sizes)

    assert largest_band(23) == largest_band(230)


@pytest.mark.parametrize("tile", [2**14, 250, 1])
def test_frames_that_fit_are_decoded_in_groups(tile):
    """Of a codec that knows no bands a frame is the least that is decoded."""
    latents = np.random.default_rng(0).normal(size=(3, 13, 9, 12)).astype(np.float32)
    np.testing.assert_array_equal(
        decode_tiled(PatchCodec(2), {}, latents, tile), from_latents(PatchCodec(2), {}, latents)
    )


def test_latents_are_the_scaled_encoding(tiny):
    x = np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    for codec, variables in [tiny[:2], (PatchCodec(4), {})]:
        mean, _ = jax.jit(partial(codec.apply, method="encode"))(variables, x)
        latents = jax.jit(to_latents, static_argnums=0)(codec, variables, x)
        # float32 rounding of activations of the order of one.
        np.testing.assert_allclose(latents, codec.scale * mean, atol=1e-6)
    np.testing.assert_allclose(from_latents(codec, variables, latents), x, atol=1e-6)


def test_a_key_draws_from_the_posterior(tiny):
    module, variables, _ = tiny
    x = np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    encode = jax.jit(to_latents, static_argnums=0)
    mean, std = jax.jit(latent_moments, static_argnums=0)(module, variables, x)
    _, logvar = jax.jit(partial(module.apply, method="encode"))(variables, x)
    np.testing.assert_allclose(std, module.scale * np.exp(logvar / 2), rtol=1e-4)
    first, again, other = (encode(module, variables, x, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    for sample in (first, other):
        noise = (sample - mean) / std
        # 2,048 draws: five standard errors.
        assert abs(noise.mean()) < 0.11 and abs(noise.std() - 1) < 0.08
    assert np.abs(first - other).max() > 0.01
    # The patch codec has nothing to draw.
    codec = PatchCodec(4)
    np.testing.assert_array_equal(to_latents(codec, {}, x, jax.random.key(0)), to_latents(codec, {}, x))


def test_bfloat16_computes_the_same(tiny):
    module, variables, latents = tiny
    expected = decode_tiled(module, variables, latents)
    half = decode_tiled(module.clone(dtype=jnp.bfloat16), variables, latents)
    assert half.dtype == np.float32
    # bfloat16 keeps 8 bits: 0.4 % a product, a dozen layers deep.
    assert np.abs(half - expected).mean() < 0.03 * np.abs(expected).mean()


def test_what_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"\(12, 20\) pixels: multiples of 8"):
        jax.eval_shape(lambda: AutoencoderKL().init(jax.random.key(0), jnp.zeros((1, 12, 20, 3))))
    with pytest.raises(ValueError, match="8 channels do not divide into 3 groups"):
        shapes_of(AutoencoderKL((8, 16), norm_num_groups=3))
