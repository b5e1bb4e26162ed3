import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from data import clips
from data.clips import VideoInfo
from data.masks import Box


def plan(seed, info, **more):
    settings = {"num_frames": 8, "bucket": (24, 40), "global_frames": 5, "max_interval": 4} | more
    return clips.plan_clip(info, np.random.default_rng(seed), **settings)


@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    video_frames=st.integers(1, 200),
    height=st.integers(8, 300),
    width=st.integers(8, 300),
    num_frames=st.integers(1, 16),
    bucket=st.tuples(st.integers(4, 64), st.integers(4, 64)),
    max_interval=st.integers(1, 30),
)
def test_plans_fit_video_and_bucket(seed, video_frames, height, width, num_frames, bucket, max_interval):
    info = VideoInfo(video_frames, 30.0, height, width)
    drawn = plan(seed, info, num_frames=num_frames, bucket=bucket, max_interval=max_interval)
    assert len(drawn.indices) == num_frames and len(drawn.global_indices) == 5
    assert set(drawn.indices + drawn.global_indices) <= set(range(video_frames))
    assert 1 <= drawn.interval <= max_interval and drawn.fps == 30.0 / drawn.interval
    if video_frames >= num_frames:
        assert set(np.diff(drawn.indices)) <= {drawn.interval}
    crop = drawn.crop
    assert (crop.bottom - crop.top, crop.right - crop.left) == bucket
    assert min(crop) >= 0 and crop.bottom <= drawn.size[0] and crop.right <= drawn.size[1]
    # the frame keeps its shape to within a pixel, and grows only where the video is smaller than the bucket
    scale = [new / old for new, old in zip(drawn.size, (height, width), strict=True)]
    assert abs(scale[0] - scale[1]) * min(height, width) <= 1.001
    largest = max(1.0, bucket[0] / height, bucket[1] / width)
    assert drawn.size[0] <= largest * height + 1 and drawn.size[1] <= largest * width + 1


def test_crops_reach_from_the_whole_frame_to_a_small_part_and_are_mirrored_half_the_time():
    plans = [plan(seed, VideoInfo(100, 30.0, 240, 400)) for seed in range(400)]
    sides = np.array([24 / drawn.size[0] for drawn in plans])
    assert sides.max() > 0.97 and clips.SMALLEST_CROP - 0.01 < sides.min() < clips.SMALLEST_CROP + 0.03
    assert abs(sum(drawn.flip for drawn in plans) - 200) < 3.3 * 10
    assert {drawn.interval for drawn in plans} == {1, 2, 3, 4}
    assert len({drawn.indices[0] for drawn in plans}) > 60


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((3, 4, 2, 20), (3, 5, 7, 9)),
        ((0, 5, 1, 3), (0, 1, 2, 1, 0)),
        ((0, 4, 1, 1), (0, 0, 0, 0)),
        ((1, 4, 3, 2), (1, 0, 1, 0)),
    ],
)
def test_clip_indices_turn_back_at_the_ends_of_short_videos(arguments, expected):
    assert clips.clip_indices(*arguments) == expected


def test_global_indices_spread_over_the_whole_video():
    assert clips.global_indices(10, 4) == (0, 3, 6, 9)
    assert clips.global_indices(241, 16) == tuple(int(240 * i / 15) for i in range(16))
    assert clips.global_indices(1, 3) == (0, 0, 0)


@pytest.mark.parametrize("flip", [False, True])
def test_a_clip_is_cut_from_the_scaled_frames_and_global_frames_show_the_known_part_alone(flip):
    frames = np.arange(6 * 8 * 12 * 3, dtype=np.int64).reshape(6, 8, 12, 3).astype(np.uint8)
    drawn = clips.ClipPlan((1, 2), (0, 3, 5), (8, 12), Box(2, 6, 4, 10), flip, 1, 30.0)
    asked = []

    def read(indices, size):
        asked.append((list(indices), size))
        return frames[indices]

    video, global_frames = clips.cut_clip(drawn, read, Box(1, 3, 2, 4), 2)
    assert asked == [([0, 1, 2, 3, 5], (8, 12))]
    cropped = frames[:, 2:6, 4:10][:, :, :: -1 if flip else 1]
    assert (video == cropped[[1, 2]]).all()
    assert (global_frames == cropped[[0, 3, 5], 1:3, 2:4]).all()


def test_references_come_in_order_from_outside_the_clip_as_far_as_there_are_such():
    info = VideoInfo(30, 30.0, 24, 40)
    plans = [plan(seed, info, references=3) for seed in range(200)]
    for drawn in plans:
        assert len(set(drawn.reference_indices)) == 3 and sorted(drawn.reference_indices) == [*drawn.reference_indices]
        assert not set(drawn.reference_indices) & set(drawn.indices)
    assert {index for drawn in plans for index in drawn.reference_indices} == set(range(30))
    assert plan(0, info).reference_indices == () and plan(0, info).indices == plans[0].indices
    # Beside a clip of eight of ten frames are no three others, so any will do; of two frames some come twice.
    assert set(plan(0, VideoInfo(10, 30.0, 24, 40), references=3).reference_indices) <= set(range(10))
    assert len(plan(0, VideoInfo(2, 30.0, 24, 40), references=3).reference_indices) == 3


def test_references_are_cut_as_the_clip_is_and_follow_it():
    frames = np.arange(6 * 8 * 12 * 3, dtype=np.int64).reshape(6, 8, 12, 3).astype(np.uint8)
    drawn = clips.ClipPlan((1, 2), (0,), (8, 12), Box(2, 6, 4, 10), True, 1, 30.0, (0, 5))
    video, _ = clips.cut_clip(drawn, lambda indices, size: frames[indices], Box(1, 3, 2, 4), 2)
    assert (video == frames[[1, 2, 0, 5], 2:6, 4:10][:, :, ::-1]).all()


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((20, 40), 16, (8, 16)),
        ((40, 20), 16, (16, 8)),
        ((9, 9), 16, (16, 16)),
        ((100, 1), 8, (8, 1)),
        ((3, 7), 8, (3, 8)),
    ],
)
def test_the_longer_side_is_fitted(shape, size, expected):
    assert clips.fitted_size(*shape, size) == expected
    frame = np.full((*shape, 3), 7, np.uint8)
    square = clips.fit_square(frame, size, "pad")
    height, width = expected
    assert square.shape == (size, size, 3) and (square[:height, :width] == 7).all()
    assert square.sum() == 7 * 3 * height * width
    assert (clips.fit_square(frame, size, "stretch") == 7).all()
    with pytest.raises(ValueError, match="global fit 'crop' is unknown: one of stretch, pad"):
        clips.fit_square(frame, size, "crop")
