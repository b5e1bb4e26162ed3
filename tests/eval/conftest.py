"""Tiny clips, and networks that cost nothing in the place of I3D and LPIPS."""

import cv2
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from eval.networks import Network


class _Pooled(nn.Module):
    """Stands for I3D: the mean colours of three places in time, and their products."""

    num_classes: int = 9
    bn_epsilon: float = 1e-3

    def __call__(self, video):
        times = jnp.stack([video[:, i].mean(axis=(1, 2)) for i in (0, video.shape[1] // 2, -1)], axis=1)
        return times.reshape(len(video), -1)


class _Absolute(nn.Module):
    """Stands for LPIPS: absolute difference, summed over channels, at five equal depths."""

    net: str = "alex"
    smallest_side: int = 16

    def layer_distances(self, a, b):
        return [jnp.abs(a - b).sum(axis=-1) / 5] * 5


@pytest.fixture
def i3d():
    """A network whose features are colours in the range that it sees."""
    return Network(_Pooled(), {}, {"kind": "i3d", "sha256": "abc"})


@pytest.fixture
def lpips():
    """A network whose distance is the mean absolute difference, summed over channels, of values in [-1, 1]."""
    return Network(_Absolute(), {}, {"kind": "lpips", "net": "alex", "sha256": "def"})


@pytest.fixture
def write_clip():
    """Function (folder, uint8 [T,H,W,3]): writes a folder of PNG."""

    def write(folder, frames):
        folder.mkdir(parents=True)
        for number, frame in enumerate(frames):
            cv2.imwrite(str(folder / f"{number:05d}.png"), frame[..., ::-1])

    return write


@pytest.fixture
def random_frames():
    """Function (seed, count, height, width) -> uint8 [count,height,width,3] below 200."""

    def make(seed, count=3, height=24, width=32):
        return np.random.default_rng(seed).integers(0, 200, (count, height, width, 3), dtype=np.uint8)

    return make


@pytest.fixture
def folders(tmp_path, write_clip, random_frames):
    """Two clips; outputs are 10 levels too bright where generated (columns 0..8 and 24..32) and garbage where known."""
    for seed, name in enumerate(("one", "two")):
        frames = random_frames(seed, count=3 + seed)
        write_clip(tmp_path / "truth" / name, frames)
        output = frames + np.uint8(10)
        output[:, :, 8:24] = 255
        write_clip(tmp_path / "outputs" / name, output)
    return tmp_path
