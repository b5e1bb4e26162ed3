import numpy as np
import pytest

from m3ddm_jax.video import FrameSink
from tests.outpaint.helpers import line_of, lines


@pytest.fixture
def call(run_module):
    """Function (arguments): runs the command here."""
    return lambda *arguments: lines(run_module("m3ddm_jax.outpaint", *arguments))


@pytest.fixture
def refused(call):
    """Function (arguments): the one line that the command says when it refuses."""
    return lambda *arguments: line_of(*call(*arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """in.mp4 and frames/: 6 frames of 40x32 at 10 fps."""
    folder = tmp_path_factory.mktemp("inputs")
    frames = np.random.default_rng(0).integers(0, 256, (6, 32, 40, 3), np.uint8)
    for name in ("in.mp4", "frames"):
        with FrameSink(folder / name, 10, 32, 40) as sink:
            sink.write(frames)
    return folder
