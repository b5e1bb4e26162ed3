import cv2
import numpy as np
import pytest

from data.masks import MaskSampler
from data.synthetic.motion import Motion, MotionScene, Plane, draw_scene, make_motion_batches

SETTINGS = {
    "batch_size": 2,
    "num_frames": 5,
    "interval": 3,
    "buckets": ((24, 32),),
    "masks": MaskSampler(),
    "seed": 1,
    "num_threads": 1,
}


def fetched(frame, flow):
    """A frame read where flow ends, and where that is inside of it."""
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float32)
    columns, rows = columns + flow[..., 0], rows + flow[..., 1]
    inside = (rows >= 0) & (rows <= frame.shape[0] - 1) & (columns >= 0) & (columns <= frame.shape[1] - 1)
    return cv2.remap(frame.astype(np.float32), columns, rows, cv2.INTER_LINEAR), inside


def slope(size):
    """A plane whose red grows to the right and whose green grows downwards, so that colours tell places."""
    ramp = np.linspace(0.1, 0.9, size, dtype=np.float32)
    right, down = np.meshgrid(ramp, ramp)
    return np.stack([right, down, np.full_like(right, 0.5), np.ones_like(right)], axis=-1)


def motion(speed, gain=(0, 0, 0, 0), centre=(20, 20)):
    return Motion(np.array(speed, float), np.array(gain, float), centre)


def test_the_next_frame_brought_back_is_the_frame():
    camera = motion((1.5, -0.7, 0.03, 0.02), (0.1, 0.1, 0.002, 0.001))
    scene = MotionScene([Plane(slope(100), -30, -30)], camera, 40, 48)
    for time in (-2.0, 0.0, 1.5):
        flow = scene.flow(time, time + 1)
        brought, inside = fetched(scene.frame(time + 1), flow)
        assert np.linalg.norm(flow, axis=-1).max() > 1 and inside.mean() > 0.8
        # 2 levels a pixel of the plane: rounding to levels, twice, and to 1/32 of a pixel, as OpenCV does.
        assert np.abs(brought - scene.frame(time))[inside].max() < 1.3


def test_flow_is_that_of_what_is_seen():
    """A square that goes its own way over a ground that stands still."""
    square = np.ones((10, 10, 4), np.float32)
    still = motion((0, 0, 0, 0))
    scene = MotionScene([Plane(slope(60), -10, -10), Plane(square, 5, 8, motion((2, 1, 0, 0)))], still, 40, 40)
    flow = scene.flow(0, 1)
    expected = np.zeros_like(flow)
    expected[8:18, 5:15] = (2, 1)
    np.testing.assert_allclose(flow, expected, atol=1e-6)
    assert (scene.frame(1)[9:19, 7:17] == 255).all()
    np.testing.assert_allclose(scene.flow(0, -1), -expected, atol=1e-6)


def test_drawn_scenes_move_and_their_flow_explains_them():
    errors, changes = [], []
    for seed in range(8):
        scene = draw_scene(np.random.default_rng(seed), 2.0, 48, 64)
        first, second, flow = scene.frame(1), scene.frame(2), scene.flow(1, 2)
        brought, inside = fetched(second, flow)
        errors.append(np.abs(brought - first)[inside].mean())
        changes.append(np.abs(second.astype(float) - first)[inside].mean())
        # The ground covers the frame, so that what is beyond is never seen.
        assert first.max(axis=-1).min() > 0 and flow.dtype == np.float32
    # Textures as fine as pixels are blurred by reading between them, and parts are hidden or shown.
    assert sum(errors) < 0.25 * sum(changes)


def test_batches_are_a_function_of_seed_and_place():
    batch = next(iter(make_motion_batches(**SETTINGS)))
    expected = {
        "video": ((2, 5, 24, 32, 3), np.uint8),
        "mask": ((2, 5, 24, 32, 1), np.uint8),
        "flow": ((2, 2, 24, 32, 2), np.float32),
    }
    assert {key: (batch[key].shape, batch[key].dtype) for key in expected} == expected
    assert list(batch["clip_id"]) == ["motion/1/0", "motion/1/1"] and np.isfinite(batch["flow"]).all()
    parts = [next(iter(make_motion_batches(**SETTINGS, process_index=i, process_count=2))) for i in range(2)]
    for key, value in batch.items():
        np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value)
    other = next(iter(make_motion_batches(**SETTINGS | {"seed": 2})))
    assert np.any(other["video"] != batch["video"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_frames": 1}, "1 frames at an interval of 3"),
        ({"interval": 0}, "5 frames at an interval of 0"),
        ({"process_count": 3}, "batch size 2 is not a multiple of the process count 3"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make_motion_batches(**SETTINGS | change)
