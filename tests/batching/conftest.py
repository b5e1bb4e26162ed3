import numpy as np
import pytest

from m3ddm_jax.video import FrameSink


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """12 clips of 24 frames of 64x48 pixels, 00.mp4 to 11.mp4."""
    folder = tmp_path_factory.mktemp("clips")
    noise = np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), np.uint8)
    for index in range(12):
        with FrameSink(folder / f"{index:02}.mp4", 24, 48, 64) as sink:
            sink.write(noise)
    return folder
