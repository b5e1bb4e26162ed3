import cv2
import numpy as np
import pytest

from eval import pictures


def test_png_is_lossless():
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    data = np.frombuffer(pictures.encode_png(image), np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1], image)


def test_a_page_holds_every_strip():
    strips = [np.full((10 + i % 3, 50 + i, 3), (i, 255, 0), np.uint8) for i in range(43)]
    page = pictures.draw_page([f"clip{i}" for i in range(43)], strips)
    places = {i: np.argwhere((page == (i, 255, 0)).all(axis=-1)) for i in (1, 42)}
    for i, found in places.items():
        size = found.max(axis=0) - found.min(axis=0) + 1
        assert tuple(size) == strips[i].shape[:2]
    assert places[42][:, 1].min() > places[1][:, 1].max(), "the last is in the last column"


def test_curves_rise_where_values_rise():
    image = pictures.draw_curves([("title", [np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0, 3.0])])])
    rows, columns = np.nonzero((image == pictures._BOLD).all(axis=-1))
    left, right = rows[columns == columns.min()].mean(), rows[columns > columns.max() - 100].mean()
    assert left > right + 100, "rows count from the top"


def test_the_mean_ends_where_less_than_half_of_the_clips_last():
    image = pictures.draw_curves([("title", [np.ones(100), np.ones(20), np.ones(20)])])
    columns = np.nonzero((image == pictures._BOLD).all(axis=-1))[1]
    assert columns.max() < image.shape[1] / 3


@pytest.mark.parametrize("curves", [[[np.nan, np.nan]], [[5.0]], [[5.0, 5.0, np.nan, 5.0]]])
def test_curves_without_values_or_without_change(curves):
    one, two = pictures.draw_curves([("a", curves)]), pictures.draw_curves([("a", curves), ("b", curves)])
    assert two.shape == (2 * one.shape[0], *one.shape[1:])


def test_ticks_are_round_and_surround():
    for low, high in ((17.3, 24.9), (0.012, 0.034), (5.0, 5.0), (-3.0, 900.0)):
        ticks = pictures._ticks(low, high)
        assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 8
