import numpy as np
import pytest

from data import shots


def textured(seed, num_frames, speed=1, shape=(32, 32), level=0):
    """A window that slides over blocks of random colours."""
    rng = np.random.default_rng(seed)
    length = shape[1] + num_frames * speed
    blocks = rng.integers(0, 256, (shape[0] // 8 + 1, length // 8 + 2, 3))
    image = np.clip(np.kron(blocks, np.ones((8, 8, 1), int)) + level, 0, 255).astype(np.uint8)
    return np.stack([image[: shape[0], t * speed : t * speed + shape[1]] for t in range(num_frames)])


@pytest.mark.parametrize("bars", [(0, 0, 0, 0), (12, 12, 0, 0), (0, 0, 9, 7), (10, 6, 8, 8), (10, 0, 0, 0)])
def test_black_bars_are_found_with_a_margin(bars):
    top, bottom, left, right = bars
    frames = textured(4, 5, shape=(80, 96), level=30)
    frames[:, :top] = 5
    frames[:, 80 - bottom :] = 5
    frames[:, :, :left] = 5
    frames[:, :, 96 - right :] = 5
    margins = [2 if bar else 0 for bar in bars]
    expected = (top + margins[0], 80 - bottom - margins[1], left + margins[2], 96 - right - margins[3])
    assert shots.find_picture(frames) == expected


def test_dark_scenes_have_no_bars():
    assert shots.find_picture(np.zeros((3, 40, 50, 3), np.uint8)) == (0, 40, 0, 50)
    night = np.zeros((3, 40, 50, 3), np.uint8)
    night[1, :4, :30] = 200  # one frame lights what the others leave black
    night[0, 36:, 20:] = 200
    assert shots.find_picture(night) == (0, 40, 0, 50)


def test_still_and_moving():
    still = np.repeat(textured(5, 1), 20, axis=0)
    noisy = np.clip(still.astype(int) + np.random.default_rng(0).integers(-2, 3, still.shape), 0, 255).astype(np.uint8)
    assert shots.is_still(still) and shots.is_still(noisy) and shots.is_still(still[:1])
    moving = still.copy()
    moving[:, 10:14, 10:14] = np.linspace(0, 255, 20).astype(np.uint8)[:, None, None, None]  # a small thing changes
    assert not shots.is_still(moving)
