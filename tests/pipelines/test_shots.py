import numpy as np

from data.shots import THUMBNAIL, find_cuts
from m3ddm_jax.pipelines.shots import source_cuts


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


def test_cuts_are_those_of_the_whole_video_at_block_borders_too():
    for lengths in ([255, 300, 12, 9], [256, 256, 80], [249, 14, 500], [1], [700]):
        video = Frames(shots(lengths))
        assert source_cuts(video) == find_cuts(video.frames) == list(np.cumsum(lengths)[:-1])
        assert video.most <= 272
