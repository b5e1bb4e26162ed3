import numpy as np

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines.optical_flow import CameraMotion, Dis, ShotFlows
from m3ddm_jax.pipelines.work_canvas import WorkCanvas
from m3ddm_jax.pipelines.work_clip import WorkClip
from m3ddm_jax.video import FrameSource


class Recording:
    """A completer that looks at flows two apart, fills with zero, and notes what it is given."""

    offsets = (-2, 0, 2)

    def __init__(self):
        self.filled, self.refined = 0, []

    def fill(self, flow):
        self.filled += 1
        return np.nan_to_num(flow)

    def refine(self, filled, unknown, shifts):
        assert filled.shape == (3, 20, 40, 2) and unknown.shape == (3, 20, 40, 1) and unknown.dtype == bool
        self.refined.append(([int(flow[10, 20, 0]) for flow in filled], list(shifts)))
        return filled[1]


def numbered(before, after):
    """The flow from frame i to i + 1 is i, and -i back: a frame's shade is its number."""
    first, second = int(before[0, 0, 0]), int(after[0, 0, 0])
    return np.full((*before.shape[:2], 2), first if second > first else -second, np.float32)


class Hole:
    """A mask of one pixel, on all frames."""

    height, width = 20, 40

    def __getitem__(self, frames):
        masks = np.zeros((frames.stop - frames.start, self.height, self.width, 1), np.uint8)
        masks[:, 10, 29] = 1
        return masks


def clip_of(num_frames, masks=None):
    frames = np.repeat(np.arange(num_frames, dtype=np.uint8), 20 * 30 * 3).reshape(-1, 20, 30, 3)
    canvas = Canvas.from_pad(20, 30, 5, 0, 5, 0)
    return WorkClip(FrameSource.from_array(frames), WorkCanvas(canvas, 20, multiple=2), masks, keep=16)


def test_flows_of_other_times_are_picked_along_the_flow_and_mirrored_at_both_ends():
    completer = Recording()
    flows = ShotFlows(clip_of(8), range(1, 7), numbered, completer)
    forward, backward = flows.between(range(1, 7))
    assert forward.shape == backward.shape == (5, 20, 40, 2)
    assert [int(x) for x in forward[:, 10, 20, 0]] == [1, 2, 3, 4, 5]
    assert [int(x) for x in backward[:, 10, 20, 0]] == [-1, -2, -3, -4, -5]
    # Flows 1 to 5; before and after them they are mirrored. shift: how much later the middle one is.
    assert completer.refined[0::2] == [
        ([3, 1, 3], [-2, 0, -2]),
        ([2, 2, 4], [0, 0, -2]),
        ([1, 3, 5], [2, 0, -2]),
        ([2, 4, 4], [2, 0, 0]),
        ([3, 5, 3], [2, 0, 2]),
    ]
    # Back in time, the next flow is that of the frame before.
    assert completer.refined[5] == ([-5, -3, -1], [2, 0, -2])


def test_flows_are_found_once_and_forgotten():
    completer = Recording()
    flows = ShotFlows(clip_of(8), range(8), numbered, completer)
    flows.between(range(0, 5))
    flows.between(range(2, 5))
    assert completer.filled == 2 * 6 and len(completer.refined) == 2 * 4
    flows.forget(4)
    flows.between(range(4, 8))
    assert completer.filled == 2 * 7 and len(completer.refined) == 2 * 7


def test_flow_is_not_trusted_under_a_mask_and_around_it():
    unknown = {}

    class Noting(Recording):
        def refine(self, filled, unknown_, shifts):
            unknown[len(unknown)] = unknown_[1, ..., 0]
            return filled[1]

    ShotFlows(clip_of(2, Hole()), range(2), numbered, Noting()).between(range(2))
    expected = np.ones((20, 40), bool)
    expected[2:18, 7:33] = False  # two pixels at the edge of so low a frame
    rows, columns = np.ogrid[:20, :40]
    expected |= np.abs(rows - 10) + np.abs(columns - 29) <= 8
    np.testing.assert_array_equal(unknown[0], expected)


def test_the_camera_goes_on_beyond_what_is_known():
    """A zoom and a turn with something in the middle that moves otherwise; that stays, and fades around it."""
    rows, columns = np.mgrid[:40, :64].astype(np.float32)
    camera = np.stack([0.02 * columns - 0.01 * rows + 1, 0.01 * columns + 0.02 * rows - 2], -1)
    flow = camera.copy()
    flow[18:22, 30:34] += 3
    flow[:, :16] = flow[:, 56:] = np.nan
    flow[10:14, 40:44, 0] = np.nan
    filled = CameraMotion().fill(flow)
    known = np.isfinite(flow).all(-1)
    np.testing.assert_array_equal(filled[known], flow[known])
    np.testing.assert_allclose(filled[~known], camera[~known], atol=0.3)


def test_where_no_flow_is_known_none_is_told():
    assert np.isnan(CameraMotion().fill(np.full((20, 30, 2), np.nan, np.float32))).all()
    assert np.isnan(Dis()(*np.zeros((2, 15, 40, 3), np.uint8))).all()
    assert np.isfinite(Dis()(*np.zeros((2, 16, 40, 3), np.uint8))).all()
