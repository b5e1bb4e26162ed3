import dataclasses
import math

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from eval import scores
from eval.clips import Fit
from eval.lpips import FrameLPIPS
from eval.protocol import PRESETS
from eval.regions import Border
from eval.scores import Pair, score_clip
from m3ddm_jax.video import FrameSource

STRICT = PRESETS["strict"]
UNPASTED = dataclasses.replace(STRICT, paste=False)


def pair(truth, chunks, ratio=0.5):
    view = Fit("native").view(FrameSource.from_array(truth))
    return Pair("clip", view, iter(chunks), Border("x", ratio=ratio).masks("clip", view))


@pytest.fixture
def truth(random_frames):
    return random_frames(0, 5, 34, 48)


def brighter(truth):
    """10 levels too bright where generated, garbage where known (columns 12..36 at a ratio of 0.5)."""
    output = truth + np.uint8(10)
    output[:, :, 12:36] = 255
    return output


def test_known_pixels_are_replaced_where_the_preset_says_so(truth):
    output = brighter(truth)
    pasted, _ = score_clip(pair(truth, [output]), STRICT, None, ())
    summary = scores.clip_summary(pasted)
    error = -20 * np.log10(10 / 255)
    assert summary["region"]["psnr_video"] == pytest.approx(error, abs=1e-9)
    assert summary["whole"]["psnr_video"] == pytest.approx(error + 10 * np.log10(2), abs=1e-9)
    assert summary["motion"]["known_error"] == 255 - truth[:, :, 12:36].min(), "of what the method gave"
    raw = scores.clip_summary(score_clip(pair(truth, [output]), UNPASTED, None, ())[0])
    assert raw["region"]["psnr_video"] == summary["region"]["psnr_video"] and raw["whole"]["psnr_video"] < error


def test_chunks_do_not_change_the_scores(truth):
    output = brighter(truth)
    whole, _ = score_clip(pair(truth, [output]), STRICT, None, ())
    parts, _ = score_clip(pair(truth, [output[:1], output[1:4], output[4:]]), STRICT, None, ())
    for name, values in whole.per_frame.items():
        np.testing.assert_allclose(parts.per_frame[name], values, rtol=1e-6, err_msg=name)
    assert parts.motion == pytest.approx(whole.motion)


def test_the_frames_that_are_asked_for_come_back_as_they_were_scored(truth):
    output = brighter(truth)
    _, frames = score_clip(pair(truth, [output[:3], output[3:]]), STRICT, None, (0, 2, 4))
    np.testing.assert_array_equal(frames["truth"], truth[::2])
    np.testing.assert_array_equal(frames["output"][:, :, 12:36], truth[::2, :, 12:36])
    np.testing.assert_array_equal(frames["output"][:, :, :12], output[::2, :, :12])


def test_the_picture_shows_source_output_and_truth(truth):
    picture = score_clip(pair(truth, [brighter(truth)]), STRICT, None, ())[0].picture
    assert picture.shape == (34, 3 * 48 + 2 * 4, 3)
    np.testing.assert_array_equal(picture[:, -48:], truth[2])
    np.testing.assert_array_equal(picture[:, 12:36], truth[2, :, 12:36])
    assert (picture[:, :12] == 128).all() and (picture[:, 36:48] == 128).all()
    np.testing.assert_array_equal(picture[:, 52:64], truth[2, :, :12] + 10)


def test_lpips_of_frames_and_of_the_generated_region(truth, lpips):
    meter = FrameLPIPS(lpips.module, lpips.variables)
    for variant in ("mean", "map"):
        preset = dataclasses.replace(STRICT, lpips=variant)
        summary = scores.clip_summary(score_clip(pair(truth, [brighter(truth)]), preset, meter, ())[0])
        distance = 3 * 10 / 127.5
        assert summary["region"]["lpips"] == pytest.approx(distance, rel=1e-5)
        assert summary["whole"]["lpips"] == pytest.approx(distance / 2, rel=1e-5)


def test_a_view_is_scored_in_its_place(truth):
    preset = dataclasses.replace(UNPASTED, view=24)
    output = brighter(truth)
    found, frames = score_clip(pair(truth, [output]), preset, None, (0,))
    # 34x48 becomes 24x33, cut to 24 columns from the 4th on, of which the known box leaves 4 and 3 or so.
    assert set(found.per_frame["region_pixels"]) <= {24 * 7, 24 * 8}
    assert found.per_frame["region_mse"] == pytest.approx((10 / 255) ** 2, rel=0.3)
    assert frames["output"].shape == (1, 34, 48, 3) and found.size == (34, 48)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (lambda t: [t[:2]], "clip: 2 frames came out for 5"),
        (lambda t: [t, t[:1]], "clip: more frames came out than the 5"),
        (lambda t: [t[:, :, :40]], r"clip, counted from frame 0: .* differ in shape"),
    ],
)
def test_refuses_outputs_that_do_not_fit(truth, chunks, message):
    with pytest.raises(ValueError, match=message):
        score_clip(pair(truth, chunks(truth)), STRICT, None, ())


def test_refuses_frames_with_nan_and_says_which(truth):
    broken = truth.astype(np.float32)
    broken[4, 3, 3] = np.nan
    with pytest.raises(ValueError, match="clip, counted from frame 3: .*frame 1 holds nan"):
        score_clip(pair(truth, [truth[:3], broken[3:]]), STRICT, None, ())


def test_blur_error_is_that_of_scipys_filter(random_frames):
    frames = random_frames(1, 2, 50, 60)
    values = frames.astype(np.float64) / 255
    expected = [np.mean((frame - gaussian_filter(frame, 5)) ** 2) for frame in values]
    np.testing.assert_allclose(scores.blur_error(frames), expected, rtol=1e-4)  # float32 here
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 5) for frame in frames])
    assert (scores.blur_error(blurred) < scores.blur_error(frames) / 5).all()


def test_means_are_over_what_exists():
    nested = [{"a": {"x": 1.0, "y": math.nan}}, {"a": {"x": 3.0, "y": 5.0}}, {"a": {"x": 5.0, "y": math.nan}}]
    assert scores.mean_scores(nested) == {"a": {"x": 3.0, "y": 5.0}}
    assert scores.mean_scores(nested, [1, 1, 2]) == {"a": {"x": 3.5, "y": 5.0}}
    assert math.isnan(scores.mean_scores(nested[:1])["a"]["y"])
    assert scores.deviation(nested)["a"]["x"] == 2.0
