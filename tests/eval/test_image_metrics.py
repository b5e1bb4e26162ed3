import runpy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage import metrics as skimage_metrics

from eval import image_metrics


def clip(seed, frames=3, height=24, width=28, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (frames, height, width, 3), dtype=np.uint8)


def everything(frames):
    return np.ones((*frames.shape[1:3], 1), np.uint8)


def left_strip(frames, width):
    mask = np.zeros((*frames.shape[1:3], 1), np.uint8)
    mask[:, :width] = 1
    return mask


def summary(truth, output, mask):
    return image_metrics.summarize(image_metrics.score_frames(truth, output, mask))


@pytest.mark.parametrize("offset", [1, 7, 100])
def test_psnr_of_a_constant_offset(offset):
    truth = clip(0, high=150)
    scores = summary(truth, truth + np.uint8(offset), everything(truth))
    for area in ("whole", "region"):
        for name in ("psnr_video", "psnr_frame"):
            assert scores[area][name] == pytest.approx(-20 * np.log10(offset / 255), abs=1e-9)


def test_identical_frames_get_the_cap_and_ssim_one():
    truth = clip(1)
    scores = summary(truth, truth.copy(), everything(truth))
    assert scores["whole"]["psnr_video"] == scores["region"]["psnr_frame"] == 100.0
    assert scores["whole"]["ssim"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("ratio", [0.25, 0.66])
def test_decibels_gained_by_known_pixels_that_are_right(ratio):
    """Whole-frame error is (generated fraction) x (error of the region): 6.0 dB at 0.25 and 1.8 dB at 0.66."""
    truth, noise = clip(2, width=100), clip(3, width=100)
    mask = left_strip(truth, int(100 * ratio))
    output = np.where(mask, noise, truth)
    scores = summary(truth, output, mask)
    gain = scores["whole"]["psnr_video"] - scores["region"]["psnr_video"]
    assert gain == pytest.approx(-10 * np.log10(ratio), abs=1e-9)


# What scikit-image calls the variants of SSIM.
SCIKIT_IMAGE = {
    "gaussian": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
    "uniform7": {},
    "uniform65": {"win_size": 65},
}


@pytest.mark.parametrize("variant", SCIKIT_IMAGE)
def test_ssim_agrees_with_scikit_image(variant):
    """On pictures of little contrast, where population and sample covariances are told apart."""
    truth = clip(4, height=70, width=72, low=100, high=120)
    output = truth + clip(5, height=70, width=72, high=10)
    mask = left_strip(truth, 36)
    options = {"channel_axis": -1, "data_range": 255, "full": True, **SCIKIT_IMAGE[variant]}
    pairs = zip(truth, output, strict=True)
    whole, maps = zip(*(skimage_metrics.structural_similarity(a, b, **options) for a, b in pairs), strict=True)
    scores = image_metrics.score_frames(truth, output, mask, ssim=variant)
    # float32 against float64: 1e-6 measured; the other covariances differ by 2e-4, 6e-4 and 6.6e-6.
    np.testing.assert_allclose(scores.whole_ssim, whole, atol=3e-6)
    border = image_metrics.SSIM_WINDOWS[variant] // 2
    expected = [similarity[border:-border, border:36].mean() for similarity in maps]
    np.testing.assert_allclose(scores.region_ssim, expected, atol=1e-5)


def reference_map(a, b):
    """SSIM by direct filtering in float64, [H-10, W-10], mean over channels."""
    ramp = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(ramp, ramp)[..., None] / ramp.sum() ** 2

    def blur(x):
        return ndimage.correlate(x, window)[5:-5, 5:-5]

    a, b = a / 255.0, b / 255.0
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    numerator = (2 * mean_a * mean_b + 0.01**2) * (2 * cov + 0.03**2)
    return (numerator / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2))).mean(-1)


def test_ssim_of_a_region_is_the_mean_of_the_map_there():
    truth, output = clip(6), clip(7, low=50, high=200)
    mask = np.zeros((24, 28, 1), np.uint8)
    mask[3:12, 10:26] = 1
    expected = [reference_map(a, b)[mask[5:-5, 5:-5, 0] == 1].mean() for a, b in zip(truth, output, strict=True)]
    np.testing.assert_allclose(image_metrics.score_frames(truth, output, mask).region_ssim, expected, atol=1e-5)


def test_one_colour_has_the_closed_form_of_ssim():
    truth, output = np.full((1, 16, 16, 3), 51, np.uint8), np.full((1, 16, 16, 3), 102, np.uint8)
    expected = (2 * 0.2 * 0.4 + 0.01**2) / (0.2**2 + 0.4**2 + 0.01**2)
    assert summary(truth, output, everything(truth))["whole"]["ssim"] == pytest.approx(expected, abs=2e-4)


def test_an_empty_region_has_no_score():
    truth = clip(8)
    scores = summary(truth, clip(9), left_strip(truth, 0))
    assert all(np.isnan(value) for value in scores["region"].values())
    assert all(np.isfinite(value) for value in scores["whole"].values())


@pytest.mark.parametrize(("variant", "height"), [("gaussian", 10), ("uniform7", 6), ("uniform65", 64)])
def test_frames_smaller_than_the_window_have_psnr_alone(variant, height):
    truth, output = clip(10, height=height, width=80), clip(11, height=height, width=80)
    scores = image_metrics.summarize(image_metrics.score_frames(truth, output, everything(truth), ssim=variant))
    assert np.isnan(scores["whole"]["ssim"]) and np.isfinite(scores["whole"]["psnr_video"])
    with pytest.raises(ValueError, match=f"{variant} needs {height + 1} pixels or more a side, frames are 80x{height}"):
        image_metrics.ssim_map(truth, output, variant)


def test_a_region_without_a_whole_window_has_psnr_alone():
    truth = clip(18, height=70, width=72)
    scores = image_metrics.score_frames(truth, clip(19, height=70, width=72), left_strip(truth, 32), ssim="uniform65")
    assert np.all(np.isnan(scores.region_ssim)) and np.all(np.isfinite(scores.region_mse))


def test_one_frame():
    truth = clip(12, frames=1)
    scores = summary(truth, clip(13, frames=1), everything(truth))
    assert scores["whole"]["psnr_video"] == pytest.approx(scores["whole"]["psnr_frame"], abs=1e-12)


def test_a_mask_may_change_from_frame_to_frame():
    truth, output = clip(14), clip(15)
    masks = np.zeros((3, 24, 28, 1), np.uint8)
    masks[0], masks[1, :12] = 1, 1
    scores = image_metrics.score_frames(truth, output, masks)
    error = ((truth / 255.0 - output / 255.0) ** 2).mean(-1)
    np.testing.assert_allclose(scores.region_mse, [error[0].mean(), error[1, :12].mean(), np.nan], rtol=1e-12)
    pooled = np.concatenate([error[0].ravel(), error[1, :12].ravel()]).mean()
    assert image_metrics.summarize(scores)["region"]["psnr_video"] == pytest.approx(-10 * np.log10(pooled), abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_psnr_of_the_clip_is_never_above_the_mean_over_frames(seed, frames):
    truth = clip(seed, frames, 6, 6)
    output = np.clip(truth + np.random.default_rng(seed).normal(0, 30, (frames, 1, 1, 1)), 0, 255).astype(np.uint8)
    scores = summary(truth, output, everything(truth))["whole"]
    assert scores["psnr_video"] <= scores["psnr_frame"] + 1e-9


def test_chunks_give_what_the_whole_gives():
    truth, output = clip(16, frames=5), clip(17, frames=5)
    mask = left_strip(truth, 9)
    parts = [image_metrics.score_frames(truth[i : i + 2], output[i : i + 2], mask) for i in (0, 2, 4)]
    joined = image_metrics.summarize(image_metrics.FrameScores.concatenate(parts))
    for area, values in summary(truth, output, mask).items():
        assert joined[area] == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize(
    ("truth", "output", "mask", "message"),
    [
        (clip(0), clip(0)[:2], everything(clip(0)), "differ in shape"),
        (clip(0), clip(0) / 255.0, everything(clip(0)), "output must be uint8"),
        (clip(0), clip(0), np.ones((24, 24, 1)), "mask .* does not fit"),
        (
            np.where(np.arange(3)[:, None, None, None] == 1, np.nan, clip(0)),
            clip(0),
            everything(clip(0)),
            "frame 1 holds",
        ),
    ],
)
def test_refuses_what_does_not_fit(truth, output, mask, message):
    with pytest.raises(ValueError, match=message):
        image_metrics.score_frames(truth, output, mask)


def test_refuses_another_ssim():
    with pytest.raises(ValueError, match="'uniform' is unknown: one of gaussian, uniform7, uniform65 is accepted"):
        image_metrics.score_frames(clip(0), clip(0), everything(clip(0)), ssim="uniform")


@pytest.mark.parametrize("name", ["4x64x64", "3x97x75", "2x128x160", "2x192x208"])
def test_reference_values(goldens, name):
    """Values by scikit-image, on images that the recipe beside them makes."""
    recipe = runpy.run_path(str(goldens / "metrics" / "recipe.py"))
    truth, output = recipe["image_pair"](f"ssim/{name}", *map(int, name.split("x")))
    expected = np.load(goldens / "metrics" / "ssim_psnr" / "outputs.npz")
    references = {"gaussian": "gaussian_wang", "uniform7": "default_uniform7", "uniform65": "win65_propainter"}
    for variant, reference in references.items():
        scores = image_metrics.score_frames(truth, output, everything(truth), ssim=variant)
        if f"{name}/ssim_skimage_{reference}" not in expected:
            assert np.all(np.isnan(scores.whole_ssim))  # smaller than the window
            continue
        # float32 against float64.
        np.testing.assert_allclose(scores.whole_ssim, expected[f"{name}/ssim_skimage_{reference}"], atol=2e-6)
    np.testing.assert_allclose(image_metrics.psnr(scores.whole_mse), expected[f"{name}/psnr_skimage"], atol=1e-6)
    pooled = image_metrics.summarize(scores)["whole"]["psnr_video"]
    assert pooled == pytest.approx(float(expected[f"{name}/psnr_pooled_mse"]), abs=1e-5)
