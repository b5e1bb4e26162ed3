import numpy as np
import pytest

from data.pipeline import make_batches
from data.style_augmentation import lend_gradients, touching


@pytest.fixture(scope="module")
def frame():
    """A smooth picture with an edge: uint8 [24,32,3]."""
    rows, columns = np.mgrid[:24, :32]
    waves = 0.5 + 0.2 * np.sin(rows / 3) + 0.2 * np.sin(columns / 4) + 0.1 * (columns > 20)
    return (255 * np.stack([waves, 0.9 * waves, 1 - waves], axis=-1)).astype(np.uint8)


def differences(frame):
    image = frame.astype(np.float32) / 255
    right = np.diff(image, axis=1, append=image[:, -1:])
    return np.stack([right, np.diff(image, axis=0, append=image[-1:])])


def hole(top=4, left=6):
    mask = np.zeros((24, 32, 1), np.uint8)
    mask[top:-4, left:-6] = 1
    return mask


def test_gradients_are_the_frames_own_outside_and_others_inside(frame):
    mask, own = hole(), differences(frame)
    inside = mask[..., 0] > 0
    rim = touching(inside) & ~inside
    emptied = []
    for seed in range(12):
        lent = lend_gradients(np.random.default_rng(seed), frame, mask)
        assert lent.shape == (2, 24, 32, 3) and lent.dtype == np.float32 and np.abs(lent).max() <= 1
        np.testing.assert_allclose(lent[:, ~touching(inside)], own[:, ~touching(inside)], atol=1e-6)
        emptied.append(not lent[:, rim].any())
        if not emptied[-1]:
            np.testing.assert_allclose(lent[:, rim], own[:, rim], atol=1e-6)
        # Of the same content, but not the same.
        error = np.abs(lent - own)[:, inside].mean() / np.abs(own[:, inside]).mean()
        assert 0.02 < error < 1
        correlation = np.corrcoef(lent[:, inside].ravel(), own[:, inside].ravel())[0, 1]
        assert correlation > 0.5
    assert 0 < sum(emptied) < 12


def test_it_is_a_function_of_the_generator_and_says_nothing_where_there_is_no_hole(frame):
    first, again, other = (lend_gradients(np.random.default_rng(seed), frame, hole()) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    none = lend_gradients(np.random.default_rng(0), frame, np.zeros((24, 32, 1), np.uint8))
    np.testing.assert_allclose(none, differences(frame), atol=1e-6)
    everything = lend_gradients(np.random.default_rng(0), frame, np.ones((24, 32, 1), np.uint8))
    assert np.isfinite(everything).all()


def test_a_difference_touches_a_hole_from_the_left_and_from_above():
    inside = np.zeros((4, 4), bool)
    inside[2, 2] = True
    expected = inside.copy()
    expected[1, 2] = expected[2, 1] = True
    np.testing.assert_array_equal(touching(inside), expected)


def test_batches_may_have_what_is_made_of_each_clip_from_a_stream_of_its_own():
    settings = {"batch_size": 2, "num_frames": 1, "buckets": ((16, 16),), "global_frames": 1, "global_size": 8}
    settings |= {"max_interval": 1, "seed": 3, "num_threads": 1}

    def extend(rng, entry):
        return {"mean": np.float32(entry["video"].mean()), "drawn": rng.random()}

    def first(**more):
        return next(iter(make_batches([("synthetic", "", 1.0)], **settings, **more)))

    plain, extended = first(), first(extend=extend)
    assert extended.keys() == plain.keys() | {"mean", "drawn"}
    np.testing.assert_allclose(extended["mean"], plain["video"].mean(axis=(1, 2, 3, 4)), rtol=1e-5)
    for key, value in plain.items():
        np.testing.assert_array_equal(extended[key], value)
    assert extended["drawn"][0] != extended["drawn"][1]
    second = first(extend=extend, process_index=1, process_count=2)
    assert second["drawn"] == extended["drawn"][1:]
