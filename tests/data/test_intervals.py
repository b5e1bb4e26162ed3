import pytest

from data import intervals, sources
from data.clips import VideoInfo
from data.sources import Video


class Videos:
    """Videos of the given numbers of frames; 0: one that cannot be opened. known: whether it knows its lengths."""

    def __init__(self, *frames, known=False):
        self._frames, self._known, self.opened = frames, known, 0

    def __len__(self):
        return len(self._frames)

    def open(self, index):
        self.opened += 1
        if not self._frames[index]:
            raise ValueError("unreadable")
        return Video("video", VideoInfo(self._frames[index], 24.0, 8, 8), None)

    def lengths(self):
        return {frames: self._frames.count(frames) for frames in self._frames} if self._known else None


@pytest.mark.parametrize(("interval", "share"), [(1, 0.75), (3, 0.75), (4, 0.5), (15, 0.25), (16, 0)])
def test_the_share_of_clips_that_can_have_an_interval(interval, share):
    for known in (False, True):
        source = Videos(61 - 15, 15, 226, 61, known=known)
        assert intervals.serving_share([source], [1.0], 16, interval) == share


def test_sources_count_by_their_weights():
    found = intervals.serving_share([Videos(226), Videos(16, 0, known=False)], [3.0, 1.0], 16, 15)
    assert found == 0.75


def test_videos_that_are_all_too_short_are_refused_and_one_long_enough_is_looked_for():
    message = r"clips have 16 frames \(data.num_frames\), the longest video of data.sources 15"
    with pytest.raises(ValueError, match=message):
        intervals.serving_share([Videos(*[15] * 200), Videos(12, known=True)], [1.0, 1.0], 16, 1)
    assert intervals.serving_share([Videos(*[15] * 190, 16, *[15] * 5)], [1.0], 16, 1) > 0


def test_a_large_source_is_looked_at_here_and_there():
    source = Videos(*[16] * 10_000)
    assert intervals.serving_share([source], [1.0], 16, 1) == 1
    assert source.opened == intervals.LOOKED_AT


def test_folders_and_scenes_have_lengths(video_folder):
    opened = [sources.open_source("videos", video_folder, split="all"), sources.open_source("synthetic")]
    assert opened[0].lengths() is None and set(opened[1].lengths()) == {sources.SYNTHETIC_FRAMES}
    assert dict(intervals.find_lengths(opened[0], 8)) == {20: 1, 24: 1, 28: 1, 12: 1}
