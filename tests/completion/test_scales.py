import numpy as np

from m3ddm_jax.completion.scales import Source, layering, nearest, reduce_known, reduce_source, stack


def test_means_are_of_known_pixels():
    image = np.arange(4 * 5 * 3, dtype=np.float32).reshape(4, 5, 3)
    known = np.ones((4, 5), bool)
    known[:2, :2], known[3, 4] = [[True, False], [False, False]], False
    known[2:, 2:4] = False
    reduced, reduced_known = reduce_known(image, known)
    assert reduced.shape == (2, 3, 3)
    np.testing.assert_array_equal(reduced[0, 0], image[0, 0])
    np.testing.assert_array_equal(reduced[0, 1], image[:2, 2:4].mean((0, 1)))
    np.testing.assert_array_equal(reduced[1, 2], image[2, 4])
    np.testing.assert_array_equal(reduced_known, [[1, 1, 1], [1, 0, 1]])


def test_reduced_sources_hold_nothing_that_is_not_allowed():
    allowed = np.ones((4, 4), bool)
    allowed[1, 1] = False
    reduced = reduce_source(Source(np.zeros((4, 4, 3), np.float32), allowed, -6, 4))
    np.testing.assert_array_equal(reduced.allowed, [[0, 1], [1, 1]])
    assert (reduced.row, reduced.column) == (-3, 2)


def test_atlas_places_pixels_in_the_canvas():
    first = Source(np.zeros((6, 7, 3), np.float32), np.ones((6, 7), bool))
    second = Source(np.ones((8, 5, 3), np.float32), np.ones((8, 5), bool), 10, -3)
    atlas = stack([first, second])
    assert atlas.atlas.shape == (14, 21) and atlas.usable.sum() == 2 * 3 + 4 * 1
    np.testing.assert_array_equal(atlas.place[6 + 2, 4], [12, 1])
    # A pixel of the canvas lies at its own place plus the corner of a source.
    np.testing.assert_array_equal(atlas.corner[1] + [12, 1], [6 + 2, 4])
    np.testing.assert_array_equal(atlas.source, [0] * 6 + [1] * 8)


def test_layering_is_of_rows_beside_and_of_columns_above():
    known = np.zeros((30, 40), bool)
    known[10:20, 10:30] = True
    rows, columns, _ = nearest(known)
    cost = layering(known, rows, columns, 900.0)
    np.testing.assert_allclose(cost[10:20, :10], np.broadcast_to([1, 0], (10, 10, 2)))
    np.testing.assert_allclose(cost[:10, 10:30], np.broadcast_to([0, 1], (10, 20, 2)))
    np.testing.assert_array_equal(cost[known], 0)
    # In a corner the nearer side decides.
    assert cost[8, 0, 0] > 0.9 > 0.1 > cost[0, 8, 0]
