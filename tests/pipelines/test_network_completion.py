import jax
import numpy as np
import pytest

from m3ddm_jax.models import registry
from m3ddm_jax.pipelines.completion import PatchCompleter
from m3ddm_jax.pipelines.network_completion import NetworkCompleter, box_around, predictor
from m3ddm_jax.pipelines.propagation import View

SLIM = {
    "lama": {"width": 4, "blocks": 1, "global_channels": 24},
    "migan": {"resolution": 32, "width": 4, "most_channels": 8},
    "deepfill": {"width": 4},
}
HEIGHT, WIDTH, SIDE = 37, 50, 12


@pytest.fixture
def frame():
    return np.random.default_rng(0).uniform(0, 255, (HEIGHT, WIDTH, 3)).astype(np.float32)


@pytest.fixture
def unknown():
    mask = np.zeros((HEIGHT, WIDTH, 1), bool)
    mask[:, -SIDE:] = True
    return mask


@pytest.fixture(scope="module", params=SLIM)
def predict(request, quick_init):
    module = registry.build(request.param, **SLIM[request.param])
    return predictor(module, registry.init(module, jax.random.key(0)))


def key_of(frame, unknown):
    return View(frame, ~unknown[..., 0], None, np.zeros(2))


def test_known_pixels_stay_and_unknown_ones_are_not_looked_at(predict, frame, unknown):
    """A mask of the other polarity would fail this: what is known matters, what is hidden does not."""
    complete = NetworkCompleter(predict, 0)
    made = complete(key_of(frame, unknown), unknown)
    assert made.dtype == np.float32 and made.shape == frame.shape and made.min() >= 0 and made.max() <= 255
    np.testing.assert_array_equal(made[:, :-SIDE], frame[:, :-SIDE])
    hidden, shown = np.where(unknown, 255 - frame, frame), np.where(unknown, frame, 255 - frame)
    np.testing.assert_array_equal(complete(key_of(hidden, unknown), unknown), made)
    assert np.abs(complete(key_of(shown, unknown), unknown) - made)[:, -SIDE:].max() > 0.01


def test_a_wide_border_is_completed_in_steps_from_the_inside_out(frame, unknown):
    """At most three; each sees what those before it have made."""
    seen = []

    def predict(frame, unknown):
        seen.append(int(unknown[0].sum()))
        return np.full_like(frame, 100 * len(seen) - 50)

    made = NetworkCompleter(predict, 5)(key_of(frame, unknown), unknown)
    assert seen == [12, 8, 4]
    np.testing.assert_array_equal(made[:, -SIDE:, 0], np.broadcast_to(np.repeat((50, 150, 250), 4), (HEIGHT, SIDE)))
    seen.clear()
    NetworkCompleter(predict, 1)(key_of(frame, unknown), unknown)
    NetworkCompleter(predict, 12)(key_of(frame, unknown), unknown)
    NetworkCompleter(predict, 0)(key_of(frame, unknown), unknown)
    assert seen == [12, 8, 4, 12, 12]


def test_patches_keep_the_colours_of_the_network(frame, unknown):
    noise = 100 + frame / 8
    base = NetworkCompleter(lambda frame, unknown: np.full_like(frame, (200, 100, 50)), 0)
    made = PatchCompleter(base=base.complete)(key_of(noise, unknown), unknown)
    np.testing.assert_array_equal(made[:, :-SIDE], noise[:, :-SIDE])
    np.testing.assert_allclose(made[:, -SIDE:].mean((0, 1)), (200, 100, 50), atol=4)
    assert made[:, -SIDE:].std((0, 1)).min() > 3


def test_boxes_around_the_unknown_equal_the_official_ones(goldens):
    for height, width, left, right, top, bottom, *box in np.load(goldens / "completion/migan_pipeline/outputs.npz")[
        "boxes"
    ]:
        mask = np.zeros((height, width), bool)
        mask[top : bottom + 1, left : right + 1] = True
        rows, columns = box_around(mask, 64, 16)
        assert [columns.start, columns.stop, rows.start, rows.stop] == box


def test_what_is_far_from_a_hole_is_not_shrunk_for_it():
    """MI-GAN's square lies around the hole of a wide frame."""
    module = registry.build("migan", **SLIM["migan"])
    predict = predictor(module, registry.init(module, jax.random.key(0)))
    frame = np.random.default_rng(0).uniform(0, 255, (40, 600, 3)).astype(np.float32)
    unknown = np.zeros((40, 600, 1), bool)
    unknown[10:20, 20:30] = True
    far = frame.copy()
    far[:, 400:] = 0
    np.testing.assert_array_equal(predict(frame, unknown)[10:20, 20:30], predict(far, unknown)[10:20, 20:30])
    far[:, 100:] = 0
    assert (predict(frame, unknown) != predict(far, unknown))[10:20, 20:30].any()


def test_refinement_is_for_lama_alone():
    module = registry.build("migan", **SLIM["migan"])
    with pytest.raises(ValueError, match="the setting refinement is for lama, the completion network is migan"):
        predictor(module, {}, refinement=15)


@pytest.mark.slow
def test_refinement_changes_a_picture_of_several_scales(quick_init):
    module = registry.build("lama", **SLIM["lama"])
    variables = registry.init(module, jax.random.key(0))
    frame = np.random.default_rng(0).uniform(0, 255, (368, 376, 3)).astype(np.float32)
    unknown = np.zeros((368, 376, 1), bool)
    unknown[:, -60:] = True
    plain, refined = (predictor(module, variables, count)(frame, unknown) for count in (0, 2))
    assert np.abs(plain - refined)[unknown[..., 0]].max() > 0.01
    np.testing.assert_allclose(refined[:, :-60], frame[:, :-60], atol=1e-3)


def test_a_frame_of_which_nothing_is_known_stays_and_is_reported_once(frame, caplog):
    complete = NetworkCompleter(lambda *_: np.zeros_like(frame), 0)
    for _ in range(2):
        unknown = np.ones((HEIGHT, WIDTH, 1), bool)
        np.testing.assert_array_equal(complete(key_of(frame, unknown), unknown), frame)
    np.testing.assert_array_equal(complete(key_of(frame, ~unknown), ~unknown), frame)  # nothing is unknown
    assert caplog.messages == ["completion skipped: no pixel of a key frame is known"]
