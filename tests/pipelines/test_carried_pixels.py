import numpy as np

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines import carried_pixels
from m3ddm_jax.pipelines.carried_pixels import CarriedPixels
from m3ddm_jax.video import FrameSource

CANVAS = Canvas.from_pad(20, 24, 10, 0, 10, 0)


class Carrying:
    """An `Isvi` that has found a block on the left and a speck on the right, more or less surely."""

    def __init__(self, settings):
        assert settings == {"key_frames": 0}

    def carry(self, source, canvas):
        for index, original in enumerate(source[:]):
            frame = np.full((canvas.height, canvas.width, 3), 7 + index, np.uint8)
            frame[canvas.box] = original
            confidence = np.zeros((canvas.height, canvas.width, 1), np.float32)
            confidence[canvas.box] = 1
            confidence[2:18, :10] = 0.7 if index % 2 else 0.9
            confidence[5:8, 38:41] = 1
            yield frame, confidence


def test_what_is_sure_is_known_and_the_rest_is_not(monkeypatch):
    monkeypatch.setattr(carried_pixels, "Isvi", Carrying)
    source = FrameSource.from_array(np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3), np.uint8))
    carried = CarriedPixels(source, CANVAS)
    frames, masks = carried[(5, 2)]
    assert frames.dtype == masks.dtype == np.uint8 and masks.shape == (2, 20, 44, 1)
    np.testing.assert_array_equal(frames[:, *CANVAS.box], source[[5, 2]])
    assert (frames[0][:, :10] == 12).all() and (frames[1][:, :10] == 9).all()
    np.testing.assert_array_equal(masks[0], CANVAS.mask())
    expected = CANVAS.mask()
    expected[2:18, :10] = 0
    np.testing.assert_array_equal(masks[1], expected)
