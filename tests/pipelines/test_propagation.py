import dataclasses

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines import propagation
from m3ddm_jax.pipelines.optical_flow import CameraMotion
from m3ddm_jax.pipelines.propagation import Components, Limits, plan_propagation_windows, propagate
from m3ddm_jax.pipelines.work_canvas import WorkCanvas
from m3ddm_jax.pipelines.work_clip import WorkClip
from m3ddm_jax.video import FrameSource

HEIGHT, WIDTH, SIDE, STEP = 16, 32, 6, 2
LIMITS = Limits(window=8, max_error=2.0, key_frames=4)


@given(st.integers(0, 30), st.integers(1, 40), st.integers(2, 12))
def test_windows_make_each_frame_once_and_go_on_from_the_one_before(start, length, size):
    windows = list(plan_propagation_windows(range(start, start + length), size))
    assert [i for _, made in windows for i in made] == list(range(start, start + length))
    for number, (frames, made) in enumerate(windows):
        assert made and len(frames) <= size and frames.start <= made.start and made.stop <= frames.stop
        assert frames.start == (made.start - 1 if number else start)
        # So many frames are looked ahead to, or all that there are.
        assert frames.stop == start + length or frames.stop - made.stop == (size - 1) // 2


def pan(num_frames):
    """A camera that moves right over smooth waves, by STEP pixels a frame."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frames = []
    for shifted in (x + t * STEP for t in range(num_frames)):
        waves = [np.sin(shifted / 5) * np.cos(y / 4), np.cos(shifted / 4 + y / 6), np.sin((shifted + y) / 5)]
        frames.append(np.rint(np.stack(waves, -1) * 100 + 128))
    return np.uint8(frames)


def clip_of(frames, masks=None):
    """Frames whose sides are cut away."""
    known = frames[:, :, SIDE:-SIDE]
    canvas = Canvas.from_pad(HEIGHT, WIDTH - 2 * SIDE, SIDE, 0, SIDE, 0)
    return WorkClip(FrameSource.from_array(known), WorkCanvas(canvas, HEIGHT, multiple=2), masks, keep=16)


def exact(before, after):
    """The flow of `pan`, whose direction the frames tell: those of a later frame are shifted to the left."""
    later = np.abs(after[:, :-STEP].astype(int) - before[:, STEP:]).mean()
    earlier = np.abs(after[:, STEP:].astype(int) - before[:, :-STEP]).mean()
    flow = np.zeros((*before.shape[:2], 2), np.float32)
    flow[..., 0] = -STEP if later < earlier else STEP
    return flow


def run(clip, cuts=(), **parts):
    limits = LIMITS if "hallucinate" in parts else dataclasses.replace(LIMITS, key_frames=0)
    parts = Components(**{"estimate": exact, "complete": CameraMotion(), "hallucinate": None, **parts})
    frames, confidence = zip(*propagate(clip, cuts, parts, limits), strict=True)
    return np.concatenate(frames), np.concatenate(confidence)


def test_what_was_seen_long_ago_is_carried_from_window_to_window():
    """Windows of eight: what left the picture shows for three frames, what comes is looked ahead to by three."""
    frames = pan(20)
    filled, confidence = run(clip_of(frames))
    carried = confidence > 0.5
    left, right = (slice(None), slice(None), slice(0, SIDE)), (slice(None), slice(None), slice(-SIDE, None))
    # The last rows and columns have no differences that could be carried.
    assert carried[left][4:, :-2].all() and carried[right][:-4, :-2, :-1].all()
    assert not carried[left][0].any() and not carried[right][-1].any()
    # Three windows hand a pixel on at most; sub-pixel flow of the completed border blurs it.
    assert np.abs(filled - frames)[carried[..., 0]].mean() < 1.5
    np.testing.assert_array_equal(filled[:, :, SIDE:-SIDE], frames[:, :, SIDE:-SIDE])


def test_nothing_crosses_a_cut():
    frames = pan(12)
    frames[6:] = 255 - frames[6:]
    filled, confidence = run(clip_of(frames), cuts=[6])
    first, _ = run(clip_of(frames[:6]))
    second, _ = run(clip_of(frames[6:]))
    np.testing.assert_allclose(filled, np.concatenate([first, second]), atol=1e-3)
    assert not (confidence[5, :, -SIDE:] > 0).any() and not (confidence[6, :, :SIDE] > 0).any()


def lost_flow(before, after):
    return np.full((*before.shape[:2], 2), np.nan, np.float32)


def half_lost_flow(before, after):
    flow = exact(before, after)
    flow[: HEIGHT // 2] = np.inf
    return flow


@pytest.mark.parametrize(("estimate", "carries"), [(lost_flow, False), (half_lost_flow, True)])
def test_flow_that_is_no_number_is_replaced_or_not_followed(estimate, carries):
    filled, confidence = run(clip_of(pan(8)), estimate=estimate)
    assert np.isfinite(filled).all()
    assert (confidence[4, 1 : HEIGHT // 2, :SIDE] > 0.5).all() == carries
    assert (confidence[..., :SIDE, :] > 0).any() == carries


class Holes:
    """Masks that hide a square of every frame but `shown`, which sees it; no `shown` for one that hides nothing."""

    height, width = HEIGHT, WIDTH

    def __init__(self, *shown):
        self.shown = shown

    def __getitem__(self, frames):
        masks = np.zeros((frames.stop - frames.start, HEIGHT, WIDTH, 1), np.uint8)
        for mask, index in zip(masks, range(frames.start, frames.stop), strict=True):
            if self.shown and index not in self.shown:
                mask[5:10, 12:18] = 1
        return masks


def test_holes_inside_of_the_frame_are_filled_from_frames_that_saw_them():
    frames = pan(8)
    hidden = frames.copy()
    hidden[:, 5:10, 12:18][[i for i in range(8) if i not in (0, 7)]] = 0
    filled, confidence = run(
        clip_of(hidden, Holes(0, 7)),
        estimate=lambda a, b: exact(*(x[10:] for x in (a, b)))[:1].repeat(HEIGHT, 0)[:, :1].repeat(a.shape[1], 1),
    )
    hole = np.zeros(confidence.shape, bool)
    hole[1:7, 5:10, 12:18] = True
    assert (confidence[hole] > 0.5).all() and (confidence[~hole][:, None] <= 1).all()
    assert np.abs(filled - frames)[hole[..., 0]].mean() < 3


def test_masks_that_hide_nothing_change_nothing():
    frames = pan(8)
    filled, confidence = run(clip_of(frames, Holes()))
    plain, plain_confidence = run(clip_of(frames))
    np.testing.assert_array_equal(confidence, plain_confidence)
    # Without masks what is known far inside is left out of the blend, which ends at another residual.
    np.testing.assert_allclose(filled, plain, atol=0.05)


def test_rows_and_columns_far_from_what_is_hidden_have_no_part():
    clip = clip_of(pan(4))
    rows, columns = clip.near
    np.testing.assert_array_equal(rows, np.arange(HEIGHT))
    np.testing.assert_array_equal(columns, [*range(SIDE + 1), *range(WIDTH - SIDE - 1, WIDTH)])
    assert [len(lines) for lines in clip_of(pan(4), Holes()).near] == [HEIGHT, WIDTH]


def test_what_no_frame_saw_is_made_up_once_and_followed():
    """A still camera: one frame's border is made up, the others have it too; the next window goes on with it."""
    frames = np.repeat(pan(1), 12, axis=0)
    asked = []

    still = np.zeros((HEIGHT, WIDTH - 2 * SIDE, 2), np.float32)

    def hallucinate(key, unknown, others):
        asked.append(unknown.mean())
        assert not (key.real & unknown[..., 0]).any() and len(others) == 2
        for view in (key, *others):
            np.testing.assert_array_equal(view.flow, np.zeros((HEIGHT, WIDTH, 2)))
            np.testing.assert_array_equal(view.position, [0, 0])
        return np.where(unknown, 200.0, key.frame).astype(np.float32)

    filled, confidence = run(clip_of(frames), estimate=lambda before, after: still, hallucinate=hallucinate)
    assert len(asked) == 1 and asked[0] == pytest.approx(2 * SIDE / WIDTH)
    # Gradients alone are handed on, and blended; beside the last row they are those of the row above.
    np.testing.assert_allclose(filled[:, :-1, 1 : SIDE - 1], 200, atol=5)
    np.testing.assert_array_equal(
        confidence[..., 0], np.broadcast_to(1 - clip_of(frames).frame(0).mask[..., 0], confidence.shape[:3])
    )


def test_frames_tell_where_the_scene_has_moved():
    """A pan: the ends of a window lie apart by the steps between them."""
    seen = []

    def hallucinate(key, unknown, others):
        seen.append((key.position, [view.position for view in others]))
        return np.where(unknown, 100.0, key.frame).astype(np.float32)

    run(clip_of(pan(8)), hallucinate=hallucinate)
    np.testing.assert_allclose(seen[0][1], [[0, 0], [0, -7 * STEP]], atol=0.1)
    assert any(abs(seen[0][0][1] + index * STEP) < 0.1 for index in range(8))


def test_styles_are_fused_where_gradients_were_carried():
    frames = pan(8)
    seen = []

    def fuse(gradients, mask):
        seen.append((gradients.shape, mask.mean()))
        return np.zeros_like(gradients)

    filled, _ = run(clip_of(frames), fuse=fuse)
    assert seen[0][0] == (4, HEIGHT, WIDTH, 3) and seen[0][1] == pytest.approx(2 * SIDE / WIDTH)
    # No gradient in a row is left where something was carried to: the border goes on level.
    assert (
        np.abs(np.diff(filled[4, 4:12, : SIDE - 1], axis=1)).max()
        < 20
        < np.abs(np.diff(frames[4, 4:12, :SIDE].astype(int), axis=1)).max()
    )


@pytest.mark.parametrize(("step", "expected"), [(20, 180), (80, 200)])
def test_colours_that_drift_far_are_held(step, expected):
    """One wrong difference beside the border lowers all beyond it; held colours are far from there what was carried."""
    frames = np.full((4, 24, 48, 3), 200, np.float32)
    hole = np.zeros((4, 24, 48, 1), bool)
    hole[:, :, :36] = True
    values = np.zeros((4, 24, 48, 9), np.float32)
    values[:, :, 35, :3], values[..., 6:] = step, 200
    nothing, near = np.zeros_like(hole), (np.arange(24), np.arange(48))
    blended, _ = propagation._blend(frames, hole, values, nothing, 0.05 * hole, near)
    np.testing.assert_allclose(blended[:, :, 0], expected, atol=1)
    np.testing.assert_array_equal(blended[:, :, 36:], 200)
    drifted, _ = propagation._blend(frames, hole, values[..., :6], nothing, 0.05 * hole, near)
    np.testing.assert_allclose(drifted[:, :, :36], 200 - step, atol=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_what_nothing_holds_is_lost_and_never_black(seed):
    rng = np.random.default_rng(seed)
    frames = np.full((4, 24, 32, 3), 200, np.float32)
    hole = np.zeros((4, 24, 32, 1), bool)
    hole[:, :, :12] = True
    missing = (rng.random(hole.shape) < 0.3) & hole
    level, held = np.zeros((4, 24, 32, 6), np.float32), np.zeros(hole.shape)
    blended, lost = propagation._blend(frames, hole, level, missing, held, (np.arange(24), np.arange(32)))
    assert 0 < lost.mean() < hole.mean()
    np.testing.assert_allclose(blended[~lost[..., 0]], 200, atol=0.1)
