import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from m3ddm_jax.models import layers, registry, unet3d
from m3ddm_jax.weights.m3ddm import variables_from_official
from m3ddm_jax.weights.names import COUNTER, Target, take, torch_name

# float32 sums in another order: the official modules themselves move by this much between machines.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def channels_last(x):
    return np.moveaxis(x, 1, -1)


@pytest.fixture(scope="module")
def golden(goldens):
    module = unet3d.M3DDMUNet(block_out_channels=(32, 64, 64, 64), num_heads=4, norm_num_groups=8)
    variables = variables_from_official(module, load_file(goldens / "m3ddm/unet_small/weights.safetensors"))
    return module, variables, goldens / "m3ddm/unet_small"


@pytest.mark.parametrize("case", ["nonsquare", pytest.param("cfg4", marks=pytest.mark.slow)])
def test_equals_the_official_unet(golden, case):
    module, variables, folder = golden
    inputs, outputs = np.load(folder / f"inputs_{case}.npz"), np.load(folder / f"outputs_{case}.npz")
    sample = channels_last(inputs["sample"])
    global_latents = channels_last(inputs["global_latents"])
    global_latents = global_latents.reshape(int(inputs["b"]), -1, *global_latents.shape[1:])
    if case == "cfg4":
        # The official branches: (null, null), (local, null), (null, global), (local, global).
        null = np.zeros_like(global_latents)
        global_latents = np.concatenate([null, null, global_latents, global_latents])

    @jax.jit
    def encode(variables, latents):
        return [module.apply(variables, latents, method=name) for name in ("context_tokens", "encode_context")]

    tokens, context = encode(variables, global_latents)
    expected = channels_last(outputs["global_img_encoder"])
    np.testing.assert_allclose(tokens.reshape(expected.shape), expected, **TOLERANCE)
    apply = jax.jit(partial(module.apply, timestep=inputs["timestep"], fps=inputs["fps"]))
    out = apply(variables, sample[..., :4], sample[..., 8:], sample[..., 4:8], context=context)
    np.testing.assert_allclose(out, channels_last(outputs["sample"]), **TOLERANCE)


BLOCKS = {
    "resnet_p3d": (unet3d.ResnetBlock(64, 8), ["input_tensor", "temb", "femb"]),
    "pseudo3dconv": (layers.Pseudo3DConv(24), ["x"]),
    "downsample3d": (layers.Downsample(), ["hidden_states"]),
    "upsample3d": (layers.Upsample(), ["hidden_states"]),
    "global_img_encoder": (unet3d.GlobalFrameEncoder((8, 16, 32, 64, 128), 320), ["x"]),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_equals_the_official_block(goldens, name):
    module, names = BLOCKS[name]
    io = np.load(goldens / f"m3ddm/blocks/{name}_io.npz")
    args = [channels_last(io[n]) for n in names]
    variables = official_variables(module, goldens / f"m3ddm/blocks/{name}.safetensors", *args)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, *args), channels_last(io["output"]), **TOLERANCE)


def test_equals_the_official_transformer(goldens):
    """Its frames have contexts of their own, which only keys and values a frame can say: one frame at a time in space,
    all of them in time."""
    io = np.load(goldens / "m3ddm/blocks/spatial_temporal_transformer_io.npz")
    module = unet3d.SpatioTemporalTransformer(64, num_heads=8, num_groups=16, frame_embedding_dim=320)
    x, context = channels_last(io["hidden_states"]), io["context"]
    variables = official_variables(
        module, goldens / "m3ddm/blocks/spatial_temporal_transformer.safetensors", x, context[:, 0]
    )

    def run(module, x, context):
        frames = [module.space(x[:, [f]], context[:, f]) for f in range(x.shape[1])]
        return module.time(jnp.concatenate(frames, axis=1))

    out = jax.jit(partial(module.apply, method=run))(variables, x, context)
    np.testing.assert_allclose(out, channels_last(io["output"]), **TOLERANCE)


def official_variables(module, path, *args):
    """The variables of one official block, whose names lack the scopes above it."""
    shapes = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), *args), sep=".")
    wanted = {torch_name(path): Target(path, leaf.shape) for path, leaf in shapes.items()}
    return unflatten_dict(take(str(path), load_file(path), wanted), sep=".")


def test_sinusoids_equal_the_official_ones(goldens):
    golden = np.load(goldens / "m3ddm/blocks/sinusoids.npz")
    for positions, period, expected in [
        (golden["t"], 1000, golden["time_320_p1000"]),
        (golden["fps"], 30, golden["fps_320_p30"]),
        (np.arange(16), 1000, golden["frame_320_p1000"]),
    ]:
        # Angles of up to 1,000 radians carry 6e-5 of float32 rounding.
        np.testing.assert_allclose(layers.sinusoidal_embedding(positions, 320, period), expected, atol=1e-4)


@pytest.fixture(scope="module")
def published():
    return registry.abstract_variables(unet3d.M3DDMUNet())


def test_the_defaults_are_the_published_model(goldens, published):
    official = json.loads((goldens / "m3ddm/full_state_dict.json").read_text())
    shapes = official["tensors"]
    official = {name for name in shapes if not name.endswith(COUNTER)}
    paths = jax.tree_util.tree_flatten_with_path(published)[0]
    assert official == {torch_name(".".join(key.key for key in path)) for path, _ in paths}


def test_parameter_count_without_goldens(published):
    assert sum(leaf.size for leaf in jax.tree.leaves(published["params"])) == 1_299_279_320


TINY = {
    "latent_channels": 3,
    "block_out_channels": (8, 16),
    "attention_levels": (True, False),
    "layers_per_block": 1,
    "num_heads": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "global_widths": (8, 8, 8, 8, 8),
    "frame_embedding_dim": 8,
}


@pytest.fixture(scope="module")
def tiny():
    module = unet3d.M3DDMUNet(**TINY)
    # Zero-initialised outputs would hide what depends on what: every parameter is drawn.
    rng = np.random.default_rng(1)
    shapes = registry.abstract_variables(module)
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
    variables["batch_stats"] = jax.tree.map(np.ones_like, variables["batch_stats"])
    return module, variables, jax.jit(module.apply)


@pytest.fixture(scope="module")
def encode(tiny):
    """By method, what it returns of latents of the whole video."""
    return {name: jax.jit(partial(tiny[0].apply, method=name)) for name in ("encode_context", "context_tokens")}


def tiny_inputs(frames=2, batch=1):
    keys = jax.random.split(jax.random.key(2), 3)
    latents = jax.random.normal(keys[0], (batch, frames, 4, 6, 3))
    masked = jax.random.normal(keys[1], (batch, frames, 4, 6, 3))
    global_latents = jax.random.normal(keys[2], (batch, 2, 8, 8, 3))
    return (latents, jnp.ones((batch, frames, 4, 6, 1)), masked), {
        "timestep": jnp.full(batch, 7),
        "fps": jnp.full(batch, 3.5),
        "global_latents": global_latents,
    }


def test_one_frame_and_one_colour_are_finite(tiny):
    module, variables, apply = tiny
    args, kwargs = tiny_inputs(frames=1)
    flat = jax.tree.map(jnp.ones_like, args)
    out = apply(variables, *flat, **kwargs)
    assert out.shape == (1, 1, 4, 6, 3)
    assert np.isfinite(out).all()


@pytest.mark.slow
def test_context_computed_once_equals_global_latents(tiny, encode):
    module, variables, apply = tiny
    args, kwargs = tiny_inputs(batch=4)
    direct = apply(variables, *args, **kwargs)
    global_latents = kwargs.pop("global_latents")
    for compute in encode.values():
        context = compute(variables, global_latents)
        np.testing.assert_allclose(apply(variables, *args, **kwargs, context=context), direct, atol=1e-6)


def test_keys_and_values_are_not_computed_again(tiny, encode):
    module, variables, apply = tiny
    args, kwargs = tiny_inputs(batch=4)  # compiled above
    context = encode["encode_context"](variables, kwargs.pop("global_latents"))
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * jnp.nan if cross_attends(path) else leaf, variables
    )
    assert np.isfinite(apply(variables, *args, **kwargs, context=context)).all()


def cross_attends(path):
    names = [key.key for key in path]
    spatial = "global_img_encoder" in names or ("transformer_blocks_0" in names and "attn2" in names)
    return spatial and ("global_img_encoder" in names or names[-2] in ("to_k", "to_v"))


def test_clips_share_contexts_in_turn(tiny, encode):
    module, variables, apply = tiny
    args, kwargs = tiny_inputs(batch=4)
    context = encode["encode_context"](variables, kwargs.pop("global_latents"))
    context = jax.tree.map(lambda x: x[:2], context)
    repeated = jax.tree.map(lambda x: jnp.tile(x, (2, 1, 1, 1)), context)
    expected = apply(variables, *args, **kwargs, context=repeated)
    np.testing.assert_allclose(apply(variables, *args, **kwargs, context=context), expected, atol=1e-6)


def test_samples_of_a_batch_do_not_mix(tiny):
    module, variables, apply = tiny
    args, kwargs = tiny_inputs(batch=4)  # compiled above
    together = apply(variables, *args, **kwargs)
    last = apply(variables, *(x[3:] for x in args), **{k: x[3:] for k, x in kwargs.items()})
    np.testing.assert_allclose(together[3:], last, atol=1e-5)


@pytest.mark.slow
def test_remat_and_bfloat16_compute_the_same(tiny):
    module, variables, apply = tiny
    args, kwargs = tiny_inputs()
    expected = apply(variables, *args, **kwargs)
    np.testing.assert_allclose(jax.jit(module.clone(remat=True).apply)(variables, *args, **kwargs), expected, atol=1e-6)
    half = jax.jit(module.clone(dtype=jnp.bfloat16).apply)(variables, *args, **kwargs)
    assert half.dtype == jnp.float32
    # bfloat16 keeps 8 bits: 0.4 % a product, several layers deep.
    assert np.abs(half - expected).mean() < 0.03 * np.abs(expected).mean()


def test_calibrate_sets_the_statistics_of_its_batch(tiny, encode):
    module, variables, apply = tiny
    global_latents = 5 * tiny_inputs(batch=4)[1]["global_latents"] + 3
    encode = encode["context_tokens"]
    calibrate = jax.jit(partial(module.apply, method="calibrate", mutable=["batch_stats"]))
    context, updated = calibrate(variables, global_latents)
    again = encode({**variables, **updated}, global_latents)
    np.testing.assert_allclose(again, context, rtol=1e-4, atol=1e-4)
    before = encode(variables, global_latents)
    assert np.abs(before - context).max() > 1e-2


def test_bad_sizes_are_named(tiny):
    module, variables, apply = tiny
    (latents, mask, masked), kwargs = tiny_inputs()
    with pytest.raises(ValueError, match="multiples of 2"):
        apply(variables, latents[:, :, :3], mask[:, :, :3], masked[:, :, :3], **kwargs)
    kwargs.pop("global_latents")
    with pytest.raises(ValueError, match="exactly one"):
        apply(variables, latents, mask, masked, **kwargs)
