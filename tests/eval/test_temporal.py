import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import temporal
from eval.temporal import TemporalScores

HEIGHT, WIDTH, SIDE = 40, 48, 12


def texture(seed=0, height=HEIGHT, width=WIDTH, cell=6):
    """A smooth random picture with steps of some ten levels, away from 0 and 255."""
    coarse = np.random.default_rng(seed).integers(60, 190, (height // cell + 3, width // cell + 3, 3), dtype=np.uint8)
    size = (coarse.shape[1] * cell, coarse.shape[0] * cell)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)[:height, :width]


def moving(frames=5, step=2, **options):
    """A picture seen through a window that moves to the left by so many pixels a frame: its contents move right."""
    picture = texture(width=WIDTH + step * frames, **options)
    return np.stack([picture[:, step * (frames - t) :][:, :WIDTH] for t in range(frames)])


def steady_flow(step):
    """The flow of `moving`, exactly: right by `step`, and left by as much when time runs backwards."""
    frames = moving(step=step)

    def flow(first, second):
        later = any((first == a).all() and (second == b).all() for a, b in zip(frames, frames[1:], strict=False))
        return np.broadcast_to(np.float32([step if later else -step, 0]), (*first.shape[:2], 2))

    return flow


def left_and_right():
    mask = np.ones((HEIGHT, WIDTH, 1), np.uint8)
    mask[:, SIDE:-SIDE] = 0
    return mask


def scores(truth, output, mask=None, chunk=16, **options):
    mask = left_and_right() if mask is None else mask
    clip = TemporalScores(**options)
    for start in range(0, len(truth), chunk):
        part = slice(start, start + chunk)
        clip.update(truth[part], output[part], mask if mask.ndim == 3 else mask[part])
    return clip.result()


def test_the_truth_is_right():
    truth = moving()
    result = scores(truth, truth.copy(), flow=steady_flow(2))
    assert tuple(result) == temporal.SCORES
    assert result == dict(zip(temporal.SCORES, (1.0, 1.0, 1.0, 0.0, 0.0, 0.0), strict=True))


def test_a_frozen_picture_does_not_flicker_and_is_as_sharp():
    truth = moving()
    result = scores(truth, np.repeat(truth[:1], len(truth), axis=0), flow=steady_flow(2))
    assert result["flicker_ratio"] == 0 and result["warping_error"] > 1e-4 and result["warping_error_truth"] == 0
    assert result["sharpness_ratio"] == pytest.approx(1, abs=0.1)


def test_twice_the_change_is_twice_the_flicker():
    still = texture()
    levels = np.array([0, 4, -2, 5], np.int16)[:, None, None, None]
    truth, output = ((still + factor * levels).astype(np.uint8) for factor in (1, 2))
    assert scores(truth, output)["flicker_ratio"] == 2


def test_blur_is_less_sharp_and_noise_sharper():
    truth = moving()
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 4) for frame in truth])
    noisy = truth + np.random.default_rng(0).integers(0, 30, truth.shape, dtype=np.uint8)
    assert scores(truth, blurred)["sharpness_ratio"] < 0.8
    assert scores(truth, noisy)["sharpness_ratio"] > 1.5
    halved = (truth.astype(int) // 2 * 2).astype(np.uint8)
    assert scores(halved, halved // 2)["sharpness_ratio"] == 0.5


def test_a_step_across_the_border_is_a_seam():
    """The truth steps by 5 at every border pixel, a generated region that is 20 darker by 25."""
    mask = left_and_right()
    truth = np.broadcast_to(np.where(mask, 100, 105), (3, HEIGHT, WIDTH, 3)).astype(np.uint8)
    output = np.where(mask, 80, truth).astype(np.uint8)
    assert scores(truth, output)["seam_ratio"] == 5
    assert scores(truth, np.where(mask, 105, truth).astype(np.uint8))["seam_ratio"] == 0


def test_a_seam_is_on_all_sides_of_a_hole():
    """A hole of 4x6 pixels has 20 pairs across its border, a step of 1 each; the output steps by 20 at one of them."""
    mask = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    mask[10:14, 20:26] = 1
    truth = np.broadcast_to(100 + mask, (1, HEIGHT, WIDTH, 3))
    output = truth.copy()
    output[0, 10, 22] = 120
    assert scores(truth, output, mask)["seam_ratio"] == pytest.approx((19 + 20) / 20, rel=1e-12)


@pytest.mark.parametrize("offset", [-20, 3])
def test_colour_shift_is_the_offset(offset):
    truth = moving()
    output = (truth + np.int16(offset)).astype(np.uint8)
    assert scores(truth, output)["colour_shift"] == abs(offset)


def test_colour_shift_is_that_of_the_band_and_sides_do_not_cancel():
    """Left 10 too bright, right 10 too dark, wrong by 50 where the border is far: the shift is 10."""
    truth = moving()
    output = truth.astype(int)
    output[:, :, :4] += 50
    output[:, :, 4:SIDE] += 10
    output[:, :, -SIDE:] -= 10
    output = output.astype(np.uint8)
    assert scores(truth, output)["colour_shift"] == 10
    assert scores(truth, output, band=SIDE)["colour_shift"] == pytest.approx((10 + (8 * 10 + 4 * 50) / 12) / 2)


def test_detail_that_differs_is_no_colour_shift():
    truth = moving()
    output = truth.astype(int)
    output[:, ::2] += 20
    output[:, 1::2] -= 20
    assert scores(truth, output.astype(np.uint8))["colour_shift"] == 0


def test_known_pixels_do_not_count_but_for_the_seam():
    truth, mask = moving(), left_and_right()
    garbage = np.random.default_rng(0).integers(0, 256, truth.shape, dtype=np.uint8)
    generated = scores(truth, np.where(mask, truth, garbage))
    for name in ("flicker_ratio", "sharpness_ratio", "colour_shift"):
        assert generated[name] == (name != "colour_shift")
    assert generated["seam_ratio"] > 2


@pytest.mark.parametrize("wrong", [0, 7])
def test_error_on_known_pixels(wrong):
    truth, mask = moving(), left_and_right()
    output = np.where(mask, 255 - truth, truth)
    output[3, 5, 20, 1] -= wrong
    assert temporal.max_known_error(truth, output, mask) == wrong
    assert np.isnan(temporal.max_known_error(truth, output, np.ones_like(mask)))


def test_warping_error_of_a_change_of_light():
    """Along the true motion, levels alternate by 10: an error of (10 / 255)^2 between any two frames."""
    truth = moving()
    output = truth + np.array([0, 10, 0, 10, 0], np.uint8)[:, None, None, None]
    result = scores(truth, output, flow=steady_flow(2))
    assert result["warping_error"] == pytest.approx((10 / 255) ** 2, rel=1e-12)
    assert result["warping_error_truth"] == 0


def test_warping_samples_between_pixels():
    """Bilinear values of a ramp are exact: moved by (0.25, -0.5) pixels it changes by 4 x 0.25 - 2 x 0.5 levels."""
    rows, columns = np.indices((9, 11))
    ramp = np.repeat((4 * columns + 2 * rows)[..., None], 3, axis=-1).astype(np.uint8)
    flow = np.broadcast_to(np.float32([0.25, -0.75]), (9, 11, 2))
    where = temporal.visible(flow, -flow)
    np.testing.assert_array_equal(where, (rows > 0) & (columns < 10))
    assert temporal.warping_error(ramp, ramp, flow, where) == pytest.approx((0.5 / 255) ** 2, rel=1e-9)


def test_what_leaves_the_frame_or_is_covered_is_not_visible():
    """All move right by 3, and 3 columns leave. On the way back columns 8..11 are off by 0.82 pixels, covered since
    0.67 > 0.01 (9 + 4.75) + 0.5; columns 14 and 15 by 0.75, as a flow may err: 0.56 < 0.01 (9 + 5.06) + 0.5."""
    forward = np.zeros((10, 20, 2), np.float32)
    forward[..., 0] = 3
    backward = -forward
    backward[:, 8:12, 0] += 0.82
    backward[:, 14:16, 0] += 0.75
    expected = np.ones((10, 20), bool)
    expected[:, 17:] = False
    expected[:, 5:9] = False
    np.testing.assert_array_equal(temporal.visible(forward, backward), expected)


def test_boundaries_of_motion_are_not_visible():
    """|grad f|^2 = 0.04 at the step is more than 0.01 x 1 + 0.002; the flows agree with each other up to 0.2."""
    forward = np.zeros((10, 20, 2), np.float32)
    forward[..., 1] = -1
    forward[:, 10:, 1] = -1.2
    expected = np.ones((10, 20), bool)
    expected[:, 9] = False
    expected[0], expected[1, 10:] = False, False
    np.testing.assert_array_equal(temporal.visible(forward, -forward), expected)


def test_estimated_flow():
    """Right to half a pixel; along the estimated motion the truth changes little, frozen frames much."""
    truth = moving(frames=3, step=3)
    inner = temporal.FLOWS["dis"](truth[0], truth[1])[8:-8, 8:-8]
    np.testing.assert_allclose(np.median(inner, axis=(0, 1)), [3, 0], atol=0.5)
    frozen = np.repeat(truth[:1], 3, axis=0)
    result = scores(truth, frozen, flow=temporal.FLOWS["dis"])
    assert 0 < 5 * result["warping_error_truth"] < result["warping_error"]


@pytest.mark.parametrize("size", [(1, 1), (8, 9), (12, 40), (40, 12)])
def test_estimated_flow_of_tiny_frames(size):
    frame = texture(height=size[0], width=size[1])
    flow = temporal.dis_flow(frame, frame)
    assert flow.shape == (*size, 2) and np.abs(flow).max() < 0.1


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 7), st.booleans())
def test_chunks_do_not_change_the_scores(seed, frames, chunk, per_frame):
    rng = np.random.default_rng(seed)
    truth, output = rng.integers(0, 256, (2, frames, 10, 12, 3), dtype=np.uint8)
    mask = rng.integers(0, 2, ((frames,) if per_frame else ()) + (10, 12, 1), dtype=np.uint8)
    options = {"flow": lambda first, second: np.zeros((*first.shape[:2], 2), np.float32), "band": 2}
    whole, parts = scores(truth, output, mask, **options), scores(truth, output, mask, chunk, **options)
    assert parts == pytest.approx(whole, rel=1e-12, nan_ok=True)


def test_a_chunk_may_be_overwritten_when_it_is_done():
    truth = moving()
    output = (255 - truth) // 2
    clip, buffers = TemporalScores(), [np.empty_like(truth[:1]) for _ in range(2)]
    for t in range(len(truth)):
        for buffer, frames in zip(buffers, (truth, output), strict=True):
            buffer[:] = frames[t : t + 1]
        clip.update(*buffers, left_and_right())
    assert clip.result() == pytest.approx(scores(truth, output), nan_ok=True)


def test_masks_may_change_from_frame_to_frame():
    """Flicker is counted where both frames are generated: here the left half, in which the output stands still."""
    truth = moving(frames=2)
    masks = np.zeros((2, HEIGHT, WIDTH, 1), np.uint8)
    masks[0, :, : WIDTH // 2], masks[1] = 1, 1
    output = truth.copy()
    output[1, :, : WIDTH // 2] = output[0, :, : WIDTH // 2]
    assert scores(truth, output, masks)["flicker_ratio"] == 0
    assert scores(truth, output, np.ones_like(masks))["flicker_ratio"] == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(
    ("truth", "mask", "missing"),
    [
        (moving(), np.zeros((HEIGHT, WIDTH, 1), np.uint8), temporal.SCORES),
        (moving(), np.ones((HEIGHT, WIDTH, 1), np.uint8), ("seam_ratio", "colour_shift")),
        (moving(frames=1), left_and_right(), ("flicker_ratio", "warping_error", "warping_error_truth")),
        (np.full((3, HEIGHT, WIDTH, 3), 9, np.uint8), left_and_right(), temporal.SCORES[:3]),
        (moving()[:0], left_and_right(), temporal.SCORES),
    ],
    ids=["nothing generated", "nothing known", "one frame", "one colour", "no frames"],
)
def test_what_does_not_exist_has_no_value(truth, mask, missing):
    zero = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    result = scores(truth, truth.copy(), mask, flow=lambda first, second: zero)
    assert {name for name, value in result.items() if np.isnan(value)} == set(missing)


def test_without_a_flow_there_is_no_warping_error():
    result = scores(moving(), moving())
    assert np.isnan(result["warping_error"]) and np.isnan(result["warping_error_truth"])


def test_refuses_what_does_not_fit():
    truth, mask = moving(), left_and_right()
    clip = TemporalScores()
    clip.update(truth, truth, mask)
    with pytest.raises(ValueError, match=r"frames \[20, 48, 3\] follow frames \[40, 48, 3\]"):
        clip.update(truth[:, :20], truth[:, :20], mask[:20])
    with pytest.raises(ValueError, match="differ in shape"):
        clip.update(truth, truth[:2], mask)
    with pytest.raises(ValueError, match="mask .* does not fit"):
        clip.update(truth, truth, mask[:20])
    with pytest.raises(ValueError, match="output must be uint8"):
        clip.update(truth, np.full(truth.shape, np.nan, np.float32), mask)
    with pytest.raises(ValueError, match="at least 1 pixel wide, found 0"):
        TemporalScores(band=0)
    with pytest.raises(ValueError, match=r"two flows \[H,W,2\] are needed"):
        temporal.visible(np.zeros((4, 5, 2)), np.zeros((5, 4, 2)))
