import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.models.global_tokens import Evidence, GlobalTokens, fourier_features, observe
from m3ddm_jax.models.observed_crop import crop_observed
from m3ddm_jax.models.openclip import OpenCLIPVision

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


def evidence_of(seed, frames=FRAMES):
    """Of two clips."""
    rng = np.random.default_rng(seed)
    return Evidence(
        patch_tokens=rng.normal(size=(CLIPS, frames, PATCHES, WIDTH)).astype(np.float32),
        coordinates=rng.uniform(size=(CLIPS, PATCHES, 2)).astype(np.float32),
        observed=rng.uniform(size=(CLIPS, PATCHES)) < 0.6,
        times=np.tile(np.linspace(0, 1, frames, dtype=np.float32), (CLIPS, 1)),
    )


def random_like(shapes):
    """Variables no bias of which is 0, which would hide mistakes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), shapes)


@functools.cache
def variables():
    return random_like(jax.eval_shape(MODULE.init, jax.random.key(0), evidence_of(0)))


def tokens_of(evidence, **changed):
    return np.asarray(APPLY(variables(), evidence.replace(**changed)))


def test_as_many_tokens_whatever_the_number_of_frames():
    for frames in (1, FRAMES):
        tokens = tokens_of(evidence_of(1, frames))
        assert tokens.shape == (CLIPS, 5, 6) and np.all(np.isfinite(tokens))


def test_every_input_counts():
    evidence, other = evidence_of(2), evidence_of(3)
    expected = tokens_of(evidence)
    for name in ("patch_tokens", "coordinates", "observed"):
        assert np.all((tokens_of(evidence, **{name: getattr(other, name)}) != expected).any((1, 2))), name
    assert np.all((tokens_of(evidence, times=evidence.times / 2) != expected).any((1, 2)))


def test_what_is_not_observed_changes_no_bit():
    evidence = evidence_of(4)
    expected = tokens_of(evidence)
    seen = evidence.observed[..., None]
    for fill in (np.float32(1e6), np.float32(np.nan)):
        patch_tokens = np.where(seen[:, None], evidence.patch_tokens, fill)
        coordinates = np.where(seen, evidence.coordinates, np.float32(0.3))
        np.testing.assert_array_equal(tokens_of(evidence, patch_tokens=patch_tokens, coordinates=coordinates), expected)


def test_frames_are_a_set():
    evidence = evidence_of(6)
    order = [2, 0, 3, 1]
    shuffled = {name: getattr(evidence, name)[:, order] for name in ("patch_tokens", "times")}
    # The same sums in another order.
    np.testing.assert_allclose(tokens_of(evidence, **shuffled), tokens_of(evidence), atol=1e-5)


def test_a_clip_that_shows_nothing_depends_on_parameters_alone():
    blind = [evidence_of(seed).replace(observed=np.zeros((CLIPS, PATCHES), bool)) for seed in (8, 9)]
    blind[1] = blind[1].replace(times=blind[1].times / 2)
    first, second = (tokens_of(evidence) for evidence in blind)
    assert np.all(np.isfinite(first))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[0], first[1])
    gradient = jax.jit(jax.grad(lambda v: jnp.square(MODULE.apply(v, blind[0])).sum()))(variables())
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_fourier_features_tell_both_ends_apart():
    features = fourier_features(jnp.array([[0.0, 0.0], [1.0, 0.5]]), 2)
    # sin and cos of pi x and 2 pi x, for x and then for y.
    expected = [[0, 0, 1, 1, 0, 0, 1, 1], [0, 0, -1, 1, 1, 0, 0, -1]]
    np.testing.assert_allclose(features, expected, atol=1e-6)


def test_refuses_tokens_of_another_tower():
    evidence = evidence_of(13)
    with pytest.raises(ValueError, match="patch tokens must be 10 wide, found 9"):
        MODULE.apply(variables(), evidence.replace(patch_tokens=evidence.patch_tokens[..., 1:]))


TOWER = OpenCLIPVision(image_size=16, patch_size=4, width=WIDTH, layers=2, num_heads=2, mlp_width=16)
CANVAS = (12, 20)


@functools.cache
def tower_variables():
    return random_like(jax.eval_shape(TOWER.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3))))


def test_a_tower_observes_frame_by_frame_what_is_known():
    rng = np.random.default_rng(14)
    squares = rng.uniform(-1, 1, (CLIPS, 3, 16, 16, 3)).astype(np.float32)
    boxes = np.array([(0, 12, 4, 16), (0, 12, 0, 20)])
    seen = jax.jit(lambda squares: observe(TOWER, tower_variables(), squares, boxes, CANVAS))(squares)
    # Of a square all 4 x 4 patches; of 12 x 20 pixels, 10 of 16 rows: 2 whole patches.
    np.testing.assert_array_equal(seen.observed.sum(1), [16, 8])
    np.testing.assert_array_equal(seen.times, [[0, 0.5, 1]] * CLIPS)
    np.testing.assert_allclose(seen.coordinates[0, 0], [(4 + 1.5) / 20, 1.5 / 12], rtol=1e-6)
    # Frames are seen alone.
    expected = TOWER.apply(tower_variables(), squares[1, 2:], seen.observed[1:])
    np.testing.assert_allclose(seen.patch_tokens[1, 2:], expected, atol=1e-5)
    np.testing.assert_array_equal(observe(TOWER, tower_variables(), squares[:, :1], boxes, CANVAS).times, 0)
    with pytest.raises(ValueError, match="images must be"):
        observe(TOWER, tower_variables(), squares[:, :, :8], boxes, CANVAS)


def test_from_pixels_to_tokens_nothing_unobserved_has_a_part():
    """Crop, vision tower and extractor: no bit and no derivative of what lies outside the observed box."""
    boxes = np.array([(0, 12, 4, 16), (2, 9, 0, 13)])
    outside = np.ones((CLIPS, 1, *CANVAS, 1), bool)
    for hidden, (top, bottom, left, right) in zip(outside, boxes, strict=True):
        hidden[:, top:bottom, left:right] = False
    weights = np.random.default_rng(12).normal(size=(CLIPS, 5, 6)).astype(np.float32)

    @jax.jit
    def run(frames):
        def weighted(frames):
            evidence = observe(TOWER, tower_variables(), crop_observed(frames, boxes, 16), boxes, CANVAS)
            tokens = MODULE.apply(variables(), evidence)
            return jnp.sum(weights * tokens), tokens

        gradient, tokens = jax.grad(weighted, has_aux=True)(frames)
        return gradient, tokens

    frames, noise = np.random.default_rng(11).uniform(-1, 1, (2, CLIPS, 2, *CANVAS, 3)).astype(np.float32)
    gradient, tokens = run(frames)
    np.testing.assert_array_equal(run(np.where(outside, noise, frames))[1], tokens)
    assert np.all(np.where(outside, gradient, 0) == 0)
    assert np.mean(np.where(outside, 0, gradient) != 0) > 0.1
    assert np.all((run(noise)[1] != tokens).any((1, 2)))
