"""Tiny videos for the tests of data/."""

import cv2
import numpy as np
import pytest

from data.encode import encode_video


def _moving_frames(num_frames=20, height=32, width=48, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(-30, 30, (height // 8, (width + num_frames) // 8 + 2, 3))
    wide = np.kron(coarse, np.ones((8, 8, 1), int))
    frames = [wide[:, t : t + width] + 60 + 6 * t for t in range(num_frames)]
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def moving_frames():
    """Function (num_frames, height, width, seed) -> uint8 [T,h,w,3]: blocks that slide and brighten by 6 a frame."""
    return _moving_frames


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory):
    """Three short videos and one folder of frames, all sound."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(3):
        frames = _moving_frames(20 + 4 * number, seed=number)
        (root / f"clip{number}.mp4").write_bytes(encode_video(frames, 24, crf=10))
    (root / "frames").mkdir()
    for number, frame in enumerate(_moving_frames(12, seed=9)):
        cv2.imwrite(str(root / "frames" / f"{number}.png"), frame[..., ::-1])
    return root
