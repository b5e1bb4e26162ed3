import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange, repeat

from m3ddm_jax.models.global_tokens import GlobalTokens, fourier_features
from m3ddm_jax.models.observed_crop import crop_observed, patch_places
from m3ddm_jax.models.openclip import OpenCLIPVision

pytestmark = pytest.mark.usefixtures("quick_compiles")

CLIPS, FRAMES, PATCHES, WIDTH = 2, 4, 6, 10
MODULE = GlobalTokens(
    patch_width=WIDTH,
    features=6,
    width=8,
    num_heads=2,
    frame_tokens=3,
    frame_depth=2,
    video_tokens=5,
    video_depth=2,
    octaves=3,
)
APPLY = jax.jit(MODULE.apply)


def inputs_of(seed, frames=FRAMES):
    """Two clips, of the second of which the last frame is padding."""
    rng = np.random.default_rng(seed)
    return {
        "patch_tokens": rng.normal(size=(CLIPS, frames, PATCHES, WIDTH)).astype(np.float32),
        "coordinates": rng.uniform(size=(CLIPS, frames, PATCHES, 2)).astype(np.float32),
        "observed": rng.uniform(size=(CLIPS, frames, PATCHES)) < 0.6,
        "times": np.tile(np.linspace(0, 1, frames, dtype=np.float32), (CLIPS, 1)),
        "fps": np.array([24.0, 2.0], np.float32),
        "frame_valid": np.arange(frames) < np.array([[frames], [frames - 1]]),
    }


def random_like(shapes):
    """Variables no bias of which is 0, which would hide mistakes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), shapes)


@functools.cache
def variables():
    return random_like(jax.eval_shape(MODULE.init, jax.random.key(0), **inputs_of(0)))


def tokens_of(**inputs):
    return np.asarray(APPLY(variables(), **inputs))


def test_as_many_tokens_whatever_the_number_of_frames():
    for frames in (1, FRAMES):
        tokens = tokens_of(**inputs_of(1, frames))
        assert tokens.shape == (CLIPS, 5, 6) and np.all(np.isfinite(tokens))


def test_every_input_counts():
    inputs = inputs_of(2)
    expected = tokens_of(**inputs)
    for name, other in inputs_of(3).items():
        if name not in ("times", "fps", "frame_valid"):
            assert np.all((tokens_of(**{**inputs, name: other}) != expected).any((1, 2))), name
    assert np.all((tokens_of(**{**inputs, "times": inputs["times"] / 2}) != expected).any((1, 2)))
    assert np.all((tokens_of(**{**inputs, "fps": inputs["fps"] + 1}) != expected).any((1, 2)))
    fewer = tokens_of(**{**inputs, "frame_valid": inputs["frame_valid"] & (np.arange(FRAMES) > 0)})
    assert np.all((fewer != expected).any((1, 2)))


def test_what_is_not_observed_changes_no_bit():
    inputs = inputs_of(4)
    expected = tokens_of(**inputs)
    hidden = ~inputs["observed"][..., None]
    for fill in (np.float32(1e6), np.float32(np.nan)):
        changed = {"patch_tokens": np.where(hidden, fill, inputs["patch_tokens"])}
        changed["coordinates"] = np.where(hidden, np.float32(0.3), inputs["coordinates"])
        np.testing.assert_array_equal(tokens_of(**{**inputs, **changed}), expected)


def test_padding_changes_no_bit():
    """Neither what padding frames hold, nor where among one another they stand, nor frames that show nothing."""
    inputs = inputs_of(5)
    inputs["frame_valid"] = np.tile(np.arange(FRAMES) < 2, (CLIPS, 1))
    expected = tokens_of(**inputs)
    swapped = {name: value if name == "fps" else value[:, [0, 1, 3, 2]] for name, value in inputs.items()}
    np.testing.assert_array_equal(tokens_of(**swapped), expected)
    padding = np.arange(FRAMES)[:, None, None] >= 2
    nonsense = {"patch_tokens": np.where(padding, np.float32(np.nan), inputs["patch_tokens"])}
    nonsense["times"] = np.where(padding[:, 0, 0], np.float32(np.nan), inputs["times"])
    np.testing.assert_array_equal(tokens_of(**{**inputs, **nonsense}), expected)
    blind = {"observed": inputs["observed"] & ~padding[..., 0], "frame_valid": np.ones((CLIPS, FRAMES), bool)}
    np.testing.assert_array_equal(tokens_of(**{**inputs, **blind}), expected)


def test_frames_are_a_set():
    inputs = inputs_of(6)
    expected = tokens_of(**inputs)
    order = [2, 0, 3, 1]
    shuffled = {name: value if name == "fps" else value[:, order] for name, value in inputs.items()}
    # The same sums in another order.
    np.testing.assert_allclose(tokens_of(**shuffled), expected, atol=1e-5)


def test_coordinates_may_be_shared():
    inputs = inputs_of(7)
    shared = inputs["coordinates"][0, 0]
    everywhere = np.broadcast_to(shared, inputs["coordinates"].shape)
    expected = tokens_of(**{**inputs, "coordinates": everywhere})
    np.testing.assert_allclose(tokens_of(**{**inputs, "coordinates": shared}), expected, atol=1e-6)


def test_a_clip_that_shows_nothing_depends_on_parameters_alone():
    blind = [{**inputs_of(seed), "observed": np.zeros((CLIPS, FRAMES, PATCHES), bool)} for seed in (8, 9)]
    blind[1]["fps"] = blind[1]["fps"] + 5
    first, second = (tokens_of(**inputs) for inputs in blind)
    assert np.all(np.isfinite(first))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first, tokens_of(**{**inputs_of(8), "frame_valid": np.zeros((CLIPS, FRAMES), bool)}))
    gradient = jax.jit(jax.grad(lambda v: jnp.square(MODULE.apply(v, **blind[0])).sum()))(variables())
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_fourier_features_tell_both_ends_apart():
    features = fourier_features(jnp.array([[0.0, 0.0], [1.0, 0.5]]), 2)
    # sin and cos of pi x and 2 pi x, for x and then for y.
    expected = [[0, 0, 1, 1, 0, 0, 1, 1], [0, 0, -1, 1, 1, 0, 0, -1]]
    np.testing.assert_allclose(features, expected, atol=1e-6)


def test_refuses_tokens_of_another_tower():
    inputs = inputs_of(13)
    with pytest.raises(ValueError, match="patch tokens must be 10 wide, found 9"):
        MODULE.apply(variables(), **{**inputs, "patch_tokens": inputs["patch_tokens"][..., 1:]})


def test_from_pixels_to_tokens_nothing_unobserved_has_a_part():
    """Crop, vision tower and extractor: no bit and no derivative of what lies outside the observed box."""
    tower = OpenCLIPVision(image_size=16, patch_size=4, width=WIDTH, layers=2, num_heads=2, mlp_width=16)
    tower_variables = random_like(jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3))))
    height, width, boxes = 12, 20, np.array([(0, 12, 4, 16), (2, 9, 0, 13)])
    observed, coordinates = patch_places(boxes, (height, width), 16, 4)
    assert np.all(observed.any(1))
    outside = np.ones((CLIPS, 1, height, width, 1), bool)
    for hidden, (top, bottom, left, right) in zip(outside, boxes, strict=True):
        hidden[:, top:bottom, left:right] = False
    inputs = {name: inputs_of(10, 2)[name] for name in ("times", "fps", "frame_valid")}
    inputs["observed"] = repeat(observed, "b p -> b f p", f=2)
    weights = np.random.default_rng(12).normal(size=(CLIPS, 5, 6)).astype(np.float32)

    @jax.jit
    def run(frames):
        def weighted(frames):
            images = rearrange(crop_observed(frames, boxes, 16), "b f h w c -> (b f) h w c")
            patches = tower.apply(tower_variables, images, rearrange(inputs["observed"], "b f p -> (b f) p"))
            patches = rearrange(patches, "(b f) p d -> b f p d", f=2)
            tokens = MODULE.apply(variables(), patches, coordinates[:, None], **inputs)
            return jnp.sum(weights * tokens), tokens

        gradient, tokens = jax.grad(weighted, has_aux=True)(frames)
        return gradient, tokens

    frames, noise = np.random.default_rng(11).uniform(-1, 1, (2, CLIPS, 2, height, width, 3)).astype(np.float32)
    gradient, tokens = run(frames)
    np.testing.assert_array_equal(run(np.where(outside, noise, frames))[1], tokens)
    assert np.all(np.where(outside, gradient, 0) == 0)
    shown = np.where(outside, 0, gradient)[inputs["frame_valid"]]
    assert np.mean(shown != 0) > 0.1
    assert np.all((run(noise)[1] != tokens).any((1, 2)))
