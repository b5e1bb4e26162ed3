import subprocess
import sys

import numpy as np
import pytest

from data import reading, sources
from data.synthetic import outdoors, scenes, sprites, textures, worlds


def world_scene(monkeypatch, builder, seed=0, height=48, width=64):
    monkeypatch.setattr(scenes, "WORLDS", ((builder, 1.0),))
    return scenes.Scene(seed, height, width)


@pytest.mark.parametrize("builder", [builder for builder, _ in worlds.WORLDS], ids=lambda builder: builder.__name__)
@pytest.mark.parametrize("size", [(48, 64), (64, 36), (16, 16)])
def test_every_world_draws_smooth_varied_frames_of_any_shape(monkeypatch, builder, size):
    changes, spreads = [], []
    for seed in range(3):
        drawn = world_scene(monkeypatch, builder, seed, *size)
        frames = np.stack([drawn.frame(index) for index in range(100, 106)])
        assert frames.shape == (6, *size, 3) and frames.dtype == np.uint8
        steps = np.abs(np.diff(frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
        assert steps.max() < 25, "no jumps"
        changes.append(steps.mean())
        spreads.append(frames[0].std())
    assert max(changes) > 0.2, "something moves"
    assert max(spreads) > 8, "there is something to see"


def test_a_frame_is_the_same_whenever_it_is_drawn(monkeypatch):
    for builder, _ in worlds.WORLDS:
        drawn = world_scene(monkeypatch, builder)
        later, early = drawn.frame(40), drawn.frame(3)
        again = world_scene(monkeypatch, builder)
        assert (again.frame(3) == early).all() and (again.frame(40) == later).all()
        assert (drawn.frame(3) == early).all(), "drawing leaves the scene as it was"


def test_scenes_never_end_and_differ_by_seed():
    far = scenes.Scene(1, 32, 32).frame(10**6)
    assert far.std() > 0
    firsts = {scenes.Scene(seed, 24, 24).frame(0).tobytes() for seed in range(12)}
    assert len(firsts) == 12
    assert (scenes.scene(4, 3, 24, 32) == [scenes.Scene(4, 24, 32).frame(index) for index in range(3)]).all()


def test_weights_of_the_worlds_sum_to_one():
    assert sum(weight for _, weight in worlds.WORLDS) == pytest.approx(1)


@pytest.mark.parametrize("make", textures.TEXTURES, ids=lambda make: make.__name__)
def test_textures_are_colours_with_something_in_them(make):
    for seed in range(3):
        image = np.clip(make(np.random.default_rng(seed), 40, 56, 20.0), 0, 1)
        assert image.shape == (40, 56, 3) and image.dtype == np.float32
        assert np.isfinite(image).all() and image.std() > 0.01


def test_noise_has_a_falling_spectrum():
    values = textures.noise(np.random.default_rng(0), 128, 128, 64.0, 6)
    power = np.abs(np.fft.fft2(values - values.mean())) ** 2
    low, high = power[0, 1:5].mean(), power[0, 24:48].mean()
    assert values.min() >= 0 and values.max() <= 1 and low > 30 * high


@pytest.mark.parametrize("left", [-5, -4, -2, 0, 3, 5, 6, 7, 9])
def test_a_sprite_is_pasted_as_far_as_it_lies_inside(left):
    image = np.zeros((4, 6, 4), np.float32)
    outdoors.paste(image, np.ones((2, 4, 4), np.float32), 1, left)
    expected = np.zeros((4, 6, 4), np.float32)
    expected[1:3, max(0, left) : max(0, left + 4)] = 1
    np.testing.assert_array_equal(image, expected)


def test_a_first_house_beyond_the_edge_is_left_out():
    """It begins up to one unit before the edge, and may be narrower than that."""
    for seed in range(40):
        image = sprites.houses(np.random.default_rng(seed), 20, 150, 100.0, night=False)
        assert image.shape == (20, 150, 4) and (image[-7:, :, 3] == 1).all()  # there is a house everywhere


def test_scenes_too_small_are_refused():
    with pytest.raises(ValueError, match="16x16"):
        scenes.Scene(0, 8, 64)


def run_process(*arguments):
    command = [sys.executable, "-m", "data.synthetic", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_writes_a_video_or_exits_with_2(tmp_path):
    done = run_process(tmp_path / "x.avi")
    assert done.returncode == 2 and done.stderr.startswith("data.synthetic: ") and done.stderr.count("\n") == 1
    done = run_process(tmp_path / "scene.mp4", "--size=64x48", "--frames=5", "--seed=3")
    assert done.returncode == 0, done.stderr
    assert reading.describe(sources.index_video(tmp_path / "scene.mp4")) == (5, 24.0, 48, 64)
    frames = reading.read_media(tmp_path / "scene.mp4", range(5))
    assert np.abs(frames.astype(int) - scenes.scene(3, 5, 48, 64)).mean() < 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/x.mp4", "--size=big"], "WIDTHxHEIGHT"),
        (["{}/x.mp4", "--size=65x48", "--frames=1"], "even"),
        (["{}/x.mp4", "--size=8x8"], "16x16"),
        (["{}/x.avi"], ".mp4"),
        ([], "one output file"),
        (["{}/missing/x.mp4", "--size=16x16", "--frames=1"], "No such file"),
    ],
)
def test_a_wrong_command_exits_2_with_one_line_and_leaves_nothing(run_module, tmp_path, arguments, message):
    done = run_module("data.synthetic", *(argument.format(tmp_path) for argument in arguments))
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("data.synthetic: ") and message in last
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []
