"""The reference is open_clip's own tower; how its weights come here is tested beside the converter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange, repeat
from open_clip.transformer import QuickGELU, VisionTransformer

from m3ddm_jax.models.openclip import MEAN, STD, OpenCLIPVision
from m3ddm_jax.weights.openclip import openclip_from_state_dict

SIDE, PATCH, WIDTH, LAYERS, HEADS = 32, 8, 24, 3, 3
PATCHES = (SIDE // PATCH) ** 2


@functools.cache
def towers(quick_gelu=False):
    """open_clip's tower with random weights, and ours with the same: (tower, module, variables)."""
    torch.manual_seed(0)
    activation = QuickGELU if quick_gelu else torch.nn.GELU
    sizes = {"image_size": SIDE, "patch_size": PATCH, "width": WIDTH, "layers": LAYERS, "heads": HEADS}
    tower = VisionTransformer(**sizes, mlp_ratio=2.0, output_dim=10, act_layer=activation).eval()
    for parameter in tower.parameters():  # norms that are 1 and biases that are 0 would hide mistakes
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    tensors = {name: tensor.detach().numpy() for name, tensor in tower.state_dict().items()}
    config = {"vision_cfg": {"head_width": WIDTH // HEADS}, "quick_gelu": quick_gelu}
    return tower, *openclip_from_state_dict("it", tensors, config)


@functools.cache
def compiled(quick_gelu=False):
    """(images, observed) -> tokens."""
    _, module, variables = towers(quick_gelu)
    return jax.jit(lambda images, observed: module.apply(variables, images, observed))


def images_of(seed, count=2):
    return np.random.default_rng(seed).uniform(-1, 1, (count, SIDE, SIDE, 3)).astype(np.float32)


def pixels_of(observed):
    """[N, P] -> [N, S, S, 1]: each patch's value at its pixels."""
    return repeat(observed, "n (i j) -> n (i p) (j q) 1", i=SIDE // PATCH, p=PATCH, q=PATCH)


def some_observed(seed=1):
    observed = np.random.default_rng(seed).uniform(size=(2, PATCHES)) < 0.5
    assert observed.any(1).all() and not observed.all(1).any()
    return observed


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("ln_post", [False, True])
def test_equals_open_clip_where_everything_is_observed(quick_gelu, ln_post):
    """The layer before the last, whose tokens open_clip lists by their depth; its mean and spread are torchvision's."""
    tower, module, variables = towers(quick_gelu)
    images = images_of(0)
    normalised = ((images + 1) / 2 - MEAN) / STD
    with torch.no_grad():
        made = tower.forward_intermediates(
            torch.tensor(rearrange(normalised, "n h w c -> n c h w"), dtype=torch.float32),
            indices=[LAYERS - 2],
            normalize_intermediates=ln_post,
            output_fmt="NLC",
        )
    expected = made["image_intermediates"][0].numpy()
    tokens = jax.jit(functools.partial(module.apply, ln_post=ln_post))(variables, images)
    assert tokens.shape == (2, PATCHES, WIDTH) and np.abs(expected).mean() > 0.1
    # float32 sums in another order.
    np.testing.assert_allclose(tokens, expected, atol=1e-4)


def test_unobserved_pixels_change_no_bit():
    observed, images = some_observed(), images_of(2)
    hidden = ~pixels_of(observed)
    expected = compiled()(images, observed)
    for fill in (images_of(3), 1e6, np.nan):
        np.testing.assert_array_equal(compiled()(np.where(hidden, fill, images), observed), expected)
    assert np.all(np.asarray(expected)[~observed] == 0) and np.all(np.asarray(expected)[observed].any(-1))
    # They do where they are observed: the mask is what keeps them out.
    everything = np.ones_like(observed)
    changed = compiled()(np.where(hidden, images_of(3), images), everything) != compiled()(images, everything)
    assert np.all(changed.any(-1))


def test_tokens_have_no_derivative_by_unobserved_pixels():
    observed, images = some_observed(), images_of(4)
    weights = np.random.default_rng(5).normal(size=(2, PATCHES, WIDTH)).astype(np.float32)
    gradient = np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(weights * compiled()(x, observed))))(images))
    seen = np.broadcast_to(pixels_of(observed), images.shape)
    assert np.all(gradient[~seen] == 0) and np.all(gradient[seen] != 0)


def test_an_image_sees_nothing_of_the_others():
    """One of a batch with no observed patch gives zeros, and the other what it gives alone."""
    observed, images = some_observed(), images_of(6)
    observed[1] = False
    tokens = np.asarray(compiled()(images, observed))
    assert np.all(tokens[1] == 0)
    images[1] = np.nan
    np.testing.assert_array_equal(compiled()(images, observed), tokens)


def test_keys_are_masked_as_if_they_were_not_there():
    """The tokens of a tower whose sequence has no unobserved patches, with positions of those that are left."""
    tower, module, variables = towers()
    observed, images = some_observed()[:1], images_of(7, 1)
    normalised = torch.tensor(rearrange(((images + 1) / 2 - MEAN) / STD, "n h w c -> n c h w"), dtype=torch.float32)
    kept = np.concatenate([[True], observed[0]])
    with torch.no_grad():
        patches = tower.conv1(normalised).flatten(2).transpose(1, 2)
        tokens = torch.cat([tower.class_embedding.expand(1, 1, -1), patches], 1) + tower.positional_embedding
        tokens = tower.ln_pre(tokens[:, kept])
        for block in list(tower.transformer.resblocks)[:-1]:
            tokens = block(tokens)
    made = jax.jit(module.apply)(variables, images, observed)
    np.testing.assert_allclose(np.asarray(made)[observed], tokens[0, 1:], atol=1e-4)


def test_computes_in_bfloat16():
    _, module, variables = towers()
    images, observed = images_of(8), some_observed()
    tokens = jax.jit(module.clone(dtype=jnp.bfloat16).apply)(variables, images, observed)
    expected = np.asarray(compiled()(images, observed))
    assert tokens.dtype == jnp.bfloat16
    # Eight bits of mantissa, through two layers.
    assert np.abs(np.asarray(tokens, np.float32) - expected).max() < 0.05 * np.abs(expected).max()


def test_the_published_size():
    """ViT-H/14 of open_clip has 632,076,800 parameters; the last layer and the projection are not among ours."""
    module = OpenCLIPVision()
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    block = 4 * (1280**2 + 1280) + 2 * 1280 * 5120 + 5120 + 1280 + 4 * 1280
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 632_076_800 - block - 1280 * 1024
    assert module.num_patches == 256


def test_refuses_other_shapes():
    _, module, variables = towers()
    with pytest.raises(ValueError, match=r"images must be \[2, 32, 32, 3\], found \[2, 32, 40, 3\]"):
        module.apply(variables, np.zeros((2, 32, 40, 3)))
    with pytest.raises(ValueError, match=r"observed must be \[2, 16\], found \[2, 17\]"):
        module.apply(variables, images_of(0), np.ones((2, 17)))
