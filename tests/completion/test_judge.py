import cv2
import numpy as np
import pytest

from m3ddm_jax.completion.judge import texture_distance

EVERYWHERE = np.ones((64, 80, 1), np.uint8)


def texture(seed=0, mean=120.0, contrast=30.0, grain=1.5):
    noise = np.random.default_rng(seed).normal(size=(64, 80, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), grain)
    return np.clip(mean + contrast * smooth / smooth.std(), 0, 255)


def test_equal_images_have_no_distance():
    assert texture_distance(texture(), texture(), EVERYWHERE) == 0


def test_distance_is_symmetric():
    a, b = texture(), texture(1, mean=90)
    assert texture_distance(a, b, EVERYWHERE) == pytest.approx(texture_distance(b, a, EVERYWHERE))


def test_same_texture_elsewhere_is_nearer_than_a_blur():
    """Squared error prefers the blur; the eye does not."""
    truth, other = texture(0), texture(1)
    blurred = cv2.GaussianBlur(truth, (0, 0), 12)
    assert np.square(blurred - truth).mean() < np.square(other - truth).mean()
    assert texture_distance(other, truth, EVERYWHERE) < 0.5 * texture_distance(blurred, truth, EVERYWHERE)


@pytest.mark.parametrize("wrong", [{"mean": 60.0}, {"contrast": 6.0}, {"grain": 4.0}], ids=str)
def test_wrong_colour_contrast_or_grain_is_farther(wrong):
    truth = texture(0)
    right_distance = texture_distance(texture(1), truth, EVERYWHERE)
    assert texture_distance(texture(1, **wrong), truth, EVERYWHERE) > 1.5 * right_distance


def test_only_the_region_counts():
    mask = EVERYWHERE.copy()
    mask[:, :40] = 0
    a, b = texture(), texture()
    b[:, :16] = 0
    assert texture_distance(a, b, mask) < 0.01 < 1 < texture_distance(a, b, EVERYWHERE)
    assert texture_distance(a, b, np.zeros_like(mask)) == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 2)], ids=str)
def test_tiny_images(shape):
    a, b = np.zeros((*shape, 3), np.uint8), np.full((*shape, 3), 255, np.uint8)
    distance = texture_distance(a, b, np.ones((*shape, 1), bool))
    assert distance == pytest.approx(255 / 16)
