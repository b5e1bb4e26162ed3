import numpy as np
import pytest

from m3ddm_jax.flow.least_squares import Edges, differences
from m3ddm_jax.flow.poisson import blend, gradient_mask
from m3ddm_jax.flow.propagation import propagate_values

HEIGHT, WIDTH = 24, 40


def pan(num_frames, step, detail=1.0):
    """A camera that moves right over smooth waves: frames [1, T, H, W, 3], and both flows between them.

    detail: factor of the waves' frequencies.
    """
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frames = []
    for t in range(num_frames):
        shifted, row = detail * (x + t * step), detail * y
        waves = [np.sin(shifted / 9) * np.cos(row / 7), np.cos(shifted / 6 + row / 11), np.sin((shifted + row) / 8)]
        frames.append(np.stack(waves, -1) * 0.4 + 0.5)
    flow = np.zeros((1, num_frames - 1, HEIGHT, WIDTH, 2), np.float32)
    flow[..., 0] = -step
    return np.float32(frames)[None], flow, -flow


def sides(margin, num_frames):
    mask = np.zeros((1, num_frames, HEIGHT, WIDTH, 1), np.uint8)
    mask[..., :margin, :] = mask[..., -margin:, :] = 1
    return mask


def psnr(a, b, where):
    return -10 * np.log10(np.mean(np.square(a - b)[np.broadcast_to(where, a.shape)]))


@pytest.mark.parametrize("step", [3.0, 2.6])
def test_pixels_of_a_pan_are_found(step):
    """Exact flow: whole steps copy, others interpolate."""
    frames, forward, backward = pan(4, step)
    mask = sides(6, 4)
    hidden = np.where(mask > 0, 0, frames)
    done = propagate_values(hidden, mask, forward, backward)
    reached = (mask > 0) & ~np.asarray(done.unknown)
    values = np.asarray(done.values)
    assert reached.sum() > 0.5 * (mask > 0).sum()
    np.testing.assert_array_equal(values[mask[..., 0] == 0], frames[mask[..., 0] == 0])
    assert not values[np.asarray(done.unknown)[..., 0]].any()
    if step == 3.0:
        np.testing.assert_allclose(values[reached[..., 0]], frames[reached[..., 0]], atol=1e-5)
    confidence = np.asarray(done.confidence)
    assert (confidence[mask == 0] == 1).all() and (confidence[done.unknown] == 0).all()
    assert confidence.min() >= 0 and confidence.max() <= 1


@pytest.mark.parametrize("step", [3.0, 2.6])
def test_gradients_of_a_pan_rebuild_the_frames(step):
    """40 dB where gradients were carried to, blended; interpolation of smooth waves costs far less."""
    num_frames = 8
    frames, forward, backward = pan(num_frames, step)
    mask = sides(9, num_frames)
    hidden = np.where(mask > 0, 0, frames)
    missing = np.asarray(gradient_mask(mask))
    gradients = np.concatenate(differences(frames[0]), -1)[None]
    continued = np.pad(gradients[..., 9:-10, :], ((0, 0), (0, 0), (0, 0), (9, 10), (0, 0)), "edge")
    done = propagate_values(continued, missing, forward, backward)
    right, down = np.split(np.asarray(done.values)[0], 2, -1)
    blended = np.asarray(blend(hidden[0], mask[0], Edges(right, down), done.unknown[0]))
    reached = (missing & ~np.asarray(done.unknown))[0] & (mask[0] > 0)
    # The middle frames have seen both sides.
    assert psnr(blended[3:5], frames[0, 3:5], reached[3:5]) > 40


@pytest.mark.parametrize("step", [3.0, 2.6])
def test_cubic_interpolation_is_more_accurate(step):
    frames, forward, backward = pan(4, step, detail=4)
    mask = sides(6, 4)
    continued = np.pad(frames[..., 6:-6, :], [(0, 0)] * 3 + [(6, 6), (0, 0)], "edge")
    linear, cubic = (propagate_values(continued, mask, forward, backward, cubic=cubic) for cubic in (False, True))
    np.testing.assert_array_equal(linear.unknown, cubic.unknown)
    reached = ((mask > 0) & ~np.asarray(linear.unknown))[..., 0]
    errors = [np.abs(np.asarray(done.values) - frames)[reached].mean() for done in (linear, cubic)]
    assert max(errors) < 1e-5 if step == 3.0 else errors[1] < 0.7 * errors[0]


def test_two_frames_give_each_other_what_they_saw():
    frames, forward, backward = pan(2, 4.0)
    mask = sides(6, 2)
    done = propagate_values(np.where(mask > 0, 0, frames), mask, forward, backward)
    reached = (mask > 0) & ~np.asarray(done.unknown)
    assert reached[0, 0, :, -6:].any() and not reached[0, 0, :, :6].any()
    assert reached[0, 1, :, :6].any() and not reached[0, 1, :, -6:].any()
    np.testing.assert_allclose(np.asarray(done.values)[reached[..., 0]], frames[reached[..., 0]], atol=1e-5)


def test_masks_that_hide_nothing_and_everything():
    frames, forward, backward = pan(4, 2.0)
    done = propagate_values(frames, np.zeros((1, 4, HEIGHT, WIDTH, 1)), forward, backward)
    np.testing.assert_array_equal(done.values, frames)
    assert not done.unknown.any() and (done.confidence == 1).all()
    done = propagate_values(frames, np.ones((1, 4, HEIGHT, WIDTH, 1)), forward, backward)
    np.testing.assert_array_equal(done.values, frames)
    assert done.unknown.all() and not done.confidence.any()


@pytest.mark.parametrize("worst", [np.nan, np.inf, 1e30])
def test_flow_that_is_no_number_leads_nowhere(worst):
    frames, forward, backward = pan(4, 3.0)
    mask = sides(6, 4)
    forward[:, 1, :12] = worst
    backward[:, 2, 12:] = worst
    done = propagate_values(np.where(mask > 0, 0, frames), mask, forward, backward)
    assert np.isfinite(done.values).all() and np.isfinite(done.confidence).all()
    reached = (mask > 0) & ~np.asarray(done.unknown)
    assert reached.any()
    lost = propagate_values(
        np.where(mask > 0, 0, frames), mask, np.full_like(forward, worst), np.full_like(forward, worst)
    )
    np.testing.assert_array_equal(lost.unknown, mask > 0)


def test_flows_that_contradict_each_other_are_not_followed():
    frames, forward, backward = pan(4, 3.0)
    mask = sides(6, 4)
    trusting = propagate_values(frames, mask, forward, backward + 1)
    assert 0 < np.asarray(trusting.confidence)[np.asarray(trusting.confidence) < 1].max() < np.exp(-1)
    np.testing.assert_array_equal(propagate_values(frames, mask, forward, backward + 1, 0.5).unknown, mask > 0)


def test_the_direction_that_agrees_with_itself_counts():
    """Both directions reach the middle of the second frame; the way back from the third strays by half a pixel."""
    frames = np.zeros((1, 4, HEIGHT, WIDTH, 3), np.float32)
    frames[:, 0], frames[:, 2] = 1, 5
    mask = np.zeros((*frames.shape[:-1], 1), np.uint8)
    mask[:, 1, 8:16, 10:30] = 1
    forward, backward = np.zeros((2, 1, 3, HEIGHT, WIDTH, 2), np.float32)
    middle = (0, 1, slice(8, 16), slice(10, 30))
    np.testing.assert_allclose(np.asarray(propagate_values(frames, mask, forward, backward).values)[middle], 3)
    backward[:, 1, ..., 0] = 0.5
    done = propagate_values(frames, mask, forward, backward)
    np.testing.assert_allclose(np.asarray(done.values)[middle], 1 + 4 / (1 + np.exp(5)), rtol=1e-4)


def test_clips_of_a_batch_are_apart():
    frames, forward, backward = pan(4, 3.0)
    both = [np.concatenate([x, y]) for x, y in ((frames, 1 - frames), (forward, 0 * forward), (backward, 0 * backward))]
    mask = sides(6, 4)
    done = propagate_values(both[0], np.concatenate([mask, mask]), *both[1:])
    alone = propagate_values(frames, mask, forward, backward)
    np.testing.assert_array_equal(np.asarray(done.values)[:1], alone.values)
    assert done.unknown[1].sum() == (mask > 0).sum()


def test_places_that_are_known_in_all_frames_may_be_left_out():
    frames, forward, backward = pan(5, 2.6)
    mask = sides(6, 5)
    places = np.flatnonzero(mask[0].any(0))
    hidden = np.where(mask > 0, 0, frames)
    arguments = (hidden, mask, forward + 0.01, backward, 2.0, 1 - 0.5 * mask)
    some = propagate_values(*arguments, np.pad(places, (0, 7), "edge"))
    for ours, all_places in zip(some, propagate_values(*arguments), strict=True):
        np.testing.assert_array_equal(ours, all_places)


def test_wrong_shapes_are_named():
    frames, forward, backward = pan(3, 2.0)
    mask = sides(3, 3)
    with pytest.raises(ValueError, match="two frames or more"):
        propagate_values(frames[:, :1], mask[:, :1], forward[:, :0], backward[:, :0])
    with pytest.raises(ValueError, match="3 frames with flows"):
        propagate_values(frames, mask, forward[:, :1], backward)


@pytest.mark.parametrize(("suffix", "max_error"), [("", np.inf), ("_thr1", 0.12)])
def test_golden_propagation(goldens, suffix, max_error):
    inputs, outputs = (np.load(goldens / "isvi" / "pipeline_object" / f"{name}.npz") for name in ("inputs", "outputs"))

    def clip(file, *names):
        return np.concatenate([np.moveaxis(file[name], -1, 0) for name in names], -1)[None]

    flows = clip(inputs, "flowF"), clip(inputs, "flowB")
    done = propagate_values(
        clip(inputs, "gx", "gy"), np.moveaxis(inputs["md"], -1, 0)[None, ..., None], *flows, max_error
    )
    np.testing.assert_array_equal(done.unknown[0, ..., 0], np.moveaxis(outputs[f"mask_gradient{suffix}"], -1, 0))
    # float32 positions up to 40, gradients of up to 0.2.
    np.testing.assert_allclose(done.values, clip(outputs, f"gx_filled{suffix}", f"gy_filled{suffix}"), atol=2e-6)
