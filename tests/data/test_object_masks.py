import hypothesis
import numpy as np
from hypothesis import strategies as st

from data import object_masks


def draw(seed, *size):
    return object_masks.draw_objects(np.random.default_rng(seed), *size)


@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    num_frames=st.integers(1, 6),
    height=st.integers(4, 60),
    width=st.integers(4, 60),
)
def test_every_frame_has_something_hidden_and_the_clip_a_share(seed, num_frames, height, width):
    mask = draw(seed, num_frames, height, width)
    assert mask.shape == (num_frames, height, width, 1) and mask.dtype == np.uint8
    assert mask.max() == 1 and mask.any(axis=(1, 2, 3)).all()
    low, high = object_masks.AREA_SHARES
    # A pixel a frame more or less: what is hidden comes in whole pixels, and is never nothing.
    assert low - 1 / mask[0].size <= mask.mean() <= high + 1.5 / mask[0].size
    assert (mask == draw(seed, num_frames, height, width)).all()


def test_shares_and_places_differ():
    shares = np.array([draw(seed, 2, 40, 60).mean() for seed in range(200)])
    assert shares.min() < 0.07 and shares.max() > 0.28 and abs(shares.mean() - 0.175) < 0.02
    hidden = np.mean([draw(seed, 1, 40, 60)[0, ..., 0] for seed in range(200)], axis=0)
    assert (hidden > 0).mean() > 0.9, "next to every pixel is hidden by one or another"


def test_shapes_move_a_little_from_frame_to_frame():
    for seed in range(20):
        frames = draw(seed, 20, 60, 90)[..., 0].astype(bool)
        overlap = [(a & b).sum() / (a | b).sum() for a, b in zip(frames, frames[1:], strict=False)]
        assert min(overlap) > 0.5
    assert any((draw(seed, 20, 60, 90)[0] != draw(seed, 20, 60, 90)[-1]).mean() > 0.05 for seed in range(5))


def test_centres_turn_back_before_the_border():
    place = object_masks._reflected(np.linspace(-3, 3, 601), 0.2, 0.8)
    assert place.min() >= 0.2 - 1e-9 and place.max() <= 0.8 + 1e-9
    np.testing.assert_allclose(np.abs(np.diff(place)), 0.01, atol=1e-9)
    np.testing.assert_allclose(object_masks._reflected(np.array([0.5, 0.85, 0.15]), 0.2, 0.8), [0.5, 0.75, 0.25])
