"""python -m data.synthetic, as the README runs it."""

import subprocess
import sys

import numpy as np
import pytest

from data import reading, sources
from m3ddm_jax.scenes.scene import sample_frames


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
    assert np.abs(frames.astype(int) - sample_frames(5, 48, 64, seed=3)).mean() < 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/x.mp4", "--size=big"], "WIDTHxHEIGHT"),
        (["{}/x.mp4", "--size=65x48", "--frames=1"], "even"),
        (["{}/x.mp4", "--size=8x8"], "16x16"),
        (["{}/x.avi"], ".mp4"),
        ([], "OUT expected, found no argument"),
        (["{}/x.mp4", "--frames=0"], "flag --frames=0"),
        (["{}/missing/x.mp4", "--size=16x16", "--frames=1"], "No such file"),
    ],
)
def test_a_wrong_command_exits_2_with_one_line_and_leaves_nothing(run_module, tmp_path, arguments, message):
    done = run_module("data.synthetic", *(argument.format(tmp_path) for argument in arguments))
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("data.synthetic: ") and message in last
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []
