import cv2
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines.baselines import Blur
from m3ddm_jax.pipelines.isvi import Isvi, plan_windows
from m3ddm_jax.pipelines.mosaic import Mosaic
from m3ddm_jax.video import FrameSource

pytestmark = pytest.mark.usefixtures("quick_compiles")


def psnr(frames, truth, where):
    return 10 * np.log10(255**2 / np.mean(np.square(np.float64(frames) - truth)[np.broadcast_to(where, truth.shape)]))


def run(outpainter, frames, canvas):
    return np.concatenate(list(outpainter(FrameSource.from_array(frames), canvas)))


def carry(frames, canvas):
    """Frames and confidence at the canvas's own size."""
    frames, confidence, _ = zip(*Isvi().carry(FrameSource.from_array(frames), canvas), strict=True)
    return np.concatenate(frames), np.concatenate(confidence)


def cut(frames, side):
    """What is left of frames between two sides that are cut away, and the canvas that has them."""
    left = frames[:, :, side:-side]
    return left, Canvas.from_pad(*left.shape[1:3], side, 0, side, 0)


def pan(num_frames, step, height=48, width=96):
    """A camera that moves right over a textured picture."""
    picture = np.random.default_rng(0).integers(0, 256, (height // 4, (width + num_frames * step) // 4, 3), np.uint8)
    picture = cv2.resize(picture, (width + num_frames * step, height), interpolation=cv2.INTER_CUBIC)
    return np.stack([picture[:, i * step : i * step + width] for i in range(num_frames)])


def test_a_pan_is_filled_with_what_was_seen():
    frames = pan(8, 4)
    known, canvas = cut(frames, 12)
    outpainted = run(Isvi(), known, canvas)
    assert outpainted.dtype == np.uint8 and outpainted.shape == frames.shape
    _, confidence = carry(known, canvas)
    assert (confidence[:, *canvas.box] == 1).all() and confidence.max() <= 1
    carried = (confidence > 0.5) & (canvas.mask() > 0)
    # Of either side a quarter comes into sight before or after, with a step of 4 pixels of 12; DIS is not exact.
    assert carried.mean() > 0.5 * canvas.mask().mean()
    assert psnr(outpainted, frames, carried) > psnr(run(Blur(), known, canvas), frames, carried) + 6


def test_what_no_frame_has_seen_is_continued():
    """A camera that stands still shows nothing else, and neither does one frame."""
    frames = np.repeat(pan(1, 4), 8, axis=0)
    known, canvas = cut(frames, 12)
    np.testing.assert_allclose(run(Isvi(), known, canvas), np.float32(run(Blur(), known, canvas)), atol=1)
    np.testing.assert_array_equal(run(Isvi(), known[:1], canvas), run(Blur(), known[:1], canvas))
    _, confidence = carry(known, canvas)
    np.testing.assert_array_equal(confidence, np.broadcast_to(1 - canvas.mask(), confidence.shape))


@pytest.mark.parametrize(("size", "pad"), [((5, 7), (1, 1, 2, 0)), ((48, 72), (0, 0, 0, 0))])
def test_frames_too_small_for_flow_and_a_canvas_that_adds_nothing(size, pad):
    frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    canvas = Canvas.from_pad(*size, *pad)
    outpainted = run(Isvi(), frames, canvas)
    assert outpainted.shape == (3, canvas.height, canvas.width, 3)
    if not canvas.mask().any():
        np.testing.assert_array_equal(outpainted, frames)


def test_a_canvas_of_fewer_lines_is_scaled_up():
    known, canvas = cut(pan(8, 4, height=96, width=192), 24)
    isvi = Isvi(settings={"lines": 48})
    assert run(isvi, known, canvas).shape == (8, 96, 192, 3)
    frames, *_ = next(isvi.carry(FrameSource.from_array(known), canvas))
    assert frames.shape == (8, 48, 96, 3)


@given(st.integers(1, 40), st.integers(2, 12))
def test_windows_overlap_and_stand_for_each_frame_once(num_frames, size):
    windows = plan_windows(num_frames, size)
    assert [i for _, taken in windows for i in taken] == list(range(num_frames))
    for window, taken in windows:
        assert len(window) <= size and window.start <= taken.start and taken.stop <= window.stop
        # A frame has a quarter of a window on either side, or the video's end.
        assert taken.start - window.start >= size // 4 - 1 or window.start == 0
        assert window.stop - taken.stop >= size // 4 - 1 or window.stop == num_frames


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="--model=none: found 'somewhere'"):
        Isvi("somewhere")
    with pytest.raises(ValueError, match="no setting line:"):
        Isvi(settings={"line": 240})


@pytest.mark.parametrize("name", ["pp_1", "ct_paragliding-launch"])
def test_real_clips_are_filled_better_than_by_a_mosaic(goldens, name):
    """Their sides cut away; the camera follows somebody, whom a mosaic shows twice."""
    path = goldens.parent / "clips" / f"{name}.mp4"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    source = FrameSource(path)[:32]
    frames = np.stack([cv2.resize(frame, (160, 90), interpolation=cv2.INTER_AREA) for frame in source])
    known, canvas = cut(frames, 26)
    outpainted, confidence = carry(known, canvas)
    everywhere = canvas.mask() > 0
    assert psnr(outpainted, frames, everywhere) > psnr(run(Mosaic(), known, canvas), frames, everywhere) + 0.5
    carried = (confidence > 0.5) & everywhere
    assert psnr(outpainted, frames, carried) > psnr(run(Blur(), known, canvas), frames, carried) + 1
