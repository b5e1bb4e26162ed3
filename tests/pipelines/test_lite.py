import functools

import cv2
import jax
import numpy as np
import pytest

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.models import registry
from m3ddm_jax.pipelines import lite
from m3ddm_jax.pipelines.base import OUTPAINTERS
from m3ddm_jax.pipelines.baselines import Blur
from m3ddm_jax.pipelines.isvi import Isvi
from m3ddm_jax.pipelines.lite import Lite
from m3ddm_jax.video import FrameSource
from m3ddm_jax.weights import save_model

CANVAS = Canvas.from_pad(32, 40, 16, 0, 8, 0)


class Carrying:
    """An `Isvi` that says 200 everywhere, sure of it to the left, in doubt to the right, and lost in a corner."""

    models = {}

    def __init__(self, model, settings):
        assert model is None and settings["lines"] == 24

    def carry(self, source, canvas):
        frames = canvas.paste(np.full((len(source), canvas.height, canvas.width, 3), 200, np.uint8), source[:])
        confidence = np.ones((canvas.height, canvas.width, 1), np.float32)
        confidence[:, 56:] = 0.25
        confidence[:8, :16] = 0
        for frame in frames:
            yield frame, confidence


@pytest.fixture
def source():
    return FrameSource.from_array(np.random.default_rng(0).integers(80, 120, (3, 32, 40, 3), np.uint8))


def run(source, **options):
    return np.concatenate(list(Lite(**options)(source, CANVAS)))


def test_the_less_sure_a_pixel_is_the_more_of_the_blur_is_in_it(source, monkeypatch):
    monkeypatch.setattr(lite, "Isvi", Carrying)
    made = run(source, prefer="faithful", settings={"lines": 24, "doubt": 0.8, "made_up": 0.5})
    assert made.shape == (3, 32, 64, 3) and made.dtype == np.uint8
    blurred = np.concatenate(list(Blur()(source, CANVAS))).astype(float)
    # Off the edges, over which shares change smoothly: 0 where it is sure, 0.8 * (1 - 0.25), and 0.5.
    for place, share in (
        (np.s_[:, 12:, :12], 0.0),
        (np.s_[:, :, 60:], 0.6),
        (np.s_[:, :4, :12], 0.5),
    ):
        np.testing.assert_allclose(made[place], 200 - share * (200 - blurred[place]), atol=1.01)
    steps = np.abs(np.diff(made[:, 2:16, 2:12, 0].astype(int), axis=1))
    assert 10 < steps.max() < 40  # of about 50 in all


def test_sharp_keeps_what_was_completed(source, monkeypatch):
    monkeypatch.setattr(lite, "Isvi", Carrying)
    faithful, sharp = (run(source, prefer=prefer, settings={"lines": 24}) for prefer in ("faithful", "sharp"))
    np.testing.assert_array_equal(sharp[:, :4, :12], 200)
    assert (faithful[:, :4, :12] < 195).all()


def test_sharp_alone_completes():
    """A camera that stands still: detail beyond the border, or a blur."""
    frames = np.repeat(np.random.default_rng(0).integers(60, 190, (1, 32, 40, 3), np.uint8), 3, axis=0)
    sharp, faithful = (run(FrameSource.from_array(frames), prefer=prefer) for prefer in ("sharp", "faithful"))
    detail = [np.abs(np.diff(made[:, :, :14].astype(int), axis=1)).mean() for made in (sharp, faithful)]
    assert detail[0] > 3 * detail[1]
    np.testing.assert_array_equal(run(FrameSource.from_array(frames)), sharp)


def test_a_pan_is_filled_better_than_by_a_blur_or_by_what_was_carried_alone():
    picture = np.random.default_rng(0).integers(0, 256, (12, 30, 3), np.uint8)
    picture = cv2.resize(picture, (120, 48), interpolation=cv2.INTER_CUBIC)
    truth = np.stack([picture[:, 3 * i : 3 * i + 96] for i in range(8)])
    known, canvas = FrameSource.from_array(truth[:, :, 20:-20]), Canvas.from_pad(48, 56, 20, 0, 20, 0)

    def error(outpainter):
        made = np.concatenate(list(outpainter(known, canvas)))
        return np.square(canvas.paste(made, known[:]).astype(float) - truth).mean()

    errors = [error(outpainter) for outpainter in (Lite(prefer="faithful"), Isvi(), Blur())]
    assert errors[0] < 0.8 * errors[2] and errors[0] < errors[1]


class Adapting:
    """An `Adapter` that adds 10 levels more to each shot that begins, and takes shots of two frames or more."""

    def __init__(self, make, steps, cache, *, settings):
        assert (steps, cache) == (3, "folder")
        self.shots = []

    def __call__(self, source, shot, canvas):
        self.shots.append(shot)
        if len(shot) < 2:
            return None
        return functools.partial(lambda level, made: np.full_like(made.frame, level), 10 * len(self.shots))


def test_every_shot_is_adapted_to_when_it_begins(source, monkeypatch, caplog):
    monkeypatch.setattr(lite, "Isvi", Carrying)
    monkeypatch.setattr(lite, "source_cuts", lambda source: [2])
    settings = {"lines": 24}
    without = run(source, prefer="faithful", settings=settings).astype(int)
    monkeypatch.setattr(lite, "Adapter", Adapting)
    adapted = run(source, prefer="faithful", settings=settings, adapt=3, cache="folder").astype(int)
    np.testing.assert_array_equal(adapted[:2], without[:2] + 10)
    np.testing.assert_array_equal(adapted[2:], without[2:])  # a frame alone
    assert not caplog.messages
    monkeypatch.setattr(lite, "source_cuts", lambda source: [1, 2])
    run(source, prefer="faithful", settings=settings, adapt=3, cache="folder")
    assert "adaptation skipped: a shot of 8 frames, and a source that has 50% of" in caplog.text


def test_a_still_camera_one_frame_and_one_colour_are_continued():
    for frames in (np.full((1, 32, 40, 3), 7, np.uint8), np.full((5, 32, 40, 3), 130, np.uint8)):
        made = run(FrameSource.from_array(frames))
        np.testing.assert_allclose(made, np.broadcast_to(frames[0, 0, 0], made.shape), atol=1)


def test_settings_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="lines is 0: a whole number above 0"):
        Lite(settings={"lines": 0})
    with pytest.raises(ValueError, match="no setting steps: lines, anchor, doubt, made_up, key_frames, inter"):
        Lite(settings={"steps": 3})
    with pytest.raises(ValueError, match="adapt goes with prefer='faithful', found 'sharp'"):
        Lite(adapt=3, prefer="sharp")
    assert OUTPAINTERS["lite"](adapt=3)._settings.key_frames == 0


@pytest.mark.parametrize("texture", ["network", pytest.param("patches", marks=pytest.mark.slow)])
def test_a_network_completes_what_no_frame_shows(tmp_path, quick_init, texture):
    """A camera that stands still."""
    module = registry.build("lama", width=4, blocks=1, global_channels=24)
    save_model(tmp_path, module, registry.init(module, jax.random.key(0)))
    frames = np.repeat(np.random.default_rng(0).integers(60, 190, (1, 32, 40, 3), np.uint8), 3, axis=0)
    source, options = FrameSource.from_array(frames), {"settings": {"texture": texture}}
    made = run(source, model=tmp_path, **options)
    np.testing.assert_array_equal(CANVAS.paste(made, frames)[:, *CANVAS.box], frames)
    assert np.abs(made - run(source).astype(int))[:, CANVAS.mask()[..., 0] > 0].mean() > 5
    with pytest.raises(ValueError, match="a model completes key frames: it goes with prefer='sharp'"):
        Lite(tmp_path, prefer="faithful")
