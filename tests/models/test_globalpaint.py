"""diffusers' inpainting U-Net, converted as `convert` does it, is the reference of what works inside frames."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from m3ddm_jax.models import registry
from m3ddm_jax.models.global_tokens import Evidence
from m3ddm_jax.models.globalpaint import DecoupledAttention, GlobalPaintUNet, TextAndVideo
from m3ddm_jax.weights.checkpoint import Checkpoint
from m3ddm_jax.weights.inpainting import globalpaint_from_checkpoint

TEXT_DIM = 24
EXTRACTOR = {
    "patch_width": 10,
    "extractor_width": 16,
    "extractor_heads": 2,
    "frame_tokens": 3,
    "extractor_depths": (1, 2),
    "num_global_tokens": 8,
}
FAMILIES = {
    "1.5": {"attention_head_dim": 4},
    "2": {"attention_head_dim": [2, 4], "use_linear_projection": True},
}


def make_unet(**family):
    torch.manual_seed(0)
    return UNet2DConditionModel(
        in_channels=9,
        out_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_DIM,
        **family,
    ).eval()


def converted(unet):
    tensors = {name: tensor.numpy() for name, tensor in unet.state_dict().items()}
    prompt = np.random.default_rng(3).normal(size=(77, TEXT_DIM)).astype(np.float32)
    checkpoint = Checkpoint("it", tensors, json.loads(unet.to_json_string()))
    return globalpaint_from_checkpoint(checkpoint, prompt, **EXTRACTOR)


def draw_inputs(frames=3, batch=2, height=4, width=6):
    rng = np.random.default_rng(0)
    latents, masked = rng.normal(size=(2, batch, frames, height, width, 4)).astype(np.float32)
    mask = rng.integers(0, 2, (batch, frames, height, width, 1)).astype(np.float32)
    times = {"timestep": np.array([7, 901])[:batch], "fps": np.array([24.0, 2.0], np.float32)[:batch]}
    return (latents, mask, masked), times


def draw_evidence(batch=2, frames=2, patches=4):
    rng = np.random.default_rng(2)
    return Evidence(
        patch_tokens=rng.normal(size=(batch, frames, patches, 10)).astype(np.float32),
        coordinates=rng.uniform(size=(batch, patches, 2)).astype(np.float32),
        observed=np.arange(patches) < np.array([[patches], [patches - 1]])[:batch],
        times=np.tile(np.linspace(0, 1, frames, dtype=np.float32), (batch, 1)),
    )


def draw_context(batch=2):
    rng = np.random.default_rng(1)
    return {
        "evidence": draw_evidence(batch),
        "text_context": rng.normal(size=(batch, 5, TEXT_DIM)).astype(np.float32),
        "drop_global": np.zeros(batch, bool),
    }


@pytest.fixture(scope="module")
def start():
    module, variables = converted(make_unet(**FAMILIES["1.5"]))
    return module, variables, jax.jit(module.apply)


def encode(module, variables, **given):
    return jax.jit(partial(module.apply, method="encode_context"))(variables, **given)


@pytest.fixture(scope="module")
def drawn(start):
    """The network with all that starts at zero drawn: what depends on what shows."""
    module, _, apply = start
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        # Tokens of evidence must differ by so much that it shows behind a gate of a tenth.
        scale = 0.5 if "global_extractor" in jax.tree_util.keystr(path) else 0.1
        return rng.normal(0, scale, leaf.shape).astype(np.float32)

    return module, jax.tree.map_with_path(draw, registry.abstract_variables(module)), apply


@pytest.mark.parametrize("family", ["1.5", pytest.param("2", marks=pytest.mark.slow)])
def test_every_frame_is_what_diffusers_makes_of_it(start, family):
    unet = make_unet(**FAMILIES[family])
    module, variables, apply = start
    if family != "1.5":
        module, variables = converted(unet)
        apply = jax.jit(module.apply)
    assert module.num_heads == {"1.5": (4, 4), "2": (2, 4)}[family]
    (latents, mask, masked), times = draw_inputs()
    frames = latents.shape[1]
    given = draw_context()
    made = apply(variables, latents, mask, masked, **times, **given)
    sample = rearrange(np.concatenate([latents, mask, masked], axis=-1), "b t h w c -> (b t) c h w")
    with torch.no_grad():
        expected = unet(
            torch.from_numpy(sample),
            torch.from_numpy(times["timestep"].repeat(frames)),
            torch.from_numpy(given["text_context"].repeat(frames, axis=0)),
        ).sample
    expected = rearrange(expected.numpy(), "(b t) c h w -> b t h w c", t=frames)
    assert expected.std() > 0.1
    # float32 sums in another order.
    np.testing.assert_allclose(made, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"est": "off", "global_guidance": False},
        {"est": "1d"},
    ],
)
def test_what_is_new_adds_nothing_at_the_start(start, changed):
    module, variables, _ = start
    args, times = draw_inputs()
    given = draw_context()
    # Operation by operation: compiled whole, two networks may round differently.
    expected = module.apply(variables, *args, **times, **given)
    other = module.clone(**changed)
    fresh = flatten_dict(registry.abstract_variables(other), sep=".")
    known = flatten_dict(variables, sep=".")
    weights = {path: known[path] for path in fresh}
    if not other.global_guidance:
        given = {"text_context": given["text_context"]}
    made = other.apply(unflatten_dict(weights, sep="."), *args, **times, **given)
    np.testing.assert_array_equal(made, expected)


def test_context_computed_once_equals_what_it_is_made_of(drawn):
    module, variables, apply = drawn
    args, times = draw_inputs()
    given = draw_context()
    expected = apply(variables, *args, **times, **given)
    given.pop("drop_global")
    context = encode(module, variables, **given)
    np.testing.assert_allclose(apply(variables, *args, **times, context=context), expected, atol=1e-5)
    unused = (
        "to_k_global",
        "to_v_global",
        "empty_prompt",
        "null_tokens",
        "global_extractor",
        "attn2.to_k",
        "attn2.to_v",
    )
    broken = {
        path: leaf * np.nan if any(name in path for name in unused) else leaf
        for path, leaf in flatten_dict(variables, sep=".").items()
    }
    again = apply(unflatten_dict(broken, sep="."), *args, **times, context=context)
    np.testing.assert_allclose(again, expected, atol=1e-5)


def test_every_clip_has_its_own_text_and_evidence(drawn):
    module, variables, apply = drawn
    args, times = draw_inputs()
    given = draw_context()
    expected = apply(variables, *args, **times, **given)
    second = np.array([0, 1], np.float32)[:, None, None]
    patch_tokens = given["evidence"].patch_tokens[[0, 0]]
    others = {
        "text_context": given["text_context"] + second,
        "evidence": given["evidence"].replace(patch_tokens=patch_tokens),
    }
    for name, other in others.items():
        changed = given | {name: other}
        difference = np.abs(apply(variables, *args, **times, **changed) - expected).max(axis=(1, 2, 3, 4))
        assert difference[0] == 0 and difference[1] > 1e-5


def test_clips_take_contexts_in_turn(drawn):
    """One prompt and the evidence of two videos for four clips."""
    module, variables, apply = drawn
    args, times = draw_inputs()
    given = draw_context()
    given["text_context"] = given["text_context"][[0, 0]]
    context = encode(module, variables, evidence=given["evidence"], text_context=given["text_context"][:1])
    louder = jax.tree.map(lambda x: 2 * x, (args, times))
    (latents, mask, masked), both = jax.tree.map(lambda *x: np.concatenate(x), (args, times), louder)
    made = apply(variables, latents, mask, masked, **both, context=context)
    for half, (inputs, at) in zip(np.split(made, 2), [(args, times), louder], strict=True):
        np.testing.assert_allclose(half, apply(variables, *inputs, **at, **given), atol=1e-5)


def test_dropped_clips_and_those_without_evidence_have_the_null_condition(drawn):
    module, variables, apply = drawn
    args, times = draw_inputs()
    given = draw_context()
    seen = apply(variables, *args, **times, **given)
    unseen = apply(variables, *args, **times, text_context=given["text_context"])
    assert np.all(np.abs(seen - unseen).max(axis=(1, 2, 3, 4)) > 1e-3)
    dropped = apply(variables, *args, **times, **given | {"drop_global": np.array([True, False])})
    np.testing.assert_allclose(dropped, np.stack([unseen[0], seen[1]]), atol=1e-5)
    empty = np.broadcast_to(variables["params"]["empty_prompt"], (2, 77, TEXT_DIM))
    given |= {"drop_global": np.ones(2, bool), "text_context": empty}
    context = encode(module, variables)
    expected = apply(variables, *args, **times, **given)
    np.testing.assert_allclose(apply(variables, *args, **times, context=context), expected, atol=1e-5)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 2, 2), pytest.param(9, 10, 4, marks=pytest.mark.slow)])
def test_any_size_in_bfloat16(drawn, frames, height, width):
    """Also a still, whose rate is 0."""
    module, variables, _ = drawn
    args, times = draw_inputs(frames, 1, height, width)
    times["fps"] = 0.0
    made = jax.jit(module.clone(dtype=jnp.bfloat16).apply)(variables, *args, **times)
    assert made.dtype == jnp.float32 and made.shape == args[0].shape
    assert np.isfinite(made).all()


STARTS_SILENT = ("temporal.conv.kernel", "to_out_0.kernel", "ff.net_2.kernel", "gate", "fps_embedding.kernel")


@pytest.mark.slow
def test_every_parameter_learns(start, drawn):
    module, variables, _ = drawn
    args, times = draw_inputs()
    given = {"evidence": draw_evidence(), "drop_global": np.array([True, False])}
    target = np.random.default_rng(5).normal(size=args[0].shape)

    @jax.jit
    def gradients(variables):
        def loss(variables):
            return jnp.sum(target * module.clone(remat=True).apply(variables, *args, **times, **given))

        return jax.grad(loss)(variables)

    for path, grad in flatten_dict(gradients(variables), sep=".").items():
        assert np.isfinite(grad).all() and np.abs(grad).max() > 1e-6, path
    for path, grad in flatten_dict(gradients(start[1]), sep=".").items():
        if path.endswith(STARTS_SILENT):
            assert np.abs(grad).max() > 1e-6, path


def test_the_gate_opens_from_random_weights_too():
    rng = np.random.default_rng(0)
    tokens, text, video = (rng.normal(size=(2, n, 8)).astype(np.float32) for n in (5, 3, 4))
    module = DecoupledAttention(8, 2)
    variables = module.init(jax.random.key(0), tokens, TextAndVideo(text, video))

    def loss(variables, video):
        return jnp.sum(module.apply(variables, tokens, TextAndVideo(text, video)) ** 2)

    assert loss(variables, video) == loss(variables, -video)  # shut
    gradients = jax.grad(loss)(variables, video)
    assert np.abs(gradients["params"]["gate"]).min() > 1e-3


def test_wrong_inputs_are_named(drawn):
    module, variables, _ = drawn
    (latents, mask, masked), times = draw_inputs()
    evidence = draw_evidence()

    def shape(*args, network=module, **kwargs):
        return jax.eval_shape(partial(network.apply, variables, *args, **times, **kwargs))

    with pytest.raises(ValueError, match="multiples of 2"):
        shape(latents[:, :, :3], mask[:, :, :3], masked[:, :, :3])
    with pytest.raises(ValueError, match="patch tokens must be 10 wide, found 9"):
        shape(latents, mask, masked, evidence=evidence.replace(patch_tokens=evidence.patch_tokens[..., 1:]))
    with pytest.raises(ValueError, match="either context or"):
        shape(latents, mask, masked, evidence=evidence, context=((),) * 5)
    with pytest.raises(ValueError, match="no global guidance"):
        shape(latents, mask, masked, evidence=evidence, network=module.clone(global_guidance=False))
    with pytest.raises(ValueError, match="2 widths of levels and 3 num_heads differ"):
        shape(latents, mask, masked, network=module.clone(num_heads=(4, 4, 4)))


@pytest.mark.slow
def test_parameter_counts():
    def count(**hyper):
        shapes = registry.abstract_variables(GlobalPaintUNet(**hyper))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    assert count() == 1_316_254_820
    # 78,844,160 are what makes global tokens.
    assert count(global_guidance=False) == 1_218_192_100
    # Stable Diffusion 1.5's inpainting U-Net, the rate's embedding, and the empty prompt.
    assert count(est="off", global_guidance=False) == 859_535_364 + 321 * 1280 + 77 * 768
