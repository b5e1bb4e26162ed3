import numpy as np

from m3ddm_jax.completion.membrane import membrane


def test_membrane_between_two_sides_is_a_ramp():
    """In closed form: where nothing changes along a column, values run straight from one side to the other."""
    values = np.zeros((20, 41, 3), np.float32)
    values[:, 0], values[:, -1] = (10, 0, 4), (30, 100, 4)
    given = np.zeros((20, 41), bool)
    given[:, [0, -1]] = True
    ramp = np.linspace(0, 1, 41)[:, None]
    expected = np.broadcast_to((1 - ramp) * values[0, 0] + ramp * values[0, -1], values.shape)
    np.testing.assert_allclose(membrane(values, given, ~given), expected, atol=5)


def test_membrane_stays_within_what_is_given():
    rng = np.random.default_rng(0)
    values = rng.uniform(-50, 70, (33, 47, 3)).astype(np.float32)
    given = rng.uniform(size=(33, 47)) > 0.9
    solved = membrane(values, given, ~given)
    np.testing.assert_array_equal(solved[given], values[given])
    assert values[given].min() - 1 <= solved.min() and solved.max() <= values[given].max() + 1


def test_pixels_that_do_not_count():
    """A wall of pixels that are neither given nor free shields what is behind it."""
    values = np.zeros((8, 9, 3), np.float32)
    given, free = np.zeros((2, 8, 9), bool)
    values[:, 0], given[:, 0], free[:, 1:4] = 7, True, True
    values[:, 4:] = 100
    np.testing.assert_allclose(membrane(values, given, free)[:, :4], 7, rtol=1e-2)
