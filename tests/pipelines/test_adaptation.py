import shutil

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.models.residual_unet import ResidualUNet
from m3ddm_jax.pipelines.adaptation import Adapter, Made, plan_tasks
from m3ddm_jax.video import FrameSource

CANVAS = Canvas.from_pad(32, 32, 6, 0, 10, 0)


def frames(count=10, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(60, 200, (count, 4, 4, 3)).astype(np.uint8).repeat(8, 1).repeat(8, 2)


def made_wrong_by(amount):
    """A `Make` that says what is there, but for `amount` levels where it is hidden. It knows a truth that is
    the same in every column."""

    def make(source, canvas):
        for shown in source[:]:
            truth = np.repeat(shown[:, :1], canvas.width, axis=1).astype(np.float32)
            yield Made(truth + amount * canvas.mask(), truth, truth, 1 - canvas.mask().astype(np.float32))

    return make


def adapter(make, steps, cache=None, settings=None):
    return Adapter(make, steps, cache, settings=settings, network=ResidualUNet(widths=(16, 16)))


def stripes(count=10):
    return np.repeat(frames(count)[:, :, :1], 32, axis=2)


def source(array=None):
    return FrameSource.from_array(stripes() if array is None else array)


@hypothesis.given(st.integers(2, 300), st.integers(2, 300), *(st.integers(0, 200) for _ in range(4)))
@hypothesis.settings(max_examples=200)
def test_tasks_lie_in_the_source_and_hide_what_the_canvas_hides(height, width, left, top, right, bottom):
    right += (width + left + right) % 2
    bottom += (height + top + bottom) % 2
    canvas = Canvas.from_pad(height, width, left, top, right, bottom)
    tasks = plan_tasks(canvas)
    scale = min(height / canvas.height, width / canvas.width)
    assert bool(tasks) == (0.5 <= scale < 1)
    for (rows, columns), task in tasks:
        assert rows.start >= 0 and rows.stop <= height and columns.start >= 0 and columns.stop <= width
        assert (rows.stop - rows.start, columns.stop - columns.start) == (task.height, task.width)
        for part, whole, full_part, full in (
            (task.source_height, task.height, height, canvas.height),
            (task.source_width, task.width, width, canvas.width),
        ):
            assert abs(part / whole - full_part / full) <= 3 / whole


def test_what_is_wrong_with_the_hidden_part_of_the_source_is_put_right_beyond_it():
    """By half, as no more than half of the network is trusted."""
    make = made_wrong_by(-40.0)
    correct = adapter(make, 60)(source(), range(10), CANVAS)
    assert correct.share == 0.5
    made = next(make(source(), CANVAS))
    added = correct(made)
    assert not added[CANVAS.box].any() and added.shape == (32, 48, 3)
    hidden = CANVAS.mask()[..., 0] > 0
    assert 12 < added[hidden].mean() < 24
    left = np.abs(made.frame + added - np.repeat(stripes()[0, :, :1], 48, axis=1))[hidden].mean()
    assert left < 28


def test_strips_held_back_decide_how_far_it_is_trusted():
    """Nothing is learnt in the middle fifth of the rows; there, and there alone, the opposite is wrong."""
    array = np.full((10, 32, 32, 3), 60, np.uint8)
    array[:, 13:19] = 140

    def make(source, canvas):
        for made in made_wrong_by(-40.0)(source, canvas):
            wrong = np.where(made.blurred > 100, 40.0, -40.0) * canvas.mask()
            yield made._replace(frame=made.blurred + wrong)

    assert adapter(make, 30)(source(array), range(10), CANVAS).share == 0
    array[:] = 60
    assert adapter(make, 30)(source(array), range(10), CANVAS).share == 0.5


def test_one_colour_leaves_all_as_it_is_and_too_little_to_learn_from_is_none():
    adapt = adapter(made_wrong_by(0.0), 3)
    correct = adapt(source(np.full((9, 32, 32, 3), 90, np.uint8)), range(9), CANVAS)
    made = next(made_wrong_by(0.0)(source(), CANVAS))
    assert np.abs(correct(made)).max() < 1e-3
    assert adapt(source(), range(1), CANVAS) is None
    assert adapt(source(), range(10), Canvas.from_pad(32, 32, 40, 0, 40, 0)) is None


def test_what_was_learnt_is_found_again_by_its_frames(tmp_path, monkeypatch):
    make, made = made_wrong_by(-40.0), next(made_wrong_by(-40.0)(source(), CANVAS))
    learnt = adapter(make, 5, tmp_path)(source(), range(10), CANVAS)
    (kept,) = tmp_path.iterdir()
    again = adapter(make, 5, tmp_path)
    monkeypatch.setattr(again, "_learn", None)
    np.testing.assert_array_equal(again(source(), range(10), CANVAS)(made), learnt(made))
    for other in (adapter(make, 6, tmp_path), adapter(make, 5, tmp_path, settings="others")):
        assert other._name([stripes()], CANVAS) != again._name([stripes()], CANVAS)
    assert again._name([stripes()[::-1]], CANVAS) != again._name([stripes()], CANVAS)
    assert [path for path in tmp_path.iterdir()] == [kept]


def test_stopping_it_midway_leaves_nothing_behind(tmp_path, monkeypatch):
    adapt, done = adapter(made_wrong_by(-40.0), 5, tmp_path), []

    def stopped(variables, state, batch):
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt
        return variables, state

    monkeypatch.setattr(adapt, "_update", stopped)
    with pytest.raises(KeyboardInterrupt):
        adapt(source(), range(10), CANVAS)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_told(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert adapter(made_wrong_by(-40.0), 1, tmp_path / "file")(source(), range(10), CANVAS).share >= 0
    assert "what was learnt is not kept" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "share", "file", "empty"])
def test_a_damaged_cache_entry_counts_as_absent(tmp_path, caplog, damage):
    make = made_wrong_by(-40.0)
    learnt = adapter(make, 1, tmp_path)(source(), range(10), CANVAS)
    (entry,) = tmp_path.iterdir()
    weights = entry / "weights.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "share":
        (entry / "pipeline.json").write_text('{"share": "much"}')
    else:
        shutil.rmtree(entry)
        entry.mkdir() if damage == "empty" else entry.write_text("")
    again = adapter(make, 1, tmp_path)(source(), range(10), CANVAS)
    assert again.share == learnt.share and "damaged cache entry is passed over" in caplog.text
    caplog.clear()
    assert adapter(make, 1, tmp_path)(source(), range(10), CANVAS).share == learnt.share
    assert not caplog.messages and list(tmp_path.iterdir()) == [entry]
