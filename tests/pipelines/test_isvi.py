import cv2
import jax
import numpy as np
import pytest

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.models import registry
from m3ddm_jax.pipelines import isvi
from m3ddm_jax.pipelines.baselines import Blur
from m3ddm_jax.pipelines.isvi import Isvi
from m3ddm_jax.pipelines.mosaic import Mosaic
from m3ddm_jax.video import FrameSource
from m3ddm_jax.weights import save_model


def psnr(frames, truth, where):
    return 10 * np.log10(255**2 / np.mean(np.square(np.float64(frames) - truth)[np.broadcast_to(where, truth.shape)]))


def run(outpainter, frames, canvas, *masks):
    return np.concatenate(list(outpainter(FrameSource.from_array(frames), canvas, None, *masks)))


def carry(frames, canvas):
    """Frames and confidence."""
    frames, confidence = zip(*Isvi().carry(FrameSource.from_array(frames), canvas), strict=True)
    return np.stack(frames), np.stack(confidence)


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
    smooth = Isvi(settings={"key_frames": 0})
    np.testing.assert_allclose(run(smooth, known, canvas), np.float32(run(Blur(), known, canvas)), atol=1)
    np.testing.assert_array_equal(run(smooth, known[:1], canvas), run(Blur(), known[:1], canvas))
    _, confidence = carry(known, canvas)
    np.testing.assert_array_equal(confidence, np.broadcast_to(1 - canvas.mask(), confidence.shape))


def test_what_no_frame_has_seen_is_completed_once():
    """Detail goes on beyond the border, and a camera that stands still does not flicker."""
    frames = np.repeat(np.random.default_rng(1).integers(60, 190, (1, 48, 72, 3), np.uint8), 6, axis=0)
    known, canvas = cut(frames, 12)
    completed, smooth = (run(Isvi(settings={"key_frames": count}), known, canvas) for count in (8, 0))
    detail, none, true = (np.abs(np.diff(x[:, :, :10].astype(int), axis=1)).mean() for x in (completed, smooth, frames))
    assert detail > 0.5 * true > 2 * none
    # Differences end at the last row and column: there other frames follow the key frame less exactly.
    assert np.abs(np.diff(completed[:, 12:-12].astype(int), axis=0)).mean() < 0.5


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
    frame, confidence = next(Isvi(settings={"lines": 48}).carry(FrameSource.from_array(known), canvas))
    assert frame.shape == (96, 192, 3) and confidence.shape == (96, 192, 1)
    np.testing.assert_array_equal(frame[canvas.box], known[0])
    assert (confidence[canvas.box] == 1).all() and confidence.min() >= 0 and confidence.max() <= 1


def test_what_breaks_while_frames_are_made_ahead_is_told(monkeypatch):
    def breaks(clip, *_):
        yield np.zeros((2, 48, 96, 3), np.float32), np.zeros((2, 48, 96, 1), np.float32)
        raise ValueError("the third frame cannot be decoded")

    monkeypatch.setattr(isvi, "propagate", breaks)
    made = Isvi().carry(FrameSource.from_array(pan(4, 4)[:, :, 12:-12]), Canvas.from_pad(48, 72, 12, 0, 12, 0))
    assert len([next(made), next(made)]) == 2
    with pytest.raises(ValueError, match="third frame"):
        next(made)


def test_a_still_camera_is_told_once(caplog):
    known, canvas = cut(np.repeat(pan(1, 4), 8, axis=0), 12)
    run(Isvi(), known, canvas)
    assert len(caplog.messages) == 1 and "no frame shows what another lacks" in caplog.text
    run(Isvi(), *cut(pan(8, 4), 12))
    assert len(caplog.messages) == 1


def test_nothing_is_carried_from_one_shot_to_the_next(monkeypatch):
    monkeypatch.setattr(isvi, "source_cuts", lambda source: [4])
    known, canvas = cut(pan(8, 4), 12)
    _, confidence = carry(known, canvas)
    left, right = confidence[:, 2:-2, :11], confidence[:, 2:-2, -11:-1]
    assert not left[4].any() and (left[3] > 0).any() and not right[3].any() and (right[4] > 0).any()


class Square:
    """Masks of a square of every frame of a canvas."""

    height, width = 48, 96
    rows, columns = slice(20, 28), slice(40, 50)

    def __getitem__(self, frames):
        masks = np.zeros((len(range(8)[frames]), self.height, self.width, 1), np.uint8)
        masks[:, self.rows, self.columns] = 1
        return masks


def test_what_a_mask_hides_is_made_anew():
    """A red square that moves with the picture's frame; the picture passes behind it by more than its width."""
    frames = pan(8, 4)
    known, canvas = cut(frames, 12)
    marked = known.copy()
    marked[:, 20:28, 28:38] = (255, 0, 0)
    outpainted = run(Isvi(), marked, canvas, Square())
    inside = np.zeros(frames.shape[:3], bool)
    inside[:, Square.rows, Square.columns] = True
    outside = ~inside[:, *canvas.box]
    np.testing.assert_array_equal(outpainted[:, *canvas.box][outside], marked[outside])
    assert np.square(outpainted[inside] - np.float32(frames[inside])).mean() < 0.25 * np.var(frames[inside])


def save_networks(folder, *kinds):
    """Slim networks with random weights, as `convert` would make them."""
    slim = {
        "raft": {"width": 8, "small": True},
        "igfc": {"width": 4, "interval": 1},
        "asfn": {"width": 4},
        "deepfill": {"width": 4},
        "lama": {"width": 4, "blocks": 1, "global_channels": 24},
        "migan": {"resolution": 16, "width": 4, "most_channels": 8},
    }
    rng = np.random.default_rng(0)
    for kind in kinds:
        module = registry.build(kind, **slim[kind])
        variables = jax.tree.map(
            lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32), registry.abstract_variables(module)
        )
        save_model(folder / kind, module, variables)
    return folder


def test_networks_of_a_folder_work_together(tmp_path):
    frames = pan(2, 4, height=64, width=80)
    known, canvas = cut(frames, 8)
    outpainter = Isvi(save_networks(tmp_path, "raft", "igfc", "asfn", "deepfill"))
    assert outpainter.models["model"][0] == tmp_path
    outpainted = run(outpainter, known, canvas)
    assert outpainted.shape == frames.shape
    np.testing.assert_array_equal(outpainted[:, *canvas.box], known)
    assert (outpainted != run(Isvi(), known, canvas))[:, :, :8].any()
    with pytest.raises(ValueError, match="96x96: RAFT's correlation pyramid takes sides of more than 120 pixels"):
        run(outpainter, known[:, :48, :48], Canvas.from_pad(48, 48, 8, 0, 8, 0))


@pytest.mark.parametrize("kind", ["deepfill", pytest.param("migan", marks=pytest.mark.slow)])
def test_a_network_that_is_missing_is_replaced(kind, tmp_path):
    """A completion network alone: what no frame saw is its picture, not the blur."""
    known, canvas = cut(np.repeat(pan(1, 4), 8, axis=0), 12)
    outpainted = run(Isvi(save_networks(tmp_path, kind)), known, canvas)
    np.testing.assert_array_equal(outpainted[:, *canvas.box], known)
    beyond = canvas.mask()[..., 0] > 0
    assert (outpainted != run(Isvi(), known, canvas))[:, beyond].mean() > 0.5
    # One frame is made up, the others follow it.
    assert np.abs(np.diff(outpainted.astype(int), axis=0))[:, beyond].mean() < 3


def test_the_first_completion_network_is_used_and_the_rest_named(tmp_path, caplog):
    """A folder of several, and one that holds the network itself."""
    known, canvas = cut(np.repeat(pan(1, 4), 2, axis=0), 12)
    folder = save_networks(tmp_path, "migan", "lama")
    outpainted = run(Isvi(folder), known, canvas)
    assert f"migan in {folder} not used" in caplog.text
    np.testing.assert_array_equal(outpainted, run(Isvi(folder / "lama"), known, canvas))


def test_wrong_options_are_named(tmp_path):
    with pytest.raises(ValueError, match="has none of raft/, igfc/, asfn/, lama/, migan/, deepfill/: `python -m"):
        Isvi(tmp_path)
    with pytest.raises(ValueError, match="no setting line:"):
        Isvi(settings={"line": 240})
    save_networks(tmp_path, "asfn")
    (tmp_path / "asfn").rename(tmp_path / "igfc")
    with pytest.raises(ValueError, match="holds a model of kind asfn: one of kind igfc is needed"):
        Isvi(tmp_path)


@pytest.mark.parametrize("name", [pytest.param("pp_1", marks=pytest.mark.slow), "ct_paragliding-launch"])
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
