"""Cuts between shots."""

import numpy as np
import pytest

from m3ddm_jax.video.shots import THUMBNAIL, find_cuts, source_cuts
from tests.data.test_shots import textured


class Frames:
    """A source of arrays that counts what is read at once."""

    def __init__(self, frames):
        self.frames, self.most = frames, 0

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, key):
        self.most = max(self.most, len(self.frames[key]))
        return self.frames[key]


def shots(lengths):
    rng = np.random.default_rng(0)
    scenes = []
    for place, length in enumerate(lengths):
        colour = (40, 110, 180)[place % 3]
        scenes.append(rng.integers(colour, colour + 60, (length, *THUMBNAIL, 3), np.uint8))
    return np.concatenate(scenes)


@pytest.mark.parametrize("lengths", [(20, 20), (5, 9, 30), (3, 3, 3)])
def test_cuts_are_found_where_shots_meet(lengths):
    frames = np.concatenate([textured(seed, length) for seed, length in enumerate(lengths)])
    assert find_cuts(frames) == np.cumsum(lengths)[:-1].tolist()


def test_motion_flashes_fades_and_short_videos_are_no_cuts():
    assert find_cuts(textured(0, 30, speed=6)) == []
    flash = textured(1, 30)
    flash[15] = 255
    assert find_cuts(flash) == []
    fade = (textured(2, 30) * np.linspace(1, 0, 30)[:, None, None, None]).astype(np.uint8)
    assert find_cuts(fade) == []
    assert find_cuts(np.full((10, 32, 32, 3), 90, np.uint8)) == []
    assert find_cuts(textured(3, 1)) == [] and find_cuts(textured(3, 2)) == []


def test_cuts_are_those_of_the_whole_video_at_block_borders_too():
    for lengths in ([255, 300, 12, 9], [256, 256, 80], [249, 14, 500], [1], [700]):
        video = Frames(shots(lengths))
        assert source_cuts(video) == find_cuts(video.frames) == list(np.cumsum(lengths)[:-1])
        assert video.most <= 272
